"""From the heads of a table's files to the pieces that read their rows into one layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import assert_never

import pyarrow as pa

from recsys import schema
from recsys.errors import SourceError, choices
from recsys.sources.base import Piece
from recsys.sources.delimited import DelimitedPiece, delimited_pieces
from recsys.sources.dropped import FilteredPiece
from recsys.sources.files import InputFile
from recsys.sources.jsonl import JsonlPiece, fields_after_head, jsonl_pieces
from recsys.sources.list_cells import ListForm
from recsys.sources.lookup import Lookup, names_of_key, table_of_lookup
from recsys.sources.names import Renames
from recsys.sources.parquet import ParquetPiece, parquet_pieces
from recsys.sources.partitions import PieceInFolder
from recsys.sources.sequence_lines import LineForm, SequencePiece, sequence_pieces
from recsys.sources.table_heads import (
    NamedHead,
    TableFiles,
    looked_up_types,
    read_head,
    read_heads,
)
from recsys.sources.time_columns import TimeColumns
from recsys.sources.validate import Layout
from recsys.values.arrow_types import is_list, is_plain_number


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
        added = looked_up_types(head.head, head.names, source)
        for name, kind in {**head.types, **added}.items():
            if name not in source.table.columns:
                kind = (
                    pa.float64() if name in source.numbers and not is_plain_number(kind) else kind
                )
                where = f"{head.head.file.path}: column {name!r}"
                extras[name] = _common_type(extras.get(name, kind), kind, where)
    lists = _lists_of(source, heads)
    for name in extras.keys() & lists.keys():
        if is_list(extras[name]):
            extras[name] = pa.string()  # of a member, which has a row of its own
    return Layout(
        source.table,
        tuple(extras.items()),
        source.rules,
        tuple(lists.items()),
        source.lookups,
        _times_of(source, heads, extras),
        tuple(_drop_of(source, heads, extras).items()),
    )


def _names_of(key: str, heads: list[NamedHead]) -> set[str]:
    """The columns of the layout that a file, or the layout itself, calls ``key``."""
    return {
        name
        for head in heads
        for (given, _), name in zip(head.head.columns, head.names, strict=True)
        if name and key in (given, name)
    }


def _times_of(
    source: TableFiles, heads: list[NamedHead], extras: Mapping[str, pa.DataType]
) -> TimeColumns:
    """The columns of ``data.source.date_columns`` and ``clock`` by their names in the layout.

    Raises
    ------
    SourceError
        The events lack one of the columns, or a file has also a timestamp.
    """
    wanted = source.times
    if not wanted.names:
        return wanted
    found: dict[str, str] = {}
    for key in wanted.names:
        setting = "date_columns" if key in wanted.date else "clock"
        names = _names_of(key, heads) or {key}
        if strangers := names - extras.keys():
            which = "further column" if strangers & source.table.columns.keys() else "column"
            raise SourceError(
                f"data.source.{setting}: the events have no {which} {key!r}; they have:"
                f" {choices(extras) or 'none'}"
            )
        if len(names) > 1:
            raise SourceError(
                f"data.source.{setting}: {key!r} has several names after data.source.rename:"
                f" {choices(names)}; give it one name in all files"
            )
        found[key] = names.pop()
    times = TimeColumns(
        tuple(found[key] for key in wanted.date),
        tuple(found[key] for key in wanted.clock),
        wanted.clock_is_text,
        wanted.clock_unit,
    )
    for head in heads:
        _check_times(head, times, source)
    return times


def _check_times(named: NamedHead, times: TimeColumns, source: TableFiles) -> None:
    """Check that a file has all columns of the date or none, and its time once."""
    file, names = named.head.file.path, {*named.types}
    names |= {*looked_up_types(named.head, named.names, source)}
    lacking = [name for name in times.date if name not in names]
    if lacking and len(lacking) < len(times.date):
        raise SourceError(
            f"{file} has no column {lacking[0]!r} of data.source.date_columns; it has:"
            f" {choices(names)}"
        )
    if times.date and not lacking and schema.TIMESTAMP in names:
        raise SourceError(
            f"{file} has a column timestamp, and data.source.date_columns makes the time from"
            f" {', '.join(times.date)}; remove date_columns, or give the other column another name"
            " with data.source.rename: {timestamp: other_time}"
        )


def _drop_of(
    source: TableFiles, heads: list[NamedHead], extras: Mapping[str, pa.DataType]
) -> dict[str, tuple[str, ...]]:
    """Column of the layout → values of ``data.source.drop``, in lower case.

    Raises
    ------
    SourceError
        The events lack one of the columns, or it has lists.
    """
    kinds = {**source.table.columns, **extras}
    found: dict[str, tuple[str, ...]] = {}
    for key, values in source.drop.items():
        names = _names_of(key, heads) or {key}
        if unknown := names - kinds.keys():
            every = {name for head in heads for name in head.head.names} | kinds.keys()
            raise SourceError(
                f"data.source.drop: the events have no column {min(unknown)!r}; they have:"
                f" {choices(every)}"
            )
        if any(pa.types.is_nested(kinds[name]) for name in names):
            raise SourceError(
                f"data.source.drop: the column {key!r} has lists or groups of values; name a column"
                " with one value in a row"
            )
        found |= dict.fromkeys(names, tuple(value.strip().lower() for value in values))
    return found


def _lists_of(source: TableFiles, heads: list[NamedHead]) -> dict[str, ListForm]:
    """Canonical name → form of the columns in ``data.source.lists``.

    Raises
    ------
    SourceError
        No file has one of the columns.
    """
    for key in source.lists:
        if not any(key in (*head.head.names, *head.names) for head in heads):
            every = {name for head in heads for name in head.head.names}
            raise SourceError(
                f"data.source.lists: no file of {source.table.name} has the column {key!r}; they"
                f" have: {choices(every)}"
            )
    return {name: form for key, form in source.lists.items() for name in _names_of(key, heads)}


def lookup_of(given: str, files: Sequence[InputFile], events: TableFiles) -> Lookup:
    """A table that the events refer to.

    Parameters
    ----------
    given : str
        A key of ``data.source.lookup``: ``COLUMN``, or ``COLUMN = KEY``.
    files : sequence of InputFile
        The files of the table.
    events : TableFiles
        The files of events, whose rename applies to the columns of the table as well.

    Raises
    ------
    SourceError
        A file lacks the key.
    """
    column, key = names_of_key(given)
    renames = Renames.of(events.rename).table(schema.EVENTS.name)
    source = replace(
        events,
        table=table_of_lookup(key),
        files=tuple(files),
        rename={},
        constants={},
        numbers=(),
        lists={},
        times=TimeColumns(),
        drop={},
    )
    names: set[str] = set()
    for file in files:
        of_file = read_head(file, source).names
        if key not in of_file:
            raise SourceError(
                f"{file.path} has no column {key!r}, by which data.source.lookup finds its rows; it"
                f" has: {choices(of_file)}; write {column} = KEY if it has another name"
            )
        names |= {*of_file}
    own = {name: to for name, to in renames.items() if name in names and name != key}
    source = replace(source, rename=own)
    heads = read_heads(source)
    layout = layout_of(source, heads)
    every = {**layout.table.optional, **dict(layout.extras)}
    given_names = {name for head in heads for name in head.names}
    fills = bool({file.path for file in files} & {file.path for file in events.files})
    if fills:  # a missing cell of another column may belong to the line itself
        given_names &= {schema.USER_ID, schema.TIMESTAMP, *(own.get(n, n) for n in events.drop)}
    types = tuple((name, kind) for name, kind in every.items() if name in given_names)
    # for the cache of a task: pieces themselves are large to compare
    identity = (
        column,
        key,
        tuple(own.items()),
        types,
        *((f.path, f.size, f.modified) for f in files),
    )
    return Lookup(column, key, types, identity, pieces_of_heads(source, heads), fills)


def _common_type(one: pa.DataType, other: pa.DataType, where: str) -> pa.DataType:
    try:
        schemas = [pa.schema([("x", one)]), pa.schema([("x", other)])]
        # permissive: an integer column may be float in the file with missing values
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
        of_file = _pieces(index, named, layout, source)
        inside = named.agreeing
        pieces += (
            [PieceInFolder(piece, named.head.file.path, inside) for piece in of_file]
            if inside
            else of_file
        )
    return [FilteredPiece(piece, dict(layout.drop)) for piece in pieces] if layout.drop else pieces


def _pieces(index: int, named: NamedHead, layout: Layout, source: TableFiles) -> list[Piece]:
    head, constants, chunk_bytes = named.head, named.constants, source.chunk_bytes
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
            added = {name for lookup in layout.lookups for name, _ in lookup.types}
            # a JSON key may first occur after the head
            later = fields_after_head(dict(head.columns), renamed, layout.table)
            fields += [field for field in later if field[1] not in added]
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
        case "sequences":
            form = LineForm(
                layout, head.rows, source.form.separator, source.form.comment, index, constants
            )
            return [*sequence_pieces(SequencePiece(head.file, None, form, chunk_bytes))]
        case _:
            assert_never(head.format)  # type: ignore[arg-type]
