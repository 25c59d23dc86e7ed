"""Items and a separate file that links each item to its entity of the knowledge graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from recsys import schema
from recsys.sources.base import Piece, read_all
from recsys.sources.validate import Layout, finish


@dataclass(frozen=True)
class LinkedPiece:
    """Items with their entities; the links are held in memory, one for each item."""

    items: Piece
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
        yield finish(self.links, self.layout, {})


@dataclass(frozen=True)
class ItemsOfLinks:
    """The links as items that have only an entity."""

    links: Piece
    layout: Layout

    def read(self) -> Iterator[pa.Table]:
        """Yield finished blocks."""
        for block in self.links.read():
            yield finish(block, self.layout, {})


def linked(items: Sequence[Piece], links: Sequence[Piece], layout: Layout) -> list[Piece]:
    """Join items with their entities; the first link of an item counts.

    Parameters
    ----------
    items : sequence of Piece
        Pieces of the items; none: the links are the items.
    links : sequence of Piece
        Pieces with the columns item_id and entity_id.
    layout : Layout
        The layout of the items.
    """
    if not items:
        return [ItemsOfLinks(piece, layout) for piece in links]
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
    return [*pieces, BadLinks(bad, layout)] if bad.num_rows else pieces
