"""The final model (``train.final: true``): trained again on all events, test events included.

Part of the stage ``register``. RUN/final holds it in the format of RUN/model; ``--resume`` reads it
from there. The metrics are those of RUN/model, which was not trained on test events.
"""

from __future__ import annotations

import math
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from pipelines.plumbing.budget import Budget
from pipelines.plumbing.epoch_lines import reporter
from pipelines.plumbing.opened_model import ORIGIN
from pipelines.plumbing.run_folder import RunFolder
from pipelines.plumbing.run_tracking import EpochLog, tracked
from pipelines.plumbing.session import ray_session
from pipelines.plumbing.trained import trained as trained_on
from recsys.config import Config, TrainConfig
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Split
from recsys.errors import ArtifactError
from recsys.training.checkpoint import TrainResult, load_trained, save_trained
from recsys.training.final import Final, assemble_final, is_whole
from recsys.training.members import trained_part
from recsys.training.resume import FREE, training_digest
from recsys.training.separate_models import named, own_config, sections, without_apart
from recsys.training.threads import settle_threads
from recsys.training.time_limit import seconds_an_epoch

_LR_SHARE_OF_MORE = 0.3  # of train.lr, for epochs that continue from the evaluated weights


@dataclass(frozen=True)
class FinalModel:
    """The final model, and its description for the card, the metrics and the registry."""

    result: TrainResult
    description: dict[str, Any]


def final_model(
    config: Config,
    folder: RunFolder,
    dataset: PreparedDataset,
    trained: TrainResult,
    go_on: int | None = None,
) -> FinalModel | None:
    """Train a model like the evaluated one on all events; None if ``train.final`` is false, or if
    the budget of the run is used up.

    Parameters
    ----------
    config : Config
        Configuration of the run. The settings stored next to the evaluated model override it.
    folder : RunFolder
        Folder of the run.
    dataset : PreparedDataset
        The dataset of the evaluated model.
    trained : TrainResult
        The evaluated model.
    go_on : int | None
        None: train from scratch, for as many epochs as validation chose. A number: train this many
        further epochs from the evaluated weights, for example when time is short; 0 trains nothing,
        so that only graphs and closed-form granularities use all events. With None, an updated
        model also continues from its evaluated weights, for as many epochs as the update chose.
    """
    if not config.train.final:
        return None
    origin = folder.read_json(folder.model / ORIGIN, "run `recsys train` again")
    config = as_trained(config, origin)
    if folder.budget is not None and not folder.budget.fits_again():
        folder.progress(
            "the budget is used up: the registered model is the evaluated one, which was not fitted"
            " on the test events; `recsys register` with the same configuration fits one on all"
            " events"
        )
        return None
    if go_on is None and folder.budget is not None and "parent" not in origin:
        go_on = _affordable(folder.budget, trained)
    final = final_plan(trained, origin, go_on)
    identity = {
        "hash": dataset.manifest.content_hash,
        "training": training_digest(config, dataset, None, final),
    }
    description = describe(dataset, final)
    if config.run.resume and (known := _trained_already(config, folder, identity)) is not None:
        return FinalModel(known, description)
    folder.progress(_line(description, final))
    started = time.perf_counter()
    result = _trained(config, folder, dataset, final) if final.trains else _untrained(trained)
    if not is_whole(result, final):
        folder.progress("no time is left: the final model keeps the evaluated weights")
        final = final_plan(trained, origin, 0)
        identity["training"] = training_digest(config, dataset, None, final)
        result, description = _untrained(trained), describe(dataset, final)
    apart = _trained_apart(config, folder, dataset, trained, final.continues)
    result = replace(result, weights={**result.weights, **apart})
    settle_threads(config.model, config.train, dataset.num_items, folder.progress)
    frozen = assemble_final(config, dataset, final, result.weights)
    result = replace(result, frozen=frozen, seconds=time.perf_counter() - started)
    folder.forget(folder.final)
    save_trained(folder.final, result)
    folder.write_json(folder.final / ORIGIN, {"dataset": dataset.root, **identity, **description})
    folder.publish(folder.final)
    return FinalModel(result, description)


def _trained_already(
    config: Config, folder: RunFolder, identity: dict[str, str]
) -> TrainResult | None:
    """The final model of an interrupted command, if it was trained in the same way."""
    with suppress(ArtifactError):
        known = folder.read_json(folder.final / ORIGIN, "")
        if identity.items() <= known.items():
            result = load_trained(folder.final)
            folder.progress(f"{folder.final} is trained already")
            with tracked(config, folder) as tracker:
                EpochLog(tracker, folder.progress).complete(result.history)
            return result
    return None


def _affordable(budget: Budget, trained: TrainResult) -> int | None:
    """Epochs that fit into the budget, as
    :meth:`pipelines.plumbing.budget.Budget.final_epochs` returns them.
    """
    own = [report for report in trained.history if report.get("phase") in ("select", "refit")]
    return budget.final_epochs(trained.best_epoch, seconds_an_epoch(own))


def final_plan(trained: TrainResult, origin: dict[str, Any], go_on: int | None) -> Final:
    """How the final model is trained; ``go_on`` as in :func:`final_model`.

    Parameters
    ----------
    trained : TrainResult
        The evaluated model.
    origin : dict[str, Any]
        The content of ``origin.json`` next to it.
    go_on : int | None
        Number of further epochs from the evaluated weights. None: train from scratch, but an
        updated model as many further epochs as the update chose.

    Returns
    -------
    Final
        What the training takes over from the evaluated model.
    """
    if go_on is None and "parent" in origin:  # an update has chosen this number
        return Final.of_trained(trained, trained.best_epoch)
    return Final.of_trained(trained, go_on, _LR_SHARE_OF_MORE)


def as_trained(config: Config, origin: dict[str, Any]) -> Config:
    """The configuration with the training settings stored next to the evaluated model."""
    if "train" not in origin:  # an earlier release trained the model and stored none
        return config
    here = config.train.model_dump(include=FREE)
    train = TrainConfig.model_validate({**origin["train"], **here})
    return config.model_copy(update={"train": train, "seed": int(origin["seed"])})


def planned(folder: RunFolder, dataset: PreparedDataset, trained: TrainResult) -> dict[str, Any]:
    """Describe for the evaluation what :func:`final_model` will train.

    Parameters
    ----------
    folder : RunFolder
        Folder of the run.
    dataset : PreparedDataset
        The dataset of the evaluated model.
    trained : TrainResult
        The evaluated model.

    Returns
    -------
    dict[str, Any]
        Plain values for ``metrics.json``.

    Raises
    ------
    ArtifactError
        The run folder has no trained model.
    """
    origin = folder.read_json(folder.model / ORIGIN, "run `recsys train` again")
    return describe(dataset, final_plan(trained, origin, None))


def describe(dataset: PreparedDataset, final: Final) -> dict[str, Any]:
    """Description of the final model: events, epochs, and its start weights."""
    events = sum(len(shard.through(Split.TEST).items_E) for shard in dataset.shards())
    start = "anew" if final.trains and not final.continues else "measured"
    return {
        "through": "test",
        "events": events,
        "epochs": final.epochs if final.trains else 0,
        "start": start,
    }


def _line(description: dict[str, Any], final: Final) -> str:
    on = (
        f"on all {description['events']:,} events, test included; metrics stay those of the model"
        " trained without test events"
    )
    if not final.trains:
        return f"fitting the final model {on}"
    more = " more, from the evaluated weights" if final.continues else ""
    return f"training the final model {on}; {final.epochs} epoch{'s' * (final.epochs != 1)}{more}"


def _trained_apart(
    config: Config,
    folder: RunFolder,
    dataset: PreparedDataset,
    trained: TrainResult,
    continues: bool,
) -> dict[str, Tensor]:
    """Train the separately trained models on all events and return their weights.

    A model without a stacking weight, or with nothing to train, keeps its weights.
    """
    others = without_apart(trained.weights)
    weights = {key: tensor for key, tensor in trained.weights.items() if key not in others}
    budget = folder.budget
    for name in sections(config.model):
        final = Final.of_apart(config, trained, name, continues)
        if final is None or not final.trains:
            continue
        if budget is not None and budget.final_s() < budget.expected.get(f"{name}, final", 0.0):
            folder.progress(
                f"no time is left to train {name} on all events; it keeps the evaluated weights"
            )
            continue
        folder.progress(
            f"training {name} separately on all events; {final.epochs}"
            f" epoch{'s' * (final.epochs != 1)}"
        )
        with ray_session(config.train, config.ray):
            seconds = math.inf if budget is None else budget.final_s()
            how = dataset, reporter(folder, lambda _: None), folder.progress, budget, seconds
            own = trained_on(own_config(config, name, continues), *how, final=final)
        if is_whole(own, final):
            weights |= named(name, own.weights)
    return weights


def _untrained(trained: TrainResult) -> TrainResult:
    return replace(trained, history=[], refit=False, selected=None)


def _trained(
    config: Config, folder: RunFolder, dataset: PreparedDataset, final: Final
) -> TrainResult:
    seconds = math.inf if folder.budget is None else folder.budget.final_s()
    with tracked(config, folder) as tracker, ray_session(config.train, config.ray):
        log_epoch = EpochLog(tracker, folder.progress)
        report = reporter(folder, log_epoch)
        how = dataset, report, folder.progress, folder.budget, seconds
        result = trained_on(trained_part(config), *how, final=final)
        log_epoch.complete(result.history)
        tracker.log_metrics({"final": {"epochs": final.epochs, "total_seconds": result.seconds}})
    return result
