"""The closed-form members over padded histories: the results of their modules, with operations of
ONNX.

Each function is the ``forward`` (vectors z [B, R]) or ``boost`` (additions [B, N]) of one member.
Every export tests that both forms agree, see :func:`recsys.export.onnx_file.compare`.

Legend: as in :mod:`recsys.export.seen`; N items, R width of a member, K links of an item, G friends
of a query, E events of a friend.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.functional import normalize

from recsys.export.onnx_repeats import repeat
from recsys.export.seen import Seen
from recsys.granularities.als.model import Als
from recsys.granularities.base import Granularity, State
from recsys.granularities.content.model import Content
from recsys.granularities.frequency.model import Frequency
from recsys.granularities.history import DAY
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
from recsys.granularities.user_cf.model import UserCF

_LEAST_COSINE: Final = 1e-5


def item_cf_weights(module: ItemCF, state: State, seen: Seen) -> Tensor:
    """Weight of every event, zero if it does not count: [B, L].

    Parameters
    ----------
    module : ItemCF
        The member.
    state : State
        Its fitted tensors; ``counts_T``, bool [T], says which event types count.
    seen : Seen
        The queries with their padded histories.

    Returns
    -------
    Tensor
        Float [B, L].
    """
    kept_BL = seen.distinct(seen.of_types(seen.real_BL, state.get("counts_T")))
    decay_BL = (seen.lags_BL + 1).float() ** -module.recency
    if module.config.event_weights == "rank":
        values_BL = torch.where(seen.values_BL.isnan(), 0.0, seen.values_BL)
        known_BL = kept_BL & ~seen.values_BL.isnan()
        smaller_BL = ((values_BL[:, None, :] < values_BL[:, :, None]) & known_BL[:, None, :]).sum(2)
        not_larger_BL = (
            (values_BL[:, None, :] <= values_BL[:, :, None]) & known_BL[:, None, :]
        ).sum(2)
        rank_BL = 0.5 + (smaller_BL + not_larger_BL) / 2 / known_BL.sum(1, keepdim=True).clamp(
            min=1
        )
        decay_BL = decay_BL * torch.where(known_BL, rank_BL, 1.0)
    return decay_BL.where(kept_BL, 0.0)


def item_cf(module: ItemCF, state: State, seen: Seen) -> Tensor:
    """Vectors of ``item_cf``: [B, R].

    Parameters
    ----------
    module : ItemCF
        The member.
    state : State
        Its fitted tensors; ``fold_NR`` folds items into vectors.
    seen : Seen
        The queries with their padded histories.

    Returns
    -------
    Tensor
        Float [B, R]: weighted sums over the events.
    """
    weights_BL = item_cf_weights(module, state, seen)
    return (state["fold_NR"][seen.items_BL] * weights_BL[:, :, None]).sum(1)


def item_cf_additions(module: ItemCF, state: State, seen: Seen) -> Tensor:
    """Additions of ``item_cf`` to the scores: [B, N].

    Parameters
    ----------
    module : ItemCF
        The member.
    state : State
        Its fitted tensors; for a sparse module, the links of the items.
    seen : Seen
        The queries with their padded histories.

    Returns
    -------
    Tensor
        Float [B, N].
    """
    weights_BL = item_cf_weights(module, state, seen)
    if module.sparse:
        return linked_scores(state, seen, weights_BL)
    # an event must not recommend its own item, so its share of the score is taken off
    share_N = (state["fold_NR"] * module.own_items(state)).sum(1)
    return seen.per_item(-share_N[seen.items_BL] * weights_BL, len(share_N))


def item_knn(module: ItemKnn, state: State, seen: Seen) -> Tensor:
    """Additions of ``item_knn`` to the scores: [B, N].

    Parameters
    ----------
    module : ItemKnn
        The member.
    state : State
        Its fitted tensors with the links of the items.
    seen : Seen
        The queries with their padded histories.

    Returns
    -------
    Tensor
        Float [B, N].
    """
    kept_BL = seen.distinct(seen.of_types(seen.real_BL, state.get("counts_T")))
    weights_BL = seen.event_weights(kept_BL, module.recency, module.half_life)
    weights_BL = weights_BL / weights_BL.sum(1, keepdim=True).clamp(min=1e-12).sqrt()
    found_BN = linked_scores(state, seen, weights_BL)
    if not module.config.itself[0]:
        return found_BN
    return found_BN + seen.per_item(
        weights_BL * state["itself_N"][seen.items_BL], found_BN.shape[1]
    )


def linked_scores(state: State, seen: Seen, weights_BL: Tensor) -> Tensor:
    """Weighted sums over linked items, Σ_j w_j S_ji: [B, N].

    Parameters
    ----------
    state : State
        Tensors from :func:`prepared`: ``ends_NK`` (int64) and ``values_NK`` (float), both [N, K].
    seen : Seen
        The queries with their padded histories.
    weights_BL : Tensor
        Float [B, L]: weight w_j of each event, 0 where it does not count.

    Returns
    -------
    Tensor
        Float [B, N].
    """
    ends_NK, values_NK = state["ends_NK"], state["values_NK"]
    # few targets per item: only the links of items in the history are read
    if "by_source" in state:
        added_BLK = weights_BL[:, :, None] * values_NK[seen.items_BL]
        sums_BN = weights_BL.new_zeros(weights_BL.shape[0], len(ends_NK))
        return sums_BN.scatter_add(1, ends_NK[seen.items_BL].flatten(1), added_BLK.flatten(1))
    asked_BN = seen.per_item(weights_BL, len(ends_NK))
    sums_BN = torch.zeros_like(asked_BN)
    for ends_N, values_N in zip(ends_NK.unbind(1), values_NK.unbind(1), strict=True):
        sums_BN = sums_BN + asked_BN[:, ends_N] * values_N
    return sums_BN


def _linked(state: State) -> State:
    """The links as a table by source item or by target item, whichever is smaller."""
    starts_N1 = state["starts_N1"]
    targets_L = state["targets_L"].long()
    links_L = state["weights_L"]
    num_items = len(starts_N1) - 1
    sources_L = torch.repeat_interleave(torch.arange(num_items), starts_N1.diff())
    most = int(torch.bincount(targets_L, minlength=num_items).max()) if num_items else 0
    # the longest row sets the width of the padded table, and so its size
    by_source = not num_items or int(starts_N1.diff().max()) <= most
    rows_L, columns_L = (sources_L, targets_L) if by_source else (targets_L, sources_L)
    ends_NK, values_NK = _table(rows_L, columns_L, links_L, num_items)
    made = {"ends_NK": ends_NK, "values_NK": values_NK}
    return made | {"by_source": torch.tensor(True)} if by_source else made


def _table(
    rows_L: Tensor, columns_L: Tensor, values_L: Tensor, num_rows: int
) -> tuple[Tensor, Tensor]:
    """Entries by row, padded with zeros: columns and values [N, K]."""
    order_L = rows_L.argsort(stable=True)
    rows_L, columns_L, values_L = rows_L[order_L], columns_L[order_L], values_L[order_L]
    counts_N = torch.bincount(rows_L, minlength=num_rows)
    place_L = torch.arange(len(rows_L)) - (counts_N.cumsum(0) - counts_N)[rows_L]
    shape = (num_rows, max(int(counts_N.max()), 1))
    columns_NK, values_NK = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape)
    columns_NK[rows_L, place_L], values_NK[rows_L, place_L] = columns_L, values_L
    return columns_NK, values_NK


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
    has_text_N = (state["texts_NT"] != 0).any(1)
    kept_BL = seen.distinct(seen.real_BL) & has_text_N[seen.items_BL]
    weights_BL = seen.event_weights(kept_BL, module.recency, module.half_life)
    weights_BL = weights_BL / weights_BL.sum(1, keepdim=True).clamp(min=1e-12)
    return (state["texts_NT"][seen.items_BL] * weights_BL[:, :, None]).sum(1)


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


def social_counts(module: SocialCounts, state: State, seen: Seen) -> Tensor:
    """Additions of ``social`` with counts to the scores: [B, N].

    Parameters
    ----------
    module : SocialCounts
        The member.
    state : State
        Tensors from :func:`prepared`, with the friends of users and the events of friends.
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
    if module.half_life is not None:
        asked_B11 = torch.where(asked_B11 == 0, state["newest"], asked_B11)
        days_BGE = (asked_B11 - times_BGE).clamp(min=0) / DAY
        values_BGE = values_BGE * torch.exp2(-days_BGE / module.half_life)
    values_BGE = values_BGE.where(is_before_BGE & is_there_BGE, 0.0)
    sums_BN = values_BGE.new_zeros(values_BGE.shape[0], len(damped_N))
    return sums_BN.scatter_add(1, items_BGE.flatten(1), values_BGE.flatten(1))


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


def _with_places(state: State) -> State:
    """Add positions up to the longest row of friends and of events; an empty table gets one unused
    entry.
    """
    made = {"newest": state["times_E"].max() if len(state["times_E"]) else torch.tensor(0)}
    for name in ("friend", "event"):
        lengths_V = state[f"{name}_starts_V1"].diff()
        made[f"{name}_places_E"] = torch.arange(
            max(int(lengths_V.max()) if len(lengths_V) else 0, 1)
        )
    filled = {key: state[key] for key in ("friends_F", "weights_F", "items_E", "times_E")}
    # a graph cannot index an empty table, not even where the mask hides the entry
    return made | {
        key: value if len(value) else value.new_zeros(1) for key, value in filled.items()
    }


def prepared(module: Granularity, state: State) -> State:
    """The state, extended by tables whose shape depends on the data, which a graph cannot
    compute.
    """
    if isinstance(module, SocialCounts):
        return state | _with_places(state)
    return state | _linked(state) if "starts_N1" in state else state


VECTORS: Final[dict[type[Granularity], Callable[..., Tensor]]] = {
    ItemCF: item_cf,
    Als: als,
    Content: content,
    Place: place,
    Moment: moment,
    Popularity: popularity,
    ProfileCounts: profile_counts,
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
