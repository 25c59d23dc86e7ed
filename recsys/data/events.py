"""Events on their way from the blocks of a source to one bucket of users each: exchange, checks, dense numbers.

Why: everything that a history needs — order, duplicates, splits, held-out pairs — is local to a user, so after one
exchange by user every later step is an independent task over one bucket. Rows travel between tasks through the
object store (which spills to disk); only reports the size of the vocabularies reach the driver.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from recsys import schema
from recsys.config import DataConfig
from recsys.data.blocks import task
from recsys.data.hashing import pair_hashes, string_hashes
from recsys.data.histories import Array
from recsys.data.quarantine import DUPLICATE, QUARANTINE_SCHEMA, UNKNOWN_ITEM, bad_rows, mark
from recsys.data.validate import ids, numbers
from recsys.errors import ConfigError, choices

TERM: Final = "_term"  # the text of an auxiliary event
NO_TIME: Final = np.iinfo(np.int64).min
PARTS: Final = ("train", "valid", "test")  # position = Split
_NO_ORDER_SEED: Final = 0x6E6F6E65  # frozen, and none that a split draws by

_TEXT_COLUMNS: Final = [schema.USER_ID, schema.ITEM_ID, schema.TIMESTAMP, schema.EVENT_TYPE, schema.VALUE, TERM]
_COLUMNS: Final[dict[str, pa.DataType]] = {
    **schema.EVENTS.columns,
    schema.FILE: pa.string(),
    schema.ROW: pa.int64(),
    schema.ORDER: pa.int64(),
    schema.REASON: pa.string(),
    schema.RAW: pa.string(),
    TERM: pa.string(),
}
CONTEXT: Final = "_context_"  # prefix of a context column, which may have any name

EVENT_SCHEMA: Final = pa.schema(
    [
        ("user", pa.int32()),
        ("item", pa.int32()),
        ("type", pa.uint8()),
        ("time", pa.int64()),  # microseconds, NO_TIME where unknown
        ("value", pa.float32()),
        ("given", pa.uint8()),
    ]
)
TEXT_SCHEMA: Final = pa.schema(
    [("user", pa.int32()), ("item", pa.int32()), ("time", pa.int64()), ("term", pa.string())]
)


@dataclass(frozen=True)
class EventRules:
    """Which events are interactions and which are text about items."""

    interactions: tuple[str, ...]  # empty: all but the text types
    text_types: tuple[str, ...]
    text_column: str
    context: tuple[str, ...] = ()  # context columns
    context_numbers: tuple[str, ...] = ()  # those of them that are numbers

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """What is kept of an event on its way to its bucket."""
        kinds = {name: pa.float64() if name in self.context_numbers else pa.string() for name in self.context}
        return {**_COLUMNS, **{f"{CONTEXT}{name}": kind for name, kind in kinds.items()}}

    @property
    def exchange_schema(self) -> pa.Schema:
        return pa.schema(list(self.columns.items()))

    @property
    def event_schema(self) -> pa.Schema:
        """:data:`EVENT_SCHEMA` and the context columns, not yet coded."""
        kinds = list(self.columns.items())[len(_COLUMNS) :]
        return pa.schema([*EVENT_SCHEMA, *(pa.field(name, kind) for name, kind in kinds)])

    @staticmethod
    def of(config: DataConfig) -> EventRules:
        """The rules of a configuration.

        Raises:
            ConfigError: types of text without their column (or the reverse), a type that is said to be both, or context
                columns that contradict each other or the columns of the events.
        """
        text = config.text
        if bool(text.event_types) != bool(text.event_column):
            raise ConfigError(
                "data.text.event_types and data.text.event_column belong together: which events are text about items, "
                f"and in which column it stands; got {text.event_types} and {text.event_column!r}"
            )
        both = sorted(set(text.event_types) & set(config.interactions))
        if both:
            raise ConfigError(f"{', '.join(both)} cannot be in both data.interactions and data.text.event_types")
        _check_context(config.context, config.context_numbers)
        return EventRules(
            tuple(config.interactions),
            tuple(text.event_types),
            text.event_column,
            tuple(config.context),
            tuple(config.context_numbers),
        )

    def is_text(self, types: pa.ChunkedArray) -> pa.ChunkedArray:
        return pc.is_in(types, value_set=pa.array(self.text_types, pa.string()))

    def is_interaction(self, types: pa.ChunkedArray) -> pa.ChunkedArray:
        if self.interactions:
            return pc.is_in(types, value_set=pa.array(self.interactions, pa.string()))
        return pc.invert(self.is_text(types))


def _check_context(names: list[str], numbers: list[str]) -> None:
    known = sorted(set(names) & set(schema.EVENTS.columns))
    if known:
        raise ConfigError(f"data.context: {known[0]!r} is a column that every event has; name further columns only")
    if len(set(names)) < len(names):
        raise ConfigError(f"data.context names a column twice: {', '.join(names)}")
    stray = sorted(set(numbers) - set(names))
    if stray:
        raise ConfigError(f"data.context_numbers: {stray[0]!r} is not in data.context, which has: {choices(names)}")


@dataclass
class BucketSummary:
    """What the driver learns of a bucket before ids are dense."""

    read: int = 0
    users: pa.Array = field(default_factory=lambda: pa.array([], pa.string()))  # sorted
    items: pa.Array = field(default_factory=lambda: pa.array([], pa.string()))  # of interactions
    types: dict[str, int] = field(default_factory=dict)
    interactions: int = 0
    text_rows: int = 0
    untimed: int = 0  # interactions without a timestamp
    given: dict[str, int] = field(default_factory=dict)  # part → interactions; "" where the source names none
    first: int = 0  # of the timestamps, microseconds
    last: int = 0


# --------------------------------------------------------------------------------------------------------- exchange


def split_by_user(block: pa.Table, num_buckets: int, rules: EventRules) -> list[pa.Table]:
    """The rows of a block, bucket by bucket: the hash of the user id decides, the same one everywhere and always."""
    table = project(block, rules)
    encoded = table.column(schema.USER_ID).combine_chunks().dictionary_encode()
    codes = np.asarray(encoded.indices.fill_null(len(encoded.dictionary)))
    hashes = np.append(string_hashes(encoded.dictionary), np.uint64(0))
    buckets = (hashes % np.uint64(num_buckets)).astype(np.int64)[codes]
    ordered = table.take(pa.array(np.argsort(buckets, kind="stable")))
    ends = np.cumsum(np.bincount(buckets, minlength=num_buckets))
    starts = np.concatenate([[0], ends[:-1]])
    return [ordered.slice(int(start), int(end - start)) for start, end in zip(starts, ends, strict=True)]


def project(block: pa.Table, rules: EventRules) -> pa.Table:
    """Only the columns that the pipeline reads, typed as in :mod:`recsys.schema`; context categories trimmed, cells of
    context numbers that are none are null.

    Raises:
        ConfigError: ``data.text.event_column`` or one of ``data.context`` is not a column of the events.
    """
    if block.num_rows == 0:
        return rules.exchange_schema.empty_table()
    for key, wanted in (("text.event_column", rules.text_column), *(("context", name) for name in rules.context)):
        if wanted and wanted not in block.column_names:
            known = [name for name in block.column_names if not name.startswith("_")]
            raise ConfigError(f"data.{key}: {wanted!r} is not a column of the events; columns: {', '.join(known)}")
    arrays = []
    for name, kind in rules.columns.items():
        if name.startswith(CONTEXT):
            cells = block.column(name.removeprefix(CONTEXT)).combine_chunks()
            arrays.append(numbers(cells)[0] if pa.types.is_floating(kind) else ids(cells))
            continue
        given = rules.text_column if name == TERM else name
        is_there = given in block.column_names
        arrays.append(block.column(given).cast(kind) if is_there else pa.nulls(block.num_rows, kind))
    return pa.table(arrays, schema=rules.exchange_schema)


def gather_bucket(
    rules: EventRules, known_items: pa.Array | None, *parts: pa.Table
) -> tuple[pa.Table, pa.Table, BucketSummary]:
    """The good rows of a bucket, its bad ones as the quarantine keeps them, and a summary.

    An event is bad when its source says so, or when there is a table of items and its item is not in it.
    """
    table = pa.concat_tables(parts).combine_chunks()
    if known_items is not None:
        known = pc.is_in(table.column(schema.ITEM_ID), value_set=known_items)
        table = mark(table, ~np.asarray(known), UNKNOWN_ITEM)
    good = table.filter(pc.is_null(table.column(schema.REASON))).drop_columns([schema.RAW])
    summary = BucketSummary(read=table.num_rows)
    if good.num_rows:
        _summarise(good, rules, summary)
    return good, bad_rows(table, _TEXT_COLUMNS), summary


def _summarise(good: pa.Table, rules: EventRules, summary: BucketSummary) -> None:
    summary.users = _sorted_unique(good.column(schema.USER_ID))
    types = good.column(schema.EVENT_TYPE)
    summary.types = _counts(types)
    summary.text_rows = pc.sum(rules.is_text(types)).as_py() or 0
    interactions = good.filter(rules.is_interaction(types))
    summary.interactions = interactions.num_rows
    summary.items = _sorted_unique(interactions.column(schema.ITEM_ID))
    times = interactions.column(schema.TIMESTAMP)
    summary.untimed = times.null_count
    summary.given = _counts(interactions.column(schema.SPLIT).fill_null(""))
    span = pc.min_max(times.cast(pa.int64()))
    summary.first, summary.last = span["min"].as_py() or 0, span["max"].as_py() or 0


def _sorted_unique(column: pa.ChunkedArray) -> pa.Array:
    values = column.unique()
    return values.take(pc.sort_indices(values))


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    return {entry["values"]: entry["counts"] for entry in pc.value_counts(column).to_pylist()}


# --------------------------------------------------------------------------------------------------------- encoding


@dataclass(frozen=True)
class Coding:
    """What turns a bucket into numbers: the order of the data and the types that are kept."""

    rules: EventRules
    event_types: tuple[str, ...]  # position = type id
    order: str  # time, file or none


def encode_bucket(
    good: pa.Table, coding: Coding, users: pa.Array, dense_users: Array, item_ids: pa.Array
) -> tuple[pa.Table, pa.Table, pa.Table, int]:
    """Interactions and text rows with dense ids, user by user in the order of the data, and the duplicates among them.

    Args:
        good: rows of :func:`gather_bucket`.
        coding: order and types.
        users: the bucket's users, with their dense ids in ``dense_users``.
        item_ids: all items, dense.

    Returns:
        Tables of ``rules.event_schema`` and :data:`TEXT_SCHEMA`, the duplicates for the quarantine, and how many rows
        of text were left out because they are empty or about an item outside the vocabulary.
    """
    if good.num_rows == 0:
        return coding.rules.event_schema.empty_table(), TEXT_SCHEMA.empty_table(), QUARANTINE_SCHEMA.empty_table(), 0
    types = good.column(schema.EVENT_TYPE)
    is_text = np.asarray(coding.rules.is_text(types))
    kept = pc.or_(coding.rules.is_interaction(types), pa.array(is_text))
    good, is_text = good.filter(kept), is_text[np.asarray(kept)]
    keys = _keys(good, users, dense_users, item_ids)
    if coding.order == "none":
        keys["pair"] = _pair_hashes(good)
    rank = _rank(keys, coding.order)
    is_duplicate = _duplicates(keys, rank, coding.order == "file", is_text)
    marked = mark(good.append_column(schema.RAW, pa.nulls(good.num_rows, pa.string())), is_duplicate, DUPLICATE)
    duplicates = bad_rows(marked, _TEXT_COLUMNS)
    position = np.argsort(rank)
    position = position[~is_duplicate[position]]
    of_text = is_text[position]
    text = _encoded_text(good, keys, position[of_text])
    events = _encoded_events(good, keys, position[~of_text], coding)
    return events, text, duplicates, int(of_text.sum()) - text.num_rows


def _keys(good: pa.Table, users: pa.Array, dense_users: Array, item_ids: pa.Array) -> dict[str, Array]:
    """Every column that identifies or orders a row, as integers."""
    times = good.column(schema.TIMESTAMP).cast(pa.int64()).fill_null(NO_TIME)
    return {
        "user": dense_users[_codes(good.column(schema.USER_ID), users)],
        "item": _codes(good.column(schema.ITEM_ID), item_ids),
        "type": _own_codes(good.column(schema.EVENT_TYPE)),
        "term": _own_codes(pc.utf8_trim_whitespace(good.column(TERM))),
        "time": np.asarray(times),
        "order": np.asarray(good.column(schema.ORDER).fill_null(0)),
        "file": _own_codes(good.column(schema.FILE)),
        "row": np.asarray(good.column(schema.ROW).fill_null(0)),
    }


def _codes(column: pa.ChunkedArray, values: pa.Array) -> Array:
    """Position of every string in ``values``, -1 where it is not there."""
    encoded = column.combine_chunks().dictionary_encode()
    positions = pc.index_in(encoded.dictionary, value_set=values).fill_null(-1)
    codes: Array = np.asarray(positions)[np.asarray(encoded.indices)].astype(np.int64)
    return codes


def _own_codes(column: pa.ChunkedArray) -> Array:
    """Position of every string among the sorted ones of the column itself; 0 for null."""
    values = _sorted_unique(column.drop_null())
    return np.asarray(pc.index_in(column, value_set=values).fill_null(-1)).astype(np.int64) + 1


def _pair_hashes(good: pa.Table) -> Array:
    """A hash of every row's external (user, item)."""
    hashes = []
    for name in (schema.USER_ID, schema.ITEM_ID):
        encoded = good.column(name).combine_chunks().dictionary_encode()
        hashes.append(string_hashes(encoded.dictionary)[np.asarray(encoded.indices)])
    return pair_hashes(hashes[0], hashes[1], _NO_ORDER_SEED)


def _rank(keys: dict[str, Array], order: str) -> Array:
    """Place of every row in the order of the shard: by user, then as the data says, ties as they stand in the files.

    Without an order the hash of (user, item) decides: a history that is cut loses no items by their name.
    """
    within = {
        "time": ("time", "order", "file", "row"),
        "file": ("order", "file", "row"),
        "none": ("pair", "item", "type", "time", "order", "file", "row"),
    }[order]
    position = np.lexsort([keys[name] for name in ("user", *within)[::-1]])
    rank = np.empty(len(position), dtype=np.int64)
    rank[position] = np.arange(len(position))
    return rank


def _duplicates(keys: dict[str, Array], rank: Array, by_file: bool, is_text: Array) -> Array:
    """Rows that repeat user, item, type, term and time of an earlier one.

    In data ordered by file without times a repeated item is a repeated event, not a repeated row.
    """
    names = ("user", "item", "type", "term", "time")
    position = np.lexsort([rank, *(keys[name] for name in names[::-1])])
    same = np.ones(max(len(position) - 1, 0), dtype=bool)
    for name in names:
        values = keys[name][position]
        same &= values[1:] == values[:-1]
    is_duplicate = np.zeros(len(position), dtype=bool)
    is_duplicate[position[1:]] = same
    return is_duplicate & (is_text | (keys["time"] != NO_TIME)) if by_file else is_duplicate


def _encoded_events(good: pa.Table, keys: dict[str, Array], position: Array, coding: Coding) -> pa.Table:
    types = _codes(good.column(schema.EVENT_TYPE), pa.array(coding.event_types, pa.string()))
    parts = np.maximum(_codes(good.column(schema.SPLIT).fill_null(""), pa.array(PARTS)), 0)
    values = np.asarray(good.column(schema.VALUE).fill_null(schema.DEFAULT_VALUE))
    columns = (keys["user"], keys["item"], types, keys["time"], values, parts)
    arrays = [
        pa.array(column[position].astype(kind.type.to_pandas_dtype()))
        for column, kind in zip(columns, EVENT_SCHEMA, strict=True)
    ]
    context = [good.column(f"{CONTEXT}{name}").take(pa.array(position)) for name in coding.rules.context]
    return pa.table([*arrays, *context], schema=coding.rules.event_schema)


def _encoded_text(good: pa.Table, keys: dict[str, Array], position: Array) -> pa.Table:
    position = position[(keys["item"][position] >= 0) & (keys["term"][position] > 0)]
    terms = pc.utf8_trim_whitespace(good.column(TERM).take(pa.array(position)))
    arrays = [
        pa.array(keys["user"][position].astype(np.int32)),
        pa.array(keys["item"][position].astype(np.int32)),
        pa.array(keys["time"][position]),
        terms,
    ]
    table = pa.table(arrays, schema=TEXT_SCHEMA)
    return table.filter(pc.not_equal(table.column("term"), ""))


# ------------------------------------------------------------------------------------------------------------ tasks


def exchange(blocks: Any, num_buckets: int, rules: EventRules, known_items: pa.Array | None) -> list[list[Any]]:
    """Send the rows of all blocks to their buckets.

    Returns:
        For each bucket, references to (good rows, bad rows, :class:`BucketSummary`).
    """
    splitter = task(_split_task, num_buckets)
    gatherer = task(gather_bucket, 3)
    known = ray.put(known_items)
    pieces: list[list[Any]] = [[] for _ in range(num_buckets)]
    for block in blocks:
        parts = splitter.remote(block, num_buckets, rules)
        for bucket, part in zip(pieces, [parts] if num_buckets == 1 else parts, strict=True):
            bucket.append(part)
    return [gatherer.remote(rules, known, *(bucket or [rules.exchange_schema.empty_table()])) for bucket in pieces]


def _split_task(block: pa.Table, num_buckets: int, rules: EventRules) -> Any:
    parts = split_by_user(block, num_buckets, rules)
    return parts[0] if num_buckets == 1 else parts
