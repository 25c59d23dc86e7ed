"""How this package opens MLflow: the URI of the store, a quiet client, timeouts, and its errors.

Why one place: a SQLite store must be created, upgraded and checked before MLflow opens it, and an
MLflow server that does not answer should be reported within seconds.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from recsys.config import TrackingConfig, redact
from recsys.config.redaction import MARK
from recsys.errors import ConfigError, MultigrainError, first_line
from recsys.registry.store import ready
from recsys.storage.uris import is_remote

_QUIET: Final = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
_LOCKED: Final = re.compile(r"database( table)? is locked")
_STORES: Final = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks")


def tracking_uri(tracking: TrackingConfig, run_dir: str) -> str:
    """The absolute tracking URI; by default a SQLite file next to the run folder.

    Raises
    ------
    ConfigError
        The URI is a plain folder, which MLflow no longer supports, or of an unknown kind, or names
        no host, or its credentials were redacted.
    """
    uri = tracking.uri
    if MARK in uri:
        raise ConfigError(
            f"tracking.uri: {uri} lacks its user and password or another secret, because secrets"
            " are never stored; give the complete URI with --tracking.uri, or as an environment"
            " variable $VARIABLE"
        )
    if not uri:
        if is_remote(run_dir):
            raise ConfigError(
                f"run.dir: {run_dir} is remote, where MLflow cannot use a SQLite store; set"
                " tracking.uri, or tracking.enabled false"
            )
        uri = f"sqlite:///{Path(run_dir).absolute().parent / 'mlflow.db'}"
    scheme = uri.split(":", 1)[0].split("+", 1)[0]
    if scheme not in _STORES or (":" not in uri and scheme != "databricks"):
        raise ConfigError(
            f"tracking.uri: got {redact(uri)!r}, expected sqlite:///FILE.db, http://HOST:PORT or a"
            f" database URI ({', '.join(_STORES)}); MLflow no longer stores runs in plain folders"
        )
    if scheme in ("http", "https") and not _has_host(uri):
        raise ConfigError(
            f"tracking.uri: got {redact(uri)!r}, expected {scheme}://HOST:PORT with the name or the"
            " address of the server and a number as its port"
        )
    path = sqlite_path(uri)
    return f"sqlite:///{path}" if path is not None else uri


def _has_host(uri: str) -> bool:
    """Whether the URI of a server names a host, and a valid port if it has one."""
    try:
        parts = urlsplit(uri)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port is no number, or an IPv6 address is incomplete
        return False


def sqlite_path(uri: str) -> Path | None:
    """The absolute path of a SQLite URI's file; None for other stores."""
    if not uri.startswith("sqlite:///"):
        return None
    return Path(uri.removeprefix("sqlite:///")).expanduser().absolute()


def has_store(uri: str) -> bool:
    """Whether there is a store to open; a SQLite file that does not exist yet would be created."""
    path = sqlite_path(uri)
    return path is None or path.exists()


def client(uri: str, writes: bool = False) -> Any:
    """A quiet ``MlflowClient`` for tracking and registry at ``uri``; all code opens a store with
    it.

    Why: a SQLite store must be created, upgraded and checked first, see
    :mod:`recsys.registry.store`.

    Raises
    ------
    ConfigError
        As in :func:`recsys.registry.store.ready`.
    ArtifactError
        As in :func:`recsys.registry.store.ready`.
    Unavailable
        As in :func:`recsys.registry.store.ready`.
    """
    for name, value in _QUIET.items():
        # before the import below, as MLflow reads some of them when it is imported
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for logger in ("mlflow", "alembic"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    # it logs a traceback of errors that it raises
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    # MLflow honours the variable everywhere else, so both must mean the same store
    registry_uri = os.environ.get("MLFLOW_REGISTRY_URI") or uri
    for path in {sqlite_path(uri): None, sqlite_path(registry_uri): None}:
        if path is not None:
            ready(path, writes)
    return MlflowClient(tracking_uri=uri, registry_uri=registry_uri)


def outage(error: BaseException) -> str | None:
    """The message of an MLflow server or SQLite store that stopped answering; None for any other
    error.
    """
    if _is_locked(error):
        return (
            "MLflow's SQLite store is locked by another process, which did not release it in time;"
            " wait for that process, or stop it, and continue with the same command and --resume"
        )
    if _package(error) != "mlflow" or "API request to" not in str(error):
        return None
    return (
        f"the tracking server no longer answers ({redact(first_line(error))[:300]}); start it, and"
        " continue with the same command and --resume"
    )


def _is_locked(error: BaseException) -> bool:
    """Whether another process holds the lock of a SQLite store."""
    known = _package(error) in ("mlflow", "sqlalchemy", "sqlite3")
    return known and _LOCKED.search(str(error)) is not None


def _package(error: BaseException) -> str:
    return type(error).__module__.split(".")[0]


def is_absence(error: Any) -> bool:
    """Whether an ``MlflowException`` says that a model, version or alias does not exist; MLflow
    reports that in two ways. Any other one is an outage.
    """
    return error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


@contextmanager
def first_contact(uri: str, cure: str = "start the server, or fix the URI") -> Iterator[None]:
    """Ask a store for the first time within a block: a wrong URI, and a server that does not
    answer, are reported within seconds.

    Why: the URI may be a typing mistake, and MLflow would wait for minutes without a word.

    Raises
    ------
    ConfigError
        The store cannot be opened or does not answer.
    """  # noqa: DOC501
    try:
        with short_timeouts(retries=2):
            yield
    except MultigrainError:
        raise
    except Exception as error:  # drivers and clients raise many types
        if _is_locked(error):  # the URI is right
            raise
        if isinstance(error, ModuleNotFoundError):
            cure = f"install this driver, or {cure}"
        raise ConfigError(
            f"tracking.uri {redact(uri)} cannot be used: {redact(first_line(error))}; {cure}"
        ) from error


@contextmanager
def short_timeouts(retries: int = 0) -> Iterator[None]:
    """Give up on an MLflow server after seconds within a block; by default MLflow retries for
    minutes.
    """
    with _environment(
        {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(retries), "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
    ):
        yield


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables within a block, unless the user has set them."""
    # a user on a slow network may have set longer ones
    new = {key: value for key, value in values.items() if key not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for key in new:
            os.environ.pop(key, None)


@contextmanager
def active_uris(uri: str) -> Iterator[None]:
    """Set MLflow's process-wide URIs within a block: its model functions accept no other way."""
    import mlflow

    before: Any = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None  # type: ignore[no-untyped-call]
    registry = os.environ.get("MLFLOW_REGISTRY_URI")
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(registry or uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)
        mlflow.set_registry_uri(registry or "")
        # MLflow writes the URI into the environment, where child processes would inherit it
        if registry is None:
            os.environ.pop("MLFLOW_REGISTRY_URI", None)


def name_is(name: str) -> str:
    """The filter of a search for a registered model, or for its versions, by name."""
    # MLflow's filter has no escape for a quote
    quote = '"' if "'" in name else "'"
    return f"name = {quote}{name}{quote}"


def all_pages(search: Any, **options: Any) -> Iterator[Any]:
    """The results of all pages of a search of MLflow's client."""
    token: str | None = None
    while True:
        page = search(**options, **({"page_token": token} if token else {}))
        yield from page
        token = page.token
        if not token:
            return
