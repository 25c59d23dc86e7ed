"""Measure training targets per second: SASRec of ours, RecTools and RecBole, width 64, 2 blocks,
softmax.

    python -m benchmarks.training_speed --data ml-100k --rounds 3

One thread; ``epoch_s`` without the first epoch, which warms up. Quality is reported with speed:
ndcg@10 of each user's held-out next item after the same number of epochs, full ranking, seen items
left out. A target is a position whose next event is learnt. Data: $RECSYS_DATA/{ml-100k,beauty},
each user's last event left out of everything, the one before it held out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.in_turns import ROOT, in_turns, medians, peer_python, ratios, say
from recsys.config import Config, build_config
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Split
from recsys.evaluation.validation import Validator
from recsys.training.context import Report, TrainContext
from recsys.training.phases import fit

MAX_HISTORY = 50


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=["ml-100k", "beauty"], default="ml-100k")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", nargs="*", default=["rectools", "recbole"])
    # our side, in its own process
    parser.add_argument("--ours", metavar="FILE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.epochs < 2:
        parser.error(
            "--epochs: at least 2, as ours are timed without the last one, which holds a validation"
        )
    if options.ours:
        print(json.dumps(train_ours(options.ours, options.epochs)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = write_events(options.data, Path(folder))
        prepare_ours(folder)
        sides = {"ours": [sys.executable, "-m", "benchmarks.training_speed", "--ours", folder]}
        for peer in options.peers:
            if (python := peer_python(peer)) is None:
                print(f"{peer}: no environment, left out (make bench-peers)", file=sys.stderr)
                continue
            sides[peer] = [python, str(ROOT / f"benchmarks/peers/{peer}_sasrec.py"), path]
        # the first warms up, and our last one includes a validation
        epochs = str(options.epochs + 1)
        commands = {
            name: [*side, *(["--epochs"] if name == "ours" else []), epochs]
            for name, side in sides.items()
        }
        results = in_turns(commands, options.rounds)
    for rounds in results.values():
        for result in rounds:
            result["rate"] = result["targets"] / median(result["epoch_s"][1:])
    rates = medians(results, "rate")
    say(
        "targets a second in training",
        data=options.data,
        targets_a_second={name: round(rate) for name, rate in rates.items()},
        times={f"ours/{name}": ratio for name, ratio in ratios(rates).items()},
        ndcg_at_10={name: round(value, 4) for name, value in medians(results, "ndcg@10").items()},
        targets={name: rounds[0]["targets"] for name, rounds in results.items()},
        epochs=options.epochs,
        rounds=options.rounds,
    )


def write_events(data: str, folder: Path) -> str:
    """Write the users' events in order, with numbers, without each user's last: user, item,
    position, held_out; and our form of them."""
    import polars as pl

    root = Path(os.environ.get("RECSYS_DATA", "data"))
    if data == "ml-100k":
        raw = pl.read_csv(
            root / "ml-100k/ml-100k.inter",
            separator="\t",
            new_columns=["user", "item", "value", "time"],
        )
        events = raw.sort("user", "time", maintain_order=True).select("user", "item")
    else:
        lines = [line.split() for line in (root / "beauty/sequences.txt").read_text().splitlines()]
        events = pl.DataFrame(
            {"user": [w[0] for w in lines], "item": [w[1:] for w in lines]}
        ).explode("item")
    events = events.with_columns(
        place=pl.int_range(pl.len()).over("user"), length=pl.len().over("user")
    )
    number = [
        pl.col(name).cast(pl.String).rank("dense").cast(pl.Int64).alias(name)
        for name in ("user", "item")
    ]
    left = pl.col("length") - pl.col("place")
    events = events.select(*number, "place", held_out=left == 2, last=left == 1)
    whole = {name: pl.col(name).cast(pl.String) for name in ("user", "item")}
    ours = events.select(
        user_id=whole["user"], item_id=whole["item"], timestamp=pl.col("place") * 60 + 86_400
    )
    # each user's last event becomes test, which is not used here
    ours.write_parquet(folder / "ours.parquet")
    events.filter(~pl.col("last")).drop("last").write_csv(folder / "events.csv")
    return str(folder / "events.csv")


def settings(folder: str, epochs: int) -> Config:
    """The sequence model alone, as in the peers."""
    return build_config(
        {
            "run": {"dir": folder},
            "data": {
                "source": {"kind": "canonical", "events": [f"{folder}/ours.parquet"]},
                "split": {"kind": "leave-last"},
                "text": {"enabled": False},
                "num_shards": 1,
            },
            "model": {
                "width": 64,
                "max_history": MAX_HISTORY,
                "item": {"text": False, "init_std": 0.02},
                "granularities": {
                    "evolution": {
                        "enabled": True,
                        "weight": 1.0,
                        "layers": 2,
                        "heads": 2,
                        "feed_forward": 1,
                        "positions": "absolute",
                        "dropout": 0.2,
                        "input_dropout": 0.2,
                    }
                },
                "fusion": {"signal_dropout": 0.0},
            },
            "train": {
                "threads": 1,
                "epochs": epochs,
                "evaluate_every": epochs,
                "batch_size": 128,
                "clip_norm": 0,
                "schedule": "constant",
                "warmup": 0,
                "refit": False,
                "metric": "ndcg@10",
                "loss": {"kind": "full_softmax"},
            },
        }
    )


def prepare_ours(folder: str) -> None:
    """Prepare the events with our own code, once for all rounds."""
    from pipelines.plumbing.session import ray_session
    from recsys.preparation.prepare import prepare

    config = settings(folder, 1)
    with ray_session(config.train, config.ray):
        prepare(config)


def train_ours(folder: str, epochs: int) -> dict[str, Any]:
    """Run the training loop without Ray."""
    import torch

    torch.set_num_threads(1)
    seconds: list[float] = []

    def report(values: Report, _: Path | None) -> None:
        seconds.append(values["seconds"])

    config = settings(folder, epochs)
    dataset = PreparedDataset(config.dataset_dir)
    validate = Validator.of(config.train, config.evaluate)
    result = fit(config, dataset, validate, TrainContext(report=report))
    queries = dataset.histories().queries(Split.VALID)
    started = time.perf_counter()
    quality_B = validate(result.frozen, queries)
    rank_s = time.perf_counter() - started
    lengths_U = dataset.histories().through(Split.TRAIN).lengths_U
    return {
        "targets": int((lengths_U - 1).clip(min=0).sum()),
        "epoch_s": seconds[:-1],  # the last one includes a validation
        "ndcg@10": float(quality_B.mean()),
        "users": len(quality_B),
        "rank_s": rank_s,
    }


if __name__ == "__main__":
    main()
