"""`recsys doctor`: every planted fault is found and has a cure; no check blocks the command."""

from __future__ import annotations

import base64
import json
import os
import socket
import sqlite3
import stat
import threading
import types
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from pipelines import doctor
from pipelines.cli import main
from pipelines.plumbing import memory
from pipelines.plumbing.diagnostics import installation, machine, services, storage
from pipelines.plumbing.diagnostics.finding import Check, Finding
from recsys.config import Config, load_config

DEMO = Path(__file__).parents[2] / "pipelines" / "configs" / "demo.yaml"
Captured = pytest.CaptureFixture[str]


def _config(tmp_path: Path, *overrides: tuple[str, str]) -> Config:
    return load_config(DEMO, [("run.dir", str(tmp_path / "runs" / "a")), *overrides])


def _of(check: Check, config: Config | None) -> dict[str, Finding]:
    return {finding.name: finding for finding in check(config)}


def test_every_finding_except_ok_has_a_cure(tmp_path: Path) -> None:
    for finding in doctor.examine(_config(tmp_path)):
        assert finding.state == "ok" or finding.cure, finding


def test_healthy_environment_passes_and_stays_unchanged(tmp_path: Path, capsys: Captured) -> None:
    assert (
        main(
            [
                "doctor",
                "--config",
                "demo",
                "--run.dir",
                str(tmp_path / "a"),
                "--doctor.json",
                "true",
            ]
        )
        == 0
    )
    found = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert found["ray"]["state"] == found["mlflow store"]["state"] == "ok"
    assert found["run.dir"]["state"] != "fail"  # a full disk of this machine is only a warning
    assert {"python", "torch", "gpu", "memory", "open files", "data.source", "text model"} <= set(
        found
    )
    assert list(tmp_path.iterdir()) == []


def test_failed_check_gives_code_1(tmp_path: Path, capsys: Captured) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    uri = f"sqlite:///{blocked}/m.db"
    words = ["doctor", "--config", "demo", "--run.dir", str(tmp_path / "a"), "--tracking.uri", uri]
    assert main(words) == 1
    shown = capsys.readouterr().out
    assert (
        "fail  mlflow store" in shown and "→ check tracking.uri" in shown and "1 failure" in shown
    )


def test_incomplete_store_is_a_failure(tmp_path: Path) -> None:
    store = tmp_path / "m.db"
    with sqlite3.connect(store) as connection:
        connection.execute("CREATE TABLE experiments (experiment_id INTEGER)")
    os.utime(store, (0, 0))  # old, so no other process is creating it now
    found = _of(services.tracking, _config(tmp_path, ("tracking.uri", f"sqlite:///{store}")))[
        "mlflow store"
    ]
    assert found.state == "fail" and "incomplete" in found.found


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--doctor.json", "maybe"], "expected true or false"),
        (["--train.lr", "1"], "but --config FILE is missing"),
        (["--config", "demo", "--train.lrr", "1"], "unknown key"),
    ],
)
def test_invalid_arguments_are_refused(words: list[str], message: str, capsys: Captured) -> None:
    assert main(["doctor", *words]) == 2
    assert message in capsys.readouterr().err


def test_crashing_and_hanging_checks_are_findings_and_hide_no_other() -> None:
    never = threading.Event()

    def waits(_: Config | None) -> Iterator[Finding]:
        never.wait(500)
        yield Finding("waits", "ok", "")

    def breaks(_: Config | None) -> Iterator[Finding]:
        yield Finding("half", "ok", "")
        raise ZeroDivisionError("inside")

    def fine(_: Config | None) -> Iterator[Finding]:
        yield Finding("fine", "ok", "here")

    found = doctor.examine(None, {"waits": waits, "breaks": breaks, "fine": fine}, patience=3.0)
    never.set()
    assert [(f.name, f.state) for f in found] == [
        ("waits", "fail"),
        ("breaks", "fail"),
        ("fine", "ok"),
    ]
    assert "did not end within 3 s" in found[0].found and "ZeroDivisionError" in found[1].found
    assert "busy" in found[0].cure, "not every check asks a service"


def test_versions_are_compared_with_the_requirements_of_the_project(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = installation._version
    wrong = {"torch": "2.12.0", "ray": None}
    monkeypatch.setattr(installation, "_version", lambda name: wrong.get(name, real(name)))
    found = _of(installation.versions, None)
    assert found["torch"].state == "fail" and "2.12.0, needs <2.14,>=2.13" in found["torch"].found
    assert found["torch"].cure == "pip install 'torch<2.14,>=2.13'"
    assert found["ray"].state == "fail" and "not installed" in found["ray"].found
    assert found["numpy"].state == "ok"
    monkeypatch.setattr(installation, "_version", lambda name: None)
    assert {finding.state for finding in installation.extras(None)} == {"ok"}, (
        "optional packages may be missing"
    )


def _torch(
    monkeypatch: pytest.MonkeyPatch, build: str | None, count: int, devices: list[str]
) -> None:
    import torch

    cuda = types.SimpleNamespace(
        is_available=lambda: count > 0, device_count=lambda: count, get_device_name=lambda _: "H"
    )
    monkeypatch.setattr(torch, "cuda", cuda)
    monkeypatch.setattr(torch.version, "cuda", build)
    monkeypatch.setattr(machine, "driver_devices", lambda: devices)


@pytest.mark.parametrize(
    ("build", "count", "devices", "use", "state", "cure"),
    [
        (None, 0, [], "auto", "ok", ""),
        (None, 0, [], "yes", "fail", "use_gpu auto"),
        (None, 0, ["L4, 570"], "auto", "warn", "CUDA build"),
        (None, 0, ["L4, 570"], "yes", "fail", "CUDA build"),
        ("13.0", 0, ["L4, 470"], "auto", "fail", "driver"),
        ("13.0", 1, ["L4, 570"], "auto", "ok", ""),
        ("13.0", 1, ["L4, 570"], "yes", "fail", "train.num_workers 1"),
    ],
)
def test_gpus_are_compared_with_the_build_of_torch(
    build: str | None,
    count: int,
    devices: list[str],
    use: str,
    state: str,
    cure: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _torch(monkeypatch, build, count, devices)
    config = _config(
        tmp_path, ("train.use_gpu", use), ("train.num_workers", "2"), ("ray.num_cpus", "3")
    )
    found = _of(machine.graphics, config)["gpu"]
    assert found.state == state and cure in found.cure and bool(found.cure) == bool(cure)


def test_driver_program_lists_the_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA L4, 570.1'\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.driver_devices() == ["NVIDIA L4, 570.1"]
    program.write_text("#!/bin/sh\nexit 9\n")
    assert machine.driver_devices() == []


def test_too_few_cpus_and_low_limits_are_findings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 1 << 30)
    monkeypatch.setattr("resource.getrlimit", lambda _: (256, 256))
    config = _config(tmp_path, ("train.num_workers", "4"), ("ray.num_cpus", "2"))
    found = _of(machine.machine, config)
    assert found["cpu"].state == "fail" and "at least 5" in found["cpu"].cure
    assert found["memory"].state == found["open files"].state == "warn"
    assert "ulimit -n 65536" in found["open files"].cure


def test_training_that_does_not_fit_is_a_finding(tmp_path: Path) -> None:
    assert _of(machine.training, _config(tmp_path))["training"].state == "ok"
    large = _of(machine.training, _config(tmp_path, ("data.source.num_items", "900000000")))[
        "training"
    ]
    assert large.state == "fail" and "embedding tables of 900,000,000 items" in large.cure
    unknown = _config(
        tmp_path, ("data.source", "{kind: sequences, events: s.txt}"), ("data.order", "file")
    )
    assert "after the data is prepared" in _of(machine.training, unknown)["training"].found
    assert not _of(machine.training, None)


def test_full_disk_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = types.SimpleNamespace(total=100 << 30, used=97 << 30, free=3 << 30)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    full = _of(storage.folders, _config(tmp_path))["run.dir"]
    assert full.state == "warn" and "95% full" in full.cure  # small data still fit in memory
    usage.total = 10 << 30
    few = _of(storage.folders, _config(tmp_path))["run.dir"]
    assert few.state == "warn" and "another place" in few.cure
    usage.free = 6 << 30
    assert _of(storage.folders, _config(tmp_path))["run.dir"].state == "ok"


def test_stores_are_checked_with_a_write(tmp_path: Path) -> None:
    path = tmp_path / "m.db"
    sqlite3.connect(path).close()
    config = _config(tmp_path, ("tracking.uri", f"sqlite:///{path}"))
    assert _of(services.tracking, config)["mlflow store"].state == "ok"
    path.write_bytes(b"no database" * 100)
    assert _of(services.tracking, config)["mlflow store"].state == "fail"
    config.tracking.enabled = False
    assert _of(services.tracking, config)["mlflow store"].state == "ok"


def test_missing_servers_fail_at_once_and_passwords_stay_hidden(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        closed_address = f"127.0.0.1:{closed.getsockname()[1]}"
        config = _config(
            tmp_path,
            ("tracking.uri", f"http://me:hunter2@{closed_address}"),
            ("submit.address", f"http://{closed_address}"),
        )
        store = _of(services.tracking, config)["mlflow store"]
        jobs = _of(services.job_server, config)["job server"]
    assert store.state == jobs.state == "fail"
    assert "hunter2" not in store.found + store.cure


class _WithLogin(BaseHTTPRequestHandler):
    """An MLflow server that answers only to the user ``me`` with the password ``hunter2``."""

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        login = base64.b64encode(b"me:hunter2").decode()
        is_known = self.headers.get("Authorization") == f"Basic {login}"
        body = b'{"experiments": []}' if is_known else b"not authenticated"
        self.send_response(200 if is_known else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


def test_server_with_a_login_is_asked_with_the_login_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HTTPServer(("127.0.0.1", 0), _WithLogin) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        config = _config(tmp_path, ("tracking.uri", f"http://127.0.0.1:{server.server_port}"))
        monkeypatch.delenv("MLFLOW_TRACKING_USERNAME", raising=False)
        refused = _of(services.tracking, config)["mlflow store"]
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
        found = _of(services.tracking, config)["mlflow store"]
        server.shutdown()
    assert refused.state == "fail" and "not authenticated" in refused.found
    assert "the login" in refused.cure
    assert found.state == "ok" and "answers" in found.found


def test_missing_language_model_and_missing_source_are_findings(tmp_path: Path) -> None:
    config = _config(tmp_path, ("data.text.model", "nobody/has-this-model"))
    assert _of(storage.text_model, config)["text model"].state == "fail"
    config.data.text.allow_download = True
    assert _of(storage.text_model, config)["text model"].state == "warn"
    tree = [("data.source", "{kind: sequences, events: missing.txt}")]
    found = _of(storage.source, _config(tmp_path, *tree))["data.source"]
    assert found.state == "fail" and "missing.txt" in found.found


def test_read_only_folder_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)  # root may write everywhere
    found = _of(storage.folders, _config(tmp_path))["data.dir"]
    assert found.state == "fail" and "Permission denied" in found.found


def test_remote_folder_is_checked_with_a_write(tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    config = _config(tmp_path, ("data.dir", f"file://{tmp_path}/bucket"))
    assert _of(storage.folders, config)["data.dir"].state == "ok"
    assert os.listdir(tmp_path / "bucket") == []
    config.data.dir = f"file://{tmp_path}/no/such"
    assert _of(storage.folders, config)["data.dir"].state == "fail"
