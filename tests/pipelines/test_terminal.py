"""Output of the command line: any text on any terminal, no control characters from user data,
closed pipes.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.plumbing.progress import Progress
from pipelines.plumbing.terminal import has_reader, printable, printable_warnings

CLEARS = "\x1b[2J\x1b]0;title\x07"
Captured = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    "text", [CLEARS, "a\rb", "\x9b2J", "\u202egnp.exe", "\x00", "\ud800", "\u2028"]
)
def test_control_characters_are_escaped(text: str) -> None:
    shown = printable(f"file {text}\nnext")
    assert shown.endswith("\nnext") and "\\" in shown
    assert all(sign == "\n" or sign.isprintable() for sign in shown)


@pytest.mark.parametrize("text", ["Café – 日本語 🎬", "a\nb", "plain \\x1b"])
def test_ordinary_text_stays_unchanged(text: str) -> None:
    assert printable(text) == text


def test_error_about_a_file_shows_its_name_escaped(capsys: Captured) -> None:
    assert main(["run", "--config", f"mine{CLEARS}.yaml"]) == 2
    message = capsys.readouterr().err
    assert "\x1b" not in message and "\\x1b[2J" in message


def test_progress_lines_and_the_log_are_escaped(tmp_path: Path) -> None:
    stream = io.StringIO()
    progress = Progress(stream, tmp_path / "run.log")
    progress(f"row {CLEARS} of Café")
    progress.plain(CLEARS)
    for text in (stream.getvalue(), (tmp_path / "run.log").read_text(encoding="utf-8")):
        assert "\x1b" not in text and "\\x1b[2J" in text
    assert "Café" in stream.getvalue()


def test_our_warnings_are_one_line_without_control_characters(capsys: Captured) -> None:
    with printable_warnings():
        shown = warnings.formatwarning(
            UserWarning(f"id {CLEARS}"), UserWarning, "recsys/preparation/prepare.py", 3
        )
    assert shown.startswith("recsys: warning: id \\x1b[2J")


def _command(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {
        name: value for name, value in os.environ.items() if name not in ("LC_ALL", "PYTHONUTF8")
    }
    command = [sys.executable, "-m", "pipelines.cli", *words]
    return subprocess.run(
        command, env={**variables, **environment}, capture_output=True, text=True, errors="replace"
    )


@pytest.mark.parametrize(
    "environment", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}]
)
def test_ascii_terminal_shows_other_characters_as_escapes(
    environment: dict[str, str], tmp_path: Path
) -> None:
    words = [
        "--config",
        "demo",
        "--run.name",
        "Café → 日本",
        "--run.dir",
        str(tmp_path / "run"),
        "--dry-run",
    ]
    done = _command("prepare", *words, **environment)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert "Caf" in done.stdout


def test_closed_pipe_ends_the_command_without_a_message() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as closed_pipe:
        assert not has_reader(closed_pipe)
        command = [sys.executable, "-m", "pipelines.cli", "run", "--help"]
        done = subprocess.run(command, stdout=closed_pipe, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "")
