"""Atomic writing of folders, and verification of files by checksum.

A writer that is killed leaves hidden folders next to the final one. :func:`recover` removes them. A
living writer keeps its folders locked; the system releases the locks of a dead one.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from pydantic import BaseModel

from recsys.errors import ArtifactError
from recsys.storage.filesystems import is_of_disk, storage_errors

DESCRIPTION: Final = "bundle.json"
_WRITING: Final = ".writing-"
_REPLACED: Final = ".replaced-"  # the old folder, until the new one has its place


class FileEntry(BaseModel):
    """Size and checksum of a file."""

    size: int
    sha256: str


@contextmanager
def writing_aside(folder: str | Path, mark: str) -> Iterator[Path]:
    """A temporary folder to write a bundle to; it replaces ``folder`` when the block ends without
    an error.

    Parameters
    ----------
    folder : str | Path
        The final folder.
    mark : str
        File name or glob pattern; an existing folder is replaced only where it has such a file.

    Yields
    ------
    Path
        The empty temporary folder, next to ``folder``.

    Raises
    ------
    ArtifactError
        ``folder`` cannot be created, or holds something other than a bundle, which would be lost.
    StorageError
        The disk is full.
    """
    folder = Path(folder).absolute()
    recover(folder)
    with creation_errors(folder):
        is_there = folder.exists()
    if is_there and not (folder.is_dir() and (any(folder.glob(mark)) or not any(folder.iterdir()))):
        raise ArtifactError(
            f"{folder} exists and is not a bundle, so it is not overwritten; give another folder or"
            " move it away"
        )
    aside = None
    try:
        with storage_errors(str(folder), "write to"), ExitStack() as locks:
            with creation_errors(folder):
                aside = _new_aside(folder, locks)
            yield aside
            _replace(aside, folder, locks)
    finally:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def creation_errors(folder: Path) -> Iterator[None]:
    """Say in one message that a folder cannot be created; errors of the disk stay as they are.

    Raises
    ------
    ArtifactError
        A file is in its place or above it, its name is too long, or permissions are missing.
    """  # noqa: DOC501
    try:
        yield
    except OSError as error:
        if is_of_disk(error):
            raise
        raise ArtifactError(
            f"cannot create the folder {folder} ({error.strerror}); give another folder"
        ) from None


def recover(folder: Path) -> None:
    """Remove what killed writers of ``folder`` left next to it.

    The old folder moves back if the writer was killed between the two renames that replace it.
    """
    for kind in (_REPLACED, _WRITING):
        for left in folder.parent.glob(f".{glob.escape(folder.name)}{kind}*"):
            with suppress(OSError), ExitStack() as locks:
                _lock(left, locks)  # fails while the writer lives
                if kind == _REPLACED and not folder.exists():
                    left.rename(folder)
                else:
                    shutil.rmtree(left, ignore_errors=True)


def _new_aside(folder: Path, locks: ExitStack) -> Path:
    """A new folder next to ``folder``, because a rename works only within one filesystem."""
    while True:
        aside = folder.with_name(f".{folder.name}{_WRITING}{os.getpid()}-{secrets.token_hex(4)}")
        aside.mkdir(parents=True)
        try:
            _lock(aside, locks)
        except (BlockingIOError, FileNotFoundError):  # another process is removing it
            continue
        except OSError:  # a filesystem without locks; nobody removes it there either
            pass
        return aside


def _lock(folder: Path, locks: ExitStack) -> None:
    """Lock a folder until ``locks`` is closed.

    Raises
    ------
    OSError
        Another process has locked or removed it, or the filesystem has no locks for folders.
    """  # noqa: DOC501
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    locks.callback(os.close, handle)
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if not os.path.samestat(os.fstat(handle), folder.stat()):
        raise FileNotFoundError(folder)


def _replace(aside: Path, folder: Path, locks: ExitStack) -> None:
    old = folder.with_name(f".{folder.name}{_REPLACED}{os.getpid()}-{secrets.token_hex(4)}")
    # a folder with content cannot be replaced by one rename, so the old one moves away first
    if folder.exists():
        with suppress(OSError):
            _lock(folder, locks)
        folder.rename(old)
    try:
        aside.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    # only after the new folder is in place; readers with open files keep the old ones
    shutil.rmtree(old, ignore_errors=True)


def check_file(folder: Path, name: str, expected: FileEntry | None) -> None:
    """Check that a file exists and has the expected size and checksum.

    Parameters
    ----------
    folder : Path
        Folder of the bundle.
    name : str
        Name of the file in the folder.
    expected : FileEntry | None
        Size in bytes and SHA-256; None: the description does not list the file.

    Raises
    ------
    ArtifactError
        The file is missing, is not listed, or differs.
    """  # noqa: DOC501
    path = folder / name
    if expected is None or not path.is_file():
        raise damaged(folder, f"{name} is missing")
    # the size first: it is cheap, and names a cut-off copy better than a checksum
    if path.stat().st_size != expected.size:
        raise damaged(folder, f"{name} has {path.stat().st_size} bytes, expected {expected.size}")
    if entry_of(path).sha256 != expected.sha256:
        raise damaged(folder, f"{name} is not the file that was written (SHA-256 differs)")


def check_description(folder: str | Path, sha256: str | None) -> None:
    """Check that ``bundle.json``, which has the checksums of all files, is unchanged.

    ``sha256`` is its expected checksum; None skips the check.

    Raises
    ------
    ArtifactError
        The file is missing, or its checksum differs.
    """  # noqa: DOC501
    path = Path(folder) / DESCRIPTION
    if sha256 is not None and (not path.is_file() or entry_of(path).sha256 != sha256):
        raise damaged(
            Path(folder), f"{DESCRIPTION} is not the one that was registered with this model"
        )


def damaged(folder: Path, why: str) -> ArtifactError:
    """The error for a bundle that is not as it was written."""
    return ArtifactError(
        f"the model bundle {folder} is damaged: {why}; pull or register the model again"
    )


def describe_error(error: BaseException) -> str:
    """The type and message of an exception on one line, cut to 300 characters."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}{'…' if len(text) > 300 else ''}"


def entry_of(path: Path) -> FileEntry:
    """Size and checksum of a file, for a later check."""
    with path.open("rb") as stream:
        return FileEntry(
            size=path.stat().st_size, sha256=hashlib.file_digest(stream, "sha256").hexdigest()
        )
