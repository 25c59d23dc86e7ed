"""Repeat: items of the history that a user will have again, from count, recency and regularity, and
from how often all users repeat the item.

A logistic regression of "is this item in the next basket" over the items of a user's history, at
sampled times of training histories (see ``features`` for its inputs); a small convex problem,
solved exactly by Newton's method. The score of an item in the history is log(1 + p / p̄), where p
is its probability and p̄ the mean probability. It orders like p, does not grow with the history,
and puts items with a small p among the new items.

It is sparse and in closed form: items outside the history get nothing, and validation chooses its
weight. At each time it reads the user's earlier events and, for the habits of an item, the events
of other users. It is absent where a history is empty.

Source: repeat consumption by count, recency and inter-purchase time (Anderson et al. 2014; Bhagat
et al. 2018, "Buy it again"; Ren et al. 2019, RepeatNet, for the split into repeats and
explorations).

Legend: B queries, E events, P pairs of a query and an item, F features, N items.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor

from recsys.config import Config
from recsys.data.batches import Batch
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array
from recsys.granularities.base import Granularity, Graphs, ItemView, ModelSizes, State
from recsys.granularities.repeat.habits import ItemHabits, pairs_of, why_nothing_repeats
from recsys.granularities.repeat.moments import sample_times
from recsys.granularities.repeat.pair_features import Basis, raw_numbers
from recsys.granularities.repeat.section import RepeatConfig
from recsys.granularities.sparse import SparseScores

# ridge on standardised features: keeps the fit finite if a feature separates the classes
_RIDGE: Final = 1.0
_STEPS: Final = 50


class Repeat(Granularity):
    """A closed-form sparse member; absent where a history is empty."""

    closed_form = True
    sparse = True
    reads_events = False
    reads_histories = True

    @classmethod
    def idle(cls, section: RepeatConfig, dataset: PreparedDataset, config: Config) -> str:
        """Repeats must occur and be allowed in lists.

        Parameters
        ----------
        section : RepeatConfig
            Not read.
        dataset : PreparedDataset
            The dataset; its shards are read until a user has an item twice.
        config : Config
            Says whether lists may contain items of the history.

        Returns
        -------
        str
            Why repeats cannot help; "" if they may.
        """
        return why_nothing_repeats(dataset, config.evaluate)

    def __init__(self, config: RepeatConfig, sizes: ModelSizes) -> None:
        super().__init__()
        self.config = config

    def state(self, items: ItemView, graphs: Graphs) -> State:
        """Fit the regression and keep it with the items' habits."""
        assert graphs.histories is not None, "reads_histories is set, so build_graphs has them"
        is_target_T = graphs.histories.targets_T
        # habits come from all training events, but each sampled pair subtracts its own user's part
        # (own)
        whole = pairs_of(graphs.histories, is_target_T)
        habits = ItemHabits.of(whole, graphs.num_items)
        moments = sample_times(graphs.histories, is_target_T, self.config.max_pairs)
        pairs = pairs_of(moments.histories, is_target_T)
        own = (whole, moments.rows_B)
        raw_PX = raw_numbers(pairs, moments.asked_at_B, habits, self.config.smoothing, own)
        basis = Basis.of(raw_PX)
        is_next_P = moments.are_next(pairs)
        weights_F = logistic(basis.features(raw_PX), is_next_P)
        tensors = {name: getattr(habits, name) for name in _HABITS} | {
            name: getattr(basis, name) for name in _BASIS
        }
        tensors |= {"weights_F": weights_F, "share": habits.share, "is_target_T": is_target_T}
        # without pairs there is no mean; any value does, as the weights are zero too
        tensors["mean_chance"] = is_next_P.mean() if len(is_next_P) else 0.5
        device = items.vectors_SD.device
        return {name: torch.as_tensor(value).float().to(device) for name, value in tensors.items()}

    def own_items(self, state: State) -> Tensor:
        """Empty vectors, because the member is sparse."""
        return state["repeats_N"].new_zeros(len(state["repeats_N"]), 0)

    def boost(self, batch: Batch, items: ItemView, state: State) -> SparseScores:
        """Log-ratio of the probability for every item of the history.

        Parameters
        ----------
        batch : Batch
            Queries with uncut histories in ``batch.whole``.
        items : ItemView
            Not read.
        state : dict of str to Tensor
            The regression, and the habits of the items.

        Returns
        -------
        SparseScores
            log(1 + p / p̄) of every item that a query had.
        """
        assert batch.whole is not None, "evaluation and serving pass uncut histories"
        # views, no copies: a request reads few items
        numbers = {name: tensor.cpu().numpy() for name, tensor in state.items()}
        habits = ItemHabits(
            **{name: numbers[name] for name in _HABITS}, share=float(numbers["share"])
        )
        basis = Basis(**{name: numbers[name] for name in _BASIS})
        pairs = pairs_of(batch.whole.histories, numbers["is_target_T"] > 0)
        raw_PX = raw_numbers(pairs, batch.whole.asked_at_B, habits, self.config.smoothing)
        chance_P = _sigmoid(basis.features(raw_PX) @ numbers["weights_F"])
        # the floor keeps the ratio finite when training had no repeats at all
        values_P = np.log1p(chance_P / max(float(numbers["mean_chance"]), 1e-6))
        device = state["weights_F"].device
        columns = (pairs.rows_P, pairs.items_P, values_P.astype(np.float32))
        return SparseScores(*(torch.from_numpy(column).to(device) for column in columns))


_HABITS: Final = ("repeats_N", "occasions_N", "log_gap_N", "log_steps_N")
_BASIS: Final = ("low_X", "high_X", "mean_X", "knots_XQ", "centre_F", "scale_F")


def logistic(features_PF: Array, is_true_P: Array) -> Array:
    """Weights [F] of the ridge logistic regression, by Newton's method; a step that overshoots is
    halved.

    >>> x = np.array([[-1.0, 1], [0, 1], [1, 1], [2, 1]])
    >>> weights = logistic(x, np.array([0.0, 1, 0, 1]))
    >>> residual = 1 / (1 + np.exp(-x @ weights)) - [0, 1, 0, 1]
    >>> gradient = x.T @ residual + np.array([1.0, 0]) * weights
    >>> bool(np.abs(gradient).max() < 1e-8)
    True
    """
    num_features = features_PF.shape[1]
    ridge_F = np.full(num_features, _RIDGE)
    # a ridge on the intercept would pull the mean probability to ½
    ridge_F[-1] = 0.0  # the constant
    weights_F = np.zeros(num_features)
    # all pairs true or all false would give an infinite start
    share = np.clip(is_true_P.mean() if len(is_true_P) else 0.5, 1e-6, 1 - 1e-6)
    # start at the base rate: then Newton's method needs few steps
    weights_F[-1] = np.log(share / (1 - share))
    loss = _loss(features_PF, is_true_P, weights_F, ridge_F)
    for _ in range(_STEPS):
        chance_P = _sigmoid(features_PF @ weights_F)
        gradient_F = features_PF.T @ (chance_P - is_true_P) + ridge_F * weights_F
        curvature_FF = (
            # 1e-9 keeps the system solvable when every probability is 0 or 1, also for the
            # intercept
            features_PF * (chance_P * (1 - chance_P))[:, None]
        ).T @ features_PF + np.diag(ridge_F + 1e-9)
        step_F, size = np.linalg.solve(curvature_FF, gradient_F), 1.0
        # far from the minimum a full Newton step can overshoot and raise the loss
        while (
            tried := _loss(features_PF, is_true_P, weights_F - size * step_F, ridge_F)
        ) > loss and size > 1e-4:
            size /= 2
        weights_F = weights_F - size * step_F
        done = loss - tried < 1e-10 * max(abs(loss), 1.0)
        loss = tried
        if done:
            break
    return weights_F


def _loss(features_PF: Array, is_true_P: Array, weights_F: Array, ridge_F: Array) -> float:
    logits_P = features_PF @ weights_F
    return float(
        # log(1 + e^x) without overflow for large logits
        (np.logaddexp(0, logits_P) - is_true_P * logits_P).sum()
        + 0.5 * (ridge_F * weights_F**2).sum()
    )


def _sigmoid(logits_P: Array) -> Array:
    # exp overflows float64 only at 709, but at 50 the probability is already 1 to all digits
    return np.asarray(1 / (1 + np.exp(-np.clip(logits_P, -50, 50))))
