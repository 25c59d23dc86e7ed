"""Checks of the programs that a run talks to: MLflow, a Ray cluster, the job server."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.plumbing.diagnostics.finding import Finding
from pipelines.plumbing.diagnostics.storage import existing_parent

if TYPE_CHECKING:
    from recsys.config import Config


def tracking(config: Config | None) -> Iterator[Finding]:
    """Whether the MLflow store answers and, if it is a file, can be written."""
    if config is None or not config.tracking.enabled:
        if config is not None:
            yield Finding("mlflow store", "ok", "not needed: tracking.enabled is false")
        return
    from recsys.config import redact
    from recsys.errors import ConfigError, first_line
    from recsys.registry.mlflow_client import sqlite_path, tracking_uri

    try:
        uri = tracking_uri(config.tracking, config.run.dir)
    except ConfigError as error:
        yield Finding("mlflow store", "fail", "tracking.uri", str(error))
        return
    path = sqlite_path(uri)
    try:
        found = _sqlite(path) if path is not None else _answer(uri)
        yield Finding("mlflow store", "ok", f"{redact(uri)}: {found}")
    except Exception as error:  # drivers and clients raise many types
        cure = (
            "check tracking.uri, the login in MLFLOW_TRACKING_USERNAME and _PASSWORD, and whether"
            " the server runs and can be reached from here"
        )
        yield Finding(
            "mlflow store", "fail", f"{redact(uri)}: {redact(first_line(error)[:300])}", cure
        )


def _sqlite(path: Path) -> str:
    if not path.exists():
        with tempfile.TemporaryFile(dir=existing_parent(path.parent)):
            return "created when first used"
    with closing(sqlite3.connect(f"file:{path}?mode=rw", uri=True, timeout=5)) as connection:
        connection.execute("BEGIN IMMEDIATE")  # takes the lock for writing
        connection.rollback()
    from recsys.registry.store_state import check

    check(path)
    return "answers, writable"


def _answer(uri: str) -> str:
    if not uri.startswith(("http", "databricks")):
        return _database(uri)
    from recsys.registry.mlflow_client import client, short_timeouts

    with short_timeouts():
        # by MLflow, because it reads the login and the certificates from the environment
        client(uri).search_experiments(max_results=1)
    return "answers (write access was not tested: a test would leave an experiment)"


def _database(uri: str) -> str:
    # not by MLflow, which would create its tables
    from sqlalchemy import create_engine, text

    with create_engine(uri).connect() as connection:
        connection.execute(text("SELECT 1"))
    return "answers (write access was not tested)"


def ray_cluster(config: Config | None) -> Iterator[Finding]:
    """Whether the cluster of the configuration answers; a separate process asks it."""
    address = config.ray.address if config is not None else "local"
    if address == "local":
        yield Finding("ray", "ok", "local: started with each command")
        return
    code = (
        "import sys, json, ray; ray.init(address=sys.argv[1], log_to_driver=False,"
        " logging_level='ERROR');print(json.dumps(ray.cluster_resources())); ray.shutdown()"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, address], capture_output=True, text=True, timeout=20
        )
    except subprocess.TimeoutExpired:
        done = None
    if done is None or done.returncode:
        cure = (
            "start it (`ray start --head`, `ray up cluster.yaml`), or set ray.address local; check"
            " the token"
        )
        yield Finding("ray", "fail", f"no cluster answers at {address!r}", cure)
        return
    import json

    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    shown = ", ".join(f"{found.get(name, 0):g} {name}s" for name in ("CPU", "GPU"))
    wanted = config.train.num_workers if config is not None else 0
    if found.get("CPU", 0) < wanted:
        cure = (
            "lower train.num_workers, add nodes, or set ray.wait_s if the cluster starts nodes"
            " itself"
        )
        yield Finding("ray", "warn", f"{address}: {shown}; train.num_workers is {wanted}", cure)
    else:
        yield Finding("ray", "ok", f"{address}: {shown}")


def job_server(config: Config | None) -> Iterator[Finding]:
    """Whether the job server of ``recsys submit`` answers, if its address is configured."""
    given = config.submit.address if config is not None else ""
    if not given and not os.environ.get("RAY_API_SERVER_ADDRESS"):
        return
    from pipelines.plumbing.jobs import address_of, connect
    from recsys.errors import ConfigError

    try:
        connect(given)
        yield Finding("job server", "ok", f"answers at {address_of(given)}")
    except ConfigError as error:
        yield Finding("job server", "fail", "submit.address", str(error))
