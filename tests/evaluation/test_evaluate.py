"""Evaluation from end to end on a hand-made dataset: the contract of metrics.json, and figures by
hand.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recsys.config import Config, build_config
from recsys.contributions import Contributions
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Queries
from recsys.errors import DataError
from recsys.evaluation.evaluate import evaluate
from tests.handmade import (
    leave_last,
    leave_last_without_validation,
    small_model,
    small_world,
    train_events,
    write_dataset,
)

pytestmark = pytest.mark.usefixtures("one_thread")

NUM_ITEMS = 30
KINDS = (
    "recall",
    "ndcg",
    "precision",
    "mrr",
    "map",
    "hit",
    "coverage",
    "novelty",
    "gini",
    "diversity",
)


class Oracle:
    """Ranks the item after the last seen one (a circle) first; only ``after`` scores, ``noise`` is
    zero.
    """

    names = ("after", "noise")
    trained_names = ("after", "noise")

    def __init__(self, num_items: int = NUM_ITEMS) -> None:
        self.item_vectors_ND = torch.eye(num_items)

    def scores(self, queries: Queries) -> torch.Tensor:
        last = queries.histories.items_E[queries.histories.offsets_U1[1:] - 1].astype(np.int64)
        return self.item_vectors_ND[torch.from_numpy((last + 1) % len(self.item_vectors_ND))]

    def contributions(self, queries: Queries) -> Contributions:
        """Users with an even id have both granularities, the others only ``after``."""
        even = torch.from_numpy(queries.histories.users_U % 2 == 0)[:, None]
        weights_BK = torch.where(even, torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0]))
        after_BD = self.scores(queries)  # item vectors are the unit matrix
        return Contributions(
            torch.stack([after_BD, torch.zeros_like(after_BD)], dim=1), weights_BK, {}
        )

    is_uneven = False

    def even_contributions(self, queries: Queries) -> Contributions:
        return self.contributions(queries)

    def scores_of(self, queries: Queries, names: Collection[str]) -> torch.Tensor:
        return (
            self.scores(queries)
            if "after" in names
            else torch.zeros(len(queries), len(self.item_vectors_ND))
        )

    def scores_at(self, queries: Queries, weights: Mapping[str, float]) -> torch.Tensor:
        return self.scores_of(queries, [name for name, weight in weights.items() if weight])


def circle(folder: Path, friends: tuple[tuple[int, int], ...] = ((0, 1),)) -> PreparedDataset:
    """Twenty users who walk around a circle of items from different starts, six steps each."""
    walks = [leave_last(*((start + step) % NUM_ITEMS for step in range(6))) for start in range(20)]
    return write_dataset(folder, walks, NUM_ITEMS, friends=friends)


def config(**evaluate_section: Any) -> Config:
    section = {"ks": [1, 5], "bootstrap": 100, **evaluate_section}
    granularities = {"behaviour": {"enabled": True}}
    return build_config(
        {
            "model": {"granularities": granularities},
            "train": {"metric": "ndcg@3"},
            "evaluate": section,
        }
    )


def test_metrics_json_follows_the_contract(tmp_path) -> None:
    result = evaluate(Oracle(), circle(tmp_path), config(), refit=True)
    content = json.loads(
        json.dumps(result.to_json({"prepare_s": 1.0, "train_s": 2.0}), allow_nan=False)
    )
    # the cut-off of the main metric is added
    names = {f"{kind}@{k}" for kind in KINDS for k in (1, 3, 5)}
    assert set(content["model"]) == names
    for values in (content["model"], *content["baselines"].values()):
        assert next(iter(values)) == "ndcg@3", "tables and cards begin with the main metric"
    assert {name: set(values) for name, values in content["baselines"].items()} == {
        name: names for name in ("popularity", "item_knn", "ease", "als", "recent_popularity")
    }
    assert content["data"]["baselines_left_out"] == {
        "frequency": "lists leave out what a user had before (evaluate.exclude_seen, or the mask"
        " of a protocol)"
    }
    assert {"prepare_s", "train_s", "evaluate_s", "baseline_ease_s"} <= set(content["timing"])
    assert set(content["granularities"]["after"]) == {"weight", "ndcg@3_without"}
    with_interval = {name for name in names if name.split("@")[0] not in ("coverage", "gini")}
    assert set(content["confidence"]["model"]) == with_interval
    assert all(set(spans) == with_interval for spans in content["confidence"]["baselines"].values())
    assert {"history", "friends", "users"} <= set(content["segments"])


def test_perfect_model_has_perfect_metrics(tmp_path) -> None:
    result = evaluate(Oracle(), circle(tmp_path), config(chunk_users=7), refit=True)
    for name in ("ndcg@1", "ndcg@3", "recall@5", "mrr@5", "hit@1", "map@3"):
        assert result.model[name] == 1.0, name
    assert result.model["precision@5"] == pytest.approx(1 / 5)
    # twenty users, twenty next items
    assert result.model["coverage@1"] == pytest.approx(20 / NUM_ITEMS)
    assert result.model["gini@1"] == pytest.approx(1 - 20 / NUM_ITEMS)
    assert result.model["diversity@3"] == pytest.approx(1.0)  # orthogonal item vectors
    assert result.confidence["model"]["ndcg@3"] == [1.0, 1.0]
    assert result.granularities["noise"] == {"weight": 0.25, "ndcg@3_without": 1.0}
    assert result.granularities["after"]["ndcg@3_without"] < 0.5
    assert (
        result.data["queries"] == result.data["targets"] == 20
        and result.data["fitted_through"] == "valid"
    )
    assert result.data["queries_without_history"] == 0


def test_test_users_without_a_history_are_counted(tmp_path: Path) -> None:
    walks = [leave_last(1, 2, 3, 4), leave_last(5, 6, 7, 8), leave_last(2, 3, 5)[-1:]]
    dataset = write_dataset(tmp_path, walks, NUM_ITEMS)
    result = evaluate(small_model(dataset), dataset, config(), refit=True)
    assert (result.data["queries"], result.data["queries_without_history"]) == (3, 1)


def test_best_baseline_in_the_comparison_is_the_best_on_test(tmp_path) -> None:
    result = evaluate(Oracle(), circle(tmp_path), config(), refit=True)
    against = result.comparison["against"]
    validation = {name: entry["validation"] for name, entry in against.items()}
    on_test = {name: values["ndcg@3"] for name, values in result.baselines.items()}
    assert len(set(on_test.values())) > 1
    for key in ("best_baseline", "best_on_test"):
        assert on_test[result.comparison[key]] == max(on_test.values())
    assert validation[result.comparison["best_on_validation"]] == max(validation.values())
    for name, entry in against.items():
        assert entry["difference"] == pytest.approx(1.0 - result.baselines[name]["ndcg@3"])
        assert entry["low"] <= entry["difference"] <= entry["high"]
    assert against["popularity"]["p"] == pytest.approx(2 / 101)


def test_without_validation_no_baseline_is_the_best_on_it(tmp_path) -> None:
    rows = [
        leave_last_without_validation(*((user + step) % NUM_ITEMS for step in range(5)))
        for user in range(20)
    ]
    dataset = write_dataset(tmp_path, rows, NUM_ITEMS)
    comparison = evaluate(Oracle(), dataset, config(), refit=True).comparison
    assert comparison["best_on_validation"] is None and comparison["best_baseline"]
    assert all(entry["validation"] is None for entry in comparison["against"].values())


def test_segments_split_the_same_queries(tmp_path) -> None:
    result = evaluate(Oracle(), circle(tmp_path), config(), refit=True)
    friends = result.segments["friends"]
    assert friends["with friends"]["queries"] == 2 and friends["without friends"]["queries"] == 18
    assert friends["with friends"]["model"]["ndcg@3"] == 1.0
    assert [*result.segments["history"]] == ["5–9"]  # training and validation are visible
    for name, values in result.baselines.items():
        parts = [
            (entry["queries"], entry["baselines"][name]["ndcg@3"]) for entry in friends.values()
        ]
        assert sum(n * v for n, v in parts) / 20 == pytest.approx(values["ndcg@3"])


def test_validation_events_are_not_training_without_a_refit(tmp_path) -> None:
    walks = [leave_last(0, 1, 2, 3), leave_last(0, 1, 2, 4), leave_last(1, 0, 5, 2)]
    dataset = write_dataset(tmp_path, walks, 6)
    selected = evaluate(Oracle(6), dataset, config(), refit=False)
    again = evaluate(Oracle(6), dataset, config(), refit=True)
    # 3, 4 and 2: no training event
    assert selected.segments["items"]["targets new to training"]["targets"] == 3
    # 2 was a validation event of others
    assert again.segments["items"]["targets new to training"]["targets"] == 2
    assert selected.data["fitted_through"] == "train"


def test_evaluation_without_baselines_and_ablation(tmp_path) -> None:
    result = evaluate(
        Oracle(), circle(tmp_path, friends=()), config(baselines=[], ablate=False), refit=True
    )
    assert result.baselines == {} and result.comparison == {
        "metric": "ndcg@3",
        "best_baseline": None,
        "best_on_test": None,
        "best_on_validation": None,
        "against": {},
    }
    assert result.granularities == {"after": {"weight": 0.75}, "noise": {"weight": 0.25}}
    assert "friends" not in result.segments


def test_impossible_evaluation_has_a_clear_message(tmp_path) -> None:
    dataset = write_dataset(tmp_path / "a", [train_events(0, 1, 2), train_events(1, 2)], 3)
    with pytest.raises(DataError, match="0 queries"):
        evaluate(Oracle(3), dataset, config(), refit=True)
    repeats = write_dataset(tmp_path / "b", [leave_last(0, 1, 0), leave_last(1, 0, 1)], 3)
    with pytest.raises(DataError, match=r"2 targets were already seen.*exclude_seen"):
        evaluate(Oracle(3), repeats, config(), refit=True)
    assert evaluate(Oracle(3), repeats, config(exclude_seen=False), refit=True).data["targets"] == 2


def test_frozen_model_is_a_scored_model(tmp_path) -> None:
    dataset = small_world(tmp_path)
    model = small_model(dataset)
    result = evaluate(model, dataset, config(), refit=True)
    assert list(result.granularities) == model.names
    lambdas_BK = model.contributions(result.ranking.queries)[1]
    for name, weight in zip(model.names, lambdas_BK.mean(0).tolist(), strict=True):
        assert result.granularities[name]["weight"] == pytest.approx(weight, abs=1e-6)
    assert all(math.isfinite(value) for value in result.model.values())
    assert len(result.ranking) == result.data["queries"]
