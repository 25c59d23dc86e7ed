"""The stage ``prepare`` on tiny tables with histories, splits, counts and refusals computed by
hand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys import schema
from recsys.config import CanonicalSource, Config, SyntheticSource, build_config
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Split
from recsys.data.history_table import HISTORY_SCHEMA
from recsys.errors import ArtifactError, ConfigError, DataError, SourceError
from recsys.preparation import prepare as prepare_module
from recsys.preparation.dataset_writer import DatasetWriter
from recsys.preparation.prepare import prepare
from recsys.sources import open_source
from recsys.sources.base import Piece, SourceAdapter
from tests.pieces import BrokenPiece, MemoryPiece

pytestmark = pytest.mark.usefixtures("both_ways")

PROVENANCE = {
    schema.FILE: pa.string(),
    schema.ROW: pa.int64(),
    schema.ORDER: pa.int64(),
    schema.REASON: pa.string(),
    schema.RAW: pa.string(),
}


class MemorySource(SourceAdapter):
    """A source with tables in memory."""

    name = "memory"  # type: ignore[assignment]

    def __init__(self, blocks: int = 2, **tables: pa.Table) -> None:
        super().__init__(CanonicalSource(events=["memory"]))
        self._tables, self._blocks = tables, blocks

    def files(self) -> list[Any]:
        return []

    def pieces(self) -> dict[str, list[Piece]]:
        return {
            name: [*map(MemoryPiece, cut(table, self._blocks))]
            for name, table in self._tables.items()
        }

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for name, table in sorted(self._tables.items()):
            digest.update(f"{name} {table.to_pylist()}".encode())
        return digest.hexdigest()


def cut(table: pa.Table, number: int) -> list[pa.Table]:
    size = -(-table.num_rows // number)
    return [table.slice(start, size) for start in range(0, table.num_rows, size)]


def rows_of(name: str, rows: list[dict[str, Any]], **extra: pa.DataType) -> pa.Table:
    """A table in the format of a source; adds file, row and order."""
    defaults = {schema.EVENT_TYPE: "interact", schema.VALUE: 1.0} if name == "events" else {}
    filled = [
        {**defaults, schema.FILE: f"{name}.csv", schema.ROW: i + 1, schema.ORDER: i, **row}
        for i, row in enumerate(rows)
    ]
    return pa.Table.from_pylist(
        filled, schema=pa.schema({**schema.TABLES[name].columns, **extra, **PROVENANCE})
    )


def event(user: str, item: str, second: int | None = None, **more: Any) -> dict[str, Any]:
    time = None if second is None else datetime.fromtimestamp(second, UTC)
    return {schema.USER_ID: user, schema.ITEM_ID: item, schema.TIMESTAMP: time, **more}


def config(folder: Path, **data: Any) -> Config:
    data = {"num_shards": 2, "text": {"enabled": False}, "quarantine": {"max_share": 0.5}, **data}
    model = {"granularities": {"evolution": {"enabled": True}}}
    return build_config({"data": {"dir": str(folder / "dataset"), **data}, "model": model})


def histories(dataset: PreparedDataset) -> dict[str, list[tuple[str, str]]]:
    """user → [(item, split)] with external ids, in the stored order."""
    users, items = dataset.user_ids.to_pylist(), dataset.item_ids.to_pylist()
    found = dataset.histories()
    result = {}
    for row, user in enumerate(found.users_U):
        events = range(found.offsets_U1[row], found.offsets_U1[row + 1])
        result[users[user]] = [
            (items[found.items_E[e]], Split(found.splits_E[e]).name.lower()) for e in events
        ]
    return result


def silent(_: str) -> None:
    """Prints no progress lines."""


TIMED = [
    event("anna", "b", 30),
    event("anna", "a", 10),
    event("bert", "a", 5),
    event("anna", "c", 20),
    event("anna", "a", 40),
    event("bert", "d", 6),
]


def test_histories_are_ordered_split_and_counted(tmp_path: Path) -> None:
    lines: list[str] = []
    dataset = prepare(config(tmp_path), lines.append, MemorySource(events=rows_of("events", TIMED)))
    assert dataset.user_ids.to_pylist() == ["anna", "bert"]
    assert dataset.item_ids.to_pylist() == ["a", "b", "c", "d"]
    assert histories(dataset) == {
        "anna": [("a", "train"), ("c", "train"), ("b", "valid"), ("a", "test")],
        "bert": [("a", "train"), ("d", "train")],
    }
    manifest = dataset.manifest
    assert manifest.ordered and manifest.timed and manifest.event_types == ["interact"]
    expected = {
        "users": 2,
        "items": 4,
        "events": 6,
        "train": 4,
        "valid": 1,
        "test": 1,
        "repeats": 1,
    }
    assert {key: manifest.counts[key] for key in expected} == expected
    assert dataset.item_counts_N(Split.TRAIN).tolist() == [2, 0, 1, 1]
    assert dataset.item_counts_N(Split.TEST).tolist() == [3, 1, 1, 1]
    shard = pq.read_table(f"{dataset.root}/histories/{manifest.shards[0]}")
    assert shard.schema.equals(HISTORY_SCHEMA)
    anna = dataset.histories().take(np.flatnonzero(dataset.histories().users_U == 0))
    assert anna.times_E.tolist() == [10, 20, 30, 40]
    assert "read events: 6 rows, 0 quarantined" in lines


def test_second_prepare_does_nothing_unless_something_changed(tmp_path: Path) -> None:
    source = MemorySource(events=rows_of("events", TIMED))
    first = prepare(config(tmp_path), silent, source)
    stamp = (tmp_path / "dataset" / "manifest.json").stat().st_mtime_ns
    lines: list[str] = []
    again = prepare(config(tmp_path), lines.append, source)
    assert again.manifest == first.manifest and "up to date" in lines[0]
    assert (tmp_path / "dataset" / "manifest.json").stat().st_mtime_ns == stamp
    other = prepare(config(tmp_path), silent, MemorySource(events=rows_of("events", TIMED[:5])))
    assert (
        other.manifest.content_hash != first.manifest.content_hash
        and other.manifest.counts["events"] == 5
    )
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]


def test_interrupted_prepare_leaves_no_valid_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("power cut")

    source = MemorySource(events=rows_of("events", TIMED))
    leftover = DatasetWriter(str(tmp_path / "dataset")).folder.path
    Path(leftover, "vocab").mkdir(parents=True)
    monkeypatch.setattr(prepare_module.Preparation, "_write_graphs", fail)
    with pytest.raises(RuntimeError, match="power cut"):
        prepare(config(tmp_path), silent, source)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ArtifactError):
        PreparedDataset(str(tmp_path / "dataset"))


def test_dataset_survives_a_kill_between_the_two_renames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prepare was killed after it had moved the old dataset away; the next one is refused."""
    root = str(tmp_path / "dataset")
    prepare(config(tmp_path), silent, MemorySource(events=rows_of("events", TIMED)))
    killed = Path(DatasetWriter(root).folder.path.replace(".writing-", ".replaced-"))
    Path(root).rename(killed)

    def fail(*_: Any) -> None:
        raise RuntimeError("power cut")

    monkeypatch.setattr(prepare_module.Preparation, "_write_graphs", fail)
    other = MemorySource(events=rows_of("events", TIMED[:5]))
    with pytest.raises(RuntimeError, match="power cut"):
        prepare(config(tmp_path), silent, other)
    assert PreparedDataset(root).manifest.counts["events"] == len(TIMED)
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]


def test_manifest_is_written_last_without_rename(tmp_path: Path) -> None:
    root = tmp_path / "store"
    (root / "vocab").mkdir(parents=True)
    (root / "vocab" / "old").write_text("left by an interrupted run")
    writer = DatasetWriter(str(root), aside=False)
    with writer.writing() as folder:
        assert folder.path == str(root) and not (root / "vocab").exists()
        folder.write_table("vocab/users.parquet", pa.table({"user_id": ["a"]}))
        assert not (root / "manifest.json").exists()


def test_folder_that_is_no_dataset_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="thesis.tex"):
        prepare(config(tmp_path), silent, MemorySource(events=rows_of("events", TIMED)))
    assert (tmp_path / "dataset" / "thesis.tex").read_text() == "years of work"


BAD = [
    *TIMED,
    event("anna", "a", 10),
    event("anna", "zz", 11),
    {**event("carl", "a", 1), schema.REASON: "bad timestamp", schema.RAW: "carl,a,never"},
    {
        **event("", "a", 1),
        schema.USER_ID: None,
        schema.REASON: "missing user_id",
        schema.RAW: ",a,1",
    },
]


def test_bad_rows_are_quarantined_with_file_row_and_reason(tmp_path: Path) -> None:
    items = rows_of("items", [{schema.ITEM_ID: i} for i in ("a", "b", "c", "d", "cold", "a")])
    dataset = prepare(
        config(tmp_path), silent, MemorySource(events=rows_of("events", BAD), items=items)
    )
    assert dataset.manifest.quarantined["events"] == {
        "unknown item": 1, "bad timestamp": 1, "missing user_id": 1
    }  # fmt: skip
    assert dataset.manifest.dropped == {"events": {"duplicate": 1}, "items": {"duplicate": 1}}
    assert pq.read_table(f"{dataset.root}/dropped/events.parquet").to_pylist()[0]["row"] == 7
    assert dataset.manifest.read == {"events": 10, "items": 6}
    kept = pq.read_table(f"{dataset.root}/quarantine/events.parquet").sort_by("row").to_pylist()
    assert [(row["file"], row["row"], row["reason"]) for row in kept] == [
        ("events.csv", 8, "unknown item"),
        ("events.csv", 9, "bad timestamp"),
        ("events.csv", 10, "missing user_id"),
    ]
    assert kept[1]["raw"] == "carl,a,never" and "user_id=anna, item_id=zz" in kept[0]["raw"]
    assert dataset.user_ids.to_pylist() == ["anna", "bert"]
    # an item without events can still be recommended
    assert dataset.item_ids.to_pylist() == ["a", "b", "c", "cold", "d"]
    assert dataset.item_counts_N(Split.TEST).tolist() == [3, 1, 1, 0, 1]


def test_too_many_bad_rows_stop_the_run(tmp_path: Path) -> None:
    source = MemorySource(events=rows_of("events", BAD))
    with pytest.raises(DataError) as caught:
        prepare(config(tmp_path, quarantine={"max_share": 0.1}), silent, source)
    message = str(caught.value)
    for part in (
        "2 of 10 rows of events",
        "bad timestamp: 1",
        "events.csv, row 9",
        "carl,a,never",
        "max_share",
    ):
        assert part in message
    kept = tmp_path / "dataset.quarantine" / "events.parquet"
    assert str(kept) in message and pq.read_table(kept).num_rows == 2
    assert not (tmp_path / "dataset").exists()
    prepare(config(tmp_path), silent, source)
    assert not kept.exists()


def test_equal_input_gives_equal_bytes_for_any_blocks(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    rows = [
        event(f"u{u}", f"i{i}", int(t))
        for u, i, t in generator.integers(0, [20, 30, 10**6], (400, 3))
    ]
    digests = []
    for blocks in (1, 7):
        folder = tmp_path / str(blocks)
        dataset = prepare(
            config(folder), silent, MemorySource(blocks, events=rows_of("events", rows))
        )
        files = sorted(path for path in (folder / "dataset").rglob("*.parquet"))
        digests.append(
            [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]
        )
        assert len(dataset.manifest.shards) == 2
    assert digests[0] == digests[1]


def test_file_order_is_kept_and_a_missing_order_is_refused(tmp_path: Path) -> None:
    untimed = rows_of("events", [event("u", item) for item in ("c", "a", "a", "b", "d")])
    by_file = prepare(config(tmp_path / "file", order="file"), silent, MemorySource(events=untimed))
    assert histories(by_file)["u"] == [
        ("c", "train"),
        ("a", "train"),
        ("a", "train"),
        ("b", "valid"),
        ("d", "test"),
    ]
    assert by_file.manifest.ordered and not by_file.manifest.timed
    with pytest.raises(DataError, match="needs an order"):
        prepare(
            config(tmp_path / "none", split={"kind": "leave-last"}),
            silent,
            MemorySource(events=untimed),
        )
    with pytest.raises(DataError, match="no timestamp"):
        prepare(config(tmp_path / "time", order="time"), silent, MemorySource(events=untimed))


def test_default_split_is_random_only_if_no_event_has_a_time(tmp_path: Path) -> None:
    untimed = [event(f"u{user}", f"i{item}") for user in range(4) for item in range(12)]
    options: dict[str, Any] = {"split": {"kind": "auto"}}
    drawn = []
    for seed in (0, 1):
        source = MemorySource(events=rows_of("events", untimed))
        dataset = prepare(
            config(tmp_path / str(seed), **options).model_copy(update={"seed": seed}),
            silent,
            source,
        )
        assert dataset.manifest.split["kind"] == "ratio"
        assert any("no event has a time" in note for note in dataset.manifest.notes)
        drawn.append((dataset.manifest.content_hash, histories(dataset)))
    assert drawn[0] == drawn[1]  # the seed of the model does not change the dataset
    some = rows_of("events", [*untimed, event("u0", "late", 10)])
    with pytest.raises(DataError, match="needs an order"):
        prepare(config(tmp_path / "some", **options), silent, MemorySource(events=some))


def test_column_of_numbers_without_a_number_is_noted(tmp_path: Path) -> None:
    rows = [f"u{user},{item},{day}" for user in range(4) for day, item in enumerate("abab")]
    text = "\n".join(["user_id,item_id,timestamp", *rows])
    (tmp_path / "events.csv").write_text(text, encoding="utf-8")
    (tmp_path / "items.csv").write_text(
        "item_id,released,price\na,2024-05-31,2\nb,2024-06-01,x\n", encoding="utf-8"
    )
    source = {
        "kind": "canonical",
        "events": [str(tmp_path / "events.csv")],
        "items": [str(tmp_path / "items.csv")],
        "numbers": {"items": ["released", "price"]},
    }
    dataset = prepare(config(tmp_path, source=source), silent)
    [note] = [note for note in dataset.manifest.notes if "is a number" in note]
    assert note.startswith("no value of released in the table of items is a number")


def test_few_events_without_a_time_come_first_and_are_noted(tmp_path: Path) -> None:
    rows = [
        event("u", item, time)
        for item, time in (("a", 5_000), ("b", None), ("c", 3_000), ("d", 4_000))
    ]
    lines: list[str] = []
    dataset = prepare(config(tmp_path), lines.append, MemorySource(events=rows_of("events", rows)))
    assert histories(dataset)["u"] == [
        ("b", "train"),
        ("c", "train"),
        ("d", "valid"),
        ("a", "test"),
    ]
    assert dataset.manifest.ordered and not dataset.manifest.timed
    text = "1 of 4 events have no timestamp"
    assert any(text in line for line in lines) and any(
        text in note for note in dataset.manifest.notes
    )


def test_events_of_one_time_keep_the_order_of_the_file(tmp_path: Path) -> None:
    rows = [event("u", item, 5_000) for item in ("d", "a", "c", "b")]
    lines: list[str] = []
    dataset = prepare(config(tmp_path), lines.append, MemorySource(events=rows_of("events", rows)))
    assert histories(dataset)["u"] == [
        ("d", "train"),
        ("a", "train"),
        ("c", "valid"),
        ("b", "test"),
    ]
    assert any(
        "3 of 4 events have the same time as the user's previous event" in line for line in lines
    )
    assert "ties" not in dataset.manifest.counts


def test_times_before_1970_are_read_and_split(tmp_path: Path) -> None:
    rows = [
        event("u", item, seconds)
        for item, seconds in (("a", -86_400), ("b", -(10**9)), ("c", -5), ("d", 60))
    ]
    split = {"kind": "temporal", "valid_from": "1969-12-31T23:59:55", "test_from": "1970-01-01"}
    dataset = prepare(
        config(tmp_path, split=split), silent, MemorySource(events=rows_of("events", rows))
    )
    assert histories(dataset)["u"] == [
        ("b", "train"),
        ("a", "train"),
        ("c", "valid"),
        ("d", "test"),
    ]


def test_without_an_order_events_are_not_sorted_by_item_name(tmp_path: Path) -> None:
    names = [f"i{i:02}" for i in range(40)]
    rows = rows_of("events", [event(user, item) for user in ("u", "v") for item in names])
    split = {"kind": "ratio", "valid": 0.2, "test": 0.2}
    orders = []
    for blocks in (1, 5):
        source = MemorySource(blocks, events=rows)
        found = histories(prepare(config(tmp_path / str(blocks), split=split), silent, source))
        orders.append({user: [item for item, _ in events] for user, events in found.items()})
    assert orders[0] == orders[1]
    u, v = orders[0]["u"], orders[0]["v"]
    assert sorted(u) == sorted(v) == names and u != v
    # half a history has items from the whole alphabet
    assert 5 <= len(set(u[:20]) & set(names[:20])) <= 15
    held_out = [position for position, (_, part) in enumerate(found["u"]) if part == "test"]
    assert min(held_out) < 20 <= max(held_out)  # the order does not depend on the split


def test_number_of_shards_depends_on_the_input_size(tmp_path: Path) -> None:
    rows = rows_of("events", [event(f"u{u}", f"i{i}", i) for u in range(200) for i in range(3)])

    class Sized(MemorySource):
        bytes = 0

        def size(self) -> int:
            return self.bytes

    source = Sized(events=rows)
    for size, shards in ((0, 4), (256 << 20, 4), ((256 << 20) + 1, 5)):
        source.bytes = size
        dataset = prepare(config(tmp_path / str(size), num_shards=0), silent, source)
        assert len(dataset.manifest.shards) == shards
    assert open_source(SyntheticSource(num_users=1_000_000)).size() > 256 << 20


def test_unordered_ratio_depends_on_pair_and_seed(tmp_path: Path) -> None:
    rows = rows_of("events", [event(f"u{u}", f"i{i}") for u in range(20) for i in range(20)])
    split = {"kind": "ratio", "valid": 0.2, "test": 0.2}
    dataset = prepare(config(tmp_path / "a", split=split), silent, MemorySource(events=rows))
    assert not dataset.manifest.ordered
    found = histories(dataset)
    assert (
        50 < dataset.manifest.counts["test"] < 110 and 50 < dataset.manifest.counts["valid"] < 110
    )
    fewer = rows.slice(0, 200)  # without other users, the splits of the remaining users stay
    half = histories(
        prepare(config(tmp_path / "b", split=split), silent, MemorySource(events=fewer))
    )
    assert half == {user: found[user] for user in half}


def test_temporal_cut_offs_follow_shares_and_times(tmp_path: Path) -> None:
    rows = rows_of("events", [event(f"u{s % 3}", f"i{s}", s * 1000) for s in range(10)])
    share = prepare(
        config(tmp_path / "a", split={"kind": "temporal"}), silent, MemorySource(events=rows)
    )
    parts = {item: part for user in histories(share).values() for item, part in user}
    assert [item for item, part in parts.items() if part == "test"] == ["i9"]
    assert [item for item, part in parts.items() if part == "valid"] == ["i8"]
    assert share.manifest.split["test_from"] == "1970-01-01T02:30:00+00:00"
    given = {"kind": "temporal", "valid_from": "1970-01-01T01:00", "test_from": "1970-01-01T02:00"}
    dated = prepare(config(tmp_path / "b", split=given), silent, MemorySource(events=rows))
    assert {part: dated.manifest.counts[part] for part in ("train", "valid", "test")} == {
        "train": 4, "valid": 4, "test": 2
    }  # fmt: skip
    late = {"kind": "temporal", "test_from": "2030-01-01"}
    with pytest.raises(DataError, match="no test events"):
        prepare(config(tmp_path / "c", split=late), silent, MemorySource(events=rows))


def tagged(item: str, tag: str, user: str = "anna", second: int | None = None) -> dict[str, Any]:
    return event(user, item, second, event_type="tag", tag=tag)


TEXT = {"enabled": False, "event_column": "tag", "event_types": ["tag"]}
TAGS = [
    tagged("a", "rock"),  # a is also anna's test event: held out
    tagged("b", "leak of validation"),
    tagged("c", "jazz"),
    tagged("c", "cool", "bert"),
    tagged("c", "jazz", "bert"),
    tagged("d", " blues ", "bert"),
    tagged("d", "blues", "bert", 99),
    tagged("nowhere", "lost", "bert"),
]


def test_text_of_held_out_pairs_does_not_reach_the_items(tmp_path: Path) -> None:
    events = rows_of("events", [*TIMED, *TAGS], tag=pa.string())
    items = rows_of(
        "items", [{schema.ITEM_ID: i, "title": f"Title {i}"} for i in "abcd"], title=pa.string()
    )
    dataset = prepare(config(tmp_path, text=TEXT), silent, MemorySource(events=events, items=items))
    assert dataset.features.column("text").to_pylist() == [
        "Title a", "Title b", "Title c. tag: jazz, cool", "Title d. tag: blues"
    ]  # fmt: skip
    counts = dataset.manifest.counts
    assert (
        counts["text_rows"],
        counts["text_rows_held_out"],
        counts["text_rows_held_out_test"],
    ) == (7, 2, 1)
    assert any("2 of 7 rows of item text" in note for note in dataset.manifest.notes)
    assert dataset.manifest.quarantined["events"] == {"unknown item": 1}
    assert dataset.manifest.event_types == ["interact"] and dataset.manifest.timed
    assert counts["items_with_text"] == 4 and counts["events"] == 6


def test_temporal_split_drops_text_from_the_validation_cut_off_on(tmp_path: Path) -> None:
    events = [event("u", f"i{s}", s) for s in range(10)]
    tags = [
        tagged("i0", "early", "w", 3),
        tagged("i0", "late", "w", 8),
        tagged("i0", "unknown time", "w"),
    ]
    split = {
        "kind": "temporal",
        "valid_from": "1970-01-01T00:00:08",
        "test_from": "1970-01-01T00:00:09",
    }
    source = MemorySource(events=rows_of("events", [*events, *tags], tag=pa.string()))
    dataset = prepare(config(tmp_path, text=TEXT, split=split), silent, source)
    assert dataset.features.column("text").to_pylist()[:2] == ["tag: early", None]
    assert dataset.manifest.counts["text_rows_late"] == 2
    assert dataset.num_users == 2 and len(dataset.histories()) == 1  # w has no interactions


def test_social_edges_are_prepared(tmp_path: Path) -> None:
    pairs = [
        ("anna", "bert", 2.0),
        ("bert", "anna", 3.0),
        ("anna", "ghost", 1.0),
        ("anna", "bert", 9.0),
        ("x", "anna", None),
    ]
    social = [{schema.SRC_USER_ID: s, schema.DST_USER_ID: d, schema.WEIGHT: w} for s, d, w in pairs]
    users = rows_of("users", [{schema.USER_ID: "x"}, {schema.USER_ID: "anna"}])
    source = MemorySource(
        events=rows_of("events", TIMED), users=users, social=rows_of("social", social)
    )
    dataset = prepare(config(tmp_path / "a"), silent, source)
    assert dataset.user_ids.to_pylist() == ["anna", "bert", "x"]
    src, dst, weight = dataset.social_edges()
    assert list(zip(src, dst, weight, strict=True)) == [
        (0, 1, 3.0),
        (0, 2, 1.0),
        (1, 0, 3.0),
        (2, 0, 1.0),
    ]
    assert dataset.manifest.dropped["social"] == {"unknown user": 1, "duplicate": 1}
    directed = prepare(config(tmp_path / "b", social_directed=True), silent, source)
    assert [column.tolist() for column in directed.social_edges()] == [
        [0, 1, 2],
        [1, 0, 0],
        [2.0, 3.0, 1.0],
    ]


def friends(*rows: tuple[str, str, int | None]) -> pa.Table:
    times = [
        None if second is None else datetime.fromtimestamp(second, UTC) for _, _, second in rows
    ]
    columns = (schema.SRC_USER_ID, schema.DST_USER_ID, schema.TIMESTAMP)
    named = [
        dict(zip(columns, (s, d, time), strict=True))
        for (s, d, _), time in zip(rows, times, strict=True)
    ]
    return rows_of("social", named)


def test_temporal_split_drops_friendships_from_the_validation_cut_off_on(tmp_path: Path) -> None:
    events = rows_of("events", [event(f"u{s % 3}", f"i{s}", s) for s in range(10)])
    social = friends(
        ("u0", "u1", 9), ("u0", "u1", 7), ("u0", "u2", 8), ("u1", "u2", None), ("u0", "ghost", 9)
    )
    source = MemorySource(events=events, social=social)
    split = {
        "kind": "temporal",
        "valid_from": "1970-01-01T00:00:08",
        "test_from": "1970-01-01T00:00:09",
    }
    dataset = prepare(config(tmp_path / "temporal", split=split), silent, source)
    src, dst, _ = dataset.social_edges()
    assert list(zip(src, dst, strict=True)) == [(0, 1), (1, 0), (1, 2), (2, 1)]
    assert (
        dataset.manifest.counts["social_rows_late"] == 2
        and dataset.manifest.counts["social_edges"] == 4
    )
    assert dataset.manifest.dropped["social"] == {"unknown user": 1}
    assert "2 friendships from the validation cut-off on were left out" in dataset.manifest.notes
    kept = prepare(config(tmp_path / "last"), silent, source)
    assert (
        kept.manifest.counts["social_edges"] == 6 and "social_rows_late" not in kept.manifest.counts
    )
    assert any(note.startswith("3 friendships have a timestamp") for note in kept.manifest.notes)


def test_triples_get_dense_ids_and_items_get_entities(tmp_path: Path) -> None:
    triples = [("e2", "by", "e9"), ("e1", "by", "e9"), ("e1", "by", "e9"), ("e1", "in", "e2")]
    facts = rows_of(
        "knowledge",
        [dict(zip((schema.HEAD, schema.RELATION, schema.TAIL), t, strict=True)) for t in triples],
    )
    items = rows_of(
        "items", [{schema.ITEM_ID: i, schema.ENTITY_ID: {"a": "e1"}.get(i)} for i in "abcd"]
    )
    source = MemorySource(events=rows_of("events", TIMED), items=items, knowledge=facts)
    root = prepare(config(tmp_path), silent, source).root
    assert pq.read_table(f"{root}/graphs/knowledge.parquet").to_pydict() == {
        "head": [0, 0, 1], "relation": [0, 1, 0], "tail": [2, 1, 2]
    }  # fmt: skip
    assert pq.read_table(f"{root}/vocab/entities.parquet").to_pydict() == {
        "entity": ["e1", "e2", "e9"]
    }
    assert pq.read_table(f"{root}/items/entities.parquet").to_pydict() == {
        "entity": [0, None, None, None]
    }


ATTRIBUTES = [
    {
        schema.ITEM_ID: "a",
        schema.ENTITY_ID: "e1",
        "genre": "Rock Folk",
        "year": 1970,
        "labels": ["x", "y", None],
    },
    {schema.ITEM_ID: "b", schema.ENTITY_ID: None, "genre": " Folk  ", "year": None, "labels": []},
    {schema.ITEM_ID: "c", schema.ENTITY_ID: None, "genre": None, "year": 1970, "labels": None},
]


def attributed(**tables: list[pa.Table]) -> MemorySource:
    kinds = {
        schema.ENTITY_ID: pa.string(),
        "genre": pa.string(),
        "year": pa.int64(),
        "labels": pa.list_(pa.string()),
    }
    items = rows_of("items", ATTRIBUTES, **kinds)
    return MemorySource(
        events=rows_of("events", [row for row in TIMED if row["item_id"] != "d"]),
        items=items,
        **tables,
    )


def named_triples(dataset: PreparedDataset) -> set[tuple[str, str, str]]:
    """The triples by name."""
    entities = dataset._table("vocab/entities.parquet").column(0).to_pylist()
    relations = dataset._table("vocab/relations.parquet").column(0).to_pylist()
    return {
        (entities[h], relations[r], entities[t]) for h, r, t in zip(*dataset.triples(), strict=True)
    }


def test_item_columns_become_triples(tmp_path: Path) -> None:
    columns = {"item_columns": ["genre", "year", "labels"], "separators": {"genre": " "}}
    expected = {
        ("e1", "genre", "genre=Rock"), ("e1", "genre", "genre=Folk"), ("e1", "year", "year=1970"),
        ("e1", "labels", "labels=x"), ("e1", "labels", "labels=y"),
        ("item_id=b", "genre", "genre=Folk"), ("item_id=c", "year", "year=1970"),
    }  # fmt: skip
    alone = prepare(config(tmp_path / "alone", knowledge=columns), silent, attributed())
    assert named_triples(alone) == expected
    sizes = {name: alone.manifest.counts[name] for name in ("triples", "entities", "relations")}
    assert sizes == {"triples": 7, "entities": 8, "relations": 3}
    names = alone._table("vocab/entities.parquet").column("entity").to_pylist()
    assert [names[entity] for entity in alone.item_entities()] == ["e1", "item_id=b", "item_id=c"]

    given = rows_of("knowledge", [{schema.HEAD: "e9", schema.RELATION: "by", schema.TAIL: "e1"}])
    both = prepare(
        config(tmp_path / "both", knowledge=columns), silent, attributed(knowledge=given)
    )
    assert named_triples(both) == expected | {("e9", "by", "e1")}


def test_relations_of_the_table_can_be_left_out(tmp_path: Path) -> None:
    triples = [("e1", "by", "e9"), ("e1", "in", "e2")]
    names = (schema.HEAD, schema.RELATION, schema.TAIL)
    facts = rows_of("knowledge", [dict(zip(names, triple, strict=True)) for triple in triples])
    columns = {"item_columns": ["year"], "relations": ["in"]}
    some = prepare(
        config(tmp_path / "some", knowledge=columns), silent, attributed(knowledge=facts)
    )
    years = {("e1", "year", "year=1970"), ("item_id=c", "year", "year=1970")}
    assert named_triples(some) == years | {("e1", "in", "e2")}
    none = prepare(
        config(tmp_path / "none", knowledge={**columns, "relations": []}),
        silent,
        attributed(knowledge=facts),
    )
    assert named_triples(none) == years
    with pytest.raises(
        ConfigError, match="relations: on not among the relations of the table; relations: by, in"
    ):
        prepare(
            config(tmp_path, knowledge={"relations": ["on"]}), silent, attributed(knowledge=facts)
        )


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"item_columns": ["gnre"]},
            r"gnre not among the columns of items; did you mean genre\? Columns: genre, labels",
        ),
        ({"item_columns": ["year"], "separators": {"genre": " "}}, "separators: genre not in"),
    ],
)
def test_columns_that_cannot_be_triples_are_named(
    tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare(config(tmp_path, knowledge=columns), silent, attributed())


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ({"text": {"enabled": False, "event_types": ["tag"]}}, ConfigError, "belong together"),
        (
            {"text": {**TEXT, "event_column": "label"}},
            ConfigError,
            "'label' is not a column of the events",
        ),
        (
            {"text": {**TEXT, "event_types": ["review"]}},
            ConfigError,
            "no event has the type review; types: interact, tag",
        ),
        ({"interactions": ["tag"], "text": TEXT}, ConfigError, "cannot be in both"),
        (
            {"text": {"enabled": False, "fields": ["plot"]}, "interactions": ["interact"]},
            ConfigError,
            "plot not among",
        ),
        ({"split": {"kind": "given"}, "interactions": ["interact"]}, DataError, "marks as test"),
    ],
)
def test_settings_that_contradict_the_data_are_refused(
    tmp_path: Path, data: dict[str, Any], error: type[Exception], message: str
) -> None:
    source = MemorySource(events=rows_of("events", [*TIMED, *TAGS], tag=pa.string()))
    with pytest.raises(error, match=message):
        prepare(config(tmp_path, **data), silent, source)
    assert not (tmp_path / "dataset").exists()


def test_source_error_in_a_task_keeps_its_message(tmp_path: Path) -> None:
    class Broken(MemorySource):
        def pieces(self) -> dict[str, list[Piece]]:
            return {"events": [*super().pieces()["events"], BrokenPiece()]}

    with pytest.raises(SourceError) as caught:
        prepare(config(tmp_path), silent, Broken(events=rows_of("events", TIMED)))
    assert (
        str(caught.value) == "events.csv: row 3 is not UTF-8" and type(caught.value) is SourceError
    )


@pytest.fixture
def prepared_from(real_data: Path, tmp_path: Path) -> Callable[..., PreparedDataset]:
    def run(source: dict[str, Any], **data: Any) -> PreparedDataset:
        built = config(tmp_path, quarantine={"max_share": 0.01}, source=source, **data)
        return prepare(built, silent)

    return run


def test_lastfm_item_text_has_no_held_out_tags(
    real_data: Path, prepared_from: Callable[..., PreparedDataset]
) -> None:
    folder = real_data / "lastfm"
    source = {
        "kind": "hetrec-lastfm",
        "folder": str(folder),
        "test_pairs": str(folder / "splits" / "random80.test.tsv"),
    }
    dataset = prepared_from(source, split={"kind": "given"}, text=TEXT)
    counts, manifest = dataset.manifest.counts, dataset.manifest
    assert (counts["users"], counts["items"], counts["events"], counts["test"]) == (
        1892,
        17632,
        92834,
        18567,
    )
    assert counts["text_rows_held_out_test"] == 15_002
    assert manifest.quarantined["events"] == {"unknown item": 1538}  # all of them are tag rows
    assert counts["text_rows"] == 186_479 - 1538
    assert counts["text_rows_held_out"] > 15_002 and not manifest.ordered
    assert abs(counts["valid"] / (92834 - 18567) - 0.1) < 0.01
    assert counts["social_edges"] == 25_434
    assert (counts["triples"], int((dataset.item_entities() >= 0).sum())) == (15_518, 3846)
