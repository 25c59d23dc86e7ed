"""Registration of a bundle as a version in the MLflow model registry, and resolution of a name to a
local bundle.

Why: a deployment pulls ``models:/NAME@ALIAS`` and gets a self-contained folder. Batch
recommendation resolves the same name to the same bundle, so both answer from the same files.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import recsys
from recsys.bundle.description import CARD, DESCRIPTION, WEIGHTS
from recsys.config import Config, redact
from recsys.encoders.text import PACKAGED
from recsys.errors import ArtifactError, ConfigError, NotRegistered
from recsys.registry.aliases import Aliases
from recsys.registry.digest import (
    FILES_TAG,
    LISTING,
    WEIGHTS_TAG,
    check_version,
    digest,
    dump,
    listing,
    unreadable,
)
from recsys.registry.minimum import (
    BELOW,
    EVENTS_TAG,
    MINIMUM_TAG,
    WHY_TAG,
    Minimum,
    alias_command,
    check_minimum,
    newest_versions,
    num_events,
)
from recsys.registry.tracking import Tracker, client, mlflow_name, numbers, sqlite_path
from recsys.serving.requests import SimilarRequest
from recsys.storage.filesystems import check_bucket, filesystem_of, read_bytes, storage_errors
from recsys.storage.mirror import download, downloaded, temporary_folder
from recsys.storage.uris import is_remote, within

if TYPE_CHECKING:
    from recsys.bundle.files import Bundle

MODEL_FILE: Final = Path(__file__).with_name("pyfunc_model.py")
REQUIREMENTS: Final = ("torch", "numpy", "pandas", "pyarrow", "safetensors", "pydantic", "pyyaml")
_URI: Final = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")
_LONGEST_TAG: Final = 4_000  # characters; MLflow's limit is 5,000


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
    def said(self) -> str:
        """One line for people."""
        registered = f"registered {self.name} version {self.version}"
        if self.alias:
            return f"{registered} as {self.alias}: {self.why}"
        return (
            f"{registered} without an alias: {self.why}; use it by its number, {self.pinned_uri},"
            f" or set the alias by hand: {self.by_hand}"
        )


def register(
    tracker: Tracker, bundle_folder: str | Path, config: Config, metrics: Mapping[str, Any]
) -> RegisteredModel:
    """Log a bundle as a pyfunc model of the run, register it and, above the minimum, set the alias.

    Parameters
    ----------
    tracker : Tracker
        The open MLflow run.
    bundle_folder : str | Path
        Folder of the bundle.
    config : Config
        Configuration of the run.
    metrics : Mapping[str, Any]
        The content of ``metrics.json``; the model's metrics become tags of the version, and the
        comparison with the baselines decides about the alias
        (:func:`recsys.registry.minimum.check_minimum`).

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
    name, alias = config.registry.name, config.registry.alias
    if not re.fullmatch(r"[\w-]+", alias) or re.fullmatch(r"[vV]\d+|latest", alias):
        raise ConfigError(
            f"registry.alias: got {alias!r}, expected letters, digits, _ and -; MLflow reserves"
            " latest and names such as v1"
        )
    from recsys.registry.model_page import describe_model, version_description
    from recsys.serving.bundles import read_bundle

    bundle = read_bundle(bundle_folder)
    registry = tracker.client
    tags = _version_tags(tracker, bundle, metrics)
    number = _version_of_interrupted_run(registry, name, tags) if config.run.resume else 0
    if not number:
        with active(tracker.uri):
            logged = _log_model(tracker, Path(bundle_folder), bundle)
            files = _logged_files(logged.model_uri)
            registry.log_text(tracker.run_id, dump(files), LISTING)
            _ensure_name(registry, name)
            describe_model(registry, config.registry)
            created = registry.create_model_version(
                name,
                source=logged.model_uri,
                run_id=tracker.run_id,
                model_id=logged.model_id,
                tags=tags | {FILES_TAG: digest(files)},
                description=version_description(bundle, config.registry, metrics),
            )
        number = int(created.version)
    pinned_uri = f"models:/{name}/{number}"
    minimum = _minimum(Aliases(registry, name), number, bundle, config, metrics)
    if minimum.passed:
        registry.set_registered_model_alias(name, alias, str(number))
    tracker.set_tags({"registered_model": pinned_uri, **_final_tags(bundle)})
    if CARD in bundle.info.files:
        tracker.log_file(Path(bundle_folder) / CARD)
    if minimum.passed:
        return RegisteredModel(
            name, number, alias, f"models:/{name}@{alias}", pinned_uri, minimum.why
        )
    by_hand = alias_command(redact(tracker.uri), name, alias, number)
    return RegisteredModel(name, number, "", pinned_uri, pinned_uri, minimum.why, by_hand)


def _minimum(
    aliases: Aliases, number: int, bundle: Bundle, config: Config, metrics: Mapping[str, Any]
) -> Minimum:
    """Whether a version may have the alias; the result is stored in its tags."""
    extra, alias = bundle.info.extra, config.registry.alias
    before = {}
    holder = aliases.version_of(alias)
    if holder not in ("", str(number)):
        before[f"the present {alias}, version {holder},"] = int(
            aliases.tags(holder).get(EVENTS_TAG, "0")
        )
    if parent := extra.get("parent"):
        before[f"its parent {parent['uri']}"] = int(parent.get("events", 0))
    comparison = metrics.get("comparison") or extra.get("comparison") or {}
    minimum = check_minimum(comparison, num_events(bundle.info.dataset), before, config)
    aliases.tag(str(number), minimum.tags())
    return minimum


def resolve(uri: str, tracking_uri: str, into: Path | None = None) -> Path:
    """The local bundle folder of ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, or of a folder
    with a bundle.

    Parameters
    ----------
    uri : str
        The model.
    tracking_uri : str
        URI of MLflow.
    into : Path | None
        Folder to copy the model to; the caller removes it. None: models of a remote store, and
        folders at URIs such as ``s3://``, are downloaded to a temporary folder of this process.

    Raises
    ------
    ArtifactError
        There is no such model, alias, version or bundle (lists what is registered), or the files
        are not those that were registered.
    """
    if is_remote(uri):
        return _bundle_at(uri, into)
    if not uri.startswith("models:"):
        return bundle_in(Path(uri), uri)
    from mlflow import MlflowException
    from mlflow.artifacts import download_artifacts

    name, number = _version(uri, tracking_uri)
    try:
        with active(tracking_uri):
            if into is None and not _is_here(f"models:/{name}/{number}"):
                into = temporary_folder()  # MLflow would create one and never remove it
            folder = download_artifacts(
                artifact_uri=f"models:/{name}/{number}",
                dst_path=None if into is None else str(into),
            )
    except (MlflowException, OSError) as error:
        raise unreadable(uri, number, error) from None
    check_version(client(tracking_uri), name, number, Path(folder))
    return bundle_in(Path(folder), uri)


def pinned(uri: str, tracking_uri: str) -> str:
    """``models:/NAME/VERSION`` of a registered model: the name that never moves to a later version.

    Raises
    ------
    ArtifactError
        As in :func:`resolve`.
    """
    return "models:/{}/{}".format(*_version(uri, tracking_uri))


def _version(uri: str, tracking_uri: str) -> tuple[str, str]:
    """Name and version of a registered model."""
    match = _URI.fullmatch(uri)
    if match is None:
        raise ArtifactError(
            f"model: got {uri!r}, expected models:/NAME@ALIAS, models:/NAME/VERSION or the folder"
            " of a bundle"
        )
    path = sqlite_path(tracking_uri)
    if path is not None and not path.is_file():
        raise ArtifactError(
            f"{uri}: the MLflow store {path} does not exist; run `recsys register`, or set"
            " tracking.uri to your store"
        )
    registry = client(tracking_uri)
    from mlflow import MlflowException

    try:
        number = (
            match["version"]
            or registry.get_model_version_by_alias(match["name"], match["alias"]).version
        )
        registry.get_model_version(match["name"], str(number))
    except MlflowException:
        newest = newest_versions(registry, match["name"], 1)
        raise NotRegistered(
            f"{uri} is not registered; {_registered(registry, match['name'])}",
            uri,
            f"models:/{match['name']}/{newest[0].version}" if newest else "",
        ) from None
    return str(match["name"]), str(number)


def _log_model(tracker: Tracker, folder: Path, bundle: Bundle) -> Any:
    """Log the bundle as an MLflow model from code, together with the source of this package."""
    import mlflow
    import mlflow.pyfunc

    from recsys.registry.pyfunc_model import BUNDLE, BUNDLE_SHA256, request_schema, signature

    with _active_run(tracker):
        return mlflow.pyfunc.log_model(
            name="model",
            python_model=str(MODEL_FILE),
            artifacts={BUNDLE: str(folder.absolute())},
            code_paths=[str(Path(recsys.__file__).parent)],
            model_config={
                BUNDLE_SHA256: hashlib.sha256((folder / DESCRIPTION).read_bytes()).hexdigest()
            },
            signature=signature(bundle.exclude_seen),
            metadata={
                "request": request_schema(bundle.exclude_seen),
                "similar": SimilarRequest.model_json_schema(),
            },
            input_example=_example(bundle),
            pip_requirements=[
                f"{package}=={version(package).split('+')[0]}" for package in requirements(bundle)
            ],
        )


def _logged_files(uri: str) -> dict[str, str]:
    """The :func:`~recsys.registry.digest.listing` of a logged model, read back from MLflow's
    artefact store.
    """
    from mlflow.artifacts import download_artifacts

    with tempfile.TemporaryDirectory(prefix="multigrain-") as into:
        return listing(
            Path(download_artifacts(artifact_uri=uri, dst_path=None if _is_here(uri) else into))
        )


def requirements(bundle: Bundle) -> list[str]:
    """The packages that serving needs: few, plus those for an index, other granularities or texts
    of histories.
    """
    found = [*REQUIREMENTS, *(["faiss-cpu"] if bundle.index is not None else [])]
    found += sorted({entry.package for entry in bundle.info.outside.values() if entry.package})
    if bundle.info.user_text:
        found.append("transformers")
        packaged = PACKAGED.get(
            str(bundle.info.user_text["model"]).removeprefix("sentence-transformers/")
        )
        found += [packaged.replace("_", "-")] if packaged else []
    return found


def _example(bundle: Bundle) -> Any:
    """An input example with invented users, no users of the data.

    They are new users with a history, with an unknown friend and, where the model reads attributes,
    with attributes.
    """
    import pandas as pd

    history, user, friend = bundle.item_ids[:3], "invented-user", "invented-friend"
    known = set(bundle.user_ids)
    while user in known or friend in known:
        user, friend = f"{user}-1", f"{friend}-1"
    rows: list[dict[str, Any]] = [
        {"user_id": user, "history": history[:1]},
        {"user_id": user, "history": history},
        {"user_id": user, "friends": [friend]},
    ]
    nothing: dict[str, Any] = {"history": [], "friends": []}
    from recsys.granularities.profile.encoding import encoding_of

    profile = encoding_of(bundle.model.sizes)
    if profile is not None and profile.users:
        nothing["attributes"] = {}
        rows.append(
            {"user_id": user, "attributes": {field.name: field.example for field in profile.users}}
        )
    return pd.DataFrame([{**nothing, **row, "k": 5} for row in rows])


def _version_of_interrupted_run(registry: Any, name: str, tags: Mapping[str, str]) -> int:
    """The version that an interrupted command of the same run has already created of this model; 0
    for none.
    """
    found = registry.search_model_versions(f"name = '{name}' and run_id = '{tags['run_id']}'")
    return max((int(one.version) for one in found if tags.items() <= one.tags.items()), default=0)


def _ensure_name(registry: Any, name: str) -> None:
    from mlflow import MlflowException

    try:
        registry.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _version_tags(tracker: Tracker, bundle: Bundle, metrics: Mapping[str, Any]) -> dict[str, str]:
    own = metrics.get("model", metrics)
    return {
        **{mlflow_name(f"metric.{key}"): f"{value:.6g}" for key, value in numbers(own).items()},
        WEIGHTS_TAG: bundle.info.files[WEIGHTS].sha256,
        "dataset.content_hash": str(bundle.info.dataset.get("content_hash", "")),
        "dataset.name": str(bundle.info.dataset.get("name", "")),
        EVENTS_TAG: str(num_events(bundle.info.dataset)),
        "granularities": ", ".join(bundle.info.granularities),
        **_finding_tags(metrics),
        "multigrain.version": bundle.info.package_version,
        "run_id": tracker.run_id,
        **_lineage_tags(bundle.info.extra.get("lineage") or {}),
        **_final_tags(bundle),
        **({"parent": str(parent["uri"])} if (parent := bundle.info.extra.get("parent")) else {}),
    }


def _final_tags(bundle: Bundle) -> dict[str, str]:
    """Tags of a model that was trained on all events after the evaluation: its events
    and epochs.
    """
    return {
        f"final.{key}": str(value) for key, value in (bundle.info.extra.get("final") or {}).items()
    }


def _finding_tags(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Tags with the members of the model and the signals of a query for which it is below the best
    baseline.
    """
    found = {}
    report = metrics.get("members") or {}
    if each := report.get("each"):
        # then the trained granularities are one member, "trained"
        is_stacked = report.get("single") is not None
        members = [
            name
            for name, entry in each.items()
            if entry["kept"] and not (is_stacked and entry["kind"] == "trained")
        ]
        found["members"] = ", ".join(members)
    if signals := metrics.get("signals"):
        below = [
            entry["label"] for entry in signals if entry["best_baseline"] and entry["high"] < 0
        ]
        found["signals.below_baseline"] = " | ".join(below)[:_LONGEST_TAG] or "none"
        found["signals.combinations"] = str(len(signals))
    return found


def _lineage_tags(lineage: Mapping[str, Any]) -> dict[str, str]:
    named = {"git.commit": "git_commit", "git.changed": "git_changed", "config.digest": "config"}
    return {tag: str(lineage[key]).lower() for tag, key in named.items() if key in lineage}


def _is_here(uri: str) -> bool:
    """Whether the files of a version are on this machine, so that nothing needs to be
    downloaded.
    """
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
    from mlflow.store.artifact.models_artifact_repo import ModelsArtifactRepository

    store: Any = ModelsArtifactRepository(uri)
    while isinstance(store, ModelsArtifactRepository):
        store = store.repo
    return isinstance(store, LocalArtifactRepository)


def bundle_in(folder: Path, asked: str) -> Path:
    """The folder of a bundle: the given folder, or a folder inside a run folder or an MLflow model.

    Raises
    ------
    ArtifactError
        There is no bundle; the message names ``asked``, the model as the user gave it.
    """
    for place in (DESCRIPTION, f"bundle/{DESCRIPTION}", f"artifacts/*/{DESCRIPTION}"):
        for found in sorted(folder.glob(place)) if folder.is_dir() else ():
            return found.parent
    raise ArtifactError(
        f"{asked} has no model bundle ({DESCRIPTION} is missing); give the folder of a bundle or"
        " models:/NAME@ALIAS"
    )


def _bundle_at(uri: str, into: Path | None) -> Path:
    """As :func:`bundle_in`, for a remote folder; only the bundle is downloaded."""
    place = _place_of(uri)
    if into is None:
        folder = downloaded(place)
        if folder is not None:
            return folder
    elif download(place, into / "bundle"):
        return into / "bundle"
    raise _no_bundle_at(uri)


def description_at(uri: str) -> bytes:
    """The ``bundle.json`` of a remote folder, which is enough to see whether the model has changed.

    Raises
    ------
    ArtifactError
        As in :func:`resolve`.
    """
    return read_bytes(within(_place_of(uri), DESCRIPTION))


def _place_of(uri: str) -> str:
    """The URI of a remote bundle: the given folder, or ``bundle`` inside it."""
    for place in (uri, within(uri, "bundle")):
        filesystem, inner = filesystem_of(within(place, DESCRIPTION))
        with storage_errors(place):
            if filesystem.get_file_info(inner).is_file:
                return place
    check_bucket(uri)
    raise _no_bundle_at(uri)


def _no_bundle_at(uri: str) -> ArtifactError:
    return ArtifactError(
        f"{uri} has no model bundle ({DESCRIPTION} is missing); give a run folder, the folder of a"
        " bundle or models:/NAME@ALIAS"
    )


def _registered(registry: Any, asked: str) -> str:
    """The registered models for an error message; for the requested model also its
    newest version.
    """
    found = []
    for model in registry.search_registered_models(max_results=50):
        found += [f"models:/{model.name}@{alias}" for alias in sorted(model.aliases)]
        if model.name == asked or not model.aliases:
            found += _newest(registry, model)
    return (
        f"registered models: {', '.join(sorted(found))}"
        if found
        else "nothing is registered there yet"
    )


def _newest(registry: Any, model: Any) -> list[str]:
    """The newest version of a model without an alias, with the reason; empty where it
    has an alias.
    """
    for newest in newest_versions(registry, model.name, 1):
        if str(newest.version) in {str(number) for number in model.aliases.values()}:
            return []
        why = f": {newest.tags.get(WHY_TAG, '')}" if newest.tags.get(MINIMUM_TAG) == BELOW else ""
        return [f"models:/{model.name}/{newest.version} (no alias{why})"]
    return [f"{model.name} (no version)"]


@contextmanager
def active(uri: str) -> Iterator[None]:
    """Set MLflow's process-wide URIs within a block: its model functions accept no other way."""
    import mlflow

    before: Any = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None  # type: ignore[no-untyped-call]
    registry = os.environ.get("MLFLOW_REGISTRY_URI")
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(registry or uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)
        mlflow.set_registry_uri(registry or "")
        if registry is None:
            os.environ.pop("MLFLOW_REGISTRY_URI", None)


@contextmanager
def _active_run(tracker: Tracker) -> Iterator[None]:
    """Make the tracker's run MLflow's active run; MLflow ends it afterwards, so set it to running
    again.
    """
    import mlflow

    with mlflow.start_run(run_id=tracker.run_id):
        yield
    tracker.client.update_run(tracker.run_id, status="RUNNING")
