"""Open files for a search: the bytes of a file and everything that is packed in it, as parts.

The file itself is a part (as bytes). In addition, compressed and coded content is opened, at every
depth: gzip, bz2, xz, zstd, lz4, zip and tar; the cells of Parquet, Arrow and SQLite files;
``data:`` URIs of pages. What cannot be opened is a part of the kind ``unreadable``, which the
caller must report, as it was not searched.

Not covered: the content of images, and encrypted content.
"""

from __future__ import annotations

import base64
import binascii
import bz2
import gzip
import lzma
import mmap
import re
import sqlite3
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.values.arrow_types import is_list, is_string

DEEPEST: Final = 6
_COPY: Final = 1 << 20
_ROWS: Final = 65_536
_DATA_URI: Final = re.compile(rb"data:[\w.+/;=-]*;base64,([A-Za-z0-9+/=\s]{16,})")


@dataclass(frozen=True)
class Part:
    """One part of a file to search.

    ``data`` is bytes (kind ``bytes``), a list of texts (kind ``cells``), a flat array of integers
    (kind ``numbers``) or the reason why it cannot be opened (kind ``unreadable``).
    """

    kind: str
    data: Any
    where: str = ""  # inside the file: "member/column", empty for the file itself


def parts(path: Path) -> Iterator[Part]:
    """Yield the parts of a file; the bytes of the file itself first.

    Yields
    ------
    Part
        A part, or the reason why it cannot be opened.

    Raises
    ------
    OSError
        The file cannot be read.
    """
    with _mapped(path) as data:
        yield Part("bytes", data)
        yield from _inside(path, data, "", DEEPEST)


@contextmanager
def _mapped(path: Path) -> Iterator[Any]:
    with path.open("rb") as file:
        # an empty file cannot be mapped
        if path.stat().st_size == 0:
            yield b""
            return
        # mapped: a file may be larger than the memory
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data


def kind_of(head: bytes) -> str:
    """The format of a file by its first bytes; empty if it is not one that is opened.

    >>> kind_of(b"PAR1...."), kind_of(b"{}")
    ('parquet', '')
    """
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            return kind
    return "tar" if head[257:262] == b"ustar" else ""


def _inside(path: Path, data: Any, where: str, depth: int) -> Iterator[Part]:
    kind = kind_of(bytes(data[:512]))
    try:
        # as unreadable and not in silence: an archive may contain itself
        if depth == 0 and kind:
            raise ValueError(f"nested more than {DEEPEST} deep")
        if kind:
            yield from _OPENERS[kind](path, where, depth)
    except Exception as error:  # any library may fail on a damaged file; it was not searched
        yield Part("unreadable", f"{kind}: {type(error).__name__}: {error}", where)
    if not kind and depth:
        yield from _data_uris(data, where, depth)


def _data_uris(data: Any, where: str, depth: int) -> Iterator[Part]:
    for number, match in enumerate(_DATA_URI.finditer(data)):
        try:
            content = base64.b64decode(match[1], validate=False)
        except binascii.Error:
            continue
        yield from _unpacked(content, f"{where}/data-uri-{number}", depth)


def _unpacked(content: bytes, where: str, depth: int) -> Iterator[Part]:
    with tempfile.NamedTemporaryFile(prefix="multigrain-") as file:
        file.write(content)
        # the file is opened again by its name, and must not lack bytes that are still in the buffer
        file.flush()
        yield from _part_of(Path(file.name), where, depth)


def _part_of(path: Path, where: str, depth: int) -> Iterator[Part]:
    with _mapped(path) as data:
        yield Part("bytes", data, where)
        yield from _inside(path, data, where, depth - 1)


def _streamed(reader: Any, where: str, depth: int) -> Iterator[Part]:
    """Yield the parts of a decompressed stream, as of a separate file."""
    # on disk: a small file may unpack to more than the memory
    with tempfile.NamedTemporaryFile(prefix="multigrain-") as file:
        while piece := reader.read(_COPY):
            file.write(piece)
        file.flush()
        yield from _part_of(Path(file.name), where, depth)


def _stream(opener: Callable[[Path], Any], name: str) -> Callable[[Path, str, int], Iterator[Part]]:
    def opened(path: Path, where: str, depth: int) -> Iterator[Part]:
        with opener(path) as reader:
            yield from _streamed(reader, f"{where}/{name}", depth)

    return opened


def _arrow_stream(codec: str) -> Callable[[Path], Any]:
    return lambda path: pa.input_stream(str(path), compression=codec)


def _zip(path: Path, where: str, depth: int) -> Iterator[Part]:
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if not name.endswith("/"):
                with archive.open(name) as reader:
                    yield from _streamed(reader, f"{where}/{name}", depth)


def _tar(path: Path, where: str, depth: int) -> Iterator[Part]:
    with tarfile.open(path) as archive:
        for member in archive:
            reader = archive.extractfile(member) if member.isfile() else None
            if reader is not None:
                yield from _streamed(reader, f"{where}/{member.name}", depth)


def _parquet(path: Path, where: str, depth: int) -> Iterator[Part]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_ROWS):
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                yield from _column(column, f"{where}/{name}")


def _arrow_file(path: Path, where: str, depth: int) -> Iterator[Part]:
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                yield from _column(column, f"{where}/{name}")


def _column(column: Any, where: str) -> Iterator[Part]:
    """Yield the values of an Arrow column, nested ones included."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary  # all values that occur in the rows
    kind = column.type
    if pa.types.is_struct(kind):
        for field, child in zip(kind, column.flatten(), strict=True):
            yield from _column(child, f"{where}.{field.name}")
    elif pa.types.is_map(kind):
        yield from _column(column.keys, f"{where}.keys")
        yield from _column(column.items, f"{where}.values")
    elif is_list(kind):
        if pa.types.is_integer(kind.value_type):
            yield Part("numbers", _apart(column), where)
        else:
            yield from _column(column.flatten(), where)
    elif is_string(kind) or pa.types.is_string_view(kind):
        yield Part("cells", [text for text in column.to_pylist() if text], where)
    elif (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
    ):
        yield Part("bytes", b"\0".join(value for value in column.to_pylist() if value), where)
    elif pa.types.is_integer(kind):
        values = column.drop_null().to_numpy(zero_copy_only=False)
        yield Part("numbers", values.astype(np.int64, copy=False), where)
    elif pa.types.is_temporal(kind):
        yield Part("cells", [text for text in column.cast(pa.string()).to_pylist() if text], where)


def _apart(column: Any) -> Any:
    """The numbers of a column of lists, with an unused number between two lists.

    Otherwise the end of one user's history and the start of the next one could look like a stretch
    of a history. A column of one-number lists is treated as a column of numbers.
    """
    lengths = np.asarray(pc.list_value_length(column).fill_null(0))
    values = np.asarray(column.flatten().cast(pa.int64(), safe=False).fill_null(_BETWEEN))
    if lengths.max(initial=0) < 2:
        return values
    return np.insert(values, np.cumsum(lengths)[:-1], _BETWEEN)


def _sqlite(path: Path, where: str, depth: int) -> Iterator[Part]:
    """Yield the cells of every table, as a text may be spread over several pages of the file."""
    # read-only: opening must not create a journal next to the file
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as store:
        # a cell that is not UTF-8 must not stop the search of the others
        store.text_factory = lambda content: content.decode("utf-8", "replace")
        tables = [
            row[0] for row in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        ]
        for table in tables:
            cursor = store.execute(f'SELECT * FROM "{table.replace(chr(34), chr(34) * 2)}"')
            names = [column[0] for column in cursor.description]
            while rows := cursor.fetchmany(_ROWS):
                for name, values in zip(names, zip(*rows, strict=True), strict=True):
                    texts = [value for value in values if isinstance(value, str) and value]
                    blobs = [value for value in values if isinstance(value, bytes) and value]
                    if texts:
                        yield Part("cells", texts, f"{where}/{table}.{name}")
                    for blob in blobs:
                        yield from _unpacked(blob, f"{where}/{table}.{name}", depth)


_BETWEEN: Final = np.iinfo(np.int64).min
_MAGIC: Final = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bz2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"PK\x03\x04": "zip",
    b"PAR1": "parquet",
    b"ARROW1": "arrow",
    b"SQLite format 3\x00": "sqlite",
}
_OPENERS: Final[dict[str, Callable[[Path, str, int], Iterator[Part]]]] = {
    "gzip": _stream(gzip.open, "gzip"),
    "bz2": _stream(bz2.open, "bz2"),
    "xz": _stream(lzma.open, "xz"),
    "zstd": _stream(_arrow_stream("zstd"), "zstd"),
    "lz4": _stream(_arrow_stream("lz4"), "lz4"),
    "zip": _zip,
    "tar": _tar,
    "parquet": _parquet,
    "arrow": _arrow_file,
    "sqlite": _sqlite,
}
