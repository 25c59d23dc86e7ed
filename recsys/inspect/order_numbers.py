"""Whole numbers that order the events where no column has times: the number of an order or of a
step, the day of a study.

Why: without an order a run tests random events, and a product that a user bought twice is one
event. The numbers become the times. Their dates are unknown, so a number is a day (``time_format:
serial``), or a second where the numbers start at 0 or the column is called a time.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import polars as pl
import pyarrow.compute as pc

from recsys.inspect.columns import Column
from recsys.inspect.common_names import SESSION, TIME, VALUE, similarity, words_of
from recsys.inspect.event_columns import columns_of_events
from recsys.inspect.event_pairs import Pair
from recsys.inspect.sampled_tables import determines
from recsys.inspect.time_formats import TimeForm
from recsys.values.time_forms import SERIAL

_STEP: Final = (
    "number", "no", "nr", "num", "index", "idx", "position", "pos", "step", "seq", "sequence",
    "ordinal", "nth", "turn",
)  # fmt: skip
_PERIOD: Final = {"day": 31, "week": 53, "wk": 53, "month": 12, "tag": 31, "woche": 53, "monat": 12}
"""Units of time, and the largest number of one that starts again with each month or year."""
_MOST: Final = 0.98
_USERS: Final = 0.9  # least share of the users whose numbers count from 0 or 1
_OF_OWNER: Final = 0.9
_SAYS_VISIT: Final = 0.7  # similarity from which a name says a visit or an order
_FEW: Final = 24  # distinct numbers up to which a column without a name of a time is no time
_LAST: Final = 10**8  # larger numbers are seconds since 1970 or codes


def with_order_numbers(pair: Pair) -> Pair:
    """The pair with a column of times if it has none and numbers order its events; else the pair
    itself.
    """
    if columns_of_events(pair).time is not None:
        return pair
    numbers = [
        column
        for column in map(_with_number, pair.table.columns)
        if column.name not in (pair.user.name, pair.item.name)
        and column.kind == "number"
        and column.is_whole
        and column.low >= 0
        and column.high < _LAST
        and column.filled >= _MOST
    ]
    has_names = pair.table.sample.has_names
    for fits in (_is_period, _is_count) if has_names else (_is_sorted,):
        found = [column for column in numbers if fits(pair, column)]
        if best := max(found, key=lambda column: column.num_distinct, default=None):
            return _with_time(pair, best, fits is _is_count)
    return pair


def _with_time(pair: Pair, column: Column, is_own_count: bool) -> Pair:
    words = f"numbers from {column.low:g} to {column.high:g} that order the events"
    # serial dates of 0 are missing, and those of our time are days since 1899
    are_days = column.low >= 1 and (not _is_time(column) or _are_month_days(column))
    form = TimeForm(
        words, SERIAL * are_days, by_day=are_days, is_number=True, counts_by_user=is_own_count
    )
    timed = replace(column, kind="time", time=form)
    columns = [timed if other.name == column.name else other for other in pair.table.columns]
    return replace(pair, table=replace(pair.table, columns=columns))


def _with_number(column: Column) -> Column:
    """A month and day with leading zeros, such as 0801, as a column of numbers."""
    cells = column.values.drop_null()
    is_code = column.kind != "token" or similarity(column.name, TIME) < 0.8
    if is_code or not pc.all(pc.match_substring_regex(cells, r"^\d{4}$")).as_py():
        return column
    ends = pc.min_max(cells).as_py()
    low, high = float(ends["min"]), float(ends["max"])
    found = replace(column, kind="number", is_whole=True, low=low, high=high)
    return found if _are_month_days(found) else column


def _is_time(column: Column) -> bool:
    """Whether the name says a time of which a second may be the unit."""
    return similarity(column.name, TIME) >= 0.8 and not _PERIOD.keys() & {*words_of(column.name)}


def _are_month_days(column: Column) -> bool:
    """Whether the numbers are month and day without a year, such as 1111 for 11 November."""
    numbers = pl.Series(pl.from_arrow(column.values)).cast(pl.Float64, strict=False).drop_nulls()
    are_days = (numbers % 100).is_between(1, 31) & (numbers // 100).is_between(1, 12)
    return bool(are_days.all())


def _is_period(pair: Pair, column: Column) -> bool:
    """Whether a column numbers days, weeks or seconds from the start of a study."""
    if _is_of_owner(pair, column) or column.num_distinct < 3:
        return False
    words = words_of(column.name)
    if "tag" in words and "id" in words:  # the code of a tag, not a German day
        return False
    limits = [_PERIOD[word] for word in words if word in _PERIOD]
    if limits:  # the day of a week or of a month comes again
        return "of" not in words and column.high > max(limits)
    is_value = similarity(column.name, VALUE) >= 0.8 or "hour" in words
    return _is_time(column) and not is_value and column.num_distinct > _FEW


def _is_count(pair: Pair, column: Column) -> bool:
    """Whether a column numbers each user's events, orders or visits: 1, 2, 3."""
    is_step = bool({*words_of(column.name)} & {*_STEP})
    is_visit = similarity(column.name, SESSION) >= _SAYS_VISIT
    if not (is_step or is_visit) or determines(pair.item, column) > _OF_OWNER:
        return False
    frame = _frame(pair, column)
    lengths = pl.col("number").max() - pl.col("number").min() + 1
    by_user = frame.group_by("user").agg(
        fits=(pl.col("number").n_unique() == lengths) & (pl.col("number").min() <= 1),
        several=pl.col("number").n_unique() > 1,
    )
    if not (by_user["fits"].mean() or 0.0) >= _USERS or not by_user["several"].mean() > 0.5:  # type: ignore[operator]
        return False
    if frame.select("user", "number").n_unique() == len(frame):
        return True
    # rows of an order next to each other, and a user's orders one after the other
    if frame.select(grows=(pl.col("number").diff() >= 0).all().over("user"))["grows"].all():
        return True
    if not is_step:
        return False
    # a position within an order starts again with each order
    visits = [
        other
        for other in pair.table.columns
        if other.name not in (pair.user.name, column.name)
        and other.may_be_id
        and similarity(other.name, SESSION) >= _SAYS_VISIT
        and not {*words_of(other.name)} & {*_STEP}
        and other.num_distinct > pair.user.num_distinct
    ]
    return bool(visits) and all(determines(visit, column) > _OF_OWNER for visit in visits)


def _is_sorted(pair: Pair, column: Column) -> bool:
    """Whether a column without a name grows from row to row of each user."""
    if column.num_distinct <= _FEW or _is_of_owner(pair, column):
        return False
    frame = _frame(pair, column)
    step = pl.col("number").diff().over("user")
    steps = frame.select(step).drop_nulls()["number"]
    later = int((steps > 0).sum())
    return bool((steps >= 0).all()) and later > 0.5 * len(steps)


def _is_of_owner(pair: Pair, column: Column) -> bool:
    return max(determines(key, column) for key in (pair.user, pair.item)) > _OF_OWNER


def _frame(pair: Pair, column: Column) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "user": pl.from_arrow(pair.user.values),
            "number": pl.Series(pl.from_arrow(column.values)).cast(pl.Float64, strict=False),
        }
    ).drop_nulls()
