"""Times that several columns of the events have together: ``data.source.date_columns`` and
``data.source.clock``.

Why: tills, sensors and data warehouses write year, month, day and hour into columns of their own.
Without the hour, events of one day have no order.

A row whose columns form no date (31 February, a year without a month) or no time of day (hour 25)
is bad. If all columns of the date are empty, the time is unknown, as with an empty timestamp.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recsys import schema
from recsys.values.absent import CellRules
from recsys.values.arrow_types import is_bytes
from recsys.values.cells import as_text, is_text, numbers
from recsys.values.digits import ascii_digits
from recsys.values.month_names import MONTH_NAMES
from recsys.values.time_forms import YEARS
from recsys.values.times import micros_of_calendar_numbers, timestamps

Array = npt.NDArray[Any]
Verdict = tuple[str, pa.Array]

BAD_TIMESTAMP: Final = "bad timestamp"
BAD_DATE: Final = "bad timestamp: the columns of the date form no date"
BAD_CLOCK: Final = "bad timestamp: no time of day"
# microseconds and the largest number: of hours, minutes, seconds, and of the units of a day
_PARTS: Final = ((3_600_000_000, 23), (60_000_000, 59), (1_000_000, 59))
UNITS: Final = {"s": (1_000_000, 86_399), "ms": (1_000, 86_399_999), "us": (1, 86_399_999_999)}
_MIDNIGHT: Final = r"[ T]00:00(?::00(?:\.0+)?)?\s*$"
_HOUR: Final = r"^\s*([01]?\d|2[0-3])(?:\.0)?\s*$"


@dataclass(frozen=True)
class TimeColumns:
    """The columns of the events that have their time together, by canonical name."""

    date: tuple[str, ...] = ()  # year, month and, if there is one, day; empty: the timestamp
    clock: tuple[str, ...] = ()  # a text such as 10:30, or the numbers hour, minute and second
    clock_is_text: bool = False
    clock_unit: str = ""  # of UNITS, for a column of numbers since the start of the day

    @property
    def names(self) -> tuple[str, ...]:
        """All columns."""
        return (*self.date, *self.clock)

    def read(
        self, given: Mapping[str, pa.Array], rules: CellRules
    ) -> tuple[pa.Array, list[Verdict]] | None:
        """Times as microseconds UTC, and a mask of the wrong rows for each reason; None if the
        rows lack the columns, so that the timestamp is the whole time.
        """
        date = self.date if all(name in given for name in self.date) else ()
        clock = self.clock if all(name in given for name in self.clock) else ()
        if not date and (not clock or schema.TIMESTAMP not in given):
            return None
        verdicts: list[Verdict] = []
        days = given.get(schema.TIMESTAMP)
        if date:
            days, wrong = dates_of([given[name] for name in date], rules)
            verdicts.append((BAD_DATE, wrong))
        if clock and self.clock_is_text:
            times, wrong = timestamps(with_clock(days, given[clock[0]], rules.time_format), rules)
            return times, [*verdicts, (BAD_TIMESTAMP, wrong)]
        times, wrong = timestamps(days, rules)
        verdicts.append((BAD_TIMESTAMP, wrong))
        if clock:
            parts = (UNITS[self.clock_unit],) if self.clock_unit else _PARTS
            times, wrong = _later(times, [given[name] for name in clock], parts, rules)
            verdicts.append((BAD_CLOCK, wrong))
        return times, verdicts


def with_clock(days: pa.Array, clock: pa.Array, time_format: str = "") -> pa.Array:
    """Days with the time of day of another column, as text. A whole number is an hour, if
    no time format reads it.

    Parameters
    ----------
    days : pa.Array, [E]
        Days, as dates, timestamps or text.
    clock : pa.Array, [E]
        Times of day; where one is empty, the day stays alone.
    time_format : str
        Format that reads the result; empty: the usual forms.

    Returns
    -------
    pa.Array, [E] string
        The day and the time of day, with a space between.

    Examples
    --------
    >>> with_clock(pa.array(["2024-05-01", "2024-05-02"]), pa.array(["10:30", "9"])).to_pylist()
    ['2024-05-01 10:30', '2024-05-02 9:00']
    """
    days = as_text(days.cast(pa.date32()) if pa.types.is_timestamp(days.type) else days)
    days, texts = ascii_digits(days), ascii_digits(as_text(clock))
    if not time_format:
        days = pc.replace_substring_regex(days, _MIDNIGHT, "")
        texts = pc.replace_substring_regex(texts, _HOUR, r"\1:00")
    texts = pc.if_else(pc.equal(pc.utf8_trim_whitespace(texts), ""), None, texts)
    return pc.coalesce(pc.binary_join_element_wise(days, texts, " "), days)


def dates_of(parts: list[pa.Array], rules: CellRules) -> tuple[pa.Array, pa.Array]:
    """The dates of columns of years, months and, if given, days, and a mask of the rows whose
    parts form no date. Without a day, it is the first of the month.

    >>> years, months = pa.array(["2024", "2024", "", "2024"]), pa.array(["Feb", "2", "", "13"])
    >>> times, wrong = dates_of([years, months, pa.array(["29", "30", "", "1"])], CellRules())
    >>> [str(time)[:10] for time in times.to_pylist()], wrong.to_pylist()
    (['2024-02-29', 'None', 'None', 'None'], [False, True, False, True])
    """
    year, month, *rest = parts
    found = [
        _whole(year, YEARS[0] - 100, YEARS[1] - 1, rules),
        _whole(_numbers_of_months(month), 1, 12, rules),
        *(_whole(day, 1, 31, rules) for day in rest),
    ]
    fine = np.logical_and.reduce([is_fine for _, is_fine, _ in found])
    present = np.logical_or.reduce([is_present for _, _, is_present in found])
    years, months, *days = (values for values, _, _ in found)
    calendar_numbers = years * 10_000 + months * 100 + (days[0] if days else 1)
    micros, is_date = micros_of_calendar_numbers(calendar_numbers, 8)
    fine &= is_date
    times = pa.array(micros, pa.int64(), mask=~fine).cast(schema.TIMESTAMP_TYPE)
    return times, pa.array(present & ~fine)


def _numbers_of_months(column: pa.Array) -> pa.Array:
    """The column with the numbers of names of months; other cells stay.

    >>> _numbers_of_months(pa.array(["May", "sept.", "7", "märz", "moon"])).to_pylist()
    ['5', '9', '7', '3', 'moon']
    """
    if not is_text(column.type) and not is_bytes(column.type):
        return column
    texts = as_text(column)
    plain = pc.utf8_rtrim(pc.utf8_lower(pc.utf8_trim_whitespace(texts)), ".")
    rows = pc.index_in(plain, value_set=pa.array(MONTH_NAMES, pa.string()))
    return pc.coalesce(pa.array([str(number) for number in MONTH_NAMES.values()]).take(rows), texts)


def _later(
    times: pa.Array, clock: list[pa.Array], parts: Sequence[tuple[int, int]], rules: CellRules
) -> tuple[pa.Array, pa.Array]:
    """Times plus parts of a day, and a mask of the rows without such a time of day. Empty cells are
    0, except before a finer part.
    """
    passed, wrong = np.zeros(len(times), np.int64), np.zeros(len(times), bool)
    is_known = np.ones(len(times), bool)
    for column, (unit, last) in zip(clock, parts, strict=False):
        values, fine, present = _whole(column, 0, last, rules)
        passed += np.where(fine, values, 0) * unit
        wrong |= present & ~(fine & is_known)
        is_known = present
    micros = times.cast(pa.int64()).fill_null(0).to_numpy() + passed
    unknown = wrong | np.asarray(times.is_null())
    return pa.array(micros, mask=unknown).cast(schema.TIMESTAMP_TYPE), pa.array(wrong)


def _whole(column: pa.Array, first: int, last: int, rules: CellRules) -> tuple[Array, Array, Array]:
    """Whole numbers (``first`` where there is none), a mask of the cells that have one between
    ``first`` and ``last``, and a mask of the cells that are not missing.
    """
    values, wrong = numbers(column, rules)
    found = values.to_numpy(zero_copy_only=False)
    fine = (found >= first) & (found <= last) & (found == np.floor(found))
    present = np.isfinite(found) | np.asarray(wrong)
    return np.where(fine, found, first).astype(np.int64), fine, present
