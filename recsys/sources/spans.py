"""Runs of whole rows in a text file, found in constant memory.

Why: a text file has no place to start in the middle. One pass counts rows and cuts the file between them, so that
every task knows its bytes and the number of its first row. A line break inside quotes is no end of a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from recsys.sources.files import InputFile

CHUNK_BYTES: Final = 32 << 20
_QUOTE: Final = b'"'


@dataclass(frozen=True)
class Dialect:
    """How cells are separated, quoted and encoded (ASCII-compatible encodings)."""

    delimiter: str = ","
    quoted: bool = True
    encoding: str = "utf-8"
    multiline: bool = True  # quoted cells may hold line breaks
    comment: str = ""  # lines that begin with this are skipped


CSV: Final = Dialect()
TSV: Final = Dialect("\t", quoted=False)


@dataclass(frozen=True)
class Span:
    """A run of whole rows in a file: bytes ``[start, start + length)``, rows from ``first_row`` (1-based)."""

    start: int
    length: int
    first_row: int
    num_rows: int


class OpenQuoteError(Exception):
    """A quoted cell that does not end before the file does."""


def spans(file: InputFile, start: int, dialect: Dialect, chunk_bytes: int) -> Iterator[tuple[Span, bytes]]:
    """Cut the rows from byte ``start`` on into runs of about ``chunk_bytes``, each with its bytes.

    Raises:
        OpenQuoteError: a quote stays open to the end (uncompressed files, ``dialect.multiline``); in a compressed file,
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
        raise OpenQuoteError


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
        if open_after(data[begin : int(ends[line])], dialect.delimiter.encode(), opened >= 0):
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


def open_after(line: bytes, delimiter: bytes, inside: bool) -> bool:
    """Whether a quoted cell is still open at the end of a line; quotes within unquoted cells are plain characters.

    >>> open_after(b'1,"two', b",", False), open_after(b'1,5" disc', b",", False), open_after(b'end",2', b",", True)
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


def _skip(stream: Any, count: int) -> None:
    while count > 0:
        count -= len(stream.read(min(count, CHUNK_BYTES)))
