"""The losses over large catalogues: time and memory of the full and of the sampled softmax."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import recsys.softmax
from benchmarks.gpu_checks.rates import matrix_rate
from benchmarks.gpu_checks.setting import (
    MIB,
    Setting,
    attempt,
    median_seconds,
    ms,
    peak_mib,
)
from benchmarks.gpu_checks.steps import a_batch, product_step
from recsys.softmax import LeftOut, full_softmax
from recsys.training.optimizer import clip_gradients

WIDTH = 64
SEEN = 50  # items that every query leaves out


@dataclass(frozen=True)
class Inputs:
    """Queries, items, and one target for every query."""

    users_BD: Tensor
    items_ND: Tensor
    targets_B: Tensor

    @staticmethod
    def of(queries: int, items: int, device: torch.device) -> Inputs:
        """Random vectors of the size that trained ones have."""
        torch.manual_seed(0)
        users_BD = torch.randn(queries, WIDTH, device=device).requires_grad_()
        items_ND = (0.1 * torch.randn(items, WIDTH, device=device)).requires_grad_()
        return Inputs(users_BD, items_ND, torch.randint(items, (queries,), device=device))

    def ours(self) -> None:
        """Forward and backward of the product's loss."""
        pairs_P = torch.arange(len(self.users_BD), device=self.users_BD.device)
        ones_P = torch.ones(len(pairs_P), device=pairs_P.device)
        full_softmax(self.users_BD, self.items_ND, pairs_P, self.targets_B, ones_P).backward()
        self._forget()

    def unseen(self) -> None:
        """The same, without some items of every query."""
        queries_B = torch.arange(len(self.users_BD), device=self.users_BD.device)
        queries_H = queries_B.repeat_interleave(SEEN)
        items_H = (queries_H * SEEN + torch.arange(len(queries_H), device=queries_H.device)) % len(
            self.items_ND
        )
        ones_P = torch.ones(len(queries_B), device=queries_B.device)
        known = (self.users_BD, self.items_ND, queries_B, self.targets_B, ones_P)
        full_softmax(*known, left_out=LeftOut(queries_H, items_H)).backward()
        self._forget()

    def plain(self) -> None:
        """The same by a matrix of all logits."""
        logits_BN = self.users_BD @ self.items_ND.T
        cross_entropy(logits_BN, self.targets_B, reduction="sum").backward()
        self._forget()

    def liger(self) -> None:
        """The same by the fused kernel of Liger."""
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        loss = LigerFusedLinearCrossEntropyLoss(reduction="sum")
        loss(self.items_ND, self.users_BD, self.targets_B).backward()
        self._forget()

    def _forget(self) -> None:
        self.users_BD.grad = self.items_ND.grad = None


@contextmanager
def logits_at_a_time(number: int) -> Iterator[None]:
    """Let the losses hold this many logits in memory instead of their own number."""
    before = recsys.softmax._MAX_LOGITS
    recsys.softmax._MAX_LOGITS = number  # type: ignore[misc]
    try:
        yield
    finally:
        recsys.softmax._MAX_LOGITS = before  # type: ignore[misc]


def full(setting: Setting) -> dict[str, Any]:
    """Time and peak memory of the full softmax over a million items, forward and backward.

    Returns
    -------
    dict
        Ours with its own and with larger chunks, in fp32 and bf16, beside the plain loss over fewer
        targets.

    Raises
    ------
    AssertionError
        Our peak is that of a matrix of all logits.
    """
    setting.need_memory(24)
    queries, items = setting.size(8192, 64), setting.size(1_000_000, 2000)
    inputs = Inputs.of(queries, items, setting.device)
    matrix = queries * items * 4 / MIB
    rate = matrix_rate("fp32", setting.device, setting.size(8192, 256))
    flop = 3 * 2 * queries * items * WIDTH

    def measured(work: Any, share: float, targets: int = queries) -> dict[str, Any]:
        seconds = median_seconds(work, setting, rounds=5, share=share)
        found = {"ms": ms(seconds), "us_a_target": round(1e6 * seconds / targets, 2)}
        return {**found, "peak_mib": peak_mib(work, setting.device)}

    ours = measured(inputs.ours, 0.2)
    share = flop / (ours["ms"] / 1e3) / 1e12 / rate
    found: dict[str, Any] = {
        "targets": queries,
        "items": items,
        "mib_of_targets_times_items": round(matrix, 1),
        "ours": {**ours, "share_of_matrix_rate": round(share, 4)},
    }
    with torch.autocast(setting.device.type, torch.bfloat16):
        found["ours, bf16"] = measured(inputs.ours, 0.2)
    found["ours, without seen items"] = measured(inputs.unseen, 0.1)
    for power in (25, 27, 29) if setting.on_gpu else (18,):
        with logits_at_a_time(2**power):
            found[f"ours, 2^{power} logits at a time"] = attempt(
                partial(measured, inputs.ours, 0.1)
            )
    fewer = Inputs(
        inputs.users_BD[: queries // 8].detach().requires_grad_(),
        inputs.items_ND,
        inputs.targets_B[: queries // 8],
    )
    found["plain, an eighth of the targets"] = attempt(
        lambda: measured(fewer.plain, 0.1, queries // 8)
    )
    if importlib.util.find_spec("liger_kernel"):
        found["Liger"] = attempt(lambda: measured(inputs.liger, 0.1))
    if setting.on_gpu and ours["peak_mib"] > matrix / 4:
        raise AssertionError(f"the peak is near a matrix of all logits: {found}")
    return found


def sampled(setting: Setting) -> dict[str, Any]:
    """A step of the sampled softmax over 10⁶ and 10⁷ items, with rows-only updates.

    Returns
    -------
    dict
        Step time, the part that draws the negatives, and peak memory, by number of items.
    """
    found: dict[str, Any] = {}
    for items in (10**6, 10**7) if setting.on_gpu else (2000, 20_000):
        if items == 10**7:
            setting.need_memory(16)
        step = product_step(items, "sampled_softmax", setting.device)
        batch = a_batch(setting.size(512, 8), items).to(setting.device)

        def whole(step: Any = step, batch: Any = batch) -> None:
            step.optimizer.zero_grad(set_to_none=True)
            (step.loss(batch, (0, 0, 0)) / len(batch)).backward()
            clip_gradients(step.loss, 1.0)
            step.optimizer.step()

        draw = partial(step.loss._draw, (0, 0, 0))
        found[f"{items:,} items"] = {
            "step_ms": ms(median_seconds(whole, setting, share=0.2)),
            "of_it_drawing_negatives_ms": ms(median_seconds(draw, setting, share=0.1)),
            "peak_mib": peak_mib(whole, setting.device),
        }
        found[f"{items:,} items"]["possible: drawing on the device by bisection, ms"] = ms(
            median_seconds(_bisection(step.loss.q_N.to(setting.device)), setting, share=0.05)
        )
        del step
    return found


def _bisection(q_N: Tensor) -> Any:
    sums_N = q_N.cumsum(0)

    def draw() -> Tensor:
        return torch.searchsorted(sums_N, torch.rand(8192, dtype=q_N.dtype, device=q_N.device))

    return draw
