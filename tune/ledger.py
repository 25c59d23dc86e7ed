"""The ledger of a sweep: one JSON line per event of a trial, on disk before it takes effect.

Why our own: a sweep runs for hours and its process may be killed at any time. Ray's snapshots are
behind (a restored sweep repeated one finished trial and replaced another). So this file decides: an
event in it is done, everything else is done again under the same number. Lines are never changed.

Events: ``sweep`` (what is searched, once), ``start``, ``epoch`` and ``end`` of a trial, ``chosen``
(the best trial, again if more trials find a better one), ``final`` (the model of the chosen trial).
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from recsys.errors import ArtifactError
from recsys.storage.beside import append_to

State = Literal["running", "finished", "stopped", "failed"]


@dataclass
class Trial:
    """One training of the sweep. ``repeat`` 0 is the proposed trial; others repeat it with another
    seed.
    """

    number: int
    repeat: int
    seed: int
    params: dict[str, Any]  # dotted path → value; empty for the given configuration
    state: State = "running"
    epochs: dict[int, dict[str, float]] = field(default_factory=dict)  # epoch → value, best so far
    # epoch → the report of the training loop
    history: dict[int, dict[str, Any]] = field(default_factory=dict)
    value: float | None = None  # of the chosen model, on the evaluated users
    reason: str = ""  # why it failed
    blame: str = ""  # "user" if data or settings are wrong, otherwise "program"
    seconds: float = 0.0  # of its training, without the overhead of the sweep
    began: float = 0.0  # start, on the monotonic clock
    ended: float = 0.0

    @property
    def name(self) -> str:
        """Number and repetition, as in ``trials/NNN``.

        >>> Trial(3, 0, 42, {}).name, Trial(3, 1, 43, {}).name
        ('003', '003-1')
        """
        return f"{self.number:03d}" + (f"-{self.repeat}" if self.repeat else "")

    @property
    def best(self) -> float | None:
        """The value if there is one, else that of the best epoch so far."""
        if self.value is not None:
            return self.value
        return max((epoch["best"] for epoch in self.epochs.values()), default=None)


class Ledger:
    """The file and its content. Opening it reads it and removes an incomplete last line, left by a
    kill.

    Raises
    ------
    ArtifactError
        Another line is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.identity: dict[str, Any] = {}
        self.trials: dict[tuple[int, int], Trial] = {}
        self.order: list[tuple[Trial, int]] = []  # epochs in the order of their reports
        self.chosen: int | None = None
        self.final: dict[str, Any] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            self._read()

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Write the first line: the search space and the dataset."""
        self._write({"event": "sweep", "identity": dict(identity)})

    def start(self, trial: Trial) -> None:
        """Record that a trial starts; an interrupted one starts again under its number."""
        line = {"params": trial.params, "seed": trial.seed}
        self._write({"event": "start", "trial": trial.number, "repeat": trial.repeat, **line})

    def epoch(self, trial: Trial, report: Mapping[str, Any]) -> None:
        """Record a validated epoch: its value, the best so far, and the loop's reports since the
        last one.
        """
        values = {key: report[key] for key in ("epoch", "value", "best", "history")}
        self._write({"event": "epoch", "trial": trial.number, "repeat": trial.repeat, **values})

    def end(self, trial: Trial, state: State, **details: Any) -> None:
        """Record the end: ``value`` and ``seconds`` of a finished trial, ``reason`` and ``blame``
        of a failed one.
        """
        self._write(
            {
                "event": "end",
                "trial": trial.number,
                "repeat": trial.repeat,
                "state": state,
                **details,
            }
        )

    def choose(self, number: int) -> None:
        """Record the best trial; the model of another one is no longer the final model."""
        self._write({"event": "chosen", "trial": number})

    def close(self, final: Mapping[str, Any]) -> None:
        """Record that the model of the best trial is trained, evaluated and registered."""
        self._write({"event": "final", **final})

    def searched(self) -> list[Trial]:
        """The proposed trials, in order of their numbers."""
        return [self.trials[key] for key in sorted(self.trials) if key[1] == 0]

    def of(self, number: int) -> list[Trial]:
        """A proposed trial and its repetitions with other seeds."""
        return [self.trials[key] for key in sorted(self.trials) if key[0] == number]

    def added_seconds(self) -> float | None:
        """Median overhead per finished trial; the median, because the first trial also starts a
        process.
        """
        added = [
            t.ended - t.began - t.seconds for t in self.trials.values() if t.state == "finished"
        ]
        return statistics.median(added) if added else None

    def _write(self, line: dict[str, Any]) -> None:
        line = {**line, "time": round(time.time(), 3)}
        text = json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"
        with self.path.open("ab") as file:
            append_to(file.fileno(), text.encode())
            # the trial continues only when the line survives a power failure
            os.fsync(file.fileno())
        self._take(line)

    def _read(self) -> None:
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            # else the next line would be appended to the half one
            os.truncate(self.path, len(whole))
        for number, line in enumerate(whole.decode("utf-8", errors="replace").splitlines(), 1):
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise ArtifactError(
                    f"{self.path}, line {number} is damaged ({type(error).__name__}: {error});"
                    " delete the line, or start a new sweep with another --run.dir"
                ) from None

    def _take(self, line: dict[str, Any]) -> None:
        event = line["event"]
        if event == "sweep":
            self.identity = line["identity"]
        elif event == "chosen":
            self.chosen, self.final = line["trial"], {}
        elif event == "final":
            self.final = {key: value for key, value in line.items() if key != "event"}
        elif event == "start":
            key = (line["trial"], line["repeat"])
            # an interrupted trial keeps its epochs, because it continues from its checkpoint
            if key not in self.trials:
                self.trials[key] = Trial(*key, seed=line["seed"], params=line["params"])
            self.trials[key].began = line["time"]
        elif event == "epoch":
            trial = self.trials[(line["trial"], line["repeat"])]
            trial.epochs[line["epoch"]] = {"value": line["value"], "best": line["best"]}
            trial.history |= {int(report["epoch"]): report for report in line["history"]}
            self.order.append((trial, line["epoch"]))
        elif event == "end":
            trial = self.trials[(line["trial"], line["repeat"])]
            trial.state, trial.ended = line["state"], line["time"]
            for name in ("value", "reason", "blame", "seconds"):
                setattr(trial, name, line.get(name, getattr(trial, name)))
        else:
            raise ValueError(f"unknown event {event!r}")
