"""Stage ``serve``: answer requests over HTTP with a registered model on Ray Serve, until SIGINT or
SIGTERM.

Every ``serve.poll_seconds`` this process looks up the model's name in the registry. It loads and
checks a new version while the old one answers, then hands it to the replicas, which switch without
losing a request. If a version cannot be loaded, that is reported once, the old version keeps
answering, and further attempts follow after growing pauses.

At the end, new requests are refused (503), admitted requests are answered, then the socket is
closed.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from pipelines.following.sides import FollowedSide, check_log, note_log, sides_of, stock_of
from pipelines.plumbing.extras import require_extra
from pipelines.plumbing.run_folder import RunFolder
from pipelines.plumbing.session import quiet, ray_session
from recsys.config import Config, ServeConfig
from recsys.errors import ConfigError
from recsys.registry.mlflow_client import tracking_uri
from recsys.serving.access import Tokens, tokens_of
from recsys.serving.experiment_split import Side
from recsys.serving.stock import Stock


def serve(config: Config, folder: RunFolder) -> None:
    """Serve until interrupted, which is a normal end.

    Raises
    ------
    ConfigError
        The port is in use, the token is missing, or the replicas need more CPUs than there are.
    ArtifactError
        There is no such model, or its files are damaged.
    """
    quiet()
    require_extra("serve", "Ray Serve", "serve", ("ray.serve",))
    settings = config.serve
    say = folder.progress
    with say.stage("serve"), _until_signalled() as stopped:
        # first: a missing token must fail before anything listens
        tokens, stock = tokens_of(settings), stock_of(settings)
        # before the model is loaded, which may take minutes
        port = _port(settings)
        if not is_loopback(settings.host):
            everybody = "everyone who can reach it, because serve.token_env is empty"
            open_to = "everyone with the token" if tokens.callers_sha256 else everybody
            say(
                f"warning: serve.host {settings.host} is not a loopback address: the model answers"
                f" {open_to}, without encryption"
            )
        check_log(settings)
        sides = sides_of(config)
        first: dict[Side, tuple[Any, dict[str, Any]]] = {}

        def load() -> None:
            first.update({one.side: one.load(say) for one in sides})
            # here, because most of the start of Ray is waiting
            import_module("recsys.serving.deployment")

        whole = _with_cpus(config)
        with ray_session(whole.train, whole.ray, load):
            if len(sides) > 1:
                say(_split_words(sides, settings))
            signal.signal(signal.SIGTERM, _interrupt)  # Ray replaced our handler
            if settings.log:
                note_log(
                    settings.log,
                    [one.followed.uri for one in sides],
                    tracking_uri(config.tracking, config.run.dir),
                    say,
                )
            _run(config.serve, folder, sides, first, port, (tokens, stock), stopped)
    say("stopped")


def _run(
    serve: ServeConfig,
    folder: RunFolder,
    sides: list[FollowedSide],
    first: dict[Side, tuple[Any, dict[str, Any]]],
    port: int,
    kept: tuple[Tokens, Stock],
    stopped: threading.Event,
) -> None:
    """Start, follow, stop."""
    from recsys.serving.deployment import Server

    say = folder.progress
    _check_cpus(serve)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    server = Server(serve, port, *kept)
    try:
        server.start(first)
        # the object store has the bundles now, and a second copy would stay in memory
        first.clear()
        address = f"http://{f'[{serve.host}]' if ':' in serve.host else serve.host}:{port}"
        say(
            f"{serve.replicas} replica(s) answer at {address}/recommend; {address}/docs describes"
            " every call; stop with Ctrl-C or SIGTERM"
        )
        _follow(server, sides, serve, say, stopped)
    except KeyboardInterrupt:
        pass
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # a second signal must not interrupt the shutdown
        left = server.stop()
        if left:
            say(f"gave up {left} request(s) that took longer than serve.timeout_s")


def _follow(
    server: Any,
    sides: list[FollowedSide],
    settings: ServeConfig,
    say: Any,
    stopped: threading.Event,
) -> None:
    """Hand over new versions of each side until the signal, and replace processes that end."""
    while not stopped.wait(settings.poll_seconds):
        for line in server.keep():
            say(line)
        for side in sides:
            side.follow(server, say, stopped)


def _split_words(sides: list[FollowedSide], settings: ServeConfig) -> str:
    """Which version answers which share of the users."""
    first, second = (side.version for side in sides)
    same = "; warning: both are the same version" if first == second else ""
    if settings.ab.interleave:
        both = f"{settings.ab.share:.3g} of the users get lists merged from {first} and {second}"
        return f"{both}, the others those of {first}{same}"
    return f"{second} answers {settings.ab.share:.3g} of the users, {first} the others{same}"


@contextmanager
def _until_signalled() -> Iterator[threading.Event]:
    """Run the block until SIGINT or SIGTERM, which end it without an error."""
    event = threading.Event()
    before = {
        number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield event
    except KeyboardInterrupt:
        pass
    finally:
        event.set()
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def is_loopback(host: str) -> bool:
    """Whether a host name or address is of this machine only.

    >>> is_loopback("localhost"), is_loopback("127.0.0.9"), is_loopback("::1")
    (True, True, True)
    >>> is_loopback("0.0.0.0")
    False
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _port(settings: ServeConfig) -> int:
    """The port of the settings, checked to be free, or a free one for 0.

    Raises
    ------
    ConfigError
        The port is in use, or the host is not an address of this machine.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as found:
        # as the listener does; else connections of the last server would make the port look taken
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((settings.host, settings.port))
        except OSError as error:
            raise ConfigError(
                f"serve.host {settings.host}, serve.port {settings.port}: cannot be used"
                f" ({error.strerror}); choose another port, or 0 for a free one"
            ) from None
        return int(found.getsockname()[1])


def _with_cpus(config: Config) -> Config:
    """Give a local Ray as many CPUs as the replicas need; with fewer cores the replicas share
    them.
    """
    needed = int(config.serve.replicas * config.serve.cpus + 0.999)
    ray_config = config.ray.model_copy(
        update={"num_cpus": max(config.ray.num_cpus or os.cpu_count() or 1, needed)}
    )
    return config.model_copy(
        # a session checks the CPUs for the workers of a training, and here are none
        update={"ray": ray_config, "train": config.train.model_copy(update={"num_workers": 1})}
    )


def _check_cpus(settings: ServeConfig) -> None:
    """Check that the cluster has CPUs for all replicas; otherwise they would never start.

    Raises
    ------
    ConfigError
        It has too few.
    """
    import ray

    free = float(ray.available_resources().get("CPU", 0.0))  # type: ignore[no-untyped-call]
    needed = settings.replicas * settings.cpus
    if needed > free:
        raise ConfigError(
            f"serve.replicas {settings.replicas} with serve.cpus {settings.cpus:g} need {needed:g}"
            f" CPUs, but the cluster has {free:g} free; lower one of them, or add nodes"
        )


if __name__ == "__main__":
    from pipelines.cli import main

    sys.exit(main(["serve", *sys.argv[1:]]))
