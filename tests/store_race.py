"""Commands that open a store together, or are killed while they create it: ``store_race.py FOLDER
together|kills N``.

A separate program, since it forks: every command is a child that has already imported MLflow, so
that all start at the same time. The last line of output is the result.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import alembic.command  # noqa: F401
import mlflow.store.model_registry.sqlalchemy_store
import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

from recsys.config import build_config
from recsys.registry.tracking import Tracker


def command(place: Path) -> int:
    """Start a child that opens the store and logs a number; return its process id."""
    process = os.fork()
    if process:
        return process
    try:
        model = {"granularities": {"evolution": {"enabled": True}}}
        source = {"source": {"kind": "synthetic"}}
        tree = {"run": {"dir": str(place.parent / "run")}, "data": source, "model": model}
        with Tracker(
            build_config({**tree, "tracking": {"uri": f"sqlite:///{place}"}}), apart=True
        ) as tracker:
            tracker.log_metrics({"loss": 1.0})
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def ended_well(process: int) -> bool:
    return os.waitpid(process, 0)[1] == 0


def together(folder: Path, number: int) -> str:
    processes = [command(folder / "mlflow.db") for _ in range(number)]
    num_well = sum([ended_well(process) for process in processes])
    usable = "usable" if ended_well(command(folder / "mlflow.db")) else "unusable"
    return f"{num_well} of {number} commands succeeded, the store is {usable}"


def kills(folder: Path, number: int) -> str:
    """Kill each command at a random time within the duration of a whole creation."""
    started = time.monotonic()
    assert ended_well(command(folder / "first.db"))
    whole, num_unusable = time.monotonic() - started, 0
    moments = random.Random(0)
    for turn in range(number):
        place = folder / f"{turn}.db"
        process = command(place)
        time.sleep(moments.uniform(0, whole))
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        num_unusable += not ended_well(command(place))
    return f"{number} kills, {num_unusable} stores unusable"


if __name__ == "__main__":
    print({"together": together, "kills": kills}[sys.argv[2]](Path(sys.argv[1]), int(sys.argv[3])))
