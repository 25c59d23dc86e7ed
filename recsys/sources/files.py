"""Input files on any Arrow filesystem: finding, opening and fingerprinting them.

Why: every adapter takes local paths and ``s3://`` or ``gs://`` URIs, and a missing file must give
one clear message before any work starts.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final
from urllib.parse import unquote

import pyarrow.fs

from recsys.errors import EmptyFile, SourceError
from recsys.sources.compression import SNIFFED, Unpacked, compression_of, member_name, plain_name
from recsys.storage.filesystems import check_bucket, filesystem_of, storage_errors
from recsys.storage.uris import expanded, is_remote

HASHED_WHOLE: Final = 64 << 20  # larger files are fingerprinted by size and modification time
_BLOCK: Final = 4 << 20
_SMALL: Final = 4 << 20
_NOTHING: Final = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class InputFile:
    """A file with its size and modification time when it was found.

    ``path`` is a local path or a URI for :func:`filesystem_of`. ``modified`` is in nanoseconds,
    None if the filesystem does not give it. Each reader compares size and time before and after
    reading.
    """

    path: str
    size: int
    modified: int | None = None

    @property
    def name(self) -> str:
        """The base name, as shown in the quarantine."""
        return (
            self.path.split("?")[0].rsplit("/", 1)[-1]
            if "://" in self.path
            else self.path.rsplit("/", 1)[-1]
        )

    @property
    def suffix(self) -> str:
        """The extension in lower case, without ``.gz`` and the like; for ``NAME.zip``, that of the
        file inside.

        >>> InputFile("a/b.CSV.gz", 1).suffix
        '.csv'
        """
        stem = plain_name(self.name).lower()
        # ``NAME.zip`` does not say what is inside
        if "." not in stem and self.name.lower().endswith(".zip"):
            with self.opened() as source:
                stem = member_name(source, self.path).lower()
        return f".{stem.rsplit('.', 1)[1]}" if "." in stem else ""

    @cached_property
    def compression(self) -> str:
        """``gzip``, ``zstd``, ``zip`` or "", by the first bytes and the name.

        Raises
        ------
        SourceError
            The compression is not supported.
        """
        filesystem, inner = filesystem_of(self.path)
        try:
            with storage_errors(self.path), filesystem.open_input_file(inner) as source:
                head = bytes(source.read_at(min(SNIFFED, self.size), 0))
        except OSError as error:
            # a file that was deleted meanwhile gives the clearer message
            self.check_unchanged()
            raise SourceError(
                f"{self.path} cannot be read: {error}; check the file and the disk"
            ) from None
        return compression_of(self.path, self.name, head)

    @property
    def compressed(self) -> bool:
        """Whether the file is compressed."""
        return bool(self.compression)

    @contextmanager
    def opened(self) -> Iterator[Any]:
        """Open the stored bytes for reading at any position.

        Yields
        ------
        NativeFile
            The open file.

        Raises
        ------
        SourceError
            The file was changed since it was found, or while it was open.
        """
        filesystem, inner = filesystem_of(self.path)
        try:
            with storage_errors(self.path), filesystem.open_input_file(inner) as source:
                yield source
        except Exception:
            self.check_unchanged()  # a changed file is the cause of any other error
            raise
        self.check_unchanged()

    @contextmanager
    def stream(self) -> Iterator[Any]:
        """Open the unpacked bytes from the start.

        Yields
        ------
        NativeFile or Unpacked
            The open file, or its unpacked bytes.

        Raises
        ------
        SourceError
            The bytes cannot be read, at any position, or the file was changed meanwhile.
        """
        kind = self.compression
        try:
            with self.opened() as source:
                yield Unpacked(source, kind, self.path, self.size) if kind else source
        except OSError as error:
            raise SourceError(
                f"{self.path} cannot be read: {error}; check the file and the disk"
            ) from None

    def read(self, start: int, length: int) -> bytes:
        """Read the stored bytes ``[start, start + length)``.

        Raises
        ------
        SourceError
            There are fewer bytes, or the file was changed meanwhile.
        """
        with self.opened() as source:
            found = bytes(source.read_at(length, start))
            if len(found) != length:
                raise SourceError(
                    f"{self.path}: {len(found):,} of {length:,} bytes from byte {start:,} could be"
                    " read; check the file and the disk"
                )
        return found

    def check_unpacked(self) -> None:
        """Unpack a small file and discard the bytes, so that a cut or far too large one is refused
        before any work.

        Raises
        ------
        SourceError
            The file cannot be unpacked, or its unpacked size is far too large.
        """
        if self.compressed and self.size <= _SMALL:
            with self.stream() as stream:
                while stream.read(_BLOCK):
                    pass

    def fingerprint(self) -> str:
        """Hash of the content; for large files, of size and modification time."""
        digest = hashlib.sha256()
        # hashing a large file takes as long as reading it
        if self.size > HASHED_WHOLE:
            self.check_unchanged()
            digest.update(f"{self.size} {self.modified}".encode())
            return digest.hexdigest()
        with self.opened() as source:
            while block := source.read(_BLOCK):
                digest.update(block)
        return digest.hexdigest()

    def check_unchanged(self) -> None:
        """Compare size and modification time with those when the file was found.

        Raises
        ------
        SourceError
            They differ: a reader must not treat a part of a file as the whole.
        """
        info = _info(self.path)
        if info.type != pyarrow.fs.FileType.File:
            now = "is no longer there"
        elif info.size != self.size:
            now = f"has {info.size:,} now"
        elif _tick(self.path, info.mtime_ns) != _tick(self.path, self.modified):
            now = "was written again"
        else:
            return
        raise SourceError(
            f"{self.path} changed while it was read: it had {self.size:,} bytes when it was found"
            f" and {now}; wait until its writer has finished, or name a copy, and run the same"
            " command again"
        )


def input_file(path: str) -> InputFile:
    """The file at ``path``.

    Raises
    ------
    SourceError
        The file does not exist or is a folder.
    EmptyFile
        It has no bytes.
    """
    path = expanded(path)
    info = _info(path)
    if info.type != pyarrow.fs.FileType.File:
        found = {
            pyarrow.fs.FileType.Directory: "is a folder",
            pyarrow.fs.FileType.NotFound: "does not exist",
        }.get(info.type, "is a device or a pipe")
        raise SourceError(
            f"{path} {found}; expected a file: correct data.source, or set RECSYS_DATA to the"
            " data's folder"
        )
    if info.size == 0:
        raise EmptyFile(f"{path} is empty (0 bytes); expected a table with at least one row")
    return InputFile(path, info.size, info.mtime_ns)


def folder_values(path: str) -> dict[str, str]:
    """Columns in the names of the folders above a file; ``""`` for Hive's mark of a missing value.

    >>> folder_values("logs/event_type=add%20to%20cart/day=__HIVE_DEFAULT_PARTITION__/a=b.csv")
    {'event_type': 'add to cart', 'day': ''}
    """
    body = path.split("://", 1)[-1].split("?")[0] if "://" in path else path
    pairs = [part.split("=", 1) for part in body.split("/")[:-1] if "=" in part.lstrip("=")]
    return {unquote(name): "" if value == _NOTHING else unquote(value) for name, value in pairs}


def exists(path: str) -> bool:
    """Whether a file exists (for optional files of a format)."""
    return bool(_info(expanded(path)).type == pyarrow.fs.FileType.File)


def find(patterns: Iterable[str], where: str = "data.source") -> list[InputFile]:
    """Expand files, folders (all files below, except hidden ones) and globs (``*``, ``?``,
    ``[abc]``, ``**``).

    A file or folder with exactly the name of the pattern comes first: ``log[1].csv`` may be a name.
    ``~`` is the home folder. A file that is named twice is read once. ``where`` says in messages
    where the user gave the patterns.

    Raises
    ------
    SourceError
        A pattern matches nothing.
    """
    found: dict[str, InputFile] = {}
    for pattern in patterns:
        for file in _find_one(expanded(pattern), where):
            found.setdefault(file.path, file)
    return list(found.values())


def _find_one(pattern: str, where: str) -> list[InputFile]:
    scheme, body, query = _split_uri(pattern)
    special = re.search(r"[*?\[]", body)
    # a name with brackets may be a real file, so it is looked up before it is a pattern
    if special is None or _info(pattern).type != pyarrow.fs.FileType.NotFound:
        if _info(pattern).type != pyarrow.fs.FileType.Directory:
            return [input_file(pattern)]
        base, glob = body.rstrip("/"), ""
    else:
        # listing starts at the deepest folder without a wildcard
        base = body[: special.start()].rpartition("/")[0]
        glob = body[len(base) :].strip("/")
    # empty files such as Spark's _SUCCESS have no rows
    files = [file for file in _below(pattern, scheme, base, query, glob) if file.size > 0]
    if not files:
        check_bucket(pattern)
        raise SourceError(
            f"{pattern} matches no file with content; correct the path or glob in {where}"
        )
    return files


def _below(pattern: str, scheme: str, base: str, query: str, glob: str) -> Iterator[InputFile]:
    """The files below a folder that match the glob, all if it is empty; hidden ones are skipped."""
    folder = f"{scheme}{base or ('' if scheme else '/' if pattern.startswith('/') else '.')}{query}"
    filesystem, inner = filesystem_of(folder)
    matches = re.compile(_glob_regex(glob)) if glob else None
    try:
        with storage_errors(pattern):
            found = _listing(filesystem, inner, "" if scheme else glob)
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(
            f"cannot list {folder} for {pattern}: {error}; name the files or folders"
        ) from None
    # a listing has no fixed order, and the order of files is the order of rows
    for info in sorted(found, key=lambda entry: entry.path):
        relative = info.path[len(inner) :].lstrip("/")
        # Spark and Hive write their own files under such names
        hidden = any(part.startswith((".", "_")) for part in relative.split("/"))
        if (
            info.type != pyarrow.fs.FileType.File
            or hidden
            or (matches and not matches.fullmatch(relative))
        ):
            continue
        near = f"{base}/{relative}" if base or pattern.startswith("/") else relative
        path = f"{scheme}{info.path}{query}" if scheme else near
        yield InputFile(path, info.size, info.mtime_ns)


def _listing(filesystem: Any, folder: str, glob: str) -> list[Any]:
    """All entries below a folder; for a glob without ``**`` only those of the folders that match
    its parts.

    Why: ``/logs*/day.csv`` must not list the whole disk. A bucket is listed in one call, which is
    faster there.
    """
    if not glob or "**" in glob:
        return list(
            filesystem.get_file_info(
                pyarrow.fs.FileSelector(folder, recursive=True, allow_not_found=True)
            )
        )
    *levels, _ = glob.split("/")
    folders = [folder]
    for level in map(re.compile, map(_glob_regex, levels)):
        entries = [entry for folder in folders for entry in _entries(filesystem, folder)]
        folders = [
            e.path
            for e in entries
            if e.type == pyarrow.fs.FileType.Directory and level.fullmatch(e.base_name)
        ]
    return [entry for folder in folders for entry in _entries(filesystem, folder)]


def _entries(filesystem: Any, folder: str) -> list[Any]:
    return list(filesystem.get_file_info(pyarrow.fs.FileSelector(folder, allow_not_found=True)))


def _split_uri(path: str) -> tuple[str, str, str]:
    """``scheme://``, path and ``?query`` (options of the filesystem). In a URI ``?`` is never a
    wildcard.
    """
    if "://" not in path:
        return "", path, ""
    scheme, rest = path.split("://", 1)
    body, mark, query = rest.partition("?")
    return f"{scheme}://", body, mark + query


def _glob_regex(pattern: str) -> str:
    """A glob as a regular expression.

    >>> [bool(re.fullmatch(_glob_regex("*.csv"), name)) for name in ("a.csv", "a/b.csv")]
    [True, False]
    >>> bool(re.fullmatch(_glob_regex("**/*.csv"), "a/b.csv"))
    True
    >>> [bool(re.fullmatch(_glob_regex("[!a]*"), name)) for name in ("ab", "b")]
    [False, True]
    """
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[!?\]?[^\]/]*\])", pattern)
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(
        known[p] if p in known else _character_class(p) if p[:1] == "[" else re.escape(p)
        for p in parts
    )


def _character_class(part: str) -> str:
    """``[abc]``, ``[a-z]`` or ``[!abc]`` of a glob; an unmatched bracket, or a range from z to a,
    is plain text.
    """
    if not part.endswith("]") or len(part) < 3:
        return re.escape(part)
    negated = part[1] == "!"
    members = (
        part[1 + negated : -1]
        # special in a regular expression, but plain characters in a glob
        .replace("\\", "\\\\")
        .replace("[", "\\[")
        .replace("]", "\\]")
        .replace("^", "\\^")
    )
    members = (
        # Python warns of these pairs, because they may become set operations
        members.replace("&&", "&\\&")
        .replace("||", "|\\|")
        .replace("~~", "~\\~")
        .replace("--", "-\\-")
    )
    try:
        re.compile(f"[{members}]")
    except re.error:
        return re.escape(part)
    return f"[{'^/' if negated else ''}{members}]"


def _tick(path: str, modified: int | None) -> int | None:
    """A modification time in whole seconds for remote files: lists of objects give fractions, heads
    do not.
    """
    return modified // 10**9 if modified is not None and is_remote(path) else modified


def _info(path: str) -> Any:
    try:
        filesystem, inner = filesystem_of(path)
        with storage_errors(path):
            info = filesystem.get_file_info(inner)
        if info.type == pyarrow.fs.FileType.NotFound:
            check_bucket(path)
        return info
    except (
        OSError,
        ValueError,
    ) as error:  # ValueError: a name that no file can have, or an error of Arrow
        raise SourceError(
            f"cannot look up {path}: {error}; check the path, the network and the credentials"
        ) from None
