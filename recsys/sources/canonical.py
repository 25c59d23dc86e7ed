"""Canonical tables as Parquet, CSV, TSV or JSON lines, local or on object storage.

CSV follows RFC 4180 (quotes, line breaks inside quotes); in TSV a quote is a plain character. Cells of extra columns of
text files stay text; Parquet and JSON keep their types. Columns that no rule knows are kept under their own names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, assert_never

import pyarrow as pa

from recsys import schema
from recsys.config import CanonicalSource
from recsys.data.validate import Layout
from recsys.errors import SourceError, choices
from recsys.sources.base import Piece, SourceAdapter, require_columns
from recsys.sources.delimited import DelimitedPiece, check_codec, delimited_pieces, read_header
from recsys.sources.files import InputFile, find
from recsys.sources.jsonl import JsonlPiece, jsonl_pieces, late_fields, read_keys
from recsys.sources.parquet import ParquetPiece, parquet_pieces, read_footer
from recsys.sources.spans import CHUNK_BYTES, CSV, TSV

_FORMATS: Final = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
}


@dataclass(frozen=True)
class TableFiles:
    """The files of one table and how to read them."""

    table: schema.TableSchema
    files: tuple[InputFile, ...]
    rename: Mapping[str, str] = field(default_factory=dict)
    format: str = "auto"
    encoding: str = "utf-8"
    constants: Mapping[str, dict[str, str]] = field(default_factory=dict)  # path → column → value
    chunk_bytes: int = CHUNK_BYTES


class CanonicalAdapter(SourceAdapter):
    """Files that already have the canonical columns, or get them by ``rename``."""

    config: CanonicalSource

    @property
    def name(self) -> str:
        return self._tables()["events"].files[0].name.split(".")[0]

    def files(self) -> list[InputFile]:
        return list({file.path: file for table in self._tables().values() for file in table.files}.values())

    def pieces(self) -> dict[str, list[Piece]]:
        tables = self._tables()
        found = {name: table_pieces(table) for name, table in tables.items()}
        check_rename(self.config.rename, {column for _, columns in found.values() for column in columns})
        return {name: pieces for name, (pieces, _) in found.items()}

    def _tables(self) -> dict[str, TableFiles]:
        config = self.config
        check_codec(config.encoding)
        splits = {split: find(patterns) for split, patterns in config.split_files.items()}
        constants: dict[str, dict[str, str]] = {}
        for split, files in splits.items():
            for file in files:
                if file.path in constants:
                    raise SourceError(
                        f"{file.path} is in split_files of {constants[file.path][schema.SPLIT]} and {split}"
                    )
                constants[file.path] = {schema.SPLIT: split}
        tables = {}
        for name, table in schema.TABLES.items():
            patterns: list[str] = getattr(config, name)
            files = find(patterns)
            if table is schema.EVENTS:
                files = list({f.path: f for f in [*files, *(f for group in splits.values() for f in group)]}.values())
            if files:
                given = constants if table is schema.EVENTS else {}
                tables[name] = TableFiles(table, tuple(files), config.rename, config.format, config.encoding, given)
        return tables


def table_pieces(source: TableFiles) -> tuple[list[Piece], set[str]]:
    """The pieces of a table and the column names that its files have.

    Raises:
        SourceError: a file is not what it claims, lacks a required column, or types differ between files.
    """
    heads = [_head(file, source) for file in source.files]
    for head in heads:
        names = [source.rename.get(name, name) for name in head.columns]
        cure = "name the right ones with data.source.rename, e.g. {uid: user_id}"
        require_columns(source.table, names, head.file.path, cure)
    layout = _layout(source, heads)
    pieces: list[Piece] = []
    for index, head in enumerate(heads):
        pieces += _pieces(index, head, layout, source)
    return pieces, {name for head in heads for name in head.columns}


def check_rename(rename: Mapping[str, str], columns: set[str]) -> None:
    """Check that every renamed column is in some file.

    Raises:
        SourceError: a name that no file has (a typo would otherwise pass unseen).
    """
    unknown = [name for name in rename if name not in columns]
    if unknown:
        raise SourceError(
            f"data.source.rename names {', '.join(map(repr, unknown))}, which no file has; "
            f"the files have: {choices(columns)}"
        )


@dataclass(frozen=True)
class _Head:
    """What one look at a file tells: its format, columns with types, and where rows are."""

    file: InputFile
    format: str
    columns: dict[str, pa.DataType]
    rows: Any  # header end (text), rows of every group (Parquet), None (JSON lines)
    constants: dict[str, str]


def _head(file: InputFile, source: TableFiles) -> _Head:
    constants = dict(source.constants.get(file.path, {}))
    kind = _format(file, source.format)
    if kind == "parquet":
        columns, groups = read_footer(file)
        return _Head(file, kind, columns, groups, constants)
    if kind == "jsonl":
        return _Head(file, kind, read_keys(file), None, constants)
    dialect = replace(CSV if kind == "csv" else TSV, encoding=source.encoding)
    header = read_header(file, dialect)
    names = [source.rename.get(name, name) for name in header.columns]
    require_columns(source.table, names, file.path, _cure(names, dialect.delimiter))
    return _Head(file, kind, {name: pa.string() for name in header.columns}, header.end, constants)


def _cure(names: list[str], delimiter: str) -> str:
    others = [d for d in (",", "\t", ";", "|", " ") if d != delimiter and len(names) == 1 and d in names[0]]
    if others:
        found = f"the header looks separated by {others[0]!r}, not {delimiter!r}"
        return f"{found}: set data.source.format or convert the file"
    return "name the right ones with data.source.rename, e.g. {uid: user_id}"


def _format(file: InputFile, wanted: str) -> str:
    if wanted != "auto":
        return wanted
    if file.suffix not in _FORMATS:
        raise SourceError(
            f"{file.path}: cannot tell the format of {file.suffix or 'a file without extension'!r}; known: "
            f"{choices(_FORMATS)} (text also with .gz), "
            f"or set data.source.format to one of: {choices(set(_FORMATS.values()))}"
        )
    return _FORMATS[file.suffix]


def _layout(source: TableFiles, heads: list[_Head]) -> Layout:
    """The union of the files' extra columns, with one type each."""
    extras: dict[str, pa.DataType] = {}
    for head in heads:
        for original, kind in head.columns.items():
            name = source.rename.get(original, original)
            if name in source.table.columns:
                continue
            extras[name] = _common_type(extras.get(name, kind), kind, f"{head.file.path}: column {name!r}")
    return Layout(source.table, tuple(extras.items()))


def _common_type(one: pa.DataType, other: pa.DataType, where: str) -> pa.DataType:
    try:
        schemas = [pa.schema([("x", one)]), pa.schema([("x", other)])]
        return pa.unify_schemas(schemas, promote_options="permissive").field("x").type
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        raise SourceError(f"{where} is {other}, in an earlier file of the table {one}; give them one type") from None


def _pieces(index: int, head: _Head, layout: Layout, source: TableFiles) -> list[Piece]:
    def canonical(name: str) -> str:
        return source.rename.get(name, name)

    match head.format:
        case "parquet":
            names = tuple((name, canonical(name)) for name in head.columns)
            return [*parquet_pieces(ParquetPiece(head.file, index, names, layout, constants=head.constants), head.rows)]
        case "jsonl":
            fields = tuple((name, canonical(name), kind) for name, kind in head.columns.items())
            fields += tuple(late_fields(head.columns, source.rename, source.table))
            size = source.chunk_bytes
            return [*jsonl_pieces(JsonlPiece(head.file, index, fields, layout, None, head.constants, size))]
        case "csv" | "tsv":
            dialect = replace(CSV if head.format == "csv" else TSV, encoding=source.encoding)
            columns = tuple(canonical(name) for name in head.columns)
            pattern = DelimitedPiece(
                head.file, index, columns, layout, dialect, head.rows, None, head.constants, source.chunk_bytes
            )
            return [*delimited_pieces(pattern)]
        case _:
            assert_never(head.format)  # type: ignore[arg-type]
