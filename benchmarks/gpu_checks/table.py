"""The table of checks, and how they run: one line of JSON for each, as soon as it is measured."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from benchmarks.gpu_checks import (
    attention,
    compiled,
    granularities,
    loading,
    optimizers,
    rankings,
    rates,
    softmax,
    texts,
    workers,
)
from benchmarks.gpu_checks.setting import Setting, Skipped
from benchmarks.in_turns import say


class Check(NamedTuple):
    """A question, with its share of the time."""

    name: str  # as ``--only`` takes it
    question: str
    share: float  # of the time of all checks
    work: Callable[[Setting], dict[str, Any]]


CHECKS = (
    Check(
        "granularities",
        "does every trained granularity give what it gives on the CPU",
        0.14,
        granularities.equal_the_cpu,
    ),
    Check("workers", "do two processes equal one", 0.10, workers.two_equal_one),
    Check("precision", "step time in fp32, TF32 and bf16", 0.10, compiled.precisions),
    Check("softmax", "full softmax over 10⁶ items", 0.08, softmax.full),
    Check("phases", "share of the card's rates that each phase reaches", 0.08, rates.of_phases),
    Check("loader", "share of time that the device waits for the loader", 0.10, loading.waits),
    Check("ranking", "ranking of users against 10⁶ items", 0.06, rankings.users_a_second),
    Check("sampled", "sampled softmax over 10⁶ and 10⁷ items", 0.07, softmax.sampled),
    Check("optimizer", "fused, for-each and rows-only AdamW", 0.05, optimizers.compared),
    Check("text", "texts through the language model, fp32 and bf16", 0.06, texts.encoded),
    Check("compile", "torch.compile with lengths that differ", 0.08, compiled.lengths),
    Check("graphs", "CUDA graphs against eager", 0.05, compiled.cuda_graphs),
    Check("attention", "padding against nested and FlexAttention", 0.06, attention.compared),
)
HARD_LIMIT = 2.0  # of a check's time; it is then ended, so that the others run
LEAST_LIMIT = 60.0  # seconds: the first call of a library may load for long


class TimeIsUp(BaseException):
    """The check is ended; not an Exception, which a check may take for that of one case."""


def run(names: Sequence[str], seconds: float, checks: Sequence[Check] = CHECKS) -> bool:
    """Run the named checks in the order of the table and print a line for each.

    Parameters
    ----------
    names : sequence of str
        Names of checks; empty: all.
    seconds : float
        Time of all checks of the table together. Those that would start after it are skipped.
    checks : sequence of Check
        The table.

    Returns
    -------
    bool
        Whether no check failed; a skipped one has not failed.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    started, is_sound = time.perf_counter(), True
    for check in checks:
        if names and check.name not in names:
            continue
        left = seconds - (time.perf_counter() - started)
        figures = _line(check, Setting(device, min(check.share * seconds, left)))
        is_sound = is_sound and "error" not in figures
        say(check.question, check=check.name, device=described(device), **figures)
    return is_sound


def described(device: torch.device) -> str:
    """The card, or that there is none."""
    return torch.cuda.get_device_name() if device.type == "cuda" else "cpu, to see that it runs"


def _line(check: Check, setting: Setting) -> dict[str, Any]:
    """The figures of a check, ``skipped`` with a reason, or ``error``; and its seconds."""
    started = time.perf_counter()
    try:
        if setting.seconds <= 0:
            raise Skipped("the time is over")
        with _limited(max(HARD_LIMIT * setting.seconds, LEAST_LIMIT)):
            figures = check.work(setting)
    except Skipped as reason:
        figures = {"skipped": str(reason)}
    except (Exception, TimeIsUp) as error:  # the other checks must run
        figures = {"error": f"{type(error).__name__}: {error}"[:4000]}
    if setting.on_gpu:
        try:  # after a failed kernel every call raises, also this one
            torch.cuda.empty_cache()
        except RuntimeError as error:
            figures.setdefault("error", f"the device is lost: {error}"[:300])
    return {**figures, "seconds": round(time.perf_counter() - started, 1)}


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise TimeIsUp in the block after this time."""

    def ended(*_: Any) -> None:
        raise TimeIsUp(f"ended after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ended)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
