"""Measure the training on a GPU.

    python -m benchmarks.gpu
    python -m benchmarks.gpu --all

Without options: the step time of the sequence model (width 64, 2 blocks, 50 events) in fp32 and
bf16, with ``torch.compile`` on and off, and the share of the card's matrix rate, which is measured
in the same run. Full softmax over 20,000 items, sampled softmax over a million.

``--all`` answers every question that only a GPU can answer, one line of JSON each as soon as it is
measured, within eight minutes on one card; ``--only NAME …`` some of them. A check that fails has
``error`` in its line, and the exit code is then 1. All go through the training loop's own modules,
without Ray. Without a GPU a small version runs once on the CPU: this shows that the code runs; its
figures mean nothing.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu_checks.compiled import train_step
from benchmarks.gpu_checks.rates import matrix_rate
from benchmarks.gpu_checks.setting import timed
from benchmarks.gpu_checks.steps import a_batch, product_step
from benchmarks.gpu_checks.table import CHECKS, run
from benchmarks.in_turns import say

SECONDS = 460.0  # of --all: less than eight minutes


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, default=512, help="histories of a step")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--all", action="store_true", help="run all checks")
    names = [check.name for check in CHECKS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=" ".join(names))
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time of all checks")
    options = parser.parse_args()
    if options.all or options.only:
        sys.exit(0 if run(options.only or [], options.seconds) else 1)
    steps(options.users, options.steps)


def steps(users: int, number: int) -> None:
    """Print the step times as one line."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    users, number = (users, number) if on_gpu else (8, 2)
    rates = {kind: matrix_rate(kind, device, 8192 if on_gpu else 512) for kind in ("fp32", "bf16")}
    sizes = {"full softmax": 20_000, "sampled softmax": 1_000_000}
    if not on_gpu:
        sizes = {name: size // 100 for name, size in sizes.items()}
    figures = {
        f"{name}, {kind}{', compiled' if compiled else ''}": measure(
            size, name.replace(" ", "_"), kind, compiled, device, users, number
        )
        for name, size in sizes.items()
        for kind in rates
        for compiled in ((False, True) if on_gpu else (False,))
    }
    for name, figure in figures.items():
        figure["share_of_matrix_rate"] = round(
            figure["tflops"] / rates["bf16" if "bf16" in name else "fp32"], 4
        )
    say(
        "the training step on a GPU",
        device=torch.cuda.get_device_name() if on_gpu else "none: the CPU, to see that it runs",
        matrix_tflops={kind: round(rate, 2) for kind, rate in rates.items()},
        steps=figures,
        users=users,
    )


def measure(
    num_items: int,
    loss: str,
    kind: str,
    compiled: bool,
    device: torch.device,
    users: int,
    number: int,
) -> dict[str, Any]:
    """Median step of forward, backward and optimiser."""
    torch.manual_seed(0)
    step = product_step(num_items, loss, device)
    call: Any = torch.compile(step.loss) if compiled else step.loss
    batches = [a_batch(users, num_items, seed=seed).to(device) for seed in range(4)]

    def work(number: int) -> None:
        train_step(step, call, batches[number % len(batches)], kind)

    with FlopCounterMode(display=False) as counter:
        train_step(step, step.loss, batches[0], kind)
    for warm_up in range(min(5, number)):
        work(warm_up)
    seconds = median(timed(partial(work, turn), device) for turn in range(number))
    return {
        "step_ms": round(1e3 * seconds, 2),
        "targets_a_second": round(len(batches[0].targets_P) / seconds),
        "tflops": round(counter.get_total_flops() / seconds / 1e12, 4),
    }


if __name__ == "__main__":
    main()
