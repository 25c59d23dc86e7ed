"""Models that are trained separately and become members of another model: their configurations and
weights.

Each is trained like a model of its own, after the main model (:mod:`recsys.separate_model` says
why). Its weights and choices are stored with those of the main model, under its name. So a warm
start, the training on all events and the evaluated model find them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from torch import Tensor

from recsys.config import Config, ModelConfig, TrainConfig
from recsys.config.renamed import with_current_keys
from recsys.config.values import merged
from recsys.errors import ArtifactError
from recsys.granularities.apart.section import KIND, ApartConfig
from recsys.storage.uris import within
from recsys.training.checkpoint import TrainResult

APART: Final = KIND  # their key in the training's choices, and the prefix of their weights


def sections(model: ModelConfig) -> dict[str, ApartConfig]:
    """The sections of the separately trained models of a configuration, by name."""
    enabled = model.granularities.enabled().items()
    return {name: section for name, section in enabled if isinstance(section, ApartConfig)}


def own_config(config: Config, name: str, continues: bool = False) -> Config:
    """The configuration for training one of them.

    It is trained on the same splits of the data as the main model. Its checkpoints have their own
    folder.

    Parameters
    ----------
    config : Config
        The configuration of the main model.
    name : str
        The name of the separately trained model.
    continues : bool
        Whether the training continues from a parent. It then has the epochs of the main model, and
        its own learning rate times ``update.lr_share``.
    """
    section = sections(config.model)[name]
    shared = {
        key: getattr(config.train, key)
        for key in ("refit", "final", "num_workers", "use_gpu", "metric")
    }
    train = (
        merged(
            config.train.model_dump(mode="json"), dict(with_current_keys("train", section.train))
        )
        | shared
    )
    if continues:
        lr = (
            section.train["lr"] * config.update.lr_share
            if "lr" in section.train
            else config.train.lr
        )
        train |= {"epochs": config.train.epochs, "lr": lr}
    changes = {
        "model": section.own_model(),
        "train": TrainConfig.model_validate(train),
        "seed": config.seed + section.seed,
        "run": config.run.model_copy(update={"dir": within(config.run.dir, f"{APART}/{name}")}),
    }
    return config.model_copy(update=changes)


def joined(result: TrainResult, apart: Mapping[str, TrainResult]) -> TrainResult:
    """The result of the main model, with the weights and choices of
    the separately trained models.
    """
    if not apart:
        return result
    weights = dict(result.weights)
    selected = None if result.selected is None else dict(result.selected)
    chosen = {}
    for name, own in apart.items():
        weights |= named(name, own.weights)
        if selected is not None:
            selected |= named(name, own.weights if own.selected is None else own.selected)
        sizes = own.frozen.sizes
        chosen[name] = {
            "best_epoch": own.best_epoch,
            "choices": own.choices,
            "inputs": dict(sizes.inputs),
        }
    return replace(
        result, weights=weights, selected=selected, choices={**result.choices, APART: chosen}
    )


def own_weights(weights: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The weights of one separately trained model, taken from those of the main model.

    Raises
    ------
    ArtifactError
        The main model holds no weights of it.
    """
    start = f"{APART}.{name}."
    found = {
        key.removeprefix(start): tensor for key, tensor in weights.items() if key.startswith(start)
    }
    if not found:
        raise ArtifactError(
            f"the trained model holds no weights of {name}; run `recsys train` again"
        )
    return found


def without_apart(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the main model without those of the separately trained models."""
    return {key: tensor for key, tensor in weights.items() if not key.startswith(f"{APART}.")}


def named(name: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of one separately trained model, under their names in the main model."""
    return {f"{APART}.{name}.{key}": tensor for key, tensor in weights.items()}
