"""Checks of this machine: GPUs, cores, memory, open files, and whether a training fits into it."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from pipelines.plumbing.diagnostics.finding import GIB, Finding, fix_if

if TYPE_CHECKING:
    from recsys.config import Config

_SMALL_MEMORY: Final = 4 * GIB
_SMALL_SHM: Final = 2 * GIB
_FEW_FILES: Final = 4096


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
            f"{memory / GIB:.1f} GiB free",
            fix_if(few, "end other programs"),
        )
    if os.path.isdir("/dev/shm"):
        free = shutil.disk_usage("/dev/shm").free
        few = free < _SMALL_SHM
        cure = fix_if(
            few,
            "Ray stores objects on disk instead; in containers use docker run --shm-size=8g, or an"
            " emptyDir of Memory",
        )
        yield Finding(
            "shm", "warn" if few else "ok", f"{free / GIB:.1f} GiB free in /dev/shm", cure
        )
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    few = 0 <= files < _FEW_FILES
    yield Finding(
        "open files",
        "warn" if few else "ok",
        f"at most {files}",
        fix_if(few, "ulimit -n 65536 before Ray starts"),
    )


def training(config: Config | None) -> Iterator[Finding]:
    """Whether a training with this configuration fits into the memory of this machine."""
    # imports torch
    from pipelines.plumbing.nodes import local_nodes
    from pipelines.plumbing.preflight import UNKNOWN_MODEL, check, planned
    from pipelines.plumbing.training_estimate import described, sizes_of
    from recsys.errors import ConfigError

    if config is None or config.ray.address != "local":
        return
    if not config.has_model:
        yield Finding("training", "ok", UNKNOWN_MODEL)
        return
    sizes = sizes_of(config.data, config.dataset_dir, config.seed)
    if sizes is None:
        yield Finding("training", "ok", "its memory is known after the data is prepared")
        return
    config = planned(config, sizes, local_nodes())
    found = described(config.model, config.train, config.evaluate, sizes).splitlines()[0]
    try:
        check(config, sizes, local_nodes())
        yield Finding("training", "ok", found)
    except ConfigError as error:
        yield Finding("training", "fail", found, str(error))
