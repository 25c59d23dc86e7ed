"""Compare the cost of appending one day with a prepare of everything. Prints one JSON line.

    python -m benchmarks.append_speed --events 1000000 --new 10000

A shop of a hundred days: a user comes on some days, with several events on each. All days except
the last are prepared, then the last one is appended; for comparison all days are prepared at once.
Start-up (Ray, and imports in its workers) is not part of either time and is shown separately.
``share`` is the time of the append divided by that of the whole; ``cpu_share`` is the same for the
CPU seconds of all processes, which depend less on other work on the machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.in_turns import in_turns, medians, say
from benchmarks.peak_memory import Watch, cpu_seconds

_DAYS = 100
_EVENTS_A_VISIT = 4


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=1_000_000, help="of the days before")
    parser.add_argument("--new", type=int, default=0, help="of the last day; default: a hundredth")
    parser.add_argument("--split", default="leave-last", choices=("leave-last", "temporal"))
    parser.add_argument("--format", default="parquet", choices=("parquet", "csv"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", nargs=2, metavar=("SIDE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(_side(options.side[0], Path(options.side[1]), options.split)))
        return
    new = options.new or options.events // _DAYS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_days(folder, options.events, new, options.format)
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "benchmarks.append_speed",
            "--split",
            options.split,
            "--side",
        ]
        in_turns({"before": [*command, "before", name]}, 1, 2)
        results = in_turns(
            {side: [*command, side, name] for side in ("append", "all")}, options.rounds, 2
        )
    seconds, cpu = medians(results, "seconds"), medians(results, "cpu_s")
    say(
        "seconds of an append and of a prepare of everything",
        events=options.events,
        new=new,
        split=options.split,
        format=options.format,
        seconds={side: round(value, 2) for side, value in seconds.items()},
        share=round(seconds["append"] / seconds["all"], 3),
        cpu_s={side: round(value, 2) for side, value in cpu.items()},
        cpu_share=round(cpu["append"] / cpu["all"], 3),
        start_s={side: round(value, 1) for side, value in medians(results, "start_s").items()},
        peak_mib={side: round(value) for side, value in medians(results, "peak_mib").items()},
        store_mib={side: round(value) for side, value in medians(results, "store_mib").items()},
        steps_s={side: rounds[-1]["steps"] for side, rounds in results.items()},
        rounds=options.rounds,
    )


def write_days(folder: Path, events: int, new: int, form: str) -> None:
    """Write ``old.FORM`` and ``new.FORM``: visits of four events each, of an eighth more users than
    there are visits in three weeks."""
    import numpy as np
    import polars as pl

    random = np.random.default_rng(0)
    num_users = max(events // 20, 10)
    for name, number, first, days in (("old", events, 0, _DAYS - 1), ("new", new, _DAYS - 1, 1)):
        visits = number // _EVENTS_A_VISIT
        users = np.repeat(
            random.integers(0, num_users + (num_users // 50 if name == "new" else 0), visits), 4
        )
        starts = 1_500_000_000 + first * 86_400 + random.integers(0, days * 86_400 - 3600, visits)
        times = np.repeat(starts, _EVENTS_A_VISIT) + np.tile(
            np.arange(_EVENTS_A_VISIT) * 60, visits
        )
        items = (50_000 * random.random(len(users)) ** 3).astype(np.int64)
        frame = pl.DataFrame({"user_id": users, "item_id": items, "timestamp": times}).sort(
            "timestamp"
        )
        texts = [pl.concat_str(pl.lit(key[0]), key).alias(key) for key in ("user_id", "item_id")]
        frame = frame.with_columns(texts)
        path = folder / f"{name}.{form}"
        frame.write_parquet(path) if form == "parquet" else frame.write_csv(path)


def _side(side: str, folder: Path, split: str) -> dict[str, Any]:
    """Prepare the data of one side; memory is that of this process and all processes of Ray
    together."""
    import shutil

    from pipelines.plumbing.session import ray_session
    from recsys.data.dataset import PreparedDataset
    from recsys.preparation.prepare import prepare

    form = next(folder.glob("old.*")).suffix
    files = {
        "before": ["old"],
        "append": ["new"],
        "all": ["old", "new"],
        "few": ["few/old"],
        "more": ["few/new"],
    }
    place = folder / f"dataset-{side}"
    shutil.rmtree(place, ignore_errors=True)
    if not (folder / "few").exists():
        (folder / "few").mkdir()
        write_days(folder / "few", 1000, 100, form[1:])

    def config(name: str, place: Path) -> Any:
        return _config([folder / f"{file}{form}" for file in files[name]], place, split)

    started = time.perf_counter()
    settings = config("few", place)
    with ray_session(settings.train, settings.ray), Watch() as watch:
        few = prepare(config("few", folder / f"few-{side}"), progress=lambda _: None)
        prepare(config("more", folder / f"more-{side}"), progress=lambda _: None, earlier=few)
        for name in ("few", "more"):
            shutil.rmtree(folder / f"{name}-{side}")
        start_s, began, cpu = time.perf_counter() - started, time.perf_counter(), cpu_seconds()
        earlier = PreparedDataset(str(folder / "dataset-before")) if side == "append" else None
        prepared = prepare(config(side, place), progress=lambda _: None, earlier=earlier)
        seconds, cpu = time.perf_counter() - began, cpu_seconds() - cpu
    store = sum(path.stat().st_size for path in (place / "events").iterdir()) / 2**20
    found: dict[str, Any] = {
        "seconds": seconds,
        "cpu_s": cpu,
        "start_s": start_s,
        "peak_mib": watch.peak_mib,
    }
    return found | {"store_mib": store, "steps": prepared.manifest.timing}


def _config(events: list[Path], place: Path, split: str) -> Any:
    from recsys.config import build_config

    source = {"kind": "canonical", "events": [str(path) for path in events]}
    return build_config(
        {
            "data": {
                "dir": str(place),
                "source": source,
                "text": {"enabled": False},
                "split": {"kind": split},
            }
        }
    )


if __name__ == "__main__":
    main()
