"""How many CPU threads compute fastest here, measured in about a second.

Why not all cores: threads of one step wait for each other, actively. Where other programs are at work, or the steps are
small, two threads have taken 2 to 20 times as long as one, and a machine does not say which it is. So a step of about
the size of the training's is timed with each number of threads, by turns, so that a noisy moment meets all of them.
Where several times as many programs as there are cores want to run, one thread is taken at once: the timing itself took
half a minute there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from statistics import median
from typing import Final

import torch

from recsys.config import Config

_SECONDS: Final = 1.0  # of all timings together; a step that is under way ends later
_ROUNDS: Final = 9  # at most
_BUSY: Final = 3.0  # programs a core that want to run
_SLACK: Final = 0.10  # of the fastest time, within which fewer threads are taken
_MAX_ROWS: Final = 64
_MAX_LENGTH: Final = 50
_MAX_WIDTH: Final = 256
_CANDIDATES: Final = 4096  # items that are scored


def usable_threads(share: int = 1) -> int:
    """The cores that this process may use, where ``share`` processes use them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
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
    """What is tried: one, two, three, four, then steps of a half, and the most.

    >>> numbers(2), numbers(16)
    ([1, 2], [1, 2, 3, 4, 6, 9, 13, 16])
    """
    found = [1]
    while found[-1] < most:
        found.append(min(most, max(found[-1] + 1, found[-1] * 3 // 2)))
    return found


def timed(tried: Sequence[int], step: Callable[[], None], clock: Callable[[], float]) -> dict[int, float]:
    """The median seconds of a step with each number of threads; the process keeps the number that it had."""
    before, started = torch.get_num_threads(), clock()
    found: dict[int, list[float]] = {threads: [] for threads in tried}
    try:
        for round_ in range(_ROUNDS + 1):
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
    return {threads: median(times) for threads, times in found.items()}


def step_like(rows: int, length: int, width: int, items: int) -> Callable[[], None]:
    """A step of the shape of a training's: mixing a history, scoring items, softmax, and back."""
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
    """How many programs of the machine wanted to run, over the last minute; 0 where nobody counts them."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


@lru_cache(maxsize=8)
def _measured(most: int, shape: tuple[int, int, int, int]) -> tuple[int, dict[int, float]]:
    if waiting_programs() > _BUSY * most:
        return 1, {}
    seconds = timed(numbers(most), step_like(*shape), time.perf_counter)
    return choose(seconds), seconds


def asked_threads(config: Config) -> int:
    """Threads that are asked for, by ``train.threads`` or else by OMP_NUM_THREADS; 0: the fastest."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    return config.train.threads or (int(told) if told.isascii() and told.isdigit() else 0)


def fastest_threads(config: Config, num_items: int, most: int) -> tuple[int, str]:
    """The fewest threads up to ``most`` that are as good as the fastest, and a line that says why; measured once in a
    process. ``num_items`` are those of the catalogue.
    """
    if most <= 1:
        return 1, ""
    shape = (
        min(config.train.batch_size, _MAX_ROWS),
        min(config.model.max_history, _MAX_LENGTH),
        min(config.model.width, _MAX_WIDTH),
        max(1, min(num_items, _CANDIDATES)),
    )
    threads, seconds = _measured(most, shape)
    if not seconds:
        return 1, f"1 of {most} threads, as several times as many programs want to run; train.threads sets it"
    took = ", ".join(f"{number}: {1000 * of:.1f} ms" for number, of in seconds.items())
    return threads, f"{threads} of {most} threads, as measured on a step of this shape ({took}); train.threads sets it"


def settle_threads(config: Config, num_items: int, say: Callable[[str], None]) -> None:
    """Let torch compute in this process with the threads that are asked for, or the fastest; says which, once."""
    threads, why = asked_threads(config), ""
    if not threads:
        known = _measured.cache_info().misses
        threads, why = fastest_threads(config, num_items, usable_threads())
        why = why if _measured.cache_info().misses > known else ""
    torch.set_num_threads(threads)
    if why:
        say(why)
