"""Membership inference test: whether an attacker can tell deleted users from never-seen ones.

The attack (Yeom et al. 2018; Carlini et al. 2022) queries the model with prefixes of a history and
reads the probability of the next item. If the model has memorised a user, the user's own events are
more probable than those of similar people. Queries have no user id, as any attacker could make
them. AUC .5: the attack finds nothing; 1: it is always right.

    t(u) = mean over positions p of  log softmax_i(s(u_{<p}, i)) at the item at position p

The attack also runs on remaining users, whose events trained the model. If it does not find *them*
either, the test proves little, and the result says so. Legend: U users, Q queries, N items.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import torch

from recsys.data.histories import Array, Histories, Queries
from recsys.model import FrozenModel

_POSITIONS: Final = 12  # queries per user, evenly over the history
_CHUNK: Final = 256
_Z: Final = 1.96


@dataclass(frozen=True)
class Separation:
    """How well the attack separates a group from users that the model has never seen."""

    auc: float
    low: float  # 95 % interval (Hanley and McNeil 1982)
    high: float
    users: int

    @property
    def is_blind(self) -> bool:
        """Whether the interval includes .5, so that the attack finds nothing."""
        return self.low <= 0.5 <= self.high


def separation(group: Array, unseen: Array) -> Separation:
    """AUC of two samples of the statistic; ties count half.

    >>> separation(np.array([1.0, 2.0]), np.array([1.0, 2.0])).auc
    0.5
    """
    n, m = len(group), len(unseen)
    wins = (group[:, None] > unseen[None]).mean() + 0.5 * (group[:, None] == unseen[None]).mean()
    auc = float(wins)
    q1, q2 = auc / (2 - auc), 2 * auc * auc / (1 + auc)
    variance = (auc * (1 - auc) + (n - 1) * (q1 - auc**2) + (m - 1) * (q2 - auc**2)) / (n * m)
    least = (
        1 / n + 1 / m
    ) / 12  # variance without any separation; the formula above gives 0 at AUC 0 and 1
    error = math.sqrt(max(variance, least if auc in (0.0, 1.0) else 0.0))
    return Separation(auc, max(0.0, auc - _Z * error), min(1.0, auc + _Z * error), n)


def statistics(model: FrozenModel, histories: Histories) -> Array:
    """t(u) of every user with at least two events: float64."""
    rows, positions = _queries(histories)
    found = np.zeros(len(rows))
    for start in range(0, len(rows), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        found[chunk] = _log_probabilities(model, histories, rows[chunk], positions[chunk])
    sums = np.bincount(rows, found, len(histories))
    numbers = np.bincount(rows, minlength=len(histories))
    return np.asarray(sums[numbers > 0] / numbers[numbers > 0])


def _queries(histories: Histories) -> tuple[Array, Array]:
    """Row and position of every query; a position has at least one event before it."""
    rows, positions = [], []
    for row, length in enumerate(histories.lengths_U.tolist()):
        if length > 1:
            chosen = np.unique(
                np.linspace(1, length - 1, min(_POSITIONS, length - 1)).round().astype(np.int64)
            )
            rows.append(np.full(len(chosen), row))
            positions.append(chosen)
    nothing = np.zeros(0, dtype=np.int64)
    return (np.concatenate(rows), np.concatenate(positions)) if rows else (nothing, nothing)


def _log_probabilities(
    model: FrozenModel, histories: Histories, rows: Array, positions: Array
) -> Array:
    whole = histories.take(rows)
    starts = whole.offsets_U1[:-1]
    at_E = np.arange(len(whole.items_E)) - np.repeat(starts, whole.lengths_U)
    seen = whole.where(at_E < np.repeat(positions, whole.lengths_U))
    targets = starts + positions
    # −1 stands for an unknown user: with the id, a model would look up what it has learned of them
    without_ids = Histories(
        np.full(len(rows), -1, dtype=np.int32), seen.offsets_U1, seen.items_E, seen.types_E,
        seen.times_E, seen.values_E, seen.splits_E, seen.context_EC, seen.targets_T,
    )  # fmt: skip
    offsets = np.arange(len(rows) + 1, dtype=np.int64)
    queries = Queries(
        without_ids,
        offsets,
        whole.items_E[targets],
        whole.context_EC[targets],
        whole.times_E[targets],
    )
    scores_QN = model.scores(queries).double().cpu()
    targets_Q = torch.as_tensor(whole.items_E[targets].astype(np.int64))
    # stacked members have no scale
    scores_QN = scores_QN / scores_QN.std(dim=1, keepdim=True).clamp(min=1e-12)
    chosen_Q = torch.log_softmax(scores_QN, dim=1).gather(1, targets_Q[:, None])[:, 0]
    return np.asarray(chosen_Q)


def membership(
    model: FrozenModel,
    forgotten: Histories,
    unseen: Histories,
    members: Histories,
    is_temporal: bool = False,
) -> dict[str, Any]:
    """The result of the test as plain values for the proof: who is separable from users that the
    model has never seen.

    Parameters
    ----------
    model : FrozenModel
        The model after the deletion.
    forgotten : Histories
        Histories of the deleted users, with the dense item ids of the model.
    unseen : Histories
        Users whose events trained no model.
    members : Histories
        Users whose events trained the model.
    is_temporal : bool
        Whether the split is temporal; the reason for no test then does not advise one.
    """
    t_unseen = statistics(model, unseen)
    t_forgotten, t_members = statistics(model, forgotten), statistics(model, members)
    if not len(t_unseen) or not len(t_forgotten):
        return {"tested": False, "why": _why(len(t_forgotten), is_temporal)}
    found = separation(t_forgotten, t_unseen)
    result = {
        "tested": True,
        "unseen": len(t_unseen),
        "forgotten": asdict(found),
        "is_blind": found.is_blind,
    }
    if len(t_members):
        control = separation(t_members, t_unseen)
        result |= {"members": asdict(control), "tells_members": not control.is_blind}
    return result


def _why(num_forgotten: int, is_temporal: bool) -> str:
    if not num_forgotten:
        return "no deleted user has two known events"
    if is_temporal:
        return (
            "the test split has no new users with two events; give a file of histories that the"
            " model has never seen in forget.unseen"
        )
    return (
        "there are no users that the model has never seen; give a file of such histories in"
        " forget.unseen, or use a temporal split, which may have new users in its test split"
    )
