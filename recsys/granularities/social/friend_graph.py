"""The friendships of a dataset as tensors: the input of ``social`` besides the events."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recsys.data.dataset import PreparedDataset


@dataclass(frozen=True)
class Friends:
    """Edges between users, sorted by source. Legend: F edges."""

    src_F: Tensor  # int64
    dst_F: Tensor  # int64
    weight_F: Tensor  # float32

    @staticmethod
    def of(dataset: PreparedDataset) -> Friends:
        """Read the friendships of a dataset; they are not events, so no split cuts them."""
        src, dst, weight = dataset.social_edges()
        src_F, dst_F = (torch.as_tensor(side.astype(np.int64)) for side in (src, dst))
        return Friends(src_F, dst_F, torch.as_tensor(weight.astype(np.float32)))

    def to(self, device: torch.device) -> Friends:
        """Move all tensors to a device."""
        return Friends(self.src_F.to(device), self.dst_F.to(device), self.weight_F.to(device))
