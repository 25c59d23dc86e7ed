"""``recsys tune --tune.search fusion``: search for better fusion weights of the model in a run
folder.

    RUN/model ── as selected on validation ──► scores of every granularity, cached
      scores  ──► search ──► pick
      pick    ──► the usual evaluation on validation, which must agree
              ──► once on test ──► RUN/fusion

A search also finds settings that fit its users by chance. So the gain is estimated twice: on the
same users, and by searching on one half of the users and measuring on the other. Only if the second
gain is above zero, a new bundle is written and registered, with the old one as its parent. Test
data decides nothing.

Legend: Q queries, K granularities.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch

from pipelines.plumbing.opened_dataset import open_dataset
from pipelines.plumbing.opened_model import ORIGIN, open_trained
from pipelines.plumbing.run_folder import RunFolder
from pipelines.plumbing.session import quiet
from pipelines.update import register_changed
from recsys.bundle.description import DESCRIPTION
from recsys.config import Config, EvaluateConfig, TrackingConfig
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Split
from recsys.errors import ArtifactError, ConfigError, DataError
from recsys.evaluation.metrics import (
    QUERY_METRICS,
    parse_metric,
)
from recsys.evaluation.ranking import countable
from recsys.model import FrozenModel
from recsys.registry.mlflow_client import tracking_uri
from recsys.registry.parent import Parent, open_parent
from recsys.registry.tracking import Tracker, run_of_folder
from recsys.serving.bundles import write_bundle
from recsys.training.checkpoint import TrainResult
from recsys.training.closed_form import sample_queries
from recsys.training.members import refuse_stacked
from recsys.training.selected import selected_model
from tune.confirmed_weights import Found, confirmed
from tune.fusion_report import render_report
from tune.fusion_search import Trials, cross_fit, search
from tune.score_cache import ListMeter, build_cache
from tune.weights import WeightSpace

FOLDER = "fusion"  # in the run folder: fusion.json, report.html, bundle/, registered.json


def search_fusion(config: Config, folder: RunFolder) -> dict[str, Any]:
    """Search, confirm, and register a bundle with other weights if they are better.

    Returns
    -------
    dict
        The content of ``fusion.json``.

    Raises
    ------
    ArtifactError
        There is no trained model, or none that was trained without validation events.
    ConfigError
        The model has one granularity only, or is an update of an earlier one.
    DataError
        There is nothing to validate on.
    """
    quiet()
    parse_metric(config.train.metric, tuple(QUERY_METRICS))
    dataset = open_dataset(config.data, config.dataset_dir, config.seed)
    trained = open_trained(config.model, folder, dataset)
    check(trained, folder)
    # fails before the search, which may take minutes
    parent = parent_of(config.evaluate, config.tracking, config.run.dir, folder, dataset, trained)
    ours = folder.part(FOLDER)
    ours.forget_model()  # of an earlier search
    with Tracker(
        config,
        f"{config.run.name or FOLDER} weights",
        parent_id=run_of_folder(config.tracking, config.run.dir, folder.root),
    ) as tracker:
        ours.tracker = tracker
        with folder.progress.stage("cache"):
            trials, frozen = cached(config, dataset, trained, folder)
        with folder.progress.stage("search"):
            found = searched(config, trials, folder)
        with folder.progress.stage("confirm"):
            report, values_K = confirmed(config, dataset, trained, frozen, trials, found)
        tracker.set_tags({"search": FOLDER})
        tracker.log_metrics(_numbers(report))
        if report["changed"]:
            changed = trials.space.for_model(parent.bundle.model.encoders, values_K)
            extra = {
                FOLDER: {"before": report["today"]["weights"], "after": report["picked"]["weights"]}
            }
            register_changed(config, ours, parent, changed, report["test"]["picked"], extra)
        report["parent"] = parent.uri
        ours.write_json(ours.root / "fusion.json", report)
        render_report(ours.report, report, dataset.manifest.name)
        for path in (ours.root / "fusion.json", ours.report):
            tracker.log_file(path)
        ours.publish(ours.report)
    folder.progress.plain(closing_table(report, ours.shown(ours.report)))
    return report


def check(trained: TrainResult, folder: RunFolder) -> None:
    """Check that the weights of the model can be searched.

    Raises
    ------
    ConfigError
        It has one granularity only, is stacked, or is an update of an earlier model.
    """
    names = trained.frozen.names
    if len(names) < 2:
        raise ConfigError(
            f"tune.search fusion needs several granularities, but the model in {folder.model} has"
            f" only {names[0]}; enable another one (model.granularities) and train again"
        )
    refuse_stacked(trained.frozen.encoders, "tune.search fusion", f"the model in {folder.model}")
    if "parent" in folder.read_json(folder.model / ORIGIN, "run `recsys train` again"):
        raise ConfigError(
            f"the model in {folder.model} is an update of an earlier model, which was trained on"
            " the validation events of most users; fit its weights to feedback (recsys update"
            " --update.only fusion), or train from scratch"
        )


def cached(
    config: Config, dataset: PreparedDataset, trained: TrainResult, folder: RunFolder
) -> tuple[Trials, FrozenModel]:
    """The model trained without validation events, and its scores for validation queries.

    Parameters
    ----------
    config : Config
        The configuration; reads ``tune.fusion``, ``evaluate`` and ``train.metric``.
    dataset : PreparedDataset
        The dataset of the model.
    trained : TrainResult
        The model of the run folder.
    folder : RunFolder
        The run folder; gets a progress line.

    Returns
    -------
    tuple of (Trials, FrozenModel)
        The scores, with no setting measured yet, and the model.

    Raises
    ------
    DataError
        Fewer than two validation queries have a target that counts.
    """
    settings, exclude_seen = config.tune.fusion, config.evaluate.exclude_seen
    queries, _, _ = countable(sample_queries(dataset, Split.VALID, settings.queries), exclude_seen)
    if len(queries) < 2:
        raise DataError(
            f"{dataset.root} has {len(queries)} validation queries with a target that counts, but a"
            " search needs two; set data.split so that there is a validation split"
        )
    frozen = selected_model(config, dataset, trained)
    started = time.perf_counter()
    cache = build_cache(frozen, queries, exclude_seen, settings.candidates)
    seconds = time.perf_counter() - started
    meter = ListMeter.of(frozen, dataset.item_counts_N(Split.TRAIN))
    trials = Trials(cache, WeightSpace.of(frozen, cache), meter, parse_metric(config.train.metric))
    folder.progress(
        f"scores of {len(frozen.names)} granularities for {len(queries):,} validation users:"
        f" {cache.pool_QP.shape[1]:,} candidates of {dataset.num_items:,} items at most, in"
        f" {seconds:.1f} s"
    )
    return trials, frozen


def searched(config: Config, trials: Trials, folder: RunFolder) -> Found:
    """Search on all users for the choice, and on halves of them for its gain.

    Parameters
    ----------
    config : Config
        The configuration; reads ``tune.fusion``, ``train.metric``, ``evaluate.bootstrap`` and the
        seed.
    trials : Trials
        The cached scores; the measured settings are added.
    folder : RunFolder
        The run folder; gets progress lines.

    Returns
    -------
    Found
        The picked setting, its cross-fitted gain, and the seconds of both searches.
    """
    settings = config.tune.fusion
    started = time.perf_counter()
    search(trials, settings, config.seed)
    seconds = time.perf_counter() - started
    picked, name = trials.picked(settings), config.train.metric
    folder.progress(
        f"{len(trials.tried):,} settings in {seconds:.1f} s"
        f" ({60 * len(trials.tried) / seconds:,.0f} a minute): {name} {trials.today.metric:.4f}"
        f" with the present weights, {picked.metric:.4f} with the best setting"
    )
    crossed = cross_fit(trials, settings, config.seed, config.evaluate.bootstrap)
    cross_seconds = time.perf_counter() - started - seconds
    folder.progress(
        f"cross-fitted, on users that the choice did not use: {name}"
        f" {crossed.metric.difference:+.4f}"
    )
    return Found(picked, crossed, seconds, cross_seconds)


def parent_of(
    evaluate: EvaluateConfig,
    tracking: TrackingConfig,
    run_dir: str,
    folder: RunFolder,
    dataset: PreparedDataset,
    trained: TrainResult,
) -> Parent:
    """The registered version of this model or, if it is not registered, its bundle, which is
    written if missing.

    Parameters
    ----------
    evaluate : EvaluateConfig
        Whether seen items are left out.
    tracking : TrackingConfig
        The tracking URI.
    run_dir : str
        The run folder (``run.dir``).
    folder : RunFolder
        The run folder.
    dataset : PreparedDataset
        The dataset of the model.
    trained : TrainResult
        The model of the run folder.

    Returns
    -------
    Parent
        The version or bundle to refit.

    Raises
    ------
    ArtifactError
        RUN/bundle belongs to another model.
    """
    uri = str(folder.bundle)
    if folder.registered.is_file() and tracking.enabled:
        entry = folder.read_json(folder.registered, "run `recsys register` again")
        uri = str(entry.get("pinned_uri", uri))
    elif not (folder.bundle / DESCRIPTION).is_file():
        asked = {"exclude_seen": evaluate.exclude_seen}
        extra = {"refit": trained.refit, "comparison": asked}
        write_bundle(folder.bundle, trained.frozen, dataset, extra, trained.weights)
    parent = open_parent(uri, tracking_uri(tracking, run_dir))
    if folder.remote is not None and parent.folder == folder.bundle:
        parent = replace(parent, uri=folder.shown(folder.bundle))
    ours, theirs = (model.encoders.state_dict() for model in (trained.frozen, parent.measured()))
    if ours.keys() != theirs.keys() or any(
        not torch.equal(ours[name], theirs[name]) for name in ours
    ):
        raise ArtifactError(
            f"{parent.uri} is another model than {folder.model}; run `recsys register`, then repeat"
        )
    return parent


def _numbers(report: dict[str, Any]) -> dict[str, Any]:
    """The metrics for MLflow."""
    gains = {
        name: {key: gain[key] for key in ("difference", "low", "high")}
        for name, gain in report["gain"].items()
    }
    lambdas = {name: report[name]["weights"] for name in ("today", "picked")}
    test = report["test"]["picked" if report["changed"] else "today"]
    return {"test": test, "gain": gains, "search": report["search"], **lambdas}


def closing_table(report: dict[str, Any], path: str) -> str:
    """The gains and the weights as a table, and the result."""
    main = report["metric"]
    lines = [f"\n{main:<28}  {'today':>8}  {'picked':>8}  {'gain':>9}  95 % interval"]
    rows = {
        "validation, naive": (report["today"]["metric"], report["picked"]["metric"], "naive"),
        "validation, cross-fitted": (None, None, "cross_fitted"),
        "test": (report["test"]["today"][main], report["test"]["picked"][main], "test"),
    }
    for name, (before, after, gain) in rows.items():
        shown = [f"{value:>8.4f}" if value is not None else " " * 8 for value in (before, after)]
        of = report["gain"][gain]
        lines.append(
            f"{name:<28}  {shown[0]}  {shown[1]}  {of['difference']:>+9.5f}  {of['low']:+.5f} to"
            f" {of['high']:+.5f}"
        )
    kind = "prior" if report["kind"] == "gated" else "λ"
    for name, value in report["today"]["weights"].items():
        lines.append(
            f"{f'{kind} of {name}':<28}  {value:>8.3f}  {report['picked']['weights'][name]:>8.3f}"
        )
    done = "registered with the chosen weights" if report["changed"] else "the model is unchanged"
    return "\n".join([*lines, "", f"{done}: {report['why']}", f"report      {path}"])
