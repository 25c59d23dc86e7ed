"""Columns of other files that the events refer to by an id: ``data.source.lookup``.

Why: shops keep the customer and the time of an order in one table and its articles in another. The
events are the rows of articles; each gets the columns of its order. The table of orders is read
once in each process and kept in memory.

An export with the customer and the time in the first line of each order is its own table of orders:
the further lines get what they lack from the first line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from recsys import schema
from recsys.values.absent import present_only
from recsys.values.cells import as_text, is_text

_KEPT: Final = 4  # tables that a process keeps
_tables: dict[tuple[Any, ...], pa.Table] = {}


@dataclass(frozen=True)
class Lookup:
    """A table that the events refer to, and the columns that they get from it."""

    column: str  # of the events, canonical
    key: str  # of the table
    types: tuple[tuple[str, pa.DataType], ...]  # canonical column → type
    identity: tuple[Any, ...]  # of the files, for the table in memory
    pieces: Sequence[Any] = field(compare=False, repr=False)  # of the table
    fills: bool = False  # of the events themselves: fills the missing cells of their columns

    def added_to(self, raw: pa.Table) -> pa.Table:
        """The rows with the columns of the table; a column that they have stays, or is filled."""
        if self.column not in raw.column_names:
            return raw
        table = self._table()
        cells = raw.column(self.column)
        keys = as_text(cells.combine_chunks() if isinstance(cells, pa.ChunkedArray) else cells)
        rows = pc.index_in(pc.utf8_trim_whitespace(keys), value_set=table.column(self.key))
        for name, _ in self.types:
            if name not in raw.column_names:
                raw = raw.append_column(name, table.column(name).take(rows))
            elif self.fills:
                cells = filled(raw.column(name), table.column(name).take(rows))
                raw = raw.set_column(raw.column_names.index(name), name, cells)
        return raw

    def _table(self) -> pa.Table:
        if self.identity not in _tables:
            while len(_tables) >= _KEPT:
                del _tables[next(iter(_tables))]
            _tables[self.identity] = self._read()
        return _tables[self.identity]

    def _read(self) -> pa.Table:
        names = [self.key, *(name for name, _ in self.types if name != self.key), schema.REASON]
        blocks = [block.select(names) for piece in self.pieces for block in piece.read()]
        table = pa.concat_tables(blocks)
        return table.filter(pc.is_null(table.column(schema.REASON))).combine_chunks()


def filled(cells: pa.ChunkedArray, others: pa.ChunkedArray) -> pa.ChunkedArray:
    """Cells, or the others where they are missing.

    >>> filled(pa.chunked_array([["ann", " "]]), pa.chunked_array([["ann", "ann"]])).to_pylist()
    ['ann', 'ann']
    """
    if is_text(others.type):
        cells = present_only(as_text(cells.combine_chunks()))
    return pc.coalesce(cells, others.cast(cells.type))


def table_of_lookup(key: str) -> schema.TableSchema:
    """The schema of a lookup table: its key, and ids whose digits must all be kept."""
    ids = {name: pa.string() for name in (schema.USER_ID, schema.ITEM_ID) if name != key}
    return schema.TableSchema("lookup", required={key: pa.string()}, optional=ids, key=(key,))


def names_of_key(given: str) -> tuple[str, str]:
    """The column of the events and the column of the table that a key of the setting names.

    >>> names_of_key("order_id"), names_of_key("order_id = id")
    (('order_id', 'order_id'), ('order_id', 'id'))
    """
    column, _, key = (part.strip() for part in given.partition("="))
    return column, key or column
