"""The MLflow experiment of a run and the location of its artefacts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from recsys.config import TrackingConfig, redact
from recsys.errors import ConfigError
from recsys.storage.uris import is_remote


def experiment_id(mlflow_client: Any, store: Path | None, settings: TrackingConfig) -> str:
    """The id of the experiment, which is created where it does not exist.

    A new experiment in a SQLite store keeps its artefacts next to the SQLite file, so the location
    does not depend on the working directory.

    Parameters
    ----------
    mlflow_client : Any
        The ``MlflowClient`` of the store.
    store : Path | None
        The file of a SQLite store; None for other stores.
    settings : TrackingConfig
        The section ``tracking`` of the configuration.

    Raises
    ------
    ConfigError
        The experiment was deleted, keeps its artefacts at another location than
        ``tracking.artifacts``, or its artefacts were moved.
    MlflowException
        The experiment cannot be created.
    """
    from mlflow import MlflowException

    name, location = settings.experiment, settings.artifacts or None
    if location is not None and not is_remote(location):
        location = Path(location).absolute().as_uri()
    beside = (
        None if store is None else store.parent / "mlartifacts" / re.sub(r"[^\w.-]+", "-", name)
    )
    if beside is not None:
        location = location or beside.as_uri()
    found = mlflow_client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(mlflow_client.create_experiment(name, artifact_location=location))
        except MlflowException:  # another process has created it in the meantime
            found = mlflow_client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise ConfigError(
            f"tracking.experiment: {name!r} was deleted; restore it in MLflow or give another name"
        )
    if settings.artifacts and found.artifact_location.rstrip("/") != str(location).rstrip("/"):
        raise ConfigError(
            f"tracking.artifacts: the experiment {name!r} stores its artefacts at"
            f" {redact(found.artifact_location)}, which cannot be changed to {settings.artifacts};"
            " use another tracking.experiment for the new location"
        )
    if beside is not None and not settings.artifacts:
        _check_not_moved(name, local_path(str(found.artifact_location)), beside)
    return str(found.experiment_id)


def local_path(location: str) -> Path | None:
    """The folder of a ``file:`` URI or path; None for other locations.

    >>> str(local_path("file:///a%20b/c")), local_path("s3://bucket/key")
    ('/a b/c', None)
    """
    if location.startswith("file:"):
        return Path(unquote(urlparse(location).path))
    return None if ":/" in location else Path(location)


def _check_not_moved(name: str, recorded: Path | None, beside: Path) -> None:
    """Check that a store was not moved with its artefacts: MLflow keeps their old absolute path.

    Raises
    ------
    ConfigError
        It was moved.
    """
    # only where the old place is gone and the new one exists was the store surely moved
    if recorded is None or recorded == beside or recorded.exists() or not beside.exists():
        return
    raise ConfigError(
        f"tracking.experiment {name!r}: MLflow's store was moved; it looks for its artefacts at"
        f" {recorded}, which does not exist, but they are at {beside} now. Move them back, create a"
        f" symbolic link (mkdir -p {recorded.parent} && ln -s {beside} {recorded}), or give another"
        " tracking.experiment"
    )
