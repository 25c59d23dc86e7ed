"""Registered versions that hold forgotten users: replace or delete them. Part of the verb
``forget``.

Why delete and not edit: the registry stores checksums of each version, and programs that pulled it
compare them. The new version takes over the aliases, so servers that follow one load it as usual.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.plumbing.run_folder import RunFolder
from recsys.config import TrackingConfig
from recsys.config.privacy import ForgetConfig
from recsys.privacy.footprints import SearchTargets
from recsys.privacy.proof import files_in, search_file
from recsys.registry.tracking import run_of_folder
from recsys.registry.versions import Store, Version, delete_whole, holds_users


def forget_versions(
    forget: ForgetConfig,
    tracking: TrackingConfig,
    run_dir: str,
    folder: RunFolder,
    store: Store,
    versions: list[tuple[Version, bool]],
    users: pa.Array,
) -> dict[str, Any]:
    """Replace or delete every version that holds the users.

    Parameters
    ----------
    forget : ForgetConfig
        Whether versions of other run folders are deleted.
    tracking : TrackingConfig
        The tracking URI.
    run_dir : str
        The run folder (``run.dir``).
    folder : RunFolder
        Folder of the run.
    store : Store
        The MLflow store.
    versions : list[tuple[Version, bool]]
        The versions from before, and whether each held the users.
    users : pa.Array
        Ids of the users.

    Returns
    -------
    dict
        The replaced, deleted and remaining versions, for the proof.
    """
    new = _registered(folder)
    actions: dict[str, Any] = {"replaced": {}, "deleted": [], "left": {}}
    for version, held in versions:
        if not held or (version.folder is not None and not holds_users(version.folder, users)):
            continue
        origin = store.folder_of_run(version.run_id)
        mine = version.run_id == run_of_folder(tracking, run_dir, folder.root) or _same(
            origin, run_dir
        )
        replaced = (
            mine and new is not None and new[0] == version.name and str(new[1]) != version.number
        )
        stays = not mine or bool(version.aliases and not replaced)
        if stays and not forget.delete_versions:
            aliases = f"{', '.join(version.aliases)}; " if version.aliases else ""
            actions["left"][version.uri] = f"{aliases}made in {origin or 'an unknown folder'}"
            continue
        # before the deletion, so that a server that follows an alias always finds a version
        if replaced and new is not None and version.aliases:
            store.replace(version, new[1])
            actions["replaced"][version.uri] = (
                f"{', '.join(version.aliases)} is now version {new[1]}"
            )
        store.purge(version)
        actions["deleted"].append(version.uri)
    for uri, what in actions["replaced"].items():
        folder.progress(f"{uri}: {what}")
    if actions["deleted"]:
        folder.progress(f"deleted, with all files: {', '.join(actions['deleted'])}")
    for uri, why in actions["left"].items():
        folder.progress(
            f"{uri} holds these users and cannot be made again here ({why}): run `recsys forget`"
            " for its run folder, or delete the version with --forget.delete_versions true"
        )
    return actions


def forget_artefacts(
    forget: ForgetConfig,
    run_dir: str,
    store: Store,
    versions: Iterable[Version],
    traces: SearchTargets,
    say: Callable[[str], None],
) -> list[str]:
    """Delete artefacts of MLflow runs that contain the users, such as earlier reports, and logged
    models without a version; those of other run folders only with ``forget.delete_versions``.

    Parameters
    ----------
    forget : ForgetConfig
        The section ``forget``.
    run_dir : str
        The configuration's ``run.dir``; artefacts of other run folders need ``delete_versions``.
    store : Store
        The MLflow store.
    versions : Iterable[Version]
        Registered versions; their folders are skipped.
    traces : SearchTargets
        What to search the files for.
    say : Callable[[str], None]
        Called with a line of text if anything was deleted.

    Returns
    -------
    list of str
        The deleted artefacts.
    """
    registered = {version.folder.resolve() for version in versions if version.folder is not None}
    deleted = []
    store.finish_deletions()
    for artefacts in store.artefact_folders():
        for path in files_in([artefacts]):
            if not path.is_file() or any(
                path.resolve().is_relative_to(folder) for folder in registered
            ):
                continue
            if not search_file(path, "", traces).found:
                continue
            first, *rest = path.relative_to(artefacts).parts
            logged = artefacts / first / rest[0] if first == "models" and rest else None
            run_id = store.run_of_model(logged.name) if logged is not None else first
            if not forget.delete_versions and not _same(store.folder_of_run(run_id), run_dir):
                continue
            if logged is not None:
                with suppress(OSError):  # the search at the end names what is left
                    delete_whole(logged)
            else:
                path.unlink()
            deleted.append(str((logged or path).relative_to(artefacts)))
    # also of models whose files a killed command has deleted
    for model_id in list(store.models_without_files()):
        if _same(store.folder_of_run(store.run_of_model(model_id)), run_dir):
            store.delete_record(model_id)
    if deleted:
        say(f"deleted from MLflow's artefacts: {', '.join(deleted)}")
    return deleted


def _registered(folder: RunFolder) -> tuple[str, int] | None:
    """Name and number of the version that the run folder registered, or None."""
    with suppress(OSError, ValueError, KeyError):
        content = json.loads(folder.registered.read_text(encoding="utf-8"))
        return str(content["name"]), int(content["version"])
    return None


def _same(one: str, other: str) -> bool:
    return bool(one) and Path(one).absolute() == Path(other).absolute()
