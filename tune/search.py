"""The searcher that Ray Tune asks for every trial: it hands out the plan's, writes down what becomes of them, and looks
after those that run.
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
from tune.alive import Pulse
from tune.ledger import Ledger, Trial
from tune.plan import WAIT, Plan
from tune.slots import Slots
from tune.trial import Task, forget_checkpoints, settings_of

VALUES: Final = "valid.npy"
_MOST_HAND_OUTS: Final = 5  # of one trial that no process takes
_LOOK_S: Final = 1.0  # between two looks at the running trials
_AWAY_S: Final = 60.0  # without a look: the driver itself stood still, and its trials may have waited for it


class Watch(Protocol):
    """Who wants to know: progress lines, tracking."""

    def started(self, trial: Trial, config: Config) -> None: ...

    def epoch(self, trial: Trial, history: list[dict[str, Any]]) -> None: ...

    def ended(self, trial: Trial) -> None: ...

    def said(self, words: str) -> None: ...


@dataclass(frozen=True)
class Place:
    """Where trials find the dataset and leave their files."""

    dataset: str
    folder: Path  # RUN/trials

    def of(self, trial: Trial) -> Path:
        return self.folder / trial.name


class PlannedSearch(Searcher):
    """Hands the plan's trials to Tune and writes what becomes of them into the ledger.

    It also looks after them (:meth:`look`), as Tune asks its scheduler in every step. Two things that Tune leaves
    undone: it drops a trial, without a word to its searcher, when the process that is to be used again is still ending
    the trial before; and it waits without end for a process that does nothing.
    """

    def __init__(self, plan: Plan, place: Place, slots: Slots, watch: Watch) -> None:
        super().__init__(metric="best", mode="max")
        self.sweep = uuid.uuid4().hex[:8]
        self.pulse = Pulse(plan.config.tune.silent_s, beats=slots.workers == 1)
        self.controller: Any = None
        self.looked = 0.0
        self.handed_out: Counter[str] = Counter()  # by our name
        self.plan, self.place, self.slots, self.watch = plan, place, slots, watch
        self.ledger: Ledger = plan.ledger
        self.running: dict[str, Trial] = {}  # by Tune's id
        self.errors: dict[str, str] = {}  # of those that could not report it themselves
        self.taken: dict[str, int] = {}  # the last report of each that is written down

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its searcher for a restore that the ledger makes needless

    def set_search_properties(self, metric: str | None, mode: str | None, config: Any, **spec: Any) -> bool:
        return True

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """Say that ``suggest`` keeps the bound itself; Tune's own counts a trial that it dropped for good."""
        return True

    def suggest(self, trial_id: str) -> Any:
        self._take_back()
        if len(self.running) >= self.slots.concurrent:
            return None
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
            self.handed_out[trial.name] += 1
            if self.handed_out[trial.name] == 1:
                self.watch.started(trial, config)
            task = task_of(self.plan, trial, config, self.place, self.slots, f"{self.sweep}/{trial_id}")
            self.pulse.begin(trial_id, task.pulse)
            return settings_of(task)

    def look(self, controller: Any) -> None:
        """End the trials that give no sign of life; say which ones wait for a process."""
        self.controller, now = controller, time.monotonic()
        if now - self.looked < _LOOK_S:
            return
        if self.looked and now - self.looked > _AWAY_S:
            self.pulse.begin_anew()
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
            f"no sign of life for {seconds:.0f} s, so its process was ended; if it only needs more time, raise "
            f"tune.silent_s (now {silent_s:g})"
        )
        self.watch.said(f"trial {trial.name} gives no sign of life since {seconds:.0f} s: it is ended")
        ray.kill(process)  # Tune sees that the process is gone, as with any that dies

    def _say_that_it_waits(self, trial_id: str) -> None:
        seconds = self.pulse.waits(trial_id)
        if seconds is None:
            return
        free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
        needs = ", ".join(
            f"{name} {value:g} (free: {free.get(name, 0):g})" for name, value in self.slots.resources.items()
        )
        name = self.running[trial_id].name
        self.watch.said(f"trial {name} waits for a process since {seconds:.0f} s; it needs {needs}")

    def _take_back(self) -> None:
        """What Tune dropped is handed out again, by the plan, under its number."""
        for theirs in self.controller.get_trials() if self.controller is not None else ():
            trial = self.running.get(theirs.trial_id)
            if trial is None or theirs.status not in ("ERROR", "TERMINATED"):
                continue
            self.pulse.end(theirs.trial_id)
            if self.handed_out[trial.name] >= _MOST_HAND_OUTS:
                self.errors[theirs.trial_id] = f"no process took it, {_MOST_HAND_OUTS} times"
                self.on_trial_complete(theirs.trial_id, error=True)
            else:
                del self.running[theirs.trial_id]
                self.watch.said(f"trial {trial.name}: the process of the trial before is not free yet; it gets another")

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        self.pulse.sign(trial_id)
        self._take(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        trial = self.running[trial_id]
        if result:
            self._take(trial_id, result)  # of the report that stopped it Tune tells here alone
        if trial.state == "running" and error:
            reason = self.errors.get(trial_id, "Ray could not run it")
            self.ledger.end(trial, "failed", reason=reason, blame="program")
        elif trial.state == "running":
            self.ledger.end(trial, "stopped", seconds=training_seconds(trial))
        del self.running[trial_id]
        self.pulse.end(trial_id)
        if self.slots.workers == 1:  # others may still be writing
            forget_checkpoints(self.place.of(trial))
        self.watch.ended(trial)

    def note_error(self, theirs: Any) -> None:
        """Keep what Ray says of a trial that died; it tells its scheduler first."""
        error = theirs.get_pickled_error() or theirs.get_error()
        if theirs.trial_id in self.errors:
            return
        if isinstance(error, RayActorError):
            self.errors[theirs.trial_id] = "its process died: killed, or out of memory"
        elif error is not None:
            last = [line for line in str(error).splitlines() if line.strip()][-1:]
            self.errors[theirs.trial_id] = f"{type(error).__name__}: {''.join(last)}"

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """The ledger has everything."""

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


def task_of(plan: Plan, trial: Trial, config: Config, place: Place, slots: Slots, pulse: str = "") -> Task:
    """What a trial is to do; its folder is there then."""
    folder = place.of(trial)
    folder.mkdir(parents=True, exist_ok=True)
    run = config.run.model_copy(update={"dir": str(folder)})
    tree = config.model_copy(update={"run": run}).model_dump(mode="json")
    best = max((epoch["best"] for epoch in trial.epochs.values()), default=None)
    key = (trial.number, trial.repeat)
    left = plan.until(trial, slots.concurrent) - time.monotonic()
    until = None if left == math.inf else time.time() + left  # a clock that other processes share
    return Task(*key, tree, place.dataset, str(folder), slots.threads, slots.use_gpu, best, pulse, until)


def training_seconds(trial: Trial) -> float:
    """How long the epochs of a trial took."""
    return round(sum(float(report.get("seconds") or 0.0) for report in trial.history.values()), 2)
