"""Measure the speed of prepare against the same job written by hand in polars, and our peak memory.

    python -m benchmarks.prepare_speed --events 1000000 5000000

The job: events of a Parquet file → sorted ids and dense numbers, exact repeats dropped, users'
events in order, the last one test and the one before it validation, the events of every item
counted, all written as Parquet. Polars does that in one process and two threads, everything in
memory. Ours, in tasks on two Ray CPUs or for small files in threads, also checks every row, keeps
the bad ones, and audits its output. Start-up (Ray, and imports) is not included and is reported
separately.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.in_turns import in_turns, medians, ratios, say
from benchmarks.peak_memory import Watch, own_peak_mib


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", nargs=2, metavar=("SIDE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        work = prepare_ours if options.side[0] == "ours" else prepare_polars
        print(json.dumps(work(Path(options.side[1]))))
        return
    sizes = {}
    for number in options.events:
        with tempfile.TemporaryDirectory() as folder:
            write_events(Path(folder), number)
            command = [sys.executable, "-W", "ignore", "-m", "benchmarks.prepare_speed", "--side"]
            results = in_turns(
                {name: [*command, name, folder] for name in ("ours", "polars")}, options.rounds, 2
            )
        rates = {name: number / seconds for name, seconds in medians(results, "seconds").items()}
        sizes[number] = {
            "events_a_second": {name: round(rate) for name, rate in rates.items()},
            "times": ratios(rates),
            "peak_mib": {
                name: round(value) for name, value in medians(results, "peak_mib").items()
            },
            "start_s": round(medians({"ours": results["ours"]}, "start_s")["ours"], 1),
            "steps_s": results["ours"][-1]["steps"],
        }
    say("events a second through prepare", sizes=sizes, rounds=options.rounds)


def write_events(folder: Path, number: int) -> None:
    """Generate users with 8 to 60 events each on a catalogue of 50,000 items, popular ones more
    often, times shuffled."""
    import numpy as np
    import polars as pl

    random = np.random.default_rng(0)
    users = np.repeat(np.arange(number // 20 + 1), random.integers(8, 33, number // 20 + 1))[
        :number
    ]
    items = (50_000 * random.random(len(users)) ** 3).astype(np.int64)
    frame = pl.DataFrame(
        {
            "user_id": users,
            "item_id": items,
            "timestamp": random.integers(1_500_000_000, 1_600_000_000, len(users)),
        }
    )
    texts = [pl.concat_str(pl.lit(name[0]), name).alias(name) for name in ("user_id", "item_id")]
    frame.sample(fraction=1.0, shuffle=True, seed=0).with_columns(texts).write_parquet(
        folder / "events.parquet"
    )


def prepare_polars(folder: Path) -> dict[str, float]:
    """The job by hand: every output of ours except constant columns."""
    import polars as pl

    started = time.perf_counter()
    events = pl.read_parquet(folder / "events.parquet")
    for name in ("user_id", "item_id"):
        ids = events[name].unique().sort()
        ids.to_frame().write_parquet(folder / f"polars-{name}.parquet")
        events = events.with_columns(pl.col(name).cast(pl.Enum(ids)).to_physical().cast(pl.Int32))
    keys = ("user_id", "timestamp", "item_id")
    events = events.sort(keys)
    again = pl.all_horizontal(*(pl.col(name) == pl.col(name).shift() for name in keys)).fill_null(
        False
    )
    number = pl.len().over("user_id")
    left = number - pl.int_range(pl.len()).over("user_id")
    parts = pl.when((left > 2) | (number < 3)).then(0).otherwise(3 - left).cast(pl.UInt8)
    events = events.filter(~again).with_columns(split=parts)
    counts = events.group_by("item_id").agg(
        *((pl.col("split") == split).sum().alias(f"split-{split}") for split in range(3))
    )
    counts.sort("item_id").write_parquet(folder / "polars-counts.parquet")
    histories = events.group_by("user_id", maintain_order=True).agg("item_id", "timestamp", "split")
    histories.write_parquet(folder / "polars.parquet")
    return {"seconds": time.perf_counter() - started, "peak_mib": own_peak_mib(), "start_s": 0.0}


def prepare_ours(folder: Path) -> dict[str, Any]:
    """The job through ``recsys.preparation.prepare``; memory is that of this process and all
    processes of Ray together.

    Start-up is that of Ray, if the file is large enough for it, and the import of our packages: a
    few events are prepared first.
    """
    from pipelines.prepare import workers
    from recsys.preparation.prepare import prepare
    from recsys.sources import open_source

    run = folder / f"run-{os.getpid()}"
    config = _config(folder / "events.parquet", run)
    small = _config(folder / "few/events.parquet", run / "few")
    if not (folder / "few").exists():
        (folder / "few").mkdir()
        write_events(folder / "few", 1000)
    source = open_source(config.data.source)
    started = time.perf_counter()
    with workers(config.train, config.ray, source), Watch() as watch:
        prepare(small, progress=lambda _: None)
        start_s, began = time.perf_counter() - started, time.perf_counter()
        prepared = prepare(config, progress=lambda _: None)
        seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "peak_mib": watch.peak_mib,
        "start_s": start_s,
        "steps": prepared.manifest.timing,
    }


def _config(events: Path, run: Path) -> Any:
    from recsys.config import build_config

    return build_config(
        {
            "run": {"dir": str(run)},
            "data": {
                "source": {"kind": "canonical", "events": [str(events)]},
                "text": {"enabled": False},
            },
            "model": {"granularities": {"evolution": {"enabled": True}}},
        }
    )


if __name__ == "__main__":
    main()
