"""The members that link items with items, ``item_cf`` and ``item_knn``, with operations of ONNX.

Legend: as in :mod:`recsys.export.seen`; N items, R width of a member, K links of an item.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recsys.export.seen import Seen
from recsys.granularities.base import State
from recsys.granularities.item_cf.model import ItemCF
from recsys.granularities.item_knn.model import ItemKnn


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
        Tensors from :func:`linked_state`: ``ends_NK`` (int64) and ``values_NK`` (float), both
        [N, K].
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


def linked_state(state: State) -> State:
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
