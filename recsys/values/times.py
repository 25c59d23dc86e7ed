"""Times in all common formats as microseconds since the epoch in UTC; vectorised, without
exceptions.

Numbers are seconds, milliseconds, microseconds or nanoseconds since the epoch, or count from 1601
or 0001 as the clocks of Windows and .NET; the size of each number determines its unit. A number in
the form of a calendar date (20201127, 20201127215113) is that date. If both are possible, the other
numbers of the block decide, because dates usually occur together. Numbers that would give wrong
times without an error are refused: serial dates of spreadsheets (44162.91) and years alone. Years
before 1800 and from 2100 on are also errors.

Missing times are: empty cells, the texts of :class:`~recsys.values.cells.CellRules`, -1, the zero
dates of databases (0000-00-00, 0001-01-01, 1899-12-30), and 0 among present-day times (in a column
that counts from 0 it is a time).

Ambiguous orders of day and month (11/12/2020) need ``data.source.time_format``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from recsys import schema
from recsys.values.absent import DEFAULT_RULES, CellRules
from recsys.values.arrow_types import is_bytes
from recsys.values.cells import as_text, is_text
from recsys.values.digits import ascii_digits
from recsys.values.month_names import in_english
from recsys.values.time_forms import (
    CALENDAR,
    CLOCKS,
    EARLIEST,
    FRAMED,
    GROUPED,
    LATEST,
    MONTHS,
    NAMED_DAYS,
    NAMED_FORMS,
    SERIAL,
    SERIALS,
    YEARS,
    ZERO_DATE,
    calendar_range,
    is_refused,
)

Array = npt.NDArray[Any]

_SECOND: Final = 1_000_000
_DAY: Final = 86_400 * _SECOND
# 0001-01-01 and 1899-12-30 in microseconds: databases write them for missing dates.
_ZEROS: Final = (-62_135_596_800_000_000, -2_209_161_600_000_000)
_MODERN: Final = 10**8  # seconds; a column with larger numbers does not count from 0
_FIELDS: Final = (2, 2, 2, 2, 2, 3)  # digits of month, day, hour, minute, second, milliseconds
_ISO_FORMS: Final = (
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%dT%H:%M:%S%.fZ",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%d",
)
_PLAIN_FORMS: Final = (
    *("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f%z"),
    *("%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M%z"),
    "%Y-%m-%d",
)
_DATE_DIRECTIVES: Final = ({"Y"}, {"m", "b", "B"}, {"d"})
# directives with the same meaning in Python and Polars
_SAME_IN_BOTH: Final = frozenset("YmdHMSbBzIp")


def timestamps(column: pa.Array, rules: CellRules = DEFAULT_RULES) -> tuple[pa.Array, pa.Array]:
    """Times as microseconds UTC (null if missing or wrong), and a mask of wrong cells: no time in
    [1800, 2100).

    Texts without a time zone are UTC. Digits of other scripts are digits. With
    ``rules.time_format``, texts and integers are read only in that format.

    >>> cells = ["1000000000", "2001-09-09T01:46:40Z", "20010909014640", "yesterday", "0000-00-00"]
    >>> times, wrong = timestamps(pa.array(cells))
    >>> times.cast(pa.int64()).to_pylist()
    [1000000000000000, 1000000000000000, 1000000000000000, None, None]
    >>> wrong.to_pylist()
    [False, False, False, True, False]
    """
    if is_text(column.type) or is_bytes(column.type):
        column = ascii_digits(as_text(column))
    is_moment = pa.types.is_timestamp(column.type) or pa.types.is_date(column.type)
    if rules.time_format == SERIAL and not is_moment and not pa.types.is_nested(column.type):
        micros, present = _of_serials(pl.Series(pl.from_arrow(as_text(column))))
        present &= ~pl.Series(pl.from_arrow(as_text(column))).is_in(list(rules.absent)).fill_null(
            False
        )
    elif is_moment:
        # not safe: nanoseconds below a microsecond are cut off
        naive = column.cast(pa.timestamp("us"), safe=False)
        micros = pl.Series(pl.from_arrow(naive.cast(pa.int64())))
        present = micros.is_not_null()
    elif is_text(column.type):
        micros, present = _of_texts(pl.Series(pl.from_arrow(column)), rules)
    elif pa.types.is_integer(column.type):
        given = pl.Series(pl.from_arrow(column))
        whole = given.cast(pl.Int64, strict=False)
        micros, present = _of_integers(whole, rules)
        present |= given.is_not_null() & whole.is_null()  # larger than a signed 64-bit integer
    elif pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
        micros, present = _of_floats(
            pl.Series(pl.from_arrow(column.cast(pa.float64(), safe=False))), rules
        )
    else:
        return pa.nulls(len(column), schema.TIMESTAMP_TYPE), pc.is_valid(column)
    fine = micros.is_between(EARLIEST, LATEST, closed="left").fill_null(False)
    if (micros <= max(_ZEROS)).any():
        is_zero = micros.is_in(_ZEROS).fill_null(False)
        fine, present = fine & ~is_zero, present & ~is_zero
    cleaned = pl.select(pl.when(fine).then(micros)).to_series().cast(pl.Int64)
    return cleaned.to_arrow().cast(schema.TIMESTAMP_TYPE), (present & ~fine).to_arrow()


# ------------------------------------------------------------------------------------------ numbers


def _of_integers(values: pl.Series, rules: CellRules) -> tuple[pl.Series, pl.Series]:
    """Microseconds (null if unknown), and a mask of the cells that have a time or a wrong value."""
    if rules.time_format:
        return _of_format(values.cast(pl.String), rules.time_format), values.is_not_null()
    return _whole_numbers(values, values.is_not_null())


def _of_floats(values: pl.Series, rules: CellRules) -> tuple[pl.Series, pl.Series]:
    """As :func:`_of_integers` for floats: whole numbers are integers, fractions are epoch
    numbers.
    """
    values = values.fill_nan(None)
    present = values.is_not_null()
    # above 2^53 a float may stand for another integer
    is_whole = ((values.abs() < 2**53) & (values == values.floor())).fill_null(False)
    whole = pl.select(pl.when(is_whole).then(values)).to_series().cast(pl.Int64, strict=False)
    if rules.time_format:
        return _of_format(whole.cast(pl.String), rules.time_format), present
    is_fraction = (values.is_finite() & ~is_whole & (values > 0)).fill_null(False)
    if not is_fraction.any():
        return _whole_numbers(whole, present)
    positive = values.filter(values > 0)
    if is_refused(positive.min(), positive.max()):
        return _nothing(len(values)), present
    micros, present = _whole_numbers(whole, present, latest=values.max())
    fractions = pl.select(pl.when(is_fraction).then(values)).to_series()
    return micros.fill_null(_scaled(fractions)), present


def _whole_numbers(
    whole: pl.Series, present: pl.Series, latest: Any = None
) -> tuple[pl.Series, pl.Series]:
    """Microseconds of epoch and calendar numbers, and ``present`` without missing times.

    ``latest`` is the latest time (seconds) in other cells of the block; it decides the meaning of
    small numbers.
    """
    lowest, highest = _span(whole)
    if lowest is None:
        return whole, present
    if lowest < 0:
        unknown = (whole == -1).fill_null(False)
        present = present & ~unknown
        whole = pl.select(pl.when(whole >= 0).then(whole)).to_series()
        lowest, highest = _span(whole)
        if lowest is None:
            return whole, present
    if is_refused(lowest, highest):
        return _nothing(len(whole)), present
    micros = _scaled(whole)
    for digits in CALENDAR:
        first, end = calendar_range(digits)
        # most columns have no calendar number, and the check of all numbers is slow
        if highest >= first and lowest < end:
            micros = _with_calendar(micros, whole, digits)
    # no number is small enough to be a serial date, a year or a missing time
    if lowest > SERIALS[1]:
        return micros, present
    found: Any = micros.max()
    if max(found or 0, (latest or 0) * _SECOND) < _MODERN * _SECOND:
        return micros, present
    is_odd = whole.is_between(*SERIALS) | whole.is_between(*YEARS) | (whole == 0)
    present = present & ~(whole == 0).fill_null(False)
    return pl.select(pl.when(~is_odd).then(micros)).to_series(), present


def _span(values: pl.Series) -> tuple[Any, Any]:
    return values.min(), values.max()


def _nothing(count: int) -> pl.Series:
    return pl.Series([None], dtype=pl.Int64).new_from_index(0, count)


def _scaled(values: pl.Series) -> pl.Series:
    """Epoch numbers of any unit as microseconds; integers are not converted through floats."""
    # the bounds are powers of ten between the present in one unit and the next
    size = values.abs()
    scaled = pl.when(size < 1e11).then(values * 1_000_000).when(size < 1e14).then(values * 1_000)
    for first, end, units, offset in CLOCKS:
        is_of_clock = values.is_between(first, end, closed="left")
        scaled = scaled.when(is_of_clock).then(values // units - offset * _SECOND)
    micros = scaled.when(size < 1e17).then(values).otherwise(values // 1_000)
    if values.dtype.is_float():
        micros = pl.when(values.is_finite()).then(micros.round()).cast(pl.Int64, strict=False)
    return pl.select(micros).to_series()


def _with_calendar(micros: pl.Series, whole: pl.Series, digits: int) -> pl.Series:
    """``micros`` with the times of numbers of ``digits`` digits that are calendar dates.

    If such a number can also be an epoch number, they are dates only if at least half of all
    numbers of that many digits in the block are valid dates.
    """
    numbers = whole.fill_null(0).to_numpy()
    first, end = calendar_range(digits)
    rows = np.flatnonzero((numbers >= first) & (numbers < end))
    if not len(rows):
        return micros
    times, is_valid = micros_of_calendar_numbers(numbers[rows], digits)
    if CALENDAR[digits]:
        of_that_size = (numbers >= 10 ** (digits - 1)) & (numbers < 10**digits)
        # random numbers of this size are sometimes valid dates, but far fewer than half of them
        if 2 * int(is_valid.sum()) < int(of_that_size.sum()):
            return micros
    found = pl.select(pl.when(pl.Series(is_valid)).then(pl.Series(times))).to_series()
    return micros.scatter(rows, found)


def micros_of_calendar_numbers(numbers: Array, digits: int) -> tuple[Array, Array]:
    """Microseconds UTC of numbers such as 20201127215113 with ``digits`` digits, and a mask of the
    valid ones.
    """
    rest, divisor = numbers, 10 ** (digits - 4)
    years, rest = np.divmod(rest, divisor)
    parts: list[Array] = []
    for width in _FIELDS:
        if divisor == 1:
            parts.append(np.ones_like(years) if len(parts) < 2 else np.zeros_like(years))
            continue
        divisor //= 10**width
        part, rest = np.divmod(rest, divisor)
        parts.append(part)
    month, day, hour, minute, second, milli = parts
    is_month = (month >= 1) & (month <= 12)
    months = ((years - 1970) * 12 + np.where(is_month, month, 1) - 1).astype("datetime64[M]")
    days = months.astype("datetime64[D]") + (day - 1)
    # 30 February would become a day in March
    same_month = days.astype("datetime64[M]") == months
    is_valid = is_month & (day >= 1) & same_month & (hour < 24) & (minute < 60) & (second < 60)
    seconds = days.astype(np.int64) * 86_400 + hour * 3600 + minute * 60 + second
    return seconds * _SECOND + milli * 1000, is_valid


# -------------------------------------------------------------------------------------------- texts


def _of_texts(texts: pl.Series, rules: CellRules) -> tuple[pl.Series, pl.Series]:
    texts = texts.str.strip_chars()
    present = (texts.is_not_null() & (texts != "")).fill_null(False)
    if rules.has_numbers:
        present &= ~texts.is_in(list(rules.absent)).fill_null(False)
        texts = pl.select(pl.when(present).then(texts)).to_series()
    if rules.time_format:
        micros = _of_format(texts, rules.time_format)
        return micros, _not_absent(texts, present, present & micros.is_null(), rules)
    whole = texts.cast(pl.Int64, strict=False)
    rows = (present & whole.is_null()).arg_true()
    if not len(rows):
        return _whole_numbers(whole, present)
    rest = texts.gather(rows)
    numbers = rest.str.replace(r"^(\d+),(\d+)$", "$1.$2") if rules.decimal == "," else rest
    numbers = numbers.cast(pl.Float64, strict=False)
    times, is_given = _of_floats(numbers, DEFAULT_RULES)
    no_number = numbers.is_null()
    if no_number.any():
        positions = no_number.arg_true()
        times = times.scatter(positions, _of_calendar_texts(rest.gather(positions)))
    # a NaN is missing, but a text that is no number is a wrong cell
    present = present.scatter(rows, is_given | no_number | numbers.is_nan().fill_null(False))
    latest: Any = times.max()
    micros, present = _whole_numbers(whole, present, latest=(latest or 0) / _SECOND)
    micros = micros.scatter(rows, times)
    return micros, _not_absent(texts, present, present & micros.is_null(), rules)


def _not_absent(
    texts: pl.Series, present: pl.Series, left: pl.Series, rules: CellRules
) -> pl.Series:
    """``present`` without the cells among ``left`` whose texts are missing values or zero dates."""
    if not left.any():
        return present
    rows = left.arg_true()
    rest = texts.gather(rows)
    absent = rest.is_in([*rules.absent, "-1"]) | rest.str.contains(ZERO_DATE)
    return present.scatter(rows, ~absent) if absent.any() else present


def _of_calendar_texts(texts: pl.Series) -> pl.Series:
    """ISO 8601 and formats with a month's name as microseconds UTC, null for any other text."""
    upper = texts.str.to_uppercase()
    found = _of_iso(upper)
    rows = found.is_null().arg_true()
    if len(rows):
        found = found.scatter(rows, _of_written_numbers(texts.gather(rows)))
    named = found.is_null() & upper.str.contains(MONTHS)
    if named.any():
        rows = named.arg_true()
        found = found.scatter(rows, _of_named_months(upper.gather(rows)))
    if not found.null_count():
        return found
    rows = found.is_null().arg_true()
    rows = rows.filter(texts.gather(rows).str.contains(r"\d.*\p{L}{3}"))
    if len(rows):
        # Python rewrites each text once, and days often repeat
        rest = texts.gather(rows)
        english = {text: in_english(text) for text in rest.unique()}
        found = found.scatter(rows, _of_named_months(pl.Series([english[text] for text in rest])))
    return found


def _of_written_numbers(texts: pl.Series) -> pl.Series:
    """Microseconds of epoch numbers in a frame or with marks between thousands, null for others.

    >>> _of_written_numbers(pl.Series(["/Date(1577836800000)/", "1,577,836,800", "x"])).to_list()
    [1577836800000000, 1577836800000000, None]
    """
    framed = texts.str.extract(FRAMED).cast(pl.Int64, strict=False) * 1_000
    grouped = texts.str.extract(GROUPED).str.replace_all(r"\D", "").cast(pl.Int64, strict=False)
    return framed.fill_null(_scaled(grouped))


def _of_iso(texts: pl.Series) -> pl.Series:
    """Microseconds of ISO 8601 texts; unusual spellings are first rewritten to a usual one."""
    # the usual forms first, without the regular expressions below, which take most of the time
    found = _first_fit(texts, _ISO_FORMS)
    left = found.is_null()
    if not left.any():
        return found
    rows = left.arg_true()
    plain = texts.gather(rows).str.replace(r"^(\d{4})[/.](\d{1,2})[/.](\d{1,2})", "${1}-${2}-${3}")
    plain = plain.str.replace(r"^(\d{4})(\d\d)(\d\d)([T ])", "${1}-${2}-${3}${4}")
    plain = plain.str.replace(r"^(\d{4}-\d{1,2}-\d{1,2})T", "$1 ").str.replace(
        r"\[[A-Z_]+(?:/[A-Z_]+)*\]$", ""
    )
    plain = plain.str.replace(r"^([-\d]+ \d\d)(\d\d)(\d\d)", "${1}:${2}:${3}")
    plain = plain.str.replace(r"^([-\d]+ \d\d)(\d\d)([^:\d]|$)", "${1}:${2}${3}")
    plain = plain.str.replace(r"(:\d\d),(\d+)", "$1.$2").str.replace(r" ?(?:Z|UTC|GMT)$", "+00:00")
    plain = plain.str.replace(r" ([+-]\d\d)", "$1").str.replace(
        r"(:\d\d(?:\.\d+)?[+-]\d\d)$", "$1:00"
    )
    plain = plain.str.replace(r"^(\d{4}-\d{1,2})$", "$1-01")
    return found.scatter(rows, _first_fit(plain, _PLAIN_FORMS))


def _of_named_months(texts: pl.Series) -> pl.Series:
    """Microseconds of texts such as ``FRI NOV 27 21:51:13 +0000 2020``; the weekday is ignored."""
    plain = texts.str.replace(r"^(?:MON|TUE|WED|THU|FRI|SAT|SUN)[A-Z]*,? +", "").str.replace(
        r" *\([^)]*\)$", ""
    )
    plain = plain.str.replace_all(rf"\b({MONTHS})[A-Z]*\b", "$1").str.replace_all(r"[, ]+", " ")
    plain = plain.str.replace(r" (?:UTC|GMT|Z)( |$)", " +0000$1").str.replace(
        r"^(\d{1,2}) (\d)", "$1 $2"
    )
    return _first_fit(plain, (*NAMED_FORMS, *NAMED_DAYS))


def _first_fit(texts: pl.Series, layouts: Sequence[str]) -> pl.Series:
    """Microseconds of each text by the first Polars format that fits, null if none fits."""
    found = _read(texts, layouts[0])
    for layout in layouts[1:]:
        rows = found.is_null().arg_true()
        if not len(rows):
            break
        found = found.scatter(rows, _read(texts.gather(rows), layout))
    return found


def _read(texts: pl.Series, layout: str) -> pl.Series:
    """Microseconds of texts in one Polars format, null if a text does not fit."""
    if "%H" not in layout and "%I" not in layout:
        return texts.str.to_date(layout, strict=False).cast(pl.Int64) * _DAY
    zone = "UTC" if "%z" in layout else None
    return texts.str.to_datetime(layout, time_unit="us", time_zone=zone, strict=False).cast(
        pl.Int64
    )


# ------------------------------------------------------------------------------------- given format


def _of_serials(texts: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Microseconds of days since 1899-12-30, as spreadsheets write them, and a mask of the cells
    that are not empty.

    >>> _of_serials(pl.Series(["25569", "25569,5", "", "soon"]))[0].to_list()
    [0, 43200000000, None, None]
    """
    texts = texts.str.strip_chars()
    present = (texts.is_not_null() & (texts != "")).fill_null(False)
    days = texts.str.replace(",", ".", literal=True).cast(pl.Float64, strict=False)
    # 25,569 days from 1899-12-30 to 1970-01-01; rounded, as a fraction of a day is not exact
    seconds = ((days - 25_569) * 86_400).round()
    return (seconds * _SECOND).cast(pl.Int64, strict=False), present


def _of_format(texts: pl.Series, form: str) -> pl.Series:
    """Microseconds UTC of texts in a strptime format.

    Polars parses them if it reads the format in the same way as Python, else Python does.
    """
    layout = polars_form(form)
    found = _read(texts, layout) if layout else _nothing(len(texts))
    left = found.is_null() & texts.is_not_null() & (texts != "")
    if not left.any():
        return found
    rows = left.arg_true()
    rest = texts.gather(rows)
    # Python's parser is slow, and times often repeat
    known = {text: _strptime(text, form) for text in rest.unique()}
    times = pl.Series([known[text] for text in rest], dtype=pl.Int64)
    return found.scatter(rows, times)


def polars_form(form: str) -> str:
    """A strptime format for Polars' parser; "" if Polars would accept other texts.

    >>> polars_form("%d/%m/%Y %H:%M:%S.%f"), polars_form("%d.%m.%y"), polars_form("%Y-%m")
    ('%d/%m/%Y %H:%M:%S%.f', '', '')
    """
    form = form.replace("%S.%f", "%S%\0")
    used = set(re.findall(r"%(.)", form, re.DOTALL))
    has_clock = {"H", "M"} <= used or {"I", "p", "M"} <= used
    is_day = not used & set("HMSIpz\0")
    is_whole = all(used & names for names in _DATE_DIRECTIVES) and (has_clock or is_day)
    return form.replace("\0", ".f") if is_whole and used - {"\0"} <= _SAME_IN_BOTH else ""


def _strptime(text: str, form: str) -> int | None:
    try:
        found = datetime.strptime(text, form)
    except (ValueError, OverflowError):
        return None
    found = found if found.tzinfo else found.replace(tzinfo=UTC)
    apart = found - datetime(1970, 1, 1, tzinfo=UTC)
    return (apart.days * 86_400 + apart.seconds) * _SECOND + apart.microseconds
