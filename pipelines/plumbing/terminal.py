"""Safe output to a terminal: any text on any terminal, without control characters from the data.

Why: an id or a file name may contain ``ESC[2J``, which clears the screen, or worse. And an item
called "Café" must not cause a traceback on an ASCII terminal.
"""

from __future__ import annotations

import os
import re
import select
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, TextIO

_CONTROL: Final = re.compile(
    r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    r"""The text without secrets, and with control characters as escapes; line breaks stay.

    Also escaped: characters that change the direction of text, and lone surrogates, which no
    terminal can show.

    >>> printable("a\x1b[2Jb\nc\td")
    'a\\x1b[2Jb\nc\\td'
    """
    # here, because a command that only prints its usage needs no redact
    from recsys.config import redact

    return _CONTROL.sub(
        lambda found: found.group().encode("unicode_escape").decode("ascii"), redact(text)
    )


def show_any_text() -> None:
    """Let stdout and stderr write unencodable characters as escapes instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure: Any = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            with suppress(Exception):  # another program may have replaced the stream
                reconfigure(errors="backslashreplace")


@contextmanager
def printable_warnings() -> Iterator[None]:
    """Print our own warnings as one line, those of libraries unchanged; both without control
    characters.
    """
    before = warnings.formatwarning

    def shown(
        message: Any, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if category is UserWarning and "site-packages" not in filename:
            return f"recsys: warning: {printable(str(message))}\n"
        return printable(before(message, category, filename, lineno, line))

    warnings.formatwarning = shown
    try:
        yield
    finally:
        warnings.formatwarning = before


def has_reader(stream: TextIO) -> bool:
    """Whether a pipe still has a reader; true for streams that are not a pipe."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (OSError, ValueError, AttributeError):
        return True


def close_output() -> None:
    """Discard buffered output, so that Python does not fail to flush it at exit."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
