"""Which files of the packages go into a job package, and which are left out, with the reason.

Why: everyone on the cluster can read what is sent. A key, a ``.env`` file or a link to something
outside is not part of the program, even if it is in a package's folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

_SNIFFED: Final = 64 << 10  # bytes at the start of a file that are searched for a private key
_KEY: Final = re.compile(rb"-----BEGIN [A-Z ]{0,40}PRIVATE KEY")
_COMPILED: Final = ("__pycache__", "*.pyc")  # left out without a note
# By name, of files and folders, in lower case.
_LEFT: Final = {
    ".*": "hidden",
    "*.env": "secrets of an environment",
    "*.pem": "a key",
    "*.key": "a key",
    "*.p12": "a key",
    "*.pfx": "a key",
    "*.jks": "a key",
    "*.keystore": "a key",
    "*.ppk": "a key",
    "*.kdbx": "a key",
    "id_rsa*": "a key",
    "id_dsa*": "a key",
    "id_ecdsa*": "a key",
    "id_ed25519*": "a key",
    "_netrc": "credentials",
    "credentials*": "credentials",
    "secrets": "credentials",
    "secrets.*": "credentials",
    "service[-_]account*.json": "credentials",
    "*.tfstate*": "credentials",
    "*.db": "a database",
    "*.db-*": "a database",
    "*.sqlite*": "a database",
    "mlruns": "runs",
    "mlartifacts": "runs",
    "runs": "runs",
    "wandb": "runs",
    "node_modules": "not our code",
    "*.egg-info": "not our code",
}


@dataclass(frozen=True)
class Sent:
    """A file that is sent."""

    source: Path
    target: str  # its path in the job package
    size: int


@dataclass(frozen=True)
class Left:
    """A file or folder that is left out, and why."""

    target: str
    why: str


def package_files(home: Path) -> tuple[list[Sent], list[Left]]:
    """The files of a package's folder in order: those to send, and those left out."""
    sent: list[Sent] = []
    left: list[Left] = []
    root = home.resolve()
    for path in _walk(home, root, left):
        target = f"{home.name}/{path.relative_to(home).as_posix()}"
        why = _why_not(path, root)
        if why:
            left.append(Left(target, why))
        elif not _is_compiled(path):
            sent.append(Sent(path, target, path.stat().st_size))
    return sent, left


def _walk(home: Path, root: Path, left: list[Left]) -> Iterator[Path]:
    """Yield everything in a folder except left-out folders, which are noted; links to folders are
    not followed.

    Yields
    ------
    Path
        A file, in sorted order.
    """
    for directory, folders, files in os.walk(home):
        for name in sorted(folders):
            path = Path(directory) / name
            why = _why_not(path, root)
            if why or _is_compiled(path):
                # ``os.walk`` goes into the folders that stay in this list
                folders.remove(name)
            if why:
                left.append(Left(f"{home.name}/{path.relative_to(home).as_posix()}/", why))
        folders.sort()
        yield from (Path(directory) / name for name in sorted(files))


def _why_not(path: Path, root: Path) -> str:
    """The reason to leave out a file or folder; empty if there is none."""
    name = path.name.lower()
    for pattern, why in _LEFT.items():
        if fnmatchcase(name, pattern):
            return why
    if path.is_symlink():
        # the target decides what would be sent, not the name of the link
        target = Path(os.path.realpath(path))
        if path.is_dir():
            return "a link to a folder"
        if not target.is_relative_to(root):
            return f"a link out of the package, to {target}"
        inside = _why_not(target, root)
        if inside:
            return f"a link to a left-out file: {inside}"
    if path.is_dir():
        return ""
    if not path.is_file():
        return "not a regular file"
    try:
        with path.open("rb") as stream:
            # by content, because a key may have any name
            return "a private key" if _KEY.search(stream.read(_SNIFFED)) else ""
    except OSError as error:
        return f"it cannot be read ({error.strerror})"


def _is_compiled(path: Path) -> bool:
    return any(fnmatchcase(path.name, pattern) for pattern in _COMPILED)
