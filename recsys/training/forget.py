"""A trained model without some of its users, as far as that goes without training it again.

What is counted or fitted (popularity, neighbours, factors, strata, friends, the user's own rows) is made again of a
dataset without them, by the same code that made it. What was learned by gradient steps, or chosen on validation, stays,
and :func:`influence` names it. Legend: V users.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from recsys.config import Config
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Split
from recsys.data.renumber import Renumbering
from recsys.granularities.stratum.section import STRATUM
from recsys.model import FrozenModel
from recsys.training.apart import sections
from recsys.training.checkpoint import TrainResult
from recsys.training.constants import CONSTANTS
from recsys.training.private import PRIVACY
from recsys.training.pruned import KEPT
from recsys.training.rating_head import RATINGS, fit_head
from recsys.training.selected import STACK, assemble
from recsys.training.user_clusters import refit_strata, stratum_of

_OF_USERS: Final = re.compile(r"_V[A-Z0-9]*(\.|$)")  # tensors are named by their axes; this is the first


def without_rows(weights: Mapping[str, Tensor], numbering: Renumbering) -> dict[str, Tensor]:
    """Trainable weights without the rows of forgotten users, in the new order."""
    before, order_V = len(numbering.number_U), torch.as_tensor(numbering.order_V)
    return {
        name: tensor[order_V].clone() if tensor.ndim and len(tensor) == before and _OF_USERS.search(name) else tensor
        for name, tensor in weights.items()
    }


def without_users(
    config: Config, dataset: PreparedDataset, trained: TrainResult, numbering: Renumbering, through: Split
) -> TrainResult:
    """The model of a dataset from which users were removed.

    Parameters
    ----------
    config : Config
        that it was trained with.
    dataset : PreparedDataset
        without them.
    trained : TrainResult
        with them.
    numbering : Renumbering
        from the earlier dense ids to those of the dataset.
    through : Split
        the last part whose events it was trained on.
    """
    frozen, weights = _made(config, dataset, trained, without_rows(trained.weights, numbering), through)
    if PRIVACY in trained.choices:  # its noised counts are spent: others would spend again
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
    config: Config, dataset: PreparedDataset, trained: TrainResult, weights: dict[str, Tensor], through: Split
) -> tuple[FrozenModel, dict[str, Tensor]]:
    """Frozen with graphs and fitted members of the dataset, strata fitted again; and the weights with those."""
    frozen = assemble(config, dataset, through, weights, trained.choices, trained.frozen.sizes.inputs)
    if stratum_of(frozen) is None:
        return frozen, weights
    before = frozen.encoders.state_dict()
    renewed = refit_strata(config, dataset, frozen, through)
    after = renewed.encoders.state_dict()
    changed = {f"model.encoders.{name}": after[name] for name in after if not torch.equal(after[name], before[name])}
    return renewed, weights | {name: tensor.detach().clone() for name, tensor in changed.items() if name in weights}


def influence(trained: TrainResult, config: Config) -> list[str]:
    """What of a model that was not trained again still depends on its former users."""
    choices, found = trained.choices, []
    names = [*trained.frozen.trained_names, *sections(config)]
    if names:
        found.append(f"the trained weights of {', '.join(names)}, and of the items' vectors")
    if trained.frozen.trained_names and trained.best_epoch:
        found.append("the number of epochs, chosen on validation")
    chosen = {
        STACK: "the weights of the members",
        CONSTANTS: "constants of fitted members",
        KEPT: "which granularities",
    }
    found += [f"{what}, chosen on validation" for key, what in chosen.items() if choices.get(key)]
    if trained.frozen.sizes.inputs:
        found.append(f"the coding of {', '.join(sorted(trained.frozen.sizes.inputs))}")
    return found
