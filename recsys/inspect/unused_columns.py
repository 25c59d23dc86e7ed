"""Notes on columns of events that `recsys init` does not use, and that may change what an event is:
negative amounts, a finer order of events at one time, states of an order, and visitors.
"""

from __future__ import annotations

from typing import Final

import polars as pl

from recsys.inspect.columns import Column
from recsys.inspect.common_names import STATUS, TIME, USER, similarity
from recsys.inspect.event_columns import EventColumns
from recsys.inspect.event_pairs import Pair
from recsys.inspect.sampled_tables import determines
from recsys.inspect.time_columns import ties, unit_of

_MONEY: Final = ("amount", "total", "sum", "price", "revenue", "sales", "net", "gross", "betrag")
_ORDER: Final = (*TIME, "timeframe", "position", "step", "sequence", "seq", "index", "hhmm")
_VISITORS: Final = ("visitor", "anonymous", "device", "cookie", "client", "domain_userid")
_NAMED: Final = 0.8
_SOME: Final = 0.7
_MORE: Final = 0.2  # share of the rows that have a visitor and no user
_HALF: Final = 0.5
_LOOSE: Final = 0.25  # how far a key may determine numbers that are no attributes of it
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
        for note in (
            _on_negative(column, columns),
            _on_order(column, pair, columns),
            _on_states(column, pair),
            _on_users(column, pair),
            _on_ratings(column, pair, columns),
        )
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
    tied, told = ties(pair.user, time, column)
    if tied < _TIED or told < _HALF:
        return ""
    cure = f"write {time.name} and {column.name} as one column of times"
    if column.kind == "time":
        cure = f"set data.source.rename.events {{{column.name}: timestamp}}"
    elif time.time and time.time.by_day and (unit := unit_of(column)):
        cure = f"set data.source.clock {{{column.name}: {unit}}}"
    return (
        f"{tied:.0%} of the events of users have the time of the event before, and"
        f" {column.name} tells them apart: if it is their order, {cure}; now events of one time"
        " have no order"
    )


def _on_states(column: Column, pair: Pair) -> str:
    """A note on a log of states, in which an order has a row for each of its states."""
    if column.kind not in ("token", "text") or similarity(column.name, STATUS) < _NAMED:
        return ""
    frame = _frame(user=pair.user, item=pair.item, state=column)
    states = frame.group_by("user", "item").agg(pl.col("state").n_unique())["state"]
    share = int((states > 1).sum()) / max(len(states), 1)
    if share < _TIED:
        return ""
    usual, *others = frame["state"].value_counts(sort=True)["state"].to_list()
    return (
        f"{share:.0%} of the pairs of user and item have several values of {column.name}, and each"
        f" row counts as an event; if these are states of one order, keep {usual} alone:"
        f" data.source.drop {{{column.name}: [{', '.join(others[:9])}]}}"
    )


def _on_users(column: Column, pair: Pair) -> str:
    """A note on ids of visitors in rows that lack the user."""
    is_more = column.filled > pair.user.filled + _MORE
    if not is_more or not column.may_be_id or similarity(column.name, (*USER, *_VISITORS)) < _SOME:
        return ""
    return (
        f"{1 - pair.user.filled:.0%} of the rows have no {pair.user.name} and are left out;"
        f" {column.name} has a value in {column.filled:.0%}: to count visitors as users, set"
        f" data.source.rename.events {{{column.name}: user_id}}"
    )


def _on_ratings(column: Column, pair: Pair, columns: EventColumns) -> str:
    """A note on a column that may have ratings, although its name does not say so."""
    is_scale = column.kind == "number" and column.is_whole and 0 <= column.low <= 1
    if not is_scale or not 4 <= column.high <= 10 or columns.value is not None:
        return ""
    # every level of a scale, and neither users nor items decide which one it is
    is_full = column.num_distinct > column.high - column.low
    if not is_full or max(determines(key, column) for key in (pair.user, pair.item)) > _LOOSE:
        return ""
    return (
        f"{column.name} has the numbers {column.low:g} to {column.high:g}, and users and items have"
        " several of them; if these are ratings, set"
        f" data.source.rename.events {{{column.name}: value}}"
    )


def _frame(**columns: Column) -> pl.DataFrame:
    """The rows that have a value in all columns."""
    cells = {name: pl.Series(pl.from_arrow(column.values)) for name, column in columns.items()}
    return pl.DataFrame(cells).drop_nulls()
