"""Text of people in Markdown pages: lines without markup, tables, and cards shown as plain text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from recsys.config import redact


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table.

    >>> table(["a", "b"], [["1", "2"]])
    ['| a | b |', '|---|---|', '| 1 | 2 |']
    """
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return lines + [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows]


def _cell(text: str) -> str:
    """A table cell on one line, with vertical bars escaped."""
    return " ".join(text.split()).replace("|", "\\|")


def shown_as_text(card: str) -> str:
    """Markdown with HTML escaped and secrets removed; applying it twice changes nothing more.

    Why: names, notes and labels come from data and configurations, and MLflow and others render a
    card as a web page.

    >>> shown_as_text("# A & B <img src=x onerror=alert(1)> &lt;")
    '# A &amp; B &lt;img src=x onerror=alert(1)&gt; &lt;'
    """
    card = re.sub(r"&(?!(?:[a-z]+|#\d+);)", "&amp;", redact(card))
    return card.replace("<", "&lt;").replace(">", "&gt;")


def plain_line(value: Any) -> str:
    r"""User-provided text on one line, with the characters of Markdown links, images and code
    escaped.

    >>> plain_line("a [b](javascript:c)")
    'a \\[b\\](javascript:c)'
    """
    return re.sub(r"([\\`\[\]|*])", r"\\\1", " ".join(str(value).split()))
