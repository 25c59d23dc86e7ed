"""Write notebooks as Markdown pages of the site, after running them or as they are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import nbformat
from nbclient import NotebookClient
from nbconvert import MarkdownExporter

TIMEOUT_S: Final = 600  # per cell, on a busy machine
_STYLE: Final = re.compile(r"<style scoped>.*?</style>\n?", re.DOTALL)


def read(path: Path) -> Any:
    """A notebook of format 4."""
    return nbformat.read(path, as_version=4)


def executed(path: Path, folder: Path) -> Any:
    """Run the cells one after the other in ``folder`` and return the notebook with outputs.

    Raises
    ------
    CellExecutionError
        A cell raised.
    """
    book = read(path)
    where = {"metadata": {"path": str(folder)}}
    NotebookClient(
        book, timeout=TIMEOUT_S, startup_timeout=TIMEOUT_S, coalesce_streams=True, resources=where
    ).execute()
    return book


def page(book: Any, name: str) -> tuple[str, dict[str, bytes]]:
    """A page and the pictures that it shows, by file name.

    Output to stderr is left out: it is about the machine, not about the subject.
    """
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    body, resources = MarkdownExporter().from_notebook_node(
        book, {"unique_key": name, "output_files_dir": "."}
    )
    body = _STYLE.sub("", body).replace('border="1" class="dataframe"', 'class="dataframe"')
    head, _, rest = body.lstrip().partition("\n")
    note = f"\n[Download this notebook]({name}.ipynb){{ .md-button }}\n"
    return f"{head}\n{note}{rest}", {
        Path(key).name: data for key, data in resources["outputs"].items()
    }
