"""``recsys ui``: a local dashboard in the browser, until SIGINT or SIGTERM.

It shows run folders and the runs and registered models of MLflow, compares two runs as ``recsys
compare`` does, and queries models as the server does. It is read-only: no page changes a run, a
model or an alias.
"""

from __future__ import annotations

import io
import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from pipelines.cli import config_of
from pipelines.command_line.dry_run import plan
from pipelines.plumbing.arguments import UsageError, parse
from pipelines.plumbing.extras import require_extra
from pipelines.plumbing.session import quiet
from pipelines.stages import VERBS
from recsys.config import RunConfig, TrackingConfig
from recsys.config.ui import UiConfig
from recsys.errors import ConfigError
from recsys.registry.mlflow_client import tracking_uri
from recsys.storage.uris import is_remote

_SHORT: Final = {"host": "ui.host", "port": "ui.port"}


def command(words: Sequence[str]) -> int:
    """Run ``ui`` with the words after it: folders of runs, and options.

    Raises
    ------
    ConfigError
        The port is in use, the token is missing, or a package is not installed.
    UsageError
        Folders are given as words and in ``--ui.runs``.
    """
    options = [index for index, word in enumerate(words) if word.startswith("-")]
    folders = list(words[: options[0] if options else len(words)])
    arguments = parse(words[len(folders) :], _SHORT)
    config = config_of(arguments.config, arguments.overrides)
    if folders and any(name == "ui.runs" for name, _ in arguments.overrides):
        raise UsageError(
            f"got folders and --ui.runs, expected one of them; usage: {VERBS['ui'].usage}"
        )
    config.ui.runs = folders or _runs_of(config.run, config.ui, arguments.config is not None)
    config.tracking.uri = _tracking_uri(config.tracking, config.run.dir, config.ui.runs)
    if arguments.dry_run:
        print(plan("ui", config))
        return 0
    quiet()
    require_extra("ui", "the extra ui", "ui", ("fastapi", "markdown_it", "uvicorn"))
    show(config.ui, config.tracking)
    return 0


def _runs_of(run: RunConfig, ui: UiConfig, is_of_file: bool) -> list[str]:
    """The folders of runs: those of the configuration, or next to the run folder of a given
    file.
    """
    if "runs" in ui.model_fields_set or not is_of_file or is_remote(run.dir):
        return ui.runs
    return [str(Path(run.dir).parent)]


def _tracking_uri(tracking: TrackingConfig, run_dir: str, runs: Sequence[str]) -> str:
    """MLflow's store: ``tracking.uri``, the environment, or the SQLite file in the first folder of
    runs.
    """
    named = tracking.uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    if named:
        return tracking_uri(tracking.model_copy(update={"uri": named}), run_dir)
    first = Path(next((run for run in runs if not is_remote(run)), "runs"))
    beside = first.absolute().parent if (first / "config.yaml").is_file() else first.absolute()
    return f"sqlite:///{beside / 'mlflow.db'}"


def show(settings: UiConfig, tracking: TrackingConfig) -> None:
    """Serve the pages until a signal, which is a normal end.

    Raises
    ------
    ConfigError
        The port is in use, a folder is missing, or the host needs a token.
    """
    import uvicorn

    app = application_of(settings, tracking, _password(settings))
    with _listening(settings) as listener:
        port = int(listener.getsockname()[1])
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_level="error",
                access_log=False,  # URLs contain user ids
                server_header=False,
                lifespan="off",
                timeout_graceful_shutdown=2,
            )
        )
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        print(f"the dashboard is at http://{host}:{port}; stop it with Ctrl-C", flush=True)
        _end_quietly(server)
        server.run(sockets=[listener])


def application_of(settings: UiConfig, tracking: TrackingConfig, password: str = "") -> Any:
    """The dashboard of a configuration, as an ASGI application.

    Parameters
    ----------
    settings : UiConfig
        The section ``ui``: runs, model, and the names under which the server is reached.
    tracking : TrackingConfig
        The section ``tracking``; its ``uri`` names the MLflow store.
    password : str
        The password of the dashboard; empty: none is asked for.
    """
    from recsys.serving.access import token_sha256
    from recsys.ui.app import application
    from recsys.ui.gate import Gate
    from recsys.ui.loaded_models import LoadedModels
    from recsys.ui.runs import Runs

    uri = tracking.uri
    _check_folders(settings)
    runs, gate = Runs(settings.runs, uri), Gate(uri)
    runs.all()  # imports MLflow, which takes seconds
    names = [settings.host, *settings.names]
    loaded = LoadedModels(runs, gate, settings.model)
    return application(
        runs, gate, loaded, _compared, names, token_sha256(password) if password else ""
    )


def _check_folders(settings: UiConfig) -> None:
    """Check that the given folders exist; the default may be missing."""
    for run in settings.runs:
        if is_remote(run):
            raise ConfigError(
                f"ui.runs: {run} is remote; give local folders. Runs in other places are shown"
                " from MLflow (tracking.uri), and ui.model may be a remote bundle"
            )
        if not Path(run).is_dir() and settings.runs != UiConfig().runs:
            raise ConfigError(
                f"ui.runs: {run} is not a folder; give a folder that contains run folders, such"
                " as runs"
            )


def _compared(first: str, second: str) -> Mapping[str, Any]:
    """The comparison that ``recsys compare FIRST SECOND`` would write."""
    from pipelines.compare import compared
    from pipelines.comparison.finished_runs import check_same, opened_run

    with ExitStack() as stack:
        sides = [stack.enter_context(opened_run(run, io.StringIO())) for run in (first, second)]
        check_same(*sides)
        config = config_of(None, [])
        return compared(config.evaluate, config.seed, *sides)


@contextmanager
def _listening(settings: UiConfig) -> Iterator[socket.socket]:
    """The bound socket of the dashboard.

    Yields
    ------
    socket
        Bound and listening; closed when the block ends.

    Raises
    ------
    ConfigError
        The port is in use, or the host is not an address of this machine.
    """
    with socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, settings.port))
        except OSError as error:
            raise ConfigError(
                f"ui.host {settings.host}, ui.port {settings.port}: cannot be used"
                f" ({error.strerror or error}); choose another port with --port, or 0 for a"
                " free one"
            ) from None
        listener.listen()
        yield listener


def _end_quietly(server: Any) -> None:
    """Let SIGINT and SIGTERM only end the server; uvicorn would raise them again afterwards."""

    @contextmanager
    def caught() -> Iterator[None]:
        before = {
            number: signal.signal(number, server.handle_exit)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    # uvicorn has no option to end without raising the signal again
    server.capture_signals = caught


def _password(settings: UiConfig) -> str:
    """The token; empty if none is required.

    Raises
    ------
    ConfigError
        The token is too short, or missing on a host that others can reach.
    """
    from pipelines.serve import is_loopback
    from recsys.serving.access import read_token

    if not settings.token_env:
        # only programs on this machine can connect
        if is_loopback(settings.host):
            return ""
        raise ConfigError(
            f"ui.host: {settings.host} is not a loopback address, and the pages show histories of"
            " users: set ui.token_env to the name of an environment variable with a token of 16"
            " characters or more, or use 127.0.0.1 and a tunnel (ssh -L 8080:localhost:8080 HOST)"
        )
    return read_token(settings.token_env, "ui.token_env")


if __name__ == "__main__":
    from pipelines.cli import main

    sys.exit(main(["ui", *sys.argv[1:]]))
