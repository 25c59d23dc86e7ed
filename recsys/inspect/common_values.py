"""The similarity of two columns as ids: their common values."""

from __future__ import annotations

import math
from functools import cached_property

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from recsys.inspect.columns import Column

# ratio of largest to number of distinct values, up to which numbers are a running count
_DENSE = 20


class IdSet:
    """The distinct values of one or several columns."""

    def __init__(self, *columns: Column) -> None:
        values = [column.values.drop_null().cast(pa.string()) for column in columns]
        self.ids = pc.unique(pa.concat_arrays(values)) if values else pa.array([], pa.string())

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def is_count(self) -> bool:
        """Whether the ids are whole numbers without large gaps, as a database or a script numbers
        rows.

        Two such columns have common values, no matter what they number.
        """
        numbers = pl.Series(pl.from_arrow(self.ids)).cast(pl.Int64, strict=False)
        if not len(numbers) or numbers.null_count():
            return False
        values = numbers.to_numpy()
        low, high = int(values.min()), int(values.max())
        return low >= 0 and high <= _DENSE * len(numbers) + 100

    def common(self, other: IdSet) -> int:
        """Number of common ids."""
        few, many = (self, other) if len(self) < len(other) else (other, self)
        return int(pc.sum(pc.is_in(few.ids, value_set=many.ids)).as_py() or 0)

    def share_in(self, other: IdSet) -> float:
        """Share of these ids that are also in ``other``."""
        return self.common(other) / max(len(self), 1)

    def similarity(self, other: IdSet) -> float:
        """Similarity from 0 to 1: number of common ids divided by the geometric mean of both sizes.

        For ids that are not a running count, it is divided by the smaller size, because a sample or
        an extract has only a part of the ids.
        """
        if not len(self) or not len(other):
            return 0.0
        common = self.common(other)
        balanced = common / math.sqrt(len(self) * len(other))
        if self.is_count and other.is_count:
            return balanced
        return max(balanced, 0.9 * common / min(len(self), len(other)))


def share_unknown(items: pa.ChunkedArray, known: pa.Array, is_whole: bool) -> float | None:
    """Share of the items of events that a table of items does not have.

    Parameters
    ----------
    items : pa.ChunkedArray
        The item of each event.
    known : pa.Array
        The ids of the table.
    is_whole : bool
        Whether all rows of the table were read.

    Returns
    -------
    float or None
        None if the table was read in part, so that its other ids are not known.
    """
    if not is_whole:
        return None
    is_known = pc.is_in(items, value_set=known)
    return 1.0 - float(pc.mean(is_known.cast(pa.int8())).as_py() or 0.0)
