"""When a training ends early: whether the time for a refit stays."""

from __future__ import annotations

import pytest

from recsys.config import TrainConfig
from recsys.pace import Deadline
from recsys.training.checkpoint import Progress
from recsys.training.context import TrainContext
from recsys.training.time_limit import TimeLimit

HISTORY = [{"phase": "select", "epoch": epoch, "seconds": 1000.0} for epoch in range(1, 8)]


@pytest.mark.parametrize(("epochs_left", "refit", "near"), [(8.5, True, True), (9.5, True, False)])
def test_another_epoch_leaves_time_for_its_own_refit(
    epochs_left: float, refit: bool, near: bool
) -> None:
    """After seven epochs, one more and a refit of eight are nine epochs."""
    assert _limit(epochs_left, refit).is_near(HISTORY, last=10) == near


def test_without_refit_only_the_next_epoch_needs_time() -> None:
    assert not _limit(1.5, refit=False).is_near(HISTORY, last=10)
    assert _limit(0.5, refit=False).is_near(HISTORY, last=10)


def _limit(epochs_left: float, refit: bool) -> TimeLimit:
    context = TrainContext(deadline=Deadline(1000.0 * epochs_left, lambda: 0.0))
    return TimeLimit(TrainConfig(refit=refit), context, Progress(phase="select", best_epoch=7))
