"""Parquet files: each row group is a piece, and typed columns become the canonical types. Fields of
structs have columns of their own (see :mod:`recsys.sources.nested`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.errors import SourceError
from recsys.sources.delimited import Cells, Origin, assemble, with_constants
from recsys.sources.files import InputFile
from recsys.sources.ids import check_whole_in_float, is_id, typed_ids
from recsys.sources.limits import listed
from recsys.sources.nested import flat_batch, flat_types, read_as
from recsys.sources.parquet_bounds import (
    check_decoded,
    check_footer,
    decoded_parts,
    repeated_texts,
    rows_at_once,
    stored_bytes,
)
from recsys.sources.validate import Layout


@dataclass(frozen=True)
class ParquetPiece:
    """One row group of a file."""

    file: InputFile
    index: int
    fields: tuple[tuple[str, str], ...]  # column in the file, canonical column
    layout: Layout
    group: int = 0
    first_row: int = 1
    constants: dict[str, str] = field(default_factory=dict)

    def read(self) -> Iterator[pa.Table]:
        """Yield finished blocks."""
        row = self.first_row
        for raw in self._batches():
            yield self._block(raw, row)
            row += raw.num_rows

    def _batches(self) -> Iterator[pa.Table]:
        names = [name for name, _ in self.fields]
        where, decoded = f"{self.file.path}: row group {self.group} (rows from {self.first_row})", 0
        try:
            with self.file.opened() as source:
                metadata = pq.read_metadata(source)
                stored = stored_bytes(metadata, self.group)
                tops = metadata.schema.to_arrow_schema()
                # several fields of one struct are read once
                read = list(dict.fromkeys(read_as(name, tops.names, tops.types) for name in names))
                parquet = pq.ParquetFile(
                    source,
                    metadata=metadata,
                    read_dictionary=repeated_texts(metadata, self.group, read),
                    # without it a flipped bit would silently change an id
                    page_checksum_verification=True,
                )
                rows = rows_at_once(source, metadata, self.group, read, where)
                groups = [self.group]
                for batch in parquet.iter_batches(
                    rows, row_groups=groups, columns=read, use_threads=False
                ):
                    # else a text that is not UTF-8 would fail in a later stage
                    batch.validate(full=True)
                    for part in decoded_parts(flat_batch(batch, names), where):
                        # the footer may lie, so the decoded bytes are counted, too
                        decoded += part.nbytes
                        check_decoded(decoded, stored, where)
                        yield part
        except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
            raise SourceError(
                f"{where} cannot be read: {error}; the file is damaged, write or copy it again"
            ) from None

    def _block(self, raw: pa.Table, first_row: int) -> pa.Table:
        columns = {name: self._exact(raw.column(old), name, first_row) for old, name in self.fields}
        exact = pa.table(columns)
        rows = np.arange(raw.num_rows, dtype=np.int64) + first_row
        cells = Cells(exact, rows, [], [])
        return assemble(
            with_constants(exact, self.constants),
            cells,
            self.layout,
            Origin(self.file.name, self.index, ", "),
        )

    def _exact(self, values: pa.ChunkedArray, name: str, first_row: int) -> pa.Array:
        """A plain column with all digits of its ids and integers.

        Raises
        ------
        SourceError
            The file has lost digits, or the layout would lose them.
        """
        column = values.chunk(0) if values.num_chunks == 1 else values.combine_chunks()
        where = f"{self.file.path}: column {name!r}"
        if is_id(self.layout, name):
            return typed_ids(column, where, first_row)
        wanted = dict(self.layout.extras).get(name)
        if wanted is not None and pa.types.is_floating(wanted) and pa.types.is_integer(column.type):
            check_whole_in_float(column, where)
        if wanted is not None and pa.types.is_integer(wanted) and pa.types.is_decimal(column.type):
            try:
                return column.cast(wanted)
            except pa.ArrowInvalid as error:
                raise SourceError(f"{where}: {error}; write the column as text") from None
        return column


def read_footer(file: InputFile) -> tuple[dict[str, pa.DataType], list[int]]:
    """The columns with the types of the blocks, and the number of rows of each row group.

    Raises
    ------
    SourceError
        The file is not Parquet, is damaged, or has no rows.
    """
    try:
        with file.opened() as source:
            parquet = pq.ParquetFile(source)
            metadata = parquet.metadata
            check_footer(source, metadata, file.path, file.size)
            arrow = parquet.schema_arrow
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        if file.compressed:
            raise SourceError(
                f"{file.path} is a compressed file; unpack it: Parquet has its own compression"
            ) from None
        raise SourceError(
            f"{file.path} is not a Parquet file or is damaged ({error}); correct the file or"
            " data.source.format"
        ) from None
    twice = [name for name, count in Counter(arrow.names).items() if count > 1]
    if twice:
        raise SourceError(
            f"{file.path}: column {listed(twice)} occurs twice; remove or rename one of them"
        )
    if metadata.num_rows == 0:
        raise SourceError(f"{file.path} has columns but no rows; expected at least one row")
    groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    flat = flat_types(arrow.names, arrow.types)
    return {name: plain_type(kind) for name, kind in flat.items()}, groups


def parquet_pieces(piece: ParquetPiece, groups: list[int]) -> list[ParquetPiece]:
    """The pieces of a file, made from the piece of row group 0 and the row counts of all groups."""
    starts = np.concatenate([[1], 1 + np.cumsum(groups)])
    return [
        ParquetPiece(
            piece.file,
            piece.index,
            piece.fields,
            piece.layout,
            group,
            int(starts[group]),
            piece.constants,
        )
        for group, count in enumerate(groups)
        if count
    ]


def plain_type(kind: Any) -> pa.DataType:
    """The common type of encodings of the same values, so that files that differ only in encoding
    match.

    >>> plain_type(pa.dictionary(pa.int8(), pa.large_string()))
    DataType(string)
    """
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind) or pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_large_list(kind) or pa.types.is_list(kind):
        return pa.list_(plain_type(kind.value_type))
    if pa.types.is_decimal(kind):
        # some databases export integers as decimals
        return pa.int64() if kind.scale == 0 else pa.float64()
    return kind
