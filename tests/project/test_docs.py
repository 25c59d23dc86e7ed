"""The documents name only files and tests that exist in the repository."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.project.test_imports import modules

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TOP_LEVEL = "recsys|pipelines|tune|tests|docs|benchmarks"
# A path from the top level, not part of a longer path, a URL or a module; `NAME` is a placeholder.
PATH = re.compile(rf"(?<![\w/.:~-])(?:{TOP_LEVEL})/[\w./-]*\w(?![\w*{{<…-])")


@cache
def _tests() -> dict[str, ast.FunctionDef]:
    return {
        node.name: node
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def _map() -> list[Path]:
    """Every path of the README's map, whose indentation is that of the folders."""
    block = (
        (ROOT / "README.md")
        .read_text(encoding="utf-8")
        .partition("## Map of the files")[2]
        .split("```")[1]
    )
    found: list[Path] = []
    folders: dict[int, Path] = {0: ROOT}
    for line in block.strip("\n").splitlines():
        indent = len(line) - len(line.lstrip())
        names = re.split(r"\s{2,}", line.strip())[0].split(", ")
        for name in names:
            path = folders[indent] / name
            found.append(path)
            folders[indent + 2] = path
    return found


def test_every_slow_test_is_listed() -> None:
    """The table of docs/tests.md names all slow tests and no other."""
    slow = [
        name
        for name, node in _tests().items()
        if any("mark.slow" in ast.unparse(m) for m in node.decorator_list)
    ]
    listed = re.findall(
        r"^\| `(\w+)` \|", (ROOT / "docs/tests.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert sorted(listed) == sorted(slow)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    named = set(re.findall(r"`(test_\w+)`", page.read_text(encoding="utf-8")))
    assert named - set(_tests()) - {"test_users"} == set()  # a metric of MLflow


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_path_that_a_page_names_exists(page: Path) -> None:
    named = set(PATH.findall(page.read_text(encoding="utf-8")))
    assert {name for name in named if "NAME" not in name and not (ROOT / name).exists()} == set()


def test_every_path_of_the_map_exists() -> None:
    paths = _map()
    assert len(paths) > 40
    assert [str(path.relative_to(ROOT)) for path in paths if not path.exists()] == []


def test_map_names_every_package_and_module_of_the_library() -> None:
    mapped = set(_map())
    there = {
        path
        for path in (ROOT / "recsys").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    there |= {path.parent for path in (ROOT / "pipelines").glob("*/__init__.py")}
    assert {str(path.relative_to(ROOT)) for path in there - mapped} == {"recsys/__init__.py"}


def test_modules_that_code_names_exist() -> None:
    """A docstring or comment that names ``NAME.py`` does so after a move, too."""
    files = [path for _, path in modules()]
    there = {path.name for path in files}
    named = {
        (path.relative_to(ROOT).as_posix(), name)
        for path in files
        for name in re.findall(r"(?<![\w/.}-])([a-z_]+\.py)\b", path.read_text(encoding="utf-8"))
    }
    assert len(named) > 5
    assert sorted((path, name) for path, name in named if name not in there) == []
