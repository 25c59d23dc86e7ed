"""Progress bars in a real pseudo terminal, read back with a terminal emulator; plain lines anywhere
else.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyte
import pytest

from pipelines.plumbing.epoch_lines import epoch_count

SECONDS = 40.0
WORK = """
import sys, time
from pathlib import Path
from pipelines.plumbing.progress import Progress
from recsys.pace import Count, Pace

progress = Progress(sys.stdout, Path(sys.argv[1]))
with progress.stage("evaluate"):
    with Pace("ranking users", 4_000) as pace:
        for step in range(40):
            time.sleep(0.06)
            pace.add(100)
            if step == 25:
                text = "first line [bold]:smile:[/bold] of 1,234.5 users "
                progress(text + 8 * "that is long ")
                print("a warning of a library", file=sys.stderr)
    with Pace("endless", 0) as pace:
        for step in range(10_000 if "endless" in sys.argv else 0):
            time.sleep(0.06)
            pace.add()
    for epoch in range(1, 3):
        time.sleep(0.6)
        progress.counted(
            Count("epochs", epoch, 2, epoch / 2, line=f"epoch {epoch}", ended=epoch == 2),
            stays=True,
        )
    if "fails" in sys.argv:
        progress.counted(Count("fitting members", 1, 4, 0.25))
        time.sleep(1.6)
        raise ValueError("no such item")
"""


@dataclass
class Terminal:
    """What a terminal of this size showed, at several times and at the end."""

    screen: pyte.Screen
    raw: bytes = b""
    shots: list[list[str]] = field(default_factory=list)

    @property
    def lines(self) -> list[str]:
        """The lines of the screen without those that are empty."""
        return [line.rstrip() for line in self.screen.display if line.strip()]


def in_terminal(
    words: list[str],
    columns: int = 120,
    until: Callable[[Terminal], bytes] = lambda terminal: b"",
    **environment: str,
) -> Terminal:
    """Run Python in a pseudo terminal; ``until`` sees the screen and may return keys to press."""
    terminal = Terminal(pyte.Screen(columns, 24))
    stream = pyte.ByteStream(terminal.screen)
    child, ours = pty.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a background job ignores it
        hidden = ("CI", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES")
        kept = {name: value for name, value in os.environ.items() if name not in hidden}
        given = {**kept, "TERM": "xterm-256color", **environment}
        os.execve(sys.executable, [sys.executable, *words], given)
    try:
        fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        last = time.monotonic() + SECONDS
        while time.monotonic() < last:
            if not select.select([ours], [], [], 0.2)[0]:
                continue
            try:
                found = os.read(ours, 65536)
            except OSError:  # the child has ended
                break
            terminal.raw += found
            stream.feed(found)
            terminal.shots.append(terminal.lines)
            if keys := until(terminal):
                os.write(ours, keys)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ours)
    return terminal


def _lines_without_pace(text: str) -> list[str]:
    """The lines without those that say how far long work is, which a busy machine adds."""
    return [line for line in text.splitlines() if "ranking users: " not in line]


@pytest.fixture
def script(tmp_path: Path) -> list[str]:
    path = tmp_path / "work.py"
    path.write_text(WORK, encoding="utf-8")
    return [str(path), str(tmp_path / "run.log")]


def test_terminal_shows_bars_below_the_lines_and_nothing_of_them_at_the_end(
    script: list[str],
) -> None:
    terminal = in_terminal(script)
    bars = [line for shot in terminal.shots for line in shot if line.startswith("ranking users")]
    assert bars and all(
        re.search(r"━ +\d+ %  [\d,]+ of 4,000  \d+ s left$", bar) for bar in bars[1:]
    ), bars
    both = [shot for shot in terminal.shots if "a warning of a library" in shot]
    assert any(shot[-1].startswith("ranking users") for shot in both)
    log = _lines_without_pace(Path(script[1]).read_text(encoding="utf-8"))
    first = log[0]
    assert first.endswith("that is long") and "[bold]:smile:[/bold]" in first and len(first) > 120
    assert terminal.lines[:2] == [first[:120], first[120:]], "whole, although it is long"
    assert terminal.lines[2] == "a warning of a library"
    assert [line.split("  ", 1)[1] for line in terminal.lines[3:4]] == ["evaluate   epoch 2"]
    assert "done in" in terminal.lines[4] and len(terminal.lines) == 5
    assert b"\x1b[?25l" not in terminal.raw, "the cursor is never hidden"
    assert [line.split("  ", 1)[1] for line in log[1:3]] == [
        "evaluate   epoch 1",
        "evaluate   epoch 2",
    ]


@pytest.mark.slow
def test_no_color_draws_bars_without_colours(script: list[str]) -> None:
    coloured = re.compile(rb"\x1b\[[0-9;]*m")
    assert coloured.search(in_terminal(script).raw)
    plain = in_terminal(script, NO_COLOR="1")
    assert not coloured.search(plain.raw) and "━" in plain.raw.decode()


@pytest.mark.slow
@pytest.mark.parametrize("columns", [30, 50, 80])
def test_narrow_terminal_keeps_each_bar_on_one_line(script: list[str], columns: int) -> None:
    terminal = in_terminal(script, columns)
    shown = [[line for line in shot if line.startswith("ranking")] for shot in terminal.shots]
    assert max(map(len, shown)) == 1
    assert all("%" in line for (line,) in filter(None, shown))
    assert not any(line.startswith("ranking") for line in terminal.lines)


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"TERM": ""}, {"CI": "true"}])
def test_terminal_without_cursor_control_and_ci_get_the_plain_lines(
    script: list[str], environment: dict[str, str]
) -> None:
    terminal = in_terminal(script, **environment)
    assert b"\x1b" not in terminal.raw and "━" not in terminal.raw.decode()
    assert [line for line in terminal.lines if "epoch" in line]


def test_pipe_gets_the_lines_of_the_log(script: list[str]) -> None:
    done = subprocess.run([sys.executable, *script], capture_output=True, text=True, check=True)
    assert done.stdout == Path(script[1]).read_text(encoding="utf-8")
    assert done.stderr == "a warning of a library\n"
    assert len(_lines_without_pace(done.stdout)) == 4


def test_interrupt_removes_the_bars(script: list[str]) -> None:
    pressed: list[int] = []

    def interrupt(terminal: Terminal) -> bytes:
        if pressed or not terminal.lines[-1].startswith("endless"):
            return b""
        pressed.append(1)
        return b"\x03"

    terminal = in_terminal([*script, "endless"], until=interrupt)
    assert pressed and terminal.lines[-1] == "KeyboardInterrupt"
    assert not any(line.startswith("endless") for line in terminal.lines)


@pytest.mark.slow
def test_exception_removes_the_bars(script: list[str]) -> None:
    terminal = in_terminal([*script, "fails"])
    assert any(shot[-1].startswith("fitting members") for shot in terminal.shots if shot)
    assert terminal.lines[-1] == "ValueError: no such item"
    assert not any(line.startswith("fitting") for line in terminal.lines)


def test_epoch_is_a_count_with_loss_and_metric() -> None:
    values = {"phase": "refit", "epoch": 3, "epochs": 12, "loss": 5.125, "ndcg@20": 0.2, "lr": 0.1}
    count = epoch_count({**values, "seconds": 2.0})
    assert (count.done, count.total, count.share, count.left_s) == (3, 12, 0.25, 18.0)
    assert count.note == "loss 5.1250  ndcg@20 0.2000  (refit)" and not count.ended
    assert count.line == "epoch   3/12  loss 5.1250  ndcg@20 0.2000  lr 1.00e-01  2.0 s  (refit)"
    assert epoch_count({**values, "epoch": 12}).ended
