"""Events from the blocks of a source to buckets of users: exchange, checks, dense ids.

Why: everything that a history needs (order, duplicates, splits, held-out pairs) is local to a user.
So after one exchange by user, every later step is an independent task over one bucket. Rows pass
between tasks through the object store, which spills to disk. Only reports of the size of the
vocabularies reach the driver.
"""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from recsys import schema
from recsys.config import DataConfig
from recsys.data.hashing import pair_hashes, string_hashes
from recsys.data.histories import Array
from recsys.errors import ConfigError, choices
from recsys.pace import Pace
from recsys.preparation.blocks import task
from recsys.preparation.dataset_writer import Folder
from recsys.preparation.event_store import Keeper, Kept
from recsys.preparation.filters import EventFilters
from recsys.preparation.keys import (
    CODED,
    coded,
    codes_in,
    compact,
    lex_order,
    own_codes,
    parts_of,
    text_counts,
    used_texts,
)
from recsys.preparation.quarantine import DUPLICATE, QUARANTINE_SCHEMA, UNKNOWN_ITEM, bad_rows, mark
from recsys.sources.base import FILE_STRIDE, Piece
from recsys.values.absent import DEFAULT_RULES, CellRules
from recsys.values.cells import ids, numbers

TERM: Final = "_term"  # the text of an auxiliary event
NO_TIME: Final = np.iinfo(np.int64).min
PARTS: Final = ("train", "valid", "test")  # position = Split
_NO_ORDER_SEED: Final = 0x6E6F6E65  # never change it; no split uses it

_TEXT_COLUMNS: Final = [
    schema.USER_ID,
    schema.ITEM_ID,
    schema.TIMESTAMP,
    schema.EVENT_TYPE,
    schema.VALUE,
    TERM,
]
_COLUMNS: Final[dict[str, pa.DataType]] = {
    **schema.EVENTS.columns,
    schema.FILE: pa.string(),
    schema.ROW: pa.int64(),
    schema.ORDER: pa.int64(),
    schema.REASON: pa.string(),
    schema.RAW: pa.string(),
    TERM: pa.string(),
}
_CODED: Final = frozenset({name for name, kind in _COLUMNS.items() if pa.types.is_string(kind)})
_MAX_UNKNOWN: Final = 100_000  # unknown item ids of a bucket that are reported
_RADIX_LIMIT: Final = 1 << 16  # numpy sorts numbers of 16 bits in one pass
# order of the data → keys that sort a user's events; ties keep the order of the files
_WITHIN: Final = {
    "time": ("time", "order", "file", "row"),
    "file": ("order", "file", "row"),
    # by hash, so that a cut of the history does not depend on the names of items
    "none": ("pair", "item", "type", "time", "order", "file", "row"),
}
CONTEXT: Final = "_context_"  # prefix of context columns, which can have any name

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

    interactions: tuple[str, ...]  # empty: all except the text types
    text_types: tuple[str, ...]
    text_column: str
    context: tuple[str, ...] = ()  # context columns
    context_numbers: tuple[str, ...] = ()  # context columns that are numbers
    cells: CellRules = DEFAULT_RULES
    filters: EventFilters = EventFilters()
    keep_duplicates: bool = False

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """The columns of an event in the exchange."""
        kinds = {
            name: pa.float64() if name in self.context_numbers else pa.string()
            for name in self.context
        }
        return {**_COLUMNS, **{f"{CONTEXT}{name}": kind for name, kind in kinds.items()}}

    @property
    def exchange_schema(self) -> pa.Schema:
        """The schema of rows in the exchange; string columns of every event are coded (see
        :mod:`recsys.preparation.keys`).
        """
        return pa.schema(
            [(name, CODED if name in _CODED else kind) for name, kind in self.columns.items()]
        )

    @property
    def event_schema(self) -> pa.Schema:
        """:data:`EVENT_SCHEMA` and the context columns before their encoding."""
        kinds = list(self.columns.items())[len(_COLUMNS) :]
        return pa.schema([*EVENT_SCHEMA, *(pa.field(name, kind) for name, kind in kinds)])

    @staticmethod
    def of(config: DataConfig) -> EventRules:
        """The rules of a configuration.

        Raises
        ------
        ConfigError
            Text types without a text column (or the reverse), a type that is both interaction and
            text, invalid context columns, or an empty time window.
        """
        text = config.text
        if bool(text.event_types) != bool(text.event_column):
            raise ConfigError(
                "data.text.event_types (which events are text about items) and"
                " data.text.event_column (the column with the text) belong together: set both or"
                f" none; got {text.event_types} and {text.event_column!r}"
            )
        both = sorted(set(text.event_types) & set(config.interactions))
        if both:
            raise ConfigError(
                f"{', '.join(both)} cannot be in both data.interactions and data.text.event_types"
            )
        _check_context(config.context, config.context_numbers)
        return EventRules(
            tuple(config.interactions),
            tuple(text.event_types),
            text.event_column,
            tuple(config.context),
            tuple(config.context_numbers),
            CellRules.of(config.source),
            EventFilters.of(config),
            config.duplicates == "keep",
        )

    def is_text(self, types: pa.ChunkedArray) -> Array:
        """Which rows are text, from the coded column of event types: [E] bool."""
        return codes_in(types, pa.array(self.text_types, pa.string())) >= 0

    def is_interaction(self, types: pa.ChunkedArray) -> Array:
        """Which rows are interactions, from the coded column of event types: [E] bool."""
        if self.interactions:
            return codes_in(types, pa.array(self.interactions, pa.string())) >= 0
        return ~self.is_text(types)

    def filtered(self, good: pa.Table) -> tuple[pa.Table, Counter[str]]:
        """The good rows that pass the filters, and the number of the others by reason."""
        if not good.num_rows or not self.filters.is_on:
            return good, Counter()
        out, dropped = self.filters.left_out(
            good, self.is_interaction(good.column(schema.EVENT_TYPE))
        )
        return where(good, ~out), dropped


def _check_context(names: list[str], numbers: list[str]) -> None:
    known = sorted(set(names) & set(schema.EVENTS.columns))
    if known:
        raise ConfigError(
            f"data.context: {known[0]!r} is a standard column of events; name other columns only"
        )
    if len(set(names)) < len(names):
        raise ConfigError(f"data.context names a column twice: {', '.join(names)}")
    stray = sorted(set(numbers) - set(names))
    if stray:
        raise ConfigError(
            f"data.context_numbers: {stray[0]!r} is not in data.context, which has:"
            f" {choices(names)}"
        )


@dataclass
class BucketSummary:
    """What the driver knows about a bucket before ids are dense."""

    read: int = 0
    users: pa.Array = field(default_factory=lambda: pa.array([], pa.string()))  # sorted
    items: pa.Array = field(default_factory=lambda: pa.array([], pa.string()))  # of interactions
    types: dict[str, int] = field(default_factory=dict)
    interactions: int = 0
    text_rows: int = 0
    untimed: int = 0  # interactions without a timestamp
    # split → interactions; "" where the source names no split
    given: dict[str, int] = field(default_factory=dict)
    first: int = 0  # earliest timestamp, microseconds
    last: int = 0
    # a sample of them
    unknown_items: pa.Array = field(default_factory=lambda: pa.array([], pa.string()))
    dropped: Counter[str] = field(default_factory=Counter)  # reason → rows that filters leave out


# ----------------------------------------------------------------------------------------- exchange


def split_by_user(
    block: pa.Table, num_buckets: int, rules: EventRules, goes_on: bool = False
) -> list[pa.Table]:
    """The rows of a block, one table per bucket. The bucket is a hash of the user id that is the
    same on all machines and in all releases.
    """
    table = project(block, rules, goes_on)
    texts, codes_E = parts_of(table.column(schema.USER_ID))
    buckets = np.append(string_hashes(texts), np.uint64(0)) % np.uint64(num_buckets)
    buckets_E = buckets.astype(np.uint16 if num_buckets <= _RADIX_LIMIT else np.int64)[codes_E]
    ordered = table.take(pa.array(np.argsort(buckets_E, kind="stable")))
    ends = np.cumsum(np.bincount(buckets_E, minlength=num_buckets))
    return [
        _compacted(ordered.slice(int(end - size), int(size)))
        for end, size in zip(ends, np.diff(ends, prepend=0), strict=True)
    ]


def _compacted(table: pa.Table) -> pa.Table:
    arrays = [
        compact(table.column(name)) if name in _CODED else table.column(name)
        for name in table.column_names
    ]
    return pa.table(arrays, names=table.column_names)


def project(block: pa.Table, rules: EventRules, goes_on: bool = False) -> pa.Table:
    """Select and cast the columns that the pipeline reads, see :mod:`recsys.schema`; strings are
    coded. Context categories are trimmed, and invalid context numbers are null. If ``goes_on``
    (newer files of an earlier dataset), a missing context column is null.

    Raises
    ------
    ConfigError
        ``data.text.event_column`` or one of ``data.context`` is not a column of the events.
    """
    if block.num_rows == 0:
        return rules.exchange_schema.empty_table()
    named = [
        ("text.event_column", rules.text_column),
        *(("context", name) for name in rules.context),
    ]
    for key, wanted in () if goes_on else named:
        if wanted and wanted not in block.column_names:
            known = [name for name in block.column_names if not name.startswith("_")]
            raise ConfigError(
                f"data.{key}: {wanted!r} is not a column of the events; columns: {', '.join(known)}"
            )
    arrays = {}
    for name, kind in rules.columns.items():
        if name.startswith(CONTEXT):
            arrays[name] = _context_cells(block, name.removeprefix(CONTEXT), kind, rules.cells)
            continue
        given = rules.text_column if name == TERM else name
        column = (
            block.column(given)
            if given in block.column_names
            else pa.chunked_array([pa.nulls(block.num_rows)])
        )
        arrays[name] = coded(column) if name in _CODED else column.cast(kind)
    return pa.table(arrays)


def _context_cells(block: pa.Table, name: str, kind: pa.DataType, rules: CellRules) -> pa.Array:
    if name not in block.column_names:
        return pa.nulls(block.num_rows, kind)
    cells = block.column(name).combine_chunks()
    return numbers(cells, rules)[0] if pa.types.is_floating(kind) else ids(cells, rules)


def gather_bucket(
    rules: EventRules,
    known_items: pa.Array | None,
    *parts: pa.Table,
    keeper: Keeper | None = None,
    earlier: Kept | None = None,
    whole: bool = True,
) -> tuple[pa.Table, pa.Table, BucketSummary]:
    """The good rows of a bucket, its bad rows in the format of the quarantine, and a summary.

    An event is bad if its source says so, or if there is an items table without its item. Good
    events that the filters leave out are counted.

    Parameters
    ----------
    rules : EventRules
        Which events are interactions, which are text, and which are used.
    known_items : pa.Array | None
        Ids of the items table; None: all items are known.
    parts
        The new rows.
    keeper : Keeper | None
        Keeps the good rows for a later append; None: they are not kept.
    earlier : Kept | None
        Kept rows of the dataset to append to, which come before ``parts``. Its rows with an unknown
        item are checked again.
    whole : bool
        Whether the good rows of ``earlier`` are gathered as well.
    """
    read = sum(part.num_rows for part in parts)
    waiting = earlier.unknown() if earlier is not None else None
    table = joined([waiting, *parts])
    summary = BucketSummary(read=read)
    unknown = np.zeros(table.num_rows, dtype=bool)
    if known_items is not None:
        unknown = codes_in(table.column(schema.ITEM_ID), known_items) < 0
        if unknown.any():
            summary.unknown_items = used_texts(
                table.column(schema.ITEM_ID).filter(pa.array(unknown))
            )[:_MAX_UNKNOWN]
            table = mark(table, unknown, UNKNOWN_ITEM)
    is_good = table.column(schema.REASON).is_null()
    good = where(table, np.asarray(is_good)).drop_columns([schema.RAW])
    if keeper is not None:
        only_unknown = unknown & np.asarray(
            pc.fill_null(pc.equal(table.column(schema.REASON), UNKNOWN_ITEM), False)
        )
        keeper.keep(good, table.filter(pa.array(only_unknown)))
    if whole and earlier is not None and (kept := earlier.rows()) is not None:
        good = joined([kept, good])
    good, summary.dropped = rules.filtered(good)
    if good.num_rows:
        summarise(good, rules, summary)
    bad = table.filter(pc.invert(is_good)) if not pc.all(is_good).as_py() else table.slice(0, 0)
    return good, bad_rows(_written_out(bad), _TEXT_COLUMNS), summary


def joined(tables: Sequence[pa.Table | None]) -> pa.Table:
    """The rows of all tables that are not None, with common dictionaries."""
    found = [table for table in tables if table is not None]
    return pa.concat_tables(found, promote_options="default").unify_dictionaries().combine_chunks()


def where(table: pa.Table, kept_E: Array) -> pa.Table:
    """The kept rows; no copy if all rows are kept."""
    return table if kept_E.all() else table.filter(pa.array(kept_E))


def _written_out(table: pa.Table) -> pa.Table:
    """The table with strings instead of codes."""
    arrays = [
        column.cast(pa.string()) if name in _CODED else column
        for name, column in _columns_of(table)
    ]
    return pa.table(arrays, names=table.column_names)


def _columns_of(table: pa.Table) -> zip[tuple[str, pa.ChunkedArray]]:
    return zip(table.column_names, table.columns, strict=True)


def summarise(good: pa.Table, rules: EventRules, summary: BucketSummary) -> None:
    """Fill the summary with the statistics of the good rows of a bucket."""
    summary.users = used_texts(good.column(schema.USER_ID))
    types = good.column(schema.EVENT_TYPE)
    summary.types = text_counts(types)
    summary.text_rows = int(rules.is_text(types).sum())
    interactions = where(good, rules.is_interaction(types))
    summary.interactions = interactions.num_rows
    summary.items = used_texts(interactions.column(schema.ITEM_ID))
    times = interactions.column(schema.TIMESTAMP)
    summary.untimed = times.null_count
    summary.given = text_counts(interactions.column(schema.SPLIT))
    span = pc.min_max(times.cast(pa.int64()))
    summary.first, summary.last = span["min"].as_py() or 0, span["max"].as_py() or 0


# ----------------------------------------------------------------------------------------- encoding


@dataclass(frozen=True)
class Coding:
    """How a bucket is encoded: the order of the data and the event types in use."""

    rules: EventRules
    event_types: tuple[str, ...]  # position = type id
    order: str  # time, file or none
    target_types: tuple[int, ...] = ()  # ids of the types that are predicted; empty: all


def encode_bucket(
    good: pa.Table,
    coding: Coding,
    users: pa.Array,
    dense_users: Array,
    item_ids: pa.Array,
    num_counted: int = 0,
) -> tuple[pa.Table, pa.Table, pa.Table, int]:
    """Encode interactions and text rows with dense ids, user by user in the order of the data,
    without duplicates.

    Parameters
    ----------
    good : pa.Table
        Good rows of :func:`gather_bucket`.
    coding : Coding
        Order and event types.
    users : pa.Array
        External ids of the bucket's users; ``dense_users`` has their dense ids.
    item_ids : pa.Array
        All external item ids in dense order.
    num_counted : int
        Number of leading rows whose duplicates were reported before.

    Returns
    -------
    tuple[pa.Table, pa.Table, pa.Table, int]
        Tables of ``rules.event_schema`` and :data:`TEXT_SCHEMA`, the duplicates for the quarantine,
        and the number of text rows left out because they are empty or about an item outside the
        vocabulary.
    """
    if good.num_rows == 0:
        return (
            coding.rules.event_schema.empty_table(),
            TEXT_SCHEMA.empty_table(),
            QUARANTINE_SCHEMA.empty_table(),
            0,
        )
    types = good.column(schema.EVENT_TYPE)
    is_text = coding.rules.is_text(types)
    kept = coding.rules.is_interaction(types) | is_text
    num_counted = int(kept[:num_counted].sum())
    good, is_text = where(good, kept), is_text[kept]
    keys = _keys(good, users, dense_users, item_ids)
    if coding.order == "none":
        keys["pair"] = _pair_hashes(good)
    position = lex_order([keys[name] for name in ("user", *_WITHIN[coding.order])])
    if coding.rules.keep_duplicates:
        is_duplicate = np.zeros(len(position), dtype=bool)
    else:
        is_duplicate = _duplicates(keys, position, coding.order == "file", is_text)
    is_new = is_duplicate & (np.arange(len(is_duplicate)) >= num_counted)
    repeated = _written_out(good.filter(pa.array(is_new)))
    repeated = repeated.append_column(schema.RAW, pa.nulls(repeated.num_rows, pa.string()))
    duplicates = bad_rows(
        mark(repeated, np.ones(repeated.num_rows, dtype=bool), DUPLICATE), _TEXT_COLUMNS
    )
    position = position[~is_duplicate[position]]
    of_text = is_text[position]
    text = _encoded_text(good, keys, position[of_text])
    events = _encoded_events(good, keys, position[~of_text], coding)
    return events, text, duplicates, int(of_text.sum()) - text.num_rows


def _keys(
    good: pa.Table, users: pa.Array, dense_users: Array, item_ids: pa.Array
) -> dict[str, Array]:
    """The columns that identify or order a row, as integers."""
    times = good.column(schema.TIMESTAMP).cast(pa.int64()).fill_null(NO_TIME)
    return {
        "user": dense_users[codes_in(good.column(schema.USER_ID), users)],
        "item": codes_in(good.column(schema.ITEM_ID), item_ids),
        "type": own_codes(good.column(schema.EVENT_TYPE)),
        "term": own_codes(good.column(TERM), trimmed=True),
        "time": np.asarray(times),
        "order": np.asarray(good.column(schema.ORDER).fill_null(0)),
        "file": own_codes(good.column(schema.FILE)),
        "row": np.asarray(good.column(schema.ROW).fill_null(0)),
    }


def _pair_hashes(good: pa.Table) -> Array:
    """A hash of every row's external (user, item)."""
    hashes = []
    for name in (schema.USER_ID, schema.ITEM_ID):
        texts, codes_E = parts_of(good.column(name))
        hashes.append(string_hashes(texts)[codes_E])
    return pair_hashes(hashes[0], hashes[1], _NO_ORDER_SEED)


def _duplicates(keys: dict[str, Array], position: Array, by_file: bool, is_text: Array) -> Array:
    """Which rows repeat user, item, type, term and time of an earlier row in the order
    ``position``.

    In data ordered by file without times, a repeated item is a repeated event and not a duplicate
    row.
    """
    names = ("user", "item", "type", "term", "time")
    rank = np.empty(len(position), dtype=np.int64)
    rank[position] = np.arange(len(position))
    found = lex_order([*(keys[name] for name in names), rank])
    same = np.ones(max(len(found) - 1, 0), dtype=bool)
    for name in names:
        same &= np.diff(keys[name][found]) == 0
    is_duplicate = np.zeros(len(found), dtype=bool)
    is_duplicate[found[1:]] = same
    return is_duplicate & (is_text | (keys["time"] != NO_TIME)) if by_file else is_duplicate


def _encoded_events(
    good: pa.Table, keys: dict[str, Array], position: Array, coding: Coding
) -> pa.Table:
    types = codes_in(good.column(schema.EVENT_TYPE), pa.array(coding.event_types, pa.string()))
    parts = np.maximum(codes_in(good.column(schema.SPLIT), pa.array(PARTS)), 0)
    values = np.asarray(good.column(schema.VALUE).fill_null(schema.DEFAULT_VALUE))
    columns = (keys["user"], keys["item"], types, keys["time"], values, parts)
    arrays = [
        pa.array(column.astype(kind.type.to_pandas_dtype(), copy=False)[position])
        for column, kind in zip(columns, EVENT_SCHEMA, strict=True)
    ]
    context = [
        good.column(f"{CONTEXT}{name}").take(pa.array(position)) for name in coding.rules.context
    ]
    return pa.table([*arrays, *context], schema=coding.rules.event_schema)


def _encoded_text(good: pa.Table, keys: dict[str, Array], position: Array) -> pa.Table:
    position = position[(keys["item"][position] >= 0) & (keys["term"][position] > 0)]
    terms = pc.utf8_trim_whitespace(good.column(TERM).take(pa.array(position)).cast(pa.string()))
    arrays = [
        pa.array(keys["user"][position].astype(np.int32)),
        pa.array(keys["item"][position].astype(np.int32)),
        pa.array(keys["time"][position]),
        terms,
    ]
    table = pa.table(arrays, schema=TEXT_SCHEMA)
    return table.filter(pc.not_equal(table.column("term"), ""))


# -------------------------------------------------------------------------------------------- tasks


@dataclass(frozen=True)
class Reading:
    """How new rows join the rows that were read before, and where they are kept.

    Attributes
    ----------
    number : int
        Number of this reading, from 0.
    first_file : int
        Number of files that were read before.
    folder : Folder | None
        Folder that keeps the rows; None: they are not kept.
    earlier : Folder | None
        Folder of the dataset to append to.
    whole : bool
        Whether the good rows of ``earlier`` are gathered as well.
    goes_on : bool
        Whether an earlier dataset determines the columns of events.
    """

    number: int = 0
    first_file: int = 0
    folder: Folder | None = None
    earlier: Folder | None = None
    whole: bool = True
    goes_on: bool = False

    def of(self, bucket: int) -> dict[str, Any]:
        """The keyword arguments of :func:`gather_bucket` for a bucket."""
        return {
            "keeper": Keeper(self.folder, bucket, self.number) if self.folder is not None else None,
            "earlier": self.kept(bucket),
            "whole": self.whole,
        }

    def kept(self, bucket: int) -> Kept | None:
        """The rows of a bucket in the dataset to append to; None without one."""
        return (
            None if self.earlier is None else Kept(self.earlier, bucket, tuple(range(self.number)))
        )


FIRST_READING: Final = Reading()


def exchange(
    pieces: Sequence[Piece],
    num_buckets: int,
    rules: EventRules,
    known_items: Any,
    reading: Reading = FIRST_READING,
) -> list[list[Any]]:
    """Read the pieces and send their rows to their buckets.

    Returns
    -------
    list[list[Any]]
        For each bucket, references to its good rows, bad rows and :class:`BucketSummary`.
    """
    splitter: Any = task(split_piece, "streaming")
    gatherer = task(gather_bucket, 3)
    known = ray.put(known_items)
    buckets: list[list[Any]] = [[] for _ in range(num_buckets)]
    arguments = (num_buckets, rules, reading.first_file, reading.goes_on)
    with Pace("blocks of events read", 0) as pace:
        for parts in [splitter.remote(pickle.dumps(piece), *arguments) for piece in pieces]:
            # a failed task yields its error, which the gatherer raises
            for number, part in enumerate(parts):
                buckets[number % num_buckets].append(part)
                pace.add(int((number + 1) % num_buckets == 0))
    empty = rules.exchange_schema.empty_table()
    return [
        gatherer.remote(rules, known, *(parts or [empty]), **reading.of(number))
        for number, parts in enumerate(buckets)
    ]


def split_piece(
    pickled: bytes, num_buckets: int, rules: EventRules, first_file: int = 0, goes_on: bool = False
) -> Iterator[pa.Table]:
    """Yield the rows of every block of a piece, bucket by bucket; holds one block at a time.

    ``first_file`` is the number of earlier files, which come first in the order of the data.
    """
    for block in pickle.loads(pickled).read():
        if first_file and block.num_rows:
            place = block.schema.get_field_index(schema.ORDER)
            order = pc.add(
                block.column(schema.ORDER), pa.scalar(first_file * FILE_STRIDE, pa.int64())
            )
            block = block.set_column(place, schema.ORDER, order)
        for part in split_by_user(block, num_buckets, rules, goes_on):  # noqa: UP028 (Ray calls `send`, which lists lack)
            yield part
