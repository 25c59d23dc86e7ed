"""Hive partitions: columns in the names of folders, such as
``event_type=view/date=2020-11-27/a.parquet``.

Why: Spark and other programs write such folders and omit the columns from the files. If a file has
the column as well, the file is read, and its values must be equal to the folder's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from recsys import schema
from recsys.errors import SourceError
from recsys.sources.base import Piece


@dataclass(frozen=True)
class PieceInFolder:
    """A piece of a file that also has a column of its folder's name; the values must be equal."""

    piece: Piece
    path: str
    values: Mapping[str, str]  # canonical column → text

    def read(self) -> Iterator[pa.Table]:
        """Yield finished blocks."""
        for block in self.piece.read():
            self._check(block)
            yield block

    def _check(self, block: pa.Table) -> None:
        """Compare text columns with the values of the folder.

        Raises
        ------
        SourceError
            A row contradicts the folder.
        """
        good = block.filter(pc.is_null(block.column(schema.REASON)))
        for name, value in self.values.items():
            if not pa.types.is_string(good.schema.field(name).type):
                continue
            wrong = good.filter(pc.fill_null(pc.not_equal(good.column(name), value), False))
            if wrong.num_rows:
                raise SourceError(
                    f"{self.path}: row {wrong.column(schema.ROW)[0]} has {name}"
                    f" {wrong.column(name)[0].as_py()!r}, but its folder says {value!r}; correct"
                    " one of them, or rename the column in the file with data.source.rename"
                )
