"""Metrics of a server in Prometheus' text format; the counts of several replicas are added up."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
PREFIX: Final = "recsys_"
HELP: Final = {
    "calls_total": "calls by path and HTTP status",
    "answers_total": "requests answered, by source of the answer",
    "unlogged_answers_total": "answers that could not be written to serve.log",
    "batches_total": "forward passes of the model",
    "batched_calls_total": "calls answered by these forward passes",
    "swaps_total": "changes to another model version",
    "failed_swaps_total": "model versions that could not be loaded",
}


class Counts:
    """Counters by name and labels, and a latency histogram by path; safe from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: Counter[tuple[str, tuple[tuple[str, str], ...]]] = Counter()
        self._buckets: dict[str, list[int]] = {}
        self._seconds: Counter[str] = Counter()

    def add(self, name: str, number: int = 1, **labels: str) -> None:
        """Add to a counter."""
        with self._lock:
            self._counters[(name, tuple(sorted(labels.items())))] += number

    def took(self, path: str, seconds: float) -> None:
        """Record the time from the arrival of a call to its answer, in seconds."""
        with self._lock:
            buckets = self._buckets.setdefault(path, [0] * (len(BUCKETS_S) + 1))
            buckets[bisect_left(BUCKETS_S, seconds)] += 1
            self._seconds[path] += seconds  # type: ignore[assignment]  # a Counter adds floats as well

    def snapshot(self) -> dict[str, Any]:
        """A copy of all counts that can be sent to another process."""
        with self._lock:
            buckets = {path: list(numbers) for path, numbers in self._buckets.items()}
            return {
                "counters": dict(self._counters),
                "buckets": buckets,
                "seconds": dict(self._seconds),
            }


def exposition(snapshots: Iterable[dict[str, Any]], model: dict[str, str], replicas: int) -> str:
    """The sum of snapshots, the model version and the number of replicas, in Prometheus' text
    format.

    Parameters
    ----------
    snapshots : Iterable[dict[str, Any]]
        Results of :meth:`Counts.snapshot`.
    model : dict[str, str]
        Labels of ``model_info``: ``uri``, ``version`` and ``created``.
    replicas : int
        Number of running replicas.

    Returns
    -------
    str
        The text of GET /metrics; latencies are in seconds.
    """
    counters: Counter[Any] = Counter()
    seconds: Counter[str] = Counter()
    buckets: dict[str, list[int]] = {}
    for snapshot in snapshots:
        counters.update(snapshot["counters"])
        seconds.update(snapshot["seconds"])
        for path, numbers in snapshot["buckets"].items():
            there = buckets.setdefault(path, [0] * len(numbers))
            buckets[path] = [a + b for a, b in zip(there, numbers, strict=True)]
    lines = []
    for name, meaning in HELP.items():
        lines += [f"# HELP {PREFIX}{name} {meaning}", f"# TYPE {PREFIX}{name} counter"]
        found = sorted(
            (labels, number) for (key, labels), number in counters.items() if key == name
        )
        lines += [
            f"{PREFIX}{name}{_labels(dict(labels))} {number}"
            for labels, number in found or [((), 0)]
        ]
    lines += [f"# HELP {PREFIX}call_seconds seconds from the arrival of a call to its answer"]
    lines += [f"# TYPE {PREFIX}call_seconds histogram"]
    for path, numbers in sorted(buckets.items()):
        total = 0
        for bound, number in zip((*BUCKETS_S, "+Inf"), numbers, strict=True):
            total += number
            lines.append(
                f"{PREFIX}call_seconds_bucket{_labels({'path': path, 'le': str(bound)})} {total}"
            )
        lines.append(f"{PREFIX}call_seconds_sum{_labels({'path': path})} {seconds[path]:.6f}")
        lines.append(f"{PREFIX}call_seconds_count{_labels({'path': path})} {total}")
    lines += [f"# TYPE {PREFIX}replicas gauge", f"{PREFIX}replicas {replicas}"]
    lines += [f"# TYPE {PREFIX}model_info gauge", f"{PREFIX}model_info{_labels(model)} 1"]
    return "\n".join(lines) + "\n"


def _labels(labels: dict[str, str]) -> str:
    """Labels in Prometheus' text format.

    >>> _labels({"path": "/a", "le": "1"}), _labels({})
    ('{path="/a",le="1"}', '')
    """
    if not labels:
        return ""
    escaped = {
        name: value.replace("\\", r"\\").replace('"', r"\"").replace("\n", " ")
        for name, value in labels.items()
    }
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped.items()) + "}"
