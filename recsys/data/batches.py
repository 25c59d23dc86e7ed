"""Queries as padded tensors: the input of the granularities and the loss in one step.

Why: training at every position and answering one request are the same forward pass; only the choice
of queries differs. Legend: U history rows, L padded length, B queries (a row up to a position), P
(query, target) pairs, S items of the step, N items of the catalogue, F friends of a request, C
context columns (see ``recsys.data.context_columns`` for their codes).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from recsys.data.hidden import Hidden
from recsys.data.histories import Array, Histories, Queries

# key of Batch.inputs: [B] int64 row of the text of each query's history, -1 without
TEXT_ROWS: Final = "text_rows"
NO_CONTEXT: Final = torch.zeros(0, 0, 0, dtype=torch.int16)


@dataclass(frozen=True)
class Batch:
    """B queries over U padded histories; item numbers are those of the step's ``ItemView``."""

    users_U: Tensor  # int64 dense user ids, -1 where unknown
    history_UL: Tensor  # int64 item numbers, 0 in the padding
    types_UL: Tensor  # int64 event type ids
    times_UL: Tensor  # int64 seconds since the epoch, 0 where unknown and in the padding
    ages_UL: Tensor  # float32 days before the last event of the row, 0 where times are unknown
    values_UL: Tensor  # float32, NaN where a request gives none
    lengths_U: Tensor  # int64 number of real events in a row
    rows_B: Tensor  # int64 row of each query
    seen_B: Tensor  # int64 number of leading events that the query sees
    pairs_P: Tensor  # int64 query of each target
    targets_P: Tensor  # int64 target item number
    asked_at_B: Tensor  # int64 time of the query, seconds since the epoch, 0 where unknown
    # int16, 0 in the padding; C = 0 in data without context columns
    context_ULC: Tensor = NO_CONTEXT
    asked_BC: Tensor = NO_CONTEXT  # int16 context at the time of the query
    inputs: Mapping[str, Any] = field(default_factory=dict)
    """Inputs of the queries besides events, by signal: tensors, or objects with a method ``to``.
    Requests have ``friends`` [U, F] (int64 dense users, -1 in the padding), ``profile``
    (AttributeRows of U) and ``user_text`` [B, T] (float32 vectors of the texts of histories, zero
    without a text); training has :data:`TEXT_ROWS`.
    """
    whole: Queries | None = None  # evaluation and serving: the queries with their full histories

    @property
    def mask_UL(self) -> Tensor:
        """True at real events."""
        return (
            torch.arange(self.history_UL.shape[1], device=self.lengths_U.device)
            < self.lengths_U[:, None]
        )

    @property
    def sees_whole_rows(self) -> bool:
        """Whether every query sees all events of its row. A training query may see fewer, even
        where it is the only one.
        """
        return len(self) <= len(self.users_U) and torch.equal(
            self.seen_B, self.lengths_U[self.rows_B]
        )

    @property
    def has_one_query_per_row(self) -> bool:
        """Whether there is one query per row, in the order of the rows."""
        return torch.equal(self.rows_B, torch.arange(len(self.users_U), device=self.rows_B.device))

    def __len__(self) -> int:
        return len(self.rows_B)

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        moved = {name: part.to(device) for name, part in values.items() if hasattr(part, "to")}
        inputs = {
            name: part.to(device) if hasattr(part, "to") else part
            for name, part in self.inputs.items()
        }
        return replace(self, **moved, inputs=inputs)

    def renumber(self, numbers_N: Tensor) -> Batch:
        """Replace item ids by item numbers of the step's view, by a lookup table [N]."""
        return replace(
            self, history_UL=numbers_N[self.history_UL], targets_P=numbers_N[self.targets_P]
        )


def every_position(histories: Histories, max_history: int, rows: Array | None = None) -> Batch:
    """Ordered training: one query per position whose next event has a predicted type; that event is
    the target.

    In histories with ``ahead_E``, the query of a target is that many events earlier, with the time
    and the context of the event that follows there; see :mod:`recsys.data.first_touch`. One
    position may then have several queries. A target is left out if its query would be before the
    first event of the row.

    Of rows longer than ``max_history + 1`` only the last events are used; see
    ``Histories.windows``.

    Parameters
    ----------
    histories : Histories
        Ordered histories.
    max_history : int
        Most events that a query sees.
    rows : Array or None
        Positions of the users of the batch: [U] int64; None: all.
    """
    chosen = histories if rows is None else histories.take(rows)
    lengths = np.minimum(chosen.lengths_U, max_history + 1)
    padded = _pad(chosen, lengths)
    # the last event is only a target, so that no query sees it
    inputs = torch.as_tensor(np.maximum(lengths - 1, 0))
    rows_B = torch.repeat_interleave(torch.arange(len(chosen)), inputs)
    starts_B = torch.repeat_interleave(inputs.cumsum(0) - inputs, inputs)
    seen_B = torch.arange(len(rows_B)) - starts_B + 1
    if len(chosen.targets_T):
        is_target_B = torch.as_tensor(chosen.targets_T)[padded.types_UL[rows_B, seen_B]]
        rows_B, seen_B = rows_B[is_target_B], seen_B[is_target_B]
    places_B = seen_B  # of the targets
    if len(chosen.ahead_E):
        firsts_U = torch.as_tensor(chosen.offsets_U1[1:] - lengths)
        seen_B = places_B - torch.as_tensor(chosen.ahead_E)[firsts_U[rows_B] + places_B]
        rows_B, places_B, seen_B = rows_B[seen_B > 0], places_B[seen_B > 0], seen_B[seen_B > 0]
    width = max(int(inputs.max()) if len(inputs) else 0, 1)
    return replace(
        _cut(padded, inputs, width),
        rows_B=rows_B,
        seen_B=seen_B,
        pairs_P=torch.arange(len(rows_B)),
        targets_P=padded.history_UL[rows_B, places_B],
        asked_at_B=padded.times_UL[rows_B, seen_B],
        asked_BC=padded.context_ULC[rows_B, seen_B],
    )


def whole_history(histories: Histories, max_history: int, rows: Array, hidden: Hidden) -> Batch:
    """Unordered training: one query per user. Every event of a predicted type is a target, also the
    hidden ones.

    Parameters
    ----------
    histories : Histories
        Histories without order.
    max_history : int
        Most events that a query sees.
    rows : Array
        Positions of the users of the batch: [U] int64.
    hidden : Hidden
        The events that queries do not see.
    """
    chosen = histories.take(rows)
    visible = chosen
    # by user and item, so that all events of a pair are hidden together
    if hidden.hides:
        users_E = np.repeat(chosen.users_U, chosen.lengths_U)
        visible = chosen.where(~hidden.of(users_E, chosen.items_E))
    padded = _pad(visible, np.minimum(visible.lengths_U, max_history))
    targets = chosen.of_targets()
    pairs = np.repeat(np.arange(len(rows)), targets.lengths_U)
    return replace(
        padded,
        pairs_P=torch.as_tensor(pairs),
        targets_P=torch.as_tensor(targets.items_E.astype(np.int64)),
    )


def last_position(queries: Queries, max_history: int) -> Batch:
    """Evaluation and serving: one query per row, which sees the whole row; targets as given."""
    histories = queries.histories
    padded = _pad(histories, np.minimum(histories.lengths_U, max_history))
    pairs, targets = queries.target_rows(), queries.target_items.astype(np.int64)
    return replace(
        padded,
        pairs_P=torch.as_tensor(pairs),
        targets_P=torch.as_tensor(targets),
        asked_BC=torch.as_tensor(queries.context_BC),
        asked_at_B=torch.as_tensor(queries.asked_at_B),
        whole=queries,
    )


def _pad(histories: Histories, lengths: Array) -> Batch:
    """The last ``lengths`` events of every row, left-aligned, and one query per row."""
    num_rows, width = len(lengths), max(int(lengths.max(initial=0)), 1)
    columns = np.arange(width)
    real_UL = columns < lengths[:, None]
    starts = histories.offsets_U1[1:] - lengths
    # padding reads the first event, which is then replaced by 0
    index_UL = np.where(real_UL, starts[:, None] + columns, 0)

    def padded(values: Array) -> Array:
        # index 0 does not exist without any event
        if len(values) == 0:
            return np.zeros((num_rows, width), dtype=values.dtype)
        return np.where(real_UL, values[index_UL], 0)

    contexts = [padded(column) for column in histories.context_EC.T]
    context_ULC = (
        np.stack(contexts, axis=2) if contexts else np.zeros((num_rows, width, 0), dtype=np.int16)
    )
    times_UL = padded(histories.times_E).astype(np.int64)
    known_UL = real_UL & (times_UL != 0)  # times before 1970 are negative
    # −inf where a row has no known time; such rows take the 0 below
    last_U = np.where(known_UL, times_UL, -np.inf).max(axis=1)
    ages_UL = np.where(known_UL, last_U[:, None] - times_UL, 0.0) / 86_400.0
    length = torch.as_tensor(lengths.astype(np.int64))
    return Batch(
        users_U=torch.as_tensor(histories.users_U.astype(np.int64)),
        history_UL=torch.as_tensor(padded(histories.items_E).astype(np.int64)),
        types_UL=torch.as_tensor(padded(histories.types_E).astype(np.int64)),
        times_UL=torch.as_tensor(times_UL),
        ages_UL=torch.as_tensor(ages_UL.astype(np.float32)),
        values_UL=torch.as_tensor(padded(histories.values_E).astype(np.float32)),
        lengths_U=length,
        rows_B=torch.arange(num_rows),
        seen_B=length,
        pairs_P=torch.zeros(0, dtype=torch.int64),
        targets_P=torch.zeros(0, dtype=torch.int64),
        asked_at_B=torch.zeros(num_rows, dtype=torch.int64),
        context_ULC=torch.as_tensor(context_ULC),
        asked_BC=torch.zeros((num_rows, len(contexts)), dtype=torch.int16),
    )


def _cut(batch: Batch, lengths_U: Tensor, width: int) -> Batch:
    """Keep the first ``lengths_U`` events of every row: [U, width]."""
    real_UL = torch.arange(width) < lengths_U[:, None]
    return replace(
        batch,
        history_UL=batch.history_UL[:, :width] * real_UL,
        types_UL=batch.types_UL[:, :width] * real_UL,
        times_UL=batch.times_UL[:, :width] * real_UL,
        ages_UL=batch.ages_UL[:, :width] * real_UL,
        values_UL=batch.values_UL[:, :width] * real_UL,
        lengths_U=lengths_U,
        context_ULC=batch.context_ULC[:, :width] * real_UL[:, :, None],
    )
