"""Canonical tables as Parquet, CSV, TSV, other separated text or JSON lines, local or on object
storage.

CSV follows RFC 4180 (quotes, line breaks inside quotes); in TSV a quote is a plain character. Cells
of extra columns of text files stay text; Parquet and JSON keep their types. Unknown columns keep
their names. Folders ``column=value`` above a file become columns (see
:mod:`recsys.sources.partitions`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import pyarrow as pa

from recsys import schema
from recsys.config import CanonicalSource
from recsys.config.section import as_list
from recsys.errors import SourceError, choices
from recsys.sources.base import Piece, SourceAdapter
from recsys.sources.derived import DerivedPiece
from recsys.sources.files import InputFile, find, folder_values
from recsys.sources.first_rows import Form
from recsys.sources.links import linked
from recsys.sources.list_cells import ListForm
from recsys.sources.names import unused_names
from recsys.sources.table_heads import (
    SEQUENCES,
    TEXT_FORMATS,
    FileHead,
    NamedHead,
    TableFiles,
    named_heads,
    read_head,
)
from recsys.sources.table_pieces import layout_of, lookup_of, pieces_of_heads
from recsys.sources.text_checks import check_codec
from recsys.sources.time_columns import TimeColumns
from recsys.sources.validate import CellRules, Layout

_Value = TypeVar("_Value")


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

    @property
    def made_of_events(self) -> frozenset[str]:
        """The tables that are made from columns of the events."""
        return frozenset(table.name for table, _ in self._made_of_events())

    def files(self) -> list[InputFile]:
        """All input files."""
        lookups = [file for patterns in self.config.lookup.values() for file in find(patterns)]
        # one file may have several tables
        tables = [file for table in self._tables().values() for file in table.files]
        return list({file.path: file for file in (*tables, *lookups)}.values())

    def event_files(self) -> list[dict[str, Any]]:
        """A description of each file of events with its fingerprint."""
        table = self._tables()["events"]
        return [_known(file, table) | {"fingerprint": self.hash_of(file)} for file in table.files]

    def leave_out(self, known: Sequence[dict[str, Any]]) -> int:
        """Skip the files of events in ``known`` and return the number left."""
        # the description first, so that most files need not be read for their hash
        seen = [
            {key: value for key, value in file.items() if key != "fingerprint"} for file in known
        ]
        hashes = {_content(file) for file in known}
        table = self._tables()["events"]
        for file in table.files:
            now = _known(file, table)
            # by content too: a file may have been moved or copied
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
        pieces = {name: pieces_of_heads(source, heads[name]) for name, source in tables.items()}
        pieces |= self._derived(tables["events"], heads["events"], pieces["events"])
        if links := pieces.pop(schema.LINKS.name, None):
            items: list[Any] = pieces.get(schema.ITEMS.name, [])
            if table := tables.get(schema.ITEMS.name):
                layout = layout_of(table, heads[schema.ITEMS.name])
            else:  # from columns of the events, or none
                layout = items[0].layout if items else Layout(schema.ITEMS)
            pieces[schema.ITEMS.name] = linked(items, links, layout)
        return pieces

    def _with_lookups(self, tables: dict[str, TableFiles]) -> dict[str, TableFiles]:
        """The tables, with the tables that the events refer to."""
        if not self.config.lookup:
            return tables
        events = tables[schema.EVENTS.name]
        found = tuple(
            lookup_of(given, find(patterns), events)
            for given, patterns in self.config.lookup.items()
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
        found = layout_of(events, heads)
        kinds, made = dict(found.extras), dict[str, list[Piece]]()
        for table, names in self._made_of_events():
            if unknown := [name for name in names if name not in kinds]:
                raise SourceError(
                    f"data.source.{table.name.rstrip('s')}_columns: the events have no column"
                    f" {unknown[0]!r} besides the standard ones; their other columns:"
                    f" {choices(kinds) or 'none'}"
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
            name: [read_head(file, source) for file in source.files]
            for name, source in tables.items()
        }
        self._check_settings(found)
        heads = named_heads(tables, found)
        for name, of_table in heads.items():
            _check_numbers(self.config.numbers.get(name, ()), of_table, tables[name])
        self.notes = _notes([head for of_table in found.values() for head in of_table])
        for name, of_table in heads.items():
            every = dict.fromkeys(column for head in of_table for column in head.types)
            if all(
                head.head.format != "jsonl" for head in of_table
            ):  # a JSON key may first occur late in the file
                self.columns[name] = {*every, *schema.FILE_TABLES[name].columns}
            if name == schema.EVENTS.name:
                self.columns |= {made.name: {*names} for made, names in self._made_of_events()}
            self.notes += [
                f"{name}: {note}" for note in unused_names([*every], schema.FILE_TABLES[name])
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

    def _check_settings(self, found: Mapping[str, list[FileHead]]) -> None:
        """Refuse settings of text files if there is no text file, and settings of tables without
        files.

        Raises
        ------
        SourceError
            There is such a setting.
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
            name
            for name, heads in found.items()
            if any(head.format in (*TEXT_FORMATS, SEQUENCES) for head in heads)
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
        if unknown := sorted(set(config.chosen) - set(config.lists)):
            raise SourceError(
                f"data.source.chosen names the column {unknown[0]!r}, but data.source.lists does"
                f" not: add {unknown[0]!r} to data.source.lists"
            )
        for name, value in config.lists.items():
            if isinstance(value, dict) and name not in found:
                raise SourceError(
                    f"data.source.lists has an entry {name}, but data.source.{name} lists no file"
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
        for name, table in schema.FILE_TABLES.items():
            patterns: list[str] = getattr(config, name)
            files = find(patterns)
            if table is schema.EVENTS:
                # a file may be in ``events`` and in ``split_files``; its events count once
                files = list({file.path: file for file in [*files, *named]}.values())
                files = [file for file in files if file.path not in self._left_out]
            if files:
                tables[name] = TableFiles(
                    table,
                    tuple(files),
                    config.rename,
                    _of_table(config.format, name, "auto"),
                    _form(config, name),
                    constants if table is schema.EVENTS else {},
                    config.constants.get(name, {}),
                    rules=CellRules.of(config, name),
                    numbers=tuple(config.numbers.get(name, ())),
                    lists=_lists(config, name),
                    times=_times(config) if table is schema.EVENTS else TimeColumns(),
                    drop=config.drop if table is schema.EVENTS else {},
                )
        return tables


def _known(file: InputFile, table: TableFiles) -> dict[str, Any]:
    """The identity of a file that needs no reading of its content."""
    values = {**folder_values(file.path), **table.constants.get(file.path, {})}
    return {"name": file.name, "size": file.size, "modified": file.modified, "values": values}


def _content(file: Mapping[str, Any]) -> tuple[Any, ...]:
    """The values that are equal for two files with the same events."""
    return file["size"], file["fingerprint"], tuple(sorted(file["values"].items()))


def _of_table(setting: _Value | Mapping[str, _Value], table: str, default: _Value) -> _Value:
    """The value of a setting for one table; ``setting`` has one value for all, or one a table."""
    return setting.get(table, default) if isinstance(setting, Mapping) else setting


def _form(config: CanonicalSource, table: str) -> Form:
    """The settings of the text files of one table."""
    columns = (
        config.columns if isinstance(config.columns, dict) else {schema.EVENTS.name: config.columns}
    )
    return Form(
        _of_table(config.separator, table, ""),
        tuple(columns.get(table, ())),
        config.header,
        _of_table(config.comment, table, ""),
        _of_table(config.encoding, table, "utf-8"),
        table,
    )


def _lists(config: CanonicalSource, table: str) -> dict[str, ListForm]:
    """The columns of lists of one table."""
    entry = config.lists.get(table, {})
    found = {key: ListForm(mark) for key, mark in entry.items()} if isinstance(entry, dict) else {}
    if table == schema.EVENTS.name:  # entries without a table are of the events
        for key, mark in config.lists.items():
            if isinstance(mark, str):
                found[key] = ListForm(mark, config.chosen.get(key, ""))
    return found


def _times(config: CanonicalSource) -> TimeColumns:
    """The columns that have the times of the events together."""
    clock = tuple(name for name in as_list(config.clock) if name)
    unit = next(iter(config.clock.values())) if isinstance(config.clock, dict) else ""
    return TimeColumns(tuple(config.date_columns), clock, isinstance(config.clock, str), unit)


def _notes(heads: list[FileHead]) -> list[str]:
    """The notes of all files; equal notes are one line."""
    found: dict[str, list[str]] = {}
    for head in heads:
        for note in head.notes:
            found.setdefault(note, []).append(head.file.name)
    return [f"{names[0]}{_others(len(names) - 1)}: {note}" for note, names in found.items()]


def _others(count: int) -> str:
    return f" and {count} more {'file' if count == 1 else 'files'}" if count else ""


def _check_numbers(names: Sequence[str], heads: list[NamedHead], source: TableFiles) -> None:
    """Check the columns of ``data.source.numbers``, which may also be in a table that the events
    refer to.

    Raises
    ------
    SourceError
        A column does not exist, or is a known column of the table.
    """
    table = source.table
    found = {name for head in heads for name in head.types}
    found |= {name for lookup in source.lookups for name, _ in lookup.types}
    extras = found - {*table.columns}
    for name in names:
        if name not in extras and all(head.head.format != "jsonl" for head in heads):
            raise SourceError(
                f"data.source.numbers.{table.name}: the table {table.name} has no column {name!r}"
                f" besides the standard ones; its other columns: {choices(extras) or 'none'}"
            )
