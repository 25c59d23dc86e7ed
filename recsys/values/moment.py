"""A single time of a request or the configuration, read with the rules of
:mod:`recsys.values.times`.

Why a second reader: a table of one cell takes milliseconds, and a request may have ten thousand
times. Tests compare both readers on the same table of formats.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from recsys.values.absent import is_absent
from recsys.values.digits import ascii_digits_of
from recsys.values.time_forms import (
    ACCEPTED,
    CALENDAR,
    CLOCKS,
    EARLIEST,
    FRAMED,
    GROUPED,
    LATEST,
    MONTHS,
    NAMED_DAYS,
    NAMED_FORMS,
    ZERO_DATE,
    calendar_range,
    is_refused,
)

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LONGEST: Final = 80  # characters; no format is longer
_NUMBER: Final = re.compile(r"[+-]?\d{1,20}(?:\.\d*)?(?:[eE][+-]?\d{1,2})?")
_DAY: Final = re.compile(r"(\d{4})([-/.])(\d{1,2})\2(\d{1,2})(?=[T ]|$)")
_CLOCK: Final = re.compile(r"([T ][\d:.,]+) +([+-])")
_WEEKDAY: Final = re.compile(r"(?:MON|TUE|WED|THU|FRI|SAT|SUN)[A-Z]*,? +")
_MONTH: Final = re.compile(rf"\b({MONTHS})[A-Z]*\b")


def moment(value: Any) -> datetime | None:
    """The time of a value, with a time zone (default UTC); None if the value is missing.

    For a single number there are no other numbers to compare with: it is an epoch number if it is
    not a calendar date.

    Raises
    ------
    ValueError
        The value is not a time; the message names the accepted formats.

    Examples
    --------
    >>> moment("20011231").isoformat(), moment("0000-00-00")
    ('2001-12-31T00:00:00+00:00', None)
    """
    if value is None or (isinstance(value, str) and is_absent(value)):
        return None
    found = None
    if isinstance(value, datetime):
        found = value
    elif isinstance(value, str) and len(value) <= _LONGEST:
        text = ascii_digits_of(value).strip()
        if text == "-1" or re.fullmatch(ZERO_DATE, text.upper()):
            return None
        found = _of_number_text(text) if _NUMBER.fullmatch(text) else _of_text(text)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        if value == -1:
            return None
        found = _of_number(value)
    if found is not None:
        found = found if found.tzinfo else found.replace(tzinfo=UTC)
        if EARLIEST <= _micros(found) < LATEST:
            return found
    raise ValueError(f"expected a time: {ACCEPTED}")


def _micros(found: datetime) -> int:
    return (found - _EPOCH) // timedelta(microseconds=1)


def _of_number_text(text: str) -> datetime | None:
    number = int(text) if text.lstrip("+-").isdigit() else float(text)
    return None if is_refused(number, number) else _of_number(number)


def _of_number(number: int | float) -> datetime | None:
    """The time of a calendar number, or of an epoch number, whose size determines its unit."""
    if not 0 <= number < 1e19:
        return None
    digits = len(str(int(number)))
    if digits in CALENDAR and number == int(number):
        first, end = calendar_range(digits)
        if first <= number < end:
            found = _of_digits(str(int(number)))
            if found is not None or digits == 8:
                return found
    for first, end, units, offset in CLOCKS:
        if first <= number < end:
            return _EPOCH + timedelta(seconds=-offset, microseconds=int(number) // units)
    for limit, unit in ((1e11, 1_000_000), (1e14, 1_000), (1e17, 1)):
        if number < limit:
            return _EPOCH + timedelta(microseconds=round(number * unit))
    return _EPOCH + timedelta(microseconds=int(number) // 1_000)


def _of_digits(text: str) -> datetime | None:
    parts = [int(text[at : at + 2]) for at in range(4, min(len(text), 14), 2)]
    parts = parts if len(parts) > 1 else [*parts, 1]
    try:
        found = datetime(int(text[:4]), *parts)  # type: ignore[arg-type]
        return found + timedelta(milliseconds=int(text[14:] or 0))
    except ValueError:
        return None


def _of_text(text: str) -> datetime | None:
    """The time of an ISO 8601 text in any spelling, of a date with the month's name, or of an epoch
    number in a frame or with marks between thousands.
    """
    if framed := re.fullmatch(FRAMED, text):
        return _EPOCH + timedelta(milliseconds=int(framed[1]))
    if re.fullmatch(GROUPED, text):
        return _of_number(int(re.sub(r"\D", "", text)))
    upper = text.upper()
    if _MONTH.search(upper):
        return _of_named_month(upper)
    if re.fullmatch(r"\d{4}-\d{1,2}", upper):
        upper += "-01"
    day = _DAY.match(upper)
    if day:
        upper = f"{day[1]}-{day[3]:0>2}-{day[4]:0>2}{upper[day.end() :]}"
    elif not re.match(r"\d{8}[T ]", upper):
        return None
    upper = re.sub(r" ?(?:Z|UTC|GMT)$", "+00:00", re.sub(r"\[[A-Z_]+(?:/[A-Z_]+)*\]$", "", upper))
    upper = _CLOCK.sub(r"\1\2", upper)
    upper = re.sub(r"([T ]\d\d)(\d\d)(\d\d)(?=[^\d:]|$)", r"\1:\2:\3", upper)
    upper = re.sub(r"([T ]\d\d)(\d\d)(?=[^\d:]|$)", r"\1:\2", upper)
    try:
        return datetime.fromisoformat(upper)
    except ValueError:
        return None


def _of_named_month(upper: str) -> datetime | None:
    plain = re.sub(r" *\([^)]*\)$", "", _WEEKDAY.sub("", upper, count=1))
    plain = re.sub(r"[, ]+", " ", _MONTH.sub(r"\1", plain))
    plain = re.sub(r" (?:UTC|GMT|Z)( |$)", r" +0000\1", plain)
    if not re.search(r"\d{4}", plain):
        return None
    for form in (*NAMED_FORMS, *NAMED_DAYS):
        try:
            return datetime.strptime(plain, form)
        except ValueError:
            continue
    return None
