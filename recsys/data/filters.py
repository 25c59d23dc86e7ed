"""Which good events are used: a window of time, a smallest value, and a k-core; all off by default.

Why here: users want "ratings from 4 on", "the last two years" or "users with five events" without rewriting their
files. The order is fixed: first the window and the value (row by row, in the task that gathers a bucket), then
duplicates, then the k-core, then the split. Each filter is counted in ``manifest.dropped``.

An event without a time is outside every window. An absent value counts as 1. Text events (``data.text.event_types``)
follow the window, but have no value; the k-core leaves out those of users and items that it leaves out. Users and items
of a dataset that is continued stay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from recsys import schema
from recsys.config import DataConfig
from recsys.data.blocks import fetch, task
from recsys.data.histories import Array
from recsys.data.keys import codes_in
from recsys.data.split import NEVER, parse_time
from recsys.data.vocabulary import union
from recsys.errors import ConfigError

TOO_EARLY: Final = "before data.from"
TOO_LATE: Final = "from data.until on"
UNTIMED: Final = "no time, and data.from or data.until is set"
TOO_SMALL: Final = "value below data.min_value"
OUTSIDE_CORE: Final = "outside the k-core of data.min_user_events and data.min_item_events"
_ALWAYS: Final = -NEVER


@dataclass(frozen=True)
class EventFilters:
    """The window of time, in microseconds since the epoch, and the smallest value."""

    first: int = _ALWAYS
    end: int = NEVER
    min_value: float | None = None

    @classmethod
    def of(cls, config: DataConfig) -> EventFilters:
        """The filters of a configuration.

        Raises:
            ConfigError: a time cannot be read, or the window is empty.
        """
        first = parse_time(config.from_, "data.from") if config.from_ else _ALWAYS
        end = parse_time(config.until, "data.until") if config.until else NEVER
        if first >= end:
            raise ConfigError(
                f"data.from {config.from_!r} is not before data.until {config.until!r}; events from data.from on and "
                "before data.until are used"
            )
        return cls(first, end, config.min_value)

    @property
    def is_on(self) -> bool:
        """Whether anything can be left out."""
        return self.has_window or self.min_value is not None

    @property
    def has_window(self) -> bool:
        return self.first != _ALWAYS or self.end != NEVER

    def left_out(self, good: pa.Table, is_interaction: Array) -> tuple[Array, Counter[str]]:
        """Which rows are left out, and how many for which reason."""
        out = np.zeros(good.num_rows, dtype=bool)
        counts: Counter[str] = Counter()

        def leave(mask: Any, reason: str) -> None:
            fresh = np.asarray(pc.fill_null(mask, False)) & ~out
            if number := int(fresh.sum()):
                counts[reason] += number
                out[fresh] = True

        if self.has_window:
            times = good.column(schema.TIMESTAMP).cast(pa.int64())
            leave(pc.is_null(times), UNTIMED)
            leave(pc.less(times, self.first), TOO_EARLY)
            leave(pc.greater_equal(times, self.end), TOO_LATE)
        if self.min_value is not None:
            values = pc.fill_null(good.column(schema.VALUE), schema.DEFAULT_VALUE)
            leave(pc.and_(pc.less(values, self.min_value), pa.array(is_interaction)), TOO_SMALL)
        return out, counts


@dataclass(frozen=True)
class Core:
    """What is left of the users and items when those with too few events are gone, again and again."""

    users: list[pa.Array]  # of every bucket
    items: pa.Array
    rounds: int


def find_core(
    pairs: Sequence[Any], users: Sequence[pa.Array], items: pa.Array, least: tuple[int, int], kept: tuple[Any, Any]
) -> Core:
    """The k-core of all events: every user has ``least[0]`` events with items that have ``least[1]`` events of them.

    Args:
        pairs: references to (user, item) int32 columns of every bucket, user = place in the bucket's ``users``.
        users: the users of every bucket.
        items: all items, item = place in it.
        least: events of a user, events of an item.
        kept: ids of users and of items that stay in any case; None: none.
    """
    counter = task(core_counts, 2)
    stays_N = _is_in(items, kept[1])
    stays_UB = [ray.put(_is_in(of_bucket, kept[0])) for of_bucket in users]
    item_N, rounds = np.ones(len(items), dtype=bool), 0
    while True:
        rounds += 1
        known = ray.put(item_N)
        refs = [counter.remote(p, known, stays, least[0]) for p, stays in zip(pairs, stays_UB, strict=True)]
        counts_N = np.zeros(len(items), dtype=np.int64)
        for counts, _ in refs:
            counts_N += fetch(counts)
        fresh_N = item_N & ((counts_N >= max(least[1], 1)) | stays_N)
        if (fresh_N == item_N).all():
            users_kept = [u.filter(pa.array(fetch(ref))) for u, (_, ref) in zip(users, refs, strict=True)]
            return Core(users_kept, items.filter(pa.array(item_N)), rounds)
        item_N = fresh_N


def core_counts(pairs: pa.Table, item_N: Array, stays_U: Array, min_user: int) -> list[Array]:
    """How many events of the users that remain each item has: int64 [N]; which users of the bucket remain: bool [U]."""
    user_E, item_E = (np.asarray(pairs.column(name)) for name in ("user", "item"))
    on_E = item_N[item_E]
    events_U = np.bincount(user_E[on_E], minlength=len(stays_U))
    user_U = (events_U >= max(min_user, 1)) | stays_U
    counted = item_E[on_E & user_U[user_E]]
    return [np.bincount(counted, minlength=len(item_N)), user_U]


def within_core(good: pa.Table, users: pa.Array, items: pa.Array) -> Array:
    """Which rows of a bucket are of users and about items of the core."""
    return (codes_in(good.column(schema.USER_ID), users) >= 0) & (codes_in(good.column(schema.ITEM_ID), items) >= 0)


def only(table: pa.Table | None, key: str, ids: Sequence[pa.Array]) -> pa.Table | None:
    """The rows of the table of users or items whose id is among ``ids``."""
    return None if table is None else table.filter(pc.is_in(table.column(key), value_set=union(list(ids))))


def _is_in(ids: pa.Array, kept: Any) -> Array:
    if kept is None:
        return np.zeros(len(ids), dtype=bool)
    return np.asarray(pc.is_in(ids, value_set=kept))
