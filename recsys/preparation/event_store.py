"""The validated events of a prepared dataset, kept to append newer events.

Layout, next to the histories::

    events/part-00003.00001.arrow      good rows of shard 3 from reading 1, with coded texts,
                                       before filters and the removal of duplicates, whose result
                                       a later append may change
    events/times-00003.00001.arrow     user, type and time of its used events, where the split has
                                       cut-offs
    events/unknown-00003.arrow         rows that are bad only because the items table lacks their
                                       item

A part is written once and never changed; a dataset that continues another one links it. The format
is Arrow IPC, because it returns coded texts as codes, one batch at a time. Columns are narrow
(:mod:`recsys.preparation.narrow`). Local files are not compressed but mapped into memory, so an
append reads only the pages with rows of touched users; files of an object store are compressed.
Legend: E events.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
import pyarrow.ipc

from recsys import schema
from recsys.data.histories import Array
from recsys.errors import ArtifactError
from recsys.preparation.dataset_writer import Folder
from recsys.preparation.keys import compact
from recsys.preparation.narrow import narrowed, widened
from recsys.storage.filesystems import storage_errors

if TYPE_CHECKING:
    from recsys.preparation.buckets import BucketSummary

Rows = Callable[[pa.Array], Array]  # user column of a batch → which rows: bool
STORE: Final = "events"
_ROWS: Final = 1 << 18  # rows of a batch
_REMOTE_COMPRESSION: Final = "zstd"
TIMES: Final = ("user", "type", "time")  # columns of the files of times
_LEFT_OUT: Final = (schema.REASON, schema.RAW)  # null in every good row
_GONE: Final = (
    "{} is missing or damaged ({}), so no events can be appended to the dataset; prepare all events"
    " again"
)


@dataclass(frozen=True)
class Keeper:
    """Keeps the rows of one bucket and one reading."""

    folder: Folder
    bucket: int
    reading: int

    def keep(self, good: pa.Table, unknown: pa.Table) -> None:
        """Write the good rows, and the rows that are bad only because of an unknown item."""
        write_rows(self.folder, part_name(self.bucket, self.reading), good)
        write_rows(self.folder, unknown_name(self.bucket), unknown)


@dataclass(frozen=True)
class StoredEvents:
    """The kept rows of one bucket of a dataset."""

    folder: Folder
    bucket: int
    readings: tuple[int, ...]

    def rows(self, users: pa.Array | None = None) -> pa.Table | None:
        """The good rows in the order of the readings, in the format of
        :func:`recsys.preparation.buckets.gather_bucket`; None where there are none.

        Parameters
        ----------
        users : pa.Array | None
            External ids of the users whose rows are read; None: all users.
        """
        of = None if users is None else of_users(users)
        names = [part_name(self.bucket, reading) for reading in self.readings]
        tables = [
            table
            for name in names
            if (table := _chosen(_batches(self.folder, name), of)) is not None
        ]
        return _with_nulls(tables, (schema.REASON,))

    def unknown(self) -> pa.Table | None:
        """The rows with an unknown item, as they were read; None where there are none."""
        batches = _batches(self.folder, unknown_name(self.bucket))
        return _with_nulls([_wide(batch) for batch in batches], _LEFT_OUT)

    def times(self) -> list[pa.Table]:
        """User, type and time of every used event."""
        names = [times_name(self.bucket, reading) for reading in self.readings]
        return [_wide(batch) for name in names for batch in _batches(self.folder, name)]


def part_name(bucket: int, reading: int) -> str:
    """File of the good rows."""
    return f"{STORE}/part-{bucket:05d}.{reading:05d}.arrow"


def times_name(bucket: int, reading: int) -> str:
    """File of the times."""
    return f"{STORE}/times-{bucket:05d}.{reading:05d}.arrow"


def unknown_name(bucket: int) -> str:
    """File of the rows with an unknown item."""
    return f"{STORE}/unknown-{bucket:05d}.arrow"


def is_carried(name: str, whole: bool) -> bool:
    """Whether a dataset that continues this one links a file of the store unchanged.

    ``whole``: all events are processed again, so their times are written again.

    >>> [is_carried(f"{kind}-00000.arrow", whole=True) for kind in ("part", "times", "unknown")]
    [True, False, False]
    """
    return not name.startswith(("unknown-", "times-") if whole else "unknown-")


def link_rows(earlier: Folder, folder: Folder, whole: bool) -> None:
    """Link the files of the store of an earlier dataset into one that continues it.

    Parameters
    ----------
    earlier : Folder
        Folder of the earlier dataset.
    folder : Folder
        Folder of the new dataset.
    whole : bool
        Whether all events are processed again; then the files of times are not linked.
    """
    names = Folder(earlier.filesystem, f"{earlier.path}/{STORE}").entries()
    folder.link(earlier, STORE, [name for name in names if is_carried(name, whole)])


def write_rows(
    folder: Folder,
    name: str,
    table: pa.Table,
    columns: Sequence[str] = (),
    narrows: bool = True,
) -> None:
    """Write rows, if there are any; empty ``columns``: all columns.

    Parameters
    ----------
    folder : Folder
        Folder of the dataset.
    name : str
        Path of the file inside the folder.
    table : pa.Table
        The rows; without any, no file is written.
    columns : Sequence[str]
        Columns to write.
    narrows : bool
        Whether columns become narrow; False where the table may be of another release.

    Raises
    ------
    StorageError
        The folder cannot be written to.
    """
    if not table.num_rows:
        return
    names = [column for column in columns or table.column_names if column not in _LEFT_OUT]
    # the file format allows one dictionary for each column only
    table = table.select(names).unify_dictionaries()
    table = narrowed(table) if narrows else table.combine_chunks()
    compression = None if _is_local(folder) else _REMOTE_COMPRESSION
    options = pyarrow.ipc.IpcWriteOptions(compression=compression)
    with storage_errors(folder.uri, "write to"):
        folder.make_folder(f"{folder.path}/{name}".rpartition("/")[0])
        with (
            folder.filesystem.open_output_stream(f"{folder.path}/{name}") as sink,
            pyarrow.ipc.new_file(sink, table.schema, options=options) as writer,
        ):
            writer.write_table(table, max_chunksize=_ROWS)


def _batches(folder: Folder, name: str) -> Iterator[pa.RecordBatch]:
    """The batches of a file; none where nothing was kept."""
    path = f"{folder.path}/{name}"
    mapped = pyarrow.fs.LocalFileSystem(use_mmap=True)
    filesystem = mapped if _is_local(folder) else folder.filesystem
    try:
        with storage_errors(folder.uri), filesystem.open_input_file(path) as source:
            reader = pyarrow.ipc.open_file(source)
            for number in range(reader.num_record_batches):
                yield reader.get_batch(number)
    except FileNotFoundError:
        return
    except (OSError, pa.ArrowInvalid) as error:
        raise ArtifactError(_GONE.format(f"{folder.uri}/{name}", error)) from None


def _is_local(folder: Folder) -> bool:
    return isinstance(folder.filesystem, pyarrow.fs.LocalFileSystem)


def _wide(batch: pa.RecordBatch) -> pa.Table:
    """The rows of a batch in their original types."""
    columns = [widened(*pair) for pair in zip(batch.columns, batch.schema, strict=True)]
    return pa.table(columns, names=batch.schema.names)


def _chosen(batches: Iterator[pa.RecordBatch], of: Rows | None) -> pa.Table | None:
    """The chosen rows of a file's batches, which share one dictionary; unused texts are left
    out.
    """
    found: list[list[pa.Array]] = []
    fields = pa.schema([])
    for batch in batches:
        fields = batch.schema
        columns = batch.columns
        if of is not None:
            rows = pa.array(np.flatnonzero(of(batch.column(schema.USER_ID))))
            columns = [column.take(rows) for column in columns]
        found.append(columns)
    if not found or not any(len(columns[0]) for columns in found):
        return None
    columns = [_joined(*pair) for pair in zip(zip(*found, strict=True), fields, strict=True)]
    return pa.table(columns, names=fields.names)


def _joined(parts: Sequence[pa.Array], field: pa.Field) -> pa.Array:
    """The arrays of one file as one array in its original type; unused texts are left out."""
    if not pa.types.is_dictionary(field.type):
        return widened(pa.concat_arrays(parts), field)
    codes = pa.concat_arrays([part.indices for part in parts]).cast(pa.int32())
    return compact(pa.chunked_array([pa.DictionaryArray.from_arrays(codes, parts[0].dictionary)]))


def _with_nulls(tables: list[pa.Table], names: Sequence[str]) -> pa.Table | None:
    """The rows of all tables, with additional null columns."""
    if not tables:
        return None
    table = pa.concat_tables(tables, promote_options="default")
    for name in names:
        table = table.append_column(name, pa.nulls(table.num_rows))
    return table


def of_users(users: pa.Array) -> Rows:
    """A function that marks the rows of these users in a coded column. A dictionary that the
    batches of a file share is looked up once.
    """
    known: list[tuple[pa.Array, Array]] = []

    def chosen(column: pa.Array) -> Array:
        if not known or not known[0][0].equals(column.dictionary):
            known[:] = [
                (column.dictionary, np.asarray(pc.is_in(column.dictionary, value_set=users)))
            ]
        return np.asarray(known[0][1][np.asarray(column.indices)])

    return chosen


# ---------------------------------------------------------------------------------- in the manifest


def described(
    buckets: int, earlier: dict[str, Any], files: Sequence[dict[str, Any]], seen: dict[str, Any]
) -> dict[str, Any]:
    """``Manifest.store``: the number of buckets, every reading with its files, and statistics of
    all events.

    Parameters
    ----------
    buckets : int
        Number of buckets.
    earlier : dict[str, Any]
        ``Manifest.store`` of the dataset that is continued, or empty.
    files : Sequence[dict[str, Any]]
        The files of events of this reading.
    seen : dict[str, Any]
        Statistics of all events.

    Returns
    -------
    dict[str, Any]
        ``buckets``, ``readings`` and ``seen``.
    """
    return {
        "buckets": buckets,
        "readings": [*earlier.get("readings", []), {"files": list(files)}],
        "seen": seen,
    }


def seen_together(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """The joint statistics of two results of :func:`seen_in`."""
    first, last = zip(before["span"], now["span"], strict=True)
    return {
        **{key: before[key] + now[key] for key in ("interactions", "untimed")},
        **{key: dict(Counter(before[key]) + Counter(now[key])) for key in ("types", "given")},
        "span": [min(first), max(last)] if now["interactions"] else before["span"],
    }


def seen_in(summaries: Sequence[BucketSummary]) -> dict[str, Any]:
    """Statistics of the events of buckets: numbers, event types, named splits and time span."""
    periods = [(summary.first, summary.last) for summary in summaries if summary.interactions]
    return {
        "interactions": sum(summary.interactions for summary in summaries),
        "untimed": sum(summary.untimed for summary in summaries),
        "types": dict(sum((Counter(summary.types) for summary in summaries), Counter[str]())),
        "given": dict(sum((Counter(summary.given) for summary in summaries), Counter[str]())),
        "span": (
            [min(first for first, _ in periods), max(last for _, last in periods)]
            if periods
            else [0, 0]
        ),
    }


def files_read(store: dict[str, Any]) -> list[dict[str, Any]]:
    """The files of all readings, in order."""
    return [file for reading in store.get("readings", []) for file in reading["files"]]
