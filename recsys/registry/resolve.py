"""Resolution of a model's name, ``models:/NAME@ALIAS``, ``models:/NAME/VERSION`` or a folder, to a
local bundle.

Why: batch recommendation, serving and export resolve a name to the same bundle, so all answer from
the same files.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from recsys.bundle.description import DESCRIPTION
from recsys.errors import ArtifactError, NotRegistered
from recsys.registry.digest import check_version, unreadable
from recsys.registry.minimum import BELOW, MINIMUM_TAG, WHY_TAG, newest_versions
from recsys.registry.mlflow_client import (
    active_uris,
    client,
    first_contact,
    is_absence,
    sqlite_path,
)
from recsys.storage.filesystems import check_bucket, filesystem_of, read_bytes, storage_errors
from recsys.storage.mirror import download, downloaded
from recsys.storage.temporary import temporary_folder
from recsys.storage.uris import is_remote, within

_NUMBER_DIGITS: Final = 9  # larger numbers do not fit into the 32 bits of MLflow's databases
_URI: Final = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")


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
    ConfigError
        The MLflow store cannot be opened or does not answer.
    """  # noqa: DOC501
    if is_remote(uri):
        return _bundle_at(uri, into)
    if not uri.startswith("models:"):
        return bundle_in(Path(uri), uri)
    from mlflow import MlflowException
    from mlflow.artifacts import download_artifacts

    # resolved once: the alias may move while the files are downloaded
    name, number = _name_and_version(uri, tracking_uri)
    try:
        with active_uris(tracking_uri):
            if into is None and not is_local(f"models:/{name}/{number}"):
                into = temporary_folder()  # MLflow would create one and never remove it
            folder = download_artifacts(
                artifact_uri=f"models:/{name}/{number}",
                dst_path=None if into is None else str(into),
            )
    except (MlflowException, OSError) as error:
        raise unreadable(uri, number, error) from None
    # before any code of the model is loaded
    check_version(client(tracking_uri), name, number, Path(folder))
    return bundle_in(Path(folder), uri)


def pinned(uri: str, tracking_uri: str) -> str:
    """``models:/NAME/VERSION`` of a registered model: the name that never moves to a later version.

    Raises
    ------
    ArtifactError
        As in :func:`resolve`.
    """
    return "models:/{}/{}".format(*_name_and_version(uri, tracking_uri))


def _name_and_version(uri: str, tracking_uri: str) -> tuple[str, str]:
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
    with first_contact(tracking_uri):
        registry = client(tracking_uri)
        number = _number_of(registry, match)
        if number is None:
            newest = newest_versions(registry, match["name"], 1)
            raise NotRegistered(
                f"{uri} is not registered; {_registered(registry, match['name'])}",
                uri,
                f"models:/{match['name']}/{newest[0].version}" if newest else "",
            )
    return str(match["name"]), number


def _number_of(registry: Any, match: re.Match[str]) -> str | None:
    """The number of the version that a URI names; None if there is no such version."""
    from mlflow import MlflowException

    number = match["version"]
    if number is not None and len(number.lstrip("0")) > _NUMBER_DIGITS:
        return None
    try:
        number = (
            number or registry.get_model_version_by_alias(match["name"], match["alias"]).version
        )
        registry.get_model_version(match["name"], str(number))
    except MlflowException as error:
        if not is_absence(error):
            raise
        return None
    return str(number)


def is_local(uri: str) -> bool:
    """Whether the files of a version are on this machine, so that nothing needs to be
    downloaded.
    """
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
    from mlflow.store.artifact.models_artifact_repo import ModelsArtifactRepository

    store: Any = ModelsArtifactRepository(uri)
    # it may wrap another one of its kind
    while isinstance(store, ModelsArtifactRepository):
        store = store.repo
    return isinstance(store, LocalArtifactRepository)


def bundle_in(folder: Path, given: str) -> Path:
    """The folder of a bundle: the given folder, or a folder inside a run folder or an MLflow model.

    Raises
    ------
    ArtifactError
        There is no bundle; the message names ``given``, the model as the user gave it.
    """
    for pattern in (DESCRIPTION, f"bundle/{DESCRIPTION}", f"artifacts/*/{DESCRIPTION}"):
        for found in sorted(folder.glob(pattern)) if folder.is_dir() else ():
            return found.parent
    raise ArtifactError(
        f"{given} has no model bundle ({DESCRIPTION} is missing); give the folder of a bundle or"
        " models:/NAME@ALIAS"
    )


def _bundle_at(uri: str, into: Path | None) -> Path:
    """As :func:`bundle_in`, for a remote folder; only the bundle is downloaded."""
    bundle_uri = _bundle_uri(uri)
    if into is None:
        folder = downloaded(bundle_uri)
        if folder is not None:
            return folder
    elif download(bundle_uri, into / "bundle"):
        return into / "bundle"
    raise _no_bundle_at(uri)


def description_at(uri: str) -> bytes:
    """The ``bundle.json`` of a remote folder, which is enough to see whether the model has changed.

    Raises
    ------
    ArtifactError
        As in :func:`resolve`.
    """
    return read_bytes(within(_bundle_uri(uri), DESCRIPTION))


def _bundle_uri(uri: str) -> str:
    """The URI of a remote bundle: the given folder, or ``bundle`` inside it."""
    for candidate in (uri, within(uri, "bundle")):
        filesystem, inner = filesystem_of(within(candidate, DESCRIPTION))
        with storage_errors(candidate):
            if filesystem.get_file_info(inner).is_file:
                return candidate
    check_bucket(uri)
    raise _no_bundle_at(uri)


def _no_bundle_at(uri: str) -> ArtifactError:
    return ArtifactError(
        f"{uri} has no model bundle ({DESCRIPTION} is missing); give a run folder, the folder of a"
        " bundle or models:/NAME@ALIAS"
    )


def _registered(registry: Any, wanted: str) -> str:
    """The registered models for an error message; for the requested model also its
    newest version.
    """
    found = []
    for model in registry.search_registered_models(max_results=50):
        found += [f"models:/{model.name}@{alias}" for alias in sorted(model.aliases)]
        if model.name == wanted or not model.aliases:
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
