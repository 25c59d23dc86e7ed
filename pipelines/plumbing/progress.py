"""The one style of progress lines: elapsed time, stage, message; the same in a terminal and in a
log file.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from pipelines.plumbing.terminal import printable
from recsys.pace import reporting_to


class Progress:
    """Writes ``MM:SS.s  stage  message`` to a stream and, when there is one, to a log file.

    No progress bars and no escape codes: a line says something that stays true.
    """

    def __init__(self, stream: TextIO | None, path: Path | None = None) -> None:
        self._stream, self._path = stream, path
        self.started = (
            time.monotonic()
        )  # of the command: elapsed time and run.budget count from here
        self.budget = ""  # of the run, shown behind the elapsed time
        self._stage = ""

    def __call__(self, message: str) -> None:
        """Say something under the name of the current stage; a message of several lines keeps its
        indentation.
        """
        of = f"/{self.budget}" if self.budget else ""
        head = f"{elapsed(time.monotonic() - self.started)}{of}  {self._stage:<9} "
        for line in str(message).splitlines() or [""]:
            self._write(f"{head} {line}".rstrip())

    def plain(self, text: str) -> None:
        """Write text as it is: tables and closing words."""
        self._write(text)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Name the lines of a stage and say how long it took."""
        outer, self._stage = self._stage, name
        started = time.monotonic()
        try:
            with reporting_to(self):
                yield
            self(f"done in {time.monotonic() - started:.1f} s")
        finally:
            self._stage = outer

    def _write(self, text: str) -> None:
        text = printable(text)
        if self._stream is not None:
            print(text, file=self._stream, flush=True)
        if self._path is not None:
            try:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(text + "\n")
            except OSError as error:  # a full disk says not where
                raise OSError(error.errno, error.strerror, str(self._path)) from None


def elapsed(seconds: float) -> str:
    """A duration that lines up.

    >>> elapsed(65.25), elapsed(3723)
    ('01:05.2', '1:02:03')
    """
    minutes, rest = divmod(seconds, 60)
    if minutes < 60:
        return f"{int(minutes):02d}:{int(rest * 10) / 10:04.1f}"
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02d}:{int(rest):02d}"


def table(rows: list[list[str]]) -> str:
    """Rows as aligned columns, the first to the left and the others to the right.

    >>> print(table([["", "recall@20"], ["model", "0.2"]]))
           recall@20
    model        0.2
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
