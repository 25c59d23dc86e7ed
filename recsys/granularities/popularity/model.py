"""Popularity at the moment of asking: what many chose lately, as a member of the fusion.

With C_i(t) = Σ_e 2^(−(t − t_e) / h) over the events e of item i before t, h the half-life (``none``: all count alike),

    a_i(t) = log((1 − ρ) C_i(t) / Σ C(t) + ρ (A_i(t) + 1) / (Σ A(t) + N)),      A: the same without decay.

The second part ranks what had no event lately. The counts are kept at T moments between the first event and the last,
more of them near the end. A question reads the newest moment before it, so that no event at or behind the question
counts, and the score is z · a, where z has a single 1. Inside the history the counts are as old as the moments are
apart. In serving a question comes behind the last event and reads the last moment: the counts of a registered model are
as fresh as the events it was fitted on. With ``as_of: last`` every question reads the last moment.

Where data has no times, a_i = log((A_i + 1) / (Σ A + N)) for everybody.

Half-life, what counts, ρ and ``as_of`` are chosen on validation.

Legend: E events, N items, T moments, B queries.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from recsys.data.batches import Batch
from recsys.data.histories import Array, Histories
from recsys.granularities.base import Granularity, Graphs, ItemView, ModelSizes, State
from recsys.granularities.popularity.section import MOST_NUMBERS, PopularityConfig
from recsys.granularities.shares import at_moments, counted, log_share, moments


class Popularity(Granularity):
    """A fitted member with item vectors of its own; present everywhere but before the first moment."""

    fitted = True
    reads_events = False

    def __init__(self, config: PopularityConfig, sizes: ModelSizes) -> None:
        super().__init__()
        self.half_life, self.counts, self.moments = config.half_life[0], config.counts[0], config.moments
        self.rest, self.always_last = config.rest[0], config.as_of[0] == "last"
        self.targets_alone = config.types[0] == "targets"
        self.reads_histories = sizes.timed or ("targets" in config.types and sizes.num_types > 1)

    def state(self, items: ItemView, graphs: Graphs) -> State:
        device, num_items = items.vectors_SD.device, graphs.num_items
        histories = graphs.histories
        if histories is not None and self.targets_alone:
            histories = histories.of_targets()
        if histories is None or not (histories.times_E != 0).any():
            counts_N = graphs.degree_N.cpu().numpy()
            if histories is not None and self.targets_alone:
                counts_N = np.bincount(distinct_items(histories, num_items), minlength=num_items)
            table_NT, moments_T = log_share(counts_N, counts_N, self.rest)[:, None], np.zeros(1, dtype=np.int64)
        else:
            found = counted(histories, num_items, self.counts)
            most = max(1, min(self.moments, MOST_NUMBERS // max(num_items, 1)))
            moments_T = moments(found[1], most)
            table_NT = at_moments(*found, moments_T, num_items, self.half_life, self.rest)
        made = {"table_NT": torch.as_tensor(table_NT), "moments_T": torch.as_tensor(moments_T)}
        return {name: value.to(device) for name, value in made.items()}

    def own_items(self, state: State) -> Tensor:
        return state["table_NT"]

    def forward(self, batch: Batch, items: ItemView, state: State) -> tuple[Tensor, Tensor]:
        moments_T = state["moments_T"]
        places_B = torch.searchsorted(moments_T, batch.asked_at_B.contiguous()) - 1  # the newest before the question
        last = len(moments_T) - 1
        is_last_B = (batch.asked_at_B == 0) | (moments_T[0] == 0) | self.always_last
        places_B = torch.where(is_last_B, last, places_B)
        present_B = places_B >= 0
        z_BT = torch.zeros(len(batch), last + 1, device=moments_T.device)
        z_BT[torch.arange(len(batch), device=moments_T.device), places_B.clamp(min=0)] = present_B.float()
        return z_BT, present_B


def distinct_items(histories: Histories, num_items: int) -> Array:
    """The item of every pair of a user and an item."""
    users_E = np.repeat(np.arange(len(histories)), histories.lengths_U)
    return np.asarray(np.unique(users_E * num_items + histories.items_E) % max(num_items, 1))
