"""Pieces of a source for tests, in a separate module so that Ray's workers can import them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from recsys.errors import SourceError


@dataclass(frozen=True)
class MemoryPiece:
    """Rows in memory."""

    rows: pa.Table

    def read(self) -> Iterator[pa.Table]:
        yield self.rows


class BrokenPiece:
    """Rows that cannot be read."""

    def read(self) -> Iterator[pa.Table]:
        raise SourceError("events.csv: row 3 is not UTF-8")
