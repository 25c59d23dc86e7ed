"""Registration of a bundle as a version in the MLflow model registry.

Why: a deployment pulls ``models:/NAME@ALIAS`` and gets a self-contained folder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys.bundle.description import CARD
from recsys.config import RegistryConfig, redact
from recsys.errors import ConfigError
from recsys.registry.aliases import Aliases
from recsys.registry.digest import FILES_TAG, LISTING, digest, dump
from recsys.registry.logged_model import log_model, logged_files
from recsys.registry.minimum import EVENTS_TAG, Minimum, alias_command, check_minimum, num_events
from recsys.registry.mlflow_client import active_uris, all_pages, name_is
from recsys.registry.tracking import Tracker
from recsys.registry.version_tags import final_tags, version_tags

if TYPE_CHECKING:
    from recsys.bundle.layout import Bundle


@dataclass(frozen=True)
class RegisteredModel:
    """A version in the registry."""

    name: str
    version: int
    alias: str
    # models:/NAME@ALIAS, which moves when a later version gets the alias; without alias the pinned
    # URI
    uri: str
    pinned_uri: str  # models:/NAME/VERSION, always this version
    why: str = ""  # the reason why it has the alias or not
    by_hand: str = ""  # the command that gives it the alias by hand; empty where it has the alias

    @property
    def registered(self) -> str:
        """The name and the number of the version, for people."""
        return f"registered {self.name} version {self.version}"

    @property
    def summary(self) -> str:
        """One line for people."""
        if self.alias:
            return f"{self.registered} as {self.alias}: {self.why}"
        return (
            f"{self.registered} without an alias: {self.why}; use it by its number,"
            f" {self.pinned_uri}, or set the alias by hand: {self.by_hand}"
        )


def register(
    tracker: Tracker,
    bundle_folder: str | Path,
    settings: RegistryConfig,
    metrics: Mapping[str, Any],
    *,
    resumes: bool,
    replaces: bool,
) -> RegisteredModel:
    """Log a bundle as a pyfunc model of the run, register it and, above the minimum, set the alias.

    Parameters
    ----------
    tracker : Tracker
        The open MLflow run.
    bundle_folder : str | Path
        Folder of the bundle.
    settings : RegistryConfig
        Name, alias and least number of events.
    metrics : Mapping[str, Any]
        The content of ``metrics.json``; the model's metrics become tags of the version, and the
        comparison with the baselines decides about the alias
        (:func:`recsys.registry.minimum.check_minimum`).
    resumes : bool
        Whether the command continues an interrupted one (``run.resume``), which may have created
        the version.
    replaces : bool
        Whether the dataset may have fewer events than before (``update.replace``).

    Raises
    ------
    ConfigError
        Tracking is off, or the alias is invalid.
    ArtifactError
        The bundle is missing or damaged.
    """
    if not tracker.enabled:
        raise ConfigError(
            "registering a model needs tracking; set tracking.enabled true, or skip the stage"
        )
    name, alias = settings.name, settings.alias
    _check_alias(alias)
    from recsys.serving.bundles import read_bundle

    folder = Path(bundle_folder)
    # reading checks the bundle before anything is written to the registry
    bundle = read_bundle(folder)
    registry = tracker.client
    tags = version_tags(tracker, bundle, metrics)
    # an interrupted command may have created the version, but not yet moved the alias
    number = _version_of_interrupted_run(registry, name, tags) if resumes else 0
    if not number:
        if resumes:
            _forget_unregistered(tracker)
        number = _create_version(tracker, folder, bundle, settings, metrics, tags)
    pinned_uri = f"models:/{name}/{number}"
    minimum = _minimum(Aliases(registry, name), number, bundle, settings, replaces, metrics)
    if minimum.passed:
        registry.set_registered_model_alias(name, alias, str(number))
    tracker.set_tags({"registered_model": pinned_uri, **final_tags(bundle)})
    if CARD in bundle.info.files:
        tracker.log_file(folder / CARD)
    if minimum.passed:
        return RegisteredModel(
            name, number, alias, f"models:/{name}@{alias}", pinned_uri, minimum.why
        )
    by_hand = alias_command(redact(tracker.uri), name, alias, number)
    return RegisteredModel(name, number, "", pinned_uri, pinned_uri, minimum.why, by_hand)


def _check_alias(alias: str) -> None:
    if not re.fullmatch(r"[\w-]+", alias) or re.fullmatch(r"[vV]\d+|latest", alias):
        raise ConfigError(
            f"registry.alias: got {alias!r}, expected letters, digits, _ and -; MLflow reserves"
            " latest and names such as v1"
        )


def _create_version(
    tracker: Tracker,
    folder: Path,
    bundle: Bundle,
    settings: RegistryConfig,
    metrics: Mapping[str, Any],
    tags: Mapping[str, str],
) -> int:
    """Log the model and create its version in the registry; returns the version number."""
    from recsys.registry.model_page import describe_model, version_description

    name, registry = settings.name, tracker.client
    with active_uris(tracker.uri):
        logged = log_model(tracker, folder, bundle)
        # from the store, not from the folder: MLflow adds files of its own
        files = logged_files(logged.model_uri)
        registry.log_text(tracker.run_id, dump(files), LISTING)
        _ensure_name(registry, name)
        describe_model(registry, settings)
        created = registry.create_model_version(
            name,
            source=logged.model_uri,
            run_id=tracker.run_id,
            model_id=logged.model_id,
            # with the version and not after it: no version may exist without its digest
            tags={**tags, FILES_TAG: digest(files)},
            description=version_description(bundle, settings, metrics),
        )
    return int(created.version)


def _minimum(
    aliases: Aliases,
    number: int,
    bundle: Bundle,
    settings: RegistryConfig,
    replaces: bool,
    metrics: Mapping[str, Any],
) -> Minimum:
    """Whether a version may have the alias; the result is stored in its tags."""
    extra, alias = bundle.info.extra, settings.alias
    before = {}
    holder = aliases.version_of(alias)
    if holder not in ("", str(number)):
        before[f"the present {alias}, version {holder},"] = int(
            aliases.tags(holder).get(EVENTS_TAG, "0")
        )
    if parent := extra.get("parent"):
        before[f"its parent {parent['uri']}"] = int(parent.get("events", 0))
    comparison = metrics.get("comparison") or extra.get("comparison") or {}
    minimum = check_minimum(comparison, num_events(bundle.info.dataset), before, settings, replaces)
    aliases.tag(str(number), minimum.tags())
    return minimum


def _version_of_interrupted_run(registry: Any, name: str, tags: Mapping[str, str]) -> int:
    """The version that an interrupted command of the same run has already created of this model; 0
    for none.
    """
    found = registry.search_model_versions(f"{name_is(name)} and run_id = '{tags['run_id']}'")
    return max((int(one.version) for one in found if tags.items() <= one.tags.items()), default=0)


def _forget_unregistered(tracker: Tracker) -> None:
    """Delete the models that an interrupted command has logged to the run and not registered."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    registry, run = tracker.client, tracker.run_id
    versions = all_pages(registry.search_model_versions, filter_string=f"run_id = '{run}'")
    registered = {one.source for one in versions}
    logged = all_pages(
        registry.search_logged_models,
        experiment_ids=[tracker.experiment_id],
        filter_string=f"source_run_id = '{run}'",
    )
    for model in list(logged):
        if model.model_uri not in registered:
            with active_uris(tracker.uri), suppress(Exception):  # what stays does no harm
                repository: Any = get_artifact_repository(model.artifact_location)
                repository.delete_artifacts()
                registry.delete_logged_model(model.model_id)


def _ensure_name(registry: Any, name: str) -> None:
    from mlflow import MlflowException

    try:
        registry.create_registered_model(name)
    except MlflowException as error:
        # created without a look before, because two commands may register at the same time
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
