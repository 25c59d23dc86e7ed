"""Delimited text in line-aligned chunks: found by the driver in constant memory, parsed by tasks at Arrow's speed.

Why: a text file gives no row numbers and no place to start in the middle, yet every bad row must be named by its row
and every core should parse. One pass counts lines and cuts the file between rows (a line break inside quotes is no
cut); each chunk is then parsed alone, all cells as text, and the row rules do the rest. Rows with a wrong number of
cells or undecodable bytes become "unreadable row" with their number; blank lines are skipped but counted.

A quote that is never closed makes every line a row of its own, so that it costs one row and not the rest of the file.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.csv

from recsys import schema
from recsys.data.validate import UNREADABLE, Layout, bad_rows, check_rows, finish, raw_text
from recsys.errors import SourceError
from recsys.sources.base import FILE_STRIDE
from recsys.sources.files import InputFile

CHUNK_BYTES: Final = 32 << 20
_HEAD_BYTES: Final = 1 << 20
_MAX_UNDECODABLE: Final = 0.01  # share of lines of the file's head beyond which the encoding is taken to be wrong
_QUOTE: Final = b'"'
_BOMS: Final = ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


@dataclass(frozen=True)
class Dialect:
    """How cells are separated, quoted and encoded (ASCII-compatible encodings)."""

    delimiter: str = ","
    quoted: bool = True
    encoding: str = "utf-8"
    multiline: bool = True  # quoted cells may hold line breaks


CSV: Final = Dialect()
TSV: Final = Dialect("\t", quoted=False)


@dataclass(frozen=True)
class Span:
    """A run of whole rows in a file: bytes ``[start, start + length)``, rows from ``first_row`` (1-based)."""

    start: int
    length: int
    first_row: int
    num_rows: int


@dataclass(frozen=True)
class Header:
    """The names in the first line, and where the rows begin."""

    columns: tuple[str, ...]
    end: int  # bytes


@dataclass(frozen=True)
class DelimitedPiece:
    """One span of a file (or all of a compressed one), read into blocks of a layout."""

    file: InputFile
    index: int  # of the file in its table
    columns: tuple[str, ...]  # the canonical name of every cell, "" to drop it
    layout: Layout
    dialect: Dialect
    header_end: int
    span: Span | None = None  # None: the whole file, in one go
    constants: dict[str, str] = field(default_factory=dict)
    chunk_bytes: int = CHUNK_BYTES

    def read(self) -> Iterator[pa.Table]:
        for cells in self.cells():
            raw = with_constants(self.named(cells.table), self.constants)
            yield assemble(raw, cells, self.layout, self.origin)

    def cells(self) -> Iterator[Cells]:
        """The text cells alone, for adapters that derive columns before the rows are checked."""
        if self.span is not None:
            data = self.file.read(self.span.start, self.span.length)
            yield parse(data, self.span, len(self.columns), self.dialect)
            return
        for span, data in spans(self.file, self.header_end, self.dialect, self.chunk_bytes):
            yield parse(data, span, len(self.columns), self.dialect)

    def named(self, cells: pa.Table) -> pa.Table:
        """The cells under their canonical names, without those to drop."""
        return pa.table({name: cells.column(i) for i, name in enumerate(self.columns) if name})

    @property
    def origin(self) -> Origin:
        return Origin(self.file.name, self.index, self.dialect.delimiter)


@dataclass(frozen=True)
class Cells:
    """Parsed text: good rows as string columns "0", "1", …, and the rows that could not be parsed."""

    table: pa.Table
    rows: np.ndarray[Any, np.dtype[np.int64]]  # row number of every good row
    broken_rows: list[int]
    broken_texts: list[str]


@dataclass(frozen=True)
class Origin:
    """Where a block comes from: what goes to the provenance columns."""

    file: str
    index: int
    delimiter: str


def with_constants(raw: pa.Table, constants: Mapping[str, str]) -> pa.Table:
    """Add columns that hold one text; they replace columns of the same name."""
    for name, value in constants.items():
        raw = raw.drop_columns([name]) if name in raw.column_names else raw
        raw = raw.append_column(name, pa.repeat(pa.scalar(value, pa.string()), raw.num_rows))
    return raw


def assemble(raw: pa.Table, cells: Cells, layout: Layout, origin: Origin) -> pa.Table:
    """Check raw rows, add provenance and put the unreadable rows in their places."""
    checked = check_rows(raw, layout)
    base = origin.index * FILE_STRIDE
    provenance = {
        schema.FILE: pa.repeat(pa.scalar(origin.file, pa.string()), raw.num_rows),
        schema.ROW: pa.array(cells.rows),
        schema.ORDER: pa.array(cells.rows + base),
        schema.RAW: raw_text(cells.table, checked.column(schema.REASON), origin.delimiter),
    }
    good = finish(checked, layout, provenance)
    if not cells.broken_rows:
        return good
    order = [base + row for row in cells.broken_rows]
    broken = bad_rows(layout, UNREADABLE, origin.file, cells.broken_rows, cells.broken_texts, order)
    return pa.concat_tables([good, broken]).sort_by(schema.ROW).combine_chunks()


# ---------------------------------------------------------------------------------------------------------- driver


def read_header(file: InputFile, dialect: Dialect) -> Header:
    """The column names of the first line.

    Raises:
        SourceError: the head of the file is not text in this encoding, or there is no row below the header.
    """
    head = _head(file)
    check_encoding(file, head, dialect.encoding)
    line, newline, rest = head.partition(b"\n")
    if not rest.strip():
        found = "only a header" if newline or line.strip() else "nothing"
        raise SourceError(f"{file.path} holds {found}; expected a header line and at least one row below it")
    text = line.decode(dialect.encoding).removeprefix("\ufeff").rstrip("\r")
    quoting = csv.QUOTE_MINIMAL if dialect.quoted else csv.QUOTE_NONE
    names = next(csv.reader([text], delimiter=dialect.delimiter, quoting=quoting), [])
    return Header(tuple(name.strip() for name in names), len(line) + 1)


def check_codec(encoding: str) -> str:
    """The name of an ASCII-compatible encoding.

    Raises:
        SourceError: Python does not know it, or lines cannot be found in its bytes.
    """
    try:
        if "a,\n".encode(encoding) == b"a,\n":
            return encoding
        problem = "is not ASCII-compatible"
    except LookupError:
        problem = "is unknown"
    raise SourceError(f"data.source.encoding {encoding!r} {problem}; use utf-8, latin-1, cp1252 …, or convert the files")


def check_encoding(file: InputFile, head: bytes, encoding: str) -> None:
    """Check that nearly all lines of the file's head can be decoded (single bad rows are quarantined later).

    Raises:
        SourceError: not text, or text in another encoding.
    """
    for mark, name in _BOMS:
        if head.startswith(mark):
            raise SourceError(f"{file.path} is {name}; expected {encoding}: save it as UTF-8")
    if b"\0" in head or head.startswith(b"PAR1"):
        kind = "a Parquet file" if head.startswith(b"PAR1") else "binary data"
        raise SourceError(f"{file.path} is {kind}, not delimited text; correct the file or data.source.format")
    lines = head.split(b"\n")[:-1] or [head]
    wrong = [number for number, line in enumerate(lines, 1) if not _decodable(line, encoding)]
    if len(wrong) > _MAX_UNDECODABLE * len(lines) or (wrong and wrong[0] == 1):
        raise SourceError(
            f"{file.path}: line {wrong[0]} is not {encoding} text ({len(wrong)} of the first {len(lines)} lines are not); "
            "save the file as UTF-8 or set data.source.encoding (e.g. latin-1) where the source has it"
        )


def delimited_pieces(piece: DelimitedPiece) -> list[DelimitedPiece]:
    """The pieces of a file, from a pattern without span. Reads the file once; a compressed one stays in one piece."""
    if piece.file.compressed:
        return [piece]
    start, dialect = piece.header_end, piece.dialect
    try:
        found = [span for span, _ in spans(piece.file, start, dialect, piece.chunk_bytes)]
    except _OpenQuote:
        dialect = replace(dialect, multiline=False)
        found = [span for span, _ in spans(piece.file, start, dialect, piece.chunk_bytes)]
    return [replace(piece, span=span, dialect=dialect) for span in found]


class _OpenQuote(Exception):
    """A quoted cell that does not end before the file does."""


def spans(file: InputFile, start: int, dialect: Dialect, chunk_bytes: int) -> Iterator[tuple[Span, bytes]]:
    """Cut the rows from byte ``start`` on into runs of about ``chunk_bytes``, each with its bytes.

    Raises:
        _OpenQuote: a quote stays open to the end (uncompressed files, ``dialect.multiline``); in a compressed file,
            which is read as it comes, the rest is then cut line by line.
    """
    row, buffer = 1, b""
    with file.stream() as stream:
        _skip(stream, start)
        while block := stream.read(chunk_bytes):
            buffer += block
            cut, count = _last_row_end(buffer, dialect)
            if cut:
                yield Span(start, cut, row, count), buffer[:cut]
                start, row, buffer = start + cut, row + count, buffer[cut:]
    if not buffer:
        return
    cut, count = _last_row_end(buffer + b"\n", dialect)
    if cut == len(buffer) + 1:
        yield Span(start, len(buffer), row, count), buffer
    elif file.compressed:
        yield Span(start, len(buffer), row, buffer.rstrip(b"\n").count(b"\n") + 1), buffer
    else:
        raise _OpenQuote


def _last_row_end(data: bytes, dialect: Dialect) -> tuple[int, int]:
    """The byte after the last whole row and the number of whole rows; ``data`` begins outside of quotes."""
    end = data.rfind(b"\n") + 1
    if not (dialect.quoted and dialect.multiline) or data.find(_QUOTE, 0, end) < 0:
        return end, data.count(b"\n", 0, end)
    ends, is_odd = _odd_lines(data[:end])
    inside = np.zeros(len(ends), dtype=bool)
    opened = -1
    for line in np.flatnonzero(is_odd):
        begin = 0 if line == 0 else int(ends[line - 1]) + 1
        if _open_after(data[begin : int(ends[line])], dialect.delimiter.encode(), opened >= 0):
            opened = int(line) if opened < 0 else opened
        elif opened >= 0:
            inside[opened:line] = True
            opened = -1
    if opened >= 0:
        inside[opened:] = True
    outside = np.flatnonzero(~inside)
    return (int(ends[outside[-1]]) + 1, len(outside)) if len(outside) else (0, 0)


def _odd_lines(data: bytes) -> tuple[Any, Any]:
    """The position of every line break, and whether its line holds an odd number of quotes."""
    codes = np.frombuffer(data, dtype=np.uint8)
    ends = np.flatnonzero(codes == 10)
    quotes = np.searchsorted(np.flatnonzero(codes == 34), ends)
    return ends, np.diff(quotes, prepend=0) % 2 == 1


def _open_after(line: bytes, delimiter: bytes, inside: bool) -> bool:
    """Whether a quoted cell is still open at the end of a line; quotes within unquoted cells are plain characters.

    >>> _open_after(b'1,"two', b",", False), _open_after(b'1,5" disc', b",", False), _open_after(b'end",2', b",", True)
    (True, False, False)
    """
    position = 0
    while True:
        if not inside and line[position : position + 1] == _QUOTE:
            inside, position = True, position + 1
        while inside:
            quote = line.find(_QUOTE, position)
            if quote < 0:
                return True
            doubled = line[quote + 1 : quote + 2] == _QUOTE
            inside, position = doubled, quote + (2 if doubled else 1)
        position = line.find(delimiter, position) + 1
        if position == 0:
            return False


# ----------------------------------------------------------------------------------------------------------- tasks


def parse(data: bytes, span: Span, num_columns: int, dialect: Dialect) -> Cells:
    """Parse the bytes of a span into text cells; never raises because of what a row holds."""
    if dialect.encoding.lower().replace("_", "-") not in ("utf-8", "utf8", "ascii"):
        data = data.decode(dialect.encoding, errors="replace").encode()
    if data.count(b"\r") != data.count(b"\r\n"):
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b" ")  # a lone carriage return does not end a row
    has_open_lines = dialect.quoted and not dialect.multiline and _QUOTE in data
    if not has_open_lines:
        try:
            return _parse_fast(data, span, num_columns, dialect)
        except (pa.ArrowInvalid, _Miscounted):
            pass
    return _parse_rows(data, span, num_columns, dialect)


class _Miscounted(Exception):
    """Arrow saw another number of rows than the pass that cut the file."""


def _parse_fast(data: bytes, span: Span, num_columns: int, dialect: Dialect) -> Cells:
    """One call of Arrow's parser for the whole span."""
    names = [str(i) for i in range(num_columns)]
    invalid: list[tuple[int, str]] = []

    def skip(row: Any) -> str:
        invalid.append((row.number, row.text))
        return "skip"

    table = pa.csv.read_csv(
        pa.BufferReader(data),
        read_options=pa.csv.ReadOptions(column_names=names, block_size=len(data) + 1, use_threads=False),
        parse_options=pa.csv.ParseOptions(
            delimiter=dialect.delimiter,
            quote_char='"' if dialect.quoted else False,
            newlines_in_values=dialect.quoted and dialect.multiline,
            ignore_empty_lines=False,
            invalid_row_handler=skip,
        ),
        convert_options=pa.csv.ConvertOptions(
            column_types={name: pa.string() for name in names}, strings_can_be_null=True, null_values=[""]
        ),
    )
    if table.num_rows + len(invalid) != span.num_rows:
        raise _Miscounted
    is_good = np.ones(span.num_rows, dtype=bool)
    is_good[[number - 1 for number, _ in invalid]] = False
    rows = np.flatnonzero(is_good) + span.first_row
    broken = [(span.first_row + number - 1, text) for number, text in invalid if text.strip()]
    if num_columns == 1:  # a blank line of a one-column file looks like an empty cell
        given = np.asarray(table.column(0).is_valid())
        table, rows = table.filter(pa.array(given)), rows[given]
    return Cells(table, rows, [row for row, _ in broken], [text for _, text in broken])


def _parse_rows(data: bytes, span: Span, num_columns: int, dialect: Dialect) -> Cells:
    """Row by row, for spans with undecodable bytes or quotes that Arrow reads differently."""
    quoting = csv.QUOTE_MINIMAL if dialect.quoted else csv.QUOTE_NONE
    good: list[list[str]] = []
    rows: list[int] = []
    broken: list[tuple[int, str]] = []
    for row, line in enumerate(_whole_rows(data, dialect), span.first_row):
        text = line.decode(errors="replace").rstrip("\r")
        if not text.strip():
            continue
        is_open = dialect.quoted and _open_after(line, dialect.delimiter.encode(), False)
        cells = [] if is_open else next(csv.reader([text], delimiter=dialect.delimiter, quoting=quoting), [])
        if len(cells) != num_columns or not _decodable(line, "utf-8"):
            broken.append((row, text))
        else:
            good.append(cells)
            rows.append(row)
    columns = {str(i): pa.array([cells[i] or None for cells in good], pa.string()) for i in range(num_columns)}
    numbers = np.array(rows, dtype=np.int64)
    return Cells(pa.table(columns), numbers, [row for row, _ in broken], [text for _, text in broken])


def _whole_rows(data: bytes, dialect: Dialect) -> Iterator[bytes]:
    """The rows of a span, those with line breaks in quotes in one."""
    held = b""
    for line in data.removesuffix(b"\n").split(b"\n"):
        held = held + b"\n" + line if held else line
        if dialect.quoted and dialect.multiline and _open_after(held, dialect.delimiter.encode(), False):
            continue
        yield held
        held = b""
    if held:
        yield from held.split(b"\n")


def _decodable(line: bytes, encoding: str) -> bool:
    try:
        line.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _head(file: InputFile) -> bytes:
    try:
        with file.stream() as stream:
            return bytes(stream.read(_HEAD_BYTES))
    except OSError as error:
        raise SourceError(f"{file.path} cannot be read: {error}; is it really gzip-compressed?") from None


def _skip(stream: Any, count: int) -> None:
    while count > 0:
        count -= len(stream.read(min(count, CHUNK_BYTES)))
