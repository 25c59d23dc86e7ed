"""Peak memory of a process and all its descendants together, including those of Ray."""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path


class Watch(threading.Thread):
    """The largest value of ``read`` in MiB, which is called every ``pause_s`` seconds.

    By default it sums proportional set sizes: memory that several processes share counts once.
    Large processes take long to read; then the thread reads less often, so that it uses a tenth of
    a core at most.
    """

    def __init__(self, read: Callable[[], float] | None = None, pause_s: float = 0.5) -> None:
        super().__init__(daemon=True)
        self._read, self._pause_s = read or _mib_of_all, pause_s
        self.peak_mib, self._over = 0.0, threading.Event()

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        took = 0.0
        while not self._over.wait(max(self._pause_s, 9 * took)):
            started = time.perf_counter()
            self.peak_mib = max(self.peak_mib, self._read())
            took = time.perf_counter() - started


def _mib_of_all() -> float:
    return sum(map(_pss_mib, _descendants(os.getpid())))


def own_peak_mib() -> float:
    """Peak memory of this process alone so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def cpu_seconds() -> float:
    """CPU time of this process and all its living descendants so far, user and system."""
    ticks = 0
    for pid in _descendants(os.getpid()):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _descendants(root: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
            parents.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [root]
    while waiting:
        found.append(waiting.pop())
        waiting += parents.get(found[-1], [])
    return found


def _pss_mib(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:")), 0.0)
    except OSError:
        return 0.0
