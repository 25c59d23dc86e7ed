"""Guesses about the first rows of a text file: names or data, the separator, comments.

Why: a message should say which key to set, not only what is missing. These guesses do not decide
how a file is read.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from recsys import schema
from recsys.sources.byte_ranges import Dialect
from recsys.sources.names import WORDS, fold
from recsys.sources.separators import BLANKS

DROP: Final = "_"
"""A name in ``data.source.columns`` that skips the column, as "" does."""
COMMENTS: Final = ("#", "%", "//")
_OTHERS: Final = (";", "\t", "|", "::", ",")
NAMES: Final = {
    ",": "comma",
    ";": "semicolon",
    "\t": "tab",
    "|": "bar",
    "::": "two colons",
    BLANKS: "blanks",
}
_NUMBER: Final = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?")
_TIME: Final = re.compile(r"\d{4}[-/]\d\d?[-/]\d\d?\b.*|\d\d?[/.]\d\d?[/.]\d{2,4}\b.*")
_IDS: Final = {
    "user_id",
    "userid",
    "user",
    "item_id",
    "itemid",
    "item",
    "timestamp",
    "rating",
    "uid",
    "iid",
}
_DIGITS: Final = re.compile(r"\d+")
_LOOKED_AT: Final = 100  # rows
_FEW_ROWS: Final = 20
_MAX_CELLS: Final = 20_000  # of the rows that are searched for a name


def data_in_header(names: Sequence[str], below: Sequence[Sequence[str]]) -> dict[str, str]:
    """The names that look like data and not like column names, each with the reason.

    >>> data_in_header(["U1", "film"], [["U7", "a"], ["U8", "b"]])
    {'U1': "'U1' has the form of the values below"}
    """
    if len(names) > 2 and list(names) == [str(number) for number in range(len(names))]:
        return {}  # pandas writes 0, 1, 2, … for columns without names
    few = below[: max(_FEW_ROWS, _MAX_CELLS // len(names))]
    others = [row for row in few if [cell.strip() for cell in row] != list(names)]
    reasons = {}
    for index, name in enumerate(names):
        column = [row[index].strip() for row in others if len(row) > index]
        if is_value(name):
            reasons[name] = f"{name!r} is a number or a time"
        elif name and name in column:
            reasons[name] = f"{name!r} is also a value in the rows below"
        elif _DIGITS.search(name) and len(column) > 1:
            forms = {_DIGITS.sub("0", cell) for cell in column if cell}
            if forms == {_DIGITS.sub("0", name)}:
                reasons[name] = f"{name!r} has the form of the values below"
    return reasons


def is_rule(cells: Sequence[str]) -> bool:
    """Whether a row is a line of dashes, as below the header of a table for people.

    >>> is_rule(["----", ":--:"]), is_rule(["-", "5"])
    (True, False)
    """
    return any(cell.strip() for cell in cells) and all(
        not cell.strip(" -=:+") and len(cell) != 1 for cell in cells
    )


def is_value(cell: str) -> bool:
    """Whether a cell is a number or a time and therefore not a column name."""
    return bool(_NUMBER.fullmatch(cell.strip()) or _TIME.fullmatch(cell.strip()))


def is_name(cell: str) -> bool:
    """Whether a cell is a usual name of a column of users, items or times.

    >>> is_name("userID:token"), is_name("u17")
    (True, False)
    """
    name = fold(cell.partition(":")[0])
    return name in _IDS or any(
        name in (f"{word}_id", f"{word}id") for words in WORDS.values() for word in words
    )


def looks_like_names(first: tuple[str, ...], below: list[tuple[str, ...]]) -> str:
    """The reason why a row is a header and not data; "" if it may be data."""
    for index, cell in enumerate(first):
        column = [row[index] for row in below if len(row) == len(first)]
        # a single row below is too little evidence
        if len(column) > 1 and cell.strip() and not is_value(cell) and all(map(is_value, column)):
            return f"{cell.strip()!r} is above numbers or times"
        if is_name(cell) and cell not in column:
            return f"{cell.strip()!r} is the name of a column"
    return ""


def cells_of(text: str, dialect: Dialect) -> list[str]:
    """The cells of one row; a single cell if the row does not fit the dialect."""
    if dialect.delimiter == BLANKS and not dialect.quoted:
        return text.split()
    if not dialect.quoted:
        return text.split(dialect.delimiter)
    try:
        return next(csv.reader([text], delimiter=dialect.delimiter), [])
    except csv.Error:
        return [text]


def shown(separator: str) -> str:
    r"""A separator in a message, as the configuration accepts it.

    >>> shown("::"), shown(chr(9))
    ("'::'", "'\\t'")
    """
    return repr(separator)


def consistent(texts: Sequence[str], dialect: Dialect) -> list[str]:
    """The other separators that divide all rows into the same number of cells, at least two."""
    found = []
    for other in (*_OTHERS, BLANKS):
        tried = replace(
            dialect, delimiter=other, quoted=dialect.quoted and len(other) == 1 and other != BLANKS
        )
        sizes = {len(cells_of(text, tried)) for text in texts[:_LOOKED_AT]}
        if other != dialect.delimiter and len(sizes) == 1 and min(sizes) > 1:
            found.append(other)
    if len(found) > 1 and BLANKS in found:
        # text inside cells has blanks too, so another separator that fits is the likelier one
        found.remove(BLANKS)
    return found


def cure_of_names(
    rows: Sequence[str],
    names: tuple[str, ...],
    suspects: Mapping[str, str],
    dialect: Dialect,
    table: str,
) -> str:
    """The cure if a table lacks required column names; "" if a rename is the cure.

    Parameters
    ----------
    rows : Sequence[str]
        First rows of the file as text, the header first.
    names : tuple[str, ...]
        Column names that the header gives.
    suspects : Mapping[str, str]
        Names that look like data → why.
    dialect : Dialect
        How the cells are separated and quoted.
    table : str
        Name of the canonical table; "": none is known.

    Returns
    -------
    str
        A sentence with the key to set.
    """
    text = rows[0]
    if comment := comment_hint(text, dialect):
        return comment
    if len(names) == 1 and (others := consistent(rows, dialect)):
        cells = cells_of(text, replace(dialect, delimiter=others[0], quoted=False))
        cure = (
            f"the cells look separated by {shown(others[0])} ({NAMES[others[0]]}), not"
            f" {shown(dialect.delimiter)}: "
        )
        cure += f"set data.source.separator to {shown(others[0])}"
        if any(map(is_value, cells)):
            cure += (
                "; the first row looks like data, not like a header: name the columns with"
                " data.source.columns, e.g. " + example_names(cells, table or schema.EVENTS.name)
            )
        return cure
    reason = table and (next(iter(suspects.values()), "") or _repeated(names))
    if not reason:
        return ""
    return (
        f"the first row looks like data ({reason}): if the file has no header, name its columns"
        f" with data.source.columns, e.g. {{{table}: {example_names(names, table)}}}; if it is a"
        " header, rename its columns with data.source.rename and set data.source.header to yes"
    )


def comment_hint(line: str, dialect: Dialect) -> str:
    """The key to set if the first line looks like a comment, else ""."""
    mark = next((mark for mark in COMMENTS if line.startswith(mark)), "")
    if not mark or dialect.comment == mark:
        return ""
    return (
        f"the first line ({line[:60]!r}) looks like a comment: set data.source.comment to {mark!r}"
        " to skip such lines, and data.source.columns if no line names the columns"
    )


def example_names(cells: Sequence[str], table: str) -> str:
    """Likely column names for the cells of a row: the ids of the table, then numbers and times."""
    kinds, names = schema.FILE_TABLES[table], list[str]()
    number = next((name for name in (schema.VALUE, schema.WEIGHT) if name in kinds.optional), DROP)
    for cell in cells:
        is_time = _TIME.fullmatch(cell) or (
            _NUMBER.fullmatch(cell) and len(cell.split(".")[0]) >= 9
        )
        rest = schema.TIMESTAMP if is_time else number if _NUMBER.fullmatch(cell) else DROP
        wanted = next((name for name in kinds.required if name not in names and not is_time), rest)
        names.append(wanted if wanted in kinds.columns and wanted not in names else DROP)
    return f"[{', '.join(names)}]"


def _repeated(names: Sequence[str]) -> str:
    twice = sorted({name for name in names if name and list(names).count(name) > 1})
    return f"{twice[0]!r} occurs twice" if twice else ""
