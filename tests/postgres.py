"""A PostgreSQL server for tests, on a Unix socket."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest


class Postgres:
    """A PostgreSQL server with its socket in ``place`` and its data in a folder there; a context
    manager. The path of a socket must be short.

    It runs under another user where we are root, because it refuses to run as root. Skips the test
    where its programs, or psycopg2, are missing.
    """

    def __init__(self, place: Path, data: str = "data") -> None:
        self._programs = _programs()
        pytest.importorskip("psycopg2", reason="needs psycopg2")
        self._place, self._data = place, place / data
        self.uri = f"postgresql+psycopg2://tester@/postgres?host={place}"
        self.process: subprocess.Popen[bytes] | None = None
        self._as_user: list[str] = []
        if os.getuid() == 0:
            if not shutil.which("setpriv"):
                pytest.skip(
                    "PostgreSQL refuses to run as root, and there is no setpriv to become somebody"
                    " else"
                )
            self._as_user = ["setpriv", "--reuid=nobody", "--clear-groups"]

    def __enter__(self) -> Postgres:
        if self._as_user:
            for folder in {self._place, self._data.parent}:
                shutil.chown(folder, "nobody")
        # small segments of the log, so that a small disk holds many of them
        words = ["-U", "tester", "-A", "trust", "--no-sync", "--wal-segsize=1"]
        made = subprocess.run(
            [*self._as_user, str(self._programs / "initdb"), "-D", str(self._data), *words],
            capture_output=True,
            text=True,
            env=self._environment,
            cwd=self._place,
        )
        assert made.returncode == 0, made.stderr
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGQUIT)  # immediate shutdown
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait(20)

    @property
    def _environment(self) -> dict[str, str]:
        return {**os.environ, "HOME": str(self._place), "LC_ALL": "C"}

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        words = ["-D", str(self._data), "-k", str(self._place), "-c", "listen_addresses="]
        words += ["-c", "min_wal_size=2MB", "-c", "max_wal_size=8MB"]
        with (self._place / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self._as_user, str(self._programs / "postgres"), *words],
                cwd=self._place,
                env=self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        last = time.monotonic() + 300
        while True:
            with suppress(Exception):
                self.select("select 1")
                return
            assert time.monotonic() < last and self.process.poll() is None, self.log
            time.sleep(0.2)

    def use_up_log(self) -> None:
        """Write to the log of the database until that fails, because the disk is full."""
        import psycopg2

        with suppress(psycopg2.Error):
            while True:
                self.select("select pg_logical_emit_message(false, 'x', repeat('x', 100000))")

    @property
    def log(self) -> str:
        """What the server has logged."""
        return (self._place / "server.log").read_text(errors="replace")

    def select(self, query: str) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        import psycopg2

        connection = psycopg2.connect(user="tester", dbname="postgres", host=str(self._place))
        try:
            with connection.cursor() as cursor:
                cursor.execute(query)
                return list(cursor.fetchall())
        finally:
            connection.close()


def _programs() -> Path:
    """The folder of initdb and postgres."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found and (found[-1].parent / "postgres").is_file():
        return found[-1].parent
    path = shutil.which("initdb")
    if path and shutil.which("postgres"):
        return Path(path).resolve().parent
    pytest.skip(
        "needs the programs of a PostgreSQL server (Debian: postgresql); there is no initdb"
    )
