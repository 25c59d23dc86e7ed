"""Social: what a user's friends like, by graph convolution over the user–user graph (x_s of S1).

A friend v is the mean of the item vectors of v's training events. Graph convolutions
(torch-geometric) pass these along the friendships. The last one reads neighbours only, so that z_u
depends on friends and never on u's own history. This helps users with a short history.

A request may name friends: for a user outside the graph, or instead of a known user's stored ones.
The frozen state keeps the message of every user in the last convolution, so such a user is a mean
(light, sage) or an attention (gat) over these messages, without torch-geometric. Named friends have
weight one each; a friend without events is ignored.

Legend: V users, F friend edges or named friends, D width, H heads, C = D / H, B queries.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from recsys.data.batches import Batch
from recsys.granularities.base import Graphs, ItemView, ModelSizes, State, heads_error
from recsys.granularities.dropout import Dropout
from recsys.granularities.social.friend_graph import Friends
from recsys.granularities.social.reads_friends import ReadsFriends
from recsys.granularities.social.section import SocialConfig
from recsys.granularities.user_item_graph import spread


class Social(ReadsFriends):
    """Graph convolutions over friends; users without a friend who has events are absent."""

    def __init__(self, config: SocialConfig, sizes: ModelSizes) -> None:
        super().__init__()
        self.kind, width = config.conv, sizes.width
        if config.conv == "gat" and width % config.heads:
            raise heads_error("social", config.heads, width)
        self.dropout = Dropout(config.dropout)
        self.convs = nn.ModuleList(self._conv(config, width) for _ in range(config.layers))
        self.output = nn.Linear(width, width, bias=False)
        # start: friends' taste is a vector in the space of the items
        nn.init.eye_(self.output.weight)

    @classmethod
    def for_serving(cls, config: SocialConfig, sizes: ModelSizes) -> Social:
        """Leave out convolutions: the state has their result, and serving needs no
        torch-geometric.
        """
        return cls(config.model_copy(update={"layers": 0}), sizes)

    @staticmethod
    def _conv(config: SocialConfig, width: int) -> nn.Module:
        from torch_geometric.nn import GATv2Conv, SAGEConv, SimpleConv

        conv: nn.Module = SimpleConv(aggr="mean")
        if config.conv == "sage":
            conv = SAGEConv(width, width, aggr="mean", root_weight=False)
        elif config.conv == "gat":
            conv = GATv2Conv(
                width, width // config.heads, heads=config.heads, add_self_loops=False, edge_dim=1
            )
        return conv

    @property
    def needs_all_items(self) -> bool:
        """True: a friend is a mean over training events."""
        return True

    def state(self, items: ItemView, graphs: Graphs) -> State:
        """User vectors from friends, and the messages of all users."""
        taste_VD = spread(graphs.mean_of_items, items.vectors_SD)
        # a friend without events has a zero vector, which would only dilute the mean
        active_V = torch.bincount(graphs.users_E, minlength=graphs.num_users) > 0
        friends: Friends = graphs["friends"]
        hidden_VD, found = taste_VD, {"active_V": active_V}
        for depth, conv in enumerate(self.convs):
            input_VD = self.dropout(hidden_VD)
            passed_VD = self._convolve(conv, input_VD, friends, active_V)
            last = depth + 1 == len(self.convs)
            # no residual in the last one: z_u must not contain the user's own history
            hidden_VD = passed_VD if last else torch.relu(passed_VD) + hidden_VD
            # only a frozen model answers requests that name friends; a step saves the memory
            if last and not self.training:
                found |= self._messages(conv, input_VD)
        reached_F = friends.dst_F[active_V[friends.src_F]]
        present_V = torch.bincount(reached_F, minlength=graphs.num_users) > 0
        return found | {
            "users_VD": self.output(hidden_VD) * present_V[:, None],
            "present_V": present_V,
        }

    def _convolve(self, conv: Any, input_VD: Tensor, friends: Friends, active_V: Tensor) -> Tensor:
        """One convolution over active friends. Only attention needs a vector for each edge."""
        if self.kind == "gat":
            is_active_F = active_V[friends.src_F]
            edges_2F = torch.stack([friends.src_F[is_active_F], friends.dst_F[is_active_F]])
            passed: Tensor = conv(
                input_VD, edges_2F, edge_attr=friends.weight_F[is_active_F][:, None]
            )
            return passed
        mean_VD = spread(friends.means(active_V, weighted=self.kind == "light"), input_VD)
        return mean_VD if self.kind == "light" else conv.lin_l(mean_VD)

    def _messages(self, conv: Any, input_VD: Tensor) -> State:
        """Message of every user in the last convolution, and for gat the terms of its attention."""
        if self.kind == "light":
            return {"messages_VD": self.output(input_VD)}
        if self.kind == "sage":  # linear, so the mean of messages is the convolution of the mean
            return {"messages_VD": self.output(conv.lin_l(input_VD))}
        return {
            "messages_VD": conv.lin_l(input_VD),
            "asks_VD": conv.lin_r(input_VD),
            # a user outside the graph asks with a zero vector
            "stranger_D": conv.lin_r(torch.zeros_like(input_VD[:1]))[0],
            "edge_D": conv.lin_edge(input_VD.new_ones(1, 1))[0],
            "attention_HC": conv.att[0],
            "bias_D": conv.bias,
        }

    def forward(self, batch: Batch, items: ItemView, state: State) -> tuple[Tensor, Tensor]:
        """User vectors from stored or named friends, and where any has events.

        Parameters
        ----------
        batch : Batch
            Users, and the friends that requests name; histories are not read.
        items : ItemView
            Not read.
        state : dict of str to Tensor
            ``users_VD`` [V, D] and ``present_V`` [V] bool; for named friends also the messages of
            all users.

        Returns
        -------
        z_BD : Tensor, [B, D] float
            User vector of each query.
        present_B : Tensor, [B] bool
            Whether a friend of the query has training events.
        """
        users_B = batch.users_U[batch.rows_B]
        found_B = users_B.clamp(min=0)
        present_B = (users_B >= 0) & state["present_V"][found_B]
        z_BD = state["users_VD"][found_B] * present_B[:, None]
        named_UF = batch.inputs.get("friends")
        if named_UF is None:
            return z_BD, present_B
        friends_BF = named_UF[batch.rows_B]
        named_B = (friends_BF >= 0).any(1)
        speaks_BF = (friends_BF >= 0) & state["active_V"][friends_BF.clamp(min=0)]
        own_BD = self._from_friends(users_B, friends_BF.clamp(min=0), speaks_BF, state)
        present_B = (named_B & speaks_BF.any(1)) | (~named_B & present_B)
        return torch.where(named_B[:, None], own_BD, z_BD), present_B

    def _from_friends(
        self, users_B: Tensor, friends_BF: Tensor, speaks_BF: Tensor, state: State
    ) -> Tensor:
        """The last convolution over the named friends with events, zero if there are none: [B,
        D].
        """
        messages_BFD = state["messages_VD"][friends_BF]
        if self.kind != "gat":
            share_BF = speaks_BF / speaks_BF.sum(1, keepdim=True).clamp(min=1)
            return torch.einsum("bf,bfd->bd", share_BF, messages_BFD)
        asks_BD = torch.where(
            (users_B >= 0)[:, None], state["asks_VD"][users_B.clamp(min=0)], state["stranger_D"]
        )
        split = (*friends_BF.shape, *state["attention_HC"].shape)
        # 0.2 is the negative slope of GATv2Conv, whose attention is repeated here
        met_BFHC = leaky_relu(messages_BFD + asks_BD[:, None] + state["edge_D"], 0.2).reshape(split)
        logits_BFH = (
            (met_BFHC * state["attention_HC"])
            .sum(3)
            .masked_fill(~speaks_BF[:, :, None], -torch.inf)
        )
        nobody_B = ~speaks_BF.any(1)
        # a row of −inf alone would be NaN, also in its gradient; its result is set to zero below
        weights_BFH = torch.softmax(logits_BFH.masked_fill(nobody_B[:, None, None], 0.0), dim=1)
        mixed_BD = torch.einsum("bfh,bfhc->bhc", weights_BFH, messages_BFD.reshape(split)).flatten(
            1
        )
        own_BD: Tensor = self.output(mixed_BD + state["bias_D"])
        return own_BD * ~nobody_B[:, None]
