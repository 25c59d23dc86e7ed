"""Tables of items and users that are made from columns of the events.

Why: an export of invoice lines or reviews repeats the attributes of articles and customers in each
row and has no tables of them. Each piece of the events is read a second time and gives one row for
each id, so that memory does not grow with the number of events. If several pieces have an id, its
first row counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from recsys import schema
from recsys.sources.base import Piece
from recsys.sources.validate import Layout, finish

_ROWS = "rows"


@dataclass(frozen=True)
class DerivedPiece:
    """One row for each id in a piece of events: the most frequent text, the median of numbers, the
    first list.
    """

    events: Piece
    layout: Layout  # of the new table; its extras are columns of the events

    def read(self) -> Iterator[pa.Table]:
        """Read the piece as one block."""
        (key,) = self.layout.table.required
        columns = [name for name, _ in self.layout.extras]
        wanted = [key, *columns, schema.FILE, schema.ROW, schema.ORDER]
        blocks = [
            block.filter(pc.is_null(block.column(schema.REASON))).select(wanted)
            for block in self.events.read()
            if block.num_rows
        ]
        rows = pa.concat_tables(blocks) if blocks else None
        if rows is not None and rows.num_rows:
            yield one_row_per_id(rows, key, columns, self.layout)


def one_row_per_id(rows: pa.Table, key: str, columns: Sequence[str], layout: Layout) -> pa.Table:
    """Reduce the rows of each id to one row, in the order of first occurrence.

    Parameters
    ----------
    rows : pa.Table
        Good rows of events with the key, the columns and their provenance.
    key : str
        Column of the id.
    columns : Sequence[str]
        Attributes of the id.
    layout : Layout
        Layout of the result.
    """
    ids = pl.Series(_ROWS, pl.from_arrow(rows.column(key)))
    first = (
        pl.DataFrame({key: ids}).with_row_index(_ROWS).group_by(key, maintain_order=True).first()
    )
    order = pa.array(first[_ROWS].to_numpy())
    known: dict[str, pa.Array] = {key: rows.column(key).take(order)}
    for name in columns:
        known[name] = _summarised(ids, rows.column(name), first[key])
    positions = {
        name: rows.column(name).take(order) for name in (schema.FILE, schema.ROW, schema.ORDER)
    }
    return finish(pa.table(known), layout, positions).combine_chunks()


def _summarised(ids: pl.Series, column: pa.ChunkedArray, wanted: pl.Series) -> pa.Array:
    """One value of a column for each wanted id."""
    values: Any = pl.from_arrow(column)
    known = pl.DataFrame({"id": ids, "value": values}).filter(pl.col("value").is_not_null())
    if values.dtype.is_numeric():
        found = known.group_by("id").agg(pl.col("value").median())
    elif values.dtype.is_nested():
        found = known.group_by("id", maintain_order=True).first()
    else:
        counted = (
            known.group_by(["id", "value"]).len().sort(["len", "value"], descending=[True, False])
        )
        found = counted.group_by("id", maintain_order=True).first().select("id", "value")
    joined = pl.DataFrame({"id": wanted}).join(found, on="id", how="left", maintain_order="left")
    return joined["value"].to_arrow().cast(column.type, safe=False)
