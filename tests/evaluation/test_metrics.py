"""Metrics compared with values by hand, as fractions."""

from __future__ import annotations

from math import log2

import numpy as np
import pytest

from recsys.errors import ConfigError
from recsys.evaluation.metrics import (
    Metric,
    coverage_of,
    diversity_of,
    exposure,
    gini_of,
    list_metrics,
    novelty_of,
    parse_metric,
    query_metrics,
)

# ranks:          1      2      3      4      5
HITS = np.array(
    [
        [True, False, True, False, False],  # 2 of 3 targets
        [False, False, False, False, True],  # 1 of 1 target
        [True, True, True, True, True],  # 5 of 8 targets: more targets than places
        [False, False, False, False, False],  # 0 of 2 targets
    ]
)
TARGETS = np.array([3, 1, 8, 2])


def ideal(n: int) -> float:
    return sum(1 / log2(rank + 1) for rank in range(1, n + 1))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("recall@5", [2 / 3, 1 / 1, 5 / 8, 0]),
        ("recall@2", [1 / 3, 0, 2 / 8, 0]),
        ("precision@5", [2 / 5, 1 / 5, 5 / 5, 0]),
        ("precision@2", [1 / 2, 0, 2 / 2, 0]),
        ("hit@5", [1, 1, 1, 0]),
        ("hit@2", [1, 0, 1, 0]),
        ("mrr@5", [1 / 1, 1 / 5, 1 / 1, 0]),
        ("mrr@2", [1 / 1, 0, 1 / 1, 0]),
        ("map@5", [(1 / 1 + 2 / 3) / 3, (1 / 5) / 1, 5 / 5, 0]),
        ("map@2", [(1 / 1) / 2, 0, (1 / 1 + 2 / 2) / 2, 0]),
        ("ndcg@5", [(1 + 1 / 2) / ideal(3), (1 / log2(6)) / ideal(1), 1, 0]),
        ("ndcg@2", [1 / ideal(2), 0, 1, 0]),
    ],
)
def test_values_by_hand(name: str, expected: list[float]) -> None:
    values = query_metrics(HITS, TARGETS, [2, 5])
    np.testing.assert_allclose(values[name], expected, atol=1e-12)


def test_accuracy_metrics_are_between_zero_and_one_for_a_perfect_list() -> None:
    perfect = query_metrics(np.ones((1, 5), dtype=bool), np.array([5]), [5])
    assert all(value == pytest.approx([1.0]) for value in perfect.values())
    generator = np.random.default_rng(0)
    hits = generator.random((200, 10)) < 0.3
    values = query_metrics(hits, hits.sum(axis=1) + generator.integers(1, 9, 200), [1, 3, 10])
    assert all(((value >= 0) & (value <= 1)).all() for value in values.values())


def test_moving_a_hit_up_never_lowers_a_rank_metric() -> None:
    before, after = np.array([[False, True, False, True]]), np.array([[True, False, False, True]])
    for name in ("ndcg@4", "mrr@4", "map@4"):
        old, new = (query_metrics(h, np.array([2]), [4])[name][0] for h in (before, after))
        assert new > old


def test_query_without_target_fails_an_assertion() -> None:
    with pytest.raises(AssertionError, match="without target"):
        query_metrics(HITS, np.array([3, 0, 8, 2]), [5])


def test_novelty_is_the_mean_self_information() -> None:
    counts = np.array([6, 0, 1, 1 - 1])  # with one added each: 7, 1, 2, 1 of 11
    lists = np.array([[0, 1, 2], [2, -1, -1], [-1, -1, -1]])
    expected = [(log2(11 / 7) + log2(11 / 1) + log2(11 / 2)) / 3, log2(11 / 2), 0]
    np.testing.assert_allclose(novelty_of(lists, counts, 3), expected)
    np.testing.assert_allclose(novelty_of(lists, counts, 1), [log2(11 / 7), log2(11 / 2), 0])


def test_coverage_and_gini_by_hand() -> None:
    lists = np.array([[0, 1], [0, 2], [0, -1]])
    np.testing.assert_array_equal(exposure(lists, 4, 2), [3, 1, 1, 0])
    assert coverage_of(exposure(lists, 4, 2)) == 3 / 4
    assert coverage_of(exposure(lists, 4, 1)) == 1 / 4
    # ascending 0 1 1 3, weights −3 −1 1 3: (0 − 1 + 1 + 9) / (4 · 5)
    assert gini_of(exposure(lists, 4, 2)) == pytest.approx(9 / 20)
    assert gini_of(np.array([5, 5, 5])) == pytest.approx(0)
    assert gini_of(np.zeros(3, dtype=int)) == 0


def test_gini_is_half_the_relative_mean_difference() -> None:
    shown = np.random.default_rng(1).integers(0, 50, 40)
    pairs = np.abs(shown[:, None] - shown[None, :]).mean()
    assert gini_of(shown) == pytest.approx(pairs / (2 * shown.mean()))


def test_diversity_equals_the_naive_mean_over_pairs() -> None:
    generator = np.random.default_rng(2)
    vectors = generator.normal(size=(30, 5)).astype(np.float32)
    vectors[3] = 0
    lists = np.stack([generator.permutation(30)[:6] for _ in range(9)])
    lists[0, 4:], lists[1, 1:], lists[2] = -1, -1, -1
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    def naive(items: list[int]) -> float:
        pairs = [1 - float(unit[a] @ unit[b]) for i, a in enumerate(items) for b in items[i + 1 :]]
        return sum(pairs) / len(pairs) if pairs else 0.0

    expected = [naive([item for item in row if item >= 0]) for row in lists.tolist()]
    np.testing.assert_allclose(diversity_of(lists, vectors, 6, chunk=4), expected, atol=1e-5)


def test_list_metrics_have_the_contract_names() -> None:
    values = list_metrics(np.array([[0, 1]]), np.array([3, 1]), np.eye(2), [1, 2])
    assert set(values) == {
        f"{kind}@{k}" for kind in ("coverage", "novelty", "gini", "diversity") for k in (1, 2)
    }
    assert values["diversity@2"] == pytest.approx([1.0])


def test_metric_names_are_parsed_or_refused() -> None:
    assert parse_metric("recall@100") == Metric("recall", 100) and str(Metric("hit", 5)) == "hit@5"
    for wrong in ("ndgc@20", "ndcg", "ndcg@", "ndcg@0", "ndcg@-1", "ndcg@1.5", "@20", "", "ndcg@²"):
        with pytest.raises(ConfigError, match=r"recall@K ndcg@K precision@K .* diversity@K"):
            parse_metric(wrong)
    with pytest.raises(ConfigError, match="coverage@20"):
        parse_metric("coverage@20", ("ndcg", "recall"))
