"""Item-based collaborative filtering against the dense formula, and the choice of its weight."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from recsys.config import GranularitiesConfig, ItemCFConfig, build_config
from recsys.data.batches import last_position
from recsys.data.histories import Histories, Queries, Split
from recsys.errors import ConfigError
from recsys.granularities.base import Graphs, ItemView, ModelSizes
from recsys.granularities.item_cf import ItemCF, rank_weights, training_matrix
from recsys.model import FrozenModel
from recsys.training.build import build_graphs, build_model
from recsys.training.fitted import choose_weights, sample_queries
from tests.handmade import small_world

USERS, ITEMS, TEXT = 30, 14, 5


def _world(event_weights: str = "none") -> tuple[Graphs, ItemView, Histories]:
    random = np.random.default_rng(3)
    rows = [sorted(random.choice(ITEMS - 1, size=5, replace=False).tolist()) for _ in range(USERS)]  # the last: never
    histories = Histories.of_items(rows, list(range(USERS)))
    histories = replace(histories, values_E=random.permutation(len(histories.items_E)).astype(np.float32))
    users_E = np.repeat(np.arange(USERS), 5)
    none = torch.zeros(0, dtype=torch.int64)
    graphs = Graphs(
        USERS, ITEMS, torch.as_tensor(users_E), torch.as_tensor(histories.items_E.astype(np.int64)),
        none, none, torch.zeros(0), values_E=torch.as_tensor(histories.values_E),
    )  # fmt: skip
    text_NT = torch.as_tensor(random.normal(size=(ITEMS, TEXT)).astype(np.float32))
    return graphs, ItemView(torch.zeros(ITEMS, 4), text_NT), histories


@pytest.mark.parametrize("event_weights", ["none", "rank"])
def test_full_rank_is_the_ridge_regression_with_zero_diagonal(event_weights: str) -> None:
    graphs, items, histories = _world()
    config = ItemCFConfig(rank=100, regularisation=2.0, text_weight=0.5, event_weights=event_weights)  # type: ignore[arg-type]
    module = ItemCF(config, ModelSizes(4, 10, USERS, ITEMS, 1, TEXT, ordered=False, timed=False))
    state = module.state(items, graphs)
    queries = Queries(histories, np.zeros(USERS + 1, np.int64), np.zeros(0, np.int32))
    z_BR, present_B = module(last_position(queries, 10), items, state)
    scores = (z_BR @ module.own_items(state).T).numpy()

    events = training_matrix(graphs, event_weights).toarray()
    chosen = events.any(0)
    text = items.text_ST.numpy() * chosen[:, None]
    inverse = np.linalg.inv(events.T @ events + 0.5 * text @ text.T + 2.0 * np.eye(ITEMS))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    unseen = (events == 0) & chosen
    np.testing.assert_allclose(scores[unseen], (events @ weights)[unseen], atol=2e-5)
    assert present_B.all() and not scores[:, ITEMS - 1].any(), "an item that nobody chose has no vector"


def test_ranks_are_the_same_in_the_matrix_and_in_a_batch() -> None:
    graphs, _, histories = _world()
    values = torch.as_tensor(histories.values_E.reshape(USERS, 5))
    expected = rank_weights(values, torch.ones(USERS, 5, dtype=torch.bool)).flatten()
    order = np.lexsort((histories.items_E, np.repeat(np.arange(USERS), 5)))
    np.testing.assert_allclose(training_matrix(graphs, "rank").data, expected.numpy()[order], rtol=1e-6)
    unknown = rank_weights(torch.tensor([[float("nan"), 2.0, 1.0]]), torch.ones(1, 3, dtype=torch.bool))
    assert unknown.tolist() == [[1.0, 1.25, 0.75]]


def test_the_weight_is_chosen_on_validation_and_zero_is_a_choice(tmp_path: object) -> None:
    dataset = small_world(tmp_path, ordered=False)  # type: ignore[arg-type]
    on = {"enabled": True}
    tree = {"model": {"width": 8, "granularities": {"collaborative": on, "item_cf": {**on, "rank": 4}}}}
    config = build_config({"data": {"dir": dataset.root}, **tree})
    graphs = build_graphs(dataset, Split.TRAIN)
    torch.manual_seed(0)
    frozen: FrozenModel = build_model(config, dataset, Split.TRAIN).freeze(graphs)
    assert frozen.names == ["collaborative", "item_cf"] and frozen.item_vectors_ND.shape[1] == 8 + 4
    queries = sample_queries(dataset.shards(), Split.VALID)
    weights = frozen.encoders.fitted_weights
    choose_weights(frozen, lambda: -float(weights[0]), queries)
    assert weights.tolist() == [0.0]
    choose_weights(frozen, lambda: float(weights[0]), queries)
    assert weights[0] > 0
    parts, lambdas = frozen.parts(queries)
    torch.testing.assert_close(parts.sum(1) @ frozen.item_vectors_ND.T, frozen.scores(queries))
    assert torch.equal(lambdas[:, 1] > 0, parts[:, 1].abs().sum(1) > 0)
    read = FrozenModel.from_tensors(frozen.config, frozen.sizes, frozen.tensors())
    assert torch.equal(read.scores(queries), frozen.scores(queries))


def test_a_fitted_member_alone_is_refused() -> None:
    with pytest.raises(ConfigError, match="no granularity that is trained is enabled"):
        build_config({"model": {"granularities": {"item_cf": {"enabled": True}}}})
    assert not GranularitiesConfig().item_cf.enabled
