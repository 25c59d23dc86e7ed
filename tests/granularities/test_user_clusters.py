"""Strata: distances without the whole matrix; memberships by hand; refits keep the learned
prototypes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import AgglomerativeClustering, KMeans

from recsys.config import Config, build_config
from recsys.data.batches import every_position, last_position
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array, Histories, Queries, Split
from recsys.errors import ConfigError
from recsys.evaluation.cluster_descriptions import describe_user_clusters, user_clusters_of
from recsys.evaluation.validation import Validator
from recsys.granularities.base import Graphs, ItemView, ModelSizes
from recsys.granularities.event_matrix import EventMatrix
from recsys.granularities.stratum import clustering as clustering
from recsys.granularities.stratum.clustering import (
    UserClusters,
    UserVectors,
    choices_counts,
    fit_user_clusters,
    match,
)
from recsys.granularities.stratum.model import Stratum
from recsys.granularities.stratum.section import StratumConfig
from recsys.model import FrozenModel
from recsys.training.context import TrainContext
from recsys.training.fresh_model import build_graphs, build_model
from recsys.training.phases import fit
from recsys.training.user_clusters import choose_user_clusters, refit_user_clusters, stratum_module
from tests.handmade import leave_last, train_events, write_dataset

pytestmark = pytest.mark.usefixtures("one_thread")

NUM_USERS, NUM_ITEMS, WIDTH, GROUPS = 60, 30, 5, 3


def unit(vectors: Array) -> Array:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12))


def some_users(seed: int = 0, num_users: int = NUM_USERS) -> UserVectors:
    """Users of three kinds; item 7 has no vector, user 3 chose only that one, user 4 chose
    nothing.
    """
    random = np.random.default_rng(seed)
    vectors_NT = unit(
        random.normal(size=(NUM_ITEMS, WIDTH)) + 1.5 * np.eye(WIDTH)[np.arange(NUM_ITEMS) % GROUPS]
    )
    vectors_NT[7] = 0
    users, items = [3], [7]
    for user in set(range(num_users)) - {3, 4}:
        chosen = random.choice(
            np.flatnonzero(np.arange(NUM_ITEMS) % GROUPS == user % GROUPS), 4, replace=False
        )
        users += [user] * 4
        items += chosen.tolist()
    order = np.argsort(users, kind="stable")
    users_E, items_E = (torch.as_tensor(np.array(part)[order]) for part in (users, items))
    graphs = Graphs(num_users, NUM_ITEMS, users_E, items_E)
    return UserVectors(EventMatrix.of(graphs), vectors_NT)


def similarity(users: UserVectors) -> Array:
    """The whole matrix A: the cosine of every active user with every item that has a vector."""
    return users.of(users.active_U) @ users.unit_NT[users.has_vector_N].T


def same_partition(one: Array, other: Array) -> bool:
    return (
        len({*zip(one.tolist(), other.tolist(), strict=True)})
        == len(set(one.tolist()))
        == len(set(other.tolist()))
    )


def test_user_vectors_are_unit_means_of_unit_vectors() -> None:
    users = some_users()
    assert {3, 4}.isdisjoint(users.active_U.tolist()) and len(users) == NUM_USERS - 2
    chosen = users.events_VN.take(np.array([5])).indices
    np.testing.assert_allclose(
        users.of(np.array([5]))[0], unit(users.unit_NT[chosen].mean(axis=0)), rtol=1e-5
    )


def test_distances_equal_those_of_the_whole_matrix() -> None:
    users = some_users()
    clusters = fit_user_clusters(users, 4, "kmeans", 0)
    a_UN, u_UT = similarity(users), users.of(users.active_U)
    nearest = clusters.nearest(u_UT)
    means_KN = np.stack([a_UN[nearest == k].mean(axis=0) for k in range(4)])
    naive_UK = np.square(a_UN[:, None] - means_KN).mean(axis=2)
    assert (naive_UK.argmin(axis=1) == nearest).all()
    np.testing.assert_array_equal(clusters.size_K, np.bincount(nearest))
    np.testing.assert_allclose(
        clusters.within_K, [naive_UK[nearest == k, k].mean() for k in range(4)], rtol=1e-4
    )
    np.testing.assert_allclose(
        clusters.total, np.square(a_UN - a_UN.mean(axis=0)).mean(axis=1).mean(), rtol=1e-4
    )
    np.testing.assert_allclose(
        clusters.gap, (naive_UK.mean(axis=1) - naive_UK.min(axis=1)).mean(), rtol=1e-4
    )
    p_UK = np.exp(-naive_UK / (0.5 * clusters.gap))
    np.testing.assert_allclose(
        clusters.memberships(u_UT, 0.5), p_UK / p_UK.sum(axis=1, keepdims=True), rtol=1e-3
    )


def test_kmeans_equals_kmeans_over_the_rows_of_the_whole_matrix() -> None:
    """Not K-means over u: the Gram matrix stretches the directions of the items."""
    users = some_users()
    whole = KMeans(4, n_init=20, random_state=0).fit(similarity(users).astype(np.float64))
    ours = fit_user_clusters(users, 4, "kmeans", 0)
    assert same_partition(ours.nearest(users.of(users.active_U)), whole.labels_)
    inertia = float((ours.size_K * ours.within_K).sum()) * int(users.has_vector_N.sum())
    assert inertia == pytest.approx(whole.inertia_, rel=1e-4)


def test_hierarchy_equals_ward_over_the_rows_of_the_whole_matrix() -> None:
    users = some_users()
    whole = AgglomerativeClustering(3, linkage="ward").fit_predict(
        similarity(users).astype(np.float64)
    )
    ours = fit_user_clusters(users, 3, "hierarchical", 0)
    assert same_partition(ours.nearest(users.of(users.active_U)), whole)


@pytest.mark.parametrize("method", ["kmeans", "hierarchical"])
def test_blocks_and_two_stages_find_the_same_strata(
    method: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small limits, as for millions of users: three kinds of users stay three strata."""
    for name, limit in {"BLOCK": 64, "WHOLE": 100, "MICRO": 30}.items():
        monkeypatch.setattr(clustering, name, limit)
    users = some_users(num_users=600)
    found = fit_user_clusters(users, GROUPS, method, 0)
    assert same_partition(found.nearest(users.of(users.active_U)), users.active_U % GROUPS)


def test_two_fits_are_equal_by_seed() -> None:
    one, two = (fit_user_clusters(some_users(), 4, "kmeans", 7) for _ in range(2))
    np.testing.assert_array_equal(one.centroids_KT, two.centroids_KT)


def test_too_few_users_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_strata 99: only 58 users"):
        fit_user_clusters(some_users(), 99, "kmeans", 0)


def test_matching_restores_the_numbering() -> None:
    users = some_users()
    clusters = fit_user_clusters(users, 4, "kmeans", 0)
    moved = clusters.reordered(np.array([2, 0, 3, 1]))
    np.testing.assert_array_equal(match(clusters, moved, users).centroids_KT, clusters.centroids_KT)


def test_counts_of_strata_sum_to_the_events() -> None:
    users = some_users()
    clusters = fit_user_clusters(users, 3, "kmeans", 0)
    hard, soft = choices_counts(clusters, users), choices_counts(clusters, users, 0.5)
    events_N = np.asarray(users.events_VN.whole()[users.active_U].sum(axis=0)).ravel()
    np.testing.assert_allclose(hard.sum(axis=0), events_N)
    np.testing.assert_allclose(soft.sum(axis=0), events_N, rtol=1e-6)
    own_N = np.asarray(
        users.events_VN.whole()[users.active_U[users.active_U % GROUPS == 0]].sum(axis=0)
    ).ravel()
    assert any(np.array_equal(row, own_N) for row in hard)


# -------------------------------------------------------------------------------------- granularity


def by_hand(temperature: float) -> tuple[Stratum, ItemView]:
    """Two orthogonal items, one stratum on each; G = I / 2."""
    sizes = ModelSizes(2, 4, 2, 3, 1, 2, ordered=True, timed=False)
    module = Stratum(
        StratumConfig(enabled=True, num_strata=[2], temperature=temperature), sizes
    ).eval()
    text = torch.tensor([[3.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    items = ItemView(torch.eye(3, 2), text)
    graphs = Graphs(2, 3, torch.tensor([0, 1]), torch.tensor([0, 1]))
    module.refit(graphs, items, 0)
    return module, items


def batch_of(histories: list[list[int]]) -> Any:
    made = Histories.of_items(histories)
    return last_position(
        Queries(made, np.zeros(len(made) + 1, dtype=np.int64), np.zeros(0, dtype=np.int32)), 4
    )


def test_soft_membership_equals_the_value_by_hand() -> None:
    """d² = |u − μ|² / 2: 0 and 1 for u = (1, 0), so the gap is 1/2; u = (2, 1) / √5 is 1 − 2/√5 and
    1 − 1/√5 away.
    """
    module, items = by_hand(temperature=0.5)
    assert float(module.gap) == pytest.approx(0.5) and float(module.total) == pytest.approx(0.25)
    p, present = module.memberships(batch_of([[0], [0, 1], [0, 0, 1], [2], []]), items)
    own = int(p[0].argmax())
    expected = [1 / (1 + np.exp(-1 / 0.25)), 0.5, 1 / (1 + np.exp(-(1 / 5**0.5) / 0.25))]
    np.testing.assert_allclose(p[:3, own].numpy(), expected, rtol=1e-5)
    assert present.tolist() == [
        True,
        True,
        True,
        False,
        False,
    ], "without text or without items there is no stratum"
    assert torch.equal(p[3:], torch.zeros(2, 2))
    z, _ = module(batch_of([[0]]), items, {})
    torch.testing.assert_close(z[0], p[0] @ module.prototypes_KD)


def test_first_prototypes_are_means_of_chosen_items() -> None:
    module, items = by_hand(temperature=0.5)
    own = int(module.memberships(batch_of([[0]]), items)[0][0].argmax())
    torch.testing.assert_close(module.prototypes_KD[own], torch.tensor([2**0.5, 0.0]))


def test_positions_see_their_past_only() -> None:
    module, items = by_hand(temperature=0.5)
    history = Histories.of_items([[0, 1, 1, 0]], [0])
    p, _ = module.memberships(every_position(history, 4, np.array([0])), items)
    alone = torch.cat(
        [module.memberships(batch_of([prefix]), items)[0] for prefix in ([0], [0, 1], [0, 1, 1])]
    )
    torch.testing.assert_close(p, alone)


def item_clusters(users: UserVectors) -> tuple[Stratum, Graphs, Any]:
    """Three strata by item vectors, not yet fitted, the users' events as graphs, and a history of
    each kind.
    """
    coo = users.events_VN.whole().tocoo()
    ends = torch.as_tensor(coo.row).long(), torch.as_tensor(coo.col).long()
    graphs = Graphs(NUM_USERS, NUM_ITEMS, *ends)
    sizes = ModelSizes(WIDTH, 4, NUM_USERS, NUM_ITEMS, 1, 0, ordered=True, timed=False)
    module = Stratum(StratumConfig(enabled=True, num_strata=[3], input="item"), sizes).eval()
    return module, graphs, batch_of([[0, 3, 6, 9], [1, 4, 10, 13], [2, 5, 8, 11]])


def test_refit_keeps_prototypes_with_their_members() -> None:
    """Another seed changes the numbering; after matching all users are in the same stratum as
    before.
    """
    users = some_users()
    module, graphs, batch = item_clusters(users)
    items = ItemView(torch.as_tensor(users.unit_NT), torch.zeros(NUM_ITEMS, 0))
    module.refit(graphs, items, 0)
    before = module.memberships(batch, items)[0].argmax(1)
    prototypes = module.prototypes_KD.detach().clone()
    assert len(set(before.tolist())) == 3
    for seed in range(1, 5):
        module.refit(graphs, items, seed)
        assert torch.equal(module.memberships(batch, items)[0].argmax(1), before)
        assert torch.equal(module.prototypes_KD, prototypes)


def test_refit_follows_vectors_that_changed() -> None:
    """A drift of the item vectors changes the centroids, not the numbers; prototypes are learned,
    so they stay.
    """
    users = some_users()
    module, graphs, batch = item_clusters(users)
    module.refit(graphs, ItemView(torch.as_tensor(users.unit_NT), torch.zeros(NUM_ITEMS, 0)), 0)
    prototypes, centroids = module.prototypes_KD.detach().clone(), module.centroids_KT.clone()
    drifted = torch.as_tensor(users.unit_NT) + 0.2 * torch.randn(
        NUM_ITEMS, WIDTH, generator=torch.manual_seed(0)
    )
    items = ItemView(drifted, torch.zeros(NUM_ITEMS, 0))
    before = module.memberships(batch, items)[0].argmax(1)
    module.refit(graphs, items, 1)
    assert torch.equal(module.memberships(batch, items)[0].argmax(1), before)
    assert torch.equal(module.prototypes_KD, prototypes) and not torch.equal(
        module.centroids_KT, centroids
    )


def test_text_strata_are_fitted_once_and_item_strata_every_n_epochs() -> None:
    def is_refitted(text_width: int, every: int) -> list[bool]:
        sizes = ModelSizes(4, 4, 2, 3, 1, text_width, ordered=True, timed=False)
        module = Stratum(StratumConfig(enabled=True, num_strata=[2], refit_every=every), sizes)
        return [module.refit_due(epoch) for epoch in range(5)]

    assert is_refitted(6, 2) == [True, False, False, False, False]
    assert is_refitted(0, 2) == [True, False, True, False, True]
    assert is_refitted(0, 0) == [True, False, False, False, False]


# ----------------------------------------------------------------------------------------- training


def kinds(folder: Path) -> PreparedDataset:
    """Users of four kinds; each kind chooses among its own six items."""
    random = np.random.default_rng(3)
    histories = []
    for user in range(80):
        own = 6 * (user % 4) + random.permutation(6)
        histories.append(leave_last(*own.tolist()))
    return write_dataset(folder, histories, 24, text_width=0)


def settings(**stratum: Any) -> Config:
    return build_config(
        {
            "model": {
                "width": 8,
                "max_history": 10,
                "granularities": {"stratum": {"enabled": True, "temperature": 0.2, **stratum}},
                "fusion": {"signal_dropout": 0.0},
            },
            "train": {
                "epochs": 12,
                "batch_size": 16,
                "lr": 0.02,
                "metric": "ndcg@5",
                "patience": 12,
            },
            "evaluate": {"ks": [5]},
        }
    )


def test_validation_chooses_the_number_of_strata(tmp_path: Path) -> None:
    config = settings(num_strata=[2, 4])
    choice = choose_user_clusters(config.model, config.seed, kinds(tmp_path), TrainContext())
    assert choice["chosen"] == 4
    assert choice["candidates"]["4"] > choice["candidates"]["2"] > choice["popularity"]
    assert choice["candidates"]["4"] == pytest.approx(-np.log(6), abs=0.5), (
        "chance level among the six items of the kind"
    )


def test_single_number_is_used_and_too_many_strata_are_refused(tmp_path: Path) -> None:
    dataset = kinds(tmp_path)
    five, many = settings(num_strata=5), settings(num_strata=[100, 200])
    assert choose_user_clusters(five.model, five.seed, dataset, TrainContext()) == {
        "chosen": 5,
        "candidates": {},
    }
    with pytest.raises(ConfigError, match="only 80 users"):
        choose_user_clusters(many.model, many.seed, dataset, TrainContext())


def trained(dataset: PreparedDataset, config: Config) -> Any:
    return fit(config, dataset, Validator.of(config.train, config.evaluate), TrainContext())


def test_training_learns_the_taste_of_strata(tmp_path: Path) -> None:
    """Item vectors start at random, so strata that are fitted once are worse than those that follow
    them.
    """
    dataset = kinds(tmp_path)
    result = trained(dataset, settings(num_strata=[2, 4]))
    assert result.choices["strata"]["chosen"] == result.frozen.sizes.inputs["stratum"] == 4
    # chance is .15; with the known kind two items are left, which gives (1 + .63) / 2 = .82
    assert max(report.get("ndcg@5", 0.0) for report in result.history) > 0.5
    found = describe_user_clusters(result.frozen, dataset, Split.VALID, result.choices["strata"])
    assert found is not None and found["choice"]["chosen"] == 4 and found["explained"] > 0.5
    assert sum(row["share"] for row in found["strata"]) == pytest.approx(1)
    kinds_of = [
        {int(title.split("i")[-1]) // 6 for title in row["items"]} for row in found["strata"]
    ]
    assert sorted(map(tuple, kinds_of)) == [
        (0,),
        (1,),
        (2,),
        (3,),
    ], "the panel of each stratum shows the items of its kind"
    (own,) = user_clusters_of(
        result.frozen, dataset.histories().queries(Split.TEST).take(np.array([0]))
    )
    assert own[0]["weight"] > 0.5
    again = FrozenModel.from_tensors(
        result.frozen.config, result.frozen.sizes, result.frozen.tensors()
    )
    queries = dataset.histories().queries(Split.TEST)
    torch.testing.assert_close(again.scores(queries), result.frozen.scores(queries))


def test_two_trainings_are_equal_by_seed(tmp_path: Path) -> None:
    dataset = kinds(tmp_path)
    first, second = (trained(dataset, settings(num_strata=4)) for _ in range(2))
    assert [row["loss"] for row in first.history] == [row["loss"] for row in second.history]


def test_update_of_strata_alone_fits_newer_events(tmp_path: Path) -> None:
    """On the same events nothing is lost; if strata like other items than before, they learn it.
    Only the prototypes change, and the given model does not.
    """
    config, dataset = settings(num_strata=4), kinds(tmp_path)
    frozen = trained(dataset, config).frozen
    queries, validate = (
        dataset.histories().queries(Split.TEST),
        Validator.of(config.train, config.evaluate),
    )
    good = validate(frozen, queries).mean()
    assert (
        validate(
            refit_user_clusters(
                config.model.max_history, config.train, config.seed, dataset, frozen
            ),
            queries,
        ).mean()
        > good - 0.03
    )
    module = stratum_module(frozen)
    assert module is not None
    with torch.no_grad():
        module.prototypes_KD.copy_(module.prototypes_KD.roll(1, 0))
    before = {name: tensor.clone() for name, tensor in frozen.tensors().items()}
    bad = validate(frozen, queries).mean()
    renewed = refit_user_clusters(
        config.model.max_history, config.train, config.seed, dataset, frozen
    )
    assert bad < 0.2 < good - 0.3 < validate(renewed, queries).mean()
    for name, tensor in renewed.tensors().items():
        assert torch.equal(frozen.tensors()[name], before[name])
        assert ".stratum." in name or torch.equal(tensor, before[name]), name


def test_update_of_strata_alone_leaves_out_unknown_items(tmp_path: Path) -> None:
    """Data with new items and old ids: the same strata as without the events of the new items."""
    config, dataset = settings(num_strata=4), kinds(tmp_path / "old")
    frozen = trained(dataset, config).frozen
    walks = [
        [(item, kind, time, Split(split)) for item, kind, time, split in zip(*columns, strict=True)]
        for columns in rows_of(dataset)
    ]
    grown = [[(24, 0, 1, Split.TRAIN), *walk] for walk in walks]
    more = write_dataset(tmp_path / "new", grown, 26)
    old, new = (
        refit_user_clusters(config.model.max_history, config.train, config.seed, dataset, frozen),
        refit_user_clusters(config.model.max_history, config.train, config.seed, more, frozen),
    )
    for name, tensor in old.tensors().items():
        torch.testing.assert_close(new.tensors()[name], tensor, rtol=1e-4, atol=1e-5)


def rows_of(dataset: PreparedDataset) -> Iterator[tuple[list[int], ...]]:
    """Items, types, times and splits of every user, in the order of the users."""
    found = dataset.histories()
    for row in np.argsort(found.users_U):
        span = slice(*found.offsets_U1[row : row + 2])
        yield tuple(
            column[span].tolist()
            for column in (found.items_E, found.types_E, found.times_E, found.splits_E)
        )


def test_update_of_strata_alone_needs_stratum_and_known_items(tmp_path: Path) -> None:
    config, dataset = settings(num_strata=2), kinds(tmp_path / "a")
    frozen = trained(dataset, config).frozen
    other = write_dataset(tmp_path / "b", [train_events(0, 1, 2)], 5)
    with pytest.raises(ConfigError, match="5 items, the model 24"):
        refit_user_clusters(config.model.max_history, config.train, config.seed, other, frozen)
    plain = build_config(
        {"model": {"width": 8, "granularities": {"collaborative": {"enabled": True}}}}
    )
    without = build_model(plain.model, plain.train, dataset, Split.TRAIN).freeze(
        build_graphs(dataset, Split.TRAIN)
    )
    with pytest.raises(ConfigError, match="no granularity stratum"):
        refit_user_clusters(plain.model.max_history, plain.train, plain.seed, dataset, without)


def test_one_given_centroid_has_the_total_inertia_and_no_gap() -> None:
    users = some_users()
    one = UserClusters.of_centroids(users.of(users.active_U).mean(axis=0, keepdims=True), users)
    assert one.within_K[0] == pytest.approx(one.total, rel=1e-5) and one.gap == pytest.approx(
        0, abs=1e-9
    )
