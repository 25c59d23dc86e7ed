"""``recsys init FILE…``: inspect data files and write a configuration for ``recsys run``.

It asks no questions and changes no data file. Alternatives are commented lines of the
configuration.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipelines.plumbing.arguments import UsageError
from pipelines.plumbing.progress import say_starting
from pipelines.plumbing.session import quiet
from pipelines.stages import VERBS
from recsys.errors import ConfigError
from recsys.storage.uris import is_remote

DEFAULT: Final = "recsys.yaml"


@dataclass(frozen=True)
class Wanted:
    """The words after ``init``, parsed."""

    files: tuple[str, ...]
    out: str
    force: bool


def command(words: Sequence[str]) -> int:
    """Run ``init`` with the words after it; return the exit code.

    Raises
    ------
    ConfigError
        ``--out`` is not a local file.
    """
    wanted = parse(words)
    out = Path(wanted.out).expanduser()
    if is_remote(wanted.out):
        raise ConfigError(f"--out {wanted.out} must be a local file")
    _check_free(out, wanted.force)
    say_starting("init")
    quiet()
    from recsys.inspect.look import look
    from recsys.inspect.terminal_summary import summary_of

    name = "" if wanted.out == DEFAULT else plain_name(out.stem)
    found = look(wanted.files, name)
    print(summary_of(found.found))
    write_draft(out, found.draft.text())
    print(f"\nwritten    {out}: comments give the reasons and the alternatives")
    print(f"next       recsys run --config {wanted.out} --budget 20m")
    sys.stdout.flush()
    return 0


def parse(words: Sequence[str]) -> Wanted:
    """Split the words.

    Raises
    ------
    UsageError
        An option is unknown, or its value is missing.

    Examples
    --------
    >>> parse(["a.csv", "--out", "mine.yaml", "b.csv"])
    Wanted(files=('a.csv', 'b.csv'), out='mine.yaml', force=False)
    """
    files: list[str] = []
    out, force, rest = DEFAULT, False, list(words)
    while rest:
        word = rest.pop(0)
        if word == "--force":
            force = True
        elif word == "--out" or word.startswith("--out="):
            out = word.partition("=")[2] if "=" in word else rest.pop(0) if rest else ""
            if not out or out.startswith("--"):
                raise UsageError("--out needs a value: --out mine.yaml")
        elif word == "--":
            files += rest
            rest = []
        elif word.startswith("--"):
            raise UsageError(f"unknown option {word!r}; usage: {VERBS['init'].usage}")
        else:
            files.append(word)
    if not files:
        raise UsageError(
            "no file is given; give the files, folders or globs of your data. Usage:"
            f" {VERBS['init'].usage}"
        )
    return Wanted(tuple(files), out, force)


def plain_name(stem: str) -> str:
    """A name that is valid for run folders and in MLflow.

    >>> plain_name("my shop (new)")
    'my-shop-new'
    """
    words = "".join(
        character if character.isalnum() or character in "._" else " " for character in stem
    ).split()
    return "-".join(words) or "mine"


def _check_free(out: Path, force: bool) -> None:
    if out.is_dir():
        raise ConfigError(f"--out {out} is a folder; expected a file such as {out / DEFAULT}")
    if out.exists() and not force:
        raise ConfigError(
            f"{out} exists and was not changed; choose another --out, or replace it with --force"
        )
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: the folder {out.parent} does not exist")


def write_draft(out: Path, text: str) -> None:
    """Write a configuration file atomically.

    Raises
    ------
    ConfigError
        The file cannot be written.
    """
    from recsys.storage.beside import atomic_write

    try:
        with atomic_write(out) as aside:
            aside.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error}; choose another --out") from None
