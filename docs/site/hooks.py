"""Hooks of MkDocs: they add the pages that are written from the code, and correct links to files
outside ``docs/``.

``MULTIGRAIN_RUN_NOTEBOOKS=1`` runs the notebooks and shows what they print; ``make docs`` sets it.
"""

from __future__ import annotations

import os
import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from mkdocs.structure.files import File, Files

from docs.site import diagram, notebooks, pages

ROOT: Final = Path(__file__).parent.parent.parent
# a file of the top level
_OUTSIDE: Final = re.compile(r"\]\((?:\.\./)+([\w.-]+\.(?:yaml|toml|md))\)")
_TOP: Final = ("cluster.yaml", "CHANGELOG.md")


def on_config(config: Any) -> Any:
    """Add a page for every section of the configuration to the navigation."""
    inside = [{f"{name}": f"{pages.CONFIGURATION}/{name}.md"} for name in pages.section_names()]
    for part in config.nav:
        for name, entries in part.items():
            if name == "Reference":
                at = next(place for place, entry in enumerate(entries) if "Configuration" in entry)
                entries[at] = {"Configuration": [f"{pages.CONFIGURATION}/index.md", *inside]}
    config.watch += [str(ROOT / "recsys" / "config"), str(ROOT / "pipelines")]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages, the diagram and the notebooks."""
    made: dict[str, str | bytes] = {pages.CLI: pages.cli(), **pages.configuration()}
    paths = sorted(Path(config.docs_dir, "notebooks").glob("*.ipynb"))
    get = _executed if os.environ.get("MULTIGRAIN_RUN_NOTEBOOKS") else notebooks.read
    with ThreadPoolExecutor(max_workers=2) as pool:  # each waits for a process of its own
        books = list(pool.map(get, paths))
    for path, book in zip(paths, books, strict=True):
        text, pictures = notebooks.page(book, path.stem)
        made |= {
            f"notebooks/{path.stem}.md": text,
            **{f"notebooks/{name}": data for name, data in pictures.items()},
        }
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    for name in _TOP:
        uri = "changelog.md" if name == "CHANGELOG.md" else name
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / name)))
    return files


def _executed(path: Path) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        return notebooks.executed(path, Path(folder))


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point links to files of the top level to their copies, and links to notebooks to their
    pages."""
    up = "../" * page.file.src_uri.count("/")
    if page.file.src_uri == "changelog.md":
        markdown = markdown.replace("](docs/", "](")
    own = Path(
        page.file.src_uri
    ).stem  # a notebook's page also links to the notebook itself, for download
    markdown = re.sub(
        r"(\]\((?:[\w./-]*/)?)([\w-]+)\.ipynb\)",
        lambda found: found[0] if found[2] == own else f"{found[1]}{found[2]}.md)",
        markdown,
    )
    markdown = _OUTSIDE.sub(
        lambda found: f"]({up}{found[1]})" if found[1] in _TOP else found[0], markdown
    )
    return markdown


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Insert the diagram into its page. Earlier, Markdown would add paragraphs to it."""
    return html.replace("<!-- the way of the data -->", diagram.svg())
