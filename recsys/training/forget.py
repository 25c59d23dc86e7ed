"""Remove users from a trained model, as far as possible without training it again.

What is counted or fitted in closed form (popularity, neighbours, factors, user clusters, friends,
the user's own rows) is computed again from a dataset without these users, by the same code. What
was learned by gradient steps, or chosen on validation, stays; :func:`influence` names it. Legend: V
users.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from recsys.config import Config, ModelConfig
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Split
from recsys.data.renumber import Renumbering
from recsys.granularities.stratum.section import STRATUM
from recsys.model import FrozenModel
from recsys.training.checkpoint import TrainResult
from recsys.training.constants import CONSTANTS
from recsys.training.private import PRIVACY
from recsys.training.pruned import KEPT
from recsys.training.rating_head import RATINGS, fit_head
from recsys.training.selected import STACK, assemble
from recsys.training.separate_models import sections
from recsys.training.user_clusters import refit_user_clusters, stratum_module

# tensor names end in their axes; users are the first axis here
_OF_USERS: Final = re.compile(r"_V[A-Z0-9]*(\.|$)")


def without_rows(weights: Mapping[str, Tensor], numbering: Renumbering) -> dict[str, Tensor]:
    """Trainable weights without the rows of the removed users, in the new order."""
    before, order_V = len(numbering.number_U), torch.as_tensor(numbering.order_V)
    return {
        name: (
            tensor[order_V].clone()
            if tensor.ndim and len(tensor) == before and _OF_USERS.search(name)
            else tensor
        )
        for name, tensor in weights.items()
    }


def without_users(
    config: Config,
    dataset: PreparedDataset,
    trained: TrainResult,
    numbering: Renumbering,
    through: Split,
) -> TrainResult:
    """A trained model without the users that were removed from its dataset.

    Parameters
    ----------
    config : Config
        The configuration of its training.
    dataset : PreparedDataset
        The dataset without the removed users.
    trained : TrainResult
        The model with them.
    numbering : Renumbering
        From the earlier dense ids to those of the dataset.
    through : Split
        The last split whose events it was trained on.
    """
    frozen, weights = _made(
        config, dataset, trained, without_rows(trained.weights, numbering), through
    )
    if PRIVACY in trained.choices:  # new noised counts would spend privacy budget again
        frozen.popularity_N = trained.frozen.popularity_N
    if config.train.ratings and RATINGS in trained.choices:
        fit_head(frozen, dataset, through, trained.choices[RATINGS])
    selected = trained.selected
    if selected is not None:
        selected = without_rows(selected, numbering)
        if STRATUM in trained.frozen.trained_names:
            _, selected = _made(config, dataset, trained, selected, Split.TRAIN)
    return replace(trained, frozen=frozen, weights=weights, selected=selected)


def _made(
    config: Config,
    dataset: PreparedDataset,
    trained: TrainResult,
    weights: dict[str, Tensor],
    through: Split,
) -> tuple[FrozenModel, dict[str, Tensor]]:
    """The frozen model with graphs, closed-form members and user clusters of the dataset, and the
    weights with them.
    """
    frozen = assemble(
        config, dataset, through, weights, trained.choices, trained.frozen.sizes.inputs
    )
    if stratum_module(frozen) is None:
        return frozen, weights
    before = frozen.encoders.state_dict()
    renewed = refit_user_clusters(
        config.model.max_history, config.train, config.seed, dataset, frozen, through
    )
    after = renewed.encoders.state_dict()
    changed = {
        f"model.encoders.{name}": after[name]
        for name in after
        if not torch.equal(after[name], before[name])
    }
    return renewed, weights | {
        name: tensor.detach().clone() for name, tensor in changed.items() if name in weights
    }


def influence(trained: TrainResult, model: ModelConfig) -> list[str]:
    """The parts of a model that still depend on removed users, as it was not trained again."""
    choices, found = trained.choices, []
    names = [*trained.frozen.trained_names, *sections(model)]
    if names:
        found.append(f"the trained weights of {', '.join(names)}, and of the items' vectors")
    if trained.frozen.trained_names and trained.best_epoch:
        found.append("the number of epochs, chosen on validation")
    chosen = {
        STACK: "the weights of the members",
        CONSTANTS: "constants of closed-form members",
        KEPT: "which granularities",
    }
    found += [f"{what}, chosen on validation" for key, what in chosen.items() if choices.get(key)]
    if trained.frozen.sizes.inputs:
        found.append(f"the coding of {', '.join(sorted(trained.frozen.sizes.inputs))}")
    return found
