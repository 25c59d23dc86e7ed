"""`recsys init`: times that several columns of the events have together."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from recsys import schema
from recsys.config import CanonicalSource
from recsys.inspect.look import look
from recsys.sources import open_source
from recsys.sources.base import read_all
from tests.inspect.test_unusual_files import at, columns_of_events, pairs, source_of, write


def seconds_of(source: CanonicalSource) -> list[float]:
    """The times as the run reads them."""
    rows = read_all(open_source(source).pieces()["events"])
    assert rows.column(schema.REASON).null_count == rows.num_rows
    return [time.timestamp() for time in rows.column(schema.TIMESTAMP).to_pylist()]


def parts(time: int, *forms: str) -> list[str]:
    return [at(time, form) for form in forms]


@pytest.mark.parametrize("month", ["%m", "%B", "%b"])
def test_year_month_day_and_hour_are_found(month: str, tmp_path: Path) -> None:
    rows = [(f"c{u}", f"p{i}", *parts(t, "%Y", month, "%d", "%H")) for u, i, t in pairs()]
    names = ["customer", "product", "order_year", "order_month", "order_day", "order_hour"]
    source = source_of(write(tmp_path / "orders.csv", names, rows))
    assert source.date_columns == ["order_year", "order_month", "order_day"]
    assert source.clock == ["order_hour"]
    assert columns_of_events(source) == {"customer": "user_id", "product": "item_id"}
    assert seconds_of(source) == [t // 3600 * 3600 for _, _, t in pairs()]


def test_year_and_month_are_the_first_of_the_month_and_the_yaml_says_so(tmp_path: Path) -> None:
    rows = [(f"c{u}", f"p{i}", *parts(t, "%Y", "%m")) for u, i, t in pairs()]
    found = look(
        [str(write(tmp_path / "orders.csv", ["customer", "product", "year", "month"], rows))]
    )
    source = found.config.data.source
    assert isinstance(source, CanonicalSource) and source.date_columns == ["year", "month"]
    assert found.config.data.order == "time"
    assert "the first day of the month" in found.draft.text()
    assert {datetime.fromtimestamp(s, UTC).day for s in seconds_of(source)} == {1}


@pytest.mark.parametrize("day", ["%Y-%m-%d", "%d.%m.%Y", "%d-%b-%Y", "%Y-%m-%d 00:00:00"])
def test_hours_of_a_day_are_its_time(day: str, tmp_path: Path) -> None:
    rows = [(f"c{u}", f"p{i}", *parts(t, day, "%H", "%M")) for u, i, t in pairs()]
    names = ["customer", "product", "date", "hour", "minute"]
    found = look([str(write(tmp_path / "orders.csv", names, rows))])
    source = found.config.data.source
    assert isinstance(source, CanonicalSource)
    assert source.clock == ["hour", "minute"] and not source.date_columns
    assert found.config.data.order == "time" and not found.found.bad["events"]
    assert seconds_of(source) == [t // 60 * 60 for _, _, t in pairs()]


@pytest.mark.parametrize("clock", ["%H:%M", "%I:%M %p"])
def test_date_columns_may_have_a_text_of_time(clock: str, tmp_path: Path) -> None:
    rows = [(f"c{u}", f"p{i}", *parts(t, "%Y", "%m", "%d", clock)) for u, i, t in pairs()]
    names = ["customer", "product", "year", "month", "day", "time"]
    source = source_of(write(tmp_path / "orders.csv", names, rows))
    assert source.date_columns == ["year", "month", "day"] and source.clock == "time"
    assert seconds_of(source) == [t // 60 * 60 for _, _, t in pairs()]


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param(lambda u, i, t: (1990 + i % 30, 1 + i % 12, 1 + i % 28), id="of the item"),
        pytest.param(lambda u, i, t: (1990 + u % 30, 1 + u % 12, 1 + u % 28), id="of the user"),
        pytest.param(lambda u, i, t: (at(t, "%Y"), 13, 1), id="no month"),
        pytest.param(lambda u, i, t: (at(t, "%Y"), at(t, "%m"), 32 + u % 60), id="no day"),
    ],
)
def test_other_years_and_months_are_no_time(
    extra: Callable[[int, int, int], tuple[Any, ...]], tmp_path: Path
) -> None:
    rows = [(f"c{u}", f"p{i}", *extra(u, i, t)) for u, i, t in pairs()]
    names = ["customer", "product", "year", "month", "day"]
    found = look([str(write(tmp_path / "ratings.csv", names, rows))])
    source = found.config.data.source
    assert isinstance(source, CanonicalSource)
    assert source.date_columns == [] and found.config.data.order == "none"


def test_date_may_have_one_year_for_each_user_and_a_few_wrong_years(tmp_path: Path) -> None:
    """As the tags of Last.fm: most people were there for months, and some clocks were wrong."""
    rows = [
        (f"c{u}", f"p{i}", 1956 if number % 500 == 0 else 2005 + u % 5, *parts(t, "%m", "%d"))
        for number, (u, i, t) in enumerate(pairs())
    ]
    names = ["userID", "artistID", "year", "month", "day"]
    source = source_of(write(tmp_path / "tagged.csv", names, rows))
    assert source.date_columns == ["year", "month", "day"]


def test_whole_timestamp_is_preferred_to_its_components(tmp_path: Path) -> None:
    rows = [(f"c{u}", f"p{i}", at(t), *parts(t, "%Y", "%m", "%H")) for u, i, t in pairs()]
    names = ["customer", "product", "ordered_at", "year", "month", "hour"]
    source = source_of(write(tmp_path / "orders.csv", names, rows))
    assert source.date_columns == [] and source.clock == ""
    assert columns_of_events(source)["ordered_at"] == "timestamp"


def test_day_of_the_week_is_no_day_of_the_month(tmp_path: Path) -> None:
    rows = [(f"c{u}", f"p{i}", *parts(t, "%Y", "%m", "%u")) for u, i, t in pairs()]
    names = ["customer", "product", "year", "month", "day"]
    source = source_of(write(tmp_path / "orders.csv", names, rows))
    assert source.date_columns == ["year", "month"]
