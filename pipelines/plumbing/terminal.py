"""What is written to a terminal: any text on any terminal, and no control characters of somebody's rows.

Why: an id or a file name may hold ``ESC[2J``, which clears the screen, or worse; and a terminal of ASCII must not turn
an item called "Café" into a traceback.
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

_CONTROL: Final = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""The text without secrets, and with its control characters as escapes; line breaks stay.

    Also escaped: characters that turn the direction of writing, and halves of surrogate pairs, which no terminal takes.

    >>> printable("a\x1b[2Jb\nc\td")
    'a\\x1b[2Jb\nc\\td'
    """
    from recsys.config import redact  # a command that only shows its usage does without

    return _CONTROL.sub(lambda found: found.group().encode("unicode_escape").decode("ascii"), redact(text))


def show_any_text() -> None:
    """Let both streams write what their encoding lacks as an escape, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure: Any = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            with suppress(Exception):  # a stream of somebody else's
                reconfigure(errors="backslashreplace")


@contextmanager
def printable_warnings() -> Iterator[None]:
    """Our own warnings as one line of the command, those of libraries as they are; both without control characters."""
    before = warnings.formatwarning

    def shown(message: Any, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
        if category is UserWarning and "site-packages" not in filename:
            return f"recsys: warning: {printable(str(message))}\n"
        return printable(before(message, category, filename, lineno, line))

    warnings.formatwarning = shown
    try:
        yield
    finally:
        warnings.formatwarning = before


def has_reader(stream: TextIO) -> bool:
    """Whether somebody can still read what the stream writes; true for streams that are no pipe."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (OSError, ValueError, AttributeError):
        return True


def close_output() -> None:
    """Send what is still buffered nowhere, so that Python's exit does not fail at it."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
