"""Sequence files: one line for each user, ``user item item …`` in order; optionally a table of the
items.

Any number of blanks separates the ids, or ``data.source.separator``. Times are unknown; ``_order``
= line · 2^24 + position keeps the order. ``_row`` is the line number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys import schema
from recsys.config import SequencesSource
from recsys.errors import SourceError
from recsys.sources.base import Piece, SourceAdapter
from recsys.sources.byte_ranges import CHUNK_BYTES, ByteRange, Dialect, byte_ranges
from recsys.sources.encodings import is_utf8
from recsys.sources.files import InputFile, find, input_file
from recsys.sources.first_rows import Form, check_line_ends, data_start
from recsys.sources.guesses import COMMENTS, is_name
from recsys.sources.separators import without_comments
from recsys.sources.table_heads import TableFiles, read_heads
from recsys.sources.table_pieces import table_pieces
from recsys.sources.text_checks import check_encoding
from recsys.sources.validate import (
    UNREADABLE,
    CellRules,
    Layout,
    bad_rows,
    check_rows,
    finish,
    raw_text,
)

LINE_STRIDE: Final = 2**24  # a longer sequence would reach the order numbers of the next line
_LINES: Final = Dialect(" ", quoted=False)
_RAW_LIMIT: Final = 2000
_HEAD_BYTES: Final = 1 << 20
_LOOKED_AT: Final = 100  # lines
_FORM: Final = "USER ITEM ITEM …"


class SequencesAdapter(SourceAdapter):
    """``events`` is one file; ``items`` are files of a canonical table."""

    config: SequencesSource

    chunk_bytes = CHUNK_BYTES

    @property
    def name(self) -> str:
        """The short name of the data set."""
        parts = self.config.events.split("?")[0].rstrip("/").split("/")
        return parts[-2] if len(parts) > 1 and parts[-2] else parts[-1].split(".")[0]

    def files(self) -> list[InputFile]:
        """All input files."""
        return [input_file(self.config.events), *find(self.config.items)]

    def pieces(self) -> dict[str, list[Piece]]:
        """The pieces of all tables."""
        events, *items = self.files()
        start = self._check_lines(events)
        found = [
            byte_range for byte_range, _ in byte_ranges(events, start, _LINES, self.chunk_bytes)
        ]
        rules = CellRules.of(self.config)
        form = LineForm(
            Layout(schema.EVENTS, rules=rules), start, self.config.separator, self.config.comment
        )
        whole = SequencePiece(events, None, form, self.chunk_bytes)
        tables: dict[str, list[Piece]] = {
            "events": (
                [whole]
                if events.compressed
                else [replace(whole, byte_range=byte_range) for byte_range in found]
            )
        }
        if items:
            tables["items"] = table_pieces(self._items(items))
        return tables

    def check(self) -> None:
        """Check the heads of all files; see the base class."""
        events, *items = self.files()
        self._check_lines(events)
        if items:
            read_heads(self._items(items))

    def _items(self, files: list[InputFile]) -> TableFiles:
        rules = CellRules.of(self.config)
        numbers = tuple(self.config.numbers)
        return TableFiles(
            schema.ITEMS,
            tuple(files),
            self.config.rename,
            form=Form(table="items"),
            rules=rules,
            numbers=numbers,
        )

    def _check_lines(self, file: InputFile) -> int:
        """Check the first lines, and return the byte where the lines start.

        Raises
        ------
        SourceError
            The lines are not text, or not of the form ``user item item …``.
        """
        with file.stream() as stream:
            head = bytes(stream.read(_HEAD_BYTES))
        check_encoding(file, head, "utf-8")
        check_line_ends(file, head)
        config, start = self.config, data_start(file)
        if config.rename and not config.items:
            raise SourceError(
                "data.source.rename renames columns of the items, but data.source.items lists no"
                " file"
            )
        if config.comment:
            head = without_comments(head[start:], config.comment.encode())
        lines = [
            line
            for line in head.decode(errors="replace").lstrip("\ufeff").splitlines()[:_LOOKED_AT]
            if line.strip()
        ]
        words = [
            line.split(config.separator) if config.separator.strip() else line.split()
            for line in lines
        ]
        if not lines:
            if len(head) < _HEAD_BYTES:
                raise SourceError(
                    f"{file.path} has only blank lines and comments; expected lines of {_FORM}"
                )
            return start
        first = words[0][0].strip()
        mark = next((mark for mark in COMMENTS if first.startswith(mark)), "")
        # Ids such as #love are not comments.
        is_only_one = first == mark or any(not line.startswith(mark) for line in lines)
        if mark and is_only_one and not config.comment:
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
        self.notes = _odd_ids(file, words)
        return start


def _odd_ids(file: InputFile, words: list[list[str]]) -> list[str]:
    """A note if punctuation of another file format is part of the ids."""
    if all(of_line[0].endswith(":") for of_line in words):
        odd = words[0][0]
    else:
        odd = next((word for word in words[0][1:] if word.startswith("[") or "," in word), "")
    return (
        [
            f"{file.name}: ids such as {odd!r} are read with their punctuation; check that this is"
            " correct"
        ]
        if odd
        else []
    )


@dataclass(frozen=True)
class LineForm:
    """The form of the lines, and the layout of their events."""

    layout: Layout = Layout(schema.EVENTS)
    start: int = 0  # byte of the first line
    separator: str = ""  # "": blanks
    comment: str = ""


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


def sequence_events(data: bytes, first_row: int, file: str, form: LineForm) -> pa.Table:
    """The events of some lines; blank lines are skipped, and a line without items is a bad row.

    Parameters
    ----------
    data : bytes
        Bytes of whole lines.
    first_row : int
        Number of the first line, from 1.
    file : str
        Name of the file, for the provenance.
    form : LineForm
        Separator, comments and layout.

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
    events = _events(words, text, given + first_row, file, layout)
    if not broken:
        return events
    rows = [first_row + row for row in broken]
    lost = bad_rows(layout, UNREADABLE, file, rows, unreadable, [row * LINE_STRIDE for row in rows])
    return pa.concat_tables([events, lost]).sort_by(schema.ORDER).combine_chunks()


def _events(
    words: pa.ListArray, text: pa.Array, line_numbers: np.ndarray, file: str, layout: Layout
) -> pa.Table:
    """One event for each item; a line with only a user gives one row without item."""
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
    checked = check_rows(raw, layout)
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
        schema.ORDER: pa.array(rows * LINE_STRIDE + position, pa.int64()),
        schema.RAW: raw_text(shown, checked.column(schema.REASON), " "),
    }
    return finish(checked, layout, provenance)
