"""The whole step in each precision, compiled, and as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_checks.setting import (
    Setting,
    attempt,
    matrix_precision,
    median_seconds,
    ms,
    timed,
)
from benchmarks.gpu_checks.steps import ProductStep, a_batch, product_step
from recsys.data.batches import Batch
from recsys.training.optimizer import clip_gradients

Call = Callable[[Batch, tuple[int, int, int]], Tensor]
LENGTHS = (50, 37, 12, 24, 6, 45, 31, 18, 9, 50, 41, 15)


def train_step(step: ProductStep, call: Call, batch: Batch, kind: str = "fp32") -> None:
    """One step of the loop: forward, backward, clipping and optimiser.

    Parameters
    ----------
    step : ProductStep
        The loss and its optimiser.
    call : callable
        The loss, or the compiled loss.
    batch : Batch
        A batch on the device.
    kind : str
        ``bf16`` for autocast.
    """
    step.optimizer.zero_grad(set_to_none=True)
    device = batch.history_UL.device.type
    with torch.autocast(device, torch.bfloat16, enabled=kind == "bf16"):
        loss = call(batch, (0, 0, 0))
    (loss / len(batch)).backward()
    clip_gradients(step.loss, 1.0)
    step.optimizer.step()


def precisions(setting: Setting) -> dict[str, Any]:
    """Step time in fp32, TF32 and bf16, for both losses.

    Returns
    -------
    dict
        Milliseconds and targets a second, by loss and precision.
    """
    found: dict[str, Any] = {}
    for loss, items in (("full_softmax", 20_000), ("sampled_softmax", 10**6)):
        items = setting.size(items, items // 100)
        batch = a_batch(setting.size(512, 8), items).to(setting.device)
        for kind in ("fp32", "tf32", "bf16"):
            step = product_step(items, loss, setting.device)
            with matrix_precision(kind):
                work = partial(train_step, step, step.loss, batch, kind)
                seconds = median_seconds(work, setting, share=0.12)
            found[f"{loss}, {kind}"] = {
                "step_ms": ms(seconds),
                "targets_a_second": round(len(batch.targets_P) / seconds),
            }
    return found


def lengths(setting: Setting) -> dict[str, Any]:
    """How often torch compiles again while batches have different lengths, and the step time after.

    Returns
    -------
    dict
        Graphs compiled, breaks, and step time: eager, the whole step compiled, and the encoders
        alone.
    """
    items, users = setting.size(20_000, 200), setting.size(512, 8)
    used = LENGTHS if setting.on_gpu else LENGTHS[:4]
    batches = [a_batch(users, items, n).to(setting.device) for n in used]
    found: dict[str, Any] = {"batches": len(batches), "lengths": len(set(used))}
    for name, dynamic in (("eager", None), ("automatic", None), ("dynamic", True)):
        found[name] = attempt(partial(_compiled, setting, name, dynamic, items, batches, False))
    found["encoders alone, dynamic"] = attempt(
        partial(_compiled, setting, "encoders", True, items, batches, True)
    )
    return found


def _compiled(
    setting: Setting,
    name: str,
    dynamic: bool | None,
    items: int,
    batches: Sequence[Batch],
    encoders_alone: bool,
) -> dict[str, Any]:
    import torch._dynamo
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    step = product_step(items, "full_softmax", setting.device)
    # the C++ of a CPU would take most of the time of a run that only shows that the code runs
    options: dict[str, Any] = {"dynamic": dynamic, **_backend(setting)}
    call: Any = step.loss
    if encoders_alone:
        step.loss.model.encoders.encode = torch.compile(step.loss.model.encoders.encode, **options)  # type: ignore[method-assign]
    elif name != "eager":
        call = torch.compile(step.loss, **options)

    def epoch() -> None:
        for batch in batches:
            train_step(step, call, batch)

    first = timed(epoch, setting.device)
    graphs = counters["stats"]["unique_graphs"]
    second = timed(epoch, setting.device)
    rounds = [timed(epoch, setting.device) for _ in range(setting.size(5, 1))]
    return {
        "first_epoch_s": round(first, 2),
        "second_epoch_s": round(second, 2),
        "step_ms": ms(min(rounds) / len(batches)),
        "graphs_of_first_epoch": graphs,
        "graphs": counters["stats"]["unique_graphs"],
        "breaks": sum(counters["graph_break"].values()),
    }


def cuda_graphs(setting: Setting) -> dict[str, Any]:
    """Step time eager, compiled, and replayed as CUDA graphs, for batches of one shape.

    Returns
    -------
    dict
        Milliseconds of a step in fp32 and bf16.
    """
    items = setting.size(20_000, 200)
    batch = a_batch(setting.size(512, 8), items).to(setting.device)
    modes = {"eager": None, "compiled": "default", "CUDA graphs": "reduce-overhead"}
    found: dict[str, Any] = {}
    for kind in ("fp32", "bf16") if setting.on_gpu else ("fp32",):
        for name, mode in modes.items():
            found[f"{name}, {kind}"] = attempt(
                partial(_replayed, setting, mode, items, batch, kind)
            )
    return found


def _replayed(
    setting: Setting, mode: str | None, items: int, batch: Batch, kind: str
) -> dict[str, Any]:
    import torch._dynamo

    torch._dynamo.reset()
    step = product_step(items, "full_softmax", setting.device)
    call: Any = step.loss
    if mode is not None:
        call = torch.compile(step.loss, **(_backend(setting) or {"mode": mode}))

    def work() -> None:
        torch.compiler.cudagraph_mark_step_begin()
        train_step(step, call, batch, kind)

    return {"step_ms": ms(median_seconds(work, setting, share=0.1))}


def _backend(setting: Setting) -> dict[str, Any]:
    return {} if setting.on_gpu else {"backend": "aot_eager"}
