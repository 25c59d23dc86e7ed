"""The tasks of an append: encode, split and write the events of the users that it affects.

Touched users are those with new events and, in a temporal split, those with events between an old
and a new cut-off.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from recsys import schema
from recsys.data.histories import Array
from recsys.data.split import SplitPlan
from recsys.data.vocabulary import dense
from recsys.preparation.dataset_writer import Folder
from recsys.preparation.event_encoding import Coding, encode_appended
from recsys.preparation.event_roles import EVENT_SCHEMA, NO_TIME, TEXT_SCHEMA
from recsys.preparation.event_store import TIMES, StoredEvents
from recsys.preparation.keys import joined, used_texts, where
from recsys.preparation.shards import (
    ShardReport,
    ShardRules,
    count_shard,
    write_shard,
)


def rows_of_fresh(kept: StoredEvents, fresh: pa.Table) -> pa.Table | None:
    """The kept rows of the users that have new rows; None where there are none.

    Parameters
    ----------
    kept : StoredEvents
        Rows of the earlier dataset.
    fresh : pa.Table
        New good rows.
    """
    return kept.rows(used_texts(fresh.column(schema.USER_ID))) if fresh.num_rows else None


def encode_touched(
    before: pa.Table | None,
    fresh: pa.Table | None,
    coding: Coding,
    touched: tuple[pa.Array, Array] | None,
    all_users: pa.Array,
    items: pa.Array,
) -> list[Any]:
    """Encode the events of a bucket's touched users.

    Parameters
    ----------
    before : pa.Table | None
        Rows of these users in the earlier dataset; None: there are none.
    fresh : pa.Table | None
        New good rows; None: no new rows.
    coding : Coding
        Order and event types.
    touched : tuple[pa.Array, Array] | None
        Users, sorted, and their dense ids; None: all users.
    all_users : pa.Array
        All external user ids in dense order.
    items : pa.Array
        All external item ids in dense order.

    Returns
    -------
    list[Any]
        Tables of ``rules.event_schema`` with the new rows and without them, and the new duplicates
        for the quarantine.
    """
    if before is not None:
        before = coding.rules.filtered(before)[0]
    rows = joined([before, fresh])
    if touched is None:
        users = used_texts(rows.column(schema.USER_ID))
        touched = users, dense([users], all_users)[0]
    num_before = before.num_rows if before is not None else 0
    events, _, duplicates, _, is_earlier_E = encode_appended(
        rows, coding, *touched, items, num_before
    )
    return [events, where(events, is_earlier_E), duplicates]


def fresh_times(events: pa.Table, old: pa.Table) -> pa.Table:
    """User, type and time of the events that are not in the earlier dataset."""
    names = list(TIMES)
    both = [
        table.select(names).append_column(
            "number", pa.array(np.full(table.num_rows, sign, dtype=np.int64))
        )
        for table, sign in ((events, 1), (old, -1))
    ]
    counted = pa.concat_tables(both).group_by(names).aggregate([("number", "sum")])
    rows = np.repeat(np.arange(counted.num_rows), np.asarray(counted.column("number_sum")))
    return counted.select(names).take(pa.array(rows))


def kept_times(kept: StoredEvents, since: int, target_types: tuple[int, ...]) -> list[Any]:
    """User, type and time of the earlier dataset's events from ``since`` (microseconds) on; and the
    number of its earlier events of predicted types (empty ``target_types``: all types).

    Parameters
    ----------
    kept : StoredEvents
        The kept rows of one bucket.
    since : int
        Time in microseconds since 1970.
    target_types : tuple[int, ...]
        Ids of the predicted event types.

    Returns
    -------
    list
        A table with ``user``, ``type`` and ``time``, and the number of earlier events with a known
        time.
    """
    found, number = [EVENT_SCHEMA.empty_table().select(TIMES)], 0
    for table in kept.times():
        times_E = np.asarray(table.column("time"))
        is_late_E = times_E >= since
        counts_E = ~is_late_E & (times_E != NO_TIME)
        if target_types:
            counts_E &= np.isin(np.asarray(table.column("type")), target_types)
        number += int(counts_E.sum())
        found.append(table.filter(pa.array(is_late_E)))
    return [pa.concat_tables(found).combine_chunks(), number]


def moved_users(times: pa.Table, before: SplitPlan, now: SplitPlan) -> Array:
    """Users with an event that new cut-offs move to another split: int32, sorted.

    Parameters
    ----------
    times : pa.Table
        Columns ``user`` and ``time`` of the events.
    before, now : SplitPlan
        The earlier and the new cut-offs.
    """
    times_E = np.asarray(times.column("time"))
    moved_E = np.zeros(len(times_E), dtype=bool)
    for old, new in ((before.valid_from, now.valid_from), (before.test_from, now.test_from)):
        moved_E |= (times_E >= old) != (times_E >= new)
    return np.unique(np.asarray(times.column("user"))[moved_E])


def write_touched(
    folder: Folder,
    shard: tuple[int, str],
    rules: tuple[ShardRules, ShardRules],
    users: pa.Array,
    items: pa.Array,
    *tables: pa.Table,
) -> list[ShardReport]:
    """Write the newer histories of a bucket.

    Parameters
    ----------
    folder : Folder
        Folder of the dataset.
    shard : tuple[int, str]
        Bucket, and suffix of the file's name.
    rules : tuple[ShardRules, ShardRules]
        Rules of the new dataset and of the earlier one.
    users : pa.Array
        All external user ids in dense order.
    items : pa.Array
        All external item ids in dense order.
    tables
        Tables of :func:`encode_touched`, alternately all and old events; each pair has other users.

    Returns
    -------
    list[ShardReport]
        Counts of these users' events now and before.
    """
    events, old = (_by_user(list(tables[start::2])) for start in (0, 1))
    index, ending = shard
    no_text = TEXT_SCHEMA.empty_table()
    report: ShardReport = write_shard(
        events, no_text, folder, index, rules[0], users, items, ending
    )[0]
    return [report, count_shard(old, rules[1], users, items)]


def _by_user(tables: list[pa.Table]) -> pa.Table:
    """The rows of several tables with different users, sorted by user."""
    table = pa.concat_tables(tables)
    if len(tables) == 1:
        return table
    return table.take(
        pa.array(np.argsort(np.asarray(table.column("user")), kind="stable"))
    ).combine_chunks()
