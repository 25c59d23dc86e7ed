"""A granularity that adds to the scores of a few items: exact in rankings, shares, serving, index
and search of λ.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recsys.config import build_config
from recsys.contributions import Contributions
from recsys.data.batches import Batch
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Split
from recsys.evaluation.ranking import countable, rank
from recsys.granularities.base import ItemView, State
from recsys.granularities.sparse import SparseScores
from recsys.granularities.user_cf.model import UserCF
from recsys.model import FrozenModel
from recsys.retrieval.exact import exact_top
from recsys.retrieval.index import ItemIndex, can_index
from recsys.serving.bundles import read_bundle, write_bundle
from recsys.serving.recommender import Recommender
from recsys.serving.request_parsing import parse_requests
from recsys.training.fresh_model import build_graphs, build_model
from tests.handmade import small_world
from tune.score_cache import build_cache

WEIGHT = 0.75


@pytest.fixture
def sparse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make ``user_cf`` a sparse granularity: 2 for each occurrence of an item in the uncut
    history.
    """

    def boost(self: UserCF, batch: Batch, items: ItemView, state: State) -> SparseScores:
        assert batch.whole is not None
        histories = batch.whole.histories
        rows_E = torch.from_numpy(np.repeat(np.arange(len(histories)), histories.lengths_U))
        return SparseScores.of(
            rows_E, torch.from_numpy(histories.items_E).long(), torch.full((len(rows_E),), 2.0)
        )

    monkeypatch.setattr(UserCF, "sparse", True)
    monkeypatch.setattr(UserCF, "boost", boost)
    monkeypatch.setattr(
        UserCF,
        "state",
        lambda self, items, graphs: {"nothing": torch.zeros(len(items.vectors_SD), 0)},
    )
    monkeypatch.setattr(UserCF, "own_items", lambda self, state: state["nothing"])


@pytest.fixture
def dataset(tmp_path: Path) -> PreparedDataset:
    return small_world(tmp_path / "dataset")


@pytest.fixture
def frozen(sparse: None, dataset: PreparedDataset) -> FrozenModel:
    """Evolution and item CF, which are vectors, and the sparse one; the model reads the last two
    events.
    """
    on = {"enabled": True}
    granularities = {"evolution": on, "item_cf": {**on, "rank": 4}, "user_cf": on}
    tree: dict[str, Any] = {"data": {"dir": dataset.root}}
    tree["model"] = {
        "width": 8,
        "max_history": 2,
        "item": {"init_std": 0.5},
        "granularities": granularities,
    }
    torch.manual_seed(0)
    config = build_config(tree)
    model = build_model(config.model, config.train, dataset, Split.VALID)
    model.encoders.fitted_weights.copy_(torch.tensor([0.5, WEIGHT]))
    return model.freeze(build_graphs(dataset, Split.VALID, model))


def test_additions_equal_those_by_hand() -> None:
    rows, items = torch.tensor([2, 0, 2, 0]), torch.tensor([1, 3, 1, 0])
    added = SparseScores.of(rows, items, torch.tensor([1.0, 2.0, 4.0, -1.0]))
    assert added.rows_P.tolist() == [0, 0, 2] and added.items_P.tolist() == [0, 3, 1]
    assert added.values_P.tolist() == [-1.0, 2.0, 5.0]
    assert added.at(torch.tensor([[3, -1], [3, 1], [0, 1]])).tolist() == [
        [2.0, 0.0],
        [0.0, 0.0],
        [0.0, 5.0],
    ]
    assert added.present(4).tolist() == [True, False, True, False] and added.sizes(3).tolist() == [
        3.0,
        0.0,
        5.0,
    ]
    assert added.between(1, 3).rows_P.tolist() == [1]
    taken = added.take(torch.tensor([2, 1, 0, 2]))
    assert taken.rows_P.tolist() == [0, 2, 2, 3] and taken.values_P.tolist() == [
        5.0,
        -1.0,
        2.0,
        5.0,
    ]
    assert added.moved(torch.tensor([1, 0, 0])).rows_P.tolist() == [0, 1, 1]
    both = SparseScores.total([added, added.weighed(torch.tensor([1.0, 1.0, -1.0]))])
    assert both.values_P.tolist() == [-2.0, 4.0, 0.0]


def test_parts_in_pieces_are_the_parts_of_the_whole(
    frozen: FrozenModel, dataset: PreparedDataset
) -> None:
    queries = dataset.histories().queries(Split.TEST)
    whole = frozen.contributions(queries)
    pieces = [
        (torch.tensor(rows), frozen.contributions(queries.take(np.array(rows))))
        for rows in ([2, 0], [1])
    ]
    found = Contributions.gathered(pieces)
    torch.testing.assert_close(
        found.scores(frozen.item_vectors_ND), whole.scores(frozen.item_vectors_ND)
    )
    assert found.weights_BK.tolist() == whole.weights_BK.tolist()


def test_scores_are_vectors_plus_additions(frozen: FrozenModel, dataset: PreparedDataset) -> None:
    queries = dataset.histories().queries(Split.TEST)
    parts = frozen.contributions(queries)
    expected_BN = parts.vectors_BKD.sum(1) @ frozen.item_vectors_ND.T
    for row, seen in enumerate(queries.chunks(1)):
        expected_BN[row] += (
            WEIGHT * 2 * torch.from_numpy(np.bincount(seen.histories.items_E, minlength=12)).float()
        )
    torch.testing.assert_close(frozen.scores(queries), expected_BN)
    assert (
        frozen.names == ["evolution", "item_cf", "user_cf"]
        and parts.weights_BK[:, 2].tolist() == [WEIGHT] * 3
    )
    without = frozen.scores_without(queries, "user_cf")
    torch.testing.assert_close(without, parts.vectors_BKD.sum(1) @ frozen.item_vectors_ND.T)
    alone = frozen.scores_of(queries, ["user_cf"])
    torch.testing.assert_close(alone + without, frozen.scores(queries))
    weights = dict(zip(frozen.names, parts.weights_BK[0].tolist(), strict=True))
    torch.testing.assert_close(
        frozen.scores_at(queries, {**weights, "user_cf": 2 * WEIGHT}), without + 2 * alone
    )
    torch.testing.assert_close(parts.each(frozen.item_vectors_ND).sum(1), frozen.scores(queries))


def test_lists_are_exact(frozen: FrozenModel, dataset: PreparedDataset) -> None:
    class Scores:
        def scores(self, queries: Any) -> torch.Tensor:
            return frozen.scores(queries)

    queries = dataset.histories().queries(Split.TEST)
    for exclude_seen in (True, False):
        found, expected = (rank(scorer, queries, 5, exclude_seen) for scorer in (frozen, Scores()))
        assert found.items_BK.tolist() == expected.items_BK.tolist()
    assert {0, 1, 2, 3} & set(found.items_BK[0].tolist()), (
        "items of the first user's history are listed"
    )


def test_every_way_of_serving_lists_and_explains(
    frozen: FrozenModel, dataset: PreparedDataset, tmp_path: Path
) -> None:
    write_bundle(tmp_path / "bundle", frozen, dataset, {})
    recommender = Recommender(read_bundle(tmp_path / "bundle"))
    rows = [{"user_id": "u0", "k": 12}, {"history": ["i5", "i5", "i7"], "k": 12}]
    rows.append({"history": ["i5", "i7", "i5"], "k": 12, "horizon": 2})
    answers = recommender.recommend(
        parse_requests([{**row, "exclude_seen": False} for row in rows])
    )
    shares = [
        dict(zip(answer.item_ids, answer.shares["user_cf"], strict=True)) for answer in answers
    ]
    assert {item: share for item, share in shares[0].items() if share} == {
        f"i{item}": 1.5 for item in range(5)
    }
    for given in shares[1:]:
        assert {item: share for item, share in given.items() if share} == {"i5": 3.0, "i7": 1.5}
    for answer in answers:
        assert answer.scores == sorted(answer.scores, reverse=True)
        for place, score in enumerate(answer.scores):
            assert sum(answer.shares[name][place] for name in answer.shares) == score
    found = recommender.recommend_users(["u0"], 12, exclude_seen=False)
    assert [f"i{item}" for item in found.items_BR[0]] == answers[0].item_ids
    assert found.shares_BKR[0, 2].tolist() == answers[0].shares["user_cf"]


def test_search_of_weights_ranks_as_the_evaluation_does(
    frozen: FrozenModel, dataset: PreparedDataset
) -> None:
    queries, _, _ = countable(dataset.histories().queries(Split.VALID), False)
    for best in (2, 12):
        cache = build_cache(frozen, queries, False, best)
        lists, _ = cache.lists(frozen.contributions(queries).weights_BK, 6)
        assert lists.items_QL.tolist() == rank(frozen, queries, 6, False).items_BK.tolist()
        some = cache.take(np.array([1]))
        assert (
            some.lists(frozen.contributions(queries).weights_BK[1:2], 6)[0].items_QL.tolist()
            == lists.items_QL[1:2].tolist()
        )


@pytest.mark.skipif(not can_index(), reason="needs faiss")
def test_index_includes_items_with_additions(one_thread: None) -> None:
    """Items that rank last by vectors are found if additions raise them, and hidden ones stay
    hidden.
    """
    generator = torch.Generator().manual_seed(3)
    vectors_ND, users_BD = (torch.randn(size, 24, generator=generator) for size in (3000, 6))
    index = ItemIndex.build(vectors_ND)
    worst_B2 = (users_BD @ vectors_ND.T).topk(2, dim=1, largest=False).indices
    rows = torch.arange(6).repeat_interleave(2)
    added = SparseScores.of(rows, worst_B2.flatten(), torch.full((12,), 500.0))
    hidden = np.arange(6), worst_B2[:, 1].numpy()
    found, expected = (
        find(users_BD, vectors_ND, 5, *hidden, added) for find in (index.top, exact_top)
    )
    assert found[:, 0].tolist() == worst_B2[:, 0].tolist()
    assert found.tolist() == expected.tolist()


def test_loaded_model_gives_the_same_additions(
    frozen: FrozenModel, dataset: PreparedDataset
) -> None:
    read = FrozenModel.from_tensors(frozen.config, frozen.sizes, frozen.tensors())
    queries = dataset.histories().queries(Split.TEST)
    assert torch.equal(read.scores(queries), frozen.scores(queries))
