"""How long the device waits for the loader: the product's loader over ten million events."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import torch

from benchmarks.gpu_checks.dataset import InMemory
from benchmarks.gpu_checks.setting import Setting, ms, synchronize
from benchmarks.gpu_checks.training import ATTENTION, a_pass, settings
from recsys.data.batches import Batch
from recsys.data.loader import Step
from recsys.training.loop import Pass
from recsys.training.optimizer import clip_gradients


def waits(setting: Setting) -> dict[str, Any]:
    """Time of the loop with the loader, against the same steps with their batches on the device.

    Returns
    -------
    dict
        Share of the time that the device waits: with the loop as it is, with pinned memory, and
        with the loader in a thread of its own, by precision.
    """
    events, items = setting.size(10_000_000, 20_000), setting.size(20_000, 300)
    dataset = InMemory.of_size(events, items, 50, setting.size(20, 4))
    found: dict[str, Any] = {
        "events": int(sum(len(shard.items_E) for shard in dataset.shards())),
        "steps": setting.size(200, 4),
    }
    for kind in ("float32", "bfloat16") if setting.on_gpu else ("float32",):
        train = {"batch_size": setting.size(512, 32), "precision": kind}
        config = settings(dataset, {"evolution": ATTENTION}, train=train)
        training = a_pass(config, dataset, setting.device)
        found[kind] = _measured(training, setting, found["steps"])
    return found


def _measured(training: Pass, setting: Setting, number: int) -> dict[str, Any]:
    device = setting.device
    drawn = islice(training.loader.epoch(0), number)
    opened = time.perf_counter()
    kept = [next(drawn)]
    first = time.perf_counter() - opened  # opens a window of shards
    started = time.perf_counter()
    kept += drawn
    loading = time.perf_counter() - started
    there = [replace(step, batch=step.batch.to(device)) for step in kept]
    _train(training, there[:4], _as_it_is)  # warms up
    alone = _train(training, there, _as_it_is)
    ways = {
        "as it is": (iter(training.loader.epoch(0)), _as_it_is),
        "pinned memory": (iter(training.loader.epoch(0)), _pinned),
        "possible: loader in a thread": (_ahead(training.loader.epoch(0)), _pinned),
    }
    found: dict[str, Any] = {
        "first_batch_ms": ms(first),
        "loader_ms_a_step": ms(loading / max(1, len(kept) - 1)),
        "step_ms_without_loader": ms(alone / len(there)),
    }
    for name, (steps, move) in ways.items():
        if move is _pinned and not setting.on_gpu:
            move = _as_it_is
        next(steps)  # opens the window
        took = _train(training, islice(steps, len(there)), move)
        found[name] = {
            "step_ms": ms(took / len(there)),
            "share_waiting": round(max(0.0, 1 - alone / took), 4),
        }
    return found


def _train(training: Pass, steps: Iterable[Step], move: Any) -> float:
    """Seconds of these steps as the loop makes them, without waiting for the device in between."""
    synchronize(training.context.device)
    started = time.perf_counter()
    for step in steps:
        training.optimizer.zero_grad(set_to_none=True)
        with training.context.autocast(training.config.train.precision):
            summed = training.step(move(step.batch, training.context.device), (0, 0, step.number))
        (summed / step.weight).backward()
        clip_gradients(training.loss, training.config.train.clip_norm)
        training.optimizer.step()
    synchronize(training.context.device)
    return time.perf_counter() - started


def _as_it_is(batch: Batch, device: torch.device) -> Batch:
    return batch.to(device)


def _pinned(batch: Batch, device: torch.device) -> Batch:
    moved = {
        name: part.pin_memory().to(device, non_blocking=True)
        for name, part in batch.__dict__.items()
        if isinstance(part, torch.Tensor) and part.numel()
    }
    return replace(batch.to(device) if not moved else replace(batch, **moved))


def _ahead(steps: Iterable[Step], most: int = 4) -> Iterator[Step]:
    """The steps, made by a thread that is at most this many ahead.

    Yields
    ------
    Step
        In the order of the loader.
    """
    made: queue.Queue[Step | None] = queue.Queue(most)
    stopped = threading.Event()

    def make() -> None:
        for step in steps:
            while not stopped.is_set():
                try:
                    made.put(step, timeout=0.2)
                    break
                except queue.Full:
                    continue
            if stopped.is_set():
                return
        made.put(None)

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        while (step := made.get()) is not None:
            yield step
    finally:
        stopped.set()
        thread.join()
