"""Notebooks as pages: run here, or as they are, and written as Markdown in the look of the site."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import nbformat
from nbclient import NotebookClient
from nbconvert import MarkdownExporter

TIMEOUT_S: Final = 600  # of a cell, on a machine that has much else to do
_STYLE: Final = re.compile(r"<style scoped>.*?</style>\n?", re.DOTALL)


def read(path: Path) -> Any:
    """A notebook of format 4."""
    return nbformat.read(path, as_version=4)


def executed(path: Path, folder: Path) -> Any:
    """The notebook with the outputs of its cells, run one after the other in ``folder``.

    Raises
    ------
    CellExecutionError
        A cell raised.
    """
    book = read(path)
    where = {"metadata": {"path": str(folder)}}
    NotebookClient(book, timeout=TIMEOUT_S, startup_timeout=TIMEOUT_S, coalesce_streams=True, resources=where).execute()
    return book


def page(book: Any, name: str) -> tuple[str, dict[str, bytes]]:
    """A page and the pictures that it shows, by file name.

    What libraries print to stderr is left out: it says something of the machine and nothing of the subject.
    """
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    body, resources = MarkdownExporter().from_notebook_node(book, {"unique_key": name, "output_files_dir": "."})
    body = _STYLE.sub("", body).replace('border="1" class="dataframe"', 'class="dataframe"')
    head, _, rest = body.lstrip().partition("\n")
    note = f"\n[Download this notebook]({name}.ipynb){{ .md-button }}\n"
    return f"{head}\n{note}{rest}", {Path(key).name: data for key, data in resources["outputs"].items()}
