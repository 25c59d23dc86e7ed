"""From the heads of a table's files to the pieces that read their rows into one layout."""

from __future__ import annotations

from typing import assert_never

import pyarrow as pa

from recsys.errors import SourceError
from recsys.sources.base import Piece
from recsys.sources.delimited import DelimitedPiece, delimited_pieces
from recsys.sources.jsonl import JsonlPiece, fields_after_head, jsonl_pieces
from recsys.sources.parquet import ParquetPiece, parquet_pieces
from recsys.sources.partitions import PieceInFolder
from recsys.sources.table_heads import (
    NamedHead,
    TableFiles,
    read_heads,
)
from recsys.sources.validate import Layout


def table_pieces(source: TableFiles) -> list[Piece]:
    """The pieces of a single table.

    Raises
    ------
    SourceError
        A file has another format than expected, lacks a required column, or types differ between
        files.
    """
    return pieces_of_heads(source, read_heads(source))


def layout_of(source: TableFiles, heads: list[NamedHead]) -> Layout:
    """The layout with the union of the files' extra columns, each with one type."""
    extras: dict[str, pa.DataType] = {}
    for head in heads:
        for name, kind in head.types.items():
            if name not in source.table.columns:
                kind = pa.float64() if name in source.numbers and not _is_number(kind) else kind
                where = f"{head.head.file.path}: column {name!r}"
                extras[name] = _common_type(extras.get(name, kind), kind, where)
    return Layout(source.table, tuple(extras.items()), source.rules)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _common_type(one: pa.DataType, other: pa.DataType, where: str) -> pa.DataType:
    try:
        schemas = [pa.schema([("x", one)]), pa.schema([("x", other)])]
        return pa.unify_schemas(schemas, promote_options="permissive").field("x").type
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        raise SourceError(
            f"{where} is {other}, but {one} in an earlier file of the table; use one type"
        ) from None


def pieces_of_heads(source: TableFiles, heads: list[NamedHead]) -> list[Piece]:
    """The pieces of all files of a table, with one layout."""
    layout = layout_of(source, heads)
    pieces: list[Piece] = []
    for index, named in enumerate(heads):
        of_file = _pieces(index, named, layout, source.chunk_bytes)
        inside = named.agreeing
        pieces += (
            [PieceInFolder(piece, named.head.file.path, inside) for piece in of_file]
            if inside
            else of_file
        )
    return pieces


def _pieces(index: int, named: NamedHead, layout: Layout, chunk_bytes: int) -> list[Piece]:
    head, constants = named.head, named.constants
    match head.format:
        case "parquet":
            names = tuple(
                (name, to) for (name, _), to in zip(head.columns, named.names, strict=True) if to
            )
            return [
                *parquet_pieces(
                    ParquetPiece(head.file, index, names, layout, constants=constants), head.rows
                )
            ]
        case "jsonl":
            fields = [
                (name, to, kind)
                for (name, kind), to in zip(head.columns, named.names, strict=True)
                if to
            ]
            renamed = {name: to for name, to, _ in fields}
            fields += fields_after_head(dict(head.columns), renamed, layout.table)
            return [
                *jsonl_pieces(
                    JsonlPiece(
                        head.file, index, tuple(fields), layout, None, constants, chunk_bytes
                    )
                )
            ]
        case "csv" | "tsv":
            assert head.header is not None
            dialect, end = head.header.dialect, head.header.end
            titles = head.header.titles
            pattern = DelimitedPiece(
                head.file,
                index,
                named.names,
                layout,
                dialect,
                end,
                None,
                constants,
                chunk_bytes,
                titles,
            )
            return [*delimited_pieces(pattern)]
        case _:
            assert_never(head.format)  # type: ignore[arg-type]
