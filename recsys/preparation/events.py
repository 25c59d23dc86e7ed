"""Events on their way from the blocks of a source to one bucket of users each: exchange, checks, dense numbers.

Why: everything that a history needs — order, duplicates, splits, held-out pairs — is local to a user, so after one
exchange by user every later step is an independent task over one bucket. Rows travel between tasks through the
object store (which spills to disk); only reports the size of the vocabularies reach the driver.
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
from recsys.values.cells import DEFAULT_RULES, CellRules, ids, numbers

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
_CODED: Final = frozenset({name for name, kind in _COLUMNS.items() if pa.types.is_string(kind)})
_MAX_UNKNOWN: Final = 100_000  # ids of unknown items of a bucket that are compared with the known ones
_RADIX_LIMIT: Final = 1 << 16  # numpy sorts numbers of 16 bits in one pass
_WITHIN: Final = {  # order of the data → that of a user's events: as it says, ties as they stand in the files
    "time": ("time", "order", "file", "row"),
    "file": ("order", "file", "row"),
    "none": ("pair", "item", "type", "time", "order", "file", "row"),  # by hash: a cut loses no items by their name
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
    cells: CellRules = DEFAULT_RULES
    filters: EventFilters = EventFilters()
    keep_duplicates: bool = False

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """What is kept of an event on its way to its bucket."""
        kinds = {name: pa.float64() if name in self.context_numbers else pa.string() for name in self.context}
        return {**_COLUMNS, **{f"{CONTEXT}{name}": kind for name, kind in kinds.items()}}

    @property
    def exchange_schema(self) -> pa.Schema:
        """Of an empty piece; the texts that every event has are coded (see :mod:`recsys.preparation.keys`)."""
        return pa.schema([(name, CODED if name in _CODED else kind) for name, kind in self.columns.items()])

    @property
    def event_schema(self) -> pa.Schema:
        """:data:`EVENT_SCHEMA` and the context columns, not yet coded."""
        kinds = list(self.columns.items())[len(_COLUMNS) :]
        return pa.schema([*EVENT_SCHEMA, *(pa.field(name, kind) for name, kind in kinds)])

    @staticmethod
    def of(config: DataConfig) -> EventRules:
        """The rules of a configuration.

        Raises
        ------
        ConfigError
            Types of text without their column (or the reverse), a type that is said to be both, context
            columns that contradict each other or the columns of the events, or an impossible window of time.
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
            CellRules.of(config.source),
            EventFilters.of(config),
            config.duplicates == "keep",
        )

    def is_text(self, types: pa.ChunkedArray) -> Array:
        """Of a coded column of event types: bool."""
        return codes_in(types, pa.array(self.text_types, pa.string())) >= 0

    def is_interaction(self, types: pa.ChunkedArray) -> Array:
        if self.interactions:
            return codes_in(types, pa.array(self.interactions, pa.string())) >= 0
        return ~self.is_text(types)

    def filtered(self, good: pa.Table) -> tuple[pa.Table, Counter[str]]:
        """Good rows without those that the filters leave out, and how many these are by reason."""
        if not good.num_rows or not self.filters.is_on:
            return good, Counter()
        out, dropped = self.filters.left_out(good, self.is_interaction(good.column(schema.EVENT_TYPE)))
        return where(good, ~out), dropped


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
    unknown_items: pa.Array = field(default_factory=lambda: pa.array([], pa.string()))  # some that the table lacks
    dropped: Counter[str] = field(default_factory=Counter)  # reason → rows that the filters leave out


# --------------------------------------------------------------------------------------------------------- exchange


def split_by_user(block: pa.Table, num_buckets: int, rules: EventRules, goes_on: bool = False) -> list[pa.Table]:
    """The rows of a block, bucket by bucket: the hash of the user id decides, the same one everywhere and always."""
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
    arrays = [compact(table.column(name)) if name in _CODED else table.column(name) for name in table.column_names]
    return pa.table(arrays, names=table.column_names)


def project(block: pa.Table, rules: EventRules, goes_on: bool = False) -> pa.Table:
    """Only the columns that the pipeline reads, typed as in :mod:`recsys.schema`, texts coded; context categories
    trimmed, cells of context numbers that are none are null, and all cells of a context column that the newer files of
    a dataset that ``goes_on`` lack.

    Raises
    ------
    ConfigError
        ``data.text.event_column`` or one of ``data.context`` is not a column of the events.
    """
    if block.num_rows == 0:
        return rules.exchange_schema.empty_table()
    named = [("text.event_column", rules.text_column), *(("context", name) for name in rules.context)]
    for key, wanted in () if goes_on else named:
        if wanted and wanted not in block.column_names:
            known = [name for name in block.column_names if not name.startswith("_")]
            raise ConfigError(f"data.{key}: {wanted!r} is not a column of the events; columns: {', '.join(known)}")
    arrays = {}
    for name, kind in rules.columns.items():
        if name.startswith(CONTEXT):
            arrays[name] = _context_cells(block, name.removeprefix(CONTEXT), kind, rules.cells)
            continue
        given = rules.text_column if name == TERM else name
        column = block.column(given) if given in block.column_names else pa.chunked_array([pa.nulls(block.num_rows)])
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
    """The good rows of a bucket, its bad ones as the quarantine keeps them, and a summary.

    An event is bad when its source says so, or when there is a table of items and its item is not in it. Good ones that
    the filters leave out are counted.

    Parameters
    ----------
    rules : EventRules
        Which events are what.
    known_items : pa.Array | None
        Ids of the table of items; None: any item is known.
    parts
        Rows that were read.
    keeper : Keeper | None
        Where the good rows are kept for a later append.
    earlier : Kept | None
        Rows of the dataset that is appended to, before those of ``parts``. Those whose item it did not know
        are judged again.
    whole : bool
        Whether its good rows are gathered as well.
    """
    read = sum(part.num_rows for part in parts)
    waiting = earlier.unknown() if earlier is not None else None
    table = joined([waiting, *parts])
    summary = BucketSummary(read=read)
    unknown = np.zeros(table.num_rows, dtype=bool)
    if known_items is not None:
        unknown = codes_in(table.column(schema.ITEM_ID), known_items) < 0
        if unknown.any():
            summary.unknown_items = used_texts(table.column(schema.ITEM_ID).filter(pa.array(unknown)))[:_MAX_UNKNOWN]
            table = mark(table, unknown, UNKNOWN_ITEM)
    is_good = table.column(schema.REASON).is_null()
    good = where(table, np.asarray(is_good)).drop_columns([schema.RAW])
    if keeper is not None:
        only_unknown = unknown & np.asarray(pc.fill_null(pc.equal(table.column(schema.REASON), UNKNOWN_ITEM), False))
        keeper.keep(good, table.filter(pa.array(only_unknown)))
    if whole and earlier is not None and (kept := earlier.rows()) is not None:
        good = joined([kept, good])
    good, summary.dropped = rules.filtered(good)
    if good.num_rows:
        summarise(good, rules, summary)
    bad = table.filter(pc.invert(is_good)) if not pc.all(is_good).as_py() else table.slice(0, 0)
    return good, bad_rows(_written_out(bad), _TEXT_COLUMNS), summary


def joined(tables: Sequence[pa.Table | None]) -> pa.Table:
    """The rows of all tables that there are, texts coded alike."""
    found = [table for table in tables if table is not None]
    return pa.concat_tables(found, promote_options="default").unify_dictionaries().combine_chunks()


def where(table: pa.Table, kept_E: Array) -> pa.Table:
    """Only those rows; all of them are not copied."""
    return table if kept_E.all() else table.filter(pa.array(kept_E))


def _written_out(table: pa.Table) -> pa.Table:
    """The coded texts as texts again."""
    arrays = [column.cast(pa.string()) if name in _CODED else column for name, column in _columns_of(table)]
    return pa.table(arrays, names=table.column_names)


def _columns_of(table: pa.Table) -> zip[tuple[str, pa.ChunkedArray]]:
    return zip(table.column_names, table.columns, strict=True)


def summarise(good: pa.Table, rules: EventRules, summary: BucketSummary) -> None:
    """Note in the summary what the good rows of a bucket are."""
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


# --------------------------------------------------------------------------------------------------------- encoding


@dataclass(frozen=True)
class Coding:
    """What turns a bucket into numbers: the order of the data and the types that are kept."""

    rules: EventRules
    event_types: tuple[str, ...]  # position = type id
    order: str  # time, file or none
    target_types: tuple[int, ...] = ()  # ids of the types that are predicted; empty: all


def encode_bucket(
    good: pa.Table, coding: Coding, users: pa.Array, dense_users: Array, item_ids: pa.Array, num_counted: int = 0
) -> tuple[pa.Table, pa.Table, pa.Table, int]:
    """Interactions and text rows with dense ids, user by user in the order of the data, and the duplicates among them.

    Parameters
    ----------
    good : pa.Table
        Rows of :func:`gather_bucket`.
    coding : Coding
        Order and types.
    users : pa.Array
        The bucket's users, with their dense ids in ``dense_users``.
    item_ids : pa.Array
        All items, dense.
    num_counted : int
        Rows at the start whose duplicates were reported before.

    Returns
    -------
    tuple[pa.Table, pa.Table, pa.Table, int]
        Tables of ``rules.event_schema`` and :data:`TEXT_SCHEMA`, the duplicates for the quarantine, and how many rows
        of text were left out because they are empty or about an item outside the vocabulary.
    """
    if good.num_rows == 0:
        return coding.rules.event_schema.empty_table(), TEXT_SCHEMA.empty_table(), QUARANTINE_SCHEMA.empty_table(), 0
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
    told = is_duplicate & (np.arange(len(is_duplicate)) >= num_counted)
    repeated = _written_out(good.filter(pa.array(told)))
    repeated = repeated.append_column(schema.RAW, pa.nulls(repeated.num_rows, pa.string()))
    duplicates = bad_rows(mark(repeated, np.ones(repeated.num_rows, dtype=bool), DUPLICATE), _TEXT_COLUMNS)
    position = position[~is_duplicate[position]]
    of_text = is_text[position]
    text = _encoded_text(good, keys, position[of_text])
    events = _encoded_events(good, keys, position[~of_text], coding)
    return events, text, duplicates, int(of_text.sum()) - text.num_rows


def _keys(good: pa.Table, users: pa.Array, dense_users: Array, item_ids: pa.Array) -> dict[str, Array]:
    """Every column that identifies or orders a row, as integers."""
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
    """Rows that repeat user, item, type, term and time of one that is earlier in the order ``position``.

    In data ordered by file without times a repeated item is a repeated event, not a repeated row.
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


def _encoded_events(good: pa.Table, keys: dict[str, Array], position: Array, coding: Coding) -> pa.Table:
    types = codes_in(good.column(schema.EVENT_TYPE), pa.array(coding.event_types, pa.string()))
    parts = np.maximum(codes_in(good.column(schema.SPLIT), pa.array(PARTS)), 0)
    values = np.asarray(good.column(schema.VALUE).fill_null(schema.DEFAULT_VALUE))
    columns = (keys["user"], keys["item"], types, keys["time"], values, parts)
    arrays = [
        pa.array(column.astype(kind.type.to_pandas_dtype(), copy=False)[position])
        for column, kind in zip(columns, EVENT_SCHEMA, strict=True)
    ]
    context = [good.column(f"{CONTEXT}{name}").take(pa.array(position)) for name in coding.rules.context]
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


# ------------------------------------------------------------------------------------------------------------ tasks


@dataclass(frozen=True)
class Reading:
    """How the rows that are read join those that were read before, and where they are kept.

    Attributes
    ----------
    number : int
        Of this reading, from 0.
    first_file : int
        How many files were read before.
    folder : Folder | None
        Where the rows are kept; None: nowhere.
    earlier : Folder | None
        Folder of the dataset that is appended to.
    whole : bool
        Whether its good rows are gathered as well.
    goes_on : bool
        Whether an earlier dataset says which columns events have.
    """

    number: int = 0
    first_file: int = 0
    folder: Folder | None = None
    earlier: Folder | None = None
    whole: bool = True
    goes_on: bool = False

    def of(self, bucket: int) -> dict[str, Any]:
        """What :func:`gather_bucket` is told."""
        return {
            "keeper": Keeper(self.folder, bucket, self.number) if self.folder is not None else None,
            "earlier": self.kept(bucket),
            "whole": self.whole,
        }

    def kept(self, bucket: int) -> Kept | None:
        """The rows that the dataset that is appended to has of a bucket."""
        return None if self.earlier is None else Kept(self.earlier, bucket, tuple(range(self.number)))


FIRST_READING: Final = Reading()


def exchange(
    pieces: Sequence[Piece], num_buckets: int, rules: EventRules, known_items: Any, reading: Reading = FIRST_READING
) -> list[list[Any]]:
    """Read the pieces and send their rows to their buckets.

    Returns
    -------
    list[list[Any]]
        For each bucket, references to (good rows, bad rows, :class:`BucketSummary`).
    """
    splitter: Any = task(split_piece, "streaming")
    gatherer = task(gather_bucket, 3)
    known = ray.put(known_items)
    buckets: list[list[Any]] = [[] for _ in range(num_buckets)]
    pace = Pace("blocks of events read", 0)
    told = (num_buckets, rules, reading.first_file, reading.goes_on)
    for parts in [splitter.remote(pickle.dumps(piece), *told) for piece in pieces]:
        for number, part in enumerate(parts):  # a failed task ends with its error, which the gatherer hands on
            buckets[number % num_buckets].append(part)
            pace.add(int((number + 1) % num_buckets == 0))
    empty = rules.exchange_schema.empty_table()
    return [
        gatherer.remote(rules, known, *(parts or [empty]), **reading.of(number)) for number, parts in enumerate(buckets)
    ]


def split_piece(
    pickled: bytes, num_buckets: int, rules: EventRules, first_file: int = 0, goes_on: bool = False
) -> Iterator[pa.Table]:
    """The rows of every block of a piece in turn, bucket by bucket; a block at a time is held.

    ``first_file``: how many files came before those of the source, in the order of the data.
    """
    for block in pickle.loads(pickled).read():
        if first_file and block.num_rows:
            place = block.schema.get_field_index(schema.ORDER)
            order = pc.add(block.column(schema.ORDER), pa.scalar(first_file * FILE_STRIDE, pa.int64()))
            block = block.set_column(place, schema.ORDER, order)
        for part in split_by_user(block, num_buckets, rules, goes_on):  # noqa: UP028 (Ray calls `send`, which a list has not)
            yield part
