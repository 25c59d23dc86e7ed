"""Social by counting: the items of a user's friends, ``social.fit: counts``.

    r_ui = Σ_v w_uv 2^(−(t − t_vi) / h) d_i^(−γ) / √(Σ_v w_uv)

over the friends v whose newest event with item i is before t, where t is the time of the request,
t_vi that of the event, and d the number of users of an item. If the data has times, events of
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

from recsys.data.batches import Batch
from recsys.data.histories import Array
from recsys.granularities.base import Graphs, ItemView, ModelSizes, State
from recsys.granularities.history import DAY, raised
from recsys.granularities.social.friend_lists import (
    first_of_each,
    friend_lists,
    friends_of,
    over_root,
    spread_out,
)
from recsys.granularities.social.reads_friends import ReadsFriends
from recsys.granularities.social.section import SocialConfig
from recsys.granularities.sparse import SparseScores


class SocialCounts(ReadsFriends):
    """A closed-form sparse member; absent where no friend has an event before the request."""

    closed_form = True
    sparse = True
    is_side_information = True
    reads_events = False
    reads_histories = True

    def __init__(self, config: SocialConfig, sizes: ModelSizes) -> None:
        super().__init__()
        self.config, self.damping = config, config.popularity_damping[0]
        half_life = config.half_life[0] if sizes.timed else "none"
        self.half_life = None if half_life == "none" else float(half_life)

    def state(self, items: ItemView, graphs: Graphs) -> State:
        """Friendships and the events of friends."""
        users_E, items_E, times_E = latest(graphs)
        order_E = np.lexsort((-times_E, users_E))
        events_V1, kept_E = first_of_each(
            users_E[order_E], graphs.num_users, self.config.max_events
        )
        order_E = order_E[kept_E]
        made = friend_lists(graphs["friends"], graphs.num_users, self.config.max_friends) | {
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
        rows_G, friends_G, weights_G = friends_of(batch, state)
        weights_G = over_root(weights_G, rows_G, len(batch))
        of_P, positions_P = spread_out(state["event_starts_V1"], friends_G)
        rows_P = rows_G[of_P]
        items_P = state["items_E"][positions_P].long()
        times_P = state["times_E"][positions_P]
        query_time_P = batch.asked_at_B[rows_P]
        is_before_P = (times_P < query_time_P) | (times_P == 0) | (query_time_P == 0)
        values_P = weights_G[of_P] * state["degree_N"][items_P].clamp(min=1) ** -self.damping
        is_kept_P = is_before_P & (values_P > 0)
        rows_P, items_P, times_P, values_P = (
            column_P[is_kept_P] for column_P in (rows_P, items_P, times_P, values_P)
        )
        if self.half_life is not None:
            newest = int(state["times_E"].max()) if len(state["times_E"]) else 0
            asked_P = torch.where(batch.asked_at_B == 0, newest, batch.asked_at_B)[rows_P]
            logs_P = -((asked_P - times_P).clamp(min=0) / DAY / self.half_life).float()
            values_P = values_P * raised(logs_P, rows_P, len(batch))
        return SparseScores.of(rows_P, items_P, values_P.float())


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
