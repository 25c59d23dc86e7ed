"""Measure how old the data of ``recsys update --update.follow`` is. Prints one JSON line.

    python -m benchmarks.arriving --events 1000000 --files 12 --every 5

A model is trained on the old days. Then a file of the last day's events comes every few seconds
while the command runs: ``prepared_s`` are the seconds until a file's events are in a dataset,
``model_s`` those until a model that was trained on them is registered, from the first file of its
round.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from benchmarks.append_speed import write_days
from benchmarks.in_turns import ROOT, say


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=1_000_000, help="of the days before")
    parser.add_argument("--new", type=int, default=10_000, help="events of a file")
    parser.add_argument("--files", type=int, default=12)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two files")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arriving, run = folder / "arriving", folder / "live"
        arriving.mkdir()
        files = _write_files(folder, options.events, options.new, options.files)
        (folder / "c.yaml").write_text(yaml.safe_dump(_settings(folder)), encoding="utf-8")
        common = ["--config", str(folder / "c.yaml"), "--tracking.uri", f"sqlite:///{name}/m.db"]
        _recsys(["run", *common], folder).wait()
        words = ["--update.model", "models:/arriving/1", "--events", str(arriving)]
        how = ["--update.follow", "1s", "--update.idle", "20s", "--run.dir", str(run)]
        process = _recsys(["update", *common, *words, *how, "--update.epochs", "1"], folder)
        log = run / "run.log"
        while process.poll() is None and not (log.is_file() and "looking for" in log.read_text()):
            time.sleep(0.2)
        for file in files:
            file.rename(arriving / file.name)
            time.sleep(options.every)
        if process.wait():
            raise RuntimeError((folder / "out.log").read_text()[-3000:])
        said, lines = log.read_text(), (run / "rounds.jsonl").read_text().splitlines()
    prepared = [float(number) for number in re.findall(r"prepared ([\d.]+) s after", said)]
    rounds: list[dict[str, Any]] = [json.loads(line) for line in lines]
    model = [line["seconds_after_first_file"] for line in rounds]
    say(
        "age of the newest events while files arrive",
        events=options.events,
        new=options.new,
        files=options.files,
        every_s=options.every,
        rounds=len(rounds),
        prepared_s={"median": round(median(prepared), 1), "most": max(prepared)},
        model_s={"median": round(median(model), 1), "most": max(model)},
    )


def _write_files(folder: Path, events: int, new: int, number: int) -> list[Path]:
    """Write ``old.parquet`` and the files of the last day: consecutive parts of it."""
    import polars as pl

    write_days(folder, events, new * number, "parquet")
    day = pl.read_parquet(folder / "new.parquet")
    parts = [folder / f"part-{part:03d}.parquet" for part in range(number)]
    for part, path in enumerate(parts):
        day.slice(part * new, new).write_parquet(path)
    return parts


def _settings(folder: Path) -> dict[str, Any]:
    return {
        "run": {"dir": str(folder / "first")},
        "data": {
            "source": {"kind": "canonical", "events": [str(folder / "old.parquet")]},
            "text": {"enabled": False},
            "split": {"kind": "temporal"},
        },
        "model": {
            "width": 32,
            "max_history": 20,
            "item": {"text": False},
            "granularities": {"evolution": {"enabled": True}},
        },
        "train": {
            "epochs": 1,
            "batch_size": 512,
            "threads": 1,
            "loss": {"kind": "sampled_softmax", "num_negatives": 512},
        },
        "evaluate": {"baselines": ["popularity"], "max_users": 2000, "bootstrap": 100},
        "registry": {"name": "arriving"},
    }


def _recsys(words: list[str], folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-W", "ignore", "-m", "pipelines.cli", *words]
    with (folder / "out.log").open("ab") as out:
        return subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out, env={**os.environ})


if __name__ == "__main__":
    main()
