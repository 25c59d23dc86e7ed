"""The friendships of a dataset as tensors: the input of ``social`` besides the events."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Split


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


def why_friends_do_not_help(dataset: PreparedDataset) -> str:
    """Why no friend can tell anything about a user; "" if friends may help."""
    src_F, dst_F, _ = dataset.social_edges()
    if not len(src_F):
        return "no friendships between known users"
    is_of_use_F = (src_F != dst_F) & dataset.active_users_V(Split.TRAIN)[src_F]
    return "" if is_of_use_F.any() else "no friend has training events"
