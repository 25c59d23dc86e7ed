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

from typing import Final

import numpy as np
import torch
from torch import Tensor

from recsys.data.batches import Batch
from recsys.data.histories import Array, Histories
from recsys.granularities.base import Granularity, Graphs, ItemView, ModelSizes, State
from recsys.granularities.history import DAY
from recsys.granularities.popularity.section import MOST_NUMBERS, PopularityConfig

_NEAR_THE_END: Final = 8  # moments in the last of the even parts


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
            table_NT, moments_T = _log_share(counts_N, counts_N, self.rest)[:, None], np.zeros(1, dtype=np.int64)
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


def counted(histories: Histories, num_items: int, how: str) -> tuple[Array, Array]:
    """Item and time of every event that counts, in time: a user's first of an item (``users``), the first of each day
    (``events``), or ``all``. Events without a time are as old as can be."""
    users_E = np.repeat(np.arange(len(histories)), histories.lengths_U)
    items_E, times_E = histories.items_E.astype(np.int64), histories.times_E
    known_E = times_E != 0
    times_E = np.where(known_E, times_E, times_E[known_E].min())
    key_E = users_E * num_items + items_E
    if how == "all":
        order_E = np.argsort(times_E, kind="stable")
        return items_E[order_E], times_E[order_E]
    days_E = (times_E // int(DAY)) if how == "events" else np.zeros_like(times_E)
    order_E = np.lexsort((times_E, days_E, key_E))
    key_E, days_E = key_E[order_E], days_E[order_E]
    is_first_E = np.ones(len(order_E), dtype=bool)
    is_first_E[1:] = (key_E[1:] != key_E[:-1]) | (days_E[1:] != days_E[:-1])
    kept = order_E[is_first_E]
    kept = kept[np.argsort(times_E[kept], kind="stable")]
    return items_E[kept], times_E[kept]


def moments(times_E: Array, most: int) -> Array:
    """At most ``most`` times at which counts are kept, ascending: quantiles of the events, the last one the last event.

    >>> moments(np.arange(1, 9), 4).tolist()
    [2, 4, 6, 8]
    """
    near = _NEAR_THE_END if most >= 2 * _NEAR_THE_END else 0
    even = np.arange(1, most - near + 1) / (most - near)
    late = 1 - 0.5 ** np.arange(1, near + 1) / (most - near)
    places = np.ceil(np.sort(np.concatenate([even, late])) * len(times_E)).astype(np.int64) - 1
    return np.unique(times_E[places.clip(0)])


def at_moments(
    items_E: Array, times_E: Array, moments_T: Array, num_items: int, half_life: float | str, rest: float
) -> Array:
    """a [N, T] float32 of events in time; see the module."""
    table_NT = np.zeros((num_items, len(moments_T)), dtype=np.float32)
    recent_N, all_N, before, start = np.zeros(num_items), np.zeros(num_items), moments_T[0], 0
    for place, moment in enumerate(moments_T):
        end = int(np.searchsorted(times_E, moment, side="right"))
        part, all_new_N = slice(start, end), np.bincount(items_E[start:end], minlength=num_items)
        all_N = all_N + all_new_N
        if isinstance(half_life, str):
            recent_N = all_N
        else:
            weights_E = 0.5 ** ((moment - times_E[part]) / (half_life * DAY))
            recent_N = recent_N * 0.5 ** ((moment - before) / (half_life * DAY))
            recent_N = recent_N + np.bincount(items_E[part], weights=weights_E, minlength=num_items)
        table_NT[:, place] = _log_share(recent_N, all_N, rest)
        before, start = moment, end
    return table_NT


def _log_share(recent_N: Array, all_N: Array, rest: float) -> Array:
    rest_N = (all_N + 1) / (all_N.sum() + len(all_N))
    share_N: Array = (1 - rest) * recent_N / max(recent_N.sum(), 1e-30) + rest * rest_N
    return np.asarray(np.log(share_N), dtype=np.float32)
