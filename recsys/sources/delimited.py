"""Delimited text in line-aligned chunks: the driver finds them in constant memory, tasks parse them
with Arrow.

Why: each bad row must be reported with its number, and all cores should parse. The driver cuts the
file into byte ranges (see :mod:`recsys.sources.byte_ranges`). Each range is parsed alone, all
cells as text, and the row rules check the values. A row with a wrong number of cells or undecodable
bytes becomes an "unreadable row" with its number. Blank lines are skipped but counted.

If a quote is never closed, each line of its range is a row, so that one row is lost and not the
rest of the file.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from recsys import schema
from recsys.sources.base import FILE_STRIDE
from recsys.sources.byte_ranges import CHUNK_BYTES, ByteRange, Dialect, byte_ranges, open_after
from recsys.sources.files import InputFile
from recsys.sources.list_cells import (
    MOST_MEMBERS,
    UNEQUAL,
    members_as_rows,
    numbers_of_members,
)
from recsys.sources.separators import plain
from recsys.sources.text_checks import decodable
from recsys.sources.validate import (
    REPEATED_HEADER,
    UNREADABLE,
    Layout,
    bad_rows,
    check_rows,
    finish,
    raw_text,
)

_MAX_COUNTED: Final = 8  # surplus or missing cells that have a reason of their own
_QUOTE: Final = b'"'


@dataclass(frozen=True)
class DelimitedPiece:
    """One byte range of a file, or a whole compressed file, read into blocks of a layout."""

    file: InputFile
    index: int  # of the file in its table
    columns: tuple[str, ...]  # the canonical name of each cell, "" to skip it
    layout: Layout
    dialect: Dialect
    header_end: int
    byte_range: ByteRange | None = None  # None: the whole file
    constants: dict[str, str] = field(default_factory=dict)
    chunk_bytes: int = CHUNK_BYTES
    titles: tuple[str, ...] = ()  # the header's cells; a row with these cells again is a bad row

    def read(self) -> Iterator[pa.Table]:
        """Yield finished blocks."""
        for cells in self.cells():
            raw = with_constants(self.named(cells.table), self.constants)
            yield assemble(raw, cells, self.layout, self.origin)

    def cells(self) -> Iterator[Cells]:
        """The text cells, for adapters that derive columns before the rows are checked."""
        if self.byte_range is not None:
            data = self.file.read(self.byte_range.start, self.byte_range.length)
            yield self._cells(data, self.byte_range)
            return
        for byte_range, data in byte_ranges(
            self.file, self.header_end, self.dialect, self.chunk_bytes, len(self.columns)
        ):
            yield self._cells(data, byte_range)

    def _cells(self, data: bytes, byte_range: ByteRange) -> Cells:
        cells = translated(data, byte_range, len(self.columns), self.dialect)
        return without_headers(cells, self.titles, self.dialect.delimiter) if self.titles else cells

    def named(self, cells: pa.Table) -> pa.Table:
        """The cells under their canonical names, without the skipped ones."""
        return pa.table({name: cells.column(i) for i, name in enumerate(self.columns) if name})

    @property
    def origin(self) -> Origin:
        """The file, its index and the delimiter, for the provenance columns."""
        return Origin(self.file.name, self.index, self.dialect.delimiter)


@dataclass(frozen=True)
class Cells:
    """Parsed text: good rows as string columns "0", "1", …, and the rows that could not be
    parsed.
    """

    table: pa.Table
    rows: np.ndarray[Any, np.dtype[np.int64]]  # row number of each good row
    broken_rows: list[int]
    broken_texts: list[str]
    broken_reasons: list[str] = field(default_factory=list)  # empty: all have the reason UNREADABLE


@dataclass(frozen=True)
class Origin:
    """The origin of a block, for the provenance columns."""

    file: str
    index: int
    delimiter: str


def with_constants(raw: pa.Table, constants: Mapping[str, str]) -> pa.Table:
    """Add columns that have one text in all rows; they replace columns of the same name."""
    for name, value in constants.items():
        raw = raw.drop_columns([name]) if name in raw.column_names else raw
        raw = raw.append_column(name, pa.repeat(pa.scalar(value, pa.string()), raw.num_rows))
    return raw


def assemble(raw: pa.Table, cells: Cells, layout: Layout, origin: Origin) -> pa.Table:
    """Check raw rows, add provenance and insert the unreadable rows in the order of the file.

    Parameters
    ----------
    raw : pa.Table
        The good rows, as text under canonical names.
    cells : Cells
        The parsed text that ``raw`` comes from, with the rows that could not be parsed.
    layout : Layout
        The columns and rules of the table.
    origin : Origin
        The file, its index and the delimiter.

    Returns
    -------
    pa.Table
        A block in the columns of the layout.
    """
    base = origin.index * FILE_STRIDE
    order_of_rows = cells.rows + base
    for lookup in layout.lookups:
        raw = lookup.added_to(raw)
    if layout.lists:
        raw, cells, order = _members(raw, cells, layout)
        order_of_rows = order + base
    checked = check_rows(raw, layout)
    provenance = {
        schema.FILE: pa.repeat(pa.scalar(origin.file, pa.string()), raw.num_rows),
        schema.ROW: pa.array(cells.rows),
        schema.ORDER: pa.array(order_of_rows),
        schema.RAW: raw_text(cells.table, checked.column(schema.REASON), origin.delimiter),
    }
    good = finish(checked, layout, provenance)
    # without broken rows the good ones are already in the order of the file
    if not cells.broken_rows:
        return good
    scale = MOST_MEMBERS if layout.lists else 1
    # the order number of a row with lists leaves room for its members
    broken = bad_rows(
        layout,
        UNREADABLE,
        origin.file,
        cells.broken_rows,
        cells.broken_texts,
        [base + row * scale for row in cells.broken_rows],
    )
    if cells.broken_reasons:
        position = broken.schema.get_field_index(schema.REASON)
        broken = broken.set_column(
            position, broken.schema.field(position), [pa.array(cells.broken_reasons, pa.string())]
        )
    return pa.concat_tables([good, broken]).sort_by(schema.ROW).combine_chunks()


def _members(
    raw: pa.Table, cells: Cells, layout: Layout
) -> tuple[pa.Table, Cells, np.ndarray[Any, np.dtype[np.int64]]]:
    """One row for each member of the lists, and its place in the order of the file."""
    lists = {name: form for name, form in layout.lists if name in raw.column_names}
    if not lists:
        return raw, cells, cells.rows * MOST_MEMBERS
    found, row_of_member, unequal = members_as_rows(raw, lists)
    reasons = cells.broken_reasons or [UNREADABLE] * len(cells.broken_rows)
    shown = [str(row) for row in raw.take(pa.array(unequal)).to_pylist()]
    order = (
        cells.rows[row_of_member] * MOST_MEMBERS + numbers_of_members(row_of_member) % MOST_MEMBERS
    )
    members = Cells(
        cells.table.take(pa.array(row_of_member)),
        cells.rows[row_of_member],
        [*cells.broken_rows, *cells.rows[unequal].tolist()],
        [*cells.broken_texts, *shown],
        [*reasons, *[UNEQUAL] * len(unequal)],
    )
    return found, members, order


# ------------------------------------------------------------------------------------------- driver


def delimited_pieces(piece: DelimitedPiece) -> list[DelimitedPiece]:
    """The pieces of a file, made from a piece without a byte range. Reads the file once; a
    compressed file is one piece.
    """
    if piece.file.compressed:
        # no position in compressed bytes can be reached without all before it
        piece.file.check_unpacked()
        return [piece]
    found = byte_ranges(
        piece.file, piece.header_end, piece.dialect, piece.chunk_bytes, len(piece.columns)
    )
    return [replace(piece, byte_range=byte_range) for byte_range, _ in found]


# -------------------------------------------------------------------------------------------- tasks


def without_headers(cells: Cells, titles: tuple[str, ...], delimiter: str) -> Cells:
    """Move rows that repeat the header, as in concatenated files, to the rows that could not be
    parsed.

    Parameters
    ----------
    cells : Cells
        Parsed rows.
    titles : tuple[str, ...]
        Cells of the header; empty cells match everything.
    delimiter : str
        Joins the titles as the raw text of a moved row.

    Returns
    -------
    Cells
        The rows without the headers; the headers are among the broken rows.
    """
    again = np.ones(cells.table.num_rows, dtype=bool)
    for column, title in zip(cells.table.columns, titles, strict=False):
        if not title:
            continue
        # most blocks have no repeated header, so the search ends at the first columns
        again &= np.asarray(pc.fill_null(pc.equal(column, title), False))
        if not again.any():
            return cells
    rows, kept = cells.rows[again], pa.array(~again)
    reasons = cells.broken_reasons or [UNREADABLE] * len(cells.broken_rows)
    return Cells(
        cells.table.filter(kept),
        cells.rows[~again],
        [*cells.broken_rows, *rows.tolist()],
        [*cells.broken_texts, *[delimiter.join(titles)] * len(rows)],
        [*reasons, *[REPEATED_HEADER] * len(rows)],
    )


def translated(data: bytes, byte_range: ByteRange, num_columns: int, dialect: Dialect) -> Cells:
    """Parse a byte range of any dialect into cells, with a reason for each row that could not be
    parsed.

    Parameters
    ----------
    data : bytes
        The bytes of the byte range.
    byte_range : ByteRange
        Where the bytes are in the file.
    num_columns : int
        Number of cells in a row.
    dialect : Dialect
        How cells are separated, quoted and encoded.

    Returns
    -------
    Cells
        Good rows as text, and the rows that could not be parsed.
    """
    data, simple = plain(data, dialect)
    # Arrow knows only delimiters of one byte
    if len(simple.delimiter) == 1 and simple.delimiter.isascii():
        cells = parse(data, byte_range, num_columns, simple)
    else:
        cells = _parse_rows(data, byte_range, num_columns, simple)
    if not cells.broken_rows:
        return cells
    reasons = [_why(text, num_columns, simple) for text in cells.broken_texts]
    texts = cells.broken_texts
    if simple.delimiter != dialect.delimiter:
        texts = [text.replace(simple.delimiter, dialect.delimiter) for text in texts]
    return replace(cells, broken_texts=texts, broken_reasons=reasons)


def _why(text: str, num_columns: int, dialect: Dialect) -> str:
    """The reason why a row could not be parsed. There are few different reasons, because they are
    counted.

    >>> _why("1,2", 3, Dialect()), _why("1," * 99, 3, Dialect())
    ('unreadable row: 2 cells, expected 3', 'unreadable row: over 11 cells, expected 3')
    >>> _why('1,"2', 2, Dialect())
    'unreadable row: open quote'
    """
    if dialect.quoted and open_after(text.encode(), dialect.delimiter.encode(), False):
        return f"{UNREADABLE}: open quote"
    count = len(_split(text, dialect))
    if count == num_columns:
        return f"{UNREADABLE}: not text in this encoding" if "\ufffd" in text else UNREADABLE
    if abs(count - num_columns) > _MAX_COUNTED:
        many = count > num_columns
        limit = num_columns + (_MAX_COUNTED if many else -_MAX_COUNTED)
        return f"{UNREADABLE}: {'over' if many else 'under'} {limit} cells, expected {num_columns}"
    return f"{UNREADABLE}: {count} cell{'' if count == 1 else 's'}, expected {num_columns}"


def parse(data: bytes, byte_range: ByteRange, num_columns: int, dialect: Dialect) -> Cells:
    """Parse the bytes of a byte range into text cells; no content of a row raises an exception.

    Parameters
    ----------
    data : bytes
        The bytes of the byte range.
    byte_range : ByteRange
        Where the bytes are in the file.
    num_columns : int
        Number of cells in a row.
    dialect : Dialect
        How cells are separated, quoted and encoded.
    """
    # a quote that is never closed would otherwise swallow the rest of the range
    dialect = replace(dialect, multiline=dialect.multiline and not byte_range.by_line)
    if dialect.encoding.lower().replace("_", "-") not in ("utf-8", "utf8", "ascii"):
        # a mark replaces what does not decode, and ``_why`` recognises it
        data = data.decode(dialect.encoding, errors="replace").encode()
    if data.count(b"\r") != data.count(b"\r\n"):
        # a lone carriage return does not end a row
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b" ")
    has_open_lines = dialect.quoted and not dialect.multiline and _QUOTE in data
    if not has_open_lines and decodable(
        data, "utf-8"
    ):  # Arrow prints a traceback for a short row that is not UTF-8
        try:
            # Arrow and the pass that cut the file may read odd quotes in two ways; then each row is
            # read alone
            return _parse_fast(data, byte_range, num_columns, dialect)
        except (pa.ArrowInvalid, _Miscounted):
            pass
    return _parse_rows(data, byte_range, num_columns, dialect)


class _Miscounted(Exception):
    """Arrow found another number of rows than the pass that cut the file."""


def _parse_fast(data: bytes, byte_range: ByteRange, num_columns: int, dialect: Dialect) -> Cells:
    """Parse the whole byte range with one call of Arrow's parser."""
    names = [str(i) for i in range(num_columns)]
    invalid: list[tuple[int, str]] = []

    def skip(row: Any) -> str:
        invalid.append((row.number, row.text))
        return "skip"

    table = pa.csv.read_csv(
        pa.BufferReader(data),
        # without threads, because only then Arrow knows the number of an invalid row; in one
        # block, because a row must not be longer than a block
        read_options=pa.csv.ReadOptions(
            column_names=names, block_size=len(data) + 1, use_threads=False
        ),
        parse_options=pa.csv.ParseOptions(
            delimiter=dialect.delimiter,
            quote_char='"' if dialect.quoted else False,
            newlines_in_values=dialect.quoted and dialect.multiline,
            # blank lines must count, or the numbers of the rows after them are wrong
            ignore_empty_lines=False,
            invalid_row_handler=skip,
        ),
        convert_options=pa.csv.ConvertOptions(
            column_types={name: pa.string() for name in names},
            # not Arrow's own list of missing values: an id may be "NA"
            strings_can_be_null=True,
            null_values=[""],
        ),
    )
    if table.num_rows + len(invalid) != byte_range.num_rows:
        raise _Miscounted
    is_good = np.ones(byte_range.num_rows, dtype=bool)
    is_good[[number - 1 for number, _ in invalid]] = False
    rows = np.flatnonzero(is_good) + byte_range.first_row
    broken = [(byte_range.first_row + number - 1, text) for number, text in invalid if text.strip()]
    given = _not_blank(table, rows - byte_range.first_row, data, dialect)
    if given is not None:
        table, rows = table.filter(pa.array(given)), rows[given]
    return Cells(table, rows, [row for row, _ in broken], [text for _, text in broken])


def _not_blank(table: pa.Table, positions: Any, data: bytes, dialect: Dialect) -> Any:
    """Mask of the parsed rows that are not blank lines, which Arrow reads as empty cells; None: all
    rows.
    """
    is_empty = np.ones(table.num_rows, dtype=bool)
    for column in table.columns:
        # a blank line is null in every column, so one full column is enough
        if column.null_count == 0:
            return None
        is_empty &= np.asarray(column.is_null())
    if not is_empty.any():
        return None
    blank = np.array([not line.strip() for line in _whole_rows(data, dialect)], dtype=bool)
    return ~(is_empty & blank[positions])


def _parse_rows(data: bytes, byte_range: ByteRange, num_columns: int, dialect: Dialect) -> Cells:
    """Parse row by row, for bytes that do not decode or quotes that Arrow reads differently."""
    good: list[list[str]] = []
    rows: list[int] = []
    broken: list[tuple[int, str]] = []
    for row, line in enumerate(_whole_rows(data, dialect), byte_range.first_row):
        # lines are split at the line feed, so CRLF leaves the carriage return
        text = line.decode(errors="replace").rstrip("\r")
        if not text.strip():
            continue
        is_open = dialect.quoted and open_after(line, dialect.delimiter.encode(), False)
        cells = [] if is_open else _split(text, dialect)
        if len(cells) != num_columns or not decodable(line, "utf-8"):
            broken.append((row, text))
        else:
            good.append(cells)
            rows.append(row)
    columns = {
        str(i): pa.array([cells[i] or None for cells in good], pa.string())
        for i in range(num_columns)
    }
    numbers = np.array(rows, dtype=np.int64)
    return Cells(
        pa.table(columns), numbers, [row for row, _ in broken], [text for _, text in broken]
    )


def _split(text: str, dialect: Dialect) -> list[str]:
    """The cells of one row; [] if the row does not fit the dialect."""
    if not dialect.quoted:
        return text.split(dialect.delimiter)
    if len(text) > csv.field_size_limit():
        # a limit of the process; Arrow's parser, which reads most rows, has none
        csv.field_size_limit(len(text))
    try:
        return next(csv.reader([text], delimiter=dialect.delimiter), [])
    except csv.Error:
        return []


def _whole_rows(data: bytes, dialect: Dialect) -> Iterator[bytes]:
    """The rows of some bytes, also with line breaks in quotes; each byte is read once."""
    lines = data.removesuffix(b"\n").split(b"\n")
    if not (dialect.quoted and dialect.multiline):
        yield from lines
        return
    delimiter = dialect.delimiter.encode()
    held: list[bytes] = []  # the lines of a row that is still open
    for line in lines:
        held.append(line)
        if open_after(line, delimiter, len(held) > 1):
            continue
        yield b"\n".join(held)
        held = []
    yield from held
