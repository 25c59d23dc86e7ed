"""Registered versions that hold forgotten users: replaced by the one made again, or deleted. Part of the verb ``forget``.

Why deleted and not edited: a version is what its digests in the registry say it is, and whoever pulled it compares. The
version that was made again takes over the aliases, so a server that follows one loads it as it loads any other.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.folder import RunFolder
from recsys.config import Config
from recsys.registry.tracking import remembered_run
from recsys.registry.versions import Store, Version, holds_users


def forget_versions(
    config: Config, folder: RunFolder, store: Store, versions: list[tuple[Version, bool]], users: pa.Array
) -> dict[str, Any]:
    """Replace or delete every version that holds the users; for the proof, what became of which.

    Args:
        config: of the run.
        folder: of the run.
        store: MLflow's.
        versions: that were there before, and whether each held the users.
        users: their ids.
    """
    new = _registered(folder)
    said: dict[str, Any] = {"replaced": {}, "deleted": [], "left": {}}
    for version, held in versions:
        if not held or version.folder is None or not holds_users(version.folder, users):
            continue
        origin = store.folder_of_run(version.run_id)
        mine = version.run_id == remembered_run(config, folder.root) or _same(origin, config.run.dir)
        replaced = mine and new is not None and new[0] == version.name and str(new[1]) != version.number
        if version.aliases and not replaced and not config.forget.delete_versions:
            said["left"][version.uri] = (
                f"{', '.join(version.aliases)}; made in {origin or 'a folder that it does not name'}"
            )
            continue
        if not mine and not config.forget.delete_versions:
            said["left"][version.uri] = f"made in {origin or 'a folder that it does not name'}"
            continue
        if replaced and new is not None and version.aliases:
            store.replace(version, new[1])
            said["replaced"][version.uri] = f"{', '.join(version.aliases)} is version {new[1]} now"
        store.purge(version)
        said["deleted"].append(version.uri)
    for uri, what in said["replaced"].items():
        folder.progress(f"{uri}: {what}")
    if said["deleted"]:
        folder.progress(f"deleted, with all files: {', '.join(said['deleted'])}")
    for uri, why in said["left"].items():
        folder.progress(
            f"{uri} holds them and was not made here ({why}): run `recsys forget` in that folder, or delete the version "
            "with --forget.delete_versions true"
        )
    return said


def _registered(folder: RunFolder) -> tuple[str, int] | None:
    """Name and number of the version that the run folder has registered."""
    with suppress(OSError, ValueError, KeyError):
        content = json.loads(folder.registered.read_text(encoding="utf-8"))
        return str(content["name"]), int(content["version"])
    return None


def _same(one: str, other: str) -> bool:
    return bool(one) and Path(one).absolute() == Path(other).absolute()
