"""Plain sequence files: one line a user, ``user item item …`` in order; optionally a table of the items.

Times are unknown; ``_order`` = line · 2^24 + position keeps the order. ``_row`` is the line number.
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
from recsys.data.validate import UNREADABLE, CellRules, Layout, bad_rows, check_rows, finish, raw_text
from recsys.sources.base import Piece, SourceAdapter
from recsys.sources.canonical import TableFiles, check_rename, table_pieces
from recsys.sources.delimited import check_encoding
from recsys.sources.files import InputFile, find, input_file
from recsys.sources.spans import CHUNK_BYTES, Dialect, Span, spans

LINE_STRIDE: Final = 2**24  # longer sequences would run into the next line's order
_LINES: Final = Dialect(" ", quoted=False)
_RAW_LIMIT: Final = 2000


class SequencesAdapter(SourceAdapter):
    """``events`` is one file; ``items`` any canonical table files."""

    config: SequencesSource

    chunk_bytes = CHUNK_BYTES

    @property
    def name(self) -> str:
        parts = self.config.events.split("?")[0].rstrip("/").split("/")
        return parts[-2] if len(parts) > 1 and parts[-2] else parts[-1].split(".")[0]

    def files(self) -> list[InputFile]:
        return [input_file(self.config.events), *find(self.config.items)]

    def pieces(self) -> dict[str, list[Piece]]:
        events, *items = self.files()
        with events.stream() as stream:
            check_encoding(events, bytes(stream.read(1 << 20)), "utf-8")
        found = [span for span, _ in spans(events, 0, _LINES, self.chunk_bytes)]
        rules = CellRules.of(self.config)
        whole = SequencePiece(events, None, self.chunk_bytes, Layout(schema.EVENTS, rules=rules))
        tables: dict[str, list[Piece]] = {
            "events": [whole] if events.compressed else [replace(whole, span=span) for span in found]
        }
        columns: set[str] = set()
        if items:
            of_items = TableFiles(schema.ITEMS, tuple(items), self.config.rename, rules=rules)
            tables["items"], columns = table_pieces(of_items)
        check_rename(self.config.rename, columns)
        return tables


@dataclass(frozen=True)
class SequencePiece:
    """A run of lines (None: the whole compressed file)."""

    file: InputFile
    span: Span | None
    chunk_bytes: int = CHUNK_BYTES
    layout: Layout = Layout(schema.EVENTS)

    def read(self) -> Iterator[pa.Table]:
        if self.span is not None:
            data = self.file.read(self.span.start, self.span.length)
            yield sequence_events(data, self.span.first_row, self.file.name, self.layout)
            return
        for span, data in spans(self.file, 0, _LINES, self.chunk_bytes):
            yield sequence_events(data, span.first_row, self.file.name, self.layout)


def sequence_events(data: bytes, first_row: int, file: str, layout: Layout) -> pa.Table:
    """The events of some lines; blank lines are skipped, a line without items is a bad row."""
    lines = data.removesuffix(b"\n").split(b"\n")
    try:
        data.decode()
        broken: list[int] = []
    except UnicodeDecodeError:
        broken = [row for row, line in enumerate(lines) if not _is_utf8(line)]
    unreadable = [lines[row].decode(errors="replace") for row in broken]
    for row in broken:
        lines[row] = b""
    text = pc.utf8_trim_whitespace(pa.array(lines, pa.binary()).cast(pa.string()))
    given = np.flatnonzero(np.asarray(pc.not_equal(text, "")))
    text = text.take(pa.array(given))
    words = pc.utf8_split_whitespace(text)
    events = _events(words, text, given + first_row, file, layout)
    if not broken:
        return events
    rows = [first_row + row for row in broken]
    lost = bad_rows(layout, UNREADABLE, file, rows, unreadable, [row * LINE_STRIDE for row in rows])
    return pa.concat_tables([events, lost]).sort_by(schema.ORDER).combine_chunks()


def _events(words: pa.ListArray, text: pa.Array, line_numbers: np.ndarray, file: str, layout: Layout) -> pa.Table:
    """One event an item; a line of a user alone gives one row without item."""
    offsets = words.offsets.to_numpy()
    lengths = np.diff(offsets)
    flat = words.values
    users = flat.take(pa.array(offsets[:-1]))
    per_line = np.maximum(lengths - 1, 1)
    line = np.repeat(np.arange(len(lengths)), per_line)
    position = np.arange(int(per_line.sum())) - np.repeat(np.cumsum(per_line) - per_line, per_line)
    is_empty = np.repeat(lengths == 1, per_line)
    source = np.where(is_empty, 0, offsets[:-1][line] + 1 + position)
    items = flat.take(pa.array(source, mask=is_empty))
    raw = pa.table({schema.USER_ID: users.take(pa.array(line)), schema.ITEM_ID: items})
    checked = check_rows(raw, layout)
    rows = line_numbers[line]
    shown = (
        pa.table({"line": pc.utf8_slice_codeunits(text, 0, _RAW_LIMIT).take(pa.array(line))}) if is_empty.any() else raw
    )
    provenance = {
        schema.FILE: pa.repeat(pa.scalar(file, pa.string()), len(rows)),
        schema.ROW: pa.array(rows, pa.int64()),
        schema.ORDER: pa.array(rows * LINE_STRIDE + position, pa.int64()),
        schema.RAW: raw_text(shown, checked.column(schema.REASON), " "),
    }
    return finish(checked, layout, provenance)


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True
