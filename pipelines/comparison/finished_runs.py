"""The two runs of a comparison: open their folders, and check that both were evaluated on the same
queries.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO

from pipelines.plumbing.opened_model import model_sha256
from pipelines.plumbing.progress import Progress
from pipelines.plumbing.run_folder import RunFolder
from recsys.config import Config, load_config
from recsys.errors import ArtifactError, ConfigError
from recsys.evaluation.metrics import QUERY_METRICS, parse_metric
from recsys.registry.logged_values import flatten
from recsys.storage.temporary import temporary
from recsys.storage.uris import is_remote

_CURE: Final = "give the folder of a finished `recsys run`, or run `recsys evaluate` for it first"

_READ: Final = ("data", "granularities", "model")  # sections of metrics.json


@dataclass(frozen=True)
class FinishedRun:
    """One finished run."""

    given: str  # the run folder as the user named it
    folder: RunFolder
    config: Config
    metrics: dict[str, Any]

    @property
    def ks(self) -> set[int]:
        """Cut-offs of the metrics that this run has."""
        return {
            *self.config.evaluate.ks,
            parse_metric(self.config.train.metric, tuple(QUERY_METRICS)).k,
        }


@contextmanager
def opened_run(run: str, stream: TextIO | None = None) -> Iterator[FinishedRun]:
    """Open a run folder for reading, a remote one as a temporary copy; it is neither made nor
    locked.

    Yields
    ------
    FinishedRun
        The run, readable until the block ends.

    Raises
    ------
    ArtifactError
        It is not the folder of a finished and evaluated run.
    """
    with temporary() as name:
        mirror = None
        root = Path(run)
        if is_remote(run):
            from recsys.storage.mirror import Mirror

            root, mirror = Path(name), Mirror(Path(name), run)
            mirror.fetch_small(leave=(".lock", "dataset.lock", "recommendations.parquet"))
        elif not root.is_dir():
            raise ArtifactError(f"{run} is not a folder; {_CURE}")
        folder = RunFolder(root, Progress(stream or sys.stdout, Path(name) / "compare.log"), mirror)
        if not folder.config.is_file():
            raise ArtifactError(f"{run} is not a run folder: config.yaml is missing; {_CURE}")
        metrics = folder.read_json(folder.metrics, _CURE)
        if not (folder.model / "model.safetensors").is_file():
            raise ArtifactError(f"{run} has no trained model: model/ is missing; {_CURE}")
        if metrics.get("model_sha256") != model_sha256(folder):
            raise ArtifactError(
                f"metrics.json in {run} belongs to another model than the one in model/; "
                "run `recsys evaluate` for this run folder"
            )
        if missing := [key for key in _READ if not isinstance(metrics.get(key), dict)]:
            raise ArtifactError(
                f"metrics.json in {run} lacks {' and '.join(missing)}; run `recsys evaluate` for"
                " this run folder"
            )
        yield FinishedRun(run, folder, load_config(folder.config, [("run.dir", run)]), metrics)


def check_same(first: FinishedRun, second: FinishedRun) -> None:
    """Check by their metrics that both runs were evaluated on the same queries.

    Raises
    ------
    ConfigError
        They were not; the message names every difference.
    """  # noqa: DOC501
    ours, theirs = first.metrics["data"], second.metrics["data"]
    keys = ["split"] if ours["content_hash"] != theirs["content_hash"] else []
    keys += ["exclude_seen", "asked_queries", "queries"]
    found = []
    if ours["content_hash"] != theirs["content_hash"]:
        shown = [f"{data['name']} {data['content_hash'][:12]}" for data in (ours, theirs)]
        found.append(f"dataset: {shown[0]} and {shown[1]}{_prepared_differently(first, second)}")
    found += [
        f"{key}: {ours.get(key)} and {theirs.get(key)}"
        for key in keys
        if ours.get(key) != theirs.get(key)
    ]
    if found:
        raise difference_error(first, second, found)


def _prepared_differently(first: FinishedRun, second: FinishedRun) -> str:
    """The settings of section ``data`` that differ, for a message; none means that the files
    differ.
    """
    before, after = (
        flatten(side.config.data.model_dump(mode="json"), "data.") for side in (first, second)
    )
    keys = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    shown = [
        f"{key} {before.get(key)!r} and {after.get(key)!r}" for key in keys if key != "data.dir"
    ]
    return (
        f" ({'; '.join(shown[:5])}{' …' if len(shown) > 5 else ''})"
        if shown
        else " (the files of the source differ)"
    )


def difference_error(first: FinishedRun, second: FinishedRun, found: list[str]) -> ConfigError:
    """The error for runs without the same queries, with all differences.

    Parameters
    ----------
    first : FinishedRun
        One run.
    second : FinishedRun
        The other run.
    found : list[str]
        The differences, such as ``queries: 100 and 90``.

    Returns
    -------
    ConfigError
        The error to raise.
    """
    return ConfigError(
        f"{first.given} and {second.given} were not evaluated on the same queries, so a paired test"
        f" is not possible: {'; '.join(found)}; train and evaluate both with the same data and"
        " evaluate settings"
    )
