"""Whitening of the text and media vectors of items.

Legend: N items, T width of the vectors, W whitened width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

_ROWS: Final = 2**14  # rows in float64 at a time


def whiten(text_NT: Tensor, num_directions: int) -> Tensor:
    """Whiten rows by their own statistics.

    Parameters
    ----------
    text_NT : Tensor
        Vectors, zero rows without a text.
    num_directions : int
        Number of leading directions; 0 only centres.

    Returns
    -------
    Tensor
        Whitened rows [N, W] float32, see :class:`Whitening`.
    """
    return Whitening.of(text_NT, num_directions)(text_NT)


@dataclass(frozen=True)
class Whitening:
    """Centre and whiten the rows with a text; rows without a text stay zero.

    Why: sentence vectors share a large common component and a few directions of high variance (Mu &
    Viswanath 2018); whitening lets a linear projection use all directions. With ``num_directions``
    0 the rows are only centred. The rows that it is fitted on get a mean squared length of one: [N,
    W] float32, W = min(num_directions, T), or T for 0.
    """

    mean_T: Tensor
    axes_TW: Tensor

    @staticmethod
    def of(text_NT: Tensor, num_directions: int) -> Whitening:
        """Fit mean, directions and scale on the rows with a text; all zero for equal rows."""
        dimension = text_NT.shape[1]
        width = whitened_width(num_directions, dimension)
        with_text = (text_NT != 0).any(1).nonzero()[:, 0]
        first_1T = text_NT[with_text[:1]]
        if not any((rows != first_1T).any() for rows in _with_text(text_NT)):
            return Whitening(torch.zeros(dimension), torch.zeros(dimension, width))
        count = len(with_text)
        sum_T = torch.zeros(dimension, dtype=torch.float64, device=text_NT.device)
        for rows in _with_text(text_NT):
            sum_T += rows.sum(0)
        mean_T, covariance_TT = sum_T / count, torch.zeros_like(torch.outer(sum_T, sum_T))
        for rows in _with_text(text_NT):
            covariance_TT += (rows - mean_T).T @ (rows - mean_T) / count
        axes_TW = torch.eye(dimension, dtype=torch.float64, device=text_NT.device)
        if num_directions:
            variance_T, directions_TT = torch.linalg.eigh(covariance_TT)
            variance_T, directions_TT = variance_T[-width:], directions_TT[:, -width:]
            axes_TW = directions_TT * torch.rsqrt(variance_T.clamp(min=0) + 1e-6 * variance_T.max())
        # the mean squared length of the rows on these axes
        axes_TW = axes_TW / (covariance_TT @ axes_TW * axes_TW).sum().sqrt()
        return Whitening(mean_T.to(torch.float32), axes_TW.to(torch.float32))

    def __call__(self, text_NT: Tensor) -> Tensor:
        """The whitened rows: [N, W] float32."""
        white_NW = text_NT.new_empty(len(text_NT), self.axes_TW.shape[1], dtype=torch.float32)
        for start in range(0, len(text_NT), _ROWS):
            rows_NT = text_NT[start : start + _ROWS].float()
            has_text_N1 = (rows_NT != 0).any(1, keepdim=True)
            rows_NT = (rows_NT - self.mean_T) * has_text_N1
            torch.mm(rows_NT, self.axes_TW, out=white_NW[start : start + _ROWS])
        return white_NW


def _with_text(text_NT: Tensor) -> Iterator[Tensor]:
    """Rows with a text, some at a time, in float64: a copy of all would take four times the
    memory.
    """
    parts = (text_NT[start : start + _ROWS] for start in range(0, len(text_NT), _ROWS))
    return (rows_NT[(rows_NT != 0).any(1)].double() for rows_NT in parts)


def whitened_width(num_directions: int, dimension: int) -> int:
    """Width W of whitened vectors; ``num_directions`` 0 keeps the full dimension."""
    return min(num_directions, dimension) or dimension
