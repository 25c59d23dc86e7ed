"""Warm start: the weights of an earlier model, grown to a dataset that continues the earlier one's.

Why: retraining from nothing on every new partition costs hours; a model that keeps what it knows needs a few epochs.
Old users, items, event types, entities and relations keep their dense ids (see ``Vocabulary``), so one rule serves
every parameter: equal shape is copied; a table whose first axis grew as one of these vocabularies did keeps its old
rows and starts the new ones as a fresh model does. Legend: E events.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys.config import Config
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array, Histories, Queries, Split, event_keys
from recsys.errors import ArtifactError, DataError
from recsys.granularities import granularity_class
from recsys.granularities.base import Granularity, ModelSizes
from recsys.model import FrozenModel, dump_sizes
from recsys.training.build import Start, build_model, model_sizes
from recsys.training.loop import Validate, seed_everything

VOCABULARIES = ("num_users", "num_items", "num_types")  # of ModelSizes; ids that stay
_SETTINGS = {
    "text_width": "the language model (data.text.model) or model.item.text_whiten",
    "ordered": "the order of the data (data.order)",
    "timed": "whether every event has a time",
    "context": "data.context",
}


@dataclass(frozen=True)
class Earlier:
    """A trained model to go on from."""

    weights: dict[str, Tensor]  # of the trainable model, see ``TrainResult``
    sizes: ModelSizes
    text_identity: str = ""  # of the language model behind its text vectors; empty: unknown


def warm_start(config: Config, dataset: PreparedDataset, earlier: Earlier) -> tuple[Start, list[str]]:
    """Where a training on ``dataset`` starts from, and the parameters that start anew.

    Axes of text and media, the coding of attributes and the number of strata stay those of the earlier model, as its
    weights mean nothing under others: a category that is new counts as unknown until a model is trained anew.

    Raises
    ------
    ArtifactError
        the data or a setting behind the shapes is not the earlier model's.
    """
    seed_everything(config.seed)
    reads = Start(earlier.weights, earlier.sizes.inputs)
    sizes = model_sizes(config, dataset, Split.VALID, start=reads)
    before, now = dump_sizes(earlier.sizes), dump_sizes(sizes)
    for name, meaning in _SETTINGS.items():
        if before[name] != now[name]:
            raise ArtifactError(
                f"the model to go on from has {name} {before[name]}, this dataset gives {now[name]}: {meaning} "
                "differs; prepare the data as the model was trained, or train anew with `recsys run`"
            )
    ids = [(before[name], now[name]) for name in VOCABULARIES]
    for name, section in config.model.granularities.enabled().items():
        sides = [side.inputs.get(section.signal) for side in (earlier.sizes, sizes)]
        if all(side is not None for side in sides):  # a granularity may come or go
            cls = granularity_class(name, section)
            if not cls.vocabularies(sides[1]):
                _check_same(section.signal, cls, *sides)
            ids += zip(cls.vocabularies(sides[0]), cls.vocabularies(sides[1]), strict=True)
    reader = str(dataset.manifest.text.get("identity", ""))
    if earlier.text_identity and reader and earlier.text_identity != reader:  # of equal width, or refused above
        raise ArtifactError(
            f"the model to go on from reads texts by the language model {earlier.text_identity}, this dataset by "
            f"{reader}, whose vectors mean something else; set data.text.model to the model's and prepare the data "
            "again, or train anew with `recsys run`"
        )
    model = build_model(config, dataset, Split.VALID, start=reads)
    fresh = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    fresh["log_scale"] = torch.tensor(-math.log(config.train.loss.temperature))
    weights = dict(earlier.weights)
    if not config.train.loss.learn_temperature:  # then it is a setting, of which today's counts
        weights["log_scale"] = fresh["log_scale"]
    found, anew = grow(weights, fresh, ids)
    names = tuple(name for name, _ in model.encoders.each())
    return replace(reads, weights=found, names=names), anew


def _check_same(signal: str, cls: type[Granularity], before: Any, now: Any) -> None:
    """Refuse a signal of another shape than the earlier model's.

    Raises
    ------
    ArtifactError
        with both shapes.
    """
    if before != now:
        had, has = cls.described(before), cls.described(now)
        raise ArtifactError(
            f"the model to go on from reads the {signal} {had}, this dataset has {has}: data.{signal} differs; prepare "
            "the data as the model was trained, or train anew with `recsys run`"
        )


def grow(
    old: Mapping[str, Tensor], fresh: Mapping[str, Tensor], vocabularies: Iterable[tuple[int, int]]
) -> tuple[dict[str, Tensor], list[str]]:
    """``fresh`` with all that ``old`` knows; the names of what starts anew.

    Parameters
    ----------
    old : Mapping[str, Tensor]
        weights of the earlier model.
    fresh : Mapping[str, Tensor]
        weights of a new one for the new data.
    vocabularies : Iterable[tuple[int, int]]
        how long every vocabulary was, and is.

    Raises
    ------
    ArtifactError
        a parameter has another shape, and no vocabulary has grown so.
    """
    grown = set(vocabularies)
    found, anew = {}, []
    for name, tensor in fresh.items():
        earlier = old.get(name)
        if earlier is None:
            found[name] = tensor.clone()
            anew.append(name)
        elif earlier.shape == tensor.shape:
            found[name] = earlier.to(tensor.dtype).cpu().clone()
        elif earlier.shape[1:] == tensor.shape[1:] and (len(earlier), len(tensor)) in grown:
            found[name] = torch.cat([earlier.to(tensor.dtype).cpu(), tensor[len(earlier) :]])
        else:
            raise ArtifactError(
                f"{name} has the shape {list(tensor.shape)} for this data and {list(earlier.shape)} in the model to go "
                "on from, and no vocabulary has grown so; train anew with `recsys run`"
            )
    return found, anew


# -------------------------------------------------------------------------------------------------- what is really new


@dataclass(frozen=True)
class NewerOnly:
    """Validation by users whose validation events are all new to the earlier model.

    Why: the earlier model was trained on others, and would choose to stay as it is by what it has by heart.
    """

    validate: Validate
    newer_V: Array  # bool, of every user

    def asked(self, queries: Queries) -> Queries:
        """The queries of these users."""
        return queries.take(np.flatnonzero(self.newer_V[queries.histories.users_U]))

    def __call__(self, model: FrozenModel, queries: Queries) -> Array:
        kept = self.asked(queries)
        return self.validate(model, kept) if len(kept) else np.zeros(0)


def newer_users(dataset: PreparedDataset, trained: Histories) -> Array:
    """Users whose validation events an earlier model was not trained on: bool, one a user.

    Parameters
    ----------
    dataset : PreparedDataset
        what the model is to be trained on now.
    trained : Histories
        the events that the earlier model was trained on, by the same dense ids.

    Raises
    ------
    DataError
        test events that it was trained on, which would make every number of the evaluation untrue, or
        no validation event that is new.
    """
    known = np.unique(event_keys(trained))
    newer_V = np.zeros(dataset.num_users, dtype=bool)
    num_test = num_leaked = num_new = 0
    for shard in dataset.shards():
        is_known_E = np.isin(event_keys(shard), known)
        is_test_E, is_valid_E = shard.splits_E == Split.TEST, shard.splits_E == Split.VALID
        num_test, num_leaked = num_test + int(is_test_E.sum()), num_leaked + int((is_test_E & is_known_E).sum())
        users_E = np.repeat(shard.users_U, shard.lengths_U)
        newer_V[users_E[is_valid_E]] = True
        newer_V[users_E[is_valid_E & is_known_E]] = False
        num_new += int((is_valid_E & ~is_known_E).sum())
    if num_leaked:
        raise DataError(
            f"{num_leaked:,} of the {num_test:,} test events of this split were training events of the model to go on "
            "from, so that no evaluation could be trusted; an update needs a split that moves forward in time "
            "(data.split.kind temporal or leave-last on ordered data, or given)"
        )
    if not newer_V.any():
        raise DataError(
            f"no user has validation events that are all new to the model to go on from ({num_new:,} new ones in all): "
            "there is nothing to update on; give newer events in data.source"
        )
    return newer_V
