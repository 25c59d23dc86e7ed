"""Social by counting: the items of a user's friends, ``social.fit: counts``.

    r_ui = Σ_v w_uv 2^(−(t − t_vi) / h) d_i^(−γ) / √(Σ_v w_uv)

over the friends v who had item i before t, where t is the time of the request, t_vi that of v's
newest event with the item, and d the number of users of an item. If the data has times, events of
friends at or after the request count nothing. Friends named in a request replace the stored ones,
with weight one each. Validation chooses γ and h; a graph that is not predictive gets no weight in
the fusion.

A sparse closed-form member that stores what it reads: 12 bytes per event and friendship, of the
latest ``max_events`` events of a user and the ``max_friends`` friends with the largest weights.

Legend: V users, F friendships, E events of all users, B queries, G pairs of a query and a friend, P
pairs of a query and an event.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from recsys.config import Config
from recsys.data.batches import Batch
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array, Split
from recsys.granularities.base import Granularity, Graphs, ItemView, ModelSizes, State
from recsys.granularities.history import DAY
from recsys.granularities.social.friend_graph import Friends
from recsys.granularities.social.section import SocialConfig
from recsys.granularities.sparse import SparseScores


class SocialCounts(Granularity):
    """A closed-form sparse member; absent where no friend has an event before the request."""

    closed_form = True
    sparse = True
    is_side_information = True
    reads_events = False
    reads_histories = True

    @classmethod
    def build_input(
        cls, section: SocialConfig, sizes: ModelSizes, dataset: PreparedDataset, through: Split
    ) -> Friends:
        """The friendships of the dataset.

        Parameters
        ----------
        section : SocialConfig
            Not read.
        sizes : ModelSizes
            Not read.
        dataset : PreparedDataset
            The dataset with the friendships.
        through : Split
            Not read, because friendships are not events.
        """
        return Friends.of(dataset)

    @classmethod
    def idle(cls, section: SocialConfig, dataset: PreparedDataset, config: Config) -> str:
        """Friends must have training events.

        Parameters
        ----------
        section : SocialConfig
            Not read.
        dataset : PreparedDataset
            The dataset with the friendships and the training events.
        config : Config
            Not read.

        Returns
        -------
        str
            Why friends do not help; "" if they may.
        """
        src_F, dst_F, _ = dataset.social_edges()
        if not len(src_F):
            return "no friendships between known users"
        is_of_use_F = (src_F != dst_F) & dataset.active_users_V(Split.TRAIN)[src_F]
        return "" if is_of_use_F.any() else "no friend has training events"

    def __init__(self, config: SocialConfig, sizes: ModelSizes) -> None:
        super().__init__()
        self.config, self.damping = config, config.popularity_damping[0]
        half_life = config.half_life[0] if sizes.timed else "none"
        self.half_life = None if half_life == "none" else float(half_life)

    def state(self, items: ItemView, graphs: Graphs) -> State:
        """Friendships and the events of friends."""
        friends: Friends = graphs["friends"]
        src_F, dst_F, weight_F = (
            part.cpu().numpy() for part in (friends.src_F, friends.dst_F, friends.weight_F)
        )
        order_F = np.lexsort((-weight_F, dst_F))
        starts_V1, kept_F = _first(dst_F[order_F], graphs.num_users, self.config.max_friends)
        order_F = order_F[kept_F]
        users_E, items_E, times_E = latest(graphs)
        order_E = np.lexsort((-times_E, users_E))
        events_V1, kept_E = _first(users_E[order_E], graphs.num_users, self.config.max_events)
        order_E = order_E[kept_E]
        made = {
            "friend_starts_V1": starts_V1,
            "friends_F": src_F[order_F].astype(np.int32),
            "weights_F": weight_F[order_F].astype(np.float32),
            "event_starts_V1": events_V1,
            "items_E": items_E[order_E].astype(np.int32),
            "times_E": times_E[order_E],
            "degree_N": graphs.degree_N.cpu().numpy().astype(np.float32),
        }
        return {
            name: torch.as_tensor(value).to(items.vectors_SD.device) for name, value in made.items()
        }

    def own_items(self, state: State) -> Tensor:
        """Empty vectors, because the member is sparse."""
        return state["degree_N"].new_zeros(len(state["degree_N"]), 0)

    def boost(self, batch: Batch, items: ItemView, state: State) -> SparseScores:
        """Decayed events of the friends of every query.

        Parameters
        ----------
        batch : Batch
            Users, times of the requests, and the friends that requests name; histories are not
            read.
        items : ItemView
            Not read.
        state : dict of str to Tensor
            Friendships, events of all users, and ``degree_N`` [N].

        Returns
        -------
        SparseScores
            r_ui of every item that a friend had before the request.
        """
        rows_G, friends_G, weights_G = self._friends(batch, state)
        total_B = weights_G.new_zeros(len(batch)).index_add_(0, rows_G, weights_G).clamp(min=1e-12)
        weights_G = weights_G / total_B.sqrt()[rows_G]
        of_P, positions_P = spread_out(state["event_starts_V1"], friends_G)
        rows_P = rows_G[of_P]
        items_P = state["items_E"][positions_P].long()
        times_P = state["times_E"][positions_P]
        query_time_P = batch.asked_at_B[rows_P]
        is_before_P = (times_P < query_time_P) | (times_P == 0) | (query_time_P == 0)
        values_P = weights_G[of_P] * state["degree_N"][items_P].clamp(min=1) ** -self.damping
        if self.half_life is not None:
            newest = int(state["times_E"].max()) if len(state["times_E"]) else 0
            query_time_P = torch.where(query_time_P == 0, newest, query_time_P)
            values_P = (
                values_P
                * torch.exp2(-(query_time_P - times_P).clamp(min=0) / DAY / self.half_life).float()
            )
        values_P = values_P.float()
        is_before_P &= values_P > 0
        return SparseScores.of(rows_P[is_before_P], items_P[is_before_P], values_P[is_before_P])

    def _friends(self, batch: Batch, state: State) -> tuple[Tensor, Tensor, Tensor]:
        """Query, friend and weight of every pair; friends of a request replace the stored ones."""
        users_B = batch.users_U[batch.rows_B]
        named_UF = batch.inputs.get("friends")
        names_B = torch.zeros(len(batch), dtype=torch.bool, device=users_B.device)
        rows, friends, weights = [], [], []
        if named_UF is not None:
            named_BF = named_UF[batch.rows_B]
            names_B = (named_BF >= 0).any(1)
            rows_G, position_G = (named_BF >= 0).nonzero(as_tuple=True)
            rows, friends = [rows_G], [named_BF[rows_G, position_G]]
            weights = [torch.ones(len(rows_G), device=users_B.device)]
        is_known_B = (users_B >= 0) & (users_B < len(state["friend_starts_V1"]) - 1) & ~names_B
        known_K = is_known_B.nonzero()[:, 0]
        of_G, positions_G = spread_out(state["friend_starts_V1"], users_B[known_K])
        rows.append(known_K[of_G])
        friends.append(state["friends_F"][positions_G].long())
        weights.append(state["weights_F"][positions_G])
        return torch.cat(rows), torch.cat(friends), torch.cat(weights)


def latest(graphs: Graphs) -> tuple[Array, Array, Array]:
    """User, item and time of the newest event of every pair of user and item in the histories;
    times are 0 where unknown.
    """
    histories = graphs.histories
    assert histories is not None, "reads_histories is set, so build_graphs has them"
    users_E = np.repeat(histories.users_U, histories.lengths_U).astype(np.int64)
    keys_E = users_E * graphs.num_items + histories.items_E
    order_E = np.lexsort((histories.times_E, keys_E))
    keys_E = keys_E[order_E]
    is_last_E = np.append(keys_E[1:] != keys_E[:-1], True)[: len(keys_E)]
    last_E = order_E[is_last_E]
    return users_E[last_E], histories.items_E[last_E].astype(np.int64), histories.times_E[last_E]


def _first(owners_X: Array, num_owners: int, most: int) -> tuple[Array, Array]:
    """For rows sorted by owner, keep at most ``most`` per owner: offsets of each owner [V + 1], and
    the kept rows.
    """
    counts_V = np.bincount(owners_X, minlength=num_owners)
    position_X = np.arange(len(owners_X)) - (np.cumsum(counts_V) - counts_V)[owners_X]
    starts_V1 = np.concatenate([[0], np.cumsum(np.minimum(counts_V, most))])
    return starts_V1.astype(np.int64), np.flatnonzero(position_X < most)


def spread_out(starts_V1: Tensor, owners_G: Tensor) -> tuple[Tensor, Tensor]:
    """All rows of the given owners: index of the owner, and the row.

    >>> spread_out(torch.tensor([0, 2, 2, 3]), torch.tensor([2, 0, 1]))
    (tensor([0, 1, 1]), tensor([2, 0, 1]))
    """
    begin_G, counts_G = starts_V1[owners_G], starts_V1[owners_G + 1] - starts_V1[owners_G]
    of_P = torch.repeat_interleave(torch.arange(len(owners_G), device=owners_G.device), counts_G)
    before_G = counts_G.cumsum(0) - counts_G
    return of_P, torch.arange(len(of_P), device=owners_G.device) - before_G[of_P] + begin_G[of_P]
