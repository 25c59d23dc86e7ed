"""Folders that are written whole or not at all, and files that are known by their checksum."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pydantic import BaseModel

from recsys.errors import ArtifactError
from recsys.storage.places import reaching

DESCRIPTION: Final = "bundle.json"


class FileEntry(BaseModel):
    """What a file must be to be trusted."""

    size: int
    sha256: str


@contextmanager
def writing_aside(folder: str | Path, mark: str) -> Iterator[Path]:
    """A folder to write a bundle to, which takes the place of ``folder`` when the block ends well.

    ``mark`` is the file (or pattern) by which a folder that may be replaced is known.

    Raises
    ------
    ArtifactError
        ``folder`` holds something that is not a bundle and would be lost.
    StorageError
        the disk is full.
    """
    folder = Path(folder).absolute()
    if folder.exists() and not (folder.is_dir() and (any(folder.glob(mark)) or not any(folder.iterdir()))):
        raise ArtifactError(
            f"{folder} exists and is not a bundle; it would be lost: give another folder or move it away"
        )
    aside = folder.with_name(f".{folder.name}.writing-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        with reaching(str(folder), "write to"):
            aside.mkdir(parents=True)
            yield aside
            _replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _replace(aside: Path, folder: Path) -> None:
    old = folder.with_name(f".{folder.name}.replaced-{os.getpid()}")
    if folder.exists():
        folder.rename(old)
    aside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def check_file(folder: Path, name: str, expected: FileEntry | None) -> None:
    """Raise :class:`ArtifactError` unless the file is the one that was written."""
    path = folder / name
    if expected is None or not path.is_file():
        raise damaged(folder, f"{name} is missing")
    if path.stat().st_size != expected.size:
        raise damaged(folder, f"{name} has {path.stat().st_size} bytes, expected {expected.size}")
    if entry_of(path).sha256 != expected.sha256:
        raise damaged(folder, f"{name} is not the file that was written (SHA-256 differs)")


def check_description(folder: str | Path, sha256: str | None) -> None:
    """Raise :class:`ArtifactError` unless a bundle's description, which has all other checksums, is the expected one.

    ``sha256`` is None where nothing is known of it.
    """
    path = Path(folder) / DESCRIPTION
    if sha256 is not None and (not path.is_file() or entry_of(path).sha256 != sha256):
        raise damaged(Path(folder), f"{DESCRIPTION} is not the one that was registered with this model")


def damaged(folder: Path, why: str) -> ArtifactError:
    """The error of a bundle that is not as it was written."""
    return ArtifactError(f"the model bundle {folder} is damaged: {why}; pull or register the model again")


def said_by(error: BaseException) -> str:
    """What an exception says, on one line that is not too long."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}{'…' if len(text) > 300 else ''}"


def entry_of(path: Path) -> FileEntry:
    """What a file is, to be trusted later."""
    with path.open("rb") as stream:
        return FileEntry(size=path.stat().st_size, sha256=hashlib.file_digest(stream, "sha256").hexdigest())
