"""Tables of items and users that are made of columns of the events.

Why: an export of invoice lines or reviews repeats what it tells of an article or a customer in every row, and has no
table of them. Each piece of the events is read once more and gives one row an id, so that nothing grows with the
number of events; of several pieces the first row of an id counts.
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
    """One row an id of a piece of events: of texts the most frequent one, of numbers the median, of lists the first."""

    events: Piece
    layout: Layout  # of the table that is made; its extras are columns of the events

    def read(self) -> Iterator[pa.Table]:
        """One block."""
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
            yield one_row_an_id(rows, key, columns, self.layout)


def one_row_an_id(rows: pa.Table, key: str, columns: Sequence[str], layout: Layout) -> pa.Table:
    """The rows of one id as one, in the order in which the ids appear.

    Parameters
    ----------
    rows : pa.Table
        good rows of events with the key, the columns and their provenance.
    key : str
        the id.
    columns : Sequence[str]
        what is told of it.
    layout : Layout
        of the result.
    """
    ids = pl.Series(_ROWS, pl.from_arrow(rows.column(key)))
    first = pl.DataFrame({key: ids}).with_row_index(_ROWS).group_by(key, maintain_order=True).first()
    order = pa.array(first[_ROWS].to_numpy())
    known: dict[str, pa.Array] = {key: rows.column(key).take(order)}
    for name in columns:
        known[name] = _told(ids, rows.column(name), first[key])
    places = {name: rows.column(name).take(order) for name in (schema.FILE, schema.ROW, schema.ORDER)}
    return finish(pa.table(known), layout, places).combine_chunks()


def _told(ids: pl.Series, column: pa.ChunkedArray, wanted: pl.Series) -> pa.Array:
    """What a column tells of every wanted id."""
    values: Any = pl.from_arrow(column)
    told = pl.DataFrame({"id": ids, "value": values}).filter(pl.col("value").is_not_null())
    if values.dtype.is_numeric():
        found = told.group_by("id").agg(pl.col("value").median())
    elif values.dtype.is_nested():
        found = told.group_by("id", maintain_order=True).first()
    else:
        counted = told.group_by(["id", "value"]).len().sort(["len", "value"], descending=[True, False])
        found = counted.group_by("id", maintain_order=True).first().select("id", "value")
    joined = pl.DataFrame({"id": wanted}).join(found, on="id", how="left", maintain_order="left")
    return joined["value"].to_arrow().cast(column.type, safe=False)
