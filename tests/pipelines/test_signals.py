"""Ctrl-C, SIGTERM and a closed terminal end a command in order; the exit code names the signal.

The quick tests run the real command line in a separate process, with a verb that waits in place of
a training.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
import weakref
from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.plumbing.signals import Ended, ending_in_order

ROOT = Path(__file__).parents[2]
CODES = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
WAITS = """
import sys, time
from pipelines import cli, stages

def wait(config, folder):
    try:
        print("waiting", flush=True)
        # a signal just before one long sleep would be handled after it
        for _ in range(1200):
            time.sleep(0.1)
    finally:
        time.sleep(float(sys.argv[1]))
        print("in order", flush=True)

stages.VERBS["train"] = stages.Verb("__main__:wait", "waits", ("train",))
sys.exit(cli.main(["train", *sys.argv[2:]]))
"""


def _handle_as_in_a_terminal(hangup: signal.Handlers) -> None:
    """The tests may run in the background, where the shell ignores Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, hangup)


def _waiting(tmp_path: Path, ending_s: float = 0.0, ignored: bool = False) -> subprocess.Popen[str]:
    words = ["--config", "demo", "--run.dir", str(tmp_path / "run")]
    hangup = signal.SIG_IGN if ignored else signal.SIG_DFL
    process = subprocess.Popen(
        [sys.executable, "-c", WAITS, str(ending_s), *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: _handle_as_in_a_terminal(hangup),
    )
    assert process.stdout is not None
    while (line := process.stdout.readline()) and "waiting" not in line:
        pass
    return process


@pytest.mark.parametrize(("number", "code"), CODES, ids=["SIGINT", "SIGTERM", "SIGHUP"])
def test_signal_ends_the_command_in_order_and_names_the_command_to_continue(
    number: int, code: int, tmp_path: Path
) -> None:
    process = _waiting(tmp_path)
    process.send_signal(number)
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, output.strip()) == (code, "in order"), errors
    assert errors.endswith("; continue with --resume\n") and "Traceback" not in errors


@pytest.mark.slow
def test_second_ctrl_c_does_not_interrupt_the_end(tmp_path: Path) -> None:
    process = _waiting(tmp_path, ending_s=3.0)
    process.send_signal(signal.SIGINT)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert (process.returncode, output.strip()) == (130, "in order")


def test_hangup_ignored_by_nohup_stays_ignored(tmp_path: Path) -> None:
    process = _waiting(tmp_path, ignored=True)
    process.send_signal(signal.SIGHUP)
    time.sleep(1.0)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 143


def test_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number, _ in CODES]
    with pytest.raises(Ended) as caught, ending_in_order():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert caught.value.code == 143
    assert main(["--version"]) == 0
    assert [signal.getsignal(number) for number, _ in CODES] == before


def test_exception_ignored_by_python_is_raised_again() -> None:
    """Example: a signal in the middle of an import, where weak references release the locks."""

    class Held:
        pass

    held = Held()
    reference = weakref.ref(held, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Ended), ending_in_order():
        del held
        assert reference() is None
        time.sleep(30)


CONFIG = """
data:
  source: {kind: synthetic, num_users: 200, num_items: 60, bad_rows: 0}
  text: {enabled: false}
model: {width: 8, granularities: {collaborative: {enabled: true}}}
train: {epochs: 100000, patience: 100000, threads: 1, metric: "ndcg@5", checkpoint_steps: 0}
evaluate: {ks: [5], bootstrap: 100, baselines: [popularity]}
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("number", "code"), CODES, ids=["SIGINT", "SIGTERM", "SIGHUP"])
def test_interrupted_training_leaves_no_process_and_no_open_run(
    number: int, code: int, tmp_path: Path
) -> None:
    """The signal goes to the whole process group, as from a terminal."""
    (tmp_path / "c.yaml").write_text(CONFIG, encoding="utf-8")
    mark, log = f"SIGNALLED_{uuid.uuid4().hex}", tmp_path / "log"
    words = ["run", "--config", str(tmp_path / "c.yaml"), "--run.dir", str(tmp_path / "run")]
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.cli", *words],
            cwd=ROOT,
            env={**os.environ, mark: "1"},
            stdout=file,
            stderr=file,
            start_new_session=True,
            preexec_fn=lambda: _handle_as_in_a_terminal(signal.SIG_DFL),
        )
    try:
        while process.poll() is None and log.read_text(encoding="utf-8").count("epoch  ") < 2:
            time.sleep(0.2)
        os.killpg(process.pid, number)
        assert process.wait(timeout=300) == code, log.read_text(encoding="utf-8")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert "continue with --resume" in log.read_text(encoding="utf-8")
    last = time.monotonic() + 60
    while (left := _processes(mark)) and time.monotonic() < last:
        time.sleep(0.5)
    assert not left
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        [(status,)] = store.execute("select status from runs").fetchall()
    assert status in ("KILLED", "FAILED")


def _processes(mark: str) -> list[str]:
    """The processes that inherited a variable of the environment."""
    found = []
    for place in Path("/proc").iterdir():
        try:
            if place.name.isdigit() and mark.encode() in (place / "environ").read_bytes():
                found.append((place / "cmdline").read_text())
        except OSError:
            continue
    return found
