"""What a start costs: which packages a command imports, and the work that runs while Ray starts."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError, WorkerCrashedError
from ray.train import WorkerGroupError

from pipelines.plumbing import session
from pipelines.plumbing.bare_ray import without_dashboard
from recsys.config import load_config
from recsys.errors import ArtifactError, Unavailable

_IMPORTED = """
import json, sys
from pipelines.cli import main
code = main(sys.argv[1:])
print("IMPORTED", json.dumps([code, [name for name in %s if name in sys.modules]]))
"""


def imported(words: list[str], heavy: tuple[str, ...], folder: Path) -> list[object]:
    """The exit code of a command in a new process, and which of the packages it has imported."""
    for _ in range(3):  # on a busy machine Ray may miss its own limit of 30 s
        done = subprocess.run(
            [sys.executable, "-c", _IMPORTED % (heavy,), *words],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            timeout=300,
        )
        if "a local Ray does not start" not in done.stderr:
            break
    [line] = [line for line in done.stdout.splitlines() if line.startswith("IMPORTED ")]
    found: list[object] = json.loads(line.removeprefix("IMPORTED "))
    if found[0] == 1:  # not the user's mistake, so no test expects it
        pytest.fail(done.stdout + done.stderr)
    return found


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No Ray is connected; the returned list grows with every shutdown."""
    ends: list[str] = []
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.shutdown", lambda: ends.append("shutdown"))
    return ends


@pytest.mark.slow
def test_prepare_without_texts_imports_no_torch(tmp_path: Path) -> None:
    heavy = ("torch", "ray.train", "mlflow", "scipy", "matplotlib", "sklearn", "transformers")
    small = ["--data.source.num_users", "40", "--data.source.num_items", "30"]
    words = ["prepare", "--config", "demo", "--run.dir", str(tmp_path / "run"), *small]
    assert imported([*words, "--data.text.enabled", "false"], heavy, tmp_path) == [0, []]


@pytest.mark.slow
def test_prepare_of_events_alone_imports_no_ray_data(tmp_path: Path) -> None:
    rows = [f"u{user},i{(user + step) % 9},{step}" for user in range(20) for step in range(9)]
    (tmp_path / "events.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    (tmp_path / "c.yaml").write_text("data: {source: {kind: canonical, events: [events.csv]}}\n")
    words = ["prepare", "--config", "c.yaml", "--run.dir", str(tmp_path / "run")]
    assert imported(words, ("torch", "ray.data"), tmp_path) == [0, []]


def test_prepare_of_a_missing_file_fails_before_ray_starts(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("data: {source: {kind: canonical, events: [none.csv]}}\n")
    heavy = ("ray", "torch", "polars", "mlflow")
    assert imported(["prepare", "--config", "c.yaml"], heavy, tmp_path) == [2, []]


def test_serving_a_missing_model_imports_neither_torch_nor_mlflow(tmp_path: Path) -> None:
    words = ["serve", "--config", "demo", "--run.dir", str(tmp_path / "run"), "--serve.port", "0"]
    heavy = ("torch", "mlflow", "ray.data", "ray.train")
    assert imported([*words, "--serve.model", str(tmp_path)], heavy, tmp_path) == [2, []]


def test_work_runs_in_a_thread_while_ray_starts(
    monkeypatch: pytest.MonkeyPatch, no_ray: list[str]
) -> None:
    began, threads = threading.Event(), []

    def start(address: str, cpus: int) -> None:
        assert began.wait(30), "the work begins before Ray has started"

    def work() -> None:
        threads.append(threading.current_thread())
        began.set()

    monkeypatch.setattr(session, "_start", start)
    config = load_config(None, [])
    with session.ray_session(config.train, config.ray, work):
        assert len(threads) == 1 and threads[0] is not threading.main_thread()


def test_error_of_the_work_ends_the_session(
    monkeypatch: pytest.MonkeyPatch, no_ray: list[str]
) -> None:
    def work() -> None:
        raise ArtifactError("a file is damaged")

    monkeypatch.setattr(session, "_start", lambda address, cpus: None)
    config = load_config(None, [])
    with (
        pytest.raises(ArtifactError, match="a file is damaged"),
        session.ray_session(config.train, config.ray, work),
    ):
        pytest.fail("the block is not entered")
    assert no_ray == ["shutdown"]


def test_failed_start_of_ray_does_not_wait_for_the_work(
    monkeypatch: pytest.MonkeyPatch, no_ray: list[str]
) -> None:
    released, done = threading.Event(), threading.Event()

    def start(address: str, cpus: int) -> None:
        raise Unavailable("a local Ray does not start")

    def work() -> None:
        released.wait(30)
        done.set()

    monkeypatch.setattr(session, "_start", start)
    config = load_config(None, [])
    with (
        pytest.raises(Unavailable, match="does not start"),
        session.ray_session(config.train, config.ray, work),
    ):
        pytest.fail("the block is not entered")
    assert not done.is_set()
    released.set()


@pytest.mark.parametrize(("num_failures", "starts"), [(0, 1), (2, 3), (9, 3)])
def test_ray_that_misses_its_own_time_limit_is_started_again(
    num_failures: int, starts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def init(**given: object) -> None:
        calls.append(1)
        if len(calls) <= num_failures:
            raise RuntimeError("The current node timed out during startup. This could happen …")

    monkeypatch.setattr("ray.init", init)
    if num_failures < starts:
        session._start("local", 1)
    else:
        with pytest.raises(Unavailable, match="does not start"):
            session._start("local", 1)
    assert len(calls) == starts


def test_lost_cluster_gives_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head node answers: the error stays. It does not: one message; the user's errors stay."""
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = "{}:{}".format(*head.getsockname())
        context = SimpleNamespace(gcs_address=address)
        monkeypatch.setattr("ray.is_initialized", lambda: True)
        monkeypatch.setattr("ray.get_runtime_context", lambda: context)
        in_worker = WorkerGroupError("failed", {0: ActorDiedError()})
        for lost in (ActorDiedError(), WorkerCrashedError(), in_worker):
            with (
                pytest.raises(Unavailable, match="lost a process .*(Died|Crashed).*resume"),
                session._naming_a_lost_cluster(),
            ):
                raise lost
        with pytest.raises(ZeroDivisionError), session._naming_a_lost_cluster():
            _ = 1 / 0
    with (
        pytest.raises(Unavailable, match=f"cluster was lost: its head node {address} .*--resume"),
        session._naming_a_lost_cluster(),
    ):
        _ = 1 / 0
    with pytest.raises(ArtifactError), session._naming_a_lost_cluster():
        raise ArtifactError("a file is damaged")


def test_local_ray_starts_without_the_processes_of_a_dashboard() -> None:
    from ray._private import node, utils

    before = utils.get_dashboard_dependency_error, node.Node.start_api_server
    with without_dashboard():
        assert utils.get_dashboard_dependency_error() is not None
        started = SimpleNamespace()
        node.Node.start_api_server(started, include_dashboard=False, raise_on_failure=True)
        assert started._webui_url == ""
    assert (utils.get_dashboard_dependency_error, node.Node.start_api_server) == before


def test_ray_with_other_names_starts_as_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import node, utils

    monkeypatch.delattr(node.Node, "start_api_server")
    before = utils.get_dashboard_dependency_error
    with without_dashboard():
        assert utils.get_dashboard_dependency_error is before
