"""Models that are trained apart and become members of another: their configurations, and their weights among its own.

Each is trained as a model by itself is, after the others (see :mod:`recsys.apart` for why). Its weights and choices
are kept with those of the model that it is a member of, under its name, so that a warm start, the training on all
events and the measured model find them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from torch import Tensor

from recsys.config import Config, TrainConfig
from recsys.config.renamed import with_current_keys
from recsys.config.values import merged
from recsys.errors import ArtifactError
from recsys.granularities.apart.section import KIND, ApartConfig
from recsys.storage.uris import within
from recsys.training.checkpoint import TrainResult

APART: Final = KIND  # the name of what they chose among a training's choices, and of their weights


def sections(config: Config) -> dict[str, ApartConfig]:
    """The models apart of a configuration, by name."""
    enabled = config.model.granularities.enabled().items()
    return {name: section for name, section in enabled if isinstance(section, ApartConfig)}


def own_config(config: Config, name: str, goes_on: bool = False) -> Config:
    """The configuration of the training of one of them.

    It is trained on the same parts of the data as the others. Its checkpoints have a folder of their own. A training
    that goes on from a parent has the epochs of the others, and as much of its own learning rate.
    """
    section = sections(config)[name]
    shared = {key: getattr(config.train, key) for key in ("refit", "final", "num_workers", "use_gpu", "metric")}
    train = merged(config.train.model_dump(mode="json"), dict(with_current_keys("train", section.train))) | shared
    if goes_on:
        lr = section.train["lr"] * config.update.lr_share if "lr" in section.train else config.train.lr
        train |= {"epochs": config.train.epochs, "lr": lr}
    changes = {
        "model": section.own_model(),
        "train": TrainConfig.model_validate(train),
        "seed": config.seed + section.seed,
        "run": config.run.model_copy(update={"dir": within(config.run.dir, f"{APART}/{name}")}),
    }
    return config.model_copy(update=changes)


def joined(result: TrainResult, apart: Mapping[str, TrainResult]) -> TrainResult:
    """The result of the others with the weights and choices of the models apart."""
    if not apart:
        return result
    weights, selected = dict(result.weights), None if result.selected is None else dict(result.selected)
    chosen = {}
    for name, own in apart.items():
        weights |= named(name, own.weights)
        if selected is not None:
            selected |= named(name, own.weights if own.selected is None else own.selected)
        sizes = own.frozen.sizes
        chosen[name] = {"best_epoch": own.best_epoch, "choices": own.choices, "inputs": dict(sizes.inputs)}
    return replace(result, weights=weights, selected=selected, choices={**result.choices, APART: chosen})


def own_weights(weights: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The weights of one of them among those of the whole.

    Raises
    ------
    ArtifactError
        there are none.
    """
    start = f"{APART}.{name}."
    found = {key.removeprefix(start): tensor for key, tensor in weights.items() if key.startswith(start)}
    if not found:
        raise ArtifactError(f"the trained model holds no weights of {name}; run `recsys train` again")
    return found


def without_apart(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the whole without those of the models apart."""
    return {key: tensor for key, tensor in weights.items() if not key.startswith(f"{APART}.")}


def named(name: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of one of them as they are among those of the whole."""
    return {f"{APART}.{name}.{key}": tensor for key, tensor in weights.items()}
