"""Find times that several columns of the events have together: a day and its time of day, or year,
month, day and hour.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from recsys import schema
from recsys.inspect.columns import Column, bare_tokens
from recsys.inspect.common_names import words_of
from recsys.inspect.event_columns import columns_of_events
from recsys.inspect.event_pairs import Pair
from recsys.inspect.sampled_tables import determines
from recsys.sources.names import fold
from recsys.sources.time_columns import UNITS, TimeColumns, dates_of, with_clock
from recsys.sources.validate import CellRules, numbers
from recsys.values.digits import ascii_digits
from recsys.values.month_names import MONTH_NAMES
from recsys.values.times import timestamps

_CLOCK: Final = r"^\s*\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?(?: ?[AaPp][Mm])?\s*$"
_ALL: Final = 0.98
_SOME: Final = 0.3  # least share of events on a day with others of the user
_SEQUENCE: Final = ("seq", "sequence", "timeframe", "ordinal")
_COMPARED: Final = 5000  # cells that are compared
_OF_OWNER: Final = 0.9  # a user or item that determines the year so far has it as an attribute
_WORDS: Final = {
    "year": "year yr yyyy jahr año ano année annee anno jaar rok год 年 연도",
    "month": "month mon monat mes mês mois mese maand miesiąc месяц 月 월",
    "day": "day dd dom tag dia día jour giorno dag dzień день 日 일",
    "hour": "hour hr hh stunde hora heure ora uur godzina час 时 時 시",
    "minute": "minute min minuto minuut минута 分 분",
    "second": "second sec sekunde segundo seconde secondo секунда 秒 초",
}
_PARTS: Final = {word: part for part, words in _WORDS.items() for word in words.split()}
_RANGES: Final = {
    "year": (1980, 2035),
    "month": (1, 12),
    "day": (1, 31),
    "hour": (0, 23),
    "minute": (0, 59),
    "second": (0, 59),
}
HOURS_FORM: Final = " %H:%M:%S"
"""The end of the time format of days with hours, which the readers do not need."""


def with_time_columns(pair: Pair) -> Pair:
    """The pair with the whole times of several columns in one column; else the pair itself.
    ``table.date_columns`` and ``table.clock`` say which.
    """
    if not pair.table.sample.has_names:
        return pair
    day = columns_of_events(pair).time
    if day is None:
        return _with_dates(pair)
    if day.time is None or not day.time.by_day:
        return pair
    clock = _clock_of(pair)
    if clock is not None:
        both = with_clock(day.values, clock.values)
        return _changed(pair, [clock.name], day.name, both, clock=clock.name)
    hours = _hours_of(pair, ())
    numbers_of_day = None if hours else _numbers_of_day(pair, day)
    if not hours and numbers_of_day is None:
        return pair
    days = day.values
    # times in a known form are rewritten, so that a clock can follow them
    if not day.time.format:
        micros = timestamps(days, CellRules())[0]
        days = pc.coalesce(pc.strftime(micros, format="%Y-%m-%d"), days)
    if numbers_of_day is not None:
        unit = unit_of(numbers_of_day)
        texts = _texts_of_clock([numbers_of_day], unit)
        name = numbers_of_day.name
        return _changed(pair, [name], day.name, with_clock(days, texts), clock={name: unit})
    both = with_clock(days, _texts_of_clock(hours))
    names = [column.name for column in hours]
    return _changed(pair, names, day.name, both, clock=names)


def _with_dates(pair: Pair) -> Pair:
    """The pair with a column of times that are made from year, month and day."""
    found = _date_of(pair)
    if not found or any(fold(column.name) == schema.TIMESTAMP for column in pair.table.columns):
        return pair
    date, stem = found
    times, wrong = dates_of([column.values for column in date], CellRules())
    days = pc.if_else(wrong, "no date", pc.strftime(times, format="%Y-%m-%d"))
    names = [column.name for column in date]
    clock = _clock_of(pair)
    if clock is not None:
        both = with_clock(days, clock.values)
        used = [*names, clock.name]
        changed = _changed(pair, used, "", both, clock=clock.name, date_columns=names)
        if changed is not pair:
            return changed
    hours = _hours_of(pair, stem) if len(date) > 2 else []
    if hours:
        days = with_clock(days, _texts_of_clock(hours))
    clocks = [column.name for column in hours]
    more = {"clock": clocks} if clocks else {}
    return _changed(pair, [*names, *clocks], "", days, date_columns=names, **more)


def _changed(pair: Pair, used: list[str], name: str, times: pa.Array, **found: object) -> Pair:
    """The pair with times in place of the used columns, in the column ``name`` or a new one; the
    pair itself if these are no times.
    """
    rows = pair.table.sample.rows
    place = rows.column_names.index(name or used[0])
    if name:
        rows = rows.set_column(place, name, times).drop_columns(used)
    else:
        rows = rows.add_column(place, schema.TIMESTAMP, times).drop_columns(used)
    changed = pair.with_rows(rows, **found)
    return changed if changed.table.column(name or schema.TIMESTAMP).kind == "time" else pair


def part_of(name: str) -> tuple[str, tuple[str, ...]] | None:
    """The part of a time that a column's name says, and the other words of the name.

    >>> part_of("OrderYear"), part_of("hour_of_day"), part_of("day_of_week"), part_of("hours")
    (('year', ('order',)), ('hour', ()), None, None)
    """
    words = words_of(name)
    # the day of a week or of a year makes no date
    if any("week" in word for word in words) or words[-2:] == ["of", "year"] and "day" in words:
        return None
    # in "hour of day" the first word is the part
    if "of" in words:
        words = words[: words.index("of")]
    found = [word for word in words if word in _PARTS]
    # two parts in one name, such as year_month, are one value
    if len(found) != 1:
        return None
    return _PARTS[found[0]], tuple(word for word in words if word != found[0])


def _parts(pair: Pair) -> dict[tuple[str, ...], dict[str, Column]]:
    """The columns of parts of times, by the other words of their names."""
    groups: dict[tuple[str, ...], dict[str, Column]] = {}
    for column in pair.table.columns:
        found = part_of(column.name)
        if found and column.name not in (pair.user.name, pair.item.name):
            part, stem = found
            groups.setdefault(stem, {}).setdefault(part, column)
    return groups


def _date_of(pair: Pair) -> tuple[list[Column], tuple[str, ...]] | None:
    """The columns of year, month and, if there is one, day, and the other words of their names. A
    date that the user or the item determines is an attribute, such as the release of a film. The
    year alone may be the same for all events of a user who was there for some months.
    """
    for stem, group in _parts(pair).items():
        year, month, day = (group.get(part) for part in ("year", "month", "day"))
        if year is None or month is None or not _fits(year, "year") or not _is_month(month):
            continue
        if day is None or not _are_numbers(day) or _may_be_weekday(day, year, month):
            date = [year, month]
        elif _fits(day, "day"):
            date = [year, month, day]
        else:
            continue
        if not any(
            min(determines(key, part) for part in date) > _OF_OWNER
            for key in (pair.user, pair.item)
        ):
            return date, stem
    return None


def _hours_of(pair: Pair, stem: tuple[str, ...]) -> list[Column]:
    """The columns of hour, minute and second, as far as there are any from the hour on."""
    groups = _parts(pair)
    timed = [group for group in groups.values() if "hour" in group]
    group = groups.get(stem, {})
    if "hour" not in group:
        group = timed[0] if len(timed) == 1 else {}
    found = []
    for part in ("hour", "minute", "second"):
        column = group.get(part)
        if column is None or not _fits(column, part):
            break
        found.append(column)
    if not found or found[0].num_distinct < 2 or any(map(_is_half_of_day, pair.table.columns)):
        return []
    return found


def _is_half_of_day(column: Column) -> bool:
    """Whether the values are AM and PM, so that the hours are from 1 to 12."""
    if column.num_distinct != 2:
        return False
    return {text.lower().replace(".", "") for text in bare_tokens(column)} == {"am", "pm"}


def _clock_of(pair: Pair) -> Column | None:
    """The column of texts such as 10:30."""
    clock = next((column for column in pair.table.columns if _is_clock(column)), None)
    if any(map(_is_half_of_day, pair.table.columns)):
        return None  # 09:30 would be the morning
    if clock is None or clock.name in (pair.user.name, pair.item.name):
        return None
    return clock


def _is_clock(column: Column) -> bool:
    known = ascii_digits(column.values.drop_null().slice(0, _COMPARED))
    fits = pc.match_substring_regex(known, _CLOCK).cast(pa.int8())
    return column.filled > 0.5 and column.num_distinct > 1 and pc.mean(fits).as_py() >= _ALL


def _fits(column: Column, part: str) -> bool:
    """Whether all values are whole numbers that the part of a time may have. A few years may be
    wrong, as clocks of devices are.
    """
    if column.kind == "time" or column.filled <= 0.5:
        return False
    first, last = _RANGES[part]
    values, wrong = numbers(column.values.drop_null(), CellRules())
    found = values.to_numpy(zero_copy_only=False)
    fine = (found >= first) & (found <= last) & (found == np.floor(found))
    least = _ALL if part == "year" else 1.0
    return bool(fine.mean() >= least) and not pc.any(wrong).as_py()


def _is_month(column: Column) -> bool:
    if _fits(column, "month"):
        return True
    names = {text.strip().lower().rstrip(".") for text in bare_tokens(column)}
    return bool(names) and names <= MONTH_NAMES.keys()


def _are_numbers(column: Column) -> bool:
    values, _ = numbers(column.values.drop_null(), CellRules())
    return len(values) > 0 and values.null_count < 0.5 * len(values)


def _may_be_weekday(day: Column, year: Column, month: Column) -> bool:
    """Whether days over several months are all at most 7."""
    values, _ = numbers(day.values.drop_null(), CellRules())
    return (pc.max(values).as_py() or 0) <= 7 and year.num_distinct * month.num_distinct > 1


def _numbers_of_day(pair: Pair, day: Column) -> Column | None:
    """The column of numbers that order the events of each user on one day, such as the milliseconds
    since the start of a visit.
    """
    for column in pair.table.columns:
        if (
            _says_order(column.name)
            and unit_of(column)
            and determines(pair.item, column) < _OF_OWNER
        ):
            tied, told = ties(pair.user, day, column)
            if tied >= _SOME and told >= _OF_OWNER:
                return column
    return None


def _says_order(name: str) -> bool:
    """Whether a name says the place of an event among others. An order alone is its number.

    >>> [_says_order(name) for name in ("event_order", "order_in_basket", "seq", "order")]
    [True, True, True, False]
    """
    words = words_of(name)
    is_order = words[:2] == ["order", "in"] or words[1:] and words[-1] == "order"
    return bool(is_order or {*words[-1:]} & {*_SEQUENCE})


def ties(user: Column, time: Column, order: Column) -> tuple[float, float]:
    """The share of the events of users that have the time of another one, and the share of these
    that a column tells apart.

    Parameters
    ----------
    user : Column
        Users of the events.
    time : Column
        Their times.
    order : Column
        The column that may tell events of one time apart.
    """
    cells = {"user": user, "time": time, "order": order}
    frame = pl.DataFrame({name: pl.from_arrow(column.values) for name, column in cells.items()})
    frame = frame.drop_nulls()
    found = frame.group_by("user", "time").agg(num=pl.len(), orders=pl.col("order").n_unique())
    tied, every = int((found["num"] - 1).sum()), len(frame) - frame["user"].n_unique()
    return tied / max(every, 1), int((found["orders"] - 1).sum()) / max(tied, 1)


def unit_of(column: Column) -> str:
    """The largest unit of a day in which numbers are less than a day; "" if they are none."""
    if column.kind != "number" or not column.is_whole or column.low < 0:
        return ""
    return next((unit for unit, (_, last) in UNITS.items() if column.high <= last), "")


def _texts_of_clock(columns: list[Column], unit: str = "") -> pa.Array:
    """Hours, minutes and seconds, or numbers of a unit, as texts such as 09:30:00; null without an
    hour or a number.
    """
    days = pa.array(["1970-01-01"] * len(columns[0].values), pa.string())
    names = tuple(column.name for column in columns)
    given = {schema.TIMESTAMP: days, **{column.name: column.values for column in columns}}
    read = TimeColumns(clock=names, clock_unit=unit).read(given, CellRules())
    assert read is not None
    known = columns[0].values.is_valid()
    # of microseconds, %S has a fraction, which HOURS_FORM does not read
    seconds = read[0].cast(pa.timestamp("s", read[0].type.tz), safe=False)
    return pc.if_else(known, pc.strftime(seconds, format="%H:%M:%S"), None)
