"""Run the plan with Ray Tune: start trials, stop the worse ones early, survive failed ones.

Why our own searcher: Tune asks it for every trial and gives it every result before the trial
continues, so the ledger is always up to date; and the plan, not Tune, knows what a killed sweep had
done.
"""

from __future__ import annotations

import logging
import os
import time
from types import SimpleNamespace
from typing import Any, Final

import ray.tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from recsys.storage.temporary import temporary
from tune.heartbeats import forget_beats
from tune.ledger import Ledger, Trial
from tune.plan import Plan
from tune.searcher import PlannedSearch, TrialPaths, Watch, forget_unneeded, training_seconds
from tune.slots import Slots
from tune.trial import WorkersTrial, train_in_process

_ENVIRONMENT: Final = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the ledger and MLflow record everything
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # the last report of a trial has other keys
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # our own handler ends the command
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # a sweep continues from the ledger, not from Tune's state
    "TUNE_WARN_THRESHOLD_S": "60",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # our own line reports the error
    "RAY_AIR_NEW_OUTPUT": "0",
}


class Halving(ASHAScheduler):
    """Ray's ASHA (Li et al. 2020), keyed by our trial numbers, so that results in the ledger count
    too.

    Trial 0 and repetitions are never stopped, because others are compared with them.
    """

    def __init__(
        self, search: PlannedSearch, min_epochs: int, max_epochs: int, reduction: int
    ) -> None:
        super().__init__(
            time_attr="epoch",
            metric="best",
            mode="max",
            grace_period=min_epochs,
            max_t=max_epochs - 1,  # in the last epoch there is nothing to stop
            reduction_factor=reduction,
            stop_last_trials=False,
        )
        self.search = search

    def replay(self, ledger: Ledger) -> list[Trial]:
        """Replay the reports before the kill; return the trials that were about to be stopped."""
        doomed: dict[str, Trial] = {}
        for trial, epoch in ledger.order:
            if trial.repeat:
                continue
            nobody: Any = None  # ASHA does not use its controller
            stand_in: Any = SimpleNamespace(trial_id=trial.name)
            if trial.name not in self._trial_info:
                super().on_trial_add(nobody, stand_in)
            report = {"epoch": epoch, "best": trial.epochs[epoch]["best"]}
            stops = super().on_trial_result(nobody, stand_in, report) == TrialScheduler.STOP
            # only at the last report: at an earlier one the trial went on, whatever ASHA says now
            if stops and trial.number and trial.state == "running" and epoch == max(trial.epochs):
                doomed[trial.name] = trial
        return list(doomed.values())

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Add a trial that may be stopped to a bracket."""
        stand_in = self._stand_in(trial)
        if stand_in.trial_id not in self._trial_info:
            super().on_trial_add(tune_controller, stand_in)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Continue or stop a trial after a report.

        Parameters
        ----------
        tune_controller : Any
            Tune's controller.
        trial : Any
            Tune's trial.
        result : dict[str, Any]
            The report, with ``epoch`` and ``best``.

        Returns
        -------
        str
            ``STOP`` or ``CONTINUE``; ``STOP`` for every trial after the deadline.
        """
        ours = self.search.running[trial.trial_id]
        if time.monotonic() > self.search.plan.deadline:
            return str(TrialScheduler.STOP)
        if ours.repeat:
            return str(TrialScheduler.CONTINUE)
        decision = super().on_trial_result(tune_controller, self._stand_in(trial), result)
        return str(decision if ours.number else TrialScheduler.CONTINUE)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Do nothing; the results say everything.

        Parameters
        ----------
        tune_controller : Any
            Not read.
        trial : Any
            Not read.
        result : dict[str, Any]
            Not read.
        """

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Do nothing, as on completion."""

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Note the error of a trial."""
        self.search.note_error(trial)

    def choose_trial_to_run(self, tune_controller: Any, **options: Any) -> Any:
        """Check the running trials, then choose as ASHA."""
        self.search.look(tune_controller)
        return super().choose_trial_to_run(tune_controller, **options)

    def _stand_in(self, trial: Any) -> Any:
        return SimpleNamespace(trial_id=self.search.running[trial.trial_id].name)


class InOrder(FIFOScheduler):
    """First in, first out, without early stopping."""

    def __init__(self, search: PlannedSearch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.search = search

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Continue a trial, or stop it after the deadline.

        Parameters
        ----------
        tune_controller : Any
            Not read.
        trial : Any
            Not read.
        result : dict[str, Any]
            Not read: only the time counts.

        Returns
        -------
        str
            ``STOP`` or ``CONTINUE``.
        """
        is_over = time.monotonic() > self.search.plan.deadline
        return str(TrialScheduler.STOP if is_over else TrialScheduler.CONTINUE)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Note the error of a trial."""
        self.search.note_error(trial)

    def choose_trial_to_run(self, tune_controller: Any, **options: Any) -> Any:
        """Check the running trials, then choose the next one in order."""
        self.search.look(tune_controller)
        return super().choose_trial_to_run(tune_controller, **options)


def run_trials(plan: Plan, paths: TrialPaths, slots: Slots, watch: Watch) -> None:
    """Run all trials of the plan on the connected Ray cluster; the ledger records every one.

    Parameters
    ----------
    plan : Plan
        The trials to run, and their ledger.
    paths : TrialPaths
        Where the dataset and the files of trials are.
    slots : Slots
        How many trials run at once, and the resources of each.
    watch : Watch
        Is told when a trial starts, validates and ends.
    """
    search = PlannedSearch(plan, paths, slots, watch)
    if plan.next(()) is None:
        return
    scheduler = scheduler_of(plan, search)
    trainable: Any = WorkersTrial if slots.workers > 1 else train_in_process
    # it names failed trials by internal ids
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    # Tune reads them when it starts; a value that the user has set stays
    os.environ.update(
        {name: value for name, value in _ENVIRONMENT.items() if name not in os.environ}
    )
    with temporary() as aside:
        tuner = ray.tune.Tuner(
            ray.tune.with_resources(trainable, slots.resources),
            tune_config=ray.tune.TuneConfig(
                search_alg=search,
                scheduler=scheduler,
                num_samples=-1,  # unlimited: the plan decides when to stop
                max_concurrent_trials=slots.concurrent,
                reuse_actors=slots.workers == 1,
            ),
            run_config=ray.tune.RunConfig(
                storage_path=aside,
                name=search.sweep,
                verbose=0,
                # trials keep their own checkpoints
                checkpoint_config=ray.tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        try:
            tuner.fit()
        finally:
            forget_beats(search.sweep)
    # a killed sweep may have left checkpoints of trials that have ended
    for trial in plan.ledger.trials.values():
        forget_unneeded(plan, paths, trial)


def scheduler_of(plan: Plan, search: PlannedSearch) -> Any:
    """ASHA with the results of the ledger; first in, first out if trials are too short to stop."""
    settings = plan.config.tune
    epochs = plan.space.highest("train.epochs", plan.config.train.epochs)
    if settings.scheduler == "none" or settings.min_epochs >= epochs - 1:
        return InOrder(search)
    scheduler = Halving(search, settings.min_epochs, epochs, settings.reduction)
    for trial in scheduler.replay(plan.ledger):
        plan.ledger.end(trial, "stopped", seconds=training_seconds(trial))
    return scheduler
