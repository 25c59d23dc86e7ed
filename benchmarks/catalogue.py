"""Measure a training step over a large catalogue: update of embedding rows against the whole table,
and memory.

    python -m benchmarks.catalogue --items 10000 100000 1000000

Sampled softmax over catalogues of each size, a sequence model of 64 dimensions, histories of 10,000
users: the median step, the time to rank the whole catalogue for a query, and the peak memory of the
process. ``rows`` is the method above ``train.loss.max_dense_items``, ``dense`` is AdamW over every
row at every step.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.in_turns import in_turns, medians, ratios, say
from benchmarks.peak_memory import own_peak_mib
from recsys.config import Config, build_config

USERS, EVENTS_A_USER = 10_000, 20
SIDES = {"rows": 0, "dense": 10**9}  # train.loss.max_dense_items


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, nargs="+", default=[100_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument(
        "--side", nargs=4, metavar=("SIDE", "FOLDER", "ITEMS", "STEPS"), help=argparse.SUPPRESS
    )
    options = parser.parse_args()
    if options.side:
        side, folder, items, steps = options.side
        work = (
            prepare(Path(folder), int(items))
            if side == "prepare"
            else train(Path(folder), side, int(steps))
        )
        print(json.dumps(work))
        return
    sizes = {}
    for items in options.items:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-W", "ignore", "-m", "benchmarks.catalogue", "--side"]
            rest = [folder, str(items), str(options.steps)]
            in_turns({"prepare": [*command, "prepare", *rest]}, 1, 2)
            results = in_turns({side: [*command, side, *rest] for side in SIDES}, options.rounds, 1)
        steps = medians(results, "step_ms")
        sizes[items] = {
            "step_ms": {side: round(value, 1) for side, value in steps.items()},
            "times": ratios({side: 1 / value for side, value in steps.items()}, "rows"),
            "query_ms": round(medians(results, "query_ms")["rows"], 2),
            "peak_mib": {
                side: round(value) for side, value in medians(results, "peak_mib").items()
            },
        }
    say("a training step over a large catalogue", sizes=sizes, rounds=options.rounds)


def settings(folder: Path, side: str = "rows") -> Config:
    source = {
        "kind": "canonical",
        "events": [str(folder / "events.parquet")],
        "items": [str(folder / "items.parquet")],
    }
    return build_config(
        {
            "run": {"dir": str(folder / "run")},
            "data": {"source": source, "text": {"enabled": False}},
            "model": {"width": 64, "granularities": {"evolution": {"enabled": True}}},
            "train": {"loss": {"kind": "sampled_softmax", "max_dense_items": SIDES[side]}},
        }
    )


def prepare(folder: Path, items: int) -> dict[str, float]:
    """Generate users who choose popular items more often; most items of the catalogue are never
    chosen."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from pipelines.plumbing.session import ray_session
    from recsys.preparation.prepare import prepare as prepare_dataset

    random = np.random.default_rng(0)
    users = np.repeat(np.arange(USERS), EVENTS_A_USER)
    chosen = (items * random.random(len(users)) ** 3).astype(np.int64)
    events = {
        "user_id": users.astype(str),
        "item_id": chosen.astype(str),
        "timestamp": np.arange(len(users)),
    }
    pq.write_table(pa.table(events), folder / "events.parquet")
    pq.write_table(pa.table({"item_id": np.arange(items).astype(str)}), folder / "items.parquet")
    config = settings(folder)
    with ray_session(config.train, config.ray):
        prepare_dataset(settings(folder), progress=lambda _: None)
    return {}


def train(folder: Path, side: str, steps: int) -> dict[str, Any]:
    """Time some steps as the training loop takes them, and the ranking of some queries."""
    import numpy as np
    import torch

    from recsys.data.dataset import PreparedDataset
    from recsys.data.histories import Split
    from recsys.evaluation.validation import Validator
    from recsys.training.checkpoint import Progress
    from recsys.training.context import TrainContext
    from recsys.training.loop import Pass
    from recsys.training.optimizer import clip_gradients

    torch.set_num_threads(1)
    config, dataset = settings(folder, side), PreparedDataset(str(folder / "run/dataset"))
    validate = Validator.of(config.train, config.evaluate)
    phase = Pass(config, dataset, Split.TRAIN, validate, TrainContext(), Progress())
    phase.model.train()
    seconds = []
    for step in phase.loader.epoch(0):
        started = time.perf_counter()
        phase.optimizer.zero_grad(set_to_none=True)
        (phase.loss(step.batch, (0, 0, step.number)) / step.weight).backward()
        clip_gradients(phase.loss, config.train.clip_norm)
        phase.optimizer.step()
        seconds.append(time.perf_counter() - started)
        if len(seconds) == steps:
            break
    frozen = phase.model.freeze(phase.graphs)
    queries = next(dataset.shards()).queries(Split.VALID).take(np.arange(200))
    started = time.perf_counter()
    validate(frozen, queries)
    ranked = time.perf_counter() - started
    return {
        "step_ms": 1000 * median(seconds[3:]),
        "query_ms": 1000 * ranked / 200,
        "peak_mib": own_peak_mib(),
    }


if __name__ == "__main__":
    main()
