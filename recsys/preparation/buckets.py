"""Events from the blocks of a source to buckets of users: exchange, checks and summaries.

Why: everything that a history needs (order, duplicates, splits, held-out pairs) is local to a user.
So after one exchange by user, every later step is an independent task over one bucket. Rows pass
between tasks through the object store, which spills to disk. Only reports of the size of the
vocabularies reach the driver.
"""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys import schema
from recsys.data.hashing import string_hashes
from recsys.data.vocabulary import Vocabulary, no_ids
from recsys.errors import ConfigError
from recsys.pace import Pace
from recsys.preparation.blocks import put, task
from recsys.preparation.dataset_writer import Folder
from recsys.preparation.event_roles import (
    CODED_COLUMNS,
    CONTEXT,
    TERM,
    TEXT_COLUMNS,
    EventRules,
    written_out,
)
from recsys.preparation.event_store import Keeper, StoredEvents
from recsys.preparation.keys import (
    coded,
    codes_in,
    compact,
    joined,
    parts_of,
    text_counts,
    used_texts,
    where,
)
from recsys.preparation.quarantine import UNKNOWN_ITEM, bad_rows, mark
from recsys.sources.base import FILE_STRIDE, Piece
from recsys.values.absent import CellRules
from recsys.values.cells import ids, numbers
from recsys.values.overlap import SideIds, compare

_MAX_UNKNOWN: Final = 100_000  # unknown item ids of a bucket that are reported
_FORGOTTEN: Final = b"forgotten"  # metadata of a part: rows of forgotten users in its block
_RADIX_LIMIT: Final = 1 << 16  # numpy sorts numbers of 16 bits in one pass


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
    forgotten: int = 0  # rows of forgotten users, which are not among those read


def split_by_user(
    block: pa.Table, num_buckets: int, rules: EventRules, continues: bool = False
) -> list[pa.Table]:
    """The rows of a block, one table per bucket. The bucket is a hash of the user id that is the
    same on all machines and in all releases.

    Parameters
    ----------
    block : pa.Table
        Rows of a source.
    num_buckets : int
        Number of buckets.
    rules : EventRules
        Names the columns that are kept.
    continues : bool
        Whether these are newer files of an earlier dataset; then a missing context column is null.

    Returns
    -------
    list[pa.Table]
        One table per bucket, some of them empty; the order of the rows is kept.

    Raises
    ------
    ConfigError
        ``data.text.event_column`` or one of ``data.context`` is not a column of the events.
    """
    table = project(block, rules, continues)
    texts, codes_E = parts_of(table.column(schema.USER_ID))
    # one entry more: a missing id has the code −1, which reads the last element
    buckets = np.append(string_hashes(texts), np.uint64(0)) % np.uint64(num_buckets)
    # numbers of 16 bits, because numpy sorts them in one pass (see the constant)
    buckets_E = buckets.astype(np.uint16 if num_buckets <= _RADIX_LIMIT else np.int64)[codes_E]
    # stable: the rows of a user must keep the order of the source
    ordered = table.take(pa.array(np.argsort(buckets_E, kind="stable")))
    ends = np.cumsum(np.bincount(buckets_E, minlength=num_buckets))
    return [
        _compacted(ordered.slice(int(end - size), int(size)))
        for end, size in zip(ends, np.diff(ends, prepend=0), strict=True)
    ]


def _compacted(table: pa.Table) -> pa.Table:
    arrays = [
        compact(table.column(name)) if name in CODED_COLUMNS else table.column(name)
        for name in table.column_names
    ]
    return pa.table(arrays, names=table.column_names)


def project(block: pa.Table, rules: EventRules, continues: bool = False) -> pa.Table:
    """Select and cast the columns that the pipeline reads, see :mod:`recsys.schema`; strings are
    coded. Context categories are trimmed, and invalid context numbers are null. If ``continues``
    (newer files of an earlier dataset), a missing context column is null.

    Parameters
    ----------
    block : pa.Table
        Events as the source gives them.
    rules : EventRules
        Columns to keep, with their types.
    continues : bool
        Whether the events are newer files of an earlier dataset.

    Returns
    -------
    pa.Table
        The events with the columns of ``rules``.

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
    for key, wanted in () if continues else named:
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
        arrays[name] = coded(column) if name in CODED_COLUMNS else column.cast(kind)
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
    earlier: StoredEvents | None = None,
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
    earlier : StoredEvents | None
        Stored rows of the dataset to append to, which come before ``parts``. Rows with an unknown
        item are checked again.
    whole : bool
        Whether the good rows of ``earlier`` are gathered as well.
    """
    read = sum(part.num_rows for part in parts)
    waiting = earlier.unknown() if earlier is not None else None
    table = joined([waiting, *parts]).replace_schema_metadata(None)
    gone = sum(int((part.schema.metadata or {}).get(_FORGOTTEN, 0)) for part in parts)
    summary = BucketSummary(read=read, forgotten=gone)
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
    # kept before the filters: a later reading may filter differently
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
    return good, bad_rows(written_out(bad), TEXT_COLUMNS), summary


def summarise(good: pa.Table, rules: EventRules, summary: BucketSummary) -> None:
    """Fill the summary with the statistics of the good rows of a bucket.

    Parameters
    ----------
    good : pa.Table
        Good rows of a bucket.
    rules : EventRules
        Say which events are interactions and which are text.
    summary : BucketSummary
        Gets users, items, counts, and the period in microseconds.
    """
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
    period = pc.min_max(times.cast(pa.int64()))
    summary.first, summary.last = period["min"].as_py() or 0, period["max"].as_py() or 0


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
    continues : bool
        Whether an earlier dataset determines the columns of events.
    """

    number: int = 0
    first_file: int = 0
    folder: Folder | None = None
    earlier: Folder | None = None
    whole: bool = True
    continues: bool = False

    def of(self, bucket: int) -> dict[str, Any]:
        """The keyword arguments of :func:`gather_bucket` for a bucket."""
        return {
            "keeper": Keeper(self.folder, bucket, self.number) if self.folder is not None else None,
            "earlier": self.kept(bucket),
            "whole": self.whole,
        }

    def kept(self, bucket: int) -> StoredEvents | None:
        """The rows of a bucket in the dataset to append to; None without one."""
        return (
            None
            if self.earlier is None
            else StoredEvents(self.earlier, bucket, tuple(range(self.number)))
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

    Parameters
    ----------
    pieces : Sequence[Piece]
        Pieces of the source's events.
    num_buckets : int
        Number of buckets, over which users are spread.
    rules : EventRules
        Columns and rules of the events.
    known_items : pa.Array | None
        Ids of the items table; None: all items are known.
    reading : Reading
        How the rows join earlier ones; by default they are the first and are not kept.

    Returns
    -------
    list[list[Any]]
        For each bucket, references to its good rows, bad rows and :class:`BucketSummary`.
    """
    splitter: Any = task(split_piece, "streaming")
    gatherer = task(gather_bucket, 3)
    known = put(known_items)
    buckets: list[list[Any]] = [[] for _ in range(num_buckets)]
    arguments = (num_buckets, rules, reading.first_file, reading.continues)
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
    pickled: bytes,
    num_buckets: int,
    rules: EventRules,
    first_file: int = 0,
    continues: bool = False,
) -> Iterator[pa.Table]:
    """Yield the rows of every block of a piece, bucket by bucket; holds one block at a time.

    ``first_file`` is the number of earlier files, which come first in the order of the data.

    Parameters
    ----------
    pickled : bytes
        A pickled piece of a source.
    num_buckets : int
        Number of buckets.
    rules : EventRules
        Names the columns that are kept.
    first_file : int
        Number of files of earlier readings.
    continues : bool
        Whether these are newer files of an earlier dataset.

    Yields
    ------
    pa.Table
        The rows of one block in one bucket; ``num_buckets`` tables per block.
    """
    piece, told = pickle.loads(pickled), 0
    for block in piece.read():
        if first_file and block.num_rows:
            position = block.schema.get_field_index(schema.ORDER)
            order = pc.add(
                block.column(schema.ORDER), pa.scalar(first_file * FILE_STRIDE, pa.int64())
            )
            block = block.set_column(position, schema.ORDER, order)
        gone = getattr(piece, "num_forgotten", 0)
        for number, part in enumerate(split_by_user(block, num_buckets, rules, continues)):
            # once per block: the rows are gone, only their number goes to a bucket
            is_told = number == 0 and gone > told
            yield part.replace_schema_metadata({_FORGOTTEN: str(gone - told)}) if is_told else part
        told = gone


def overlap_notes(
    side_tables: Mapping[str, pa.Table | None],
    summaries: Sequence[BucketSummary],
    base: Vocabulary | None,
    min_overlap: float,
) -> Iterator[str]:
    """Yield a note for each table of items or users that has few ids in common with the events.

    Parameters
    ----------
    side_tables : Mapping[str, pa.Table | None]
        The tables ``items`` and ``users``; None where the source has none.
    summaries : Sequence[BucketSummary]
        Summaries of the buckets.
    base : Vocabulary | None
        Ids of earlier events, which count as ids of the events.
    min_overlap : float
        Share of ids in common below which there is a note.

    Yields
    ------
    str
        The note; empty where enough ids are in common.

    Raises
    ------
    DataError
        A table has no id in common with the events.
    """
    in_base = (base.items, base.users) if base is not None else (no_ids(), no_ids())
    unknown = [summary.unknown_items for summary in summaries]
    for name, key, found in (
        ("items", schema.ITEM_ID, [*(s.items for s in summaries), *unknown, in_base[0]]),
        ("users", schema.USER_ID, [*(s.users for s in summaries), in_base[1]]),
    ):
        if (table := side_tables[name]) is not None:
            side = SideIds(name, key, table.column(key).combine_chunks())
            in_events = SideIds("events", key, pa.concat_arrays(found).unique())
            yield compare(side, in_events, min_overlap)
