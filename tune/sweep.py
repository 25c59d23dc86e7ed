"""The verb ``tune``: search for better settings than those of the configuration.

``sweep`` trains many times on one prepared dataset and writes to the run folder::

    trials/ledger.jsonl  all events, see ``tune.ledger``; the same command continues from it
    trials/NNN/          validation values of a finished trial, the traceback of a failed one
    best.yaml            the best configuration, for `recsys run`
    sweep.html           table and plots
    best/                run folder of the best model, trained again, tested once, registered
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

from pipelines.evaluate import evaluate
from pipelines.plumbing.run_folder import RunFolder, open_run, write_atomically
from pipelines.plumbing.run_tracking import tracked
from pipelines.plumbing.session import quiet, ray_session
from pipelines.prepare import prepare
from pipelines.register import register
from pipelines.run import closing_words
from pipelines.stages import SEARCHES
from pipelines.train import train
from recsys.config import Config
from recsys.data.dataset import PreparedDataset
from recsys.errors import ConfigError, TrainingError, Unavailable
from recsys.evaluation.validation import Validator
from recsys.registry.logged_values import flatten
from recsys.registry.tracking import RUN_FILE, Tracker
from recsys.storage.uris import is_remote
from tune.ledger import Ledger, Trial
from tune.outcome import best_config, best_yaml, comparison_words, trial_table
from tune.plan import Plan
from tune.ray_tune import run_trials
from tune.searcher import TrialPaths
from tune.slots import slots_of_cluster
from tune.space import load_space
from tune.sweep_report import render_sweep
from tune.trial_lines import Children, TrialLines


def tune(config: Config, folder: RunFolder) -> None:
    """Run the kind of search that ``tune.search`` names."""
    quiet()
    module, name = SEARCHES[config.tune.search].target.split(":")
    getattr(importlib.import_module(module), name)(config, folder)


def sweep(config: Config, folder: RunFolder) -> None:
    """Train many configurations of a search space; train the best one again, test it once and
    register it.

    Raises
    ------
    ConfigError
        The space is invalid, or the run folder is remote or holds another sweep.
    TrainingError
        Every trial failed because of data or settings.
    Unavailable
        Every trial failed for other reasons.
    """
    if is_remote(config.run.dir):
        raise ConfigError(
            f"run.dir: {config.run.dir} is remote, but a sweep needs its ledger on a local disk;"
            " give a local --run.dir (data.dir and tracking.uri may be remote)"
        )
    space = load_space(config.tune.space, config)
    Validator.of(config.train, config.evaluate)
    ledger = Ledger(folder.root / "trials" / "ledger.jsonl")
    plan = Plan(config, space, ledger)
    with tracked(config, folder, fresh=not ledger.trials) as tracker:
        with ray_session(config.train, config.ray):
            dataset = prepare(config, folder)
            _begin(plan, dataset, folder)
            with folder.progress.stage("sweep"):
                _search(plan, dataset, folder, tracker)
                _close(plan, dataset, folder, tracker)
            best = best_config(plan, dataset.root)
            if config.tune.final and not ledger.final:
                _train_best(best, tracker)
        if config.tune.final and not ledger.final:
            ledger.close(_finish_best(best, tracker))
        _report(plan, folder, tracker)
    folder.progress.plain(_closing_words(plan, folder))


def _begin(plan: Plan, dataset: PreparedDataset, folder: RunFolder) -> None:
    """Record what is searched, or check that the folder's sweep searched the same."""
    config = plan.config.model_dump(mode="json")
    # what decides the result of a trial; trials of other settings cannot be compared
    read = {name: config[name] for name in ("seed", "model", "train")}
    read["train"] = {
        key: value
        for key, value in read["train"].items()
        if key not in ("threads", "use_gpu", "final")
    }
    identity = {
        "dataset": dataset.manifest.content_hash,
        "space": {d.path: str(d) for d in plan.space.dimensions} | plan.space.fixed,
        "exclude_seen": plan.config.evaluate.exclude_seen,
        **read,
    }
    if plan.config.evaluate.max_users < dataset.num_users:  # then values are those of a sample
        identity["max_users"] = plan.config.evaluate.max_users
    if plan.config.model.fusion.stack:  # trials of earlier releases measured all members
        identity["measured"] = "the trained granularities"
    if not plan.ledger.identity:
        plan.ledger.begin(identity)
        return
    before, now = _flat(plan.ledger.identity), _flat(identity)
    for key in before.keys() | now.keys():
        if before.get(key) != now.get(key):
            raise ConfigError(
                f"{folder.root} holds a sweep with another {key}: it was {before.get(key)!r}, is"
                f" now {now.get(key)!r}; start a new sweep with another --run.dir, or continue with"
                " the old value"
            )


def _search(plan: Plan, dataset: PreparedDataset, folder: RunFolder, tracker: Tracker) -> None:
    """Run the trials that are left."""
    progress, ledger = folder.progress, plan.ledger
    given = plan.config
    slots = slots_of_cluster(given.model, given.train, given.tune, dataset.num_items, progress)
    done = [trial for trial in ledger.trials.values() if trial.state != "running"]
    if ledger.trials:
        open_ones = len(ledger.trials) - len(done)
        progress(f"continuing: {len(done)} trials are done, {open_ones} were interrupted")
    progress(slots.words)
    progress(f"{plan.config.tune.trials} trials over:\n{plan.space.describe()}")
    if given.model.fusion.stack:
        progress("trials train the model without the members that stacking adds to the best one")
    tracker.log_dataset(dataset.manifest, dataset.root)
    with Children(tracker, progress) as children:
        lines = TrialLines(progress, children, plan.config.train.metric, plan.config.tune.trials)
        for trial in done:
            if (
                trial.value is not None
                and not trial.repeat
                and (lines.best is None or trial.value > lines.best[0])
            ):
                lines.best = trial.value, trial.name
        lines.num_ended = len(done)
        run_trials(
            plan, TrialPaths(dataset.root, (folder.root / "trials").absolute()), slots, lines
        )
    added = ledger.added_seconds()
    if added is not None:
        progress(f"overhead per trial besides its training: {added:.1f} s (median)")
    if plan.exhausted:
        progress(
            f"the space has only {len(ledger.searched())} different combinations; all were tried"
        )
    failed = [trial for trial in ledger.trials.values() if trial.state == "failed"]
    if not plan.standings():
        raise _all_failed(failed, folder)
    if failed:
        progress(f"{len(failed)} of {len(ledger.trials)} trials failed:\n{_reasons(failed)}")


def _close(plan: Plan, dataset: PreparedDataset, folder: RunFolder, tracker: Tracker) -> None:
    """Write the table, best.yaml, and the comparison with the given configuration; choose the best
    trial.
    """
    progress, best, path = folder.progress, plan.best(), folder.root / "best.yaml"
    progress.plain("\n" + trial_table(plan) + "\n")
    write_atomically(path, best_yaml(plan, dataset.root, path))
    progress(f"best: trial {best.trials[0].name}; its configuration is in {path}")
    progress(comparison_words(plan, folder.root))
    tracker.log_metrics({"sweep": {"best_value": best.mean, "trials": len(plan.ledger.searched())}})
    tracker.set_tags({"sweep.best": best.trials[0].name})
    if plan.ledger.chosen != best.number:
        if plan.ledger.chosen is not None:
            # the run folder of the best model is that of another trial, with its MLflow run
            (folder.root / "best" / RUN_FILE).unlink(missing_ok=True)
        plan.ledger.choose(best.number)


def _train_best(config: Config, tracker: Tracker) -> None:
    """Train the best configuration in its own run folder, as ``recsys run`` does."""
    with open_run(config, "run") as folder, tracked(config, folder, fresh=True) as own:
        if own.enabled:
            own.set_tags({"mlflow.parentRunId": tracker.run_id, "sweep.trial": "best"})
        train(config, folder)


def _finish_best(config: Config, tracker: Tracker) -> dict[str, Any]:
    """Test the best model, the only time that the sweep reads the test split, and register it."""
    with open_run(config, "evaluate") as folder, tracked(config, folder):
        metrics = evaluate(config, folder)
        registered = register(config, folder)
        words = closing_words(metrics, registered, folder)
    metric = config.train.metric
    return {
        "metric": metric,
        "test": metrics["model"][metric],
        "words": words,
        "model": registered.get("uri", ""),
    }


def _report(plan: Plan, folder: RunFolder, tracker: Tracker) -> None:
    """Write sweep.html and log the sweep to MLflow."""
    page = folder.root / "sweep.html"
    render_sweep(page, plan, folder.root)
    for path in (page, plan.ledger.path, folder.root / "best.yaml"):
        tracker.log_file(path)
    if plan.ledger.final:
        tracker.log_metrics({"test": {plan.ledger.final["metric"]: plan.ledger.final["test"]}})


def _closing_words(plan: Plan, folder: RunFolder) -> str:
    final = plan.ledger.final
    final_words = f"{final['words']}\n" if final else ""
    return (
        f"{final_words}sweep       {(folder.root / 'sweep.html').absolute()}\nbest       "
        f" {folder.root / 'best.yaml'}"
    )


def _all_failed(failed: list[Trial], folder: RunFolder) -> Exception:
    message = f"every trial failed:\n{_reasons(failed)}"
    if all(trial.blame == "user" for trial in failed):
        return TrainingError(f"{message}\nfix the configuration or the space")
    return Unavailable(f"{message}\nthe tracebacks are in {folder.root / 'trials'}/NNN/error.txt")


def _reasons(failed: list[Trial]) -> str:
    """One line per reason, with its failed trials."""
    reasons: dict[str, list[str]] = {}
    for trial in failed:
        reasons.setdefault(trial.reason or trial.state, []).append(trial.name)
    return "\n".join(f"  trial {', '.join(names)}: {reason}" for reason, names in reasons.items())


def _flat(identity: dict[str, Any]) -> dict[str, Any]:
    return flatten(json.loads(json.dumps(identity)))


if __name__ == "__main__":
    from pipelines.cli import main

    sys.exit(main(["tune", *sys.argv[1:]]))
