"""How often and how regularly items are repeated: by a user, and by all users.

Events at the same time are one basket (an invoice, a session with equal timestamps); an event
without a time is a basket of its own.

Legend: E events of histories, U rows, P pairs of a row and an item of its history, N items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recsys.config import EvaluateConfig
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array, Histories, Split

_PRIOR_GAPS = 5.0  # prior strength: number of intervals taken from the average of all items


@dataclass(frozen=True)
class Pairs:
    """The distinct items of every row, sorted by row, then item."""

    rows_P: Array  # int64
    items_P: Array  # int64
    first_P: Array  # index of the row's first basket with the item, from 0
    last_P: Array  # index of the last one
    last_time_P: Array  # int64 seconds, 0 where unknown
    times_had_P: Array  # number of baskets with an event of a target type on the item
    again_P: Array  # those after the first basket with the item, of any type
    others_P: Array  # events on the item that are not of a target type
    gaps_P: Array  # number of intervals with known times between these baskets
    log_gap_P: Array  # sum of the logs of these intervals, in seconds
    log_steps_P: Array  # sum of the logs of all intervals, in baskets
    num_baskets_U: Array  # number of baskets of every row
    first_time_U: Array  # int64 seconds of the first event of every row, 0 where unknown
    last_time_U: Array  # int64 seconds of the last event

    @property
    def keys_P(self) -> Array:
        """Row and item as one number, ascending."""
        return np.asarray(self.rows_P * 2**32 + self.items_P)


def why_nothing_repeats(dataset: PreparedDataset, evaluate: EvaluateConfig) -> str:
    """Why repeats cannot help on a dataset, in a few words for people; empty if they may."""
    if evaluate.exclude_seen:
        return "evaluate.exclude_seen is true"
    for shard in dataset.shards():
        if pairs_of(shard.through(Split.TRAIN), shard.targets_T).again_P.any():
            return ""
    return "no user has an item twice"


def pairs_of(histories: Histories, is_target_T: Array) -> Pairs:
    """Collect the pairs of histories; ``is_target_T`` marks the event types that are targets, empty
    means all.
    """
    rows_E = np.repeat(np.arange(len(histories)), histories.lengths_U)
    basket_E, num_baskets_U = baskets(histories)
    keys_P, pair_E = np.unique(rows_E * 2**32 + histories.items_E, return_inverse=True)
    size, order_E = len(keys_P), np.argsort(pair_E, kind="stable")  # sorted by pair, then in order
    pair_X, basket_X, time_X = pair_E[order_E], basket_E[order_E], histories.times_E[order_E]
    first_P, last_P, last_time_P = (np.zeros(size, dtype=np.int64) for _ in range(3))
    first_P[pair_X[::-1]] = basket_X[::-1]
    last_P[pair_X], last_time_P[pair_X] = basket_X, time_X
    is_target_X = (
        is_target_T[histories.types_E[order_E]]
        if len(is_target_T)
        else np.ones(len(order_E), dtype=bool)
    )
    others_P = np.bincount(pair_X[~is_target_X], minlength=size)
    pair_X, basket_X, time_X = pair_X[is_target_X], basket_X[is_target_X], time_X[is_target_X]
    is_new_X = np.ones(len(pair_X), dtype=bool)  # first event of a pair in a basket
    is_new_X[1:] = (pair_X[1:] != pair_X[:-1]) | (basket_X[1:] != basket_X[:-1])
    pair_X, basket_X, time_X = pair_X[is_new_X], basket_X[is_new_X], time_X[is_new_X]
    follows_X = np.zeros(len(pair_X), dtype=bool)
    follows_X[1:] = pair_X[1:] == pair_X[:-1]
    step_X, gap_X = np.ones(len(pair_X)), np.zeros(len(pair_X))
    step_X[1:], gap_X[1:] = np.diff(basket_X), np.diff(time_X)
    timed_X = follows_X & (gap_X > 0) & (time_X != 0) & (np.roll(time_X, 1) != 0)

    def sums(values_X: Array, chosen_X: Array) -> Array:
        return np.bincount(pair_X[chosen_X], values_X[chosen_X], minlength=size)

    ends_U = np.where(histories.lengths_U > 0, histories.offsets_U1[1:] - 1, -1)
    times_E1 = np.append(histories.times_E, 0)  # for rows without events
    return Pairs(
        rows_P=keys_P // 2**32,
        items_P=keys_P % 2**32,
        first_P=first_P,
        last_P=last_P,
        last_time_P=last_time_P,
        times_had_P=np.bincount(pair_X, minlength=size),
        again_P=np.bincount(pair_X[basket_X > first_P[pair_X]], minlength=size),
        others_P=others_P,
        gaps_P=np.bincount(pair_X[timed_X], minlength=size),
        log_gap_P=sums(np.log(np.maximum(gap_X, 1.0)), timed_X),
        log_steps_P=sums(np.log(np.maximum(step_X, 1.0)), follows_X),
        num_baskets_U=num_baskets_U,
        first_time_U=times_E1[np.where(histories.lengths_U > 0, histories.offsets_U1[:-1], -1)],
        last_time_U=times_E1[ends_U],
    )


def baskets(histories: Histories) -> tuple[Array, Array]:
    """Basket of every event, counted from 0 in its row [E], and number of baskets per row [U]."""
    times_E, starts_U = histories.times_E, histories.offsets_U1[:-1]
    lengths_U = histories.lengths_U
    begins_E = np.ones(len(times_E), dtype=np.int64)
    begins_E[1:] = (times_E[1:] != times_E[:-1]) | (times_E[1:] == 0)
    begins_E[starts_U[lengths_U > 0]] = 1
    total_E1 = np.concatenate([[0], np.cumsum(begins_E)])
    before_U, behind_U = total_E1[starts_U], total_E1[histories.offsets_U1[1:]]
    return total_E1[1:] - 1 - np.repeat(before_U, lengths_U), behind_U - before_U


@dataclass(frozen=True)
class ItemHabits:
    """How all users together repeat items."""

    repeats_N: Array  # occasions with a repeat
    occasions_N: Array  # baskets after the first one with the item
    share: float  # share of repeats among the occasions of all items
    log_gap_N: Array  # mean log of the interval in seconds
    log_steps_N: Array  # mean log of the interval in baskets

    @staticmethod
    def of(pairs: Pairs, num_items: int) -> ItemHabits:
        """Count the repeats of all users."""
        repeats_P, occasions_P = repeats_and_occasions(pairs)
        items_P = pairs.items_P
        repeats_N, occasions_N, gaps_N, log_gap_N, log_steps_N = (
            np.bincount(items_P, values_P, minlength=num_items).astype(np.float64)
            for values_P in (
                repeats_P,
                occasions_P,
                pairs.gaps_P,
                pairs.log_gap_P,
                pairs.log_steps_P,
            )
        )
        follows_N = np.bincount(items_P, np.maximum(pairs.times_had_P - 1, 0), minlength=num_items)
        share = base_share(repeats_N.sum(), occasions_N.sum())
        return ItemHabits(
            repeats_N,
            occasions_N,
            share,
            _smoothed_mean(log_gap_N, gaps_N),
            _smoothed_mean(log_steps_N, follows_N),
        )


def repeats_and_occasions(pairs: Pairs) -> tuple[Array, Array]:
    """Number of baskets after the first of a pair with the item as target, and number of such
    baskets in all: [P] each.
    """
    return pairs.again_P, pairs.num_baskets_U[pairs.rows_P] - 1 - pairs.first_P


def base_share(repeats: float, occasions: float) -> float:
    """Share of occasions with a repeat, never 0 or 1.

    >>> base_share(0, 0)
    0.25
    """
    return float((repeats + 0.5) / (occasions + 2.0))


def log_odds(share: Array) -> Array:
    """Log-odds of a share."""
    return np.asarray(np.log(share) - np.log1p(-share))


def _smoothed_mean(sums_N: Array, counts_N: Array) -> Array:
    overall = sums_N.sum() / max(counts_N.sum(), 1.0)
    return np.asarray((sums_N + _PRIOR_GAPS * overall) / (counts_N + _PRIOR_GAPS))
