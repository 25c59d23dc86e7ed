"""Whether the rows of each user are in an order, in files without times.

Why: repositories of sequential models publish lines of ``user item`` in order of time. Read without
an order, a run tests random events and trains no model of the next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa

SEEM_ORDERED: Final = (
    "no column has times, but items are neighbours in the rows of several users more often than by"
    " chance, as in order of time"
)

_SHUFFLES: Final = 3
_MOST_ROWS: Final = 300_000
_MORE: Final = 1.25  # ratio of the neighbours that repeat to those of shuffled rows
_SURE: Final = 6.0  # standard deviations by which there are more
_SORTED: Final = 0.5  # share of the users whose rows are sorted by something else
_BOTH_WAYS: Final = 0.1  # least share of the repeated neighbours that come in both orders


def are_in_order(
    users: pa.Array, items: pa.Array, others: Sequence[pa.Array] = (), types: pa.Array | None = None
) -> bool:
    """Whether the same items are neighbours in the rows of several users more often than by chance.

    In order of time they are. Rows of a user that are sorted by the number of an item's events or
    by another column are in another order, and so are rows in which neighbours never come the other
    way round: these follow one order of all items.

    Parameters
    ----------
    users : pa.Array
        User of each row.
    items : pa.Array
        Item of each row.
    others : Sequence[pa.Array]
        Other columns, such as ratings.
    types : pa.Array | None
        Event type of each row; the rows of each type may be sorted.
    """
    cells = {"user": users, "item": items, **{str(n): other for n, other in enumerate(others)}}
    frame = pl.DataFrame({name: pl.from_arrow(values) for name, values in cells.items()})
    frame = frame.with_columns(
        pl.Series("type", pl.from_arrow(types) if types is not None else [""] * len(frame)),
        pl.col("item").rank("dense").cast(pl.Int64),
        pl.len().over("item").cast(pl.Float64).alias("uses"),
        *(
            pl.col(str(n)).cast(pl.String).cast(pl.Float64, strict=False)
            for n in range(len(others))
        ),
    )
    frame = frame.head(_MOST_ROWS).drop_nulls(["user", "item"]).sort("user", maintain_order=True)
    if any(_is_sorted(frame, name) for name in ("uses", *map(str, range(len(others))))):
        return False
    random = np.random.default_rng(0)
    found, share = _repeated(frame)
    usual = max(
        _repeated(frame[random.permutation(len(frame))].sort("user", maintain_order=True))[0]
        for _ in range(_SHUFFLES)
    )
    is_more = found > _MORE * usual and found - usual > _SURE * (usual + 1) ** 0.5
    return is_more and share > _BOTH_WAYS


def _repeated(frame: pl.DataFrame) -> tuple[int, float]:
    """The number of neighbours that occur before, and the share of those that repeat which come in
    both orders.
    """
    one, two = pl.col("item"), pl.col("item").shift(-1).over("user")
    pairs = frame.select(
        low=pl.min_horizontal(one, two), high=pl.max_horizontal(one, two), grows=two > one,
        differ=two != one,
    ).filter("differ")  # fmt: skip
    counts = pairs.group_by("low", "high").agg(
        count=pl.len(), both=pl.col("grows").any() & ~pl.col("grows").all()
    )
    counts = counts.filter(pl.col("count") > 1)
    share: Any = counts["both"].mean()
    return int(counts["count"].sum()) - len(counts), float(share or 0.0)


def _is_sorted(frame: pl.DataFrame, name: str) -> bool:
    """Whether a column never falls, or never grows, in the rows of most users with several values
    of it.
    """
    by = ["user", "type"]
    steps = frame.select(*by, step=pl.col(name).diff().over(by)).drop_nulls("step")
    ways = steps.group_by(by).agg(
        falls=(pl.col("step") < 0).any(), grows=(pl.col("step") > 0).any()
    )
    ways = ways.filter(pl.col("falls") | pl.col("grows"))
    is_neither: Any = (ways["falls"] & ways["grows"]).mean()
    return len(ways) > 0 and is_neither < 1.0 - _SORTED
