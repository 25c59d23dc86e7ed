"""Lines ``user item item …`` in the order of the user's events, as rows of events.

Any number of blanks separates the ids, or ``data.source.separator``. Times are unknown; ``_order``
= file · 2^40 + line · 2^16 + position keeps the order of a user's events. ``_row`` is the line
number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys import schema
from recsys.errors import SourceError
from recsys.sources.base import FILE_STRIDE
from recsys.sources.byte_ranges import CHUNK_BYTES, ByteRange, Dialect, byte_ranges
from recsys.sources.delimited import with_constants
from recsys.sources.encodings import is_utf8
from recsys.sources.files import InputFile
from recsys.sources.first_rows import check_line_ends, data_start
from recsys.sources.guesses import COMMENTS, is_name
from recsys.sources.separators import without_comments
from recsys.sources.text_checks import check_encoding
from recsys.sources.validate import UNREADABLE, Layout, bad_rows, check_rows, finish, raw_text

# a longer line reaches the order numbers of the next one, which is another user's
LINE_STRIDE: Final = 2**16
_LINES: Final = Dialect(" ", quoted=False)
_RAW_LIMIT: Final = 2000
_HEAD_BYTES: Final = 1 << 20
_LOOKED_AT: Final = 100  # lines
_FORM: Final = "USER ITEM ITEM …"


@dataclass(frozen=True)
class LineHead:
    """The byte where the lines of a file start, and what the user should know about them."""

    start: int
    notes: tuple[str, ...] = ()


def read_line_head(file: InputFile, separator: str, comment: str) -> LineHead:
    """Check the first lines of a file, and find the byte where the lines start.

    Parameters
    ----------
    file : InputFile
        The file.
    separator : str
        Separator of the ids of a line; empty: blanks.
    comment : str
        Start of lines that are skipped; empty: none.

    Raises
    ------
    SourceError
        The lines are not text, or not of the form ``user item item …``.
    """
    with file.stream() as stream:
        head = bytes(stream.read(_HEAD_BYTES))
    check_encoding(file, head, "utf-8")
    check_line_ends(file, head)
    start = data_start(file)
    if comment:
        head = without_comments(head[start:], comment.encode())
    lines = [
        line
        for line in head.decode(errors="replace").lstrip("\ufeff").splitlines()[:_LOOKED_AT]
        if line.strip()
    ]
    words = [line.split(separator) if separator.strip() else line.split() for line in lines]
    if not lines:
        if len(head) < _HEAD_BYTES:
            raise SourceError(
                f"{file.path} has only blank lines and comments; expected lines of {_FORM}"
            )
        return LineHead(start)
    first = words[0][0].strip()
    mark = next((mark for mark in COMMENTS if first.startswith(mark)), "")
    # Ids such as #love are not comments.
    is_only_one = first == mark or any(not line.startswith(mark) for line in lines)
    if mark and is_only_one and not comment:
        raise SourceError(
            f"{file.path}: the first line ({lines[0][:60]!r}) looks like a comment, but"
            f" every line must be {_FORM}; set data.source.comment to {mark!r} to skip such"
            " lines, or remove them"
        )
    if is_name(first):
        raise SourceError(
            f"{file.path}: the first line ({lines[0][:60]!r}) looks like a header, but"
            f" every line must be {_FORM}; remove the first line"
        )
    others = [
        mark
        for mark in (",", ";", "|", "::", "\t", " ")
        if all(mark in line.strip() for line in lines)
    ]
    if others and all(len(of_line) == 1 for of_line in words):
        raise SourceError(
            f"{file.path}: no line has an item after its user ({lines[0][:60]!r}); expected"
            f" lines of {_FORM}; if the ids are separated by {others[0]!r}, set"
            " data.source.separator to it"
        )
    return LineHead(start, _odd_ids(words))


def _odd_ids(words: list[list[str]]) -> tuple[str, ...]:
    """A note if punctuation of another file format is part of the ids."""
    if all(of_line[0].endswith(":") for of_line in words):
        odd = words[0][0]
    else:
        odd = next((word for word in words[0][1:] if word.startswith("[") or "," in word), "")
    note = f"ids such as {odd!r} are read with their punctuation; check that this is correct"
    return (note,) if odd else ()


@dataclass(frozen=True)
class LineForm:
    """The form of the lines, and the layout of their events."""

    layout: Layout = Layout(schema.EVENTS)
    start: int = 0  # byte of the first line
    separator: str = ""  # "": blanks
    comment: str = ""
    index: int = 0  # of the file among the files of events
    constants: Mapping[str, str] = field(default_factory=dict)  # column → value in all rows


@dataclass(frozen=True)
class SequencePiece:
    """A byte range of lines; None: the whole compressed file."""

    file: InputFile
    byte_range: ByteRange | None
    form: LineForm = LineForm()
    chunk_bytes: int = CHUNK_BYTES

    def read(self) -> Iterator[pa.Table]:
        """Yield finished blocks."""
        if self.byte_range is not None:
            data = self.file.read(self.byte_range.start, self.byte_range.length)
            yield sequence_events(data, self.byte_range.first_row, self.file.name, self.form)
            return
        for byte_range, data in byte_ranges(self.file, self.form.start, _LINES, self.chunk_bytes):
            yield sequence_events(data, byte_range.first_row, self.file.name, self.form)


def sequence_pieces(whole: SequencePiece) -> list[SequencePiece]:
    """The pieces of a file, made from a piece without a byte range; a compressed file is one."""
    if whole.file.compressed:
        return [whole]
    found = byte_ranges(whole.file, whole.form.start, _LINES, whole.chunk_bytes)
    return [replace(whole, byte_range=byte_range) for byte_range, _ in found]


def sequence_events(data: bytes, first_row: int, file: str, form: LineForm) -> pa.Table:
    """The events of some lines; blank lines are skipped, and a line without items is a bad row,
    except in a file that is one split, in which a user may have no event.

    Parameters
    ----------
    data : bytes
        Bytes of whole lines.
    first_row : int
        Number of the first line, from 1.
    file : str
        Name of the file, for the provenance.
    form : LineForm
        Separator, comments, layout, place among the files, and constant columns.

    Returns
    -------
    pa.Table
        One row per event, and one per bad line, in the order of the file.
    """
    layout = form.layout
    if form.comment:
        data = without_comments(data, form.comment.encode())
    lines = data.removesuffix(b"\n").split(b"\n")
    try:
        data.decode()
        broken: list[int] = []
    except UnicodeDecodeError:
        broken = [row for row, line in enumerate(lines) if not is_utf8(line)]
    unreadable = [lines[row].decode(errors="replace") for row in broken]
    for row in broken:
        # keeps its place, so that the numbers of later lines stay right
        lines[row] = b""
    # the cast checks UTF-8 and fails for the whole array, so bad lines are already empty
    text = pc.utf8_trim_whitespace(pa.array(lines, pa.binary()).cast(pa.string()))
    given = np.flatnonzero(np.asarray(pc.not_equal(text, "")))
    text = text.take(pa.array(given))
    if len(form.separator.strip()) == 1:
        # a line may end with a separator, as spreadsheets write it
        text = pc.utf8_rtrim(text, form.separator)
    words = (
        pc.split_pattern(text, form.separator)
        if form.separator.strip()
        else pc.utf8_split_whitespace(text)
    )
    if schema.SPLIT in form.constants:
        has_items = pc.greater(pc.list_value_length(words), 1)
        words, text = words.filter(has_items), text.filter(has_items)
        given = given[np.asarray(has_items)]
    events = _events(words, text, given + first_row, file, form)
    if not broken:
        return events
    rows = [first_row + row for row in broken]
    order = [form.index * FILE_STRIDE + row * LINE_STRIDE for row in rows]
    lost = bad_rows(layout, UNREADABLE, file, rows, unreadable, order)
    return pa.concat_tables([events, lost]).sort_by(schema.ORDER).combine_chunks()


def _events(
    words: pa.ListArray, text: pa.Array, line_numbers: np.ndarray, file: str, form: LineForm
) -> pa.Table:
    """One event for each item; a line with only a user gives one row without item."""
    layout = form.layout
    offsets = words.offsets.to_numpy()
    lengths = np.diff(offsets)
    flat = words.values
    users = flat.take(pa.array(offsets[:-1]))
    per_line = np.maximum(lengths - 1, 1)
    line = np.repeat(np.arange(len(lengths)), per_line)
    position = np.arange(int(per_line.sum())) - np.repeat(np.cumsum(per_line) - per_line, per_line)
    is_empty = np.repeat(lengths == 1, per_line)
    # any valid position: the mask hides it
    source = np.where(is_empty, 0, offsets[:-1][line] + 1 + position)
    items = flat.take(pa.array(source, mask=is_empty))
    raw = pa.table({schema.USER_ID: users.take(pa.array(line)), schema.ITEM_ID: items})
    checked = check_rows(with_constants(raw, form.constants), layout)
    rows = line_numbers[line]
    shown = (
        # a line can have millions of items, and each bad row would store it
        pa.table({"line": pc.utf8_slice_codeunits(text, 0, _RAW_LIMIT).take(pa.array(line))})
        if is_empty.any()
        else raw
    )
    provenance = {
        schema.FILE: pa.repeat(pa.scalar(file, pa.string()), len(rows)),
        schema.ROW: pa.array(rows, pa.int64()),
        schema.ORDER: pa.array(
            form.index * FILE_STRIDE + rows * LINE_STRIDE + position, pa.int64()
        ),
        schema.RAW: raw_text(shown, checked.column(schema.REASON), " "),
    }
    return finish(checked, layout, provenance)
