"""The checks of ``recsys doctor``: each says what it found and how to fix a problem.

A check may be slow or never return; :mod:`pipelines.doctor` limits the wait.
"""

from __future__ import annotations

import os
import platform
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from packaging.requirements import Requirement

    from recsys.config import Config

State = Literal["ok", "warn", "fail"]
_GIB: Final = 1 << 30
_SMALL_MEMORY, _SMALL_DISK, _SMALL_SHM = 4 * _GIB, 5 * _GIB, 2 * _GIB
_FULL: Final = 0.95  # share of a disk; above it Ray stores no objects there
_FEW_FILES: Final = 4096
_EXTRAS: Final = {
    "text": "the default language model (data.text)",
    "media": "image files (data.media.images)",
    "finetune": "fine-tuning of the language model (data.text.finetune)",
    "tune": "sweeps that learn from their trials (recsys tune)",
}


@dataclass(frozen=True)
class Finding:
    """One line: the name of the check, its state, what was found, and the fix."""

    name: str
    state: State
    found: str
    cure: str = ""


Check = Callable[["Config | None"], Iterator[Finding]]

# ----------------------------------------------------------------------------------------- versions


def versions(config: Config | None) -> Iterator[Finding]:
    """Versions of Python and of every required library."""
    python = platform.python_version()
    yield (
        Finding("python", "ok", f"{python} at {sys.executable}")
        if sys.version_info >= (3, 11)
        else Finding("python", "fail", python, "use Python 3.11 or newer")
    )
    for requirement in _requirements(""):
        found = _version(requirement.name)
        wanted = str(requirement.specifier)
        install = f"pip install '{requirement}'"
        if found is None:
            yield Finding(requirement.name, "fail", f"not installed, needs {wanted}", install)
        elif not requirement.specifier.contains(found, prereleases=True):
            yield Finding(requirement.name, "fail", f"{found}, needs {wanted}", install)
        else:
            yield Finding(requirement.name, "ok", f"{found} ({wanted})")


def extras(config: Config | None) -> Iterator[Finding]:
    """Optional libraries: a missing one is fine, a wrong version is a problem."""
    for extra, what in _EXTRAS.items():
        for requirement in _requirements(extra):
            found = _version(requirement.name)
            if found is None:
                yield Finding(
                    requirement.name, "ok", f"not installed; {what} needs the extra {extra}"
                )
            elif not requirement.specifier.contains(found, prereleases=True):
                cure = f"pip install '{requirement}'"
                yield Finding(
                    requirement.name, "warn", f"{found}, needs {requirement.specifier}", cure
                )
            else:
                yield Finding(requirement.name, "ok", f"{found}: {what}")


def _requirements(extra: str) -> list[Requirement]:
    """The requirements of the project: those of an extra, or those without an extra."""
    import tomllib
    from importlib.metadata import PackageNotFoundError, requires

    from packaging.requirements import Requirement

    source = Path(__file__).parents[2] / "pyproject.toml"
    if source.is_file():  # a checkout may be newer than the installed metadata
        project = tomllib.loads(source.read_text(encoding="utf-8"))["project"]
        texts = (
            project["optional-dependencies"].get(extra, []) if extra else project["dependencies"]
        )
        return [Requirement(text) for text in texts]
    try:
        found = [Requirement(text) for text in requires("multigrain") or []]
    except PackageNotFoundError:
        return []
    plain = [one for one in found if one.marker is None or one.marker.evaluate({"extra": ""})]
    if not extra:
        return plain
    return [
        one
        for one in found
        if one not in plain and one.marker and one.marker.evaluate({"extra": extra})
    ]


def _version(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


# ------------------------------------------------------------------------------------------ machine


def graphics(config: Config | None) -> Iterator[Finding]:
    """GPUs that the driver reports, and whether this build of torch can use them."""
    import torch

    devices = driver_devices()
    build, usable = torch.version.cuda, torch.cuda.is_available()
    wanted = config.train.num_workers if config is not None and config.train.use_gpu == "yes" else 0
    shown = "; ".join(devices)
    if usable:
        count = torch.cuda.device_count()
        found = f"{count} usable with CUDA {build}: {shown or torch.cuda.get_device_name(0)}"
        if count < wanted:
            cure = f"set train.num_workers {count}, or train on a cluster with more"
            yield Finding("gpu", "fail", f"{found}; train.num_workers wants {wanted}", cure)
        else:
            yield Finding("gpu", "ok", found)
    elif devices and build is None:
        cure = (
            f"pip install 'torch=={torch.__version__.split('+')[0]}' from PyPI, which is the CUDA"
            " build"
        )
        yield Finding(
            "gpu",
            "fail" if wanted else "warn",
            f"{shown}, but torch {torch.__version__} has no CUDA",
            cure,
        )
    elif devices:
        cure = (
            f"update the driver to one for CUDA {build}, and check that CUDA_VISIBLE_DEVICES hides"
            " no device"
        )
        yield Finding(
            "gpu", "fail", f"{shown}, but torch built for CUDA {build} cannot use it", cure
        )
    elif wanted:
        yield Finding(
            "gpu",
            "fail",
            "none here, and train.use_gpu is yes",
            "set train.use_gpu auto, or ray.address",
        )
    else:
        yield Finding("gpu", "ok", "none here; training uses CPUs")


def driver_devices() -> list[str]:
    """Name and driver of every device that ``nvidia-smi`` lists; empty without this program."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return (
        [line.strip() for line in done.stdout.splitlines() if line.strip()]
        if done.returncode == 0
        else []
    )


def machine(config: Config | None) -> Iterator[Finding]:
    """Cores, memory, shared memory and open files."""
    from pipelines.plumbing.memory import available_memory
    from pipelines.plumbing.session import check_cpus
    from recsys.errors import ConfigError

    cores = f"{os.cpu_count() or 1} cores"
    try:
        if config is not None and config.ray.address == "local":
            check_cpus(config.train, config.ray)
        yield Finding("cpu", "ok", cores)
    except ConfigError as error:
        yield Finding("cpu", "fail", cores, str(error))
    memory = available_memory()
    if memory is not None:
        few = memory < _SMALL_MEMORY
        yield Finding(
            "memory",
            "warn" if few else "ok",
            f"{memory / _GIB:.1f} GiB free",
            _if(few, "end other programs"),
        )
    if os.path.isdir("/dev/shm"):
        free = shutil.disk_usage("/dev/shm").free
        few = free < _SMALL_SHM
        cure = _if(
            few,
            "Ray stores objects on disk instead; in containers use docker run --shm-size=8g, or an"
            " emptyDir of Memory",
        )
        yield Finding(
            "shm", "warn" if few else "ok", f"{free / _GIB:.1f} GiB free in /dev/shm", cure
        )
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    few = 0 <= files < _FEW_FILES
    yield Finding(
        "open files",
        "warn" if few else "ok",
        f"at most {files}",
        _if(few, "ulimit -n 65536 before Ray starts"),
    )


def training(config: Config | None) -> Iterator[Finding]:
    """Whether a training with this configuration fits into the memory of this machine."""
    # imports torch
    from pipelines.plumbing.preflight import check, described, local_nodes, sizes_of
    from recsys.errors import ConfigError

    if config is None or config.ray.address != "local":
        return
    sizes = sizes_of(config)
    if sizes is None:
        yield Finding("training", "ok", "its memory is known after the data is prepared")
        return
    found = described(config, sizes).splitlines()[0]
    try:
        check(config, sizes, local_nodes())
        yield Finding("training", "ok", found)
    except ConfigError as error:
        yield Finding("training", "fail", found, str(error))


def _if(condition: bool, text: str) -> str:
    return text if condition else ""


# ------------------------------------------------------------------------------------------ storage


def places(config: Config | None) -> Iterator[Finding]:
    """Folders that are written to: create a file in each and remove it."""
    named = {"temporary files": tempfile.gettempdir()}
    if config is not None:
        named |= {"run.dir": config.run.dir, "data.dir": config.dataset_dir}
    for name, place in named.items():
        yield from (_remote(name, place) if "://" in place else _local(name, place))


def _local(name: str, place: str) -> Iterator[Finding]:
    folder = _existing(Path(place).absolute())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        yield Finding(
            name,
            "fail",
            f"{place}: cannot write in {folder} ({error.strerror})",
            f"choose another {name}",
        )
        return
    usage = shutil.disk_usage(folder)
    shown = f"{place}: writable, {usage.free / _GIB:.1f} GiB free"
    if 1 - usage.free / usage.total > _FULL:
        cure = (
            f"free space: Ray refuses to keep objects on a disk that is more than {_FULL:.0%} full"
        )
        yield Finding(name, "fail", shown, cure)
    else:
        few = usage.free < _SMALL_DISK
        yield Finding(
            name, "warn" if few else "ok", shown, _if(few, "free space, or choose another place")
        )


def _existing(path: Path) -> Path:
    """The path or its nearest existing parent."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _remote(name: str, place: str) -> Iterator[Finding]:
    from recsys.errors import StorageError
    from recsys.storage.filesystems import check_writable, require_s3_client
    from recsys.storage.uris import without_query

    try:
        if place.startswith("s3://"):
            require_s3_client(place)
        check_writable(place)
        yield Finding(name, "ok", f"{without_query(place)}: writable")
    except StorageError as error:
        what, _, cure = str(error).rpartition("; ")
        yield Finding(name, "fail", what, cure)


def source(config: Config | None) -> Iterator[Finding]:
    """Whether the input files exist."""
    if config is None:
        return
    from recsys.errors import UserError
    from recsys.sources import open_source

    try:
        size = open_source(config.data.source).size()
        yield Finding("data.source", "ok", f"{config.data.source.kind}, {size / 1e6:.1f} MB")
    except UserError as error:
        yield Finding(
            "data.source",
            "fail",
            str(error),
            "see data.source; $RECSYS_DATA names the folder of data sets",
        )


def text_model(config: Config | None) -> Iterator[Finding]:
    """Whether the language model is here; without the network."""
    from recsys.config import TextConfig
    from recsys.encoders.text import resolve_model
    from recsys.errors import UserError

    section = config.data.text if config is not None else TextConfig()
    if not section.enabled:
        yield Finding("text model", "ok", "not needed: data.text.enabled is false")
        return
    try:
        folder = resolve_model(section.model)
        yield Finding("text model", "ok", f"{section.model} at {folder}")
    except UserError as error:
        if section.allow_download:
            yield Finding(
                "text model",
                "warn",
                f"{section.model} is not here",
                "it is downloaded when first used",
            )
        else:
            yield Finding(
                "text model",
                "fail" if config else "warn",
                f"{section.model} is not here",
                str(error),
            )


# ----------------------------------------------------------------------------------------- services


def tracking(config: Config | None) -> Iterator[Finding]:
    """Whether the MLflow store answers and, if it is a file, can be written."""
    if config is None or not config.tracking.enabled:
        if config is not None:
            yield Finding("mlflow store", "ok", "not needed: tracking.enabled is false")
        return
    from recsys.config import redact
    from recsys.errors import ConfigError, first_line
    from recsys.registry.tracking import sqlite_path, tracking_uri

    try:
        uri = tracking_uri(config)
    except ConfigError as error:
        yield Finding("mlflow store", "fail", "tracking.uri", str(error))
        return
    path = sqlite_path(uri)
    try:
        found = _sqlite(path) if path is not None else _answer(uri)
        yield Finding("mlflow store", "ok", f"{redact(uri)}: {found}")
    except Exception as error:  # drivers and clients raise many types
        cure = "check tracking.uri, and whether the server runs and can be reached from here"
        yield Finding(
            "mlflow store", "fail", f"{redact(uri)}: {redact(first_line(error)[:300])}", cure
        )


def _sqlite(path: Path) -> str:
    if not path.exists():
        with tempfile.TemporaryFile(dir=_existing(path.parent)):
            return "created when first used"
    with closing(sqlite3.connect(f"file:{path}?mode=rw", uri=True, timeout=5)) as connection:
        connection.execute("BEGIN IMMEDIATE")  # takes the lock for writing
        connection.rollback()
    from recsys.registry.store import check

    check(path)
    return "answers, writable"


def _answer(uri: str) -> str:
    if not uri.startswith("http"):
        return _database(uri)
    import requests

    place = f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/search"
    answer = requests.post(place, json={"max_results": 1}, timeout=5)
    answer.raise_for_status()
    answer.json()
    return "answers (write access was not tested: a test would leave an experiment)"


def _database(uri: str) -> str:
    from sqlalchemy import create_engine, text

    with create_engine(uri).connect() as connection:
        connection.execute(text("SELECT 1"))
    return "answers (write access was not tested)"


def ray_cluster(config: Config | None) -> Iterator[Finding]:
    """Whether the cluster of the configuration answers; a separate process asks it."""
    address = config.ray.address if config is not None else "local"
    if address == "local":
        yield Finding("ray", "ok", "local: started with each command")
        return
    code = (
        "import sys, json, ray; ray.init(address=sys.argv[1], log_to_driver=False,"
        " logging_level='ERROR');print(json.dumps(ray.cluster_resources())); ray.shutdown()"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, address], capture_output=True, text=True, timeout=20
        )
    except subprocess.TimeoutExpired:
        done = None
    if done is None or done.returncode:
        cure = (
            "start it (`ray start --head`, `ray up cluster.yaml`), or set ray.address local; check"
            " the token"
        )
        yield Finding("ray", "fail", f"no cluster answers at {address!r}", cure)
        return
    import json

    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    shown = ", ".join(f"{found.get(name, 0):g} {name}s" for name in ("CPU", "GPU"))
    wanted = config.train.num_workers if config is not None else 0
    if found.get("CPU", 0) < wanted:
        cure = (
            "lower train.num_workers, add nodes, or set ray.wait_s if the cluster starts nodes"
            " itself"
        )
        yield Finding("ray", "warn", f"{address}: {shown}; train.num_workers is {wanted}", cure)
    else:
        yield Finding("ray", "ok", f"{address}: {shown}")


def job_server(config: Config | None) -> Iterator[Finding]:
    """Whether the job server of ``recsys submit`` answers, if its address is configured."""
    given = config.submit.address if config is not None else ""
    if not given and not os.environ.get("RAY_API_SERVER_ADDRESS"):
        return
    from pipelines.plumbing.jobs import address_of, connect
    from recsys.errors import ConfigError

    try:
        connect(given)
        yield Finding("job server", "ok", f"answers at {address_of(given)}")
    except ConfigError as error:
        yield Finding("job server", "fail", "submit.address", str(error))


# In the order of the report.
CHECKS: Final[dict[str, Check]] = {
    "versions": versions,
    "extras": extras,
    "gpu": graphics,
    "machine": machine,
    "training": training,
    "ray": ray_cluster,
    "job server": job_server,
    "mlflow store": tracking,
    "places": places,
    "data.source": source,
    "text model": text_model,
}
