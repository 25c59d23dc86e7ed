"""The MLflow run that the stages of a run folder share.

Why: ``recsys run`` is one MLflow run, and a later ``evaluate`` or ``register`` continues the run of
the training that it belongs to.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from pipelines.plumbing.run_folder import RunFolder
from pipelines.plumbing.session import quiet
from pipelines.plumbing.summary import verdict
from recsys.config import Config, redact
from recsys.errors import UserError
from recsys.evaluation.metrics import parse_metric
from recsys.registry.logged_values import mlflow_name, numbers
from recsys.registry.mlflow_client import short_timeouts
from recsys.registry.tracking import RUN_FILE, Tracker, run_of_folder
from recsys.report.first_screen import best_baseline

# keys of an epoch's report that are not metrics
_PLAIN: Final = {"phase", "epoch", "epochs", "share"}
_OWN: Final = {"loss", "lr", "seconds"}  # keys that are not validation metrics


@contextmanager
def tracked(config: Config, folder: RunFolder, fresh: bool = False) -> Iterator[Tracker]:
    """The tracker of the command, opened on the folder's MLflow run or a new one if no outer stage
    did.

    A resumed command continues the MLflow run of the interrupted one.

    Parameters
    ----------
    config : Config
        Configuration of the command.
    folder : RunFolder
        Folder of the run; it keeps the id of the MLflow run, and the tracker while it is open.
    fresh : bool
        Open a new MLflow run. It has no effect on a resumed command.

    Yields
    ------
    Tracker
        The tracker; it is closed at the end of the stage that opened it.

    Raises
    ------
    UserError
        The stage is refused. If it had not said anything yet, its new MLflow run is deleted.
    """
    if folder.tracker is not None:
        yield folder.tracker
        return
    quiet()
    run_id = (
        ""
        if fresh and not config.run.resume
        else run_of_folder(config.tracking, config.run.dir, folder.root)
    )
    with Tracker(config, run_id=run_id, folder=folder.root) as tracker:
        folder.publish(folder.root / RUN_FILE)
        tracker.adopt(folder.search_run)
        folder.search_run, folder.tracker = "", tracker
        try:
            yield tracker
        except UserError:
            if not folder.progress.has_lines:
                tracker.discard()
            raise
        finally:
            folder.tracker = None


# phases of a training, and of the training on all events
_PHASES = ("train", "refit", "join", "final", "final_join")


class EpochLog:
    """Sends the reports of a training's epochs to MLflow, each exactly once.

    Why: an unavailable server must not stop a training; the last epochs of a killed driver may not
    be logged; and a training that continues from a checkpoint reports the epochs after it again.
    """

    def __init__(self, tracker: Tracker, say: Callable[[str], None]) -> None:
        self._tracker, self._say = tracker, say
        self._known = _logged_epochs(tracker, {f"{phase}.loss" for phase in _PHASES})
        self._times: dict[
            tuple[str, int, float], int
        ] = {}  # so that an epoch that is sent again is identical
        self._is_gone = False

    def __call__(self, values: Mapping[str, Any]) -> None:
        """Log an epoch; if the server does not answer at once, :meth:`complete` logs it later."""
        try:
            with short_timeouts():
                self._log(values)
        except Exception as error:  # whatever fails here, hours of training must not be lost
            if not self._is_gone:
                reason = redact(str(error).strip().split("\n")[0])[:200]
                self._say(
                    "logging to MLflow failed; the training continues, and its epochs are logged at"
                    f" the end ({reason})"
                )
            self._is_gone = True
        else:
            if self._is_gone:
                self._say("MLflow answers again")
            self._is_gone = False

    def complete(self, history: list[dict[str, Any]]) -> None:
        """Log the missing epochs, with all retries of MLflow.

        Raises
        ------
        MlflowException
            The server still does not answer.
        """
        if any(_identity(values) not in self._known for values in history):
            names = {_identity(values)[0] for values in history}
            # some may have arrived without a reply
            self._known |= _logged_epochs(self._tracker, names)
        missing = [values for values in history if _identity(values) not in self._known]
        for values in missing:
            self._log(values)
        if missing and self._tracker.enabled:
            self._say(f"logged {len(missing)} earlier epoch{'s' * (len(missing) != 1)} to MLflow")

    def _log(self, values: Mapping[str, Any]) -> None:
        identity = _identity(values)
        if identity not in self._known:
            log_epoch(
                self._tracker, values, self._times.setdefault(identity, int(time.time() * 1000))
            )
            self._known.add(identity)


def log_epoch(tracker: Tracker, values: Mapping[str, Any], time_ms: int | None = None) -> None:
    """Log one epoch: ``train.loss``, ``train.lr`` and ``valid.METRIC``, or ``refit.loss``,
    ``join.loss``, ….

    Parameters
    ----------
    tracker : Tracker
        The open tracker.
    values : Mapping[str, Any]
        A report of the training loop: ``epoch``, ``phase`` and the values.
    time_ms : int | None
        Time of the epoch in milliseconds since 1970; None: now.
    """
    prefix = _prefix(values)
    metrics = {
        f"{prefix if key in _OWN else 'valid'}.{key}": value
        for key, value in values.items()
        if key not in _PLAIN
    }
    tracker.log_metrics(metrics, int(values["epoch"]), time_ms)


def _prefix(values: Mapping[str, Any]) -> str:
    phase = str(values.get("phase", "select"))
    return "train" if phase in ("select", "checked") else phase


def _identity(values: Mapping[str, Any]) -> tuple[str, int, float]:
    """Name, step and value of an epoch's loss; without a training, of its validation metric.

    An epoch that is trained again has the same loss, so this identifies it.
    """
    if "loss" not in values:
        name = next(key for key in values if key not in _PLAIN | _OWN)
        return f"valid.{name}", int(values["epoch"]), float(values[name])
    return f"{_prefix(values)}.loss", int(values["epoch"]), float(values["loss"])


def _logged_epochs(tracker: Tracker, names: set[str]) -> set[tuple[str, int, float]]:
    if not tracker.enabled:
        return set()
    return {
        (name, int(metric.step), float(metric.value))
        for name in names
        for metric in tracker.client.get_metric_history(tracker.run_id, mlflow_name(name))
    }


def log_evaluation(tracker: Tracker, metrics: dict[str, Any]) -> None:
    """Log an evaluation to MLflow.

    Twelve headline metrics without a prefix; all others as ``test.METRIC``, ``timing/…`` and
    ``granularities/…``; one table each for baselines and segments; a figure with the main metric of
    all recommenders; the verdict as the run's description.
    """
    tracker.log_metrics(headlines(metrics))
    weights = {
        f"granularities/{name}": entry["weight"] for name, entry in metrics["granularities"].items()
    }
    timing = {f"timing/{name}": value for name, value in metrics["timing"].items()}
    tracker.log_metrics({"test": metrics["model"], **timing, **weights})
    named = {"model": metrics["model"], **metrics["baselines"]}
    tracker.log_table(
        [{"recommender": name, **values} for name, values in named.items()], "baselines.json"
    )
    tracker.log_table(_segment_rows(metrics), "segments.json")
    if tracker.enabled:
        from pipelines.plumbing.mlflow_figure import recommenders_figure

        tracker.log_figure(recommenders_figure(metrics), "figures/recommenders.png")
    tracker.describe(
        f"{verdict(metrics)}\n\n{headline_markdown(metrics)}\n\nThe full report is `report.html`."
    )


def headlines(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Twelve headline metrics: accuracy at the main cut-off, lift over the best baseline, size and
    time.
    """
    main = parse_metric(metrics["metric"])
    names = dict.fromkeys(
        [str(main), *(f"{kind}@{main.k}" for kind in ("ndcg", "recall", "hit", "mrr", "coverage"))]
    )
    found = {name: metrics["model"][name] for name in names if name in metrics["model"]}
    best = best_baseline(metrics["comparison"])
    if best:
        against = metrics["comparison"]["against"][best]
        found |= {"best_baseline": metrics["baselines"][best][metrics["metric"]]}
        found |= {
            f"lift{end}": against[key]
            for end, key in (("", "difference"), ("_low", "low"), ("_high", "high"))
        }
    found |= {"test_users": metrics["data"]["queries"]}
    found |= {
        name: metrics["timing"][name]
        for name in ("prepare_s", "train_s")
        if name in metrics["timing"]
    }
    return {name: float(value) for name, value in found.items()}


def headline_markdown(metrics: Mapping[str, Any]) -> str:
    """The main metric of every recommender, best first, as a table in Markdown."""
    metric = metrics["metric"]
    named = {"**model**": metrics["model"], **metrics["baselines"]}
    ordered = sorted(named, key=lambda name: -named[name][metric])
    return "\n".join(
        [
            f"| | {metric} |",
            "|---|---|",
            *(f"| {name} | {named[name][metric]:.4f} |" for name in ordered),
        ]
    )


def _segment_rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows with group, segment and its metrics by dotted path."""
    return [
        {"group": group, "segment": segment, **numbers(entry)}
        for group, entries in metrics["segments"].items()
        for segment, entry in entries.items()
        if isinstance(entry, Mapping)
    ]
