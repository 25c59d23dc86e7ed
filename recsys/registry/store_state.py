"""The state of MLflow's SQLite store: whether it exists, is complete, and of which schema.

Each state in which MLflow cannot open the store gives one message with its fix.
"""

from __future__ import annotations

import importlib
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from recsys.errors import ArtifactError, ConfigError, MultigrainError, Unavailable

WAIT_S: float = 30.0  # wait for another process that holds a lock on the store
# an incomplete store that changed within these seconds may still be under creation
_SETTLE_S: Final = 10.0
POLL_S: Final = 0.1
_OF_DISK: Final = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)


@dataclass(frozen=True)
class State:
    """The state of a store: ``absent``, ``empty``, ``current``, ``older``, ``newer``, ``partial``
    or ``foreign``.
    """

    kind: str
    revision: str = ""  # of MLflow's schema
    detail: str = ""


def check(path: Path) -> None:
    """Check whether MLflow can open the store, without creating or upgrading it.

    Raises
    ------
    ConfigError
        The file belongs to another program.
    ArtifactError
        The store is incomplete, damaged, or of a newer MLflow.
    """  # noqa: DOC501
    state = settled(path)
    if state.kind in ("partial", "foreign", "newer"):
        raise store_error(path, state)


def settled(path: Path) -> State:
    """The :class:`State` of a file, after waiting until no process changes its tables any more."""
    last = time.monotonic() + _SETTLE_S
    while True:
        state, age = look(path), time.time() - _changed(path)
        # MLflow commits each migration alone, so a store under creation looks partial
        if state.kind != "partial" or age > _SETTLE_S:
            return state
        # a clock that was set back after the last change
        if age < 0 and time.monotonic() > last:
            return state
        time.sleep(POLL_S)


def look(path: Path) -> State:
    """The :class:`State` of a file now.

    Raises
    ------
    ConfigError
        It cannot be opened.
    ArtifactError
        It is damaged.
    Unavailable
        It is locked for longer than :data:`WAIT_S`.
    """
    if not path.exists():
        return State("absent")
    # with a journal, another process is in the middle of its first transaction
    if path.stat().st_size == 0 and not path.with_name(f"{path.name}-journal").exists():
        return State("empty")
    with sqlite_errors(path), closing(connect(path)) as connection:
        tables = {
            name
            for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        }
        rows = (
            connection.execute("SELECT version_num FROM alembic_version")
            if "alembic_version" in tables
            else ()
        )
        revisions = [str(revision) for (revision,) in rows]
    # these two exist before MLflow's own tables
    named = {name for name in tables if not name.startswith(("alembic_", "sqlite_"))}
    if not named:
        return State("empty")
    if not revisions:
        kind = "partial" if "experiments" in named else "foreign"
        return State(kind, detail="MLflow's schema version is missing")
    revision, missing = revisions[0], sorted(_tables() - named)
    if revision == newest_revision():
        detail = f"{len(missing)} of MLflow's tables are missing: {', '.join(missing[:3])}"
        return State("partial", revision, detail) if missing else State("current", revision)
    return State("older" if revision in known_revisions() else "newer", revision)


def check_writable(path: Path) -> None:
    """Take and release the write lock of a store, which fails where it is read-only or locked."""
    with sqlite_errors(path), closing(connect(path)) as connection:
        connection.execute("BEGIN IMMEDIATE")  # takes the write lock
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        # opens the journal, which needs a writable folder
        connection.execute(f"PRAGMA user_version = {int(version)}")
        connection.rollback()


def connect(path: Path) -> sqlite3.Connection:
    """Open an existing SQLite file in autocommit mode; wait :data:`WAIT_S` for its lock."""
    # ``rw``: without it SQLite would create an empty file under a mistyped path
    return sqlite3.connect(
        f"file:{quote(str(path))}?mode=rw", uri=True, timeout=WAIT_S, isolation_level=None
    )


@contextmanager
def sqlite_errors(path: Path) -> Iterator[None]:
    """Turn SQLite errors of a block into one message with the fix.

    Raises
    ------
    Unavailable
        Another process keeps the database locked.
    ConfigError
        The file is not writable, or not a SQLite database.
    ArtifactError
        SQLite reports anything else about the file.
    Error
        The disk is full or damaged; SQLite's own error says so.
    """  # noqa: DOC501
    try:
        yield
    except sqlite3.Error as error:
        # the lowest byte is the primary code; the rest says more about the cause
        code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise locked_error(path) from None
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            raise ConfigError(
                f"tracking.uri: MLflow's store {path} is not writable ({error}): the file or its"
                " folder is read-only for this user; correct the permissions, or choose another"
                " path with tracking.uri"
            ) from None
        if code == sqlite3.SQLITE_NOTADB:
            raise ConfigError(
                f"tracking.uri: {path} is not a SQLite database ({error}); give the path of"
                " MLflow's store, or of a file that does not exist yet"
            ) from None
        if code in _OF_DISK:
            raise
        raise store_error(path, State("partial", "", f"SQLite reports: {error}")) from None


def locked_error(path: Path) -> Unavailable:
    """The error for a store that another process keeps locked."""
    return Unavailable(
        f"MLflow's store {path} has been locked by another process for {WAIT_S:.0f} s; wait for"
        f" that process, or stop it (`lsof {path}` finds it), and try again"
    )


def store_error(path: Path, state: State) -> MultigrainError:
    """The error for a store that MLflow cannot open, with its content and the fix."""
    if state.kind == "foreign":
        return ConfigError(
            f"tracking.uri: {path} is a SQLite database, but not of MLflow; give the path of"
            " MLflow's store, or of a file that does not exist yet"
        )
    if state.kind == "newer":
        import mlflow

        return ArtifactError(
            f"MLflow's store {path} was created or upgraded by a newer MLflow than"
            f" {mlflow.__version__} (its schema is {state.revision}); install that newer MLflow"
            " here, or choose another store with tracking.uri"
        )
    if state.kind in ("absent", "empty"):
        return ArtifactError(
            f"MLflow's store {path} was deleted while it was being opened; try again"
        )
    paths = [path.with_name(path.name + end) for end in ("", "-journal", "-wal", "-shm")]
    files = " ".join(str(one) for one in paths if one.exists())
    away = path.parent / "broken-store"
    return ArtifactError(
        f"MLflow's store {path} is incomplete or damaged ({state.detail}); {_content(path)}."
        " Restore a backup of the file, or move it away so that the next command creates a new"
        f" one: mkdir {away} && mv {files} {away}/. Artefacts and run folders are not affected"
    )


def _content(path: Path) -> str:
    """The number of runs and model versions in a file, which would be lost with it."""
    counts = []
    with suppress(sqlite3.Error, MultigrainError), closing(connect(path)) as connection:
        for table, what in (("runs", "runs"), ("model_versions", "registered model versions")):
            try:
                counts.append(
                    f"{connection.execute(f'SELECT count(*) FROM {table}').fetchone()[0]} {what}"
                )
            except sqlite3.OperationalError as error:
                if "no such table" not in str(error):
                    return "its content cannot be read"
                counts.append(f"0 {what}")
    return f"it holds {' and '.join(counts)}" if counts else "its content cannot be read"


@lru_cache(maxsize=1)
def newest_revision() -> str:
    """The schema revision of the installed MLflow."""
    return str(mlflow_database()._get_latest_schema_revision())


@lru_cache(maxsize=1)
def known_revisions() -> frozenset[str]:
    """All schema revisions that the installed MLflow knows."""
    from alembic.script import ScriptDirectory

    script = ScriptDirectory.from_config(mlflow_database()._get_alembic_config(db_url=""))
    return frozenset(one.revision for one in script.walk_revisions())


def _tables() -> set[str]:
    """The tables of a complete store."""
    return set(mlflow_database().Base.metadata.tables)


def mlflow_database() -> Any:
    """MLflow's module for database stores; importing it registers all tables."""
    return importlib.import_module("mlflow.store.db.utils")


def _changed(path: Path) -> float:
    """The time of the last change of a file, in seconds since the epoch; 0 where it
    does not exist.
    """
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
