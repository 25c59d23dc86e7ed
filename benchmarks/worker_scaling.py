"""Measure the gain of two workers over one: the same training, one CPU thread per worker, on one
machine.

    python -m benchmarks.worker_scaling --data beauty --epochs 3

Real processes over gloo around the loop that knows no Ray, in turns; seconds are those of the
epochs after the first.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import tempfile
from pathlib import Path
from statistics import median

import torch
import torch.distributed
import torch.multiprocessing

from benchmarks.in_turns import in_turns, medians, say
from benchmarks.training_speed import prepare_ours, settings, write_events
from recsys.data.dataset import PreparedDataset
from recsys.evaluation.validation import Validator
from recsys.training.context import Report, TrainContext
from recsys.training.phases import fit


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=["ml-100k", "beauty"], default="beauty")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", nargs=2, metavar=("WORKERS", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        run_side(int(options.side[0]), options.side[1], options.epochs)
        return
    with tempfile.TemporaryDirectory() as folder:
        write_events(options.data, Path(folder))
        prepare_ours(folder)
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "benchmarks.worker_scaling",
            "--epochs",
            str(options.epochs),
        ]
        sides = {
            f"{number} workers": [*command, "--side", str(number), folder] for number in (1, 2)
        }
        results = in_turns(sides, options.rounds)
    seconds = medians(results, "seconds")
    say(
        "one worker to two",
        data=options.data,
        epoch_s={name: round(value, 2) for name, value in seconds.items()},
        times=round(seconds["1 workers"] / seconds["2 workers"], 3),
        rounds=options.rounds,
    )


def run_side(workers: int, folder: str, epochs: int) -> None:
    """Train with this number of workers and print the median epoch."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_worker, (workers, port, folder, epochs + 2), nprocs=workers)


def _worker(rank: int, workers: int, port: int, folder: str, epochs: int) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=workers
    )
    seconds: list[float] = []

    def report(values: Report, _: Path | None) -> None:
        seconds.append(values["seconds"])

    config = settings(folder, epochs)
    dataset = PreparedDataset(config.dataset_dir)
    fit(
        config,
        dataset,
        Validator.of(config.train, config.evaluate),
        TrainContext(rank, workers, report=report),
    )
    if rank == 0:
        print(json.dumps({"seconds": median(seconds[1:-1])}), flush=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
