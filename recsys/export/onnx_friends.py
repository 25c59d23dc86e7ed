"""Members that read friends, ``social`` with counts and ``social_cf``, with operations of ONNX.

Legend: as in :mod:`recsys.export.seen`; N items, G friends of a query, E events of a friend.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recsys.export.seen import Seen
from recsys.granularities.base import State
from recsys.granularities.history import DAY
from recsys.granularities.social.counts import SocialCounts
from recsys.granularities.social_cf.model import SocialCF


def social_counts(module: SocialCounts, state: State, seen: Seen) -> Tensor:
    """Additions of ``social`` with counts to the scores: [B, N].

    Parameters
    ----------
    module : SocialCounts
        The member.
    state : State
        Tensors from :func:`friend_state`, with the friends of users and the events of friends.
    seen : Seen
        The queries; given friends replace the stored ones.

    Returns
    -------
    Tensor
        Float [B, N].
    """
    friends_BG, weights_BG = _friends(state, seen)
    weights_BG = weights_BG / weights_BG.sum(1, keepdim=True).clamp(min=1e-12).sqrt()
    indices_BGE, is_there_BGE = _ranges(state, "event", friends_BG)
    items_BGE, times_BGE = state["items_E"][indices_BGE].long(), state["times_E"][indices_BGE]
    asked_B11 = seen.asked_at_B[:, None, None]
    is_before_BGE = (times_BGE < asked_B11) | (times_BGE == 0) | (asked_B11 == 0)
    damped_N = state["degree_N"].clamp(min=1) ** -module.damping
    values_BGE = weights_BG[:, :, None] * damped_N[items_BGE]
    kept_BGE = is_before_BGE & is_there_BGE & (values_BGE > 0)
    if module.half_life is not None:
        asked_B11 = torch.where(asked_B11 == 0, state["newest"], asked_B11)
        days_BGE = (asked_B11 - times_BGE).clamp(min=0) / DAY
        logs_BGE = -days_BGE / module.half_life
        # finite, because −∞ minus −∞ is NaN for a query without events of friends
        most_B11 = torch.where(kept_BGE, logs_BGE, -1e30).amax((1, 2), keepdim=True)
        is_some_B11 = kept_BGE.any(2, keepdim=True).any(1, keepdim=True)
        raised_B11 = torch.where(is_some_B11, (-20.0 - most_B11).clamp(min=0), 0.0)
        values_BGE = values_BGE * torch.exp2(logs_BGE + raised_B11)
    values_BGE = values_BGE.where(kept_BGE, 0.0)
    sums_BN = values_BGE.new_zeros(values_BGE.shape[0], len(damped_N))
    return sums_BN.scatter_add(1, items_BGE.flatten(1), values_BGE.flatten(1))


def social_cf(module: SocialCF, state: State, seen: Seen) -> Tensor:
    """Vectors of ``social_cf``: [B, R].

    Parameters
    ----------
    module : SocialCF
        The member.
    state : State
        Tensors from :func:`friend_state`, with the friends and the tastes of users.
    seen : Seen
        The queries; given friends replace the stored ones.

    Returns
    -------
    Tensor
        Float [B, R]: weighted sum of the tastes of friends.
    """
    friends_BG, weights_BG = _friends(state, seen)
    tastes_BGR = state["tastes_VR"][friends_BG]
    weights_BG = weights_BG * (tastes_BGR != 0).any(2)
    weights_BG = weights_BG / weights_BG.sum(1, keepdim=True).clamp(min=1e-12).sqrt()
    return (tastes_BGR * weights_BG[:, :, None]).sum(1)


def _friends(state: State, seen: Seen) -> tuple[Tensor, Tensor]:
    """Friends and their weights, the given or the stored ones, weight zero for padding: [B, G]
    each.
    """
    is_named_BF = seen.friends_BF >= 0
    names_B1 = is_named_BF.any(1, keepdim=True)
    is_known_B = (seen.users_B >= 0) & (seen.users_B < len(state["friend_starts_V1"]) - 1)
    indices_BS, is_there_BS = _ranges(state, "friend", seen.users_B.where(is_known_B, 0)[:, None])
    indices_BS, is_there_BS = indices_BS[:, 0], is_there_BS[:, 0] & is_known_B[:, None] & ~names_B1
    friends_BG = torch.cat(
        [seen.friends_BF.clamp(min=0), state["friends_F"][indices_BS].long()], dim=1
    )
    stored_BS = state["weights_F"][indices_BS].where(is_there_BS, 0.0)
    return friends_BG, torch.cat([is_named_BF.float(), stored_BS], dim=1)


def _ranges(state: State, name: str, rows_BG: Tensor) -> tuple[Tensor, Tensor]:
    """Positions of the entries of some rows of a sparse table, and a mask of the valid ones: [B, G,
    E].
    """
    starts_X1, offsets_E = state[f"{name}_starts_V1"], state[f"{name}_places_E"]
    # as many places as the longest row has, because a graph has fixed shapes
    indices_BGE = starts_X1[rows_BG][:, :, None] + offsets_E
    is_there_BGE = indices_BGE < starts_X1[rows_BG + 1][:, :, None]
    return indices_BGE.where(is_there_BGE, 0), is_there_BGE


def friend_state(state: State) -> State:
    """Add positions up to the longest row of friends and, where the member reads them, of events;
    an empty table gets one unused entry.
    """
    made: State = {}
    if "times_E" in state:
        made["newest"] = state["times_E"].max() if len(state["times_E"]) else torch.tensor(0)
    for name in ("friend", "event"):
        if f"{name}_starts_V1" in state:
            lengths_V = state[f"{name}_starts_V1"].diff()
            made[f"{name}_places_E"] = torch.arange(
                max(int(lengths_V.max()) if len(lengths_V) else 0, 1)
            )
    tables = ("friends_F", "weights_F", "items_E", "times_E")
    filled = {key: state[key] for key in tables if key in state}
    # a graph cannot index an empty table, not even where the mask hides the entry
    return made | {
        key: value if len(value) else value.new_zeros(1) for key, value in filled.items()
    }
