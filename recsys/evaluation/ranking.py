"""Exact full ranking of the catalogue for every query, in chunks.

Why exact: metrics on sampled candidates can order recommenders wrongly (Krichene and Rendle 2020).

If a scorer has user and item vectors, its users are encoded in chunks of similar length, to avoid
padding. They are scored some rows at a time into one buffer that fits into the processor's cache,
because allocating a matrix of all scores costs more than the product.

Legend: B queries, b queries of a chunk, K list length, N items, P targets, E events, D width.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Protocol, runtime_checkable

import numpy as np
import torch

from recsys.data.histories import Array, Queries
from recsys.evaluation.rough_scores import RoughScores, best_candidates, rough_scores_help
from recsys.granularities.sparse import SparseScores
from recsys.pace import Pace

_MAX_SCORES: Final = 2**25  # scores in memory at a time: 128 MB of float32, and a few copies
_NEAR_SCORES: Final = 2**20  # scores in the buffer: 4 MB, …
_LEAST_ROWS: Final = 16  # … or more for a large catalogue, as the items are read once for all rows
# items in a group; the search for the k best first looks at the maximum of each group
_GROUP: Final = 16
_SCORED: Final = 512  # users whose candidates get scores at a time
_TIE_SEED: Final = 0


class Scorer(Protocol):
    """Anything that scores the whole catalogue from the visible history of each query."""

    def scores(self, queries: Queries) -> torch.Tensor:
        """Scores [b, N] float32 in a new tensor, which the caller may overwrite.

        -inf marks an item that must not be recommended.
        """
        ...


@runtime_checkable
class VectorScorer(Scorer, Protocol):
    """A scorer with scores u · a_i plus additions for a few items, or popularity for a user without
    any signal.
    """

    popularity_N: torch.Tensor
    item_vectors_ND: torch.Tensor

    def user_vectors(self, queries: Queries) -> tuple[torch.Tensor, torch.Tensor, SparseScores]:
        """The user vectors [b, D], which users have a signal [b], and the additions to the scores
        of a few items.
        """
        ...


@dataclass(frozen=True)
class Ranking:
    """The top-K lists of the queries that have a target that counts.

    ``queries`` are these queries with the targets that count, ``rows_B`` their positions among all
    ranked queries.
    """

    queries: Queries
    rows_B: Array  # int64
    items_BK: Array  # int32, −1 where fewer than K items could be recommended
    scores_BK: Array  # float32, −inf there
    hits_BK: Array  # bool
    dropped_targets: int  # targets the user had already seen
    dropped_queries: int  # queries without a target, or with only such targets

    @property
    def num_targets_B(self) -> Array:
        """Number of targets of every query."""
        return self.queries.num_targets_B

    def __len__(self) -> int:
        return len(self.rows_B)


def rank(
    scorer: Scorer, queries: Queries, k: int, exclude_seen: bool = True, chunk: int = 512
) -> Ranking:
    """Rank the whole catalogue for every query and mark the hits.

    With ``exclude_seen``, items of the visible history (only of events of predicted types) are
    never recommended, so targets among them are dropped: no list could hold them. A repeated target
    counts once. Equal scores are ordered by a fixed shuffle of the item ids, since ids may follow
    popularity and a constant scorer must stay at chance level. Lists have K places even if the
    catalogue is smaller. Memory is bounded by ``chunk`` and, for large catalogues, by 128 MB of
    scores.

    Parameters
    ----------
    scorer : Scorer
        The recommender.
    queries : Queries
        The queries with their targets.
    k : int
        Length of the lists.
    exclude_seen : bool
        Whether items of the visible history are left out.
    chunk : int
        Queries that are scored at a time.

    Raises
    ------
    ValueError
        The scorer returned NaN or a wrong shape.
    """
    counted, rows_B, dropped = countable(queries, exclude_seen)
    items_BK, scores_BK = _empty_lists(len(counted), k)
    with torch.inference_mode():
        pace = Pace("ranking users", len(counted))
        for rows_b, found_bK, found_scores_bK in _lists(scorer, counted, k, exclude_seen, chunk):
            items_BK[rows_b], scores_BK[rows_b] = found_bK, found_scores_bK
            pace.add(len(rows_b))
    hits_BK = mark_hits(items_BK, counted)
    return Ranking(
        counted, rows_B, items_BK, scores_BK, hits_BK, dropped, len(queries) - len(counted)
    )


def countable(queries: Queries, exclude_seen: bool) -> tuple[Queries, Array, int]:
    """The queries with targets that count, their positions, and how many targets were dropped as
    seen.
    """
    target_rows_P = queries.target_rows()
    pairs_P = _pairs(target_rows_P, queries.target_items)
    keep_P = np.ones(len(pairs_P), dtype=bool)
    # sorting all pairs is only needed where a query can name an item twice
    if queries.num_targets_B.max(initial=0) > 1:
        keep_P[:] = False
        # the first event of every pair counts
        keep_P[np.unique(pairs_P, return_index=True)[1]] = True
    dropped = 0
    if exclude_seen:
        seen_P = _among(pairs_P, _pairs(*_seen(queries, True)))
        dropped = int((seen_P & keep_P).sum())
        keep_P &= ~seen_P
    num_B = np.bincount(target_rows_P[keep_P], minlength=len(queries))
    rows_B = np.flatnonzero(num_B)
    offsets = np.concatenate([[0], np.cumsum(num_B[rows_B])]).astype(np.int64)
    histories = queries.histories.take(rows_B)
    asked_BC = queries.context_BC[rows_B]
    asked_at_B = queries.asked_at_B[rows_B]
    targets, types = queries.target_items[keep_P], queries.target_types[keep_P]
    return Queries(histories, offsets, targets, asked_BC, asked_at_B, types), rows_B, dropped


def top_items(scores_bN: torch.Tensor, k: int) -> tuple[Array, Array]:
    """The k best items of every row and their scores, best first, ties by the fixed shuffle.

    Returns items [b, k] int32 and scores [b, k] float32, filled with −1 and −inf if fewer than k
    scores are above −inf.

    Raises
    ------
    ValueError
        A score is NaN.
    """
    items_bK, scores_bK = _empty_lists(len(scores_bN), k)
    left_b = np.ones(len(scores_bN), dtype=bool)
    # with few groups per listed item, almost every group would be near the bound
    if scores_bN.device.type == "cpu" and scores_bN.shape[1] // _GROUP >= 2 * k:
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
    groups = num_items // _GROUP
    whole = groups * _GROUP
    best_bG = scores_bN[:, :whole].reshape(-1, _GROUP, groups).amax(dim=1).numpy()
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
    cells_cM = (rows_c * num_items + groups_c)[:, None] + groups * np.arange(_GROUP)
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
    items_bK, scores_bK = _empty_lists(len(top), k)
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
    items_bK, scores_bK = _empty_lists(len(users_bD), k)
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
    items_bK, scores_bK = _empty_lists(len(users_bD), k)
    for rows in _blocks(users_bD, vectors_ND):
        start, end = rows.start, rows.stop
        scores_rN = torch.mm(users_bD[rows], vectors_ND.T, out=buffer[: end - start])
        if added is not None and len(added):
            # before the seen items are hidden: an addition must not bring one back
            added.between(start, end).add_to(scores_rN)
        if change is not None:
            change(scores_rN, rows)
        events = _of_rows(rows_E, rows)
        _hide(scores_rN, rows_E[events] - start, hidden_E[events])
        items_bK[rows], scores_bK[rows] = top_items(scores_rN, k)
    return items_bK, scores_bK


def _of_rows(rows_E: Array, rows: slice) -> slice:
    """Where the numbers of some rows are among ascending ones."""
    return slice(*np.searchsorted(rows_E, [rows.start, rows.stop]))


def _empty_lists(num_rows: int, k: int) -> tuple[Array, Array]:
    """Items and scores of lists without any item."""
    return (
        np.full((num_rows, k), -1, dtype=np.int32),
        np.full((num_rows, k), -np.inf, dtype=np.float32),
    )


def _block_size(users_bD: torch.Tensor, vectors_ND: torch.Tensor) -> int:
    """Users whose scores are in the buffer at a time."""
    num_items = max(1, len(vectors_ND))
    most = max(_LEAST_ROWS, _NEAR_SCORES // num_items)
    return max(1, min(most, _MAX_SCORES // num_items, len(users_bD)))


def _blocks(users_bD: torch.Tensor, vectors_ND: torch.Tensor) -> Iterator[slice]:
    size = _block_size(users_bD, vectors_ND)
    for start in range(0, len(users_bD), size):
        yield slice(start, min(start + size, len(users_bD)))


Found = Iterator[tuple[Array, Array, Array]]  # rows of the queries, their items and scores


def _lists(scorer: Scorer, queries: Queries, k: int, exclude_seen: bool, chunk: int) -> Found:
    if isinstance(scorer, VectorScorer):
        return _by_vectors(scorer, queries, k, exclude_seen, chunk)
    return _by_scores(scorer, queries, k, exclude_seen, chunk)


def _by_vectors(
    scorer: VectorScorer, queries: Queries, k: int, exclude_seen: bool, chunk: int
) -> Found:
    """Yield the lists of a vector scorer, users of similar length together; popularity for users
    without a signal.

    Yields
    ------
    tuple of Array
        Rows of the queries, and their items and scores [b, k].
    """
    # similar lengths together, so that little of a chunk is padding
    order_B = np.argsort(queries.histories.lengths_U, kind="stable")
    for start in range(0, len(queries), chunk):
        rows_b = order_B[start : start + chunk]
        piece = queries.take(rows_b)
        users_bD, known_b, added = scorer.user_vectors(piece)
        rows_E, hidden_E = _seen(piece, exclude_seen)
        yield rows_b, *top_by_vectors(users_bD, scorer.item_vectors_ND, k, rows_E, hidden_E, added)
        for row in np.flatnonzero(~known_b.cpu().numpy()):
            # a copy: hiding seen items must not change the model's own numbers
            scores_1N = scorer.popularity_N.to(torch.float32, copy=True)[None]
            _hide(scores_1N, rows_E[rows_E == row] - row, hidden_E[rows_E == row])
            yield rows_b[[row]], *top_items(scores_1N, k)


def _by_scores(scorer: Scorer, queries: Queries, k: int, exclude_seen: bool, chunk: int) -> Found:
    """Yield the lists of any scorer; no chunk has more than the allowed number of scores."""
    if len(queries) == 0:
        return
    # one query shows how large the catalogue is
    num_items = scorer.scores(next(queries.chunks(1))).shape[-1]
    done = 0
    for piece in queries.chunks(min(chunk, max(1, _MAX_SCORES // max(1, num_items)))):
        scores_bN = scorer.scores(piece)
        _check(scores_bN, len(piece))
        if exclude_seen:
            mask_seen(scores_bN, piece)
        yield np.arange(done, done + len(piece)), *top_items(scores_bN, k)
        done += len(piece)


def _not_a_number() -> ValueError:
    return ValueError(
        "the scorer returned NaN: the model has diverged, or one of its inputs is not finite"
    )


def _check(scores_bN: torch.Tensor, num_queries: int) -> None:
    if scores_bN.ndim != 2 or len(scores_bN) != num_queries:
        raise ValueError(
            f"expected scores of shape [{num_queries}, items], got {tuple(scores_bN.shape)}"
        )


def mask_seen(scores_bN: torch.Tensor, queries: Queries) -> None:
    """Set the items of the visible history to -inf."""
    _hide(scores_bN, *_seen(queries, True))


def _seen(queries: Queries, exclude_seen: bool) -> tuple[Array, Array]:
    """Row and item of every event of the visible histories; empty if
    seen items may be recommended.
    """
    if not exclude_seen:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    rows_E, items_E = _history_rows(queries), queries.histories.items_E.astype(np.int64)
    if not len(queries.histories.targets_T):
        return rows_E, items_E
    # an item that was only viewed may still be bought: only predicted types count as had
    had_E = queries.histories.are_targets_E
    return rows_E[had_E], items_E[had_E]


def _hide(scores_bN: torch.Tensor, rows_E: Array, items_E: Array) -> None:
    where = (torch.from_numpy(part).to(scores_bN.device) for part in (rows_E, items_E))
    scores_bN[tuple(where)] = -torch.inf


def mark_hits(items_BK: Array, queries: Queries) -> Array:
    """Where a list holds a target of its query: [B, K] bool."""
    listed_BK = _pairs(np.arange(len(items_BK))[:, None], items_BK)
    return _among(listed_BK, _pairs(queries.target_rows(), queries.target_items)) & (items_BK >= 0)


def mark_seen(items_BK: Array, queries: Queries) -> Array:
    """Where a list holds an item that ``exclude_seen`` would leave out: [B, K] bool."""
    listed_BK = _pairs(np.arange(len(items_BK))[:, None], items_BK)
    return _among(listed_BK, _pairs(*_seen(queries, True))) & (items_BK >= 0)


def _history_rows(queries: Queries) -> Array:
    return np.repeat(np.arange(len(queries)), queries.histories.lengths_U)


def _pairs(rows: Array, items: Array) -> Array:
    """A row and an item as one int64 key."""
    return rows.astype(np.int64) * 2**32 + items


def _among(pairs: Array, others: Array) -> Array:
    """Where a pair is among others; numpy's ``isin`` takes several times as long."""
    if not len(others):
        return np.zeros(pairs.shape, dtype=bool)
    others = np.sort(others)
    return np.asarray(others[np.searchsorted(others, pairs).clip(max=len(others) - 1)] == pairs)


@lru_cache(maxsize=4)
def tie_order(num_items: int) -> Array:
    """Order of every item among items of equal score: a fixed permutation."""
    return np.random.default_rng(_TIE_SEED).permutation(num_items).astype(np.int32)


@lru_cache(maxsize=4)
def _in_tie_order(num_items: int) -> Array:
    """The items in :func:`tie_order`."""
    return np.argsort(tie_order(num_items)).astype(np.int32)
