"""`recsys serve` refuses wrong settings before anything starts, and follows the version of a model
until it is stopped.
"""

from __future__ import annotations

import io
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from pipelines import serve
from pipelines.cli import main
from pipelines.command_line.dry_run import plan
from pipelines.following import sides as followed
from pipelines.plumbing.progress import Progress
from pipelines.plumbing.run_folder import open_run
from recsys.config import Config, ServeConfig, build_config
from recsys.errors import ArtifactError, ConfigError
from recsys.serving.access import read_token


@pytest.fixture
def config(tmp_path: Path) -> Config:
    run = {"dir": str(tmp_path / "run")}
    return build_config({"model": {"granularities": {"evolution": {"enabled": True}}}, "run": run})


def test_dry_run_names_the_served_model(config: Config) -> None:
    assert "reads   models:/multigrain@champion" in plan("serve", config)
    config.serve.model = "pulled/model"
    assert "reads   pulled/model" in plan("serve", config).split("would run")[1]
    config.serve.ab.model, config.serve.log = "models:/m@challenger", "logs"
    printed = plan("serve", config).split("would run")[1]
    assert (
        "reads   pulled/model and models:/m@challenger" in printed
        and "writes  logs/answers-….jsonl" in printed
    )


def test_serving_does_not_lock_the_run_folder(config: Config) -> None:
    with (
        open_run(config, "serve", io.StringIO(), locks=False),
        open_run(config, "train", io.StringIO()),
    ):
        pass


def test_port_in_use_is_refused(config: Config) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        config.serve.port = other.getsockname()[1]
        with pytest.raises(
            ConfigError, match=r"serve\.port \d+: cannot be used .* or 0 for a free one"
        ):
            serve._port(config.serve)
    config.serve.port = 0
    assert serve._port(config.serve) > 0
    config.serve.host = "203.0.113.7"
    with pytest.raises(ConfigError, match=r"serve\.host 203\.0\.113\.7"):
        serve._port(config.serve)


def test_missing_ray_serve_is_named_before_the_model_is_read(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray.serve", None)
    with (
        open_run(config, "serve", io.StringIO(), locks=False) as folder,
        pytest.raises(ConfigError, match=r"pip install 'multigrain\[serve\]'"),
    ):
        serve.serve(config, folder)


def test_missing_or_short_token_is_refused(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_token(config.serve.token_env, "serve.token_env") == ""
    config.serve.token_env = "RECSYS_TEST_TOKEN"
    monkeypatch.delenv("RECSYS_TEST_TOKEN", raising=False)
    with pytest.raises(
        ConfigError, match="RECSYS_TEST_TOKEN has 0 characters, expected a token of at least 16"
    ):
        read_token(config.serve.token_env, "serve.token_env")
    monkeypatch.setenv("RECSYS_TEST_TOKEN", "0123456789abcdef")
    assert read_token(config.serve.token_env, "serve.token_env") == "0123456789abcdef"


def test_stock_file_needs_a_token_and_a_local_path(config: Config, tmp_path: Path) -> None:
    config.serve.stock_file = str(tmp_path / "stock.json")
    with pytest.raises(
        ConfigError, match=r"serve\.stock_file is set, but serve\.stock_token_env is empty"
    ):
        followed.stock_of(config.serve)
    config.serve.stock_token_env = "STOCK"
    assert followed.stock_of(config.serve).out == frozenset()
    assert (tmp_path / "stock.json").exists(), "written at once, so that a later change can be"
    config.serve.stock_file = str(tmp_path / "stock.json" / "stock.json")
    with pytest.raises(ConfigError, match="cannot be written"):
        followed.stock_of(config.serve)
    config.serve.stock_file = "s3://shop/stock.json"
    with pytest.raises(ConfigError, match="must be a local file"):
        followed.stock_of(config.serve)


def test_missing_model_is_reported_before_ray_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "ray_session", lambda *_: pytest.fail("Ray was started"))
    before = signal.getsignal(signal.SIGINT)
    (tmp_path / "c.yaml").write_text("model: {granularities: {evolution: {enabled: true}}}\n")
    words = [
        "serve",
        "--config",
        str(tmp_path / "c.yaml"),
        "--run.dir",
        str(tmp_path / "run"),
        "--serve.port",
        "0",
    ]
    assert main([*words, "--serve.model", str(tmp_path)]) == 2
    assert "has no model bundle" in capsys.readouterr().err
    assert main(words) == 2
    assert "the MLflow store" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before


def test_sigterm_ends_serve_without_an_error(
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Waiting:
        def __init__(self, uri: str, tracking_uri: str) -> None:
            assert uri == "models:/multigrain@champion"

        def version(self) -> str:
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("the signal ends the command")

    monkeypatch.setattr(followed, "FollowedModel", Waiting)
    config.serve.host, config.serve.port = "0.0.0.0", 0
    with open_run(config, "serve", locks=False) as folder:
        serve.serve(config, folder)
    printed = capsys.readouterr().out
    assert (
        "is not a loopback address: the model answers everyone who can reach it" in printed
        and "stopped" in printed
    )


class Registry:
    """The version of the name at each look-up; an exception in the list is raised."""

    def __init__(self, stopped: threading.Event, *found: Any) -> None:
        self.uri = "models:/m@champion"
        self._stopped = stopped
        self._found = list(found)
        self.loaded = []

    def version(self) -> str:
        found = self._found.pop(0)
        if not self._found:
            self._stopped.set()
        if isinstance(found, Exception):
            raise found
        return str(found)

    def load(self, version: str) -> tuple[Any, dict[str, Any]]:
        self.loaded.append(version)
        if version == "broken":
            raise ArtifactError("a file is damaged\nand more")
        return version, {}


class Server:
    """Records what it is offered."""

    def __init__(self) -> None:
        self.offered: list[str] = []
        self.num_kept = 0

    def keep(self) -> list[str]:
        self.num_kept += 1
        return ["the front had ended; a new one replaces it"] * (self.num_kept == 2)

    def offer(self, bundle: str, about: dict[str, Any], side: str) -> int:
        assert side == "a"
        self.offered.append(bundle)
        return len(self.offered)

    def state(self, serial: int) -> tuple[int, int, list[str]]:
        return (2, 2, []) if serial == 1 else (2, 1, ["MemoryError: no room"])


def follow(
    server: Any, registry: Any, settings: ServeConfig, say: Any, stopped: threading.Event
) -> None:
    serve._follow(
        server, [followed.FollowedSide("a", registry, "1", settings)], settings, say, stopped
    )


def test_server_follows_the_version_of_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped, output, server = threading.Event(), io.StringIO(), Server()
    away = ConnectionError("refused")
    looks = ("1", "2", away, away, "2", "broken", "broken", "2", "3", "3")
    registry = Registry(stopped, *looks)
    settings = ServeConfig(poll_seconds=0.001, max_retry_s=1000)
    monkeypatch.setattr(followed.Refused, "may_try", lambda self, version: version != self._version)
    follow(server, registry, settings, Progress(output), stopped)
    assert server.offered == ["2", "3"] and registry.loaded == [
        "2",
        "broken",
        "3",
    ], "not at every look-up"
    printed = output.getvalue()
    assert "2 now answers on 2 replica(s)" in printed
    assert printed.count("cannot be looked up (ConnectionError: refused); 2 keeps answering") == 1
    assert printed.count("broken cannot be loaded (a file is damaged); 2 keeps answering") == 1
    assert "3: 1 of 2 replicas use it, the others failed: MemoryError: no room" in printed
    assert printed.count("a new one replaces it") == 1


def test_replica_that_has_ended_does_not_hold_up_the_next_version() -> None:
    stopped, output, server = threading.Event(), io.StringIO(), Server()
    states = {1: (2, 1, []), 2: (2, 2, [])}
    server.state = lambda serial: states[serial]  # type: ignore[method-assign,assignment]
    registry = Registry(stopped, "1", "2", "2", "3", "3")
    follow(server, registry, ServeConfig(poll_seconds=0.001), Progress(output), stopped)
    assert server.offered == ["2", "3"]
    assert "2 now" not in output.getvalue() and "3 now answers on 2" in output.getvalue()


def test_earlier_version_is_offered_again_after_one_that_some_replicas_cannot_load() -> None:
    stopped, output, server = threading.Event(), io.StringIO(), Server()
    states = {1: (2, 1, ["MemoryError: no room"]), 2: (2, 2, [])}
    server.state = lambda serial: states[serial]  # type: ignore[method-assign,assignment]
    registry = Registry(stopped, "1", "2", "1", "1", "1")
    settings = ServeConfig(poll_seconds=0.001, max_retry_s=1000)
    follow(server, registry, settings, Progress(output), stopped)
    assert server.offered == ["2", "1"], "one replica answers with version 2"
    assert "1 now answers on 2 replica(s)" in output.getvalue()


def test_each_side_follows_its_own_name() -> None:
    stopped, output, offered = threading.Event(), io.StringIO(), list[tuple[str, str]]()

    class Both(Server):
        def offer(self, bundle: str, about: dict[str, Any], side: str) -> int:
            offered.append((bundle, side))
            return 1

    never = threading.Event()
    first = Registry(never, "1", "1", "2", "2", "2")
    second = Registry(stopped, "7", "8", "broken", "8", "8")
    settings = ServeConfig(poll_seconds=0.001)
    sides = [
        followed.FollowedSide("a", first, "1", settings),
        followed.FollowedSide("b", second, "7", settings),
    ]  # type: ignore[arg-type]
    serve._follow(Both(), sides, settings, Progress(output), stopped)
    assert offered == [("8", "b"), ("2", "a")]
    assert "broken cannot be loaded (a file is damaged); 8 keeps answering" in output.getvalue()


def test_broken_version_is_retried_after_growing_pauses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr(followed.time, "monotonic", lambda: clock[0])
    refused, tries, news = followed.Refused(first_s=10, longest_s=60), [], 0
    for second in range(0, 400, 5):  # a look-up every five seconds
        clock[0] = float(second)
        if refused.may_try("broken"):
            tries.append(second)
            news += refused.again("broken")
    assert tries == [0, 10, 30, 70, 130, 190, 250, 310, 370], "10, 20, 40, then 60 s at most"
    assert news == 1, "reported once"
    assert refused.may_try("another"), "another version does not wait"
    refused.again("another")
    refused.forget()
    assert refused.may_try("another")


def test_repaired_version_is_served(tmp_path: Path) -> None:
    stopped, output, server = threading.Event(), io.StringIO(), Server()
    registry = Registry(stopped, *["broken"] * 12)
    first = registry.load

    def load(version: str) -> tuple[Any, dict[str, Any]]:
        return (version, {}) if len(registry.loaded) >= 2 else first(version)

    registry.load = load  # type: ignore[method-assign]
    settings = ServeConfig(poll_seconds=0.001, max_retry_s=0.001)
    follow(server, registry, settings, Progress(output), stopped)
    assert registry.loaded == ["broken", "broken"] and server.offered == ["broken"]
    assert output.getvalue().count("cannot be loaded") == 1
    assert "broken now answers on 2 replica(s)" in output.getvalue()


def test_replicas_without_free_cpus_are_refused(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.available_resources", lambda: {"CPU": 2.0})
    serve._check_cpus(config.serve)
    config.serve.replicas = 3
    with pytest.raises(ConfigError, match=r"need 3 CPUs, but the cluster has 2 free"):
        serve._check_cpus(config.serve)
    assert serve._with_cpus(config).ray.num_cpus >= 3
