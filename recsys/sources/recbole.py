"""RecBole atomic files: tab-separated, each header cell ``field:type`` (token, token_seq, float,
float_seq).

``.inter`` → events, ``.item`` → items, ``.user`` → users, ``.kg`` → knowledge, ``.net`` → social;
``.link`` gives items their entities. A ``token_seq`` stays a text, a ``float_seq`` becomes a list
of numbers. Without NAME.inter, the benchmark files NAME.train.inter, NAME.valid.inter and
NAME.test.inter are the events, each with its split. Source: https://recbole.io/docs/user_guide/data/atomic_files.html
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import pyarrow as pa

from recsys import schema
from recsys.config import RecBoleSource
from recsys.errors import SourceError, choices
from recsys.sources.base import Piece, SourceAdapter
from recsys.sources.byte_ranges import CHUNK_BYTES
from recsys.sources.delimited import DelimitedPiece, delimited_pieces
from recsys.sources.files import InputFile, exists, input_file
from recsys.sources.first_rows import Form, dialect_of
from recsys.sources.headers import Header, read_header
from recsys.sources.links import linked
from recsys.sources.names import Renames, require_columns
from recsys.sources.validate import CellRules, Layout

_TYPES: Final = {
    "token": pa.string(),
    "token_seq": pa.string(),
    "float": pa.float64(),
    "float_seq": pa.list_(pa.float64()),
}
_TABLES: Final = {
    ".inter": schema.EVENTS,
    ".item": schema.ITEMS,
    ".user": schema.USERS,
    ".net": schema.SOCIAL,
    ".kg": schema.KNOWLEDGE,
    ".link": schema.ITEMS,
}
PARTS: Final = ("train", "valid", "test")
"""The splits of benchmark files NAME.train.inter, NAME.valid.inter and NAME.test.inter."""
_RENAME: Final = {
    ".inter": {"rating": schema.VALUE},
    ".net": {"source_id": schema.SRC_USER_ID, "target_id": schema.DST_USER_ID},
    ".kg": {"head_id": schema.HEAD, "relation_id": schema.RELATION, "tail_id": schema.TAIL},
}


def base_name(name: str) -> str:
    """The name of the data set of a file: without the split of a benchmark file, and without its
    ending.

    >>> base_name("beauty.train.inter"), base_name("beauty.item")
    ('beauty', 'beauty')
    """
    stem = name.rpartition(".")[0]
    base, _, part = stem.rpartition(".")
    return base if part in PARTS and name.endswith(".inter") else stem


class RecBoleAdapter(SourceAdapter):
    """FOLDER/NAME.inter and the optional files next to it."""

    config: RecBoleSource

    chunk_bytes = CHUNK_BYTES

    @property
    def name(self) -> str:
        """The short name of the data set."""
        return self.config.name or self.config.folder.split("?")[0].rstrip("/").rsplit("/", 1)[-1]

    def files(self) -> list[InputFile]:
        """All input files.

        Raises
        ------
        SourceError
            A file is missing or empty; the message says how RecBole names files.
        """
        stem = f"{self.config.folder.rstrip('/')}/{self.name}"
        present = [suffix for suffix in _TABLES if suffix == ".inter" or exists(stem + suffix)]
        if not exists(f"{stem}.inter"):
            parts = [f".{part}.inter" for part in PARTS if exists(f"{stem}.{part}.inter")]
            present = [*parts, *present[1:]] if parts else present
        try:
            return [input_file(stem + suffix) for suffix in present]
        except SourceError as error:
            raise SourceError(
                f"{error} (RecBole files are FOLDER/NAME.inter; set data.source.name if NAME"
                " differs)"
            ) from None

    def pieces(self) -> dict[str, list[Piece]]:
        """The pieces of all tables."""
        found: dict[str, list[DelimitedPiece]] = {}
        for pattern in self._patterns():
            found.setdefault(pattern.file.suffix, []).extend(delimited_pieces(pattern))
        tables: dict[str, list[Piece]] = {}
        for suffix, pieces in found.items():
            if suffix != ".link":
                tables[_TABLES[suffix].name] = [*pieces]
        if ".link" in found:
            items, links = found.get(".item", []), found[".link"]
            tables["items"] = linked(items, links, (items or links)[0].layout)
        return tables

    def check(self) -> None:
        """Check the heads of all files; see the base class."""
        self._patterns()

    def _patterns(self) -> list[DelimitedPiece]:
        """Read the heads of all files as pieces without a byte range, and fill the notes.

        Raises
        ------
        SourceError
            A file is not an atomic file or lacks a field, or a rename fits no field.
        """
        separator = self.config.separator
        form = Form(separator)
        dialect = dialect_of("tsv" if separator in ("", "\t") else "csv", form)
        headers = {file: read_header(file, dialect, form) for file in self.files()}
        self.notes = [
            f"{file.name}: {note}" for file, header in headers.items() for note in header.notes
        ]
        typed = {
            file: dict(_field(cell, file) for cell in header.columns)
            for file, header in headers.items()
        }
        fields: dict[str, set[str]] = {}
        for file, kinds in typed.items():
            fields.setdefault(_TABLES[file.suffix].name, set()).update(kinds)
        renames = Renames.of(self.config.rename).matched(fields)
        suffixes = [file.suffix for file in headers]
        return [
            replace(
                self._pattern(file, header, typed[file], renames.table(_TABLES[file.suffix].name)),
                index=suffixes[:position].count(file.suffix),
                constants=self._split(file),
            )
            for position, (file, header) in enumerate(headers.items())
        ]

    def _split(self, file: InputFile) -> dict[str, str]:
        """The split that the name of a benchmark file states; empty for other files."""
        part = file.name.removeprefix(f"{self.name}.").removesuffix(".inter")
        return {schema.SPLIT: part} if file.suffix == ".inter" and part in PARTS else {}

    def _pattern(
        self, file: InputFile, header: Header, typed: dict[str, pa.DataType], given: dict[str, str]
    ) -> DelimitedPiece:
        """The piece without a byte range of one file."""
        rename = {**_RENAME.get(file.suffix, {}), **given}
        if schema.VALUE in typed or schema.VALUE in given.values():
            rename = {
                name: to for name, to in rename.items() if name in given or to != schema.VALUE
            }
        table = _TABLES[file.suffix]
        names = [rename.get(name, name) for name in typed]
        required = schema.TableSchema(
            "items", {schema.ITEM_ID: pa.string(), schema.ENTITY_ID: pa.string()}, {}, ()
        )
        require_columns(required if file.suffix == ".link" else table, [*typed], names, file.path)
        extras = tuple(
            (rename.get(n, n), kind)
            for n, kind in typed.items()
            if rename.get(n, n) not in table.columns
        )
        layout = Layout(table, extras, CellRules.of(self.config, table.name))
        return DelimitedPiece(
            file, 0, tuple(names), layout, header.dialect, header.end, chunk_bytes=self.chunk_bytes
        )


def _field(cell: str, file: InputFile) -> tuple[str, pa.DataType]:
    name, colon, kind = cell.partition(":")
    if not colon or kind not in _TYPES or not name:
        raise SourceError(
            f"{file.path}: header cell {cell!r} is not FIELD:TYPE with TYPE one of"
            f" {choices(_TYPES)}; this is not a RecBole atomic file (data.source.kind canonical"
            " reads plain tables), or its separator is not a tab (set data.source.separator)"
        )
    return name, _TYPES[kind]
