"""Popularity at the time of the request: what many users chose lately, as a member of the fusion.

With C_i(t) = Σ_e 2^(−(t − t_e) / h) over the events e of item i before t, h the half-life
(``none``: equal weights),

    a_i(t) = log((1 − ρ) C_i(t) / Σ C(t) + ρ (A_i(t) + 1) / (Σ A(t) + N)),

where A is the same as C without decay. The second term ranks items without recent events. The
counts are stored at T times between the first event and the last, with more of them near the end. A
request reads the newest stored time before it, so that no event at or after the request counts. The
score is z · a, where z has a single 1. The events between that stored time m and the request are
added to the scores of their few items, up to a constant that is the same for all items:

    log(1 + (1 − ρ) n_i / (exp(a_i(m)) Σ C(m) 2^(−(t − m) / h))),

where n_i is the number of decayed events of i from m to t. With more than two million events this
correction is left out; counts are then as old as the distance between stored times. In serving, a
request is after the last event and reads the last stored time: the counts of a registered model are
as fresh as its events. With ``as_of: last`` every request reads the last stored time.

If the data has no times, a_i = log((A_i + 1) / (Σ A + N)) for all users.

Validation chooses the half-life, what counts, ρ and ``as_of``.

Legend: E events, N items, T stored times, B queries.
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
from recsys.granularities.shares import at_moments, counted, log_share, moments, sums_at
from recsys.granularities.sparse import SparseScores

_MOST_EVENTS: Final = 2**21  # events stored for requests in the past: 32 MB


class Popularity(Granularity):
    """A closed-form member with its own item vectors; present except before the first stored
    time.
    """

    personal = False
    closed_form = True
    reads_events = False

    def __init__(self, config: PopularityConfig, sizes: ModelSizes) -> None:
        super().__init__()
        self.half_life = config.half_life[0]
        self.counts = config.counts[0]
        self.moments = config.moments
        self.rest, self.always_last = config.rest[0], config.as_of[0] == "last"
        self.corrects = sizes.timed and not self.always_last
        self.targets_alone = config.types[0] == "targets"
        self.reads_histories = sizes.timed or ("targets" in config.types and sizes.num_types > 1)

    def state(self, items: ItemView, graphs: Graphs) -> State:
        """Counts at the stored times, and recent events."""
        device, num_items = items.vectors_SD.device, graphs.num_items
        histories, made = graphs.histories, dict[str, Tensor]()
        if histories is not None and self.targets_alone:
            histories = histories.of_targets()
        if histories is None or not (histories.times_E != 0).any():
            counts_N = graphs.degree_N.cpu().numpy()
            if histories is not None and self.targets_alone:
                counts_N = np.bincount(distinct_items(histories, num_items), minlength=num_items)
            table_NT = log_share(counts_N, counts_N, self.rest)[:, None]
            moments_T = np.zeros(1, dtype=np.int64)
        else:
            found = counted(histories, num_items, self.counts)
            most = max(1, min(self.moments, MOST_NUMBERS // max(num_items, 1)))
            moments_T = moments(found[1], most)
            table_NT = at_moments(*found, moments_T, num_items, self.half_life, self.rest)
            if self.corrects and len(found[1]) <= _MOST_EVENTS:
                made |= {"items_E": torch.as_tensor(found[0]), "times_E": torch.as_tensor(found[1])}
                made["sums_T"] = torch.as_tensor(sums_at(found[1], moments_T, self.half_life))
        made |= {"table_NT": torch.as_tensor(table_NT), "moments_T": torch.as_tensor(moments_T)}
        return {name: value.to(device) for name, value in made.items()}

    def own_items(self, state: State) -> Tensor:
        """Log-popularity at the stored times."""
        return state["table_NT"]

    def forward(self, batch: Batch, items: ItemView, state: State) -> tuple[Tensor, Tensor]:
        """The stored time of every request.

        Parameters
        ----------
        batch : Batch
            Times of the requests; histories are not read.
        items : ItemView
            Not read.
        state : dict of str to Tensor
            ``moments_T`` [T] int64, the stored times in seconds since the epoch.

        Returns
        -------
        z_BT : Tensor, [B, T] float32
            1 in the column of the newest stored time before the request, or in the last column if
            the time of the request is unknown; else 0.
        present_B : Tensor, [B] bool
            False before the first stored time.
        """
        snapshot_B = self._snapshots(batch, state)
        present_B = snapshot_B >= 0
        z_BT = torch.zeros(len(batch), len(state["moments_T"]), device=snapshot_B.device)
        z_BT[torch.arange(len(batch), device=snapshot_B.device), snapshot_B.clamp(min=0)] = (
            present_B.float()
        )
        return z_BT, present_B

    def _snapshots(self, batch: Batch, state: State) -> Tensor:
        """Index of the newest stored time before every request, −1 if there is none: int64 [B]."""
        moments_T = state["moments_T"]
        # left side: a stored time equal to the request already holds events of that second
        snapshot_B = torch.searchsorted(moments_T, batch.asked_at_B.contiguous()) - 1
        # a request without a time is now; a single 0 is the only column where nothing has a time
        is_last_B = (batch.asked_at_B == 0) | (moments_T[0] == 0) | self.always_last
        return torch.where(is_last_B, len(moments_T) - 1, snapshot_B)

    def boost(self, batch: Batch, items: ItemView, state: State) -> SparseScores:
        """Events between the stored time and the request.

        Parameters
        ----------
        batch : Batch
            Times of the requests; histories are not read.
        items : ItemView
            Not read.
        state : dict of str to Tensor
            The table of counts and, if they are stored, the events in order of time.

        Returns
        -------
        SparseScores
            The correction of the items with such events; nothing if events are not stored.
        """
        if "times_E" not in state:
            return SparseScores.nothing(state["table_NT"].device)
        snapshot_B = self._snapshots(batch, state)
        times_E = state["times_E"]
        time_B = batch.asked_at_B.contiguous()
        moments_B = state["moments_T"][snapshot_B.clamp(min=0)]
        # events at the stored time are in its column already
        starts_B = torch.searchsorted(times_E, moments_B, right=True)
        ends_B = torch.searchsorted(times_E, time_B)
        # ages end at the newest event before the request, whose weight cannot underflow: a common
        # factor of all weights has no effect
        newest_B = times_E[(ends_B - 1).clamp(min=0)]
        # a request without a time (0) would give a negative number
        counts_B = (ends_B - starts_B).clamp(min=0) * (snapshot_B >= 0)
        rows_P = torch.repeat_interleave(torch.arange(len(batch), device=counts_B.device), counts_B)
        before_B = counts_B.cumsum(0) - counts_B
        events_P = torch.arange(len(rows_P), device=rows_P.device) + (starts_B - before_B)[rows_P]
        new = SparseScores.of(
            rows_P, state["items_E"][events_P], self._fading(newest_B[rows_P] - times_E[events_P])
        )
        known_B = state["sums_T"][snapshot_B.clamp(min=0)] * self._fading(newest_B - moments_B)
        share_P = state["table_NT"][new.items_P, snapshot_B[new.rows_P]].double().exp()
        # the sum underflows if the event is many half-lives after the stored time
        known_P = (share_P * known_B[new.rows_P]).clamp(min=1e-30)
        return SparseScores(
            new.rows_P, new.items_P, torch.log1p((1 - self.rest) * new.values_P / known_P).float()
        )

    def _fading(self, seconds: Tensor) -> Tensor:
        """Weight of an event after this many seconds, float64."""
        if isinstance(self.half_life, str):
            return torch.ones_like(seconds, dtype=torch.float64)
        return torch.exp2(-seconds.double() / (self.half_life * DAY))


def distinct_items(histories: Histories, num_items: int) -> Array:
    """The item of every distinct pair of user and item."""
    users_E = np.repeat(np.arange(len(histories)), histories.lengths_U)
    return np.asarray(np.unique(users_E * num_items + histories.items_E) % max(num_items, 1))
