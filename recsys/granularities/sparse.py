"""Sparse scores: the additions of a sparse granularity to the scores of a few items per query, zero
for all others.

Why not vectors: a user's earlier items are a list in which each item has its own number, and no
short vector can hold that. A list of additions keeps every score exact, needs memory only for its
entries, and the share of a score is the number itself.

Legend: P additions, B queries, R list length, N items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

_SHIFT = 2**32  # row and item form one int64 key


@dataclass(frozen=True)
class SparseScores:
    """Add ``values_P`` to the score of item ``items_P`` in row ``rows_P``; sorted by row, then
    item, each pair once.

    >>> rows, items = torch.tensor([1, 0]), torch.tensor([2, 0])
    >>> added = SparseScores.of(rows, items, torch.tensor([3.0, 1.0]))
    >>> added.add_to(torch.zeros(2, 3))
    tensor([[1., 0., 0.],
            [0., 0., 3.]])
    """

    rows_P: Tensor  # int64
    items_P: Tensor  # int64
    values_P: Tensor  # float32

    def __len__(self) -> int:
        return len(self.rows_P)

    @staticmethod
    def of(rows_P: Tensor, items_P: Tensor, values_P: Tensor) -> SparseScores:
        """Build from additions in any order; additions to the same row and item are summed.

        Parameters
        ----------
        rows_P : Tensor, [P] int64
            Row of each addition, from 0.
        items_P : Tensor, [P] int64
            Item of each addition.
        values_P : Tensor, [P] float
            Number to add.

        Returns
        -------
        SparseScores
            The sums, sorted by row, then item; values keep their type.
        """
        keys, position_P = torch.unique(rows_P * _SHIFT + items_P, return_inverse=True)
        values = torch.zeros(len(keys), dtype=values_P.dtype, device=values_P.device)
        return SparseScores(
            keys // _SHIFT, keys % _SHIFT, values.index_add_(0, position_P, values_P)
        )

    @staticmethod
    def nothing(device: torch.device | None = None) -> SparseScores:
        """Return scores without any addition."""
        none = torch.zeros(0, dtype=torch.int64, device=device)
        return SparseScores(none, none, torch.zeros(0, device=device))

    @staticmethod
    def total(summands: Sequence[SparseScores]) -> SparseScores:
        """Return the sum of several sparse scores."""
        if len(summands) == 1:
            return summands[0]
        if not summands:
            return SparseScores.nothing()
        columns = (
            [getattr(summand, name) for summand in summands]
            for name in ("rows_P", "items_P", "values_P")
        )
        return SparseScores.of(*(torch.cat(column) for column in columns))

    def weighed(self, weights_B: Tensor) -> SparseScores:
        """Multiply every row with its weight."""
        return replace(
            self, values_P=self.values_P * weights_B[self.rows_P].to(self.values_P.dtype)
        )

    def present(self, num_rows: int) -> Tensor:
        """Whether each row has an addition: bool [B]."""
        found_B = torch.zeros(num_rows, dtype=torch.bool, device=self.rows_P.device)
        found_B[self.rows_P] = True
        return found_B

    def sizes(self, num_rows: int) -> Tensor:
        """Sum of the absolute values of every row, an upper bound of each of them: [B]."""
        return torch.zeros(num_rows, device=self.rows_P.device).index_add_(
            0, self.rows_P, self.values_P.abs().float()
        )

    def add_to(self, scores_BN: Tensor) -> Tensor:
        """Add to the scores of all items in place."""
        # each position occurs once
        scores_BN[self.rows_P, self.items_P] += self.values_P.to(scores_BN.dtype)
        return scores_BN

    def at(self, items_BR: Tensor) -> Tensor:
        """Values of listed items, zero where nothing is added: float32 [B, R]."""
        if not len(self):
            return torch.zeros(items_BR.shape, device=self.values_P.device)
        rows_B1 = torch.arange(len(items_BR), device=items_BR.device)[:, None]
        keys_P, keys_BR = self.rows_P * _SHIFT + self.items_P, rows_B1 * _SHIFT + items_BR
        # a key beyond the last one gets the position P, which does not exist; the comparison
        # rejects it
        position_BR = torch.searchsorted(keys_P, keys_BR).clamp(max=len(keys_P) - 1)
        # −1 marks an empty place of a list
        is_there_BR = (keys_P[position_BR] == keys_BR) & (items_BR >= 0)
        return torch.where(is_there_BR, self.values_P[position_BR].float(), 0.0)

    def between(self, start: int, end: int) -> SparseScores:
        """Rows from ``start`` up to, not including, ``end``; row numbers start at 0 again."""
        edges = torch.tensor([start, end], device=self.rows_P.device)
        # rows ascend, so a binary search finds the part without reading it
        span = slice(*torch.searchsorted(self.rows_P, edges).tolist())
        return SparseScores(self.rows_P[span] - start, self.items_P[span], self.values_P[span])

    def take(self, rows_R: Tensor) -> SparseScores:
        """Return the given rows in the given order; repeated rows are allowed."""
        starts_R, ends_R = (
            torch.searchsorted(self.rows_P, rows_R, right=right) for right in (False, True)
        )
        counts_R = ends_R - starts_R
        rows_P = torch.repeat_interleave(torch.arange(len(rows_R), device=rows_R.device), counts_R)
        before_R = counts_R.cumsum(0) - counts_R
        # the places of each row's entries: count on from its start, without a loop over rows
        positions_P = (
            torch.arange(len(rows_P), device=rows_R.device) + (starts_R - before_R)[rows_P]
        )
        return SparseScores(rows_P, self.items_P[positions_P], self.values_P[positions_P])

    def moved(self, rows_B: Tensor) -> SparseScores:
        """Return the same additions with row ``b`` renamed to row ``rows_B[b]``."""
        # through ``of``, because the renamed rows may be out of order
        return SparseScores.of(rows_B[self.rows_P], self.items_P, self.values_P)

    def where(self, keep_B: Tensor) -> SparseScores:
        """Keep the additions of some rows."""
        kept_P = keep_B[self.rows_P]
        return SparseScores(self.rows_P[kept_P], self.items_P[kept_P], self.values_P[kept_P])

    def cpu(self) -> SparseScores:
        """Return the scores in CPU memory."""
        return SparseScores(self.rows_P.cpu(), self.items_P.cpu(), self.values_P.cpu())
