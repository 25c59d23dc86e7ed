"""Events that the log marks as not real, such as canceled orders: ``data.source.drop``.

Why: shops keep canceled orders, refunds and test orders in the table of orders, with a flag or a
status. A model that learns from them recommends what people did not want.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from recsys.sources.base import Piece

ANY: Final = "*"


@dataclass(frozen=True)
class FilteredPiece:
    """A piece of events without the rows to drop."""

    piece: Piece
    drop: Mapping[str, Sequence[str]]  # column of the blocks → values in lower case

    def read(self) -> Iterator[pa.Table]:
        """Yield finished blocks; a block may be empty."""
        for block in self.piece.read():
            yield block.filter(pc.invert(has_values(block, self.drop)))


def has_values(rows: pa.Table, values: Mapping[str, Sequence[str]]) -> pa.ChunkedArray:
    """Whether each row has one of the values in one of the columns.

    >>> rows = pa.table({"status": ["paid", "Canceled", None], "test": [False, False, True]})
    >>> has_values(rows, {"status": ["canceled"], "test": ["true"]}).to_pylist()
    [False, True, True]
    >>> refunds = pa.table({"refunded_at": [None, "2024-05-31"]})
    >>> [has_values(refunds, {"refunded_at": [mark]}).to_pylist() for mark in ("*", "")]
    [[False, True], [True, False]]

    Parameters
    ----------
    rows : pa.Table
        Rows with the columns.
    values : Mapping
        Column → values in lower case; ``*``: any value, ``""``: a missing one. Numbers and flags
        are compared as text.
    """
    found = [_is_one_of(rows.column(name), wanted) for name, wanted in values.items()]
    return reduce(pc.or_, found)


def _is_one_of(column: pa.ChunkedArray, wanted: Sequence[str]) -> pa.ChunkedArray:
    texts = pc.utf8_trim_whitespace(pc.utf8_lower(column.cast(pa.string())))
    found = pc.is_in(texts, value_set=pa.array(wanted, pa.string()))
    is_missing = pc.equal(pc.fill_null(texts, ""), "")
    if ANY in wanted:
        found = pc.or_(found, pc.invert(is_missing))
    return pc.or_(found, is_missing) if "" in wanted else found
