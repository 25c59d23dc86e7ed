"""The time budget of a run: the time that each part used, and the time that each part may still
use.

Why parts and not one deadline: a model that trains until the last second is never evaluated. The
time of later parts is predicted from measurements of this run: the epochs of a trial predict the
time of the trainings, the fits of the members predict the time of fitting them again on all events.
If a part is late, less time is left for the later parts, which then do less: fewer epochs, no
refit, fewer members, a final training that continues from the evaluated weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from recsys.pace import Deadline

# share of the time after the search: members, stacking, evaluation, registration
RESERVE: Final = 0.35
LEAST_RESERVE: Final = 20.0  # seconds; the least time for these parts
# seconds an item of the fits after the search, the rankings of the evaluation, and the registration
ITEM_S: Final = 1.2e-3
_LEAST: Final = 0.05  # share of the budget that the training always gets, even if it is late
# the same for the choice of the members' constants: no model without it
_LEAST_MEMBERS: Final = 0.15
_MEMBERS: Final = 0.5  # share of the time after the training; the rest is for refit and evaluation
_CONTINUES: Final = 5  # continuing from evaluated weights trains at most 1 epoch for every 5 chosen
_SHORT: Final = 0.02  # share of the budget that is spent on a last fit even if it is used up
_OVER: Final = 0.1  # share of the budget by which the training on all events may be late


class Budget:
    """The time budget of a run, counted from the start of the command.

    Parameters
    ----------
    text
        The budget as the user gave it, such as ``20m``.
    seconds
        The same in seconds.
    started
        Start of the command on ``clock``.
    clock
        Returns seconds; tests give another one.
    """

    def __init__(
        self, text: str, seconds: float, started: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.text, self.seconds, self.started, self._clock = text, seconds, started, clock
        self.spent: dict[str, float] = {}  # seconds by part, in order
        self.expected: dict[str, float] = {}  # seconds of the planned trainings, by name
        self.start_s = 0.0  # seconds that the workers of a training need to start
        self.fit_s = 0.0  # seconds that one fit of all members takes
        self.kept_s = 0.0  # seconds of the parts after the training that depend on the catalogue
        self._part, self._since = "start", started

    @property
    def used(self) -> float:
        """Seconds."""
        return self._clock() - self.started

    @property
    def left(self) -> float:
        """Seconds that are left; negative after the end of the budget."""
        return self.seconds - self.used

    def turn_to(self, part: str) -> None:
        """Count the time from now on for this part."""
        now = self._clock()
        self.spent[self._part] = self.spent.get(self._part, 0.0) + now - self._since
        self._part, self._since = part, now

    def deadline(self, seconds: float) -> Deadline:
        """A deadline this many seconds from now."""
        return Deadline(time.monotonic() + seconds)

    def training_s(self, name: str = "") -> float:
        """Seconds for the training that chooses the epoch, with its refit.

        With a ``name``: for the training of this separately trained model.
        """
        left = self.left - self.kept_s
        kept = max(LEAST_RESERVE, RESERVE * left) + self.expected.get("final", 0.0) + self.start_s
        # without the first training there is no model; a separate one can be left out
        return max(left - kept, 0.0 if name else _LEAST * self.seconds)

    def holds(self, name: str, slower: float = 1.0) -> bool:
        """Whether a planned training fits if it takes ``slower`` times the predicted time."""
        return self.training_s(name) >= self.expected.get(name, 0.0) * slower

    def members_s(self) -> float:
        """Seconds for the choice of the members' constants."""
        behind = self.left - self.kept_s - self.expected.get("final", 0.0) - self.start_s
        return max(_MEMBERS * behind, _LEAST_MEMBERS * self.seconds)

    def final_epochs(self, wanted: int, pace: float) -> int | None:
        """Epochs of the training on all events that fit into the budget.

        Parameters
        ----------
        wanted : int
            Epochs of a training from scratch.
        pace : float
            Seconds per epoch.

        Returns
        -------
        int | None
            None: a training from scratch fits. A number: train this many epochs more, starting from
            the evaluated weights.
        """
        room = self.final_s() - self.start_s
        if wanted * pace <= room:
            return None
        return max(0, min(int(room / max(pace, 1e-9)), wanted // _CONTINUES))

    def final_s(self) -> float:
        """Seconds for the training on all events; the members are fitted on all events after it."""
        return self.left - self.fit_s + _OVER * self.seconds

    def fits_again(self) -> bool:
        """Whether the members can be fitted once more on all events: before the end of the budget,
        or in little time.
        """
        return self.final_s() > 0 or self.fit_s < _SHORT * self.seconds

    def summary(self) -> str:
        """The budget, the used time, and the time of every part.

        >>> ticks = iter([5.0, 65.0, 215.0, 215.0])
        >>> budget = Budget("4m", 240.0, 0.0, lambda: next(ticks))
        >>> budget.turn_to("prepare"); budget.turn_to("training")
        >>> budget.summary()
        '4m, used 3.6 min (90 %): training 2.5 min, prepare 60 s, start 5 s'
        """
        # adds the time of the part that is still running
        self.turn_to(self._part)
        used = self.used
        parts = sorted(self.spent.items(), key=lambda part: -part[1])
        words = ", ".join(f"{part} {span(seconds)}" for part, seconds in parts if seconds >= 0.5)
        return f"{self.text}, used {span(used)} ({100 * used / self.seconds:.0f} %): {words}"


def span(seconds: float) -> str:
    """A duration in seconds or minutes.

    >>> span(8.4), span(150.0)
    ('8 s', '2.5 min')
    """
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
