"""Stage ``evaluate``: measure the trained model and the baselines on the test split.

Writes RUN/metrics.json and RUN/report.html.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final

from pipelines.plumbing.opened_dataset import open_dataset
from pipelines.plumbing.opened_model import ORIGIN, model_sha256, open_trained
from pipelines.plumbing.run_folder import RunFolder
from pipelines.plumbing.run_tracking import log_evaluation, tracked
from pipelines.plumbing.session import quiet
from pipelines.plumbing.summary import member_table, signal_table, verdict
from pipelines.steps.final import planned
from pipelines.steps.retrained_ablation import retrained_variants
from recsys.config import Config, EvaluateConfig, PromoteConfig, TrainConfig, dump_config, redacted
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Split
from recsys.data.manifest import Manifest
from recsys.data.repeats import repeats_line
from recsys.data.titles import item_titles
from recsys.errors import ArtifactError
from recsys.evaluation.ablation import compare_variants
from recsys.evaluation.cluster_descriptions import describe_user_clusters
from recsys.evaluation.evaluate import Evaluation
from recsys.evaluation.evaluate import evaluate as evaluate_model
from recsys.evaluation.example_users import example_users
from recsys.evaluation.granularity_panels import granularity_panels
from recsys.evaluation.rating_errors import rating_report
from recsys.gate.drift import drift_panel, with_calibration
from recsys.model import FrozenModel
from recsys.registry.tracking import Tracker
from recsys.report.report import render_report
from recsys.serving.trade_off import trade_off
from recsys.training.checkpoint import TrainResult
from recsys.training.pruned import KEPT
from recsys.training.selected import STACK
from recsys.training.threads import settle_threads

_MANY_NEW: Final = 0.9  # share of test users without a history, above which the split is doubted
_LOGGED: Final = "evaluation"  # tag of the MLflow run: the evaluation that is logged completely


def evaluate(config: Config, folder: RunFolder) -> dict[str, Any]:
    """Evaluate, write metrics and report, and return the content of ``metrics.json``."""
    quiet()
    dataset = open_dataset(config.data, config.dataset_dir, config.seed)
    trained = open_trained(config.model, folder, dataset)
    if config.run.resume and (
        earlier := measured(folder, _identity(config.train, config.evaluate, folder))
    ):
        folder.progress(f"{folder.metrics} already holds the metrics of this model")
        with tracked(config, folder) as tracker:  # its driver may have died before it logged them
            if tracker.tag(_LOGGED) != _mark(earlier):
                _log(tracker, folder, earlier)
        return earlier
    started = time.perf_counter()
    with folder.progress.stage("evaluate"), tracked(config, folder) as tracker:
        settings = config.evaluate
        evaluation, metrics = _measure(config, folder, dataset, trained)
        shown = (settings.num_examples, config.seed, settings.show_ids)
        examples = example_users(trained.frozen, dataset, evaluation.ranking, *shown)
        metrics["timing"]["evaluate_s"] = time.perf_counter() - started
        folder.write_json(folder.metrics, metrics)
        write_report = partial(
            render_report,
            folder.report,
            manifest=dataset.manifest,
            training_history=trained.history,
            examples=examples,
            config_yaml=dump_config(redacted(config)),
            name=config.run.shown_name,
        )
        write_report(metrics)
        folder.rewrite_report = write_report
        folder.publish(folder.report)
        _log(tracker, folder, metrics)
        say(metrics, config.train.metric, folder)
    return metrics


def measure(config: Config, folder: RunFolder) -> dict[str, Any]:
    """What :func:`evaluate` returns, for a look with other settings of the section ``evaluate``.

    The run keeps its metrics, its report and its run in MLflow: a registration reads them.
    """
    quiet()
    dataset = open_dataset(config.data, config.dataset_dir, config.seed)
    trained = open_trained(config.model, folder, dataset)
    with folder.progress.stage("evaluate"):
        _, metrics = _measure(config, folder, dataset, trained)
        say(metrics, config.train.metric, folder)
    return metrics


def _measure(
    config: Config, folder: RunFolder, dataset: PreparedDataset, trained: TrainResult
) -> tuple[Evaluation, dict[str, Any]]:
    settle_threads(config.model, config.train, dataset.num_items, folder.progress)
    baselines = ", ".join(config.evaluate.baselines) or "no baseline"
    folder.progress(
        f"ranking all {dataset.num_items:,} items for the test users: the model, {baselines}"
    )
    evaluation = evaluate_model(
        trained.frozen, dataset, config, trained.refit, trained.choices.get(STACK)
    )
    return evaluation, _all_metrics(config, folder, dataset, trained, evaluation)


def _identity(train: TrainConfig, evaluate: EvaluateConfig, folder: RunFolder) -> dict[str, str]:
    """Which model is measured, with which settings."""
    return {
        "model_sha256": model_sha256(folder),
        "settings_sha256": settings_sha256(train, evaluate),
    }


def _log(tracker: Tracker, folder: RunFolder, metrics: dict[str, Any]) -> None:
    """Log the metrics and the report to MLflow."""
    log_evaluation(tracker, metrics)
    for path in (folder.metrics, folder.report):
        tracker.log_file(path)
    tracker.set_tags({_LOGGED: _mark(metrics)})  # last: everything is there


def _mark(metrics: Mapping[str, Any]) -> str:
    """What identifies an evaluation."""
    return f"{metrics['model_sha256'][:12]}-{metrics['settings_sha256'][:12]}"


def _all_metrics(
    config: Config,
    folder: RunFolder,
    dataset: PreparedDataset,
    trained: TrainResult,
    evaluation: Evaluation,
) -> dict[str, Any]:
    """The measured metrics, with what was chosen in the training and what the run adds to them."""
    timing = {
        "prepare_s": prepare_seconds(dataset.manifest),
        **folder.read_json(folder.model / ORIGIN, "run `recsys train` again").get("timing", {}),
        "train_s": trained.seconds,
    }
    identity = _identity(config.train, config.evaluate, folder)
    metrics = {**evaluation.to_json(timing), **identity}
    if config.train.final:
        metrics["data"]["final"] = planned(folder, dataset, trained)
    for name, share in trained.choices.get(KEPT, {}).items():
        metrics["granularities"][name][KEPT] = share
    if config.evaluate.ablation == "retrain":
        variants = retrained_variants(config, folder, dataset)
        metrics["ablation"]["retrained"] = compare_variants(
            evaluation.ranking, variants, config.train, config.evaluate, config.seed
        )
    through = Split.VALID if trained.refit else Split.TRAIN
    clusters = describe_user_clusters(
        trained.frozen, dataset, through, trained.choices.get("strata", {})
    )
    if clusters is not None:
        metrics["strata"] = clusters
    _add_panels(metrics, config.promote, folder, dataset, trained.frozen)
    if folder.budget is None or folder.budget.left > 0:
        metrics["trade_off"] = trade_off(
            trained.frozen, evaluation.ranking.queries, config.train, config.evaluate, config.seed
        )
    else:
        folder.progress("the budget is used up: the report has no panel on diversity")
    if config.train.ratings:
        metrics["ratings"] = rating_report(
            trained.frozen, dataset, config.evaluate, config.seed, through
        )
        if "skipped" in metrics["ratings"]:
            folder.progress(f"no ratings predicted: {metrics['ratings']['skipped']}")
    return metrics


def _add_panels(
    metrics: dict[str, Any],
    promote: PromoteConfig,
    folder: RunFolder,
    dataset: PreparedDataset,
    model: FrozenModel,
) -> None:
    """Add the drift of an update, and the panels of the granularities and of the drift."""
    drift = drift_read(folder, dataset.manifest.content_hash)
    if drift is not None:
        metrics["drift"] = with_calibration(drift, metrics)
    if panels := granularity_panels(model, item_titles(dataset.features)):
        metrics["panels"] = panels
    if drift is not None:
        panel = drift_panel(metrics["drift"], promote)
        metrics["panels"] = {**metrics.get("panels", {}), "drift": panel}


def drift_read(folder: RunFolder, content_hash: str) -> dict[str, Any] | None:
    """The drift that an update measured on its newer events; None if no update made this
    dataset.
    """
    with suppress(ArtifactError):
        found = folder.read_json(folder.drift, "")
        return found if found.pop("dataset", "") == content_hash else None
    return None


def say(metrics: dict[str, Any], main_metric: str, folder: RunFolder) -> None:
    """Print members, signals, the main metric and the verdict.

    Parameters
    ----------
    metrics : dict[str, Any]
        The content of ``metrics.json``.
    main_metric : str
        The metric of ``train.metric``, such as ``ndcg@10``.
    folder : RunFolder
        Folder of the run; it prints the lines.
    """
    for text in (member_table(metrics), signal_table(metrics)):
        if text:
            folder.progress(text)
    data = metrics["data"]
    folder.progress(
        f"{main_metric} {metrics['model'][main_metric]:.4f} on {data['queries']:,} test users"
    )
    line = repeats_line(
        "test", data["queries_with_targets"] - data["queries"], data["queries_with_targets"]
    )
    if line:
        folder.progress(line)
    if line := new_users_line(data):
        folder.progress(line)
    for name, why in data.get("baselines_left_out", {}).items():
        folder.progress(f"baseline {name} is left out: {why}")
    if seen := data.get("foresight"):
        folder.progress(seen["note"])
    folder.progress(verdict(metrics))


def new_users_line(data: Mapping[str, Any]) -> str:
    """A line if nearly no test user has a history; else empty.

    >>> new_users_line({"queries": 20, "queries_without_history": 19})[:63]
    '19 of the 20 test users have no history, so their lists tell no'
    >>> new_users_line({"queries": 20, "queries_without_history": 18})
    ''
    """
    new, queries = data.get("queries_without_history", 0), data["queries"]
    if new <= _MANY_NEW * queries:
        return ""
    return (
        f"{new:,} of the {queries:,} test users have no history, so their lists tell nothing about"
        " personal interest; if the split gave whole users to the test, such as visits of a shop,"
        " set data.split.kind leave-last and prepare again"
    )


def settings_sha256(train: TrainConfig, evaluate: EvaluateConfig) -> str:
    """Hash of the settings that decide what is measured."""
    settings = evaluate.model_dump_json() + train.metric + str(train.ratings)
    settings += "final" if train.final else ""
    return hashlib.sha256(settings.encode()).hexdigest()


def measured(folder: RunFolder, identity: dict[str, str]) -> dict[str, Any] | None:
    """The metrics of the run folder if they have this identity and their report exists, else
    None.
    """
    with suppress(ArtifactError):
        metrics = folder.read_json(folder.metrics, "")
        return metrics if folder.report.is_file() and identity.items() <= metrics.items() else None
    return None


def prepare_seconds(manifest: Manifest) -> float:
    """Seconds that the preparation of the dataset took, possibly in an earlier run."""
    return float(manifest.timing.get("total", sum(manifest.timing.values())))


if __name__ == "__main__":
    from pipelines.cli import main

    sys.exit(main(["evaluate", *sys.argv[1:]]))
