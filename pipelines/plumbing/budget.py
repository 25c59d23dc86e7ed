"""The time of a whole run: what it was spent on, and what each part may still take, so that the end is kept.

Why parts and not one deadline: a model that is trained to the last second is never evaluated. What is behind a part is
foreseen by what was measured before it on this machine at this hour: an epoch of a trial tells what the trainings cost,
the fits of the members tell what they cost again on all events. A part that is late leaves less to those behind it,
which then do less: fewer epochs, no refit, fewer members, a final training that only goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from recsys.pace import Deadline

RESERVE: Final = 0.35  # share of the time behind the search for members, stacking, evaluation and registration
LEAST_RESERVE: Final = 20.0  # seconds of them
_LEAST: Final = 0.05  # of the budget, which the training may take however late it is …
_LEAST_MEMBERS: Final = 0.15  # … and the choice of the members' constants, without which there is no model
_MEMBERS: Final = 0.5  # of the time behind the training; they are fitted again, scored and evaluated in the rest
_GOES_ON: Final = 5  # at most one of so many epochs is trained on top of evaluated weights
_OVER: Final = 0.1  # of the budget, by which the training on all events may be late


class Budget:
    """Counts from the start of the command.

    Parameters
    ----------
    text
        as it was asked for, such as ``20m``.
    seconds
        the same.
    started
        on the clock.
    clock
        in seconds; another one in tests.
    """

    def __init__(self, text: str, seconds: float, started: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.text, self.seconds, self.started, self._clock = text, seconds, started, clock
        self.spent: dict[str, float] = {}  # seconds by part, in order
        self.expected: dict[str, float] = {}  # seconds of the trainings that were planned, by name
        self.start_s = 0.0  # that the workers of a training take to start
        self.fit_s = 0.0  # that the members take to be fitted once
        self._part, self._since = "start", started

    @property
    def used(self) -> float:
        """Seconds."""
        return self._clock() - self.started

    @property
    def left(self) -> float:
        """Seconds; negative behind the end."""
        return self.seconds - self.used

    def turn_to(self, part: str) -> None:
        """What is done from now on."""
        now = self._clock()
        self.spent[self._part] = self.spent.get(self._part, 0.0) + now - self._since
        self._part, self._since = part, now

    def deadline(self, seconds: float) -> Deadline:
        """So many seconds from now, by a clock that other processes share."""
        return Deadline(time.time() + seconds)

    def training_s(self, name: str = "") -> float:
        """What the choosing training may take, its refit with it; with a ``name`` that of a model apart."""
        kept = max(LEAST_RESERVE, RESERVE * self.left) + self.expected.get("final", 0.0) + self.start_s
        return max(self.left - kept, 0.0 if name else _LEAST * self.seconds)

    def holds(self, name: str, slower: float = 1.0) -> bool:
        """Whether a planned training fits that now takes ``slower`` times what was foreseen."""
        return self.training_s(name) >= self.expected.get(name, 0.0) * slower

    def members_s(self) -> float:
        """What the choice of the members' constants may take."""
        behind = self.left - self.expected.get("final", 0.0) - self.start_s
        return max(_MEMBERS * behind, _LEAST_MEMBERS * self.seconds)

    def final_epochs(self, wanted: int, pace: float) -> int | None:
        """Epochs of the training on all events: None, all of them anew; else so many more from the evaluated weights.

        Parameters
        ----------
        wanted : int
            epochs anew.
        pace : float
            seconds of one.
        """
        room = self.final_s() - self.start_s
        if wanted * pace <= room:
            return None
        return max(0, min(int(room / max(pace, 1e-9)), wanted // _GOES_ON))

    def final_s(self) -> float:
        """What the training on all events may take; the fits of the members on all events come behind it."""
        return self.left - self.fit_s + _OVER * self.seconds

    def said(self) -> str:
        """What was asked for, what was used, and by what.

        >>> ticks = iter([5.0, 65.0, 215.0, 215.0])
        >>> budget = Budget("4m", 240.0, 0.0, lambda: next(ticks))
        >>> budget.turn_to("prepare"); budget.turn_to("training")
        >>> budget.said()
        '4m, used 3.6 min (90 %): training 2.5 min, prepare 60 s, start 5 s'
        """
        self.turn_to(self._part)
        used = self.used
        parts = sorted(self.spent.items(), key=lambda part: -part[1])
        words = ", ".join(f"{part} {span(seconds)}" for part, seconds in parts if seconds >= 0.5)
        return f"{self.text}, used {span(used)} ({100 * used / self.seconds:.0f} %): {words}"


def span(seconds: float) -> str:
    """
    >>> span(8.4), span(150.0)
    ('8 s', '2.5 min')
    """
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
