"""Times in training histories at which the next basket is known.

Legend: E events of the histories, B sampled times, P pairs of a sampled time and an item.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from recsys.data.histories import Array, Histories
from recsys.granularities.repeat.habits import Pairs, baskets

_A_USER: Final = 20  # most samples per user, so that heavy users do not dominate


@dataclass(frozen=True)
class SampledTimes:
    """Histories before some events, and the events that came next."""

    rows_B: Array  # int64, rows of the full histories
    histories: Histories  # the events before each sampled time
    asked_at_B: Array  # int64 seconds, 0 where unknown
    # sample and item, as one number, of the items in the next basket; ascending
    next_keys: Array

    def are_next(self, pairs: Pairs) -> Array:
        """Whether the item of a pair came next: float64 [P]."""
        return np.isin(pairs.keys_P, self.next_keys).astype(np.float64)


def sample_times(
    histories: Histories, is_target_T: Array, max_pairs: int, seed: int = 0
) -> SampledTimes:
    """Sample times before random events of target types, each with an earlier event of the same
    user.

    Half of the sampled events are at the beginning of their basket. All samples together have at
    most about ``max_pairs`` earlier events.

    Parameters
    ----------
    histories : Histories
        Training events in order, one row per user.
    is_target_T : array, [T] bool
        Event types that are targets; empty for all.
    max_pairs : int
        Limit on the earlier events of all samples; the first sample may exceed it.
    seed : int
        Seed of the sample.

    Returns
    -------
    SampledTimes
        At most 20 times per user.
    """
    random = np.random.default_rng(seed)
    lengths_U = histories.lengths_U
    rows_E = np.repeat(np.arange(len(histories)), lengths_U)
    position_E = np.arange(len(rows_E)) - histories.offsets_U1[rows_E]
    basket_E, _ = baskets(histories)
    counts_E = (
        is_target_T[histories.types_E] if len(is_target_T) else np.ones(len(rows_E), dtype=bool)
    )
    events_M = random.permutation(np.flatnonzero(counts_E & (position_E > 0)))
    key_E = rows_E * 2**32 + basket_E
    starts_M = np.searchsorted(key_E, key_E[events_M])
    begins_M = random.random(len(events_M)) < 0.5
    events_M = np.where(begins_M & (position_E[starts_M] > 0), starts_M, events_M)
    events_M = events_M[np.sort(np.unique(events_M, return_index=True)[1])]
    order_M = np.argsort(rows_E[events_M], kind="stable")
    sorted_rows_M = rows_E[events_M][order_M]
    rank_M = np.empty(len(events_M), dtype=np.int64)
    rank_M[order_M] = np.arange(len(events_M)) - np.searchsorted(sorted_rows_M, sorted_rows_M)
    events_M = events_M[rank_M < _A_USER]
    events_B = np.sort(
        events_M[np.cumsum(position_E[events_M]) <= max(max_pairs, position_E[events_M[:1]].sum())]
    )
    rows_B, seen_B = rows_E[events_B], position_E[events_B]
    taken = histories.take(rows_B)
    positions_E = np.arange(len(taken.items_E)) - np.repeat(taken.offsets_U1[:-1], taken.lengths_U)
    before = taken.where(positions_E < np.repeat(seen_B, taken.lengths_U))
    ends_B = np.searchsorted(key_E, key_E[events_B], side="right")
    sizes_B = ends_B - events_B
    moments_X = np.repeat(np.arange(len(events_B)), sizes_B)
    events_X = np.arange(len(moments_X)) + np.repeat(
        events_B - (np.cumsum(sizes_B) - sizes_B), sizes_B
    )
    keys = np.unique(
        moments_X[counts_E[events_X]] * 2**32 + histories.items_E[events_X][counts_E[events_X]]
    )
    return SampledTimes(rows_B, before, histories.times_E[events_B], keys)
