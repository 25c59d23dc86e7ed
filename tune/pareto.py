"""The settings that no other one beats in everything, and the choice among settings."""

from __future__ import annotations

import numpy as np

from recsys.data.histories import Array

BEST = "best"


def front(points_TM: Array) -> Array:
    """Which of T points no other one dominates (is as good in all M and better in one), more being better: [T] bool.

    Equal points stand or fall together.

    >>> front(np.array([[3, 0], [2, 2], [1, 1], [0, 3], [2, 1]])).tolist()
    [True, True, False, True, False]
    """
    kept = np.ones(len(points_TM), dtype=bool)
    for place, point in enumerate(points_TM):
        as_good_T = (points_TM >= point).all(1)
        kept[place] = not (as_good_T & (points_TM > point).any(1)).any()
    return kept


def choose(metric_T: Array, zeros_T: Array, other_T: Array | None, within: float) -> int:
    """The setting of the best metric, or of the most of something else within a share of it.

    Parameters
    ----------
    metric_T : Array
        to be maximised.
    zeros_T : Array
        how many granularities a setting silences: of equals, the one that needs fewest.
    other_T : Array | None
        None for the best metric.
    within : float
        share of the best metric that may be lost for more of the other.

    >>> metric, zeros = np.array([0.5, 0.5, 0.495, 0.4]), np.array([0, 1, 0, 0])
    >>> choose(metric, zeros, None, 0.0), choose(metric, zeros, np.array([1.0, 1.0, 2.0, 9.0]), 0.02)
    (1, 2)
    """
    if other_T is None:
        return int(np.lexsort((zeros_T, metric_T))[-1])
    near_T = metric_T >= metric_T.max() * (1 - within)
    return int(np.lexsort((zeros_T, metric_T, np.where(near_T, other_T, -np.inf)))[-1])
