"""Trials one after another in this process, for a search that is too short to start other
processes.

Plan, ledger and halving are those of :mod:`tune.ray_tune`. Nothing is resumed, and an error that is
not a trial's failure ends the command.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import TrialScheduler

from tune.ledger import Trial
from tune.plan import Plan
from tune.ray_tune import scheduler_of
from tune.searcher import TrialPaths, Watch, forget_unneeded, task_of, training_seconds
from tune.slots import Slots
from tune.trial import run_trial


def run_in_process(plan: Plan, paths: TrialPaths, slots: Slots, watch: Watch) -> None:
    """Run all trials of the plan; the ledger records every one.

    Parameters
    ----------
    plan : Plan
        The trials to run, and their ledger.
    paths : TrialPaths
        Where the dataset and the files of trials are.
    slots : Slots
        Threads and GPU of a trial; one trial runs at a time.
    watch : Watch
        Is told when a trial starts, validates and ends.
    """
    running = dict[str, Trial]()
    search: Any = SimpleNamespace(running=running, plan=plan)
    scheduler = scheduler_of(plan, search)
    while isinstance(trial := plan.next(()), Trial):
        plan.ledger.start(trial)
        trial = plan.ledger.trials[(trial.number, trial.repeat)]
        config = plan.config_of(trial)
        watch.started(trial, config)
        running[trial.name] = trial
        scheduler.on_trial_add(None, SimpleNamespace(trial_id=trial.name))
        try:
            run_trial(
                task_of(plan, trial, config, paths, slots), _Reports(plan, trial, scheduler, watch)
            )
        except _Stopped:
            plan.ledger.end(trial, "stopped", seconds=training_seconds(trial))
        forget_unneeded(plan, paths, trial)
        watch.ended(trial)


class _Stopped(BaseException):
    """The halving stopped a trial. Not an ``Exception``, because the trial would report it as a
    failure.
    """


class _Reports:
    """Receives the reports of a trial."""

    def __init__(self, plan: Plan, trial: Trial, scheduler: Any, watch: Watch) -> None:
        self.plan, self.trial, self.scheduler, self.watch = plan, trial, scheduler, watch

    def __call__(self, report: Mapping[str, Any]) -> None:
        ledger, trial, state = self.plan.ledger, self.trial, report.get("state")
        if state == "finished":
            ledger.end(
                trial, "finished", value=report["value"], seconds=round(report["seconds"], 2)
            )
        elif state == "failed":
            ledger.end(trial, "failed", reason=report["reason"], blame=report["blame"])
        else:
            ledger.epoch(trial, report)
            self.watch.epoch(trial, report["history"])
            named: Any = SimpleNamespace(trial_id=trial.name)
            if self.scheduler.on_trial_result(None, named, dict(report)) == TrialScheduler.STOP:
                raise _Stopped
