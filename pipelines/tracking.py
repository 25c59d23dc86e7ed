"""The MLflow run that the stages of a run folder share.

Why: `recsys run` is one MLflow run, and `evaluate` or `register` called later go on with the run of the training that
they speak about, not with a new one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipelines.folder import RunFolder
from pipelines.session import quiet
from recsys.config import Config
from recsys.registry.tracking import RUN_FILE, Tracker, remembered_run


@contextmanager
def tracked(config: Config, folder: RunFolder, fresh: bool = False) -> Iterator[Tracker]:
    """The open tracker of the command; opened, when no outer stage has done so, on the folder's run or a fresh one.

    A resumed command goes on with the run of the one that was interrupted.
    """
    if folder.tracker is not None:
        yield folder.tracker
        return
    quiet()
    run_id = "" if fresh and not config.run.resume else remembered_run(config, folder.root)
    with Tracker(config, run_id=run_id, folder=folder.root) as tracker:
        folder.publish(folder.root / RUN_FILE)
        folder.tracker = tracker
        try:
            yield tracker
        finally:
            folder.tracker = None


def log_epoch(tracker: Tracker, values: dict[str, Any]) -> None:
    """One epoch's report: ``train.loss``, ``train.lr`` and ``valid.METRIC``, or ``refit.loss``, ``join.loss``, …."""
    phase = values.get("phase", "select")
    prefix = "train" if phase == "select" else phase
    plain = {"phase", "epoch", "epochs"}
    own = {"loss", "lr", "seconds"}
    metrics = {
        f"{prefix if name in own else 'valid'}.{name}": value for name, value in values.items() if name not in plain
    }
    tracker.log_metrics(metrics, step=int(values["epoch"]))


def log_evaluation(tracker: Tracker, metrics: dict[str, Any]) -> None:
    """Numbers of ``metrics.json``: ``test.METRIC``, ``baselines.NAME.METRIC``, ``granularities.…``, ``timing.…``."""
    tracker.log_metrics(
        {"test": metrics["model"], **{part: metrics[part] for part in ("baselines", "granularities", "timing")}}
    )
