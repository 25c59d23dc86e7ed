"""Stage ``serve``: the registered model over HTTP by Ray Serve, until SIGINT or SIGTERM.

The registry is asked every ``serve.poll_seconds`` what the name means; another version is read and checked here, beside
the one that answers, and handed to the replicas, which change over without losing a call. A version that cannot be
loaded is reported once, the one before goes on, and it is tried again after pauses that grow.

At the end new calls are refused (503), those that were admitted are answered, and then the socket is closed.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from pipelines.cli import main, user_message
from pipelines.folder import RunFolder
from pipelines.session import quiet, ray_session
from recsys.config import Config, ServeConfig
from recsys.errors import ConfigError, UserError
from recsys.registry.copies import Copy, remember
from recsys.registry.tracking import tracking_uri
from recsys.serving.access import Tokens, token_sha256
from recsys.serving.answer_log import check_folder
from recsys.serving.followed import Followed
from recsys.serving.split import Side
from recsys.serving.stock import Stock, read_stock
from recsys.storage.uris import is_remote

_LEAST_TOKEN: Final = 16  # characters; shorter ones are guessed


def serve(config: Config, folder: RunFolder) -> None:
    """Serve until interrupted; a clean end is no error.

    Raises:
        ConfigError: the port is taken, the token is missing, or the replicas need more CPUs than there are.
        ArtifactError: there is no such model, or its files are damaged.
    """
    quiet()
    _check_installed()
    settings = config.serve
    say = folder.progress
    uri = settings.model or f"models:/{config.registry.name}@champion"
    with say.stage("serve"), _until_signalled() as stopped:
        token, stock_token = _token(settings.token_env), _token(settings.stock_token_env, "serve.stock_token_env")
        stock = _stock(settings)
        port = _port(settings)
        if not is_loopback(settings.host):
            open_to = "who knows the token" if token else "everybody who reaches it, as serve.token_env is empty"
            say(f"warning: serve.host {settings.host} is no loopback address: the model answers {open_to}, unencrypted")
        uris: dict[Side, str] = {"a": uri, **({"b": settings.ab.model} if settings.ab.model else {})}
        _check_folder(settings)
        sides = [_Side.of(side, named, config) for side, named in uris.items()]
        first = {one.side: one.load(say) for one in sides}
        if len(sides) > 1:
            say(_split_words(sides, settings))
        with ray_session(_with_cpus(config)):
            signal.signal(signal.SIGTERM, _interrupt)  # Ray has put its own
            tokens = Tokens(*(token_sha256(one) if one else "" for one in (token, stock_token)))
            if settings.log:
                _note_log(settings.log, uris.values(), tracking_uri(config), say)
            _run(config, folder, sides, first, port, (tokens, stock), stopped)
    say("stopped")


def _note_log(log: str, models: Iterable[str], tracking: str, say: Any) -> None:
    """Note at each model that its answers are logged on every machine of the cluster, for `recsys forget`."""
    import ray

    hosts = {str(node["NodeManagerHostname"]) for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]
    for uri in models:
        if not remember([Copy.here("answers", log, host) for host in sorted(hosts)], uri, tracking):
            say(f"serve.log cannot be noted at {uri}: name it when users are forgotten, recsys forget … --also {log}")


def _run(
    config: Config,
    folder: RunFolder,
    sides: list[_Side],
    first: dict[Side, tuple[Any, dict[str, Any]]],
    port: int,
    kept: tuple[Tokens, Stock],
    stopped: threading.Event,
) -> None:
    """Start, follow, stop."""
    from recsys.serving.deployment import Server

    settings, say = config.serve, folder.progress
    _check_cpus(settings)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    server = Server(settings, port, *kept)
    try:
        server.start(first)
        first.clear()
        address = f"http://{f'[{settings.host}]' if ':' in settings.host else settings.host}:{port}"
        say(f"{settings.replicas} replica(s) answer at {address}/recommend; SIGINT or SIGTERM ends them")
        _follow(server, sides, settings, say, stopped)
    except KeyboardInterrupt:
        pass
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # one is enough: the end itself is not to be interrupted
        left = server.stop()
        if left:
            say(f"{left} call(s) took longer than serve.timeout_s and were given up")


def _follow(server: Any, sides: list[_Side], settings: ServeConfig, say: Any, stopped: threading.Event) -> None:
    """Hand over every other version of each side, until the signal; see to it that the front is there."""
    while not stopped.wait(settings.poll_seconds):
        if server.keep():
            say("the process that takes calls had ended; another one has taken its place")
        for side in sides:
            side.follow(server, say, stopped)


class _Side:
    """A model that answers, what its name means, and what was tried of it."""

    def __init__(self, side: Side, followed: Followed, version: str, settings: ServeConfig) -> None:
        self.side, self.followed, self.version = side, followed, version
        self._refused, self._is_silent = _Refused(settings.poll_seconds, settings.max_retry_s), False

    @classmethod
    def of(cls, side: Side, uri: str, config: Config) -> _Side:
        """What a name means now."""
        followed = Followed(uri, tracking_uri(config) if uri.startswith("models:") else "")
        return cls(side, followed, followed.version(), config.serve)

    def load(self, say: Any) -> tuple[Any, dict[str, Any]]:
        """The model of the version."""
        bundle, about = self.followed.load(self.version)
        users, items = len(bundle.user_ids), bundle.num_items
        say(f"{self.version}: {users:,} users, {items:,} items, made {bundle.info.created}")
        return bundle, about

    def follow(self, server: Any, say: Any, stopped: threading.Event) -> None:
        """Look the name up, and hand over another version."""
        try:
            found = self.followed.version()
            self._is_silent = False
        except Exception as error:  # a registry that is away for a while does not end the service
            if not self._is_silent:
                say(f"{self.followed.uri} cannot be looked up ({_why(error)}); {self.version} goes on")
            self._is_silent = True
            return
        if found == self.version or not self._refused.may_try(found):
            return
        try:
            bundle, about = self.followed.load(found)
            serial = server.offer(bundle, about, self.side)
            del bundle
        except Exception as error:
            if self._refused.again(found):
                say(
                    f"{found} cannot be loaded ({_why(error)}); {self.version} goes on; it is tried again from time to "
                    "time"
                )
            return
        errors = _taken(server, serial, found, say, stopped)
        if not errors:
            self.version = found
            self._refused.forget()
        elif self._refused.again(found):
            say(f"{found}: {errors}; it is offered again from time to time")


def _split_words(sides: list[_Side], settings: ServeConfig) -> str:
    """Who answers whom."""
    first, second = (side.version for side in sides)
    same = "; warning: both are the same version" if first == second else ""
    return f"{second} answers {settings.ab.share:.3g} of the users, {first} the others{same}"


def _check_folder(settings: ServeConfig) -> None:
    """The folder of the log, before anything starts.

    Raises:
        ConfigError: it is remote, or cannot be written to.
    """
    if is_remote(settings.log):
        raise ConfigError(f"serve.log: {settings.log} must be a local folder; copy its files where you keep them")
    if settings.log:
        check_folder(settings.log)
    elif settings.explore.share:
        raise ConfigError("serve.explore.share without serve.log: nothing would be learned from it; name a folder")


class _Refused:
    """A version that could not be loaded, and when it may be tried again: after pauses that double up to a bound."""

    def __init__(self, first_s: float, longest_s: float) -> None:
        self._first_s, self._longest_s = first_s, max(first_s, longest_s)
        self.forget()

    def forget(self) -> None:
        """All is well."""
        self._version, self._pause_s, self._next = "", self._first_s, 0.0

    def may_try(self, version: str) -> bool:
        """Whether it is another version, or the time for another try has come."""
        return version != self._version or time.monotonic() >= self._next

    def again(self, version: str) -> bool:
        """It could not be loaded (again); whether that is news."""
        is_news = version != self._version
        self._pause_s = self._first_s if is_news else min(2 * self._pause_s, self._longest_s)
        self._version, self._next = version, time.monotonic() + self._pause_s
        return is_news


def _taken(server: Any, serial: int, version: str, say: Any, stopped: threading.Event) -> str:
    """Wait until every replica answers by the version; why some cannot, or nothing."""
    while not stopped.is_set():
        num_replicas, taken, errors = server.state(serial)
        if errors:
            return f"{taken} of {num_replicas} replicas answer by it, others could not: {'; '.join(errors)}"
        if num_replicas and taken == num_replicas:
            say(f"{version} answers now on {taken} replica(s)")
            return ""
        time.sleep(0.2)
    return ""


@contextmanager
def _until_signalled() -> Iterator[threading.Event]:
    """SIGINT and SIGTERM as KeyboardInterrupt in the block, which ends it without an error."""
    event = threading.Event()
    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
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


def _check_installed() -> None:
    """Ray Serve is an extra, and is asked for before the model is read."""
    try:
        import ray.serve  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"recsys serve needs Ray Serve, and {error.name or 'a part'} is missing: pip install 'multigrain[serve]'"
        ) from None


def is_loopback(host: str) -> bool:
    """
    >>> is_loopback("localhost"), is_loopback("127.0.0.9"), is_loopback("::1"), is_loopback("0.0.0.0")
    (True, True, True, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _port(settings: ServeConfig) -> int:
    """The port, found free a moment ago.

    Raises:
        ConfigError: it is taken, or the host is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((settings.host, settings.port))
        except OSError as error:
            raise ConfigError(
                f"serve.host {settings.host}, serve.port {settings.port}: cannot be used ({error.strerror}); "
                "choose another port, or 0 for a free one"
            ) from None
        return int(found.getsockname()[1])


def _token(variable: str, key: str = "serve.token_env") -> str:
    """The token in an environment variable, which a key of the configuration names; empty where it names none."""
    if not variable:
        return ""
    token = os.environ.get(variable, "")
    if len(token) < _LEAST_TOKEN:
        raise ConfigError(
            f"{key}: the environment variable {variable} has {len(token)} characters, expected a token of "
            f"{_LEAST_TOKEN} or more"
        )
    return token


def _stock(settings: ServeConfig) -> Stock:
    """What was out of stock when the server ended."""
    if is_remote(settings.stock_file):
        raise ConfigError(f"serve.stock_file: {settings.stock_file} must be a local file")
    if settings.stock_file and not settings.stock_token_env:
        raise ConfigError("serve.stock_file without serve.stock_token_env: nobody could change the stock; name both")
    return read_stock(settings.stock_file, "serve.stock_file")


def _with_cpus(config: Config) -> Config:
    """A local Ray has as many CPUs as the replicas ask for: on few cores they share them."""
    needed = int(config.serve.replicas * config.serve.cpus + 0.999)
    ray_config = config.ray.model_copy(update={"num_cpus": max(config.ray.num_cpus or os.cpu_count() or 1, needed)})
    return config.model_copy(update={"ray": ray_config, "train": config.train.model_copy(update={"num_workers": 1})})


def _check_cpus(settings: ServeConfig) -> None:
    """Replicas that never start would be waited for in vain."""
    import ray

    free = float(ray.available_resources().get("CPU", 0.0))  # type: ignore[no-untyped-call]
    needed = settings.replicas * settings.cpus
    if needed > free:
        raise ConfigError(
            f"serve.replicas {settings.replicas} of serve.cpus {settings.cpus:g} need {needed:g} CPUs, the cluster has "
            f"{free:g} free; ask for less, or add nodes"
        )


def _why(error: Exception) -> str:
    """One line."""
    message = str(error) if isinstance(error, UserError) else user_message(error) or f"{type(error).__name__}: {error}"
    return message.splitlines()[0] if message else type(error).__name__


if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))
