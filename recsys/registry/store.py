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
import logging
import os
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from recsys.errors import ConfigError, MultigrainError, Unavailable, first_line
from recsys.registry.store_state import (
    POLL_S,
    WAIT_S,
    State,
    check_writable,
    connect,
    locked_error,
    mlflow_database,
    newest_revision,
    settled,
    sqlite_errors,
    store_error,
)
from recsys.storage.filesystems import is_of_disk

MAKING_S: float = 300.0  # wait for another process that creates the store
_TRIES: Final = 3

_LOG = logging.getLogger(__name__)


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
    """  # noqa: DOC501
    # lock and temporary files belong next to the real file, not next to a symbolic link
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
        raise store_error(path, state)
    if writes:
        check_writable(path)


def remove_unused(path: Path) -> None:
    """Remove a store without runs and models, which a command made that was refused afterwards.

    The store is locked meanwhile. A command that has opened it and not begun its run yet finds that
    the file is gone.
    """
    with sqlite_errors(path), closing(connect(path)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        used = "SELECT 1 FROM runs WHERE lifecycle_stage = 'active'"
        used += " UNION ALL SELECT 1 FROM registered_models"
        if connection.execute(used).fetchone() is None:
            path.unlink()
        connection.rollback()
    if path.exists():
        return
    path.with_name(f".{path.name}.lock").unlink(missing_ok=True)
    from mlflow.store.model_registry import sqlalchemy_store as registry
    from mlflow.store.tracking import sqlalchemy_store as tracking

    # MLflow keeps its connections, which would write to the removed file
    for Store in (registry.SqlAlchemyStore, tracking.SqlAlchemyStore):
        engine = Store._engine_map.get(f"sqlite:///{path}")
        if engine is not None:
            engine.dispose()


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
    lock = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("a", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"tracking.uri: cannot write to the folder {path.parent} ({error.strerror}), where"
            f" MLflow's SQLite store {path.name} belongs; choose another path with tracking.uri, or"
            " set tracking.enabled false"
        ) from None
    last = time.monotonic() + MAKING_S
    with file:
        # polled, because a blocking lock has no time limit
        while not _is_lock_taken(file.fileno()):
            if time.monotonic() > last:
                raise Unavailable(
                    f"another process has been creating MLflow's store {path} for {MAKING_S:.0f} s"
                    f" (it holds {lock}); wait for it to finish, or stop it, and try again"
                )
            time.sleep(POLL_S)
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

    Yields
    ------
    Path
        The empty file.

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
    temporary = path.with_name(f"{stem}{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        temporary.touch(mode=0o666, exist_ok=False)
    except OSError as error:
        raise ConfigError(
            f"tracking.uri: cannot write to the folder {path.parent} ({error.strerror}); correct"
            " its permissions, or choose another path with tracking.uri"
        ) from None
    try:
        yield temporary
    finally:
        for suffix in ("", "-journal", "-wal", "-shm"):
            with suppress(OSError):
                temporary.with_name(temporary.name + suffix).unlink()


def _create(path: Path) -> None:
    """Create a store in a temporary file and move it to ``path``; an existing store is never
    overwritten.
    """
    with _temporary_store(path) as aside:
        _migrate(aside, path.parent)
        with closing(connect(aside)) as connection:
            connection.execute("PRAGMA journal_mode = DELETE")  # keeps all data in the one file
        # before the link: after a power failure the name must not point to unwritten pages
        _flush(aside)
        if path.exists():  # an empty file that another program may have open
            _copy_store(aside, path)
            return
        try:
            # a link and not a rename, because it fails where the file exists
            os.link(aside, path)
        except FileExistsError:  # created by a program that does not use the lock
            return
        except OSError:  # a file system without hard links
            if not path.exists():
                os.rename(aside, path)


def _upgrade(path: Path, revision: str) -> None:
    """Upgrade a store of an older MLflow in a copy; a backup of the old store stays next to it."""
    for _ in range(_TRIES):
        with _temporary_store(path) as aside, sqlite_errors(path), closing(connect(path)) as watch:
            # changes whenever another connection commits
            before = watch.execute("PRAGMA data_version").fetchone()
            _copy_store(path, aside)
            backup = path.with_name(f"{path.name}.before-{newest_revision()}")
            # before the migration, which changes the copy
            _copy_store(aside, backup)
            try:
                _migrate(aside, path.parent)
            except MultigrainError:
                raise
            except Exception as error:
                # the store itself is unchanged, so its backup is of no use
                backup.unlink(missing_ok=True)
                # an error of the disk says nothing about the store
                if is_of_disk(error):
                    raise
                why = (
                    f"MLflow cannot upgrade it from schema {revision} to {newest_revision()}"
                    f" ({first_line(error)[:200]})"
                )
                raise store_error(path, State("partial", revision, why)) from None
            if (
                watch.execute("PRAGMA data_version").fetchone() == before
            ):  # no process has written in the meantime
                _copy_store(aside, path)
                _LOG.warning(
                    "upgraded MLflow's store %s to this release of MLflow; the backup is %s",
                    path,
                    backup,
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

    database, Store = mlflow_database(), sqlalchemy_store.SqlAlchemyStore

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
        # MLflow caches engines by URI; one for the temporary file would keep it open
        cached: dict[str, Any] = getattr(Store, "_engine_map", {})
        cached_engine = cached.pop(uri, None)
        if cached_engine is not None:
            cached_engine.dispose()


def _copy_store(source: Path, target: Path) -> None:
    """Copy a SQLite file over another one in one transaction, so a killed process leaves all or
    nothing.
    """
    last = time.monotonic() + WAIT_S

    def check(status: int, remaining: int, total: int) -> None:
        if status in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) and time.monotonic() > last:
            raise locked_error(target)

    # ``connect`` opens existing files only
    if not target.exists():
        target.touch(mode=0o666)
    with closing(connect(source)) as origin, closing(connect(target)) as copy:
        # SQLite's own copy: another process may write to the source at the same time
        origin.backup(copy, progress=check, sleep=POLL_S)


def _flush(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
