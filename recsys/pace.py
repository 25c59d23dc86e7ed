"""Progress of long work, and deadlines: a line at most every ten seconds, or counts for a bar.

Why a context variable and not an argument: rankings, encodings and fits run many calls below the
command that prints progress, and most callers have nothing to print to. A command, or a training
worker, sets the function that prints for the time of a stage (:func:`reporting_to`); without one,
nothing is printed. A line is never changed later, so that it is also right in a log file. A command
in a terminal also takes the counts, and draws bars; this module draws nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, TypeVar

EVERY_S: Final = 10.0
COUNT_EVERY_S: Final = 0.3

T = TypeVar("T")


@dataclass(frozen=True)
class Count:
    """How much of some work is finished.

    Parameters
    ----------
    what : str
        Name of the work; a later count of the same name replaces this one.
    done, total : int
        Number of finished steps, and of all steps; ``total`` 0: unknown.
    share : float
        Finished share of the work, from 0 to 1; steps may differ in cost.
    left_s : float
        Estimate of the remaining seconds; NaN: unknown.
    note : str
        Measured values, such as a loss.
    line : str
        The count as a line for a log; empty if the log needs none.
    ended : bool
        Whether the work is over, finished or not.
    """

    what: str
    done: int
    total: int = 0
    share: float = 0.0
    left_s: float = math.nan
    note: str = ""
    line: str = ""
    ended: bool = False


_voice: ContextVar[Callable[[str], None] | None] = ContextVar("voice", default=None)
_bar: ContextVar[Callable[[Count], None] | None] = ContextVar("bar", default=None)


@contextmanager
def reporting_to(
    say: Callable[[str], None], show: Callable[[Count], None] | None = None
) -> Iterator[None]:
    """Report the progress of long work inside the block.

    Parameters
    ----------
    say : Callable[[str], None]
        Receives lines.
    show : Callable[[Count], None] | None
        Receives counts several times a second; then ``say`` receives no lines of counts, as
        :attr:`Count.line` has them.
    """
    voice_token, bar_token = _voice.set(say), _bar.set(show)
    try:
        yield
    finally:
        _voice.reset(voice_token)
        _bar.reset(bar_token)


def shown_by() -> Callable[[Count], None] | None:
    """The function that receives counts, for work that another thread or process reports."""
    return _bar.get()


@dataclass(frozen=True)
class Deadline:
    """The time when work should end; by default never.

    Work that can stop early obeys it: it measures how long a step takes, and starts no step that
    would not fit. The clock is monotonic, because the wall clock may be set to another time. Other
    machines have other monotonic clocks, so a deadline is sent as the seconds that are left; the
    wall clock measures only how long it was on the way.
    """

    at: float = math.inf
    clock: Callable[[], float] = time.monotonic

    @property
    def left(self) -> float:
        """Seconds until the deadline; negative after it.

        >>> Deadline(10.0, lambda: 4.0).left, Deadline().left
        (6.0, inf)
        """
        return self.at - self.clock()

    def to_send(self) -> tuple[float, float]:
        """Seconds that are left, and the wall clock, for :meth:`received` in another process."""
        return self.left, time.time()

    @classmethod
    def received(cls, left: float, sent: float) -> Deadline:
        """The deadline on the clock of this process, from what :meth:`to_send` returned."""
        return cls(time.monotonic() + left - max(time.time() - sent, 0.0))

    def __reduce__(self) -> tuple[Any, ...]:
        return Deadline.received, self.to_send()


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
        self._done, self._worked, self._ended = 0, 0.0, False
        self._started = self._said = self._shown = clock()
        self._show("")

    def __enter__(self) -> Pace:
        return self

    def __exit__(self, *error: Any) -> None:
        """The work is over, finished or not."""
        self.end()

    def add(self, number: int = 1, work: float | None = None) -> None:
        """Count ``number`` more finished steps, of the cost ``work``."""
        self._done += number
        self._worked += number if work is None else work
        now, show = self._clock(), _bar.get()
        if self._done >= self.total > 0:
            self.end()
            return
        is_due = now - self._said >= EVERY_S
        if is_due:
            self._said = now
        if show is not None and (is_due or now - self._shown >= COUNT_EVERY_S):
            self._shown = now
            self._show(self._line(now) if is_due else "", self._left(now))
        elif show is None and is_due:
            tell(self._line(now))

    def end(self) -> None:
        """The work is over. Needed only if its number of steps is unknown or it may stop early."""
        if not self._ended:
            self._ended = True
            self._show("")

    def _show(self, line: str, left_s: float = math.nan) -> None:
        show = _bar.get()
        if show is not None:
            show(
                Count(
                    self.what,
                    self._done,
                    self.total,
                    self._share(),
                    left_s,
                    line=line,
                    ended=self._ended,
                )
            )

    def _share(self) -> float:
        return min(self._worked / max(self.work, 1e-9), 1.0) if self.total else 0.0

    def _left(self, now: float) -> float:
        if not self.total:
            return math.nan
        return (now - self._started) * (self.work - self._worked) / max(self._worked, 1e-9)

    def _line(self, now: float) -> str:
        if not self.total:
            return f"{self.what}: {self._done:,} so far"
        return (
            f"{self.what}: {self._done:,} of {self.total:,} ({100 * self._share():.0f} %), about"
            f" {duration(self._left(now))} left"
        )


def tell(line: str) -> None:
    """Report the start of long work whose steps cannot be counted."""
    say = _voice.get()
    if say is not None:
        say(line)


def with_progress(what: str, things: Iterable[T], total: int = 0) -> Iterator[T]:
    """Iterate over ``things`` and report progress; a thing is finished when the next one is
    requested.

    Parameters
    ----------
    what : str
        What is done, for the progress line.
    things : Iterable[T]
        The things to iterate over.
    total : int
        Their number; 0: take it from ``things`` if it has a length.

    Yields
    ------
    T
        Each thing.
    """
    with Pace(what, total or (len(things) if isinstance(things, Sized) else 0)) as pace:
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
