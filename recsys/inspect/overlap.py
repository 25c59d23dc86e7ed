"""How alike two columns are as ids: the values that they have in common."""

from __future__ import annotations

import math
from functools import cached_property

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from recsys.inspect.columns import Column

_DENSE = 20  # largest number for each different one, up to which whole numbers are a running count


class IdSet:
    """The different values of a column, or of several."""

    def __init__(self, *columns: Column) -> None:
        values = [column.values.drop_null().cast(pa.string()) for column in columns]
        self.ids = pc.unique(pa.concat_arrays(values)) if values else pa.array([], pa.string())

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def is_count(self) -> bool:
        """Whether they are whole numbers without large gaps, as a database or a script numbers things: two such columns
        have values in common whatever they number.
        """
        numbers = pl.Series(pl.from_arrow(self.ids)).cast(pl.Int64, strict=False)
        if not len(numbers) or numbers.null_count():
            return False
        values = numbers.to_numpy()
        low, high = int(values.min()), int(values.max())
        return low >= 0 and high <= _DENSE * len(numbers) + 100

    def common(self, other: IdSet) -> int:
        """The number of ids that both have."""
        few, many = (self, other) if len(self) < len(other) else (other, self)
        return int(pc.sum(pc.is_in(few.ids, value_set=many.ids)).as_py() or 0)

    def share_in(self, other: IdSet) -> float:
        """The share of these ids that the others have as well."""
        return self.common(other) / max(len(self), 1)

    def likeness(self, other: IdSet) -> float:
        """From 0 to 1: common ids against the geometric mean of both; of ids that are no running count, against the
        smaller one, as a sample or an extract has a part of them.
        """
        if not len(self) or not len(other):
            return 0.0
        common = self.common(other)
        balanced = common / math.sqrt(len(self) * len(other))
        if self.is_count and other.is_count:
            return balanced
        return max(balanced, 0.9 * common / min(len(self), len(other)))
