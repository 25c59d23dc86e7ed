"""Retrained ablation: the training stage trains every variant from scratch, in RUN/ablation/HASH.

Why: a model was trained to rely on all of its granularities. Setting one weight to zero afterwards
does not show what that granularity is worth; a model trained without it does. A variant is trained
once: the name of its folder is the hash of the dataset and of all settings that training reads.
Each variant costs as much as the training itself.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from typing import Any, Final, get_args

from pipelines.plumbing.run_folder import RunFolder
from pipelines.plumbing.session import ray_session
from pipelines.plumbing.trained import trained
from pipelines.steps.stacking import stacked
from recsys.config import Config, FusionConfig, build_config
from recsys.data.dataset import PreparedDataset
from recsys.errors import ArtifactError
from recsys.evaluation.ablation import Variant
from recsys.granularities import granularity_class
from recsys.training.checkpoint import TrainResult, load_trained, save_trained
from recsys.training.members import trained_part
from recsys.training.separate_models import APART, joined, own_config, sections
from recsys.training.threads import settle_threads

_READ_BY_TRAINING: Final = ("seed", "model", "train")


def retrained_variants(
    config: Config, folder: RunFolder, dataset: PreparedDataset
) -> Iterator[Variant]:
    """Yield every variant, trained now or earlier.

    The variants are: each granularity off, each granularity alone, each other kind of fusion.

    Parameters
    ----------
    config : Config
        Configuration of the run.
    folder : RunFolder
        Folder of the run; the variants are trained in its folder ``ablation``.
    dataset : PreparedDataset
        The dataset of the run.

    Yields
    ------
    Variant
        One variant, fully trained.
    """
    for group, name, changed in _plans(config):
        folder.progress(
            f"ablation: {name} {group}, trained from scratch"
            if group != "fusion"
            else f"ablation: {name} fusion"
        )
        yield Variant(group, name, _trained(changed, folder, dataset).frozen)


def _plans(config: Config) -> Iterator[tuple[str, str, Config]]:
    """The variants to train; none if the model has one granularity only.

    Yields
    ------
    tuple of (str, str, Config)
        Group, name and configuration of a variant.
    """
    sections = config.model.granularities.enabled()
    enabled = list(sections)
    if len(enabled) < 2:
        return
    trained = {name for name in enabled if not granularity_class(name, sections[name]).closed_form}
    for group, kept in (
        ("off", lambda name: set(enabled) - {name}),
        ("alone", lambda name: {name}),
    ):
        for name in enabled:
            if kept(name) & trained:  # a closed-form granularity needs a trained one
                yield group, name, _with(config, kept(name))
    for kind in get_args(FusionConfig.model_fields["kind"].annotation):
        if kind != config.model.fusion.kind:
            yield "fusion", kind, _with(config, set(enabled), kind)


def _with(config: Config, enabled: set[str], fusion: str = "") -> Config:
    """The configuration with only these granularities, and another fusion if one is given."""
    tree: dict[str, Any] = config.model_dump(mode="json")
    for name, section in tree["model"]["granularities"].items():
        section["enabled"] = name in enabled
    tree["model"]["fusion"]["kind"] = fusion or config.model.fusion.kind
    return build_config(tree, expand=False)


def variant_hash(config: Config, dataset: PreparedDataset) -> str:
    """Hash of everything that training reads; variants with equal hashes give the same model."""
    tree = config.model_dump(mode="json")
    parts = {name: tree[name] for name in _READ_BY_TRAINING}
    parts |= {
        "dataset": dataset.manifest.content_hash,
        "exclude_seen": config.evaluate.exclude_seen,
        "max_users": config.evaluate.max_users,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _trained(config: Config, folder: RunFolder, dataset: PreparedDataset) -> TrainResult:
    """Read the variant's model from its folder, or train it there."""
    variant = folder.fetch(f"ablation/{variant_hash(config, dataset)}")
    try:
        return load_trained(variant)
    except ArtifactError:  # missing, or left by an interrupted run
        folder.forget(variant)
    run = config.run.model_copy(update={"dir": folder.shown(variant.absolute())})
    result = _fitted(config.model_copy(update={"run": run}), folder, dataset)
    for left in ("checkpoints", APART):
        folder.forget(variant / left)
    save_trained(variant, result)
    folder.publish(variant)
    return result


def _fitted(config: Config, folder: RunFolder, dataset: PreparedDataset) -> TrainResult:
    """Train a variant as the stage ``train`` does: with its separate models and its stacking."""

    def fit(own: Config) -> TrainResult:
        return trained(own, dataset, lambda values: None, folder.progress, None, math.inf)

    with ray_session(config.train, config.ray):
        result = fit(trained_part(config))
        names = sections(config.model)
        result = joined(result, {name: fit(own_config(config, name)) for name in names})
    if not config.model.fusion.stack:
        return result
    settle_threads(config.model, config.train, dataset.num_items, folder.progress)
    return stacked(config, dataset, result, folder.progress)
