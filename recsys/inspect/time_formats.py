"""Whether a column has times, and in which form: one that the readers detect, or a strptime
format.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import reduce
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.sources.validate import CellRules
from recsys.values.month_names import DATE_WITH_NAME
from recsys.values.time_forms import CLOCKS, FRAMED, GROUPED, SERIAL, ZERO_DATE
from recsys.values.times import timestamps

_FIRST: Final = 315_532_800_000_000  # 1980-01-01, microseconds
_LAST: Final = 2_051_222_400_000_000  # 2035-01-01
_GOOD: Final = 0.98  # smallest share of cells that are times
_LOOKED_AT: Final = 20_000
_DAY_MONTH: Final = re.compile(
    r"(\d{1,2})([/.\-])(\d{1,2})\2(\d{4}|\d{2})(?:([ T,]+)(\d{1,2})(?::(\d{2})(:\d{2})?"
    r"(?:\.\d+)?( ?[AaPp][Mm])?)?)?"
)
_MONTH_DAYS: Final = (
    "%d %b %Y",
    "%b %d %Y",
    "%b %d, %Y",
    "%d-%b-%Y",
    "%d/%b/%Y",
    "%d-%b-%y",
    "%d %b %y",
)
_YEAR_FIRST_DAYS: Final = ("%Y年%m月%d日", "%Y년 %m월 %d일", "%Y-%m-%d", "%Y/%m/%d")
_MONTH_DAYS_LONG: Final = tuple(days.replace("%b", "%B") for days in _MONTH_DAYS)
# some clocks are unknown to the readers of a dataset, such as 10:30 PM
_CLOCKS: Final = ("", "%H", "%H:%M", "%H:%M:%S", "%I:%M %p", "%I:%M:%S %p", "%I:%M%p")
_GAPS: Final = (" ", ", ", "T", ":")
_EPOCH_NUMBER: Final = r"^[1-9]\d{8,18}(?:\.\d+)?$"
_DATE_TEXT: Final = (
    r"^\d{4}[-/.年년]\s?\d{1,2}|(?i)\b(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)"
)
_SCIENTIFIC: Final = r"^[1-9](?:\.\d+)?[eE]\+?(?:0?9|1[0-8])$"
_CALENDAR_NUMBER: Final = r"^(?:19|20)\d{6}(?:\d{4}|\d{6})?$"


@dataclass(frozen=True)
class TimeForm:
    """The form of a column's times."""

    words: str  # for people
    format: str = ""  # strptime format; empty: detected by the readers
    other: str = ""  # another format that fits all cells too
    by_day: bool = False  # no time of day
    is_number: bool = False  # the number of a day or an event; its date is unknown
    counts_by_user: bool = False  # such numbers start again with each user


def time_form(
    column: pa.Array, rules: CellRules, name_says_time: bool, name_says_id: bool
) -> TimeForm | None:
    """Find the form of a column's times; None if it has no times.

    Parameters
    ----------
    column : pa.Array
        Texts, numbers, times or dates, without missing cells.
    rules : CellRules
        How cells are read.
    name_says_time : bool
        Whether the name suggests a time; numbers without such a name must all be plausible times.
    name_says_id : bool
        Whether the name suggests an id; its numbers are then not times.
    """
    cells = column.slice(0, _LOOKED_AT)
    if pa.types.is_date(cells.type):
        return TimeForm("dates", by_day=True)
    if pa.types.is_timestamp(cells.type):
        return TimeForm(
            "times", by_day=_by_day(cells.cast(pa.timestamp("us"), safe=False).cast(pa.int64()))
        )
    is_text = pa.types.is_string(cells.type)
    if not is_text and not pa.types.is_integer(cells.type) and not pa.types.is_floating(cells.type):
        return None
    if name_says_id:
        return None
    cells = _without_zeros(cells, name_says_time)
    if not len(cells):
        return None
    if is_text and (found := _day_and_month(cells)):
        return found
    if name_says_time and (serial := _serial(cells)):
        return serial
    if is_text and not _are_time_texts(cells, name_says_time):
        return None
    micros, _ = timestamps(cells, rules)
    known = micros.cast(pa.int64()).drop_null().to_numpy()
    if len(known) < _GOOD * len(cells) or not len(known):
        return _month_names(cells) if is_text and not rules.time_format else None
    plausible = float(((known >= _FIRST) & (known < _LAST)).mean())
    if plausible < (_GOOD if name_says_time else 1.0):
        return None
    if not is_text and float(np.abs(pc.min(cells).as_py())) < 1e7:
        return None
    words = _words(cells, is_text)
    if (
        words.startswith(("seconds", "milli", "micro", "nano", "times of another"))
        and not name_says_time
        and len(set(known.tolist())) < 2
    ):
        return None
    return TimeForm(words, by_day=_by_day(pa.array(known)))


def _without_zeros(cells: pa.Array, name_says_time: bool) -> pa.Array:
    """The cells that the readers do not take as missing times: zero dates, and 0 and -1 in a
    column that is named as a time.
    """
    is_zero = pa.repeat(pa.scalar(False), len(cells))
    if pa.types.is_string(cells.type):
        is_zero = pc.match_substring_regex(cells, ZERO_DATE)
    if name_says_time:
        texts = cells.cast(pa.string())
        is_zero = pc.or_(is_zero, pc.is_in(texts, value_set=pa.array(["0", "-1", "0.0", "-1.0"])))
    return cells.filter(pc.invert(is_zero))


def _by_day(micros: pa.Array) -> bool:
    known = micros.drop_null().to_numpy()
    return bool(len(known)) and bool((known % 86_400_000_000 == known[0] % 86_400_000_000).all())


def _are_time_texts(cells: pa.Array, name_says_time: bool) -> bool:
    """Whether most cells are dates with separators or names of months, or epoch or calendar
    numbers; also a mixture, as in a file that joins exports of two systems.
    """
    patterns = [_DATE_TEXT, _EPOCH_NUMBER, _CALENDAR_NUMBER, DATE_WITH_NAME, FRAMED]
    if name_says_time:  # else they may be amounts
        patterns += [_SCIENTIFIC, GROUPED]
    every = reduce(pc.or_, (pc.match_substring_regex(cells, pattern) for pattern in patterns))
    return (pc.mean(every.cast(pa.int8())).as_py() or 0.0) >= _GOOD


def _serial(cells: pa.Array) -> TimeForm | None:
    """Detect the serial dates of spreadsheets: days since 1899-12-30, such as 45244.91."""
    is_text = pa.types.is_string(cells.type)
    if is_text and not pc.all(pc.match_substring_regex(cells, r"^\d{5}(?:[.,]\d+)?$")).as_py():
        return None
    micros = timestamps(cells, CellRules(time_format=SERIAL, decimal=","))[0].cast(pa.int64())
    known = micros.drop_null().to_numpy()
    if micros.null_count or not ((known >= _FIRST) & (known < _LAST)).all():
        return None
    first = str(cells[0].as_py())
    return TimeForm(f"dates of a spreadsheet such as {first}", SERIAL, by_day=_by_day(micros))


def _words(cells: pa.Array, is_text: bool) -> str:
    first = str(cells[0].as_py())
    is_epoch = pc.match_substring_regex(cells.cast(pa.string()), _EPOCH_NUMBER)
    if is_text and 0.02 < (pc.mean(is_epoch.cast(pa.int8())).as_py() or 0.0) < _GOOD:
        other = next(
            cell.as_py()
            for cell, number in zip(cells, is_epoch.to_pylist(), strict=True)
            if number != bool(re.fullmatch(_EPOCH_NUMBER, first))
        )
        return f"times in several forms, such as {first} and {other}"
    if is_text and not re.fullmatch(_EPOCH_NUMBER, first):
        return f"dates such as {first}"
    if any(start <= float(first) < end for start, end, *_ in CLOCKS):
        return f"times of another clock than that from 1970, such as {first}"
    digits = len(str(int(float(first))))
    if re.fullmatch(_CALENDAR_NUMBER, first) and digits in (8, 12, 14):
        return f"dates such as {first}"
    unit = (
        "seconds"
        if digits < 12
        else "milliseconds"
        if digits < 15
        else "microseconds"
        if digits < 18
        else "nanoseconds"
    )
    return f"{unit} since 1970"


def _day_and_month(cells: pa.Array) -> TimeForm | None:
    """Detect times such as 27/11/2020 21:51, whose order of day and month the cells may leave
    open.
    """
    texts = [cell.strip() for cell in cells.to_pylist() if cell and cell.strip()]
    found = [_DAY_MONTH.fullmatch(text) for text in texts]
    good = [match for match in found if match]
    if len(good) < _GOOD * len(texts) or not good:
        return None
    first = np.array([int(match[1]) for match in good])
    second = np.array([int(match[3]) for match in good])
    usual = max(
        (
            {
                (m[2], len(m[4]), m[5] or "", bool(m[6]), bool(m[7]), bool(m[8]), (m[9] or "")[:1])
                for m in good
            }
        ),
        key=str,
    )
    mark, digits, gap, has_clock, has_minutes, has_seconds, half = usual
    day_first, month_first = bool((second <= 12).all()), bool((first <= 12).all())
    if not (day_first or month_first):
        return None
    clock = ""
    if has_clock:
        hours = "%I:%M" if half or any(match[9] for match in good) else "%H" + ":%M" * has_minutes
        clock = f"{gap}{hours}{':%S' if has_seconds else ''}"
        clock += f"{half if half == ' ' else ''}%p" if "%I" in hours else ""
    year = "%Y" if digits == 4 else "%y"
    days, months = f"%d{mark}%m{mark}{year}{clock}", f"%m{mark}%d{mark}{year}{clock}"
    words = f"times such as {texts[0]}" if has_clock else f"dates such as {texts[0]}"
    if day_first != month_first:
        return TimeForm(words, days if day_first else months, by_day=not has_clock)
    month_first = _in_order(cells, months) > _in_order(cells, days) and mark == "/"
    if has_clock and min(np.ptp(first), np.ptp(second)) == 0 < max(np.ptp(first), np.ptp(second)):
        month_first = np.ptp(first) == 0  # days of one month, not one day of several months
    chosen, other = (months, days) if month_first else (days, months)
    return TimeForm(words, chosen, other, not has_clock)


def _month_names(cells: pa.Array) -> TimeForm | None:
    """Detect times such as 27 Nov 2020 21:51, which need an explicit format."""
    first = cells[0].as_py().strip()
    for days in (*_MONTH_DAYS, *_MONTH_DAYS_LONG, *_YEAR_FIRST_DAYS):
        for form in dict.fromkeys(
            f"{days}{gap}{clock}" if clock else days for clock in _CLOCKS for gap in _GAPS
        ):
            with suppress(ValueError):
                datetime.strptime(first, form)
                micros = timestamps(cells, CellRules(time_format=form))[0].cast(pa.int64())
                known = micros.drop_null().to_numpy()
                if ((known >= _FIRST) & (known < _LAST)).sum() >= _GOOD * len(cells):
                    return TimeForm(f"times such as {first}", form, by_day=form == days)
    return None


def _in_order(cells: pa.Array, form: str) -> float:
    """Share of adjacent cells that do not go back in time, as in a log."""
    micros: Any = (
        timestamps(cells, CellRules(time_format=form))[0].cast(pa.int64()).drop_null().to_numpy()
    )
    return float((np.diff(micros) >= 0).mean()) if len(micros) > 1 else 0.0
