"""Parquet, one piece a row group, its typed columns brought to the canonical types."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.data.validate import Layout
from recsys.errors import SourceError
from recsys.sources.delimited import Cells, Origin, assemble, with_constants
from recsys.sources.files import InputFile
from recsys.storage.places import filesystem_of, reaching

_BATCH_ROWS: Final = 1 << 18


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
        row = self.first_row
        for raw in self._batches():
            yield self._block(raw, row)
            row += raw.num_rows

    def _batches(self) -> Iterator[pa.Table]:
        filesystem, inner = filesystem_of(self.file.path)
        names = [name for name, _ in self.fields]
        try:
            with reaching(self.file.path), filesystem.open_input_file(inner) as source:
                parquet = pq.ParquetFile(source, page_checksum_verification=True)
                groups = [self.group]
                for batch in parquet.iter_batches(_BATCH_ROWS, row_groups=groups, columns=names, use_threads=False):
                    batch.validate(full=True)  # texts that are no UTF-8 would otherwise fail who reads them
                    yield pa.Table.from_batches([batch]).select(names)
        except (pa.ArrowException, OSError) as error:
            raise SourceError(
                f"{self.file.path}: row group {self.group} (rows from {self.first_row}) cannot be read: {error}; "
                "the file is damaged, write or copy it again"
            ) from None

    def _block(self, raw: pa.Table, first_row: int) -> pa.Table:
        raw = raw.rename_columns([column for _, column in self.fields])
        raw = with_constants(raw, self.constants)
        rows = np.arange(raw.num_rows, dtype=np.int64) + first_row
        cells = Cells(raw.select([column for _, column in self.fields]), rows, [], [])
        return assemble(raw, cells, self.layout, Origin(self.file.name, self.index, ", "))


def read_footer(file: InputFile) -> tuple[dict[str, pa.DataType], list[int]]:
    """The columns with the types that blocks will have, and the rows of every row group.

    Raises:
        SourceError: the file is not Parquet, damaged, or has no rows.
    """
    filesystem, inner = filesystem_of(file.path)
    try:
        with reaching(file.path), filesystem.open_input_file(inner) as source:
            parquet = pq.ParquetFile(source)
            arrow, metadata = parquet.schema_arrow, parquet.metadata
    except (pa.ArrowInvalid, OSError) as error:
        raise SourceError(
            f"{file.path} is not a Parquet file, or damaged ({error}); correct it or data.source.format"
        ) from None
    if metadata.num_rows == 0:
        raise SourceError(f"{file.path} has columns but no rows; expected at least one row")
    groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    return {column.name: plain_type(column.type) for column in arrow}, groups


def parquet_pieces(piece: ParquetPiece, groups: list[int]) -> list[ParquetPiece]:
    """The pieces of a file, from a pattern of group 0 and the row counts of all groups."""
    starts = np.concatenate([[1], 1 + np.cumsum(groups)])
    return [
        ParquetPiece(piece.file, piece.index, piece.fields, piece.layout, group, int(starts[group]), piece.constants)
        for group, count in enumerate(groups)
        if count
    ]


def plain_type(kind: Any) -> pa.DataType:
    """The common type of encodings of the same values, so that files that differ only in encoding fit together.

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
        return pa.float64()
    return kind
