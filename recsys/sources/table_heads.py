"""The heads of the files of a table: their formats, and the canonical names of their columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa

from recsys import schema
from recsys.errors import SourceError, choices
from recsys.sources.byte_ranges import CHUNK_BYTES
from recsys.sources.files import InputFile, folder_values
from recsys.sources.first_rows import Form, dialect_of, first_byte, head_of
from recsys.sources.headers import Header, format_hint, read_header
from recsys.sources.jsonl import read_keys
from recsys.sources.list_cells import ListForm
from recsys.sources.lookup import Lookup
from recsys.sources.names import Renames, canonical_names, require_columns
from recsys.sources.parquet import read_footer
from recsys.sources.sequence_lines import read_line_head
from recsys.sources.time_columns import TimeColumns
from recsys.sources.validate import CellRules

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

TEXT_FORMATS: Final = ("csv", "tsv")
SEQUENCES: Final = "sequences"  # lines of USER ITEM ITEM …

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
    lists: Mapping[str, ListForm] = field(default_factory=dict)  # columns of lists
    lookups: tuple[Lookup, ...] = ()
    times: TimeColumns = TimeColumns()  # the columns that have the times together
    drop: Mapping[str, list[str]] = field(default_factory=dict)  # column → values of unread rows


def read_heads(source: TableFiles) -> list[NamedHead]:
    """The heads of the files of a single table; raises like :func:`table_pieces`."""
    name = source.table.name
    return named_heads({name: source}, {name: [read_head(file, source) for file in source.files]})[
        name
    ]


@dataclass(frozen=True)
class FileHead:
    """The head of a file: its format, its columns with types, and where its rows are."""

    file: InputFile
    format: str
    columns: tuple[tuple[str, pa.DataType], ...]
    rows: Any  # rows of every group (Parquet), start of the lines (sequences), else None
    header: Header | None  # of a text file
    folders: dict[str, str]  # columns from the names of folders
    notes: tuple[str, ...] = ()  # what the user should know about the file

    @property
    def names(self) -> list[str]:
        """Names of the columns in the file, then of the folders."""
        return [*(name for name, _ in self.columns), *self.folders]


@dataclass(frozen=True)
class NamedHead:
    """A head with the canonical name of every column."""

    head: FileHead
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


def read_head(file: InputFile, source: TableFiles) -> FileHead:
    """Read the format and the columns of a file.

    Raises
    ------
    SourceError
        The format is unknown, or the head contradicts the configuration.
    """
    kind = _format(file, source)
    folders = folder_values(file.path)
    if kind in TEXT_FORMATS:
        header = read_header(file, dialect_of(kind, source.form), source.form)
        return FileHead(
            file,
            kind,
            tuple((name, pa.string()) for name in header.columns),
            None,
            header,
            folders,
            header.notes,
        )
    if source.form.columns:
        raise SourceError(
            f"{file.path}: data.source.columns names the columns of text files without a header,"
            f" but this file is {kind} and has column names; use data.source.rename"
        )
    if kind == SEQUENCES:
        lines = read_line_head(file, source.form.separator, source.form.comment)
        ids = tuple((name, pa.string()) for name in (schema.USER_ID, schema.ITEM_ID))
        return FileHead(file, kind, ids, lines.start, None, folders, lines.notes)
    columns, groups = read_footer(file) if kind == "parquet" else (read_keys(file), None)
    return FileHead(file, kind, tuple(columns.items()), groups, None, folders)


def named_heads(
    tables: Mapping[str, TableFiles], found: Mapping[str, list[FileHead]]
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


def _named(head: FileHead, source: TableFiles, rename: Mapping[str, str]) -> NamedHead:
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
    added = looked_up_types(head, of_file, source)
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
    # a rename of a value as if it were a name would lose the first row without an error
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


def looked_up_types(
    head: FileHead, names: Sequence[str], source: TableFiles
) -> dict[str, pa.DataType]:
    """The columns that a file of events gets from other tables, with their types.

    Parameters
    ----------
    head : FileHead
        Head of the file.
    names : Sequence[str]
        Columns of the file by their canonical names; they are not looked up.
    source : TableFiles
        The files of the table, with their lookups.

    Returns
    -------
    dict[str, pa.DataType]
        Column → its type.

    Raises
    ------
    SourceError
        The file lacks the column that refers to a table.
    """
    found: dict[str, pa.DataType] = {}
    for lookup in source.lookups:
        if lookup.column not in (*names, *found):
            raise SourceError(
                f"{head.file.path} has no column {lookup.column!r}, by which data.source.lookup"
                f" finds further columns; it has: {choices(head.names)}"
            )
        found |= {name: kind for name, kind in lookup.types if name not in names}
    return found


def _format(file: InputFile, source: TableFiles) -> str:
    if source.format != "auto":
        return source.format
    if file.suffix in _FORMATS:
        return _FORMATS[file.suffix]
    if source.form.separator or source.form.columns:
        return "tsv" if source.form.separator == "\t" else "csv"
    if first_byte(head_of(file)) == b"{":
        return "jsonl"
    hint = format_hint(file) or "text with other separators: data.source.separator"
    raise SourceError(
        f"{file.path}: cannot tell the format of {file.suffix or 'a file without extension'!r};"
        f" known: {choices(_FORMATS)} (text also with .gz), or set data.source.format to one of:"
        f" {choices(set(_FORMATS.values()))}; {hint}; a pattern such as FOLDER/*.csv excludes other"
        " files"
    )
