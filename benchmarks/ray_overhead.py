"""Measure the overhead of Ray Train: one worker on Ray against the bare loop, with at least a
minute of work.

    python -m benchmarks.ray_overhead --data beauty --epochs 12

``share`` is how much longer the epochs take on Ray, checkpoints and reports included; the start of
workers is reported separately.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.in_turns import in_turns, medians, say
from benchmarks.training_speed import prepare_ours, settings, write_events
from recsys.data.dataset import PreparedDataset
from recsys.evaluation.validation import Validator
from recsys.training.context import Report, TrainContext


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=["ml-100k", "beauty"], default="beauty")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", nargs=2, metavar=("SIDE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(train(options.side[0], options.side[1], options.epochs)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_events(options.data, Path(folder))
        prepare_ours(folder)
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "benchmarks.ray_overhead",
            "--epochs",
            str(options.epochs),
        ]
        sides = {name: [*command, "--side", name, folder] for name in ("bare", "ray")}
        results = in_turns(sides, options.rounds)
    work, start = medians(results, "work_s"), medians(results, "start_s")
    say(
        "Ray Train around the loop",
        data=options.data,
        work_s={name: round(value, 1) for name, value in work.items()},
        share=round(work["ray"] / work["bare"] - 1, 4),
        start_s={name: round(value, 1) for name, value in start.items()},
        epochs=options.epochs,
        rounds=options.rounds,
    )


def train(side: str, folder: str, epochs: int) -> dict[str, float]:
    """Seconds from the end of the first epoch to that of the last, and the start-up before: time
    until the first end minus one epoch."""
    import torch

    torch.set_num_threads(1)
    ends: list[float] = []
    seconds: list[float] = []

    def report(values: Report, _: Path | None = None) -> None:
        if "epoch" in values:
            ends.append(time.perf_counter())
            seconds.append(values["seconds"])

    config = settings(folder, epochs)
    config.train.evaluate_every = 1  # one checkpoint per epoch
    dataset = PreparedDataset(config.dataset_dir)
    validate = Validator.of(config.train, config.evaluate)
    started = time.perf_counter()
    if side == "bare":
        from recsys.training.phases import fit

        fit(config, dataset, validate, TrainContext(report=report))
    else:
        from pipelines.plumbing.session import ray_session

        with ray_session(config.train, config.ray):
            from recsys.training.ray_train import train_on_ray

            train_on_ray(config, dataset, validate, report)
    return {"work_s": ends[-1] - ends[0], "start_s": ends[0] - started - seconds[0]}


if __name__ == "__main__":
    main()
