"""`recsys init`: exports with zero dates, missing ratings, title lines or changed columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.config import CanonicalSource, build_config
from recsys.errors import SourceError
from recsys.inspect.event_statistics import roles_of_types
from recsys.inspect.look import look
from recsys.inspect.terminal_summary import summary_of
from recsys.preparation.blocks import in_this_process
from recsys.preparation.prepare import prepare
from recsys.sources import open_source
from recsys.sources.base import read_all
from tests.inspect.test_unusual_files import (
    NUM_ITEMS,
    at,
    columns_of_events,
    pairs,
    source_of,
    write,
)


@pytest.mark.parametrize(
    ("zero", "form"),
    [
        ("0000-00-00 00:00:00", "%Y-%m-%d %H:%M:%S"),
        ("0001-01-01T00:00:00", "%Y-%m-%dT%H:%M:%S"),
        ("0000-00-00 00:00:00", "%d/%m/%Y %H:%M"),
        ("0", ""),
        ("-1", ""),
    ],
)
def test_zero_dates_are_missing_and_leave_the_other_times(
    zero: str, form: str, tmp_path: Path
) -> None:
    rows = [
        (u, i, zero if n % 10 == 0 else at(t, form) if form else t)
        for n, (u, i, t) in enumerate(pairs())
    ]
    path = write(tmp_path / "sales.csv", ["user", "item", "created"], rows)
    assert columns_of_events(source_of(path))["created"] == "timestamp"


def test_named_time_in_an_unknown_form_has_a_message(tmp_path: Path) -> None:
    rows = [(u, i, f"{at(t)} CEST") for u, i, t in pairs()]
    path = write(tmp_path / "sales.csv", ["user", "item", "date"], rows)
    found = look([str(path)])
    said = summary_of(found.found)
    assert "named as a time, but a cell such as 2023" in said
    assert "add date: timestamp to data.source.rename.events" in said
    assert found.found.order_why.startswith("the times of date are not read")


@pytest.mark.parametrize(
    ("name", "form"),
    [("order_hour_of_day", "%H"), ("order_time", "%H:%M"), ("order_day", "day%d")],
)
def test_part_of_a_time_is_no_time_in_an_unknown_form(name: str, form: str, tmp_path: Path) -> None:
    rows = [(u, i, at(t, form)) for u, i, t in pairs()]
    found = look([str(write(tmp_path / "sales.csv", ["user", "item", name], rows))])
    assert "without the date" in found.found.idle[name]
    assert found.found.order_why.startswith("no column has times")


@pytest.mark.parametrize("form", ["%Y-%m-%d %H", "%Y/%m/%d %H", "%d.%m.%Y %H", "%d %b %Y %H"])
def test_days_with_hours_are_times(form: str, tmp_path: Path) -> None:
    rows = [(u, i, at(t, form)) for u, i, t in pairs()]
    found = look([str(write(tmp_path / "log.csv", ["user", "item", "time"], rows))])
    assert isinstance(found.config.data.source, CanonicalSource)
    assert found.config.data.source.time_format == form and not found.found.day_only
    events = read_all(open_source(found.config.data.source).pieces()["events"])
    read = [time.timestamp() for time in events["timestamp"].to_pylist()]
    assert read == [t // 3600 * 3600 for _, _, t in pairs()]


@pytest.mark.parametrize("grades", [(4, 5, 3), ("★★★★☆", "★★★★★", "★☆☆☆☆")])
def test_missing_ratings_are_no_dislikes(grades: tuple[object, ...], tmp_path: Path) -> None:
    rows = [
        (u, i, at(t), grades[n % 3] if n % 5 < 2 else "") for n, (u, i, t) in enumerate(pairs())
    ]
    path = write(tmp_path / "diary.csv", ["user", "film", "watched_at", "rating"], rows)
    assert look([str(path)]).config.data.min_value is None


@pytest.mark.parametrize("grades", [(1, 1, 5), ("★☆☆☆☆", "★☆☆☆☆", "★★★★★")])
def test_events_without_a_rating_stay_where_dislikes_do_not(
    grades: tuple[object, ...], tmp_path: Path
) -> None:
    rows = [(u, i, at(t), grades[n % 3] if n % 2 else "") for n, (u, i, t) in enumerate(pairs())]
    path = write(tmp_path / "diary.csv", ["user", "film", "watched_at", "rating"], rows)
    found = look([str(path)])
    values = read_all(open_source(source_of(path)).pieces()["events"])["value"].to_pylist()
    assert found.config.data.min_value == 3
    assert values[:4] == [3, 1, 3, 1] and values.count(3) == len(rows) / 2


@pytest.mark.parametrize(
    "negative",
    ["dismiss", "rejected", "Ignored", "report", "declined", "muted", "skipped", "not_interested",
     "Not interested", "ThumbsDown", "thumbs_down"],
)  # fmt: skip
def test_negative_event_types_do_not_count(negative: str) -> None:
    assert roles_of_types(["apply", "click", negative]).history == ("apply", "click")


@pytest.mark.parametrize("form", ["jsonl", "parquet", "csv"])
@pytest.mark.parametrize("name", ["events-{}", "all/day={}/part"])
def test_files_with_one_more_optional_column_are_parts_of_one_table(
    name: str, form: str, tmp_path: Path
) -> None:
    rows = [{"user_id": f"u{u}", "product": f"p{i}", "ts": at(t)} for u, i, t in pairs()]
    paths = []
    for day in range(3):
        part = [dict(row, coupon="A") if day == 1 else row for row in rows[day::3]]
        paths.append(tmp_path / f"{name.format(day + 1)}.{form}")
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        if form == "parquet":
            pq.write_table(pa.Table.from_pylist(part), paths[-1])
        elif form == "csv":
            write(paths[-1], list(part[0]), [list(row.values()) for row in part])
        else:
            paths[-1].write_text("".join(json.dumps(row) + "\n" for row in part))
    # a shell gives all folders as arguments of their own
    for given in (
        ([tmp_path / "all"], [path.parent for path in paths]) if "all" in name else [paths]
    ):
        events = read_all(open_source(source_of(*given)).pieces()["events"])
        assert events.num_rows == len(rows) and events["timestamp"].null_count == 0


def test_tables_with_other_columns_stay_apart(tmp_path: Path) -> None:
    users = [{"user_id": f"u{u}", "name": f"n{u}", "age": u} for u in range(60)]
    events = [{"user_id": f"u{u}", "item_id": f"p{i}", "ts": at(t)} for u, i, t in pairs()]
    for number, rows in enumerate([users, events]):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"table{number}.jsonl").write_text(text)
    source = source_of(tmp_path / "table0.jsonl", tmp_path / "table1.jsonl")
    assert source.users == [str(tmp_path / "table0.jsonl")]


@pytest.mark.parametrize(
    ("mark", "titles"),
    [
        (",", ["Report: Sales 2023", "Generated: 2023-07-01"]),
        (",", ["Report: Sales 2023", "Generated: 2023-07-01", ""]),
        (",", ["Sales, all shops", "Total 2023"]),
        (";", ["Umsatzbericht;;;", "Stand: 01.07.2023;;;", ";;;"]),
    ],
)
def test_title_lines_above_a_table_are_refused(
    mark: str, titles: list[str], tmp_path: Path
) -> None:
    rows = [(u, i, at(t, "%Y-%m-%d %H:%M"), 1) for u, i, t in pairs()]
    path = write(tmp_path / "e.csv", ["user", "item", "date", "qty"], rows, mark)
    table = path.read_text()
    assert columns_of_events(source_of(path))["date"] == "timestamp"
    path.write_text("\n".join([*titles, table]))
    count = len([*filter(None, titles)])
    with pytest.raises(SourceError, match=f"without the first {count} lines they are a table"):
        source_of(path)


def test_decimal_commas_below_a_header_with_blanks_are_no_table(tmp_path: Path) -> None:
    path = tmp_path / "ratings.txt"
    path.write_text("user item rating\n" + "".join(f"u{u} p{i} 3,5\n" for u, i, _ in pairs()))
    assert source_of(path).separator == " "


@pytest.mark.parametrize(
    ("name", "codes", "setting"),
    [
        ("category_ids", lambda n: f"{n % 10},{20 + n % 5}" if n % 2 else str(n % 10), "."),
        ("themes", lambda n: [10 + n // 2 % 6, f"{10 + n // 2 % 5},{11 + n // 2 % 5}"][n % 2], "."),
        ("preis", lambda n: f"{n % 9},{n % 7}5", {"items": ","}),
        ("preis", lambda n: f"{n % 9},{n % 7}5 €", {"items": ","}),
    ],
    ids=["codes by name", "codes by values", "prices", "prices with a currency"],
)
def test_commas_in_one_table_leave_the_points_of_another(
    name: str, codes: Any, setting: object, tmp_path: Path
) -> None:
    rows = [(u, i, at(t), n % 9 / 2 + 0.5) for n, (u, i, t) in enumerate(pairs())]
    items = sorted({row[1] for row in rows})
    events = write(tmp_path / "ratings.csv", ["user_id", "item_id", "date", "rating"], rows)
    cells = [(i, f"The tale of item {i}", codes(n)) for n, i in enumerate(items)]
    path = write(tmp_path / "items.csv", ["item_id", "title", name], cells, ";")
    config = look([str(events), str(path)]).config
    assert config.data.source.decimal == setting  # type: ignore[union-attr]
    tables = {
        name: read_all(pieces) for name, pieces in open_source(config.data.source).pieces().items()
    }
    assert tables["events"].column("value").to_pylist() == [row[3] for row in rows]
    if name == "preis":
        prices = [n % 9 + n % 7 / 10 + 0.05 for n in range(len(items))]
        assert tables["items"].column(name).to_pylist() == pytest.approx(prices)


def test_items_of_sequences_may_have_decimal_commas(tmp_path: Path) -> None:
    lines: dict[int, list[int]] = {}
    for u, i, _ in pairs():
        lines.setdefault(u, []).append(i)
    text = "".join(f"u{u} {' '.join(f'p{i}' for i in items)}\n" for u, items in lines.items())
    (tmp_path / "sequences.txt").write_text(text)
    rows = [(f"p{i}", f"The tale of item {i}", f"{i % 9},{i % 7}5") for i in range(NUM_ITEMS)]
    path = write(tmp_path / "items.csv", ["item_id", "title", "price"], rows)
    source = look([str(tmp_path / "sequences.txt"), str(path)]).config.data.source
    assert source.kind == "sequences" and source.decimal == ","
    prices = read_all(open_source(source).pieces()["items"]).column("price").to_pylist()
    assert prices[:2] == pytest.approx([0.05, 1.15])


@pytest.mark.parametrize("unit", ["", " €"])
def test_a_table_has_one_decimal_mark(unit: str, tmp_path: Path) -> None:
    rows = [
        (u, i, n % 9 / 2 + 0.5, f"{n % 9},{n % 7}5{unit}") for n, (u, i, _) in enumerate(pairs())
    ]
    path = write(tmp_path / "e.csv", ["user_id", "item_id", "rating", "price"], rows)
    found = look([str(path)])
    assert found.config.data.source.decimal == "."  # type: ignore[union-attr]
    assert not found.found.statistics.bad_share


def test_attributes_of_items_in_several_files_are_no_rows_left_out(tmp_path: Path) -> None:
    for part in range(2):
        rows = [(u, i, at(t), f"title {part}") for u, i, t in pairs()[part::2]]
        write(tmp_path / f"sales-{part}.csv", ["user_id", "item_id", "timestamp", "title"], rows)
    source = {
        "kind": "canonical",
        "events": [str(tmp_path / "*.csv")],
        "item_columns": ["title"],
    }
    data = {"source": source, "duplicates": "refuse", "text": {"enabled": False}}
    config = build_config({"run": {"dir": str(tmp_path / "run")}, "data": data})
    with in_this_process(lambda: None, 1):
        found = prepare(config, lambda _: None)
    assert found.manifest.read["items"] == found.manifest.counts["items"]
    assert not found.manifest.dropped and not found.manifest.quarantined.get("items")


def test_lines_without_the_status_of_their_canceled_order_are_named(tmp_path: Path) -> None:
    rows = [
        (u, i, at(t), ("paid", "refunded", "", "paid")[n % 4])
        for n, (u, i, t) in enumerate(pairs())
    ]
    path = write(tmp_path / "orders.csv", ["user", "item", "date", "Financial Status"], rows)
    said = summary_of(look([str(path)]).found)
    assert "rows with refunded are left out, and the 33% of the others without a value" in said
