"""Measure how long commands take to start, against those of another working tree.

    python -m benchmarks.starts --other ../before --rounds 5
    python -m benchmarks.starts --other ../before --what serve --model BUNDLE

``prepare`` prepares 1,000 synthetic events, so that little but the start is left; ``serve`` ends
with its first answer. The trees take turns. The results are medians: ``cpu_s`` is the CPU time of
the command and of every process below it, sampled 25 times a second. On a machine that others use
too, it says more than the wall time.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Final

import psutil  # type: ignore[import-untyped]

from benchmarks.in_turns import say

_SAMPLE_S: Final = 0.04
_LONGEST_S: Final = 300.0
_SMALL: Final = {"kind": "synthetic", "num_users": "100", "num_items": "50"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--what", choices=["help", "prepare", "serve"], default="prepare")
    parser.add_argument("--other", help="a working tree to compare with")
    parser.add_argument("--model", help="the folder of a bundle, for serve")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if options.what == "serve" and not options.model:
        parser.error("--what serve needs --model BUNDLE")
    trees = {"ours": Path.cwd()}
    if options.other:
        trees["other"] = Path(options.other).absolute()
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
    for _ in range(options.rounds):
        for name, tree in trees.items():
            with tempfile.TemporaryDirectory() as folder:
                rows[name].append(_measure(options.what, tree, folder, options.model))
            print(f"{name}: {rows[name][-1]}", file=sys.stderr)
    medians = {
        key: {name: round(median(row[key] for row in of_tree), 2) for name, of_tree in rows.items()}
        for key in rows["ours"][0]
    }
    say(f"start of recsys {options.what}", **medians, rounds=options.rounds)


def _measure(what: str, tree: Path, folder: str, model: str) -> dict[str, float]:
    if what == "serve":
        return serve(tree, folder, model)
    return prepare(tree, folder) if what == "prepare" else run_to_end(tree, ["--help"])


def prepare(tree: Path, folder: str) -> dict[str, float]:
    """Seconds to the first line and to the end of ``recsys prepare``."""
    words = ["prepare", "--config", "demo", "--run.dir", f"{folder}/run"]
    for key, value in _SMALL.items():
        words += [f"--data.source.{key}", value]
    return run_to_end(tree, [*words, "--data.text.enabled", "false"])


def run_to_end(tree: Path, words: list[str]) -> dict[str, float]:
    """Seconds to the first line and to the end of a command."""
    with Command(tree, words) as command:
        first = command.output.readline()
        first_s = command.seconds()
        rest = command.output.read()
        if command.process.wait():
            raise SystemExit(first + rest)
        return {"first_line_s": first_s, "wall_s": command.seconds(), "cpu_s": command.cpu_s()}


def serve(tree: Path, folder: str, model: str) -> dict[str, float]:
    """Seconds to the first answer of ``recsys serve``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["serve", "--config", "demo", "--run.dir", f"{folder}/run", "--serve.port", str(port)]
    with Command(tree, [*words, "--serve.model", os.path.abspath(model)]) as command:
        threading.Thread(target=command.output.read, daemon=True).start()
        while not _answers(f"http://127.0.0.1:{port}/recommend"):
            if command.process.poll() is not None or command.seconds() > _LONGEST_S:
                raise SystemExit("recsys serve does not answer")
            time.sleep(_SAMPLE_S)
        return {"wall_s": command.seconds(), "cpu_s": command.cpu_s()}


def _answers(url: str) -> bool:
    body = b'{"user_id": "nobody", "k": 3}'
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=_LONGEST_S):
            return True
    except urllib.error.HTTPError as error:
        if error.code != 503:
            raise
        return False
    except OSError:
        return False


class Command:
    """One ``recsys`` command of a tree, and the CPU time of its processes."""

    def __init__(self, tree: Path, words: list[str]) -> None:
        environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
        self._started = time.perf_counter()
        self.process: subprocess.Popen[str] = subprocess.Popen(
            [sys.executable, "-m", "pipelines.cli", *words],
            cwd=tree,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout is not None
        self.output: Any = self.process.stdout
        self._cpu: dict[int, float] = {}
        self._has_ended = threading.Event()
        self._sampler = threading.Thread(target=self._sample, args=(self._has_ended.wait,))
        self._sampler.start()

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait()
        self._has_ended.set()
        self._sampler.join()

    def seconds(self) -> float:
        """Seconds since the start."""
        return round(time.perf_counter() - self._started, 2)

    def cpu_s(self) -> float:
        """CPU seconds of all processes until the last sample."""
        return round(sum(self._cpu.values()), 2)

    def _sample(self, wait: Callable[[float], bool]) -> None:
        known = {self.process.pid: psutil.Process(self.process.pid)}
        while not wait(_SAMPLE_S):
            for process in list(known.values()):
                try:
                    children = process.children()
                    used = process.cpu_times()
                except psutil.Error:
                    continue
                known.update({child.pid: child for child in children if child.pid not in known})
                self._cpu[process.pid] = used.user + used.system


if __name__ == "__main__":
    main()
