"""Rows that rules leave out: duplicates, filters, the k-core, and ids that tables do not share."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from test_prepare import MemorySource, event, rows_of

from pipelines.plumbing.reference import reference
from recsys import schema
from recsys.config import Config, build_config, dump_config, load_config
from recsys.data.vocabulary import union
from recsys.errors import ConfigError, DataError
from recsys.preparation import k_core as core_module
from recsys.preparation.buckets import gather_bucket, project
from recsys.preparation.content_hash import settings_hash
from recsys.preparation.event_encoding import Coding, encode_bucket
from recsys.preparation.event_roles import EventRules
from recsys.preparation.filters import EventFilters
from recsys.preparation.friend_edges import SocialRules, number_rows
from recsys.preparation.graphs import TripleRules, encode_triples, write_triples
from recsys.preparation.k_core import core_pairs, cut_bucket, find_core
from recsys.preparation.prepare import prepare
from recsys.sources.validate import Layout, check_rows
from recsys.values.overlap import SideIds, compare


def config(**data: Any) -> Config:
    model = {"granularities": {"evolution": {"enabled": True}}}
    return build_config({"data": {"text": {"enabled": False}, **data}, "model": model})


def gathered(rows: list[dict[str, Any]], known: list[str] | None = None, **data: Any) -> Any:
    rules = EventRules.of(config(**data).data)
    known_items = None if known is None else pa.array(known)
    return rules, *gather_bucket(rules, known_items, project(rows_of("events", rows), rules))


def items_of(good: pa.Table) -> list[str]:
    return good.column(schema.ITEM_ID).to_pylist()


# ------------------------------------------------------------------------------------------ filters


def test_time_window_includes_its_start_and_excludes_its_end() -> None:
    rows = [
        event("u", "early", 9),
        event("u", "first", 10),
        event("u", "last", 19),
        event("u", "end", 20),
    ]
    rows.append(event("u", "untimed"))
    window = {"from": "1970-01-01T00:00:10", "until": "1970-01-01T00:00:20"}
    _, good, bad, summary = gathered(rows, **window)
    assert items_of(good) == ["first", "last"] and bad.num_rows == 0 and summary.read == 5
    assert dict(summary.dropped) == {
        "before data.from": 1,
        "from data.until on": 1,
        "no time, and data.from or data.until is set": 1,
    }


def test_smaller_values_are_left_out_but_bad_rows_stay_bad() -> None:
    rows = [event("u", "a", 1, value=3.0), event("u", "b", 2, value=4.0), event("u", "c", 3)]
    rows.append(
        {**event("u", "d", 4, value=1.0), schema.REASON: "bad timestamp", schema.RAW: "u,d"}
    )
    _, good, bad, summary = gathered(rows, min_value=4)
    assert items_of(good) == ["b"] and bad.column("raw").to_pylist() == ["u,d"]
    assert dict(summary.dropped) == {"value below data.min_value": 2}


def test_text_events_are_not_filtered_by_value() -> None:
    filters = EventFilters(min_value=4)
    table = rows_of("events", [event("u", "a", 1), event("u", "b", 1)])
    out, counts = filters.left_out(table, np.array([False, True]))
    assert out.tolist() == [False, True] and counts.total() == 1


def test_empty_window_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="data.from '2020-02-01' is not before data.until '2020-01-01'"
    ):
        EventFilters.of(config(**{"from": "2020-02-01", "until": "2020-01-01"}).data)


def test_unknown_items_are_reported_for_comparison() -> None:
    rows = [event("u", "a", 1), event("u", "new", 2)]
    _, good, bad_rows, summary = gathered(rows, ["a"])
    assert (
        items_of(good) == ["a"]
        and bad_rows.num_rows == 1
        and summary.unknown_items.to_pylist() == ["new"]
    )


@pytest.mark.parametrize(("policy", "items", "bad", "dropped"), [
    ("quarantine", 4, 4, 0), ("keep", 5, 0, 0), ("drop", 4, 0, 4),
])  # fmt: skip
def test_events_of_unknown_items_follow_the_setting(
    policy: str, items: int, bad: int, dropped: int, tmp_path: Path, both_ways: None
) -> None:
    rows = [event(f"u{u}", f"i{i}", 10 * i) for u in range(4) for i in range(1, 5)]
    rows += [event(f"u{u}", "new", 5) for u in range(4)]
    source = MemorySource(
        events=rows_of("events", rows),
        items=rows_of("items", [{schema.ITEM_ID: f"i{i}"} for i in range(1, 5)]),
    )
    rules = {
        "unknown_items": policy,
        "quarantine": {"max_share": {"events": 0.3}},
        "dir": str(tmp_path / "dataset"),
    }
    manifest = prepare(config(num_shards=2, **rules), lambda line: None, source).manifest
    assert manifest.counts["items"] == items
    assert manifest.quarantined["events"] == ({"unknown item": bad} if bad else {})
    assert manifest.dropped == ({"events": {"unknown item": dropped}} if dropped else {})


# --------------------------------------------------------------------------------------- duplicates


@pytest.mark.parametrize(("policy", "events"), [("drop", 2), ("keep", 3)])
def test_repeated_events_are_dropped_or_kept(policy: str, events: int) -> None:
    rows = [event("u", "a", 1), event("u", "a", 1), event("u", "a", 2)]
    rules, good, _, summary = gathered(rows, duplicates=policy)
    coding = Coding(rules, ("interact",), "time")
    encoded, _, dropped, _ = encode_bucket(
        good, coding, summary.users, np.array([0], dtype=np.int32), summary.items
    )
    assert encoded.num_rows == events and dropped.num_rows == 3 - events


def test_repeats_are_events_in_file_order_and_duplicates_without_order() -> None:
    rules, good, _, summary = gathered([event("u", "a"), event("u", "a")])
    users = np.array([0], dtype=np.int32)
    for order, expected in (("file", 2), ("none", 1)):
        encoded, *_ = encode_bucket(
            good, Coding(rules, ("interact",), order), summary.users, users, summary.items
        )
        assert encoded.num_rows == expected


@pytest.mark.parametrize(
    ("data", "table", "match"),
    [
        (
            {"duplicates": "refuse"},
            "events",
            "data.duplicates is refuse, and 1 of 9 rows .*events.csv, row 9",
        ),
        (
            {"duplicates": "refuse"},
            "items",
            "1 of 5 rows of items are refused .*set data.duplicates to drop",
        ),
        (
            {"unknown_ids": "refuse"},
            "social",
            "data.unknown_ids is refuse, and 1 of 2 rows of social .*unknown user",
        ),
    ],
)
def test_refused_rows_stop_prepare(
    data: dict[str, str], table: str, match: str, tmp_path: Path, both_ways: None
) -> None:
    rows = [event(f"u{u}", f"i{i}", 10 * i) for u in range(2) for i in range(1, 5)]
    tables = {
        "events": rows_of("events", rows + ([rows[-1]] if table == "events" else [])),
        "items": rows_of(
            "items", [{schema.ITEM_ID: name} for name in ("i1", "i2", "i3", "i4")[:5]]
        ),
        "social": rows_of(
            "social",
            [{schema.SRC_USER_ID: "u0", schema.DST_USER_ID: name} for name in ("u1", "zz")],
        ),
    }
    if table == "items":
        tables["items"] = rows_of(
            "items", [{schema.ITEM_ID: name} for name in ("i1", "i2", "i3", "i4", "i4")]
        )
    with pytest.raises(DataError, match=f"(?s){match}"):
        prepare(
            config(num_shards=2, dir=str(tmp_path / "dataset"), **data),
            lambda line: None,
            MemorySource(**tables),
        )
    assert not (tmp_path / "dataset").exists()


def test_negative_weights_self_loops_and_unknown_friends_are_counted_separately() -> None:
    pairs = {"src_user_id": ["a", "a", "a", "a", "b"], "dst_user_id": ["b", "a", "x", "b", "a"]}
    raw = pa.table({**pairs, "weight": ["-1", "1", "1", "heavy", "2"]})
    # as a task receives it: a copy of the schema
    layout = pickle.loads(pickle.dumps(Layout(schema.SOCIAL)))
    checked = check_rows(raw, layout)
    provenance = {
        schema.FILE: ["f"] * 5,
        schema.ROW: list(range(5)),
        schema.RAW: pa.array(["raw"] * 5),
    }
    for name, values in provenance.items():
        checked = checked.append_column(name, pa.array(values))
    report, bad, part = number_rows(pa.array(["a", "b"]), SocialRules(directed=True), 1, checked)
    assert bad.column("reason").to_pylist() == [
        "negative weight (distrust)", "self-loop", "unknown user", "bad weight"
    ]  # fmt: skip
    assert part.num_rows == 1 and (report.known, report.unknown) == ({"a", "b"}, {"x"})


# ------------------------------------------------------------------------------------------- k-core


def by_hand(pairs: set[tuple[str, str]], user: int, item: int) -> set[tuple[str, str]]:
    """The k-core by its definition."""
    while True:
        users, items = [u for u, _ in pairs], [i for _, i in pairs]
        kept = {(u, i) for u, i in pairs if users.count(u) >= user and items.count(i) >= item}
        if kept == pairs:
            return kept
        pairs = kept


class AtOnce:
    """A task that runs in this process at the call."""

    def __init__(self, function: Any, num_returns: int = 1) -> None:
        self.function = function

    def remote(self, *args: Any) -> Any:
        return self.function(*args)


@pytest.mark.parametrize(("user", "item"), [(2, 3), (3, 0), (0, 3)])
def test_core_matches_its_definition(user: int, item: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_module, "task", AtOnce)
    monkeypatch.setattr(core_module, "fetch", lambda value: value)
    monkeypatch.setattr(core_module, "put", lambda value: value)
    random = np.random.default_rng(user)
    pairs = {
        (f"u{u}", f"i{i}")
        for u, i in zip(random.integers(0, 14, 40), random.integers(0, 14, 40), strict=True)
    }
    rows = [event(u, i, 1) for u, i in sorted(pairs)]
    halves = [[row for row in rows if int(row["user_id"][1:]) % 2 == part] for part in (0, 1)]
    found = [gathered([*half, half[0]]) for half in halves]  # a repeated event counts once
    rules, coding = found[0][0], Coding(found[0][0], ("interact",), "time")
    users, items = [s.users for *_, s in found], union([s.items for *_, s in found])
    buckets = [
        core_pairs(good, coding, known, items)
        for (_, good, _, _), known in zip(found, users, strict=True)
    ]
    core = find_core(buckets, users, items, (user, item), (None, None))
    cut = [
        cut_bucket(good, rules, kept, core.items)
        for (_, good, _, _), kept in zip(found, core.users, strict=True)
    ]
    kept = {(row["user_id"], row["item_id"]) for good, _ in cut for row in good.to_pylist()}
    expected = by_hand(pairs, user, item)
    assert kept == expected and expected != pairs
    assert sum(good.num_rows + summary.dropped.total() for good, summary in cut) == len(rows) + 2
    assert {name for _, summary in cut for name in summary.users.to_pylist()} == {
        u for u, _ in expected
    }


def test_ids_of_the_parent_model_stay_in_the_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_module, "task", AtOnce)
    monkeypatch.setattr(core_module, "fetch", lambda value: value)
    monkeypatch.setattr(core_module, "put", lambda value: value)
    rules, good, _, summary = gathered(
        [event("old", "a", 1), event("new", "a", 1), event("new", "b", 2)]
    )
    pairs = core_pairs(good, Coding(rules, ("interact",), "time"), summary.users, summary.items)
    core = find_core(
        [pairs], [summary.users], summary.items, (2, 2), (pa.array(["old"]), pa.array(["b"]))
    )
    assert core.users[0].to_pylist() == ["new", "old"] and core.items.to_pylist() == ["a", "b"]
    alone = find_core([pairs], [summary.users], summary.items, (2, 0), (None, None))
    assert alone.users[0].to_pylist() == ["new"]


# ------------------------------------------------------------------------------------------ overlap


@pytest.mark.parametrize(
    ("side", "events", "cause"),
    [
        ("12", "12.0", "floating-point"),
        ("0108", "108", "leading zeros"),
        ("1e5", "100000", "scientific"),
        ("abc", "ABC", "upper and lower case"),
        ('"7a"', "7a", "quotes"),
        ("user_12", "12", "prefix"),
    ],
)
def test_cause_of_differing_id_formats_is_found(side: str, events: str, cause: str) -> None:
    for one, other in ((side, events), (events, side)):
        with pytest.raises(
            DataError, match=f"none of the 1 ids .* has {one!r}, the events have {other!r}.*{cause}"
        ):
            compared([one], [other])


def compared(side: list[str], events: list[str]) -> str:
    side_ids, event_ids = (
        SideIds(name, "user_id", pa.array(ids, pa.string()))
        for name, ids in (("users", side), ("events", events))
    )
    return compare(side_ids, event_ids, 0.1)


def test_no_common_id_stops_and_few_common_ids_warn() -> None:
    numbers = [str(number) for number in range(100)]
    with pytest.raises(
        DataError, match=r"none of the 100 ids of users .*'0', '1', '10'.*'0\.0', '1\.0', '10\.0'"
    ):
        compared(numbers, [f"{number}.0" for number in numbers])
    half = compared(numbers, [*numbers[:50], *(f"{number}.0" for number in numbers[50:])])
    assert (
        "only 50 of the 100 ids" in half
        and "'50', '51', '52'" in half
        and "'50.0', '51.0', '52.0'" in half
    )
    assert "this is correct if users lists more" in compared(numbers, numbers[:5])
    assert (
        compared(numbers, numbers[:20])
        == compared(numbers[:20], numbers)
        == compared([], numbers)
        == ""
    )


def knowledge(*triples: tuple[str, str, str]) -> pa.Table:
    return rows_of(
        "knowledge",
        [dict(zip(("head", "relation", "tail"), triple, strict=True)) for triple in triples],
    )


def test_item_ids_are_entity_ids_if_no_item_has_an_entity() -> None:
    features = pa.table({"item_id": ["a", "b", "c"]})
    files, bad, read = encode_triples(features, knowledge(("a", "is", "red"), ("c", "is", "red")))
    entities = files["vocab/entities.parquet"].column("entity").to_pylist()
    assert entities == ["a", "c", "red"] and (bad.num_rows, read) == (0, 2)
    assert files["items/entities.parquet"].column("entity").to_pylist() == [0, None, 1]


def test_triples_about_no_item_stop_prepare() -> None:
    features = pa.table({"item_id": ["1", "2"], "entity_id": ["m.1", None]})
    with pytest.raises(
        DataError,
        match=r"none of the 1 ids of items \(entity_id\) occurs in the knowledge .*'m\.1'",
    ):
        write_triples(None, features, TripleRules(), None, knowledge(("M.1", "is", "red")))  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------ configuration


def test_data_from_is_read_from_yaml_and_command_line_and_dumped_as_from(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(
        "data: {from: 2020-01-01}\nmodel: {granularities: {evolution: {enabled: true}}}\n"
    )
    read = load_config(file)
    assert read.data.from_ == "2020-01-01"
    other = load_config(file, [("data.from", "2021-01-01")])
    assert other.data.from_ == "2021-01-01" and settings_hash(
        other.data, other.seed
    ) != settings_hash(read.data, read.seed)
    file.write_text(dump_config(other))
    assert "from: '2021-01-01'" in file.read_text() and load_config(file) == other
    with pytest.raises(ConfigError, match=r"data\.from_: unknown key; did you mean from"):
        load_config(file, [("data.from_", "2020-01-01")])
    assert "--data.from " in reference() and "from_" not in reference()


def test_quarantine_limit_is_per_table() -> None:
    limits = config(quarantine={"max_share": {"events": 0.2}}).data.quarantine
    assert (limits.limit("events"), limits.limit("items")) == (0.2, 0.01)
    assert config(quarantine={"max_share": 0.3}).data.quarantine.limit("media") == 0.3


def test_filters_act_before_the_split_and_are_reported(tmp_path: Path, both_ways: None) -> None:
    rows = [event(f"u{u}", f"i{i}", 10 * i, value=5.0) for u in range(4) for i in range(1, 5)]
    rows += [
        event("u0", "i1", 1),
        event("u0", "rare", 20, value=5.0),
        event("u1", "i2", 30, value=1.0),
    ]
    items = rows_of(
        "items", [{schema.ITEM_ID: name} for name in ("i1", "i2", "i3", "i4", "rare", "never")]
    )
    rules = {
        "from": "1970-01-01T00:00:05",
        "min_value": 2,
        "min_item_events": 2,
        "dir": str(tmp_path / "dataset"),
    }
    lines: list[str] = []
    source = MemorySource(events=rows_of("events", rows), items=items)
    dataset = prepare(config(num_shards=2, **rules), lines.append, source)
    assert (
        dataset.item_ids.to_pylist() == ["i1", "i2", "i3", "i4"]
        and dataset.manifest.counts["events"] == 16
    )
    dropped = {
        "before data.from": 1,
        "value below data.min_value": 1,
        "outside the k-core of data.min_user_events and data.min_item_events": 1,
    }
    assert dataset.manifest.dropped == {"events": dropped} and dataset.manifest.counts["test"] == 4
    assert any(
        line.startswith("read events: 19 rows, 0 quarantined, 3 dropped (") for line in lines
    )
    nothing = config(num_shards=2, **{**rules, "min_item_events": 5, "dir": str(tmp_path / "none")})
    with pytest.raises(
        DataError, match="the filters leave none of 19 events: .*data.min_item_events"
    ):
        prepare(nothing, lines.append, source)
