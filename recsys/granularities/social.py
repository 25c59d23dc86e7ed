"""Social: what a user's friends like, by graph convolution over the user–user graph (x_s of S1).

A friend v is the mean of the item vectors of v's training events; graph convolutions (torch-geometric) carry these
along the friendships, and the last one reads neighbours only, so that z_u speaks of friends and never of u's own
history: that is what helps users whose history is short. Legend: V users, F friend edges, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from recsys.config import SocialConfig
from recsys.data.batches import Batch
from recsys.granularities.base import Granularity, Graphs, ItemView, ModelSizes, State, heads_error, spread


class Social(Granularity):
    """Graph convolutions over friends; users without a friend who has events are not present."""

    def __init__(self, config: SocialConfig, sizes: ModelSizes) -> None:
        super().__init__()
        self.kind, width = config.conv, sizes.width
        if config.conv == "gat" and width % config.heads:
            raise heads_error("social", config.heads, width)
        self.dropout = nn.Dropout(config.dropout)
        self.convs = nn.ModuleList(self._conv(config, width) for _ in range(config.layers))
        self.output = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.output.weight)  # friends' taste lives in the space of the items

    @classmethod
    def for_serving(cls, config: SocialConfig, sizes: ModelSizes) -> Social:
        """Without convolutions: the state has their result, and serving needs no torch-geometric."""
        return cls(config.model_copy(update={"layers": 0}), sizes)

    @staticmethod
    def _conv(config: SocialConfig, width: int) -> nn.Module:
        from torch_geometric.nn import GATv2Conv, SAGEConv, SimpleConv

        conv: nn.Module = SimpleConv(aggr="mean")
        if config.conv == "sage":
            conv = SAGEConv(width, width, aggr="mean", root_weight=False)
        elif config.conv == "gat":
            conv = GATv2Conv(width, width // config.heads, heads=config.heads, add_self_loops=False, edge_dim=1)
        return conv

    @property
    def needs_all_items(self) -> bool:
        return True

    def state(self, items: ItemView, graphs: Graphs) -> State:
        taste_VD = spread(graphs.mean_of_items, items.vectors_SD)
        active_V = torch.bincount(graphs.users_E, minlength=graphs.num_users) > 0
        from_active_F = active_V[graphs.friend_src_F]
        edges_2F = torch.stack([graphs.friend_src_F[from_active_F], graphs.friend_dst_F[from_active_F]])
        weight_F = graphs.friend_weight_F[from_active_F]
        hidden_VD = taste_VD
        for depth, conv in enumerate(self.convs):
            passed_VD = self._convolve(conv, self.dropout(hidden_VD), edges_2F, weight_F)
            last = depth + 1 == len(self.convs)
            hidden_VD = passed_VD if last else torch.relu(passed_VD) + hidden_VD
        present_V = torch.bincount(edges_2F[1], minlength=graphs.num_users) > 0
        return {"users_VD": self.output(hidden_VD) * present_V[:, None], "present_V": present_V}

    def _convolve(self, conv: nn.Module, input_VD: Tensor, edges_2F: Tensor, weight_F: Tensor) -> Tensor:
        weights: dict[str, Any] = {"gat": {"edge_attr": weight_F[:, None]}, "light": {"edge_weight": weight_F}}
        passed: Tensor = conv(input_VD, edges_2F, **weights.get(self.kind, {}))
        return passed

    def forward(self, batch: Batch, items: ItemView, state: State) -> tuple[Tensor, Tensor]:
        users_B = batch.users_U[batch.rows_B]
        found_B = users_B.clamp(min=0)
        present_B = (users_B >= 0) & state["present_V"][found_B]
        z_BD = state["users_VD"][found_B] * present_B[:, None]
        return z_BD, present_B
