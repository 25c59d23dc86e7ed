"""`data.source.date_columns` and `clock`: times that several columns have together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from recsys import schema
from recsys.config import CanonicalSource
from recsys.errors import SourceError
from recsys.sources import open_source
from recsys.sources.base import read_all

FORMS = ["csv", "parquet", "jsonl"]
BAD_DATE = "bad timestamp: the columns of the date form no date"
BAD_CLOCK = "bad timestamp: no time of day"


def written(folder: Path, form: str, **columns: list[Any]) -> str:
    count = len(next(iter(columns.values())))
    ids = {"user_id": [f"u{n}" for n in range(count)], "item_id": ["i"] * count}
    table, path = pa.table({**ids, **columns}), folder / f"events.{form}"
    match form:
        case "parquet":
            pq.write_table(table, path)
        case "csv":
            pyarrow.csv.write_csv(table, path)
        case _:
            path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    return str(path)


def read(events: str, **keys: Any) -> tuple[list[str | None], list[str | None]]:
    """The times as ISO texts without zone, and the reasons of bad rows."""
    source = CanonicalSource.model_validate({"events": [events], **keys})
    rows = read_all(open_source(source).pieces()["events"])
    times = rows.column(schema.TIMESTAMP).to_pylist()
    texts = [time.replace(tzinfo=None).isoformat() if time else None for time in times]
    return texts, rows.column(schema.REASON).to_pylist()


@pytest.mark.parametrize("form", FORMS)
def test_year_month_day_and_hour_are_one_time(form: str, tmp_path: Path) -> None:
    events = written(
        tmp_path, form, year=[2024, 2023], month=[2, 12], day=[29, 31], hour=[0, 23], minute=[5, 59]
    )
    date = ["year", "month", "day"]
    assert read(events, date_columns=date)[0] == ["2024-02-29T00:00:00", "2023-12-31T00:00:00"]
    times, reasons = read(events, date_columns=date, clock=["hour", "minute"])
    assert times == ["2024-02-29T00:05:00", "2023-12-31T23:59:00"] and reasons == [None, None]
    assert read(events, date_columns=date, clock="hour")[0][1] == "2023-12-31T23:00:00"
    assert read(events, date_columns=date[:2])[0] == ["2024-02-01T00:00:00", "2023-12-01T00:00:00"]


@pytest.mark.parametrize("form", FORMS)
def test_months_may_have_names(form: str, tmp_path: Path) -> None:
    names = ["January", "févr.", "sept.", " Mai ", "Moon"]
    events = written(tmp_path, form, y=[2024] * 5, m=names, d=[1] * 5)
    times, reasons = read(events, date_columns=["y", "m", "d"])
    assert times == [*(f"2024-0{month}-01T00:00:00" for month in (1, 2, 9, 5)), None]
    assert reasons == [None, None, None, None, BAD_DATE]


@pytest.mark.parametrize("form", FORMS)
def test_row_whose_parts_form_no_date_is_bad(form: str, tmp_path: Path) -> None:
    events = written(
        tmp_path,
        form,
        year=[2023, 2024, None, None, 24, 2024],
        month=[2, 13, 5, None, 5, 5],
        day=[31, 1, 1, None, 1, None],
    )
    times, reasons = read(events, date_columns=["year", "month", "day"])
    assert times == [None] * 6
    # an event without any part of a date has an unknown time, as with an empty timestamp
    assert reasons == [BAD_DATE, BAD_DATE, BAD_DATE, None, BAD_DATE, BAD_DATE]


@pytest.mark.parametrize("form", FORMS)
def test_hours_are_added_to_a_day_in_any_format(form: str, tmp_path: Path) -> None:
    events = written(
        tmp_path,
        form,
        timestamp=["01.05.2024", "02.05.2024", "03.05.2024", "04.05.2024"],
        hour=[9, 24, None, 23],
    )
    times, reasons = read(events, time_format="%d.%m.%Y", clock=["hour"])
    assert times == ["2024-05-01T09:00:00", None, "2024-05-03T00:00:00", "2024-05-04T23:00:00"]
    assert reasons == [None, BAD_CLOCK, None, None]


@pytest.mark.parametrize("form", FORMS)
def test_numbers_of_a_unit_are_added_to_a_day(form: str, tmp_path: Path) -> None:
    days = ["01.05.2024"] * 4
    events = written(tmp_path, form, timestamp=days, place=[1, 86_400, None, 7_500])
    times, reasons = read(events, time_format="%d.%m.%Y", clock={"place": "s"})
    first, third, last = "2024-05-01T00:00:01", "2024-05-01T00:00:00", "2024-05-01T02:05:00"
    assert times == [first, None, third, last] and reasons == [None, BAD_CLOCK, None, None]
    times, _ = read(events, time_format="%d.%m.%Y", clock={"place": "ms"})
    assert times[3] == "2024-05-01T00:00:07.500000"


def test_minute_without_hour_is_bad(tmp_path: Path) -> None:
    events = written(tmp_path, "csv", timestamp=["2024-05-01"], hour=pa.nulls(1), minute=[30])
    assert read(events, clock=["hour", "minute"])[1] == [BAD_CLOCK]


def test_midnight_of_a_day_is_replaced_by_the_text_of_time(tmp_path: Path) -> None:
    days = ["2024-05-01 00:00:00", "2024-05-02T00:00", "20240503"]
    events = written(tmp_path, "csv", timestamp=days, at=["10:30", "11:45", "12"])
    times, _ = read(events, clock="at")
    assert times == ["2024-05-01T10:30:00", "2024-05-02T11:45:00", "2024-05-03T12:00:00"]


@pytest.mark.parametrize("kind", [pa.date32(), pa.timestamp("us")])
def test_typed_days_get_hours_and_texts_of_time(kind: pa.DataType, tmp_path: Path) -> None:
    days = pa.array(["2024-05-01", "2024-05-02"]).cast(pa.date32()).cast(kind)
    events = written(tmp_path, "parquet", timestamp=days, hour=[1, 2], at=["10:30", "11:45"])
    assert read(events, clock=["hour"])[0] == ["2024-05-01T01:00:00", "2024-05-02T02:00:00"]
    assert read(events, clock="at")[0] == ["2024-05-01T10:30:00", "2024-05-02T11:45:00"]


def test_date_columns_and_a_text_of_time_have_one_time_format(tmp_path: Path) -> None:
    events = written(tmp_path, "csv", year=[2024], month=["May"], day=[1], at=["10:30 PM"])
    date = ["year", "month", "day"]
    times, _ = read(events, date_columns=date, clock="at", time_format="%Y-%m-%d %I:%M %p")
    assert times == ["2024-05-01T22:30:00"]


def test_columns_may_have_the_names_of_the_file_or_the_new_ones(tmp_path: Path) -> None:
    events = written(tmp_path, "csv", Jahr=[2024], Monat=[5], Stunde=[7])
    rename = {"events": {"Jahr": "y", "Monat": "m", "Stunde": "h"}}
    for date, hour in ((["Jahr", "Monat"], "Stunde"), (["y", "m"], "h")):
        times, _ = read(events, rename=rename, date_columns=date, clock=[hour])
        assert times == ["2024-05-01T07:00:00"]


def test_folders_of_year_month_and_day_are_a_date(tmp_path: Path) -> None:
    folder = tmp_path / "year=2024" / "month=05" / "day=07"
    folder.mkdir(parents=True)
    written(folder, "csv", value=[1])
    assert read(str(tmp_path), date_columns=["year", "month", "day"])[0] == ["2024-05-07T00:00:00"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"date_columns": ["year"]}, r"date_columns.*\[year, month, day\] or \[year, month\]"),
        ({"date_columns": ["year", "year"]}, "date_columns.*two or three columns"),
        ({"date_columns": "year"}, "date_columns.*rename it to timestamp"),
        ({"clock": ["a", "b", "c", "d"]}, r"clock.*\[hour, minute, second\]"),
        ({"clock": ["hour", "hour"]}, r"clock.*\[hour, minute, second\]"),
        ({"clock": 3}, "clock.*expected the name of a column"),
        ({"clock": {"a": "s", "b": "s"}}, "clock.*expected the name of a column"),
        ({"clock": {"a": "h"}}, "clock.*'s', 'ms' or 'us'"),
        ({"date_columns": ["y", "m"], "clock": ["y"]}, "'y' is in date_columns and in clock"),
        ({"date_columns": ["y", "m"], "time_format": "%Y"}, "remove time_format"),
    ],
)
def test_wrong_setting_is_an_error_with_the_expected_form(
    keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=f"(?s){message}"):
        CanonicalSource.model_validate({"events": ["a.csv"], **keys})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"date_columns": ["jahr", "month"]}, "date_columns: the events have no column 'jahr'.*ye"),
        ({"clock": ["hour", "minute"]}, "clock: the events have no column 'minute'.*month"),
        ({"clock": "item_id"}, "clock: the events have no further column 'item_id'"),
        (
            {"date_columns": ["year", "month"], "rename": {"hour": "timestamp"}},
            "has a column timestamp, and data.source.date_columns",
        ),
    ],
)
def test_unfit_columns_are_an_error_with_the_cure(
    keys: dict[str, Any], message: str, tmp_path: Path
) -> None:
    events = written(tmp_path, "csv", year=[2024], month=[5], hour=[7])
    source = CanonicalSource.model_validate({"events": [events], **keys})
    with pytest.raises(SourceError, match=message):
        open_source(source).check()
