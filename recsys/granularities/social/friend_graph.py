"""The friendships of a dataset as tensors: the input of ``social`` besides the events."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recsys.data.dataset import PreparedDataset
from recsys.granularities.user_item_graph import Adjacency, adjacency


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

    def means(self, is_active_V: Tensor, weighted: bool) -> Adjacency:
        """The matrix [V, V] whose product is the mean over a user's active friends.

        Parameters
        ----------
        is_active_V : Tensor, [V] bool
            The users that count as friends.
        weighted : bool
            Whether a friend's vector is multiplied with the weight of the edge.

        Returns
        -------
        Adjacency
            The edges, sorted once, and a value for each: a product needs no vector for each edge.
        """
        num_users = len(is_active_V)
        if "_sorted" not in self.__dict__:
            places_F = torch.arange(len(self.src_F), device=self.src_F.device)
            made = adjacency(self.dst_F, self.src_F, places_F, (num_users, num_users))
            self.__dict__["_sorted"] = made
        edges, places_F = self.__dict__["_sorted"]
        is_active_F = is_active_V[self.src_F]
        count_V = torch.bincount(self.dst_F[is_active_F], minlength=num_users).clamp(min=1)
        value_F = is_active_F * (self.weight_F if weighted else 1.0) / count_V[self.dst_F]
        return edges, value_F[places_F]

    def to(self, device: torch.device) -> Friends:
        """Move all tensors to a device."""
        return Friends(self.src_F.to(device), self.dst_F.to(device), self.weight_F.to(device))
