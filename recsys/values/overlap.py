"""Whether the ids of a side table are those of the events, and if not, why.

Why: one program writes ``12.0`` where another writes ``12``, a spreadsheet drops leading zeros, and then a table of
items, users or friends says nothing about anybody, without an error. The ids are compared before they are used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from recsys.errors import DataError

NUM_EXAMPLES: Final = 3
_MIN_PAIRS: Final = 3  # pairs of ids that differ in form alone, from which on the forms are named
_MOST: Final = 1_000_000  # ids without a partner that are compared by form
_FORMS: Final = {
    "one of them stores ids as floating-point numbers": r"\.0+$",
    "leading zeros are lost in one of them": r"^0+\d",
    "one of them writes large numbers in the scientific form": r"^\d+(?:\.\d+)?[eE]\+?\d+$",
    "one of them has quotes or blanks around the ids": r"^[\s'\"]|[\s'\"]$",
}


@dataclass(frozen=True)
class SideIds:
    """The ids of one column of a table, and what it is called."""

    table: str
    column: str
    ids: pa.Array  # different ones


def compare(side: SideIds, events: SideIds, min_share: float) -> str:
    """A warning where few ids of the side table occur in the events, or where two forms of one id are seen; else "".

    Raises
    ------
    DataError
        no id of the side table occurs in the events.
    """
    if not len(side.ids) or not len(events.ids):
        return ""
    found = pc.is_in(side.ids, value_set=events.ids)
    number = int(pc.sum(found).as_py() or 0)
    if number == len(side.ids):
        return ""
    alone = side.ids.filter(pc.invert(found))
    others = events.ids.filter(pc.invert(pc.is_in(events.ids, value_set=side.ids)))
    pairs, cause = _same_but_for_form(alone, others)
    share = number / len(side.ids)
    if number and share >= min_share and len(pairs) < _MIN_PAIRS:
        return ""
    examples = pairs or list(zip(_some(alone), _some(others) or [""] * NUM_EXAMPLES, strict=False))
    ours, theirs = (", ".join(repr(pair[place]) for pair in examples if pair[place]) for place in (0, 1))
    said = "none" if not number else f"only {number:,}"
    message = (
        f"{said} of the {len(side.ids):,} ids of {side.table} ({side.column}) "
        f"{'occurs' if number == 0 else 'occur'} in the {events.table} ({events.column}, {len(events.ids):,} ids): "
        f"{side.table} has {ours}" + (f", the {events.table} have {theirs}" if theirs else "")
    )
    if cause:
        message += f"; likely cause: {cause}"
    if not number:
        raise DataError(
            f"{message}; write the ids of both in one form, or name the right columns with data.source.rename"
        )
    if not cause:
        return f"{message}; that is fine if {side.table} lists more than the events have (data.min_overlap {min_share})"
    return f"{message}; write the ids of both in one form (data.min_overlap {min_share})"


def _same_but_for_form(ours: pa.Array, theirs: pa.Array) -> tuple[list[tuple[str, str]], str]:
    """Ids that are equal when their form is left out, a few examples of them, and the form that differs."""
    if not len(ours) or not len(theirs):
        return [], ""
    for plain, general in ((_plain, ""), (_number, "one of them has a prefix")):
        a, b = (pl.DataFrame({"id": pl.from_arrow(ids.slice(0, _MOST))}) for ids in (ours, theirs))
        a, b = (table.with_columns(form=plain(table["id"])).drop_nulls() for table in (a, b))
        both = a.join(b, on="form", suffix="_b").unique("id", keep="first", maintain_order=True)
        both = both.unique("id_b", keep="first", maintain_order=True)
        if both.height >= min(_MIN_PAIRS, len(ours), len(theirs)):
            some = both.sort("id").head(NUM_EXAMPLES)
            pairs = list(zip(some["id"].to_list(), some["id_b"].to_list(), strict=True))
            return pairs, general or _cause(pairs)
    return [], ""


def _plain(ids: pl.Series) -> pl.Series:
    """Without quotes, case, leading zeros and ``.0``; numbers in the scientific form are written out."""
    text = ids.str.strip_chars(" \t'\"").str.to_lowercase()
    is_scientific = text.str.contains(r"^\d+(?:\.\d+)?e\+?\d+$")
    if is_scientific.any():
        whole = text.cast(pl.Float64, strict=False).cast(pl.Int64, strict=False).cast(pl.String)
        text = pl.select(pl.when(is_scientific).then(whole).otherwise(text)).to_series()
    return text.str.replace(r"^(\d+)\.0+$", "${1}").str.replace(r"^0+(\d)", "${1}")


def _number(ids: pl.Series) -> pl.Series:
    """The digits at the end of an id, null where there are none."""
    return ids.str.extract(r"(\d+)$").str.replace(r"^0+(\d)", "${1}")


def _cause(pairs: list[tuple[str, str]]) -> str:
    """The form that one id of the pairs has and the other has not."""
    for cause, pattern in _FORMS.items():
        ours, theirs = (pl.Series([pair[place] for pair in pairs]).str.contains(pattern) for place in (0, 1))
        if bool((ours != theirs).any()):
            return cause
    return "upper and lower case differ"


def _some(ids: pa.Array) -> list[str]:
    """A few ids, evenly from all of them."""
    places = np.linspace(0, len(ids) - 1, min(NUM_EXAMPLES, len(ids))).astype(np.int64)
    return [str(name) for name in ids.take(pa.array(places)).to_pylist()]
