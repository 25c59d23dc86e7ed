"""The documentation site: every page is in the navigation, and generated pages cover all of the
code."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("mkdocs", reason="needs the extra docs")
pytest.importorskip("nbclient", reason="needs the extra docs")

import recsys
from docs.site import diagram, notebooks, pages
from pipelines.plumbing.reference import sections
from pipelines.stages import STAGES, VERBS
from recsys.config import SECTIONS, Config

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))


class _Loader(yaml.SafeLoader):
    """Read names of Python objects, which MkDocs resolves, as plain text."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/name:", lambda loader, suffix, node: suffix)


def _nav(entries: list[Any]) -> list[str]:
    found = []
    for entry in entries:
        for value in entry.values():
            found += [value] if isinstance(value, str) else _nav(value)
    return found


def test_every_page_is_in_the_navigation() -> None:
    text = (DOCS / "site/mkdocs.yml").read_text(encoding="utf-8")
    named = _nav(yaml.load(text, _Loader)["nav"])  # noqa: S506
    written = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    books = {f"notebooks/{path.stem}.md" for path in NOTEBOOKS}
    assert written - set(named) == set()
    assert books <= set(named)
    assert set(named) - written - books == {
        pages.CLI,
        f"{pages.CONFIGURATION}/index.md",
        "changelog.md",
    }
    assert len(named) == len(set(named))


def test_every_key_of_the_models_is_in_the_reference() -> None:
    made = pages.configuration()
    assert set(pages.section_names()) == {
        name
        for name, field in Config.model_fields.items()
        if hasattr(field.annotation, "model_fields")
    }
    for section in sections():
        name = section.path.split(".")[0] or "index"
        page = made[f"{pages.CONFIGURATION}/{name}.md"]
        where = (
            page.partition(
                f"## `{section.path}`" + (f", kind `{section.kind}`" if section.kind else "")
            )[2]
            or page
        )
        for key in section.keys:
            assert f"\n| `{key.path.rpartition('.')[2]}` | " in where, key.path


def test_every_verb_is_in_the_reference_with_inputs_and_outputs_of_its_stages() -> None:
    page = pages.cli()
    for name, verb in VERBS.items():
        part = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        assert verb.summary[1:] in part
        for stage in verb.stages:
            assert f"| {stage} | " in part


def test_diagram_names_every_stage_and_its_inputs() -> None:
    drawn = {row.stage: row for row in diagram.rows()}
    text = diagram.svg()
    assert list(drawn) == list(STAGES)
    assert all(f">{stage}</text>" in text for stage in STAGES)
    assert all(drawn[name].reads or not stage.reads for name, stage in STAGES.items())
    assert drawn["prepare"].reads == ["your files"] and drawn["prepare"].writes == [
        "prepared dataset"
    ]
    assert "training" in drawn["train"].packages and "serving" in drawn["recommend"].packages


def test_diagram_refuses_unknown_pattern() -> None:
    with pytest.raises(ValueError, match="stage new: '{moon}' is in no column"):
        diagram._columns("new", ("{moon}",))


def test_data_map_names_every_granularity() -> None:
    text = (DOCS / "data-map.md").read_text(encoding="utf-8")
    table = text.partition("| granularity | sees |")[2]
    assert {name for name in SECTIONS if f"`{name}`" not in table} == set()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_valid_python_without_outputs(path: Path) -> None:
    book = notebooks.read(path)
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    assert cells and book.cells[0].source.startswith("# ")
    for cell in cells:
        assert cell.outputs == [] and cell.execution_count is None
        source = cell.source
        if source.startswith("%%writefile"):
            source = source.partition("\n")[2]
        if not source.startswith(("%%bash", "data:")) and not re.match(r"^[\w.]+: ", source):
            ast.parse(source)


@pytest.mark.parametrize("cls", ["Dataset", "Model", "fit", "init", "load"])
def test_public_python_names_document_parameters_returns_and_raises(cls: str) -> None:
    named = getattr(recsys, cls)
    functions = (
        [named]
        if inspect.isfunction(named)
        else [
            getattr(member, "__func__", member)
            for name, member in vars(named).items()
            if not name.startswith("_")
            and (inspect.isfunction(member) or isinstance(member, classmethod))
        ]
    )
    for function in functions:
        text = inspect.getdoc(function) or ""
        takes = [
            name for name in inspect.signature(function).parameters if name not in ("self", "cls")
        ]
        for name in takes:
            listed = re.search(rf"^(\w+, )*\*{{0,2}}{name}(, \w+)*( : .*)?$", text, re.MULTILINE)
            assert listed, (function.__qualname__, name)
        assert "Returns\n-------" in text, function.__qualname__
        assert not takes or "Raises\n------" in text, function.__qualname__


def test_examples_of_docstrings_are_on_the_tested_page() -> None:
    page = (DOCS / "python.md").read_text(encoding="utf-8")
    for named in (recsys.Dataset, recsys.Model, recsys.fit):
        [example] = re.findall(r"```python\n(.*?)```", inspect.getdoc(named) or "", re.DOTALL)
        for line in example.strip().splitlines():
            assert f"\n{line}\n" in page, line


@pytest.mark.slow
def test_site_builds_without_broken_links_and_external_resources(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mkdocs",
            "build",
            "-q",
            "-f",
            "docs/site/mkdocs.yml",
            "-d",
            str(tmp_path / "site"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert diagram.svg() in (tmp_path / "site/data-way.html").read_text(encoding="utf-8")
    for page in (tmp_path / "site").rglob("*.html"):
        html = page.read_text(encoding="utf-8")
        assert not re.findall(r'<(?:script|img|iframe)[^>]*src="(?:https?:)?//[^"]*"', html), page
        assert not re.findall(r'<link[^>]*rel="stylesheet"[^>]*href="(?:https?:)?//[^"]*"', html), (
            page
        )
    assert 'id="recsys.granularities.base.Granularity"' in (tmp_path / "site/api.html").read_text(
        encoding="utf-8"
    )


@pytest.mark.slow
def test_every_notebook_runs(tmp_path: Path) -> None:
    for path in NOTEBOOKS:
        folder = tmp_path / path.stem
        folder.mkdir()
        book = notebooks.executed(path, folder)
        assert all(cell.execution_count for cell in book.cells if cell.cell_type == "code"), (
            path.stem
        )
