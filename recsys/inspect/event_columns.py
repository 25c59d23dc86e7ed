"""The columns of the table of events: time, type, value and split, besides users and items."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from recsys import schema
from recsys.inspect.columns import Column, bare_tokens, has_known
from recsys.inspect.common_names import (
    EVENT_TYPE,
    NEGATIVE,
    RATING,
    SESSION,
    STATUS,
    STRONG,
    TIME,
    VALUE,
    WEAK,
    has_id,
    similarity,
    singular,
    words_of,
)
from recsys.inspect.event_pairs import Pair
from recsys.inspect.sampled_tables import Table, determines
from recsys.inspect.scales import is_short
from recsys.sources.validate import SPLIT_CODES, SPLIT_WORDS, CellRules
from recsys.values.times import timestamps

_MOST_TYPES: Final = 30
_RATING_VALUES: Final = 21
_OF_EVENTS: Final = ("hit", "log", "feedback", "user", "engagement", "signal")
_SAYS: Final = 0.8
_COMPARED: Final = 5000  # times that are compared
_MONEY: Final = {"price", "freight", "shipping", "payment", "tax", "discount", "cost"}
_FILLED: Final = 0.8  # least share of the cells of the fullest time
_SPLIT_NAMES: Final = ("split", "subset", "partition", "phase")
_EVEN: Final = 0.8  # share of the users with as many events in valid as in test
_LATE: Final = 0.02  # most rows in which the time of the event is after another time


@dataclass
class EventColumns:
    """The role of each event column."""

    user: Column
    item: Column
    time: Column | None = None
    type: Column | None = None
    value: Column | None = None
    split: Column | None = None
    left: list[Column] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)  # canonical column → why

    @property
    def names(self) -> dict[str, str]:
        """Column of the files → canonical column."""
        given = {
            schema.USER_ID: self.user,
            schema.ITEM_ID: self.item,
            schema.TIMESTAMP: self.time,
            schema.EVENT_TYPE: self.type,
            schema.VALUE: self.value,
            schema.SPLIT: self.split,
        }
        return {column.name: name for name, column in given.items() if column is not None}


def columns_of_events(pair: Pair) -> EventColumns:
    """Find the roles of the columns besides the ids."""
    table, found = pair.table, EventColumns(pair.user, pair.item)
    left = [column for column in table.columns if column not in (pair.user, pair.item)]
    found.split = next((column for column in left if _is_split(pair, column)), None)
    left = [column for column in left if column is not found.split]
    found.time = _time(table, pair, left)
    left = [column for column in left if column is not found.time]
    found.type = _type(table, pair, left)
    left = [column for column in left if column is not found.type]
    found.value = _value(table, pair, left)
    found.left = [
        column for column in left if found.value is None or column.name != found.value.name
    ]
    return found


def _is_split(pair: Pair, column: Column) -> bool:
    if column.kind == "number" and pair.table.sample.has_names:
        return _is_numbered_split(pair, column)
    if column.kind not in ("token", "flag") or not 2 <= column.num_distinct <= 4:
        return False
    splits = {SPLIT_WORDS.get(word.lower(), "") for word in bare_tokens(column)}
    # every value must be a split, because "test" alone is also an ordinary word
    return "" not in splits and {"train", "test"} <= splits


def _is_numbered_split(pair: Pair, column: Column) -> bool:
    """Whether 0, 1 and 2 are train, valid and test: by the name, and as most events are train.

    A name such as ``label`` may mean anything, so there each user needs as many events of 1 as of
    2, which a split by user gives.
    """
    words = {*words_of(column.name)}
    if not words & {*_SPLIT_NAMES, "label"} or {*map(str, bare_tokens(column))} != {*SPLIT_CODES}:
        return False
    cells = {"user": pl.from_arrow(pair.user.values), "code": pl.from_arrow(column.values)}
    counts = [
        (pl.col("code") == text).sum().cast(pl.Int64).alias(split)
        for text, split in SPLIT_CODES.items()
    ]
    by_user = pl.DataFrame(cells).group_by("user").agg(counts)
    train, valid, test = (int(by_user[split].sum()) for split in SPLIT_CODES.values())
    is_even = ((by_user["valid"] - by_user["test"]).abs() <= 1) & (by_user["test"] > 0)
    return train > valid + test and (
        bool(words & {*_SPLIT_NAMES}) or float(is_even.mean() or 0.0) > _EVEN  # type: ignore[arg-type]
    )


def _time(table: Table, pair: Pair, left: list[Column]) -> Column | None:
    """Find the time of the event: by name, with a time of day, and not a property of the item; of
    several, the one that comes before the others in each row, as an order before its delivery.
    """
    times = [column for column in left if column.kind == "time" and column.filled > 0.05]
    most_filled = max((column.filled for column in times), default=0.0)
    any_in_visit = any(table.like(c, TIME) >= _SAYS and not _is_of_visit(table, c) for c in times)

    def rank(column: Column) -> tuple[float, bool, bool, bool, bool, float, int]:
        of_item = (
            # where items hardly repeat, any column is determined by them
            pair.item.num_distinct < 0.7 * pair.item.num_values
            and determines(pair.item, column) > 0.95
        )
        of_user = (
            # a visit determines its day
            table.like(pair.user, SESSION) < _SAYS
            and pair.user.num_distinct < 0.7 * pair.user.num_values
            and determines(pair.user, column) > 0.95
        )
        assert column.time is not None
        epoch = column.time.words.endswith("since 1970")
        return (
            # the release of a film or the birthday of a user is not the time of the event
            -1.0 * (of_item or of_user),
            # the start of a visit is not that of its events, if these have times of their own
            not (_is_of_visit(table, column) and any_in_visit),
            # "paid at" is missing in orders that are not paid
            column.filled >= _FILLED * most_filled,
            # a time of day tells the order within a day
            not column.time.by_day,
            _is_before(column, times),
            table.like(column, TIME) + 0.1 * epoch,
            -column.position,
        )

    best = max(times, key=rank, default=None)
    if (
        best is None
        or rank(best)[0] < 0
        and table.sample.has_names
        and similarity(best.name, TIME) < 1.0
    ):
        return None
    return best


def _is_of_visit(table: Table, column: Column) -> bool:
    """Whether a time is that of a visit by its name, such as session_start."""
    return table.sample.has_names and any(
        word in ("session", "visit") for word in words_of(column.name)
    )


def _is_before(column: Column, others: list[Column]) -> bool:
    """Whether a time is at or before every other time in nearly all rows, and later in none."""
    mine = _micros(column)
    for other in others:
        if other is column:
            continue
        later = pc.subtract(_micros(other), mine).drop_null().to_numpy()
        # equal columns are copies, and neither is before the other
        if not len(later) or (later < 0).mean() > _LATE or (later == 0).all():
            return False
    return True


def _micros(column: Column) -> pa.Array:
    assert column.time is not None
    rules = CellRules(time_format=column.time.format, decimal=",")
    return timestamps(column.values.slice(0, _COMPARED), rules)[0].cast(pa.int64())


def _type(table: Table, pair: Pair, left: list[Column]) -> Column | None:
    found: list[tuple[bool, bool, Column]] = []
    for column in left:
        if (
            column.kind not in ("token", "text", "flag", "number")
            or not 2 <= column.num_distinct <= _MOST_TYPES
        ):
            continue
        # codes of event types are few whole numbers
        if column.kind == "number" and not (column.is_whole and column.num_distinct <= 10):
            continue
        # ratings in words such as "like" also look like event types
        if column.scale is not None and _is_rating_name(table, column):
            continue
        words = bare_tokens(column) if column.kind in ("token", "text") else []
        is_named = table.like(column, EVENT_TYPE) >= _SAYS and not _is_type_of_other(
            table.plain_name(column)
        )
        if not is_named and table.like(column, STATUS) >= _SAYS:
            continue  # what became of an order
        least = len(words) / 3 if is_named else len(words) / 2
        said = (*STRONG, *WEAK, *NEGATIVE, "like")
        known = sum(has_known(word, said) for word in words) >= max(1, least)
        if not (known and column.kind == "token" or is_named):
            continue
        if not known and determines(pair.item, column) > 0.9:
            continue  # a property of the item, not of the event
        found.append((is_named, known, column))
    # of a type (track, page) and an event (product viewed), the one with known words
    return max(found, key=lambda one: one[:2])[2] if found else None


def _is_type_of_other(name: str) -> bool:
    """Whether a name says the type of something besides events.

    >>> _is_type_of_other("deviceType"), _is_type_of_other("action_type"), _is_type_of_other("type")
    (True, False, False)
    """
    *before, last = words_of(name) or [""]
    return last in ("type", "kind") and any(
        singular(word) not in (*EVENT_TYPE, *_OF_EVENTS) for word in before
    )


def _value(table: Table, pair: Pair, left: list[Column]) -> Column | None:
    numbers = [
        c
        for c in left
        if c.kind in ("number", "flag")
        and c.scale is None
        and c.num_distinct > 1
        and not has_id(c.name)
    ]
    if table.sample.has_names:
        named = [
            column
            for column in numbers
            if table.like(column, VALUE) >= _SAYS
            and "hour" not in words_of(column.name)  # of the day; "hours" are a value
            and not {*words_of(column.name)} & _MONEY
            # yes and no is a rating by name, not how often
            and (column.kind != "flag" or _is_plain_flag(table, column))
            # lead_time is a time, watch_time is a value, and a time alone has an unknown form
            and words_of(column.name) != ["time"]
            and (table.like(column, TIME) < _SAYS or table.like(column, VALUE) == 1.0)
        ]
        # a price or a length belongs to the item, how many items a user has to the user; they say
        # nothing about the user's interest
        users_repeat = pair.user.num_distinct < 0.5 * pair.user.num_values
        named = [
            column
            for column in named
            if determines(pair.item, column) < 0.9
            and not (users_repeat and determines(pair.user, column) > 0.98)
        ]
        named += [
            column
            for column in _scales(pair, left)
            if _is_rating_name(table, column) or column.scale is not None and column.scale.is_plain
        ]
        return max(
            named,
            key=lambda column: (_rating_similarity(table, column), -column.position),
            default=None,
        )
    rated = [
        c
        for c in numbers
        if c.kind == "number"
        and c.num_distinct <= _RATING_VALUES
        and c.low >= -10
        and c.high <= 100
        # the code of the item's category is no rating
        and determines(pair.item, c) < 0.9
    ] or [c for c in _scales(pair, left) if c.scale is not None and len(c.scale.grades) > 2]
    return rated[0] if rated else _count(pair, left) or _score(pair, left)


def _is_plain_flag(table: Table, column: Column) -> bool:
    return table.like(column, RATING) >= _SAYS or table.like(column, VALUE) == 1.0


def _count(pair: Pair, left: list[Column]) -> Column | None:
    """How often each user took each item, where a file without names has a row for each such pair
    and one further column of numbers, such as plays.
    """
    numbers = [c for c in left if c.kind == "number" and c.is_whole and c.low >= 0]
    if len(numbers) != 1 or any(c.kind == "time" for c in pair.table.columns):
        return None
    count, num_pairs = numbers[0], pair.table.num_pairs(pair.user, pair.item)
    is_new = max(determines(key, count) for key in (pair.item, pair.user)) < 0.5
    once = num_pairs >= 0.99 * min(pair.user.num_values, pair.item.num_values)
    return count if is_new and once and count.num_distinct < 0.5 * count.num_values else None


def _score(pair: Pair, left: list[Column]) -> Column | None:
    """The grade of each user for each item, where a file without names has only one further column
    and it has numbers with fractions or signs, such as the jokes of Jester from -10 to 10.
    """
    filled = [column for column in left if column.kind not in ("empty", "constant")]
    if len(filled) != 1 or any(c.kind == "time" for c in pair.table.columns):
        return None
    score = filled[0]
    is_signed = score.kind == "number" and (not score.is_whole or score.low < 0)
    return score if is_signed and not pair.is_described_by(score) else None


def _is_rating_name(table: Table, column: Column) -> bool:
    """Whether a column's name is that of ratings, and not that of event types."""
    return _rating_similarity(table, column) >= _SAYS and table.like(column, EVENT_TYPE) < _SAYS


def _rating_similarity(table: Table, column: Column) -> float:
    """How much a column's name is that of ratings or other values."""
    return max(table.like(column, words) for words in (VALUE, RATING))


def _scales(pair: Pair, left: list[Column]) -> list[Column]:
    """The columns of ratings that are texts, as columns of numbers."""
    found = []
    for column in left:
        if column.scale is None or column.kind == "constant":
            continue
        if determines(pair.item, column) >= 0.9 or determines(pair.user, column) >= 0.9:
            continue
        low, high = column.scale.span
        whole = column.scale.is_whole
        found.append(replace(column, kind="number", low=low, high=high, is_whole=whole))
    return found


def unordered_ratings(table: Table, columns: EventColumns) -> Column | None:
    """A column of words that its name calls ratings, and whose order is unknown; None if there is
    none, or if the events have values.
    """
    if columns.value is not None or not table.sample.has_names:
        return None
    return next(
        (
            column
            for column in columns.left
            if column.kind in ("token", "text", "flag")
            and table.like(column, RATING) >= _SAYS
            and is_short(bare_tokens(column))
            and determines(columns.item, column) < 0.9
        ),
        None,
    )
