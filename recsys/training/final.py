"""The training on all events, test events included, of the model that is registered.

Why: the newest events say most about what users want next, and the evaluated model must not see
them, or its figures would mean nothing. So a second model is trained in the same way on all events.
Nothing is chosen in it: constants, epochs, the number of user clusters, the pruned granularities
and the weights of closed-form granularities are those of the evaluated model. Its phases are
*final* and, for pruned granularities, *final_join* (see :mod:`recsys.training.phases`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from recsys.config import Config
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array, Queries, Split
from recsys.errors import TrainingError
from recsys.model import FrozenModel
from recsys.stack import TRAINED
from recsys.training.checkpoint import Progress, TrainResult, load_progress
from recsys.training.constants import with_constants
from recsys.training.context import Report, TrainContext
from recsys.training.fresh_model import Start
from recsys.training.loop import Pass
from recsys.training.pruned import pruned_names, transplant, without
from recsys.training.selected import STACK, assemble
from recsys.training.separate_models import APART, own_config, own_weights, without_apart

_FITTED = "model.encoders.fitted_weights"


@dataclass(frozen=True)
class Final:
    """What a training on all events takes over from the evaluated model; plain values, as it is
    sent to the workers.

    With ``continues`` it starts from the evaluated weights, with a schedule of ``epochs`` epochs at
    ``lr_share`` times ``train.lr``. Otherwise it starts from scratch with the schedule of the
    evaluated training, shortened in proportion if ``epochs`` are fewer.
    """

    epochs: int  # of this training
    of: int  # epochs that the evaluated training chose
    choices: Report
    weights: dict[str, Tensor]  # of the evaluated model
    names: tuple[str, ...]  # its trained granularities, in the order of their λ
    inputs: Mapping[str, Any] = field(default_factory=dict)  # its ``ModelSizes.inputs``
    continues: bool = False
    lr_share: float = 1.0

    @staticmethod
    def of_trained(trained: TrainResult, go_on: int | None = None, lr_share: float = 1.0) -> Final:
        """Train from scratch on all events, or with ``go_on`` that many more epochs from the
        trained weights.

        Parameters
        ----------
        trained : TrainResult
            The evaluated training.
        go_on : int or None
            Number of further epochs; None: train from scratch.
        lr_share : float
            Factor on ``train.lr``; only for further epochs.
        """
        frozen = trained.frozen
        return Final(
            trained.best_epoch if go_on is None else go_on,
            trained.best_epoch,
            {**trained.choices},
            without_apart(trained.weights),
            tuple(frozen.trained_names),
            frozen.sizes.inputs,
            go_on is not None,
            lr_share,
        )

    @staticmethod
    def of_apart(config: Config, trained: TrainResult, name: str, continues: bool) -> Final | None:
        """The same for a separately trained model; None if stacking gave it no weight.

        Parameters
        ----------
        config : Config
            The configuration of the main model.
        trained : TrainResult
            The evaluated training, with the weights of the separately trained models.
        name : str
            Name of the separately trained model.
        continues : bool
            Whether the training continues from the evaluated weights.

        Raises
        ------
        ArtifactError
            The main model holds no weights of this model.
        """
        members = trained.choices.get(STACK, {}).get("members", {})
        if name in members and not any(members[name]["weights"]):
            return None
        chosen, own = trained.choices[APART][name], own_config(config, name)
        return Final(
            chosen["best_epoch"],
            chosen["best_epoch"],
            {**chosen["choices"]},
            own_weights(trained.weights, name),
            tuple(own.model.granularities.enabled()),
            chosen["inputs"],
            continues,
        )

    @property
    def trains(self) -> bool:
        """Whether there is anything to train: granularities with a
        weight, and at least one epoch.
        """
        trained = self.choices.get(STACK, {}).get("members", {}).get(TRAINED)
        has_weight = trained is None or any(trained["weights"])
        return bool(self.names) and self.epochs > 0 and has_weight

    @property
    def start(self) -> Start | None:
        """Where the training starts; None: from scratch."""
        if not self.continues:
            return None
        return Start(self.weights, self.inputs, self.names)

    def settings(self, config: Config) -> Config:
        """The configuration with the epochs of the schedule and the
        learning rate of this training.
        """
        whole = max(
            1,
            (
                self.epochs
                if self.continues
                else math.ceil(config.train.epochs * self.epochs / max(self.of, 1))
            ),
        )
        changed = {
            "epochs": whole,
            "lr": config.train.lr * (self.lr_share if self.continues else 1.0),
        }
        return config.model_copy(update={"train": config.train.model_copy(update=changed)})

    def decisive(self) -> dict[str, Any]:
        """What decides the result besides the configuration, as plain values."""
        plain = {name: getattr(self, name) for name in ("epochs", "of", "choices", "lr_share")}
        # the key is part of the digest in names of stored trainings, so it keeps its earlier name
        return {**plain, "goes_on": self.continues, "names": list(self.names)}

    def decisive_weights(self) -> dict[str, Tensor]:
        """The evaluated weights that the result depends on."""
        return (
            self.weights
            if self.continues
            else {name: w for name, w in self.weights.items() if name == _FITTED}
        )


def fit_final(
    config: Config, dataset: PreparedDataset, context: TrainContext, final: Final
) -> TrainResult:
    """Train on the events through ``Split.TEST``; every rank returns the same result.

    If the deadline of the context comes first, the result has fewer epochs than ``final`` asks for.
    Such a result must not be used; check :func:`is_whole`.

    Parameters
    ----------
    config : Config
        The whole configuration.
    dataset : PreparedDataset
        The dataset.
    context : TrainContext
        Device, deadline, workers, and the checkpoint to resume from.
    final : Final
        Epochs, choices and weights of the evaluated model.

    Returns
    -------
    TrainResult
        The model of all events.

    Raises
    ------
    DataError
        Too few trainable users.
    TrainingError
        The loss is no longer finite.
    """
    started, config = time.perf_counter(), with_constants(final.settings(config), final.choices)
    progress = Progress(phase="final", best_epoch=final.epochs, choices={**final.choices})
    if context.resume_from is not None:
        progress = load_progress(context.resume_from)
    pruned, start = pruned_names(final.choices), final.start
    phase: Pass | None = None
    weights = dict[str, Tensor]()
    if progress.phase == "final":
        phase = Pass(
            without(config, pruned), dataset, Split.TEST, _chooses, context, progress, start
        )
        moved = transplant(final.weights, final.names, phase.state(), phase.names)
        phase.model.encoders.fitted_weights.copy_(moved[_FITTED])
        phase.run()
        if phase.is_cut:
            return phase.result(phase.state(), False, started)
        weights = phase.state()
        progress = replace(progress, phase="final_join", epoch=0, step=0)
    if pruned or phase is None:
        join = Pass(config, dataset, Split.TEST, _chooses, context, progress, start)
        if phase is not None:
            join.surround(weights, phase.names)
        if any(parameter.requires_grad for parameter in join.loss.parameters()):
            join.run()
        phase, weights = join, join.state()
    return phase.result(weights, False, started)


def is_whole(result: TrainResult, final: Final) -> bool:
    """Whether a training on all events ran to its end."""
    own = [report for report in result.history if report.get("phase") == "final"]
    return not own or (own[-1]["epoch"] == final.epochs and "share" not in own[-1])


def assemble_final(
    config: Config, dataset: PreparedDataset, final: Final, weights: dict[str, Tensor]
) -> FrozenModel:
    """The model to register: these weights, with graphs and closed-form granularities of all
    events.

    Parameters
    ----------
    config : Config
        The whole configuration.
    dataset : PreparedDataset
        The dataset.
    final : Final
        What was taken over from the evaluated model.
    weights : dict of str to Tensor
        The trainable state after the training on all events, with that of separately trained
        models.

    Returns
    -------
    FrozenModel
        With ``train.ratings`` it has a rating head, fitted to all events.

    Raises
    ------
    ArtifactError
        The weights of a separately trained model are missing.
    """
    inputs = final.inputs if final.continues else None
    return assemble(config, dataset, Split.TEST, weights, final.choices, inputs)


def _chooses(model: FrozenModel, queries: Queries) -> Array:
    raise TrainingError("nothing is chosen in a training on all events")
