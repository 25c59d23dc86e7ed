"""Measure the parts of a whole multi-granularity training step: the shipped configuration of
Last.fm, one thread.

    python -m benchmarks.step_profile --config lastfm --steps 30

Shares of a step by part: the loader, the item tower, the graph convolutions and states of each
granularity (computed once per step for any number of users: ``made_a_step`` counts them), its
encoder of users, the loss, the backward pass and the optimiser. The first steps warm up and do not
count.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.in_turns import say
from pipelines.cli import config_file
from recsys.config import Config, load_config
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Split
from recsys.evaluation.validation import Validator
from recsys.training.checkpoint import Progress
from recsys.training.context import TrainContext
from recsys.training.loop import Pass

WARM_UP = 3


class Enough(Exception):
    """Enough steps were measured."""


class Clock:
    """Seconds and calls of parts; the seconds of an inner part do not count for the outer one."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()
        self._inner: list[float] = []

    def reset(self) -> None:
        self.seconds.clear()
        self.calls.clear()

    def timed(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def measured(*given: Any, **named: Any) -> Any:
            started = time.perf_counter()
            self._inner.append(0.0)
            try:
                return work(*given, **named)
            finally:
                took = time.perf_counter() - started
                self.seconds[part] += took - self._inner.pop()
                self.calls[part] += 1
                if self._inner:
                    self._inner[-1] += took

        return measured


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config", default="lastfm", help="a shipped configuration by name, or a file"
    )
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(config_file(options.config), [("run.dir", folder)])
        dataset = prepared(config)
        clock, seconds = profile(config, dataset, options.steps)
    parts = sorted(clock.seconds.items(), key=lambda part: -part[1])
    say(
        "where a training step's time goes",
        config=options.config,
        steps=options.steps,
        step_ms=round(1e3 * seconds / options.steps, 1),
        share={name: round(value / seconds, 3) for name, value in parts},
        made_a_step={
            n: calls / options.steps
            for n, calls in clock.calls.items()
            if n.startswith(("graph", "state"))
        },
    )


def prepared(config: Config) -> PreparedDataset:
    from pipelines.plumbing.session import ray_session
    from recsys.preparation.prepare import prepare

    with ray_session(config.train, config.ray):
        prepare(config)
    return PreparedDataset(config.dataset_dir)


def profile(config: Config, dataset: PreparedDataset, steps: int) -> tuple[Clock, float]:
    """Train ``steps`` steps with a timer on every part; return the timer and the seconds of all
    steps."""
    clock, started = Clock(), 0.0
    phase = Pass(
        config,
        dataset,
        Split.TRAIN,
        Validator.of(config.train, config.evaluate),
        TrainContext(),
        Progress(),
    )
    model = phase.model
    model.tower.forward = clock.timed("item tower", model.tower.forward)
    for name, module in model.encoders.each():
        for part, method in (("graph", "refine_items"), ("state", "state")):
            setattr(module, method, clock.timed(f"{part}: {name}", getattr(module, method)))
        module.forward = clock.timed(f"encoder: {name}", module.forward)
    phase.loss.forward = clock.timed("loss and fusion", phase.loss.forward)
    phase.optimizer.step = clock.timed("optimizer", phase.optimizer.step)
    backward = torch.Tensor.backward
    torch.Tensor.backward = clock.timed("backward", backward)
    draw = phase.loader.epoch

    def drawn(epoch: int, first: int = 0) -> Iterator[Any]:
        nonlocal started
        source = draw(epoch, first)
        take = clock.timed("loader", lambda: next(source, None))
        while (step := take()) is not None:
            if done[0] == WARM_UP:
                clock.reset()
                started = time.perf_counter()
            if done[0] == WARM_UP + steps:
                raise Enough
            done[0] += 1
            yield step

    done = [0]
    phase.loader.epoch = drawn
    try:
        for epoch in range(10**6):
            phase._epoch(epoch)
    except Enough:
        seconds = time.perf_counter() - started
    finally:
        torch.Tensor.backward = backward
    clock.seconds["the rest"] = seconds - sum(clock.seconds.values())
    return clock, seconds


if __name__ == "__main__":
    main()
