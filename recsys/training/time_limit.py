"""When a pass of a training ends early, so that the whole training ends by its deadline."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from recsys.config import TrainConfig
from recsys.training.checkpoint import Progress
from recsys.training.context import Report, TrainContext

SLACK: Final = 0.25  # a pass that selects nothing may be late by this share of its time


class TimeLimit:
    """The time of one pass, which begins now.

    In the phase *select*, there must be time for another epoch and for a refit if that epoch is the
    best one; in other phases, for the remaining epochs. A private training and the phase *join*
    never end early.
    """

    def __init__(self, train: TrainConfig, context: TrainContext, progress: Progress) -> None:
        self._train, self._context, self._progress = train, context, progress
        self._selects, self._joins = progress.phase == "select", progress.phase.endswith("join")
        self._begun = time.perf_counter()

    def is_near(self, history: list[Report], last: int) -> bool:
        """Whether, at the measured pace, the time is too short to continue to epoch ``last``."""
        if self._train.privacy.epsilon or self._joins:
            return False
        own = [report for report in history if report["phase"] == self._progress.phase]
        pace, done = seconds_an_epoch(own), own[-1]["epoch"]
        if self._selects:
            return self._context.lacks(pace * (1 + self._train.refit * (done + 1)))
        return self._context.lacks(pace * (last - done) - self._allowance)

    def is_over(self) -> bool:
        """Whether the time is up within an epoch; only with one worker, as several would have to
        agree.
        """
        if self._context.world_size > 1 or self._joins:
            return False
        return self._context.lacks(0.0 if self._selects else -self._allowance)

    @property
    def _allowance(self) -> float:
        """Seconds by which a pass that selects nothing may be late."""
        return SLACK * (time.perf_counter() - self._begun)


def seconds_an_epoch(history: Sequence[Report]) -> float:
    """Mean seconds of the reported epochs, with cut epochs scaled up to whole ones; 0 without an
    epoch.

    >>> cut = {"epoch": 2, "seconds": 1.0, "share": 0.25}
    >>> seconds_an_epoch([{"epoch": 1, "seconds": 2.0}, cut])
    3.0
    """
    seconds = [float(one.get("seconds") or 0.0) / float(one.get("share", 1.0)) for one in history]
    return sum(seconds) / len(seconds) if seconds else 0.0
