"""Comparison of the ids in a side table with those in the events, and the likely cause of
differences.

Why: one program writes ``12.0`` and another writes ``12``, or a spreadsheet removes leading zeros.
Then a table of items, users or friends would have no effect, without an error. The ids are compared
before they are used.
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
_MIN_PAIRS: Final = 3  # pairs of ids that differ only in form, from which the cause is named
_ONE_PREFIX: Final = 0.5  # least share of the pairs that have the most frequent prefix
_SEVERAL: Final = 0.01  # share of a column's ids with several forms, from which there is a note
_MOST: Final = 1_000_000  # unmatched ids that are compared by form
# bytes that a plain id does not have; zeros at the start and scientific notation are found apart
_CHANGED: Final = np.zeros(256, dtype=bool)
_CHANGED[[ord(sign) for sign in " \t'\".ABCDEFGHIJKLMNOPQRSTUVWXYZ"]] = True
_CHANGED[128:] = True
_FORMS: Final = {
    "one of them stores ids as floating-point numbers": r"\.0+$",
    "leading zeros are lost in one of them": r"^0+\d",
    "one of them writes large numbers in scientific notation": r"^\d+(?:\.\d+)?[eE]\+?\d+$",
    "one of them has quotes or blanks around the ids": r"^[\s'\"]|[\s'\"]$",
}


@dataclass(frozen=True)
class SideIds:
    """The distinct ids in one column of a table."""

    table: str
    column: str
    ids: pa.Array  # distinct


def compare(side: SideIds, events: SideIds, min_share: float) -> str:
    """A warning if few ids of the side table occur in the events, or if one id has two forms; else
    "".

    Parameters
    ----------
    side : SideIds
        Distinct ids of the side table.
    events : SideIds
        Distinct ids of the events, or of another table to compare with.
    min_share : float
        Share of side ids that occur in the events below which there is a warning.

    Raises
    ------
    DataError
        No id of the side table occurs in the events.
    """
    if not len(side.ids) or not len(events.ids):
        return ""
    found = pc.is_in(side.ids, value_set=events.ids)
    number = int(pc.sum(found).as_py() or 0)
    if number == len(side.ids):
        return ""
    alone = side.ids.filter(pc.invert(found))
    others = events.ids.filter(pc.invert(pc.is_in(events.ids, value_set=side.ids)))
    pairs, cause = _pairs_by_form(alone, others)
    share = number / len(side.ids)
    if number and share >= min_share and len(pairs) < _MIN_PAIRS:
        return ""
    examples = pairs or list(zip(_some(alone), _some(others) or [""] * NUM_EXAMPLES, strict=False))
    ours, theirs = (
        ", ".join(repr(pair[index]) for pair in examples if pair[index]) for index in (0, 1)
    )
    said = "none" if not number else f"only {number:,}"
    message = (
        f"{said} of the {len(side.ids):,} ids of {side.table} ({side.column})"
        f" {'occurs' if number == 0 else 'occur'} in the {events.table} ({events.column},"
        f" {len(events.ids):,} ids): {side.table} has {ours}"
        + (f", the {events.table} have {theirs}" if theirs else "")
    )
    if cause:
        message += f"; likely cause: {cause}"
    if not number:
        raise DataError(
            f"{message}; write the ids of both in the same form, or choose the right columns with"
            " data.source.rename"
        )
    if not cause:
        return (
            f"{message}; this is correct if {side.table} lists more than the events have"
            f" (data.min_overlap {min_share})"
        )
    return f"{message}; write the ids of both in the same form (data.min_overlap {min_share})"


def ids_in_two_forms(ids: pa.Array, noun: str) -> str:
    """A note if one column writes ids in several forms; else "".

    Parameters
    ----------
    ids : pa.Array
        Distinct ids, strings; the first million of them is compared.
    noun : str
        What they identify, for the note: ``users`` or ``items``.

    Examples
    --------
    >>> print(ids_in_two_forms(pa.array(["A@x", "B@x", "C@x", "a@x", "b@x", "c@x"]), "users"))
    ... # doctest: +NORMALIZE_WHITESPACE
    3 users have ids in several forms, such as 'A@x' and 'a@x', and count as different users (upper
    and lower case differ); write each id in one form
    """
    ids = ids.slice(0, _MOST)
    if _are_plain(ids):
        return ""
    table = pl.DataFrame({"id": pl.from_arrow(ids)})
    table = table.with_columns(form=_plain(table["id"])).drop_nulls()
    num_forms = table["form"].n_unique()
    least = max(_MIN_PAIRS, _SEVERAL * num_forms)
    if table.height - num_forms < least:
        return ""
    alike = table.filter(pl.len().over("form") > 1).sort("form", "id")
    number = alike["form"].n_unique()
    if number < least:
        return ""
    both = alike.group_by("form", maintain_order=True).agg(pl.col("id").head(2)).head(NUM_EXAMPLES)
    pairs = [(one, other) for one, other in both["id"].to_list()]
    return (
        f"{number:,} {noun} have ids in several forms, such as {pairs[0][0]!r} and {pairs[0][1]!r},"
        f" and count as different {noun} ({_cause(pairs)}); write each id in one form"
    )


def _pairs_by_form(ours: pa.Array, theirs: pa.Array) -> tuple[list[tuple[str, str]], str]:
    """Examples of ids that differ only in form, and the likely cause."""
    if not len(ours) or not len(theirs):
        return [], ""
    for plain, general in ((_plain, ""), (_number, "one of them has a prefix")):
        a, b = (pl.DataFrame({"id": pl.from_arrow(ids.slice(0, _MOST))}) for ids in (ours, theirs))
        a, b = (table.with_columns(form=plain(table["id"])).drop_nulls() for table in (a, b))
        both = a.join(b, on="form", suffix="_b").unique("id", keep="first", maintain_order=True)
        both = both.unique("id_b", keep="first", maintain_order=True)
        if general:  # codes that happen to end with the same number have many prefixes
            prefixes = [pl.col(name).str.replace(r"\d+\D*$", "") for name in ("id", "id_b")]
            both = both.filter(pl.len().over(prefixes) > _ONE_PREFIX * both.height)
        if both.height >= min(_MIN_PAIRS, len(ours), len(theirs)):
            some = both.sort("id").head(NUM_EXAMPLES)
            pairs = list(zip(some["id"].to_list(), some["id_b"].to_list(), strict=True))
            return pairs, general or _cause(pairs)
    return [], ""


def _plain(ids: pl.Series) -> pl.Series:
    """Ids without quotes, case, leading zeros and ``.0``; numbers in scientific notation are
    written in full.
    """
    text = ids.str.strip_chars(" \t'\"").str.to_lowercase()
    is_scientific = text.str.contains(r"^\d+(?:\.\d+)?e\+?\d+$")
    if is_scientific.any():
        whole = text.cast(pl.Float64, strict=False).cast(pl.Int64, strict=False).cast(pl.String)
        text = pl.select(pl.when(is_scientific).then(whole).otherwise(text)).to_series()
    # a test of all ids takes a fifth of the time of a replacement
    if text.str.contains(".0", literal=True).any():
        text = text.str.replace(r"^(\d+)\.0+$", "${1}")
    return text.str.replace(r"^0+(\d)", "${1}") if text.str.starts_with("0").any() else text


def _are_plain(ids: pa.Array) -> bool:
    """Whether :func:`_plain` certainly changes no id, from the bytes of all ids: a tenth of its
    time.

    >>> [_are_plain(pa.array(ids)) for ids in (["u1", "i-2"], ["u1", "U1"], ["01"], ["1e3"], ["é"])]
    [True, False, False, False, False]
    """
    ids = ids.cast(pa.string())
    if not len(ids) or ids.null_count:
        return False
    _, offsets, data = ids.buffers()
    bounds = np.frombuffer(offsets, dtype=np.int32)[ids.offset : ids.offset + len(ids) + 1]
    content = np.frombuffer(data, dtype=np.uint8)[bounds[0] : bounds[-1]]
    starts = bounds[:-1][bounds[:-1] < bounds[1:]] - bounds[0]
    if _CHANGED[content].any() or len(starts) < len(ids):
        return False
    first = content[starts]
    is_digit = (first >= ord("0")) & (first <= ord("9"))
    is_scientific = bool(is_digit.any()) and bool((content == ord("e")).any())
    return not is_scientific and not (first == ord("0")).any()


def _number(ids: pl.Series) -> pl.Series:
    """The digits at the end of each id, null if there are none."""
    return ids.str.extract(r"(\d+)$").str.replace(r"^0+(\d)", "${1}")


def _cause(pairs: list[tuple[str, str]]) -> str:
    """The form that only one id of each pair has."""
    for cause, pattern in _FORMS.items():
        ours, theirs = (
            pl.Series([pair[index] for pair in pairs]).str.contains(pattern) for index in (0, 1)
        )
        if bool((ours != theirs).any()):
            return cause
    return "upper and lower case differ"


def _some(ids: pa.Array) -> list[str]:
    """A few ids, evenly distributed over all of them."""
    positions = np.linspace(0, len(ids) - 1, min(NUM_EXAMPLES, len(ids))).astype(np.int64)
    return [str(name) for name in ids.take(pa.array(positions)).to_pylist()]
