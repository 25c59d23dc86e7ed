"""Notes on columns of events that `recsys init` does not use, and that may change what an event is:
negative amounts, and a finer order of events at one time.
"""

from __future__ import annotations

from typing import Final

import polars as pl
import pyarrow as pa

from recsys.inspect.columns import Column
from recsys.inspect.common_names import TIME, similarity
from recsys.inspect.event_columns import EventColumns
from recsys.inspect.event_pairs import Pair

_MONEY: Final = ("amount", "total", "sum", "price", "revenue", "sales", "net", "gross", "betrag")
_ORDER: Final = (*TIME, "timeframe", "position", "step", "sequence", "seq", "index", "hhmm")
_NAMED: Final = 0.8
_HALF: Final = 0.5
_TIED: Final = 0.3  # share of neighbouring events of a user that have one time


def notes_on_unused(pair: Pair, columns: EventColumns) -> list[str]:
    """The notes for the columns that are no part of the events.

    Parameters
    ----------
    pair : Pair
        The events with their users and items.
    columns : EventColumns
        The meaning of the other columns.
    """
    return [
        note
        for column in columns.left
        for note in (_on_negative(column, columns), _on_order(column, pair, columns))
        if note
    ]


def _on_negative(column: Column, columns: EventColumns) -> str:
    """A note on amounts of which some are negative, such as refunds."""
    is_amount = column.kind in ("number", "price") and similarity(column.name, _MONEY) >= _NAMED
    if columns.value is not None or not is_amount or not 0 < column.share_negative <= _HALF:
        return ""
    return (
        f"{column.share_negative:.1%} of the values of {column.name} are negative; if these are"
        f" refunds, leave them out: set data.source.rename.events {{{column.name}: value}} and"
        " data.min_value 0"
    )


def _on_order(column: Column, pair: Pair, columns: EventColumns) -> str:
    """A note on a column that orders the events of a user at one time."""
    time = columns.time
    if time is None or column.kind not in ("number", "time"):
        return ""
    if similarity(column.name, _ORDER) < _NAMED:
        return ""
    values = {"user": pair.user.values, "time": time.values, "order": column.values}
    frame = pl.DataFrame({name: _series(cells) for name, cells in values.items()}).drop_nulls()
    ties = frame.group_by("user", "time").agg(num=pl.len(), orders=pl.col("order").n_unique())
    tied, every = int((ties["num"] - 1).sum()), len(frame) - frame["user"].n_unique()
    if not every or tied < _TIED * every or int((ties["orders"] - 1).sum()) < _HALF * tied:
        return ""
    cure = (
        f"set data.source.rename.events {{{column.name}: timestamp}}"
        if column.kind == "time"
        else f"write {time.name} and {column.name} as one column of times"
    )
    return (
        f"{tied / every:.0%} of the events of users have the time of the event before, and"
        f" {column.name} tells them apart: if it is their order, {cure}; now events of one time"
        " have no order"
    )


def _series(cells: pa.Array) -> pl.Series:
    return pl.Series(pl.from_arrow(cells))
