"""The events that queries see, as one flat list, for closed-form members that weight events by age
or order.

Why flat: a closed-form member is a sum over events, needs no padding, and may read more than
``model.max_history``.

Legend: B queries, E events that they see, U rows, L length.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

import torch
from torch import Tensor

from recsys.data.batches import Batch
from recsys.granularities.base import Graphs

DAY: Final = 86_400.0


@dataclass(frozen=True)
class SeenEvents:
    """The events that each query sees, sorted by query, the oldest first."""

    num_queries: int
    rows_E: Tensor  # int64, the query that sees the event
    items_E: Tensor  # int64
    types_E: Tensor  # int64
    times_E: Tensor  # int64 seconds since the epoch, 0 where unknown
    values_E: Tensor  # float32, NaN where unknown
    lags_E: Tensor  # int64, number of later events of the query: 0 is the newest

    def where(self, kept_E: Tensor) -> SeenEvents:
        """The events where the mask is true; lags do not change."""
        columns = (field.name for field in fields(self)[1:])
        return SeenEvents(self.num_queries, *(getattr(self, name)[kept_E] for name in columns))

    def distinct(self) -> SeenEvents:
        """The newest event of every pair of query and item."""
        if not len(self.rows_E):
            return self
        pairs_E = self.rows_E * (int(self.items_E.max()) + 1) + self.items_E
        order_E = torch.argsort(pairs_E, stable=True)
        is_last_E = torch.ones(len(order_E), dtype=torch.bool, device=order_E.device)
        is_last_E[:-1] = pairs_E[order_E][1:] != pairs_E[order_E][:-1]
        # back to the order of time: lags and the sums of a query rely on it
        return self.where(order_E[is_last_E].sort().values)

    def of_types(self, counts_T: Tensor | None) -> SeenEvents:
        """The events of the given types; all events if the mask is empty."""
        return self if counts_T is None or not len(counts_T) else self.where(counts_T[self.types_E])

    def days_before(self, asked_at_B: Tensor) -> Tensor:
        """Days from each event to its request, at least 0: [E] float32.

        If the request has no time, days to the query's newest event; 0 if the event has no time.
        """
        newest_B = torch.zeros(self.num_queries, dtype=torch.int64, device=self.rows_E.device)
        # without the initial zero, which would win over times before 1970
        newest_B.scatter_reduce_(0, self.rows_E, self.times_E, "amax", include_self=False)
        time_B = torch.where(asked_at_B == 0, newest_B, asked_at_B)
        days_E = (time_B[self.rows_E] - self.times_E).clamp(min=0) / DAY
        return torch.where(self.times_E == 0, 0.0, days_E.float())

    def per_query(self, values_E: Tensor) -> Tensor:
        """Sum of the events' values over each query: [B]."""
        return values_E.new_zeros(self.num_queries).index_add_(0, self.rows_E, values_E)


def target_types(graphs: Graphs) -> Tensor:
    """Which event types are predicted: bool [T]; empty if all are, or if the dataset has no
    types.
    """
    found = () if graphs.histories is None else graphs.histories.targets_T
    return torch.as_tensor(found, dtype=torch.bool)


def seen_events(batch: Batch) -> SeenEvents:
    """The events that the queries of a batch see: uncut histories in evaluation and serving, else
    padded ones.
    """
    device = batch.rows_B.device
    if batch.whole is not None and len(batch.whole) == len(batch):
        histories = batch.whole.histories
        lengths_B = torch.as_tensor(histories.lengths_U)
        names = ("items_E", "types_E", "times_E", "values_E")
        found = [torch.as_tensor(getattr(histories, name)).to(device) for name in names]
    else:
        lengths_B = batch.seen_B
        seen_BL = torch.arange(batch.history_UL.shape[1], device=device) < lengths_B[:, None]
        padded = (batch.history_UL, batch.types_UL, batch.times_UL, batch.values_UL)
        found = [column_UL[batch.rows_B][seen_BL] for column_UL in padded]
    lengths_B = lengths_B.to(device)
    rows_E = torch.repeat_interleave(torch.arange(len(lengths_B), device=device), lengths_B)
    # the last event of a query is at its cumulated length − 1; counted back from there
    lags_E = lengths_B.cumsum(0)[rows_E] - 1 - torch.arange(len(rows_E), device=device)
    items_E, types_E, times_E, values_E = found
    return SeenEvents(
        len(batch), rows_E, items_E.long(), types_E.long(), times_E.long(), values_E.float(), lags_E
    )


def event_weights(
    seen: SeenEvents, asked_at_B: Tensor, recency: float, half_life: float | None
) -> Tensor:
    """Weights (n + 1)^(−p) 2^(−days / h) of all events: [E] float32.

    The newest distinct event of each query has at least weight 2^-20, so that old histories still
    contribute.

    Parameters
    ----------
    seen : SeenEvents
        The events; n is their number of later events.
    asked_at_B : Tensor, [B] int64
        Time of each request in seconds since the epoch, 0 where unknown.
    recency : float
        p, at least 0; 0 for no decay by order.
    half_life : float or None
        h in days; None for no decay by age.
    """
    # in logarithms: 2^(−days / h) underflows for a history of years and a half-life of hours
    logs_E = -recency * (seen.lags_E + 1).float().log2()
    if half_life is not None:
        logs_E = logs_E - seen.days_before(asked_at_B) / half_life
    return raised(logs_E, seen.rows_E, seen.num_queries)


def raised(logs_E: Tensor, rows_E: Tensor, num_queries: int) -> Tensor:
    """Weights from their logarithms to base 2, where the largest weight of a query is at least
    2^-20: its weights are raised by one factor, which keeps their order.

    Parameters
    ----------
    logs_E : Tensor, [E] float32
        Logarithms.
    rows_E : Tensor, [E] int64
        Query of each event.
    num_queries : int
        Number of queries.

    Returns
    -------
    Tensor, [E] float32
        The weights.
    """
    most_B = torch.full((num_queries,), -torch.inf, device=logs_E.device)
    most_B = most_B.scatter_reduce(0, rows_E, logs_E, "amax")
    return torch.exp2(logs_E + (-20.0 - most_B).clamp(min=0)[rows_E])
