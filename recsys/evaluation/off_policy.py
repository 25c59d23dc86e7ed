"""Estimate the value of one version from the log of another one: IPS, SNIPS and doubly robust (DR).

Why: an experiment costs users and weeks. If the order of lists was randomised with known
probabilities, the log of one version gives an estimate for another version, from the places at
which both show the same item.

The reward r of an item at a place does not depend on the items at other places (the item-position
model), so the value of a list is the sum over its places. The target is the version to estimate.
With w = 1[the target shows the item there] / P(it was shown there), N answers and R shown places,

    IPS    V = Σ w r / N                              unbiased if each target item could be shown
    SNIPS  V = (Σ w r / Σ w) · R / N                  weighted mean; rewards + c: V + c per place
    DR     V = Σ (q(target) + w (r − q(shown))) / N   unbiased for any q that does not depend on r

Horvitz and Thompson 1952; Swaminathan and Joachims 2015; Dudík, Langford and Li 2011; Li et al.
2018 (item-position). Intervals resample users, as the answers to one user are similar.

Legend: R shown items (one row per place of an answer), U users, M sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from recsys.data.histories import Array
from recsys.evaluation.bootstrap import Interval, bootstrap_means, interval

FOLDS: Final = 5
_PRIOR: Final = 10.0  # shown places; strength with which the mean of an item is shrunk to zero


@dataclass(frozen=True)
class Trials:
    """The shown items, their rewards, and the items of the target at the same places."""

    users_R: Array  # dense number of the user
    answers_U: Array  # number of answers to every user
    positions_R: Array
    shown_R: Array  # dense number of the item
    target_R: Array  # likewise; −1: the target has no item there
    propensities_R: Array  # of the shown item at its place
    rewards_R: Array

    @property
    def weights_R(self) -> Array:
        """The weight w of every shown item for the target."""
        return np.asarray((self.shown_R == self.target_R) / self.propensities_R)


@dataclass(frozen=True)
class Estimates:
    """Values per answer, with intervals, and figures that show
    whether the weights can be trusted.
    """

    values: dict[str, Interval]  # shown (the value of the log itself), ips, snips, dr
    gains: dict[str, Interval]  # each estimate minus shown
    effective: float  # effective sample size: (Σ w)² / Σ w²
    largest: float  # largest weight
    support: Interval  # mean weight: about the share of the target's places that the log could show

    def to_json(self) -> dict[str, Any]:
        """The content as plain values for JSON."""
        tree: dict[str, Any] = {name: one.to_json() for name, one in self.values.items()}
        tree["gains"] = {name: one.to_json() for name, one in self.gains.items()}
        tree |= {"effective_sample_size": self.effective, "largest_weight": self.largest}
        return {**tree, "support": self.support.to_json()}


def estimate(trials: Trials, resamples: int, seed: int) -> Estimates:
    """The value of the target per answer, by three estimators.

    Parameters
    ----------
    trials : Trials
        The shown items R with their rewards and weights, and the answers of U users.
    resamples : int
        Number of bootstrap draws over users.
    seed : int
        Seed of the draws.

    Returns
    -------
    Estimates
        Values and gains with intervals, effective sample size, largest weight and support.
    """
    weights_R, rewards_R = trials.weights_R, trials.rewards_R
    q_shown_R, q_target_R = predicted(trials)
    columns = {
        "answers": trials.answers_U.astype(np.float64),
        "places": _by_user(trials, np.ones(len(rewards_R))),
        "rewards": _by_user(trials, rewards_R),
        "weights": _by_user(trials, weights_R),
        "weighted": _by_user(trials, weights_R * rewards_R),
        "robust": _by_user(trials, q_target_R + weights_R * (rewards_R - q_shown_R)),
    }
    sums_UM = np.stack(list(columns.values()), axis=1)
    point = _values(dict(zip(columns, sums_UM.mean(0)[:, None], strict=True)))
    drawn = _values(dict(zip(columns, bootstrap_means(sums_UM, resamples, seed).T, strict=True)))
    values = {
        name: interval(point[name][0], drawn[name]) for name in ("shown", "ips", "snips", "dr")
    }
    gains = {
        name: interval(point[name][0] - point["shown"][0], drawn[name] - drawn["shown"])
        for name in ("ips", "snips", "dr")
    }
    squares = float(np.square(weights_R).sum())
    return Estimates(
        values,
        gains,
        float(weights_R.sum()) ** 2 / squares if squares else 0.0,
        float(weights_R.max(initial=0.0)),
        interval(point["support"][0], drawn["support"]),
    )


def _values(sums: Mapping[str, Array]) -> dict[str, Array]:
    """The estimates from sums over users, for one or many resamples; SNIPS is NaN without any
    weight.
    """
    answers, weights = sums["answers"], sums["weights"]
    mean = np.divide(
        sums["weighted"], weights, out=np.full_like(weights, np.nan), where=weights > 0
    )
    return {
        "shown": sums["rewards"] / answers,
        "ips": sums["weighted"] / answers,
        "snips": mean * sums["places"] / answers,
        "dr": sums["robust"] / answers,
        "support": weights / sums["places"],
    }


def _by_user(trials: Trials, values_R: Array) -> Array:
    return np.bincount(trials.users_R, weights=values_R, minlength=len(trials.answers_U))


def predicted(trials: Trials) -> tuple[Array, Array]:
    """Values q of the shown items and of the target's items: mean of the place + mean effect of the
    item, shrunk to zero.

    Each user is predicted from the users of the other folds, so that q does not depend on the
    rewards it is compared with.
    """
    shown_R, target_R = np.zeros(len(trials.users_R)), np.zeros(len(trials.users_R))
    num_items = int(max(trials.shown_R.max(initial=-1), trials.target_R.max(initial=-1))) + 1
    num_positions = int(trials.positions_R.max(initial=-1)) + 1
    folds_R = trials.users_R % FOLDS
    for fold in range(FOLDS):
        fits_R = folds_R != fold
        places = trials.positions_R[fits_R]
        items = trials.shown_R[fits_R]
        rewards = trials.rewards_R[fits_R]
        overall = float(rewards.mean()) if len(rewards) else 0.0
        counts = np.bincount(places, minlength=num_positions)
        means = (np.bincount(places, rewards, num_positions) + _PRIOR * overall) / (counts + _PRIOR)
        more = np.bincount(items, rewards - means[places], num_items)
        more = np.append(more / (np.bincount(items, minlength=num_items) + _PRIOR), 0.0)
        is_unseen_R = ~fits_R
        base = means[trials.positions_R[is_unseen_R]]
        shown_R[is_unseen_R] = base + more[trials.shown_R[is_unseen_R]]
        target_R[is_unseen_R] = np.where(
            trials.target_R[is_unseen_R] < 0, 0.0, base + more[trials.target_R[is_unseen_R]]
        )
    return shown_R, target_R
