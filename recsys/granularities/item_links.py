"""Sparse item–item models: every item of a history adds a weight to the scores of a few other
items.

``item_cf`` (form neighbours) and ``item_knn`` share this module: co-occurrence counts, the most
similar items of each item, the ridge regression of an item on those, and the sum over a history.

Legend: V users, N items, K neighbours of an item, L links, B queries, E events that they see, R
regularisations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from recsys.data.histories import Array
from recsys.granularities.base import State
from recsys.granularities.event_matrix import EventMatrix
from recsys.granularities.history import SeenEvents
from recsys.granularities.sparse import SparseScores

_MAX_PAIRS: Final = 2**26  # co-occurring pairs of items in memory: half a gigabyte
_GATHERED: Final = 2**26  # numbers in the small matrices that are gathered together
_SORTED: Final = 2**21  # similarities that are put in order together
_SOLVED: Final = 2**21  # numbers in those that are solved together


def together(events_VN: EventMatrix) -> sp.csr_matrix:
    """Co-occurrence counts of items, XᵀX [N, N], sorted.

    At most 2^26 pairs are in memory: if the longest histories produce more, an even sample of their
    events is used, drawn with a fixed seed. The counts of a catalogue that cannot produce more are
    summed over blocks of users.
    """
    num_items, parts = events_VN.shape[1], (part for _, part in events_VN.blocks())
    if num_items**2 <= _MAX_PAIRS:
        pairs_NN = sp.csr_matrix((num_items, num_items), dtype=np.float32)
        for part in parts:
            added_NN = sp.csr_matrix(part.T.tocsr() @ part)
            pairs_NN = pairs_NN + added_NN if pairs_NN.nnz else added_NN
    else:
        lengths_V, random = events_VN.lengths_V.astype(np.float64), np.random.default_rng(0)
        if (lengths_V**2).sum() > _MAX_PAIRS:
            most = _longest(lengths_V)
            parts = (_shortened(part, most, random) for part in parts)
        # no more events than pairs
        rows_VN = sp.vstack(list(parts), format="csr")
        pairs_NN = sp.csr_matrix(rows_VN.T.tocsr() @ rows_VN)
    pairs_NN.sort_indices()
    return pairs_NN


def _longest(lengths_V: Array) -> int:
    """The largest history length m for which Σ min(length, m)² stays within bounds."""
    low, high = 1, int(lengths_V.max())
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (
            (middle, high)
            if (np.minimum(lengths_V, middle) ** 2).sum() <= _MAX_PAIRS
            else (low, middle - 1)
        )
    return low


def _shortened(events_RN: sp.csr_array, most: int, random: np.random.Generator) -> sp.csr_array:
    rows_E = np.repeat(np.arange(events_RN.shape[0]), np.diff(events_RN.indptr))
    order_E = np.lexsort((random.random(len(rows_E)), rows_E))
    kept_E = np.sort(order_E[np.arange(len(rows_E)) - events_RN.indptr[rows_E] < most])
    entries = (events_RN.data[kept_E], (rows_E[kept_E], events_RN.indices[kept_E]))
    return sp.csr_array(entries, shape=events_RN.shape)


def most_similar(pairs_NN: sp.csr_matrix, k: int, shrinkage: float) -> tuple[Array, Array]:
    """The k other items with the largest c_ij / (√(c_ii c_jj) + shrinkage), the most similar first.

    Why shrinkage: two items with one common user and no other look identical by chance (Bell and
    Koren 2007).

    Parameters
    ----------
    pairs_NN : csr_matrix, [N, N]
        Co-occurrence counts c of items, see :func:`together`.
    k : int
        Most items per item.
    shrinkage : float
        Added to the denominator, a number of co-occurrences; 0: none.

    Returns
    -------
    items_NK : Array
        Item ids, int64; −1 where fewer items co-occur.
    similarities_NK : Array
        Similarities, float32.
    """
    num_items, starts_N1 = pairs_NN.shape[0], pairs_NN.indptr
    root_N = np.sqrt(pairs_NN.diagonal())
    items_NK = np.full((num_items, max(1, min(k, num_items - 1))), -1, dtype=np.int64)
    similar_NK = np.zeros(items_NK.shape, dtype=np.float32)
    ends = np.searchsorted(starts_N1, np.arange(_SORTED, pairs_NN.nnz, _SORTED))
    bounds = np.unique([0, *ends, num_items])
    for first, last in zip(bounds[:-1], bounds[1:], strict=True):
        entries = slice(starts_N1[first], starts_N1[last])
        lengths_n = np.diff(starts_N1[first : last + 1])
        rows_E = np.repeat(np.arange(first, last), lengths_n)
        others_E = pairs_NN.indices[entries]
        similar_E = pairs_NN.data[entries] / (root_N[rows_E] * root_N[others_E] + shrinkage)
        similar_E[others_E == rows_E] = 0
        # a choice before the order; most rows of a large catalogue are too short for one
        for item in np.flatnonzero(lengths_n > k):
            own_e = similar_E[starts_N1[first + item] - entries.start :][: lengths_n[item]]
            own_e[np.argpartition(-own_e, k)[k:]] = 0
        kept_E = np.flatnonzero(similar_E > 0)
        kept_E = kept_E[np.lexsort((-similar_E[kept_E], rows_E[kept_E]))]
        rows_E, kept_n = (
            rows_E[kept_E],
            np.bincount(rows_E[kept_E] - first, minlength=len(lengths_n)),
        )
        places_E = np.arange(len(rows_E)) - np.repeat(np.cumsum(kept_n) - kept_n, kept_n)
        items_NK[rows_E, places_E] = others_E[kept_E]
        similar_NK[rows_E, places_E] = similar_E[kept_E]
    return items_NK, similar_NK


def regressions(
    pairs_NN: sp.csr_matrix, items_NK: Array, text_NT: Array, regularisations_R: Sequence[float]
) -> list[Array]:
    """Weights [N, K] float32, for each λ, of the ridge regression of every item i on its neighbours
    S.

        w_i = (G_SS + λI)⁻¹ G_Si,   G = XᵀX + T Tᵀ

    Why: this is EASE with neighbours that are chosen beforehand (as in fsSLIM, Ning and Karypis
    2011). Its cost grows with the number of items instead of the cube of that number.

    Parameters
    ----------
    pairs_NN : sp.csr_matrix, [N, N]
        XᵀX, as :func:`together` returns it.
    items_NK : array, [N, K] int64
        Neighbours of every item, −1 where there are fewer.
    text_NT : array, [N, T] float
        Text vectors of the items; T may be 0.
    regularisations_R : Sequence of float
        Values of λ, above 0.

    Returns
    -------
    list of array, [N, K] float32
        The weights for each λ; 0 where there is no neighbour.
    """
    num_items, k = items_NK.shape
    found = [np.zeros((num_items, k), dtype=np.float32) for _ in regularisations_R]
    size = max(1, _GATHERED // k**2)
    solved = max(1, _SOLVED // k**2)
    for start in range(0, num_items, size):
        gram_bKK, right_bK = _among_neighbours(pairs_NN, items_NK[start : start + size], start)
        for first in range(0, len(gram_bKK), solved):
            part = slice(first, first + solved)
            rows = slice(start + first, start + first + len(gram_bKK[part]))
            known_bK = items_NK[rows] >= 0
            gram, right = gram_bKK[part], right_bK[part]
            if text_NT.shape[1]:
                text_bKT = text_NT[items_NK[rows]] * known_bK[:, :, None]
                gram = gram + text_bKT @ text_bKT.transpose(0, 2, 1)
                right = right + np.einsum("bkt,bt->bk", text_bKT, text_NT[rows])
            gram_t, right_t = torch.from_numpy(gram).float(), torch.from_numpy(right).float()
            for weights_NK, regularisation in zip(found, regularisations_R, strict=True):
                factor = torch.linalg.cholesky(gram_t + regularisation * torch.eye(k))
                solution = torch.cholesky_solve(right_t[:, :, None], factor)[:, :, 0]
                weights_NK[rows] = solution.numpy() * known_bK
    return found


def _among_neighbours(pairs_NN: sp.csr_matrix, items_bK: Array, first: int) -> tuple[Array, Array]:
    """The entries of XᵀX among the neighbours S of each item i, G_SS [b, K, K], and those between
    them and the item, G_Si [b, K]; 0 where there is no neighbour.

    Each neighbour's row is made dense once, and all items that have this neighbour read it. A
    search in the sparse rows for every pair took 13 times as long.

    Parameters
    ----------
    pairs_NN : csr_matrix, [N, N]
        XᵀX.
    items_bK : Array
        Neighbours of the items ``first``, ``first + 1``, …; −1 where there are fewer.
    first : int
        The first item.
    """
    num_rows, k = items_bK.shape
    known_bK = items_bK >= 0
    gram_bKK = np.zeros((num_rows, k, k), dtype=np.float32)
    right_bK = np.zeros((num_rows, k), dtype=np.float32)
    dense_N1 = np.zeros(pairs_NN.shape[0] + 1, dtype=np.float32)  # the last for no neighbour
    rows_P, columns_P = np.nonzero(known_bK)
    order_P = np.argsort(items_bK[known_bK], kind="stable")
    rows_P, columns_P = rows_P[order_P], columns_P[order_P]
    neighbours, starts = np.unique(items_bK[rows_P, columns_P], return_index=True)
    for neighbour, start, end in zip(
        neighbours.tolist(), starts.tolist(), [*starts[1:].tolist(), len(rows_P)], strict=True
    ):
        entries = slice(pairs_NN.indptr[neighbour], pairs_NN.indptr[neighbour + 1])
        others = pairs_NN.indices[entries]
        dense_N1[others] = pairs_NN.data[entries]
        rows, columns = rows_P[start:end], columns_P[start:end]
        gram_bKK[rows, columns] = dense_N1[items_bK[rows]]
        right_bK[rows, columns] = dense_N1[first + rows]
        dense_N1[others] = 0
    return gram_bKK, right_bK


def links(items_NK: Array, weights_NK: Array, by_target: bool) -> State:
    """Links from items of a history to the items whose scores they raise, as sparse rows.

    Parameters
    ----------
    items_NK : Array
        Neighbours of every item, −1 where there are fewer.
    weights_NK : Array
        Weights of the neighbours.
    by_target : bool
        True: a row of the tables is the item that is scored (a regression); False: the item of the
        history.
    """
    num_items = len(items_NK)
    kept_NK = (items_NK >= 0) & (weights_NK != 0)
    own, other = np.repeat(np.arange(num_items), kept_NK.sum(1)), items_NK[kept_NK]
    sources, targets = (other, own) if by_target else (own, other)
    made = sp.csr_matrix((weights_NK[kept_NK], (sources, targets)), (num_items, num_items))
    made.sort_indices()
    return {
        "starts_N1": torch.as_tensor(made.indptr.astype(np.int64)),
        "targets_L": torch.as_tensor(made.indices.astype(np.int32)),
        "weights_L": torch.as_tensor(made.data.astype(np.float32)),
    }


def linked_scores(seen: SeenEvents, weights_E: Tensor, state: State) -> SparseScores:
    """Σ_j w_j S_ji over the events that each query sees: additions to the scores of linked
    items.

    Parameters
    ----------
    seen : SeenEvents
        The events.
    weights_E : Tensor, [E] float
        w of each event.
    state : dict of str to Tensor
        ``starts_N1``, ``targets_L`` and ``weights_L``, as :func:`links` returns them.

    Returns
    -------
    SparseScores
        One addition for each pair of a query and an item with a link, on the device of
        ``weights_E``.
    """
    num_items = len(state["starts_N1"]) - 1
    rows = (state["weights_L"], state["targets_L"], state["starts_N1"])
    links_NN = sp.csr_matrix(tuple(part.cpu().numpy() for part in rows), (num_items, num_items))
    entries = (weights_E.cpu().numpy(), (seen.rows_E.cpu().numpy(), seen.items_E.cpu().numpy()))
    added = sp.csr_matrix(entries, (seen.num_queries, num_items)) @ links_NN
    added.sort_indices()
    device = weights_E.device
    rows_P = torch.repeat_interleave(
        torch.arange(seen.num_queries), torch.as_tensor(np.diff(added.indptr)).long()
    )
    items_P, values_P = torch.as_tensor(added.indices).long(), torch.as_tensor(added.data).float()
    return SparseScores(rows_P.to(device), items_P.to(device), values_P.to(device))
