"""`recsys submit`: content of the job package, arguments, a job server that is not reachable, a log
over broken connections.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import types
from collections.abc import AsyncIterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines import submit
from pipelines.cli import main
from pipelines.plumbing import jobs
from pipelines.plumbing.job_package import CONFIG, PACKAGES, contents, job_config, pack
from pipelines.plumbing.jobs import address_of, connect, follow
from pipelines.plumbing.nodes import Node
from pipelines.stages import VERBS
from recsys.config import load_config, read_tree
from recsys.errors import ConfigError

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "pipelines" / "configs" / "demo.yaml"
Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the cluster and the token of the person who runs the tests."""
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


# -------------------------------------------------------------------------------------- job package


def test_paths_are_absolute_and_variables_are_expanded_on_the_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-model").mkdir()
    tree = {
        "run": {"dir": "runs/a"},
        "data": {
            "dir": "s3://bucket/d",
            "source": {
                "kind": "canonical",
                "events": ["e.csv", "$RECSYS_DATA/x.csv"],
                "split_files": {"test": ["t"]},
            },
            "text": {"model": "my-model"},
        },
        "tracking": {"uri": "sqlite:///m.db"},
        "submit": {"address": "http://127.0.0.1:1"},
    }
    before = yaml.safe_dump(tree)
    sent = yaml.safe_load(job_config(tree))
    here = str(tmp_path)
    assert sent["run"]["dir"] == f"{here}/runs/a" and sent["data"]["dir"] == "s3://bucket/d"
    assert sent["data"]["source"]["events"] == [f"{here}/e.csv", "$RECSYS_DATA/x.csv"]
    assert sent["data"]["source"]["split_files"] == {"test": [f"{here}/t"]}
    assert sent["data"]["text"]["model"] == f"{here}/my-model"
    assert sent["tracking"]["uri"] == f"sqlite:///{here}/m.db"
    assert "submit" not in sent, "a job does not need to know how it is sent"
    assert yaml.safe_dump(tree) == before, "the caller's tree stays unchanged"
    assert yaml.safe_load(job_config({"data": {"text": {"model": "all-MiniLM-L6-v2"}}})) == {
        "data": {"text": {"model": "all-MiniLM-L6-v2"}},
        "run": {"dir": f"{here}/runs/latest"},
    }


def test_no_secret_is_sent(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = "postgresql://me:hunter2@host/db"
    assert main(["submit", "run", "--config", "demo", "--tracking.uri", uri]) == 2
    printed = capsys.readouterr()
    assert (
        "must not be sent" in printed.err
        and "tracking.uri" in printed.err
        and "hunter2" not in printed.err + printed.out
    )
    monkeypatch.setenv("TRACKING_URI", uri)
    assert (
        main(["submit", "run", "--config", "demo", "--tracking.uri", "$TRACKING_URI", "--dry-run"])
        == 0
    )
    printed = capsys.readouterr()
    assert "hunter2" not in printed.err + printed.out and "uri: $TRACKING_URI" in printed.out


def test_variable_may_be_set_on_the_cluster_alone(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ONLY_THERE", raising=False)
    words = ["--config", "demo", "--tracking.uri", "$ONLY_THERE", "--run.dir", "$ONLY_THERE/run"]
    assert main(["submit", "run", *words, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "uri: $ONLY_THERE" in shown and "dir: $ONLY_THERE/run" in shown
    assert main(["run", *words, "--dry-run"]) == 2
    assert "ONLY_THERE is not set" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "needs_workers"),
    [
        (["train"], True),
        (["tune"], True),
        (["prepare"], False),
        (["tune", "--tune.search", "fusion"], False),
        (["update", "--update.only", "fusion", "--update.feedback", "[f.csv]"], False),
    ],
)
def test_cluster_is_checked_only_for_a_training(
    words: list[str], needs_workers: bool, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    class Client:
        def submit_job(self, **job: Any) -> None:
            print(job["entrypoint"])

    monkeypatch.setattr(submit, "connect", lambda address: Client())
    monkeypatch.setattr(submit, "nodes_summary", lambda client: {})
    monkeypatch.setattr(submit, "dashboard_nodes", lambda summary: [Node(4.0, 0.0, 64 << 30)])
    given = ["--config", "demo", "--train.num_workers", "8", "--submit.follow", "false"]
    assert main(["submit", *words, *given]) == (2 if needs_workers else 0)
    shown = capsys.readouterr()
    assert ("preflight: the cluster has 4 CPUs" in shown.err) == needs_workers
    assert (f"pipelines.cli {words[0]} " in shown.out) != needs_workers


def test_job_package_is_the_project_and_the_configuration_and_runs_alone(
    tmp_path: Path,
) -> None:
    tree = read_tree(DEMO, [("train.lr", "3e-4"), ("run.dir", "/shared/a")])
    pack(tree, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*PACKAGES, CONFIG])
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 5 << 20
    assert not [
        path
        for path in files
        if path.suffix not in (".py", ".yaml", ".j2", ".css", ".typed", ".js", ".svg", ".txt")
    ]
    sent = load_config(tmp_path / CONFIG)
    assert sent == load_config(DEMO, [("train.lr", "3e-4"), ("run.dir", "/shared/a")])
    _, *words = submit.entrypoint("train").split()
    done = subprocess.run(
        [sys.executable, *words, "--dry-run"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "address: auto" in done.stdout and "writes  /shared/a/model/" in done.stdout


def test_private_keys_and_links_out_of_the_package_are_left_out_with_a_reason(
    tmp_path: Path,
) -> None:
    home, outside = tmp_path / "tune", tmp_path / "outside.py"
    outside.write_text("secret")
    for name in (
        "a.py",
        "inner/b.py",
        ".env",
        ".env.local",
        "x.pem",
        "id_rsa",
        "server.key",
        ".aws/credentials",
        "e.env",
    ):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(name)
    (home / "runs").mkdir()
    (home / "runs/one.txt").write_text("x")
    (home / "mlflow.db").write_text("x")
    (home / "notes.txt").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nabc")
    (home / "inner/__pycache__").mkdir()
    (home / "inner/__pycache__/b.pyc").write_text("x")
    (home / "link_out.py").symlink_to(outside)
    (home / "link_in.py").symlink_to("a.py")
    (home / "link_key.txt").symlink_to("x.pem")
    (home / "link_folder").symlink_to(tmp_path)
    (home / "broken.py").symlink_to("nothing.py")
    os.mkfifo(home / "pipe")
    found = contents([home])
    assert [file.target for file in found.sent] == [
        "tune/a.py",
        "tune/link_in.py",
        "tune/inner/b.py",
    ]
    left = {one.target: one.why for one in found.left}
    assert left["tune/notes.txt"] == "a private key" and left["tune/link_key.txt"].startswith(
        "a link to a left-out file"
    )
    assert (
        left["tune/link_out.py"] == f"a link out of the package, to {outside}"
        and left["tune/pipe"] == "not a regular file"
    )
    assert {
        "tune/.env",
        "tune/.env.local",
        "tune/x.pem",
        "tune/id_rsa",
        "tune/server.key",
        "tune/.aws/",
    } <= left.keys()
    assert {
        "tune/runs/",
        "tune/mlflow.db",
        "tune/link_folder/",
        "tune/broken.py",
        "tune/e.env",
    } <= left.keys()
    assert not [name for name in left if "pycache" in name]
    assert (
        found.summary.startswith("sends 3 files of ") and f"left out: {len(left)}" in found.summary
    )
    assert "  tune/id_rsa: a key" in found.lines()


def test_dry_run_lists_the_job_package(capsys: Captured) -> None:
    assert main(["submit", "train", "--config", "demo", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert (
        "pipelines/submit.py" in shown
        and "recsys/preparation/prepare.py" in shown
        and "#   left out: nothing" in shown
    )


# ---------------------------------------------------------------------------------------- arguments


def test_job_commands_do_not_collide_with_verbs() -> None:
    assert not set(submit.ABOUT_JOBS) & set(VERBS)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "expected a verb"),
        (["rnu", "--config", "demo"], "got 'rnu'"),
        (["submit", "--config", "demo"], "got 'submit'"),
        (["run"], "--config FILE is missing"),
        (
            ["run", "--config", "demo", "--train.lrr", "1"],
            "--train.lrr: unknown key; did you mean --train.lr?",
        ),
        (["run", "--config", "demo", "--submit.on_interrupt", "cry"], "submit.on_interrupt"),
        (["status"], "the id of the job is missing"),
        (["stop", "--submit.address", "http://127.0.0.1:1"], "the id of the job is missing"),
        (["list", "--train.lr", "1"], "--train.lr"),
        (["list", "--submit.adress", "1"], "did you mean --submit.address?"),
        (["list", "--submit.address", "here"], "expected http://HOST:PORT"),
        (["list", "--submit.address", "http://u:hunter2@h:1"], "expected http://HOST:PORT"),
    ],
)
def test_invalid_arguments_are_refused(words: list[str], expected: str, capsys: Captured) -> None:
    assert main(["submit", *words]) == 2
    shown = capsys.readouterr().err
    assert expected in shown and "Traceback" not in shown and "hunter2" not in shown


def test_help_and_dry_run_contact_no_server(capsys: Captured) -> None:
    assert main(["submit", "run", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "recsys submit status|logs|stop ID" in shown and "--submit.on_interrupt" in shown
    assert (
        main(
            [
                "submit",
                "train",
                "--config",
                "demo",
                "--submit.address",
                "http://127.0.0.1:1",
                "--dry-run",
            ]
        )
        == 0
    )
    shown = capsys.readouterr().out
    assert "python -m pipelines.cli train --config job.yaml --ray.address auto" in shown
    assert "http://127.0.0.1:1" in shown and "Nothing was done" in shown


# --------------------------------------------------------------------------------------- job server


def test_address_comes_from_the_key_or_else_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert address_of("") == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://other:1/")
    assert address_of("") == "http://other:1"
    assert address_of("https://mine:2") == "https://mine:2"
    for bad in ("ray://h:1", "h:1", "http://", "http://h:port"):
        with pytest.raises(ConfigError, match="expected http://HOST:PORT"):
            address_of(bad)


def _server(status: int, body: bytes) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (404, b"", "no Ray job server answers"),
        (500, b"", "no Ray job server answers"),
        (200, b"<html>a web site</html>", "no Ray job server answers"),
        (200, b"{}", "no Ray job server answers"),
        (401, b"", "requires its token"),
        (403, b"", "requires its token"),
    ],
)
def test_server_that_is_no_job_server_gives_one_message(
    status: int, body: bytes, expected: str, capsys: Captured
) -> None:
    server = _server(status, body)
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        assert main(["submit", "list", "--submit.address", address]) == 2
        shown = capsys.readouterr().err
        assert expected in shown and len(shown.splitlines()) == 1
    finally:
        server.shutdown()
        server.server_close()


def test_server_that_never_answers_gives_a_message_after_a_timeout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jobs, "_ANSWER_S", 0.2)
    refusal = pytest.raises(ConfigError, match="no Ray job server answers")
    with socket.create_server(("127.0.0.1", 0)) as silent, refusal:
        connect(f"http://127.0.0.1:{silent.getsockname()[1]}")


# ---------------------------------------------------------------------------------------------- log


class _Job:
    """A job with a log that arrives in pieces over connections that break; the protocol of
    ``JobSubmissionClient``.
    """

    log = "one\ntwo\nthree\n"

    def __init__(self, connections: list[list[str | Exception]], states: list[str]) -> None:
        self.connections, self.states = iter(connections), iter(states)

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        for piece in next(self.connections):
            if isinstance(piece, Exception):
                raise piece
            yield piece

    def get_job_info(self, job: str) -> Any:
        status = types.SimpleNamespace(value=next(self.states))
        return types.SimpleNamespace(
            status=status, submission_id=job, message="m", driver_exit_code=3
        )

    def get_job_logs(self, job: str) -> str:
        return self.log


@pytest.fixture
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_PAUSE_S", 0.0)


@pytest.mark.usefixtures("_no_pause")
def test_log_over_broken_connections_is_written_once() -> None:
    """The stream starts from the beginning with every connection, and the job ends while none is
    open.
    """
    job = _Job(
        [["one\n"], [OSError("reset")], ["one\ntw", "o\n", OSError("reset")], ["one\ntwo\n"]],
        ["RUNNING", "SUCCEEDED"],
    )
    shown: list[str] = []
    assert follow(job, "a", shown.append).status.value == "SUCCEEDED"
    assert "".join(shown) == _Job.log


@pytest.mark.usefixtures("_no_pause")
def test_lost_cluster_gives_code_1_and_the_command_to_continue(capsys: Captured) -> None:
    broken: list[list[str | Exception]] = [[OSError("reset")]] * jobs._TRIES
    config = load_config(DEMO).submit
    assert submit.watch(_Job(broken, []), "a", config) == 1
    assert "recsys submit logs a" in capsys.readouterr().err


def test_exit_code_is_that_of_the_job(capsys: Captured) -> None:
    def ended(state: str, code: int | None) -> Any:
        status = types.SimpleNamespace(value=state)
        return types.SimpleNamespace(
            status=status, submission_id="a", message="why\nmore", driver_exit_code=code
        )

    codes = [
        submit.exit_code(ended(*end)) for end in (("SUCCEEDED", 0), ("FAILED", 2), ("FAILED", None))
    ]
    assert codes == [0, 2, 1]
    assert submit.exit_code(ended("STOPPED", -15)) == 1
    assert "job a failed: why\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("what", "expected"), [("detach", "keeps running"), ("stop", "is stopped")]
)
def test_interrupt_stops_or_detaches_as_configured(
    what: str, expected: str, capsys: Captured
) -> None:
    class Interrupted(_Job):
        stopped = False

        async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
            yield "one\n"
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(500)

        def stop_job(self, job: str) -> None:
            self.stopped = True

    job = Interrupted([], ["STOPPED"])
    config = load_config(DEMO, [("submit.on_interrupt", what)]).submit
    # a job in the background has no such handler
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert submit.watch(job, "a", config) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert job.stopped == (what == "stop") and expected in capsys.readouterr().err


def test_token_is_sent_if_ray_was_imported_before() -> None:
    """Without RAY_AUTH_MODE, as for a new user: Ray read the environment when it was imported."""
    code = (
        "import ray\n"
        "from pipelines.plumbing.jobs import connect\n"
        "from recsys.errors import ConfigError\n"
        "from ray._raylet import AuthenticationMode, get_authentication_mode\n"
        "assert get_authentication_mode() == AuthenticationMode.DISABLED\n"
        "try:\n"
        "    connect('http://127.0.0.1:9')\n"
        "except ConfigError:\n"
        "    pass\n"
        "assert get_authentication_mode() == AuthenticationMode.TOKEN\n"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment["RAY_AUTH_TOKEN"] = "0123456789abcdef"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
