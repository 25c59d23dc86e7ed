"""JSON lines in line-aligned chunks: Arrow's reader where all lines fit one schema, line by line where they do not.

The columns are those of the file's first megabytes; a key that first appears later is not read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.json

from recsys.data.validate import Layout
from recsys.errors import SourceError
from recsys.sources.delimited import Cells, Origin, assemble, check_encoding, decodable, with_constants
from recsys.sources.files import InputFile
from recsys.sources.spans import CHUNK_BYTES, Dialect, Span, spans

_LINES: Final = Dialect(quoted=False)
_HEAD_BYTES: Final = 4 << 20
_SURROGATE: Final = b"\\ud"


@dataclass(frozen=True)
class JsonlPiece:
    """One span of a JSON lines file (or all of a compressed one)."""

    file: InputFile
    index: int
    fields: tuple[tuple[str, str, pa.DataType], ...]  # key in the file, canonical column, type seen in the head
    layout: Layout
    span: Span | None = None
    constants: dict[str, str] = field(default_factory=dict)
    chunk_bytes: int = CHUNK_BYTES

    def read(self) -> Iterator[pa.Table]:
        if self.span is not None:
            yield self._block(self.file.read(self.span.start, self.span.length), self.span)
            return
        for span, data in spans(self.file, 0, _LINES, self.chunk_bytes):
            yield self._block(data, span)

    def _block(self, data: bytes, span: Span) -> pa.Table:
        keys = {key: kind for key, _, kind in self.fields}
        cells = _parse_fast(data, span, keys) if decodable(data, "utf-8") else None  # Arrow does not look
        cells = cells or _parse_lines(data, span, keys)
        raw = cells.table.rename_columns([column for _, column, _ in self.fields])
        raw = with_constants(raw, self.constants)
        return assemble(raw, cells, self.layout, Origin(self.file.name, self.index, ", "))


def jsonl_pieces(piece: JsonlPiece) -> list[JsonlPiece]:
    """The pieces of a file, from a pattern without span."""
    if piece.file.compressed:
        return [piece]
    return [replace(piece, span=span) for span, _ in spans(piece.file, 0, _LINES, piece.chunk_bytes)]


def read_keys(file: InputFile) -> dict[str, pa.DataType]:
    """The keys of the file's first lines and the Arrow type that holds their values.

    Raises:
        SourceError: no line there is a JSON object.
    """
    with file.stream() as stream:
        head = bytes(stream.read(_HEAD_BYTES))
    check_encoding(file, head, "utf-8")
    lines = head.split(b"\n")
    lines = lines[:-1] if len(head) == _HEAD_BYTES and len(lines) > 1 else lines
    records = [record for record in map(_object, lines) if record is not None]
    if not records:
        raise SourceError(
            f"{file.path} holds no JSON object in its first lines; expected one object a line: correct the file or "
            "data.source.format"
        )
    kinds: dict[str, set[str]] = {}
    for record in records:
        for key, value in record.items():
            kinds.setdefault(key, set()).add(_kind(value))
    return {key: _arrow_type(seen - {"null"}) for key, seen in kinds.items()}


def _kind(value: Any) -> str:
    if isinstance(value, list):
        inner = {_kind(cell) for cell in value} - {"null"}
        return "numbers" if inner and inner <= {"int", "float"} else "empty" if not inner else "texts"
    names = {bool: "bool", int: "int", float: "float", str: "text", type(None): "null"}
    return names.get(type(value), "object")


def _arrow_type(kinds: set[str]) -> pa.DataType:
    if kinds and kinds <= {"numbers", "empty"} and "numbers" in kinds:
        return pa.list_(pa.float64())
    if kinds and kinds <= {"texts", "empty", "numbers"}:
        return pa.list_(pa.string())
    if kinds == {"int"}:
        return pa.int64()
    if kinds and kinds <= {"int", "float"}:
        return pa.float64()
    return pa.bool_() if kinds == {"bool"} else pa.string()


def _parse_fast(data: bytes, span: Span, keys: Mapping[str, pa.DataType]) -> Cells | None:
    """Arrow's reader; None where a line does not fit, so that the tolerant reader must look."""
    options = pa.json.ParseOptions(explicit_schema=pa.schema(list(keys.items())), unexpected_field_behavior="ignore")
    try:
        table = pa.json.read_json(
            pa.BufferReader(data), pa.json.ReadOptions(use_threads=False, block_size=len(data) + 1), options
        )
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None
    if table.num_rows != span.num_rows:
        return None
    table = table.select(list(keys))
    return Cells(table, np.arange(span.num_rows, dtype=np.int64) + span.first_row, [], [])


def _parse_lines(data: bytes, span: Span, keys: Mapping[str, pa.DataType]) -> Cells:
    good: list[dict[str, Any]] = []
    rows: list[int] = []
    broken: list[tuple[int, str]] = []
    for row, line in enumerate(data.removesuffix(b"\n").split(b"\n"), span.first_row):
        if not line.strip():
            continue
        record = _object(line)
        if record is None:
            broken.append((row, line.decode(errors="replace").rstrip("\r")))
        else:
            good.append(record)
            rows.append(row)
    columns = {key: _column([record.get(key) for record in good], kind) for key, kind in keys.items()}
    numbers = np.array(rows, dtype=np.int64)
    return Cells(pa.table(columns), numbers, [row for row, _ in broken], [text for _, text in broken])


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Values of one key: in the head's type if they fit, else as text, which the row rules then judge."""
    try:
        return pa.array(values, kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        if pa.types.is_list(kind):
            lists = [value if isinstance(value, list) else None for value in values]
            return _lists(lists, kind)
        return pa.array([_text(value) for value in values], pa.string())


def _lists(values: list[list[Any] | None], kind: pa.DataType) -> pa.Array:
    is_text = pa.types.is_string(kind.value_type)
    fits = (str,) if is_text else (int, float)
    cleaned = [
        None if cells is None else [c if isinstance(c, fits) else (_text(c) if is_text else None) for c in cells]
        for cells in values
    ]
    return pa.array(cleaned, kind)


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _object(line: bytes) -> dict[str, Any] | None:
    """The object of a line; None where there is none, or where it escapes half a character (a lone surrogate)."""
    try:
        value = json.loads(line.decode())  # of bytes, json would take UTF-16 and halves of characters as well
        if _SURROGATE in line.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
