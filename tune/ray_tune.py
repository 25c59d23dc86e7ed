"""Ray Tune around the plan: it starts trials, stops the worse ones early and survives those that fail.

Why a searcher of our own: Tune asks it for every trial and tells it every result before the trial goes on, so the
ledger is always ahead of what happens; and the plan, not Tune, knows what a killed sweep had done.
"""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, Protocol

import numpy as np
import ray.tune
from ray.exceptions import RayActorError
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from recsys.config import Config, redact
from recsys.errors import ConfigError
from tune.ledger import Ledger, Trial
from tune.plan import WAIT, Plan
from tune.slots import Slots
from tune.trial import Task, WorkersTrial, forget_checkpoints, settings_of, train_in_process

VALUES: Final = "valid.npy"
_ENVIRONMENT: Final = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the ledger and MLflow have it
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # the last report of a trial has other keys
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # an interrupt ends the command
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # the ledger is what a sweep goes on from
    "TUNE_WARN_THRESHOLD_S": "60",
    "RAY_AIR_NEW_OUTPUT": "0",
}


class Watch(Protocol):
    """Who wants to know: progress lines, tracking."""

    def started(self, trial: Trial, config: Config) -> None: ...

    def epoch(self, trial: Trial, history: list[dict[str, Any]]) -> None: ...

    def ended(self, trial: Trial) -> None: ...


@dataclass(frozen=True)
class Place:
    """Where trials find the dataset and leave their files."""

    dataset: str
    folder: Path  # RUN/trials

    def of(self, trial: Trial) -> Path:
        return self.folder / trial.name


class PlannedSearch(Searcher):
    """Hands the plan's trials to Tune and writes what becomes of them into the ledger."""

    def __init__(self, plan: Plan, place: Place, slots: Slots, watch: Watch) -> None:
        super().__init__(metric="best", mode="max")
        self.plan, self.place, self.slots, self.watch = plan, place, slots, watch
        self.ledger: Ledger = plan.ledger
        self.running: dict[str, Trial] = {}  # by Tune's id
        self.errors: dict[str, str] = {}  # of those that could not report it themselves
        self.taken: dict[str, int] = {}  # the last report of each that is written down

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its searcher for a restore that the ledger makes needless

    def set_search_properties(self, metric: str | None, mode: str | None, config: Any, **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> Any:
        while True:
            found = self.plan.next([(trial.number, trial.repeat) for trial in self.running.values()])
            if found is None:
                return Searcher.FINISHED
            if found == WAIT:
                return None
            assert isinstance(found, Trial)
            self.ledger.start(found)
            trial = self.ledger.trials[(found.number, found.repeat)]
            try:
                config = self.plan.config_of(trial)
            except ConfigError as error:
                self.watch.started(trial, self.plan.config)
                self.ledger.end(trial, "failed", reason=str(error), blame="user")
                self.watch.ended(trial)
                continue
            self.running[trial_id] = trial
            self.watch.started(trial, config)
            return settings_of(self._task(trial, config))

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        self._take(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        trial = self.running[trial_id]
        if result:
            self._take(trial_id, result)  # of the report that stopped it Tune tells here alone
        if trial.state == "running" and error:
            reason = self.errors.get(trial_id, "Ray could not run it")
            self.ledger.end(trial, "failed", reason=reason, blame="program")
        elif trial.state == "running":
            self.ledger.end(trial, "stopped", seconds=_seconds(trial))
        del self.running[trial_id]
        if self.slots.workers == 1:  # others may still be writing
            forget_checkpoints(self.place.of(trial))
        self.watch.ended(trial)

    def note_error(self, theirs: Any) -> None:
        """Keep what Ray says of a trial that died; it tells its scheduler first."""
        error = theirs.get_pickled_error() or theirs.get_error()
        if isinstance(error, RayActorError):
            self.errors[theirs.trial_id] = "its process died: killed, or out of memory"
        elif error is not None:
            last = [line for line in str(error).splitlines() if line.strip()][-1:]
            self.errors[theirs.trial_id] = f"{type(error).__name__}: {''.join(last)}"

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """The ledger has everything."""

    def _task(self, trial: Trial, config: Config) -> Task:
        folder = self.place.of(trial)
        folder.mkdir(parents=True, exist_ok=True)
        run = config.run.model_copy(update={"dir": str(folder)})
        tree = config.model_copy(update={"run": run}).model_dump(mode="json")
        slots = self.slots
        best = max((epoch["best"] for epoch in trial.epochs.values()), default=None)
        key = (trial.number, trial.repeat)
        return Task(*key, tree, self.place.dataset, str(folder), slots.threads, slots.use_gpu, best)

    def _take(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Write down what a trial reports, once."""
        trial, state = self.running[trial_id], result.get("state")
        if result["training_iteration"] <= self.taken.get(trial_id, 0) or trial.state != "running":
            return
        self.taken[trial_id] = result["training_iteration"]
        if state is None and "history" in result:
            self.ledger.epoch(trial, result)
            self.watch.epoch(trial, result["history"])
        elif state == "finished":
            np.save(self.place.of(trial) / VALUES, np.asarray(result["values"]))
            self.ledger.end(trial, "finished", value=result["value"], seconds=round(result["seconds"], 2))
        elif state == "failed":
            if result["trace"]:
                (self.place.of(trial) / "error.txt").write_text(redact(result["trace"]), encoding="utf-8")
            self.ledger.end(trial, "failed", reason=result["reason"], blame=result["blame"])


class Halving(ASHAScheduler):
    """Ray's ASHA (Li et al. 2020), keyed by our numbers, so that what the ledger tells counts as if it had just run.

    Trial 0 and repetitions are never stopped: others are compared with them.
    """

    def __init__(self, search: PlannedSearch, min_epochs: int, max_epochs: int, reduction: int) -> None:
        super().__init__(
            time_attr="epoch",
            metric="best",
            mode="max",
            grace_period=min_epochs,
            max_t=max_epochs - 1,  # whoever comes to the last epoch is done anyway
            reduction_factor=reduction,
            stop_last_trials=False,
        )
        self.search = search

    def replay(self, ledger: Ledger) -> list[Trial]:
        """Learn what was reported before the sweep was killed; the trials that were about to be stopped then."""
        doomed: dict[str, Trial] = {}
        for trial, epoch in ledger.order:
            if trial.repeat:
                continue
            nobody: Any = None  # ASHA does not ask its controller
            stand_in: Any = SimpleNamespace(trial_id=trial.name)
            if trial.name not in self._trial_info:
                super().on_trial_add(nobody, stand_in)
            report = {"epoch": epoch, "best": trial.epochs[epoch]["best"]}
            stops = super().on_trial_result(nobody, stand_in, report) == TrialScheduler.STOP
            if stops and trial.number and trial.state == "running" and epoch == max(trial.epochs):
                doomed[trial.name] = trial
        return list(doomed.values())

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        stand_in = self._stand_in(trial)
        if stand_in.trial_id not in self._trial_info:
            super().on_trial_add(tune_controller, stand_in)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        ours = self.search.running[trial.trial_id]
        if ours.repeat:
            return str(TrialScheduler.CONTINUE)
        decision = super().on_trial_result(tune_controller, self._stand_in(trial), result)
        return str(decision if ours.number else TrialScheduler.CONTINUE)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Nothing that the results have not told."""

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """As above."""

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self.search.note_error(trial)

    def _stand_in(self, trial: Any) -> Any:
        return SimpleNamespace(trial_id=self.search.running[trial.trial_id].name)


class InOrder(FIFOScheduler):
    """First in, first out: nothing is stopped."""

    def __init__(self, search: PlannedSearch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.search = search

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self.search.note_error(trial)


def run_trials(plan: Plan, place: Place, slots: Slots, watch: Watch) -> None:
    """Run all that the plan wants on the connected Ray cluster; every trial ends in the ledger."""
    search = PlannedSearch(plan, place, slots, watch)
    if plan.next(()) is None:
        return
    scheduler = _scheduler(plan, search)
    trainable: Any = WorkersTrial if slots.workers > 1 else train_in_process
    os.environ.update({name: value for name, value in _ENVIRONMENT.items() if name not in os.environ})
    with tempfile.TemporaryDirectory(prefix="multigrain-tune-") as aside:
        tuner = ray.tune.Tuner(
            ray.tune.with_resources(trainable, slots.resources),
            tune_config=ray.tune.TuneConfig(
                search_alg=search,
                scheduler=scheduler,
                num_samples=plan.total + len(plan.ledger.trials),
                max_concurrent_trials=slots.concurrent,
                reuse_actors=slots.workers == 1,
            ),
            run_config=ray.tune.RunConfig(
                storage_path=aside,
                name=uuid.uuid4().hex[:8],
                verbose=0,
                checkpoint_config=ray.tune.CheckpointConfig(checkpoint_at_end=False),  # trials keep their own
            ),
        )
        tuner.fit()
    for trial in plan.ledger.trials.values():
        forget_checkpoints(place.of(trial))


def _scheduler(plan: Plan, search: PlannedSearch) -> Any:
    """ASHA that knows the ledger; first in, first out where trials are too short to be stopped."""
    settings = plan.config.tune
    epochs = plan.space.highest("train.epochs", plan.config.train.epochs)
    if settings.scheduler == "none" or settings.min_epochs >= epochs - 1:
        return InOrder(search)
    scheduler = Halving(search, settings.min_epochs, epochs, settings.reduction)
    for trial in scheduler.replay(plan.ledger):
        plan.ledger.end(trial, "stopped", seconds=_seconds(trial))
    return scheduler


def _seconds(trial: Trial) -> float:
    """How long the epochs of a trial took."""
    return round(sum(float(report.get("seconds") or 0.0) for report in trial.history.values()), 2)
