"""The Pareto front of settings, and the choice of a setting."""

from __future__ import annotations

import numpy as np

from recsys.data.histories import Array

BEST = "best"


def front(points_TM: Array) -> Array:
    """Which of T points are not dominated by another one: [T] bool. Larger values are better.

    A point dominates another one if it is at least as good in all M values and better in one. Equal
    points do not dominate each other.

    >>> front(np.array([[3, 0], [2, 2], [1, 1], [0, 3], [2, 1]])).tolist()
    [True, True, False, True, False]
    """
    is_front_T = np.ones(len(points_TM), dtype=bool)
    for index, point in enumerate(points_TM):
        as_good_T = (points_TM >= point).all(1)
        is_front_T[index] = not (as_good_T & (points_TM > point).any(1)).any()
    return is_front_T


def choose(metric_T: Array, zeros_T: Array, other_T: Array | None, within: float) -> int:
    """The setting with the best metric, or with the most of another measure at a small loss of the
    metric.

    Parameters
    ----------
    metric_T : Array
        Values to maximise.
    zeros_T : Array
        Number of granularities that a setting prunes; among equal settings the most pruned one
        wins.
    other_T : Array | None
        The other measure; None chooses by the metric.
    within : float
        Share of the best metric that may be lost.

    Examples
    --------
    >>> metric, zeros = np.array([0.5, 0.5, 0.495, 0.4]), np.array([0, 1, 0, 0])
    >>> choose(metric, zeros, None, 0.0)
    1
    >>> choose(metric, zeros, np.array([1.0, 1.0, 2.0, 9.0]), 0.02)
    2
    """
    if other_T is None:
        return int(np.lexsort((zeros_T, metric_T))[-1])
    near_T = metric_T >= metric_T.max() * (1 - within)
    return int(np.lexsort((zeros_T, metric_T, np.where(near_T, other_T, -np.inf)))[-1])
