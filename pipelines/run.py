"""The whole pipeline: prepare → train → evaluate → register, in one MLflow run and with one Ray."""

from __future__ import annotations

import sys
from typing import Any

from pipelines.evaluate import evaluate
from pipelines.plumbing.budget import Budget
from pipelines.plumbing.nodes import reachable_nodes
from pipelines.plumbing.preflight import preflight
from pipelines.plumbing.progress import table
from pipelines.plumbing.run_folder import RunFolder
from pipelines.plumbing.run_tracking import tracked
from pipelines.plumbing.session import ray_session, ray_through
from pipelines.plumbing.summary import verdict
from pipelines.prepare import prepare
from pipelines.register import register
from pipelines.steps.auto import with_model
from pipelines.train import train
from recsys.config import Config
from recsys.config.values import seconds_of
from recsys.evaluation.metrics import parse_metric
from recsys.evaluation.validation import Validator, check_targets

_HEADLINES = ("recall", "hit", "mrr", "coverage")


def run(config: Config, folder: RunFolder) -> None:
    """Run every stage, and print the headline metrics and the paths of the results."""
    Validator.of(config.train, config.evaluate)  # a wrong metric fails now, not after the training
    if config.run.budget:
        folder.budget = Budget(
            config.run.budget, seconds_of(config.run.budget), folder.progress.started
        )
        folder.progress.budget = config.run.budget
    if config.has_model:
        metrics, registered = _run(config, folder, is_prepared=False)
    else:
        with ray_session(
            config.train, config.ray
        ):  # one Ray for all stages: each start would use up the budget
            folder.turn_to("prepare")
            check_targets(prepare(config, folder), config.evaluate, config.seed)
            folder.turn_to("search")
            metrics, registered = _run(
                with_model(config, folder, chooses=True), folder, is_prepared=True
            )
    folder.progress.plain(closing_words(metrics, registered, folder))
    if folder.budget is not None:
        folder.progress.plain(f"budget      {folder.budget.summary()}")


def _run(
    config: Config, folder: RunFolder, is_prepared: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run the stages of a configuration with a model; return its metrics and registration."""
    with tracked(config, folder, fresh=True), ray_through(config.train, config.ray):
        with ray_session(config.train, config.ray):
            # `train` prints it, from the prepared data
            preflight(config, lambda _: None, reachable_nodes(config.ray), None)
            if not is_prepared:
                folder.turn_to("prepare")
                check_targets(prepare(config, folder), config.evaluate, config.seed)
            folder.turn_to("training")
            train(config, folder)
        folder.turn_to("evaluation")
        metrics = evaluate(config, folder)
        folder.turn_to("registration")
        return metrics, register(config, folder)


def closing_words(metrics: dict[str, Any], registered: dict[str, Any], folder: RunFolder) -> str:
    """Headline metrics of the model and each baseline, the report, and the registered model.

    Parameters
    ----------
    metrics : dict[str, Any]
        The content of ``metrics.json``.
    registered : dict[str, Any]
        The content of ``registered.json``; empty if only the bundle was written.
    folder : RunFolder
        Folder of the run.

    Returns
    -------
    str
        Several lines for the terminal.
    """
    lines = [
        "",
        headline_table(metrics),
        "",
        verdict(metrics),
        f"report      {folder.shown(folder.report.absolute())}",
    ]
    if registered.get("version"):
        name, version, alias = (registered[key] for key in ("name", "version", "alias"))
        named = f"alias {alias}: models:/{name}@{alias}"
        if not alias:
            named = f"without an alias (see above): {registered['uri']}"
        lines.append(f"model       {name}, version {version}, {named}")
        lines.append(f"tracking    {registered['tracking']}")
    else:
        lines.append(
            f"model       {folder.shown(folder.bundle.absolute())} (tracking.enabled is false: not"
            " registered)"
        )
    return "\n".join(lines)


def headline_table(metrics: dict[str, Any]) -> str:
    """The main metric first, then others at the same cut-off, best recommender first.

    >>> print(headline_table({"metric": "ndcg@5", "model": {"ndcg@5": 0.5, "hit@5": 0.25},
    ...     "baselines": {"popularity": {"ndcg@5": 0.1, "hit@5": 0.125}}}))
                ndcg@5   hit@5
    multigrain  0.5000  0.2500
    popularity  0.1000  0.1250
    """
    main_metric = metrics["metric"]
    k = parse_metric(main_metric).k
    shown = [main_metric, *(f"{kind}@{k}" for kind in _HEADLINES if f"{kind}@{k}" != main_metric)]
    shown = [name for name in shown if name in metrics["model"]]
    values = {"multigrain": metrics["model"], **metrics["baselines"]}
    ordered = sorted(values, key=lambda name: -values[name][main_metric])
    return table(
        [
            ["", *shown],
            *([name, *(f"{values[name][key]:.4f}" for key in shown)] for name in ordered),
        ]
    )


if __name__ == "__main__":
    from pipelines.cli import main

    sys.exit(main(["run", *sys.argv[1:]]))
