"""Percentile bootstrap over queries: intervals of means, and the paired difference of two
recommenders.

Why: on two thousand users, a difference in the third digit is often chance; resampling users shows
how often. Legend: B queries, M metrics, R resamples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np

from recsys.data.histories import Array

LEVEL: Final = 0.95
# how a sentence continues after an outcome
THAN: Final = {
    "better": "better than",
    "worse": "worse than",
    "unclear": "not clearly better or worse than",
}
_MAX_DRAWS: Final = 4_000_000  # drawn query numbers in memory at a time


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, Any]:
        """The content as plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Comparison:
    """A difference, such as that of two recommenders on the same queries, with 95 % interval and
    two-sided p-value.
    """

    difference: float
    low: float
    high: float
    p: float

    def to_json(self) -> dict[str, Any]:
        """The content as plain values for JSON."""
        return asdict(self)


def intervals(values: Mapping[str, Array], resamples: int, seed: int) -> dict[str, list[float]]:
    """95 % percentile interval of the mean of every metric: name → [low, high].

    All metrics are resampled together, with the same seed for every recommender. Efron 1979. Needs
    at least one query.

    Parameters
    ----------
    values : Mapping of str to array, [B] float
        Metric to one value per query.
    resamples : int
        Number of bootstrap draws R.
    seed : int
        Seed of the draws.
    """
    if not values:
        return {}
    values_BM = np.stack(list(values.values()), axis=1)
    means_RM = bootstrap_means(values_BM, resamples, seed)
    low_M, high_M = np.quantile(means_RM, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return {
        name: [float(low), float(high)]
        for name, low, high in zip(values, low_M, high_M, strict=True)
    }


def compare(ours_B: Array, theirs_B: Array, resamples: int, seed: int) -> Comparison:
    """Paired bootstrap of mean(ours − theirs); see :func:`comparison`. Two equal recommenders have
    p = 1.

    Parameters
    ----------
    ours_B : array, [B] float
        Values of the first recommender, one per query.
    theirs_B : array, [B] float
        Values of the second one for the same queries.
    resamples : int
        Number of bootstrap draws R.
    seed : int
        Seed of the draws.

    Returns
    -------
    Comparison
        Mean difference, its 95 % interval and p-value.
    """
    assert ours_B.shape == theirs_B.shape, "a paired comparison needs the same queries"
    difference_B = ours_B - theirs_B
    means_R = bootstrap_means(difference_B[:, None], resamples, seed)[:, 0]
    return comparison(float(difference_B.mean()), means_R)


def compare_all(
    ours_B: Array, theirs: Mapping[str, Array], resamples: int, seed: int
) -> dict[str, Comparison]:
    """:func:`compare` with several recommenders at once; the queries are drawn once for all of
    them.

    Parameters
    ----------
    ours_B : array, [B] float
        Values of the first recommender, one per query.
    theirs : Mapping of str to array, [B] float
        Recommender to its values for the same queries.
    resamples : int
        Number of bootstrap draws R.
    seed : int
        Seed of the draws.

    Returns
    -------
    dict of str to Comparison
        Recommender to the comparison of ours − theirs.
    """
    if not theirs:
        return {}
    differences_BM = ours_B[:, None] - np.stack(list(theirs.values()), axis=1)
    means_RM = bootstrap_means(differences_BM, resamples, seed)
    means_M = differences_BM.mean(axis=0)
    return {name: comparison(float(means_M[m]), means_RM[:, m]) for m, name in enumerate(theirs)}


def comparison(difference: float, drawn_R: Array) -> Comparison:
    """A difference with the interval of its resamples; resamples that are not finite are left out.

    p = min(1, 2 · (1 + min(#{d* ≤ 0}, #{d* ≥ 0})) / (R + 1)): one minus the level of the widest
    interval without zero. With R resamples it cannot fall below 2 / (R + 1).
    """
    drawn_R = drawn_R[np.isfinite(drawn_R)]
    found = interval(difference, drawn_R)
    # both count a difference of exactly 0, so two equal recommenders have p = 1
    tail = min((drawn_R <= 0).sum(), (drawn_R >= 0).sum())
    return Comparison(
        found.value, found.low, found.high, min(1.0, 2.0 * (1 + int(tail)) / (len(drawn_R) + 1))
    )


def outcome(difference: Mapping[str, Any]) -> Literal["better", "worse", "unclear"]:
    """What the 95 % interval of a paired difference says, in the same words everywhere.

    An interval that contains 0 does not show that two recommenders are equal, so it is unclear.

    >>> [outcome({"low": low, "high": high}) for low, high in ((0.1, 0.2), (-0.1, 0.2), (-2, -1))]
    ['better', 'unclear', 'worse']
    """
    return "better" if difference["low"] > 0 else "worse" if difference["high"] < 0 else "unclear"


def shown_p(p: float, resamples: int = 0) -> str:
    """A p-value as people read it; ``≤`` if it is the smallest that these resamples can give.

    Parameters
    ----------
    p : float
        The p-value of a :class:`Comparison`.
    resamples : int
        Number of bootstrap draws R; 0: unknown.

    Examples
    --------
    >>> shown_p(2 / 1001, 1000), shown_p(0.25, 1000), shown_p(2 / 1001)
    ('≤ 0.002', '0.25', '0.002')
    """
    is_least = resamples > 0 and p <= 2.0 / (resamples + 1)
    return f"{'≤ ' * is_least}{p:.2g}"


def interval(value: float, drawn_R: Array) -> Interval:
    """An estimate with the percentiles of its resamples; those that are not finite (no weight
    drawn) are left out.
    """
    known_R = drawn_R[np.isfinite(drawn_R)]
    if not len(known_R):
        return Interval(float(value), float("nan"), float("nan"))
    low, high = np.quantile(known_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(value), float(low), float(high))


def bootstrap_means(values_BM: Array, resamples: int, seed: int) -> Array:
    """Means [R, M] of ``resamples`` draws of B queries with replacement; the draws depend only on B
    and the seed.

    Parameters
    ----------
    values_BM : array, [B, M] float
        Values of M metrics for B queries, with B ≥ 1.
    resamples : int
        Number of bootstrap draws R.
    seed : int
        Seed of the draws.
    """
    num_queries = len(values_BM)
    assert num_queries > 0, "nothing to resample"
    means = [
        counts_rB @ values_BM / num_queries for counts_rB in _draws(num_queries, resamples, seed)
    ]
    return np.concatenate(means)


def _draws(num_queries: int, resamples: int, seed: int) -> Iterator[Array]:
    """Yield how often every query is drawn, for some resamples at a time: [r, B] float64."""
    generator = np.random.default_rng(seed)
    # resamples × queries may be too much for the memory at once
    step = max(1, _MAX_DRAWS // num_queries)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn_rB = generator.integers(0, num_queries, (size, num_queries))
        # numbers of different resamples do not overlap, so one bincount counts all of them
        drawn_rB += np.arange(size)[:, None] * num_queries
        counts = np.bincount(drawn_rB.ravel(), minlength=size * num_queries)
        yield counts.reshape(size, num_queries).astype(np.float64)
