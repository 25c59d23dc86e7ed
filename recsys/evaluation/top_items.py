"""The k best items of every row, from scores or from vectors; ties by a fixed shuffle of the items.

Users with vectors are scored some rows at a time into one buffer that fits into the processor's
cache, because allocating a matrix of all scores costs more than the product.

Legend: b queries of a chunk, K list length, N items, E events, D width, C candidates.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Final

import numpy as np
import torch

from recsys.data.histories import Array
from recsys.evaluation.rough_scores import (
    GROUP,
    RoughScores,
    best_candidates,
    rough_scores_help,
)
from recsys.granularities.sparse import SparseScores

MAX_SCORES: Final = 2**25  # scores in memory at a time: 128 MB of float32, and a few copies
_NEAR_SCORES: Final = 2**20  # scores in the buffer: 4 MB, …
_LEAST_ROWS: Final = 16  # … or more for a large catalogue, as the items are read once for all rows
_SCORED: Final = 512  # users whose candidates get scores at a time
_TIE_SEED: Final = 0


def top_items(scores_bN: torch.Tensor, k: int) -> tuple[Array, Array]:
    """The k best items of every row and their scores, best first, ties by the fixed shuffle.

    Returns items [b, k] int32 and scores [b, k] float32, filled with −1 and −inf if fewer than k
    scores are above −inf.

    Raises
    ------
    ValueError
        A score is NaN.
    """
    items_bK, scores_bK = empty_lists(len(scores_bN), k)
    left_b = np.ones(len(scores_bN), dtype=bool)
    # with few groups per listed item, almost every group would be near the bound
    if scores_bN.device.type == "cpu" and scores_bN.shape[1] // GROUP >= 2 * k:
        rows_C, items_C, scores_C, left_b = _candidates(scores_bN, k)
        # candidates are few, so an exact order by score and shuffle is cheap
        best_C = np.lexsort((tie_order(scores_bN.shape[1])[items_C], -scores_C, rows_C))
        rows_C = rows_C[best_C]
        position_C = np.arange(len(rows_C)) - np.searchsorted(rows_C, rows_C)
        listed = position_C < k
        where = rows_C[listed], position_C[listed]
        items_bK[where], scores_bK[where] = items_C[best_C][listed], scores_C[best_C][listed]
    if left_b.any():
        items_bK[left_b], scores_bK[left_b] = _top_of_any(scores_bN[torch.from_numpy(left_b)], k)
    return items_bK, scores_bK


def _candidates(scores_bN: torch.Tensor, k: int) -> tuple[Array, Array, Array, Array]:
    """Rows, items and scores [C] of a few candidates of each row, and the rows [b] that are left
    out.

    The candidates include the k best items and all items that tie with the last of them. Rows in
    which many scores are equal or −inf are left out. Items are in groups (about every 16th of a row
    together). A maximum is found several times faster than an order, and the k-th largest of the
    group maxima is a bound that at least k items reach.

    Raises
    ------
    ValueError
        A score is NaN.
    """  # noqa: DOC501
    num_items = scores_bN.shape[1]
    groups = num_items // GROUP
    whole = groups * GROUP
    best_bG = scores_bN[:, :whole].reshape(-1, GROUP, groups).amax(dim=1).numpy()
    all_bN = np.ascontiguousarray(scores_bN.numpy())
    # the maximum of a group with a NaN is NaN, so the groups need no second look
    if np.isnan(best_bG).any() or np.isnan(all_bN[:, whole:]).any():
        raise _not_a_number()
    # k groups have a maximum of at least the bound, so the k-th best item has, too
    bound_b = np.partition(best_bG, groups - k, axis=1)[:, groups - k]
    near_bG = best_bG >= bound_b[:, None]
    # with many ties the candidates are no longer few, and sorting the row is faster
    left_b = (np.count_nonzero(near_bG, axis=1) > 4 * k) | np.isneginf(bound_b)
    near_bG[left_b] = False
    rows_c, groups_c = np.divmod(np.flatnonzero(near_bG), groups)
    # in all scores
    cells_cM = (rows_c * num_items + groups_c)[:, None] + groups * np.arange(GROUP)
    scores_cM = all_bN.ravel()[cells_cM]
    near = np.flatnonzero(scores_cM >= bound_b[rows_c, None])
    # the items after the last whole group are in no group
    rows_r, rest_r = np.nonzero((all_bN[:, whole:] >= bound_b[:, None]) & ~left_b[:, None])
    rows_C, items_C = np.divmod(cells_cM.ravel()[near], num_items)
    rows_C, items_C = np.concatenate([rows_C, rows_r]), np.concatenate([items_C, whole + rest_r])
    scores_C = np.concatenate([scores_cM.ravel()[near], all_bN[rows_r, whole + rest_r]])
    return rows_C, items_C, scores_C, left_b


def _top_of_any(scores_bN: torch.Tensor, k: int) -> tuple[Array, Array]:
    """:func:`top_items` by sorting whole rows."""
    num_items = scores_bN.shape[1]
    size = min(k, num_items)
    order_N = torch.from_numpy(tie_order(num_items)).to(scores_bN.device)
    # one more shows a tie at the end
    top_scores, top = scores_bN.topk(min(size + 1, num_items), dim=1)
    if torch.isnan(top_scores[:, :1]).any():  # topk puts NaN above every number
        raise _not_a_number()
    last_b1, next_b1 = top_scores[:, size - 1 : size], top_scores[:, size:]
    top_scores, top = top_scores[:, :size], top[:, :size]
    # topk may cut a group of equal scores anywhere; then choose again among the equal ones by the
    # shuffle
    open_b = (next_b1 == last_b1).any(dim=1) & torch.isfinite(last_b1[:, 0])
    if open_b.any():
        again = scores_bN[open_b]
        last = last_b1[open_b]
        preference = torch.where(again == last, order_N, torch.where(again > last, -1, num_items))
        top[open_b] = preference.topk(size, dim=1, largest=False).indices
        top_scores = scores_bN.gather(1, top)
    # two stable sorts, the less important key first: by the shuffle, then by score
    by_order = order_N[top].argsort(dim=1, stable=True)
    top, top_scores = top.gather(1, by_order), top_scores.gather(1, by_order)
    best = top_scores.argsort(dim=1, descending=True, stable=True)
    top, top_scores = top.gather(1, best), top_scores.gather(1, best)
    items_bK, scores_bK = empty_lists(len(top), k)
    items_bK[:, :size] = torch.where(top_scores == -torch.inf, -1, top).cpu().numpy()
    scores_bK[:, :size] = top_scores.cpu().numpy()
    return items_bK, scores_bK


def top_by_vectors(
    users_bD: torch.Tensor,
    vectors_ND: torch.Tensor,
    k: int,
    rows_E: Array,
    hidden_E: Array,
    added: SparseScores | None = None,
    change: Callable[[torch.Tensor, slice], None] | None = None,
) -> tuple[Array, Array]:
    """:func:`top_items` of u · a_i plus ``added``.

    The item ``hidden_E[e]`` is left out for the user in row ``rows_E[e]``; rows must ascend.
    ``change`` may change the scores of some rows [r, N] in place. Memory: a buffer of 4 MB, or of
    16 rows for a large catalogue, not one for all users.

    Parameters
    ----------
    users_bD : Tensor, [b, D] float
        User vectors.
    vectors_ND : Tensor, [N, D] float
        Item vectors.
    k : int
        Length of the lists K.
    rows_E : array, [E] int
        Row of each hidden item, ascending.
    hidden_E : array, [E] int
        Items that are left out.
    added : SparseScores or None
        Numbers to add to the scores of a few items per row.
    change : callable or None
        Function of scores [r, N] and their slice of rows; it works in place, after ``added``.

    Returns
    -------
    items_bK : array, [b, K] int32
        Items, best first; −1 where the list ends early.
    scores_bK : array, [b, K] float32
        Their scores; −inf where the list ends early.
    """
    plain = change is None and not (added is not None and len(added))
    if plain and rough_scores_help(users_bD, vectors_ND, k):
        return _top_by_rough_scores(users_bD, vectors_ND, k, rows_E, hidden_E)
    return _top_by_all_scores(users_bD, vectors_ND, k, rows_E, hidden_E, added, change)


def _top_by_rough_scores(
    users_bD: torch.Tensor, vectors_ND: torch.Tensor, k: int, rows_E: Array, hidden_E: Array
) -> tuple[Array, Array]:
    """:func:`top_by_vectors`, where rough scores choose the items that get float32 scores."""
    rough, found = RoughScores(users_bD, vectors_ND), []
    buffer = rough.buffer(_block_size(users_bD, vectors_ND))
    for rows in _blocks(users_bD, vectors_ND):
        events = _of_rows(rows_E, rows)
        rows_c, *rest = rough.candidates(
            rows, k, rows_E[events] - rows.start, hidden_E[events], buffer
        )
        found.append((rows_c + rows.start, *rest))
    rows_C, items_C, left_b = (np.concatenate(part) for part in zip(*found, strict=True))
    counts_b = np.bincount(rows_C, minlength=len(users_bD))
    shuffled = tie_order(len(vectors_ND)), _in_tie_order(len(vectors_ND))
    items_bK, scores_bK = empty_lists(len(users_bD), k)
    # even parts: products of few vectors are not made by oneDNN, and may round differently
    edges = np.linspace(0, len(users_bD), -(-len(users_bD) // _SCORED) + 1).astype(np.int64)
    for start, end in itertools.pairwise(edges.tolist()):
        items_bK[start:end], scores_bK[start:end] = best_candidates(
            users_bD[start:end],
            vectors_ND,
            k,
            counts_b[start:end],
            items_C[_of_rows(rows_C, slice(start, end))],
            shuffled,
        )
    if left_b.any():
        left_E = left_b[rows_E]
        items_bK[left_b], scores_bK[left_b] = _top_by_all_scores(
            users_bD[torch.from_numpy(left_b)],
            vectors_ND,
            k,
            np.cumsum(left_b)[rows_E[left_E]] - 1,
            hidden_E[left_E],
        )
    return items_bK, scores_bK


def _top_by_all_scores(
    users_bD: torch.Tensor,
    vectors_ND: torch.Tensor,
    k: int,
    rows_E: Array,
    hidden_E: Array,
    added: SparseScores | None = None,
    change: Callable[[torch.Tensor, slice], None] | None = None,
) -> tuple[Array, Array]:
    """:func:`top_by_vectors` from float32 scores of all items."""
    # one buffer for all rows: allocating new scores costs more than the product (see above)
    buffer = users_bD.new_empty(_block_size(users_bD, vectors_ND), len(vectors_ND))
    items_bK, scores_bK = empty_lists(len(users_bD), k)
    for rows in _blocks(users_bD, vectors_ND):
        start, end = rows.start, rows.stop
        scores_rN = torch.mm(users_bD[rows], vectors_ND.T, out=buffer[: end - start])
        if added is not None and len(added):
            # before the seen items are hidden: an addition must not bring one back
            added.between(start, end).add_to(scores_rN)
        if change is not None:
            change(scores_rN, rows)
        events = _of_rows(rows_E, rows)
        hide(scores_rN, rows_E[events] - start, hidden_E[events])
        items_bK[rows], scores_bK[rows] = top_items(scores_rN, k)
    return items_bK, scores_bK


def _of_rows(rows_E: Array, rows: slice) -> slice:
    """Where the numbers of some rows are among ascending ones."""
    return slice(*np.searchsorted(rows_E, [rows.start, rows.stop]))


def _block_size(users_bD: torch.Tensor, vectors_ND: torch.Tensor) -> int:
    """Users whose scores are in the buffer at a time."""
    num_items = max(1, len(vectors_ND))
    most = max(_LEAST_ROWS, _NEAR_SCORES // num_items)
    return max(1, min(most, MAX_SCORES // num_items, len(users_bD)))


def _blocks(users_bD: torch.Tensor, vectors_ND: torch.Tensor) -> Iterator[slice]:
    size = _block_size(users_bD, vectors_ND)
    for start in range(0, len(users_bD), size):
        yield slice(start, min(start + size, len(users_bD)))


def empty_lists(num_rows: int, k: int) -> tuple[Array, Array]:
    """Items and scores of lists without any item."""
    return (
        np.full((num_rows, k), -1, dtype=np.int32),
        np.full((num_rows, k), -np.inf, dtype=np.float32),
    )


def _not_a_number() -> ValueError:
    return ValueError(
        "the scorer returned NaN: the model has diverged, or one of its inputs is not finite"
    )


def hide(scores_bN: torch.Tensor, rows_E: Array, items_E: Array) -> None:
    """Set the scores of items that must not be listed to −inf.

    Parameters
    ----------
    scores_bN : Tensor, [b, N] float
        Scores, changed in place.
    rows_E : array, [E] int
        Row of each item.
    items_E : array, [E] int
        The items.
    """
    where = (torch.from_numpy(part).to(scores_bN.device) for part in (rows_E, items_E))
    scores_bN[tuple(where)] = -torch.inf


@lru_cache(maxsize=4)
def tie_order(num_items: int) -> Array:
    """Order of every item among items of equal score: a fixed permutation."""
    return np.random.default_rng(_TIE_SEED).permutation(num_items).astype(np.int32)


@lru_cache(maxsize=4)
def _in_tie_order(num_items: int) -> Array:
    """The items in :func:`tie_order`."""
    return np.argsort(tie_order(num_items)).astype(np.int32)
