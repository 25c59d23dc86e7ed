"""The first rows of a text file, and the dialect in which they are written."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from recsys.errors import SourceError
from recsys.sources.byte_ranges import CSV, TSV, Dialect, open_after
from recsys.sources.files import InputFile
from recsys.sources.limits import row_too_long
from recsys.sources.separators import BLANKS

HEAD_BYTES: Final = 1 << 20

_MAX_SAMPLE: Final = 1000  # rows of the head that are examined

_MAX_JOINED: Final = 20  # lines of one row with line breaks in quotes, at most


@dataclass(frozen=True)
class Form:
    """The form of the text files of one table, as the configuration gives it."""

    separator: str = ""  # "": by format
    columns: tuple[str, ...] = ()
    header: str = "auto"
    comment: str = ""
    encoding: str = "utf-8"
    table: str = "events"


@dataclass(frozen=True)
class FirstRow:
    """A row of the head: its text, its first byte and the first byte of the next row."""

    text: str
    begin: int
    end: int


def dialect_of(kind: str, form: Form) -> Dialect:
    """The dialect of a format with the separator of the configuration.

    Cells of a CSV file may be quoted (RFC 4180) if the separator is one character.
    """
    base = CSV if kind == "csv" else TSV
    separator = form.separator or base.delimiter
    quoted = base.quoted and len(separator) == 1 and separator.isascii() and separator != BLANKS
    return replace(
        base, delimiter=separator, quoted=quoted, encoding=form.encoding, comment=form.comment
    )


def check_line_ends(file: InputFile, head: bytes) -> None:
    """Check that lines end with a line feed.

    Raises
    ------
    SourceError
        Lines end with a lone carriage return, so that the whole file would be one row.
    """
    if b"\n" not in head and b"\r" in head.strip():
        raise SourceError(
            f"{file.path}: the lines end with a lone carriage return (\\r), so the whole file is"
            " one row; expected line ends \\n or \\r\\n: convert the file, e.g. tr '\\r' '\\n' <"
            " OLD > NEW"
        )


def data_start(file: InputFile) -> int:
    """The first byte of the text, after a byte-order mark."""
    with file.stream() as stream:
        return len(BOM_UTF8) if bytes(stream.read(len(BOM_UTF8))) == BOM_UTF8 else 0


def first_byte(head: bytes) -> bytes:
    """The first byte of a file's head besides blanks and a byte order mark; ``b""`` if none."""
    return head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1]


def head_of(file: InputFile) -> bytes:
    """The first bytes of a file, at most :data:`HEAD_BYTES`.

    Raises
    ------
    SourceError
        The first row is longer.
    """  # noqa: DOC501
    with file.stream() as stream:
        head = bytes(stream.read(HEAD_BYTES))
    if len(head) == HEAD_BYTES and b"\n" not in head and b"\r" not in head:
        raise row_too_long(file.path, 0, HEAD_BYTES)
    return head


def first_rows(head: bytes, dialect: Dialect) -> Iterator[FirstRow]:
    """The first rows without blank lines and comments; a line cut by the end of the head only if it
    is the first.

    Yields
    ------
    FirstRow
        The decoded text of a row and where it begins and ends.
    """
    start = begin = len(BOM_UTF8) if head.startswith(BOM_UTF8) else 0
    comment = dialect.comment.encode()
    held: list[bytes] = []
    count = 0
    while start < len(head) and count < _MAX_SAMPLE:
        end = head.find(b"\n", start) + 1
        if end == 0 and len(head) == HEAD_BYTES and count:
            return
        end = end or len(head)
        line, begin, start = head[start:end], begin if held else start, end
        if not held and (not line.strip() or (comment and line.startswith(comment))):
            continue
        held.append(line)
        row = b"".join(held)
        is_open = dialect.quoted and open_after(
            row.rstrip(b"\r\n"), dialect.delimiter.encode(), False
        )
        if is_open and len(held) < _MAX_JOINED and end < len(head):
            continue
        held, count = [], count + 1
        yield FirstRow(
            row.decode(dialect.encoding, errors="replace").rstrip("\r\n").replace("\r", " "),
            begin,
            end,
        )
