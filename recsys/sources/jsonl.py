"""JSON lines in line-aligned chunks: by Arrow's reader if all lines fit one schema, else line by
line.

Ids are read as text (see :mod:`recsys.sources.json_values`). The columns are those of the file's
first megabytes and of samples of the rest; known columns are searched in all lines. A value that
does not fit the type of its column makes a bad row. A file that is one JSON array of objects, or
has objects over several lines, is one piece. Nested objects have columns of their own (see
:mod:`recsys.sources.nested`).
"""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.json

from recsys import schema
from recsys.errors import SourceError
from recsys.sources.byte_ranges import CHUNK_BYTES, ByteRange, Dialect, byte_ranges
from recsys.sources.delimited import Cells, Origin, assemble, with_constants
from recsys.sources.files import InputFile
from recsys.sources.ids import is_id
from recsys.sources.json_sequence import elements, is_read_by_element
from recsys.sources.json_values import (
    Record,
    column,
    id_column,
    kinds_of,
    parse_object,
    quoted,
    text_of,
    type_of,
)
from recsys.sources.limits import check_column_count
from recsys.sources.nested import value_at
from recsys.sources.text_checks import check_encoding, decodable
from recsys.sources.validate import Layout

_LINES: Final = Dialect(quoted=False)
_HEAD_BYTES: Final = 4 << 20
# bytes of the head that are parsed if the rest is sampled, which needs an uncompressed file
_FIRST_BYTES: Final = 2 << 20
_SAMPLES: Final = 16
_SAMPLE_BYTES: Final = 1 << 16
_ELEMENTS: Final = 50_000  # elements of an array in one block


@dataclass(frozen=True)
class JsonlPiece:
    """One byte range of a JSON lines file (or all of a compressed one)."""

    file: InputFile
    index: int
    # key in the file, canonical column, type seen in the head
    fields: tuple[tuple[str, str, pa.DataType], ...]
    layout: Layout
    byte_range: ByteRange | None = None
    constants: dict[str, str] = field(default_factory=dict)
    chunk_bytes: int = CHUNK_BYTES

    def read(self) -> Iterator[pa.Table]:
        """Yield finished blocks."""
        if self.byte_range is not None:
            yield self.block(
                self.file.read(self.byte_range.start, self.byte_range.length), self.byte_range
            )
            return
        for byte_range, data in byte_ranges(self.file, 0, _LINES, self.chunk_bytes):
            yield self.block(data, byte_range)

    def block(self, data: bytes, byte_range: ByteRange) -> pa.Table:
        """Parse some lines into a finished block."""
        keys = self._keys
        cells = None
        is_plain = not any("." in key for key in keys)  # the names of nested columns have dots
        if is_plain and decodable(data, "utf-8"):  # Arrow does not check it
            if all(_is_exact(kind) for key, kind in keys.items() if key in self._ids):
                cells = _parse_fast(data, byte_range, keys)
            if cells is None and self._ids:
                texts = {
                    key: pa.string() if key in self._ids else kind for key, kind in keys.items()
                }
                cells = _parse_fast(quoted(data, sorted(self._ids)), byte_range, texts)
        return self.assembled(cells or self._parse_lines(data, byte_range))

    def assembled(self, cells: Cells) -> pa.Table:
        """Parsed rows as a finished block: canonical names, checked, with provenance."""
        raw = cells.table.rename_columns([column for _, column, _ in self.fields])
        raw = with_constants(raw, self.constants)
        return assemble(raw, cells, self.layout, Origin(self.file.name, self.index, ", "))

    def cells_of(self, records: list[Record], broken: list[tuple[int, str]]) -> Cells:
        """Parsed objects as columns; an object with a value that does not fit its column is a
        broken row.
        """
        known = {name for _, name, _ in self.fields if name in self.layout.table.columns}
        columns: dict[str, pa.Array] = {}
        misfits: set[int] = set()
        lists = dict(self.layout.lists)
        for key, name, kind in self.fields:
            kind = pa.list_(pa.string()) if name in lists and pa.types.is_list(kind) else kind
            if key in self._ids:
                columns[key] = id_column(records, key)
                continue
            values = [value_at(record.values, key) for record in records]
            columns[key], lost = column(values, kind, self.layout.rules.absent)
            if lost and name in known:  # the row rules give the reason
                # as text, because a number column would show a misfit as a missing value
                columns[key] = pa.array([text_of(value) for value in values], pa.string())
            else:
                misfits.update(lost)
        table = pa.table(columns)
        if misfits:
            table = table.filter(pa.array([index not in misfits for index in range(len(records))]))
            lost_rows = [(records[index].row, _shown(records[index].raw)) for index in misfits]
            broken = sorted([*broken, *lost_rows])
        rows = np.array(
            [record.row for index, record in enumerate(records) if index not in misfits],
            dtype=np.int64,
        )
        return Cells(table, rows, [row for row, _ in broken], [text for _, text in broken])

    def _parse_lines(self, data: bytes, byte_range: ByteRange) -> Cells:
        good: list[Record] = []
        broken: list[tuple[int, str]] = []
        for row, line in enumerate(data.removesuffix(b"\n").split(b"\n"), byte_range.first_row):
            if not line.strip():
                continue
            values = parse_object(line)
            if values is None:
                broken.append((row, _shown(line)))
            else:
                good.append(Record(row, line, values))
        return self.cells_of(good, broken)

    @property
    def _keys(self) -> dict[str, pa.DataType]:
        """Each key with the type for Arrow; integers of known float columns are read as floats."""
        wanted = self.layout.table.columns
        is_float = {name for name, kind in wanted.items() if pa.types.is_floating(kind)}
        lists = dict(self.layout.lists)  # as texts, so that ids keep all digits
        return {
            key: pa.float64()
            if name in is_float and pa.types.is_integer(kind)
            else pa.list_(pa.string())
            if name in lists and pa.types.is_list(kind)
            else kind
            for key, name, kind in self.fields
        }

    @property
    def _ids(self) -> set[str]:
        """The keys of ids and of other known texts."""
        return {key for key, name, _ in self.fields if is_id(self.layout, name)}


@dataclass(frozen=True)
class JsonSequencePiece:
    """A whole file that is an array of objects, or has objects over several lines. Each element is
    a row.
    """

    rows: JsonlPiece

    def read(self) -> Iterator[pa.Table]:
        """Yield finished blocks."""
        numbered = enumerate(elements(self.rows.file), 1)
        while part := list(islice(numbered, _ELEMENTS)):
            records: list[Record] = []
            broken: list[tuple[int, str]] = []
            for row, text in part:
                # half a character must reach the parser, which makes it a bad row
                raw = text.encode(errors="surrogatepass")
                values = parse_object(raw)
                if values is None:
                    broken.append((row, _shown(raw)))
                else:
                    records.append(Record(row, raw, values))
            yield self.rows.assembled(self.rows.cells_of(records, broken))


def jsonl_pieces(piece: JsonlPiece) -> list[JsonlPiece | JsonSequencePiece]:
    """The pieces of a file, made from a piece without a byte range."""
    head = _head(piece.file)
    if is_read_by_element(head):
        return [JsonSequencePiece(piece)]
    if piece.file.compressed:
        piece.file.check_unpacked()
        return [piece]
    return [
        replace(piece, byte_range=byte_range)
        for byte_range, _ in byte_ranges(piece.file, 0, _LINES, piece.chunk_bytes)
    ]


def fields_after_head(
    found: Mapping[str, pa.DataType], rename: Mapping[str, str], table: schema.TableSchema
) -> list[tuple[str, str, pa.DataType]]:
    """Known columns that the head of a file lacks, as fields: they may occur later in the file.

    Parameters
    ----------
    found : Mapping[str, pa.DataType]
        Key of the file → type, as the head has them.
    rename : Mapping[str, str]
        Key of the file → canonical name.
    table : schema.TableSchema
        The canonical table; its optional columns may occur later.

    Returns
    -------
    list of (str, str, DataType)
        Key in the file, canonical name, and type; times are read as integers.
    """
    named = {rename.get(key, key) for key in found}
    keys = {name: key for key, name in rename.items() if key not in found}
    later = [
        (keys.get(name, name), name, kind)
        for name, kind in table.optional.items()
        if name not in named
    ]
    return [
        (key, name, pa.int64() if pa.types.is_timestamp(kind) else kind)
        for key, name, kind in later
        # an object, of which the head has the keys, is no such column
        if key not in found and not any(other.startswith(f"{key}.") for other in found)
    ]


def read_keys(file: InputFile) -> dict[str, pa.DataType]:
    """The keys of the first lines and of samples of the rest, with the Arrow type of their values.

    Raises
    ------
    SourceError
        There is no JSON object, or there are too many keys.
    """
    head = _head(file)
    check_encoding(file, head, "utf-8")
    is_sampled = not file.compressed and file.size > _HEAD_BYTES
    lines = (head[:_FIRST_BYTES] if is_sampled else head).split(b"\n")
    # the head ends in the middle of a line
    lines = lines[:-1] if len(head) >= _HEAD_BYTES - len(BOM_UTF8) and len(lines) > 1 else lines
    objects = [value for value in map(parse_object, lines) if value is not None]
    if objects and not is_read_by_element(head):
        objects += _samples(file) if is_sampled else []
    elif is_read_by_element(head):
        values = (
            parse_object(text.encode(errors="surrogatepass"))
            for text in islice(elements(file), _ELEMENTS)
        )
        objects = [value for value in values if value is not None]
    if not objects:
        raise SourceError(f"{file.path} holds no JSON object in its first lines; {_cure(lines)}")
    kinds = kinds_of(objects)
    check_column_count(len(kinds), file.path)
    return {key: type_of(seen - {"null"}) for key, seen in kinds.items()}


def _cure(lines: list[bytes]) -> str:
    first = next((line.strip() for line in lines if line.strip()), b"")
    if first.startswith((b"{'", b"[{'")):
        return (
            "they are Python literals ({'key': …}), not JSON; write them as JSON, e.g. in Python"
            " with json.dumps(ast.literal_eval(line)) for every line"
        )
    return (
        "expected one object in each line, or one array of objects: correct the file or"
        " data.source.format"
    )


def _head(file: InputFile) -> bytes:
    with file.stream() as stream:
        return bytes(stream.read(_HEAD_BYTES)).removeprefix(BOM_UTF8)


def _samples(file: InputFile) -> list[dict[str, Any]]:
    """The objects in some groups of lines after the head, evenly distributed over the file."""
    found: list[dict[str, Any]] = []
    starts = np.linspace(_FIRST_BYTES, file.size - _SAMPLE_BYTES, _SAMPLES).astype(int)
    for start in dict.fromkeys(starts.tolist()):
        # a sample starts in the middle of a line
        lines = file.read(start, min(_SAMPLE_BYTES, file.size - start)).split(b"\n")[1:]
        whole = lines if start + _SAMPLE_BYTES >= file.size else lines[:-1]
        found += [value for value in map(parse_object, whole) if value is not None]
    return found


def _is_exact(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_boolean(kind))


def _parse_fast(
    data: bytes, byte_range: ByteRange, keys: Mapping[str, pa.DataType]
) -> Cells | None:
    """Parse with Arrow's reader; None if a line does not fit, so that the tolerant reader is
    needed.
    """
    options = pa.json.ParseOptions(
        explicit_schema=pa.schema(list(keys.items())), unexpected_field_behavior="ignore"
    )
    try:
        table = pa.json.read_json(
            pa.BufferReader(data),
            # one block: Arrow refuses an object that is longer than a block
            pa.json.ReadOptions(use_threads=False, block_size=len(data) + 1),
            options,
        )
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None
    # Arrow skips blank lines, and the numbers of rows would be wrong
    if table.num_rows != byte_range.num_rows:
        return None
    table = table.select(list(keys))
    return Cells(
        table, np.arange(byte_range.num_rows, dtype=np.int64) + byte_range.first_row, [], []
    )


def _shown(raw: bytes) -> str:
    return raw.decode(errors="replace").rstrip("\r")
