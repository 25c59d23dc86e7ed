"""Compressed files: recognised by their first bytes or their name, and unpacked as a stream of
bounded size.

Supported are gzip, zstd, and zip archives with one file. Several consecutive gzip or zstd frames
are one file.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import pyarrow as pa

from recsys.errors import SourceError
from recsys.sources.limits import FREE_BYTES, MAX_RATIO, listed

ENDINGS: Final = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd", ".zip": "zip"}
READ: Final = "supported are plain files, .gz, .zst, and .zip with one file"
SNIFFED: Final = 10  # bytes of the head that identify the format
_MAGIC: Final = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x50\x2a\x4d\x18": "zstd",  # a skippable frame
    b"PK\x03\x04": "zip",
}
_NOT_READ: Final = {
    b"BZh91AY&SY": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x04\x22\x4d\x18": "lz4",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!": "rar",
}
# zip archives of many parts that are not tables
_DOCUMENTS: Final = (".xlsx", ".xlsm", ".ods", ".docx")
_BUFFER: Final = 4 << 20


def compression_of(path: str, name: str, head: bytes) -> str:
    r"""``gzip``, ``zstd``, ``zip`` or "": by the first bytes, else by the ending of the name.

    Parameters
    ----------
    path : str
        Path or URI of the file, for the error.
    name : str
        Name of the file.
    head : bytes
        The first bytes of the file.

    Raises
    ------
    SourceError
        The compression is not supported.

    Examples
    --------
    >>> compression_of("a.csv", "a.csv", b"\x1f\x8b\x08")
    'gzip'
    >>> compression_of("a.csv", "a.csv", b"user_id")
    ''
    """
    for magic, kind in _NOT_READ.items():
        if head.startswith(magic):
            raise SourceError(
                f"{path} is compressed with {kind}, which is not supported; unpack it ({READ})"
            )
    # their first bytes are those of zip, but a table is not one file of the archive
    if name.lower().endswith(_DOCUMENTS):
        return ""
    found = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), "")
    # the bytes first: downloads often have a wrong ending
    return found or next(
        (kind for ending, kind in ENDINGS.items() if name.lower().endswith(ending)), ""
    )


def plain_name(name: str) -> str:
    """A file's name without the ending of its compression.

    >>> plain_name("log.csv.gz"), plain_name("log.csv")
    ('log.csv', 'log.csv')
    """
    ending = next((ending for ending in ENDINGS if name.lower().endswith(ending)), "")
    return name[: len(name) - len(ending)]


class Unpacked:
    """The bytes of a compressed file as a stream.

    Raises
    ------
    SourceError
        The unpacked size is far larger than that of any text (see :mod:`recsys.sources.limits`).
    """

    def __init__(self, source: Any, kind: str, path: str, size: int) -> None:
        self._path, self._kind, self._size, self._count = path, kind, size, 0
        with _said(path, kind):
            self._stream = (
                _member(source, path)[1]
                if kind == "zip"
                else pa.CompressedInputStream(pa.BufferedInputStream(source, _BUFFER), kind)
            )

    def read(self, count: int) -> bytes:
        """Read at most ``count`` bytes; b"" at the end.

        Raises
        ------
        SourceError
            The file unpacks to many times its size.
        """
        with _said(self._path, self._kind):
            found = bytes(self._stream.read(count))
        # counted as it is read, because the size in a header can be false
        self._count += len(found)
        if self._count > max(FREE_BYTES, MAX_RATIO * self._size):
            raise SourceError(
                f"{self._path} unpacks to more than {self._count >> 20:,} MiB, over {MAX_RATIO}"
                f" times its {self._size:,} bytes; text does not compress so well, so the file is"
                " refused: if it is correct, unpack it and name the unpacked file"
            )
        return found


def member_name(source: Any, path: str) -> str:
    """The name of the only file in a zip archive."""
    with _said(path, "zip"):
        return _member(source, path)[0]


def _member(source: Any, path: str) -> tuple[str, Any]:
    """Open the only file of a zip archive.

    Raises
    ------
    SourceError
        The archive has no file or several, or the file is protected by a password.
    """
    archive = zipfile.ZipFile(source)
    found = [
        info for info in archive.infolist() if not info.is_dir() and not _is_hidden(info.filename)
    ]
    if len(found) != 1:
        names = listed([info.filename for info in found]) or "none"
        raise SourceError(
            f"{path} is a zip archive of {len(found)} files ({names}), expected one; unpack it and"
            " name the files"
        )
    if found[0].flag_bits & 1:
        raise SourceError(
            f"{path}: {found[0].filename} is protected by a password; unpack it and name that file"
        )
    return found[0].filename, archive.open(found[0])


@contextmanager
def _said(path: str, kind: str) -> Iterator[None]:
    """Turn the exceptions of the libraries for damaged bytes into one message."""
    try:
        yield
    except (
        OSError,
        EOFError,
        ValueError,
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        NotImplementedError,
    ) as error:
        raise SourceError(
            f"{path} cannot be read: {error}; it is not {kind}, or not complete; write or copy it"
            f" again ({READ})"
        ) from None


def _is_hidden(name: str) -> bool:
    """Whether an archiver added the file, such as ``__MACOSX/._log.csv``."""
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
