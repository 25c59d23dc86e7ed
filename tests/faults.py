"""Commands as processes that something happens to: waited for by what they say, killed by their own ids.

Every command is a session of its own, to which Ray's processes belong as well, so that a test ends what it started and
nothing else.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

ROOT = Path(__file__).parent.parent

# Imported by every Python of a command: a worker of a training says which process it is.
_SAY_RANK = """
import os, threading, time

def say() -> None:
    for _ in range(6000):
        if "RANK" in os.environ:
            with open(os.path.join(os.environ["MULTIGRAIN_RANKS"], os.environ["RANK"]), "w") as file:
                file.write(str(os.getpid()))
            return
        time.sleep(0.05)

threading.Thread(target=say, daemon=True).start()
"""


def world(folder: Path, **sections: dict[str, Any]) -> Path:
    """The configuration of a tiny world with a run folder in ``folder``; keys of ``train`` etc. replace its own."""
    tree: dict[str, Any] = {
        "run": {"dir": str(folder / "run"), "name": "tiny"},
        "data": {
            "source": {"kind": "synthetic", "num_users": 160, "num_items": 80, "bad_rows": 0.01, "num_partitions": 2},
            "text": {"enabled": False},
            "quarantine": {"max_share": 0.5},
            "num_shards": 2,
        },
        "model": {
            "width": 16,
            "item": {"text": False},
            "granularities": {"evolution": {"enabled": True}, "social": {"enabled": True}},
        },
        "train": {
            "epochs": 6,
            "patience": 6,
            "batch_size": 16,
            "metric": "ndcg@10",
            "threads": 1,
            "lr": 5e-3,
            "checkpoint_steps": 3,
        },
        "evaluate": {"ks": [10], "baselines": ["popularity"], "bootstrap": 100, "num_examples": 1},
        "registry": {"name": "tiny"},
    }
    for name, keys in sections.items():
        tree[name] = {**tree.get(name, {}), **keys}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return folder / "tiny.yaml"


class Command:
    """``recsys VERB --config FILE WORDS`` as a process group of its own; a context manager that leaves none of it."""

    def __init__(self, verb: str, config: Path, *words: str, **environment: str) -> None:
        self.lines: list[str] = []
        self.ranks = config.parent / f"ranks-{uuid.uuid4().hex[:8]}"
        self.ranks.mkdir()
        (self.ranks / "sitecustomize.py").write_text(_SAY_RANK, encoding="utf-8")
        known = {
            "MULTIGRAIN_RANKS": str(self.ranks),
            "PYTHONPATH": f"{self.ranks}:{ROOT}",
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
            "RAY_AUTH_MODE": "disabled",
        }
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "pipelines.cli", verb, "--config", str(config), *words],
            cwd=ROOT,
            env={**os.environ, **known, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for pid in own_processes(self.process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def until(self, pattern: str) -> None:
        """Wait for a line."""
        self.when(lambda: re.search(pattern, self.output), pattern)

    def when(self, happened: Callable[[], Any], what: str = "it", seconds: float = 300) -> Any:
        """Wait for something to happen while the command runs; what it gave."""
        deadline = time.monotonic() + seconds
        while not (found := happened()):
            assert self.process.poll() is None, f"ended before {what}: {self.output}"
            assert time.monotonic() < deadline, f"no {what}: {self.output}"
            time.sleep(0.005)
        return found

    def kill(self) -> None:
        """SIGKILL for the driver; Ray's processes end by themselves when they notice."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for _ in range(600):
            if not own_processes(self.process.pid):
                return
            time.sleep(0.1)
        raise AssertionError(f"still there: {own_processes(self.process.pid)}")

    def rank(self, rank: int) -> int:
        """The process id of a training worker, once it works."""
        path = self.ranks / str(rank)
        return int(self.when(lambda: path.exists() and path.read_text(), f"worker {rank}"))

    def task(self, name: str) -> int:
        """The process id of a Ray worker that is at a task of this name, once there is one."""

        def found() -> int:
            titles = own_processes(self.process.pid).items()
            return next((pid for pid, title in titles if title.startswith("ray::") and name in title), 0)

        return int(self.when(found, name))

    def ends(self, code: int = 0, seconds: float = 400) -> str:
        """The output of the command that ends by itself, with this exit code and no traceback if that is 0 or 2."""
        try:
            found = self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running: {self.output}") from None
        self._reader.join(timeout=10)
        assert found == code, f"exit code {found}: {self.output}"
        assert code == 1 or "Traceback" not in self.output, self.output
        return self.output


def own_processes(session: int) -> dict[int, str]:
    """Process id → command line of the living processes of a session, which Ray's are as well."""
    found = {}
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            with suppress(OSError):
                state, *numbers = (place / "stat").read_text().rpartition(")")[2].split()
                if int(numbers[2]) == session and state != "Z":
                    found[int(place.name)] = (place / "cmdline").read_text().replace("\0", " ").strip()
    return found


def checkpoints(run: Path) -> dict[Path, dict[str, Any]]:
    """The training's checkpoints that are there and readable, the oldest first, with their progress."""
    found = {}
    for path in sorted(run.glob("checkpoints/train-*/checkpoint_*"), key=lambda path: path.name):
        with suppress(OSError, ValueError):
            found[path] = json.loads((path / "progress/progress.json").read_text())
    return found


def events_of(dataset: Path) -> tuple[dict[str, Any], list[dict[str, list[Any]]]]:
    """What a prepared dataset holds: the manifest but for times, and the content of every table."""
    manifest = json.loads((dataset / "manifest.json").read_text())
    for key in ("timing", "text"):
        manifest.pop(key, None)
    paths = sorted(dataset.rglob("*.parquet"))
    tables = [{"name": [str(path.relative_to(dataset))], **pq.read_table(path).to_pydict()} for path in paths]
    return manifest, tables


def logged(database: Path) -> list[tuple[str, int, float]]:
    """Metric, step and value of every epoch that MLflow's SQLite store holds, as often as it holds them."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as store:
        rows = store.execute("select key, step, value from metrics where key like '%.loss' or key like 'valid.%'")
        return sorted(rows.fetchall())


def flip_bit(path: Path) -> None:
    """Damage the last byte of a file."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def outcome(run: Path, database: Path | None = None) -> dict[str, Any]:
    """What must be equal after a fault: metrics, history, and the epochs in MLflow's store beside the run."""
    metrics = json.loads((run / "metrics.json").read_text())
    parts = ("model", "baselines", "data")
    store = database or run.parent / "mlflow.db"
    return {**{part: metrics[part] for part in parts}, "history": history(run), "logged": logged(store)}


def history(run: Path) -> list[dict[str, Any]]:
    """Every epoch of the training but how long it took."""
    trained = json.loads((run / "model/trained.json").read_text())
    return [{key: value for key, value in row.items() if key != "seconds"} for row in trained["history"]]
