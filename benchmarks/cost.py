"""Estimate what a large data set would cost, from measured coefficients. Prints one JSON line.

    python -m benchmarks.scale --events 1000000 10000000 > scale.json
    python -m benchmarks.ranking_speed --items 1000000 --rounds 1 > ranking.json
    python -m benchmarks.cost --scale scale.json --ranking ranking.json --users 1000000000

Each stage costs ``a + b * events``; ``b`` is the slope between the two largest sizes of the line of
``benchmarks.scale``, in seconds of a core (``prepare`` uses all cores of that machine, the others
one). An estimate far outside the measured sizes is an extrapolation: it holds only for what grows
with the events and fits into memory, and ``does_not_fit`` names what does not.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Final

from benchmarks.in_turns import say

_HOUR: Final = 3600.0
_GIB: Final = 2.0**30
_FLOAT: Final = 4
_HISTORY_BYTES: Final = 16  # an event in a served history: item, type, time
_TABLE_BYTES: Final = 12  # an event in the temporary table that closed-form members read


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", type=Path, required=True, help="a line of benchmarks.scale")
    parser.add_argument("--ranking", type=Path, help="a line of benchmarks.ranking_speed --items")
    parser.add_argument("--users", type=float, default=1e9)
    parser.add_argument("--events-a-user", type=float, default=25.0)
    parser.add_argument("--items", type=float, default=1e7)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--cores", type=int, default=2, help="cores that prepare used in --scale")
    parser.add_argument("--node-gib", type=float, default=256.0, help="memory of a node")
    options = parser.parse_args()
    sizes = json.loads(options.scale.read_text())["sizes"]
    events = options.users * options.events_a_user
    prepare_s = slope(sizes, "prepare") * options.cores
    train_s = slope(sizes, "train")
    disk = disk_a_event(sizes)
    table = options.items * options.width * _FLOAT
    hours = {
        "prepare": prepare_s * events / _HOUR,
        "train": train_s * events * options.epochs / _HOUR,
    }
    if options.ranking is not None:
        a_second = json.loads(options.ranking.read_text())["sizes"]
        largest = a_second[max(a_second, key=int)]["users_a_second"]["ours"]
        # the products with all items take the time
        hours["lists of all users"] = (
            options.users / largest * options.items / int(max(a_second, key=int)) / _HOUR
        )
    memory_gib = {
        "item table with both moments, a worker": 3 * table / _GIB,
        "histories in a process that serves all users": events * _HISTORY_BYTES / _GIB,
    }
    say(
        "cost of a large data set, extrapolated",
        users=options.users,
        events=events,
        items=options.items,
        core_us_an_event={
            "prepare": round(1e6 * prepare_s, 2),
            "train, an epoch": round(1e6 * train_s, 2),
        },
        core_hours={name: round(value) for name, value in hours.items()},
        disk_tib={
            "run folder": round(disk * events / 2**40, 1),
            "temporary table of a machine": round(_TABLE_BYTES * events / 2**40, 1),
        },
        memory_gib={name: round(value, 1) for name, value in memory_gib.items()},
        does_not_fit=[name for name, value in memory_gib.items() if value > options.node_gib],
    )


def slope(sizes: dict[str, Any], stage: str) -> float:
    """Seconds of a stage per event, between the two largest sizes.

    >>> sizes = {"1000": {"train": {"work_s": 2.0}}, "11000": {"train": {"work_s": 3.0}}}
    >>> slope(sizes, "train")
    0.0001
    """
    few, many = sorted(sizes, key=int)[-2:]
    seconds: float = sizes[many][stage]["work_s"] - sizes[few][stage]["work_s"]
    return seconds / (int(many) - int(few))


def disk_a_event(sizes: dict[str, Any]) -> float:
    """Bytes of a run folder per event, between the two largest sizes."""
    few, many = sorted(sizes, key=int)[-2:]
    mib: float = sizes[many]["disk_mib"] - sizes[few]["disk_mib"]
    return mib * 2**20 / (int(many) - int(few))


if __name__ == "__main__":
    main()
