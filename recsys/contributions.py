"""The contributions to a query's scores, by granularity: vectors, weights, and additions to the
scores of a few items.

s(u, i) = Σ_k λ_k z_k · a_i + Σ_s λ_s v_s(u, i), where k are the granularities that are vectors and
s the sparse ones. Both terms are sums over granularities, so the share of each granularity in a
score is exact, and so are the k best items.

Legend: B queries, K granularities, D width, N items, R list length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from recsys.granularities.sparse import SparseScores


class Contributions(NamedTuple):
    """The weighted contributions to every query."""

    # λ_k z_k in the directions of the item vectors; zero where missing, and for sparse
    # granularities
    vectors_BKD: Tensor
    weights_BK: Tensor  # λ, zero where missing
    sparse: Mapping[int, SparseScores]  # λ_s v_s by index in K

    @property
    def users_BD(self) -> Tensor:
        """The user vectors [B, D]."""
        return self.vectors_BKD.sum(1)

    @property
    def added(self) -> SparseScores:
        """The sum of the additions of all sparse granularities."""
        return (
            SparseScores.total([*self.sparse.values()]) if self.sparse else SparseScores.nothing()
        )

    def of(self, indices: Sequence[int]) -> Contributions:
        """The contributions of some granularities alone, in the given order."""
        sparse = {new: self.sparse[old] for new, old in enumerate(indices) if old in self.sparse}
        return Contributions(
            self.vectors_BKD[:, list(indices)], self.weights_BK[:, list(indices)], sparse
        )

    def scores(self, item_vectors_ND: Tensor) -> Tensor:
        """Scores of all items: [B, N]."""
        scores_BN = self.users_BD @ item_vectors_ND.T
        return self.added.add_to(scores_BN) if self.sparse else scores_BN

    def each(self, item_vectors_ND: Tensor) -> Tensor:
        """Scores of all items by every granularity alone: [B, K, N]."""
        scores_BKN = self.vectors_BKD @ item_vectors_ND.T
        for k, scores in self.sparse.items():
            scores.add_to(scores_BKN[:, k])
        return scores_BKN

    def times(self, factors_BK: Tensor) -> Contributions:
        """The contributions, multiplied by a factor for every query and granularity."""
        sparse = {k: scores.weighed(factors_BK[:, k]) for k, scores in self.sparse.items()}
        return Contributions(
            self.vectors_BKD * factors_BK[:, :, None], self.weights_BK * factors_BK, sparse
        )

    def shares(self, item_vectors_ND: Tensor, items_BR: Tensor) -> Tensor:
        """Shares of every granularity in the scores of listed items: float64 [B, K, R]; undefined
        for item ids below 0.

        The values are rounded to float32. Why: float64 adds such numbers without rounding, in any
        order.
        """
        vectors_BRD = item_vectors_ND[items_BR.clamp(min=0)].double()
        shares_BKR = torch.einsum("bkd,brd->bkr", self.vectors_BKD.double(), vectors_BRD).float()
        for k, scores in self.sparse.items():
            shares_BKR[:, k] += scores.at(items_BR)
        return shares_BKR.double()

    def take(self, rows_R: Tensor) -> Contributions:
        """The contributions to the given queries, in the given order; repeated rows are allowed."""
        sparse = {k: scores.take(rows_R) for k, scores in self.sparse.items()}
        return Contributions(self.vectors_BKD[rows_R], self.weights_BK[rows_R], sparse)

    def where(self, keep_B: Tensor) -> Contributions:
        """The contributions to some queries; those to the others are zero."""
        vectors_BKD = torch.where(keep_B[:, None, None], self.vectors_BKD, 0.0)
        sparse = {k: scores.where(keep_B) for k, scores in self.sparse.items()}
        return Contributions(
            vectors_BKD, torch.where(keep_B[:, None], self.weights_BK, 0.0), sparse
        )

    def cpu(self) -> Contributions:
        """The contributions in CPU memory."""
        sparse = {k: scores.cpu() for k, scores in self.sparse.items()}
        return Contributions(self.vectors_BKD.cpu(), self.weights_BK.cpu(), sparse)

    @staticmethod
    def gathered(pieces: Sequence[tuple[Tensor, Contributions]]) -> Contributions:
        """Concatenate contributions that were computed in pieces; each piece comes with its row
        numbers in the whole.
        """
        if len(pieces) == 1:
            return pieces[0][1]
        order_B = torch.cat([rows for rows, _ in pieces]).argsort()
        vectors_BKD = torch.cat([piece.vectors_BKD for _, piece in pieces])[order_B]
        weights_BK = torch.cat([piece.weights_BK for _, piece in pieces])[order_B]
        indices = sorted({k for _, piece in pieces for k in piece.sparse})
        sparse = {}
        for k in indices:
            has = [(rows, piece.sparse[k]) for rows, piece in pieces if k in piece.sparse]
            sparse[k] = SparseScores.total([scores.moved(rows) for rows, scores in has])
        return Contributions(vectors_BKD, weights_BK, sparse)
