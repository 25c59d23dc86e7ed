"""Byte ranges of whole rows in a text file, found in constant memory.

Why: a reader cannot start in the middle of a text file, because it does not know the row number.
One pass counts rows and cuts the file between them, so that each task knows its bytes and the
number of its first row. A line break inside quotes does not end a row.
"""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from recsys.errors import SourceError
from recsys.sources.files import InputFile
from recsys.sources.limits import MAX_ROW_BYTES, row_too_long

CHUNK_BYTES: Final = 32 << 20
_QUOTE: Final = b'"'
_NEWLINE: Final = 10
_MOST_ROWS: Final = 1 << 20  # rows in a byte range, at most
_MANY_LINES: Final = 100  # a row with more lines than this must be a strictly valid CSV row


@dataclass(frozen=True)
class Dialect:
    """How cells are separated, quoted and encoded (ASCII-compatible encodings)."""

    delimiter: str = ","
    quoted: bool = True
    encoding: str = "utf-8"
    multiline: bool = True  # quoted cells may hold line breaks
    comment: str = ""  # lines that start with this text are skipped


CSV: Final = Dialect()
TSV: Final = Dialect("\t", quoted=False)


@dataclass(frozen=True)
class ByteRange:
    """A byte range of whole rows: bytes ``[start, start + length)``, rows from ``first_row``
    (1-based).
    """

    start: int
    length: int
    first_row: int
    num_rows: int
    by_line: bool = False  # each line is a row, because a quote in the byte range is never closed


def byte_ranges(
    file: InputFile, start: int, dialect: Dialect, chunk_bytes: int, num_columns: int = 0
) -> Iterator[tuple[ByteRange, bytes]]:
    """Cut the rows from byte ``start`` on into ranges of about ``chunk_bytes``, with their bytes.

    A byte-order mark at the start of the file is not part of the first row. A range is cut line by
    line if a quote stays open until the end, or for more bytes than a row may have, or for many
    lines that are not one row of ``num_columns`` cells (0: unknown). So one wrong quote does not
    damage the rows after it.

    Parameters
    ----------
    file : InputFile
        The file; a compressed one is read decompressed.
    start : int
        Position of the first row, in bytes.
    dialect : Dialect
        How cells are separated and quoted.
    chunk_bytes : int
        Bytes to read at once.
    num_columns : int
        Cells of a row; 0: unknown.

    Yields
    ------
    tuple of (ByteRange, bytes)
        A range of whole rows, and its bytes.

    Raises
    ------
    SourceError
        A line is too long.
    """  # noqa: DOC501
    # the fallback for a range with a quote that is never closed
    lines = replace(dialect, multiline=False)
    row, buffer = 1, b""
    with file.stream() as stream:
        _skip(stream, start, file)
        while block := stream.read(chunk_bytes):
            buffer += block
            # a byte-order mark would become part of the first id
            if start == 0 and buffer.startswith(codecs.BOM_UTF8):
                start, buffer = len(codecs.BOM_UTF8), buffer[len(codecs.BOM_UTF8) :]
            cut = count = -1
            while cut < 0 or count == _MOST_ROWS:  # once, except for very short rows
                cut, count, is_sound = _last_row_end(buffer, dialect, num_columns)
                by_line = not is_sound or (cut == 0 and len(buffer) > MAX_ROW_BYTES)
                if by_line:
                    cut, count, _ = _last_row_end(buffer, lines, 0)
                    # not even one line ends within the size of a row
                    if cut == 0:
                        raise row_too_long(file.path, row)
                if cut:
                    yield ByteRange(start, cut, row, count, by_line), buffer[:cut]
                    start, row, buffer = start + cut, row + count, buffer[cut:]
    if buffer:
        # the last row may have no line end; with one it is found like the others
        cut, count, is_sound = _last_row_end(buffer + b"\n", dialect, num_columns)
        if cut <= len(buffer) or not is_sound:
            yield (
                ByteRange(start, len(buffer), row, buffer.rstrip(b"\n").count(b"\n") + 1, True),
                buffer,
            )
        else:
            yield ByteRange(start, len(buffer), row, count), buffer


def _last_row_end(data: bytes, dialect: Dialect, num_columns: int) -> tuple[int, int, bool]:
    """The byte after the last whole row, the number of whole rows, and whether all rows of many
    lines are valid.

    ``data`` starts outside of quotes. At most ``_MOST_ROWS`` rows are counted, because each of them
    may be a bad row.
    """
    end = data.rfind(b"\n") + 1
    if not (dialect.quoted and dialect.multiline) or data.find(_QUOTE, 0, end) < 0:
        count = data.count(b"\n", 0, end)
        if count > _MOST_ROWS:
            # only here positions are needed; they take eight bytes a line
            end = int(np.flatnonzero(_codes(data) == _NEWLINE)[_MOST_ROWS - 1]) + 1
            count = _MOST_ROWS
        return end, count, True
    # only a line with an odd number of quotes can open or close a cell over several lines
    ends, is_odd = _odd_lines(data[:end])
    inside = np.zeros(len(ends), dtype=bool)
    opened, is_sound = -1, True
    for line in np.flatnonzero(is_odd):
        begin = 0 if line == 0 else int(ends[line - 1]) + 1
        if open_after(data[begin : int(ends[line])], dialect.delimiter.encode(), opened >= 0):
            opened = int(line) if opened < 0 else opened
        elif opened >= 0:
            inside[opened:line] = True
            if num_columns and line - opened > _MANY_LINES:
                begin = 0 if opened == 0 else int(ends[opened - 1]) + 1
                is_sound &= _is_row(data[begin : int(ends[line])], dialect, num_columns)
            opened = -1
    if opened >= 0:
        inside[opened:] = True
    outside = np.flatnonzero(~inside)[:_MOST_ROWS]
    return (
        (int(ends[outside[-1]]) + 1, len(outside), is_sound) if len(outside) else (0, 0, is_sound)
    )


def _is_row(data: bytes, dialect: Dialect, num_columns: int) -> bool:
    """Whether lines are one strictly valid row: the right number of cells, and no text after a
    closing quote.
    """
    # the default of 128 KiB would call a long but valid text wrong
    csv.field_size_limit(max(csv.field_size_limit(), len(data)))
    try:
        text = data.decode(dialect.encoding)
        return (
            len(next(csv.reader([text], delimiter=dialect.delimiter, strict=True))) == num_columns
        )
    except (csv.Error, UnicodeDecodeError):
        return False


def _odd_lines(data: bytes) -> tuple[Any, Any]:
    """The position of each line break, and whether its line has an odd number of quotes."""
    codes = _codes(data)
    ends = np.flatnonzero(codes == _NEWLINE)
    quotes = np.searchsorted(np.flatnonzero(codes == 34), ends)
    return ends, np.diff(quotes, prepend=0) % 2 == 1


def _codes(data: bytes) -> Any:
    return np.frombuffer(data, dtype=np.uint8)


def open_after(line: bytes, delimiter: bytes, inside: bool) -> bool:
    """Whether a quoted cell is still open at the end of a line; quotes within unquoted cells are
    plain characters.

    >>> open_after(b'1,"two', b",", False), open_after(b'1,5" disc', b",", False)
    (True, False)
    >>> open_after(b'end",2', b",", True)
    False

    Parameters
    ----------
    line : bytes
        Bytes of the line, or of the rest of a row.
    delimiter : bytes
        Bytes between cells.
    inside : bool
        Whether a quoted cell is open at the start of the line.

    Returns
    -------
    bool
        True if it is open at the end.
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


def _skip(stream: Any, count: int, file: InputFile) -> None:
    while count > 0:
        skipped = len(stream.read(min(count, CHUNK_BYTES)))
        if skipped == 0:
            # a file that was cut since it was found has another message
            file.check_unchanged()
            raise SourceError(f"{file.path} ends before its first row; check the file and the disk")
        count -= skipped
