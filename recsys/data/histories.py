"""Users' events in memory as compressed sparse rows, and the queries of training and evaluation.

Why: ragged histories as offsets and flat arrays need no padding, are sliced without copying, and
are read directly from the Parquet shards. Legend: U users (rows), E events, B queries, P targets, L
history length, C context columns, T event types.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from recsys.data.hashing import GOLDEN, MULTIPLIER

Array = npt.NDArray[Any]
ALL_TYPES: Final[Array] = np.zeros(0, dtype=bool)
NO_TYPES: Final[Array] = np.zeros(0, dtype=np.uint8)  # targets without types
NO_TIMES: Final[Array] = np.zeros(0, dtype=np.int64)  # queries without times
NONE_AHEAD: Final[Array] = np.zeros(0, dtype=np.int32)
# data without context columns, of any size
NO_CONTEXT: Final[Array] = np.zeros((0, 0), dtype=np.int16)


class Split(IntEnum):
    """The split of an event. A query at split ``s`` sees the events of all earlier splits and
    predicts those of ``s``.
    """

    TRAIN = 0
    VALID = 1
    TEST = 2


# a validation event of a cold user: a target at VALID that later splits do not see
COLD_VALID: Final = 3


@dataclass(frozen=True)
class Histories:
    """Events of some users, user by user in the order of the data (time, file, or none)."""

    users_U: Array  # int32 dense user ids; -1 for a user outside the vocabulary
    offsets_U1: Array  # int64, U + 1
    items_E: Array  # int32 dense item ids
    types_E: Array  # uint8 event type ids
    times_E: Array  # int64 seconds since the epoch, 0 where unknown
    values_E: Array  # float32
    splits_E: Array  # uint8, see Split and COLD_VALID
    context_EC: Array = field(
        default_factory=lambda: NO_CONTEXT
    )  # int16, see recsys.data.context_columns
    # bool: predicted event types; empty: all
    targets_T: Array = field(default_factory=lambda: ALL_TYPES)
    # int32: number of events by which the training query is earlier than usual; empty: 0
    ahead_E: Array = field(default_factory=lambda: NONE_AHEAD)

    def __post_init__(self) -> None:
        if self.context_EC is NO_CONTEXT:
            object.__setattr__(self, "context_EC", np.zeros((len(self.items_E), 0), dtype=np.int16))

    def __len__(self) -> int:
        return len(self.users_U)

    @property
    def lengths_U(self) -> Array:
        """Number of events of each user: [U] int64."""
        return np.diff(self.offsets_U1)

    @property
    def are_targets_E(self) -> Array:
        """Which events have a predicted type, in any split: [E] bool. The others are only
        history.
        """
        if not len(self.targets_T):
            return np.ones(len(self.items_E), dtype=bool)
        return np.asarray(self.targets_T[self.types_E])

    def of_targets(self) -> Histories:
        """The histories with the events of predicted types only."""
        return self.where(self.are_targets_E) if len(self.targets_T) else self

    @property
    def have_queries_E(self) -> Array:
        """Which events are targets in ordered training: those of predicted types whose query sees
        at least one event: [E] bool.
        """
        places_E = _ranges(np.zeros(len(self), dtype=np.int64), self.lengths_U)
        return np.asarray(
            self.are_targets_E & (places_E > (self.ahead_E if len(self.ahead_E) else 0))
        )

    def take(self, rows: Array) -> Histories:
        """The rows at the given positions, in the given order; positions may repeat."""
        lengths = self.lengths_U[rows]
        events = _ranges(self.offsets_U1[rows], lengths)
        return self._with_events(self.users_U[rows], _offsets(lengths), events)

    def where(self, keep_E: Array) -> Histories:
        """The events where the mask is true; users without such events keep an empty history."""
        assert not len(self.ahead_E), "ahead_E counts events: filter events before computing it"
        kept = np.concatenate([[0], np.cumsum(keep_E)])[self.offsets_U1]
        return self._with_events(self.users_U, kept.astype(np.int64), np.flatnonzero(keep_E))

    def reordered(self, order_E: Array) -> Histories:
        """The events in another order: the new event at ``e`` is the old one at ``order_E[e]``. No
        event may change its row.
        """
        return self._with_events(self.users_U, self.offsets_U1, order_E)

    def through(self, split: Split) -> Histories:
        """The events of ``split`` and of all earlier splits."""
        return self.where(self.splits_E <= split)

    def windows(self, size: int) -> Histories:
        """Cut histories longer than ``size`` into several rows of at most ``size`` events, the
        newest row first. Neighbouring rows share one event, so every event except a user's first
        follows another event in exactly one row.
        """
        rows, starts, ends = self.window_spans(size)
        if len(rows) == len(self):
            return self
        events = _ranges(self.offsets_U1[rows] + starts, ends - starts)
        return self._with_events(self.users_U[rows], _offsets(ends - starts), events)

    def window_spans(self, size: int) -> tuple[Array, Array, Array]:
        """The rows of :meth:`windows`: for each, its source row, and its start and end in that
        row.
        """
        lengths = self.lengths_U
        # neighbouring windows share an event, so a window of this size advances by one less
        counts = np.maximum(-(-(lengths - 1) // (size - 1)), 1)
        rows = np.repeat(np.arange(len(self)), counts)
        back = _ranges(np.zeros(len(self), dtype=np.int64), counts) * (size - 1)
        ends = lengths[rows] - back
        return rows, np.maximum(ends - size, 0), ends

    def queries(self, target: Split) -> Queries:
        """The queries at a split, one per user with targets in it; they see earlier splits only.

        Parameters
        ----------
        target : Split
            The split of the targets. At ``VALID`` the ``COLD_VALID`` events are targets as well.

        Returns
        -------
        Queries
            Time and context of a query are those of its earliest and its first target.
        """
        is_target_E = self._are_targets_E(target)
        rows = np.flatnonzero(
            # one element more, as the start of an empty last row is outside; reduceat gives an
            # empty row the element at its start, so the lengths mask it
            np.add.reduceat(np.append(is_target_E, False), self.offsets_U1[:-1])
            * (self.lengths_U > 0)
        )
        chosen = self.take(rows)
        targets = chosen.where(chosen._are_targets_E(target))
        firsts_B = targets.offsets_U1[:-1]  # every query has a target
        asked_BC, asked_at_B = targets.context_EC[firsts_B], first_times(targets.times_E, firsts_B)
        seen = chosen.where(chosen.splits_E < target)
        return Queries(
            seen, targets.offsets_U1, targets.items_E, asked_BC, asked_at_B, targets.types_E
        )

    def target_values(self, target: Split) -> Array:
        """The value of every target of :meth:`queries`, in their order: [P] float32."""
        return np.asarray(self.values_E[self._are_targets_E(target)])

    def _are_targets_E(self, target: Split) -> Array:
        is_held_E = np.isin(
            self.splits_E, [target, COLD_VALID] if target == Split.VALID else [target]
        )
        return np.asarray(is_held_E & self.are_targets_E)

    def _with_events(self, users: Array, offsets: Array, events: Array) -> Histories:
        columns = (self.items_E, self.types_E, self.times_E, self.values_E, self.splits_E)
        ahead_E = self.ahead_E[events] if len(self.ahead_E) else self.ahead_E
        rest = {
            "context_EC": self.context_EC[events],
            "targets_T": self.targets_T,
            "ahead_E": ahead_E,
        }
        return Histories(users, offsets, *(column[events] for column in columns), **rest)

    @staticmethod
    def concat(parts: list[Histories]) -> Histories:
        """The rows of all parts, one part after the other."""
        if len(parts) == 1:
            return parts[0]
        lengths = np.concatenate([part.lengths_U for part in parts])
        fields = ("users_U", "items_E", "types_E", "times_E", "values_E", "splits_E", "ahead_E")
        columns = {
            field: np.concatenate([getattr(part, field) for part in parts]) for field in fields
        }
        width = max(part.context_EC.shape[1] for part in parts)
        context_EC = np.concatenate([_missing_or(part.context_EC, width) for part in parts])
        return Histories(
            offsets_U1=_offsets(lengths),
            context_EC=context_EC,
            targets_T=parts[0].targets_T,
            **columns,
        )

    @staticmethod
    def of_items(items_per_user: list[list[int]], users: list[int] | None = None) -> Histories:
        """Item lists as training histories (for tests, and for requests without types and
        times).
        """
        lengths = np.array([len(items) for items in items_per_user], dtype=np.int64)
        items = np.array([item for row in items_per_user for item in row], dtype=np.int32)
        zeros = np.zeros(len(items))
        return Histories(
            np.array(users if users is not None else [-1] * len(lengths), dtype=np.int32),
            _offsets(lengths),
            items,
            zeros.astype(np.uint8),
            zeros.astype(np.int64),
            np.ones(len(items), dtype=np.float32),
            zeros.astype(np.uint8),
        )


@dataclass(frozen=True)
class Queries:
    """B queries: the visible history of each and, in evaluation, its held-out targets."""

    histories: Histories  # B rows
    target_offsets_B1: Array  # int64
    target_items: Array  # int32
    # int16; in evaluation that of the first target
    context_BC: Array = field(default_factory=lambda: NO_CONTEXT)
    # int64 time, seconds since the epoch, 0 unknown
    asked_at_B: Array = field(default_factory=lambda: NO_TIMES)
    target_types: Array = field(default_factory=lambda: NO_TYPES)  # uint8 event type of each target

    def __post_init__(self) -> None:
        if self.target_types is NO_TYPES:
            object.__setattr__(
                self, "target_types", np.zeros(len(self.target_items), dtype=np.uint8)
            )
        if self.asked_at_B is NO_TIMES:
            object.__setattr__(self, "asked_at_B", np.zeros(len(self.histories), dtype=np.int64))
        if self.context_BC is NO_CONTEXT:
            shape = (len(self.histories), self.histories.context_EC.shape[1])
            object.__setattr__(self, "context_BC", np.zeros(shape, dtype=np.int16))

    @classmethod
    def without_targets(cls, histories: Histories, **rest: Array) -> Queries:
        """A query after the last event of each history; ``rest`` has other fields."""
        offsets = np.zeros(len(histories) + 1, dtype=np.int64)
        return cls(histories, offsets, np.zeros(0, dtype=np.int32), **rest)

    def __len__(self) -> int:
        return len(self.histories)

    def chunks(self, size: int) -> Iterator[Queries]:
        """Consecutive chunks of at most ``size`` queries."""
        for start in range(0, len(self), size):
            yield self.take(np.arange(start, min(start + size, len(self))))

    def take(self, rows: Array) -> Queries:
        """The given queries in the given order."""
        lengths = self.num_targets_B[rows]
        positions = _ranges(self.target_offsets_B1[rows], lengths)
        asked_BC, asked_at_B = self.context_BC[rows], self.asked_at_B[rows]
        targets, types = self.target_items[positions], self.target_types[positions]
        return Queries(
            self.histories.take(rows), _offsets(lengths), targets, asked_BC, asked_at_B, types
        )

    @property
    def num_targets_B(self) -> Array:
        """Number of targets of each query: [B] int64."""
        return np.diff(self.target_offsets_B1)

    def target_rows(self) -> Array:
        """The query of every target: [P] int64."""
        return np.repeat(np.arange(len(self)), self.num_targets_B)


def first_times(times_E: Array, starts_B: Array) -> Array:
    """The earliest known time of each run of events; runs start at ``starts_B`` and are not empty;
    0 where no time is known.

    Why the earliest: the time of a query is not later than any of its targets.

    >>> first_times(np.array([30, 20, 0, 0]), np.array([0, 3]))
    array([20,  0])
    """
    if not len(starts_B):
        return np.zeros(0, dtype=np.int64)
    latest = np.iinfo(np.int64).max
    found_B = np.minimum.reduceat(np.where(times_E == 0, latest, times_E), starts_B)
    return np.where(found_B == latest, 0, found_B)


def event_keys(histories: Histories) -> Array:
    """A hash of user, item and time of every event: [E] uint64."""
    users_E = np.repeat(histories.users_U, histories.lengths_U)
    return _hashed(users_E, histories.items_E, histories.times_E)


def numbered_keys(histories: Histories) -> Array:
    """As :func:`event_keys`, with the type of the event and its number among equal ones of its
    history: [E] uint64.

    Why: where times are unknown, a user's second event with an item differs by its number alone.
    A history that grows at its end keeps the keys of its events.
    """
    key_E = _hashed(event_keys(histories), histories.types_E)
    order_E = np.argsort(key_E, kind="stable")
    is_first_E = np.append(True, np.diff(key_E[order_E]) != 0)[: len(order_E)]
    places_E = np.arange(len(order_E))
    number_E = np.empty(len(order_E), dtype=np.int64)
    number_E[order_E] = places_E - np.maximum.accumulate(np.where(is_first_E, places_E, 0))
    return _hashed(key_E, number_E)


def _hashed(*columns: Array) -> Array:
    """A hash of the values of every event: [E] uint64."""
    key = np.zeros(len(columns[0]), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for values in columns:
            key = (key ^ values.astype(np.uint64)) * GOLDEN
            key ^= key >> np.uint64(29)
            key *= MULTIPLIER
            key ^= key >> np.uint64(32)
    return key


def _missing_or(context_EC: Array, width: int) -> Array:
    """The codes, or missing codes where the events have no context columns."""
    return (
        context_EC
        if context_EC.shape[1] == width
        else np.zeros((len(context_EC), width), dtype=np.int16)
    )


def _offsets(lengths: Array) -> Array:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _ranges(starts: Array, lengths: Array) -> Array:
    """Concatenate ``range(start, start + length)`` of every row without a Python loop."""
    total = int(lengths.sum())
    if total == 0:
        return np.zeros(0, dtype=np.int64)
    ends = np.cumsum(lengths)
    found: Array = np.arange(total) + np.repeat(starts - (ends - lengths), lengths)
    return found
