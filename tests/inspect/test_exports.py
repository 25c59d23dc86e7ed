"""`recsys init` on exports of shops and trackers: rows that were undone, states, guests, days."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.compute as pc
import pytest

from recsys.errors import SourceError
from recsys.inspect.look import look
from recsys.sources import open_source
from recsys.sources.base import read_all
from tests.inspect.test_unusual_files import at, columns_of_events, pairs, source_of, write


@pytest.mark.parametrize(
    ("name", "is_set", "mark"),
    [
        pytest.param("refunded_at", lambda n: n % 9 == 0, "*", id="refund"),
        pytest.param("clicked_at", lambda n: n % 5 == 0, "", id="click"),
        pytest.param("returned_on", lambda n: n % 20 > 0, None, id="loan"),
    ],
)
def test_time_of_what_happened_to_some_rows_marks_them(
    name: str, is_set: Callable[[int], bool], mark: str | None, tmp_path: Path
) -> None:
    rows = [
        (f"u{u}", f"p{i}", at(t), at(t + 7200) if is_set(n) else "")
        for n, (u, i, t) in enumerate(pairs())
    ]
    source = source_of(write(tmp_path / "log.csv", ["user", "product", "made_at", name], rows))
    assert source.drop == ({} if mark is None else {name: [mark]})
    events = read_all(open_source(source).pieces()["events"])
    kept = [bool(row[3]) == (mark != "*") or mark is None for row in rows]
    assert events.num_rows == sum(kept) > 0


def test_fields_of_an_item_in_a_cell_and_second_ids_of_users_are_no_items(tmp_path: Path) -> None:
    rows = [
        (
            f"u{u}@x.org",
            u,
            ("paid", "sent")[n % 2],
            f"name:Lamp {i}|product_id:{i}|total:9.99",
            at(t),
        )
        for n, (u, i, t) in enumerate(pairs())
    ]
    names = ["billing_email", "customer_id", "status", "line_items", "date"]
    with pytest.raises(SourceError, match=r"no table has events.*line_items \(nested objects"):
        source_of(write(tmp_path / "orders.csv", names, rows))


def test_rows_that_are_no_events_are_refused_with_the_reason(tmp_path: Path) -> None:
    rows = [(f"u{u}", f"p{i}", f"{at(t, '%d/%m')}/2565") for u, i, t in pairs()]
    path = write(tmp_path / "thai.csv", ["user", "product", "date"], rows)
    with pytest.raises(SourceError, match="100.0% of the rows of .*thai.csv are no events"):
        look([str(path)])


def test_type_with_known_words_is_preferred_to_the_first_column_of_types(tmp_path: Path) -> None:
    rows = [
        (
            f"u{u}",
            f"p{i}",
            ("track", "page")[n % 3 == 0],
            ("view item", "purchase")[n % 4 == 0],
            at(t),
        )
        for n, (u, i, t) in enumerate(pairs())
    ]
    names = ["user", "product", "type", "event", "date"]
    found = look([str(write(tmp_path / "track.csv", names, rows))])
    assert found.config.data.targets == ["purchase"]


@pytest.mark.parametrize("share", [0, 3])
def test_user_with_many_times_the_events_of_others_is_noted(share: int, tmp_path: Path) -> None:
    rows: list[tuple[Any, ...]] = [
        ("0" if n % 4 < share else f"u{u}", f"p{i}", at(t)) for n, (u, i, t) in enumerate(pairs())
    ]
    found = look([str(write(tmp_path / "log.csv", ["user", "product", "date"], rows))])
    notes = [note for note in found.found.notes if "the user '0' has 75% of the events" in note]
    assert len(notes) == (share > 0)
    if notes:
        assert "data.source.drop {user_id: ['0']}" in notes[0]
        source = found.config.data.source
        cured = source.model_copy(update={"drop": {"user_id": ["0"]}})
        events = read_all(open_source(cured).pieces()["events"])
        assert "0" not in events.column("user_id").to_pylist() and events.num_rows


def test_small_files_of_days_are_all_read(tmp_path: Path) -> None:
    """Users come back to the items of the days before."""
    frame = pl.DataFrame(
        [
            {
                "user": f"u{u}",
                "item": f"p{(u + day % 7) % 40}",
                "time": 1_700_000_000 + day * 86_400,
            }
            for u in range(60)
            for day in range(39)
        ],
        orient="row",
    )
    for (day,), part in frame.group_by("time"):
        folder = tmp_path / f"dt={datetime.fromtimestamp(int(str(day)), UTC):%Y-%m-%d}"
        folder.mkdir()
        part.write_parquet(folder / "part-0.parquet")
    found = look([str(tmp_path)]).found
    assert found.statistics.num_events == len(frame) and not found.sampled


@pytest.mark.parametrize("sign", [1, -1])
def test_negative_amounts_are_noted_and_the_cure_leaves_them_out(sign: int, tmp_path: Path) -> None:
    rows = [
        (f"u{u}", f"p{i}", at(t), f"{(sign if n % 9 == 0 else 1) * (n + 0.5):.2f}")
        for n, (u, i, t) in enumerate(pairs())
    ]
    path = write(tmp_path / "cards.csv", ["card", "product", "date", "amount"], rows)
    found = look([str(path)])
    notes = [note for note in found.found.notes if "values of amount are negative" in note]
    assert len(notes) == (sign < 0)
    if notes:
        assert "{amount: value} and data.min_value 0" in notes[0]
        source = source_of(path)
        names = {**source.rename["events"], "amount": "value"}
        cured = source.model_copy(update={"rename": {**source.rename, "events": names}})
        values = read_all(open_source(cured).pieces()["events"]).column("value").to_pylist()
        assert sum(value < 0 for value in values) == sum(float(row[3]) < 0 for row in rows)


@pytest.mark.parametrize("name", ["position", "price"])
def test_order_within_one_time_is_noted(name: str, tmp_path: Path) -> None:
    rows = [
        (f"u{u}", f"p{i}", at(t // (40 * 86_400) * 40 * 86_400, "%Y-%m-%d"), 1000 + n * 7)
        for n, (u, i, t) in enumerate(pairs())
    ]
    names = ["user", "product", "eventdate", name]
    found = look([str(write(tmp_path / "views.csv", names, rows))])
    notes = [note for note in found.found.notes if "have the time of the event before" in note]
    assert len(notes) == (name == "position")
    assert all("data.source.clock {position: s}" in note for note in notes)


@pytest.mark.parametrize(
    ("name", "number", "unit"),
    [
        ("event_order", lambda n: n, "s"),
        ("order_in_basket", lambda n: n, "s"),
        ("timeframe", lambda n: n * 50_000, "ms"),
        ("sort_order", lambda n: n % 5, ""),
        ("order", lambda n: n, ""),
    ],
)
def test_numbers_that_order_the_events_of_a_day_are_its_clock(
    name: str, number: Callable[[int], int], unit: str, tmp_path: Path
) -> None:
    rows = [
        (f"u{u}", f"p{i}", f"{at(t // (40 * 86_400) * 40 * 86_400, '%d.%m.%Y')}", number(n))
        for n, (u, i, t) in enumerate(pairs())
    ]
    found = look([str(write(tmp_path / "views.csv", ["user", "product", "date", name], rows))])
    source = found.config.data.source
    assert source.clock == ({name: unit} if unit else "")
    events = read_all(open_source(source).pieces()["events"])
    assert not events.column("_reason").drop_null()
    if unit:
        assert found.found.statistics.same_time < 0.01
        times = events.column("timestamp").to_pylist()
        assert times == sorted(times)


def test_columns_of_products_are_refused_with_the_cure(tmp_path: Path) -> None:
    names = ["month", "account", "tenure", *(f"has_{k}" for k in range(9))]
    rows = [
        (
            f"2023-{month:02}-01",
            f"A{u}",
            u % 30 + month,
            *((u + k * month) % 3 % 2 for k in range(9)),
        )
        for u in range(60)
        for month in range(1, 13)
    ]
    with pytest.raises(SourceError, match=r"a table of states, .* each of 9 items \(has_0, "):
        look([str(write(tmp_path / "accounts.csv", names, rows))])


@pytest.mark.parametrize("states", [("created", "paid", "sent"), ("created",)])
def test_log_of_states_is_noted_and_the_cure_keeps_one(
    states: tuple[str, ...], tmp_path: Path
) -> None:
    rows = [
        (f"u{u}", f"p{i}", state, at(t + 600 * place))
        for u, i, t in pairs()
        for place, state in enumerate(states)
    ]
    found = look([str(write(tmp_path / "log.csv", ["user", "product", "status", "date"], rows))])
    notes = [note for note in found.found.notes if "have several values of status" in note]
    assert len(notes) == (len(states) > 1)
    if notes:
        assert "data.source.drop {status: [" in notes[0] and "keep created alone" in notes[0]


def test_visitors_in_rows_without_a_user_are_noted(tmp_path: Path) -> None:
    rows = [
        (f"u{u}" if n % 3 == 0 else "", f"v{u}", f"p{i}", at(t))
        for n, (u, i, t) in enumerate(pairs())
    ]
    names = ["user_id", "domain_userid", "product_id", "date"]
    found = look([str(write(tmp_path / "hits.csv", names, rows))])
    assert any("{domain_userid: user_id}" in note for note in found.found.notes)


@pytest.mark.parametrize(
    "written",
    [
        pytest.param(lambda t: (t + 11_644_473_600) * 10**7, id="Windows"),
        pytest.param(lambda t: (t + 62_135_596_800) * 10**7, id=".NET"),
        pytest.param(lambda t: f"/Date({t * 1000}+0100)/", id="JSON of .NET"),
        pytest.param(lambda t: (t + 11_644_473_600) * 10**6, id="Chrome"),
        pytest.param(lambda t: f"{t:.9e}", id="scientific"),
        pytest.param(lambda t: f"{t:,}", id="thousands"),
    ],
)
def test_clocks_of_programs_and_written_numbers_are_times(
    written: Callable[[int], Any], tmp_path: Path
) -> None:
    rows = [(f"u{u}", f"p{i}", written(t)) for u, i, t in pairs()]
    source = source_of(write(tmp_path / "log.csv", ["user", "product", "time"], rows))
    times = read_all(open_source(source).pieces()["events"]).column("timestamp")
    assert [time.timestamp() for time in times.to_pylist()] == [t for _, _, t in pairs()]


def test_numbers_of_an_unknown_clock_are_no_values(tmp_path: Path) -> None:
    rows = [(f"u{u}", f"p{i}", t / 86_400 + 2_440_587.5) for u, i, t in pairs()]
    found = look([str(write(tmp_path / "log.csv", ["user", "product", "time"], rows))]).found
    assert not found.value_name and "the times of time are not read" in found.order_why


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_messages_in_cells_are_refused_with_the_command_that_makes_them_columns(
    suffix: str, tmp_path: Path
) -> None:
    frame = pl.DataFrame(
        {
            "topic": "clicks",
            "offset": range(len(pairs())),
            "timestamp": [t * 1000 for _, _, t in pairs()],
            "value": [json.dumps({"user_id": u, "item_id": i}) for u, i, _ in pairs()],
        }
    )
    path = tmp_path / f"dump.{suffix}"
    if suffix in ("csv", "tsv"):
        frame.write_csv(path, separator="\t" if suffix == "tsv" else ",", quote_style="necessary")
    elif suffix == "jsonl":
        frame.write_ndjson(path)
    else:
        frame.write_parquet(path)
    with pytest.raises(SourceError, match="value are JSON; value.user_id, value.i") as refused:
        look([str(path)])
    command = str(refused.value).partition("write JSON lines: ")[2].partition("; then pass")[0]
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    source = source_of(tmp_path / "events.jsonl")
    assert columns_of_events(source) == {"value.user_id": "user_id", "value.item_id": "item_id"}
    events = read_all(open_source(source).pieces()["events"])
    assert not events.column("_reason").drop_null() and events.num_rows == len(frame)


@pytest.mark.parametrize("of_whole", [True, False])
def test_lines_that_are_parts_of_other_lines_of_the_user_are_left_out(
    of_whole: bool, tmp_path: Path
) -> None:
    rows: list[tuple[Any, ...]] = []
    for u, i, t in pairs():
        line = len(rows)
        rows.append((line, "", f"u{u}", f"p{i}", at(t)))
        if i % 3 == 0:  # the size of a shirt, or the reply of another user
            part = (f"u{u}", f"p{i}-red") if of_whole else (f"u{(u + 1) % 60}", f"p{i}")
            rows.append((line + 1, line, *part, at(t)))
    names = ["line_id", "parent_id", "customer", "sku", "date"]
    source = source_of(write(tmp_path / "lines.csv", names, rows))
    assert source.drop == ({"parent_id": ["*"]} if of_whole else {})


@pytest.mark.parametrize(
    ("name", "has_user"), [("Name", False), ("Order ID", False), ("Name", True)]
)
def test_lines_get_the_user_and_the_time_of_the_first_line_of_their_order(
    name: str, has_user: bool, tmp_path: Path
) -> None:
    rows: list[tuple[Any, ...]] = []
    expected: list[tuple[str, int]] = []
    for n, (u, i, t) in enumerate(pairs()):
        state = ("paid", "refunded")[n % 9 == 0]
        for place in range(1 + n % 3):
            user, time = "" if n % 5 == 0 else f"u{u}", at(t)  # a fifth are guests
            further = (user, "", time) if has_user else ("", "", "")
            first = (user, state, time) if place == 0 else further
            rows.append((f"#{n}", *first, f"p{(i + place) % 40}"))
            expected += [(f"u{u}", t)] * (state == "paid" and n % 5 > 0)
    names = [name, "Customer", "Financial Status", "Created at", "Lineitem sku"]
    path = write(tmp_path / "orders.csv", names, rows)
    source = source_of(path)
    assert source.lookup == {name: [str(path)]}
    events = read_all(open_source(source).pieces()["events"])
    events = events.filter(pc.is_null(events.column("_reason")))
    times = [time.timestamp() for time in events.column("timestamp").to_pylist()]
    assert list(zip(events.column("user_id").to_pylist(), times, strict=True)) == expected
