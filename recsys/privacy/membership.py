"""A test of membership: can a model tell a forgotten user from one that it has never seen?

The attack (Yeom et al. 2018; Carlini et al. 2022) asks the model with each stretch of a history and looks at how
probable it takes what came next to be. What a model remembers of a user makes their own events more probable than those
of people like them. Asked without an id, as anybody could. AUC .5: the attack is blind; 1: it always tells.

    t(u) = mean over places p of  log softmax_i(s(u_{<p}, i)) at the item of place p

Remaining users, whom the model was trained on, are asked as well: where the attack does not tell *them* either, the
test says little, and says so. Legend: U users, Q questions, N items.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import torch

from recsys.data.histories import Array, Histories, Queries
from recsys.model import FrozenModel

_PLACES: Final = 12  # questions a user, evenly over the history
_CHUNK: Final = 256
_Z: Final = 1.96


@dataclass(frozen=True)
class Separation:
    """How well the attack tells a group from the users that were never seen."""

    auc: float
    low: float  # 95 % interval (Hanley and McNeil 1982)
    high: float
    users: int

    @property
    def is_blind(self) -> bool:
        return self.low <= 0.5 <= self.high


def separation(group: Array, unseen: Array) -> Separation:
    """AUC of two samples of the statistic, ties counted half.

    >>> separation(np.array([1.0, 2.0]), np.array([1.0, 2.0])).auc
    0.5
    """
    n, m = len(group), len(unseen)
    wins = (group[:, None] > unseen[None]).mean() + 0.5 * (group[:, None] == unseen[None]).mean()
    auc = float(wins)
    q1, q2 = auc / (2 - auc), 2 * auc * auc / (1 + auc)
    variance = (auc * (1 - auc) + (n - 1) * (q1 - auc**2) + (m - 1) * (q2 - auc**2)) / (n * m)
    least = (1 / n + 1 / m) / 12  # of no separation at all, which the formula above gives as 0 at the ends
    error = math.sqrt(max(variance, least if auc in (0.0, 1.0) else 0.0))
    return Separation(auc, max(0.0, auc - _Z * error), min(1.0, auc + _Z * error), n)


def statistics(model: FrozenModel, histories: Histories) -> Array:
    """t(u) of every user with two events and more: float64."""
    rows, places = _questions(histories)
    found = np.zeros(len(rows))
    for start in range(0, len(rows), _CHUNK):
        span = slice(start, start + _CHUNK)
        found[span] = _log_probabilities(model, histories, rows[span], places[span])
    sums, numbers = np.bincount(rows, found, len(histories)), np.bincount(rows, minlength=len(histories))
    return np.asarray(sums[numbers > 0] / numbers[numbers > 0])


def _questions(histories: Histories) -> tuple[Array, Array]:
    """Row and place of every question; a place has at least one event before it."""
    rows, places = [], []
    for row, length in enumerate(histories.lengths_U.tolist()):
        if length > 1:
            chosen = np.unique(np.linspace(1, length - 1, min(_PLACES, length - 1)).round().astype(np.int64))
            rows.append(np.full(len(chosen), row))
            places.append(chosen)
    nothing = np.zeros(0, dtype=np.int64)
    return (np.concatenate(rows), np.concatenate(places)) if rows else (nothing, nothing)


def _log_probabilities(model: FrozenModel, histories: Histories, rows: Array, places: Array) -> Array:
    whole = histories.take(rows)
    starts = whole.offsets_U1[:-1]
    at_E = np.arange(len(whole.items_E)) - np.repeat(starts, whole.lengths_U)
    seen = whole.where(at_E < np.repeat(places, whole.lengths_U))
    asked = starts + places
    nobody = Histories(
        np.full(len(rows), -1, dtype=np.int32), seen.offsets_U1, seen.items_E, seen.types_E, seen.times_E,
        seen.values_E, seen.splits_E, seen.context_EC, seen.targets_T,
    )  # fmt: skip
    offsets = np.arange(len(rows) + 1, dtype=np.int64)
    queries = Queries(nobody, offsets, whole.items_E[asked], whole.context_EC[asked], whole.times_E[asked])
    scores_QN = model.scores(queries).double().cpu()
    targets_Q = torch.as_tensor(whole.items_E[asked].astype(np.int64))
    scores_QN = scores_QN / scores_QN.std(dim=1, keepdim=True).clamp(min=1e-12)  # members of a sum have no scale
    chosen_Q = torch.log_softmax(scores_QN, dim=1).gather(1, targets_Q[:, None])[:, 0]
    return np.asarray(chosen_Q)


def membership(model: FrozenModel, forgotten: Histories, unseen: Histories, members: Histories) -> dict[str, Any]:
    """The test as plain values for the proof: who is told from the users that the model has never seen.

    Parameters
    ----------
    model : FrozenModel
        after the forgetting.
    forgotten : Histories
        what was known of who was forgotten, by the numbers of the model's items.
    unseen : Histories
        users that no training has seen.
    members : Histories
        users that the model was trained on.
    """
    t_unseen = statistics(model, unseen)
    t_forgotten, t_members = statistics(model, forgotten), statistics(model, members)
    if not len(t_unseen) or not len(t_forgotten):
        return {"tested": False, "why": _why(len(t_forgotten))}
    found = separation(t_forgotten, t_unseen)
    said = {"tested": True, "unseen": len(t_unseen), "forgotten": asdict(found), "is_blind": found.is_blind}
    if len(t_members):
        control = separation(t_members, t_unseen)
        said |= {"members": asdict(control), "tells_members": not control.is_blind}
    return said


def _why(num_forgotten: int) -> str:
    if not num_forgotten:
        return "no forgotten user has two events that are known"
    return (
        "there are no users that the model has never seen; name a file of their histories with forget.unseen, or use a "
        "temporal split, which has newcomers in its test part"
    )
