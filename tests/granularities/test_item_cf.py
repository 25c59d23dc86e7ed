"""Item-based collaborative filtering against the dense formula, and the choice of its weight."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.config import Config, build_config
from recsys.data.batches import last_position
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Histories, Queries, Split
from recsys.evaluation.interest_drift import interest_drift_of
from recsys.granularities import item_links
from recsys.granularities.base import Granularity, Graphs, ItemView, ModelSizes
from recsys.granularities.event_matrix import EventMatrix, training_matrix
from recsys.granularities.item_cf.model import ItemCF, rank_weights
from recsys.granularities.item_cf.section import ItemCFConfig
from recsys.granularities.item_links import most_similar, together
from recsys.granularities.spectrum import spectrum
from recsys.model import Encoders, FrozenModel
from recsys.serving.bundles import read_bundle, write_bundle
from recsys.serving.recommender import Recommender
from recsys.serving.request_parsing import parse_requests
from recsys.training.closed_form import choose_weights, sample_queries
from recsys.training.fresh_model import build_graphs, build_model
from recsys.training.refit_fusion import Evidence, refit_fusion
from recsys.training.user_clusters import refit_user_clusters
from tests.handmade import small_world

USERS, ITEMS, TEXT = 30, 14, 5


def _world(event_weights: str = "none") -> tuple[Graphs, ItemView, Histories]:
    random = np.random.default_rng(3)
    # the last item never occurs
    rows = [sorted(random.choice(ITEMS - 1, size=5, replace=False).tolist()) for _ in range(USERS)]
    histories = Histories.of_items(rows, list(range(USERS)))
    histories = replace(
        histories, values_E=random.permutation(len(histories.items_E)).astype(np.float32)
    )
    users_E = np.repeat(np.arange(USERS), 5)
    graphs = Graphs(
        USERS, ITEMS, torch.as_tensor(users_E), torch.as_tensor(histories.items_E.astype(np.int64)),
        values_E=torch.as_tensor(histories.values_E),
    )  # fmt: skip
    text_NT = torch.as_tensor(random.normal(size=(ITEMS, TEXT)).astype(np.float32))
    return graphs, ItemView(torch.zeros(ITEMS, 4), text_NT), histories


@pytest.mark.parametrize("event_weights", ["none", "rank"])
def test_full_rank_is_the_ridge_regression_with_zero_diagonal(event_weights: str) -> None:
    graphs, items, histories = _world()
    config = ItemCFConfig(
        rank=100, regularisation=2.0, text_weight=0.5, event_weights=event_weights
    )  # type: ignore[arg-type]
    module = ItemCF(config, ModelSizes(4, 10, USERS, ITEMS, 1, TEXT, ordered=False, timed=False))
    state = module.state(items, graphs)
    queries = Queries(histories, np.zeros(USERS + 1, np.int64), np.zeros(0, np.int32))
    z_BR, present_B = module(last_position(queries, 10), items, state)
    scores = (z_BR @ module.own_items(state).T).numpy()

    events = training_matrix(graphs, event_weights).whole().toarray()
    chosen = events.any(0)
    text = items.text_ST.numpy() * chosen[:, None]
    inverse = np.linalg.inv(events.T @ events + 0.5 * text @ text.T + 2.0 * np.eye(ITEMS))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    unseen = (events == 0) & chosen
    np.testing.assert_allclose(scores[unseen], (events @ weights)[unseen], atol=2e-5)
    assert present_B.all() and not scores[:, ITEMS - 1].any(), (
        "an item without events has no vector"
    )


def test_all_neighbours_equal_the_regression_on_all_other_items() -> None:
    graphs, items, histories = _world()
    config = ItemCFConfig(form="neighbours", neighbours=100, regularisation=2.0, text_weight=0.5)
    module = ItemCF(config, ModelSizes(4, 10, USERS, ITEMS, 1, TEXT, ordered=False, timed=False))
    assert module.sparse
    state = module.state(items, graphs)
    twice = replace(histories, items_E=histories.items_E.copy())
    twice.items_E[1] = twice.items_E[0]  # repeated events count once
    batch = last_position(Queries(twice, np.zeros(USERS + 1, np.int64), np.zeros(0, np.int32)), 3)
    scores = module.boost(batch, items, state).add_to(torch.zeros(USERS, ITEMS)).numpy()

    events = training_matrix(graphs, "none").whole().toarray()
    text = items.text_ST.numpy() * events.any(0)[:, None]
    gram, together = events.T @ events + 0.5 * text @ text.T, events.T @ events > 0
    weights = np.zeros((ITEMS, ITEMS))
    for item in range(ITEMS - 1):
        near = np.flatnonzero(together[item] & (np.arange(ITEMS) != item))
        weights[near, item] = np.linalg.solve(
            gram[np.ix_(near, near)] + 2 * np.eye(len(near)), gram[near, item]
        )
    seen = np.zeros((USERS, ITEMS))
    seen[np.repeat(np.arange(USERS), 5), twice.items_E] = 1
    np.testing.assert_allclose(scores, seen @ weights, atol=2e-5)


def test_few_neighbours_are_the_most_similar_ones() -> None:
    graphs, _, _ = _world()
    pairs = together(training_matrix(graphs, "none"))
    items_NK, similar_NK = most_similar(pairs, 3, 4.0)
    counts = pairs.toarray()
    cosine = counts / (np.sqrt(np.outer(np.diag(counts), np.diag(counts))) + 4.0)
    np.fill_diagonal(cosine, 0)
    np.testing.assert_allclose(similar_NK, -np.sort(-cosine, axis=1)[:, :3], rtol=1e-6)
    known = items_NK >= 0
    np.testing.assert_allclose(
        np.take_along_axis(cosine, items_NK.clip(0), 1)[known], similar_NK[known], rtol=1e-6
    )
    assert (items_NK[ITEMS - 1] == -1).all()


def test_long_histories_are_sampled_if_pairs_exceed_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graphs, _, _ = _world()
    events = training_matrix(graphs, "none")
    whole = together(events)
    monkeypatch.setattr(item_links, "_MAX_PAIRS", USERS * 4)
    cut = together(events)
    assert cut.diagonal().sum() == USERS * 2, "two events per user"
    assert (whole - cut).min() >= 0


def test_all_values_of_the_regularisation_share_one_fit() -> None:
    graphs, items, _ = _world()
    sizes = ModelSizes(4, 10, USERS, ITEMS, 1, TEXT, ordered=False, timed=False)
    for form in ("factors", "neighbours"):
        sections = [ItemCFConfig(form=form, regularisation=value) for value in (2.0, 50.0)]  # type: ignore[arg-type]
        for section, (module, state) in zip(
            sections, ItemCF.fits(sections, sizes, items, graphs), strict=True
        ):
            alone = ItemCF(section, sizes).state(items, graphs)
            assert isinstance(module, ItemCF) and module.config == section
            assert all(torch.equal(state[name], alone[name]) for name in alone)


@pytest.mark.parametrize("shape", [(9, 14), (30, 7)])
def test_singular_vectors_are_those_of_the_matrix_whichever_side_is_smaller(
    shape: tuple[int, int],
) -> None:
    random = np.random.default_rng(0)
    events = (random.random(shape) < 0.4).astype(np.float32)
    text = random.normal(size=(shape[1], 2)).astype(np.float32)
    stacked = np.concatenate([events, text.T])
    users_E, items_E = (torch.as_tensor(ends) for ends in events.nonzero())
    graphs = Graphs(*shape, users_E, items_E)
    basis_NR, sigma_R = spectrum(EventMatrix.of(graphs), text, 5)
    _, expected, vectors = np.linalg.svd(stacked, full_matrices=False)
    np.testing.assert_allclose(sigma_R, expected[:5], rtol=1e-4)
    np.testing.assert_allclose(np.abs(np.sum(basis_NR * vectors[:5].T, axis=0)), 1, atol=1e-3)


def test_ranks_are_the_same_in_the_matrix_and_in_a_batch() -> None:
    graphs, _, histories = _world()
    values = torch.as_tensor(histories.values_E.reshape(USERS, 5))
    expected = rank_weights(values, torch.ones(USERS, 5, dtype=torch.bool)).flatten()
    order = np.lexsort((histories.items_E, np.repeat(np.arange(USERS), 5)))
    np.testing.assert_allclose(
        training_matrix(graphs, "rank").whole().data, expected.numpy()[order], rtol=1e-6
    )
    unknown = rank_weights(
        torch.tensor([[float("nan"), 2.0, 1.0]]), torch.ones(1, 3, dtype=torch.bool)
    )
    assert unknown.tolist() == [[1.0, 1.25, 0.75]]


def test_weight_is_chosen_on_validation_and_may_be_zero(tmp_path: object) -> None:
    dataset = small_world(tmp_path, ordered=False)  # type: ignore[arg-type]
    on = {"enabled": True}
    tree = {
        "model": {"width": 8, "granularities": {"collaborative": on, "item_cf": {**on, "rank": 4}}}
    }
    config = build_config({"data": {"dir": dataset.root}, **tree})
    graphs = build_graphs(dataset, Split.TRAIN)
    torch.manual_seed(0)
    frozen: FrozenModel = build_model(config.model, config.train, dataset, Split.TRAIN).freeze(
        graphs
    )
    assert frozen.names == ["collaborative", "item_cf"] and frozen.item_vectors_ND.shape[1] == 8 + 4
    queries = sample_queries(dataset, Split.VALID)
    weights = frozen.encoders.fitted_weights
    choose_weights(frozen, lambda: -float(weights[0]), queries)
    assert weights.tolist() == [0.0]
    choose_weights(frozen, lambda: float(weights[0]), queries)
    assert weights[0] > 0
    chosen = weights.tolist()
    choose_weights(frozen, lambda: float("nan"), queries)
    assert weights.tolist() == chosen, "a sample without valid queries changes nothing"
    parts, lambdas, _ = frozen.contributions(queries)
    torch.testing.assert_close(parts.sum(1) @ frozen.item_vectors_ND.T, frozen.scores(queries))
    assert torch.equal(lambdas[:, 1] > 0, parts[:, 1].abs().sum(1) > 0)
    read = FrozenModel.from_tensors(frozen.config, frozen.sizes, frozen.tensors())
    assert torch.equal(read.scores(queries), frozen.scores(queries))


@pytest.fixture
def next_to_item_cf(tmp_path: Path) -> tuple[Config, PreparedDataset, FrozenModel]:
    """Item CF next to evolution and strata, with weights that no search chose."""
    dataset = small_world(tmp_path / "data")
    on = {"enabled": True}
    granularities = {
        "item_cf": {**on, "rank": 4},
        "evolution": on,
        "stratum": {**on, "num_strata": 2},
    }
    config = build_config(
        {
            "data": {"dir": dataset.root},
            "model": {"width": 8, "max_history": 4, "granularities": granularities},
        }
    )
    graphs = build_graphs(dataset, Split.VALID)
    torch.manual_seed(0)
    model = build_model(config.model, config.train, dataset, Split.VALID)
    stratum = model.encoders.granularities["stratum"]
    assert isinstance(stratum, Granularity)
    stratum.refit(graphs, model.view(graphs)[0], 0)
    model.encoders.fitted_weights.fill_(0.7)
    return config, dataset, model.freeze(graphs)


def test_scores_at_own_weights_equal_the_model(
    next_to_item_cf: tuple[Config, PreparedDataset, FrozenModel],
) -> None:
    _, dataset, frozen = next_to_item_cf
    queries = dataset.histories().queries(Split.TEST)
    _, weights_BK, _ = frozen.contributions(queries)
    weights = dict(zip(frozen.names, weights_BK.amax(0).tolist(), strict=True))
    assert weights["item_cf"] == pytest.approx(0.7)
    torch.testing.assert_close(frozen.scores_at(queries, weights), frozen.scores(queries))
    assert not torch.equal(
        frozen.scores_at(queries, {**weights, "item_cf": 0.0}), frozen.scores(queries)
    )


def test_rolling_forward_does_not_change_closed_form_members(
    next_to_item_cf: tuple[Config, PreparedDataset, FrozenModel], tmp_path: Path
) -> None:
    _, dataset, frozen = next_to_item_cf
    queries = dataset.histories().queries(Split.TEST)
    now, ahead = frozen.contributions(queries)[0], frozen.contributions_ahead(queries, 2)[0]
    assert torch.equal(now[:, -1], ahead[:, -1]) and not torch.equal(now[:, 0], ahead[:, 0])
    torch.testing.assert_close(frozen.contributions_ahead(queries, 0)[0], now)
    write_bundle(tmp_path / "bundle", frozen, dataset, {})
    requests = [
        {"user_id": "u0", "horizon": 2},
        {"user_id": "u0"},
        {"history": ["i1"], "horizon": 3},
    ]
    for answer in Recommender(read_bundle(tmp_path / "bundle")).recommend(parse_requests(requests)):
        assert answer.scores == pytest.approx(np.sum(list(answer.shares.values()), axis=0).tolist())
        assert any(answer.shares["item_cf"])
    assert len(interest_drift_of(frozen, dataset, queries)) == len(queries)


def test_strata_are_refitted_next_to_item_cf(
    next_to_item_cf: tuple[Config, PreparedDataset, FrozenModel],
) -> None:
    config, dataset, frozen = next_to_item_cf
    renewed = refit_user_clusters(
        config.model.max_history, config.train, config.seed, dataset, frozen
    )
    queries = dataset.histories().queries(Split.TEST)
    assert torch.equal(
        renewed.contributions(queries)[0][:, -1], frozen.contributions(queries)[0][:, -1]
    )


@pytest.mark.parametrize("kind", ["weighted", "learned", "gated"])
def test_feedback_fits_the_weight_of_item_cf_with_the_others(kind: str) -> None:
    """Likes with probability σ(Σ λ*_k s_k), where λ* of the closed-form member, the last, is three
    times its current λ.
    """
    random = np.random.default_rng(0)
    shares_RK = torch.tensor(random.normal(size=(20_000, 3)))
    gate_RK = torch.zeros(len(shares_RK), 2, dtype=torch.float64)
    truth_K = torch.tensor([0.5, 0.5, 1.5], dtype=torch.float64)
    if kind == "gated":
        truth_K[:2] = 1.0  # a uniform gate
    liked_R = torch.tensor(random.random(len(shares_RK))) < torch.sigmoid(shares_RK @ truth_K)
    ones_R = torch.ones(len(shares_RK), dtype=torch.float64)
    made = Evidence(
        shares_RK, torch.ones_like(shares_RK, dtype=torch.bool), gate_RK, liked_R.double(), ones_R
    )
    sizes = ModelSizes(8, 4, 6, 12, 1, 0, ordered=True, timed=True)
    enabled = {
        name: {"enabled": True, "weight": 0.5} for name in ("collaborative", "behaviour", "item_cf")
    }
    encoders = Encoders(
        build_config(
            {"model": {"width": 8, "fusion": {"kind": kind}, "granularities": enabled}}
        ).model,
        sizes,
    )
    found = refit_fusion(encoders.fusion, made, 1.0, 0, encoders.fitted_weights)
    assert found.better
    encoders.load_state_dict(encoders.state_dict() | encoders.refitted(found.after_K))
    used_K = encoders.fusion.lambdas(torch.zeros(1, 2, 8), torch.ones(1, 2, dtype=torch.bool))[
        0
    ].detach()
    used_K = torch.cat([used_K, encoders.fitted_weights]).double()
    torch.testing.assert_close(used_K / used_K.sum(), truth_K / truth_K.sum(), atol=0.03, rtol=0)
