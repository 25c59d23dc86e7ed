"""The leak audit: a leak planted in each artefact is found and refused, and clean data passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_prepare import TAGS, TEXT, TIMED, MemorySource, config, rows_of, silent

from recsys.data.cold_start import ColdUsers
from recsys.data.dataset import PreparedDataset
from recsys.data.hashing import string_hashes
from recsys.data.histories import COLD_VALID, Histories, Queries, Split
from recsys.data.history_table import HISTORY_SCHEMA
from recsys.data.leak_audit import audit
from recsys.data.text_rows import WHOLE, TextRules
from recsys.data.titles import item_titles
from recsys.errors import DataError
from recsys.evaluation.baselines import fit_baselines
from recsys.evaluation.evaluate import evaluate
from recsys.evaluation.fit_audit import check_fits, users_of_items
from recsys.preparation.prepare import prepare
from recsys.preparation.user_text import texts_of
from tests.evaluation.test_evaluate import config as evaluation_config
from tests.handmade import (
    DAY,
    Event,
    leave_last,
    small_model,
    small_world,
    train_events,
    write_dataset,
)

WALKS = [leave_last(0, 1, 2, 3, 4), leave_last(2, 3, 5, 0), train_events(1, 3), leave_last(5, 4, 1)]
NO_TIME = np.iinfo(np.int64).min
FRIENDS = ((0, 3), (1, 2))


@pytest.fixture
def dataset(tmp_path: Path) -> PreparedDataset:
    return write_dataset(tmp_path, WALKS, 6, friends=FRIENDS)


def change(dataset: PreparedDataset, name: str, edit: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(edit(dataset.table(name)), f"{dataset.root}/{name}")


def with_column(name: str, values: Any) -> Callable[[pa.Table], pa.Table]:
    def edit(table: pa.Table) -> pa.Table:
        index = table.schema.get_field_index(name)
        array = pa.array(values, table.schema.field(name).type) if index >= 0 else pa.array(values)
        return (
            table.set_column(index, name, array) if index >= 0 else table.append_column(name, array)
        )

    return edit


def refused(dataset: PreparedDataset, check: str, found: str) -> None:
    with pytest.raises(DataError, match=f"check {check}: .*{found}"):
        audit(PreparedDataset.unfinished(dataset.filesystem, dataset.root, dataset.manifest))


def test_clean_data_passes(dataset: PreparedDataset) -> None:
    found = audit(dataset)
    assert found.checks == [
        "vocabulary",
        "ids",
        "order_of_splits",
        "queries",
        "popularity",
        "friendships",
    ]
    assert found.events == 14 and found.unaudited == []
    assert found.to_json()["passed"] == 6


def test_popularity_with_a_held_out_event_is_refused(dataset: PreparedDataset) -> None:
    train = dataset.item_counts_N(Split.TRAIN)
    train[4] += 1  # the test event of the first user
    change(dataset, "items/counts.parquet", with_column("train", train))
    refused(
        dataset,
        "popularity",
        "1 items in items/counts.parquet have other train counts than .*i4: 1 instead of 0",
    )


def test_manifest_with_other_counts_is_refused(dataset: PreparedDataset) -> None:
    dataset.manifest.counts["valid"] += 1
    refused(dataset, "popularity", "the manifest counts 4 valid events")


def test_training_event_after_a_held_out_event_is_refused(dataset: PreparedDataset) -> None:
    # the second to last event of the first user is not validation now
    parts = [[0, 0, 1, 0, 2], [0, 0]]
    change(dataset, "histories/part-00000.parquet", with_column("splits", parts))
    refused(dataset, "order of splits", "1 users in histories/part-00000.parquet are out of order")


def test_two_test_events_of_a_user_in_leave_last_are_refused(dataset: PreparedDataset) -> None:
    change(
        dataset, "histories/part-00000.parquet", with_column("splits", [[0, 0, 1, 2, 2], [0, 0]])
    )
    refused(dataset, "order of splits", "1 users")


def test_user_in_two_rows_is_refused(dataset: PreparedDataset) -> None:
    change(dataset, "histories/part-00001.parquet", with_column("user", [0, 3]))
    refused(dataset, "ids", "1 users of histories/part-00001.parquet have a second row")
    change(dataset, "histories/part-00001.parquet", with_column("user", [1, 9]))
    refused(dataset, "ids", "1 users, items or splits")


def test_attributes_in_another_order_than_ids_are_refused(dataset: PreparedDataset) -> None:
    change(
        dataset, "items/features.parquet", lambda table: table.take(pa.array([1, 0, 2, 3, 4, 5]))
    )
    refused(dataset, "vocabulary", "items/features.parquet do not match the item ids")


def test_queries_that_see_their_targets_are_refused(
    dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Histories.queries

    def leaky(self: Histories, target: Split) -> Queries:
        found = honest(self, target)
        return (
            found
            if target != Split.TEST
            else Queries(self, found.target_offsets_B1, found.target_items)
        )

    monkeypatch.setattr(Histories, "queries", leaky)
    refused(
        dataset, "queries", r"test queries of histories/part-00000.parquet see wrong events \(\+3\)"
    )
    monkeypatch.setattr(Histories, "queries", honest)
    monkeypatch.setattr(Histories, "through", lambda self, split: self)
    refused(
        dataset,
        "queries",
        r"fits through train on histories/part-00000.parquet see wrong events \(\+2\)",
    )


def temporal(folder: Path) -> PreparedDataset:
    """Validation from day 3, test from day 4; friends of day 1 and 2."""
    events: list[list[Event]] = [
        [
            (item, 0, (item + 1) * DAY, split)
            for item, split in enumerate((Split.TRAIN, Split.TRAIN, Split.VALID, Split.TEST))
        ]
        for _ in range(2)
    ]
    found = write_dataset(folder, events, 4, friends=((0, 1),))
    found.manifest.split = {
        "kind": "temporal",
        "valid_from": "1970-01-04T00:00:00+00:00",
        "test_from": "1970-01-05T00:00:00+00:00",
    }
    change(found, "graphs/social.parquet", with_column("time", [DAY * 10**6, NO_TIME]))
    return found


def test_times_and_friendships_after_the_cut_offs_are_refused(tmp_path: Path) -> None:
    dataset = temporal(tmp_path)
    assert "friendships" in audit(dataset).checks
    change(dataset, "graphs/social.parquet", with_column("time", [DAY * 10**6, 3 * DAY * 10**6]))
    refused(dataset, "friendships", "1 edges of graphs/social.parquet are later than the cut-off")
    change(dataset, "graphs/social.parquet", lambda table: table.drop_columns(["time"]))
    assert audit(dataset).unaudited == ["friendships_in_time"]
    # the second training event is on the day of validation
    times = [[DAY, 3 * DAY, 3 * DAY, 4 * DAY]]
    change(dataset, "histories/part-00000.parquet", with_column("times", times))
    refused(
        dataset,
        "order of splits",
        "1 events in histories/part-00000.parquet are later than the end",
    )
    change(
        dataset,
        "histories/part-00000.parquet",
        with_column("times", [[DAY, 2 * DAY, 3 * DAY, 3 * DAY]]),
    )
    refused(
        dataset,
        "order of splits",
        "1 events in histories/part-00000.parquet are earlier than the start of their split",
    )


@pytest.mark.parametrize("ordered", [True, False])
def test_user_texts_with_held_out_events_are_refused(tmp_path: Path, ordered: bool) -> None:
    dataset = write_dataset(tmp_path, WALKS, 6, ordered=ordered)
    rules = TextRules(("interact",), ordered, 10, 1, 1 if ordered else 3)
    titles = item_titles(dataset.features)
    honest = list(texts_of(dataset.histories(), titles, rules))
    everything = replace(dataset.histories(), splits_E=np.zeros_like(dataset.histories().splits_E))
    leaky = {entry[:3]: entry[3] for entry in texts_of(everything, titles, rules)}
    dataset.manifest.text = {"users": {"max_items": 10, "folds": rules.folds}}

    def write(texts: list[str]) -> None:
        user, through, place, _ = zip(*honest, strict=True)
        columns = {
            "user": user,
            "through": through,
            "place": place,
            "hash": string_hashes(pa.array(texts)),
        }
        pq.write_table(pa.table(columns), tmp_path / "users/texts.parquet")

    write([text for *_, text in honest])
    assert "user_texts" in audit(dataset).checks
    write([leaky[entry[:3]] if entry[2] == WHOLE else entry[3] for entry in honest])
    refused(
        dataset,
        "user texts",
        r"\d of \d+ texts of users of part-00000.parquet contain other events",
    )


def test_friends_outside_the_vocabulary_are_refused(dataset: PreparedDataset) -> None:
    change(dataset, "graphs/social.parquet", with_column("dst", [3, 2, 1, 7]))
    refused(dataset, "friendships", "1 values of dst")


def test_cold_users_with_too_many_events_are_refused(tmp_path: Path) -> None:
    cold_users = ColdUsers(0.5, 2, 1)
    cold = cold_users.among(pa.array([f"u{user}" for user in range(4)]))
    assert 0 < cold.sum() < 4
    walks = [train_events(0, 1) if is_cold else leave_last(0, 1, 2, 3, 4) for is_cold in cold]
    dataset = write_dataset(tmp_path, walks, 6, num_shards=1)
    dataset.manifest.split |= cold_users.describe()
    assert "cold_users" in audit(dataset).checks
    dataset.manifest.split["cold_keep"] = 1
    refused(
        dataset,
        "cold users",
        f"{cold.sum()} cold users of histories/part-00000.parquet have more than 1",
    )
    alone = [[0, 0] if is_cold else [0, 0, 0, COLD_VALID, 2] for is_cold in cold]
    dataset.manifest.split["cold_keep"] = 2
    change(dataset, "histories/part-00000.parquet", with_column("splits", alone))
    refused(dataset, "cold users", f"{4 - cold.sum()} validation events of other users")


@pytest.mark.usefixtures("ray_local")
def test_event_text_with_held_out_rows_is_refused(tmp_path: Path) -> None:
    """``anna`` trains on a and c, validates on b and tests on a; the tags of ``bert`` are about a,
    c, d.
    """
    events = rows_of("events", [*TIMED, *TAGS], tag=pa.string())
    lines: list[str] = []
    dataset = prepare(config(tmp_path, text=TEXT), lines.append, MemorySource(events=events))
    assert any(line.startswith("audit: ") for line in lines)
    assert {"item_text_rows", "item_text_terms"} <= set(audit(dataset).checks)
    name = f"provenance/{dataset.manifest.text['provenance'][0]}"
    honest = dataset.table(name)
    anna, b = dataset.user_ids.to_pylist().index("anna"), dataset.item_ids.to_pylist().index("b")
    planted = {"user": [anna], "item": [b], "time": [NO_TIME], "term": ["spoiler"]}
    leak = pa.table(planted).cast(honest.schema)
    change(dataset, name, lambda table: pa.concat_tables([table, leak]))
    refused(dataset, "item text rows", "1 rows of text-.* are about held-out")
    pq.write_table(honest, f"{dataset.root}/{name}")
    texts = dataset.features.column("text").to_pylist()
    texts[b] = "tag: spoiler"  # a term that no row has told
    change(dataset, "items/features.parquet", with_column("text", texts))
    refused(dataset, "item text terms", "the text of 1 items, such as b, has other terms")


@pytest.mark.usefixtures("ray_local")
def test_context_values_only_of_held_out_events_are_refused(tmp_path: Path) -> None:
    """The value ``rain`` is only in ``anna``'s last event; no training event has it."""
    places = ["sun", "fog", "sun", "fog", "rain", "sun"]
    rows = [{**row, "weather": place} for row, place in zip(TIMED, places, strict=True)]
    source = MemorySource(events=rows_of("events", rows, weather=pa.string()))
    dataset = prepare(config(tmp_path, context=["weather"]), silent, source)
    assert "context_values" in audit(dataset).checks
    place = Path(dataset.root, "vocab/context.json")
    place.write_text(place.read_text().replace('"sun"', '"rain", "sun"'))
    refused(
        dataset,
        "context values",
        "1 values of weather in vocab/context.json are in no training event",
    )


@pytest.mark.usefixtures("ray_local")
def test_prepared_dataset_passes_the_audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cold-start users are cut as the manifest says; a manifest that says otherwise is refused."""
    monkeypatch.setattr(
        ColdUsers, "describe", lambda self: {"cold_share": 1.0, "cold_keep": 0, "cold_seed": 0}
    )
    split = {"kind": "leave-last", "cold_users": 0.01}
    with pytest.raises(DataError, match="the audit refuses .*, check cold users"):
        prepare(
            config(tmp_path, split=split), silent, MemorySource(events=rows_of("events", TIMED))
        )
    assert not (tmp_path / "dataset").exists()


@pytest.mark.usefixtures("one_thread")
def test_model_or_baseline_fitted_on_test_is_refused(tmp_path: Path) -> None:
    dataset = small_world(tmp_path)
    built = evaluation_config(baselines=["popularity", "item_knn", "ease", "als"])
    built.model = small_model(dataset).config
    result = evaluate(small_model(dataset), dataset, built, refit=True).to_json()
    assert result["audit"]["checks"][-2:] == ["model_fit", "baseline_fits"]
    with pytest.raises(DataError, match=r"check model fit: model counts other users for \d+ items"):
        evaluate(small_model(dataset, through=Split.TEST), dataset, built, refit=True)
    with pytest.raises(DataError, match="training events have"):
        evaluate(small_model(dataset, through=Split.VALID), dataset, built, refit=False)
    histories = dataset.histories()
    expected = users_of_items(histories, dataset.num_items, Split.VALID)
    assert expected.tolist() == [1, 2, 2, 3, 0, 1, 0, 1, 1, 1, 0, 0]
    everything = replace(histories, splits_E=np.zeros_like(histories.splits_E))
    for name in ("popularity", "item_knn", "ease", "als"):
        leaky = fit_baselines([name], everything, dataset.num_items, built.evaluate, "ndcg@3", True)
        with pytest.raises(DataError, match=f"check baseline fits: {name} counts other users"):
            check_fits(None, leaky, histories, dataset, Split.VALID)


def test_schema_of_histories_is_what_the_audit_reads() -> None:
    assert HISTORY_SCHEMA.names == ["user", "items", "types", "times", "values", "splits"]
