"""The SQLite store of MLflow: created atomically, and checked before it is opened.

Why: MLflow creates its tables with about fifty migrations, without a lock, in the final file. Two
commands that open a new store at the same time, or one that is killed, leave a file that no command
can open again. Here a new store is created next to its final path, under a file lock, and linked
into place when it is complete. A store of an older MLflow is upgraded in a copy, which is copied
back in one SQLite transaction. Every other state gives one message with its fix.
"""

from __future__ import annotations

import fcntl
import glob
import importlib
import logging
import os
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from recsys.errors import ArtifactError, ConfigError, MultigrainError, Unavailable, first_line

WAIT_S: float = 30.0  # wait for another process that holds a lock on the store
MAKING_S: float = 300.0  # wait for another process that creates the store
_SETTLE_S: Final = (
    10.0  # an incomplete store that changed within these seconds may still be under creation
)
_POLL_S: Final = 0.1
_TRIES: Final = 3
_FULL: Final = sqlite3.SQLITE_FULL

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class State:
    """The state of a store: ``absent``, ``empty``, ``current``, ``older``, ``newer``, ``partial``
    or ``foreign``.
    """

    kind: str
    revision: str = ""  # of MLflow's schema
    detail: str = ""


def ready(path: Path, writes: bool = False) -> None:
    """Make sure that MLflow can open the SQLite store at ``path``; create it where it does not
    exist.

    Parameters
    ----------
    path : Path
        The file.
    writes : bool
        Whether it must be writable too.

    Raises
    ------
    ConfigError
        The file cannot be created, belongs to another program, or is read-only.
    ArtifactError
        The store is incomplete, damaged, or of a newer MLflow.
    Unavailable
        Another process keeps it locked.
    """
    path = Path(os.path.realpath(path))
    if path.is_dir():
        raise ConfigError(
            f"tracking.uri: {path} is a folder, expected the path of a SQLite file, such as"
            f" {path}/mlflow.db"
        )
    if settled(path).kind in ("absent", "empty", "older"):
        with _creation_lock(path):
            # again, because another command may have created it in the meantime
            state = settled(path)
            if state.kind in ("absent", "empty"):
                _create(path)
            elif state.kind == "older":
                _upgrade(path, state.revision)
    state = settled(path)
    if state.kind != "current":
        raise _store_error(path, state)
    if writes:
        _check_writable(path)


def check(path: Path) -> None:
    """Check whether MLflow can open the store, without creating or upgrading it.

    Raises
    ------
    ConfigError
        The file belongs to another program.
    ArtifactError
        The store is incomplete, damaged, or of a newer MLflow.
    """
    state = settled(path)
    if state.kind in ("partial", "foreign", "newer"):
        raise _store_error(path, state)


def settled(path: Path) -> State:
    """The :class:`State` of a file, after waiting until no process changes its tables any more."""
    while True:
        state = look(path)
        if state.kind != "partial" or time.time() - _changed(path) > _SETTLE_S:
            return state
        time.sleep(_POLL_S)


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
    if path.stat().st_size == 0 and not path.with_name(f"{path.name}-journal").exists():
        return State("empty")
    with _reading(path), closing(_connect(path)) as connection:
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
    named = {name for name in tables if not name.startswith(("alembic_", "sqlite_"))}
    if not named:
        return State("empty")
    if not revisions:
        kind = "partial" if "experiments" in named else "foreign"
        return State(kind, detail="MLflow's schema version is missing")
    revision, missing = revisions[0], sorted(_tables() - named)
    if revision == _head():
        detail = f"{len(missing)} of MLflow's tables are missing: {', '.join(missing[:3])}"
        return State("partial", revision, detail) if missing else State("current", revision)
    return State("older" if revision in _revisions() else "newer", revision)


# ------------------------------------------------------------------------------------------- making


@contextmanager
def _creation_lock(path: Path) -> Iterator[None]:
    """Hold the lock file of a store while it is created or upgraded; the lock ends with the
    process.

    Raises
    ------
    ConfigError
        The folder cannot be created or is not writable.
    Unavailable
        Another process holds the lock for longer than :data:`MAKING_S`.
    """
    place = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = place.open("a", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"tracking.uri: cannot write to the folder {path.parent} ({error.strerror}), where"
            f" MLflow's SQLite store {path.name} belongs; choose another path with tracking.uri, or"
            " set tracking.enabled false"
        ) from None
    last = time.monotonic() + MAKING_S
    with file:
        while not _is_lock_taken(file.fileno()):
            if time.monotonic() > last:
                raise Unavailable(
                    f"another process has been creating MLflow's store {path} for {MAKING_S:.0f} s"
                    f" (it holds {place}); wait for it to finish, or stop it, and try again"
                )
            time.sleep(_POLL_S)
        yield


def _is_lock_taken(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # a file system without locks; nothing is overwritten there either
        _LOG.warning("no file lock for MLflow's store: %s", error.strerror)
    return True


@contextmanager
def _temporary_store(path: Path) -> Iterator[Path]:
    """A new temporary file next to ``path``, with the permissions of the umask.

    It is removed at the end, together with the files that SQLite creates next to it.

    Raises
    ------
    ConfigError
        The file cannot be created.
    """
    stem = f".{path.name}.making-"
    for left in path.parent.glob(
        f"{glob.escape(stem)}*"
    ):  # left by a killed process; we hold the lock
        left.unlink(missing_ok=True)
    place = path.with_name(f"{stem}{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        place.touch(mode=0o666, exist_ok=False)
    except OSError as error:
        raise ConfigError(
            f"tracking.uri: cannot write to the folder {path.parent} ({error.strerror}); correct"
            " its permissions, or choose another path with tracking.uri"
        ) from None
    try:
        yield place
    finally:
        for suffix in ("", "-journal", "-wal", "-shm"):
            with suppress(OSError):
                place.with_name(place.name + suffix).unlink()


def _create(path: Path) -> None:
    """Create a store in a temporary file and move it to ``path``; an existing store is never
    overwritten.
    """
    with _temporary_store(path) as aside:
        _migrate(aside, path.parent)
        with closing(_connect(aside)) as connection:
            connection.execute("PRAGMA journal_mode = DELETE")  # keeps all data in the one file
        _flush(aside)
        if path.exists():  # an empty file that another program may have open
            _copy_store(aside, path)
            return
        try:
            os.link(aside, path)
        except FileExistsError:  # created by a program that does not use the lock
            return
        except OSError:  # a file system without hard links
            if not path.exists():
                os.rename(aside, path)


def _upgrade(path: Path, revision: str) -> None:
    """Upgrade a store of an older MLflow in a copy; a backup of the old store stays next to it."""
    for _ in range(_TRIES):
        with _temporary_store(path) as aside, _reading(path), closing(_connect(path)) as watch:
            before = watch.execute("PRAGMA data_version").fetchone()
            _copy_store(path, aside)
            kept = path.with_name(f"{path.name}.before-{_head()}")
            _copy_store(aside, kept)
            try:
                _migrate(aside, path.parent)
            except MultigrainError:
                raise
            except Exception as error:
                kept.unlink(missing_ok=True)
                if _is_full(error):
                    raise
                why = (
                    f"MLflow cannot upgrade it from schema {revision} to {_head()}"
                    f" ({first_line(error)[:200]})"
                )
                raise _store_error(path, State("partial", revision, why)) from None
            if (
                watch.execute("PRAGMA data_version").fetchone() == before
            ):  # no process has written in the meantime
                _copy_store(aside, path)
                _LOG.warning(
                    "upgraded MLflow's store %s to this release of MLflow; the backup is %s",
                    path,
                    kept,
                )
                return
    raise Unavailable(
        f"MLflow's store {path} is of an older MLflow and cannot be upgraded while other processes"
        " write to it; stop the commands and servers that use it, and try again"
    )


def _migrate(file: Path, folder: Path) -> None:
    """Run all of MLflow's migrations and create its default experiment, with artefacts next to the
    store.
    """
    from mlflow.store.tracking import sqlalchemy_store

    database, Store = _database(), sqlalchemy_store.SqlAlchemyStore

    uri = f"sqlite:///{file}"
    try:
        engine = database.create_sqlalchemy_engine(uri)
        try:
            if database._is_empty_database(engine):
                database._initialize_tables(engine)
            else:
                database._upgrade_db(engine)
        finally:
            engine.dispose()
        Store(uri, (folder / "mlartifacts").as_uri())  # type: ignore[no-untyped-call]
    finally:
        cached: dict[str, Any] = getattr(Store, "_engine_map", {})
        kept = cached.pop(uri, None)
        if kept is not None:
            kept.dispose()


def _copy_store(source: Path, target: Path) -> None:
    """Copy a SQLite file over another one in one transaction, so a killed process leaves all or
    nothing.
    """
    last = time.monotonic() + WAIT_S

    def check(status: int, remaining: int, total: int) -> None:
        if status in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) and time.monotonic() > last:
            raise _locked_error(target)

    if not target.exists():
        target.touch(mode=0o666)
    with closing(_connect(source)) as origin, closing(_connect(target)) as copy:
        origin.backup(copy, progress=check, sleep=_POLL_S)


def _flush(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


# ----------------------------------------------------------------------------------------- checking


def _check_writable(path: Path) -> None:
    with _reading(path), closing(_connect(path)) as connection:
        connection.execute("BEGIN IMMEDIATE")  # takes the write lock
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        # opens the journal, which needs a writable folder
        connection.execute(f"PRAGMA user_version = {int(version)}")
        connection.rollback()


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(
        f"file:{quote(str(path))}?mode=rw", uri=True, timeout=WAIT_S, isolation_level=None
    )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn SQLite errors of a block into one message with the fix."""
    try:
        yield
    except sqlite3.Error as error:
        code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise _locked_error(path) from None
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
        if code == _FULL:
            raise
        raise _store_error(path, State("partial", "", f"SQLite reports: {error}")) from None


def _locked_error(path: Path) -> Unavailable:
    return Unavailable(
        f"MLflow's store {path} has been locked by another process for {WAIT_S:.0f} s; wait for"
        f" that process, or stop it (`lsof {path}` finds it), and try again"
    )


def _store_error(path: Path, state: State) -> MultigrainError:
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
    places = [path.with_name(path.name + end) for end in ("", "-journal", "-wal", "-shm")]
    files = " ".join(str(place) for place in places if place.exists())
    away = path.parent / "broken-store"
    return ArtifactError(
        f"MLflow's store {path} is incomplete or damaged ({state.detail}); {_content(path)}."
        " Restore a backup of the file, or move it away so that the next command creates a new"
        f" one: mkdir {away} && mv {files} {away}/. Artefacts and run folders are not affected"
    )


def _content(path: Path) -> str:
    """The number of runs and model versions in a file, which would be lost with it."""
    counts = []
    with suppress(sqlite3.Error, MultigrainError), closing(_connect(path)) as connection:
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
def _head() -> str:
    """The schema revision of the installed MLflow."""
    return str(_database()._get_latest_schema_revision())


@lru_cache(maxsize=1)
def _revisions() -> frozenset[str]:
    """All schema revisions that the installed MLflow knows."""
    from alembic.script import ScriptDirectory

    script = ScriptDirectory.from_config(_database()._get_alembic_config(db_url=""))
    return frozenset(one.revision for one in script.walk_revisions())


def _tables() -> set[str]:
    """The tables of a complete store."""
    return set(_database().Base.metadata.tables)


def _database() -> Any:
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


def _is_full(error: BaseException) -> bool:
    return "disk is full" in str(error) or "No space left" in str(error)
