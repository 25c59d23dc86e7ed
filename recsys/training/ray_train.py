"""Run the training loop on Ray Train: workers, devices, checkpoints, and reports that reach the
driver immediately.

Why a queue for reports: workers log on their own machines, and Ray Train passes metrics on only
with a checkpoint. Rank 0 puts the report of each epoch into a queue actor. The driver reads it, so
one process prints and writes to MLflow.
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.autoscaler.sdk import request_resources
from ray.exceptions import RayActorError
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    ControllerError,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
)
from ray.train.torch import TorchTrainer
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from recsys.config import Config, RayConfig, TrainConfig
from recsys.data.dataset import PreparedDataset
from recsys.errors import ArtifactError, ConfigError, StorageError, UserError
from recsys.pace import Count, Deadline, reporting_to, shown_by
from recsys.storage.mirror import remove
from recsys.storage.places import filesystem_of, storage_errors
from recsys.storage.uris import is_remote, within
from recsys.training.build import Start
from recsys.training.checkpoint import (
    TrainResult,
    check_checkpoint,
    load_progress,
    load_trained,
    save_trained,
)
from recsys.training.context import Report, TrainContext
from recsys.training.final import Final, fit_final
from recsys.training.loop import Validate
from recsys.training.phases import fit
from recsys.training.resume import (
    find_checkpoints,
    first_sound,
    forget_trainings,
    run_name,
    training_digest,
)
from recsys.training.threads import asked_threads, fastest_threads, usable_threads

MODEL_FOLDER = "trained"
PROGRESS_FOLDER = "progress"
USER_ERROR = "user_error"
NOTE = "note"
_COUNT = "count"
_ABORT_S = 15.0


def train_on_ray(
    config: Config,
    dataset: PreparedDataset,
    validate: Validate,
    report: Callable[[Report], None],
    start: Start | None = None,
    stop: threading.Event | None = None,
    final: Final | None = None,
    deadline: Deadline | None = None,
    head_start: Path | None = None,
) -> TrainResult:
    """Train on ``train.num_workers`` workers of the connected Ray cluster.

    With ``run.resume``, an interrupted training of the same configuration and data resumes from its
    newest checkpoint that is not damaged. Files of earlier trainings in the run folder are removed
    when this one is done.

    Parameters
    ----------
    config : Config
        The configuration.
    dataset : PreparedDataset
        The dataset.
    validate : Validate
        Computes the validation metric.
    report : Callable[[Report], None]
        Called on the driver with the report of each epoch, and with ``{"note": text}`` for other
        messages.
    start : Start | None
        Where the training starts; by default at random.
    stop : threading.Event | None
        Once it is set, the workers end at their next report and release their resources; killing
        the trainer would not release them.
    final : Final | None
        If given, this is a training on all events (see ``recsys.training.final``).
    deadline : Deadline | None
        When the training must be done (see ``recsys.training.phases``).
    head_start : Path | None
        A checkpoint of a trial with this configuration, on this machine; the training continues it
        unless it has a checkpoint of its own.

    Raises
    ------
    Stopped
        ``stop`` was set.
    ConfigError
        The cluster has fewer workers or GPUs than requested.
    UserError
        The loop found an error in the data or the configuration.
    """
    storage, digest = _storage(config.run.dir), training_digest(config, dataset, start, final)
    earlier = find_checkpoints(storage, f"train-{digest}")
    finished = _finished(earlier)
    if not config.run.resume:
        if earlier and finished is None:
            report(
                {
                    NOTE: (
                        "starting from scratch; --resume would continue an interrupted training of"
                        " this kind"
                    )
                }
            )
        earlier = []
    elif finished is not None:
        return finished
    use_gpu = _use_gpu(config.train, config.ray)
    _check_cpus(config.train, config.ray)
    name = run_name(digest)
    # the default delays every report by 2 s
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # so that they survive the loss of a training node
    on_driver = {"num_cpus": 0, "scheduling_strategy": here}
    queue = Queue(actor_options=on_driver)
    orders = None if stop is None else Queue(actor_options=on_driver)
    drain = _Drain(queue, report, stop, orders)
    drain.start()
    trainer = _Trainer(
        _worker,
        train_loop_config={
            "config": config.model_dump(mode="json"),
            "dataset": dataset.root,
            "threads": asked_threads(config.train),
            "validate": validate,
            "queue": queue,
            "checkpoints": (storage, name, earlier),
            "head_start": None if head_start is None else str(head_start),
            "orders": orders,
            "counts": shown_by() is not None,
            "deadline": deadline or Deadline(),
            "start": [] if start is None else [ray.put(start)],  # sent once, by the object store
            "final": [] if final is None else [ray.put(final)],
        },
        scaling_config=ScalingConfig(num_workers=config.train.num_workers, use_gpu=use_gpu),
        run_config=RunConfig(
            **_where(storage),
            name=name,
            failure_config=FailureConfig(max_failures=config.train.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    before = signal.getsignal(signal.SIGINT)
    try:
        checkpoint = _fitted(trainer, storage, name)
    finally:
        if threading.current_thread() is threading.main_thread():
            # Ray Train leaves its own handler, which is for this training only
            signal.signal(signal.SIGINT, before)
        drain.stop()
        for ended in filter(None, (queue, orders)):
            with suppress(Exception):
                ended.shutdown()
    if drain.user_error:
        raise UserError(drain.user_error)
    if stop is not None and stop.is_set():
        raise Stopped
    assert checkpoint is not None, "a finished training has its model in a checkpoint"
    if drain.failure is not None:
        warnings.warn(f"reports stopped reaching the driver's log: {drain.failure}", stacklevel=2)
    with checkpoint.as_directory() as folder:
        result = load_trained(Path(folder) / MODEL_FOLDER)
    forget_trainings(storage, keep=name)
    return result


class _Trainer(TorchTrainer):
    """A trainer that leaves SIGINT to the command; with the handler of Ray Train the exit code
    would be 1.
    """

    controller: Any = None

    def _register_sigint_handler(self, controller: Any) -> None:
        self.controller = controller

    def abort(self) -> None:
        """Release the workers; otherwise their pending requests would
        keep machines of the cluster.
        """
        if self.controller is not None:
            with suppress(Exception):  # the controller exits, so it may never answer
                ray.get(self.controller.abort.remote(), timeout=_ABORT_S)


def _fitted(trainer: _Trainer, storage: str, name: str) -> Checkpoint | None:
    """Train and return the last checkpoint, which holds the trained model; remove half-written ones
    after a failure.

    None if the workers ended before the first checkpoint, because of a user error or because they
    were stopped.

    Raises
    ------
    StorageError
        Checkpoints cannot be written.
    """
    try:
        checkpoint: Checkpoint | None = trainer.fit().checkpoint
    except TrainingFailedError as error:
        with suppress(Exception):  # the storage may still not answer
            for place in find_checkpoints(storage, name):
                if not _is_whole(place):
                    remove(place)
        if isinstance(error, ControllerError):
            with storage_errors(storage, "write checkpoints to"):
                raise error.controller_failure from None
        raise
    except (
        RayActorError
    ) as error:  # the controller dies if the storage fails at its start; the cause is in the text
        told = next((line for line in reversed(str(error).splitlines()) if "OSError: " in line), "")
        if not told:
            raise
        with storage_errors(storage, "write checkpoints to"):
            raise OSError(told.partition("OSError: ")[2]) from None
    except (KeyboardInterrupt, SystemExit):
        trainer.abort()
        raise
    return checkpoint


def _is_whole(place: str) -> bool:
    """Whether a checkpoint, of a trained model or of a running
    training, is complete and undamaged.
    """
    with (
        Checkpoint(*reversed(filesystem_of(place))).as_directory() as name,
        suppress(ArtifactError),
    ):
        folder = Path(name)
        if (folder / MODEL_FOLDER).is_dir():
            load_trained(folder / MODEL_FOLDER)
        else:
            check_checkpoint(folder / PROGRESS_FOLDER)
        return True
    return False


def _finished(checkpoints: list[str]) -> TrainResult | None:
    """The model of a training that finished before its driver was lost; None if it did not finish
    or is damaged.
    """
    if not checkpoints:
        return None
    with (
        Checkpoint(*reversed(filesystem_of(checkpoints[0]))).as_directory() as folder,
        suppress(ArtifactError),
    ):
        return load_trained(Path(folder) / MODEL_FOLDER)
    return None


def _worker(settings: dict[str, Any]) -> None:
    """One worker of Ray Train."""
    config = Config.model_validate(settings["config"])  # already expanded on the driver
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    queue: Queue = settings["queue"]
    storage, name, earlier = settings["checkpoints"]
    orders: Queue | None = settings["orders"]

    def report(values: Report, folder: Path | None) -> None:
        if rank == 0:
            queue.put(values)
        hand_over(
            {name: value for name, value in values.items() if isinstance(value, (int, float))},
            folder,
        )

    def hand_over(numbers: Report, folder: Path | None) -> None:
        if folder is None:
            ray.train.report(numbers)
        else:
            with tempfile.TemporaryDirectory() as parent:
                os.rename(folder, Path(parent) / PROGRESS_FOLDER)
                _keep(parent, numbers, storage)
        if orders is not None:
            told = torch.tensor([rank == 0 and not orders.empty()], dtype=torch.float32)
            if training.from_first(
                told
            ).item():  # by the first worker, so that all end at the same epoch
                raise Stopped

    def note(text: str) -> None:
        if rank == 0:
            queue.put({NOTE: text})

    def show(count: Count) -> None:
        queue.put({_COUNT: count})

    try:
        dataset = PreparedDataset(settings["dataset"])
        # set after a worker was lost; otherwise use what an earlier driver left
        resumed = ray.train.get_checkpoint()
        with tempfile.TemporaryDirectory() as parent:
            candidates = find_checkpoints(storage, name) if resumed is not None else earlier
            resume_from = first_sound(candidates, PROGRESS_FOLDER, Path(parent), note)
            _settle_threads(settings["threads"], config, dataset, resume_from, note)
            if resume_from is None and settings["head_start"] is not None:
                resume_from = _readable(Path(settings["head_start"]), note)
            device = ray.train.torch.get_device()
            save = partial(hand_over, {"saved": 1})
            training = TrainContext(
                rank, world_size, device, report, resume_from, save, note, settings["deadline"]
            )
            start, final = (
                ray.get(held[0]) if held else None
                for held in (settings["start"], settings["final"])
            )
            with reporting_to(note, show if rank == 0 and settings["counts"] else None):
                if final is not None:
                    result = fit_final(config, dataset, training, final)
                else:
                    result = fit(config, dataset, settings["validate"], training, start)
        with tempfile.TemporaryDirectory() as parent:
            if rank == 0:
                save_trained(Path(parent) / MODEL_FOLDER, result)
                _keep(parent, {"finished": 1}, storage)
            else:
                ray.train.report({"finished": 1})
    except StorageError:  # may be temporary: Ray Train tries again, train.max_failures times
        raise
    except UserError as error:  # the same on every rank and at every try: tell the driver and end
        if rank == 0:
            queue.put({USER_ERROR: str(error)})
    except Stopped:  # an orderly end: Ray Train shuts the workers down
        return


def _readable(checkpoint: Path, note: Callable[[str], None]) -> Path | None:
    """The checkpoint, or None with a note if this machine does not have it or it is damaged."""
    try:
        check_checkpoint(checkpoint)
    except ArtifactError as error:
        note(f"{error}; the training starts from scratch")
        return None
    return checkpoint


def _keep(folder: str, numbers: Report, storage: str) -> None:
    """Report numbers with a checkpoint.

    Raises
    ------
    StorageError
        The storage cannot be written to.
    """
    with storage_errors(storage, "write checkpoints to"):
        ray.train.report(numbers, checkpoint=Checkpoint.from_directory(folder))


class Stopped(Exception):
    """The training was stopped on request."""


class _Drain(threading.Thread):
    """Passes reports from the queue to the driver's callback as they come, and the stop request to
    the workers.
    """

    def __init__(
        self,
        queue: Queue,
        report: Callable[[Report], None],
        stop: threading.Event | None = None,
        orders: Queue | None = None,
    ) -> None:
        super().__init__(daemon=True, name="training-reports")
        self.queue, self.report, self.done = queue, report, threading.Event()
        self.stopping, self.orders = stop, orders
        self.show = shown_by()  # here, because the thread has none of its own
        self.user_error = ""
        self.failure: Exception | None = None

    def run(self) -> None:
        while not self.done.is_set():
            self._take(0.5)
            if self.orders is not None and self.stopping is not None and self.stopping.is_set():
                self.orders.put("stop")
                self.orders = None

    def stop(self) -> None:
        self.done.set()
        self.join(timeout=5)
        while self._take(0.0):
            pass

    def _take(self, timeout: float) -> bool:
        try:
            values = self.queue.get(block=timeout > 0, timeout=timeout or None)
        except Empty:
            return False
        except Exception:  # the queue actor is gone with the cluster
            return False
        if USER_ERROR in values:
            self.user_error = values[USER_ERROR]
            return True
        try:
            if _COUNT not in values:
                self.report(values)
            elif self.show is not None:
                self.show(values[_COUNT])
        except Exception as error:  # a lost tracking server must not cost hours of training
            self.failure = error
        return True


def _use_gpu(train: TrainConfig, ray: RayConfig) -> bool:
    if train.use_gpu == "no":
        return False
    available = _cluster("GPU") if train.use_gpu == "auto" else _await("GPU", train, ray)
    if available >= train.num_workers:
        return True
    if train.use_gpu == "yes":
        raise ConfigError(
            f"train.use_gpu is yes and train.num_workers {train.num_workers}, but the Ray"
            f" cluster has {available} GPUs; lower train.num_workers, set train.use_gpu to auto,"
            " or, if the cluster starts machines, give it time with ray.wait_s"
        )
    return False


def _check_cpus(train: TrainConfig, ray: RayConfig) -> None:
    """Refuse more workers than the cluster has CPUs, as Ray would wait for them forever."""
    available = _await("CPU", train, ray)
    if available < train.num_workers:
        raise ConfigError(
            f"train.num_workers is {train.num_workers}, but the Ray cluster has {available}"
            " CPUs, and each worker needs one; lower train.num_workers, raise ray.num_cpus to"
            " share cores (local), or, if the cluster starts machines, give it time with"
            " ray.wait_s"
        )


def _await(resource: str, train: TrainConfig, ray: RayConfig) -> int:
    """The amount of a resource in the cluster, as soon as there is one per worker, or when
    ``ray.wait_s`` is over.

    Asks the autoscaler for them, as Ray itself asks only once the workers wait, which may be
    forever.
    """
    needed, last = train.num_workers, time.monotonic() + ray.wait_s
    asked = False
    while (found := _cluster(resource)) < needed and time.monotonic() < last:
        if not asked:
            request_resources(bundles=[{resource: 1}] * needed)
            asked = True
        time.sleep(min(2.0, max(0.0, last - time.monotonic())))
    if asked:
        request_resources(bundles=[])  # an outstanding request would keep the machines forever
    return found


def _cluster(resource: str) -> int:
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return int(resources.get(resource, 0))


def _settle_threads(
    asked: int,
    config: Config,
    dataset: PreparedDataset,
    resume_from: Path | None,
    note: Callable[[str], None],
) -> None:
    """Set the threads of this worker: as requested, or as in the interrupted training (same
    rounding), or the fastest.
    """
    if not asked and resume_from is not None:
        asked = load_progress(resume_from).threads
    if not asked:
        most = usable_threads(ray.train.get_context().get_local_world_size())
        asked, why = fastest_threads(config.model, config.train, dataset.num_items, most)
        if why:
            note(why)
    torch.set_num_threads(asked)


def _storage(run_dir: str) -> str:
    place = within(run_dir, "checkpoints")
    return place if is_remote(place) else str(Path(place).absolute())


def _where(storage: str) -> dict[str, Any]:
    """The arguments of Ray Train for the storage; a URI gets our own filesystem, which has
    timeouts.
    """
    filesystem, path = filesystem_of(storage)
    return (
        {"storage_path": path, "storage_filesystem": filesystem}
        if is_remote(storage)
        else {"storage_path": path}
    )
