"""Train in the test's own process instead of starting workers of Ray Train."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from recsys.pace import Deadline
from recsys.training import ray_train
from recsys.training.context import TrainContext
from recsys.training.final import fit_final
from recsys.training.phases import fit


@contextmanager
def training_here() -> Iterator[list[str]]:
    """Inside the block, trainings run in this process instead of on workers of Ray Train, by the
    same loop.

    Why: the processes of one Ray Train cost more than the rest of such a test.
    ``tests/stories/test_pipeline.py`` and the slow tests train through the real Ray Train. Yields
    the list of the folders of these trainings.
    """
    trained: list[str] = []

    def here(
        config: Any,
        dataset: Any,
        validate: Any,
        report: Any,
        start: Any = None,
        stop: Any = None,
        final: Any = None,
        deadline: Deadline | None = None,
        head_start: Path | None = None,
    ) -> Any:
        trained.append(config.run.dir)
        until = deadline or Deadline()
        context = TrainContext(
            report=lambda values, _: report(values), resume_from=head_start, deadline=until
        )
        if final is not None:
            return fit_final(config, dataset, context, final)
        return fit(config, dataset, validate, context, start)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_train, "train_on_ray", here)
        yield trained
