"""The closed-form members over padded histories: the results of their modules, with operations of
ONNX.

Each function is the ``forward`` (vectors z [B, R]) or ``boost`` (additions [B, N]) of one member.
Every export tests that both forms agree, see :func:`recsys.export.onnx_file.compare`.

Legend: as in :mod:`recsys.export.seen`; N items, R width of a member.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.functional import normalize

from recsys.export.onnx_friends import friend_state, social_cf, social_counts
from recsys.export.onnx_links import item_cf, item_cf_additions, item_knn, linked_state
from recsys.export.onnx_repeats import repeat
from recsys.export.seen import Seen
from recsys.granularities.als.model import Als
from recsys.granularities.base import Granularity, State
from recsys.granularities.content.model import Content
from recsys.granularities.frequency.model import Frequency
from recsys.granularities.item_cf.model import ItemCF
from recsys.granularities.item_knn.model import ItemKnn
from recsys.granularities.knowledge.counts import KnowledgeCounts
from recsys.granularities.log_odds import log_odds
from recsys.granularities.moment.model import Moment
from recsys.granularities.place.model import Place
from recsys.granularities.popularity.model import Popularity
from recsys.granularities.profile.counts import ProfileCounts
from recsys.granularities.profile.model import known_rows
from recsys.granularities.repeat.model import Repeat
from recsys.granularities.social.counts import SocialCounts
from recsys.granularities.social_cf.model import SocialCF
from recsys.granularities.user_cf.model import UserCF

_LEAST_COSINE: Final = 1e-5


def user_cf(module: UserCF, state: State, seen: Seen, most: int) -> Tensor:
    """Vectors of ``user_cf``: [B, R].

    Parameters
    ----------
    module : UserCF
        The member.
    state : State
        Its fitted tensors: ``fold_NR``, the users' ``tastes_VR`` [V, R] and their ``ids_V``.
    seen : Seen
        The queries with their padded histories; a query never uses its own user as a neighbour.
    most : int
        Number of newest events of each query that count.

    Returns
    -------
    Tensor
        Float [B, R]: weighted mean of the tastes of the nearest users.
    """
    taste_BR = (state["fold_NR"][seen.items_BL] * seen.newest(most)[:, :, None]).sum(1)
    unit_VR = normalize(state["tastes_VR"], dim=1)
    cosine_BV = normalize(taste_BR, dim=1) @ unit_VR.T
    # nobody is nearer to a user than the user
    cosine_BV = cosine_BV.masked_fill(seen.users_B[:, None] == state["ids_V"], 0.0)
    nearest_BK, rows_BK = cosine_BV.topk(min(module.config.neighbours, len(unit_VR)), dim=1)
    weights_BK = nearest_BK.clamp(min=0) ** module.config.power * (nearest_BK > _LEAST_COSINE)
    weights_BK = weights_BK / weights_BK.sum(1, keepdim=True).clamp(min=1e-30)
    return (state["tastes_VR"][rows_BK] * weights_BK[:, :, None]).sum(1)


def als(module: Als, state: State, seen: Seen) -> Tensor:
    """Solve exactly by Gauss–Jordan; the matrix is symmetric positive definite, so no pivoting is
    needed.

    Parameters
    ----------
    module : Als
        The member.
    state : State
        Its fitted tensors: ``items_NR`` [N, R] and ``gram_RR`` [R, R].
    seen : Seen
        The queries with their padded histories.

    Returns
    -------
    Tensor
        Vectors, float [B, R]; zero for a query without events that count.
    """
    kept_BL = seen.distinct(seen.of_types(seen.real_BL, state.get("counts_T")))
    own_BLR = state["items_NR"][seen.items_BL] * kept_BL[:, :, None]
    left_BRR = state["gram_RR"] + (module.alpha - 1) * own_BLR.mT @ own_BLR
    both_BRX = torch.cat([left_BRR, module.alpha * own_BLR.sum(1)[:, :, None]], dim=2)
    rank = left_BRR.shape[2]
    identity_RR = torch.eye(rank)
    # a loop over pivots, because ONNX has no operation that solves equations
    for pivot in range(rank):
        row_B1X = both_BRX[:, pivot : pivot + 1] / both_BRX[:, pivot : pivot + 1, pivot : pivot + 1]
        column_BR1 = both_BRX[:, :, pivot : pivot + 1] - identity_RR[:, pivot : pivot + 1]
        both_BRX = both_BRX - column_BR1 * row_B1X
    return both_BRX[:, :, rank] * kept_BL.any(1, keepdim=True)


def content(module: Content, state: State, seen: Seen) -> Tensor:
    """Vectors of ``content``: [B, R].

    Parameters
    ----------
    module : Content
        The member.
    state : State
        Its fitted tensors; ``texts_NT`` are the text vectors of the items.
    seen : Seen
        The queries with their padded histories.

    Returns
    -------
    Tensor
        Float [B, R]: weighted mean of the text vectors.
    """
    texts_BLT = state["texts_NT"][seen.items_BL]
    kept_BL = seen.distinct(seen.real_BL) & (texts_BLT != 0).any(2)
    weights_BL = seen.event_weights(kept_BL, module.recency, module.half_life)
    weights_BL = weights_BL / weights_BL.sum(1, keepdim=True).clamp(min=1e-12)
    return (texts_BLT * weights_BL[:, :, None]).sum(1)


def place(module: Place, state: State, seen: Seen) -> Tensor:
    """Vectors of ``place``: [B, R].

    Parameters
    ----------
    module : Place
        The member.
    state : State
        Its fitted tensors: ``vectors_NM`` and ``known_N``, bool [N], true for items with a place.
    seen : Seen
        The queries with their padded histories.

    Returns
    -------
    Tensor
        Float [B, R]; the last column is 1 if any event has a place, else 0.
    """
    kept_BL = seen.real_BL & state["known_N"][seen.items_BL]
    weights_BL = seen.event_weights(kept_BL, module.recency, None)
    weights_BL = weights_BL / weights_BL.sum(1, keepdim=True).clamp(min=1e-30)
    z_BM = (state["vectors_NM"][seen.items_BL] * weights_BL[:, :, None]).sum(1)
    return torch.cat([z_BM[:, :-1], kept_BL.any(1, keepdim=True).float()], dim=1)


def moment(module: Moment, state: State, seen: Seen) -> Tensor:
    """Vectors of ``moment``: [B, R].

    Parameters
    ----------
    module : Moment
        The member.
    state : State
        Not used.
    seen : Seen
        The queries, with the time and the context of each.

    Returns
    -------
    Tensor
        Float [B, R]: number of times each cell applies; the last column is 1 if any cell is known.
    """
    cells_BX = module.cells(seen.asked_at_B, seen.asked_BC)
    known_BX = cells_BX >= 0
    is_cell_BXG = cells_BX[:, :, None] == torch.arange(module.num_cells)
    z_BG = (is_cell_BXG & known_BX[:, :, None]).float().sum(1)
    return torch.cat([z_BG, known_BX.any(1, keepdim=True).float()], dim=1)


def popularity(module: Popularity, state: State, seen: Seen) -> Tensor:
    """Popularity at the end of the data, because queries are later than the last event.

    Parameters
    ----------
    module : Popularity
        Not used.
    state : State
        Fitted tensors; only the length of ``moments_T`` counts.
    seen : Seen
        The queries.

    Returns
    -------
    Tensor
        Float [B, R]: 1 in the last column, 0 elsewhere.
    """
    last_T = torch.zeros(len(state["moments_T"]))
    last_T[-1] = 1.0
    return last_T.expand(seen.lengths_B.shape[0], -1)


def profile_counts(module: ProfileCounts, state: State, seen: Seen) -> Tensor:
    """Vectors of ``profile`` with counts: [B, R].

    Parameters
    ----------
    module : ProfileCounts
        The member.
    state : State
        Its fitted tensors with the stored attributes of users.
    seen : Seen
        The queries, with given attributes.

    Returns
    -------
    Tensor
        Float [B, R]: membership of each cell; the last column is 1 for a query with a known cell
        and without history.
    """
    batch = seen.batch(1)
    member_BG = module.cells(known_rows(batch, state, module.cells.fields))
    is_new_B = (member_BG > 0).any(1) & (seen.lengths_B == 0)
    return torch.cat([member_BG, is_new_B[:, None].float()], dim=1)


def knowledge_counts(module: KnowledgeCounts, state: State, seen: Seen, most: int) -> Tensor:
    """Vectors of ``knowledge`` with counts: [B, R].

    Parameters
    ----------
    module : KnowledgeCounts
        The member.
    state : State
        Its fitted tensors; ``shares_NE`` has the entities of each item.
    seen : Seen
        The queries with their padded histories.
    most : int
        Number of newest events of each query that count.

    Returns
    -------
    Tensor
        Float [B, R]: log odds of each entity.
    """
    counts_BE = (state["shares_NE"][seen.items_BL] * seen.newest(most)[:, :, None]).sum(1)
    total_BE = counts_BE @ state["same_EK"] @ state["same_EK"].T
    return log_odds(counts_BE, total_BE, state["share_E"], module.config.smoothing) * (total_BE > 0)


def frequency(module: Frequency, state: State, seen: Seen) -> Tensor:
    """Additions of ``frequency`` to the scores: [B, N].

    Parameters
    ----------
    module : Frequency
        The member.
    state : State
        Its fitted tensors; ``counts_T``, bool [T], says which event types count.
    seen : Seen
        The queries with their padded histories.

    Returns
    -------
    Tensor
        Float [B, N]: log(1 + decayed number of events) of each item.
    """
    kept_BL = seen.of_types(seen.real_BL, state["counts_T"])
    values_BL = torch.ones_like(kept_BL, dtype=torch.float32)
    if module.half_life is not None:
        newest = torch.zeros_like(seen.asked_at_B)
        ages_BL = seen.days_before(newest, kept_BL) if module.timed else seen.lags_BL.float()
        values_BL = torch.exp2(-ages_BL / module.half_life)
    return seen.per_item(values_BL.where(kept_BL, 0.0), len(state["none_N"])).log1p()


def prepared(module: Granularity, state: State) -> State:
    """The state, extended by tables whose shape depends on the data, which a graph cannot
    compute.
    """
    if isinstance(module, SocialCounts | SocialCF):
        return state | friend_state(state)
    return state | linked_state(state) if "starts_N1" in state else state


VECTORS: Final[dict[type[Granularity], Callable[..., Tensor]]] = {
    ItemCF: item_cf,
    Als: als,
    Content: content,
    Place: place,
    Moment: moment,
    Popularity: popularity,
    ProfileCounts: profile_counts,
    SocialCF: social_cf,
}
OF_NEWEST: Final[dict[type[Granularity], Callable[..., Tensor]]] = {
    UserCF: user_cf,
    KnowledgeCounts: knowledge_counts,
}
ADDITIONS: Final[dict[type[Granularity], Callable[..., Tensor]]] = {
    ItemCF: item_cf_additions,
    ItemKnn: item_knn,
    Frequency: frequency,
    SocialCounts: social_counts,
    Repeat: repeat,
}


def has_additions(module: Any) -> bool:
    """Whether a member adds to the scores of few items; popularity has no such part after the last
    event.
    """
    return bool(module.sparse or (module.corrects and not isinstance(module, Popularity)))
