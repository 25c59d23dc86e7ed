"""A cluster that several drivers use, and one whose head node is lost: every run ends with the
result of a run alone.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.faults import ROOT, Command, checkpoints, history, logged, own_processes, world
from tests.project.test_submit_cluster import LOOPBACK, Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]
USERS = {"first": "42", "second": "7"}  # the name of the registered model → the seed


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Results of each user's run alone, on a local Ray."""
    found = {}
    for user in USERS:
        folder = tmp_path_factory.mktemp(user)
        with Command("run", of_user(user, folder), "--seed", USERS[user]) as command:
            command.ends()
        found[user] = results(folder / "run", folder / "mlflow.db")
    assert found["first"]["model"] != found["second"]["model"]
    return found


@pytest.fixture
def clusters(tmp_path: Path) -> Iterator[list[Cluster]]:
    """Two clusters without nodes."""
    made = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        made.append(Cluster(tmp_path / name, RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.2"))
        made[-1].environment["PYTHONPATH"] = str(ROOT)
    try:
        yield made
    finally:
        for cluster in made:
            cluster.end()


def of_user(user: str, folder: Path, **sections: dict[str, Any]) -> Path:
    """The configuration of a user."""
    return world(folder, registry={"name": user}, **sections)


def on(cluster: Cluster, user: str, config: Path, *words: str) -> Command:
    """``recsys run`` of a user, with a driver that uses the cluster."""
    address = ("--ray.address", f"{LOOPBACK}:{cluster.gcs}", "--seed", USERS[user])
    return Command("run", config, *address, *words, **cluster.environment)


def results(run: Path, database: Path) -> dict[str, Any]:
    """What must be equal: metrics, every epoch, and the epochs of this run in MLflow."""
    metrics = json.loads((run / "metrics.json").read_text())
    registered = json.loads((run / "registered.json").read_text())
    return {
        **{part: metrics[part] for part in ("model", "baselines", "data")},
        "history": history(run),
        "logged": logged(database, registered["run_id"]),
    }


def versions(database: Path) -> list[tuple[str, int]]:
    """Name and number of every registered version."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as store:
        return sorted(store.execute("select name, version from model_versions").fetchall())


@pytest.mark.slow
def test_run_resumes_on_a_new_cluster_after_the_head_node_is_lost(
    tmp_path: Path, clusters: list[Cluster], alone: dict[str, dict[str, Any]]
) -> None:
    """Every process of the head is killed in an epoch; a second node stays. The command ends with
    one message, and continues from the run folder on another cluster."""
    config, run = of_user("first", tmp_path), tmp_path / "run"
    before, after = clusters
    before.start(1)
    before.start(1)
    with on(before, "first", config) as command:
        command.when(lambda: any(made["epoch"] for made in checkpoints(run).values()), "an epoch")
        for pid in own_processes(before.nodes[0].pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        printed = command.ends(1)
    last = printed.splitlines()[-1]
    assert last.startswith("recsys: the Ray cluster was lost") and "--resume" in last, printed
    assert "Traceback" not in printed, printed
    after.start(2)
    with on(after, "first", config, "--resume") as command:
        assert "resuming from" in command.ends()
    assert results(run, tmp_path / "mlflow.db") == alone["first"]
    assert versions(tmp_path / "mlflow.db") == [("first", 1)]


@pytest.mark.slow
def test_two_users_share_a_cluster_and_a_store(
    tmp_path: Path, clusters: list[Cluster], alone: dict[str, dict[str, Any]]
) -> None:
    """Two drivers at the same time, each with its own folder and model."""
    database = tmp_path / "mlflow.db"
    clusters[0].start(2)
    tracking = {"uri": f"sqlite:///{database}"}
    configs = {user: of_user(user, tmp_path / user, tracking=tracking) for user in USERS}
    with (
        on(clusters[0], "first", configs["first"]) as first,
        on(clusters[0], "second", configs["second"]) as second,
    ):
        first.until(r"epoch +1/6")
        assert second.process.poll() is None, "both run at the same time"
        first.ends()
        second.ends()
    for user in USERS:
        assert results(tmp_path / user / "run", database) == alone[user], user
    assert versions(database) == [("first", 1), ("second", 1)]
