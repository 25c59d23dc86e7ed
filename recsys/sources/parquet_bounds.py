"""Limits of the memory for a Parquet file, from its footer and its dictionaries, before values are
decoded.

Why: Parquet stores a repeated value once. A file of a kilobyte can have five thousand texts of a
megabyte, or one list of a billion numbers. The decoded size of a row group in the footer is
compared with its stored bytes, and the number of rows that are read at once depends on the longest
text in the dictionaries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.errors import SourceError
from recsys.sources.limits import FREE_BYTES, MAX_DECODED_RATIO, MAX_ROW_BYTES, check_column_count
from recsys.values.arrow_types import is_string

_MOST_ROWS: Final = 1 << 18
_BATCH_BYTES: Final = 256 << 20
_LOOKED_AT: Final = 1024  # rows that are read to see the dictionaries
_WIDTHS: Final = {
    "BOOLEAN": 1,
    "INT32": 4,
    "INT64": 8,
    "INT96": 8,
    "FLOAT": 4,
    "DOUBLE": 8,
    "BYTE_ARRAY": 4,
}
_TEXTS: Final = ("STRING", "NONE", "JSON", "ENUM")


def check_footer(source: Any, metadata: Any, where: str, size: int) -> None:
    """Check the footer before any values are read.

    Parameters
    ----------
    source : Any
        The open file.
    metadata : Any
        The footer, pyarrow's ``FileMetaData``.
    where : str
        Path of the file, for messages.
    size : int
        Size of the file in bytes.

    Raises
    ------
    SourceError
        There are too many columns, a row group is far larger decoded than stored, or the footer is
        damaged.
    """
    check_column_count(metadata.num_columns, where)
    for number in range(metadata.num_row_groups):
        # first the totals: they can be read even if a column chunk is damaged
        check_decoded(
            metadata.row_group(number).total_byte_size, size, f"{where}: row group {number}"
        )
    # before columns are touched, because a damaged one ends the process (see there)
    _check_chunks(source, metadata, where)
    widths = _widths(metadata)
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        decoded = stored = 0
        for index in range(metadata.num_columns):
            column = group.column(index)
            # the uncompressed size counts a repeated value once; the number of values gives the
            # rest
            decoded += max(column.total_uncompressed_size, column.num_values * widths[index])
            stored += column.total_compressed_size
        check_decoded(decoded, stored, f"{where}: row group {number}")


def _check_chunks(source: Any, metadata: Any, where: str) -> None:
    """Read one row of all flat columns, so that Arrow raises an exception if a column chunk is
    damaged.

    Why: ``metadata.row_group(i).column(j)`` ends the process if the footer is damaged. Lists are
    skipped, because one row can be the whole file.

    Raises
    ------
    SourceError
        The footer is inconsistent, or the first rows cannot be read.
    """
    leaves = [metadata.schema.column(index) for index in range(metadata.num_columns)]
    flat = [
        leaf.path for leaf in leaves if leaf.max_repetition_level == 0 and leaf.path == leaf.name
    ]
    if not flat or not metadata.num_rows:
        return
    parquet = pq.ParquetFile(source, metadata=metadata, pre_buffer=True)
    groups = list(range(metadata.num_row_groups))
    try:
        next(parquet.iter_batches(1, row_groups=groups, columns=flat, use_threads=False), None)
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise SourceError(
            f"{where}: row group 0 or the footer cannot be read: {error}; the file is damaged,"
            " write or copy it again"
        ) from None


def check_decoded(decoded: int, stored: int, where: str) -> None:
    """Compare the decoded size of values with their stored bytes.

    Parameters
    ----------
    decoded : int
        Size of the decoded values in bytes.
    stored : int
        Size of the stored values in bytes.
    where : str
        File and part, for messages.

    Raises
    ------
    SourceError
        The decoded size is far larger than in any real file.
    """
    if decoded > max(FREE_BYTES, MAX_DECODED_RATIO * stored):
        raise SourceError(
            f"{where} has values of more than {decoded >> 20:,} MiB in {stored:,} stored bytes;"
            f" data does not compress over {MAX_DECODED_RATIO} times, so it is refused: write the"
            " table again"
        )


def stored_bytes(metadata: Any, group: int) -> int:
    """The bytes of a row group in the file."""
    chunk = metadata.row_group(group)
    return sum(chunk.column(index).total_compressed_size for index in range(metadata.num_columns))


def repeated_texts(metadata: Any, group: int, names: Sequence[str]) -> list[str]:
    """The flat text columns with a dictionary: read as dictionaries, they need no more memory than
    in the file.

    Parameters
    ----------
    metadata : Any
        The footer, as pyarrow reads it.
    group : int
        Index of the row group.
    names : Sequence[str]
        Columns that are read.

    Returns
    -------
    list[str]
        Those of ``names`` that are such columns.
    """
    return [path for path in _texts(metadata, group, names) if path in names]


def decoded_parts(batch: pa.RecordBatch, where: str) -> Iterator[pa.Table]:
    """Decode the dictionaries of a batch, in parts of at most about a quarter of a GiB.

    Yields
    ------
    Table
        Some rows, all columns without dictionaries.

    Raises
    ------
    SourceError
        A text is longer than a row may be.
    """
    longest = 0
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if pa.types.is_dictionary(column.type) and _is_binary(column.type.value_type):
            most = pc.max(pc.binary_length(column.dictionary)).as_py() or 0
            _check_text(most, name, where)
            # in the worst case one row has the longest text of every column
            longest += most
    rows = max(int(_BATCH_BYTES // max(longest, 1)), 1)
    for start in range(0, batch.num_rows, rows):
        part = batch if rows >= batch.num_rows else batch.slice(start, rows)
        plain = [
            c.dictionary_decode() if pa.types.is_dictionary(c.type) else c for c in part.columns
        ]
        yield pa.table(plain, names=batch.schema.names)


def rows_at_once(source: Any, metadata: Any, group: int, names: Sequence[str], where: str) -> int:
    """The number of rows of a row group to read at once, so that numbers and lists need at most a
    quarter of a GiB.

    Parameters
    ----------
    source : Any
        The open file.
    metadata : Any
        The footer, pyarrow's ``FileMetaData``.
    group : int
        Number of the row group.
    names : Sequence[str]
        Names of the columns to read.
    where : str
        File and part, for messages.

    Returns
    -------
    int
        The number of rows, at least 1.

    Raises
    ------
    SourceError
        A text in a list is longer than a row may be.
    """
    widths, chunk = _widths(metadata), metadata.row_group(group)
    rows = max(chunk.num_rows, 1)
    columns = {index: chunk.column(index) for index in _columns_of(metadata, names)}
    per_row = sum(
        widths[index] * max(column.num_values / rows, 1) for index, column in columns.items()
    )
    # flat texts are read as dictionaries and are small until they are decoded
    inner = [path for path in _texts(metadata, group, names) if path not in names]
    if inner:
        by_path = {column.path_in_schema: column for column in columns.values()}
        for path, longest in _longest_texts(source, metadata, group, names, inner).items():
            column = by_path[path]
            # no text can be longer than the whole column
            longest = column.total_uncompressed_size if longest is None else longest
            _check_text(longest, path, where)
            per_row += longest * max(column.num_values / rows, 1)
    return int(min(max(_BATCH_BYTES // max(per_row, 1), 1), _MOST_ROWS))


def _check_text(longest: int, name: str, where: str) -> None:
    if longest > MAX_ROW_BYTES:
        raise SourceError(
            f"{where}: a text of {name!r} has {longest >> 20:,} MiB, at most {MAX_ROW_BYTES >> 20} "
            "are allowed; remove the "
            "column or shorten its texts"
        )


def _columns_of(metadata: Any, names: Sequence[str]) -> list[int]:
    """The leaves of the named columns."""
    tops = set(names)
    paths = [metadata.schema.column(index).path for index in range(metadata.num_columns)]
    return [
        n
        for n, path in enumerate(paths)
        if path in tops or any(path.startswith(f"{top}.") for top in tops)
    ]


def _texts(metadata: Any, group: int, names: Sequence[str]) -> list[str]:
    """The paths of the leaves that are text with a dictionary."""
    chunk, found = metadata.row_group(group), []
    for index in _columns_of(metadata, names):
        leaf = metadata.schema.column(index)
        is_text = leaf.physical_type == "BYTE_ARRAY" and leaf.logical_type.type in _TEXTS
        if is_text and chunk.column(index).has_dictionary_page:
            found.append(leaf.path)
    return found


def _is_binary(kind: Any) -> bool:
    return bool(
        is_string(kind) or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
    )  # fmt: skip


def _longest_texts(
    source: Any, metadata: Any, group: int, names: Sequence[str], paths: list[str]
) -> dict[str, int | None]:
    """Bytes of the longest text in the dictionary of each path; None if the first rows do not show
    it.
    """
    parquet = pq.ParquetFile(source, metadata=metadata, read_dictionary=paths)
    batches = parquet.iter_batches(
        _LOOKED_AT, row_groups=[group], columns=list(names), use_threads=False
    )
    found: dict[str, int | None] = dict.fromkeys(paths)
    batch = next(batches, None)
    lengths = [] if batch is None else [n for column in batch.columns for n in _lengths(column)]
    if len(lengths) == len(paths):  # both are in the order of the schema
        found = dict(zip(paths, lengths, strict=True))
    return found


def _lengths(column: Any) -> list[int | None]:
    """Length of the longest text of each dictionary in a column."""
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        # an extension type hides its dictionary
        return _lengths(column.storage)
    if pa.types.is_dictionary(kind):
        longest = pc.max(pc.binary_length(column.dictionary)).as_py()
        return [None if longest is None else int(longest)]
    if pa.types.is_struct(kind):
        return [n for index in range(kind.num_fields) for n in _lengths(column.field(index))]
    if pa.types.is_map(kind):
        return [*_lengths(column.keys), *_lengths(column.items)]
    return _lengths(column.values) if pa.types.is_nested(kind) and hasattr(column, "values") else []


def _widths(metadata: Any) -> list[int]:
    """Bytes of a value of each column; of texts, only their fixed part."""
    columns = [metadata.schema.column(index) for index in range(metadata.num_columns)]
    return [_WIDTHS.get(column.physical_type, max(column.length, 1)) for column in columns]
