"""Explicit ratings next to the ranking: which value a user would give an item (S3: R = CF(P(Y)), by
squared error).

With the visible values r_uj of a history H_u, the item vectors a_i of the trained model and its
scores,

    r̂_ui = μ + b_i + b_u + q_i · Σ_{j ∈ H_u} e_uj p_j / √(|H_u| + 1) + s · c_ui,
    e_uj = r_uj − μ − b_j − b_u,
    b_i  = Σ_v (r_vi − μ − b_v) / (n_i + κ_i),    b_u = Σ_j (r_uj − μ − b_j) / (|H_u| + κ_u),

the asymmetric factors p_i = a_i W_p, q_i = a_i W_q of the unit item vectors (Koren 2008), and c_ui
the score u · a_i in standard deviations of the query's scores. Why asymmetric: users have no row of
their own, so new users and items without ratings have predictions too. Predictions are clipped to
the range of the training values.

Lists are ranked by score, never by rating: what people choose and how they rate it afterwards are
two questions.

Legend: N items, E events, B queries, M requested items of a query, R rank, D width of the item
vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Final

import numpy as np
import torch
from torch import Tensor

from recsys.data.histories import Histories, Queries, Split

_SWEEPS: Final = 10


@dataclass(frozen=True)
class RatingHead:
    """The formula without the score; only tensors, so that it is saved with the model."""

    mean: Tensor  # scalar
    item_bias_N: Tensor
    user_damping: Tensor  # κ_u, scalar
    taste_NR: Tensor  # p
    item_NR: Tensor  # q
    score_weight: Tensor  # s, scalar
    range_2: Tensor  # smallest and largest value in training

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, for :meth:`from_tensors`."""
        return {column.name: getattr(self, column.name) for column in fields(self)}

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor]) -> RatingHead:
        """Invert :meth:`tensors`."""
        return RatingHead(**{column.name: tensors[column.name] for column in fields(RatingHead)})

    def to(self, device: torch.device) -> RatingHead:
        """Move all tensors to a device."""
        return RatingHead(*(tensor.to(device) for tensor in self.tensors().values()))

    def predict(self, histories: Histories, items_BM: Tensor, standard_BM: Tensor) -> Tensor:
        """r̂ [B, M] of items by users with these histories (values of NaN are unknown and left
        out).

        Parameters
        ----------
        histories : Histories
            B histories, one per user.
        items_BM : Tensor, [B, M] int64
            Items to predict.
        standard_BM : Tensor, [B, M] float
            Their scores c in standard deviations of the query's scores.

        Returns
        -------
        Tensor, [B, M] float
            Predictions, clipped to the range of the training values.
        """
        events = RatedEvents.of(histories, items_BM.device)
        bias_B, residual_E = self.user_bias(events)
        taste_BR = events.sums(residual_E[:, None] * self.taste_NR[events.items_E])
        taste_BR = taste_BR / (events.count_B[:, None] + 1).sqrt()
        liked_BM = (self.item_NR[items_BM] * taste_BR[:, None, :]).sum(2)
        rating_BM = self.mean + self.item_bias_N[items_BM] + bias_B[:, None] + liked_BM
        return (rating_BM + self.score_weight * standard_BM).clamp(self.range_2[0], self.range_2[1])

    def user_bias(self, events: RatedEvents) -> tuple[Tensor, Tensor]:
        """b_u of every row, and the residual of every value: [B], [E]."""
        above_E = events.values_E - self.mean - self.item_bias_N[events.items_E]
        bias_B = events.sums(above_E[:, None])[:, 0] / (events.count_B + self.user_damping).clamp(
            min=1e-12
        )
        return bias_B, above_E - bias_B[events.rows_E]


@dataclass(frozen=True)
class RatedEvents:
    """The events of histories that have a value."""

    rows_E: Tensor  # int64
    items_E: Tensor  # int64
    values_E: Tensor
    count_B: Tensor  # number of these events by row, float32

    @staticmethod
    def of(histories: Histories, device: torch.device) -> RatedEvents:
        """Collect the events with a value."""
        known_E = np.isfinite(histories.values_E)
        rows_E = np.repeat(np.arange(len(histories)), histories.lengths_U)[known_E]
        count_B = np.bincount(rows_E, minlength=len(histories)).astype(np.float32)
        columns = (
            rows_E,
            histories.items_E[known_E].astype(np.int64),
            histories.values_E[known_E],
            count_B,
        )
        return RatedEvents(*(torch.as_tensor(column).to(device) for column in columns))

    def sums(self, values_EX: Tensor) -> Tensor:
        """Sum over the events of every row: [B, X]."""
        return values_EX.new_zeros(len(self.count_B), values_EX.shape[1]).index_add(
            0, self.rows_E, values_EX
        )


def standardised(scores_BN: Tensor, items_BM: Tensor) -> Tensor:
    """c: scores of the given items in standard deviations of each query's scores."""
    centred_BM = scores_BN.gather(1, items_BM) - scores_BN.mean(1, keepdim=True)
    return centred_BM / scores_BN.std(1, keepdim=True).clamp(min=1e-30)


@dataclass(frozen=True)
class Constants:
    """Hyper-parameters that validation chooses."""

    item_damping: float = 3.0
    user_damping: float = 3.0
    decay: float = 0.0
    steps: int = 0
    score_weight: float = 0.0


def why_no_ratings(histories: Histories) -> str:
    """Why values cannot be predicted; empty if they can."""
    known_E = histories.values_E[np.isfinite(histories.values_E)]
    if len(np.unique(known_E)) > 1:
        return ""
    same = f"all {len(known_E):,} are {known_E[0]:g}" if len(known_E) else "there are none"
    return (
        f"the values of training events do not vary ({same}); rename the column with the ratings to"
        " value"
    )


def biases(training: Histories, num_items: int, constants: Constants) -> RatingHead:
    """μ and the ridge regression of the values on items and users by alternating sweeps; the other
    terms are zero.

    Parameters
    ----------
    training : Histories
        Training events with their values; NaN is an unknown value.
    num_items : int
        Number of items N.
    constants : Constants
        The damping κ of items and users, as a number of events.

    Returns
    -------
    RatingHead
        The formula with μ and the biases only.
    """
    events = RatedEvents.of(training, torch.device("cpu"))
    mean = events.values_E.double().mean().float()
    count_N = torch.bincount(events.items_E, minlength=num_items).float()
    damping = torch.tensor(float(constants.user_damping))
    none_NR = torch.zeros(num_items, 1)
    spread_2 = torch.stack([events.values_E.min(), events.values_E.max()])
    head = RatingHead(
        mean, torch.zeros(num_items), damping, none_NR, none_NR, torch.tensor(0.0), spread_2
    )
    for _ in range(_SWEEPS):
        _, residual_E = head.user_bias(events)
        above_E = residual_E + head.item_bias_N[events.items_E]
        above_N = torch.zeros(num_items).index_add(0, events.items_E, above_E)
        head = replace(
            head, item_bias_N=above_N / (count_N + constants.item_damping).clamp(min=1e-12)
        )
    return head


def rated_queries(histories: Histories, split: Split) -> tuple[Queries, Tensor]:
    """One query for each held-out event that has a value, and the values: [P]."""
    queries = histories.queries(split)
    values_P = histories.target_values(split)
    known_P = np.isfinite(values_P)
    rows_P = queries.target_rows()[known_P]
    singles = Queries(
        queries.histories.take(rows_P),
        np.arange(len(rows_P) + 1),
        queries.target_items[known_P],
        queries.context_BC[rows_P],
        queries.asked_at_B[rows_P],
        queries.target_types[known_P],
    )
    return singles, torch.as_tensor(values_P[known_P])
