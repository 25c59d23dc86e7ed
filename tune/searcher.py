"""The searcher for Ray Tune: it hands out the trials of the plan, records their results, and
watches them.
"""

from __future__ import annotations

import math
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import ray
from ray.exceptions import RayActorError
from ray.tune.search import Searcher

from recsys.config import Config, redact
from recsys.errors import ConfigError
from recsys.pace import Deadline
from tune.heartbeats import Pulse
from tune.ledger import Ledger, Trial
from tune.plan import WAIT, Plan
from tune.slots import Slots
from tune.trial import Task, forget_checkpoints, settings_of

VALUES: Final = "valid.npy"
_MOST_HAND_OUTS: Final = 5  # attempts to hand out one trial that no process takes
_LOOK_S: Final = 1.0  # seconds between two checks of the running trials
# seconds without a check: the driver itself was stopped, and trials may have waited for it
_AWAY_S: Final = 60.0


class Watch(Protocol):
    """Receives the events of trials: for progress lines and tracking."""

    def started(self, trial: Trial, config: Config) -> None:
        """A trial has started."""
        ...

    def epoch(self, trial: Trial, history: list[dict[str, Any]]) -> None:
        """A trial has validated an epoch."""
        ...

    def ended(self, trial: Trial) -> None:
        """A trial has ended."""
        ...

    def note(self, words: str) -> None:
        """There is a message for the user."""
        ...


@dataclass(frozen=True)
class TrialPaths:
    """The paths of the dataset and of the trials' files."""

    dataset: str
    folder: Path  # RUN/trials

    def of(self, trial: Trial) -> Path:
        """The folder of a trial."""
        return self.folder / trial.name


def forget_unneeded(plan: Plan, paths: TrialPaths, ended: Trial) -> None:
    """Remove the checkpoints that are not needed any more, now that a trial has ended.

    Parameters
    ----------
    plan : Plan
        Says which checkpoints nothing needs any more.
    paths : TrialPaths
        Where the files of trials are.
    ended : Trial
        The trial that has ended.
    """
    for trial in plan.without_checkpoints(ended):
        forget_checkpoints(paths.of(trial))


class PlannedSearch(Searcher):
    """Hands the plan's trials to Tune and records their results in the ledger.

    It also watches them (:meth:`look`), because Tune calls its scheduler in every step. Tune has
    two gaps: it drops a trial without telling its searcher if the process that should be reused is
    still ending the trial before; and it waits forever for a process that hangs.
    """

    def __init__(self, plan: Plan, paths: TrialPaths, slots: Slots, watch: Watch) -> None:
        super().__init__(metric="best", mode="max")
        self.sweep = uuid.uuid4().hex[:8]
        self.pulse = Pulse(plan.config.tune.silent_s, beats=slots.workers == 1)
        self.controller: Any = None
        self.looked = 0.0
        self.handed_out: Counter[str] = Counter()  # by our name of the trial
        self.plan, self.paths, self.slots, self.watch = plan, paths, slots, watch
        self.ledger: Ledger = plan.ledger
        self.running: dict[str, Trial] = {}  # by Tune's id
        self.errors: dict[str, str] = {}  # reasons of trials that could not report them
        self.taken: dict[str, int] = {}  # the last recorded report of each trial

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its searcher to restore it; the ledger does this instead

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: Any, **spec: Any
    ) -> bool:
        """Accept what Tune sets.

        Parameters
        ----------
        metric : str | None
            Not read: the plan has its own.
        mode : str | None
            Not read.
        config : Any
            Not read.
        **spec : Any
            Not read.

        Returns
        -------
        bool
            Always True.
        """
        return True

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """Tell Tune that ``suggest`` limits concurrency; Tune's own limit counts dropped trials
        forever.
        """
        return True

    def suggest(self, trial_id: str) -> Any:
        """The next trial of the plan as settings for Tune."""
        self._take_back()
        if len(self.running) >= self.slots.concurrent:
            return None
        while True:
            found = self.plan.next(
                [(trial.number, trial.repeat) for trial in self.running.values()]
            )
            if found is None:
                return Searcher.FINISHED
            if found == WAIT:
                return None
            assert isinstance(found, Trial)
            # on disk before the trial runs, so that a killed sweep knows its number
            self.ledger.start(found)
            trial = self.ledger.trials[(found.number, found.repeat)]
            try:
                config = self.plan.config_of(trial)
            except ConfigError as error:
                self.watch.started(trial, self.plan.config)
                # ended in the ledger, or the plan would hand it out again
                self.ledger.end(trial, "failed", reason=str(error), blame="user")
                self.watch.ended(trial)
                continue
            self.running[trial_id] = trial
            self.handed_out[trial.name] += 1
            if self.handed_out[trial.name] == 1:
                self.watch.started(trial, config)
            task = task_of(
                self.plan, trial, config, self.paths, self.slots, f"{self.sweep}/{trial_id}"
            )
            self.pulse.begin(trial_id, task.pulse)
            return settings_of(task)

    def look(self, controller: Any) -> None:
        """End the trials without a heartbeat; report which ones wait for a process."""
        self.controller, now = controller, time.monotonic()
        if now - self.looked < _LOOK_S:
            return
        if self.looked and now - self.looked > _AWAY_S:
            # heartbeats missed while the driver slept do not count
            self.pulse.restart()
        self.looked = now
        for theirs in controller.get_live_trials():
            if theirs.trial_id not in self.running or theirs.trial_id in self.errors:
                continue
            process = theirs.temporary_state.ray_actor
            if process is None:
                self._say_that_it_waits(theirs.trial_id)
                continue
            seconds = self.pulse.silent(theirs.trial_id, theirs.status == "RUNNING")
            if seconds is not None:
                self._end_silent(theirs.trial_id, process, seconds)

    def _end_silent(self, trial_id: str, process: Any, seconds: float) -> None:
        trial = self.running[trial_id]
        silent_s = self.plan.config.tune.silent_s
        self.errors[trial_id] = (
            f"no heartbeat for {seconds:.0f} s, so its process was ended; if it only needs more"
            f" time, raise tune.silent_s (now {silent_s:g})"
        )
        self.watch.note(f"trial {trial.name} has had no heartbeat for {seconds:.0f} s and is ended")
        ray.kill(process)  # Tune notices the end of the process

    def _say_that_it_waits(self, trial_id: str) -> None:
        seconds = self.pulse.waits(trial_id)
        if seconds is None:
            return
        free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
        needs = ", ".join(
            f"{name} {value:g} (free: {free.get(name, 0):g})"
            for name, value in self.slots.resources.items()
        )
        name = self.running[trial_id].name
        self.watch.note(
            f"trial {name} has waited for a process for {seconds:.0f} s; it needs {needs}"
        )

    def _take_back(self) -> None:
        """Let the plan hand out the trials again that Tune dropped, under the same numbers."""
        for theirs in self.controller.get_trials() if self.controller is not None else ():
            trial = self.running.get(theirs.trial_id)
            if trial is None or theirs.status not in ("ERROR", "TERMINATED"):
                continue
            self.pulse.end(theirs.trial_id)
            if self.handed_out[trial.name] >= _MOST_HAND_OUTS:
                self.errors[theirs.trial_id] = f"no process took it in {_MOST_HAND_OUTS} attempts"
                self.on_trial_complete(theirs.trial_id, error=True)
            else:
                # not ended in the ledger, so the plan hands it out again
                del self.running[theirs.trial_id]
                self.watch.note(
                    f"trial {trial.name}: the process of the trial before is not free yet; it gets"
                    " another"
                )

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Record a report of a trial."""
        self.pulse.sign(trial_id)
        self._take(trial_id, result)

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
    ) -> None:
        """Record the end of a trial.

        Parameters
        ----------
        trial_id : str
            Tune's id of the trial.
        result : Mapping[str, Any] | None
            The last report; may be empty or None.
        error : bool
            Whether Tune says that the trial failed.
        """
        trial = self.running[trial_id]
        if result:
            self._take(trial_id, result)  # Tune gives the report that stopped it only here
        if trial.state == "running" and error:
            reason = self.errors.get(trial_id, "Ray could not run it")
            self.ledger.end(trial, "failed", reason=reason, blame="program")
        elif trial.state == "running":
            self.ledger.end(trial, "stopped", seconds=training_seconds(trial))
        del self.running[trial_id]
        self.pulse.end(trial_id)
        if self.slots.workers == 1:  # with several workers, others may still be writing
            forget_unneeded(self.plan, self.paths, trial)
        self.watch.ended(trial)

    def note_error(self, theirs: Any) -> None:
        """Keep Ray's error of a trial that died; Tune gives it to the scheduler first."""
        error = theirs.get_pickled_error() or theirs.get_error()
        # our own reason says more than Ray's
        if theirs.trial_id in self.errors:
            return
        if isinstance(error, RayActorError):
            self.errors[theirs.trial_id] = "its process died: killed, or out of memory"
        elif error is not None:
            last = [line for line in str(error).splitlines() if line.strip()][-1:]
            self.errors[theirs.trial_id] = f"{type(error).__name__}: {''.join(last)}"

    def save(self, checkpoint_path: str) -> None:
        """Do nothing; the ledger has everything."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing; the ledger has everything."""

    def _take(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Record each report of a trial once."""
        trial, state = self.running[trial_id], result.get("state")
        # Tune gives the last report twice: as a result and at the end
        if result["training_iteration"] <= self.taken.get(trial_id, 0) or trial.state != "running":
            return
        self.taken[trial_id] = result["training_iteration"]
        if state is None and "history" in result:
            self.ledger.epoch(trial, result)
            self.watch.epoch(trial, result["history"])
        elif state == "finished":
            # before the ledger: a trial that is finished there must have its values
            np.save(self.paths.of(trial) / VALUES, np.asarray(result["values"]))
            self.ledger.end(
                trial, "finished", value=result["value"], seconds=round(result["seconds"], 2)
            )
        elif state == "failed":
            if result["trace"]:
                (self.paths.of(trial) / "error.txt").write_text(
                    redact(result["trace"]), encoding="utf-8"
                )
            self.ledger.end(trial, "failed", reason=result["reason"], blame=result["blame"])


def task_of(
    plan: Plan, trial: Trial, config: Config, paths: TrialPaths, slots: Slots, pulse: str = ""
) -> Task:
    """The task of a trial; creates its folder.

    Parameters
    ----------
    plan : Plan
        The plan; may limit the time of a trial.
    trial : Trial
        The trial.
    config : Config
        Its configuration.
    paths : TrialPaths
        Where the dataset and the files of trials are.
    slots : Slots
        Threads, GPU and number of concurrent trials.
    pulse : str
        Key of the trial's heartbeats; "": it sends none.

    Returns
    -------
    Task
        Plain values, for another process.
    """
    folder = paths.of(trial)
    folder.mkdir(parents=True, exist_ok=True)
    run = config.run.model_copy(update={"dir": str(folder)})
    tree = config.model_copy(update={"run": run}).model_dump(mode="json")
    best = max((epoch["best"] for epoch in trial.epochs.values()), default=None)
    key = (trial.number, trial.repeat)
    until = plan.until(trial, slots.concurrent)
    deadline = None if until == math.inf else Deadline(until).to_send()
    return Task(
        *key,
        tree,
        paths.dataset,
        str(folder),
        slots.threads,
        slots.use_gpu,
        plan.config.seed,
        best,
        pulse,
        deadline,
    )


def training_seconds(trial: Trial) -> float:
    """Seconds that the epochs of a trial took."""
    return round(sum(float(report.get("seconds") or 0.0) for report in trial.history.values()), 2)
