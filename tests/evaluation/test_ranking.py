"""Exact ranking: compared with a naive sort, with masking, dropped targets, ties and bounded
chunks.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from recsys.data.histories import Histories, Queries, Split
from recsys.evaluation import ranking as ranking_module
from recsys.evaluation import top_items as top_items_module
from recsys.evaluation.metrics import query_metrics
from recsys.evaluation.ranking import rank
from recsys.evaluation.top_items import top_items
from recsys.granularities.sparse import SparseScores


class Table:
    """Scores given by user id."""

    def __init__(self, scores_UN: torch.Tensor) -> None:
        self.scores_UN = scores_UN
        self.asked: list[int] = []

    def scores(self, queries: Queries) -> torch.Tensor:
        self.asked.append(len(queries))
        return self.scores_UN[torch.from_numpy(queries.histories.users_U.astype(np.int64))]


def queries_of(history: list[list[int]], targets: list[list[int]]) -> Queries:
    lengths = [len(row) for row in targets]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    flat = np.array([item for row in targets for item in row], dtype=np.int32)
    return Queries(Histories.of_items(history, list(range(len(history)))), offsets, flat)


def random_queries(num_users: int, num_items: int, seed: int = 0) -> Queries:
    generator = np.random.default_rng(seed)
    shuffled = [generator.permutation(num_items).tolist() for _ in range(num_users)]
    seen = generator.integers(0, 8, num_users)
    return queries_of(
        [row[:n] for row, n in zip(shuffled, seen, strict=True)],
        [row[n : n + 1 + n % 3] for row, n in zip(shuffled, seen, strict=True)],
    )


def test_values_by_hand() -> None:
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6, 0.5], [0.1, 0.2, 0.3, 0.4, 0.5]])
    result = rank(Table(scores), queries_of([[0], [3]], [[2, 4], [0]]), k=3)
    np.testing.assert_array_equal(result.items_BK, [[1, 2, 3], [4, 2, 1]])
    np.testing.assert_array_equal(result.hits_BK, [[False, True, False], [False, False, False]])
    np.testing.assert_allclose(result.scores_BK[0], [0.8, 0.7, 0.6])
    assert result.items_BK.dtype == np.int32 and result.num_targets_B.tolist() == [2, 1]


@pytest.mark.parametrize("exclude_seen", [True, False])
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_ranking_equals_a_naive_sort(exclude_seen: bool, chunk: int) -> None:
    queries = random_queries(40, 60)
    scores = torch.randn(40, 60, generator=torch.Generator().manual_seed(0))
    result = rank(Table(scores), queries, k=10, exclude_seen=exclude_seen, chunk=chunk)
    for row in range(40):
        start, stop = queries.histories.offsets_U1[row : row + 2]
        seen = set(queries.histories.items_E[start:stop].tolist()) if exclude_seen else set()
        best = [i for i in scores[row].argsort(descending=True).tolist() if i not in seen][:10]
        start, stop = queries.target_offsets_B1[row : row + 2]
        targets = set(queries.target_items[start:stop].tolist())
        assert result.items_BK[row].tolist() == best
        assert result.hits_BK[row].tolist() == [item in targets for item in best]


def test_seen_targets_are_dropped_and_counted() -> None:
    queries = queries_of([[0, 1], [2], [3], []], [[1, 4], [2, 2], [], [0, 0]])
    result = rank(Table(torch.rand(4, 5)), queries, k=5)
    assert result.rows_B.tolist() == [0, 3] and result.dropped_queries == 2
    assert result.dropped_targets == 2  # item 1 of the first, item 2 (named twice) of the second
    assert result.queries.target_items.tolist() == [4, 0]
    assert query_metrics(result.hits_BK, result.num_targets_B, [5])["recall@5"].tolist() == [
        1.0,
        1.0,
    ]
    kept = rank(Table(torch.rand(4, 5)), queries, k=5, exclude_seen=False)
    assert (
        kept.rows_B.tolist() == [0, 1, 3]
        and kept.dropped_targets == 0
        and kept.num_targets_B.tolist() == [2, 1, 1]
    )


def test_lists_longer_than_the_catalogue_end_in_minus_one() -> None:
    result = rank(Table(torch.tensor([[3.0, 2.0, 1.0, -torch.inf]])), queries_of([[0]], [[2]]), k=6)
    assert result.items_BK.tolist() == [[1, 2, -1, -1, -1, -1]]
    assert result.hits_BK.tolist() == [[False, True, False, False, False, False]]
    assert np.isneginf(result.scores_BK[0, 2:]).all()


def test_constant_scorer_stays_at_chance_if_popular_items_have_first_ids() -> None:
    num_users, num_items, k = 300, 1000, 20
    # all targets among the first 20
    queries = queries_of([[]] * num_users, [[user % 20] for user in range(num_users)])
    result = rank(Table(torch.zeros(num_users, num_items)), queries, k)
    assert query_metrics(result.hits_BK, result.num_targets_B, [k])["recall@20"].mean() < 0.1
    again = rank(Table(torch.zeros(num_users, num_items)), queries, k, chunk=17)
    np.testing.assert_array_equal(result.items_BK, again.items_BK)


def test_ties_have_one_fixed_order_at_every_cut_off() -> None:
    scores = torch.randint(0, 4, (30, 50), generator=torch.Generator().manual_seed(1)).float()
    full, _ = top_items(scores, 50)
    for k in (1, 5, 13, 49):
        items, values = top_items(scores, k)
        np.testing.assert_array_equal(items, full[:, :k])
        assert (np.diff(values, axis=1) <= 0).all()
    same, _ = top_items(torch.zeros(2, 50), 50)
    place = {item: index for index, item in enumerate(same[0].tolist())}
    for row, values in zip(full.tolist(), scores.tolist(), strict=True):
        assert row == sorted(range(50), key=lambda item: (-values[item], place[item]))


def test_shared_scores_stay_unchanged_and_infinite_scores_are_ranked() -> None:
    shared = torch.arange(6.0).expand(3, -1)
    result = rank(Table(shared), queries_of([[5], [4], []], [[0], [0], [0]]), k=2)
    assert result.items_BK.tolist() == [[4, 3], [5, 3], [5, 4]]
    assert shared[0].tolist() == [0, 1, 2, 3, 4, 5]
    items, _ = top_items(torch.tensor([[torch.inf, torch.inf, 1.0]]), 1)
    assert items[0, 0] in (0, 1)


def test_scores_of_a_large_catalogue_stay_within_memory(monkeypatch) -> None:
    scores = torch.randn(40, 60, generator=torch.Generator().manual_seed(0))
    queries = random_queries(40, 60)
    expected = rank(Table(scores), queries, k=5, chunk=16)
    monkeypatch.setattr(ranking_module, "MAX_SCORES", 60 * 3)
    table = Table(scores)
    np.testing.assert_array_equal(rank(table, queries, k=5, chunk=16).items_BK, expected.items_BK)
    assert max(table.asked) == 3 and sum(table.asked[1:]) == 40


def test_no_queries_give_an_empty_ranking_and_wrong_scores_raise() -> None:
    empty = rank(Table(torch.zeros(1, 5)), queries_of([[0]], [[0]]), k=3)
    assert len(empty) == 0 and empty.items_BK.shape == (0, 3) and empty.dropped_queries == 1
    with pytest.raises(ValueError, match="NaN"):
        rank(Table(torch.full((1, 5), torch.nan)), queries_of([[]], [[0]]), k=3)
    one = torch.zeros(3, 50)
    one[1, 30] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        rank(Table(one), queries_of([[], [], []], [[0], [0], [0]]), k=3)
    with pytest.raises(ValueError, match="expected scores of shape"):
        rank(Table(torch.zeros(2)), queries_of([[]], [[0]]), k=3)


def test_histories_and_ranking_agree_on_the_split() -> None:
    """An item that is also in training does not count as a target; one in validation is seen at
    test.
    """
    history = Histories.of_items([[0, 1, 0, 2], [3, 4, 3]], [0, 1])
    splits = np.array([0, 1, 2, 2, 0, 0, 2], dtype=np.uint8)
    queries = replace(history, splits_E=splits).queries(Split.TEST)
    result = rank(Table(torch.zeros(2, 5)), queries, k=5)
    assert result.rows_B.tolist() == [0] and result.queries.target_items.tolist() == [2]
    assert not {0, 1} & set(result.items_BK[0].tolist())


class Vectors:
    """Users and items as vectors, and additions for some; users of the last rows are unknown."""

    def __init__(self, num_users: int, num_items: int, unknown: int, additions: int = 0) -> None:
        generator = torch.Generator().manual_seed(0)
        users, items = (
            torch.randint(-2, 3, (n, 4), generator=generator).float()
            for n in (num_users, num_items)
        )
        # small whole numbers: exact products, many of them equal
        self.users_UD, self.item_vectors_ND = (users, items)
        self.popularity_N = torch.randint(0, 50, (num_items,), generator=generator)
        pairs_P = torch.randperm(num_users * num_items, generator=generator)[
            : additions * num_users
        ]
        values_P = torch.randint(-3, 9, pairs_P.shape, generator=generator).float()
        self.added = SparseScores.of(pairs_P // num_items, pairs_P % num_items, values_P)
        self.known_U = torch.arange(num_users) < num_users - unknown

    def user_vectors(self, queries: Queries) -> tuple[torch.Tensor, torch.Tensor, SparseScores]:
        rows = torch.from_numpy(queries.histories.users_U.astype(np.int64))
        return self.users_UD[rows], self.known_U[rows], self.added.take(rows)

    def scores(self, queries: Queries) -> torch.Tensor:
        users_bD, known_b, added = self.user_vectors(queries)
        scores_bN = added.add_to(users_bD @ self.item_vectors_ND.T)
        return torch.where(known_b[:, None], scores_bN, self.popularity_N)


@pytest.mark.parametrize("additions", [0, 4])
@pytest.mark.parametrize("num_items", [7, 60, 999, 3210])
@pytest.mark.parametrize(("exclude_seen", "chunk"), [(True, 7), (False, 7), (True, 1000)])
def test_vector_scorer_ranks_like_its_scores(
    monkeypatch: pytest.MonkeyPatch, num_items: int, exclude_seen: bool, chunk: int, additions: int
) -> None:
    """Also for lists longer than the catalogue, ties at the end of a list, and unknown users."""
    monkeypatch.setattr(top_items_module, "_NEAR_SCORES", 5 * num_items)
    monkeypatch.setattr(top_items_module, "_LEAST_ROWS", 1)
    queries, model = random_queries(40, num_items), Vectors(40, num_items, 3, additions)
    assert isinstance(model, ranking_module.VectorScorer)
    found = rank(model, queries, 10, exclude_seen, chunk)
    expected = rank(Table(model.scores(queries)), queries, 10, exclude_seen)
    np.testing.assert_array_equal(found.items_BK, expected.items_BK)
    np.testing.assert_array_equal(found.scores_BK, expected.scores_BK)
    np.testing.assert_array_equal(found.rows_B, expected.rows_B)


@pytest.mark.parametrize("num_items", [640, 1000, 20_011])
def test_top_items_of_a_large_catalogue(num_items: int) -> None:
    scores_bN = torch.randn(9, num_items, generator=torch.Generator().manual_seed(1)).round(
        decimals=2
    )
    scores_bN[0], scores_bN[1, 5:] = 1.0, -torch.inf
    scores_bN[2, num_items - 7 :] = 100.0  # after the last whole group
    for k in (1, 10):
        items_bK, values_bK = top_items(scores_bN, k)
        expected_bK, expected_values_bK = top_items_module._top_of_any(scores_bN, k)
        np.testing.assert_array_equal(items_bK, expected_bK)
        np.testing.assert_array_equal(values_bK, expected_values_bK)
        torch.testing.assert_close(
            torch.from_numpy(values_bK), scores_bN.topk(k, dim=1).values, rtol=0, atol=0
        )
    *_, left_b = top_items_module._candidates(scores_bN, 10)
    assert left_b[1] and not left_b[3:].any(), (
        "rows with few finite scores take the slow path, the others the fast one"
    )
    broken_bN = scores_bN.clone()
    broken_bN[2, 17] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        top_items(broken_bN, 10)
