"""MLflow's SQLite store: created atomically, upgraded in a copy, and one message for every other
state.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipelines.plumbing.user_message import user_message
from recsys.config import Config, build_config
from recsys.errors import ArtifactError, ConfigError, MultigrainError, Unavailable
from recsys.registry import store, store_state
from recsys.registry.followed_model import FollowedModel
from recsys.registry.mlflow_client import client, outage
from recsys.registry.tracking import Tracker

pytestmark = pytest.mark.usefixtures("real_migrations")
RACE = Path(__file__).parents[1] / "store_race.py"


def configured(store_path: Path, **tracking: Any) -> Config:
    model = {"granularities": {"evolution": {"enabled": True}}}
    tree = {
        "run": {"dir": str(store_path.parent / "run")},
        "data": {"source": {"kind": "synthetic"}},
        "model": model,
    }
    return build_config({**tree, "tracking": {"uri": f"sqlite:///{store_path}", **tracking}})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one run, created next to files of a killed command, by a user with the umask
    027.
    """
    store_path = tmp_path_factory.mktemp("made") / "mlflow.db"
    store_path.with_name(".mlflow.db.making-1-abc").write_text("half")
    before = os.umask(0o027)
    try:
        with Tracker(configured(store_path), apart=True) as tracker:
            tracker.log_metrics({"loss": 0.5})
    finally:
        os.umask(before)
    return store_path


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copyfile(made, tmp_path / "mlflow.db"))


def changed(store_path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(store_path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def refused(store_path: Path, kind: type[MultigrainError], *words: str) -> str:
    """Assert the tracker's error for a store, which is not changed."""
    before = store_path.read_bytes()
    with pytest.raises(kind) as error, Tracker(configured(store_path), apart=True):
        pass
    message = str(error.value)
    for word in (*words, str(store_path.parent)):
        assert word in message, message
    assert "\n" not in message and store_path.read_bytes() == before
    return message


@contextmanager
def locked(store_path: Path) -> Iterator[None]:
    with closing(sqlite3.connect(store_path, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield


# ------------------------------------------------------------------------------------------- making


def test_new_store_is_complete_and_leaves_no_temporary_file(made: Path) -> None:
    assert store_state.look(made).kind == "current"
    names = {path.name for path in made.parent.iterdir()}
    assert names <= {"mlflow.db", ".mlflow.db.lock", "mlartifacts"}, names
    experiment = client(f"sqlite:///{made}").get_experiment("0")
    assert experiment.artifact_location == (made.parent / "mlartifacts/0").as_uri()


def test_new_store_honours_the_umask(made: Path) -> None:
    assert made.stat().st_mode & 0o777 == 0o640


def test_empty_file_is_filled_in_place(tmp_path: Path) -> None:
    """Another program may have it open and would continue to write to a replaced file."""
    store_path = tmp_path / "mlflow.db"
    store_path.touch()
    inode = store_path.stat().st_ino
    store.ready(store_path, writes=True)
    assert store_state.look(store_path).kind == "current" and store_path.stat().st_ino == inode


def test_concurrently_created_store_is_not_overwritten(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_path, link = tmp_path / "mlflow.db", os.link

    def too_late(source: Path, target: Path) -> None:
        shutil.copyfile(made, store_path)
        link(source, target)

    monkeypatch.setattr(os, "link", too_late)
    store.ready(store_path)
    assert (
        store_path.read_bytes() == made.read_bytes()
        and len(list(tmp_path.glob(".mlflow.db.making-*"))) == 0
    )


def test_store_under_creation_is_waited_for(copied: Path) -> None:
    changed(copied, "ALTER TABLE runs RENAME TO unfinished")
    finish = threading.Timer(0.5, changed, (copied, "ALTER TABLE unfinished RENAME TO runs"))
    finish.start()
    store.ready(copied)
    finish.join()


def test_endless_creation_by_another_process_raises_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MAKING_S", 0.2)
    store_path = tmp_path / "mlflow.db"
    with (
        store._creation_lock(store_path),
        pytest.raises(Unavailable, match=r"another process has been creating .*mlflow\.db"),
    ):
        store.ready(store_path)


@pytest.mark.slow
# a creation takes a second on an idle machine, and half a minute on a busy one
@pytest.mark.timeout(1800)
def test_ten_concurrent_commands_on_a_missing_store_succeed(tmp_path: Path) -> None:
    assert race(tmp_path, "together", 10) == "10 of 10 commands succeeded, the store is usable"


@pytest.mark.slow
# a creation takes a second on an idle machine, and half a minute on a busy one
@pytest.mark.timeout(1800)
def test_store_is_usable_after_twenty_kills(tmp_path: Path) -> None:
    assert race(tmp_path, "kills", 20) == "20 kills, 0 stores unusable"


def race(folder: Path, *words: object) -> str:
    command = [sys.executable, str(RACE), str(folder), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1700)
    return (done.stdout.splitlines() or [done.stderr])[-1]


# ---------------------------------------------------------------------------------------- upgrading


def of_an_older_mlflow(store_path: Path) -> str:
    """Create a store without the last migration and with an experiment; returns its schema
    revision.
    """
    from alembic import command
    from alembic.script import ScriptDirectory
    from mlflow.store.db import utils
    from mlflow.store.tracking.dbmodels.initial_models import Base

    engine = utils.create_sqlalchemy_engine(f"sqlite:///{store_path}")
    Base.metadata.create_all(engine)
    settings = utils._get_alembic_config(str(engine.url))
    script = ScriptDirectory.from_config(settings)
    before = script.get_revision(script.get_current_head()).down_revision
    with engine.begin() as connection:
        settings.attributes["connection"] = connection
        command.upgrade(settings, str(before))
    engine.dispose()
    changed(
        store_path, "INSERT INTO experiments VALUES (7, 'mine', '/mine', 'active', 0, 0, 'default')"
    )
    return str(before)


@pytest.mark.slow
def test_older_store_is_upgraded_with_a_backup(tmp_path: Path) -> None:
    store_path = tmp_path / "mlflow.db"
    revision = of_an_older_mlflow(store_path)
    assert store_state.look(store_path) == store_state.State("older", revision)
    inode = store_path.stat().st_ino
    with Tracker(configured(store_path, experiment="mine"), apart=True) as tracker:
        assert tracker.experiment_id == "7"
    assert store_state.look(store_path).kind == "current" and store_path.stat().st_ino == inode
    [kept] = tmp_path.glob("mlflow.db.before-*")
    assert store_state.look(kept) == store_state.State("older", revision)


def test_failed_upgrade_leaves_the_store_unchanged(made: Path, tmp_path: Path) -> None:
    store_path = tmp_path / "mlflow.db"
    shutil.copyfile(made, store_path)
    # an early revision, although later tables exist
    changed(store_path, "UPDATE alembic_version SET version_num = '451aebb31d03'")
    refused(
        store_path,
        ArtifactError,
        "incomplete",
        "cannot upgrade it from schema 451aebb31d03",
        "1 runs",
        "mv ",
    )
    assert not list(tmp_path.glob("mlflow.db.before-*")) and not list(
        tmp_path.glob(".mlflow.db.making-*")
    )


# -------------------------------------------------------------------------------- broken and locked


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for an incomplete file."""
    monkeypatch.setattr(store_state, "_SETTLE_S", -1.0)


@pytest.mark.usefixtures("settled")
def test_store_without_a_table_reports_content_and_fix(copied: Path) -> None:
    changed(copied, "DROP TABLE trace_info")
    message = refused(
        copied,
        ArtifactError,
        "incomplete",
        "trace_info",
        "it holds 1 runs and 0 registered model versions",
    )
    away = copied.parent / "broken-store"
    assert f"mkdir {away} && mv {copied} {away}/" in message
    subprocess.run(f"mkdir {away} && mv {copied} {away}/", shell=True, check=True)
    assert store_state.look(copied).kind == "absent"


@pytest.mark.usefixtures("settled")
def test_store_without_schema_version_is_incomplete(copied: Path) -> None:
    changed(copied, "DELETE FROM alembic_version")
    refused(copied, ArtifactError, "incomplete", "schema version is missing")


def test_incomplete_store_from_the_future_is_not_awaited(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock was set back by an hour after the last change of the file."""
    changed(copied, "DROP TABLE trace_info")
    future = time.time() + 3600
    os.utime(copied, (future, future))
    monkeypatch.setattr(store_state, "_SETTLE_S", 0.0)
    refused(copied, ArtifactError, "incomplete", "trace_info")


def test_store_of_a_newer_mlflow_names_the_fix(copied: Path) -> None:
    changed(copied, "UPDATE alembic_version SET version_num = 'fedcba987654'")
    refused(copied, ArtifactError, "newer MLflow than", "fedcba987654", "install that newer MLflow")


def test_database_of_another_program_is_refused(tmp_path: Path) -> None:
    changed(tmp_path / "mlflow.db", "CREATE TABLE songs (title TEXT)")
    refused(tmp_path / "mlflow.db", ConfigError, "but not of MLflow")


def test_file_that_is_not_sqlite_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"user,item\n1,2\n" * 400)
    refused(tmp_path / "mlflow.db", ConfigError, "is not a SQLite database")


def test_truncated_store_is_damaged(copied: Path) -> None:
    copied.write_bytes(copied.read_bytes()[:5000])
    refused(copied, ArtifactError, "damaged", "malformed", "Restore a backup")


def test_folder_as_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder, expected the path of a SQLite file"):
        store.ready(tmp_path)


def test_read_only_folder_raises_one_message() -> None:
    with pytest.raises(
        ConfigError,
        match=r"cannot write to the folder /proc/none .*choose another path with tracking",
    ):
        store.ready(Path("/proc/none/mlflow.db"))


def test_read_only_store_raises_one_message(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opened read-only, as SQLite opens a file that this user cannot write."""
    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda at, **rest: connect(at.replace("=rw", "=ro"), **rest)
    )
    store.ready(copied)
    with pytest.raises(ConfigError, match="is not writable .*correct the permissions"):
        store.ready(copied, writes=True)


def test_locked_store_raises_one_message_after_a_bounded_wait(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_state, "WAIT_S", 0.3)
    with locked(copied):
        refused(copied, Unavailable, "has been locked by another process for 0 s", "lsof")
        with pytest.raises(Unavailable, match="locked by another process"):
            FollowedModel("models:/none@champion", f"sqlite:///{copied}").version()


def test_store_locked_during_a_run_raises_one_message(
    copied: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from sqlalchemy import create_engine, text
    from sqlalchemy.exc import OperationalError

    engine = create_engine(f"sqlite:///{copied}", connect_args={"timeout": 0.1})
    with locked(copied), pytest.raises(OperationalError) as error, engine.connect() as connection:
        connection.execute(text("SELECT 1 FROM runs"))
    message = user_message(error.value)
    assert (
        message == outage(error.value)
        and message is not None
        and "locked by another process" in message
    )


# -------------------------------------------------------------------------------------------- moved


def test_moved_store_reports_where_its_artefacts_are(copied: Path, tmp_path: Path) -> None:
    old, new = tmp_path / "old folder", tmp_path / "mlartifacts/multigrain"
    changed(
        copied,
        f"UPDATE experiments SET artifact_location = '{old.as_uri()}' WHERE name = 'multigrain'",
    )
    with Tracker(
        configured(copied), apart=True
    ) as tracker:  # no artefacts exist yet: they go to the old location
        tracker.client.log_text(tracker.run_id, "text", "note.txt")
    new.parent.mkdir()
    old.rename(new)
    refused(
        copied,
        ConfigError,
        "was moved",
        f"at {old}, which does not exist",
        f"they are at {new}",
        "ln -s",
    )
    old.symlink_to(new)
    with Tracker(configured(copied), apart=True):
        pass
