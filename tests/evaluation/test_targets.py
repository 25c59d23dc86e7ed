"""``data.targets``: purchases are predicted, views are only history, from the split to serving."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from recsys.config import EvaluateConfig, build_config
from recsys.config.contradictions import check_settings
from recsys.data.batches import every_position, whole_history
from recsys.data.cold_start import CUT
from recsys.data.dataset import PreparedDataset
from recsys.data.hidden import Hidden
from recsys.data.histories import Histories, Queries, Split
from recsys.data.leak_audit import audit
from recsys.data.loader import LoaderConfig, TrainingLoader
from recsys.data.split import SplitPlan, assign
from recsys.errors import ConfigError, DataError
from recsys.evaluation.baselines import TargetEventsOnly, fit_baselines
from recsys.evaluation.ranking import countable, rank
from recsys.evaluation.targets import type_report
from recsys.preparation.shards import time_bins
from recsys.serving.bundles import read_bundle, write_bundle
from recsys.serving.recommender import Recommender
from recsys.serving.request_parsing import parse_requests
from tests.handmade import DAY, Event, small_model, write_dataset

VIEW, BUY = 0, 1
BUYS = np.array([False, True])


def parts_of(plan: SplitPlan, *rows: str) -> list[list[int]]:
    """The splits of rows of ``v`` (view) and ``b`` (buy)."""
    types = np.array([int(letter == "b") for row in rows for letter in row])
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    times = np.arange(len(types))
    found = assign(plan, offsets, times, np.zeros(len(types)), np.zeros(0), types)
    return [part.tolist() for part in np.split(found, offsets[1:-1])]


def test_leave_last_counts_targets() -> None:
    """The last buy is test, the buy before it validation; views between are visible at test, later
    ones are cut.
    """
    plan = SplitPlan("leave-last", target_types=(BUY,))
    assert parts_of(plan, "vbvbvvbvv", "bbvv", "vvv", "bbb") == [
        [0, 0, 0, 1, 1, 1, 2, CUT, CUT],
        [0, 0, 0, 0],
        [0, 0, 0],
        [0, 1, 2],
    ]
    assert parts_of(SplitPlan("leave-last"), "vbv", "vb") == [[0, 1, 2], [0, 0]]


def test_shares_count_targets() -> None:
    plan = SplitPlan("ratio", 0.25, 0.25, target_types=(BUY,))
    assert parts_of(plan, "vbvbvbvbv", "vvvvb") == [[0, 0, 0, 0, 0, 1, 1, 2, 2], [0, 0, 0, 0, 0]]
    events = pa.table({"time": [1, 2, 3, 4], "type": [VIEW, BUY, BUY, VIEW]})
    assert time_bins(events, 0, 10, 100, (BUY,))[0] == 2 and time_bins(events, 0, 10, 100)[0] == 4


def shop(folder: Path) -> PreparedDataset:
    """Users view 0, 1, 2 … and buy every second of them; the last buys are validation and test."""
    rows: list[list[Event]] = []
    for user in range(12):
        items = [(user + step) % 8 for step in range(4)]
        events = [(item, VIEW, 0) for item in items[:3]] + [
            (items[0], BUY, 0),
            (items[3], VIEW, 0),
            (items[1], BUY, 1),
        ]
        events += [((user + 5) % 8, VIEW, 1), (items[2], BUY, 2)]
        rows.append(
            [
                (item, kind, (day + 1) * DAY, Split(part))
                for day, (item, kind, part) in enumerate(events)
            ]
        )
    return write_dataset(
        folder, rows, 8, event_types=("view", "buy"), targets=["buy"], text_width=6, num_shards=1
    )


def test_queries_have_target_types_and_see_all_earlier_events(tmp_path: Path) -> None:
    dataset = shop(tmp_path)
    histories = dataset.histories()
    valid, test = (histories.queries(split) for split in (Split.VALID, Split.TEST))
    assert valid.num_targets_B.tolist() == test.num_targets_B.tolist() == [1] * 12
    assert (
        valid.histories.lengths_U.tolist() == [5] * 12
        and test.histories.lengths_U.tolist() == [7] * 12
    )
    assert set(test.target_types) == {BUY} and (test.asked_at_B == 8 * DAY).all()
    assert "queries" in audit(dataset).checks


def test_audit_knows_the_predicted_types(tmp_path: Path) -> None:
    """Read as if views were predicted too, a user has two validation targets where leave-last has
    one.
    """
    dataset = shop(tmp_path)
    dataset.manifest.targets = []
    with pytest.raises(DataError, match="check order of splits"):
        audit(dataset)


def test_training_predicts_only_targets(tmp_path: Path) -> None:
    dataset = shop(tmp_path)
    histories = dataset.histories().through(Split.TRAIN)
    batch = every_position(histories, 10, np.arange(3))
    assert batch.targets_P.tolist() == [0, 1, 2] and batch.seen_B.tolist() == [3, 3, 3]
    assert batch.types_UL[0].tolist() == [VIEW, VIEW, VIEW, BUY], "all earlier events are visible"
    together = whole_history(histories, 10, np.arange(3), Hidden(0.0, 0))
    assert together.targets_P.tolist() == [0, 1, 2] and together.lengths_U.tolist() == [5, 5, 5]
    loader = TrainingLoader(dataset, Split.VALID, LoaderConfig(4, 10, 0.0, 1.0, 10_000, 0))
    steps = list(loader.epoch(0))
    assert sum(step.weight for step in steps) == sum(len(step.batch) for step in steps) == 24


def test_windows_without_a_target_are_left_out(tmp_path: Path) -> None:
    rows: list[list[Event]] = [
        [
            (item % 8, VIEW if item < 20 else BUY, (item + 1) * DAY, Split.TRAIN)
            for item in range(22)
        ],
        [(item, VIEW, (item + 1) * DAY, Split.TRAIN) for item in range(5)],
    ]
    dataset = write_dataset(
        tmp_path, rows, 8, event_types=("view", "buy"), targets=["buy"], num_shards=1
    )
    loader = TrainingLoader(dataset, Split.TRAIN, LoaderConfig(4, 4, 0.0, 1.0, 10_000, 0))
    (step,) = loader.epoch(0)
    assert step.batch.targets_P.tolist() == [20 % 8, 21 % 8] and step.weight == 2


def test_viewed_items_do_not_count_as_had() -> None:
    histories = replace(
        Histories.of_items([[0, 1]], [0]), types_E=np.array([VIEW, BUY], np.uint8), targets_T=BUYS
    )
    queries = Queries(histories, np.array([0, 2]), np.array([0, 1], dtype=np.int32))
    kept, _, dropped = countable(queries, exclude_seen=True)
    assert kept.target_items.tolist() == [0] and dropped == 1
    table: Any = SimpleNamespace(scores=lambda asked: torch.tensor([[1.0, 3.0, 2.0]]))
    assert rank(table, queries, 3).items_BK.tolist() == [[2, 0, -1]]


def test_served_list_leaves_out_purchases(tmp_path: Path) -> None:
    dataset = shop(tmp_path / "dataset")
    write_bundle(tmp_path / "bundle", small_model(dataset), dataset, {})
    bundle = read_bundle(tmp_path / "bundle")
    assert bundle.info.targets == ["buy"]
    recommender = Recommender(bundle)
    (answer,) = recommender.recommend(parse_requests([{"user_id": "u0", "k": 8}]))
    assert set(answer.item_ids) == {
        "i3",
        "i4",
        "i5",
        "i6",
        "i7",
    }, "0, 1 and 2 were bought; 3 and 5 only viewed"
    found = recommender.recommend_users(["u0"], 8)
    assert [f"i{item}" for item in found.items_BR[0] if item >= 0] == answer.item_ids


def test_baselines_are_tried_on_all_events_and_on_targets() -> None:
    """All users view item 0; half buy item 2, then item 1, half the other way round; nobody buys
    item 0.
    """
    rows = [[0, 3, 1 + user % 2, 2 - user % 2] for user in range(20)]
    types_E, splits_E = (
        np.tile(row, 20).astype(np.uint8) for row in ([VIEW, VIEW, BUY, BUY], [0, 0, 0, 1])
    )
    histories = replace(
        Histories.of_items(rows), types_E=types_E, splits_E=splits_E, targets_T=BUYS
    )
    fitted = fit_baselines(["popularity"], histories, 4, EvaluateConfig(), "ndcg@1", refit=True)[
        "popularity"
    ]
    assert (
        isinstance(fitted, TargetEventsOnly)
        and fitted.constants == {"events": "targets"}
        and fitted.validation == 1.0
    )


def test_figures_by_event_type_by_hand() -> None:
    """Item 1 is liked and viewed, item 2 viewed, by the first user; the second views 0."""
    histories = Histories.of_items([[3], [3]], [0, 1])
    items, types = np.array([1, 1, 2, 0], dtype=np.int32), np.array([0, 1, 0, 0], dtype=np.uint8)
    queries = Queries(histories, np.array([0, 3, 4]), items, target_types=types)
    table: Any = SimpleNamespace(
        scores=lambda asked: torch.tensor([[0.0, 2.0, 1.0, 0.0]]).repeat(len(asked), 1)
    )
    tree: dict[str, Any] = {"model": {"granularities": {"behaviour": {"enabled": True}}}}
    config = build_config({**tree, "train": {"metric": "hit@1"}})
    found = type_report(
        {"model": rank(table, queries, 3)}, queries, ["view", "like"], config.train, "model"
    )
    assert found["like"]["model"] == {"hit@1": 1.0} and found["like"]["queries"] == 1
    assert found["view"]["model"] == {"hit@1": 0.5} and found["view"]["targets"] == 3
    single = replace(queries, target_types=np.zeros(4, dtype=np.uint8))
    assert (
        type_report({"model": rank(table, single, 3)}, single, ["view"], config.train, "model")
        == {}
    )


def test_targets_that_are_not_in_the_history_are_refused() -> None:
    tree: dict[str, Any] = {"model": {"granularities": {"behaviour": {"enabled": True}}}}
    with pytest.raises(ConfigError, match="data.targets names purchase, which data.interactions"):
        check_settings(
            build_config({**tree, "data": {"interactions": ["view"], "targets": ["purchase"]}}),
            ("prepare",),
        )


def test_prepare_applies_the_target_types(ray_local: None, tmp_path: Path) -> None:
    from recsys.preparation.prepare import prepare

    lines = ["user_id,item_id,timestamp,event_type"]
    for user in range(8):
        kinds, names = "vvbvbvvbv", {"v": "view", "b": "purchase"}
        lines += [
            f"u{user},i{(user + place) % 6},{1_600_000_000 + place * DAY},{names[kind]}"
            for place, kind in enumerate(kinds)
        ]
    (tmp_path / "events.csv").write_text("\n".join(lines))
    tree: dict[str, Any] = {
        "model": {"granularities": {"behaviour": {"enabled": True, "input": "item"}}}
    }
    data = {
        "source": {"kind": "canonical", "events": [str(tmp_path / "events.csv")]},
        "dir": str(tmp_path / "dataset"),
    }
    data |= {"targets": ["purchase"], "text": {"enabled": False}, "split": {"kind": "leave-last"}}
    dataset = prepare(build_config({**tree, "data": data}))
    assert dataset.manifest.targets == ["purchase"] and dataset.manifest.counts["events"] == 8 * 8
    counts = dataset.manifest.counts
    assert (counts["valid"], counts["test"]) == (8 * 3, 8) and counts["valid_targets"] == counts[
        "test_targets"
    ] == 8
    assert dataset.histories().queries(Split.TEST).num_targets_B.tolist() == [1] * 8
    with pytest.raises(
        ConfigError, match="data.targets: no event has the type buy; types: purchase, view"
    ):
        prepare(
            build_config(
                {**tree, "data": {**data, "targets": ["buy"], "dir": str(tmp_path / "other")}}
            )
        )
