"""Output of a running sweep: a progress line per trial, and a child run in MLflow with its metrics
per epoch.

Why a thread for MLflow: a trial waits at every report until the driver has received it, and should
not also wait for a database. If the tracking server is lost, child runs are missing, but the sweep
continues.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable
from typing import Any, ClassVar

from pipelines.plumbing.progress import Progress
from pipelines.plumbing.run_tracking import log_epoch
from recsys.config import Config
from recsys.pace import Count
from recsys.registry.tracking import Tracker
from tune.ledger import Trial

_TRIAL_TAG = "sweep.trial"


class Children:
    """The MLflow runs of the trials, children of the sweep's run; a resumed trial continues its
    run.
    """

    def __init__(self, parent: Tracker, progress: Progress) -> None:
        self.parent, self.progress = parent, progress
        self.open: dict[str, Tracker] = {}
        self.jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.lost = False
        self.known = self._earlier() if parent.enabled else {}
        self.thread = threading.Thread(target=self._work, daemon=True, name="tracking")

    def __enter__(self) -> Children:
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: Any
    ) -> None:
        """Write everything that is waiting; an interrupted sweep leaves no run open."""
        self._later(lambda: self._close(kind, error))
        self.jobs.put(None)
        self.thread.join()

    def started(self, trial: Trial, config: Config) -> None:
        """Start the MLflow run of a trial."""
        self._later(lambda: self._start(trial, config))

    def epoch(self, trial: Trial, history: list[dict[str, Any]]) -> None:
        """Log the epochs of a trial."""
        self._later(lambda: self._epoch(trial, history))

    def ended(self, trial: Trial) -> None:
        """End the MLflow run of a trial."""
        state, value, reason = trial.state, trial.best, trial.reason
        self._later(lambda: self._end(trial, state, value, reason))

    def _start(self, trial: Trial, config: Config) -> None:
        tracker = Tracker(
            config, f"trial {trial.name}", self.known.get(trial.name, ""), self.parent.run_id
        )
        self.open[trial.name] = tracker.__enter__()
        tracker.set_tags({_TRIAL_TAG: trial.name, "sweep.seed": trial.seed})

    def _epoch(self, trial: Trial, history: list[dict[str, Any]]) -> None:
        for values in history:
            log_epoch(self.open[trial.name], values)

    def _end(self, trial: Trial, state: str, value: float | None, reason: str) -> None:
        tracker = self.open.pop(trial.name)
        tracker.set_tags({"sweep.state": state})
        if value is not None:
            tracker.log_metrics({"sweep": {"value": value}})
        error = RuntimeError(reason) if state == "failed" else None
        tracker.__exit__(type(error) if error else None, error, None)

    def _close(self, kind: type[BaseException] | None, error: BaseException | None) -> None:
        """End the runs of unfinished trials: killed after an interrupt, failed after an error."""
        while self.open:
            _, tracker = self.open.popitem()
            tracker.__exit__(kind, error, None)

    def _later(self, job: Callable[[], Any]) -> None:
        if self.parent.enabled:
            self.jobs.put(job)

    def _work(self) -> None:
        while (job := self.jobs.get()) is not None:
            if self.lost:
                continue
            try:
                job()
            except Exception as error:
                self.lost = True
                self.progress(
                    "trials are no longer tracked in MLflow, the sweep continues:"
                    f" {type(error).__name__}: {error}"
                )

    def _earlier(self) -> dict[str, str]:
        """Trial → MLflow run, from before the sweep was interrupted."""
        found = self.parent.client.search_runs(
            [self.parent.experiment_id],
            f"tags.`mlflow.parentRunId` = '{self.parent.run_id}'",
            max_results=5000,
        )
        return {
            run.data.tags[_TRIAL_TAG]: run.info.run_id
            for run in found
            if _TRIAL_TAG in run.data.tags
        }


class TrialLines:
    """Progress lines of the trials, and their tracking."""

    # states of trials that may be the best; a sweep uses the finished ones
    counted: ClassVar[tuple[str, ...]] = ("finished",)

    def __init__(self, progress: Progress, children: Children, metric: str, planned: int) -> None:
        self.progress = progress
        self.children = children
        self.metric = metric
        self.planned = planned
        self.best: tuple[float, str] | None = None
        self.num_ended = 0

    def started(self, trial: Trial, config: Config) -> None:
        """Print the start of a trial."""
        again = f", continuing after epoch {max(trial.epochs)}" if trial.epochs else ""
        if trial.repeat:
            what = f"with seed {trial.seed}"
        elif trial.number == 0:
            what = f"of {self.planned}: the given configuration"
        else:
            values = ", ".join(
                f"{short(path)} {cell(value)}" for path, value in trial.params.items()
            )
            what = f"of {self.planned}: {values}"
        self.progress(f"trial {trial.name} {what}{again}")
        self.count()
        self.children.started(trial, config)

    def epoch(self, trial: Trial, history: list[dict[str, Any]]) -> None:
        """Log the epochs of a trial."""
        self.children.epoch(trial, history)

    def note(self, words: str) -> None:
        """Print a message."""
        self.progress(words)

    def ended(self, trial: Trial) -> None:
        """Print the end of a trial."""
        epochs = (
            f"after epoch {max(trial.epochs)}" if trial.epochs else "before its first validation"
        )
        if trial.state == "failed":
            self.progress(f"trial {trial.name} failed {epochs}: {trial.reason}")
        else:
            value = trial.best if trial.best is not None else float("nan")
            if (
                trial.state in self.counted
                and not trial.repeat
                and (self.best is None or value > self.best[0])
            ):
                self.best = value, trial.name
            so_far = f"; best so far {self.best[0]:.4f}, trial {self.best[1]}" if self.best else ""
            self.progress(
                f"trial {trial.name} {trial.state} {epochs}: {self.metric} {value:.4f},"
                f" {trial.seconds:.1f} s{so_far}"
            )
        self.num_ended += 1
        self.count()
        self.children.ended(trial)

    def count(self, note: str = "", line: str = "") -> None:
        """Show how many trials have ended, with the best value or another note."""
        if self.best and not note:
            note = f"best {self.metric} {self.best[0]:.4f}, trial {self.best[1]}"
        total = max(self.planned, self.num_ended)
        share = self.num_ended / max(total, 1)
        self.progress.counted(
            Count("trials ended", self.num_ended, total, share, note=note, line=line)
        )


def cell(value: Any) -> str:
    """A value in a few characters.

    >>> cell(0.0033860624), cell("gru"), cell([4, 8])
    ('0.003386', 'gru', '[4, 8]')
    """
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value).strip('"')


def short(path: str) -> str:
    """A path without its uninformative sections.

    >>> short("model.granularities.social.weight"), short("train.lr")
    ('social.weight', 'lr')
    """
    return path.removeprefix("model.granularities.").removeprefix("model.").removeprefix("train.")
