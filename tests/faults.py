"""Run commands as processes for fault tests: wait for their output lines, kill them by process id.

Every command is its own session, to which Ray's processes belong as well, so that a test ends only
the processes that it started.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import socketserver
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

ROOT = Path(__file__).parent.parent

# Every Python process of a command imports this. A training worker writes its process id. With
# MULTIGRAIN_KILL, the driver counts its writes and the commits of SQLite, and kills itself before
# the one of this number.
# With MULTIGRAIN_CLOCK, the wall clock is off by the seconds in this file.
SITE = """
import os, signal, sys, threading, time

def say() -> None:
    for _ in range(6000):
        if "RANK" in os.environ:
            path = os.path.join(os.environ["MULTIGRAIN_RANKS"], os.environ["RANK"])
            with open(path, "w") as file:
                file.write(str(os.getpid()))
            return
        time.sleep(0.05)

threading.Thread(target=say, daemon=True).start()

WRITES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate",
          "shutil.rmtree"}
at, count = int(os.environ.pop("MULTIGRAIN_KILL", "-1")), 0
ranks = os.environ["MULTIGRAIN_RANKS"]
folder, driver = os.path.dirname(ranks), os.getpid()

def watch(event, words):
    if event == "open":
        writes = isinstance(words[2], int) and words[2] & (os.O_WRONLY | os.O_RDWR)
    else:
        writes = event in WRITES
    path = str(words[0]) if writes and words else ""
    if folder in path and ranks not in path and "/code/" not in path:  # hundreds of copies
        write()

def commit(statement):
    if statement.lstrip()[:6].upper() == "COMMIT":
        write()

def write():
    global count
    if os.getpid() == driver:
        count += 1
        with open(os.path.join(ranks, "writes"), "w") as file:
            file.write(str(count))
        if 0 < at <= count:  # threads may count at the same time
            os.kill(driver, signal.SIGKILL)

def connected(*words, **keys):
    found = connect(*words, **keys)
    if folder in str(words):
        found.set_trace_callback(commit)
    return found

if at >= 0:
    import sqlite3
    connect, sqlite3.connect, sqlite3.dbapi2.connect = sqlite3.connect, connected, connected
    sys.addaudithook(watch)

def shifted(now=time.time):
    with open(os.environ["MULTIGRAIN_CLOCK"]) as file:
        return now() + float(file.read() or 0)

if "MULTIGRAIN_CLOCK" in os.environ:
    time.time = shifted
"""


def world(folder: Path, **sections: dict[str, Any]) -> Path:
    """Write the configuration of a tiny world with a run folder in ``folder``; keys of ``train``
    etc. replace the defaults."""
    tree: dict[str, Any] = {
        "run": {"dir": str(folder / "run"), "name": "tiny"},
        "data": {
            "source": {
                "kind": "synthetic",
                "num_users": 160,
                "num_items": 80,
                "bad_rows": 0.01,
                "num_partitions": 2,
            },
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
    """``recsys VERB --config FILE WORDS`` in its own process group; a context manager that ends all
    of its processes."""

    def __init__(self, verb: str, config: Path, *words: str, **environment: str) -> None:
        self.lines: list[str] = []
        self.ranks = config.parent / f"ranks-{uuid.uuid4().hex[:8]}"
        self.ranks.mkdir()
        (self.ranks / "sitecustomize.py").write_text(SITE, encoding="utf-8")
        known = {
            "MULTIGRAIN_RANKS": str(self.ranks),
            "PYTHONPATH": f"{self.ranks}:{ROOT}",
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
            "RAY_AUTH_MODE": "disabled",
        }
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-W",
                "ignore",
                "-m",
                "pipelines.cli",
                verb,
                "--config",
                str(config),
                *words,
            ],
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

    @property
    def writes(self) -> int:
        """Number of writes of the driver to the folder of the configuration."""
        return int((self.ranks / "writes").read_text())

    def until(self, pattern: str) -> None:
        """Wait for a line."""
        self.when(lambda: re.search(pattern, self.output), pattern)

    def when(self, happened: Callable[[], Any], what: str = "it", seconds: float = 300) -> Any:
        """Wait until ``happened`` returns something while the command runs; return it."""
        deadline = time.monotonic() + seconds
        while not (found := happened()):
            assert self.process.poll() is None, f"ended before {what}: {self.output}"
            assert time.monotonic() < deadline, f"no {what}: {self.output}"
            time.sleep(0.005)
        return found

    def kill(self) -> None:
        """SIGKILL for the driver; Ray's processes notice and end."""
        self.process.kill()
        self.process.wait()
        for _ in range(600):
            if not own_processes(self.process.pid):
                return
            time.sleep(0.1)
        raise AssertionError(f"still there: {own_processes(self.process.pid)}")

    def rank(self, rank: int) -> int:
        """The process id of a training worker, once it has started."""
        path = self.ranks / str(rank)
        return int(self.when(lambda: path.exists() and path.read_text(), f"worker {rank}"))

    def task(self, name: str) -> int:
        """The process id of a Ray worker that runs a task of this name, once there is one."""

        def found() -> int:
            titles = own_processes(self.process.pid).items()
            return next(
                (pid for pid, title in titles if title.startswith("ray::") and name in title), 0
            )

        return int(self.when(found, name))

    def ends(self, code: int = 0, seconds: float = 400) -> str:
        """Wait for the command to end with this exit code, without a traceback if it is 0 or 2;
        return the output."""
        try:
            found = self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running: {self.output}") from None
        self._reader.join(timeout=10)
        assert found == code, f"exit code {found}: {self.output}"
        assert code == 1 or "Traceback" not in self.output, self.output
        return self.output


def own_processes(session: int) -> dict[int, str]:
    """Process id → command line of the living processes of a session, including those of Ray."""
    found = {}
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            with suppress(OSError):
                state, *numbers = (place / "stat").read_text().rpartition(")")[2].split()
                if int(numbers[2]) == session and state != "Z":
                    found[int(place.name)] = (
                        (place / "cmdline").read_text().replace("\0", " ").strip()
                    )
    return found


def checkpoints(run: Path) -> dict[Path, dict[str, Any]]:
    """The training's readable checkpoints, the oldest first, with their progress."""
    found = {}
    for path in sorted(run.glob("checkpoints/train-*/checkpoint_*"), key=lambda path: path.name):
        with suppress(OSError, ValueError):
            found[path] = json.loads((path / "progress/progress.json").read_text())
    return found


def events_of(dataset: Path) -> tuple[dict[str, Any], list[dict[str, list[Any]]]]:
    """Content of a prepared dataset: the manifest except times, and every table."""
    manifest = json.loads((dataset / "manifest.json").read_text())
    for key in ("timing", "text"):
        manifest.pop(key, None)
    paths = sorted(dataset.rglob("*.parquet"))
    tables = [
        {"name": [str(path.relative_to(dataset))], **pq.read_table(path).to_pydict()}
        for path in paths
    ]
    return manifest, tables


EPOCHS = (  # of a store of MLflow
    "select key, step, value from metrics where (key like '%.loss' or key like 'valid.%')"
)


def logged(database: Path, run_id: str = "") -> list[tuple[str, int, float]]:
    """Metric, step and value of every epoch in MLflow's SQLite store, or of one MLflow run,
    duplicates included."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as store:
        rows = store.execute(
            f"{EPOCHS} and ? in (run_uuid, '')",
            (run_id,),
        )
        return sorted(rows.fetchall())


def flip_bit(path: Path) -> None:
    """Damage the last byte of a file."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def outcome(run: Path, database: Path | None = None) -> dict[str, Any]:
    """Results that must be equal after a fault: metrics, history, and the epochs in MLflow's store
    next to the run."""
    metrics = json.loads((run / "metrics.json").read_text())
    parts = ("model", "baselines", "data")
    store = database or run.parent / "mlflow.db"
    return {
        **{part: metrics[part] for part in parts},
        "history": history(run),
        "logged": logged(store),
    }


def history(run: Path) -> list[dict[str, Any]]:
    """Every epoch of the training, without its duration."""
    trained = json.loads((run / "model/trained.json").read_text())
    return [
        {key: value for key, value in row.items() if key != "seconds"} for row in trained["history"]
    ]


class SmallDisk:
    """A filesystem in memory with this number of bytes, which can be filled completely; a context
    manager.

    Skips the test if mounting is not permitted.
    """

    def __init__(self, place: Path, num_bytes: int) -> None:
        self.place, self._size = place, num_bytes
        self._ballast = place / "ballast"

    def __enter__(self) -> SmallDisk:
        self.place.mkdir(parents=True)
        words = ["mount", "-t", "tmpfs", "-o", f"size={self._size}", "tmpfs", str(self.place)]
        try:
            made = subprocess.run(words, capture_output=True, text=True, timeout=60)
        except FileNotFoundError:
            pytest.skip("needs a filesystem of its own, and there is no program mount here")
        if made.returncode:
            pytest.skip(
                "needs a filesystem of its own, and mounting is not permitted here:"
                f" {made.stderr.strip()}"
            )
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "--lazy", str(self.place)], check=True, timeout=60)

    def fill_until(self, command: Command) -> None:
        """Keep the disk full until the command has ended, even if it removes files."""
        while command.process.poll() is None:
            self.fill()
            time.sleep(0.02)

    def fill(self) -> None:
        """Leave no byte."""
        for size in (1 << 20, 4096):
            with suppress(OSError), self._ballast.open("ab", buffering=0) as file:
                while True:
                    file.write(b"0" * size)

    def free(self) -> None:
        self._ballast.unlink()


class MlflowServer:
    """An MLflow server on a store, SQLite by default, and a folder; its processes can be stopped,
    killed and started again."""

    def __init__(self, folder: Path, port: int, store: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.uri = f"http://127.0.0.1:{port}"
        self.database = folder / "mlflow.db"
        self._folder = folder
        words = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        words += [
            "--backend-store-uri",
            store or f"sqlite:///{self.database}",
            "--artifacts-destination",
            str(folder / "files"),
        ]
        self._words = [sys.executable, "-m", "mlflow", "server", *words]
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> MlflowServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.signal(signal.SIGKILL)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with (self._folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                self._words, stdout=log, stderr=log, start_new_session=True
            )
        for _ in range(600):
            with suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                return
            time.sleep(0.2)
        raise AssertionError((self._folder / "server.log").read_text())

    def signal(self, number: int) -> None:
        """Send a signal to all its processes."""
        assert self.process is not None
        for pid in own_processes(self.process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        if number == signal.SIGKILL:
            self.process.wait()


class Gate:
    """A proxy in front of an S3-compatible server: while it is shut, it answers 503 SlowDown."""

    def __init__(self, server: str) -> None:
        self.refused, self._is_shut = 0, False
        host, _, port = server.removeprefix("http://").partition(":")
        gate = self

        class Connection(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with socket.create_connection((host, int(port))) as server, suppress(OSError):
                    while True:
                        for ready in select.select([self.request, server], [], [])[0]:
                            content = ready.recv(1 << 16)
                            if not content:
                                return
                            if ready is self.request and gate._is_shut:
                                return self.refuse(content.startswith(b"HEAD "))
                            (server if ready is self.request else self.request).sendall(content)

            def refuse(self, without_body: bool) -> None:
                gate.refused += 1
                body = (
                    b"<Error><Code>SlowDown</Code><Message>Please reduce your request"
                    b" rate.</Message></Error>"
                )
                head = (
                    f"HTTP/1.1 503 Slow Down\r\nContent-Length: {len(body)}\r\nConnection:"
                    " close\r\n\r\n".encode()
                )
                self.request.sendall(head + (b"" if without_body else body))
                self.request.shutdown(socket.SHUT_WR)
                while self.request.recv(
                    1 << 16
                ):  # read the rest of the upload, otherwise the answer would be lost
                    pass

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Connection)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def shut_for(self, seconds: float) -> None:
        """Shut the gate, wait, and open it again; ``refused`` counts the requests meanwhile."""
        self.refused, self._is_shut = 0, True
        time.sleep(seconds)
        self._is_shut = False
