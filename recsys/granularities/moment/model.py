"""Moment: items that are chosen more often than usual at this hour, on this weekday, in this
context.

Cells g are the hours and weekdays (UTC) of the request, and the values of context columns known
with it.

    a_ig = log((c_gi + α p_i) / ((n_g + α) p_i)),    r_ui = log q_i + Σ_{g of the request} a_ig,

where c_gi are the events of item i in cell g, n_g those of all items, p_i the item's share of
events, and q_i that share with one more event per item, or, with a half-life, the share of the last
days. This is naive Bayes over the cells, with counts as in ``profile``. The score orders by the
probability of an item at the time of the request; validation chooses α and the half-life. The table
has items × (31 + values of the context columns) entries.

Legend: N items, G cells, B queries, E events, C context columns.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor

from recsys.config import Config
from recsys.data.batches import Batch
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Split
from recsys.granularities.base import Granularity, Graphs, ItemView, ModelSizes, State
from recsys.granularities.log_odds import log_odds
from recsys.granularities.moment.section import HOURS, WEEKDAYS, MomentConfig
from recsys.granularities.shares import LogShares

_HOUR: Final = 3600
_THURSDAY: Final = 3  # weekday of 1 January 1970, with Monday 0


class Moment(Granularity):
    """A closed-form member with its own item vectors; absent where neither time nor context of the
    request is known.
    """

    personal = False
    closed_form = True
    reads_events = False
    reads_histories = True

    @classmethod
    def idle(cls, section: MomentConfig, dataset: PreparedDataset, config: Config) -> str:
        """Events need varying times or context.

        Parameters
        ----------
        section : MomentConfig
            With ``query_context`` the member is never idle.
        dataset : PreparedDataset
            The dataset; its shards are read until training events are in two hours of the week.
        config : Config
            Not read.

        Returns
        -------
        str
            Why times do not help; "" if they may.
        """
        if section.query_context:
            return ""
        if not dataset.manifest.timed:
            return "events have no times"
        cells: set[int] = set()
        for shard in dataset.shards():
            times_E = shard.through(Split.TRAIN).times_E
            known_E = times_E[times_E != 0]
            cells |= set(np.unique(known_E // _HOUR % (HOURS * WEEKDAYS)).tolist())
            if len(cells) > 1:
                return ""
        return "all training events are in one hour of the week"

    def __init__(self, config: MomentConfig, sizes: ModelSizes) -> None:
        super().__init__()
        config.check(sizes)
        self.smoothing, self.half_life = config.smoothing[0], config.half_life[0]
        names = [name for name, _ in sizes.context]
        self.columns = [names.index(name) for name in config.query_context]
        self.num_codes = [sizes.context[column][1] for column in self.columns]

    def cells(self, times_E: Tensor, context_EC: Tensor) -> Tensor:
        """Cells of times and contexts: [E, 2 + columns], −1 where unknown."""
        is_known_E = times_E != 0
        hours_E = torch.where(is_known_E, times_E.div(_HOUR, rounding_mode="floor") % HOURS, -1)
        days_E = (times_E.div(_HOUR * HOURS, rounding_mode="floor") + _THURSDAY) % WEEKDAYS
        found, start = [hours_E, torch.where(is_known_E, days_E + HOURS, -1)], HOURS + WEEKDAYS
        for column, num_codes in zip(self.columns, self.num_codes, strict=True):
            codes_E = context_EC[:, column].long()
            found.append(torch.where(codes_E > 0, codes_E + start, -1))
            start += num_codes
        return torch.stack(found, dim=1)

    @property
    def num_cells(self) -> int:
        """Number of cells."""
        return HOURS + WEEKDAYS + sum(self.num_codes)

    def state(self, items: ItemView, graphs: Graphs) -> State:
        """Log-odds of the items in every cell, and their popularity."""
        histories = graphs.histories
        assert histories is not None, "reads_histories is set, so build_graphs has them"
        cells_EX = self.cells(
            torch.as_tensor(histories.times_E), torch.as_tensor(histories.context_EC)
        ).numpy()
        known_EX = cells_EX >= 0
        pairs_P = cells_EX[known_EX] * graphs.num_items + np.repeat(
            histories.items_E, known_EX.sum(1)
        )
        size = self.num_cells * graphs.num_items
        counts_GN = torch.as_tensor(
            np.bincount(pairs_P, minlength=size).reshape(self.num_cells, -1)
        ).float()
        events_N = torch.as_tensor(
            np.bincount(histories.items_E, minlength=graphs.num_items)
        ).float()
        share_N = events_N / events_N.sum().clamp(min=1)
        odds_GN = log_odds(counts_GN, counts_GN.sum(1, keepdim=True), share_N, self.smoothing)
        popularity_N = torch.as_tensor(
            LogShares.of(histories, graphs.num_items, self.half_life).last_N
        )
        vectors_NG = torch.cat([odds_GN, popularity_N[None]]).T.contiguous()
        return {"vectors_NG": vectors_NG.to(items.vectors_SD.device)}

    def own_items(self, state: State) -> Tensor:
        """Log-odds of the items in every cell."""
        return state["vectors_NG"]

    def forward(self, batch: Batch, items: ItemView, state: State) -> tuple[Tensor, Tensor]:
        """Cells of every request, and whether any is known.

        Parameters
        ----------
        batch : Batch
            Times and contexts of the requests; histories are not read.
        items : ItemView
            Not read.
        state : dict of str to Tensor
            Not read.

        Returns
        -------
        z_BG : Tensor, [B, G + 1] float32
            1 in each cell of the request, and 1 in the last column, which is that of log q.
        present_B : Tensor, [B] bool
            Whether the request has a cell; its row is zero otherwise.
        """
        cells_BX = self.cells(batch.asked_at_B, batch.asked_BC)
        known_BX = cells_BX >= 0
        z_BG = torch.zeros(len(batch), self.num_cells + 1, device=cells_BX.device)
        z_BG.scatter_add_(1, cells_BX.clamp(min=0), known_BX.float())
        present_B = known_BX.any(1)
        z_BG[:, -1] = present_B.float()
        return z_BG, present_B
