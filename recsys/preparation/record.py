"""What a preparation counts, times, notes and reports on the way to its manifest."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import pyarrow as pa

from recsys.preparation.quarantine import Quarantine

Progress = Callable[[str], None]


class Record:
    """Counts, notes, timing and unused rows of one preparation.

    Parameters
    ----------
    quarantine : Quarantine
        Takes the unused rows.
    progress : Progress
        Gets one line per step.
    """

    def __init__(self, quarantine: Quarantine, progress: Progress) -> None:
        self.quarantine = quarantine
        self.progress = progress
        self.counts: Counter[str] = Counter()
        self.timing: dict[str, float] = {}
        self.notes: list[str] = []

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measure the seconds of a step."""
        started = time.perf_counter()
        yield
        self.timing[name] = round(time.perf_counter() - started, 3)

    def note(self, note: str) -> None:
        """Report a note, and keep it for the manifest."""
        if note:
            self.notes.append(note)
            self.progress(f"note: {note}")

    def add_bad_rows(self, table: str, read: int, bad: Iterable[pa.Table]) -> None:
        """Put the bad rows of a table into the quarantine and report their number.

        Parameters
        ----------
        table : str
            Name of the table.
        read : int
            Number of rows that were read.
        bad : Iterable[pa.Table]
            The bad rows.

        Raises
        ------
        DataError
            Too many of the ``read`` rows are bad.
        """
        self.quarantine.start(table, read)
        for rows in bad:
            self.quarantine.add(table, rows)
        self.quarantine.check(table)
        self.progress(self.quarantine.describe(table))
