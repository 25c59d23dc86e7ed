"""Build a model from its trainable weights: as selected on validation, or with the events through
another split.

Why: what is chosen or measured on validation needs a model that was not trained on it. The weights
of the refit were; those that ``train`` stores in addition (``selected.safetensors``) were not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor

from recsys.config import Config
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Split
from recsys.errors import ArtifactError
from recsys.model import FrozenModel, dump_sizes
from recsys.training.checkpoint import SELECTED, TrainResult
from recsys.training.constants import LEFT_OUT, with_constants
from recsys.training.context import Report
from recsys.training.fresh_model import Start, build_graphs, build_model
from recsys.training.pruned import KEPT, names_of, pruned_names, scale, transplant
from recsys.training.rating_head import RATINGS, fit_head
from recsys.training.separate_models import APART, own_config, own_weights, sections
from recsys.training.user_clusters import STRATA

STACK: Final = "stack"  # key of the members' weights in the training's choices


def assemble(
    config: Config,
    dataset: PreparedDataset,
    through: Split,
    weights: dict[str, Tensor],
    choices: Report,
    inputs: Mapping[str, Any] | None = None,
) -> FrozenModel:
    """The model with these weights, and with graphs and closed-form granularities of the events
    through ``through``; with ``train.ratings``, its rating head is fitted to them, too.

    Parameters
    ----------
    config : Config
        The configuration of the model; it may have closed-form granularities that the training did
        not have.
    dataset : PreparedDataset
        The dataset on which the weights were trained.
    through : Split
        The last split whose events are read.
    weights : dict[str, Tensor]
        The trainable state (``TrainResult.weights`` or ``selected``); names begin with ``model.``.
    choices : Report
        The choices of the training, with the weights of the members if stacking chose them.
    inputs : Mapping[str, Any] | None
        ``ModelSizes.inputs`` of an earlier model if the weights come from one; otherwise they
        follow from the events.
    """
    config = with_constants(config, choices)
    apart = _apart(config, dataset, through, weights, choices)
    if apart:
        inputs = {
            **(inputs or {}),
            **{signal: dump_sizes(frozen.sizes) for signal, frozen in apart.items()},
        }
    num_strata = int(choices.get(STRATA, {}).get("chosen", 0))
    start = None if inputs is None else Start(weights, inputs)
    model = build_model(config.model, config.train, dataset, through, num_strata, start)
    model.pruned = pruned_names(choices)
    names = [name for name, _ in model.encoders.each()]
    own = {f"model.{key}": value for key, value in model.state_dict().items()}
    found = transplant(weights, names_of(weights, names, model.pruned), own, names)
    model.load_state_dict({key.removeprefix("model."): value for key, value in found.items()})
    graphs = build_graphs(dataset, through, model, config.evaluate, config.seed)
    graphs = replace(graphs, inputs={**graphs.inputs, **apart})
    if model.encoders.stack is not None:
        for name in choices.get(LEFT_OUT, {}):
            model.encoders.stack.weights_GM[:, model.encoders.members.index(name)] = 0.0
    if model.encoders.stack is not None and STACK in choices:
        members = choices[STACK]["members"]
        weights_GM = torch.tensor([members[name]["weights"] for name in model.encoders.members]).T
        model.encoders.stack.weights_GM.copy_(weights_GM)
        for key, buffer in (
            ("scale", model.encoders.stack.scales_M),
            ("floor", model.encoders.stack.floors_M),
        ):
            buffer.copy_(torch.tensor([members[name][key] for name in model.encoders.members]))
    frozen = model.freeze(graphs)
    scale(frozen.encoders.fusion, frozen.trained_names, choices.get(KEPT, {}))
    if config.train.ratings and RATINGS in choices:
        fit_head(frozen, dataset, through, choices[RATINGS])
    return frozen


def _apart(
    config: Config,
    dataset: PreparedDataset,
    through: Split,
    weights: dict[str, Tensor],
    choices: Report,
) -> dict[str, FrozenModel]:
    """The separately trained models by signal, without those to which stacking gave no weight."""
    members = choices.get(STACK, {}).get("members", {})
    found = {}
    for name, section in sections(config.model).items():
        if (
            name in choices.get(LEFT_OUT, {})
            or name in members
            and not any(members[name]["weights"])
        ):
            continue
        chosen = choices[APART][name]
        own = own_weights(weights, name)
        found[section.signal] = assemble(
            own_config(config, name), dataset, through, own, chosen["choices"], chosen["inputs"]
        )
    return found


def selected_model(config: Config, dataset: PreparedDataset, trained: TrainResult) -> FrozenModel:
    """The model of training events only, with the pruning of its training; pruned granularities are
    untrained.

    With ``train.refit`` false it is the trained model itself. Closed-form granularities are fitted
    again, to training events.

    Parameters
    ----------
    config : Config
        The configuration that it was trained with.
    dataset : PreparedDataset
        The dataset that it was trained on.
    trained : TrainResult
        The training.

    Returns
    -------
    FrozenModel
        The model.

    Raises
    ------
    ArtifactError
        The training left no such weights.
    """
    if not trained.refit:
        return trained.frozen
    if trained.selected is None:
        raise ArtifactError(
            "the model was trained again on validation events (train.refit), and the weights"
            f" before that ({SELECTED}) are missing: an earlier release trained it; run `recsys"
            " train` again"
        )
    return assemble(config, dataset, Split.TRAIN, trained.selected, trained.choices)
