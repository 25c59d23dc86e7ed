"""The errors that a process of the server logs, kept until the command takes and prints them.

Why: the processes of Ray write into Ray's own folder, which is removed with it, and the log of
``recsys serve`` is what it prints.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import Final

MOST: Final = 20  # errors that are kept; with more, the oldest are lost


class ErrorLines(logging.Handler):
    """Keeps the last errors of the package's loggers in this process, with their tracebacks."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._kept: deque[str] = deque(maxlen=MOST)
        logging.getLogger("recsys").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        self._kept.append(self.format(record))

    def take(self) -> list[str]:
        """The errors since the last call."""
        return drained(self._kept)


def drained(kept: deque[str]) -> list[str]:
    """The lines, which are then no longer kept; other threads may add lines meanwhile."""
    return [kept.popleft() for _ in range(len(kept))]
