"""Verb ``update``: update a registered model with new events or with feedback on its lists.

Why: new events come every day, and a training from scratch takes hours. ``update.only`` says how:

- ``all`` prepares old and new events (ids stay the same), starts from the parent's weights, trains
  a
  few epochs and registers the result as challenger;
- ``fusion`` fits only the weights of the granularities to feedback, in seconds, and registers the
  model if it is better;
- ``strata`` fits the user clusters again.

The tag ``parent`` of a version names the version that it was made from.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.evaluate import evaluate
from pipelines.plumbing.opened_dataset import open_dataset
from pipelines.plumbing.opened_model import first_difference
from pipelines.plumbing.run_folder import RunFolder
from pipelines.plumbing.run_tracking import tracked
from pipelines.plumbing.session import quiet, ray_session, ray_through
from pipelines.register import register
from pipelines.run import closing_words
from pipelines.stages import chosen_verb
from pipelines.train import train
from pipelines.updating.newer_events import prepare_newer
from pipelines.updating.start_weights import descent_of, held_weights
from recsys.config import Config, DataConfig, ModelConfig, RegistryConfig, UpdateConfig, redact
from recsys.errors import ArtifactError, ConfigError
from recsys.evaluation.validation import Validator
from recsys.gate.drift import NAMES, drift_of
from recsys.registry.card import refitted_card
from recsys.registry.mlflow_client import tracking_uri
from recsys.registry.parent import Parent, open_parent, write_refitted
from recsys.registry.provenance import lineage
from recsys.registry.register import register as register_bundle
from recsys.serving.feedback import gather, read_feedback
from recsys.serving.recommender import Recommender
from recsys.training.members import refuse_stacked
from recsys.training.refit_fusion import Refit, refit_fusion
from recsys.training.user_clusters import refit_user_clusters, stratum_module


def update(config: Config, folder: RunFolder) -> None:
    """Run the kind of update that ``update.only`` and ``update.follow`` name."""
    quiet()
    verb = chosen_verb("update", config.update, config.tune, config.compare)
    module, name = verb.target.split(":")
    getattr(importlib.import_module(module), name)(config, folder)


def parent_uri(update: UpdateConfig, registry: RegistryConfig) -> str:
    """The model to update."""
    return update.model or f"models:/{registry.name}@champion"


def update_all(config: Config, folder: RunFolder, is_prepared: bool = False) -> dict[str, Any]:
    """Train a few epochs from the parent's weights on old and new events, evaluate and register.

    Parameters
    ----------
    config : Config
        Configuration of the update.
    folder : RunFolder
        Folder of the update.
    is_prepared : bool
        Whether ``data.dir`` is the dataset with the new events already.

    Returns
    -------
    dict
        The content of ``registered.json``; empty if tracking is off.
    """
    Validator.of(config.train, config.evaluate)
    check_text(config.data)
    given, config = config, shortened(config)
    with folder.progress.stage("parent"):
        parent = open_parent(
            parent_uri(config.update, config.registry),
            tracking_uri(config.tracking, config.run.dir),
        )
        check_settings(parent, config.model)
        held = held_weights(parent)  # before writing: this may be the parent's run folder
        folder.progress(f"updating {parent.uri}, created {parent.bundle.info.created}")
    with tracked(config, folder, fresh=True) as tracker, ray_through(config.train, config.ray):
        tracker.set_tags({"parent": parent.uri})
        with ray_session(config.train, config.ray):
            if not is_prepared:
                prepare_newer(config, folder, parent)
            with folder.progress.stage("parent"):
                descent = descent_of(config, folder, parent, held)
                say_drift(config.data, config.dataset_dir, config.seed, folder, parent)
            train(config, folder, descent)
        metrics = evaluate(config, folder)
        # not the shortened one, or epochs and lr would shrink with each update
        registered = register(config, folder, given=given)
    folder.progress.plain(closing_words(metrics, registered, folder))
    return registered


def say_drift(
    data: DataConfig, dataset_dir: str, seed: int, folder: RunFolder, parent: Parent
) -> None:
    """Measure the drift of the newer events and write ``drift.json`` for the report and the
    gate.

    Parameters
    ----------
    data : DataConfig
        The section ``data``.
    dataset_dir : str
        Folder of the dataset with the newer events.
    seed : int
        Seed of the configuration.
    folder : RunFolder
        Folder of the update; it gets ``drift.json``.
    parent : Parent
        The model whose events are the earlier ones.

    Raises
    ------
    ArtifactError
        There is no prepared dataset for this configuration.
    """
    dataset = open_dataset(data, dataset_dir, seed)
    found = drift_of(dataset, parent.bundle.histories, parent.bundle.num_items).to_json()
    folder.write_json(folder.drift, {"dataset": dataset.manifest.content_hash, **found})
    shown = ", ".join(
        f"{NAMES[key]} {value:.3f}"
        for key, value in found.items()
        if key in NAMES and value is not None
    )
    folder.progress(f"drift of {found['events']:,} newer events: {shown or 'nothing to measure'}")


def shortened(config: Config) -> Config:
    """The configuration with the epochs and the lower learning rate of an update."""
    settings = {"epochs": config.update.epochs, "lr": config.train.lr * config.update.lr_share}
    return config.model_copy(update={"train": config.train.model_copy(update=settings)})


def check_settings(parent: Parent, model: ModelConfig) -> None:
    """Refuse a parent with another ``model`` section, because its weights would not fit.

    Raises
    ------
    ArtifactError
        The sections differ; the message names the first key.
    """
    different = first_difference(parent.bundle.info.model, model)
    if different:
        raise ArtifactError(
            f"{parent.uri} was trained with another model section: {different}; give the"
            " configuration that it was trained with, or train from scratch with `recsys run`"
        )


def check_text(data: DataConfig) -> None:
    """Refuse to fine-tune the language model again: its new vectors would not fit the parent's
    weights.

    Raises
    ------
    ConfigError
        Fine-tuning is enabled.
    """
    if data.text.finetune.enabled:
        raise ConfigError(
            "data.text.finetune.enabled: got true, but an update needs the text vectors of its"
            " parent, and a newly trained adapter gives others; set it false and set"
            " data.text.model to a copy of the folder text/adapter of the parent's dataset (if it"
            " was kept), or train from scratch with `recsys run`"
        )


def update_fusion(config: Config, folder: RunFolder) -> None:
    """Fit only the weights of the granularities, to feedback."""
    settings = config.update
    with folder.progress.stage("feedback"):
        feedback = read_feedback(
            settings.feedback, settings.rewards, config.data.quarantine.limit("events")
        )
        parent = open_parent(
            parent_uri(config.update, config.registry),
            tracking_uri(config.tracking, config.run.dir),
        )
        refuse_stacked(parent.bundle.model.encoders, "update.only fusion", parent.uri)
        recommender = Recommender(parent.bundle)
        found = gather(recommender, feedback)
        folder.progress(
            f"{len(feedback):,} rows of feedback on {parent.uri}: {len(found.evidence):,} used,"
            f" {feedback.num_bad:,} bad, {found.num_unknown_items:,} about unknown items,"
            f" {found.num_unknown_users:,} about users without any known signal"
        )
    with folder.progress.stage("refit"):
        encoders = parent.bundle.model.encoders
        refit = refit_fusion(
            encoders.fusion,
            found.evidence,
            settings.prior_rows,
            config.seed,
            encoders.fitted_weights,
        )
        losses = {
            "feedback_log_loss_before": refit.loss_before,
            "feedback_log_loss": refit.loss_after,
        }
        folder.progress(
            f"log-loss on held-out feedback {refit.loss_before:.5f} before, {refit.loss_after:.5f}"
            f" after (± {refit.error:.5f})"
        )
        if not refit.better:
            folder.progress(
                f"the improvement is within its error, so nothing is registered; {parent.uri} is"
                " unchanged"
            )
            return
        changed = encoders.refitted(refit.after_K)
        before, after = _shown(refit, recommender.names)
        folder.progress(
            "; ".join(
                f"{name} {before[name]:.3f} → {after[name]:.3f}" for name in recommender.names
            )
        )
        extra = {
            "fusion": {"before": before, "after": after, "rows": len(found.evidence), **losses}
        }
    register_changed(config, folder, parent, changed, losses, extra)


def update_user_clusters(config: Config, folder: RunFolder) -> None:
    """Fit only the user clusters (strata) to old and new events; the model's users and items stay
    the same.

    Raises
    ------
    ConfigError
        The model has no granularity ``stratum``, or does not know an event type of the new
        events.
    """
    with folder.progress.stage("parent"):
        parent = open_parent(
            parent_uri(config.update, config.registry),
            tracking_uri(config.tracking, config.run.dir),
        )
        check_settings(parent, config.model)
        model = parent.bundle.model
    module = stratum_module(model)
    if module is None:
        raise ConfigError(f"{parent.uri} has no granularity stratum; train a model with it enabled")
    with ray_session(config.train, config.ray):
        prepare_newer(config, folder, parent, needs_new=False)
    with folder.progress.stage("refit"):
        dataset = open_dataset(config.data, config.dataset_dir, config.seed)
        fresh = dataset.manifest.event_types[model.sizes.num_types :]
        # an event type has an embedding, which only a training can learn
        if fresh:
            raise ConfigError(
                f"{parent.uri} does not know the event type {', '.join(fresh)}, and update.only"
                " strata cannot add it; run a full update (update.only all), or leave out the type"
                " with data.interactions"
            )
        before = model.encoders.state_dict()
        after = refit_user_clusters(
            config.model.max_history, config.train, config.seed, dataset, model
        ).encoders.state_dict()
        # only what changed is written, so that the rest is exactly that of the parent
        changed = {
            name: tensor for name, tensor in after.items() if not torch.equal(tensor, before[name])
        }
        of_measured = None
        if parent.seen_all:  # the evaluated model has other user vectors, so other prototypes
            other = refit_user_clusters(
                config.model.max_history, config.train, config.seed, dataset, parent.measured()
            ).encoders.state_dict()
            of_measured = {name: other[name] for name in changed}
        number, events = module.num_strata, dataset.manifest.counts["train"]
        folder.progress(f"fitted {number} user clusters (strata) again on {events:,} events")
    extra = {"strata": {"dataset": dataset.manifest.content_hash}}
    register_changed(config, folder, parent, changed, {}, extra, of_measured)


def register_changed(
    config: Config,
    folder: RunFolder,
    parent: Parent,
    changed: dict[str, Tensor],
    metrics: dict[str, float],
    extra: dict[str, Any],
    of_measured: dict[str, Tensor] | None = None,
) -> None:
    """Write the parent with changed parameters to RUN/bundle and register it as a version.

    ``of_measured`` are the changed parameters of its evaluated model, if they differ.

    Parameters
    ----------
    config : Config
        Configuration of the update; it names the registered model.
    folder : RunFolder
        Folder of the update; it gets the bundle and ``registered.json``.
    parent : Parent
        The model that is changed.
    changed : dict[str, Tensor]
        New parameters by their name in the encoders.
    metrics : dict[str, float]
        Measured values by name, for MLflow and the card; may be empty.
    extra : dict[str, Any]
        Entries for ``bundle.json``; the first key is the part that was refitted.
    of_measured : dict[str, Tensor] | None
        New parameters of the parent's evaluated model; None: those of ``changed``.
    """
    with folder.progress.stage("register"), tracked(config, folder, fresh=True) as tracker:
        tracker.set_tags({"parent": parent.uri})
        tracker.log_metrics(metrics)
        dataset = parent.bundle.info.dataset.get("content_hash", "")
        made = lineage(config, str(extra.get("strata", {}).get("dataset", dataset)), tracker)
        card = refitted_card(parent.uri, parent.card, next(iter(extra)), metrics, made)
        write_refitted(
            parent, folder.bundle, changed, metrics, extra | {"lineage": made}, card, of_measured
        )
        folder.publish(folder.bundle)
        if not tracker.enabled:
            folder.forget(folder.registered)
            folder.progress(
                f"wrote {folder.shown(folder.bundle)}; tracking.enabled is false, so nothing is"
                " registered"
            )
            return
        model = register_bundle(
            tracker,
            folder.bundle,
            config.registry,
            {"model": metrics},
            resumes=config.run.resume,
            replaces=config.update.replace,
        )
        registered = {**asdict(model), "tracking": redact(tracker.uri), "run_id": tracker.run_id}
        folder.write_json(folder.registered, registered)
        folder.progress(model.summary)


def _shown(refit: Refit, names: list[str]) -> tuple[dict[str, float], dict[str, float]]:
    """Weights by granularity before and after; for gated fusion, priors."""
    before, after = (
        np.asarray(values).round(6).tolist() for values in (refit.before_K, refit.after_K)
    )
    return dict(zip(names, before, strict=True)), dict(zip(names, after, strict=True))


if __name__ == "__main__":
    from pipelines.cli import main

    sys.exit(main(["update", *sys.argv[1:]]))
