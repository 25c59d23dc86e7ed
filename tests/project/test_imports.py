"""Imports go one way, tune → pipelines → recsys, and inside recsys in the order of the data flow;
no import has side effects.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from pipelines.stages import STAGES, VERBS

ROOT = Path(__file__).parents[2]

# A line may import the lines above it, never the lines below it. One line is one level.
LEVELS = [
    {"recsys", "recsys.errors", "recsys.pace", "recsys.processor", "recsys.schema"},
    {"recsys.storage"},
    {"recsys.config"},
    {"recsys.values"},
    {"recsys.sources", "recsys.data"},
    {"recsys.encoders"},
    {"recsys.preparation"},
    {"recsys.inspect"},
    {"recsys.granularities", "recsys.sharded_rows", "recsys.softmax"},
    {
        "recsys.fusion",
        "recsys.item_tower",
        "recsys.losses",
        "recsys.contributions",
        "recsys.rating_prediction",
        "recsys.stack",
    },
    {"recsys.model"},
    {"recsys.separate_model"},
    {"recsys.training", "recsys.evaluation"},
    {"recsys.retrieval", "recsys.report"},
    {"recsys.bundle"},
    {"recsys.serving", "recsys.gate", "recsys.auto", "recsys.privacy", "recsys.referee"},
    {"recsys.registry"},
    {"recsys.export", "recsys.ui"},
    {"pipelines.stages"},
    {"pipelines.plumbing"},
    {"pipelines.command_line"},
    {"pipelines.comparison", "pipelines.following", "pipelines.steps"},
    # verbs and stages; also `pipelines.updating` and `.forgetting`, which train again by stages
    {"pipelines"},
    {"pipelines.python"},
    {"tune"},
]
# `import recsys` imports the packages above it only when they are used: test_python_api.py
FRONT_DOOR = "recsys"
HEAVY = ("ray", "torch", "mlflow", "pyarrow", "pandas", "pydantic", "yaml")


def modules() -> Iterator[tuple[str, Path]]:
    for package in ("recsys", "pipelines", "tune"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def _imports(path: Path, module: str) -> Iterator[str]:
    """Every module of this project that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, (
                f"{module}: relative import in line {node.lineno}; write it in full"
            )
            base = node.module or ""
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] in ("recsys", "pipelines", "tune"))


def _part(name: str) -> str:
    """``recsys.data.split`` → ``recsys.data``; ``pipelines.cli`` → ``pipelines``."""
    first, *rest = name.split(".")
    part = f"{first}.{rest[0]}" if rest else first
    return part if any(part in level for level in LEVELS) else first


def _level(part: str) -> int:
    return next(number for number, level in enumerate(LEVELS) if part in level)


def test_every_part_of_recsys_has_a_level() -> None:
    parts = {
        ".".join(module.split(".")[:2]) for module, _ in modules() if module.startswith("recsys")
    }
    assert parts <= set().union(*LEVELS), "a new part of recsys needs its place in LEVELS"


@pytest.mark.parametrize(
    ("module", "path"), list(modules()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_no_module_imports_upwards(module: str, path: Path) -> None:
    mine = _part(module)
    if module == FRONT_DOOR:
        return
    for name in _imports(path, module):
        theirs = _part(name)
        if mine == theirs:
            continue
        assert _level(theirs) <= _level(mine), f"{module} imports {name}, which is above it"
        assert _level(theirs) < _level(mine), f"{module} imports {name}, which is on the same level"


# One subject in several packages: a kind of file is found and read, a figure computed and shown, a
# granularity has a section, a model, and perhaps counts. A verb has a section, a stage and
# its work.
SUBJECTS = {
    *("base", "canonical", "counts", "dataset", "final", "interest_drift", "model", "section"),
    *("sequences", "session", "stacking", "time_columns"),
}


def test_files_of_one_name_have_one_subject() -> None:
    names = [path.stem for _, path in modules() if path.stem != "__init__"]
    shared = {name for name in names if names.count(name) > 1}
    assert shared - SUBJECTS <= {*VERBS, *STAGES}, "give each subject a name of its own"


def _run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_only_these_packages_import_ray() -> None:
    """All other packages, above all the loop and the model, run without Ray."""
    allowed = {
        "recsys.preparation",
        "recsys.training.ray_train",
        "recsys.training.ray_worker",
        "recsys.training.ray_reports",
        "recsys.training.ray_resources",
        "recsys.serving",
        "pipelines",
        "tune",
        "recsys.pace",
    }
    for module, path in modules():
        names = {
            name
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            for name in (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
        }
        if any(name.split(".")[0] == "ray" for name in names):
            assert any(module == one or module.startswith(f"{one}.") for one in allowed), (
                f"{module} imports Ray"
            )


def _loaded_after(imports: Iterable[tuple[str, tuple[str, ...]]]) -> dict[str, list[str]]:
    """Import modules one after the other in one process; for each of them, which packages of its
    list are loaded afterwards. Why one process: torch alone costs seconds.
    """
    code = (
        "import importlib, json, sys\nfound = {}\n"
        f"for module, heavy in {[*imports]!r}:\n"
        "    importlib.import_module(module)\n"
        "    found[module] = [name for name in heavy if name in sys.modules]\n"
        "print(json.dumps(found))"
    )
    found: dict[str, list[str]] = json.loads(_run(code).splitlines()[-1])
    return found


def test_module_loads_neither_ray_nor_mlflow() -> None:
    modules = (
        "recsys.training.loop",
        "recsys.model",
        "recsys.serving.recommender",
        "recsys.bundle.layout",
        "pipelines.update",  # imports the stages train, evaluate and register
    )
    heavy = ("ray", "mlflow", "transformers")
    assert _loaded_after((module, heavy) for module in modules) == {name: [] for name in modules}


def test_table_of_verbs_needs_only_the_standard_library() -> None:
    code = (
        "import sys, pipelines.cli\n"
        "assert pipelines.cli.main(['--help']) == 0\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    assert _run(code).splitlines()[-1] == "[]"


# (module, what neither it nor any module that it imports loads): each of them costs up to seconds.
# One process imports them in this order, so a module may load more than those above it, not less.
STARTS = [
    ("pipelines.cli", HEAVY),
    ("pipelines.prepare", ("torch", "ray", "polars", "mlflow", "matplotlib", "transformers")),
    ("recsys.preparation.identity", ("torch", "ray", "mlflow", "scipy", "transformers")),
    ("pipelines.serve", ("torch", "ray", "mlflow", "matplotlib", "transformers")),
    # Every worker of `prepare` imports it, too.
    (
        "recsys.preparation.prepare",
        ("torch", "ray.data", "ray.train", "mlflow", "scipy", "transformers"),
    ),
    ("recsys.serving.model_holder", ("torch", "ray.data", "ray.serve", "mlflow")),
    # The front and Serve's controller import it; only replicas need torch.
    (
        "recsys.serving.deployment",
        ("torch", "ray.data", "ray.train", "mlflow", "scipy", "transformers"),
    ),
    ("recsys.preparation.reading", ("torch", "ray.train", "mlflow", "scipy", "transformers")),
]


def test_module_loads_only_packages_that_it_needs() -> None:
    assert _loaded_after(STARTS) == {module: [] for module, _ in STARTS}


@pytest.mark.slow
def test_importing_everything_starts_nothing(tmp_path: Path) -> None:
    """Imports start no Ray, open no tracking store and create no folder."""
    names = [module for module, _ in modules()]
    code = (
        "import importlib, os, sys\nsys.path.insert(0,"
        f" {str(ROOT)!r})\nos.chdir({str(tmp_path)!r})\n[importlib.import_module(name) for name in"
        f" {names!r}]\nimport ray, mlflow\nprint(ray.is_initialized(), mlflow.active_run(),"
        " os.listdir('.'))"
    )
    assert _run(code).splitlines()[-1] == "False None []"


def test_loop_does_not_import_ray() -> None:
    """A notebook, a sweep's trial without Ray and a worker run the same loop."""
    for name in (
        "recsys/training/loop.py",
        "recsys/training/phases.py",
        "recsys/training/step.py",
        "recsys/training/context.py",
        *(str(path.relative_to(ROOT)) for path in (ROOT / "recsys/model").glob("*.py")),
    ):
        tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [found for found in names if found.split(".")[0] == "ray"], name
