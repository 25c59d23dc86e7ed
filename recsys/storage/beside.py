"""Files that are written beside their place and renamed: whole or not at all, with the mode that the umask asks for."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def writing_beside(path: Path) -> Iterator[Path]:
    """A new, empty file beside ``path`` to write to, which takes its place when the block ends well.

    Why not ``tempfile.mkstemp``: its files are for their owner alone, and a mode that is set afterwards is not the one
    that the umask asks for.

    Raises
    ------
    OSError
        no file can be made there.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    aside.touch(mode=0o666, exist_ok=False)
    try:
        yield aside
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
