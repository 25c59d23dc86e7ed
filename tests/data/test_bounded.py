"""Large data: evaluated users and fitted histories are uniform samples, and metrics.json reports
them.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.data.bounded import (
    bounds,
    evaluated_by_shard,
    evaluated_queries,
    evaluated_users_V,
    fitted_histories,
)
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Histories, Queries, Split
from recsys.evaluation.evaluate import evaluate
from recsys.training.closed_form import sample_queries
from tests.evaluation.test_evaluate import Oracle, config
from tests.handmade import leave_last, write_dataset

pytestmark = pytest.mark.usefixtures("one_thread")

USERS, ITEMS = 400, 30


def walks(folder: Path, num_shards: int = 3) -> PreparedDataset:
    """Users that walk along the circle of items, six steps each."""
    histories = [
        leave_last(*((start + step) % ITEMS for step in range(6))) for start in range(USERS)
    ]
    return write_dataset(folder, histories, ITEMS, num_shards=num_shards)


def test_small_data_are_not_sampled(tmp_path: Path) -> None:
    dataset, settings = walks(tmp_path), config()
    evaluate, seed = settings.evaluate, settings.seed
    assert evaluated_users_V(dataset, evaluate, seed).all()
    assert len(fitted_histories(dataset, evaluate, seed)) == USERS
    assert bounds(dataset, evaluate, seed) == {}


def test_samples_are_uniform_over_users(tmp_path: Path) -> None:
    few = config(max_users=100, max_fit_events=1200)
    three, five = walks(tmp_path / "three"), walks(tmp_path / "five", num_shards=5)
    asked_V = evaluated_users_V(three, few.evaluate, few.seed)
    assert (asked_V == evaluated_users_V(five, few.evaluate, few.seed)).all()
    assert 70 < asked_V.sum() < 130, "100 of 400 on average"
    fitted = fitted_histories(three, few.evaluate, few.seed)
    assert 900 < len(fitted.items_E) < 1500, "1200 of 2400 events on average"
    assert (fitted.lengths_U == 6).all(), "no user is cut"
    assert set(fitted.users_U) != set(np.flatnonzero(asked_V)), "independent samples"


def test_sample_counts_users_with_held_out_events_only(tmp_path: Path) -> None:
    """Most users of a table of users may have few events, or none."""
    histories = [leave_last(*range(5)) for _ in range(400)]
    silent = [leave_last(*range(5))[:3] for _ in range(1600)]  # training events alone
    dataset = write_dataset(tmp_path, [*histories, *silent], ITEMS, num_shards=3)
    few = config(max_users=100)
    queries = evaluated_queries(dataset, Split.TEST, few.evaluate, few.seed)
    assert 70 < len(queries) < 130, "100 of 400 on average"
    described = bounds(dataset, few.evaluate, few.seed)
    assert described == {"ranked_users": f"a random sample of {len(queries)} of all users"}
    assert len(evaluated_queries(dataset, Split.TEST, config(max_users=500).evaluate, 0)) == 400


def test_queries_are_of_the_sampled_users(tmp_path: Path) -> None:
    dataset, few = walks(tmp_path), config(max_users=100)
    sampled = np.flatnonzero(evaluated_users_V(dataset, few.evaluate, few.seed))
    together = evaluated_queries(dataset, Split.TEST, few.evaluate, few.seed)
    assert sorted(together.histories.users_U) == sampled.tolist()
    assert together.target_items.tolist() == [
        (user + 5) % ITEMS for user in together.histories.users_U
    ]
    parts = list(evaluated_by_shard(dataset, Split.TEST, few.evaluate, few.seed))
    assert len(parts) == 3
    assert (
        np.concatenate([part.target_items for part in parts]).tolist()
        == together.target_items.tolist()
    )


def test_queries_are_thinned_with_one_shard_in_memory(tmp_path: Path) -> None:
    dataset = walks(tmp_path)
    everyone = Histories.concat(list(dataset.shards())).queries(Split.VALID)
    assert len(sample_queries(dataset, Split.VALID)) == USERS
    for most in (1, 7, 130, 399):
        step = -(-USERS // most)
        found = sample_queries(dataset, Split.VALID, most).histories.users_U
        assert found.tolist() == everyone.histories.users_U[::step].tolist()


class Counted(Oracle):
    """Counts the queries that it scores, and has the popularity of a fit on all events, which the
    audit recomputes by shard.
    """

    def __init__(self, dataset: PreparedDataset) -> None:
        super().__init__(ITEMS)
        self.num_queries = 0
        self.popularity_N = torch.as_tensor(dataset.item_counts_N(Split.VALID)).float()

    def scores(self, queries: Queries) -> torch.Tensor:
        self.num_queries += len(queries)
        return super().scores(queries)


def test_sampled_evaluation_passes_the_audit_and_reports_the_samples(tmp_path: Path) -> None:
    dataset = walks(tmp_path)
    few = config(max_users=100, max_fit_events=1200, ablate=False)
    model = Counted(dataset)
    content = json.loads(json.dumps(evaluate(model, dataset, few, refit=True).to_json()))
    number = int(evaluated_users_V(dataset, few.evaluate, few.seed).sum())
    assert content["data"]["queries"] == content["data"]["asked_queries"] == number
    assert content["model"]["hit@1"] == 1.0 and model.num_queries < USERS
    assert content["data"]["bounds"] == {
        "ranked_users": f"a random sample of {number:,} of all users",
        "baselines_fitted_on": "the events of a random sample of 50.0% of the users",
    }
    assert {"model_fit", "baseline_fits"} <= set(content["audit"]["checks"])
    assert set(content["baselines"]) == {
        "popularity",
        "item_knn",
        "ease",
        "als",
        "recent_popularity",
    }
