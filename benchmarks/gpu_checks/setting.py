"""What every check gets, and how it measures.

A check is a function of a :class:`Setting` that returns a dict for its line of JSON. It raises
:class:`Skipped` where something that it needs is missing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

MIB = 2**20


class Skipped(Exception):
    """The check cannot run here; the message is the reason."""


@dataclass(frozen=True)
class Setting:
    """Device of the checks, and the time of this check in seconds."""

    device: torch.device
    seconds: float

    @property
    def on_gpu(self) -> bool:
        """Whether the figures mean something."""
        return self.device.type == "cuda"

    def size(self, on_gpu: int, on_cpu: int) -> int:
        """A size of the data: the real one, or a small one that shows that the code runs."""
        return on_gpu if self.on_gpu else on_cpu

    def need_memory(self, gib: float) -> None:
        """Skip the check where less memory of the device is free.

        Parameters
        ----------
        gib : float
            Memory that the check needs, in GiB; not looked at on a CPU, where sizes are small.

        Raises
        ------
        Skipped
            Less is free.
        """
        if not self.on_gpu:
            return
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info()[0] / 2**30
        if free < gib:
            raise Skipped(f"needs {gib:.1f} GiB of device memory, {free:.1f} are free")


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call, including its work on the device."""
    synchronize(device)
    started = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - started


def median_seconds(
    work: Callable[[], Any], setting: Setting, rounds: int = 20, share: float = 0.1
) -> float:
    """Median seconds of a call, after two that warm up.

    Parameters
    ----------
    work : callable
        What is measured.
    setting : Setting
        Device and time.
    rounds : int
        Most calls; on a CPU two.
    share : float
        Share of the check's time after which no further call starts.
    """
    until = time.perf_counter() + share * setting.seconds
    warm_up = 2 if setting.on_gpu else 1
    for _ in range(warm_up):
        timed(work, setting.device)
    seconds = [timed(work, setting.device)]
    while len(seconds) < setting.size(rounds, 2) and time.perf_counter() < until:
        seconds.append(timed(work, setting.device))
    return median(seconds)


def peak_mib(work: Callable[[], Any], device: torch.device) -> float | None:
    """Most device memory of a call above what was allocated before, in MiB; None on a CPU."""
    if device.type != "cuda":
        work()
        return None
    synchronize(device)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    synchronize(device)
    return round((torch.cuda.max_memory_allocated() - before) / MIB, 1)


def attempt(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result of an alternative that may not exist here, or its error as ``not_possible``."""
    try:
        return work()
    except Exception as error:  # of torch's prototypes; anything may be raised
        return {"not_possible": f"{type(error).__name__}: {error}"[:300]}


@contextmanager
def matrix_precision(kind: str) -> Iterator[None]:
    """Matrix products of float32 with TF32 (``tf32``) or without."""
    before, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if kind == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = kind == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        torch.backends.cudnn.allow_tf32 = cudnn


def ms(seconds: float) -> float:
    """Seconds as milliseconds, rounded."""
    return round(1e3 * seconds, 3)
