"""Ray Tune around the plan: it starts trials, stops the worse ones early and survives those that fail.

Why a searcher of our own: Tune asks it for every trial and tells it every result before the trial goes on, so the
ledger is always ahead of what happens; and the plan, not Tune, knows what a killed sweep had done.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from types import SimpleNamespace
from typing import Any, Final

import ray.tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from tune.alive import forget_beats
from tune.ledger import Ledger, Trial
from tune.plan import Plan
from tune.search import Place, PlannedSearch, Watch, training_seconds
from tune.slots import Slots
from tune.trial import WorkersTrial, forget_checkpoints, train_in_process

_ENVIRONMENT: Final = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the ledger and MLflow have it
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # the last report of a trial has other keys
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # an interrupt ends the command
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # the ledger is what a sweep goes on from
    "TUNE_WARN_THRESHOLD_S": "60",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # one line of ours says it
    "RAY_AIR_NEW_OUTPUT": "0",
}


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
        if time.monotonic() > self.search.plan.deadline:
            return str(TrialScheduler.STOP)
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

    def choose_trial_to_run(self, tune_controller: Any, **options: Any) -> Any:
        self.search.look(tune_controller)
        return super().choose_trial_to_run(tune_controller, **options)

    def _stand_in(self, trial: Any) -> Any:
        return SimpleNamespace(trial_id=self.search.running[trial.trial_id].name)


class InOrder(FIFOScheduler):
    """First in, first out: nothing is stopped."""

    def __init__(self, search: PlannedSearch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.search = search

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        is_over = time.monotonic() > self.search.plan.deadline
        return str(TrialScheduler.STOP if is_over else TrialScheduler.CONTINUE)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self.search.note_error(trial)

    def choose_trial_to_run(self, tune_controller: Any, **options: Any) -> Any:
        self.search.look(tune_controller)
        return super().choose_trial_to_run(tune_controller, **options)


def run_trials(plan: Plan, place: Place, slots: Slots, watch: Watch) -> None:
    """Run all that the plan wants on the connected Ray cluster; every trial ends in the ledger."""
    search = PlannedSearch(plan, place, slots, watch)
    if plan.next(()) is None:
        return
    scheduler = scheduler_of(plan, search)
    trainable: Any = WorkersTrial if slots.workers > 1 else train_in_process
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # it names failed trials by ids that nobody knows
    os.environ.update({name: value for name, value in _ENVIRONMENT.items() if name not in os.environ})
    with tempfile.TemporaryDirectory(prefix="multigrain-tune-") as aside:
        tuner = ray.tune.Tuner(
            ray.tune.with_resources(trainable, slots.resources),
            tune_config=ray.tune.TuneConfig(
                search_alg=search,
                scheduler=scheduler,
                num_samples=-1,  # the plan knows when it is done
                max_concurrent_trials=slots.concurrent,
                reuse_actors=slots.workers == 1,
            ),
            run_config=ray.tune.RunConfig(
                storage_path=aside,
                name=search.sweep,
                verbose=0,
                checkpoint_config=ray.tune.CheckpointConfig(checkpoint_at_end=False),  # trials keep their own
            ),
        )
        try:
            tuner.fit()
        finally:
            forget_beats(search.sweep)
    for trial in plan.ledger.trials.values():
        forget_checkpoints(place.of(trial))


def scheduler_of(plan: Plan, search: PlannedSearch) -> Any:
    """ASHA that knows the ledger; first in, first out where trials are too short to be stopped."""
    settings = plan.config.tune
    epochs = plan.space.highest("train.epochs", plan.config.train.epochs)
    if settings.scheduler == "none" or settings.min_epochs >= epochs - 1:
        return InOrder(search)
    scheduler = Halving(search, settings.min_epochs, epochs, settings.reduction)
    for trial in scheduler.replay(plan.ledger):
        plan.ledger.end(trial, "stopped", seconds=training_seconds(trial))
    return scheduler
