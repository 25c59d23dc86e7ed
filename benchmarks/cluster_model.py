"""Measure a training step on a simulated cluster, and compare it with a model on paper.

    python -m benchmarks.cluster_model --data beauty --workers 1 2 4 8

One process does the work of one of N nodes: its share of every global batch, in the real training
loop, with gradients exchanged by DistributedDataParallel. Only the network is simulated: an
exchange ends when a ring all-reduce of N nodes would end, 2 (N - 1) (latency + bytes / N /
bandwidth) seconds after it began, and waits for the exchange before it. The work of other nodes
does not slow this process down, as it would if all of them ran on this machine. What is not
simulated: a node that is slower than others.

On paper, a step takes the seconds without a network, for that share of the batch, plus the
exchange; nothing overlaps, because the gradient of the item table is complete last. ``off`` is the
largest relative difference between measured and paper. ``efficiency`` is the time of one node
divided by N times that of N nodes.
"""

import argparse
import json
import queue
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch
import torch.distributed

from benchmarks.in_turns import in_turns, medians, say
from benchmarks.training_speed import prepare_ours, settings, write_events
from recsys.data.dataset import PreparedDataset
from recsys.evaluation.validation import Validator
from recsys.training.context import Report, TrainContext
from recsys.training.loop import Pass
from recsys.training.phases import fit

# name → seconds of latency, bytes a second
NETWORKS: Final = {
    "100 Gbit/s, 10 µs": (10e-6, 12.5e9),
    "10 Gbit/s, 50 µs": (50e-6, 1.25e9),
    "1 Gbit/s, 200 µs": (200e-6, 0.125e9),
}
NONE: Final = "no network"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=["ml-100k", "beauty"], default="beauty")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--side", nargs=3, metavar=("N", "NETWORK", "FOLDER"))
    options = parser.parse_args()
    if options.side:
        workers, network, folder = options.side
        print(json.dumps(run_side(int(workers), network, folder, options.epochs)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_events(options.data, Path(folder))
        prepare_ours(folder)
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.cluster_model"]
        sides = {
            f"{network}: {workers}": [
                *command,
                *("--epochs", str(options.epochs)),
                *("--side", str(workers), network, folder),
            ]
            for network in (NONE, *NETWORKS)
            for workers in options.workers
            if workers > 1 or network == NONE
        }
        results = in_turns(sides, options.rounds)
    steps = medians(results, "step_s")
    alone = steps[f"{NONE}: 1"]
    table: dict[str, dict[str, Any]] = {}
    for network, (latency, bandwidth) in NETWORKS.items():
        for workers in (number for number in options.workers if number > 1):
            size = results[f"{network}: {workers}"][0]["gradient_bytes"]
            measured = steps[f"{network}: {workers}"]
            paper = steps[f"{NONE}: {workers}"] + exchange_s(size, workers, latency, bandwidth)
            table.setdefault(network, {})[str(workers)] = {
                "step_ms": round(1000 * measured, 1),
                "paper_ms": round(1000 * paper, 1),
                "efficiency": round(alone / workers / measured, 3),
                "sent_mb_a_step": round(2 * (workers - 1) / workers * size / 1e6, 2),
            }
    rows = [row for of in table.values() for row in of.values()]
    say(
        "a step on a simulated cluster",
        data=options.data,
        step_ms_without_network={
            str(workers): round(1000 * steps[f"{NONE}: {workers}"], 1)
            for workers in options.workers
        },
        networks=table,
        off=round(max(abs(row["step_ms"] / row["paper_ms"] - 1) for row in rows), 3),
        rounds=options.rounds,
    )


def exchange_s(size: int, workers: int, latency: float, bandwidth: float) -> float:
    """Seconds of a ring all-reduce of ``size`` bytes over ``workers`` nodes.

    >>> exchange_s(8_000_000, 1, 1e-4, 1e9), round(exchange_s(8_000_000, 4, 1e-4, 1e9), 4)
    (0.0, 0.0126)
    """
    return 2 * (workers - 1) * (latency + size / workers / bandwidth)


class SimulatedNetwork:
    """A communication hook of DistributedDataParallel whose exchanges take the time of a ring."""

    def __init__(self, workers: int, latency: float, bandwidth: float) -> None:
        self._ring = (workers, latency, bandwidth)
        self._free_at = 0.0  # when the exchange before ends
        self._under_way: queue.SimpleQueue[tuple[float, Any, torch.Tensor]] = queue.SimpleQueue()
        self.steps, self.bytes = 0, 0
        threading.Thread(target=self._deliver, daemon=True).start()

    # DistributedDataParallel reads these annotations, so they are no strings in this module
    def exchange(
        self, _: object, bucket: torch.distributed.GradBucket
    ) -> torch.futures.Future[torch.Tensor]:
        """Start an exchange; its future gets the gradients when the ring would be done."""
        gradients: torch.Tensor = bucket.buffer()
        self.bytes += gradients.nbytes
        self.steps += bucket.is_last()
        self._free_at = max(time.perf_counter(), self._free_at) + exchange_s(
            gradients.nbytes, *self._ring
        )
        future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        self._under_way.put((self._free_at, future, gradients))
        return future

    def _deliver(self) -> None:
        while True:
            until, future, gradients = self._under_way.get()
            time.sleep(max(0.0, until - time.perf_counter()))
            future.set_result(gradients)


def run_side(workers: int, network: str, folder: str, epochs: int) -> dict[str, Any]:
    """Train as one of ``workers`` nodes; the median step of the epochs after the first."""
    torch.set_num_threads(1)
    latency, bandwidth = NETWORKS.get(network, (0.0, float("inf")))
    simulated = SimulatedNetwork(workers, latency, bandwidth)
    meeting = Path(folder) / f"meeting-{time.time_ns()}"
    torch.distributed.init_process_group("gloo", meeting.as_uri(), rank=0, world_size=1)
    distributed = Pass._distributed

    def over_network(self: Pass) -> torch.nn.Module:
        step = distributed(self)
        step.register_comm_hook(None, simulated.exchange)
        return step

    Pass._distributed = over_network  # type: ignore[method-assign]
    seconds: list[float] = []

    def report(values: Report, _: Path | None) -> None:
        seconds.append(values["seconds"])

    config = settings(folder, epochs + 2)
    dataset = PreparedDataset(config.dataset_dir)
    validate = Validator.of(config.train, config.evaluate)
    fit(config, dataset, validate, TrainContext(0, workers, report=report))
    loader_steps = max(1, -(-dataset.manifest.counts["users"] // config.train.batch_size))
    steps = simulated.steps // len(seconds) if simulated.steps else loader_steps
    return {
        "step_s": median(seconds[1:-1]) / steps,
        "gradient_bytes": simulated.bytes // max(simulated.steps, 1),
        "steps": steps,
    }


if __name__ == "__main__":
    main()
