"""Run the sides of a comparison in turns, each in its own process, and describe the machine.

Why processes in turns: other work on the machine and the settings of a library in its process
(threads, allocators, caches) then affect every side equally; ratios of medians over several rounds
are comparable where seconds are not.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parent.parent


def in_turns(
    sides: Mapping[str, Sequence[str]], rounds: int, threads: int = 1
) -> dict[str, list[dict[str, Any]]]:
    """Run every side's command ``rounds`` times, one after the other, and read each last line as
    JSON.

    Raises
    ------
    RuntimeError
        A side failed; the message has the end of its output.
    """
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true"}
    for name in (
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "POLARS_MAX_THREADS",
    ):
        environment[name] = str(threads)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, command in sides.items():
            print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr, flush=True)
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True
            )
            if done.returncode:
                raise RuntimeError(
                    f"{name} failed"
                    f" ({done.returncode}):\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
                )
            found[name].append(json.loads(done.stdout.strip().splitlines()[-1]))
    return found


def medians(results: Mapping[str, Sequence[Mapping[str, Any]]], key: str) -> dict[str, float]:
    """The median of a figure, by side."""
    return {
        name: median(float(result[key]) for result in rounds) for name, rounds in results.items()
    }


def ratios(values: Mapping[str, float], ours: str = "ours") -> dict[str, float]:
    """Our figure divided by that of each other side.

    >>> ratios({"ours": 6.0, "peer": 2.0})
    {'peer': 3.0}
    """
    return {
        name: round(values[ours] / value, 3)
        for name, value in values.items()
        if name != ours and value
    }


def say(question: str, **figures: Any) -> None:
    """Print the one line, at once, so that a run that is cut keeps it."""
    line = {"question": question, **figures, "machine": machine()}
    print(json.dumps(line, ensure_ascii=False), flush=True)


def machine() -> dict[str, Any]:
    """Machine, load and date of the measurement."""
    model = ""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        model = next(
            (line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), ""
        )
    return {
        "cpu": model or platform.processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "date": datetime.now(UTC).date().isoformat(),
    }


def peer_python(name: str) -> str | None:
    """The interpreter of a peer in its own environment: $NAME_PYTHON, or .venv-NAME; None if it is
    missing."""
    given = os.environ.get(f"{name.upper()}_PYTHON", str(ROOT / f".venv-{name}/bin/python"))
    return given if Path(given).is_file() else None
