"""Heartbeats: detect a trial that hangs, name it and end it, so that the sweep continues.

Why: Ray notices a process that dies, but not one that waits forever: for a lock, a lost network
disk or a device driver. One such trial blocked its sweep forever.

A heartbeat is a report, or CPU time. In a trial of one process, a thread publishes every few
seconds the CPU seconds that the training thread has used. It writes them to Ray's key-value store,
which every machine of the cluster can reach. For a trial of several workers only reports are known.
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
# share of a CPU; a computing thread gets more even under load, a polling thread gets less
_SHARE: Final = 0.002
_PATIENCE: Final = 5.0  # times the longest pause between two heartbeats so far


@contextmanager
def beating(key: str) -> Iterator[None]:
    """Publish the CPU time of the calling thread under ``key`` until the block ends; not for an
    empty key.
    """
    if not key:
        yield
        return
    seconds, ended = _clock(threading.get_ident()), threading.Event()

    def beat() -> None:
        while True:
            with suppress(
                Exception
            ):  # the store may be unavailable for a moment; a lost beat is harmless
                _internal_kv_put(key, f"{seconds():.3f}", overwrite=True, namespace=_SPACE)
            if ended.wait(BEAT_S):
                return

    threading.Thread(target=beat, daemon=True, name="signs of life").start()
    try:
        yield
    finally:
        ended.set()


def read_beat(key: str) -> float | None:
    """The CPU seconds last published under a key, or None."""
    with suppress(Exception):  # as above
        found = _internal_kv_get(key, namespace=_SPACE)
        return float(found) if found else None
    return None


def forget_beats(prefix: str) -> None:
    """Remove the beats of all keys with this prefix."""
    with suppress(Exception):
        _internal_kv_del(prefix, del_by_prefix=True, namespace=_SPACE)


@dataclass
class _Seen:
    """The last heartbeat of a trial."""

    key: str
    at: float
    seconds: float = 0.0  # CPU time at that heartbeat
    running: bool = False  # whether a process runs it
    warned_at: float = 0.0  # time of the last message that it waits


class Pulse:
    """Watches the heartbeats of the trials, in the driver.

    A trial may be silent for ``silent_s`` seconds or, because large models report rarely, for five
    times the longest pause between two heartbeats in this sweep, whichever is longer. Without beats
    (``beats`` is False) nothing is known before the first report of the sweep, so no trial counts
    as silent before it.
    """

    def __init__(
        self,
        silent_s: float,
        beats: bool,
        read: Callable[[str], float | None] = read_beat,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.silent_s, self.beats, self.read, self.clock = silent_s, beats, read, clock
        self.longest = 0.0  # longest pause between two heartbeats of one trial
        self.seen: dict[str, _Seen] = {}

    def begin(self, trial_id: str, key: str) -> None:
        """Note that a trial is handed out."""
        self.seen[trial_id] = _Seen(key, self.clock())

    def restart(self) -> None:
        """Count all pauses from now: the driver itself was stopped, so they are not the trials'
        fault.
        """
        for seen in self.seen.values():
            seen.at = self.clock()

    def end(self, trial_id: str) -> None:
        """Note that a trial has ended."""
        self.seen.pop(trial_id, None)

    def sign(self, trial_id: str) -> None:
        """Note a report of a trial."""
        seen, now = self.seen[trial_id], self.clock()
        # the wait for a process is no pause of the training
        if seen.running:
            self.longest = max(self.longest, now - seen.at)
        seen.at, seen.running = now, True

    def silent(self, trial_id: str, running: bool) -> float | None:
        """Seconds since a trial's last heartbeat if they are too many, else None; ``running``: a
        process runs it.
        """
        seen = self.seen[trial_id]
        if running and not seen.running:
            # counted from here, because the trial may have waited for a process
            seen.running, seen.at = True, self.clock()
        seconds = self.read(seen.key) if running and self.beats else None
        # some CPU time is no sign of life: a waiting thread polls
        if seconds is not None and seconds - seen.seconds >= self.silent_s * _SHARE:
            seen.seconds = seconds
            self.sign(trial_id)
        pause = self.clock() - seen.at
        return pause if pause > self.patience else None

    def waits(self, trial_id: str) -> float | None:
        """Seconds that a trial has waited for a process, if it is time for a message; else None."""
        seen, now = self.seen[trial_id], self.clock()
        if now - max(seen.at, seen.warned_at) <= self.silent_s:
            return None
        seen.warned_at = now
        return now - seen.at

    @property
    def patience(self) -> float:
        """Seconds that a trial may be silent."""
        if not self.beats and not self.longest:
            return float("inf")
        return max(self.silent_s, _PATIENCE * self.longest)


def _clock(thread: int) -> Callable[[], float]:
    """A function that reads the CPU seconds of a thread, or of the process if the system has only
    those.
    """
    if not hasattr(time, "pthread_getcpuclockid"):
        return time.process_time
    clock = time.pthread_getcpuclockid(thread)
    return lambda: time.clock_gettime(clock)
