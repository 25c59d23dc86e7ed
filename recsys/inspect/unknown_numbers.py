"""Columns of numbers in which some cells mean that there is none: the text Unknown, or -1.

Why: with one such text in ten the scores of films were codes without a meaning, and -1 was an age.
"""

from __future__ import annotations

from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from recsys.inspect.columns import Column, column_of
from recsys.inspect.common_names import is_code
from recsys.inspect.decimal_marks import share_of
from recsys.sources.validate import CellRules

_UNKNOWN: Final = pa.array(
    [
        *("unknown", "unk", "undefined", "unspecified", "missing", "not available", "unavailable"),
        *("not applicable", "n.a.", "tbd", "?", "-", "--", "unbekannt", "inconnu", "desconocido"),
    ]
)
_MOST: Final = 0.5  # share of the cells up to which these texts leave a column of numbers
_CODES: Final = (-1.0, -9.0, -99.0, -999.0, -9999.0)


def without_unknown(column: Column) -> Column:
    """A column of numbers and texts such as Unknown as a column of numbers; others as they are.

    >>> cells = pa.array(["7.5", "6.5", "Unknown", "8.25"])
    >>> column = column_of("score", 0, cells, CellRules())
    >>> column.kind, without_unknown(column).kind
    ('token', 'number')
    """
    if column.kind not in ("token", "text") or column.is_list or is_code(column.name):
        return column
    is_unknown = pc.is_in(pc.utf8_lower(column.values), value_set=_UNKNOWN)
    if not 0 < (pc.sum(is_unknown).as_py() or 0) <= _MOST * column.num_values:
        return column
    known = pc.if_else(is_unknown, pa.scalar(None, pa.string()), column.values)
    found = column_of(column.name, column.position, known, CellRules(), ".")
    return found if found.kind == "number" else column


def words_of_unknown(column: Column, known: Column) -> str:
    """Which cells of a column of numbers have none, for people; empty if they are ordinary.

    Parameters
    ----------
    column : Column
        The column as the file has it.
    known : Column
        The column by :func:`without_unknown`.
    """
    if known is not column:
        unknown = column.values.filter(pc.invert(pc.is_valid(known.values))).drop_null()
        share = len(unknown) / column.num_values
        return f", no number in the {share:.0%} of the rows with {unknown[0].as_py()}"
    # the only negative number among others; -1, 0 and 1 are a scale
    if not column.is_numeric or column.low not in _CODES or column.high <= 1:
        return ""
    share = share_of(column.values.drop_null(), rf"^{column.low:g}(?:\.0*)?$")
    if not share or share < column.share_negative:
        return ""
    return (
        f", {column.low:g} in {share:.0%} of the rows; if it means unknown, add '{column.low:g}' to"
        " data.source.absent"
    )
