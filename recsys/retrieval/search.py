"""The best items within a selection, with the index where it helps.

Legend: B requests, R list length, X listed items, D width, N items.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor

from recsys.data.histories import Array
from recsys.evaluation.top_items import tie_order
from recsys.granularities.sparse import SparseScores
from recsys.retrieval.exact import Raised, allowed_top, best_positions, exact_top
from recsys.retrieval.index import ItemIndex
from recsys.retrieval.selection import Selection

_MAX_GROUPS: Final = 8  # with more distinct boost factors, all items are scored


def find_top(
    index: ItemIndex | None,
    users_BD: Tensor,
    vectors_ND: Tensor,
    k: int,
    rows_E: Array,
    hidden_E: Array,
    added: SparseScores,
    selection: Selection | None = None,
    spread_B: Tensor | None = None,
) -> Array:
    """The k best items of every user within a selection, with the index where there is one.

    A boost adds the same number to all items with the same factor. So with an index, the best items
    of each factor are searched separately and merged; with many factors, or without an index, every
    item is scored.

    Parameters
    ----------
    index : ItemIndex | None
        Index of the items; None: score all items.
    users_BD, vectors_ND, k, rows_E, hidden_E, added
        As in :func:`exact_top`.
    selection : Selection | None
        Allowed items and boosts; None: all items, no boost.
    spread_B : Tensor | None
        Standard deviation of each user's scores; needed for boosts.

    Returns
    -------
    Array
        Items, best first, −1 after the end: int32 [B, R].
    """
    query = (users_BD, vectors_ND, k, rows_E, hidden_E, added)
    if selection is None:
        return exact_top(*query) if index is None else index.top(*query)
    by_index = index is not None and selection.allowed.ids_M is None
    if selection.log_N is None:
        return (
            index.top(*query, selection.allowed)
            if index and by_index
            else allowed_top(*query, selection.allowed)
        )
    assert spread_B is not None, "boosts need the spread of the scores"
    raised = Raised(torch.from_numpy(selection.log_N), spread_B)
    if index is None or not by_index or len(selection.groups) > _MAX_GROUPS:
        return allowed_top(*query, selection.allowed, raised)
    lists = [
        index.top(*query, allowed) if allowed.ids_M is None else allowed_top(*query, allowed)
        for _, allowed in selection.groups
    ]
    return _merged(np.concatenate(lists, axis=1), users_BD, vectors_ND, k, added, raised)


def _merged(
    items_BX: Array,
    users_BD: Tensor,
    vectors_ND: Tensor,
    k: int,
    added: SparseScores,
    raised: Raised,
) -> Array:
    """The k best of listed items with boosts; each item is listed once."""
    top_BR, order_N = np.full((len(items_BX), k), -1, dtype=np.int32), tie_order(len(vectors_ND))
    for row, items_X in enumerate(items_BX):
        items_x = items_X[items_X >= 0].astype(np.int64)
        listed = torch.from_numpy(items_x)
        scores_x = (
            vectors_ND.index_select(0, listed) @ users_BD[row]
            + raised.spread_B[row] * raised.log_N[listed]
        )
        scores_x += added.between(row, row + 1).at(listed[None])[0]
        best_R = best_positions(scores_x.numpy(), order_N[items_x], k)
        top_BR[row, : len(best_R)] = items_x[best_R]
    return top_BR
