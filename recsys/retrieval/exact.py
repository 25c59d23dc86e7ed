"""The best items by scores of the whole catalogue, or of a short list of allowed items.

Legend: B requests, b requests of a chunk, R list length, D width, N items, M allowed items,
E hidden items.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from recsys.data.histories import Array
from recsys.evaluation.top_items import tie_order, top_by_vectors
from recsys.granularities.sparse import SparseScores
from recsys.retrieval.selection import Allowed

_SCORES: Final = 2**22  # scores of allowed items at a time, where these are few
# only the vectors of allowed items are read where they are fewer than 1/4 of the items
_GATHERED: Final = 4


class Raised(NamedTuple):
    """A boost as added to scores: logarithm of an item's factor × standard deviation of a user's
    scores.
    """

    log_N: Tensor  # float32
    spread_B: Tensor  # float32


def exact_top(
    users_BD: Tensor,
    vectors_ND: Tensor,
    k: int,
    rows_E: Array,
    hidden_E: Array,
    added: SparseScores | None = None,
) -> Array:
    """The exact k best items of every user by the score u · a_i + ``added``.

    Parameters
    ----------
    users_BD : Tensor
        User vectors.
    vectors_ND : Tensor
        Item vectors.
    k : int
        Items per list.
    rows_E : Array
        Rows of the hidden items, ascending.
    hidden_E : Array
        Hidden items: item ``hidden_E[e]`` is left out of the list of row ``rows_E[e]``.
    added : SparseScores | None
        Scores of sparse members, added to the product.

    Returns
    -------
    Array
        Items, best first, −1 after the end: int32 [B, R].
    """
    return top_by_vectors(users_BD, vectors_ND, k, rows_E, hidden_E, added)[0]


def allowed_top(
    users_BD: Tensor,
    vectors_ND: Tensor,
    k: int,
    rows_E: Array,
    hidden_E: Array,
    added: SparseScores | None = None,
    allowed: Allowed | None = None,
    raised: Raised | None = None,
) -> Array:
    """As :func:`exact_top`, for allowed items only and with boosts.

    Parameters
    ----------
    users_BD : Tensor, [B, D] float
        User vectors.
    vectors_ND : Tensor, [N, D] float
        Item vectors.
    k : int
        Items per list R.
    rows_E : array, [E] int
        Rows of the hidden items, ascending.
    hidden_E : array, [E] int
        Item ``hidden_E[e]`` is left out of the list of row ``rows_E[e]``.
    added : SparseScores or None
        Scores of sparse members, added to the product.
    allowed : Allowed or None
        The allowed items; None: all.
    raised : Raised or None
        The boosts; None: no boost.

    Returns
    -------
    array, [B, R] int32
        Items, best first; −1 after the end of a list.
    """
    if allowed is not None and allowed.num * _GATHERED < allowed.num_items:
        return _top_of_few(
            users_BD, vectors_ND, k, rows_E, hidden_E, added, allowed.listed_M, raised
        )
    forbidden_N = None
    if allowed is not None and allowed.num < allowed.num_items:
        forbidden_N = torch.from_numpy(~allowed.among(np.arange(allowed.num_items)))

    def change(scores_rN: Tensor, rows: slice) -> None:
        if raised is not None:
            # an outer product in place, without a second matrix of scores
            scores_rN.addr_(raised.spread_B[rows], raised.log_N)
        if forbidden_N is not None:
            scores_rN.masked_fill_(forbidden_N, -torch.inf)

    return top_by_vectors(users_BD, vectors_ND, k, rows_E, hidden_E, added, change)[0]


def _top_of_few(
    users_BD: Tensor,
    vectors_ND: Tensor,
    k: int,
    rows_E: Array,
    hidden_E: Array,
    added: SparseScores | None,
    ids_M: Array,
    raised: Raised | None,
) -> Array:
    """:func:`allowed_top` for a short list of items; only their vectors are read."""
    ids, top_BR = torch.from_numpy(ids_M), np.full((len(users_BD), k), -1, dtype=np.int32)
    if not len(ids_M):
        return top_BR
    # ties have the order that the ranking of the whole catalogue gives them
    vectors_MD, order_M = vectors_ND.index_select(0, ids), tie_order(len(vectors_ND))[ids_M]
    size = max(1, _SCORES // len(ids_M))
    for start in range(0, len(users_BD), size):
        end = min(start + size, len(users_BD))
        scores_bM = users_BD[start:end] @ vectors_MD.T
        if added is not None and len(added):
            scores_bM += added.between(start, end).at(ids.expand(end - start, -1))
        if raised is not None:
            scores_bM.addr_(raised.spread_B[start:end], raised.log_N[ids])
        span = slice(*np.searchsorted(rows_E, [start, end]))
        # a hidden item may be greater than every allowed one; then the position would be outside
        positions_e = np.minimum(np.searchsorted(ids_M, hidden_E[span]), len(ids_M) - 1)
        is_there_e = ids_M[positions_e] == hidden_E[span]
        scores = scores_bM.numpy()
        scores[rows_E[span][is_there_e] - start, positions_e[is_there_e]] = -np.inf
        for row, scores_M in enumerate(scores, start=start):
            best_R = best_positions(scores_M, order_M, k)
            top_BR[row, : len(best_R)] = ids_M[best_R]
    return top_BR


def best_positions(scores_M: Array, order_M: Array, k: int) -> Array:
    """Positions of the k best scores above −inf, best first; ties are ordered by ``order_M``.

    Parameters
    ----------
    scores_M : array, [M] float
        Scores of one request; −inf where an item must not be listed.
    order_M : array, [M] int
        Among equal scores, the item with the smaller number comes first.
    k : int
        Most positions.

    Returns
    -------
    array, [R] int64
        At most k positions.
    """
    positions = np.flatnonzero(scores_M > -np.inf)
    # a partition is linear; below a few k it costs more than sorting at once
    if len(positions) > 4 * k:
        bound = np.partition(scores_M[positions], len(positions) - k)[len(positions) - k]
        # all items that tie with the k-th stay, as their order is decided below
        positions = positions[scores_M[positions] >= bound]
    return np.asarray(positions[np.lexsort((order_M[positions], -scores_M[positions]))][:k])
