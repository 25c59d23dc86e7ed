"""The items that a user had most often, weighted by recency: a common baseline as a member; nothing
is learned.

    v_ui = log(1 + Σ_e 2^(−Δ_e / h))    over the events e of user u about item i,

where Δ is the time from e to the user's newest event, in days, or in events if times are unknown.
``repeat`` learns more from the same events if there are enough of them. Validation chooses the
half-life h, and whether events of types that are not predicted count.

Legend: B queries, E events that they see, T event types.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recsys.config import Config
from recsys.data.batches import Batch
from recsys.data.dataset import PreparedDataset
from recsys.granularities.base import Granularity, Graphs, ItemView, ModelSizes, State
from recsys.granularities.frequency.section import FrequencyConfig
from recsys.granularities.history import seen_events, target_types
from recsys.granularities.repeat.habits import why_nothing_repeats
from recsys.granularities.sparse import SparseScores


class Frequency(Granularity):
    """A closed-form sparse member; absent where a history is empty."""

    closed_form = True
    sparse = True
    reads_events = False

    @classmethod
    def idle(cls, section: FrequencyConfig, dataset: PreparedDataset, config: Config) -> str:
        """Repeats must occur and be allowed in lists.

        Parameters
        ----------
        section : FrequencyConfig
            Not read.
        dataset : PreparedDataset
            The dataset; its shards are read until a user has an item twice.
        config : Config
            Says whether lists may contain items of the history.

        Returns
        -------
        str
            Why repeats cannot help; "" if they may.
        """
        return why_nothing_repeats(dataset, config.evaluate)

    def __init__(self, config: FrequencyConfig, sizes: ModelSizes) -> None:
        super().__init__()
        half_life = config.half_life[0]
        self.half_life = None if half_life == "none" else float(half_life)
        self.targets_alone, self.timed = config.types[0] == "targets", sizes.timed
        self.reads_histories = "targets" in config.types and sizes.num_types > 1

    def state(self, items: ItemView, graphs: Graphs) -> State:
        """Which event types count."""
        counts_T = target_types(graphs)[: None if self.targets_alone else 0]
        return {"counts_T": counts_T.to(items.vectors_SD.device), "none_N": items.vectors_SD[:, :0]}

    def own_items(self, state: State) -> Tensor:
        """Empty vectors, because the member is sparse."""
        return state["none_N"]

    def boost(self, batch: Batch, items: ItemView, state: State) -> SparseScores:
        """Decayed counts of the history's items.

        Parameters
        ----------
        batch : Batch
            Queries with their histories.
        items : ItemView
            Not read.
        state : dict of str to Tensor
            ``counts_T`` [T] bool, the event types that count; empty for all.

        Returns
        -------
        SparseScores
            log(1 + decayed count) of every item that a query had.
        """
        seen = seen_events(batch).of_types(state["counts_T"])
        values_E = torch.ones(len(seen.rows_E), device=seen.rows_E.device)
        if self.half_life is not None:
            # ages count from the newest event: the request time scales all alike
            no_time_B = torch.zeros_like(batch.asked_at_B)
            ages_E = seen.days_before(no_time_B) if self.timed else seen.lags_E.float()
            values_E = torch.exp2(-ages_E / self.half_life)
        found = SparseScores.of(seen.rows_E, seen.items_E, values_E)
        return SparseScores(found.rows_P, found.items_P, torch.log1p(found.values_P))
