"""One trial: the normal training loop with one configuration, in one process or on workers of Ray
Train.

Why two ways: a trial that fits one process runs the loop itself, in a process that the next trial
reuses (overhead half a second); a trial of several workers wraps the trainer (fifteen seconds or
more). The loop is the same.

A trial reports every validated epoch: ``epoch``, ``value`` (the validation metric), ``best`` so far
and ``history`` (the loop's reports since the last one). Its last report has ``state`` with
``value``, or with ``reason`` and ``blame``. An error in a trial is also a report, so that the sweep
continues.
"""

from __future__ import annotations

import gc
import json
import math
import os
import queue
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import ray.tune
import torch

from recsys.config import Config
from recsys.data.bounded import evaluated_by_shard
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array, Queries, Split
from recsys.errors import ArtifactError, TrainingError, UserError
from recsys.evaluation.validation import Validator
from recsys.model import FrozenModel
from recsys.pace import Deadline
from recsys.training.checkpoint import check_checkpoint
from recsys.training.context import Report, TrainContext
from recsys.training.phases import fit
from tune.heartbeats import beating

# validation queries whose values a trial returns, for paired comparisons
MAX_VALUES: Final = 20_000
# seconds for a stopped training of several workers to reach its next epoch
STOP_PATIENCE_S: Final = 300.0
_END_PATIENCE_S: Final = (
    "60"  # seconds that Tune waits for a stopped trial to end; Ray's default is 2
)
_CHECKPOINT: Final = "checkpoint-"


@dataclass(frozen=True)
class Task:
    """The task of a trial; plain values, because it is sent to another process."""

    number: int
    repeat: int
    config: dict[str, Any]  # of the trial, with its seed
    dataset: str  # the prepared dataset that all trials read
    folder: str  # for checkpoints; "" if the trial may run on another machine
    threads: int
    use_gpu: bool
    # of the sample of evaluated users; the same for all seeds of the training, because their
    # values are compared user by user
    sample_seed: int
    best: float | None = None  # best value that an interrupted trial has reported
    pulse: str = ""  # the key of its heartbeats, see tune.heartbeats
    # of Deadline.to_send: at this deadline it ends itself with its results so far
    deadline: tuple[float, float] | None = None


def run_trial(task: Task, report: Callable[[dict[str, Any]], Any]) -> None:
    """Train in this process and report as described above; exceptions of the training become
    reports.

    Continues from the trial's last checkpoint if there is one. ``report`` may raise ``SystemExit``
    to stop the trial.
    """
    gc.collect()  # frees the model of the trial before, which ran in the same process
    started = time.perf_counter()
    try:
        config = Config.model_validate(task.config)
        # trials run at the same time, and each would take all cores
        torch.set_num_threads(task.threads)
        dataset, validate = _dataset(task.dataset), Validator.of(config.train, config.evaluate)
        folder = Path(task.folder) if task.folder and Path(task.folder).is_dir() else None
        epochs = Epochs(config.train.metric, report, task.best)

        def keep(checkpoint: Path | None) -> None:
            if folder is not None and checkpoint is not None:
                _keep_checkpoint(checkpoint, folder)

        def tell(values: Report, checkpoint: Path | None) -> None:
            epochs(values)  # first: an epoch before a checkpoint is never reported again
            keep(checkpoint)

        device = torch.device("cuda" if task.use_gpu else "cpu")
        resumed = last_checkpoint(folder) if folder is not None else None
        deadline = Deadline() if task.deadline is None else Deadline.received(*task.deadline)
        context = TrainContext(
            device=device, report=tell, resume_from=resumed, save=keep, deadline=deadline
        )
        result = fit(config, dataset, validate, context)
        seconds = time.perf_counter() - started - epochs.waited
        queries = evaluated_by_shard(dataset, Split.VALID, config.evaluate, task.sample_seed)
        report(finished(result.frozen, queries, validate, seconds))
    except Exception as error:
        report(failed(error))
    finally:
        if task.use_gpu:
            # the process stays for the next trial, but other processes share the GPU
            torch.cuda.empty_cache()


class Epochs:
    """Turns the loop's reports of epochs into a trial's reports of validated epochs."""

    def __init__(
        self, metric: str, report: Callable[[dict[str, Any]], Any], best: float | None = None
    ) -> None:
        self.metric, self.report, self.best = metric, report, best
        # seconds that reports waited for the driver; not part of the training time
        self.waited = 0.0
        self.waiting: list[Report] = []

    def __call__(self, values: Report) -> None:
        """Collect a report; pass on a validated epoch."""
        if "epoch" not in values:  # a note of the trainer
            return
        self.waiting.append(values)
        if self.metric not in values:
            return
        value = _finite(float(values[self.metric]), self.metric)
        self.best = value if self.best is None else max(self.best, value)
        history, self.waiting = self.waiting, []
        begun = time.perf_counter()
        self.report(
            {"epoch": int(values["epoch"]), "value": value, "best": self.best, "history": history}
        )
        self.waited += time.perf_counter() - begun


def finished(
    model: FrozenModel, chunks: Iterable[Queries], validate: Validator, seconds: float
) -> dict[str, Any]:
    """The last report of a training: the metric of the resulting model on the queries that the
    epochs were validated on, so that it is compared with trials that were stopped.

    Parameters
    ----------
    model : FrozenModel
        The trained model.
    chunks : Iterable[Queries]
        The validation queries of the evaluated users; a chunk may be empty.
    validate : Validator
        Gives the metric of every query.
    seconds : float
        Duration of the training.

    Returns
    -------
    dict[str, Any]
        ``state``, ``value`` (mean over all queries), ``values`` (a sample of them, float32) and
        ``seconds``.

    Raises
    ------
    TrainingError
        The metric is not a finite number.
    """
    values_B = np.concatenate([validate(model, queries) for queries in chunks if len(queries)])
    # every n-th and not a random sample, so that trials are compared on the same queries
    every = -(-len(values_B) // MAX_VALUES)
    sample: Array = values_B[::every].astype(np.float32)
    value = _finite(float(values_B.mean()), validate.metric)
    return {"state": "finished", "value": value, "values": sample, "seconds": seconds}


def failed(error: Exception) -> dict[str, Any]:
    """The last report of a training that ended with an exception."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()] or ["no message"]
    if isinstance(error, UserError):
        return {"state": "failed", "reason": "\n".join(lines), "blame": "user", "trace": ""}
    reason = f"{type(error).__name__}: {lines[0]}"
    return {
        "state": "failed",
        "reason": reason,
        "blame": "program",
        "trace": traceback.format_exc(),
    }


def train_in_process(settings: Mapping[str, Any]) -> None:
    """Trainable of Ray Tune: a plain function, so that the next trial can reuse its process."""
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", _END_PATIENCE_S)
    task = read_task(settings)
    with beating(task.pulse):
        run_trial(task, ray.tune.report)


class WorkersTrial(ray.tune.Trainable):
    """Trainable of Ray Tune around Ray Train, for trials of several workers.

    Why a class: a trial that is stopped early must end its training cleanly, or the resources of
    its workers stay reserved (Ray Train's own cleaner needs the dashboard). Tune waits for
    ``cleanup``.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Start the training in a thread."""
        self.reports: queue.Queue[dict[str, Any]] = queue.Queue()
        self.stopping = threading.Event()
        self.training = threading.Thread(
            target=self._train, args=(read_task(config),), daemon=True, name="training"
        )
        self.training.start()

    def step(self) -> dict[str, Any]:
        """Wait for the next report."""
        found = self.reports.get()
        return {**found, "done": True} if "state" in found else found

    def cleanup(self) -> None:
        """Let the workers end at their next epoch, and wait until Ray Train has released all
        resources.
        """
        self.stopping.set()
        # bounded, because workers that hang must not stop the sweep
        self.training.join(STOP_PATIENCE_S)

    def _train(self, task: Task) -> None:
        from recsys.training.ray_train import train_on_ray
        from recsys.training.ray_worker import Stopped

        started = time.perf_counter()
        try:
            config = Config.model_validate(task.config)
            config.run.resume = True  # continues if the sweep was killed
            dataset, validate = (
                PreparedDataset(task.dataset),
                Validator.of(config.train, config.evaluate),
            )
            epochs = Epochs(config.train.metric, self.reports.put, task.best)
            result = train_on_ray(config, dataset, validate, epochs, stop=self.stopping)
            seconds = time.perf_counter() - started
            queries = evaluated_by_shard(dataset, Split.VALID, config.evaluate, task.sample_seed)
            self.reports.put(finished(result.frozen, queries, validate, seconds))
        # nobody waits for a report of a stopped trial
        except Stopped:
            pass
        except Exception as error:
            self.reports.put(failed(error))


def forget_checkpoints(folder: Path) -> None:
    """Remove the checkpoints, which only an interrupted trial needs."""
    for left in (
        *folder.glob(f"{_CHECKPOINT}*"),
        *folder.glob(f".{_CHECKPOINT}*"),
        folder / "checkpoints",
    ):
        shutil.rmtree(left, ignore_errors=True)


def _finite(value: float, metric: str) -> float:
    if not math.isfinite(value):
        raise TrainingError(
            f"{metric} on validation is {value}: the scores are not finite; lower train.lr"
        )
    return value


def settings_of(task: Task) -> dict[str, Any]:
    """A task as one setting of a Ray Tune trial; only one, because Tune names folders by
    settings.
    """
    return {"task": json.dumps(asdict(task))}


def read_task(settings: Mapping[str, Any]) -> Task:
    """What :func:`settings_of` wrote."""
    return Task(**json.loads(settings["task"]))


@lru_cache(maxsize=1)
def _dataset(root: str) -> PreparedDataset:
    """The dataset, opened once for all trials of a process."""
    return PreparedDataset(root)


def _keep_checkpoint(checkpoint: Path, folder: Path) -> None:
    """Replace earlier checkpoints by a new one, atomically."""
    aside = folder / f".{_CHECKPOINT}{os.getpid()}"
    kept = folder / f"{_CHECKPOINT}{time.time_ns()}"
    with suppress(OSError):  # with a full disk the trial cannot be resumed, but it continues
        shutil.rmtree(aside, ignore_errors=True)
        # a move may be a copy across file systems, so the name appears only with the rename
        shutil.move(checkpoint, aside)
        earlier = list(folder.glob(f"{_CHECKPOINT}*"))
        aside.rename(kept)
        for other in earlier:
            shutil.rmtree(other, ignore_errors=True)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest undamaged checkpoint of a trial, or None."""
    # by the time in the name; a kill during the change may leave two
    for checkpoint in sorted(folder.glob(f"{_CHECKPOINT}*"), reverse=True):
        with suppress(ArtifactError):
            check_checkpoint(checkpoint)
            return checkpoint
    return None
