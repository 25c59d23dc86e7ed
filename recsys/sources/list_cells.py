"""Rows with lists of items as one event per item: ``data.source.lists``.

Why: an order with its articles in one cell, a user with a list of favourites and a document with
its events inside it are events, but not one in each row. Lists that belong together, such as
articles and their times, have one length in each row. A row with an empty list has no event.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.values.arrow_types import is_list
from recsys.values.cells import ids

MOST_MEMBERS: Final = 2**12  # of a row that have positions of their own in the order of the file
UNEQUAL: Final = "lists of different lengths"


class ListForm(NamedTuple):
    """How a column holds lists: the separator of lists in text ("": blanks), and the ending of the
    members that count, which is removed ("": all count).
    """

    separator: str
    ending: str = ""


def as_lists(cells: Any, form: ListForm) -> pa.Array:
    """A column as lists of texts: lists as they are, texts divided at the separator, without the
    brackets and quotes of written lists.

    >>> as_lists(pa.array(["a, b", "", None]), ListForm(",")).to_pylist()
    [['a', 'b'], [], []]
    >>> as_lists(pa.array(["['a', 'b']", "[7]", "[]"]), ListForm(",")).to_pylist()
    [['a', 'b'], ['7'], []]
    >>> as_lists(pa.array(["a-1 b-0 c-1"]), ListForm(" ", "-1")).to_pylist()
    [['a', 'c']]
    """
    cells = cells.combine_chunks() if isinstance(cells, pa.ChunkedArray) else cells
    if form.ending:
        return _chosen(as_lists(cells, ListForm(form.separator)), form.ending)
    if is_list(cells.type) and pa.types.is_floating(cells.type.value_type):
        # whole numbers, of which the text of a float would be 1.659304807994e+12
        sizes = np.asarray(pc.fill_null(pc.list_value_length(cells), 0))
        starts = pa.array(np.concatenate([[0], np.cumsum(sizes)]), pa.int32())
        return pa.ListArray.from_arrays(starts, ids(pc.list_flatten(cells)))
    if is_list(cells.type):
        return pc.fill_null(cells.cast(pa.list_(pa.string())), [])
    texts = pc.fill_null(cells.cast(pa.string()), "")
    # lists as Python and JSON write them
    bracketed = pc.match_substring_regex(texts, r"^\s*\[.*\]\s*$")
    if pc.any(bracketed).as_py():
        plain = pc.replace_substring_regex(texts, r"^\s*\[|['\"]|\]\s*$", "")
        texts = pc.if_else(bracketed, plain, texts)
    parts = (
        pc.split_pattern(texts, form.separator)
        if form.separator
        else pc.split_pattern_regex(texts, r"\s")
    )
    return _kept(parts, lambda members: pc.not_equal(members, ""))


def _chosen(lists: pa.Array, ending: str) -> pa.Array:
    """The members with an ending, without it."""
    chosen = _kept(lists, lambda members: pc.ends_with(members, ending))
    plain = pc.utf8_slice_codeunits(chosen.values, 0, -len(ending))
    return pa.ListArray.from_arrays(chosen.offsets, plain)


def _kept(lists: pa.Array, is_kept: Callable[[pa.Array], pa.Array]) -> pa.Array:
    """The trimmed members of lists that pass a test."""
    rows = np.repeat(np.arange(len(lists)), np.asarray(pc.list_value_length(lists)))
    members = pc.utf8_trim_whitespace(pc.list_flatten(lists))
    kept = np.asarray(pc.fill_null(is_kept(members), False), dtype=bool)
    sizes = np.bincount(rows[kept], minlength=len(lists))
    starts = pa.array(np.concatenate([[0], np.cumsum(sizes)]), pa.int32())
    return pa.ListArray.from_arrays(starts, members.filter(pa.array(kept)))


def members_as_rows(
    table: pa.Table, lists: Mapping[str, ListForm]
) -> tuple[pa.Table, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """One row for each member of the lists.

    Parameters
    ----------
    table : pa.Table
        Rows with lists.
    lists : Mapping[str, ListForm]
        Columns of lists, and the form of each.

    Returns
    -------
    rows : pa.Table
        The members; other columns are repeated.
    row_of_member : np.ndarray
        The row in ``table`` of each member.
    unequal : np.ndarray
        The rows of ``table`` whose lists have different lengths, which are left out.

    Examples
    --------
    >>> table = pa.table({"user": ["u", "v"], "items": ["a b", "c"]})
    >>> members_as_rows(table, {"items": ListForm(" ")})[0].to_pydict()
    {'user': ['u', 'u', 'v'], 'items': ['a', 'b', 'c']}
    """
    found = {name: as_lists(table.column(name), form) for name, form in lists.items()}
    sizes = [np.asarray(pc.list_value_length(cells)) for cells in found.values()]
    is_equal = np.all([size == sizes[0] for size in sizes], axis=0)
    kept = pa.array(np.flatnonzero(is_equal))
    row_of_member = np.repeat(np.flatnonzero(is_equal), sizes[0][is_equal])
    columns = {
        name: pc.list_flatten(found[name].take(kept))
        if name in found
        else table.column(name).take(pa.array(row_of_member))
        for name in table.column_names
    }
    return pa.table(columns), row_of_member, np.flatnonzero(~is_equal)


def numbers_of_members(row_of_member: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The position of each member in its row, from 0.

    >>> numbers_of_members(np.array([0, 0, 3, 3, 3])).tolist()
    [0, 1, 0, 1, 2]
    """
    if not len(row_of_member):
        return row_of_member
    starts = np.flatnonzero(np.diff(row_of_member, prepend=row_of_member[0] - 1))
    return np.arange(len(row_of_member)) - np.repeat(starts, np.diff([*starts, len(row_of_member)]))
