"""The form of a text file: encoding, comments, separator, header; or why it is not a table."""

from __future__ import annotations

import codecs
import csv
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from recsys.errors import SourceError
from recsys.inspect.common_names import is_known_name
from recsys.sources.encodings import FoundEncoding, found_encoding
from recsys.sources.first_rows import Form, dialect_of
from recsys.sources.guesses import COMMENTS, data_in_header, is_rule, is_value, looks_like_names
from recsys.sources.separators import BLANKS

_LOOKED_AT: Final = 400  # lines that are inspected
_CONSISTENT: Final = 0.9  # smallest share of lines with the most common number of cells
_SEPARATORS: Final = ("\t", "::", ";", "|", ",", "^", "~")
_USUAL: Final = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
_ID: Final = re.compile(r"[\w.@+\-:/]{1,64}")
_NAME: Final = re.compile(r"[^\W\d][\w .:/()#%\-]{0,60}")
_BLOCK_MARK: Final = re.compile(r"[\w.\-]{1,40}:")
_MOST_TITLES: Final = 20  # lines above a table that may be a title
_LONG_LINE: Final = 2.2  # mean items per line from which lines of varying length are sequences


@dataclass(frozen=True)
class TextForm:
    """The form of a separated text file."""

    separator: str
    has_header: bool
    encoding: str = "utf-8"
    comment: str = ""
    suffix: str = ""  # file suffix, in lower case
    doubt: str = ""  # why it is uncertain whether there is a header
    # how the encoding was found, for people
    encoded: FoundEncoding = field(default=FoundEncoding("utf-8"), compare=False)

    @property
    def kind(self) -> str:
        """The reader's format: ``csv`` or ``tsv``."""
        if self.suffix in _USUAL:
            return "csv" if self.suffix == ".csv" else "tsv"
        return "tsv" if self.separator == "\t" else "csv"

    @property
    def is_usual(self) -> bool:
        """Whether the reader infers the separator from the file's name alone."""
        return _USUAL.get(self.suffix) == self.separator

    def settings(self, columns: Sequence[str] = (), table: str = "events") -> Form:
        """Return the form as settings of a configuration."""
        return Form(self.separator, tuple(columns), "auto", self.comment, self.encoding, table)


_NUMBER: Final = re.compile(r"[0-9]{1,18}")
_GLUED: Final = re.compile(r"[\w.@+\-]{1,64}:[\w.@+\-]{1,64}")
_NESTED: Final = re.compile("[\x02\x03]")  # marks of features inside a cell
_PAIR: Final = re.compile(r"\d+:-?\d+(?:\.\d+)?")
_FIELD: Final = re.compile(r"([A-Za-z][\w/.-]*): ")
_FIELDS: Final = 0.8  # least share of lines with a name that occurs again
_BLOCKS_TO_JSON: Final = (
    'python -c \'import json, sys; [print(json.dumps(dict(line.split(": ", 1) for line in'
    ' block.splitlines() if ": " in line))) for block in sys.stdin.read().split("\\n\\n")'
    " if block.strip()]'"
    " < FILE > FILE.jsonl"
)


@dataclass(frozen=True)
class SequenceForm:
    """Lines of ``user item item …``."""

    separator: str = ""  # "" means blanks
    comment: str = ""


def form_of(head: bytes, suffix: str, name: str = "") -> TextForm | SequenceForm:
    """Find the form of a file from its first bytes.

    Parameters
    ----------
    head : bytes
        First bytes, decompressed.
    suffix : str
        Suffix of the file name, e.g. ``.csv``.
    name : str
        File name, for messages.

    Raises
    ------
    SourceError
        The file is not a table; the message says why.
    """
    head = head.removeprefix(codecs.BOM_UTF8)
    found = found_encoding(head)
    if not found.is_known:
        raise SourceError(
            f"its text is not UTF-8, and its encoding is unknown: the likeliest, {found.name},"
            f" reads {found.example!r}; expected UTF-8: save the file as UTF-8, or name its"
            " encoding in data.source.encoding of a configuration"
        )
    encoding = found.name
    if b"\n" not in head and b"\r" in head.strip():
        raise SourceError("the lines end with a carriage return only; convert them to newlines")
    text = head.decode(encoding, errors="replace")
    lines = [line for line in text.split("\n")[:_LOOKED_AT] if line.strip()]
    lines = [line.rstrip("\r") for line in lines]
    if (
        len(lines) > 1
        and len(head.split(b"\n")) <= _LOOKED_AT
        and not text.endswith("\n")
        and len(head) >= 1 << 18
    ):
        lines = lines[:-1]
    comment = _comment(lines)
    rows = [line for line in lines if not (comment and line.startswith(comment))]
    if not rows:
        raise SourceError("the file has only blank lines and comments")
    stated = re.fullmatch(r'"?sep=(.)"?', rows[0], re.IGNORECASE)
    if stated and len(rows) > 2:
        rows = rows[1:]
    marks = [row for row in rows if _BLOCK_MARK.fullmatch(row)]
    inside = [row for row in rows if not _BLOCK_MARK.fullmatch(row)]
    if marks and rows[0] is marks[0] and inside and _separator(inside, suffix):
        raise SourceError(
            f"blocks of rows below lines such as {marks[0]!r}, which name the item or user of the"
            " block; write its id into every row, the user first: for blocks of items with awk"
            ' \'/:$/ {sub(":", ""); id=$0; next} {print $0 "," id}\' FILE, for blocks of users with'
            ' {print id "," $0}'
        )
    if any(map(_NESTED.search, rows)):
        raise SourceError(
            "cells that hold lists of features, divided by control characters such as \\x02; write"
            " a row per event with its own columns, such as user_id, item_id and click, which are"
            " some of these features"
        )
    separator = stated[1] if stated else _separator(rows, suffix)
    titles, below = _title_lines(rows, suffix) if separator in ("", BLANKS) else (0, "")
    if separator == BLANKS and titles:
        # the cells of a table of blanks may have commas, but then fewer than blanks
        usual = [_usual_size(rows[titles:], mark) for mark in (below, BLANKS)]
        separator = "" if usual[0] > usual[1] else BLANKS
    if not separator or separator == BLANKS:
        # blocks have blank lines between them
        if "\n\n" in text.replace("\r", "") and _are_fields(rows):
            raise SourceError(
                f"each record is a block of several lines, such as {rows[0][:40]!r}; convert each"
                f" block to one JSON object, e.g. with {_BLOCKS_TO_JSON}"
            )
        sequences = _sequence_form(rows, comment)
        if sequences is not None and not _has_equal_cells(rows, BLANKS):
            _refuse_pairs(rows, sequences)
            _refuse_glued_owners(rows, sequences.separator)
            return sequences
    if not separator and not any(mark in row for mark in (*_SEPARATORS, " ") for row in rows):
        _refuse_glued_owners(rows, "")
        raise SourceError("it has only one column; a table needs two or more")
    if not separator:
        _refuse_lines_without_user(rows)
        raise SourceError(
            "not a table: no separator gives all lines the same number of cells"
            + (_without(titles) if titles else _quotes(rows))
        )
    kind = "csv" if suffix == ".csv" or (suffix not in _USUAL and separator != "\t") else "tsv"
    dialect = dialect_of(kind, Form(separator))
    if kind == "csv" and separator == "," and dialect.quoted:
        rows = _joined(rows)
    cells = [tuple(cell.strip() for cell in _cells(row, separator, dialect.quoted)) for row in rows]
    _refuse_titles(cells, suffix)
    has_header, doubt = _header(cells, suffix)
    return TextForm(separator, has_header, encoding, comment, suffix, doubt, found)


def _refuse_pairs(rows: Sequence[str], form: SequenceForm) -> None:
    """Refuse lines of ``user item:value item:value``.

    Raises
    ------
    SourceError
        The members of the lines are such pairs.
    """
    members = [word for row in rows for word in row.split(form.separator or None)[1:]]
    if all(_PAIR.fullmatch(member.strip()) for member in members):
        raise SourceError(
            f"its lines have pairs of item and value, such as {members[0].strip()!r};"
            " write a row per user, item and value, e.g. with awk"
            ' \'{for (i = 2; i <= NF; i++) {split($i, pair, ":"); print $1 "," pair[1] ","'
            " pair[2]}}' FILE"
        )


def _refuse_glued_owners(rows: Sequence[str], separator: str) -> None:
    """Refuse lines of ``user:item item``, whose first item would be a part of the user.

    Raises
    ------
    SourceError
        The first word of each line, and no other one, has a colon inside.
    """
    lines = [row.split(separator or None) for row in rows]
    members = [word for line in lines for word in line[1:]]
    if all(_GLUED.fullmatch(line[0].strip()) for line in lines) and ":" not in "".join(members):
        raise SourceError(
            f"a colon between the user and the first item, such as {lines[0][0]!r}; expected lines"
            " of USER ITEM ITEM …: write a blank instead, e.g. with sed 's/:/ /' FILE"
        )


def _refuse_lines_without_user(rows: Sequence[str]) -> None:
    """Refuse lines of items without a user, or with their number in place of the user.

    Raises
    ------
    SourceError
        The lines are of this kind.
    """
    lines = [row.split() for row in rows]
    if not all(_NUMBER.fullmatch(word) for line in lines for word in line):
        return
    counts = all(int(line[0]) == len(line) - 1 for line in lines)
    if len({line[0] for line in lines}) == len(lines):
        return
    cure = "{$1 = NR; print}" if counts else "{print NR, $0}"
    first = "is the number of the other ids" if counts else "is on several lines"
    raise SourceError(
        f"the first id of the lines (such as {lines[0][0]!r}) is not a user, because it {first};"
        " expected lines of USER ITEM ITEM …: put the user's id at the start of each line, e.g. the"
        f" line number with awk '{cure}' FILE"
    )


def _are_fields(rows: Sequence[str]) -> bool:
    """Whether the lines are blocks of fields with their names, such as ``review/score: 5.0``.

    >>> _are_fields(["item: B1", "score: 5.0", "item: B2", "score: 4.0"]), _are_fields(["a: b"])
    (True, False)
    """
    names = Counter(found[1] for row in rows if (found := _FIELD.match(row)))
    again = sum(count for count in names.values() if count > 1)
    return again >= _FIELDS * len(rows)


def _title_lines(rows: Sequence[str], suffix: str) -> tuple[int, str]:
    """The number of lines above a table, as in a report, and the table's separator; 0 if the rows
    below any number of lines are no table.

    >>> _title_lines(["Report of May", "a,b,c", *["1,2,3"] * 50], ".csv")
    (1, ',')
    """
    for count in range(1, min(_MOST_TITLES, len(rows) - 2)):
        separator = _separator(rows[count:], suffix)
        if separator not in ("", BLANKS):
            return count, separator
    return 0, ""


def _without(titles: int) -> str:
    lines, their = ("line", "it") if titles == 1 else (f"{titles} lines", "them")
    return f"; without the first {lines} they are a table: remove {their}"


def _usual_size(rows: Sequence[str], separator: str) -> int:
    """The most common number of cells."""
    return Counter(len(_cells(row, separator, True)) for row in rows).most_common(1)[0][0]


def _refuse_titles(cells: Sequence[tuple[str, ...]], suffix: str) -> None:
    """Refuse lines with fewer cells, or with one that is not empty, above a header.

    Raises
    ------
    SourceError
        The first lines are of this kind.
    """
    size = Counter(map(len, cells)).most_common(1)[0][0]
    whole = (n for n, row in enumerate(cells) if len(row) == size and sum(map(bool, row)) > 1)
    titles = next(whole, 0)
    if 0 < titles < min(_MOST_TITLES, len(cells) - 2) and _header(cells[titles:], suffix) == (
        True,
        "",
    ):
        first = " ".join(filter(None, cells[0]))[:40]
        raise SourceError(
            f"not a table: its first line {first!r} is no header and no row{_without(titles)}"
        )


def _quotes(rows: Sequence[str]) -> str:
    """A hint if every line has a separator, which some have inside their cells too; else "".

    >>> _quotes(["1,2003,Solo", "2,1997,Hello, you"]), _quotes(["Dear all,", "see the files"])
    ('; put cells that contain the separator into quotes', '')
    """
    has_mark = any(all(mark in row for row in rows) for mark in _SEPARATORS)
    return "; put cells that contain the separator into quotes" * has_mark


def _comment(lines: Sequence[str]) -> str:
    """The marker of comment lines; none if a single marked line at the top has as many cells as the
    others.
    """
    for mark in COMMENTS:
        marked = [line for line in lines if line.startswith(mark)]
        if not marked or len(marked) == len(lines):
            continue
        plain = [line for line in lines if not line.startswith(mark)]
        separator = _separator(plain, "")
        if len(marked) > 1 and len(marked) > 0.3 * len(lines):
            continue  # ids that start with the marker
        is_header = (
            len(marked) == 1
            and lines[0] is marked[0]
            and separator
            and len(_cells(marked[0].removeprefix(mark).strip(), separator, False))
            == len(_cells(plain[0], separator, False))
            > 1
        )
        return "" if is_header else mark
    return ""


def _cells(line: str, separator: str, quoted: bool) -> list[str]:
    if separator == BLANKS:
        return line.split()
    if quoted and len(separator) == 1 and '"' in line:
        try:
            return next(csv.reader([line], delimiter=separator), [])
        except csv.Error:
            return line.split(separator)
    return line.split(separator)


def _joined(lines: Sequence[str]) -> list[str]:
    """Join lines with an open quote to the lines that follow."""
    rows: list[str] = []
    held = ""
    for line in lines:
        held = f"{held}\n{line}" if held else line
        if held.count('"') % 2 == 0 or held.count("\n") > 20:
            rows.append(held)
            held = ""
    return rows or list(lines)


def _separator(lines: Sequence[str], suffix: str) -> str:
    """The separator that gives most lines the same number of cells; empty if none does."""
    # separator → share of rows with the most common number of cells, that number
    found: dict[str, tuple[float, int]] = {}
    for separator in _SEPARATORS:
        rows = _joined(lines) if separator in ",;" else lines
        sizes = [len(_cells(row, separator, True)) for row in rows]
        size, number = max(Counter(sizes).items(), key=lambda item: (item[1], item[0]))
        share = number / len(rows)
        if size > 1 and share >= _CONSISTENT and sizes[0] > 1:
            found[separator] = round(share, 1), size
    most = max((size for _, size in found.values()), default=0)
    if found:

        def rank(separator: str) -> tuple[float, int, int]:
            share, size = found[separator]
            is_usual = _USUAL.get(suffix) == separator and (
                size == most or not _in_numbers_only(lines, separator)
            )
            return share + is_usual, size, -_SEPARATORS.index(separator)

        return max(found, key=rank)
    return BLANKS if _has_equal_cells(lines, BLANKS) else ""


def _in_numbers_only(lines: Sequence[str], separator: str) -> bool:
    """Whether a separator only occurs between digits, like a decimal comma."""
    mark = re.escape(separator)
    return not any(re.search(rf"(?<!\d){mark}|{mark}(?!\d)", line) for line in lines)


def _has_equal_cells(lines: Sequence[str], separator: str) -> bool:
    counts = Counter(len(_cells(line, separator, False)) for line in lines)
    size, number = counts.most_common(1)[0]
    return size > 1 and number >= _CONSISTENT * len(lines)


def _sequence_form(lines: Sequence[str], comment: str) -> SequenceForm | None:
    """Detect lines with several ids each, of varying length."""
    for separator in ("", *_SEPARATORS):
        words = [line.split(separator or None) for line in lines]
        words = [[word.strip() for word in of_line if word.strip()] for of_line in words]
        words = [of_line for of_line in words if of_line]
        if not words or not all(_ID.fullmatch(word) for of_line in words for word in of_line):
            continue
        users = [of_line[0] for of_line in words]
        items = Counter(word for of_line in words for word in of_line[1:])
        if sum(items.values()) < _LONG_LINE * len(words) or len(set(users)) < len(users):
            continue
        with_digits = sum(any(character.isdigit() for character in user) for user in users)
        if with_digits >= 0.9 * len(users) and len(words) > 2:
            return SequenceForm(separator, comment)
    return None


def _header(rows: Sequence[tuple[str, ...]], suffix: str) -> tuple[bool, str]:
    """Whether the first row has the column names, and the reason if that is uncertain."""
    first, below = rows[0], list(rows[1:])
    if not below:
        return not any(map(is_value, first)), "there is only one row"
    if is_rule(below[0]):
        below = below[1:]
    if list(first) == [str(number) for number in range(len(first))] and len(first) > 2:
        return True, ""
    # a header may be marked as a comment
    first = (first[0].lstrip("#% "), *first[1:])
    known = sum(is_known_name(cell) for cell in first)
    if any(map(is_value, filter(None, first))):
        return known >= 2 and known * 2 > len(first), ""
    if looks_like_names(first, below) or known >= max(1, len(first) / 3):
        return True, ""
    if data_in_header([cell.strip() for cell in first], below):
        return False, ""
    if not all(_NAME.fullmatch(cell) for cell in first if cell) or len(set(first)) < len(first):
        return False, ""
    return suffix in _USUAL, "the first row may be names or data"
