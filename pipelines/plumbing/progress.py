"""The one style of progress lines: elapsed time, stage, message; the same in a terminal and in a
log file. A terminal also shows bars (:mod:`pipelines.plumbing.bars`).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from pipelines.plumbing.bars import bars_of
from pipelines.plumbing.terminal import printable
from recsys.pace import Count, reporting_to


class Progress:
    """Writes ``MM:SS.s  stage  message`` to a stream and, when there is one, to a log file.

    A line has no escape codes and says something that stays true. Counts of running work are bars
    if the stream is a terminal; otherwise, and in the log file, they are lines, at most one every
    ten seconds.
    """

    def __init__(self, stream: TextIO | None, path: Path | None = None) -> None:
        self._stream, self._path, self._bars = stream, path, bars_of(stream)
        # of the command: elapsed time and run.budget count from here
        self.started = time.monotonic()
        self.budget = ""  # of the run, shown behind the elapsed time
        self._stage = ""
        self.has_lines = False  # whether anything was said

    def __call__(self, message: str) -> None:
        """Say something under the name of the current stage; a message of several lines keeps its
        indentation.
        """
        for line in self._headed(message):
            self._write(line)

    def counted(self, count: Count, stays: bool = False) -> None:
        """Show how much of some work is finished.

        Parameters
        ----------
        count : Count
            The count. Without bars, only its ``line`` is written.
        stays : bool
            Whether the newest line stays on the screen when the bar ends.
        """
        lines = self._headed(count.line) if count.line else []
        if self._bars is None:
            for line in lines:
                self._write(line)
            return
        for line in lines:
            self._log(printable(line))
        self._bars.count(count, printable("\n".join(lines)) if stays else "")

    @contextmanager
    def own_bars(self) -> Iterator[None]:
        """Remove the bars that were started in the block, however it ends."""
        before = set[str]() if self._bars is None else self._bars.names
        try:
            yield
        finally:
            if self._bars is not None:
                self._bars.end(self._bars.names - before)

    def plain(self, text: str) -> None:
        """Write text as it is: tables and closing words."""
        self._write(text)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Name the lines of a stage and say how long it took."""
        outer, self._stage = self._stage, name
        started = time.monotonic()
        try:
            show = None if self._bars is None else self.counted
            with self.own_bars(), reporting_to(self, show):
                yield
            self(f"done in {time.monotonic() - started:.1f} s")
        finally:
            self._stage = outer

    def _write(self, text: str) -> None:
        self.has_lines = True
        text = printable(text)
        if self._bars is not None:
            self._bars.write(text)
        elif self._stream is not None:
            print(text, file=self._stream, flush=True)
        self._log(text)

    def _headed(self, message: str) -> list[str]:
        """The lines of a message, each with elapsed time and stage."""
        of = f"/{self.budget}" if self.budget else ""
        head = f"{elapsed(time.monotonic() - self.started)}{of}  {self._stage:<9} "
        return [f"{head} {line}".rstrip() for line in str(message).splitlines() or [""]]

    def _log(self, text: str) -> None:
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


def say_starting(verb: str, loads: str = "libraries") -> None:
    """Say that a command starts, before imports that take seconds.

    On stderr, because the first line of a log, and of some verbs the output, is on stdout.
    """
    words = f"starting; loading {loads} takes up to a minute on a busy machine"
    print(f"{elapsed(0)}  {verb:<9}  {words}", file=sys.stderr, flush=True)


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
