"""Errors of the disk besides a full one: each has one message with its own fix."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from pipelines.plumbing.run_folder import write_atomically
from pipelines.plumbing.user_message import user_message
from recsys.errors import StorageError
from recsys.registry.store_state import sqlite_errors
from recsys.serving.answer_log import AnswerLog
from recsys.storage.beside import append_whole
from recsys.storage.filesystems import storage_errors


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EFBIG, "larger than `ulimit -f`"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EIO, "the disk reports an error"),
    ],
)
def test_other_errors_of_the_disk_have_their_own_fix(number: int, words: str) -> None:
    """In a write of our own, in a task of Ray, in Arrow and in safetensors."""
    text = os.strerror(number)
    with (
        pytest.raises(StorageError, match=f"^cannot write to /small/run: .*{words}.*--resume"),
        storage_errors("/small/run", "write to"),
    ):
        raise OSError(number, text, "/small/run/part.parquet")
    for error in (
        OSError(number, text, "/small/run/part.parquet"),
        OSError(f"Error writing bytes to file. Detail: [errno {number}] {text}"),
        RuntimeError(f"first line\nI/O error: {text} (os error {number})\nlast line"),
    ):
        message = str(user_message(error))
        assert words in message and text in message and "--resume" in message
        assert "\n" not in message


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
def test_limit_of_file_size_gives_one_message_for_each_writer(tmp_path: Path) -> None:
    """A real error of the system in Python's files, Arrow, safetensors and SQLite."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    table, weights = pa.table({"x": range(50_000)}), {"w": np.zeros(50_000)}
    writers: dict[str, Callable[[], object]] = {
        "text": lambda: write_atomically(tmp_path / "text", "x" * 100_000),
        "table": lambda: pq.write_table(table, tmp_path / "table", use_dictionary=False),
        "weights": lambda: save_file(weights, tmp_path / "weights"),
        "store": lambda: sqlite3.connect(tmp_path / "store").execute(
            f"create table t as select '{'x' * 100_000}'"
        ),
    }
    for name, write in writers.items():
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
        try:
            with pytest.raises(Exception) as failure:
                write()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        message = str(user_message(failure.value))
        assert "ulimit -f" in message or (name == "store" and "the disk " in message), (
            name,
            message,
        )


def test_sqlite_that_meets_a_quota_gets_the_fix_of_the_disk(tmp_path: Path) -> None:
    """SQLite knows no quota: it says `disk I/O error`, which is no damage of the store."""

    class Failed(sqlite3.OperationalError):
        sqlite_errorcode = sqlite3.SQLITE_IOERR_WRITE

    with pytest.raises(Failed) as failure, sqlite_errors(tmp_path / "mlflow.db"):
        raise Failed("disk I/O error")
    assert "the disk reports an error" in str(user_message(failure.value))


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
def test_line_that_does_not_fit_leaves_no_cut_line(tmp_path: Path) -> None:
    import resource

    before, path = resource.getrlimit(resource.RLIMIT_FSIZE), tmp_path / "log.jsonl"
    append_whole(path, b"first\n")
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(OSError):
            append_whole(path, b"x" * 200 + b"\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    append_whole(path, b"third\n")
    assert path.read_bytes() == b"first\nthird\n"


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
def test_answer_log_has_only_whole_lines_after_a_full_disk(tmp_path: Path) -> None:
    import resource

    before, log = resource.getrlimit(resource.RLIMIT_FSIZE), AnswerLog(str(tmp_path))
    assert log.write([{"answer_id": "a"}])
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        assert not log.write([{"answer_id": letter * 30} for letter in "bcde"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert log.write([{"answer_id": "f"}])
    (path,) = tmp_path.iterdir()
    assert [json.loads(line)["answer_id"] for line in path.read_text().splitlines()] == ["a", "f"]
