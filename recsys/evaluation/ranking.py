"""Exact full ranking of the catalogue for every query, in chunks.

Why exact: metrics on sampled candidates can order recommenders wrongly (Krichene and Rendle 2020).

If a scorer has user and item vectors, its users are encoded in chunks of similar length, to avoid
padding. :mod:`recsys.evaluation.top_items` finds the best items of a chunk.

Legend: B queries, b queries of a chunk, K list length, N items, P targets, E events, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from recsys.data.histories import Array, Queries
from recsys.evaluation.top_items import MAX_SCORES, empty_lists, hide, top_by_vectors, top_items
from recsys.granularities.sparse import SparseScores
from recsys.pace import Pace


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
    items_BK, scores_BK = empty_lists(len(counted), k)
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
            hide(scores_1N, rows_E[rows_E == row] - row, hidden_E[rows_E == row])
            yield rows_b[[row]], *top_items(scores_1N, k)


def _by_scores(scorer: Scorer, queries: Queries, k: int, exclude_seen: bool, chunk: int) -> Found:
    """Yield the lists of any scorer; no chunk has more than the allowed number of scores."""
    if len(queries) == 0:
        return
    # one query shows how large the catalogue is
    num_items = scorer.scores(next(queries.chunks(1))).shape[-1]
    done = 0
    for piece in queries.chunks(min(chunk, max(1, MAX_SCORES // max(1, num_items)))):
        scores_bN = scorer.scores(piece)
        _check(scores_bN, len(piece))
        if exclude_seen:
            mask_seen(scores_bN, piece)
        yield np.arange(done, done + len(piece)), *top_items(scores_bN, k)
        done += len(piece)


def _check(scores_bN: torch.Tensor, num_queries: int) -> None:
    if scores_bN.ndim != 2 or len(scores_bN) != num_queries:
        raise ValueError(
            f"expected scores of shape [{num_queries}, items], got {tuple(scores_bN.shape)}"
        )


def mask_seen(scores_bN: torch.Tensor, queries: Queries) -> None:
    """Set the items of the visible history to -inf."""
    hide(scores_bN, *_seen(queries, True))


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
