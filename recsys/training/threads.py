"""Find the number of CPU threads that is fastest on this machine, measured in about a second.

Why not all cores: threads of one step wait for each other by spinning. With other programs running,
or with small steps, two threads took 2 to 20 times as long as one, and this cannot be known in
advance. So a step of about the size of a training step is timed with each number of threads, in
turns, so that noise hits all of them alike. If several times as many programs as cores want to run,
one thread is used without timing: the timing itself took half a minute there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from statistics import median
from typing import Final

import torch

from recsys.config import ModelConfig, TrainConfig

_SECONDS: Final = 1.0  # for all timings together; a running step may end later
_ROUNDS: Final = 9  # at most
_BUSY: Final = 3.0  # runnable programs per core above which nothing is timed
_SLACK: Final = 0.10  # fewer threads are used if they are within this share of the fastest time
_MAX_ROWS: Final = 64
_MAX_LENGTH: Final = 50
_MAX_WIDTH: Final = 256
_CANDIDATES: Final = 4096  # items that are scored


def usable_threads(share: int = 1) -> int:
    """The number of cores that this process may use if ``share`` processes share them."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, cores // share)


def choose(seconds: Mapping[int, float]) -> int:
    """The fewest threads whose time is within a tenth of the best.

    >>> choose({1: 1.05, 2: 1.0, 4: 3.0})
    1
    >>> choose({1: 1.9, 2: 1.0, 4: 0.95})
    2
    """
    bound = min(seconds.values()) * (1 + _SLACK)
    return min(threads for threads, took in seconds.items() if took <= bound)


def numbers(most: int) -> list[int]:
    """The numbers of threads to try: one to four, then each about half as many again, and the
    most.

    >>> numbers(2), numbers(16)
    ([1, 2], [1, 2, 3, 4, 6, 9, 13, 16])
    """
    found = [1]
    while found[-1] < most:
        found.append(min(most, max(found[-1] + 1, found[-1] * 3 // 2)))
    return found


def timed(
    tried: Sequence[int], step: Callable[[], None], clock: Callable[[], float]
) -> dict[int, float]:
    """The median seconds of a step with each number of threads; restores the number of threads of
    the process.

    Parameters
    ----------
    tried : Sequence of int
        Numbers of threads.
    step : callable
        The step.
    clock : callable
        Gives the time in seconds.

    Returns
    -------
    dict of int to float
        Number of threads to seconds.
    """
    before, started = torch.get_num_threads(), clock()
    found: dict[int, list[float]] = {threads: [] for threads in tried}
    try:
        for round_ in range(_ROUNDS + 1):
            # in turns, not one number after the other: noise of other programs then hits all alike
            for threads in tried:
                torch.set_num_threads(threads)
                begun = clock()
                step()
                if round_:  # the first one warms up
                    found[threads].append(clock() - begun)
            if round_ and clock() - started > _SECONDS:
                break
    finally:
        torch.set_num_threads(before)
    # the median, because a single interrupted step would decide a mean
    return {threads: median(times) for threads, times in found.items()}


def step_like(rows: int, length: int, width: int, items: int) -> Callable[[], None]:
    """A step with the shape of a training step: mix a history, score
    items, softmax, and backward.

    Parameters
    ----------
    rows : int
        Number of histories B.
    length : int
        Events per history L.
    width : int
        Width of the vectors D.
    items : int
        Number of items that are scored N.

    Returns
    -------
    callable
        Each call makes one step; the data are drawn once, with a fixed seed.
    """
    draws = torch.Generator().manual_seed(0)
    history_BLD = torch.randn(rows, length, width, generator=draws)
    items_ND = torch.randn(items, width, generator=draws, requires_grad=True)
    mix_DD = torch.randn(width, width, generator=draws, requires_grad=True)
    target_B = torch.randint(items, (rows,), generator=draws)

    def step() -> None:
        mixed_BLD = torch.relu(history_BLD @ mix_DD)
        weights_BLL = torch.softmax(mixed_BLD @ mixed_BLD.transpose(1, 2) / width, dim=-1)
        users_BD = torch.nn.functional.layer_norm((weights_BLL @ mixed_BLD).mean(1), (width,))
        loss = torch.nn.functional.cross_entropy(users_BD @ items_ND.T, target_B)
        torch.autograd.grad(loss, (items_ND, mix_DD))

    return step


def waiting_programs() -> float:
    """The mean number of runnable programs over the last minute; 0 if the system does not count
    them.
    """
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


@lru_cache(maxsize=8)
def _measured(most: int, shape: tuple[int, int, int, int]) -> tuple[int, dict[int, float]]:
    if waiting_programs() > _BUSY * most:
        return 1, {}
    seconds = timed(numbers(most), step_like(*shape), time.perf_counter)
    return choose(seconds), seconds


def requested_threads(train: TrainConfig) -> int:
    """The requested number of threads, by ``train.threads`` or else by OMP_NUM_THREADS; 0: the
    fastest.
    """
    omp = os.environ.get("OMP_NUM_THREADS", "")
    return train.threads or (int(omp) if omp.isascii() and omp.isdigit() else 0)


def fastest_threads(
    model: ModelConfig, train: TrainConfig, num_items: int, most: int
) -> tuple[int, str]:
    """The fewest threads up to ``most`` that are as good as the fastest, and a line with the
    reason.

    Measured once in a process. ``num_items`` is the size of the catalogue.

    Parameters
    ----------
    model : ModelConfig
        Gives the length of histories and the width.
    train : TrainConfig
        Gives the batch size.
    num_items : int
        Number of items of the catalogue.
    most : int
        Most threads.

    Returns
    -------
    threads : int
        1 if the machine is busy with other programs.
    why : str
        The line; "" if there is nothing to choose.
    """
    if most <= 1:
        return 1, ""
    shape = (
        min(train.batch_size, _MAX_ROWS),
        min(model.max_history, _MAX_LENGTH),
        min(model.width, _MAX_WIDTH),
        max(1, min(num_items, _CANDIDATES)),
    )
    threads, seconds = _measured(most, shape)
    if not seconds:
        return (
            1,
            (
                f"1 of {most} threads, as the machine is busy with other programs; train.threads"
                " sets it"
            ),
        )
    took = ", ".join(f"{number}: {1000 * of:.1f} ms" for number, of in seconds.items())
    return (
        threads,
        (
            f"{threads} of {most} threads, as measured on a step of this shape ({took});"
            " train.threads sets it"
        ),
    )


def settle_threads(
    model: ModelConfig, train: TrainConfig, num_items: int, say: Callable[[str], None]
) -> None:
    """Set the threads of torch in this process to the requested or the fastest number; says which,
    once.

    Parameters
    ----------
    model : ModelConfig
        Gives the length of histories and the width.
    train : TrainConfig
        Gives the batch size, and ``train.threads``.
    num_items : int
        Number of items of the catalogue.
    say : callable
        Gets the line with the reason if the threads were just measured.
    """
    threads, why = requested_threads(train), ""
    if not threads:
        # the measurement is cached, and its line is only of interest when it was made
        known = _measured.cache_info().misses
        threads, why = fastest_threads(model, train, num_items, usable_threads())
        why = why if _measured.cache_info().misses > known else ""
    torch.set_num_threads(threads)
    if why:
        say(why)
