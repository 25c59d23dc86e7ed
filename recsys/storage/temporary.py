"""Temporary folders that are deleted when the process ends, or, if it was killed, by a later one.

Each has a file that its process keeps locked. The system releases the lock however the process
ends. So a free lock means that nobody uses the folder, even if another process has the process id
by now, or a container with other process ids shares the place.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Final, TextIO

_PREFIX: Final = "multigrain-"
_OWNER: Final = ".owner"  # the locked file
_FILES: Final = "files"  # the folder that callers get, without the locked file
_held: dict[Path, TextIO] = {}  # an open file keeps its lock


def temporary_folder() -> Path:
    """A new empty folder, of this user only, that is deleted when the process ends."""
    _remove_abandoned(tempfile.gettempdir())
    _remove_at_exit()
    outer = Path(tempfile.mkdtemp(prefix=_PREFIX))
    _held[outer] = file = (outer / f"{_OWNER}.new").open("w", encoding="utf-8")
    with suppress(OSError):  # no locks here: then no other process may delete the folder
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # only now, so that no other process sees the file before it is locked
        (outer / f"{_OWNER}.new").rename(outer / _OWNER)
    (outer / _FILES).mkdir(mode=0o700)
    return outer / _FILES


@contextmanager
def temporary() -> Iterator[str]:
    """A new empty folder for the block, as ``tempfile.TemporaryDirectory``.

    Yields
    ------
    str
        Its path.
    """
    folder = temporary_folder()
    try:
        yield str(folder)
    finally:
        _remove(folder.parent)


def keep(path: Path) -> bool:
    """Keep the temporary folder that has this path; whether there is one."""
    for outer in [outer for outer in _held if outer in path.parents]:
        (outer / _OWNER).unlink(missing_ok=True)
        _held.pop(outer).close()
        return True
    return False


@cache  # once for each place
def _remove_abandoned(place: str) -> None:
    """Delete the folders of processes that were killed."""
    for outer in Path(place).glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if outer in _held or outer.lstat().st_uid != os.getuid():
                continue
            with (outer / _OWNER).open("r+", encoding="utf-8") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while the process lives
                shutil.rmtree(outer, ignore_errors=True)


@cache  # once
def _remove_at_exit() -> None:
    atexit.register(_remove_all)


def _remove_all() -> None:
    for outer in [*_held]:
        _remove(outer)


def _remove(outer: Path) -> None:
    shutil.rmtree(outer, ignore_errors=True)
    if (file := _held.pop(outer, None)) is not None:
        file.close()
