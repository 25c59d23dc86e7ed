"""Items and a separate file that links each item to its entity of the knowledge graph."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from recsys import schema
from recsys.sources.base import Piece, read_all
from recsys.sources.delimited import DelimitedPiece
from recsys.sources.validate import Layout


@dataclass(frozen=True)
class LinkedPiece:
    """Items with their entities; the links are held in memory, one for each item."""

    items: DelimitedPiece
    item_ids: pa.Array
    entity_ids: pa.Array

    def read(self) -> Iterator[pa.Table]:
        """Yield finished blocks."""
        for block in self.items.read():
            # the position of the first equal id, so the first link counts
            rows = pc.index_in(block.column(schema.ITEM_ID), value_set=self.item_ids)
            entities = self.entity_ids.take(rows.combine_chunks())
            yield block.set_column(
                block.schema.get_field_index(schema.ENTITY_ID),
                block.schema.field(schema.ENTITY_ID),
                entities,
            )


@dataclass(frozen=True)
class BadLinks:
    """The bad rows of the link file, which go to the quarantine of the table of items."""

    links: pa.Table
    layout: Layout

    def read(self) -> Iterator[pa.Table]:
        """Yield finished blocks."""
        wanted = self.layout.arrow
        known = {
            name: self.links.column(name)
            for name in self.links.column_names
            if name in wanted.names
        }
        count = self.links.num_rows
        yield pa.table([known.get(f.name, pa.nulls(count, f.type)) for f in wanted], schema=wanted)


def linked(items: list[DelimitedPiece], links: list[DelimitedPiece]) -> list[Piece]:
    """Join items with their entities; the first link of an item counts. Without items, the links
    are the items.
    """
    if not items:
        return [*links]
    table = read_all(links)
    entity_missing = pc.is_null(table.column(schema.ENTITY_ID))
    reasons = pc.coalesce(
        table.column(schema.REASON),
        pc.if_else(entity_missing, f"missing {schema.ENTITY_ID}", pa.scalar(None, pa.string())),
    )
    table = table.set_column(table.schema.get_field_index(schema.REASON), schema.REASON, reasons)
    is_good = pc.is_null(reasons)
    good, bad = table.filter(is_good), table.filter(pc.invert(is_good))
    item_ids, entity_ids = (
        good.column(name).combine_chunks() for name in (schema.ITEM_ID, schema.ENTITY_ID)
    )
    pieces: list[Piece] = [LinkedPiece(piece, item_ids, entity_ids) for piece in items]
    return [*pieces, BadLinks(bad, items[0].layout)] if bad.num_rows else pieces
