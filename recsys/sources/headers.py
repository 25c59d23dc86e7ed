"""The head of a text file: which separator it has, which line names its columns, and where its rows begin.

Why: what is taken for a header is not read as data, and what is data must not be taken for a header. One look at the
first lines decides, and where it cannot, the message names the settings that do.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from recsys import schema
from recsys.errors import SourceError
from recsys.sources.delimited import check_encoding
from recsys.sources.files import InputFile
from recsys.sources.limits import check_column_count
from recsys.sources.names import fold
from recsys.sources.separators import BLANKS
from recsys.sources.spans import CSV, TSV, Dialect, open_after

DROP: Final = "_"
"""A name in ``data.source.columns`` that leaves the cell out, as "" does."""

_HEAD_BYTES: Final = 1 << 20
_MAX_SAMPLE: Final = 100  # rows that are looked at
_MAX_JOINED: Final = 20  # lines of one row with line breaks in quotes
_BOM: Final = b"\xef\xbb\xbf"
COMMENTS: Final = ("#", "%", "//")
_OTHERS: Final = (";", "\t", "|", "::", ",")
_NAMES: Final = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar", "::": "two colons", BLANKS: "blanks"}
_NUMBER: Final = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?")
_TIME: Final = re.compile(r"\d{4}[-/]\d\d?[-/]\d\d?\b.*|\d\d?[/.]\d\d?[/.]\d{2,4}\b.*")
_IDS: Final = {"user_id", "userid", "user", "item_id", "itemid", "item", "timestamp", "rating", "uid", "iid"}


@dataclass(frozen=True)
class Form:
    """How the text files of one table are written, as the configuration says."""

    separator: str = ""  # "": by format
    columns: tuple[str, ...] = ()
    header: str = "auto"
    comment: str = ""
    encoding: str = "utf-8"
    table: str = "events"


@dataclass(frozen=True)
class Header:
    """The columns of a file, and where the rows begin."""

    columns: tuple[str, ...]  # "" for a cell that is left out
    end: int  # bytes
    dialect: Dialect = CSV
    below: tuple[tuple[str, ...], ...] = ()  # cells of the first rows
    is_given: bool = False  # the names are those of data.source.columns
    notes: tuple[str, ...] = ()
    cure: str = field(default="", compare=False)  # what helps where required columns are missing
    titles: tuple[str, ...] = ()  # the cells as they stand in the first row


@dataclass(frozen=True)
class _Row:
    """A row of the head: its text, and the bytes where it begins and where the next one does."""

    text: str
    begin: int
    end: int


def dialect_of(kind: str, form: Form) -> Dialect:
    """The dialect of a format with the separator of the configuration. Cells of a CSV file may be quoted (RFC 4180)
    where one character separates them."""
    base = CSV if kind == "csv" else TSV
    separator = form.separator or base.delimiter
    quoted = base.quoted and len(separator) == 1 and separator.isascii() and separator != BLANKS
    return replace(base, delimiter=separator, quoted=quoted, encoding=form.encoding, comment=form.comment)


def read_header(file: InputFile, dialect: Dialect, form: Form | None = None) -> Header:
    """The names of the columns: those of the first row that is no comment, or those of the configuration.

    Args:
        file: CSV, TSV or another separated text.
        dialect: by format and configuration.
        form: the configuration; without it the first row names the columns and the separator is fixed.

    Raises:
        SourceError: the head of the file is not text in this encoding, there is no row below the header, rows and
            header differ in their number of cells, or the first row contradicts the configuration.
    """
    head = _head(file)
    check_encoding(file, head, dialect.encoding)
    if b"\n" not in head and b"\r" in head.strip():
        raise SourceError(
            f"{file.path}: the lines end with a lone carriage return (\\r), so that all of it reads as one header row; "
            "expected line ends \\n or \\r\\n: convert the file, e.g. tr '\\r' '\\n' < OLD > NEW"
        )
    rows = list(_rows(head, dialect))
    notes: tuple[str, ...] = ()
    if form is not None and not form.separator and rows:
        dialect, notes = _separator(file, rows, dialect, form)
        rows = list(_rows(head, dialect))
    if not rows or (len(rows) == 1 and not (form and form.columns)):
        found = "only a header" if rows else "nothing but blank lines and comments" if head.strip() else "nothing"
        raise SourceError(f"{file.path} holds {found}; expected a header line and at least one row below it")
    check_column_count(len(cells_of(rows[0].text, dialect)), file.path)
    first, *below = [tuple(cells_of(row.text, dialect)) for row in rows]
    if form is not None and form.columns:
        return _given(file, form, rows, first, below, dialect, notes)
    if form is not None and form.header == "no":
        raise SourceError(
            f"{file.path}: data.source.header is no, so the columns need names: set data.source.columns, "
            f"e.g. {{{form.table}: {_example(first, form.table)}}}"
        )
    names = _sized(file, tuple(name.strip() for name in first), below, _comment(rows[0].text, dialect))
    cure = _cure(rows, names, below, dialect, form)
    notes += _unnamed(file, names, below)
    return Header(names, rows[0].end, dialect, tuple(below), False, notes, cure, first)


def first_row_is_data(header: Header, places: Sequence[int]) -> str:
    """Why the cells at these places of the header are no names of columns but data; empty: they may be names."""
    for place in places:
        name = header.columns[place]
        if is_value(name):
            return f"{name!r} is a number or a time"
        if any(len(row) > place and row[place].strip() == name and _differs(row, header) for row in header.below):
            return f"{name!r} is also a value in the rows below"
    return ""


def is_value(cell: str) -> bool:
    """Whether a cell is a number or a time, which names of columns are not."""
    return bool(_NUMBER.fullmatch(cell.strip()) or _TIME.fullmatch(cell.strip()))


def is_name(cell: str) -> bool:
    """Whether a cell is what people call a column of users, items or times.

    >>> is_name("userID:token"), is_name("u17")
    (True, False)
    """
    return fold(cell.partition(":")[0]) in _IDS


def cells_of(text: str, dialect: Dialect) -> list[str]:
    """The cells of one row; one cell with all of it where it is no row of this dialect."""
    if dialect.delimiter == BLANKS and not dialect.quoted:
        return text.split()
    if not dialect.quoted:
        return text.split(dialect.delimiter)
    try:
        return next(csv.reader([text], delimiter=dialect.delimiter), [])
    except csv.Error:
        return [text]


def format_hint(file: InputFile) -> str:
    """What to set for a file whose name does not tell its format, after a look at its first rows; may be empty."""
    head = _head(file)
    if b"\0" in head:
        return ""
    rows = [row.text for row in _rows(head, TSV)]
    found = _consistent(rows, replace(TSV, delimiter="\0"))
    if len(found) != 1:
        return ""
    return f"the cells look separated by {shown(found[0])} ({_NAMES[found[0]]}): set data.source.separator to it"


def data_start(file: InputFile) -> int:
    """Where the text begins: behind a byte-order mark."""
    with file.stream() as stream:
        return len(_BOM) if bytes(stream.read(len(_BOM))) == _BOM else 0


def shown(separator: str) -> str:
    """A separator for a message, as the configuration takes it.

    >>> shown("::"), shown(chr(9))
    ("'::'", "'\\\\t'")
    """
    return repr(separator)


# -------------------------------------------------------------------------------------------------------- the rows


def _head(file: InputFile) -> bytes:
    with file.stream() as stream:
        return bytes(stream.read(_HEAD_BYTES))


def _rows(head: bytes, dialect: Dialect) -> Iterator[_Row]:
    """The first rows, without blank lines and comments; a line that the head cuts off only if it is the first."""
    start = begin = len(_BOM) if head.startswith(_BOM) else 0
    comment = dialect.comment.encode()
    held: list[bytes] = []
    count = 0
    while start < len(head) and count < _MAX_SAMPLE:
        end = head.find(b"\n", start) + 1
        if end == 0 and len(head) == _HEAD_BYTES and count:
            return
        end = end or len(head)
        line, begin, start = head[start:end], begin if held else start, end
        if not held and (not line.strip() or (comment and line.startswith(comment))):
            continue
        held.append(line)
        row = b"".join(held)
        is_open = dialect.quoted and open_after(row.rstrip(b"\r\n"), dialect.delimiter.encode(), False)
        if is_open and len(held) < _MAX_JOINED and end < len(head):
            continue
        held, count = [], count + 1
        yield _Row(row.decode(dialect.encoding, errors="replace").rstrip("\r\n").replace("\r", " "), begin, end)


def _sized(file: InputFile, names: tuple[str, ...], below: list[tuple[str, ...]], comment: str) -> tuple[str, ...]:
    """The names, one for every cell of the rows below.

    Raises:
        SourceError: no row below has as many cells as the header has names.
    """
    sizes = {len(row) for row in below}
    if len(names) in sizes or len(sizes) > 1 or len(below) < 2:
        return names
    size = sizes.pop()
    if size == len(names) + 1 and not any(row[-1].strip() for row in below):
        return (*names, "")  # every row ends with a separator, the header does not
    if size == 1:
        return names  # another separator in the header than below: single rows say so
    if comment:
        raise SourceError(f"{file.path}: {comment}")
    raise SourceError(
        f"{file.path}: the header names {_cells(len(names))} ({', '.join(map(repr, names[:8]))}), but the rows below "
        f"have {_cells(size)}; correct the header, or name all {size} with data.source.columns ('_' leaves one "
        "out) and set data.source.header to yes"
    )


def _cells(count: int) -> str:
    return "1 cell" if count == 1 else f"{count} cells"


def _unnamed(file: InputFile, names: tuple[str, ...], below: list[tuple[str, ...]]) -> tuple[str, ...]:
    """A note on columns without a name that hold values and are no row numbers."""
    lost = []
    for place, name in enumerate(names):
        cells = [row[place].strip() for row in below if len(row) > place]
        if name or not any(cells) or (place == 0 and _is_index(cells)):
            continue
        lost.append(place + 1)
    where = ", ".join(map(str, lost))
    return (f"column {where} has no name in the header and is left out",) if lost else ()


def _is_index(cells: list[str]) -> bool:
    numbers = [int(cell) for cell in cells if cell.isascii() and cell.isdigit() and len(cell) < 19]
    return len(numbers) == len(cells) and all(b - a == 1 for a, b in zip(numbers, numbers[1:], strict=False))


# ------------------------------------------------------------------------------------------------- given by settings


def _given(
    file: InputFile,
    form: Form,
    rows: list[_Row],
    first: tuple[str, ...],
    below: list[tuple[str, ...]],
    dialect: Dialect,
    notes: tuple[str, ...],
) -> Header:
    """The names of ``data.source.columns``, and whether the first row is a header that they replace."""
    names = tuple("" if name.strip() in ("", DROP) else name.strip() for name in form.columns)
    key = f"data.source.columns names {_cells(len(names))} of {form.table}"
    same = len(first) == len(names) and all(fold(a) == fold(b) for a, b in zip(first, names, strict=True) if b)
    if form.header == "no" and same and any(names):
        raise SourceError(
            f"{file.path}: the first row holds the names of data.source.columns, and data.source.header is no: it "
            "would be an event; set data.source.header to auto or yes"
        )
    if form.header == "auto" and not same and (found := _looks_like_names(first, below)):
        raise SourceError(
            f"{file.path}: the first row ({_shown_cells(first)}) looks like a header: {found}; set data.source.header "
            "to yes to put data.source.columns in its place (no: it is a row), or remove data.source.columns"
        )
    has_header = form.header == "yes" or same
    sampled = below if has_header else [first, *below]
    if not sampled:
        raise SourceError(f"{file.path} holds only a header; expected at least one row below it")
    sizes = [len(row) for row in sampled]
    if len(first) != len(names) and (comment := _comment(rows[0].text, dialect)):
        raise SourceError(f"{file.path}: {comment}")
    if len(names) not in sizes:
        if len(set(sizes)) == 1 and sizes[0] == len(names) + 1 and not any(row[-1].strip() for row in sampled):
            names = (*names, "")
        else:
            hint = _other_separator([first, *below], rows, dialect)
            raise SourceError(
                f"{file.path}: {key}, but its rows have {_cells(sizes[0])} between {shown(dialect.delimiter)} "
                f"({_shown_cells(sampled[0])}); {hint or 'name every cell, the ones to leave out _'}"
            )
    end = rows[0].end if has_header else rows[0].begin
    return Header(names, end, dialect, tuple(below), True, notes)


def _looks_like_names(first: tuple[str, ...], below: list[tuple[str, ...]]) -> str:
    """Why a row that should be data is a header; empty: it may be data."""
    for place, cell in enumerate(first):
        column = [row[place] for row in below if len(row) == len(first)]
        if len(column) > 1 and cell.strip() and not is_value(cell) and all(map(is_value, column)):
            return f"{cell.strip()!r} stands above numbers or times"
        if is_name(cell) and cell not in column:
            return f"{cell.strip()!r} is the name of a column"
    return ""


def _shown_cells(cells: Sequence[str]) -> str:
    return ", ".join(repr(cell[:40]) for cell in cells[:8]) + (" …" if len(cells) > 8 else "")


# ----------------------------------------------------------------------------------------------------- what may help


def _cure(
    rows: list[_Row], names: tuple[str, ...], below: list[tuple[str, ...]], dialect: Dialect, form: Form | None
) -> str:
    """What helps where the names are not the ones that a table needs; empty: a rename."""
    text = rows[0].text
    if comment := _comment(text, dialect):
        return comment
    header = Header(names, 0, dialect, tuple(below))
    if len(names) == 1 and (others := _consistent([row.text for row in rows], dialect)):
        cells = cells_of(text, replace(dialect, delimiter=others[0], quoted=False))
        cure = f"the cells look separated by {shown(others[0])} ({_NAMES[others[0]]}), not {shown(dialect.delimiter)}: "
        cure += f"set data.source.separator to {shown(others[0])}"
        if any(map(is_value, cells)):
            cure += (
                "; the first row looks like data, not like a header: name the columns with data.source.columns, e.g. "
                + _example(cells, form.table if form else schema.EVENTS.name)
            )
        return cure
    if len(names) == 1 and form is None:
        return ""
    reason = first_row_is_data(header, range(len(names))) or _repeated(names)
    if not reason or form is None:
        return ""
    return (
        f"the first row looks like data ({reason}): if the file has no header, name its columns with "
        f"data.source.columns, e.g. {{{form.table}: {_example(names, form.table)}}}; if it is a header, "
        "rename its columns with data.source.rename and set data.source.header to yes"
    )


def _comment(line: str, dialect: Dialect) -> str:
    """What to set where the first line looks like a comment; empty: it does not."""
    mark = next((mark for mark in COMMENTS if line.startswith(mark)), "")
    if not mark or dialect.comment == mark:
        return ""
    return (
        f"the first line ({line[:60]!r}) looks like a comment: set data.source.comment to {mark!r} to skip such lines, "
        "and data.source.columns if no line names the columns"
    )


def _example(cells: Sequence[str], table: str) -> str:
    """Names for the cells of a row, as they often are: the ids of the table, then numbers and times."""
    kinds, names = schema.TABLES[table], list[str]()
    number = next((name for name in (schema.VALUE, schema.WEIGHT) if name in kinds.optional), DROP)
    for cell in cells:
        is_time = _TIME.fullmatch(cell) or (_NUMBER.fullmatch(cell) and len(cell.split(".")[0]) >= 9)
        rest = schema.TIMESTAMP if is_time else number if _NUMBER.fullmatch(cell) else DROP
        wanted = next((name for name in kinds.required if name not in names and not is_time), rest)
        names.append(wanted if wanted in kinds.columns and wanted not in names else DROP)
    return f"[{', '.join(names)}]"


def _repeated(names: Sequence[str]) -> str:
    twice = sorted({name for name in names if name and list(names).count(name) > 1})
    return f"{twice[0]!r} occurs twice" if twice else ""


def _differs(row: Sequence[str], header: Header) -> bool:
    return [cell.strip() for cell in row] != list(header.columns)


def _separator(file: InputFile, rows: list[_Row], dialect: Dialect, form: Form) -> tuple[Dialect, tuple[str, ...]]:
    """The dialect with another separator, where the usual one separates nothing and exactly one other does."""
    if len(cells_of(rows[0].text, dialect)) > 1:
        return dialect, ()
    fitting = _consistent([row.text for row in rows], dialect)
    found = [other for other in fitting if other != BLANKS]
    kind = "csv" if dialect.quoted or found[:1] == [","] else "tsv"
    quotable = dialect_of(kind, replace(form, separator=found[0])) if found else dialect
    size = len(cells_of(rows[0].text, quotable))
    if len(found) != 1 or (form.columns and size != len(form.columns)) or len(rows) < 2:
        return dialect, ()
    first = cells_of(rows[0].text, quotable)
    if not form.columns and any(map(is_value, first)):
        return dialect, ()  # no header either: one message says both
    used = f"cells are separated by {shown(found[0])}, not by {shown(dialect.delimiter)}, and were read so"
    return quotable, (f"{used}; data.source.separator says it for good",)


def _consistent(texts: Sequence[str], dialect: Dialect) -> list[str]:
    """The other separators that give every row the same number of cells, two or more."""
    found = []
    for other in (*_OTHERS, BLANKS):
        tried = replace(dialect, delimiter=other, quoted=dialect.quoted and len(other) == 1 and other != BLANKS)
        sizes = {len(cells_of(text, tried)) for text in texts}
        if other != dialect.delimiter and len(sizes) == 1 and min(sizes) > 1:
            found.append(other)
    if len(found) > 1 and BLANKS in found:
        found.remove(BLANKS)
    return found


def _other_separator(cells: list[tuple[str, ...]], rows: list[_Row], dialect: Dialect) -> str:
    found = _consistent([row.text for row in rows], dialect) if len(cells[0]) == 1 else []
    return f"they look separated by {shown(found[0])}: set data.source.separator to it" if found else ""
