"""The training events as a matrix X [V, N] that is read in blocks of users.

Why blocks: the events are in files (see :mod:`recsys.data.event_table`), and what a closed-form
granularity fits is a sum over users. So a fit needs the memory of one block and of its result, for
any number of events.

Legend: V users, N items, E training events, R users of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from recsys.data.event_table import in_file
from recsys.data.histories import Array

if TYPE_CHECKING:
    import scipy.sparse as sp

    from recsys.granularities.user_item_graph import Graphs

_BLOCK_EVENTS: Final = 2**22
_BLOCK_USERS: Final = 2**18

# (users, items, their positions in the table) → the value of each event in X; 0 leaves it out
Weigh = Callable[[Array, Array, "slice | Array"], Array]


@dataclass(frozen=True)
class EventMatrix:
    """X [V, N], of which a block of rows is in memory at a time."""

    starts_V1: Array  # int64, where the events of every user start
    items_E: Array  # the item of every event, sorted by user
    num_items: int
    weigh: Weigh | None = None  # None: every event has the value 1

    @staticmethod
    def of(graphs: Graphs, weigh: Weigh | None = None) -> EventMatrix:
        """The events of the graphs, with the values that ``weigh`` gives them."""
        items_E = graphs.items_E.cpu().numpy()
        return EventMatrix(graphs.starts_V1, items_E, graphs.num_items, weigh)

    @property
    def shape(self) -> tuple[int, int]:
        """V and N."""
        return len(self.starts_V1) - 1, self.num_items

    @cached_property
    def lengths_V(self) -> Array:
        """Number of events of each user: [V] int64."""
        if self.weigh is None:
            return np.diff(self.starts_V1)
        return np.concatenate(
            [np.zeros(0, dtype=np.int64), *(np.diff(part.indptr) for _, part in self.blocks())]
        )

    @cached_property
    def counts_N(self) -> Array:
        """Number of users of each item: [N] int64."""
        counts_N = np.zeros(self.num_items, dtype=np.int64)
        for _, part in self.blocks():
            counts_N += np.bincount(part.indices, minlength=self.num_items)
        return counts_N

    def blocks(
        self, events: int | None = None, users: int | None = None
    ) -> Iterator[tuple[slice, sp.csr_array]]:
        """All users, in blocks of about ``events`` events and at most ``users`` users.

        Parameters
        ----------
        events : int or None
            Events of a block; a longer history is a block of its own. None: 2^22.
        users : int or None
            Users of a block; None: 2^18.

        Yields
        ------
        tuple of (slice, csr_array [R, N])
            The users of a block, and their rows.
        """
        num_users = self.shape[0]
        of_events_V = self.starts_V1[:-1] // (events or _BLOCK_EVENTS)
        of_users_V = np.arange(num_users) // (users or _BLOCK_USERS)
        cuts = np.flatnonzero(np.diff(of_events_V) + np.diff(of_users_V)) + 1
        ends = [*cuts.tolist(), num_users]
        for first, last in zip([0, *ends], ends, strict=False):
            if last > first:
                rows = slice(first, last)
                at = slice(int(self.starts_V1[first]), int(self.starts_V1[last]))
                yield rows, self._rows(np.arange(first, last), at)

    def take(self, users_R: Array) -> sp.csr_array:
        """The rows of some users: [R, N]."""
        starts_R = self.starts_V1[users_R]
        lengths_R = self.starts_V1[users_R + 1] - starts_R
        shift_R = starts_R - (np.cumsum(lengths_R) - lengths_R)
        return self._rows(users_R, np.arange(lengths_R.sum()) + np.repeat(shift_R, lengths_R))

    def whole(self) -> sp.csr_array:
        """All rows in memory, for data that are known to be small."""
        return self._rows(np.arange(self.shape[0]), slice(0, len(self.items_E)))

    def transposed(self) -> EventMatrix:
        """Xᵀ [N, V] in a file, without the values: every event has the value 1."""
        import scipy.sparse as sp

        starts_N1 = np.concatenate([[0], np.cumsum(self.counts_N)])
        users_E, cursor_N = in_file(int(starts_N1[-1])), starts_N1[:-1].copy()
        for rows, part in self.blocks():
            columns = sp.csc_array(part)  # the users of an item ascend, as the blocks do
            count_N = np.diff(columns.indptr)
            shift_N = cursor_N - columns.indptr[:-1]
            to_E = np.arange(len(columns.indices)) + np.repeat(shift_N, count_N)
            users_E[to_E] = columns.indices + rows.start
            cursor_N += count_N
        return EventMatrix(starts_N1, users_E, self.shape[0])

    def _rows(self, users_R: Array, at: Any) -> sp.csr_array:
        import scipy.sparse as sp  # imported here: serving does not need it

        lengths_R = self.starts_V1[users_R + 1] - self.starts_V1[users_R]
        starts_R1 = np.concatenate([[0], np.cumsum(lengths_R)])
        items_E = self.items_E[at]
        shape = (len(users_R), self.num_items)
        if self.weigh is None:
            return sp.csr_array(
                (np.ones(len(items_E), dtype=np.float32), items_E, starts_R1), shape
            )
        values_E = self.weigh(np.repeat(users_R, lengths_R), items_E, at)
        kept_E = values_E != 0
        if not kept_E.all():
            starts_R1 = np.concatenate([[0], np.cumsum(kept_E)])[starts_R1]
            values_E, items_E = values_E[kept_E], items_E[kept_E]
        return sp.csr_array((values_E, items_E, starts_R1), shape)


def training_matrix(graphs: Graphs, event_weights: str, targets_alone: bool = False) -> EventMatrix:
    """X [V, N]: the training events with the weights of :func:`rank_weights` of ``item_cf``;
    optionally of predicted types only.

    Parameters
    ----------
    graphs : Graphs
        Training events; with ``targets_alone`` also the histories.
    event_weights : str
        ``none``: every event has the value 1; ``rank``: the weight of its value among those of the
        user.
    targets_alone : bool
        Whether only pairs of user and item with an event of a predicted type count. Only users in
        ``graphs.histories`` have events then, and these may be a sample.

    Returns
    -------
    EventMatrix
        The matrix, float32.
    """
    is_ranked = event_weights == "rank" and graphs.values_E is not None
    wanted_P: Array | None = None
    if targets_alone:
        assert graphs.histories is not None, "reads_histories is set, so build_graphs has them"
        of_targets = graphs.histories.of_targets()
        users_P = np.repeat(of_targets.users_U, of_targets.lengths_U).astype(np.int64)
        wanted_P = np.unique(users_P * graphs.num_items + of_targets.items_E)

    def weigh(users_E: Array, items_E: Array, at: slice | Array) -> Array:
        weights_E = np.ones(len(users_E), dtype=np.float32)
        if is_ranked and graphs.values_E is not None:
            weights_E = _ranks_within(users_E, graphs.values_E.cpu().numpy()[at])
        if wanted_P is not None:
            pairs_E = users_E.astype(np.int64) * graphs.num_items + items_E
            # not isin, which would sort all wanted pairs for every block
            at_E = np.searchsorted(wanted_P, pairs_E).clip(max=len(wanted_P) - 1)
            weights_E *= wanted_P[at_E] == pairs_E if len(wanted_P) else 0
        return weights_E

    return EventMatrix.of(graphs, weigh if is_ranked or wanted_P is not None else None)


def _ranks_within(users_E: Array, values_E: Array) -> Array:
    """:func:`rank_weights` of all events of some users."""
    users_E = users_E - users_E.min(initial=np.iinfo(users_E.dtype).max)
    keys, group_E, count_G = np.unique(
        np.stack([users_E, values_E]), axis=1, return_inverse=True, return_counts=True
    )
    size_V = np.bincount(users_E)
    before_G = np.cumsum(count_G) - count_G
    first_V = np.cumsum(size_V) - size_V
    owner_G = keys[0].astype(np.int64)
    weight_G = 0.5 + (before_G - first_V[owner_G] + 0.5 * count_G) / size_V[owner_G]
    return np.asarray(weight_G[group_E.reshape(-1)], dtype=np.float32)
