"""Input files on any Arrow filesystem: finding, opening and fingerprinting them.

Why: every adapter takes local paths and ``s3://`` or ``gs://`` URIs alike, and a file that is not there must be one
clear message before any work starts.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.fs

from recsys.errors import SourceError
from recsys.storage.places import filesystem_of, reaching, refuse_missing_bucket

HASHED_WHOLE: Final = 64 << 20  # larger files are fingerprinted by size and modification time
_BLOCK: Final = 4 << 20


@dataclass(frozen=True)
class InputFile:
    """A file that exists. ``path`` is a local path or URI that :func:`filesystem_of` understands."""

    path: str
    size: int

    @property
    def name(self) -> str:
        """The base name, as shown in the quarantine."""
        return self.path.split("?")[0].rsplit("/", 1)[-1] if "://" in self.path else self.path.rsplit("/", 1)[-1]

    @property
    def suffix(self) -> str:
        """The extension in lower case, that of a compressed file without ``.gz``.

        >>> InputFile("a/b.CSV.gz", 1).suffix
        '.csv'
        """
        stem = self.name.lower().removesuffix(".gz")
        return f".{stem.rsplit('.', 1)[1]}" if "." in stem else ""

    @property
    def compressed(self) -> bool:
        return self.name.lower().endswith(".gz")

    @contextmanager
    def stream(self) -> Iterator[Any]:
        """The bytes from the start, decompressed.

        Raises:
            SourceError: they cannot be read, wherever in the file.
        """
        filesystem, inner = filesystem_of(self.path)
        kind = "gzip" if self.compressed else None
        try:
            with reaching(self.path), filesystem.open_input_stream(inner, compression=kind) as source:
                yield source
        except OSError as error:
            cure = "is it really gzip-compressed, and whole?" if kind else "check the file and the disk"
            raise SourceError(f"{self.path} cannot be read: {error}; {cure}") from None

    def read(self, start: int, length: int) -> bytes:
        """Bytes ``[start, start + length)`` of the file as it is stored."""
        filesystem, inner = filesystem_of(self.path)
        with reaching(self.path), filesystem.open_input_file(inner) as source:
            return bytes(source.read_at(length, start))

    def fingerprint(self) -> str:
        """Hash of the content, for large files of size and modification time."""
        filesystem, inner = filesystem_of(self.path)
        digest = hashlib.sha256()
        if self.size > HASHED_WHOLE:
            modified = filesystem.get_file_info(inner).mtime_ns
            digest.update(f"{self.size} {modified}".encode())
            return digest.hexdigest()
        with reaching(self.path), filesystem.open_input_stream(inner, compression=None) as source:
            while block := source.read(_BLOCK):
                digest.update(block)
        return digest.hexdigest()


def input_file(path: str) -> InputFile:
    """The file at ``path``.

    Raises:
        SourceError: there is none, or it is a folder, or it is empty.
    """
    info = _info(path)
    if info.type != pyarrow.fs.FileType.File:
        found = "is a folder" if info.type == pyarrow.fs.FileType.Directory else "does not exist"
        raise SourceError(
            f"{path} {found}; expected a file: correct data.source, or set RECSYS_DATA to the data's folder"
        )
    if info.size == 0:
        raise SourceError(f"{path} is empty (0 bytes); expected a table with at least one row")
    return InputFile(path, info.size)


def exists(path: str) -> bool:
    """Whether a file is there (optional parts of a format)."""
    return bool(_info(path).type == pyarrow.fs.FileType.File)


def find(patterns: Iterable[str]) -> list[InputFile]:
    """Expand files, folders (all files below but hidden ones) and globs (``*``, ``?``, ``**``), sorted by pattern.

    A file named twice is read once.

    Raises:
        SourceError: a pattern matches nothing.
    """
    found: dict[str, InputFile] = {}
    for pattern in patterns:
        for file in _find_one(pattern):
            found.setdefault(file.path, file)
    return list(found.values())


def _find_one(pattern: str) -> list[InputFile]:
    scheme, body, query = _split_uri(pattern)
    special = re.search(r"[*?\[]", body)
    if special is None:
        if _info(pattern).type != pyarrow.fs.FileType.Directory:
            return [input_file(pattern)]
        base, matches = body.rstrip("/"), None
    else:
        base = body[: special.start()].rpartition("/")[0]
        matches = re.compile(_glob_regex(body[len(base) :].lstrip("/") if base else body))
    filesystem, inner = filesystem_of(f"{scheme}{base or ('' if scheme else '.')}{query}")
    selector = pyarrow.fs.FileSelector(inner, recursive=True, allow_not_found=True)
    with reaching(pattern):
        found = filesystem.get_file_info(selector)
    files = []
    for info in sorted(found, key=lambda entry: entry.path):
        relative = info.path[len(inner) :].lstrip("/")
        hidden = any(part.startswith((".", "_")) for part in relative.split("/"))
        if info.type != pyarrow.fs.FileType.File or hidden or (matches and not matches.fullmatch(relative)):
            continue
        path = f"{scheme}{info.path}{query}" if scheme else (f"{base}/{relative}" if base else relative)
        files.append(InputFile(path, info.size))
    files = [file for file in files if file.size > 0]
    if not files:
        refuse_missing_bucket(pattern)
        raise SourceError(f"{pattern} matches no file that is not empty; correct the path or glob in data.source")
    return files


def _split_uri(path: str) -> tuple[str, str, str]:
    """``scheme://``, path and ``?query`` (options of the filesystem); in a URI ``?`` is never a wildcard."""
    if "://" not in path:
        return "", path, ""
    scheme, rest = path.split("://", 1)
    body, mark, query = rest.partition("?")
    return f"{scheme}://", body, mark + query


def _glob_regex(pattern: str) -> str:
    """A glob as a regular expression.

    >>> bool(re.fullmatch(_glob_regex("*.csv"), "a.csv")), bool(re.fullmatch(_glob_regex("*.csv"), "a/b.csv"))
    (True, False)
    >>> bool(re.fullmatch(_glob_regex("**/*.csv"), "a/b.csv"))
    True
    """
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", pattern)
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(known.get(p, p if p.startswith("[") and p.endswith("]") else re.escape(p)) for p in parts)


def _info(path: str) -> Any:
    try:
        filesystem, inner = filesystem_of(path)
        with reaching(path):
            info = filesystem.get_file_info(inner)
        if info.type == pyarrow.fs.FileType.NotFound:
            refuse_missing_bucket(path)
        return info
    except (OSError, pa.ArrowInvalid) as error:
        raise SourceError(f"cannot look up {path}: {error}; check the path, the network and the credentials") from None
