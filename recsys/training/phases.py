"""The phases of a training, in order. Each phase takes over the result of the one before it.

*choose* finds on validation what must be known before the first epoch: the number of user clusters
and the constants of closed-form members. *select* trains on the training events, validates every
few epochs and keeps the best epoch. *prune* removes the granularities without which validation is
better, and selects again from scratch. *closed_form* chooses the weights of the closed-form
granularities. *refit* trains from scratch on training and validation events for the selected number
of epochs with the same schedule, so that the model learns from the newest events, too; nothing is
chosen in it. *join* trains the pruned granularities alone, with the rest of the model fixed. No
phase reads test events.

A checkpoint belongs to a pass: a training that was interrupted in *select*, *prune* or
*closed_form* continues the pass of *select*.

With a deadline, *select* ends with a validation at the last epoch that leaves time for the refit.
If the refit would not end in time, the model keeps the weights that validation chose; graphs and
closed-form fits still include the validation events. The training on all events is separate: see
:mod:`recsys.training.final`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import torch
from torch import Tensor

from recsys.config import Config, TrainConfig
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array, Split
from recsys.granularities.stratum.section import STRATUM
from recsys.processor import choose_matrix_library, keep_freed_memory
from recsys.training.checkpoint import Progress, TrainResult, load_progress
from recsys.training.closed_form import choose_weights, sample_queries
from recsys.training.constants import CONSTANTS, choose_values, with_constants
from recsys.training.context import Report, TrainContext
from recsys.training.fresh_model import Start
from recsys.training.loop import Pass
from recsys.training.private import private_progress
from recsys.training.pruned import KEPT, choose_pruned, pruned_names, scaled, without
from recsys.training.rating_head import RATINGS, choose_constants
from recsys.training.shared_validation import Validate
from recsys.training.time_limit import SLACK, seconds_an_epoch
from recsys.training.user_clusters import STRATA, choose_user_clusters

UNREFITTED: Final = "unrefitted"  # key of the choices of a training: why there was no refit


@dataclass
class Training:
    """The state that the phases share."""

    config: Config
    dataset: PreparedDataset
    validate: Validate
    context: TrainContext
    start: Start | None
    progress: Progress
    weights: Mapping[str, Tensor] = field(default_factory=dict)  # of the newest pass at its end
    selected: Mapping[str, Tensor] | None = (
        None  # of *select*, if a later phase gives the final weights
    )
    newest: Pass | None = None

    def a_pass(self, config: Config, through: Split) -> Pass:
        """A pass on the events through ``through``, ready to run."""
        return Pass(
            config, self.dataset, through, self.validate, self.context, self.progress, self.start
        )

    def ended(self, a_pass: Pass, following: str) -> None:
        """Take over a finished pass; ``following`` is the phase with which a resumed training
        starts.
        """
        self.weights, self.newest = a_pass.state(), a_pass
        self.progress = replace(self.progress, phase=following, epoch=0, step=0)

    @property
    def through(self) -> Split:
        """The last split on which the final model is trained."""
        return Split.VALID if self.config.train.refit else Split.TRAIN


def _newest(training: Training) -> Pass:
    assert training.newest is not None, "no pass has run"
    return training.newest


def choose(training: Training) -> None:
    """Choose what must be known before the first epoch; a resumed or continued training already has
    it.
    """
    config, choices, start = training.config, training.progress.choices, training.start
    if config.model.granularities.stratum.enabled and STRATA not in choices:
        known = {"chosen": start.inputs.get(STRATUM, 0), "candidates": {}} if start else None
        choices[STRATA] = known or choose_user_clusters(
            config.model, config.seed, training.dataset, training.context
        )
    if CONSTANTS not in choices:
        chosen = choose_values(config, training.dataset, training.validate, training.context, start)
        choices.update({CONSTANTS: chosen} if chosen else {})
    training.config = with_constants(config, choices)
    if training.config.train.privacy.epsilon:
        config = training.config
        training.progress = private_progress(
            config.data, config.model, config.train, training.progress, start
        )


def select(training: Training) -> None:
    """Train on the training events to the best epoch."""
    if training.progress.phase == "select":
        training.newest = _selection(training)


def _selection(training: Training) -> Pass:
    """A finished pass without the pruned granularities, with the weights of its best epoch."""
    config = without(training.config, pruned_names(training.progress.choices))
    found = training.a_pass(config, Split.TRAIN)
    if found.names:
        found.run()
        # what is chosen next is about the best epoch, not the last one
        found.loss.load_state_dict(found.best)
    return found


def prune(training: Training) -> None:
    """Prune the granularities without which validation is better, and select again from scratch."""
    if training.progress.phase != "select":
        return
    while _finds_pruned(_newest(training)):
        for report in training.progress.history:
            report["phase"] = "checked"  # so that the best epoch is not chosen from these
        training.progress = replace(
            training.progress, epoch=0, best_epoch=0, best_value=float("-inf")
        )
        # the checkpoint is of the model with all granularities
        training.context = replace(training.context, resume_from=None)
        training.newest = _selection(training)


def _finds_pruned(found: Pass) -> bool:
    """Choose on validation which trained granularities are pruned; True if any is.

    A weighted fusion keeps the configured weights.
    """
    section, model, choices = found.config.model.fusion, found.model, found.progress.choices
    if not found.names or not section.check or section.kind == "weighted":
        return False
    queries = sample_queries(found.dataset, Split.VALID)

    def metric(pruned: frozenset[str]) -> Array:
        model.pruned = pruned
        with scaled(model.encoders.fusion, found.names, dict.fromkeys(pruned, 0.0)):
            values_B = found.validation.validate(model.freeze(found.graphs), queries)
        model.pruned = frozenset()
        return values_B

    chosen = choose_pruned(found.names, metric)
    shares = torch.tensor([chosen[name] for name in found.names], device=found.context.device)
    # the first worker's
    of_first = found.context.from_first(shares).tolist()
    choices[KEPT] = {**choices.get(KEPT, {}), **dict(zip(found.names, of_first, strict=True))}
    return not all(of_first)


def closed_form(training: Training) -> None:
    """Choose λ of the closed-form granularities on validation; a weighted fusion keeps the
    configured values.
    """
    if training.progress.phase != "select":
        return
    found = _newest(training)
    if found.names:
        _weigh_closed_form(found)
    else:
        _weigh_and_validate(found)
    if training.config.train.ratings:
        training.progress.choices[RATINGS] = choose_constants(
            found.model.freeze(found.graphs), training.dataset
        )
    training.ended(found, "refit" if training.config.train.refit else "join")


def _weigh_closed_form(found: Pass) -> None:
    model = found.model
    if found.config.model.fusion.kind != "weighted" and len(model.encoders.fitted_weights):
        frozen = model.freeze(found.graphs)
        queries = sample_queries(found.dataset, Split.VALID)

        def metric() -> float:
            values_B = found.validation.validate(frozen, queries)
            return float(values_B.mean()) if len(values_B) else math.nan

        choose_weights(frozen, metric, queries)


def _weigh_and_validate(found: Pass) -> None:
    """For a model without a trained granularity: validate once, as epoch 0."""
    started = time.perf_counter()
    found.progress.best_value = float("-inf")  # a resumed training fits and validates again
    _weigh_closed_form(found)
    report: Report = {
        "phase": "select",
        "epoch": 0,
        "epochs": 0,
        found.config.train.metric: found.validate(0),
    }
    report["seconds"] = round(time.perf_counter() - started, 3)
    found.progress.history[:] = [report]
    found.report(report, True)


def refit(training: Training) -> None:
    """Train from scratch on training and validation events, for the selected number of epochs."""
    if training.progress.phase != "refit":
        return
    found = training.a_pass(
        without(training.config, pruned_names(training.progress.choices)), training.through
    )
    before, begins = training.progress, not (training.progress.epoch or training.progress.step)
    # a resumed refit has no weights of the phase before; its checkpoint has them as the best
    if training.weights:
        found.model.encoders.fitted_weights.copy_(training.weights["model.encoders.fitted_weights"])
        found.best = dict(training.weights)  # so that its checkpoints hold the selected weights
    found.is_cut = begins and _is_too_late(training.config.train, before, training.context)
    if not found.is_cut:
        found.run()
    if not training.config.train.privacy.epsilon:  # a private training has selected nothing
        training.selected = found.best
    training.ended(found, "join")
    if found.is_cut:
        training.weights = found.best
        found.progress = _without_refit(before, training.context)
        training.progress = replace(found.progress, phase="join", epoch=0, step=0)


def _is_too_late(train: TrainConfig, progress: Progress, context: TrainContext) -> bool:
    """Whether a refit would not end in time, at the pace of the selected epochs.

    That pace includes the validations, which makes up for the additional events of the refit. A
    refit may be late by ``SLACK``, because one slow epoch of the selection must not prevent it. A
    private training is never too late, as it has no selected weights that could stay.
    """
    seconds = progress.best_epoch * seconds_an_epoch(progress.history) / (1 + SLACK)
    return not train.privacy.epsilon and context.lacks(seconds)


def _without_refit(progress: Progress, context: TrainContext) -> Progress:
    """The progress of a training that keeps the selected weights instead of a refit."""
    context.note(
        "no time is left to train again with the validation events: the model keeps the weights"
        " that were chosen on validation"
    )
    history = [report for report in progress.history if report.get("phase") != "refit"]
    return replace(
        progress, history=history, choices={**progress.choices, UNREFITTED: "the time was over"}
    )


def join(training: Training) -> None:
    """Train the pruned granularities alone, with the rest of the model fixed."""
    if not pruned_names(training.progress.choices):
        return
    found = training.a_pass(training.config, training.through)
    if training.newest is not None:
        found.surround(training.weights, training.newest.names)
        found.best = dict(training.selected or training.weights)
    if any(parameter.requires_grad for parameter in found.loss.parameters()):
        found.run()
    training.selected = found.best if training.config.train.refit else None
    training.ended(found, "join")


Phase = Callable[[Training], None]
PHASES: Final[tuple[Phase, ...]] = (choose, select, prune, closed_form, refit, join)


def fit(
    config: Config,
    dataset: PreparedDataset,
    validate: Validate,
    context: TrainContext,
    start: Start | None = None,
) -> TrainResult:
    """Train a model through all phases; see the description of the module.

    With a ``start`` (see ``warm_start``), the start is epoch 0 and may be selected. Every rank
    returns the same result.

    Parameters
    ----------
    config : Config
        The whole configuration.
    dataset : PreparedDataset
        The dataset.
    validate : callable
        (scorer, queries) to the validation metric of every query, [B].
    context : TrainContext
        Device, deadline, workers, and the checkpoint to resume from.
    start : Start | None
        Where a warm start begins; None: from scratch.

    Returns
    -------
    TrainResult
        The trained model.

    Raises
    ------
    DataError
        Too few trainable users.
    ConfigError
        The dataset lacks the signal of a granularity.
    TrainingError
        The loss is no longer finite.
    """
    started = time.perf_counter()
    choose_matrix_library()
    keep_freed_memory()
    resumed = context.resume_from
    progress = Progress() if resumed is None else load_progress(resumed)
    training = Training(config, dataset, validate, context, start, progress)
    for phase in PHASES:
        phase(training)
    assert training.newest is not None, "a checkpoint of a phase that trains nothing"
    result = training.newest.result(dict(training.weights), config.train.refit, started)
    selected = None if training.selected is None else training.newest.whole(training.selected)
    return replace(result, selected=selected)
