"""Warm start: the weights of an earlier model, extended to a dataset that continues the earlier
dataset.

Why: training from scratch on every new partition takes hours; from the earlier weights, a few
epochs are enough.

Old users, items, event types, entities and relations keep their dense ids (see ``Vocabulary``), so
one rule covers every parameter. A parameter with an equal shape is copied. A table whose first axis
grew like one of these vocabularies keeps its old rows; its new rows are those of a fresh model.
Legend: E events.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys.config import ModelConfig, TrainConfig
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array, Histories, Queries, Split, numbered_keys
from recsys.errors import ArtifactError, DataError
from recsys.granularities import granularity_class
from recsys.granularities.base import Granularity, ModelSizes
from recsys.model import FrozenModel, dump_sizes
from recsys.training.fresh_model import Start, build_model, model_sizes
from recsys.training.loop import seed_everything
from recsys.training.shared_validation import Validate

VOCABULARIES = ("num_users", "num_items", "num_types")  # of ModelSizes; their dense ids stay
_SETTINGS = {
    "text_width": "the language model (data.text.model) or model.item.text_whiten",
    "ordered": "the order of the data (data.order)",
    "timed": "whether every event has a time",
    "context": "data.context",
}


@dataclass(frozen=True)
class Earlier:
    """A trained model to continue from."""

    weights: dict[str, Tensor]  # of the trainable model, see ``TrainResult``
    sizes: ModelSizes
    text_identity: str = ""  # of the language model of its text vectors; empty if unknown


def warm_start(
    section: ModelConfig, train: TrainConfig, seed: int, dataset: PreparedDataset, earlier: Earlier
) -> tuple[Start, list[str]]:
    """The start of a training on ``dataset``, and the names of the parameters that start at random.

    Axes of text and media, the coding of attributes and the number of user clusters stay those of
    the earlier model, as its weights are valid only for them. So a new category counts as unknown
    until a model is trained from scratch.

    Parameters
    ----------
    section : ModelConfig
        The section ``model``.
    train : TrainConfig
        The section ``train``.
    seed : int
        Seed of what starts at random.
    dataset : PreparedDataset
        The dataset to train on; its vocabularies extend those of the earlier model.
    earlier : Earlier
        The model to continue from.

    Returns
    -------
    tuple of (Start, list[str])
        The start, and the names of the parameters that start at random.

    Raises
    ------
    ArtifactError
        The data, or a setting that decides shapes, is not that of the earlier model.
    """
    seed_everything(seed)
    reads = Start(earlier.weights, earlier.sizes.inputs)
    sizes = model_sizes(section, dataset, Split.VALID, start=reads)
    before, now = dump_sizes(earlier.sizes), dump_sizes(sizes)
    for name, meaning in _SETTINGS.items():
        if before[name] != now[name]:
            raise ArtifactError(
                f"the model to continue from has {name} {before[name]}, this dataset gives"
                f" {now[name]}: {meaning} differs; prepare the data as for the model, or train from"
                " scratch with `recsys run`"
            )
    ids = [(before[name], now[name]) for name in VOCABULARIES]
    for name, granularity in section.granularities.enabled().items():
        sides = [side.inputs.get(granularity.signal) for side in (earlier.sizes, sizes)]
        if all(side is not None for side in sides):  # a granularity may be added or removed
            cls = granularity_class(name, granularity)
            if not cls.vocabularies(sides[1]):
                _check_same(granularity.signal, cls, *sides)
            ids += zip(cls.vocabularies(sides[0]), cls.vocabularies(sides[1]), strict=True)
    reader = str(dataset.manifest.text.get("identity", ""))
    if (
        earlier.text_identity and reader and earlier.text_identity != reader
    ):  # of equal width, or refused above
        raise ArtifactError(
            f"the model to continue from uses the language model {earlier.text_identity}, and this"
            f" dataset {reader}; their vectors cannot be mixed: set data.text.model to that of the"
            " model and prepare the data again, or train from scratch with `recsys run`"
        )
    model = build_model(section, train, dataset, Split.VALID, start=reads)
    fresh = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    fresh["log_scale"] = torch.tensor(-math.log(train.loss.temperature))
    weights = dict(earlier.weights)
    if not train.loss.learn_temperature:  # then it is a setting, and the new one applies
        weights["log_scale"] = fresh["log_scale"]
    found, missing = grow(weights, fresh, ids)
    names = tuple(name for name, _ in model.encoders.each())
    return replace(reads, weights=found, names=names), missing


def _check_same(signal: str, cls: type[Granularity], before: Any, now: Any) -> None:
    """Refuse a signal whose shape differs from that of the earlier model.

    Raises
    ------
    ArtifactError
        The shapes differ.
    """
    if before != now:
        had, has = cls.described(before), cls.described(now)
        raise ArtifactError(
            f"the model to continue from reads the {signal} {had}, this dataset has {has}:"
            f" data.{signal} differs; prepare the data as for the model, or train from scratch with"
            " `recsys run`"
        )


def grow(
    old: Mapping[str, Tensor], fresh: Mapping[str, Tensor], vocabularies: Iterable[tuple[int, int]]
) -> tuple[dict[str, Tensor], list[str]]:
    """``fresh`` with the values of ``old`` copied in, and the names of the parameters that ``old``
    does not have.

    Parameters
    ----------
    old : Mapping[str, Tensor]
        Weights of the earlier model.
    fresh : Mapping[str, Tensor]
        Weights of a fresh model for the new data.
    vocabularies : Iterable[tuple[int, int]]
        Length of every vocabulary before and now.

    Raises
    ------
    ArtifactError
        A parameter has another shape, and no vocabulary has grown in this way.
    """
    grown = set(vocabularies)
    found, missing = {}, []
    for name, tensor in fresh.items():
        earlier = old.get(name)
        if earlier is None:
            found[name] = tensor.clone()
            missing.append(name)
        elif earlier.shape == tensor.shape:
            found[name] = earlier.to(tensor.dtype).cpu().clone()
        elif earlier.shape[1:] == tensor.shape[1:] and (len(earlier), len(tensor)) in grown:
            found[name] = torch.cat([earlier.to(tensor.dtype).cpu(), tensor[len(earlier) :]])
        else:
            raise ArtifactError(
                f"{name} has the shape {list(tensor.shape)} for this data and {list(earlier.shape)}"
                " in the model to continue from; new users, items or types do not explain the"
                " difference; train from scratch with `recsys run`"
            )
    return found, missing


# ------------------------------------------------------------------------------- what is really new


@dataclass(frozen=True)
class NewerOnly:
    """Validation on users whose validation events are all new to the earlier model.

    Why: the earlier model was trained on the other validation events. On these it scores best
    unchanged, as it has memorised them.
    """

    validate: Validate
    newer_V: Array  # bool, for every user

    def evaluated(self, queries: Queries) -> Queries:
        """The queries of these users."""
        return queries.take(np.flatnonzero(self.newer_V[queries.histories.users_U]))

    def __call__(self, model: FrozenModel, queries: Queries) -> Array:
        """The metric of every query of these users that has a value: [B]."""
        newer = self.evaluated(queries)
        return self.validate(model, newer) if len(newer) else np.zeros(0)


def newer_users(dataset: PreparedDataset, trained: Histories) -> Array:
    """Users whose validation events an earlier model was not trained on: bool, one per user.

    Parameters
    ----------
    dataset : PreparedDataset
        The dataset of the next training.
    trained : Histories
        The events on which the earlier model was trained, with the same dense ids.

    Raises
    ------
    DataError
        It was trained on test events, which would make every figure of the evaluation invalid, or
        no user has only new validation events.
    """
    known = np.unique(numbered_keys(trained))
    newer_V = np.zeros(dataset.num_users, dtype=bool)
    num_test = num_leaked = num_new = 0
    for shard in dataset.shards():
        is_known_E = np.isin(numbered_keys(shard), known)
        is_test_E, is_valid_E = shard.splits_E == Split.TEST, shard.splits_E == Split.VALID
        num_test += int(is_test_E.sum())
        num_leaked += int((is_test_E & is_known_E).sum())
        users_E = np.repeat(shard.users_U, shard.lengths_U)
        newer_V[users_E[is_valid_E]] = True
        newer_V[users_E[is_valid_E & is_known_E]] = False
        num_new += int((is_valid_E & ~is_known_E).sum())
    if num_leaked:
        raise DataError(
            f"{num_leaked:,} of the {num_test:,} test events of this split were training events of"
            " the model to continue from, so the evaluation would be invalid; an update needs a"
            " split that moves forward in time (data.split.kind temporal or leave-last on ordered"
            " data, or given)"
        )
    if not newer_V.any():
        raise DataError(
            "no user has validation events that are all new to the model to continue from"
            f" ({num_new:,} new ones in all): there is nothing to update on; give newer events in"
            " data.source"
        )
    return newer_V
