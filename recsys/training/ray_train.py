"""Run the training loop on Ray Train: workers, devices, checkpoints, and the end of a training.

:mod:`~recsys.training.ray_worker` is what every worker runs, :mod:`~recsys.training.ray_reports`
brings its reports to the driver, and :mod:`~recsys.training.ray_resources` waits for CPUs and GPUs.
"""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
import ray.train
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
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from recsys.config import Config
from recsys.data.dataset import PreparedDataset
from recsys.errors import ArtifactError, UserError
from recsys.pace import Deadline, shown_by
from recsys.storage.filesystems import filesystem_of, storage_errors
from recsys.storage.mirror import remove
from recsys.storage.uris import is_remote, within
from recsys.training.checkpoint import TrainResult, check_checkpoint, load_trained
from recsys.training.context import NOTE, Report
from recsys.training.final import Final
from recsys.training.fresh_model import Start
from recsys.training.ray_reports import ReportReader
from recsys.training.ray_resources import check_cpus, use_gpu
from recsys.training.ray_worker import MODEL_FOLDER, PROGRESS_FOLDER, Stopped, train_worker
from recsys.training.resume import find_checkpoints, forget_trainings, run_name, training_digest
from recsys.training.shared_validation import Validate
from recsys.training.threads import requested_threads

_ABORT_S = 15.0
_RESTARTS = 3
_FROM_SCRATCH = (
    "starting from scratch; --resume would continue an interrupted training of this kind"
)


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
    # a driver may have been lost after its training ended, but before the model was copied
    finished = _finished(earlier)
    if config.run.resume and finished is not None:
        return finished
    if earlier and finished is None and not config.run.resume:
        report({NOTE: _FROM_SCRATCH})
    gpu = use_gpu(config.train, config.ray)
    check_cpus(config.train, config.ray)
    name = run_name(digest)
    settings = {
        "config": config.model_dump(mode="json"),
        # the path and not the data: every worker reads its shards itself
        "dataset": dataset.root,
        "threads": requested_threads(config.train),
        "validate": validate,
        "checkpoints": (storage, name, earlier if config.run.resume else []),
        "head_start": None if head_start is None else str(head_start),
        "counts": shown_by() is not None,
        "deadline": deadline or Deadline(),
        "start": [] if start is None else [ray.put(start)],  # sent once, by the object store
        "final": [] if final is None else [ray.put(final)],
    }
    run_config = RunConfig(
        **_storage_arguments(storage),
        name=name,
        failure_config=FailureConfig(max_failures=config.train.max_failures),
        # two: the newest may be damaged if the writer was killed
        checkpoint_config=CheckpointConfig(num_to_keep=2),
    )
    scaling = ScalingConfig(num_workers=config.train.num_workers, use_gpu=gpu)
    checkpoint = _run(settings, scaling, run_config, storage, report, stop)
    with checkpoint.as_directory() as folder:
        result = load_trained(Path(folder) / MODEL_FOLDER)
    # only now: until the model is read, the earlier checkpoints are what a resumption needs
    forget_trainings(storage, keep=name)
    return result


def _run(
    settings: dict[str, Any],
    scaling: ScalingConfig,
    run_config: RunConfig,
    storage: str,
    report: Callable[[Report], None],
    stop: threading.Event | None,
) -> Checkpoint:
    """Run the workers to their end, while a thread passes on their reports; return the checkpoint
    with the trained model.

    Raises
    ------
    UserError
        A worker met one; it is raised again here.
    Stopped
        ``stop`` was set.
    """
    # the default delays every report by 2 s
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    queue = queue_on_driver()
    orders = None if stop is None else queue_on_driver()
    reader = ReportReader(queue, report, stop, orders)
    reader.start()
    trainer = _Trainer(
        train_worker,
        train_loop_config={**settings, "queue": queue, "orders": orders},
        scaling_config=scaling,
        run_config=run_config,
    )
    before = signal.getsignal(signal.SIGINT)
    try:
        checkpoint = _last_checkpoint(trainer, storage, str(run_config.name))
    finally:
        if threading.current_thread() is threading.main_thread():
            # Ray Train leaves its own handler, which is for this training only
            signal.signal(signal.SIGINT, before)
        reader.stop()
        for ended in (queue, orders):
            # not by its truth, which asks the actor how many entries it has
            if ended is not None:
                with suppress(Exception):
                    # by force: Ray would print that it tries the orderly end again
                    ended.shutdown(force=True)
    if reader.user_error:
        raise UserError(reader.user_error)
    if stop is not None and stop.is_set():
        raise Stopped
    assert checkpoint is not None, "a finished training has its model in a checkpoint"
    if reader.failure is not None:
        warnings.warn(f"reports stopped reaching the driver's log: {reader.failure}", stacklevel=3)
    return checkpoint


def queue_on_driver() -> Queue:
    """A queue on the node of the driver, so that it survives the loss of a training node.

    If its process is lost, it starts again empty. That loses only reports: the driver logs missing
    epochs at the end.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Queue(
        actor_options={
            "num_cpus": 0,
            "scheduling_strategy": here,
            "max_restarts": _RESTARTS,
            "max_task_retries": _RESTARTS,
        }
    )


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


def _last_checkpoint(trainer: _Trainer, storage: str, name: str) -> Checkpoint | None:
    """Train and return the last checkpoint, which holds the trained model; remove half-written ones
    after a failure.

    None if the workers ended before the first checkpoint, because of a user error or because they
    were stopped.

    Raises
    ------
    StorageError
        Checkpoints cannot be written.
    TrainingFailedError
        Workers failed more often than ``train.max_failures``.
    RayActorError
        The controller of Ray Train died for another reason.
    KeyboardInterrupt
        The user stops the training, which is aborted first.
    SystemExit
        Another signal stops the training, which is aborted first.
    """  # noqa: DOC501
    try:
        checkpoint: Checkpoint | None = trainer.fit().checkpoint
    except TrainingFailedError as error:
        with suppress(Exception):  # the storage may still not answer
            # a half-written checkpoint would be the newest, and be tried first by the next command
            for uri in find_checkpoints(storage, name):
                if not _is_whole(uri):
                    remove(uri)
        if isinstance(error, ControllerError):
            with storage_errors(storage, "write checkpoints to"):
                raise error.controller_failure from None
        raise
    except RayActorError as error:
        # the controller dies if the storage fails at its start; the cause is in the text
        cause = next(
            (line for line in reversed(str(error).splitlines()) if "OSError: " in line), ""
        )
        if not cause:
            raise
        with storage_errors(storage, "write checkpoints to"):
            raise OSError(cause.partition("OSError: ")[2]) from None
    except (KeyboardInterrupt, SystemExit):
        trainer.abort()
        raise
    return checkpoint


def _is_whole(uri: str) -> bool:
    """Whether a checkpoint, of a trained model or of a running
    training, is complete and undamaged.
    """
    with (
        Checkpoint(*reversed(filesystem_of(uri))).as_directory() as name,
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


def _storage(run_dir: str) -> str:
    uri = within(run_dir, "checkpoints")
    return uri if is_remote(uri) else str(Path(uri).absolute())


def _storage_arguments(storage: str) -> dict[str, Any]:
    """The arguments of Ray Train for the storage; a URI gets our own filesystem, which has
    timeouts.
    """
    filesystem, path = filesystem_of(storage)
    return (
        {"storage_path": path, "storage_filesystem": filesystem}
        if is_remote(storage)
        else {"storage_path": path}
    )
