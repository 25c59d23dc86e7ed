"""How fast are events prepared? Ours against the same job written by hand in polars, and the peak memory of ours.

    python -m benchmarks.prepare_speed --events 1000000 5000000

The job: events of a Parquet file → dense ids, users' events in order, the last one test and the one before it
validation, repeats counted, written as Parquet. Polars holds everything in one process; ours checks every row, reads
and writes shards over Ray Data, and keeps what it needs to refuse a leak. Start-up of Ray is left out and stated.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.paired import in_turns, medians, ratios, say


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
            results = in_turns({name: [*command, name, folder] for name in ("ours", "polars")}, options.rounds, 2)
        rates = {name: number / seconds for name, seconds in medians(results, "seconds").items()}
        sizes[number] = {
            "events_a_second": {name: round(rate) for name, rate in rates.items()},
            "times": ratios(rates),
            "peak_mib": {name: round(value) for name, value in medians(results, "peak_mib").items()},
            "ray_start_s": round(medians({"ours": results["ours"]}, "start_s")["ours"], 1),
        }
    say("events a second through prepare", sizes=sizes, rounds=options.rounds)


def write_events(folder: Path, number: int) -> None:
    """Users with 8 to 60 events each of a catalogue of 50,000 items, popular ones more often, times shuffled."""
    import numpy as np
    import polars as pl

    random = np.random.default_rng(0)
    users = np.repeat(np.arange(number // 20 + 1), random.integers(8, 33, number // 20 + 1))[:number]
    items = (50_000 * random.random(len(users)) ** 3).astype(np.int64)
    frame = pl.DataFrame(
        {"user_id": users, "item_id": items, "timestamp": random.integers(1_500_000_000, 1_600_000_000, len(users))}
    )
    texts = [pl.concat_str(pl.lit(name[0]), name).alias(name) for name in ("user_id", "item_id")]
    frame.sample(fraction=1.0, shuffle=True, seed=0).with_columns(texts).write_parquet(folder / "events.parquet")


def prepare_polars(folder: Path) -> dict[str, float]:
    """The job by hand."""
    import polars as pl

    started = time.perf_counter()
    events = pl.scan_parquet(folder / "events.parquet")
    dense = [pl.col(name).rank("dense").cast(pl.Int32) - 1 for name in ("user_id", "item_id")]
    ordered = events.with_columns(dense).sort("user_id", "timestamp", "item_id")
    left = pl.len().over("user_id") - pl.int_range(pl.len()).over("user_id")
    parts = pl.when(left == 1).then(2).when(left == 2).then(1).otherwise(0).cast(pl.UInt8)
    histories = (
        ordered.with_columns(split=parts).group_by("user_id", maintain_order=True).agg("item_id", "timestamp", "split")
    )
    histories.collect().write_parquet(folder / "polars.parquet")
    return {"seconds": time.perf_counter() - started, "peak_mib": _peak_mib(), "start_s": 0.0}


def prepare_ours(folder: Path) -> dict[str, Any]:
    """The job through ``recsys.data.prepare``; memory is that of this process and all of Ray's, together."""
    from pipelines.session import ray_session
    from recsys.config import build_config
    from recsys.data.prepare import prepare

    config = build_config(
        {
            "run": {"dir": str(folder / f"run-{os.getpid()}")},
            "data": {
                "source": {"kind": "canonical", "events": [str(folder / "events.parquet")]},
                "text": {"enabled": False},
            },
            "model": {"granularities": {"evolution": {"enabled": True}}},
        }
    )
    started = time.perf_counter()
    with ray_session(config), _Watch() as watch:
        import ray.data  # noqa: F401  # its import is start-up, not work

        start_s, began = time.perf_counter() - started, time.perf_counter()
        prepare(config, progress=lambda _: None)
        seconds = time.perf_counter() - began
    return {"seconds": seconds, "peak_mib": watch.peak_mib, "start_s": start_s}


class _Watch(threading.Thread):
    """The most memory that this process and its descendants hold together: proportional set size, every half second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_mib, self._over = 0.0, threading.Event()

    def __enter__(self) -> _Watch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        while not self._over.wait(0.5):
            self.peak_mib = max(self.peak_mib, sum(map(_pss_mib, _descendants(os.getpid()))))


def _descendants(root: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
            parents.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [root]
    while waiting:
        found.append(waiting.pop())
        waiting += parents.get(found[-1], [])
    return found


def _pss_mib(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:")), 0.0)
    except OSError:
        return 0.0


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
