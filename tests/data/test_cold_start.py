"""Cold users by hand: which users are cold, which events are cut, and that cut events reach no
artefact.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from test_prepare import MemorySource, config, event, rows_of, silent

from recsys.config import build_config
from recsys.data.cold_start import CUT, ColdUsers
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import COLD_VALID, Histories, Split
from recsys.evaluation.baselines import fit_baselines
from recsys.evaluation.evaluate import evaluate
from recsys.evaluation.segments import paired_report
from recsys.preparation.prepare import prepare
from recsys.report.panels import cold_panel
from recsys.training.fresh_model import build_graphs
from tests.evaluation.test_evaluate import Oracle
from tests.handmade import leave_last, write_dataset

OFFSETS = np.array([0, 5, 8, 12])
SPLITS = np.array([0, 0, 0, 1, 2, 0, 0, 2, 0, 0, 0, 1], dtype=np.uint8)


def test_latest_training_events_stay_and_validation_is_marked() -> None:
    found = ColdUsers(0.5, 2, 0).cut(np.array([True, False, True]), OFFSETS, SPLITS, None)
    assert found.tolist() == [CUT, 0, 0, 3, 2, 0, 0, 2, CUT, 0, 0, 3]
    nothing = ColdUsers(0.5, 0, 0).cut(np.array([False, True, False]), OFFSETS, SPLITS, None)
    assert nothing.tolist() == [0, 0, 0, 1, 2, CUT, CUT, 2, 0, 0, 0, 1]


def test_without_an_order_events_with_the_largest_numbers_stay() -> None:
    numbers = np.array([0.9, 0.1, 0.5, 1.0, 1.0, 0.3, 0.2, 0.9, 0.0, 0.0, 0.7, 0.8])
    found = ColdUsers(0.5, 1, 0).cut(np.ones(3, dtype=bool), OFFSETS, SPLITS, numbers)
    assert found.tolist() == [0, CUT, CUT, 3, 2, 0, CUT, 2, CUT, CUT, 0, 3]


def test_cold_users_depend_on_id_and_seed_only() -> None:
    ids = pa.array([f"u{i}" for i in range(20_000)])
    cold = ColdUsers(0.2, 3, 7).among(ids)
    assert abs(cold.mean() - 0.2) < 0.01
    shuffled = np.random.default_rng(0).permutation(20_000)
    assert np.array_equal(ColdUsers(0.2, 3, 7).among(ids.take(pa.array(shuffled))), cold[shuffled])
    assert not np.array_equal(ColdUsers(0.2, 3, 8).among(ids), cold)
    # a larger share includes the users of a smaller one
    assert ColdUsers(0.4, 3, 7).among(ids)[cold].all()


def test_cold_validation_event_is_a_target_and_never_visible() -> None:
    parts = np.array([0, 0, COLD_VALID, 2, 0, 1, 2], dtype=np.uint8)
    zeros = np.zeros(7)
    found = Histories(np.arange(2), np.array([0, 4, 7]), np.arange(7), zeros, zeros, zeros, parts)
    valid, test = found.queries(Split.VALID), found.queries(Split.TEST)
    assert valid.target_items.tolist() == [2, 5] and valid.histories.items_E.tolist() == [0, 1, 4]
    assert test.target_items.tolist() == [3, 6] and test.histories.items_E.tolist() == [0, 1, 4, 5]
    assert found.through(Split.VALID).items_E.tolist() == [0, 1, 4, 5]
    assert found.through(Split.TEST).items_E.tolist() == [0, 1, 3, 4, 5, 6]


EVENTS = [
    event(f"u{user}", f"i{(user * 3 + step) % 23}", 100 * step + user)
    for user in range(40)
    for step in range(8)
]


def cold_ids(dataset: PreparedDataset) -> set[str]:
    assert dataset.cold_U is not None
    return {
        user
        for user, cold in zip(dataset.user_ids.to_pylist(), dataset.cold_U, strict=True)
        if cold
    }


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize(
    "split", [{"kind": "leave-last"}, {"kind": "ratio", "valid": 0.2, "test": 0.2}]
)
def test_prepare_cuts_only_the_cold_users(tmp_path: Path, split: dict[str, Any]) -> None:
    cold_split = {**split, "cold_users": 0.3, "cold_keep": 2}
    for order in ("time", "none") if split["kind"] == "ratio" else ("time",):
        source = MemorySource(events=rows_of("events", EVENTS))
        whole = prepare(
            config(tmp_path / order / "whole", split=split, order=order), silent, source
        )
        cut = prepare(
            config(tmp_path / order / "cut", split=cold_split, order=order), silent, source
        )
        more = config(tmp_path / order / "more", split=cold_split, order=order, num_shards=5)
        again = prepare(
            more, silent, MemorySource(events=rows_of("events", EVENTS[::-1]), blocks=3)
        )
        before, after, cold = histories_of(whole), histories_of(cut), cold_ids(cut)
        assert 4 < len(cold) < 20 and after == histories_of(again)
        for user, events in before.items():
            if user not in cold:
                assert after[user] == events
                continue
            held = [
                (item, COLD_VALID if split == Split.VALID else split)
                for item, split in events
                if split
            ]
            assert [pair for pair in after[user] if pair[1]] == held
            kept = [pair for pair in after[user] if not pair[1]]
            training = [pair for pair in events if not pair[1]]
            assert (
                kept == training[-2:]
                if order == "time"
                else (len(kept) == 2 and set(kept) <= set(training))
            )
        check_counts(cut, after, cold)


def histories_of(dataset: PreparedDataset) -> dict[str, list[tuple[str, int]]]:
    users = dataset.user_ids.to_pylist()
    items = dataset.item_ids.to_pylist()
    found = dataset.histories()
    pairs = [
        (items[item], int(split)) for item, split in zip(found.items_E, found.splits_E, strict=True)
    ]
    spans = zip(found.users_U, found.offsets_U1[:-1], found.offsets_U1[1:], strict=True)
    return {users[user]: pairs[start:end] for user, start, end in spans}


def check_counts(
    dataset: PreparedDataset, after: dict[str, list[tuple[str, int]]], cold: set[str]
) -> None:
    """Counts, graphs and baselines agree with the remaining events."""
    counts, items = dataset.manifest.counts, dataset.item_ids.to_pylist()
    left = [(user, item, split) for user, events in after.items() for item, split in events]
    assert counts["cold_users"] == len(cold)
    assert counts["cold_cut"] == len(EVENTS) - len(left) > 0
    assert counts["cold_valid"] == sum(split == COLD_VALID for *_, split in left) > 0
    assert counts["events"] == len(left) - counts["cold_valid"]
    fitted = [(user, item) for user, item, split in left if split <= Split.VALID]
    assert dataset.item_counts_N(Split.VALID).tolist() == [
        sum(name == i for _, name in fitted) for i in items
    ]
    assert any("cold users keep at most 2" in note for note in dataset.manifest.notes)
    graphs = build_graphs(dataset, Split.VALID)
    edges = {(f"u{u}", f"i{i}") for u, i in named(dataset, graphs.users_E, graphs.items_E)}
    assert edges == set(fitted)
    settings = config(Path("unused")).evaluate
    popularity = fit_baselines(
        ["popularity"], dataset.histories(), len(items), settings, "ndcg@5", True
    )["popularity"]
    queries = dataset.histories().queries(Split.TEST)
    users_of = [len({user for user, name in fitted if name == item}) for item in items]
    assert popularity.scores(queries.take(np.array([0])))[0].tolist() == users_of


def named(
    dataset: PreparedDataset, users_E: torch.Tensor, items_E: torch.Tensor
) -> list[tuple[str, str]]:
    users, items = dataset.user_ids.to_pylist(), dataset.item_ids.to_pylist()
    return [
        (users[u][1:], items[i][1:])
        for u, i in zip(users_E.tolist(), items_E.tolist(), strict=True)
    ]


@pytest.mark.usefixtures("ray_local")
def test_text_of_cold_users_is_removed_with_their_events(tmp_path: Path) -> None:
    tags = [
        {**event(f"u{u}", f"i{i}", 900), "event_type": "tag", "tag": f"by u{u}"}
        for u in range(40)
        for i in range(23)
    ]
    events = rows_of("events", [*EVENTS, *tags], tag=pa.string())
    text = {"enabled": False, "event_column": "tag", "event_types": ["tag"], "max_event_terms": 100}
    split = {"kind": "leave-last", "cold_users": 0.3, "cold_keep": 2}
    dataset = prepare(config(tmp_path, split=split, text=text), silent, MemorySource(events=events))
    cold = cold_ids(dataset)
    training = {
        (user, item)
        for user, found in histories_of(dataset).items()
        for item, split in found
        if not split
    }
    for item, terms in zip(
        dataset.item_ids.to_pylist(), dataset.features.column("text").to_pylist(), strict=True
    ):
        by_cold = {name for name in cold if f"by {name}" in terms.removeprefix("tag: ").split(", ")}
        assert by_cold == {name for name in cold if (name, item) in training}
    assert dataset.manifest.counts["text_rows_cold"] == len(cold) * (23 - 2)


def test_split_without_cold_users_keeps_its_hash(tmp_path: Path) -> None:
    from recsys.preparation.content_hash import settings_hash

    plain, kept, cold = (
        config(tmp_path, split=split) for split in ({}, {"cold_keep": 5}, {"cold_users": 0.2})
    )
    assert settings_hash(kept.data, kept.seed) == settings_hash(plain.data, plain.seed)
    assert settings_hash(cold.data, cold.seed) != settings_hash(plain.data, plain.seed)


@pytest.mark.usefixtures("one_thread")
def test_report_compares_models_on_cold_users(tmp_path: Path) -> None:
    cold_users = ColdUsers(0.4, 3, 5)
    cold_U = cold_users.among(pa.array([f"u{user}" for user in range(20)]))
    walks = [leave_last(*((start + step) % 30 for step in range(6))) for start in range(20)]
    cut = [
        walk[2:3]
        + [(item, kind, time, Split.TRAIN) for item, kind, time, _ in walk[3:5]]
        + walk[5:]
        for walk in walks
    ]
    dataset = write_dataset(
        tmp_path,
        [few if cold else walk for few, walk, cold in zip(cut, walks, cold_U, strict=True)],
        30,
    )
    dataset.manifest.split = {"kind": "leave-last", **cold_users.describe()}
    settings = {"ks": [3], "bootstrap": 200, "baselines": ["popularity", "item_knn"]}
    model = {"granularities": {"behaviour": {"enabled": True}}}
    built = build_config({"model": model, "train": {"metric": "ndcg@3"}, "evaluate": settings})
    evaluated = evaluate(Oracle(), dataset, built, refit=True).to_json()
    result = evaluated["segments"]["cold"]
    number = int(cold_U.sum())
    assert 2 < number < 18
    cold, others = result["cold users"], result["other users"]
    assert (cold["queries"], others["queries"]) == (number, 20 - number)
    assert "comparison" not in others
    against = cold["comparison"]["against"]
    assert cold["comparison"]["best_baseline"] == max(
        against, key=lambda name: against[name]["value"]
    )
    for name, entry in against.items():
        assert entry["value"] == pytest.approx(cold["baselines"][name]["ndcg@3"])
        assert entry["difference"] == pytest.approx(1.0 - entry["value"]) and entry["low"] > 0
        assert entry["relative"] is None or entry["relative"] == pytest.approx(
            entry["difference"] / entry["value"]
        )
    noise, after = cold["granularities"]["noise"], cold["granularities"]["after"]
    assert (noise["difference"], noise["low"], noise["high"], noise["p"]) == (0.0, 0.0, 0.0, 1.0)
    assert after["difference"] > 0.5 and after["low"] > 0
    panel = cold_panel(evaluated, {"item_knn": "Item-kNN"})
    assert panel is not None and [row["name"] for row in panel["cards"][0]["rows"]] == [
        "popularity",
        "Item-kNN",
    ]
    assert panel["queries"] == number and [row["status"] for row in panel["cards"][1]["rows"]] == [
        "worse",
        "unclear",
    ]


def test_paired_report_equals_that_by_hand() -> None:
    mask = np.array([True, False, True, True])
    values = {
        "model": np.array([0.5, 9, 0.5, 0.8]),
        "a": np.array([0.1, 9, 0.3, 0.2]),
        "b": np.array([0.3, 0, 0, 0]),
    }
    found = paired_report(mask, values, {"z": values["model"]}, "model", 100, 0)
    assert found["comparison"]["best_baseline"] == "a"
    assert found["comparison"]["against"]["a"]["value"] == pytest.approx(0.2)
    assert found["comparison"]["against"]["a"]["difference"] == pytest.approx((0.4 + 0.2 + 0.6) / 3)
    assert found["comparison"]["against"]["a"]["relative"] == pytest.approx(0.4 / 0.2)
    assert found["granularities"]["z"]["p"] == 1.0
