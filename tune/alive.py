"""Signs of life: a trial that hangs is noticed, named and ended, and the sweep goes on.

Why: Ray notices a process that dies, but not one that waits without end: for a lock, a lost network disk, a driver of a
device. One such trial held up its sweep for good.

A sign of life is a report, or computing. In a trial of one process a thread publishes, every few seconds, the CPU
seconds that the training thread has used. It writes them to Ray's key-value store, which every machine of the cluster
reaches. Of a trial of several workers only reports are known.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

BEAT_S: Final = 2.0
_SPACE: Final = "multigrain-sweep"
_SHARE: Final = 0.002  # of a CPU; a thread that computes gets more on a machine of any load, one that polls gets less
_PATIENCE: Final = 5.0  # times the longest pause between two signs of life so far


@contextmanager
def beating(key: str) -> Iterator[None]:
    """Publish under ``key`` what the calling thread has computed, until the block ends; nothing where it is empty."""
    if not key:
        yield
        return
    seconds, ended = _clock(threading.get_ident()), threading.Event()

    def beat() -> None:
        while True:
            with suppress(Exception):  # the store may be away for a moment; a lost beat does no harm
                _internal_kv_put(key, f"{seconds():.3f}", overwrite=True, namespace=_SPACE)
            if ended.wait(BEAT_S):
                return

    threading.Thread(target=beat, daemon=True, name="signs of life").start()
    try:
        yield
    finally:
        ended.set()


def read_beat(key: str) -> float | None:
    """The CPU seconds last published under a key; None where there are none."""
    with suppress(Exception):  # as above
        found = _internal_kv_get(key, namespace=_SPACE)
        return float(found) if found else None
    return None


def forget_beats(prefix: str) -> None:
    """Remove what was published under the keys that begin so."""
    with suppress(Exception):
        _internal_kv_del(prefix, del_by_prefix=True, namespace=_SPACE)


@dataclass
class _Seen:
    """The last sign of life of a trial."""

    key: str
    at: float
    seconds: float = 0.0  # of CPU time at that sign
    running: bool = False  # whether a process has it
    told: float = 0.0  # when the user was told last that it waits


class Pulse:
    """What the driver knows of the trials' signs of life.

    A trial may be silent for ``silent_s`` seconds, or for five times the longest pause between two signs of life that
    this sweep has seen, if that is longer: large models report rarely. Without beats (``beats`` is False) nothing is
    known before the first report of the sweep, so no trial is called silent before it.
    """

    def __init__(
        self,
        silent_s: float,
        beats: bool,
        read: Callable[[str], float | None] = read_beat,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.silent_s, self.beats, self.read, self.clock = silent_s, beats, read, clock
        self.longest = 0.0  # pause between two signs of life of one trial
        self.seen: dict[str, _Seen] = {}

    def begin(self, trial_id: str, key: str) -> None:
        """A trial is handed out."""
        self.seen[trial_id] = _Seen(key, self.clock())

    def begin_anew(self) -> None:
        """Count from now: the driver was stopped, so that no trial's silence is its own."""
        for seen in self.seen.values():
            seen.at = self.clock()

    def end(self, trial_id: str) -> None:
        """It is over."""
        self.seen.pop(trial_id, None)

    def sign(self, trial_id: str) -> None:
        """It has reported."""
        seen, now = self.seen[trial_id], self.clock()
        if seen.running:
            self.longest = max(self.longest, now - seen.at)
        seen.at, seen.running = now, True

    def silent(self, trial_id: str, running: bool) -> float | None:
        """The seconds since a trial's last sign of life where they are too many; ``running``: a process has it."""
        seen = self.seen[trial_id]
        if running and not seen.running:
            seen.running, seen.at = True, self.clock()
        seconds = self.read(seen.key) if running and self.beats else None
        if seconds is not None and seconds - seen.seconds >= self.silent_s * _SHARE:
            seen.seconds = seconds
            self.sign(trial_id)
        pause = self.clock() - seen.at
        return pause if pause > self.patience else None

    def waits(self, trial_id: str) -> float | None:
        """The seconds that a trial has waited for a process, each time that the user is to be told."""
        seen, now = self.seen[trial_id], self.clock()
        if now - max(seen.at, seen.told) <= self.silent_s:
            return None
        seen.told = now
        return now - seen.at

    @property
    def patience(self) -> float:
        """The seconds that a trial may be silent."""
        if not self.beats and not self.longest:
            return float("inf")
        return max(self.silent_s, _PATIENCE * self.longest)


def _clock(thread: int) -> Callable[[], float]:
    """Reads the CPU seconds of a thread, of the whole process where the system does not tell them apart."""
    if not hasattr(time, "pthread_getcpuclockid"):
        return time.process_time
    clock = time.pthread_getcpuclockid(thread)
    return lambda: time.clock_gettime(clock)
