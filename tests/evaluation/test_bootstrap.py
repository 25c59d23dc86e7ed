"""Bootstrap: known variance, coverage of the truth, pairing and p-values."""

from __future__ import annotations

import numpy as np
import pytest

from recsys.evaluation import bootstrap as module
from recsys.evaluation.bootstrap import bootstrap_means, compare, intervals


def test_resampled_means_have_the_textbook_standard_error() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, (500, 1))
    means = bootstrap_means(values, 4000, seed=1)[:, 0]
    assert means.mean() == pytest.approx(values.mean(), abs=0.01)
    assert means.std() == pytest.approx(values.std() / np.sqrt(500), rel=0.05)


def test_two_queries_give_the_three_possible_means_in_their_proportions() -> None:
    means = bootstrap_means(np.array([[0.0], [1.0]]), 8000, seed=0)[:, 0]
    values, counts = np.unique(means, return_counts=True)
    np.testing.assert_array_equal(values, [0, 0.5, 1])
    np.testing.assert_allclose(counts / 8000, [1 / 4, 1 / 2, 1 / 4], atol=0.02)


def test_intervals_cover_the_true_mean_in_about_95_of_100_worlds() -> None:
    generator = np.random.default_rng(3)
    worlds = [intervals({"m": generator.random(200)}, 400, seed=5)["m"] for _ in range(300)]
    covered = np.mean([low <= 0.5 <= high for low, high in worlds])
    assert 0.91 <= covered <= 0.985


def test_draws_depend_on_seed_but_not_on_chunks(monkeypatch) -> None:
    values = {"a": np.random.default_rng(0).random(50), "b": np.arange(50.0)}
    first = intervals(values, 200, seed=9)
    assert first == intervals(values, 200, seed=9) and first != intervals(values, 200, seed=10)
    monkeypatch.setattr(module, "_MAX_DRAWS", 333)
    again = intervals(values, 200, seed=9)
    assert all(first[name] == pytest.approx(again[name]) for name in values)
    assert intervals({}, 100, seed=0) == {}


def test_pairing_finds_a_small_gain_despite_overlapping_intervals() -> None:
    generator = np.random.default_rng(0)
    theirs = generator.random(400)
    ours = theirs + 0.01 + generator.normal(0, 0.02, 400)
    apart = intervals({"ours": ours, "theirs": theirs}, 1000, seed=0)
    assert apart["ours"][0] < apart["theirs"][1]
    result = compare(ours, theirs, 1000, seed=0)
    assert result.low > 0 and result.p == pytest.approx(2 / 1001)
    assert result.difference == pytest.approx((ours - theirs).mean())


def test_comparison_is_antisymmetric() -> None:
    generator = np.random.default_rng(1)
    ours, theirs = generator.random(100), generator.random(100)
    one, other = compare(ours, theirs, 500, seed=2), compare(theirs, ours, 500, seed=2)
    assert one.difference == pytest.approx(-other.difference) and one.p == other.p
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))


def test_equal_recommenders_have_no_difference() -> None:
    same = np.random.default_rng(0).random(30)
    result = compare(same, same, 200, seed=0)
    assert result.to_json() == {"difference": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}


def test_p_is_rarely_small_without_a_difference() -> None:
    generator = np.random.default_rng(4)
    ps = [compare(generator.random(80), generator.random(80), 300, seed=0).p for _ in range(300)]
    assert 0.02 <= np.mean(np.array(ps) < 0.05) <= 0.09
