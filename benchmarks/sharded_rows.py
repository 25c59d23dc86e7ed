"""Measure training steps on a sharded embedding table: memory of each worker against a bound,
seconds, and bytes that a step exchanges.

    python -m benchmarks.sharded_rows --rows 100000000 --width 8 --workers 4

Real processes over gloo on this machine, one thread each, with the table and the optimiser of a
training. Every worker looks up ``--ids`` distinct rows in each step, as histories, targets and
negatives do. All rows and moments are written once, because memory that is never written takes no
space. At the end the whole table is written to a file, as for a validation.

Bound of a worker's memory: the process before it has a table, three copies of its rows (value and
two moments), and room for one block of rows and one step. Bound of the bytes that a worker sends in
a step: ids, rows and gradients of ``--ids`` rows to and from the other workers, on average.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch
import torch.multiprocessing
from torch import Tensor, distributed, nn

from benchmarks.in_turns import say
from benchmarks.peak_memory import own_peak_mib
from recsys.config import TrainConfig
from recsys.sharded_rows import Shard, ShardedRows
from recsys.training.optimizer import build_optimizer, clip_gradients

FLOAT, ID, MIB = 4, 8, 1 << 20
BLOCK: Final = 2 * 2**16  # the largest block of rows while a table is drawn
COPIES_OF_BLOCK, COPIES_OF_STEP = 4, 10


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--ids", type=int, default=8192, help="rows of a worker's step")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_worker, (options, folder), nprocs=options.workers)
        each = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))]
    rows, width, workers = options.rows, options.width, options.workers
    copies = 3 * Shard(0, workers).num_rows(rows) * width * FLOAT
    block, step = BLOCK * width * FLOAT, options.ids * (width * FLOAT + ID)
    room = COPIES_OF_BLOCK * block + COPIES_OF_STEP * step
    bounds = [one["base_mib"] + (copies + room) / MIB for one in each]
    others = (workers - 1) / workers
    sent = others * options.ids * (ID + 2 * width * FLOAT) + 2 * workers * ID
    say(
        "a training step on a sharded table",
        rows=rows,
        width=width,
        workers=workers,
        peak_mib=[round(one["peak_mib"]) for one in each],
        bound_mib=[round(bound) for bound in bounds],
        is_within=all(one["peak_mib"] <= bound for one, bound in zip(each, bounds, strict=True)),
        rows_and_moments_mib=round(copies / MIB),
        process_mib=[round(one["base_mib"]) for one in each],
        whole_table_mib=round(3 * rows * width * FLOAT / MIB),
        step_s=round(median(second for one in each for second in one["seconds"]), 4),
        sent_mib_a_step=round(sum(one["sent"] for one in each) / workers / MIB, 3),
        sent_bound_mib=round(sent / MIB, 3),
        build_s=round(max(one["build_s"] for one in each), 1),
        file_s=round(max(one["file_s"] for one in each), 1),
        peak_mib_with_file=[round(one["peak_mib_with_file"]) for one in each],
    )


def _worker(rank: int, options: argparse.Namespace, folder: str) -> None:
    torch.set_num_threads(1)
    world = options.workers
    distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=world)
    found: dict[str, Any] = {"base_mib": _base_mib(options.width)}
    started = time.perf_counter()
    torch.manual_seed(0)
    table = ShardedRows(options.rows, options.width, 0.02, Shard(rank, world))
    found["build_s"] = time.perf_counter() - started
    optimizer = build_optimizer(table, TrainConfig())
    found["seconds"], counts = [], [0]
    draws = torch.Generator().manual_seed(rank)
    with _counting(counts, rank):
        for number in range(options.steps + 1):
            ids = torch.randint(options.rows, (options.ids,), generator=draws).unique()
            distributed.barrier()
            started = time.perf_counter()
            _step(table, optimizer, ids)
            if number:
                found["seconds"].append(time.perf_counter() - started)
            else:  # the first step makes the moments
                counts[0] = 0
                for name in ("exp_avg", "exp_avg_sq"):
                    optimizer.state[table.weight][name].add_(0.0)  # touches the memory of all rows
    found["sent"], found["peak_mib"] = counts[0] / options.steps, own_peak_mib()
    started = time.perf_counter()
    whole = table.whole(table.weight)
    found["file_s"], found["peak_mib_with_file"] = time.perf_counter() - started, own_peak_mib()
    assert torch.equal(whole[rank], table.weight[0]), "row r is on worker r mod W"
    (Path(folder) / f"{rank:04d}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


def _step(table: nn.Module, optimizer: torch.optim.Optimizer, ids: torch.Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    table(ids).square().sum().backward()
    clip_gradients(table, 1.0)
    optimizer.step()


def _base_mib(width: int) -> float:
    """Peak memory of a process that has made a step on a small table."""
    rank, world = distributed.get_rank(), distributed.get_world_size()
    small = ShardedRows(1024 * world, width, 0.02, Shard(rank, world))
    _step(small, build_optimizer(small, TrainConfig()), torch.arange(1024))
    return own_peak_mib()


@contextmanager
def _counting(counts: list[int], rank: int) -> Iterator[None]:
    """Add up the bytes that this worker sends to the others."""
    exchange = distributed.all_to_all_single

    def counted(found: Tensor, sent: Tensor, *splits: Any, **words: Any) -> Any:
        to = splits[1] if splits else [1] * distributed.get_world_size()
        counts[0] += sent.nbytes - (sent.nbytes // max(len(sent), 1)) * to[rank]
        return exchange(found, sent, *splits, **words)

    distributed.all_to_all_single = counted
    try:
        yield
    finally:
        distributed.all_to_all_single = exchange


if __name__ == "__main__":
    main()
