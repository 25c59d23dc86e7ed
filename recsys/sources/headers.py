"""The head of a text file: its separator, the line with column names, and the start of its rows.

Why: a header must not be read as data, and data must not be read as a header. The first lines
decide. If they cannot, the message names the keys to set.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from recsys import schema
from recsys.errors import EmptyFile, SourceError
from recsys.sources.byte_ranges import CSV, TSV, Dialect
from recsys.sources.files import InputFile
from recsys.sources.first_rows import (
    HEAD_BYTES,
    FirstRow,
    Form,
    check_line_ends,
    dialect_of,
    first_rows,
    head_of,
)
from recsys.sources.guesses import (
    DROP,
    NAMES,
    cells_of,
    comment_hint,
    consistent,
    cure_of_names,
    data_in_header,
    example_names,
    is_rule,
    is_value,
    looks_like_names,
    shown,
)
from recsys.sources.limits import check_column_count
from recsys.sources.names import fold
from recsys.sources.separators import BLANKS
from recsys.sources.text_checks import check_encoding

_CANONICAL: Final = {column for table in schema.TABLES.values() for column in table.columns}
_SEPARATOR_LINE: Final = re.compile(r"sep=(.)", re.IGNORECASE)  # written by spreadsheets


@dataclass(frozen=True)
class Header:
    """The columns of a file, and the start of the rows."""

    columns: tuple[str, ...]  # "" for a skipped column
    end: int  # byte where the rows start
    dialect: Dialect = CSV
    suspects: Mapping[str, str] = field(default_factory=dict)  # names that look like data → reason
    is_given: bool = False  # the names come from data.source.columns
    notes: tuple[str, ...] = ()
    cure: str = field(default="", compare=False)  # the cure if required columns are missing
    titles: tuple[str, ...] = ()  # the cells of the first row, unchanged


def read_header(file: InputFile, dialect: Dialect, form: Form | None = None) -> Header:
    """Read the column names: those of the first row that is not a comment, or those of the
    configuration.

    Parameters
    ----------
    file : InputFile
        CSV, TSV or another separated text.
    dialect : Dialect
        From format and configuration.
    form : Form | None
        From the configuration; without it the first row names the columns and the separator is
        fixed.

    Raises
    ------
    SourceError
        The head of the file is not text in this encoding, there is no row below the header, rows
        and header differ in their number of cells, or the first row contradicts the configuration.
    """
    head = head_of(file)
    check_encoding(file, head, dialect.encoding)
    check_line_ends(file, head)
    rows, dialect, form, notes = _separated(file, head, dialect, form)
    if not rows:
        found = "has only blank lines and comments" if head.strip() else "is empty"
        raise SourceError(
            f"{file.path} {found}; expected a header line and at least one row below it"
        )
    check_column_count(len(cells_of(rows[0].text, dialect)), file.path)
    first, *below = [tuple(cells_of(row.text, dialect)) for row in rows]
    if form is not None and form.columns:
        return _given(file, form, rows, (first, below), dialect, notes)
    if form is not None and form.header == "no":
        raise SourceError(
            f"{file.path}: data.source.header is no, so the columns need names: set"
            f" data.source.columns, e.g. {{{form.table}: {example_names(first, form.table)}}}"
        )
    if not below and rows[0].end < len(head) == HEAD_BYTES:
        # the head ends inside a long second row, which the row reader will split
        below = [("",) * len(first)]
    _check_rows_below(file, rows, first, below)
    names = _sized(
        file, tuple(name.strip() for name in first), below, comment_hint(rows[0].text, dialect)
    )
    suspects = data_in_header(names, below)
    cure = cure_of_names(
        [row.text for row in rows], names, suspects, dialect, form.table if form else ""
    )
    if form is not None:
        cure = _header_in_comment(head, dialect, form) or (
            cure and cure + _for_one_table(form, cure)
        )
    notes += _unnamed(file, names, below)
    # other tables use all their columns, and refuse a name that two of them have
    if form is None or form.table in ("", schema.EVENTS.name):
        names, repeated = _without_repeated(names)
        notes += repeated
    return Header(names, rows[0].end, dialect, suspects, False, notes, cure, first)


def _separated(
    file: InputFile, head: bytes, dialect: Dialect, form: Form | None
) -> tuple[list[FirstRow], Dialect, Form | None, tuple[str, ...]]:
    """The first rows, without a line ``sep=``; and dialect, form and notes with the separator that
    was found.
    """
    rows = list(first_rows(head, dialect))
    if (
        form is not None
        and rows
        and (separator_line := _SEPARATOR_LINE.fullmatch(rows[0].text.strip('"')))
    ):
        form = replace(form, separator=form.separator or separator_line[1])
        dialect = dialect_of("csv", form)
        rows = list(first_rows(head, dialect))[1:]
    notes: tuple[str, ...] = ()
    if form is not None and not form.separator and rows:
        dialect, notes = _separator(file, rows, dialect, form)
        rows = list(first_rows(head, dialect))
    return rows, dialect, form, notes


def _check_rows_below(
    file: InputFile, rows: list[FirstRow], first: tuple[str, ...], below: list[tuple[str, ...]]
) -> None:
    """Refuse a header without a row below it, or with a line of dashes below it."""
    if not below:
        hint = (
            "; if it is a row, name the columns with data.source.columns"
            if any(map(is_value, first))
            else ""
        )
        raise EmptyFile(f"{file.path} has only a header; expected at least one row below it{hint}")
    if is_rule(below[0]):
        raise SourceError(
            f"{file.path}: below the header is a line of dashes ({rows[1].text[:60]!r}), which"
            " would be read as data; remove it, or set data.source.comment to"
            f" {rows[1].text.strip()[:2]!r} to skip such lines"
        )


def format_hint(file: InputFile) -> str:
    """The key to set for a file with an unknown extension, guessed from its first rows; may be
    empty.
    """
    head = head_of(file)
    if b"\0" in head:
        return (
            "this file is binary: unpack it if it is an archive, or write its table as Parquet"
            " or CSV"
        )
    rows = [row.text for row in first_rows(head, TSV)]
    found = consistent(rows, replace(TSV, delimiter="\0"))
    if len(found) != 1:
        return ""
    return (
        f"the cells look separated by {shown(found[0])} ({NAMES[found[0]]}): set"
        " data.source.separator to it"
    )


def _sized(
    file: InputFile, names: tuple[str, ...], below: list[tuple[str, ...]], comment: str
) -> tuple[str, ...]:
    """The names, one for each cell of the rows below.

    Raises
    ------
    SourceError
        No row below has as many cells as the header has names.
    """
    sizes = {len(row) for row in below}
    # rows of several sizes are bad rows; they do not say that the header is wrong
    if len(names) in sizes or len(sizes) > 1 or len(below) < 2:
        return names
    size = sizes.pop()
    if size == len(names) + 1 and not any(row[-1].strip() for row in below):
        return (*names, "")  # each row ends with a separator, the header does not
    # one cell per row means a wrong separator, not a missing name
    if size == 1:
        return names  # the header has another separator than the rows; each row reports it
    if comment:
        raise SourceError(f"{file.path}: {comment}")
    raise SourceError(
        f"{file.path}: the header names {_cells(len(names))} ({', '.join(map(repr, names[:8]))}),"
        f" but the rows below have {_cells(size)}; correct the header (data.source.comment skips a"
        f" title above it), or name all {size} with data.source.columns ('_' skips one) and set"
        " data.source.header to yes"
    )


def _cells(count: int) -> str:
    return "1 cell" if count == 1 else f"{count} cells"


def _unnamed(
    file: InputFile, names: tuple[str, ...], below: list[tuple[str, ...]]
) -> tuple[str, ...]:
    """A note on columns without a name that have values and are not row numbers."""
    lost = []
    for index, name in enumerate(names):
        cells = [row[index].strip() for row in below if len(row) > index]
        if name or not any(cells) or (index == 0 and _is_index(cells)):
            continue
        lost.append(index + 1)
    where = ", ".join(map(str, lost))
    return (f"column {where} has no name in the header and is skipped",) if lost else ()


def _without_repeated(names: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names without those that several columns have, and a note on each; canonical names stay,
    because a table cannot do without them and its reader refuses them.

    >>> _without_repeated(("user_id", "total", "total"))[0]
    ('user_id', '', '')
    """
    counts = Counter(names)
    repeated = sorted(
        name
        for name, count in counts.items()
        if name and count > 1 and fold(name) not in _CANONICAL
    )
    notes = tuple(
        f"{counts[name]} columns have the name {name!r} and are skipped; to use one, name all"
        " columns with data.source.columns and set data.source.header to yes"
        for name in repeated
    )
    return tuple("" if name in repeated else name for name in names), notes


def _is_index(cells: list[str]) -> bool:
    numbers = [int(cell) for cell in cells if cell.isascii() and cell.isdigit() and len(cell) < 19]
    return len(numbers) == len(cells) and all(
        b - a == 1 for a, b in zip(numbers, numbers[1:], strict=False)
    )


# -------------------------------------------------------------------------------- given by settings


def _given(
    file: InputFile,
    form: Form,
    rows: list[FirstRow],
    cells: tuple[tuple[str, ...], list[tuple[str, ...]]],
    dialect: Dialect,
    notes: tuple[str, ...],
) -> Header:
    """The header with the names of ``data.source.columns``, which may replace a header in the
    file; ``cells`` are those of the first row and of the rows below.

    Raises
    ------
    EmptyFile
        There is no row below the header.
    SourceError
        The names do not fit the cells, or the row below the first one repeats the names.
    """
    first, below = cells
    names = tuple("" if name.strip() in ("", DROP) else name.strip() for name in form.columns)
    has_header = _replaces_header(file, form, names, first, below)
    sampled = below if has_header else [first, *below]
    if not sampled:
        raise EmptyFile(f"{file.path} has only a header; expected at least one row below it")
    if len(first) != len(names) and (comment := comment_hint(rows[0].text, dialect)):
        raise SourceError(f"{file.path}: {comment}")
    sizes = [len(row) for row in sampled]
    if len(names) not in sizes:
        one_more = set(sizes) == {len(names) + 1}
        if not one_more or any(row[-1].strip() for row in sampled):
            hint = _other_separator([first, *below], rows, dialect)
            hint += _for_one_table(form, hint)
            raise SourceError(
                f"{file.path}: data.source.columns names {_cells(len(names))} of {form.table}, but"
                f" its rows have {_cells(sizes[0])} between {shown(dialect.delimiter)}"
                f" ({_shown_cells(sampled[0])}); {hint or 'name every cell; _ skips one'}"
            )
        names = (*names, "")  # each row ends with a separator
    if has_header and _has_names(below[0], names):
        raise SourceError(
            f"{file.path}: the row below the first one ({_shown_cells(below[0])}) has the names of "
            "data.source.columns and would be read as data; remove the lines above it, or set "
            "data.source.comment to skip them"
        )
    end = rows[0].end if has_header else rows[0].begin
    cure = (
        f"data.source.columns names the cells {', '.join(form.columns)}: name the missing columns"
        " there"
    )
    return Header(names, end, dialect, {}, True, notes, cure)


def _replaces_header(
    file: InputFile,
    form: Form,
    names: tuple[str, ...],
    first: tuple[str, ...],
    below: list[tuple[str, ...]],
) -> bool:
    """Whether the first row is a header, which the configured names replace.

    Raises
    ------
    SourceError
        The first row contradicts ``data.source.header``.
    """
    same = len(first) == len(names) and all(
        fold(a) == fold(b) for a, b in zip(first, names, strict=True) if b
    )
    if form.header == "no" and same and any(names):
        raise SourceError(
            f"{file.path}: the first row has the names of data.source.columns, and"
            " data.source.header is no, so it would be read as an event; set data.source.header to"
            " auto or yes"
        )
    if form.header == "auto" and not same and (found := looks_like_names(first, below)):
        raise SourceError(
            f"{file.path}: the first row ({_shown_cells(first)}) looks like a header: {found}; set"
            " data.source.header to yes to replace it by data.source.columns (no: it is data), or"
            " remove data.source.columns"
        )
    return form.header == "yes" or same


def _has_names(row: tuple[str, ...], names: tuple[str, ...]) -> bool:
    return len(row) == len(names) and all(
        fold(a) == b for a, b in zip(row, names, strict=True) if b
    )


def _shown_cells(cells: Sequence[str]) -> str:
    return ", ".join(repr(cell[:40]) for cell in cells[:8]) + (" …" if len(cells) > 8 else "")


def _separator(
    file: InputFile, rows: list[FirstRow], dialect: Dialect, form: Form
) -> tuple[Dialect, tuple[str, ...]]:
    """The dialect with another separator, if the usual one separates nothing and exactly one other
    one does.
    """
    if len(cells_of(rows[0].text, dialect)) > 1:
        return dialect, ()
    fitting = consistent([row.text for row in rows], dialect)
    found = [other for other in fitting if other != BLANKS]
    kind = "csv" if dialect.quoted or found[:1] == [","] else "tsv"
    quotable = dialect_of(kind, replace(form, separator=found[0])) if found else dialect
    size = len(cells_of(rows[0].text, quotable))
    if len(found) != 1 or (form.columns and size != len(form.columns)) or len(rows) < 2:
        return dialect, ()
    first = cells_of(rows[0].text, quotable)
    if not form.columns and any(map(is_value, first)):
        return dialect, ()  # there is no header either: one message reports both
    used = f"cells are separated by {shown(found[0])}, not by {shown(dialect.delimiter)}"
    return quotable, (f"{used}; this separator is used, and data.source.separator makes it fixed",)


def _header_in_comment(head: bytes, dialect: Dialect, form: Form) -> str:
    """The cure if a line that ``data.source.comment`` skips names the columns, else ""."""
    known = schema.FILE_TABLES[form.table].required
    for row in first_rows(head, replace(dialect, comment="")) if form.comment else ():
        if not row.text.startswith(form.comment):
            break
        names = {fold(cell) for cell in cells_of(row.text.removeprefix(form.comment), dialect)}
        if names >= set(known):
            return (
                f"the line {row.text[:60]!r}, which data.source.comment skips, names the columns:"
                " name them with data.source.columns, or remove the comment mark from that line"
            )
    return ""


def _for_one_table(form: Form, cure: str) -> str:
    """How to set the separator for one table, if it is set for all tables."""
    if "data.source.separator" not in cure or not form.separator:
        return ""
    return f" (only for this table: separator: {{{form.table}: …}})"


def _other_separator(cells: list[tuple[str, ...]], rows: list[FirstRow], dialect: Dialect) -> str:
    found = consistent([row.text for row in rows], dialect) if len(cells[0]) == 1 else []
    return (
        f"the cells look separated by {shown(found[0])}: set data.source.separator to it"
        if found
        else ""
    )
