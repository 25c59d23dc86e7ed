"""Fixtures that several test files share."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from pipelines.plumbing.bare_ray import without_dashboard

# the longest first, so that no worker of pytest runs one of them alone at the end
COSTLY_FILES: Final = (
    "test_update",
    "test_determinism",
    "test_pipeline",
    "test_planted_worlds",
    "test_sweep",
    "test_training",
    "test_heartbeats",
    "test_planted_systems",
    "test_planted_media",
    "test_planted_profile",
    "test_finetune",
    "test_text",
    "test_planted_knowledge",
    "test_optimizer",
    "test_storage",
    "test_pull",
    "test_fusion_search",
    "test_batch",
    "test_promote",
    "test_serving_ways",
    "test_followed_model",
)


# small problems on shared cores; no test measures time
os.environ.setdefault("OMP_NUM_THREADS", "1")
# a shell starts background jobs with Ctrl-C ignored, and the servers of the tests would inherit it
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put slow files first; the order inside a file stays (`make test` distributes whole files in
    order)."""
    rank = {name: place for place, name in enumerate(COSTLY_FILES)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def _start_ray(attempts: int) -> None:
    """Start a local Ray; try again if another Ray that starts at the same time has taken its port,
    or if it misses its own limit of 30 s on a busy machine."""
    import ray

    try:
        with without_dashboard():  # as the commands start it
            ray.init(
                address="local",
                num_cpus=2,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                object_store_memory=512 * 1024 * 1024,
            )
    except Exception:  # a late start is a plain Exception
        ray.shutdown()
        if attempts == 1:
            raise
        _start_ray(attempts - 1)


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A quiet local Ray of two CPUs for the whole session."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    # as the commands do; otherwise workers starve on a busy machine
    os.environ.setdefault("RAY_worker_niceness", "0")
    import ray

    started = not ray.is_initialized()
    if started:
        _start_ray(attempts=4)
    logging.getLogger("ray.data").setLevel("ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    if started:
        ray.shutdown()


@pytest.fixture(params=["ray", "threads"])
def both_ways(request: pytest.FixtureRequest) -> Iterator[None]:
    """The tasks of a preparation in Ray, and in threads of this process. With threads, Ray starts
    when it is needed."""
    from recsys.preparation.blocks import in_this_process

    if request.param == "ray":
        request.getfixturevalue("ray_local")
        yield
    else:
        with in_this_process(lambda: request.getfixturevalue("ray_local"), num_threads=2):
            yield


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an S3-compatible server in a separate process, for the whole session."""
    pytest.importorskip("moto")
    log = tmp_path_factory.mktemp("s3") / "server.log"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with log.open("w") as file, subprocess.Popen(command, stderr=file, stdout=file) as server:
        try:
            until = time.monotonic() + 400
            while time.monotonic() < until:
                found = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
                if found or server.poll() is not None:
                    break
                time.sleep(0.1)
            assert found, log.read_text()
            yield found.group()
        finally:
            server.terminate()


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The ``s3://`` URI of a new bucket, on the server that the environment names."""
    pytest.importorskip("boto3")
    for name in [name for name in os.environ if name.startswith(("AWS_", "MLFLOW_S3"))]:
        monkeypatch.delenv(name)
    known = {
        "AWS_ACCESS_KEY_ID": "AKIATESTING",
        "AWS_SECRET_ACCESS_KEY": "word-that-nobody-may-read",
    }
    for name, value in {
        **known,
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    urllib.request.urlopen(
        urllib.request.Request(f"{s3_server}/{name}", method="PUT"), timeout=200
    ).close()
    return f"s3://{name}"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of the public data sets; without it the test is skipped."""
    folder = Path(os.environ.get("RECSYS_DATA", "data"))
    if not folder.is_dir():
        pytest.skip(f"needs the public data sets; {folder} is no folder: set RECSYS_DATA")
    return folder


Migration = Callable[[Path, Path], None]


@pytest.fixture(scope="session", autouse=True)
def migrations(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Migration]:
    """Run MLflow's fifty migrations once for the session: new stores start as a copy of the result.

    Why: the migrations of one store cost two seconds, and each file of tests creates its own
    stores. ``tests/registry/test_store_creation.py`` runs them for each store. Yields the function
    that is replaced.
    """
    from recsys.registry import store
    from recsys.registry.store_state import mlflow_database

    migrate, tables = store._migrate, tmp_path_factory.mktemp("store") / "tables.db"

    def from_a_copy(file: Path, folder: Path) -> None:
        if not tables.exists():
            database = mlflow_database()
            engine = database.create_sqlalchemy_engine(f"sqlite:///{tables}")
            database._initialize_tables(engine)
            engine.dispose()
        if not file.stat().st_size:
            store._copy_store(tables, file)
        migrate(file, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "_migrate", from_a_copy)
        yield migrate


@pytest.fixture(scope="module")
def real_migrations(migrations: Migration) -> Iterator[None]:
    """Run all migrations for each new store, as the commands do."""
    from recsys.registry import store

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "_migrate", migrations)
        yield


@pytest.fixture
def answering_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answer a batch in this process instead of by actors of Ray Data, each of which imports
    everything again.

    ``tests/serving/test_batch.py`` and ``tests/stories/test_pipeline.py`` answer through the real
    Ray Data.
    """
    from recsys.serving import batch

    def here(answering: Any, batch_size: int, chosen: Any) -> Iterator[Any]:
        slices = (block for table in chosen for block in batch._slices(table, batch_size))
        yield from map(answering, slices)

    monkeypatch.setattr(batch, "_answer_tables", here)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Use one thread: for tiny problems on shared cores, threads would wait for each other longer
    than they work."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
