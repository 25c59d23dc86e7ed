"""All versions of all registered models, and the locations of MLflow's files; used by `recsys
forget`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.bundle.description import USERS
from recsys.registry.experiments import local_path
from recsys.registry.mlflow_client import all_pages, client, first_contact, name_is
from recsys.storage.temporary import temporary_folder

_KEPT_TAGS: Final = "promotion."
_DELETED: Final = ".deleted"  # end of the name of a folder that is being deleted


def delete_whole(folder: Path) -> None:
    """Delete a folder of artefacts; after a kill there is none that looks whole."""
    gone = folder.with_name(folder.name + _DELETED)
    folder.rename(gone)
    shutil.rmtree(gone)


@dataclass(frozen=True)
class Version:
    """One version of a registered model."""

    name: str
    number: str
    run_id: str
    aliases: tuple[str, ...]
    model_id: str  # of MLflow's logged model
    folder: Path | None  # its files; None where they are not on this machine
    # local copy of files that are elsewhere; None where they cannot be read
    copy: Path | None = None

    @property
    def uri(self) -> str:
        """The URI that always refers to this version."""
        return f"models:/{self.name}/{self.number}"

    @property
    def files(self) -> Path | None:
        """The files or a local copy of them."""
        return self.folder or self.copy


class Store:
    """An MLflow store with its registry and artefacts."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        with first_contact(uri):
            self._client = client(uri, writes=True)
            self._client.search_registered_models(max_results=1)

    def versions(self) -> Iterator[Version]:
        """Every version of every registered model."""
        for model in all_pages(self._client.search_registered_models):
            for one in all_pages(
                self._client.search_model_versions, filter_string=name_is(model.name)
            ):
                # the search of versions leaves out their aliases
                aliases = tuple(
                    alias
                    for alias, number in model.aliases.items()
                    if str(number) == str(one.version)
                )
                model_id, uri = self._uri_of(
                    str(one.source), str(getattr(one, "model_id", "") or "")
                )
                here = local_path(uri) if uri else None
                folder = here if here is not None and here.is_dir() else None
                copy = self._copy(uri) if uri and here is None else None
                yield Version(
                    model.name,
                    str(one.version),
                    str(one.run_id or ""),
                    aliases,
                    model_id,
                    folder,
                    copy,
                )

    def _copy(self, uri: str) -> Path | None:
        """A temporary copy of files that are not on this machine; removed with this process."""
        from mlflow.artifacts import download_artifacts

        with suppress(
            Exception
        ):  # the server or the files may be gone; the proof of deletion lists what is elsewhere
            return Path(
                download_artifacts(uri, dst_path=str(temporary_folder()), tracking_uri=self.uri)
            )
        return None

    def _uri_of(self, source: str, model_id: str) -> tuple[str, str]:
        """The logged model of a version and the location of its files; empty where they are
        unknown.
        """
        if source.startswith("models:/"):
            model_id, source = model_id or source.removeprefix("models:/"), ""
            with suppress(Exception):  # a deleted logged model has no location
                source = str(self._client.get_logged_model(model_id).artifact_location)
        return model_id, source

    def folder_of_run(self, run_id: str) -> str:
        """The run folder of a run, from its parameters; empty where it is unknown."""
        with suppress(Exception):
            return str(self._client.get_run(run_id).data.params.get("run.dir", ""))
        return ""

    def run_of_model(self, model_id: str) -> str:
        """The run that logged a model; empty where it is unknown."""
        with suppress(Exception):
            return str(self._client.get_logged_model(model_id).source_run_id or "")
        return ""

    def replace(self, old: Version, number: int) -> None:
        """Move the aliases and the promotion tags of a version to a newer version of the same
        model.
        """
        tags = dict(self._client.get_model_version(old.name, old.number).tags)
        for key, value in tags.items():
            if key.startswith(_KEPT_TAGS):
                self._client.set_model_version_tag(old.name, str(number), key, value)
        # last: after an interruption only a version with aliases is replaced again
        for alias in old.aliases:
            self._client.set_registered_model_alias(old.name, alias, str(number))

    def purge(self, version: Version) -> None:
        """Delete a version, its logged model and all files of it."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        location = ""
        if version.model_id:
            with suppress(Exception):
                location = str(self._client.get_logged_model(version.model_id).artifact_location)
        self._client.delete_model_version(version.name, version.number)
        if version.folder is not None:
            delete_whole(version.folder)
        elif location:
            repository: Any = get_artifact_repository(location)
            repository.delete_artifacts()
        if version.model_id:
            self.delete_record(version.model_id)

    def finish_deletions(self) -> None:
        """Delete what killed commands left of the folders that they deleted."""
        for folder in self.artefact_folders():
            for left in (
                *folder.glob(f"models/*{_DELETED}"),
                *folder.glob(f"models/*/*{_DELETED}"),
            ):
                shutil.rmtree(left)

    def delete_record(self, model_id: str) -> None:
        """Delete what the store knows about a logged model whose files are deleted."""
        with suppress(Exception):  # a record that remains in the store does no harm
            self._client.delete_logged_model(model_id)

    def models_without_files(self) -> Iterator[str]:
        """Ids of the logged models whose files were on this machine and are deleted."""
        ids = [experiment.experiment_id for experiment in self._experiments()]
        search = self._client.search_logged_models
        for model in all_pages(search, experiment_ids=ids) if ids else ():
            here = local_path(str(model.artifact_location))
            if here is not None and not here.exists():
                yield str(model.model_id)

    def artefact_folders(self) -> list[Path]:
        """The folders on this machine in which experiments store artefacts."""
        found = []
        for experiment in self._experiments():
            folder = local_path(str(experiment.artifact_location))
            if folder is not None and folder.is_dir() and folder not in found:
                found.append(folder)
        return found

    def remote_artefacts(self) -> list[str]:
        """The locations of artefacts of experiments that this machine cannot open as files."""
        found = {str(experiment.artifact_location) for experiment in self._experiments()}
        return sorted(uri for uri in found if local_path(uri) is None)

    def _experiments(self) -> Iterator[Any]:
        """All experiments, deleted ones included."""
        from mlflow.entities import ViewType

        return all_pages(self._client.search_experiments, view_type=ViewType.ALL)


def holds_users(version_folder: Path, users: pa.Array) -> bool:
    """Whether a bundle in an MLflow folder has any of the users."""
    return any(len(known_users(path, users)) for path in version_folder.rglob(USERS))


def known_users(path: Path, users: pa.Array) -> list[int]:
    """The rows of these users in a bundle's table of users."""
    ids = pq.read_table(path, columns=["user_id"]).column("user_id")
    found = pc.is_in(ids, value_set=users)
    return [row for row, held in enumerate(found.to_pylist()) if held]
