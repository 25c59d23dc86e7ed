"""One worker of Ray Train: it runs the training loop, and hands reports and checkpoints over."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.train import Checkpoint
from ray.util.queue import Queue

from recsys.config import Config, ModelConfig, TrainConfig
from recsys.data.dataset import PreparedDataset
from recsys.errors import ArtifactError, StorageError, UserError
from recsys.pace import Count, reporting_to
from recsys.storage.filesystems import storage_errors
from recsys.training.checkpoint import TrainResult, check_checkpoint, load_progress, save_trained
from recsys.training.context import NOTE, Report, TrainContext
from recsys.training.final import fit_final
from recsys.training.phases import fit
from recsys.training.ray_reports import COUNT, USER_ERROR
from recsys.training.resume import find_checkpoints, first_sound
from recsys.training.threads import fastest_threads, usable_threads

MODEL_FOLDER = "trained"
PROGRESS_FOLDER = "progress"


class Stopped(Exception):
    """The training was stopped on request."""


def train_worker(settings: dict[str, Any]) -> None:
    """Train as one worker of Ray Train; :func:`~recsys.training.ray_train.train_on_ray` gives the
    settings.

    Raises
    ------
    StorageError
        Checkpoints cannot be written; Ray Train then tries again.
    """
    config = Config.model_validate(settings["config"])  # already expanded on the driver
    worker = ray.train.get_context()
    context = TrainContext(
        worker.get_world_rank(), worker.get_world_size(), ray.train.torch.get_device()
    )
    storage, _, _ = settings["checkpoints"]
    driver = _Driver(context, settings["queue"], settings["orders"], storage)
    try:
        driver.finish(_train(config, settings, driver))
    except StorageError:  # may be temporary: Ray Train tries again, train.max_failures times
        raise
    except UserError as error:  # the same on every rank and at every try: tell the driver and end
        if context.is_first:
            driver.queue.put({USER_ERROR: str(error)})
    except Stopped:  # an orderly end: Ray Train shuts the workers down
        return


@dataclass(frozen=True)
class _Driver:
    """What a worker hands to its driver and to Ray Train, and the order to stop."""

    context: TrainContext  # of the worker: its rank, and what all workers agree on
    queue: Queue
    orders: Queue | None
    storage: str

    def report(self, values: Report, folder: Path | None) -> None:
        """Report an epoch."""
        if self.context.is_first:
            self.queue.put(values)
        numbers = {name: value for name, value in values.items() if isinstance(value, (int, float))}
        self.hand_over(numbers, folder)

    def hand_over(self, numbers: Report, folder: Path | None) -> None:
        """Give numbers and a checkpoint folder, if any, to Ray Train.

        Raises
        ------
        Stopped
            The driver ordered the workers to stop.
        """
        if folder is None:
            ray.train.report(numbers)
        else:
            with tempfile.TemporaryDirectory() as parent:
                # Ray takes a whole folder as checkpoint, and readers find ours by its name inside
                os.rename(folder, Path(parent) / PROGRESS_FOLDER)
                _report_checkpoint(parent, numbers, self.storage)
        if self.orders is not None:
            # by the first worker, so that all end at the same epoch
            is_ordered = torch.tensor([self.context.is_first and not self.orders.empty()]).float()
            if self.context.from_first(is_ordered).item():
                raise Stopped

    def note(self, text: str) -> None:
        """Show a line of text to the user."""
        if self.context.is_first:
            self.queue.put({NOTE: text})

    def show(self, count: Count) -> None:
        """Show how many steps of long work are done."""
        self.queue.put({COUNT: count})

    def finish(self, result: TrainResult) -> None:
        """Give the trained model to Ray Train, as the last checkpoint."""
        if not self.context.is_first:
            ray.train.report({"finished": 1})
            return
        with tempfile.TemporaryDirectory() as parent:
            save_trained(Path(parent) / MODEL_FOLDER, result)
            _report_checkpoint(parent, {"finished": 1}, self.storage)


def _train(config: Config, settings: dict[str, Any], driver: _Driver) -> TrainResult:
    """Run the loop, from the newest checkpoint that is not damaged."""
    dataset = PreparedDataset(settings["dataset"])
    with tempfile.TemporaryDirectory() as parent:
        resume_from = _checkpoint_of(settings, Path(parent), driver.note)
        _settle_threads(
            settings["threads"], config.model, config.train, dataset, resume_from, driver.note
        )
        if resume_from is None and settings["head_start"] is not None:
            resume_from = _readable(Path(settings["head_start"]), driver.note)
        context = replace(
            driver.context,
            report=driver.report,
            resume_from=resume_from,
            save=partial(driver.hand_over, {"saved": 1}),
            note=driver.note,
            deadline=settings["deadline"],
        )
        start, final = (
            ray.get(held[0]) if held else None for held in (settings["start"], settings["final"])
        )
        shows_counts = context.is_first and settings["counts"]
        with reporting_to(driver.note, driver.show if shows_counts else None):
            if final is not None:
                return fit_final(config, dataset, context, final)
            return fit(config, dataset, settings["validate"], context, start)


def _checkpoint_of(
    settings: dict[str, Any], folder: Path, note: Callable[[str], None]
) -> Path | None:
    """The checkpoint to resume from, in ``folder``: after the loss of a worker that of this
    training, otherwise what an earlier driver left.
    """
    storage, name, earlier = settings["checkpoints"]
    # Ray gives a checkpoint only after it has started the workers again
    was_lost = ray.train.get_checkpoint() is not None
    candidates = find_checkpoints(storage, name) if was_lost else earlier
    return first_sound(candidates, PROGRESS_FOLDER, folder, note)


def _readable(checkpoint: Path, note: Callable[[str], None]) -> Path | None:
    """The checkpoint, or None with a note if this machine does not have it or it is damaged."""
    try:
        check_checkpoint(checkpoint)
    except ArtifactError as error:
        note(f"{error}; the training starts from scratch")
        return None
    return checkpoint


def _report_checkpoint(folder: str, numbers: Report, storage: str) -> None:
    """Report numbers with a checkpoint.

    Raises
    ------
    StorageError
        The storage cannot be written to.
    """
    with storage_errors(storage, "write checkpoints to"):
        ray.train.report(numbers, checkpoint=Checkpoint.from_directory(folder))


def _settle_threads(
    threads: int,
    model: ModelConfig,
    train: TrainConfig,
    dataset: PreparedDataset,
    resume_from: Path | None,
    note: Callable[[str], None],
) -> None:
    """Set the threads of this worker: as requested, or as in the interrupted training (same
    rounding), or the fastest.
    """
    if not threads and resume_from is not None:
        threads = load_progress(resume_from).threads
    if not threads:
        most = usable_threads(ray.train.get_context().get_local_world_size())
        threads, why = fastest_threads(model, train, dataset.num_items, most)
        if why:
            note(why)
    torch.set_num_threads(threads)
