"""Temporary folders are deleted when their process ends, or by a later process if it was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from recsys.storage.temporary import temporary, temporary_folder

ROOT = Path(__file__).parents[2]
MAKE = (
    "import sys; from recsys.storage.temporary import keep, temporary_folder\n"
    "folder = temporary_folder(); (folder / 'table').touch(); print(folder, flush=True)\n"
)


def started(place: Path, program: str) -> subprocess.Popen[str]:
    """A process that makes a temporary folder."""
    return subprocess.Popen(
        [sys.executable, "-c", MAKE + program],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(place)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def living(tmp_path: Path) -> Iterator[Path]:
    """The folder of a process that still runs."""
    with started(tmp_path, "sys.stdin.read()") as process:
        assert process.stdout is not None and process.stdin is not None
        yield Path(process.stdout.readline().strip())
        process.stdin.close()


def test_folder_of_a_killed_process_is_deleted_by_the_next_one(
    tmp_path: Path, living: Path
) -> None:
    with started(tmp_path, "sys.stdin.read()") as killed:
        assert killed.stdout is not None
        left = Path(killed.stdout.readline().strip())
        killed.send_signal(signal.SIGKILL)
    others = tmp_path / "multigrain-of-others/files"
    others.mkdir(parents=True)
    assert left.is_dir()
    with started(tmp_path, "") as later:
        later.communicate()
    assert later.returncode == 0 and not left.parent.exists()
    assert (living / "table").is_file(), "its process lives"
    assert others.is_dir(), "it has no mark"


def test_folder_is_deleted_when_the_process_ends_unless_it_is_kept(tmp_path: Path) -> None:
    for program, stays in (("", False), ("assert keep(folder / 'run')", True)):
        with started(tmp_path, program) as process:
            assert process.stdout is not None
            folder = Path(process.stdout.readline().strip())
        assert process.returncode == 0 and folder.exists() == stays
    with started(tmp_path, "") as later:
        later.communicate()
    assert folder.exists(), "a kept folder belongs to the user"


def test_folder_of_a_block_is_empty_and_deleted_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with temporary() as name:
        assert list(Path(name).iterdir()) == [] and len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []
    assert list(temporary_folder().iterdir()) == []
