"""Lists of what a user was shown, next to what the user chose of it.

Why: a log of impressions has both in one row. The longer list looks like the better table of
events, but a model that learns from it repeats what was shown, not what people wanted.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from recsys.inspect.columns import Column, has_known
from recsys.inspect.common_names import CLICKED, SHOWN_LISTS, STRONG, WEAK, singular, words_of
from recsys.inspect.sampled_tables import Table
from recsys.sources.list_cells import ListForm, as_lists
from recsys.values.arrow_types import is_cell, is_list, is_list_of_cells
from recsys.values.cells import ids

CHOSEN: Final = "-1"
"""The ending of a member that the user chose; that of the others is ``-0``."""
_MARKED: Final = r"^.+-[01]$"
_MARKED_TEXT: Final = r"^[^\s,;|]+-[01]$"
_MARKS: Final = (" ", ",", ";", "|")
_ROWS: Final = 5000  # rows that are compared
_PART: Final = 0.95  # least share of the members of a list that the list of what was shown has


def mark_of_choices(table: Table, column: Column) -> str | None:
    """The separator of a column whose cells list what was shown, with a mark of what was chosen,
    such as ``N55689-1 N35729-0``; None if it is no such column.
    """
    cells = table.sample.rows.column(column.name).slice(0, _ROWS).combine_chunks().drop_null()
    if column.kind in ("number", "time", "flag", "object") or not len(cells):
        return None
    if is_list(cells.type):
        return "" if _are_all(_MARKED, as_lists(cells, ListForm(""))) else None
    texts = cells.cast(pa.string())
    return next((m for m in _MARKS if _are_all(_MARKED_TEXT, as_lists(texts, ListForm(m)))), None)


def _are_all(pattern: str, lists: pa.Array) -> bool:
    members = pc.list_flatten(lists)
    return bool(len(members) and pc.all(pc.match_substring_regex(members, pattern)).as_py())


def without_shown(table: Table, marks: dict[str, str]) -> dict[str, str]:
    """The columns of lists, with their separators, without those of what was shown if another
    column has what was chosen of it. The names must say so: a cart has what was bought, too.
    """
    found = dict(marks)
    for name in marks:
        others = [c.name for c in table.columns if c.name != name and _may_choose(name, c.name)]
        if any(_is_part(table, marks, other, name) for other in others):
            del found[name]
    return found


def names_shown(name: str) -> bool:
    """Whether a name says that a list has what a user was shown.

    >>> [names_shown(n) for n in ("article_ids_inview", "in_view_ids", "impressions", "clicks")]
    [True, True, True, False]
    """
    words = [singular(word) for word in words_of(name)]
    return any(word in SHOWN_LISTS for word in (*words, *map("".join, pairwise(words))))


def _may_choose(shown: str, chosen: str) -> bool:
    """Whether the names of two lists are those of what was shown and of what was chosen of it."""
    if names_shown(chosen):
        return False
    if names_shown(shown):
        return True
    # viewed and bought are two kinds of events, of which the first is more than shown
    does_more = has_known(chosen, (*CLICKED, *STRONG))
    return does_more and not has_known(shown, (*WEAK, *STRONG, *CLICKED))


def _is_part(table: Table, marks: dict[str, str], part: str, whole: str) -> bool:
    """Whether a list or a cell has only members of another list in nearly all rows."""
    rows = table.sample.rows.slice(0, _ROWS)
    some, every = (_members(rows, name, marks.get(name)) for name in (part, whole))
    if not len(some) or len(some) >= len(every):
        return False
    known = some.join(every, ["row", "member"], "semi")
    return len(known) >= _PART * len(some)


def _members(rows: pa.Table, name: str, mark: str | None) -> pl.DataFrame:
    """The distinct members of each row; a column that is no list has one."""
    cells: Any = rows.column(name).combine_chunks()
    if mark is None and is_cell(cells.type):
        cells = pa.ListArray.from_arrays(np.arange(len(cells) + 1, dtype=np.int32), ids(cells))
    elif mark is None and not is_list_of_cells(cells.type):
        return pl.DataFrame()
    lists = as_lists(cells, ListForm(mark or ""))
    found = {"row": pc.list_parent_indices(lists), "member": pc.list_flatten(lists)}
    return pl.DataFrame({key: pl.from_arrow(column) for key, column in found.items()}).unique()
