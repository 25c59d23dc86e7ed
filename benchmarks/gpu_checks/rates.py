"""The card's measured matrix rate and memory bandwidth, and the share that each phase reaches.

A phase's operations are torch's count of its matrix products. Its bytes are those of all tensors
that its kernels read and write, views left out; kernels that keep their operands in the cache can
therefore show more than the bandwidth.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu_checks.dataset import write_dataset
from benchmarks.gpu_checks.setting import Setting, matrix_precision, ms, synchronize, timed
from benchmarks.gpu_checks.training import ATTENTION, a_pass, settings
from recsys.training.loop import Pass
from recsys.training.optimizer import clip_gradients

KINDS = ("fp32", "tf32", "bf16")


def matrix_rate(kind: str, device: torch.device, size: int) -> float:
    """Rate of the product of two large matrices, in 10¹² operations per second."""
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    one, two = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    with matrix_precision(kind):
        seconds = [timed(lambda: one @ two, device) for _ in range(6)]
    return 2 * size**3 / median(seconds[1:]) / 1e12


def memory_rate(device: torch.device, mib: int) -> float:
    """Rate of copying a large tensor, read and written bytes together, in 10⁹ bytes per second."""
    source = torch.ones(mib * 2**18, device=device)
    target = torch.empty_like(source)
    seconds = [timed(lambda: target.copy_(source), device) for _ in range(6)]
    return 2 * 4 * len(source) / median(seconds[1:]) / 1e9


class Traffic(TorchDispatchMode):
    """Counts the bytes that kernels read and write; making a view does not count."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        returns = func._schema.returns
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in returns)
        if not is_view:
            touched = tree_leaves((args, kwargs, found))
            self.bytes += sum(t.numel() * t.element_size() for t in touched if _is_dense(t))
        return found


def _is_dense(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided


def of_phases(setting: Setting) -> dict[str, Any]:
    """Time of each phase of the product's step, and its shares of the card's rates.

    Returns
    -------
    dict
        The two rates, and the phases in fp32 and in bf16.
    """
    tflops = {k: matrix_rate(k, setting.device, setting.size(8192, 256)) for k in KINDS}
    bandwidth = memory_rate(setting.device, setting.size(4096, 32))
    found: dict[str, Any] = {
        "matrix_tflops": {kind: round(rate, 3) for kind, rate in tflops.items()},
        "memory_gb_a_second": round(bandwidth, 1),
    }
    with tempfile.TemporaryDirectory() as folder:
        users, items = setting.size(20_000, 100), setting.size(20_000, 200)
        dataset = write_dataset(Path(folder), users, items, longest=50)
        for kind in ("fp32", "bf16"):
            precision = "bfloat16" if kind == "bf16" else "float32"
            train = {"batch_size": setting.size(512, 32), "precision": precision}
            config = settings(dataset, {"evolution": ATTENTION}, train=train)
            training = a_pass(config, dataset, setting.device)
            found[kind] = {
                name: phase | _shares(phase, tflops[kind], bandwidth)
                for name, phase in _phases(training, setting).items()
            }
    return found


def _shares(phase: dict[str, float], tflops: float, bandwidth: float) -> dict[str, float]:
    seconds = phase["ms"] / 1e3
    return {
        "share_of_matrix_rate": round(phase["gflop"] / 1e3 / seconds / tflops, 4),
        "share_of_bandwidth": round(phase["mb"] / 1e3 / seconds / bandwidth, 4),
    }


def _phases(training: Pass, setting: Setting) -> dict[str, dict[str, float]]:
    """Median milliseconds of each phase, its operations (10⁹) and its bytes (10⁶)."""
    steps = list(training._steps(0))[:4]
    seconds: dict[str, list[float]] = {}
    for number in range(setting.size(24, 2)):
        for name, phase in _step(training, steps[number % len(steps)]).items():
            seconds.setdefault(name, []).append(timed(phase, setting.device))
    found: dict[str, dict[str, float]] = {}
    for name, phase in _step(training, steps[0]).items():
        with FlopCounterMode(display=False) as counter, Traffic() as traffic:
            phase()
        synchronize(setting.device)
        found[name] = {
            "ms": ms(median(seconds[name][len(seconds[name]) // 4 :])),
            "gflop": round(counter.get_total_flops() / 1e9, 4),
            "mb": round(traffic.bytes / 1e6, 2),
        }
    return found


def _step(training: Pass, step: Any) -> dict[str, Callable[[], None]]:
    """The phases of one step, to be called in this order."""
    at: dict[str, Any] = {}
    model, loss = training.model, training.loss
    precision = training.config.train.precision

    def move() -> None:
        at["batch"] = step.batch.to(training.context.device)

    def view() -> None:
        training.optimizer.zero_grad(set_to_none=True)
        with training.context.autocast(precision):
            at["items"], at["states"] = model.view(training.graphs)

    def encode() -> None:
        with training.context.autocast(precision):
            at["users"] = model(at["batch"], at["items"], at["states"]) * loss.log_scale.exp()

    def softmax() -> None:
        batch = at["batch"]
        none_M = batch.targets_P[:0]
        with training.context.autocast(precision):
            at["loss"] = loss.sum(
                at["users"],
                at["items"].vectors_SD,
                batch.pairs_P,
                batch.targets_P,
                loss._weights(batch),
                none_M,
                none_M.float(),
            )

    def backward() -> None:
        (at["loss"] / step.weight).backward()

    def update() -> None:
        clip_gradients(loss, training.config.train.clip_norm)
        training.optimizer.step()

    return {
        "batch to the device": move,
        "item view": view,
        "encoding of users": encode,
        "softmax with its gradient": softmax,
        "backward": backward,
        "clipping and optimizer": update,
    }
