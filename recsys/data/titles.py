"""Readable names of items: the title or name, else the start of the text, else the id."""

from __future__ import annotations

from typing import Final

import pyarrow as pa

from recsys import schema
from recsys.values.arrow_types import is_string

MAX_TITLE: Final = 80


def item_titles(features: pa.Table) -> list[str]:
    """One short title for every row of ``items/features.parquet``.

    >>> item_titles(pa.table({"item_id": ["1", "2"], "title": ["Lip  balm", None]}))
    ['Lip balm', '2']
    """
    column = title_column(features)
    ids = features.column(schema.ITEM_ID).to_pylist()
    texts = features.column(column).to_pylist() if column else [None] * len(ids)
    return [
        _shorten(" ".join((text or "").split())) or str(item)
        for item, text in zip(ids, texts, strict=True)
    ]


def _shorten(line: str) -> str:
    return line if len(line) <= MAX_TITLE else line[: MAX_TITLE - 1].rstrip() + "…"


def title_column(features: pa.Table) -> str | None:
    """The column of titles; None where there is none."""
    is_text = {f.name: is_string(f.type) for f in features.schema}
    names: list[str] = [name for name, text in is_text.items() if text and name != schema.ITEM_ID]
    for ending in ("title", "name"):
        for name in sorted(names, key=len):
            if name.lower().endswith(ending):
                return str(name)
    return "text" if "text" in names else None
