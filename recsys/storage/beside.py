"""Atomic writes: a file is written under a temporary name and then renamed, with the mode of the
umask; an append is written as a whole or not at all.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_ASIDE: Final = re.compile(r"\..+\.\d+-[0-9a-f]{8}")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a new, empty file in the folder of ``path``, and rename it to ``path`` if the block
    succeeds.

    Why not ``tempfile.mkstemp``: only the owner can read its files, and a mode that is set
    afterwards does not follow the umask.

    Yields
    ------
    Path
        The new file.

    Raises
    ------
    OSError
        The file cannot be created or renamed.
    """
    # in the same folder, as a rename is atomic only within one filesystem; the random part keeps
    # two threads of a process apart; remove_abandoned knows this form
    aside = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    aside.touch(mode=0o666, exist_ok=False)
    try:
        yield aside
        # the content before the name: after a power failure the file must not be there but empty
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    # also for KeyboardInterrupt: no half-written file may stay
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def append_whole(path: Path, content: bytes) -> None:
    """Append to a file to which nobody else writes now; on failure it keeps its former content.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    with path.open("ab") as file:
        append_to(file.fileno(), content)


def append_to(handle: int, content: bytes) -> None:
    """As :func:`append_whole`, to a file that is open for appending.

    Why: on a full disk the first bytes of a line may fit. The next line would continue this cut
    line, and no reader could parse it.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    size = os.fstat(handle).st_size
    try:
        while content:
            content = content[os.write(handle, content) :]
    except BaseException:
        os.ftruncate(handle, size)
        raise


def remove_abandoned(folder: Path) -> None:
    """Delete the temporary files of killed writers in a folder to which nobody else writes now."""
    for path in folder.glob(".*.*-*"):
        if _ASIDE.fullmatch(path.name):
            path.unlink(missing_ok=True)
