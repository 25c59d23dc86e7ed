"""How far long work is: a line at most every ten seconds, and none for what takes less; and when it should be over.

Why a voice for a whole stage and not an argument: rankings, encodings and fits lie many calls below the command that
has the progress lines, and most callers have nobody to talk to. The command lends its voice for the time of a stage
(:func:`heard_by`); a worker of a training that of its notes; where nobody listens, nothing is said. Lines are plain and
stay true, so that they look right in a log file.
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
def heard_by(say: Callable[[str], None]) -> Iterator[None]:
    """Inside the block, long work is told to ``say``."""
    token = _voice.set(say)
    try:
        yield
    finally:
        _voice.reset(token)


@dataclass(frozen=True)
class Deadline:
    """When a work should be over, by a clock that the processes of a machine share; without one, never.

    It is kept by those who can end with what they have: they measure what a piece of the work takes, and begin no
    further one that would not fit.
    """

    at: float = math.inf
    clock: Callable[[], float] = time.time

    @property
    def left(self) -> float:
        """Seconds; negative behind it.

        >>> Deadline(10.0, lambda: 4.0).left, Deadline().left
        (6.0, inf)
        """
        return self.at - self.clock()


class Pace:
    """Counts what is done of a work, and says it now and then.

    ``total`` is the number of things, 0 where nobody knows it. Where they cost differently, ``work`` is what all of
    them cost, in any unit, and :meth:`add` is told the cost of what was done: the time that is left is counted in that.
    """

    def __init__(self, what: str, total: int, work: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.what, self.total, self.work, self._clock = what, total, work or float(total), clock
        self._done, self._worked = 0, 0.0
        self._started = self._said = clock()

    def add(self, number: int = 1, work: float | None = None) -> None:
        """So many more are done."""
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
        say(f"{self.what}: {self._done:,} of {self.total:,} ({share:.0f} %), about {duration(left)} left")


def tell(line: str) -> None:
    """Say that something long begins of which nobody can count what is done."""
    say = _voice.get()
    if say is not None:
        say(line)


def paced(what: str, things: Iterable[T], total: int = 0) -> Iterator[T]:
    """The things in turn, said how far; a thing counts as done when the next one is asked for."""
    pace = Pace(what, total or (len(things) if isinstance(things, Sized) else 0))
    for thing in things:
        yield thing
        pace.add()


def duration(seconds: float) -> str:
    """A time that is left, roughly.

    >>> [duration(seconds) for seconds in (3, 44, 100, 5400)]
    ['5 s', '45 s', '2 min', '1.5 h']
    """
    if seconds < 60:
        return f"{max(5, 5 * round(seconds / 5))} s"
    return f"{round(seconds / 60)} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
