"""Kill commands at any of their writes, and compare what they leave with an uninterrupted run.

A command is a fork of the test process, which has imported everything: so it starts in a second.
"""

from __future__ import annotations

import importlib
import os
import re
import signal
import sqlite3
import sys
import time
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final

from pipelines.cli import main
from tests.faults import SITE, events_of, outcome, own_processes

SHORT: Final = {"epochs": 3, "patience": 3}
# the tiny model is not better than a baseline
FORCED: Final = ("--promote.force", "kills")
_IMPORTED: Final = (
    "pipelines.run",
    "pipelines.promote",
    "pipelines.pull",
    "pipelines.forget",
    "recsys.export.export_folder",
    "recsys.preparation.shards",
    "recsys.training.ray_train",
    "mlflow.pyfunc",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.model_registry.sqlalchemy_store",
    "matplotlib.pyplot",
    "torch_geometric.nn",
)
_CHANGES: Final = re.compile(
    r"train-\w+-\w+|checkpoint_[-_.\d]+|[0-9a-f]{32}|(?<=m-)[0-9a-f]{8,}|(?<=proof-)[-:+\w]+"
)
_QUERIES: Final = {
    "aliases": "select name, alias, version from registered_model_aliases",
    "versions": "select name, version, current_stage from model_versions",
    "version tags": "select version, key, case when key in ('promotion.decision',"
    " 'promotion.replaced', 'promotion.replaced_by') then value end from model_version_tags",
    # a command that is killed directly after it created a run leaves it empty
    "runs": "select distinct e.name, r.status from runs r join experiments e using (experiment_id)"
    " where r.status = 'FINISHED' or e.name = 'multigrain' and exists (select * from params where"
    " params.run_uuid = r.run_uuid)",
    "run tags": "select distinct key from tags where run_uuid in (select run_uuid from runs where"
    " status = 'FINISHED')",
    "metrics": "select distinct key from latest_metrics",
    "logged models": "select count(*) from logged_models where lifecycle_stage = 'active'",
}
# what a command that is repeated after a kill at its end writes a second time, for itself
_REPEATED: Final = re.compile(r"/proof-|-promotions/")


def import_all() -> None:
    """Import what a command imports late, so that its fork need not."""
    for name in _IMPORTED:
        importlib.import_module(name)


class Forked:
    """A command in a fork of this process, in its own session; with ``at``, it kills itself before
    its write of this number."""

    def __init__(self, words: list[str], folder: Path, at: int = 0, **environment: str) -> None:
        self._ranks = folder / "ranks"
        self._ranks.mkdir(exist_ok=True)
        (self._ranks / "writes").unlink(missing_ok=True)
        self._output = self._ranks / f"output-{time.monotonic_ns()}"
        self.started = time.monotonic()
        self.pid = os.fork()
        self.code: int | None = None
        if self.pid == 0:
            code = 99
            try:
                os.setsid()
                with self._output.open("w") as file:
                    os.dup2(file.fileno(), 1)
                    os.dup2(file.fileno(), 2)
                sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
                os.environ |= environment
                os.environ |= {"MULTIGRAIN_RANKS": str(self._ranks), "MULTIGRAIN_KILL": str(at)}
                exec(SITE, {})
                code = main(words)
            except SystemExit as error:
                code = error.code if isinstance(error.code, int) else 98
            finally:
                with suppress(Exception):
                    sys.stdout.flush()
                    sys.stderr.flush()
                os._exit(code)

    def wait(self, seconds: float) -> int | None:
        """Its exit code, -9 if it was killed; None if it still runs after these seconds."""
        last = time.monotonic() + seconds
        while self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > last:
                break
            else:
                time.sleep(0.005)
        return self.code

    def end(self) -> None:
        """SIGKILL for it and the processes that it started."""
        for pid in {**own_processes(self.pid), self.pid: ""}:
            if pid != self.pid or self.code is None:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.wait(60)

    @property
    def output(self) -> str:
        """What it printed."""
        return self._output.read_text() if self._output.exists() else ""

    @property
    def writes(self) -> int:
        """Number of its writes."""
        return int((self._ranks / "writes").read_text())

    def succeeds(self) -> int:
        """Wait until it ends with exit code 0; return the number of its writes."""
        try:
            code = self.wait(600)
            assert code == 0, f"exit code {code}: {self.output}"
        finally:
            self.end()
        return self.writes


def left(folder: Path) -> dict[str, Any]:
    """What a finished run leaves: its results, the names of its files, and the content of MLflow's
    store."""
    run = folder / "run"
    with closing(sqlite3.connect(f"file:{folder}/mlflow.db?mode=ro", uri=True)) as store:
        found = {
            name: sorted(store.execute(query).fetchall(), key=str)
            for name, query in _QUERIES.items()
        }
    paths = [
        str(path.relative_to(folder))
        for place in folder.iterdir()
        if place.is_dir() and not place.name.startswith("ranks")
        for path in place.rglob("*")
        if path.is_file() and "/code/" not in str(path) and ".artifact.uploading." not in str(path)
    ]
    files = [_CHANGES.sub("…", path) for path in paths if not _REPEATED.search(path)]
    repeated = {_CHANGES.sub("…", path) for path in paths if _REPEATED.search(path)}
    results = outcome(run) if (run / "metrics.json").is_file() else {}
    dataset = events_of(run / "dataset")
    return {"run": results, "dataset": dataset, **found, "files": sorted([*files, *repeated])}


def differences(reference: dict[str, Any], found: dict[str, Any]) -> str:
    """The parts that differ, with what is missing and what is too much; empty if none does."""
    said = []
    for part, value in reference.items():
        if found[part] == value:
            continue
        if isinstance(value, list):
            less, more = Counter(map(str, value)), Counter(map(str, found[part]))
            said.append(f"{part}: missing {[*(less - more)]}, too much {[*(more - less)]}")
        else:
            said.append(f"{part}: expected {str(value)[:999]}, found {str(found[part])[:999]}")
    return "\n".join(said)
