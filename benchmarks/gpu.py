"""Measure the training step on a GPU: fp32, bf16, ``torch.compile``, and the share of the card's
measured matrix rate.

    python -m benchmarks.gpu

The sequence model (width 64, 2 blocks, 50 events) over generated histories, full softmax over
20,000 items and sampled softmax over a million, through the training loop's own modules, without
Ray. The card's rate is that of large matrix products of the same type, measured in the same run.
Without a GPU a small version runs once on the CPU: this shows that the code runs; its figures mean
nothing.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.in_turns import say
from recsys.config import ModelConfig
from recsys.data.batches import Batch, every_position
from recsys.data.histories import Histories
from recsys.granularities.base import Graphs, ModelSizes
from recsys.losses import full_softmax, sampled_softmax
from recsys.model import MultigrainModel

WIDTH, LENGTH = 64, 50
NEGATIVES = 8192


class Step(nn.Module):
    """One step of the training loop: item vectors, user vectors, softmax."""

    def __init__(self, num_items: int, sampled: bool, device: torch.device) -> None:
        super().__init__()
        self.sampled, self.num_items = sampled, num_items
        evolution = {
            "enabled": True,
            "layers": 2,
            "heads": 2,
            "positions": "absolute",
            "dropout": 0.2,
        }
        tree = {
            "width": WIDTH,
            "max_history": LENGTH,
            "item": {"text": False},
            "granularities": {"evolution": evolution},
        }
        config = ModelConfig.model_validate(tree)
        sizes = ModelSizes(
            WIDTH, LENGTH, 1, num_items, num_types=1, text_width=0, ordered=True, timed=False
        )
        nothing = torch.zeros(0, dtype=torch.int64)
        self.graphs = Graphs(1, num_items, nothing, nothing).to(device)
        trained_N = torch.ones(num_items, dtype=torch.bool)
        self.model = MultigrainModel(config, sizes, torch.zeros(num_items, 0), trained_N).to(device)

    def forward(self, batch: Batch) -> Tensor:
        weights_P = torch.ones(len(batch.pairs_P), device=batch.pairs_P.device)
        if not self.sampled:
            items, states = self.model.view(self.graphs)
            users_BD = self.model(batch, items, states)
            return full_softmax(
                users_BD, items.vectors_SD, batch.pairs_P, batch.targets_P, weights_P, 0.0
            )
        negatives_M = torch.randint(self.num_items, (NEGATIVES,), device=weights_P.device)
        ids_S, numbers = torch.unique(
            torch.cat([batch.history_UL.flatten(), batch.targets_P, negatives_M]),
            return_inverse=True,
        )
        history, targets_P, drawn_M = numbers.split(
            [batch.history_UL.numel(), len(batch.targets_P), NEGATIVES]
        )
        batch = Batch(
            **{
                **batch.__dict__,
                "history_UL": history.view_as(batch.history_UL),
                "targets_P": targets_P,
            }
        )
        items, states = self.model.view(self.graphs, ids_S)
        users_BD = self.model(batch, items, states)
        log_q_M = torch.full(
            (NEGATIVES,), float(np.log(NEGATIVES / self.num_items)), device=weights_P.device
        )
        parts = (users_BD, items.vectors_SD, batch.pairs_P, batch.targets_P, weights_P)
        return sampled_softmax(*parts, negatives_M=drawn_M, log_q_M=log_q_M)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, default=512, help="histories of a step")
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    users, steps = (options.users, options.steps) if on_gpu else (8, 2)
    rates = {kind: matrix_rate(kind, device, 8192 if on_gpu else 512) for kind in ("fp32", "bf16")}
    sizes = {"full softmax": (20_000, False), "sampled softmax": (1_000_000, True)}
    if not on_gpu:
        sizes = {name: (number // 100, sampled) for name, (number, sampled) in sizes.items()}
    figures = {
        f"{name}, {kind}{', compiled' if compiled else ''}": measure(
            number, sampled, kind, compiled, device, users, steps
        )
        for name, (number, sampled) in sizes.items()
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


def matrix_rate(kind: str, device: torch.device, size: int) -> float:
    """Rate of the product of two large matrices, in 10¹² operations per second."""
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    one, two = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    seconds = [_seconds(lambda: one @ two, device) for _ in range(6)]
    return 2 * size**3 / median(seconds[1:]) / 1e12


def measure(
    num_items: int,
    sampled: bool,
    kind: str,
    compiled: bool,
    device: torch.device,
    users: int,
    steps: int,
) -> dict[str, Any]:
    """Median step of forward, backward and optimiser."""
    torch.manual_seed(0)
    step = Step(num_items, sampled, device)
    optimizer = torch.optim.AdamW(step.parameters(), lr=1e-3, fused=True)
    forward: Any = torch.compile(step) if compiled else step
    random = np.random.default_rng(0)
    batches = [_batch(random, users, num_items).to(device) for _ in range(4)]

    def run(number: int, call: Any = forward) -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=kind == "bf16"):
            loss = call(batches[number % len(batches)])
        loss.backward()
        optimizer.step()

    with FlopCounterMode(display=False) as counter:
        run(0, step)
    for number in range(min(5, steps)):
        run(number)
    seconds = [_seconds(partial(run, number), device) for number in range(steps)]
    targets = len(batches[0].targets_P)
    found = {
        "step_ms": round(1e3 * median(seconds), 2),
        "targets_a_second": round(targets / median(seconds)),
    }
    return {**found, "tflops": round(counter.get_total_flops() / median(seconds) / 1e12, 4)}


def _batch(random: np.random.Generator, users: int, num_items: int) -> Batch:
    rows = [random.integers(num_items, size=LENGTH + 1).tolist() for _ in range(users)]
    return every_position(Histories.of_items(rows), LENGTH, np.arange(users))


def _seconds(work: Any, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
