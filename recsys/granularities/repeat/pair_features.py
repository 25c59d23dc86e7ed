"""Features of every pair of user and past item at a given time, for a linear model.

Each number is clipped to its range in the fit, so that a request long after the training data
counts as the longest absence in training. Hinges at the quartiles make it piecewise linear. Unknown
values (a time) count as the mean.

Legend: P pairs of a row and an item of its history, X raw numbers of a pair, F features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from recsys.data.histories import Array
from recsys.granularities.repeat.habits import ItemHabits, Pairs, log_odds, repeats_and_occasions

PRIOR_GAPS: Final = 2.0  # prior strength: number of intervals taken from the item's average
_QUANTILES: Final = (0.25, 0.5, 0.75)
_RANGE: Final = (0.001, 0.999)
PRODUCTS: Final = (
    ("count", "seconds"),
    ("count", "due"),
    ("count", "steps"),
    ("count", "odds"),
    ("rate", "odds"),
)
NAMES: Final = (
    "count",  # number of baskets with the item
    "rate",  # share of such baskets since the first
    "steps",  # number of baskets since the last
    "now",  # whether the last one is the basket of the request
    "seconds",  # time since the last
    "due",  # that time divided by the expected interval
    "due_steps",  # the same, in baskets
    "odds",  # log-odds that the item is repeated
    "habit",  # log-odds that the user repeats any item
    "pace",  # time between the user's baskets
    "size",  # number of items in the history
    "others",  # number of events of types that are not predicted
)


def raw_numbers(
    pairs: Pairs,
    asked_at_U: Array,
    habits: ItemHabits,
    smoothing: float,
    own: tuple[Pairs, Array] | None = None,
) -> Array:
    """Return the raw numbers of every pair [P, X]; NaN where unknown.

    Parameters
    ----------
    pairs : Pairs
        Pairs of the visible histories.
    asked_at_U : Array
        Time of the request of each row, 0 where unknown.
    habits : ItemHabits
        Habits of the items.
    smoothing : float
        Prior strength in occasions: how many occasions of the average item are added to each item.
    own : tuple[Pairs, Array] | None
        In the fit, the pairs of whole histories, and the row there of every row here. A pair's own
        events are subtracted from the habits of its item, because they contain the target.
    """
    rows_P, items_P = pairs.rows_P, pairs.items_P
    asked_P, last_P = asked_at_U[rows_P], pairs.last_time_P
    is_now_U = (asked_at_U != 0) & (asked_at_U == pairs.last_time_U)
    basket_P = (pairs.num_baskets_U - is_now_U)[rows_P]  # index of the basket of the request
    steps_P = np.maximum(basket_P - pairs.last_P, 0)
    known_P = (asked_P != 0) & (last_P != 0)
    # a minute more, so that an event in the same second is not at minus infinity
    log_seconds_P = np.where(known_P, np.log(np.maximum(asked_P - last_P, 0) + 60.0), np.nan)
    # half a step for the basket of the request itself, which is below one step
    log_steps_P = np.log(np.maximum(steps_P, 0.5))
    repeats_P, occasions_P = habits.repeats_N[items_P], habits.occasions_N[items_P]
    if own is not None:
        whole, rows_U = own
        position_P = np.searchsorted(whole.keys_P, rows_U[rows_P] * 2**32 + items_P)
        own_repeats, own_occasions = repeats_and_occasions(whole)
        repeats_P = repeats_P - own_repeats[position_P]
        occasions_P = occasions_P - own_occasions[position_P]
    share_P = (repeats_P + smoothing * habits.share) / (occasions_P + smoothing)
    expected_P = _shrunk(pairs.log_gap_P, pairs.gaps_P, habits.log_gap_N[items_P])
    follows_P = np.maximum(pairs.times_had_P - 1, 0)
    expected_steps_P = _shrunk(pairs.log_steps_P, follows_P, habits.log_steps_N[items_P])
    columns = (
        np.log1p(pairs.times_had_P),
        np.log((pairs.times_had_P + 0.5) / (basket_P - pairs.first_P + 1.0)),
        log_steps_P,
        (steps_P == 0).astype(np.float64),
        log_seconds_P,
        log_seconds_P - expected_P,
        log_steps_P - expected_steps_P,
        log_odds(share_P),
        _user_habit(pairs, habits.share)[rows_P],
        _pace(pairs)[rows_P],
        np.log(np.bincount(rows_P, minlength=len(pairs.num_baskets_U))[rows_P]),
        np.log1p(pairs.others_P),
    )
    return np.stack(columns, axis=1)


def _shrunk(sums_P: Array, counts_P: Array, prior_P: Array) -> Array:
    return np.asarray((sums_P + PRIOR_GAPS * prior_P) / (counts_P + PRIOR_GAPS))


def _user_habit(pairs: Pairs, share: float) -> Array:
    """Log-odds that a user repeats an item on an occasion: [U]."""
    repeats_P, occasions_P = repeats_and_occasions(pairs)
    size = len(pairs.num_baskets_U)
    repeats_U, occasions_U = (
        np.bincount(pairs.rows_P, v, minlength=size) for v in (repeats_P, occasions_P)
    )
    return log_odds((repeats_U + 20.0 * share) / (occasions_U + 20.0))


def _pace(pairs: Pairs) -> Array:
    """Log of the mean time between two baskets of every row, NaN where unknown: [U]."""
    span_U = np.maximum(pairs.last_time_U - pairs.first_time_U, 0)
    known_U = (pairs.first_time_U != 0) & (pairs.last_time_U != 0) & (pairs.num_baskets_U > 1)
    mean_U = span_U / np.maximum(pairs.num_baskets_U - 1, 1)
    return np.where(known_U, np.log(mean_U + 60.0), np.nan)


@dataclass(frozen=True)
class Basis:
    """The map from raw numbers to features."""

    low_X: Array
    high_X: Array
    mean_X: Array
    knots_XQ: Array
    centre_F: Array
    scale_F: Array

    @staticmethod
    def of(raw_PX: Array) -> Basis:
        """Fit the basis on a sample of pairs; without any, every feature is constant."""
        raw_PX = raw_PX if len(raw_PX) else np.zeros((1, raw_PX.shape[1]))
        known_PX = np.where(np.isfinite(raw_PX).any(axis=0), raw_PX, 0.0)
        low_X, high_X = np.nanquantile(known_PX, _RANGE, axis=0)
        mean_X = np.nanmean(np.clip(known_PX, low_X, high_X), axis=0)
        knots_XQ = np.nanquantile(known_PX, _QUANTILES, axis=0).T
        none_F = np.zeros(0)
        open_PF = Basis(low_X, high_X, mean_X, knots_XQ, none_F, none_F)._open(raw_PX)
        scale_F = open_PF.std(axis=0)
        scale_F = np.where(scale_F > 1e-6, scale_F, 1e12)  # constant features get weight zero
        return Basis(low_X, high_X, mean_X, knots_XQ, open_PF.mean(axis=0), scale_F)

    def _open(self, raw_PX: Array) -> Array:
        """Features before centring."""
        cut_PX = np.where(np.isnan(raw_PX), self.mean_X, np.clip(raw_PX, self.low_X, self.high_X))
        hinges_PXQ = np.maximum(cut_PX[:, :, None] - self.knots_XQ, 0.0)
        centred_PX = cut_PX - self.mean_X
        products = [
            centred_PX[:, NAMES.index(a)] * centred_PX[:, NAMES.index(b)] for a, b in PRODUCTS
        ]
        return np.concatenate(
            [
                cut_PX,
                hinges_PXQ.reshape(len(cut_PX), self.knots_XQ.size),
                np.stack(products, axis=1),
            ],
            axis=1,
        )

    def features(self, raw_PX: Array) -> Array:
        """Features [P, F + 1], the last one constant."""
        made_PF = (self._open(raw_PX) - self.centre_F) / self.scale_F
        return np.concatenate([made_PF, np.ones((len(made_PF), 1))], axis=1)
