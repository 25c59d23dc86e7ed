"""Draw the way of the data as SVG from the table of stages and the imports of their modules.

Why drawn: a hand-made picture is wrong after the next stage. A row is a stage, in the order of
``pipelines/stages.py``; a column is a kind of file between stages. A hollow dot is read, a filled
one is written.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape

from pipelines.stages import COMPARE_LOGS, SEARCHES, STAGES, UPDATES, VERBS, Verb

ROOT: Final = Path(__file__).parent.parent.parent
# Kinds of files between stages: the name, and the words that identify it in the patterns of a
# stage.
COLUMNS: Final = {
    "your files": ("{source}", "{feedback}", "{outcomes}", "{space}", "{refereed}"),
    "prepared dataset": ("{dataset}", "the dataset of"),
    "trained model": (
        "{run}/model/",
        "{run}/checkpoints/",
        "model/ of {compared}",
        "{run}/final/",
        "{estimated}",
    ),
    "metrics, report": (
        "metrics.json",
        "report.html",
        "{comparison}",
        "sweep.html",
        "fusion.json",
        "promotion.json",
        "{verdict}",
        "{shown}",
    ),
    "bundle": ("bundle/", "{recommender}", "{similar}", "{exported}"),
    "registry": (
        "models:/",
        "{tracking}",
        "a new version",
        "{candidate}",
        "{parent}",
        "{served}",
        "{pulled}",
    ),
    "answers": ("recommendations.parquet", "{answers}", "{answered}", "{logs}"),
    "folders, proofs": (
        "{run}/trials/",
        "best",
        "{target}",
        "{export}",
        "proof",
        "promotion.md",
        "copies",
        "all files",
    ),
}
PLUMBING: Final = {"config", "errors", "storage", "schema", "pace"}  # of every stage
ROW, TOP, LEFT, STEP, WIDTH = 50, 78, 344, 91, 1080  # pixels


@dataclass(frozen=True)
class Row:
    """A stage: the packages of ``recsys`` that it uses, and the columns that it reads and
    writes."""

    stage: str
    packages: list[str]
    reads: list[str]
    writes: list[str]


def rows() -> list[Row]:
    """Every stage.

    Raises
    ------
    ValueError
        A stage reads or writes a pattern that is in no column.
    """
    return [
        Row(
            name,
            packages_of(_verb_of(name)),
            _columns(name, stage.reads),
            _columns(name, stage.writes),
        )
        for name, stage in STAGES.items()
    ]


def _columns(stage: str, patterns: tuple[str, ...]) -> list[str]:
    found: set[str] = set()
    for pattern in patterns:
        at = {column for column, words in COLUMNS.items() if any(word in pattern for word in words)}
        if not at:
            raise ValueError(
                f"stage {stage}: {pattern!r} is in no column of docs/site/diagram.py; add it to"
                " COLUMNS"
            )
        found |= at
    return [column for column in COLUMNS if column in found]


def _verb_of(stage: str) -> Verb:
    """The verb with this stage and the fewest other stages."""
    verbs = [*VERBS.values(), *SEARCHES.values(), *UPDATES.values(), COMPARE_LOGS]
    return min((verb for verb in verbs if stage in verb.stages), key=lambda verb: len(verb.stages))


def packages_of(verb: Verb) -> list[str]:
    """Packages of ``recsys`` that the module of a verb imports, directly or through one other
    module."""
    module = verb.target.split(":")[0]
    near = set(_imports(module))
    names = near | {name for between in near for name in _imports(between)}
    parts = {name.split(".")[1] for name in names if name.startswith("recsys.")}
    return sorted(part for part in parts - PLUMBING if (ROOT / "recsys" / part).is_dir())


@cache
def _imports(module: str) -> tuple[str, ...]:
    path = ROOT / (module.replace(".", "/") + ".py")
    path = path if path.exists() else ROOT / module.replace(".", "/") / "__init__.py"
    tree = ast.parse(path.read_text(encoding="utf-8")) if path.exists() else ast.Module([], [])
    found = [
        node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module
    ]
    return tuple(name for name in found if name.split(".")[0] in ("recsys", "pipelines", "tune"))


def svg() -> str:
    """The whole diagram; colours are those of the page around it (CSS variables of the theme, with
    defaults)."""
    drawn = rows()
    height = TOP + ROW * len(drawn) + 16
    body = [
        *_heads(height),
        *(line for place, row in enumerate(drawn) for line in _row(row, TOP + ROW * place)),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        'class="data-way" font-family="system-ui, sans-serif">\n'
        "<title>The way of the data: stages and what lies between them</title>\n"
        f"<style>{_STYLE}</style>\n" + "\n".join(body) + "\n</svg>"
    )


_STYLE: Final = (
    ".data-way{--ink:var(--md-default-fg-color,#222);--line:var(--md-default-fg-color--lighter,#bbb);"
    "--mark:var(--md-primary-fg-color,#00796b);--page:var(--md-default-bg-color,#fff)}"
    ".data-way text{fill:var(--ink)}.data-way .quiet{font-size:11px;opacity:.7}"
    ".data-way .head{font-size:12.5px;font-weight:600;text-anchor:middle}"
    ".data-way .name{font-size:15px;font-weight:600}"
    ".data-way .life{stroke:var(--line);stroke-dasharray:2 4}"
    ".data-way .span{stroke:var(--mark);stroke-width:2}"
    ".data-way .write{fill:var(--mark);stroke:var(--mark);stroke-width:2}"
    ".data-way .read{fill:var(--page);stroke:var(--mark);stroke-width:2}"
    ".data-way .both{fill:var(--mark);stroke:var(--page);stroke-width:3}"
    ".data-way .band{fill:var(--line);opacity:.13}"
)


def _x(column: str) -> int:
    return LEFT + STEP * list(COLUMNS).index(column) + STEP // 2


def _heads(height: int) -> Iterator[str]:
    yield (
        '<circle class="read" cx="20" cy="30" r="6"/><text class="quiet" x="32" y="34">read</text>'
    )
    yield (
        '<circle class="write" cx="82" cy="30" r="6"/>'
        '<text class="quiet" x="94" y="34">written</text>'
    )
    yield (
        '<circle class="write" cx="160" cy="30" r="9"/>'
        '<circle class="both" cx="160" cy="30" r="6"/>'
    )
    yield '<text class="quiet" x="175" y="34">both</text>'
    for column in COLUMNS:
        x = _x(column)
        yield f'<line class="life" x1="{x}" x2="{x}" y1="{TOP - 18}" y2="{height - 12}"/>'
        words = column.split(" ", 1)
        for place, word in enumerate(words):
            y = 26 + 16 * place + 8 * (len(words) == 1)
            yield f'<text class="head" x="{x}" y="{y}">{escape(word)}</text>'


def _row(row: Row, y: int) -> Iterator[str]:
    middle = y + ROW // 2
    if (y - TOP) // ROW % 2 == 0:
        yield f'<rect class="band" x="0" y="{y}" width="{WIDTH}" height="{ROW}"/>'
    yield f'<text class="name" x="14" y="{middle - 3}">{escape(row.stage)}</text>'
    yield f'<text class="quiet" x="14" y="{middle + 14}">{escape(_short(row.packages))}</text>'
    at = [_x(column) for column in {*row.reads, *row.writes}]
    if len(at) > 1:
        yield f'<line class="span" x1="{min(at)}" x2="{max(at)}" y1="{middle}" y2="{middle}"/>'
    for column in COLUMNS:
        if column in row.writes and column in row.reads:
            yield f'<circle class="write" cx="{_x(column)}" cy="{middle}" r="9"/>'
            yield f'<circle class="both" cx="{_x(column)}" cy="{middle}" r="6"/>'
        elif column in row.writes or column in row.reads:
            kind = "write" if column in row.writes else "read"
            yield f'<circle class="{kind}" cx="{_x(column)}" cy="{middle}" r="7"/>'


def _short(packages: list[str], most: int = 4) -> str:
    """
    >>> _short(["a", "b", "c"], most=2)
    'a · b and 1 more'
    """
    rest = f" and {len(packages) - most} more" if len(packages) > most else ""
    return " · ".join(packages[:most]) + rest
