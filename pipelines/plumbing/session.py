"""One quiet Ray for the stages of a command: it starts when the first stage needs it and ends with
the command.

Why: a local Ray needs seconds to start, so ``run`` starts it once. Quiet, because the messages of
Ray, MLflow and database migrations would otherwise appear between the progress lines.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from pipelines.plumbing.bare_ray import without_dashboard
from pipelines.plumbing.signals import kept_from_ray
from pipelines.plumbing.user_message import causes
from recsys.config import RayConfig, TrainConfig
from recsys.errors import ConfigError, Unavailable, UserError
from recsys.storage.temporary import temporary_folder

# Ray and MLflow read these at import or start; a value that the user has set stays.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # each training report waits for this poll; the default is 2 s
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_DEDUP_LOGS": "1",
    # with Ray's 15, a worker gets 1/30 of a core next to another busy process
    "RAY_worker_niceness": "0",
    # if the first workers of a busy machine start later than Ray's 60 s, the driver waits forever
    "RAY_worker_register_timeout_seconds": "600",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
# Ray waits 30 s for itself, which is too short next to other busy processes
_ATTEMPTS = 3
_HEAD_S = 10.0
_LATE = "timed out during startup"
# A socket path has at most 107 bytes; Ray appends /ray/session_DATE_TIME_PID/sockets/plasma_store.
_LONGEST_TEMP_DIR = 107 - len(
    "/ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store.1"
)
_LOUD = (
    "ray",
    "ray.data",
    "ray.train",
    "ray.tune",
    "mlflow",
    "alembic",
    "sqlalchemy",
    "transformers",
    "matplotlib",
)


def quiet() -> None:
    """Silence the messages of libraries except errors."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in _LOUD:
        logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def ray_session(
    train: TrainConfig, cluster: RayConfig, meanwhile: Callable[[], object] | None = None
) -> Iterator[None]:
    """Start or join Ray for the block; a Ray that is already connected is used and stays.

    Parameters
    ----------
    train : TrainConfig
        Number of workers, and their CPUs.
    cluster : RayConfig
        The section ``ray``.
    meanwhile : Callable[[], object] | None
        Work that needs no Ray, such as imports. It runs in a thread while Ray starts, because most
        of a start is waiting. The block begins when both are done.

    Raises
    ------
    ConfigError
        There are too few CPUs for the workers, or no cluster at ``ray.address``.
    Unavailable
        A local Ray does not start, or a cluster is lost.
    Exception
        What ``meanwhile`` raises.
    """
    quiet()
    cpus = check_cpus(train, cluster) if cluster.address == "local" else 0
    import ray

    if ray.is_initialized():
        if meanwhile is not None:
            meanwhile()
        yield
        return
    try:
        # the handlers of signals are back before this waits for the work
        with _running(meanwhile), kept_from_ray():
            _start(cluster.address, cpus)
        _quiet_data()
        with _naming_a_lost_cluster():
            yield
    finally:
        ray.shutdown()


@contextmanager
def _naming_a_lost_cluster() -> Iterator[None]:
    """Turn the errors of a block into one message if the head node does not answer any more, or if
    Ray lost a process that it does not start again by itself.

    Raises
    ------
    Unavailable
        It does not answer, or a process was lost.
    """  # noqa: DOC501
    import ray

    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not ray.is_initialized():
            raise
        head = ray.get_runtime_context().gcs_address
        host, _, port = head.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=_HEAD_S).close()
        except OSError:
            raise Unavailable(
                f"the Ray cluster was lost: its head node {head} does not answer any more"
                f" ({type(error).__name__}); start it again, or set ray.address to another one, and"
                " continue with the same command and --resume"
            ) from error
        if lost := _lost_process(error):
            raise Unavailable(
                f"Ray lost a process of this command ({lost}): it was killed, ran out of memory, or"
                " its node was lost; continue with the same command and --resume"
            ) from error
        raise


def _lost_process(error: BaseException) -> str:
    """What Ray says about the loss of a process that caused an error; empty for other errors."""
    from ray import exceptions

    kinds = exceptions.WorkerCrashedError, exceptions.ObjectLostError, exceptions.ActorDiedError
    for cause in causes(error):
        text = str(cause)
        # an actor also dies of an exception in its own constructor, which has a traceback
        if isinstance(cause, kinds) and "creation task" not in text:
            names = [line.split(":")[1] for line in text.splitlines() if "class_name:" in line]
            return ",".join([type(cause).__name__, *names])
    return ""


@contextmanager
def _running(work: Callable[[], object] | None) -> Iterator[None]:
    """Run the work in a thread during the block, then wait for it; its error is raised after the
    block.

    Why a daemon: a block that fails, for example by Ctrl-C, ends the command without waiting for
    the work, which may be a long download.
    """
    if work is None:
        yield
        return
    result: Future[object] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, name="meanwhile", daemon=True).start()
    yield
    result.result()


def ray_through(train: TrainConfig, cluster: RayConfig) -> AbstractContextManager[None]:
    """One Ray for all stages if the command trains both before and after the evaluation."""
    return ray_session(train, cluster) if train.final else nullcontext()


def _start(address: str, cpus: int) -> None:
    import ray

    if address != "local":
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError) as error:
            raise ConfigError(
                f"ray.address: no Ray cluster answers at {address!r} ({error}); start one, or use"
                " local"
            ) from None
        return
    if _can_keep_token():
        keep_token_private()
    else:
        keep_token_elsewhere()
    temp_dir = short_temp_dir()
    elsewhere: dict[str, Any] = {"_temp_dir": temp_dir} if temp_dir else {}
    for attempt in range(_ATTEMPTS):
        # to end only the processes of this attempt
        known = _ray_processes()
        try:
            with without_dashboard():
                ray.init(
                    address="local",
                    num_cpus=cpus,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    **elsewhere,
                )
            return
        except Exception as error:  # Ray raises many types
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            # only this failure passes by itself; others would fail again
            if _LATE in reason and attempt + 1 < _ATTEMPTS:
                _end(_ray_processes() - known)
                continue
            folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
            raise Unavailable(
                f"a local Ray does not start ({reason}); the machine may be too busy, or lack"
                f" memory or space in {folder}: free some and try again, or set ray.address to a"
                " running cluster; `recsys doctor` checks the machine"
            ) from error


def _ray_processes() -> set[Any]:
    """The processes of Ray that this process has started."""
    import psutil

    found = set()
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if any(word in " ".join(child.cmdline()[:3]) for word in ("/ray/", "ray::")):
                found.add(child)
    return found


def _end(processes: set[Any]) -> None:
    """End the processes of a start that was too slow, which would hold memory."""
    import psutil

    for process in processes:
        with suppress(psutil.Error):
            process.terminate()
    for process in psutil.wait_procs(processes, timeout=5)[1]:
        with suppress(psutil.Error):
            process.kill()


def check_cpus(train: TrainConfig, ray: RayConfig) -> int:
    """The number of CPUs of a local Ray: one more than workers.

    Why: the dataset that streams to the workers also needs a CPU. If the workers hold all of them,
    it waits forever.

    Raises
    ------
    ConfigError
        ``ray.num_cpus`` is less.
    """
    needed = train.num_workers + 1
    # workers may share cores, so a small machine can train with several
    cpus = ray.num_cpus or max(os.cpu_count() or 1, needed)
    if cpus < needed:
        raise ConfigError(
            f"ray.num_cpus: {cpus} is too few for train.num_workers {train.num_workers};"
            f" expected at least {needed}, one more than workers (they may share cores), or 0 to"
            " choose automatically"
        )
    return cpus


def _quiet_data() -> None:
    """Silence Ray Data, which sets its own log levels and bars when it is imported; modules that
    import it later silence it themselves.
    """
    if "ray.data" in sys.modules:
        import ray.data

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)


def keep_token_elsewhere() -> None:
    """Put Ray's access token into a private temporary file; by default Ray writes it to the home
    folder.
    """
    if any(
        name in os.environ for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    ):
        return
    token = temporary_folder() / "ray_token"  # in a folder of mode 0700
    token.touch(mode=0o600)
    # after the mode is set, so that nobody can read it in between
    token.write_text(secrets.token_hex(32))
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)


def keep_token_private() -> None:
    """Make Ray's access token in the home folder readable for its owner only.

    Why: Ray creates the file readable for everyone, and the token lets its reader run any code in
    the clusters of this user.
    """
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    token = Path(os.path.expanduser("~")) / ".ray" / "auth_token"
    with suppress(OSError):  # for example another user's file; Ray reports it
        token.parent.mkdir(parents=True, exist_ok=True)
        try:
            # exclusive: another command may create the token at the same time, and both must use
            # one
            handle = os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            if token.stat().st_mode & 0o077:
                token.chmod(0o600)
        else:
            with os.fdopen(handle, "w", encoding="ascii") as file:
                file.write(secrets.token_hex(32))


def _can_keep_token() -> bool:
    """Whether Ray can write its token to the home folder; tried, because ``os.access`` is always
    true for root.
    """
    folder = Path(os.path.expanduser("~")) / ".ray"
    try:
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def short_temp_dir(candidates: Sequence[str] = ("/tmp", "/var/tmp", "/dev/shm")) -> str:
    """A folder for Ray's sockets if the path of the default one is too long; otherwise empty.

    Raises
    ------
    Unavailable
        ``RAY_TMPDIR`` is too long, or no folder with a short path can be written to.
    """
    usual = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or tempfile.gettempdir()
    if len(os.fsencode(os.path.abspath(usual))) <= _LONGEST_TEMP_DIR:
        return ""
    if not os.environ.get("RAY_TMPDIR"):
        for folder in candidates:
            if os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK):
                return os.path.join(folder, "ray")
    raise Unavailable(
        f"Ray keeps sockets in {usual}, but this path is longer than {_LONGEST_TEMP_DIR} bytes, the"
        " limit for sockets; set RAY_TMPDIR to a folder with a shorter path"
    )
