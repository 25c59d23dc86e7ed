"""The search by rough scores lists what the search by float32 scores lists, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recsys.evaluation import rough_scores, top_items
from recsys.evaluation.rough_scores import RoughScores, rough_scores_help
from recsys.evaluation.top_items import top_by_vectors
from recsys.granularities.sparse import SparseScores

K = 10
NOBODY = np.zeros(0, dtype=np.int64)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that is fast in bfloat16."""
    monkeypatch.setattr(rough_scores, "is_fast_in_bfloat16", lambda: True)
    monkeypatch.setattr(rough_scores, "multiplies_with_onednn", lambda: True)
    monkeypatch.setattr(top_items, "_NEAR_SCORES", 50 * 2000)  # several blocks


def whole_numbers(num_users: int, num_items: int, width: int = 16) -> list[torch.Tensor]:
    """Vectors whose products are exact in float32, in any order, but not in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(-700, 701, (n, width), generator=generator).float()
        for n in (num_users, num_items)
    ]


def test_lists_equal_those_of_float32_scores_where_rounding_would_change_them(fast: None) -> None:
    users_bD, vectors_ND = whole_numbers(1100, 2003)  # three parts with a last group of 3 items
    vectors_ND[900:1300] = vectors_ND[:400]  # equal scores, also at the end of a list
    generator = np.random.default_rng(0)
    rows_E = np.sort(generator.integers(0, 1100, 3000))
    best_bX = (users_bD @ vectors_ND.T).topk(12, dim=1).indices.numpy()
    hidden_E = best_bX[rows_E, generator.integers(0, 12, 3000)].astype(np.int64)
    found = top_items._top_by_rough_scores(users_bD, vectors_ND, K, rows_E, hidden_E)
    expected = top_items._top_by_all_scores(users_bD, vectors_ND, K, rows_E, hidden_E)
    for found_bK, expected_bK in zip(found, expected, strict=True):
        np.testing.assert_array_equal(found_bK, expected_bK)
    # the example is hard enough: rounded products alone give other lists
    rounded_bN = (users_bD.bfloat16() @ vectors_ND.bfloat16().T).float()
    assert (rounded_bN.topk(K, dim=1).indices.numpy() != best_bX[:, :K]).any(axis=1).mean() > 0.5


def test_every_item_of_a_list_is_a_candidate_and_few_others_are(fast: None) -> None:
    users_bD, vectors_ND = whole_numbers(50, 2000)
    rough = RoughScores(users_bD, vectors_ND)
    rows_C, items_C, left_b = rough.candidates(slice(0, 50), K, NOBODY, NOBODY, rough.buffer(50))
    best_bK = (users_bD @ vectors_ND.T).topk(K, dim=1).indices.tolist()
    assert not left_b.any() and len(rows_C) < 2 * 50 * K
    for row, best_K in enumerate(best_bK):
        assert set(best_K) <= set(items_C[rows_C == row].tolist())


def test_the_best_item_is_found_where_all_its_numbers_are_rounded_down(fast: None) -> None:
    """Its rough score is 8 instead of 8.0626; ten others have 8.125 instead of 8.0587."""
    down, up = 1 + 2.0**-8, 1 + 2.0**-8 + 2.0**-12
    users_bD, vectors_ND = torch.zeros(130, 16), torch.zeros(2000, 16)
    users_bD[:, :8], users_bD[:, 8:] = down, up
    vectors_ND[:10, 8:] = up
    vectors_ND[:10, 15] -= 2.0**-7
    vectors_ND[10, :8] = down
    items_bK, scores_bK = top_items._top_by_rough_scores(users_bD, vectors_ND, K, NOBODY, NOBODY)
    assert (items_bK[:, 0] == 10).all()
    np.testing.assert_allclose(scores_bK[:, :2], [[8.0626, 8.0587]] * 130, rtol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 2.0**-134, 2.0**70])
def test_users_without_a_positive_bound_get_float32_scores(fast: None, scale: float) -> None:
    """Negative scores, no scores, equal scores, fewer visible items than places, extreme
    lengths.
    """
    users_bD, vectors_ND = whole_numbers(130, 2000, 4)
    vectors_ND[:, 0] = -vectors_ND[:, 0].abs() - 1
    users_bD[0] = torch.tensor([3.0, 0, 0, 0])  # every score is negative
    users_bD[1] = 0
    vectors_ND[:, 3] = 5
    users_bD[2] = torch.tensor([0, 0, 0, 2.0])  # every score is 10
    hidden_E = np.concatenate([np.arange(1995), np.arange(7)])
    rows_E = np.repeat([3, 4], [1995, 7])
    query = users_bD * scale, vectors_ND, K, rows_E, hidden_E
    found, expected = top_items._top_by_rough_scores(*query), top_items._top_by_all_scores(*query)
    for found_bK, expected_bK in zip(found, expected, strict=True):
        np.testing.assert_array_equal(found_bK, expected_bK)
    assert (found[0][3] >= 0).sum() == 5


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_number_that_is_not_finite_is_treated_as_without_rough_scores(
    fast: None, value: float
) -> None:
    users_bD, vectors_ND = whole_numbers(130, 2000)
    vectors_ND[7, 3], users_bD[:, 3] = value, 0
    with pytest.raises(ValueError, match="NaN"):
        top_by_vectors(users_bD, vectors_ND, K, NOBODY, NOBODY)


def test_rough_scores_are_for_many_users_of_plain_products_on_a_fast_processor(
    fast: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    users_bD, vectors_ND = whole_numbers(130, 2000)
    assert rough_scores_help(users_bD, vectors_ND, K)
    assert not rough_scores_help(users_bD[:20], vectors_ND, K)
    assert not rough_scores_help(users_bD, vectors_ND, 100), "too few groups for so long lists"
    assert not rough_scores_help(users_bD.double(), vectors_ND.double(), K)
    assert not rough_scores_help(users_bD.repeat(1, 20), vectors_ND.repeat(1, 20), K), "too wide"
    monkeypatch.setattr(top_items, "_top_by_rough_scores", lambda *_: "rough")
    assert top_by_vectors(users_bD, vectors_ND, K, NOBODY, NOBODY) == "rough"
    added = SparseScores.of(torch.tensor([0]), torch.tensor([7]), torch.tensor([1e9]))
    assert top_by_vectors(users_bD, vectors_ND, K, NOBODY, NOBODY, added)[0][0, 0] == 7

    def only_eleven(scores_rN: torch.Tensor, _: slice) -> None:
        scores_rN[:, :11], scores_rN[:, 12:] = -torch.inf, -torch.inf

    changed_bK, _ = top_by_vectors(
        users_bD, vectors_ND, K, NOBODY, NOBODY, SparseScores.nothing(), only_eleven
    )
    assert changed_bK[0].tolist() == [11] + 9 * [-1]
    monkeypatch.setattr(rough_scores, "is_fast_in_bfloat16", lambda: False)
    assert not rough_scores_help(users_bD, vectors_ND, K)
