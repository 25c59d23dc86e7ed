"""Progress lines of long work, at most one every ten seconds, and deadlines.

Why a context variable and not an argument: rankings, encodings and fits run many calls below the
command that prints progress, and most callers have nothing to print to. A command, or a training
worker, sets the function that prints for the time of a stage (:func:`reporting_to`); without one,
nothing is printed. A line is never changed later, so that it is also right in a log file.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final, TypeVar

EVERY_S: Final = 10.0

T = TypeVar("T")
_voice: ContextVar[Callable[[str], None] | None] = ContextVar("voice", default=None)


@contextmanager
def reporting_to(say: Callable[[str], None]) -> Iterator[None]:
    """Report the progress of long work to ``say`` inside the block."""
    token = _voice.set(say)
    try:
        yield
    finally:
        _voice.reset(token)


@dataclass(frozen=True)
class Deadline:
    """The time when work should end, on a clock that all processes of a machine share; by default
    never.

    Work that can stop early obeys it: it measures how long a step takes, and starts no step that
    would not fit.
    """

    at: float = math.inf
    clock: Callable[[], float] = time.time

    @property
    def left(self) -> float:
        """Seconds until the deadline; negative after it.

        >>> Deadline(10.0, lambda: 4.0).left, Deadline().left
        (6.0, inf)
        """
        return self.at - self.clock()


class Pace:
    """Count finished steps of long work and report them from time to time.

    Parameters
    ----------
    what : str
        Name of the work in the progress lines.
    total : int
        Number of steps; 0: unknown.
    work : float
        Cost of all steps in any unit, if steps differ in cost; :meth:`add` then gets the cost of
        the finished steps, and the remaining time is estimated from these costs.
    clock : Callable[[], float]
        Time in seconds.
    """

    def __init__(
        self, what: str, total: int, work: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.what, self.total, self.work, self._clock = what, total, work or float(total), clock
        self._done, self._worked = 0, 0.0
        self._started = self._said = clock()

    def add(self, number: int = 1, work: float | None = None) -> None:
        """Count ``number`` more finished steps, of the cost ``work``."""
        self._done += number
        self._worked += number if work is None else work
        now, say = self._clock(), _voice.get()
        if say is None or now - self._said < EVERY_S or self._done >= self.total > 0:
            return
        self._said = now
        if not self.total:
            say(f"{self.what}: {self._done:,} so far")
            return
        left = (now - self._started) * (self.work - self._worked) / max(self._worked, 1e-9)
        share = 100 * min(self._worked / max(self.work, 1e-9), 1.0)
        say(
            f"{self.what}: {self._done:,} of {self.total:,} ({share:.0f} %), about {duration(left)}"
            " left"
        )


def tell(line: str) -> None:
    """Report the start of long work whose steps cannot be counted."""
    say = _voice.get()
    if say is not None:
        say(line)


def with_progress(what: str, things: Iterable[T], total: int = 0) -> Iterator[T]:
    """Iterate over ``things`` and report progress; a thing is finished when the next one is
    requested.
    """
    pace = Pace(what, total or (len(things) if isinstance(things, Sized) else 0))
    for thing in things:
        yield thing
        pace.add()


def duration(seconds: float) -> str:
    """A remaining time as a short, rounded text.

    >>> [duration(seconds) for seconds in (3, 44, 100, 5400)]
    ['5 s', '45 s', '2 min', '1.5 h']
    """
    if seconds < 60:
        return f"{max(5, 5 * round(seconds / 5))} s"
    return f"{round(seconds / 60)} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
