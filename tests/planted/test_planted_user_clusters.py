"""A planted world with user clusters: the mix of topics reveals the stratum, which has its own
favourites (S2).

Sparse, as strata are meant for: 500 users with 14 events each and 600 items, so that ids reveal
little.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array, Histories, Queries, Split
from recsys.granularities.stratum.clustering import UserVectors
from recsys.model import FrozenModel
from recsys.sources.world import USER_CLUSTERS, tastes, world_of
from recsys.training.fresh_model import build_graphs
from recsys.training.user_clusters import stratum_module
from tests.planted import (
    is_no_loss,
    margin,
    ndcg,
    planted_dataset,
    planted_source,
    train,
    train_ndcg,
)

pytestmark = pytest.mark.usefixtures("one_thread")

WORLD: dict[str, Any] = {"num_users": 500, "num_items": 600, "events_per_user": 14.0}
BASE: dict[str, Any] = {"collaborative": {"layers": 2}}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return planted_dataset(tmp_path_factory.mktemp("strata"), {"stratum": 1.0}, **WORLD)


@pytest.fixture(scope="module")
def without(planted: PreparedDataset) -> FrozenModel:
    return train(planted, BASE)


@pytest.fixture(scope="module")
def model(planted: PreparedDataset) -> FrozenModel:
    return train(planted, {**BASE, "stratum": {}})


def queries_of(dataset: PreparedDataset) -> Queries:
    return dataset.histories().queries(Split.TEST)


def test_strata_help_if_they_determine_the_items(
    planted: PreparedDataset, model: FrozenModel, without: FrozenModel
) -> None:
    """Measured with two seeds: +80 %, +117 % next to collaborative; +42 %, +46 % next to
    evolution.
    """
    assert margin(ndcg(model, queries_of(planted)), ndcg(without, queries_of(planted))) > 0.3


def test_hierarchical_strata_help_too(planted: PreparedDataset, without: FrozenModel) -> None:
    values = train_ndcg(planted, {**BASE, "stratum": {"method": "hierarchical"}})
    assert margin(values, ndcg(without, queries_of(planted))) > 0.3


def test_validation_finds_the_number_of_strata_and_the_strata(
    planted: PreparedDataset, model: FrozenModel
) -> None:
    """Chosen from 4, 8, 16 and 32; users with ten or more events are with those of their true
    stratum: .79, by chance .13.
    """
    assert model.sizes.inputs["stratum"] == USER_CLUSTERS
    world = world_of(planted_source({"stratum": 1.0}, **WORLD))
    truth_V = np.concatenate(
        [tastes(world, bundle).user_cluster_U for bundle in range(world.num_bundles)]
    )
    module = stratum_module(model)
    assert module is not None
    users = module.user_vectors(build_graphs(planted, Split.TRAIN), model.items)
    assert purity(users, module.clusters().nearest(users.of(users.active_U)), truth_V) > 0.6


def purity(users: UserVectors, found_U: Array, truth_V: Array) -> float:
    """Share of users with ten events whose found stratum consists mostly of their true one."""
    many_U = users.events_VN.lengths_V[users.active_U] >= 10
    table = np.zeros((found_U.max() + 1, USER_CLUSTERS))
    np.add.at(table, (found_U[many_U], truth_V[users.active_U][many_U]), 1)
    return float(table.max(axis=1).sum() / table.sum())


def test_strata_cost_nothing_if_they_are_uninformative(tmp_path: Path) -> None:
    """Communities without text or strata; a paired bootstrap over users."""
    dataset = planted_dataset(tmp_path, {"collaborative": 1.0}, **WORLD)
    assert is_no_loss(train_ndcg(dataset, {**BASE, "stratum": {}}), train_ndcg(dataset, BASE))


def test_user_without_history_gets_scores_without_stratum(
    planted: PreparedDataset, model: FrozenModel
) -> None:
    """There is nothing to compare the user by: stratum is masked, and the scores are those with its
    weight at zero.
    """
    empty = Histories.of_items([[], []], [0, -1])
    no_history = Queries(empty, np.zeros(3, dtype=np.int64), np.zeros(0, dtype=np.int32))
    torch.testing.assert_close(
        model.scores(no_history), model.scores_without(no_history, "stratum"), rtol=0, atol=0
    )
    queries = queries_of(planted)
    assert not torch.equal(model.scores(queries), model.scores_without(queries, "stratum"))
