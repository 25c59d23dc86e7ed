"""The runs to show: run folders in given folders, and runs that only MLflow has.

A page names a run by its key, which is looked up among the found runs, so a URL never contains a
path that is opened.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

from recsys.bundle.description import WEIGHTS
from recsys.config import redact
from recsys.errors import ArtifactError, MultigrainError, first_line
from recsys.evaluation.bootstrap import THAN, outcome
from recsys.evaluation.member_scores import kept_names
from recsys.registry.logged_values import mlflow_name
from recsys.registry.mlflow_client import all_pages, client, short_timeouts, sqlite_path
from recsys.registry.run_tags import PARENT_TAG, PROCESS_TAG
from recsys.registry.store_state import check, settled
from recsys.registry.tracking import RUN_FILE
from recsys.report.first_screen import verdict
from recsys.storage.locks import has_ended, is_alive
from recsys.storage.uris import is_remote
from recsys.ui.run_files import (
    BundleShape,
    MetricsShape,
    PromotionShape,
    TrackedShape,
    content_of,
)

T = TypeVar("T")

_MOST: Final = 200  # maximum number of MLflow runs
_FRESH_S: Final = 10.0  # seconds that an answer of MLflow is reused
_PROMOTIONS: Final = (
    "-promotions"  # suffix of the experiment of promotions, which the page of models shows
)
_EVALUATING: Final = ("run", "evaluate", "update", "tune")  # verbs that end with an evaluation
_LOCKED_BY: Final = re.compile(r"process (\d+) on (\S+), since")
_REPORTS: Final = {"report": "report.html", "sweep": "sweep.html", "fusion": "fusion/report.html"}


@dataclass(frozen=True)
class Run:
    """A run for the pages."""

    key: str
    name: str
    time: datetime
    status: str  # finished, failed, running, stopped, …; for a folder also: evaluated or not
    folder: Path | None = None
    metric: str = ""
    value: float | None = None
    interval: tuple[float, float] | None = None
    # status, head and text; empty if nothing was measured
    verdict: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)  # metrics.json
    promotion: Mapping[str, Any] = field(default_factory=dict)  # promotion.json
    dataset: str = ""
    run_id: str = ""
    granularities: tuple[str, ...] = ()  # without dropped ones

    @property
    def has_bundle(self) -> bool:
        """Whether its run folder has a bundle."""
        return self.folder is not None and (self.folder / "bundle/bundle.json").is_file()

    @property
    def weights(self) -> str:
        """SHA-256 of the weights of its bundle; empty without one."""
        if self.folder is None:
            return ""
        info = content_of(self.folder / "bundle/bundle.json", BundleShape)
        return str(info.get("files", {}).get(WEIGHTS, {}).get("sha256", ""))

    @property
    def is_comparable(self) -> bool:
        """Whether ``recsys compare`` can use its model."""
        return (
            self.folder is not None
            and bool(self.metrics)
            and (self.folder / "model/model.safetensors").is_file()
        )

    @property
    def reports(self) -> list[str]:
        """Names of the existing reports, for :meth:`report`."""
        return [name for name in _REPORTS if self.report(name) is not None]

    def report(self, name: str) -> Path | None:
        """The file of a report, or None if there is no report with this name."""
        if self.folder is None or name not in _REPORTS:
            return None
        path = self.folder / _REPORTS[name]
        return path if path.is_file() else None


class Runs:
    """Finds runs.

    Parameters
    ----------
    folders
        Run folders, or folders that contain run folders.
    tracking_uri
        MLflow's URI; empty: none.
    """

    def __init__(self, folders: Sequence[str], tracking_uri: str) -> None:
        self.folders, self.tracking_uri = list(folders), tracking_uri
        self._of_mlflow: tuple[float, list[Run], str] = (-_FRESH_S, [], "")

    def all(self) -> list[Run]:
        """All runs, the newest first."""
        found = list(self._of_folders())
        known = {run.run_id for run in found}
        found += [run for run in self._from_mlflow()[0] if run.run_id not in known]
        return sorted(found, key=lambda run: run.time, reverse=True)

    def get(self, key: str) -> Run | None:
        """The run with a key, or None."""
        return next((run for run in self.all() if run.key == key), None)

    @property
    def problem(self) -> str:
        """Why MLflow's runs are not shown; empty if they are."""
        return self._from_mlflow()[1]

    def _of_folders(self) -> Iterator[Run]:
        taken: set[str] = set()
        for folder, name in _folders(self.folders):
            key, number = name, 2
            while key in taken:
                key, number = f"{name}~{number}", number + 1
            taken.add(key)
            yield _of_folder(folder, key)

    def _from_mlflow(self) -> tuple[list[Run], str]:
        when, runs, problem = self._of_mlflow
        # a page reads the runs several times, and a server that is down takes seconds to fail
        if time.monotonic() - when > _FRESH_S:
            runs, problem = _of_mlflow(self.tracking_uri)
            self._of_mlflow = (time.monotonic(), runs, problem)
        return runs, problem


def _folders(folders: Iterable[str]) -> Iterator[tuple[Path, str]]:
    """Run folders with short names: the given folders, run folders inside them, and best runs of
    sweeps.

    Yields
    ------
    tuple of (Path, str)
        The resolved folder, and a name to show.
    """
    seen: set[Path] = set()
    for given in folders:
        root = Path(given)
        if is_remote(given) or not root.is_dir():
            continue
        whole = root.resolve()
        for config in [
            *root.glob("config.yaml"),
            *sorted(root.glob("*/config.yaml")),
            *sorted(root.glob("*/best/config.yaml")),
        ]:
            folder = config.parent.resolve()
            if folder not in seen:
                seen.add(folder)
                name = whole.name if folder == whole else config.parent.relative_to(root).as_posix()
                # a name that is not UTF-8 cannot be shown, nor be part of a URL
                yield folder, os.fsencode(name).decode(errors="replace")


def _of_folder(folder: Path, key: str) -> Run:
    metrics = content_of(folder / "metrics.json", MetricsShape)
    metric = metrics.get("metric", "")
    ends = metrics.get("confidence", {}).get("model", {}).get(metric)
    newest = folder / ("metrics.json" if metrics else "config.yaml")
    return Run(
        key=key,
        name=key,
        time=datetime.fromtimestamp(newest.stat().st_mtime, UTC),
        status="evaluated" if metrics else _status(folder),
        folder=folder,
        metric=metric,
        value=metrics.get("model", {}).get(metric),
        interval=(ends[0], ends[1]) if ends else None,
        verdict=verdict_of(metrics),
        metrics=metrics,
        promotion=content_of(folder / "promotion.json", PromotionShape),
        dataset=str(metrics.get("data", {}).get("name", "")),
        run_id=content_of(folder / RUN_FILE, TrackedShape).get("run_id", ""),
        granularities=tuple(
            kept_names(metrics.get("members") or {}, metrics.get("granularities", ()))
        ),
    )


def _status(folder: Path) -> str:
    """What became of a run without metrics: it runs, was stopped, or was not to be evaluated."""
    try:
        found = _LOCKED_BY.search((folder / ".lock").read_text(encoding="utf-8"))
        if found and found[2] == socket.gethostname() and is_alive(int(found[1])):
            return "running"
        last = (folder / "history.jsonl").read_text(encoding="utf-8").splitlines()[-1]
        return "stopped" if json.loads(last)["verb"] in _EVALUATING else "not evaluated"
    except (OSError, ValueError, LookupError, TypeError):
        return "not evaluated"


def verdict_of(metrics: Mapping[str, Any]) -> Mapping[str, str]:
    """The report's sentence on the model and the best baseline; empty if metrics are missing."""
    try:
        return verdict(metrics)
    except (LookupError, TypeError, AttributeError):  # none, or one of an earlier release
        return {}


def _of_mlflow(uri: str) -> tuple[list[Run], str]:
    """MLflow's newest runs without the trials of sweeps, and an error message or an empty text."""
    found, problem = answer_of(uri, _newest_runs)
    return [_of_run(run) for run in found], problem


def _newest_runs(registry: Any) -> list[Any]:
    experiments = [
        one.experiment_id
        for one in all_pages(registry.search_experiments, max_results=1000)
        if not one.name.endswith(_PROMOTIONS)
    ]
    found = all_pages(
        registry.search_runs,
        experiment_ids=experiments,
        max_results=_MOST,
        order_by=["attributes.start_time DESC"],
    )
    # one sweep may have more trials than a page has runs
    return list(islice((run for run in found if PARENT_TAG not in run.data.tags), _MOST))


def answer_of(uri: str, ask: Callable[[Any], list[T]]) -> tuple[list[T], str]:
    """What MLflow answers, and an error message or an empty text.

    An unavailable server or a wrong file gives no answer and a message, so that the rest of the
    dashboard still works. A store that does not exist yet gives neither.
    """
    try:
        with short_timeouts():
            registry = _reader(uri) if uri else None
            return ([] if registry is None else ask(registry)), ""
    except Exception as error:
        return [], _problem_of(uri, error)


def _reader(uri: str) -> Any:
    """An ``MlflowClient`` for reading; None if there is no SQLite store yet.

    Raises
    ------
    ArtifactError
        An older MLflow made the store, and opening would upgrade it; or it is damaged.
    """
    path = sqlite_path(uri)
    if path is not None:
        if not path.is_file():
            return None
        check(path)
        if settled(path).kind == "older":
            raise ArtifactError(
                f"an older MLflow made {path}; the next command that writes to it, such as recsys"
                " run, upgrades it"
            )
    return client(uri)


def _problem_of(uri: str, error: Exception) -> str:
    """Why MLflow cannot be read, in one sentence."""
    why = (
        str(error)
        if isinstance(error, MultigrainError)
        else f"{redact(uri)} does not answer: {first_line(error)}"
    )
    return redact(why)[:400]


def _of_run(run: Any) -> Run:
    metric = str(run.data.params.get("train.metric", ""))
    low, high = (run.data.metrics.get(name) for name in ("lift_low", "lift_high"))
    is_killed = run.info.status == "RUNNING" and has_ended(run.data.tags.get(PROCESS_TAG, ""))
    return Run(
        key=f"mlflow-{run.info.run_id}",
        name=str(run.info.run_name or run.info.run_id[:8]),
        time=datetime.fromtimestamp(run.info.start_time / 1000, UTC),
        status="stopped" if is_killed else str(run.info.status).lower(),
        metric=metric,
        value=run.data.metrics.get(mlflow_name(metric)) if metric else None,
        verdict={} if low is None or high is None else _lift(float(low), float(high)),
        dataset=str(run.data.tags.get("dataset.name", "")),
        run_id=run.info.run_id,
    )


def _lift(low: float, high: float) -> dict[str, str]:
    status = outcome({"low": low, "high": high})
    return {
        "status": status,
        "head": f"The model is {THAN[status]} the best baseline.",
        "text": f"95 % interval of the difference {low:+.4f} to {high:+.4f}.",
    }
