"""How alike two items are, by the model's item vectors.

Item vectors of several members stand side by side, each in a scale of its own. So that one member does not decide by
its numbers alone, every member's directions are scaled to vectors of mean length 1; the likeness is the cosine then.

Legend: N items, D width, X items of interest.
"""

from __future__ import annotations

from functools import cached_property
from typing import Final

import numpy as np
import torch
from torch import Tensor

from recsys.data.histories import Array
from recsys.model import FrozenModel

_ROWS: Final = 65_536  # at a time


class Likeness:
    """Cosines of item vectors; 0 for an item whose vector is zero."""

    def __init__(self, model: FrozenModel) -> None:
        self._model, self.vectors_ND = model, model.item_vectors_ND

    @cached_property
    def _scale_D(self) -> Tensor:
        """Of every direction, one over the mean length of its member's vectors."""
        scales, start = [], 0
        for width in self._model.widths:
            part_ND = self.vectors_ND[:, start : start + width]
            length = part_ND.norm(dim=1).mean().clamp(min=1e-12) if len(part_ND) else torch.ones(())
            scales.append((1 / length).expand(width))
            start += width
        return torch.cat(scales) if scales else torch.zeros(0)

    @cached_property
    def _lengths_N(self) -> Tensor:
        pieces = [(piece * self._scale_D).norm(dim=1) for piece in torch.split(self.vectors_ND, _ROWS)]
        return torch.cat(pieces) if pieces else torch.zeros(0)

    def to_all(self, item: int) -> Tensor:
        """Cosines of one item to every item: [N] float32."""
        asked_D = self.vectors_ND[item] * self._scale_D.square()
        dots_N = self.vectors_ND @ asked_D
        return dots_N / (self._lengths_N * self._lengths_N[item]).clamp(min=1e-12)

    def exactly(self, item: int, items_X: Array) -> Array:
        """:meth:`to_all` of some items, to the last digit the same on every machine: float64 [X]."""
        return exact_cosines(self.vectors_ND, item, items_X, self._scale_D)

    def among(self, items_X: Array) -> Array:
        """Cosines of items to each other: [X, X] float32."""
        chosen = torch.as_tensor(items_X).long()
        unit_XD = self.vectors_ND[chosen] * self._scale_D
        unit_XD = unit_XD / unit_XD.norm(dim=1, keepdim=True).clamp(min=1e-12)
        return np.asarray((unit_XD @ unit_XD.T).numpy())


def exact_cosines(vectors_ND: Tensor, item: int, items_X: Array, scale_D: Tensor | None = None) -> Array:
    """Cosines of an item's vector to some others', computed in float64 and rounded to float32, so that neither threads
    nor the place in memory change a digit: float64 [X].
    """
    rows = torch.as_tensor(np.concatenate([[item], items_X])).long()
    chosen_XD = vectors_ND[rows].double() * (1.0 if scale_D is None else scale_D.double())
    unit_XD = chosen_XD / chosen_XD.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return np.asarray((unit_XD[1:] @ unit_XD[0]).float().double().numpy())
