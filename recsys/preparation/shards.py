"""Write a bucket of encoded events as a shard of histories: splits, rows, counts and text.

Legend: U users, E events, N items.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa

from recsys.data.cold_start import CUT
from recsys.data.context_columns import ColumnStatistics, ContextColumn, tally
from recsys.data.hashing import string_hashes, uniform
from recsys.data.histories import COLD_VALID, Array, Split
from recsys.data.history_table import history_schema
from recsys.data.split import SplitPlan, assign, bin_counts
from recsys.data.vocabulary import Vocabulary
from recsys.preparation.blocks import fetch, put, task
from recsys.preparation.dataset_writer import Folder
from recsys.preparation.event_roles import CONTEXT, EVENT_SCHEMA, NO_TIME, SPLITS, EventRules
from recsys.preparation.terms import terms_by_task

_EVENT_KINDS: Final = {column.name: column.type.to_pandas_dtype() for column in EVENT_SCHEMA}


@dataclass(frozen=True)
class ShardRules:
    """The rules for writing shards."""

    plan: SplitPlan
    seed: int
    num_term_tasks: int
    context: tuple[ContextColumn, ...] = ()


@dataclass(frozen=True)
class _SplitEvents:
    """The events of a bucket with their splits, without those that are cut."""

    columns: dict[str, Array]  # of every event; ``row`` is its position in the encoded table
    offsets_U1: Array  # where each user starts
    splits_E: Array
    cold_users: Array = field(default_factory=lambda: np.zeros(0, dtype=np.int32))  # dense ids
    counts: dict[str, int] = field(default_factory=dict)  # of cold users

    def pairs_E(self, num_items: int) -> Array:
        """One number per (user, item): [E] int64."""
        return _pairs(self.columns["user"], self.columns["item"], num_items)


@dataclass
class ShardReport:
    """What the driver knows about a shard."""

    name: str  # "" when the bucket has no interactions
    counts: dict[str, int]
    items: Array  # dense ids of its items
    item_counts: Array  # [items, 3] interactions by split
    provenance: str = ""  # file of its text rows, "" when there are none


def shard_name(index: int, ending: str = "") -> str:
    """File name of a shard's histories; with an ending, of newer rows of some of its users."""
    return f"part-{index:05d}{ending}.parquet"


def time_bins(
    events: pa.Table, start: int, width: int, below: int, target_types: tuple[int, ...] = ()
) -> Array:
    """Counts of the times earlier than ``below`` in the bins of :func:`recsys.data.split.cut_off`,
    for events of these types (empty: all types).

    Parameters
    ----------
    events : pa.Table
        Events with ``time`` and ``type``.
    start : int
        Lower end of the first bin, in microseconds.
    width : int
        Width of a bin, in microseconds.
    below : int
        Times from here on are left out, in microseconds.
    target_types : tuple[int, ...]
        Ids of the counted event types; empty: all types.
    """
    times = np.asarray(events.column("time"))
    if target_types:
        times = times[np.isin(np.asarray(events.column("type")), target_types)]
    return bin_counts(times[times < below], start, width)


def write_shard(
    events: pa.Table,
    text: pa.Table,
    folder: Folder,
    index: int,
    rules: ShardRules,
    users: pa.Array,
    items: pa.Array,
    ending: str = "",
) -> list[Any]:
    """Assign splits, write ``histories/part-INDEX.parquet``, and count.

    Parameters
    ----------
    events : pa.Table
        Events of :data:`~recsys.preparation.event_roles.EVENT_SCHEMA`, sorted by user.
    text : pa.Table
        Text rows about items by the same users, of
        :data:`~recsys.preparation.event_roles.TEXT_SCHEMA`.
    folder : Folder
        Folder of the dataset.
    index : int
        Number of the shard.
    rules : ShardRules
        Split, seed, and number of tasks that merge the terms.
    users : pa.Array
        All external user ids in dense order.
    items : pa.Array
        All external item ids in dense order.
    ending : str
        Suffix of the file's name, before the extension.

    Returns
    -------
    list[Any]
        A :class:`ShardReport`, then one table of item terms
        (:data:`~recsys.preparation.terms.TERM_SCHEMA`) per task that merges them.
        The terms exclude text on held-out (user, item) pairs, text of cold users on items outside
        their kept training events and, in temporal splits, text from the validation cut-off on.
    """
    shard = _split_events(events, rules, users, items)
    name = shard_name(index, ending) if len(shard.columns["user"]) else ""
    if name:
        folder.write_table(f"histories/{name}", _history_table(shard, events, rules.context))
    pairs_E, splits_E = shard.pairs_E(len(items)), shard.splits_E
    report = _counted(shard, rules, len(items))
    more: dict[str, int] = {}
    if len(shard.cold_users):
        text, more["text_rows_cold"] = _without_cold(
            text, shard.cold_users, pairs_E[splits_E == Split.TRAIN], len(items)
        )
    text, text_counts = _without_held_out(text, pairs_E, splits_E, rules.plan, len(items))
    provenance = f"text-{index:05d}.parquet" if text.num_rows else ""
    if provenance:
        folder.write_table(f"provenance/{provenance}", text)
    report = replace(
        report, name=name, counts=report.counts | text_counts | more, provenance=provenance
    )
    return [report, *terms_by_task(text, rules.num_term_tasks)]


def count_shard(
    events: pa.Table, rules: ShardRules, users: pa.Array, items: pa.Array
) -> ShardReport:
    """The report of :func:`write_shard` for events without text; writes nothing.

    Parameters
    ----------
    events : pa.Table
        Encoded events, sorted by user.
    rules : ShardRules
        The split and the seed.
    users : pa.Array
        All external user ids in dense order.
    items : pa.Array
        All external item ids in dense order.

    Returns
    -------
    ShardReport
        Counts by split, and the interactions of every item.
    """
    return _counted(_split_events(events, rules, users, items), rules, len(items))


def _counted(shard: _SplitEvents, rules: ShardRules, num_items: int) -> ShardReport:
    columns, splits_E = shard.columns, shard.splits_E
    pairs_E = shard.pairs_E(num_items)
    counts = {split: int((splits_E == code).sum()) for code, split in enumerate(SPLITS)}
    if rules.plan.target_types:
        is_target_E = np.isin(columns["type"], rules.plan.target_types)
        held = (Split.VALID, COLD_VALID), (Split.TEST,)
        for key, codes in zip(("valid_targets", "test_targets"), held, strict=True):
            counts[key] = int((is_target_E & np.isin(splits_E, codes)).sum())
    counts["repeats"] = int((np.diff(np.sort(pairs_E)) == 0).sum())
    counts["ties"] = _ties(columns) if rules.plan.ordered else 0
    return ShardReport("", counts | shard.counts, *_item_counts(columns["item"], splits_E))


def tally_context(
    events: pa.Table, event_rules: EventRules, rules: ShardRules, users: pa.Array, items: pa.Array
) -> list[ColumnStatistics]:
    """Statistics of each context column over the training events of a bucket.

    Parameters
    ----------
    events : pa.Table
        Encoded events, sorted by user, with their context columns.
    event_rules : EventRules
        Names the context columns, and those that are numbers.
    rules : ShardRules
        The split and the seed.
    users : pa.Array
        All external user ids in dense order.
    items : pa.Array
        All external item ids in dense order.

    Returns
    -------
    list[ColumnStatistics]
        One entry per context column, in the order of the rules.
    """
    shard = _split_events(events, rules, users, items)
    train = events.take(pa.array(shard.columns["row"][shard.splits_E == Split.TRAIN]))
    return [
        tally(train.column(f"{CONTEXT}{name}"), name, name in event_rules.context_numbers)
        for name in event_rules.context
    ]


def _split_events(
    events: pa.Table, rules: ShardRules, users: pa.Array, items: pa.Array
) -> _SplitEvents:
    """Assign splits, and cut the events of cold users."""
    columns = {
        name: np.asarray(events.column(name)).astype(kind, copy=False)
        for name, kind in _EVENT_KINDS.items()
    }
    columns["row"] = np.arange(events.num_rows)
    starts = np.flatnonzero(np.diff(columns["user"], prepend=-1))
    offsets_U1 = np.append(starts, len(columns["user"])).astype(np.int64)
    uniform_E = _uniform(columns, rules.seed, users, items) if rules.plan.random else np.zeros(0)
    splits_E = assign(
        rules.plan, offsets_U1, columns["time"], columns["given"], uniform_E, columns["type"]
    )
    if (splits_E == CUT).any():
        columns, offsets_U1, splits_E = _without_cut(columns, splits_E)
    shard = _SplitEvents(columns, offsets_U1, splits_E)
    return _cut(shard, rules, (users, items)) if rules.plan.cold_start else shard


def _uniform(columns: dict[str, Array], seed: int, users: pa.Array, items: pa.Array) -> Array:
    """A number in [0, 1) per (user, item) pair that depends only on the external ids and the
    seed.
    """
    hashes = []
    for key, ids in (("user", users), ("item", items)):
        unique, inverse = np.unique(columns[key], return_inverse=True)
        hashes.append(string_hashes(ids.take(pa.array(unique)))[inverse])
    return uniform(hashes[0], hashes[1], seed)


def _cut(shard: _SplitEvents, rules: ShardRules, ids: tuple[pa.Array, pa.Array]) -> _SplitEvents:
    """The shard without the cut events of cold users; ``ids`` are external ids of users and items
    in dense order.
    """
    cold_start = rules.plan.cold_start
    assert cold_start is not None
    columns, offsets_U1 = shard.columns, shard.offsets_U1
    users_U = columns["user"][offsets_U1[:-1]]
    cold_U = cold_start.among(ids[0].take(pa.array(users_U)))
    numbers_E = None if rules.plan.ordered else _uniform(columns, cold_start.salted, *ids)
    splits_E = cold_start.cut(cold_U, offsets_U1, shard.splits_E, numbers_E)
    counts = {
        "cold_users": int(cold_U.sum()),
        "cold_cut": int((splits_E == CUT).sum()),
        "cold_valid": int((splits_E == COLD_VALID).sum()),
    }
    return _SplitEvents(*_without_cut(columns, splits_E), users_U[cold_U], counts)


def _without_cut(
    columns: dict[str, Array], splits_E: Array
) -> tuple[dict[str, Array], Array, Array]:
    """Columns, offsets and splits without the cut events."""
    stays_E = splits_E != CUT
    columns = {name: values[stays_E] for name, values in columns.items()}
    # users without remaining events have no row
    starts = np.flatnonzero(np.diff(columns["user"], prepend=-1))
    return columns, np.append(starts, stays_E.sum()).astype(np.int64), splits_E[stays_E]


def _without_cold(
    text: pa.Table, cold: Array, training: Array, num_items: int
) -> tuple[pa.Table, int]:
    """Drop text by cold users that is not about one of their kept training pairs; returns the rest
    and the number dropped.
    """
    users = np.asarray(text.column("user"))
    pairs = _pairs(users, np.asarray(text.column("item")), num_items)
    dropped = np.isin(users, cold) & ~np.isin(pairs, training)
    return text.filter(pa.array(~dropped)), int(dropped.sum())


def _history_table(
    shard: _SplitEvents, events: pa.Table, context_columns: tuple[ContextColumn, ...]
) -> pa.Table:
    """One row per user; ``events`` has the context columns before their encoding."""
    columns, offsets_U1 = shard.columns, shard.offsets_U1
    rows = pa.array(columns["row"])
    context = [
        column.encode(events.column(f"{CONTEXT}{column.name}").take(rows))
        for column in context_columns
    ]
    times = columns["time"]
    # histories mark an unknown time with 0, and count seconds
    seconds = np.where(times == NO_TIME, 0, times // 1_000_000)
    flat = {
        "items": columns["item"],
        "types": columns["type"],
        "times": seconds,
        "values": columns["value"],
        "splits": shard.splits_E,
    }
    arrays = [pa.array(columns["user"][offsets_U1[:-1]])]
    arrays += [
        pa.LargeListArray.from_arrays(pa.array(offsets_U1), pa.array(values))
        for values in flat.values()
    ]
    names = ["user", *flat]
    if context:
        codes = pa.array(np.stack(context, axis=1).reshape(-1))
        arrays.append(pa.LargeListArray.from_arrays(pa.array(offsets_U1 * len(context)), codes))
        names.append("context")
    return pa.table(arrays, names=names).cast(history_schema(len(context)))


def _ties(columns: dict[str, Array]) -> int:
    """Number of events with the same known time as the user's previous event."""
    users_E, times_E = columns["user"], columns["time"]
    same_E = (
        (users_E[1:] == users_E[:-1]) & (times_E[1:] == times_E[:-1]) & (times_E[1:] != NO_TIME)
    )
    return int(same_E.sum())


def _pairs(users: Array, items: Array, num_items: int) -> Array:
    return users.astype(np.int64) * num_items + items


def _without_held_out(
    text: pa.Table, pairs_E: Array, splits_E: Array, plan: SplitPlan, num_items: int
) -> tuple[pa.Table, dict[str, int]]:
    """Drop text about held-out events: its (user, item) pair is held out or, in a temporal split,
    it is not earlier than the validation cut-off.
    """
    pairs = _pairs(np.asarray(text.column("user")), np.asarray(text.column("item")), num_items)
    on_test = np.isin(pairs, pairs_E[splits_E == Split.TEST])
    held_out = np.isin(pairs, pairs_E[splits_E != Split.TRAIN])
    late = np.zeros(len(pairs), dtype=bool)
    if plan.kind == "temporal":
        times = np.asarray(text.column("time"))
        # a text without a time may be from the future
        late = ~held_out & ((times >= plan.valid_from) | (times == NO_TIME))
    counts = {
        "text_rows": len(pairs),
        "text_rows_held_out": int(held_out.sum()),
        "text_rows_held_out_test": int(on_test.sum()),
        "text_rows_late": int(late.sum()),
    }
    return text.filter(pa.array(~(held_out | late))), counts


def _item_counts(items_E: Array, splits_E: Array) -> tuple[Array, Array]:
    counted = splits_E < len(SPLITS)
    items_E, splits_E = items_E[counted], splits_E[counted]
    last = int(items_E.max(initial=-1))
    flat = np.bincount(
        items_E.astype(np.int64) * len(SPLITS) + splits_E, minlength=(last + 1) * len(SPLITS)
    )
    counts_N3 = flat.reshape(last + 1, len(SPLITS)).astype(np.int64)
    unique = np.flatnonzero(counts_N3.any(axis=1))
    return unique, counts_N3[unique]


def with_context(
    encoded: list[list[Any]],
    folder: Folder,
    event_rules: EventRules,
    rules: ShardRules,
    users: pa.Array,
    items: pa.Array,
    base: Vocabulary | None,
) -> ShardRules:
    """The rules with the encodings of context columns, fitted on the training events of all buckets
    or taken from ``base``. Writes their vocabulary.

    Parameters
    ----------
    encoded : list[list[Any]]
        References to the events and the text rows of every bucket; unused if ``base`` has the
        columns.
    folder : Folder
        Folder of the dataset.
    event_rules : EventRules
        Names the context columns, and those that are numbers.
    rules : ShardRules
        The split and the seed.
    users : pa.Array
        All external user ids in dense order.
    items : pa.Array
        All external item ids in dense order.
    base : Vocabulary | None
        Vocabulary of a parent model, whose encodings are kept; None: none.

    Returns
    -------
    ShardRules
        The rules; unchanged if there is no context column.

    Raises
    ------
    DataError
        A category has too many values.
    """
    columns = base.context if base is not None else ()
    if columns and tuple(column.name for column in columns) == tuple(event_rules.context):
        folder.write_text("vocab/context.json", _context_json(columns))
        return replace(rules, context=columns)
    if not event_rules.context:
        return rules
    counter = task(tally_context)
    user_ref, item_ref = put(users), put(items)
    total: list[ColumnStatistics] = []
    for ref in [
        counter.remote(bucket[0], event_rules, rules, user_ref, item_ref) for bucket in encoded
    ]:
        for index, found in enumerate(fetch(ref)):
            total[index].add(found) if index < len(total) else total.append(found)
    columns = tuple(
        found.column(name) for name, found in zip(event_rules.context, total, strict=True)
    )
    folder.write_text("vocab/context.json", _context_json(columns))
    return replace(rules, context=columns)


def _context_json(columns: tuple[ContextColumn, ...]) -> str:
    return json.dumps([column.to_json() for column in columns], ensure_ascii=False)


def start_shards(
    encoded: list[list[Any]], folder: Folder, rules: ShardRules, users: pa.Array, items: pa.Array
) -> list[list[Any]]:
    """Start :func:`write_shard` for every bucket; returns references to reports and terms.

    Parameters
    ----------
    encoded : list[list[Any]]
        References to the events and the text rows of every bucket.
    folder : Folder
        Folder of the dataset.
    rules : ShardRules
        Split, seed, and number of tasks that merge the terms.
    users : pa.Array
        All external user ids in dense order.
    items : pa.Array
        All external item ids in dense order.

    Returns
    -------
    list[list[Any]]
        For every bucket, the references to its report and to the terms of each task that merges
        them.
    """
    writer = task(write_shard, 1 + rules.num_term_tasks)
    user_ref, item_ref = put(users), put(items)
    return [
        writer.remote(bucket[0], bucket[1], folder, index, rules, user_ref, item_ref)
        for index, bucket in enumerate(encoded)
    ]
