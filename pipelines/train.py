"""Stage ``train``: the prepared dataset → a trained model, on the workers of Ray Train.

Writes RUN/checkpoints during the training and RUN/model at the end, with the dataset's hash next to
the tensors.
"""

from __future__ import annotations

import math
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipelines.plumbing.epoch_lines import reporter
from pipelines.plumbing.nodes import reachable_nodes
from pipelines.plumbing.opened_dataset import open_dataset
from pipelines.plumbing.opened_model import ORIGIN, open_trained
from pipelines.plumbing.preflight import preflight
from pipelines.plumbing.run_folder import RunFolder
from pipelines.plumbing.run_tracking import EpochLog, tracked
from pipelines.plumbing.session import ray_session
from pipelines.plumbing.trained import trained
from pipelines.steps.stacking import OfParent, stacked
from recsys.config import Config
from recsys.data.dataset import PreparedDataset
from recsys.errors import ArtifactError
from recsys.evaluation.validation import Validator
from recsys.registry.tracking import Tracker
from recsys.training.checkpoint import TrainResult, save_trained
from recsys.training.constants import LEFT_OUT
from recsys.training.fresh_model import Start
from recsys.training.members import trained_part
from recsys.training.phases import UNREFITTED
from recsys.training.private import PRIVACY
from recsys.training.resume import FREE, training_digest
from recsys.training.separate_models import joined, own_config, sections
from recsys.training.shared_validation import Validate
from recsys.training.threads import settle_threads


@dataclass(frozen=True)
class Descent:
    """An update's start weights, the validation that chooses its epoch, and the reference to its
    parent.
    """

    start: Start
    validate: Validate
    parent: dict[str, Any]
    # start weights of the separately trained models
    apart: dict[str, Start] = field(default_factory=dict)
    members: OfParent | None = None  # for choosing the weights of members


def train(config: Config, folder: RunFolder, descent: Descent | None = None) -> TrainResult:
    """Train the model and save it in RUN/model; ``descent`` is given for an update.

    Parameters
    ----------
    config : Config
        Configuration of the run.
    folder : RunFolder
        Folder of the run; it gets the checkpoints and the model.
    descent : Descent | None
        For an update: the start weights and the validation; None: train from scratch.

    Returns
    -------
    TrainResult
        The trained model. With ``run.resume`` and a finished training it is read and not trained
        again.

    Raises
    ------
    ArtifactError
        There is no prepared dataset for this configuration.
    DataError
        The dataset has no users, items or training events.
    """
    validate = Validator.of(config.train, config.evaluate) if descent is None else descent.validate
    dataset = open_dataset(config.data, config.dataset_dir, config.seed)
    identity = {
        "hash": dataset.manifest.content_hash,
        "training": training_digest(config, dataset, descent.start if descent else None),
    }
    if config.run.resume and is_trained(folder, identity):
        folder.progress(f"{folder.model} is already trained")
        result = open_trained(config.model, folder, dataset)
        with tracked(
            config, folder
        ) as tracker:  # its driver may have died before it sent all epochs
            EpochLog(tracker, folder.progress).complete(result.history)
            if not tracker.has_metric("train.best_epoch"):
                _log_end(tracker, result)
        return result
    with (
        folder.progress.stage("train"),
        tracked(config, folder, fresh=True) as tracker,
        ray_session(config.train, config.ray),
    ):
        tracker.log_dataset(dataset.manifest, dataset.root)
        log_epoch = EpochLog(tracker, folder.progress)
        nodes, is_measured = reachable_nodes(config.ray), folder.budget is not None
        preflight(config, folder.progress, nodes, dataset.manifest, with_time=not is_measured)

        if config.run.budget and folder.budget is None:
            folder.progress("run.budget limits only `recsys run`: this training has no time limit")
        start, report = descent.start if descent else None, reporter(folder, log_epoch)
        seconds = math.inf if folder.budget is None else folder.budget.training_s()
        how = report, folder.progress, folder.budget, seconds, validate, start
        own = trained_part(config)
        with folder.timed("workers_s"):
            result = trained(own, dataset, *how, head_start=_head_start(own, dataset, folder))
        folder.timing["workers_s"] = max(folder.timing["workers_s"] - result.seconds, 0.0)
        if sections(config.model):
            with folder.timed("separate_s"):
                result = _with_apart(result, config, folder, dataset, validate, descent)
        if config.model.fusion.stack:
            folder.turn_to("members")
            settle_threads(config.model, config.train, dataset.num_items, folder.progress)
            parent = descent.members if descent else None
            with folder.timed("members_s"):
                result = stacked(config, dataset, result, folder.progress, parent, folder.budget)
        # only when the new model is ready, so that a failed training leaves the old one usable
        folder.forget_model()
        save_trained(folder.model, result)
        for checkpoint in folder.head_starts.values():
            shutil.rmtree(checkpoint, ignore_errors=True)
        constants = {
            "seed": config.seed,
            "train": config.train.model_dump(mode="json", exclude=FREE),
        }
        made_from = {"parent": descent.parent} if descent else {}
        origin = {"dataset": dataset.root, **identity, **constants, **made_from}
        origin["timing"] = folder.timing
        # last: without this file the model does not count as trained
        folder.write_json(folder.model / ORIGIN, origin)
        folder.publish(folder.model)
        log_epoch.complete(result.history)
        _log_end(tracker, result)
        folder.progress(chosen_line(result, config.train.metric))
    return result


def _log_end(tracker: Tracker, result: TrainResult) -> None:
    tracker.log_metrics(
        {"train": {"best_epoch": result.best_epoch, "total_seconds": result.seconds}}
    )


def _with_apart(
    result: TrainResult,
    config: Config,
    folder: RunFolder,
    dataset: PreparedDataset,
    validate: Validate,
    descent: Descent | None,
) -> TrainResult:
    """Train the separately trained models and add them to the result as members.

    A model that does not fit into the budget, judged by the speed of the trainings before, is left
    out and named.
    """
    found = dict[str, TrainResult]()
    left_out = dict[str, str]()
    names = list(sections(config.model))
    budget = folder.budget
    # this machine may be slower or busier now than in the search that measured the time
    slower = (
        1.0
        if budget is None
        else result.seconds / (budget.expected.get("trained") or result.seconds or 1.0)
    )
    for number, name in enumerate(names, 1):
        if budget is not None and not budget.holds(name, slower):
            left_out[name] = "no time left to train it"
            continue
        folder.progress(f"training {name} separately, {number} of {len(names)}")
        start = None if descent is None else descent.apart.get(name)
        own = own_config(config, name, continues=start is not None)
        report = reporter(folder, lambda _: None)
        seconds = math.inf if budget is None else budget.training_s(name)
        how = report, folder.progress, budget, seconds, validate, start
        found[name] = trained(own, dataset, *how, head_start=_head_start(own, dataset, folder))
    whole = joined(result, found)
    return replace(whole, choices={**whole.choices, LEFT_OUT: left_out}) if left_out else whole


def _head_start(config: Config, dataset: PreparedDataset, folder: RunFolder) -> Path | None:
    """The checkpoint of a trial with this configuration, if a search left one."""
    if not folder.head_starts:
        return None
    return folder.head_starts.get(training_digest(config, dataset, None))


def is_trained(folder: RunFolder, identity: dict[str, str]) -> bool:
    """Whether the model of the run folder comes from a training with this identity."""
    with suppress(ArtifactError):
        # a subset, because the file also has constants and the parent
        return identity.items() <= folder.read_json(folder.model / ORIGIN, "").items()
    return False


def chosen_line(result: TrainResult, metric: str) -> str:
    """The chosen epoch or weights, and the data that the model was fitted on."""
    if result.frozen.trained_names and UNREFITTED not in result.choices:
        again = ", then trained again on training and validation"
    else:
        again = ", then fitted graphs and closed-form members again on training and validation"
    if budget := result.choices.get(PRIVACY):
        return (
            f"trained for {result.best_epoch} epochs; validation events are private too, so they do"
            f" not choose the epoch; the influence of one user is at most ε {budget['epsilon']:.2f}"
            f" at δ {budget['delta']:.0e}"
        )
    if not result.frozen.trained_names:
        what = "no granularity is trained: chose the weights of the closed-form granularities"
    else:
        what = (
            "chose epoch"
            f" {result.best_epoch}{' (the start weights)' if result.best_epoch == 0 else ''}"
        )
    return f"{what} by {metric} on validation{again if result.refit else ''}"


if __name__ == "__main__":
    from pipelines.cli import main

    sys.exit(main(["train", *sys.argv[1:]]))
