"""The k-core of the events: users and items that have enough events with each other.

Why two passes: duplicates are known only after the events are sorted, and ids become dense only
after the k-core. A bucket is encoded once to get its (user, item) pairs, 8 bytes per event. Rounds
over the pairs decide which users and items stay. The rows of the others are dropped before the
vocabularies are made. Only the item counts reach the driver.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys import schema
from recsys.data.histories import Array
from recsys.data.vocabulary import Vocabulary, union
from recsys.preparation.blocks import fetch, put, task
from recsys.preparation.buckets import BucketSummary, summarise
from recsys.preparation.event_encoding import Coding, encode_bucket
from recsys.preparation.event_roles import EventRules
from recsys.preparation.keys import codes_in, where

OUTSIDE_CORE: Final = "outside the k-core of data.min_user_events and data.min_item_events"


def cut_to_core(
    buckets: list[list[Any]],
    summaries: list[BucketSummary],
    coding: Coding,
    least: tuple[int, int],
    base: Vocabulary | None,
) -> tuple[Core, list[list[Any]], list[BucketSummary]]:
    """Find the k-core and reduce the buckets and their summaries to it.

    Parameters
    ----------
    buckets : list[list[Any]]
        References from :func:`recsys.preparation.buckets.exchange`.
    summaries : list[BucketSummary]
        Summaries of the buckets.
    coding : Coding
        Order and types.
    least : tuple[int, int]
        Least number of events of a user and of an item; 0: no limit.
    base : Vocabulary | None
        Ids that always stay.
    """
    items = union([summary.items for summary in summaries])
    encoder, cutter, known = task(core_pairs), task(cut_bucket, 2), put(items)
    pairs = [
        encoder.remote(b[0], coding, s.users, known)
        for b, s in zip(buckets, summaries, strict=True)
    ]
    kept = (base.users, base.items) if base else (None, None)
    core = find_core(pairs, [summary.users for summary in summaries], items, least, kept)
    in_core = put(core.items)
    cut = [
        cutter.remote(b[0], coding.rules, u, in_core)
        for b, u in zip(buckets, core.users, strict=True)
    ]
    fresh: list[BucketSummary] = [fetch(refs[1]) for refs in cut]
    gone = (
        sum(len(s.users) for s in summaries) - sum(map(len, core.users)),
        len(items) - len(core.items),
    )
    return (
        replace(core, gone=gone),
        [[refs[0], *b[1:]] for refs, b in zip(cut, buckets, strict=True)],
        fresh,
    )


@dataclass(frozen=True)
class Core:
    """The users and items that remain when those with too few events are removed repeatedly."""

    users: list[pa.Array]  # per bucket
    items: pa.Array
    rounds: int
    gone: tuple[int, int] = (0, 0)  # numbers of users and items left out

    def note(self, least: tuple[int, int]) -> str:
        """The note of the manifest."""
        return (
            f"k-core of at least {least[0]} events a user and {least[1]} an item: {self.gone[0]:,}"
            f" users and {self.gone[1]:,} items are left out ({self.rounds} rounds)"
        )


def find_core(
    pairs: Sequence[Any],
    users: Sequence[pa.Array],
    items: pa.Array,
    least: tuple[int, int],
    kept: tuple[Any, Any],
) -> Core:
    """The k-core of all events: its users have at least ``least[0]`` events and its items at least
    ``least[1]``, counting only events between them.

    Parameters
    ----------
    pairs : Sequence[Any]
        References to the (user, item) int32 columns of every bucket; user is the position in the
        bucket's ``users``.
    users : Sequence[pa.Array]
        Users of every bucket.
    items : pa.Array
        All items; item is the position in them.
    least : tuple[int, int]
        Least number of events of a user and of an item.
    kept : tuple[Any, Any]
        Ids of users and of items that always stay; None: none.
    """
    counter = task(core_counts, 2)
    stays_N = _is_in(items, kept[1])
    stays_UB = [put(_is_in(of_bucket, kept[0])) for of_bucket in users]
    item_N, rounds = np.ones(len(items), dtype=bool), 0
    while True:
        rounds += 1
        known = put(item_N)
        refs = [
            counter.remote(p, known, stays, least[0])
            for p, stays in zip(pairs, stays_UB, strict=True)
        ]
        counts_N = np.zeros(len(items), dtype=np.int64)
        for counts, _ in refs:
            counts_N += fetch(counts)
        # known items of an earlier model stay, however few events they have, as their rows exist
        fresh_N = item_N & ((counts_N >= max(least[1], 1)) | stays_N)
        if (fresh_N == item_N).all():
            # the counts of users belong to these items, because no item has left in this round
            users_kept = [
                u.filter(pa.array(fetch(ref))) for u, (_, ref) in zip(users, refs, strict=True)
            ]
            return Core(users_kept, items.filter(pa.array(item_N)), rounds)
        item_N = fresh_N


def core_counts(pairs: pa.Table, item_N: Array, stays_U: Array, min_user: int) -> list[Array]:
    """Number of events of each item by the remaining users: [N] int64; and which users of the
    bucket remain: [U] bool.

    Parameters
    ----------
    pairs : pa.Table
        Columns ``user`` (position in the bucket) and ``item`` (position in all items), [E].
    item_N : array, [N] bool
        Which items remain.
    stays_U : array, [U] bool
        Which users of the bucket always stay.
    min_user : int
        Least number of events of a user.
    """
    user_E, item_E = (np.asarray(pairs.column(name)) for name in ("user", "item"))
    on_E = item_N[item_E]
    events_U = np.bincount(user_E[on_E], minlength=len(stays_U))
    user_U = (events_U >= max(min_user, 1)) | stays_U
    counted = item_E[on_E & user_U[user_E]]
    return [np.bincount(counted, minlength=len(item_N)), user_U]


def only(table: pa.Table | None, key: str, ids: Sequence[pa.Array]) -> pa.Table | None:
    """The rows of the table of users or items whose id is among ``ids``.

    Parameters
    ----------
    table : pa.Table or None
        The table of users or items; None: the source has none.
    key : str
        Name of the id column.
    ids : Sequence[pa.Array]
        The ids, in any number of arrays.

    Returns
    -------
    pa.Table or None
        The rows; None if ``table`` is None.
    """
    return (
        None
        if table is None
        else table.filter(pc.is_in(table.column(key), value_set=union(list(ids))))
    )


def _is_in(ids: pa.Array, kept: Any) -> Array:
    if kept is None:
        return np.zeros(len(ids), dtype=bool)
    return np.asarray(pc.is_in(ids, value_set=kept))


def core_pairs(good: pa.Table, coding: Coding, users: pa.Array, item_ids: pa.Array) -> pa.Table:
    """User (position in ``users``) and item of every interaction of a bucket without duplicates,
    which a k-core counts.

    Parameters
    ----------
    good : pa.Table
        Good rows of the bucket.
    coding : Coding
        Order and event types.
    users : pa.Array
        External ids of the bucket's users.
    item_ids : pa.Array
        All external item ids; a position in it is an item's number.

    Returns
    -------
    pa.Table
        Columns ``user`` and ``item``, one row per interaction.
    """
    return encode_bucket(good, coding, users, np.arange(len(users)), item_ids)[0].select(
        ["user", "item"]
    )


def cut_bucket(good: pa.Table, rules: EventRules, users: pa.Array, items: pa.Array) -> list[Any]:
    """The rows of a bucket by users and about items of the k-core, and a summary of them.

    Parameters
    ----------
    good : pa.Table
        Good rows of the bucket.
    rules : EventRules
        Which events are interactions and which are text.
    users, items : pa.Array
        External ids of the k-core.
    """
    summary = BucketSummary(read=good.num_rows)
    if good.num_rows:
        kept = codes_in(good.column(schema.USER_ID), users) >= 0
        kept &= codes_in(good.column(schema.ITEM_ID), items) >= 0
        summary.dropped = (
            Counter({OUTSIDE_CORE: int((~kept).sum())}) if not kept.all() else Counter()
        )
        good = where(good, kept)
    if good.num_rows:
        summarise(good, rules, summary)
    return [good, summary]
