"""Times: every format with its value by hand, missing times, refused values, formats of the
user.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from recsys import schema
from recsys.config import CanonicalSource, DataConfig
from recsys.errors import DataError
from recsys.preparation.dataset_writer import DatasetWriter
from recsys.preparation.quarantine import QUARANTINE_SCHEMA, Quarantine
from recsys.sources.validate import HINTS, Layout, check_rows, raw_text
from recsys.values.absent import CellRules
from recsys.values.moment import moment
from recsys.values.times import polars_form, timestamps

SECONDS = 1_606_513_873  # 2020-11-27 21:51:13 UTC
MICROS = SECONDS * 10**6
DAY = 1_606_435_200 * 10**6  # 2020-11-27
MINUTE = MICROS - 13 * 10**6

# text → microseconds, None for an unknown time
FORMS = {
    "1606513873": MICROS,
    "1606513873.25": MICROS + 250_000,
    "1606513873000": MICROS,
    "1606513873000000": MICROS,
    "1606513873000000000": MICROS,
    "1.606513873E9": MICROS,
    "1,606,513,873": MICROS,
    "1.606.513.873.000": MICROS,
    "/Date(1606513873000)/": MICROS,
    "/Date(-86400000+0100)/": -86_400 * 10**6,
    "new Date(1606513873000)": MICROS,
    "/Date(-62135596800000)/": None,
    "132509874730000000": MICROS,  # Windows
    "13250987473000000": MICROS,  # Chrome
    "637421106730000000": MICROS,  # .NET
    "2020-11-27 21:51:13": MICROS,
    "2020-11-27T21:51:13": MICROS,
    "2020-11-27T21:51:13Z": MICROS,
    "2020-11-27t21:51:13z": MICROS,
    "2020-11-27T21:51:13.250Z": MICROS + 250_000,
    "2020-11-27 21:51:13,250": MICROS + 250_000,
    "2020-11-27T21:51:13,250Z": MICROS + 250_000,
    "2020-11-27 21:51:13 UTC": MICROS,
    "2020-11-28T03:21:13+05:30": MICROS,
    "2020-11-28T03:21:13+0530": MICROS,
    "2020-11-28 03:21:13.5 +05:30": MICROS + 500_000,
    "2020-11-27 16:51:13-05": MICROS,
    "2020-11-27T22:51:13+01:00[Europe/Berlin]": MICROS,
    "2020-11-27T21:51": MINUTE,
    "2020-11-28T03:21+05:30": MINUTE,
    "2020/11/27 21:51:13": MICROS,
    "2020.11.27 21:51:13": MICROS,
    "20201127T215113Z": MICROS,
    "20201127 21:51:13": MICROS,
    "20201127T2151": MINUTE,
    "2020-11-27": DAY,
    "2020-11": DAY - 26 * 86_400 * 10**6,
    "20201127": DAY,
    "20201127.0": DAY,
    "202011272151": MINUTE,
    "2020112721": MINUTE - 51 * 60 * 10**6,
    "202011": DAY - 26 * 86_400 * 10**6,
    "20201127215113": MICROS,
    "20201127215113250": MICROS + 250_000,
    "Fri Nov 27 21:51:13 +0000 2020": MICROS,
    "Fri, 27 Nov 2020 21:51:13 GMT": MICROS,
    "Sat, 28 Nov 2020 03:21:13 +0530": MICROS,
    "Fri Nov 27 21:51:13 2020": MICROS,
    "Fri Nov 27 21:51:13 UTC 2020": MICROS,
    "Fri Nov 27 2020 21:51:13 GMT+0000 (Coordinated Universal Time)": MICROS,
    "27/Nov/2020:21:51:13 +0000": MICROS,
    "November 27, 2020": DAY,
    "27 Nov 2020": DAY,
    "1940-01-01": -946_771_200 * 10**6,
    "1969-12-31 23:59:59.5": -500_000,
    "-1": None,
    "0000-00-00": None,
    "0000-00-00 00:00:00": None,
    "0001-01-01T00:00:00Z": None,
    "1899-12-30 00:00:00": None,
    "NaT": None,
    " ": None,
    "\\N": None,
}


def _read(cells: Any, rules: CellRules | None = None) -> tuple[list[int | None], list[bool]]:
    column = cells if isinstance(cells, pa.Array) else pa.array(cells)
    times, wrong = timestamps(column, rules or CellRules())
    assert times.type == schema.TIMESTAMP_TYPE
    return times.cast(pa.int64()).to_pylist(), wrong.to_pylist()


@pytest.mark.parametrize("text", FORMS)
def test_every_format_is_read_alone_and_in_a_mixed_column(text: str) -> None:
    assert _read([text]) == ([FORMS[text]], [False])
    expected = (
        None
        if FORMS[text] is None
        else datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=FORMS[text])
    )
    assert moment(text) == expected  # the reader of requests and configurations
    company = ["2020-11-27 21:51:13", text, None, "soon"]
    assert _read(company) == ([MICROS, FORMS[text], None, None], [False, False, False, True])


@pytest.mark.parametrize(
    "text",
    [
        *(
            "soon",
            "-5",
            "inf",
            "1e30",
            "2001-13-09",
            "2001-02-30",
            "20201399",
            "20200230",
            "20201127251300",
        ),
        *(
            "11/27/2020 21:51",
            "27.11.2020",
            "44162",
            "44162.91",
            "2020",
            "1799-12-31",
            "2100-01-01",
            "9999-12-31",
        ),
        *("--", "21:51:13", "Nov 27"),
    ],
)
def test_invalid_times_are_marked_as_wrong(text: str) -> None:
    assert _read([text, "2020-11-27", "20201127"])[0][:2] == [None, DAY]
    assert _read([text, "2020-11-27", "20201127"])[1] == [True, False, False]
    with pytest.raises(ValueError, match="expected a time: accepted are"):
        moment(text)


def test_integers_in_calendar_form_are_dates() -> None:
    for kind in (pa.int32(), pa.int64(), pa.uint32(), pa.float64()):
        assert _read(pa.array([20201127, 20201128, None], kind))[0] == [
            DAY,
            DAY + 86_400 * 10**6,
            None,
        ]
    assert _read(pa.array([20201127215113], pa.int64()))[0] == [MICROS]
    assert _read(pa.array([20201127, SECONDS], pa.int64()))[0] == [DAY, MICROS]


def test_numbers_that_count_from_zero_stay_seconds() -> None:
    """Only a few of them look like dates, so none of them is read as a date."""
    relative = [0, 5_000_000, 12_345_678, 20_201_127, 30_000_000]
    assert _read(pa.array(relative)) == ([second * 10**6 for second in relative], [False] * 5)
    assert _read(pa.array([1, 44_162, 86_000]))[0] == [10**6, 44_162 * 10**6, 86_000 * 10**6]


def test_zero_and_minus_one_among_real_times_are_missing() -> None:
    assert _read(["0", "2020-11-27", "-1"]) == ([None, DAY, None], [False] * 3)
    assert _read(pa.array([0, 20201127])) == ([None, DAY], [False] * 2)
    assert _read(pa.array([0, -1, SECONDS])) == ([None, None, MICROS], [False] * 3)
    assert _read(["0", "-1", "1606513873"]) == ([None, None, MICROS], [False] * 3)
    assert _read(pa.array([float("nan"), 0.0, SECONDS + 0.5])) == (
        [None, None, MICROS + 500_000],
        [False] * 3,
    )


def test_serial_dates_of_a_spreadsheet_are_refused() -> None:
    for cells in ([44_162, 44_163], [44_162.91, 44_163.0], ["44162,91"]):
        assert _read(cells)[1] == [True] * len(cells)
    assert (
        "serial dates" in HINTS["bad timestamp"]
        and "data.source.time_format" in HINTS["bad timestamp"]
    )


def test_seconds_and_milliseconds_in_one_column_are_distinguished() -> None:
    assert _read(["1606513873", "1606513873000", "1606513873"]) == ([MICROS] * 3, [False] * 3)


def test_typed_times_before_1970_are_read_and_zero_dates_are_missing() -> None:
    cells = [
        datetime(1960, 1, 1, tzinfo=UTC),
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(1500, 1, 1, tzinfo=UTC),
    ]
    expected = -3653 * 86_400 * 10**6
    assert _read(pa.array(cells, pa.timestamp("us", "UTC"))) == (
        [expected, None, None],
        [False, False, True],
    )
    assert _read(pa.array([date(2020, 11, 27)]))[0] == [DAY]


@pytest.mark.parametrize(
    ("form", "text", "expected"),
    [
        ("%m/%d/%Y %H:%M", "11/27/2020 21:51", MINUTE),
        ("%d/%m/%Y", "27/11/2020", DAY),
        ("%d.%m.%y", "27.11.20", DAY),
        ("%m/%d/%Y %I:%M:%S %p", "11/27/2020 09:51:13 PM", MICROS),
        ("%d/%m/%Y %H:%M:%S.%f", "27/11/2020 21:51:13.25", MICROS + 250_000),
        ("%d/%m/%Y %H:%M:%S,%f", "27/11/2020 21:51:13,25", MICROS + 250_000),
        ("%d/%m/%Y %H:%M %z", "28/11/2020 03:21 +0530", MINUTE),
        ("%d/%m/%Y %H:%M%z", "27/11/2020 21:51Z", MINUTE),
        ("%Y%d%m", "20202711", DAY),
        ("%Y", "2020", DAY - 331 * 86_400 * 10**6),
    ],
)
def test_given_format_is_the_only_one_that_is_read(form: str, text: str, expected: int) -> None:
    rules = CellRules(time_format=form)
    cells = [text, "", "nan", "0000-00-00", "1606513873000"]
    assert _read(cells, rules) == (
        [expected, None, None, None, None],
        [False, False, False, False, True],
    )


def test_given_format_reads_whole_numbers_too() -> None:
    assert _read(pa.array([20202711, None]), CellRules(time_format="%Y%d%m"))[0] == [DAY, None]


@pytest.mark.parametrize("form", ["%Q", "%d/%m", "%H:%M", "%", "soon", "%Y-%m-%d %"])
def test_format_without_a_date_is_refused_when_the_configuration_is_read(form: str) -> None:
    with pytest.raises(ValidationError, match="expected a strptime format with a year"):
        CanonicalSource(events=["e.csv"], time_format=form)
    assert CanonicalSource(events=["e.csv"], time_format="%d/%m/%Y %H:%M%z").time_format


def test_rules_of_a_layout_apply_to_times_of_events_and_friendships() -> None:
    rules = CellRules(time_format="%d/%m/%Y")
    events = pa.table({"user_id": ["u"], "item_id": ["i"], "timestamp": ["27/11/2020"]})
    friends = pa.table({"src_user_id": ["u"], "dst_user_id": ["v"], "timestamp": ["27/11/2020"]})
    for raw, table in ((events, schema.EVENTS), (friends, schema.SOCIAL)):
        checked = check_rows(raw, Layout(table, rules=rules))
        assert checked.column(schema.TIMESTAMP).cast(pa.int64()).to_pylist() == [DAY]
        assert check_rows(raw, Layout(table)).column(schema.REASON).to_pylist() == ["bad timestamp"]


def test_single_time_in_a_known_form_is_read_and_any_other_raises() -> None:
    expected = datetime.fromtimestamp(SECONDS, UTC)
    for value in (
        SECONDS,
        SECONDS * 1000,
        float(SECONDS),
        "2020-11-27T21:51:13Z",
        "20201127215113",
        expected,
    ):
        assert moment(value) == expected
    assert moment("2020-11-28T03:21:13+0530") == expected and moment(
        40_000
    ) == datetime.fromtimestamp(40_000, UTC)
    assert moment(None) is None and moment("nan") is None and moment("0000-00-00") is None
    for value in ("soon", True, float("nan"), float("inf"), [], 10**400, "9999-12-31"):
        with pytest.raises(ValueError, match="ISO 8601"):
            moment(value)


ZONES = st.integers(-14 * 4, 14 * 4).map(
    lambda quarters: timezone(timedelta(minutes=15 * quarters))
)
MOMENTS = st.datetimes(datetime(1900, 1, 2), datetime(2099, 12, 30), timezones=ZONES)
PYTHON_FORMS = (
    *(
        "%Y-%m-%dT%H:%M:%S.%f%z",
        "%Y-%m-%d %H:%M:%S,%f %z",
        "%Y%m%dT%H%M%S%z",
        "%a %b %d %H:%M:%S %z %Y",
    ),
    *("%a, %d %b %Y %H:%M:%S %z", "%d/%b/%Y:%H:%M:%S %z"),
)


@settings(max_examples=60, deadline=None)
@given(MOMENTS, st.sampled_from(PYTHON_FORMS))
def test_every_format_of_a_time_gives_that_time(when: datetime, form: str) -> None:
    written = when if "%f" in form else when.replace(microsecond=0)
    expected = (written - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    assert _read([written.strftime(form)]) == ([expected], [False])
    assert moment(written.strftime(form)) == written
    assert _read([written.strftime(form)], CellRules(time_format=form)) == ([expected], [False])


@settings(max_examples=40, deadline=None)
@given(st.datetimes(datetime(1900, 1, 1), datetime(2099, 12, 31)))
def test_polars_reads_a_format_as_python_does(when: datetime) -> None:
    for form in (
        "%d/%m/%Y %H:%M:%S.%f",
        "%m-%d-%Y %I:%M %p",
        "%B %d %Y %H:%M",
        "%Y%m%d",
        "%d.%m.%Y",
    ):
        assert polars_form(form)
        expected = datetime.strptime(when.strftime(form), form).replace(tzinfo=UTC)
        micros = (expected - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
        assert _read([when.strftime(form)], CellRules(time_format=form)) == ([micros], [False])


def test_too_many_bad_times_name_value_formats_and_key(tmp_path: Path) -> None:
    raw = pa.table(
        {"user_id": ["u"] * 2, "item_id": ["i"] * 2, "timestamp": ["27/11/2020", "28/11/2020"]}
    )
    checked = check_rows(raw, Layout(schema.EVENTS))
    columns = {"file": ["e.csv"] * 2, "row": [1, 2], "reason": checked.column(schema.REASON)}
    columns["raw"] = raw_text(raw, checked.column(schema.REASON), ",")
    writer = DatasetWriter(str(tmp_path / "dataset"))
    with pytest.raises(DataError) as caught, writer.writing():
        quarantine = Quarantine(writer, DataConfig())
        quarantine.start("events", 2)
        quarantine.add("events", pa.table(columns).cast(QUARANTINE_SCHEMA))
        quarantine.check("events")
    for part in (
        "e.csv, row 1",
        "27/11/2020",
        "ISO 8601",
        "YYYYMMDD",
        "data.source.time_format",
        "serial dates",
    ):
        assert part in str(caught.value)
