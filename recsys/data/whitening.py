"""Whitening of the text and media vectors of items.

Legend: N items, T width of the vectors, W whitened width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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
        rows = text_NT[text_NT.abs().sum(1) > 0].to(torch.float64)
        dimension = text_NT.shape[1]
        width = whitened_width(num_directions, dimension)
        if not (rows[1:] != rows[:1]).any():
            return Whitening(torch.zeros(dimension), torch.zeros(dimension, width))
        mean_T = rows.mean(0)
        white, axes_TW = rows - mean_T, torch.eye(dimension, dtype=torch.float64)
        if num_directions:
            variance_T, directions_TT = torch.linalg.eigh(white.T @ white / len(rows))
            variance_T, directions_TT = variance_T[-width:], directions_TT[:, -width:]
            axes_TW = directions_TT * torch.rsqrt(variance_T.clamp(min=0) + 1e-6 * variance_T.max())
        axes_TW = axes_TW / (white @ axes_TW).square().sum(1).mean().sqrt()
        return Whitening(mean_T.to(torch.float32), axes_TW.to(torch.float32))

    def __call__(self, text_NT: Tensor) -> Tensor:
        """The whitened rows: [N, W] float32."""
        has_text_N1 = (text_NT.abs().sum(1) > 0).to(torch.float64)[:, None]
        white_NT = (text_NT.double() - self.mean_T.double()) * has_text_N1
        return (white_NT @ self.axes_TW.double()).to(torch.float32)


def whitened_width(num_directions: int, dimension: int) -> int:
    """Width W of whitened vectors; ``num_directions`` 0 keeps the full dimension."""
    return min(num_directions, dimension) or dimension
