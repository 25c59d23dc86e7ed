"""The accepted forms of times, for columns (:mod:`recsys.values.times`) and for single values
(:mod:`recsys.values.moment`).

Why a module of its own: a registered model reads times of requests, and does not require polars.
"""

from __future__ import annotations

from typing import Any, Final

EARLIEST: Final = -5_364_662_400_000_000  # 1800-01-01 in microseconds
LATEST: Final = 4_102_444_800_000_000  # 2100-01-01; times are in [EARLIEST, LATEST)
ACCEPTED: Final = (
    "accepted are seconds, ms, µs or ns since the epoch (1606513873), clocks of Windows, .NET and"
    " Chrome, ISO 8601 (2020-11-27 21:51:13, 2020-11-27T21:51:13+05:30), YYYYMMDD, YYYYMMDDhhmmss,"
    " and dates with the month's name (Fri Nov 27 21:51:13 +0000 2020), from 1800 to 2099"
)
"""The accepted formats, for messages."""

ZERO_DATE: Final = (
    r"^(?:0000[-/.]?\d\d?[-/.]?\d\d?|0001-01-01|1899-12-30|1900-01-00|(?i:/date)\(-62135596800000)"
    r"(?:[T )].*)?$"
)
CLOCKS: Final = (
    (122 * 10**14, 158 * 10**14, 1, 11_644_473_600),  # since 1601 in µs: Chrome
    (122 * 10**15, 158 * 10**15, 10, 11_644_473_600),  # the same in 100 ns: Windows
    (627 * 10**15, 663 * 10**15, 10, 62_135_596_800),  # since 0001 in 100 ns: .NET
)
"""Clocks that do not count from 1970: the numbers of the years 1988 to 2100, the units in a
microsecond, and the seconds from the start to 1970.
"""
FRAMED: Final = r"^(?:/|new )Date\((-?\d{1,13})(?:[+-]\d{4})?\)/?$"
"""Milliseconds since 1970 as .NET and JavaScript write them: ``/Date(1606513873000)/``."""
GROUPED: Final = r"^(\d{1,3}(?:[,.'_ ]\d{3}){3,})$"
"""A number of seconds or smaller units with marks between thousands: ``1,606,513,873``."""
SERIAL: Final = "serial"
"""The time format of the serial dates of spreadsheets, in place of a strptime format."""
SERIALS: Final = (32_874, 58_440)  # days since 1899-12-30 of the years 1990 to 2059
YEARS: Final = (1900, 2100)
# Number of digits of a calendar number → whether it can also be an epoch number.
CALENDAR: Final = {6: True, 8: True, 10: True, 12: True, 14: False, 17: False}
MONTHS: Final = "JAN|FEB|MAR|APR|MAY|JUN|JUL|AUG|SEP|OCT|NOV|DEC"
NAMED_FORMS: Final = (  # weekday removed, upper case
    *(
        "%b %d %H:%M:%S %z %Y",
        "%d %b %Y %H:%M:%S %z",
        "%b %d %Y %H:%M:%S GMT%z",
        "%d/%b/%Y:%H:%M:%S %z",
    ),
    *(
        "%b %d %H:%M:%S %Y",
        "%d %b %Y %H:%M:%S",
        "%b %d %Y %H:%M:%S",
        "%d-%b-%Y %H:%M:%S",
        "%Y-%b-%d %H:%M:%S",
    ),
)
NAMED_DAYS: Final = ("%d %b %Y", "%b %d %Y", "%d-%b-%Y", "%Y-%b-%d")


def is_refused(lowest: Any, highest: Any) -> bool:
    """Whether all numbers of a block are serial dates of a spreadsheet, or all are years; these are
    no epoch numbers.

    Single ones among present-day times are also refused.
    """
    return any(first <= lowest and highest <= last for first, last in (SERIALS, YEARS))


def calendar_range(digits: int) -> tuple[int, int]:
    """The range of numbers with this many digits that start with a year of :data:`YEARS`."""
    unit = 10 ** (digits - 4)
    return YEARS[0] * unit, (YEARS[1] + 1) * unit
