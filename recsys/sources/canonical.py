"""Canonical tables as Parquet, CSV, TSV, other separated text or JSON lines, local or on object
storage.

CSV follows RFC 4180 (quotes, line breaks inside quotes); in TSV a quote is a plain character. Cells
of extra columns of text files stay text; Parquet and JSON keep their types. Unknown columns keep
their names. Folders ``column=value`` above a file become columns (see
:mod:`recsys.sources.partitions`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, assert_never

import pyarrow as pa

from recsys import schema
from recsys.config import CanonicalSource
from recsys.errors import SourceError, choices
from recsys.sources.base import Piece, SourceAdapter
from recsys.sources.byte_ranges import CHUNK_BYTES
from recsys.sources.delimited import DelimitedPiece, check_codec, delimited_pieces
from recsys.sources.derived import DerivedPiece
from recsys.sources.files import InputFile, find, folder_values
from recsys.sources.headers import Form, Header, dialect_of, format_hint, read_header
from recsys.sources.jsonl import JsonlPiece, fields_after_head, jsonl_pieces, read_keys
from recsys.sources.lookup import Lookup, names_of_key, table_of_lookup
from recsys.sources.names import Renames, canonical_names, require_columns, unused_names
from recsys.sources.parquet import ParquetPiece, parquet_pieces, read_footer
from recsys.sources.partitions import PieceInFolder
from recsys.sources.validate import CellRules, Layout

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
_TEXTS: Final = ("csv", "tsv")
_OR_COLUMNS: Final = ", or, if the file has no header, all of them with data.source.columns"


@dataclass(frozen=True)
class TableFiles:
    """The files of one table and how to read them."""

    table: schema.TableSchema
    files: tuple[InputFile, ...]
    rename: Mapping[str, str | dict[str, str]] = field(default_factory=dict)  # data.source.rename
    format: str = "auto"
    form: Form = Form()
    constants: Mapping[str, dict[str, str]] = field(default_factory=dict)  # path → column → value
    fixed: Mapping[str, str] = field(default_factory=dict)  # column → value in all files
    chunk_bytes: int = CHUNK_BYTES
    rules: CellRules = CellRules()
    numbers: tuple[str, ...] = ()  # further columns that are read as numbers
    lists: Mapping[str, str] = field(default_factory=dict)  # column of lists → separator
    lookups: tuple[Lookup, ...] = ()
    clock: str = ""  # column with the time of day


class CanonicalAdapter(SourceAdapter):
    """Files with the canonical columns, or with columns that ``rename`` or ``columns`` maps to
    them.
    """

    appends = True
    config: CanonicalSource

    def __init__(self, config: CanonicalSource) -> None:
        super().__init__(config)
        # paths of files of events that were read earlier
        self._left_out: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """The short name of the data set."""
        return self._tables()["events"].files[0].name.split(".")[0]

    def files(self) -> list[InputFile]:
        """All input files."""
        lookups = [file for patterns in self.config.lookup.values() for file in find(patterns)]
        tables = [file for table in self._tables().values() for file in table.files]
        return list({file.path: file for file in (*tables, *lookups)}.values())

    def event_files(self) -> list[dict[str, Any]]:
        """A description of each file of events with its fingerprint."""
        table = self._tables()["events"]
        return [_known(file, table) | {"fingerprint": self.hash_of(file)} for file in table.files]

    def leave_out(self, known: Sequence[dict[str, Any]]) -> int:
        """Skip the files of events in ``known`` and return the number left."""
        seen = [
            {key: value for key, value in file.items() if key != "fingerprint"} for file in known
        ]
        hashes = {_content(file) for file in known}
        table = self._tables()["events"]
        for file in table.files:
            now = _known(file, table)
            if now in seen or _content(now | {"fingerprint": self.hash_of(file)}) in hashes:
                self._left_out |= {file.path}
        return sum(file.path not in self._left_out for file in table.files)

    def roles(self) -> dict[str, str]:
        """The tables of each file, and the columns that its key in the configuration gives."""
        found: dict[str, str] = {}
        for name, table in self._tables().items():
            for file in table.files:
                constants = dict(sorted(table.constants.get(file.path, {}).items()))
                found[file.path] = f"{found.get(file.path, '')} {name} {constants or ''}".strip()
        for key, patterns in self.config.lookup.items():
            for file in find(patterns):
                found[file.path] = f"{found.get(file.path, '')} lookup {key}".strip()
        return found

    def check(self) -> None:
        """Check the heads of all files; see the base class."""
        tables = self._with_lookups(self._tables())
        heads = self._heads(tables)
        self._derived(tables["events"], heads["events"], [])

    def pieces(self) -> dict[str, list[Piece]]:
        """The pieces of all tables."""
        tables = self._with_lookups(self._tables())
        heads = self._heads(tables)
        pieces = {name: _table_pieces(source, heads[name]) for name, source in tables.items()}
        return {**pieces, **self._derived(tables["events"], heads["events"], pieces["events"])}

    def _with_lookups(self, tables: dict[str, TableFiles]) -> dict[str, TableFiles]:
        """The tables, with the tables that the events refer to."""
        if not self.config.lookup:
            return tables
        events = tables[schema.EVENTS.name]
        found = tuple(
            _lookup(given, find(patterns), events) for given, patterns in self.config.lookup.items()
        )
        return {**tables, schema.EVENTS.name: replace(events, lookups=found)}

    def _derived(
        self, events: TableFiles, heads: list[NamedHead], pieces: list[Piece]
    ) -> dict[str, list[Piece]]:
        """The tables that are made from columns of the events.

        Raises
        ------
        SourceError
            The events lack a column.
        """
        found = _layout(events, heads)
        kinds, made = dict(found.extras), dict[str, list[Piece]]()
        for table, names in self._made_of_events():
            if unknown := [name for name in names if name not in kinds]:
                raise SourceError(
                    f"data.source.{table.name.rstrip('s')}_columns: {unknown[0]!r} is not a "
                    "further column of the events; "
                    f"they have: {choices(kinds) or 'none'}"
                )
            layout = Layout(table, tuple((name, kinds[name]) for name in names), events.rules)
            made[table.name] = [DerivedPiece(piece, layout) for piece in pieces]
        return made

    def _made_of_events(self) -> list[tuple[schema.TableSchema, list[str]]]:
        given = ((schema.ITEMS, self.config.item_columns), (schema.USERS, self.config.user_columns))
        return [(table, list(dict.fromkeys(names))) for table, names in given if names]

    def _heads(self, tables: Mapping[str, TableFiles]) -> dict[str, list[NamedHead]]:
        """Read the heads of all files and fill the notes.

        Raises
        ------
        SourceError
            A file has another format than expected or lacks a required column, or a setting fits no
            file.
        """
        found = {
            name: [_head(file, source) for file in source.files] for name, source in tables.items()
        }
        self._check_settings(found)
        heads = named_heads(tables, found)
        for name, of_table in heads.items():
            _check_numbers(self.config.numbers.get(name, ()), of_table, tables[name].table)
        self.notes = _notes([head for of_table in found.values() for head in of_table])
        for name, of_table in heads.items():
            every = dict.fromkeys(column for head in of_table for column in head.types)
            if all(
                head.head.format != "jsonl" for head in of_table
            ):  # a JSON key may first occur late in the file
                self.columns[name] = {*every, *schema.TABLES[name].columns}
            if name == schema.EVENTS.name:
                self.columns |= {made.name: {*names} for made, names in self._made_of_events()}
            self.notes += [
                f"{name}: {note}" for note in unused_names([*every], schema.TABLES[name])
            ]
            if any(
                head.types.get(schema.TIMESTAMP) in (pa.float32(), pa.float16())
                for head in of_table
            ):
                self.notes.append(
                    f"{name}: the timestamps are 32-bit floats, which hold seconds since the epoch"
                    " only to 128 s; write them as integers or 64-bit floats"
                )
        return heads

    def _check_settings(self, found: Mapping[str, list[_Head]]) -> None:
        """Refuse settings of text files if there is no text file, and settings of tables without
        files.
        """
        config = self.config
        given = {
            "columns": config.columns,
            "separator": config.separator,
            "comment": config.comment,
        }
        given = {
            key: value
            for key, value in given.items()
            if not isinstance(value, dict) or any(value.values())
        }
        texts = {
            name for name, heads in found.items() if any(head.format in _TEXTS for head in heads)
        }
        for key, value in given.items():
            if value and not texts:
                raise SourceError(
                    f"data.source.{key} is for text files (such as CSV and TSV), but every file"
                    " here is"
                    f" {choices({head.format for heads in found.values() for head in heads})}:"
                    " remove it, or set data.source.format; use data.source.rename to rename"
                    " columns"
                )
        for key in ("columns", "constants", "numbers", "separator", "comment", "encoding"):
            value = getattr(config, key)
            for name in value if isinstance(value, dict) else ():
                if name not in found:
                    raise SourceError(
                        f"data.source.{key} has an entry {name}, but data.source.{name} lists no"
                        " file"
                    )

    def _tables(self) -> dict[str, TableFiles]:
        config = self.config
        for encoding in (
            config.encoding.values() if isinstance(config.encoding, dict) else [config.encoding]
        ):
            check_codec(encoding)
        splits = {split: find(patterns) for split, patterns in config.split_files.items()}
        constants: dict[str, dict[str, str]] = {}
        for split, files in splits.items():
            for file in files:
                if file.path in constants:
                    raise SourceError(
                        f"{file.path} is in split_files of {constants[file.path][schema.SPLIT]} and"
                        f" {split}"
                    )
                constants[file.path] = {schema.SPLIT: split}
        types = {kind: find(patterns) for kind, patterns in config.type_files.items()}
        for kind, files in types.items():
            for file in files:
                if schema.EVENT_TYPE in constants.setdefault(file.path, {}):
                    known = constants[file.path][schema.EVENT_TYPE]
                    raise SourceError(f"{file.path} is in type_files of {known} and {kind}")
                constants[file.path][schema.EVENT_TYPE] = kind
        named = [file for group in (*splits.values(), *types.values()) for file in group]
        tables = {}
        for name, table in schema.TABLES.items():
            patterns: list[str] = getattr(config, name)
            files = find(patterns)
            if table is schema.EVENTS:
                files = list({file.path: file for file in [*files, *named]}.values())
                files = [file for file in files if file.path not in self._left_out]
            if files:
                tables[name] = TableFiles(
                    table,
                    tuple(files),
                    config.rename,
                    config.format,
                    _form(config, name),
                    constants if table is schema.EVENTS else {},
                    config.constants.get(name, {}),
                    rules=CellRules.of(config),
                    numbers=tuple(config.numbers.get(name, ())),
                    lists=config.lists if table is schema.EVENTS else {},
                    clock=config.clock if table is schema.EVENTS else "",
                )
        return tables


def _known(file: InputFile, table: TableFiles) -> dict[str, Any]:
    """The identity of a file that needs no reading of its content."""
    values = {**folder_values(file.path), **table.constants.get(file.path, {})}
    return {"name": file.name, "size": file.size, "modified": file.modified, "values": values}


def _content(file: Mapping[str, Any]) -> tuple[Any, ...]:
    """The values that are equal for two files with the same events."""
    return file["size"], file["fingerprint"], tuple(sorted(file["values"].items()))


def _form(config: CanonicalSource, table: str) -> Form:
    """The settings of the text files of one table."""

    def of_table(setting: str | dict[str, str], default: str) -> str:
        return setting.get(table, default) if isinstance(setting, dict) else setting

    columns = (
        config.columns if isinstance(config.columns, dict) else {schema.EVENTS.name: config.columns}
    )
    return Form(
        of_table(config.separator, ""),
        tuple(columns.get(table, ())),
        config.header,
        of_table(config.comment, ""),
        of_table(config.encoding, "utf-8"),
        table,
    )


def table_pieces(source: TableFiles) -> list[Piece]:
    """The pieces of a single table.

    Raises
    ------
    SourceError
        A file has another format than expected, lacks a required column, or types differ between
        files.
    """
    return _table_pieces(source, read_heads(source))


def read_heads(source: TableFiles) -> list[NamedHead]:
    """The heads of the files of a single table; raises like :func:`table_pieces`."""
    name = source.table.name
    return named_heads({name: source}, {name: [_head(file, source) for file in source.files]})[name]


def _lookup(given: str, files: Sequence[InputFile], events: TableFiles) -> Lookup:
    """A table that the events refer to.

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
        clock="",
    )
    names: set[str] = set()
    for file in files:
        of_file = _head(file, source).names
        if key not in of_file:
            raise SourceError(
                f"{file.path} has no column {key!r}, by which data.source.lookup finds its rows; it"
                f" has: {choices(of_file)}; write {column} = KEY if it has another name"
            )
        names |= {*of_file}
    own = {name: to for name, to in renames.items() if name in names and name != key}
    source = replace(source, rename=own)
    heads = read_heads(source)
    layout = _layout(source, heads)
    every = {**layout.table.optional, **dict(layout.extras)}
    given_names = {name for head in heads for name in head.names}
    types = tuple((name, kind) for name, kind in every.items() if name in given_names)
    identity = (column, key, tuple(own.items()), *((f.path, f.size, f.modified) for f in files))
    return Lookup(column, key, types, identity, _table_pieces(source, heads))


@dataclass(frozen=True)
class _Head:
    """The head of a file: its format, its columns with types, and where its rows are."""

    file: InputFile
    format: str
    columns: tuple[tuple[str, pa.DataType], ...]
    rows: Any  # rows of every group (Parquet), None (text, JSON lines)
    header: Header | None  # of a text file
    folders: dict[str, str]  # columns from the names of folders

    @property
    def names(self) -> list[str]:
        """Names of the columns in the file, then of the folders."""
        return [*(name for name, _ in self.columns), *self.folders]


@dataclass(frozen=True)
class NamedHead:
    """A head with the canonical name of every column."""

    head: _Head
    names: tuple[str, ...]  # of the columns in the file, "" for a skipped one
    constants: dict[str, str]  # columns that the file does not have
    agreeing: dict[str, str]  # values of folders for columns that the file also has

    @property
    def types(self) -> dict[str, pa.DataType]:
        """Types of all columns by canonical name."""
        columns = {
            name: kind
            for name, (_, kind) in zip(self.names, self.head.columns, strict=True)
            if name
        }
        return {**columns, **{name: pa.string() for name in self.constants if name not in columns}}


def _head(file: InputFile, source: TableFiles) -> _Head:
    kind = _format(file, source)
    folders = folder_values(file.path)
    if kind in _TEXTS:
        header = read_header(file, dialect_of(kind, source.form), source.form)
        return _Head(
            file, kind, tuple((name, pa.string()) for name in header.columns), None, header, folders
        )
    if source.form.columns:
        raise SourceError(
            f"{file.path}: data.source.columns names the columns of text files without a header,"
            f" but this file is {kind} and has column names; use data.source.rename"
        )
    columns, groups = read_footer(file) if kind == "parquet" else (read_keys(file), None)
    return _Head(file, kind, tuple(columns.items()), groups, None, folders)


def named_heads(
    tables: Mapping[str, TableFiles], found: Mapping[str, list[_Head]]
) -> dict[str, list[NamedHead]]:
    """The canonical names of all columns of all tables.

    Raises
    ------
    SourceError
        A table lacks a required column, a rename fits no column, or a header is a row of data.
    """
    renames = Renames.of(next(iter(tables.values())).rename)
    columns = {
        name: {column for head in heads for column in head.names} for name, heads in found.items()
    }
    for name, source in tables.items():
        for lookup in source.lookups:  # whose columns may be renamed as those of the events
            own = Renames.of(source.rename).table(name)
            added = {to for to, _ in lookup.types}
            columns[name] |= {given for given, to in own.items() if to in added} | added
    problem: SourceError | None = None
    try:
        renames = renames.matched(columns)
    except SourceError as error:
        problem = error  # a missing column comes first: its message is more useful
    named = {
        name: [_named(head, tables[name], renames.table(name)) for head in heads]
        for name, heads in found.items()
    }
    if problem is not None:
        raise problem
    return named


def _named(head: _Head, source: TableFiles, rename: Mapping[str, str]) -> NamedHead:
    names = canonical_names(head.names, rename, source.table)
    of_file, of_folders = names[: len(head.columns)], names[len(head.columns) :]
    values = dict(zip(of_folders, head.folders.values(), strict=True))
    inside = {name: value for name, value in values.items() if name in of_file and value}
    constants = {name: value for name, value in values.items() if name not in of_file}
    if both := sorted(set(source.fixed) & {*of_file, *constants}):
        raise SourceError(
            f"{head.file.path} has a column {both[0]!r}, and data.source.constants gives it one"
            f" value ({source.fixed[both[0]]!r}) for every row; remove the constant, or rename the"
            " column"
        )
    constants |= source.fixed
    constants |= source.constants.get(head.file.path, {})
    inside = {name: value for name, value in inside.items() if name not in constants}
    header = head.header
    added = _looked_up(head, of_file, source)
    require_columns(
        source.table,
        [*head.names, *source.fixed, *added],
        [
            *of_file,
            *("" if name in of_file else name for name in of_folders),
            *source.fixed,
            *added,
        ],
        head.file.path,
        header.cure if header else "",
        _OR_COLUMNS if header and not header.is_given else "",
    )
    if header is not None and not header.is_given and source.form.header == "auto":
        reason = next((why for name, why in header.suspects.items() if name in rename), "")
        if reason:
            raise SourceError(
                f"{head.file.path}: the first row was read as a header, but looks like data"
                f" ({reason}); if the file has no header, name its columns with"
                " data.source.columns, not with data.source.rename; if the row is a header, set"
                " data.source.header to yes"
            )
    return NamedHead(head, of_file, constants, inside)


def _looked_up(head: _Head, names: Sequence[str], source: TableFiles) -> dict[str, pa.DataType]:
    """The columns that a file of events gets from other tables.

    Raises
    ------
    SourceError
        The file lacks the column that refers to a table.
    """
    found: dict[str, pa.DataType] = {}
    for lookup in source.lookups:
        if lookup.column not in names:
            raise SourceError(
                f"{head.file.path} has no column {lookup.column!r}, by which data.source.lookup"
                f" finds further columns; it has: {choices(head.names)}"
            )
        found |= {name: kind for name, kind in lookup.types if name not in names}
    return found


def _notes(heads: list[_Head]) -> list[str]:
    """The notes of all files; equal notes are one line."""
    found: dict[str, list[str]] = {}
    for head in heads:
        for note in head.header.notes if head.header else ():
            found.setdefault(note, []).append(head.file.name)
    return [f"{names[0]}{_others(len(names) - 1)}: {note}" for note, names in found.items()]


def _others(count: int) -> str:
    return f" and {count} more {'file' if count == 1 else 'files'}" if count else ""


def _format(file: InputFile, source: TableFiles) -> str:
    if source.format != "auto":
        return source.format
    if file.suffix in _FORMATS:
        return _FORMATS[file.suffix]
    if source.form.separator or source.form.columns:
        return "tsv" if source.form.separator == "\t" else "csv"
    hint = format_hint(file) or "text with other separators: data.source.separator"
    raise SourceError(
        f"{file.path}: cannot tell the format of {file.suffix or 'a file without extension'!r};"
        f" known: {choices(_FORMATS)} (text also with .gz), or set data.source.format to one of:"
        f" {choices(set(_FORMATS.values()))}; {hint}; a pattern such as FOLDER/*.csv excludes other"
        " files"
    )


def _layout(source: TableFiles, heads: list[NamedHead]) -> Layout:
    """The layout with the union of the files' extra columns, each with one type."""
    extras: dict[str, pa.DataType] = {}
    for head in heads:
        added = _looked_up(head.head, head.names, source)
        for name, kind in {**head.types, **added}.items():
            if name not in source.table.columns:
                kind = pa.float64() if name in source.numbers and not _is_number(kind) else kind
                where = f"{head.head.file.path}: column {name!r}"
                extras[name] = _common_type(extras.get(name, kind), kind, where)
    lists = {
        name: mark
        for head in heads
        for (given, _), name in zip(head.head.columns, head.names, strict=True)
        for key, mark in source.lists.items()
        if name and key in (given, name)
    }
    for key in source.lists:
        if not any(key in (*head.head.names, *head.names) for head in heads):
            every = {name for head in heads for name in head.head.names}
            raise SourceError(
                f"data.source.lists: no file of events has the column {key!r}; they have:"
                f" {choices(every)}"
            )
    if source.clock and source.clock not in extras:
        raise SourceError(
            f"data.source.clock: the events have no further column {source.clock!r}; they have:"
            f" {choices(extras) or 'none'}"
        )
    return Layout(
        source.table,
        tuple(extras.items()),
        source.rules,
        tuple(lists.items()),
        source.lookups,
        source.clock,
    )


def _check_numbers(names: Sequence[str], heads: list[NamedHead], table: schema.TableSchema) -> None:
    """Check the columns of ``data.source.numbers``.

    Raises
    ------
    SourceError
        A column does not exist, or is a known column of the table.
    """
    extras = {name for head in heads for name in head.types if name not in table.columns}
    for name in names:
        if name not in extras and all(head.head.format != "jsonl" for head in heads):
            raise SourceError(
                f"data.source.numbers.{table.name}: {name!r} is not a further column of the"
                f" {table.name}; they have: {choices(extras) or 'none'}"
            )


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


def _table_pieces(source: TableFiles, heads: list[NamedHead]) -> list[Piece]:
    layout = _layout(source, heads)
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
            added = {name for lookup in layout.lookups for name, _ in lookup.types}
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
        case _:
            assert_never(head.format)  # type: ignore[arg-type]
