"""Scores of every granularity for some queries, computed once, so that new weights λ need
milliseconds.

Scores are linear in λ ≥ 0: s(u, i) = Σ_k λ_k s_k(u, i) with s_k = z_k · a_i, or the addition of a
sparse granularity. An item that is not among the M best of any granularity has s_k ≤ t_k, the M-th
best score, for every k, so s ≤ Σ_k λ_k t_k for any λ (the threshold algorithm, Fagin et al. 2001).
So only the union of these best items is kept; if the last item of a list is not above the bound,
this query is ranked over the whole catalogue. The lists equal those of the evaluation, up to
rounding of a sum.

Legend: Q queries, q queries of a chunk, K granularities, D width, N items, M best kept, P items of
a pool, L list length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize, pad

from recsys.contributions import Contributions
from recsys.data.histories import Array, Queries
from recsys.evaluation.metrics import coverage_of, exposure, novelty_of
from recsys.evaluation.ranking import mark_hits, mask_seen
from recsys.evaluation.top_items import tie_order, top_items
from recsys.model import FrozenModel

_NEVER: Final = -1e30  # below all scores; times a weight of zero it is 0, which −inf is not
_ROUNDING: Final = 2e-6  # share of the best score; closer scores are added as in the evaluation
_CHUNK_SCORES: Final = 2**24


@dataclass(frozen=True)
class Lists:
    """The lists of a setting; −1 if fewer than L items can be recommended."""

    items_QL: Array  # int32
    hits_QL: Array  # bool


@dataclass(frozen=True)
class ScoreCache:
    """The pools of candidates with their scores, and the data to rank the whole catalogue.

    Tensors of a pool are in the order of :func:`~recsys.evaluation.ranking.tie_order`, so that ties
    are broken as in the evaluation.
    """

    queries: Queries  # each with a target that counts
    exclude_seen: bool
    contributions: Contributions  # of every query, with every λ = 1
    item_vectors_ND: Tensor
    popularity_N: Tensor
    pool_QP: Tensor  # int64, −1 after the end
    scores_QKP: Tensor  # the last position, after the pool's items, holds the bound t_k
    targets_QP: Tensor  # bool
    whole_Q: Tensor  # bool: the pool holds all items that can be recommended

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def present_QK(self) -> Tensor:
        """Whether a query has a granularity: bool."""
        return self.contributions.weights_BK > 0

    def take(self, rows: Array) -> ScoreCache:
        """The cache for some of the queries."""
        at = torch.as_tensor(rows)
        per_query = (self.pool_QP, self.scores_QKP, self.targets_QP, self.whole_Q)
        kept = [tensor[at] for tensor in per_query]
        shared = (self.item_vectors_ND, self.popularity_N)
        return ScoreCache(
            self.queries.take(rows), self.exclude_seen, self.contributions.take(at), *shared, *kept
        )

    @torch.inference_mode()
    def lists(self, weights_QK: Tensor, length: int) -> tuple[Lists, int]:
        """The lists for weights ≥ 0 (zero if missing), and the number of queries ranked over the
        catalogue.
        """
        scored_QP = torch.bmm(weights_QK[:, None], self.scores_QKP)[:, 0]
        bound_Q, scored_QP = scored_QP[:, -1], scored_QP[:, :-1]
        size = min(length, scored_QP.shape[1])
        # one more than the list, to see whether its last item ties with the next
        top_QL, positions_QL = scored_QP.topk(min(size + 1, scored_QP.shape[1]), dim=1)
        gap_QL = top_QL[:, :-1] - top_QL[:, 1:]
        # the order of the sum may decide
        close_Q = ((gap_QL > 0) & (gap_QL <= _ROUNDING * top_QL[:, :1].abs())).any(1)
        positions_QL = positions_QL[:, :size]
        tied_Q = (gap_QL == 0).any(1)
        if tied_Q.any():  # topk breaks ties arbitrarily
            positions_QL[tied_Q] = scored_QP[tied_Q].argsort(dim=1, descending=True, stable=True)[
                :, :size
            ]
        items_QL = np.full((len(self), length), -1, dtype=np.int32)
        hits_QL = np.zeros((len(self), length), dtype=bool)
        items_QL[:, :size] = self.pool_QP.gather(1, positions_QL).numpy()
        hits_QL[:, :size] = self.targets_QP.gather(1, positions_QL).numpy()
        short = size < length
        sure_Q = self.whole_Q | (
            torch.zeros_like(self.whole_Q) if short else top_QL[:, size - 1] > bound_Q
        )
        # without any weight the evaluation ranks by popularity
        open_q = torch.nonzero(~sure_Q | close_Q | ~(weights_QK > 0).any(1)).squeeze(1)
        if len(open_q):
            items_QL[open_q.numpy()], hits_QL[open_q.numpy()] = self._ranked(
                open_q, weights_QK[open_q], length
            )
        return Lists(items_QL, hits_QL), len(open_q)

    def _ranked(self, rows_q: Tensor, weights_qK: Tensor, length: int) -> tuple[Array, Array]:
        """Rank the whole catalogue for some queries, as the evaluation does."""
        found = []
        step = max(1, _CHUNK_SCORES // len(self.item_vectors_ND))
        for part in (slice(start, start + step) for start in range(0, len(rows_q), step)):
            some_q1 = (weights_qK[part] > 0).any(1, keepdim=True)
            scores_qN = (
                self.contributions.take(rows_q[part])
                .times(weights_qK[part])
                .scores(self.item_vectors_ND)
            )
            scores_qN = torch.where(some_q1, scores_qN, self.popularity_N)
            chunk_queries = self.queries.take(rows_q[part].numpy())
            if self.exclude_seen:
                mask_seen(scores_qN, chunk_queries)
            items_qL, _ = top_items(scores_qN, length)
            found.append((items_qL, mark_hits(items_qL, chunk_queries)))
        items, hits = zip(*found, strict=True)
        return np.concatenate(items), np.concatenate(hits)


@torch.inference_mode()
def build_cache(frozen: FrozenModel, queries: Queries, exclude_seen: bool, best: int) -> ScoreCache:
    """Score every granularity alone for queries whose targets count, and keep the ``best`` items of
    each.

    Memory: at most 8 bytes × (granularities + 1) × best × granularities per query.

    Parameters
    ----------
    frozen : FrozenModel
        The model.
    queries : Queries
        Queries, each with a target that counts.
    exclude_seen : bool
        Whether items of the history are left out.
    best : int
        Number of best items of each granularity to keep.

    Returns
    -------
    ScoreCache
        The pools with their scores on the CPU.
    """
    num_items, num_granularities = len(frozen.item_vectors_ND), len(frozen.names)
    order_N = torch.from_numpy(tie_order(num_items)).long().argsort()
    chunk = max(1, _CHUNK_SCORES // (num_items * num_granularities))
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    pieces: list[tuple[Tensor, Contributions]] = []
    for chunk_queries in queries.chunks(chunk):
        contributions = frozen.unit_contributions(chunk_queries).cpu()
        scores_qKN = contributions.each(frozen.item_vectors_ND.cpu())
        pieces.append(
            (torch.arange(len(chunk_queries)) + sum(len(rows) for rows, _ in pieces), contributions)
        )
        found.append(
            _pool(
                scores_qKN, contributions.weights_BK > 0, chunk_queries, exclude_seen, best, order_N
            )
        )
    longest = max(pool_qP.shape[1] for pool_qP, *_ in found)
    widened = [_widen(part, longest) for part in found]
    pool_QP, scores_QKP, whole_Q = (torch.cat(columns) for columns in zip(*widened, strict=True))
    targets_QP = torch.from_numpy(mark_hits(pool_QP.numpy(), queries))
    vectors = (frozen.item_vectors_ND.cpu(), frozen.popularity_N.cpu())
    kept = (pool_QP, scores_QKP, targets_QP, whole_Q)
    return ScoreCache(queries, exclude_seen, Contributions.gathered(pieces), *vectors, *kept)


def _pool(
    scores_qKN: Tensor,
    present_qK: Tensor,
    chunk_queries: Queries,
    exclude_seen: bool,
    best: int,
    order_N: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Items, scores followed by the bound, and whether no item was left out."""
    allowed_qN = torch.zeros(len(chunk_queries), scores_qKN.shape[2])
    if exclude_seen:
        mask_seen(allowed_qN, chunk_queries)
    # seen items are marked with −∞ in a matrix of zeros
    allowed_qN = allowed_qN == 0
    size = min(best, scores_qKN.shape[2])
    open_qKN = scores_qKN.masked_fill(~allowed_qN[:, None], -torch.inf)
    top_qKM, places_qKM = open_qKN.topk(size, dim=2)
    member_qN = torch.zeros_like(allowed_qN)
    for granularity in range(present_qK.shape[1]):
        rows = present_qK[:, granularity].nonzero().squeeze(1)
        member_qN[rows[:, None], places_qKM[rows, granularity]] = True
    member_qN &= allowed_qN
    counts_q = member_qN.sum(1)
    rows, columns = member_qN[:, order_N].nonzero(as_tuple=True)
    positions = torch.arange(len(rows)) - (counts_q.cumsum(0) - counts_q)[rows]
    pool_qP = torch.full((len(chunk_queries), max(1, int(counts_q.max()))), -1)
    pool_qP[rows, positions] = order_N[columns]
    kept_qKP = scores_qKN.gather(
        2, pool_qP.clamp(min=0)[:, None].expand(-1, scores_qKN.shape[1], -1)
    )
    kept_qKP = kept_qKP.masked_fill((pool_qP < 0)[:, None], _NEVER)
    bound_qK = torch.where(present_qK, top_qKM[:, :, -1], 0.0).clamp(min=_NEVER)
    return (
        pool_qP,
        torch.cat([kept_qKP, bound_qK[:, :, None]], dim=2),
        counts_q == allowed_qN.sum(1),
    )


def _widen(part: tuple[Tensor, Tensor, Tensor], longest: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pad the pools of a chunk to the length of the longest one."""
    pool_qP, scores_qKP, whole_q = part
    more = longest - pool_qP.shape[1]
    scores_qKP = torch.cat(
        [pad(scores_qKP[:, :, :-1], (0, more), value=_NEVER), scores_qKP[:, :, -1:]], dim=2
    )
    return pad(pool_qP, (0, more), value=-1), scores_qKP, whole_q


@dataclass(frozen=True)
class ListMeter:
    """Coverage, novelty and diversity, a fast version of
    :func:`~recsys.evaluation.metrics.list_metrics`.
    """

    counts_N: Array  # training events
    unit_ND: Tensor  # unit item vectors, then a row of zeros for empty positions
    length_N: Tensor  # 1, or 0 for a vector of zeros

    @staticmethod
    def of(frozen: FrozenModel, counts_N: Array) -> ListMeter:
        """A meter for a model and the training events per item."""
        unit_ND = pad(
            normalize(frozen.item_vectors_ND.detach().cpu().float(), dim=1, eps=1e-30), (0, 0, 0, 1)
        )
        return ListMeter(counts_N, unit_ND, (unit_ND != 0).any(1).float())

    @torch.inference_mode()
    def __call__(self, items_QL: Array) -> dict[str, float]:
        """The means over queries, by name."""
        length = items_QL.shape[1]
        return {
            "coverage": coverage_of(exposure(items_QL, len(self.counts_N), length)),
            "novelty": float(novelty_of(items_QL, self.counts_N, length).mean()),
            "diversity": float(self._diversity(items_QL)),
        }

    def _diversity(self, items_QL: Array) -> Tensor:
        """1 − mean cosine of the pairs in a list, from Σ_{i≠j} cos = ‖Σ v‖² − Σ ‖v‖²; 0 for fewer
        than two items.
        """
        positions_QL = torch.from_numpy(items_QL).long()
        listed_QL = positions_QL >= 0
        positions_QL = torch.where(listed_QL, positions_QL, len(self.unit_ND) - 1)
        all_Q = embedding_bag(positions_QL, self.unit_ND, mode="sum").square().sum(1)
        same_Q = self.length_N[positions_QL].sum(1)
        pairs_Q = listed_QL.sum(1) * (listed_QL.sum(1) - 1)
        return torch.where(pairs_Q > 0, 1 - (all_Q - same_Q) / pairs_Q.clamp(min=1), 0.0).mean()
