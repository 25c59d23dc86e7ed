"""Atomic writes: a file is written under a temporary name and then renamed, with the mode of the
umask.
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


def remove_abandoned(folder: Path) -> None:
    """Delete the temporary files of killed writers in a folder to which nobody else writes now."""
    for path in folder.glob(".*.*-*"):
        if _ASIDE.fullmatch(path.name):
            path.unlink(missing_ok=True)
