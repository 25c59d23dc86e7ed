"""Download of a registered model to a self-contained local folder, which needs no registry
afterwards.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from recsys.bundle.checksums import check_file, writing_aside
from recsys.bundle.description import DESCRIPTION, BundleInfo
from recsys.config import redact
from recsys.errors import ArtifactError
from recsys.registry.copy_records import PULLED, Copy, remember
from recsys.registry.digest import check_version, unreadable
from recsys.registry.mlflow_client import active_uris, client
from recsys.registry.resolve import bundle_in, pinned
from recsys.serving.bundles import read_bundle


@dataclass(frozen=True)
class Pulled:
    """The pulled model."""

    folder: Path
    bundle: Path
    name: str
    version: str
    aliases: tuple[str, ...]
    info: BundleInfo
    note: str = ""  # a warning about what could not be checked
    is_noted: bool = True  # whether `recsys forget` finds the folder by the registered model


def pull_model(uri: str, folder: str | Path, tracking_uri: str) -> Pulled:
    """Download ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``, check it, and rename it into
    place.

    A folder with a pulled model is replaced; a process that has its files open can still read them.

    Parameters
    ----------
    uri : str
        The model.
    folder : str | Path
        The target folder.
    tracking_uri : str
        URI of MLflow.

    Raises
    ------
    ArtifactError
        There is no such model; its files cannot be read, are damaged or not those that were
        registered; its self-test fails; or ``folder`` holds something else, which would be lost.
    """  # noqa: DOC501
    from mlflow import MlflowException
    from mlflow.artifacts import download_artifacts

    if not uri.startswith("models:"):
        raise ArtifactError(
            f"pull: got {uri!r}, expected models:/NAME@ALIAS or models:/NAME/VERSION"
        )
    # fixed before the download, because the alias may move
    name, version = pinned(uri, tracking_uri).removeprefix("models:/").rsplit("/", 1)
    target = Path(folder).absolute()
    with writing_aside(target, f"artifacts/*/{DESCRIPTION}") as aside:
        # first: after a kill, `recsys forget` must find what was copied
        is_noted = remember([Copy.here("model", target)], uri, tracking_uri)
        try:
            with active_uris(tracking_uri):
                download_artifacts(artifact_uri=f"models:/{name}/{version}", dst_path=str(aside))
        except (MlflowException, OSError) as error:
            raise unreadable(uri, version, error) from None
        registry = client(tracking_uri)
        note = check_version(registry, name, version, aside)
        for compiled in [*aside.rglob("__pycache__")]:
            # not covered by the digest, and Python would run it instead of the source
            shutil.rmtree(compiled)
        bundle_folder = bundle_in(aside, uri)
        bundle = read_bundle(bundle_folder)
        for file, entry in bundle.info.files.items():
            # all files: reading a bundle checks only those that serving needs
            check_file(bundle_folder, file, entry)
        if not (aside / "MLmodel").is_file():
            raise ArtifactError(
                f"{uri} is not an MLflow model (MLmodel is missing); register it with `recsys"
                " register`"
            )
        aliases = tuple(sorted(registry.get_model_version(name, version).aliases))
        inside = bundle_folder.relative_to(aside)
        pulled = Pulled(
            target, target / inside, name, version, aliases, bundle.info, note, is_noted
        )
        _write_origin(aside / PULLED, pulled, uri, tracking_uri)
    return pulled


def _write_origin(file: Path, pulled: Pulled, uri: str, tracking_uri: str) -> None:
    """Note next to the model where it comes from."""
    origin = {
        "asked": uri,
        "name": pulled.name,
        "version": pulled.version,
        "aliases": list(pulled.aliases),
        "tracking": redact(tracking_uri),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    file.write_text(json.dumps(origin, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
