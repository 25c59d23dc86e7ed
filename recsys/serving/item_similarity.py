"""Similarity of items by the model's item vectors.

An item vector is the concatenation of the vectors of several members, which have different scales.
So that no member dominates only through its scale, the part of every member is scaled to a mean
length of 1; the similarity is the cosine of the scaled vectors.

Legend: N items, D width, X some items.
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


class ItemSimilarity:
    """Cosines of item vectors; 0 for an item whose vector is zero."""

    def __init__(self, model: FrozenModel) -> None:
        self._model, self.vectors_ND = model, model.item_vectors_ND

    @cached_property
    def _scale_D(self) -> Tensor:
        """For every direction, one over the mean length of its member's vectors."""
        scales, start = [], 0
        for width in self._model.widths:
            part_ND = self.vectors_ND[:, start : start + width]
            length = part_ND.norm(dim=1).mean().clamp(min=1e-12) if len(part_ND) else torch.ones(())
            scales.append((1 / length).expand(width))
            start += width
        return torch.cat(scales) if scales else torch.zeros(0)

    @cached_property
    def _lengths_N(self) -> Tensor:
        pieces = [
            (piece * self._scale_D).norm(dim=1) for piece in torch.split(self.vectors_ND, _ROWS)
        ]
        return torch.cat(pieces) if pieces else torch.zeros(0)

    def to_all(self, item: int) -> Tensor:
        """Cosines of one item to every item: [N] float32."""
        item_D = self.vectors_ND[item] * self._scale_D.square()
        dots_N = self.vectors_ND @ item_D
        return dots_N / (self._lengths_N * self._lengths_N[item]).clamp(min=1e-12)

    def exactly(self, item: int, items_X: Array) -> Array:
        """:meth:`to_all` for some items, with the same digits on every machine: float64 [X]."""
        return exact_cosines(self.vectors_ND, item, items_X, self._scale_D)

    def among(self, items_X: Array) -> Array:
        """Cosines of items to each other: [X, X] float32."""
        chosen = torch.as_tensor(items_X).long()
        unit_XD = self.vectors_ND[chosen] * self._scale_D
        unit_XD = unit_XD / unit_XD.norm(dim=1, keepdim=True).clamp(min=1e-12)
        return np.asarray((unit_XD @ unit_XD.T).numpy())


def exact_cosines(
    vectors_ND: Tensor, item: int, items_X: Array, scale_D: Tensor | None = None
) -> Array:
    """Cosines of an item's vector with those of some items: float64 [X].

    They are computed in float64 and rounded to float32, so that neither the number of threads nor
    memory alignment changes a digit.

    Parameters
    ----------
    vectors_ND : Tensor
        Item vectors.
    item : int
        Row of the item.
    items_X : Array
        Rows of the other items.
    scale_D : Tensor | None
        Factor for every direction; None: 1.
    """
    rows = torch.as_tensor(np.concatenate([[item], items_X])).long()
    chosen_XD = vectors_ND[rows].double() * (1.0 if scale_D is None else scale_D.double())
    unit_XD = chosen_XD / chosen_XD.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return np.asarray((unit_XD[1:] @ unit_XD[0]).float().double().numpy())
