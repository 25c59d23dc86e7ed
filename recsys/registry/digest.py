"""The digest of all files of a registered version, stored in the registry and compared before a
file is used.

Why: a person who changes a bundle can also renew the checksums inside it, and these do not cover
the loader (``pyfunc_model.py``), the code next to it or ``MLmodel``, which decide what code runs.
The registry is stored separately from the files. So a change by a person with access to the
artefacts only is detected before any of their code runs.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from recsys.bundle.checksums import entry_of
from recsys.config import redact
from recsys.errors import ArtifactError
from recsys.storage.temporary import temporary

FILES_TAG: Final = "files.sha256"  # of a version: the digest of the list of its files
WEIGHTS_TAG: Final = "weights.sha256"
LISTING: Final = (
    "model_files.json"  # artefact of the run with the list itself, to name files that differ
)
_WEIGHTS: Final = "weights.safetensors"
_BY_MLFLOW: Final = (
    "registered_model_meta"  # MLflow adds this file when it loads or downloads a model
)
_NAMED: Final = 3

_LOG = logging.getLogger(__name__)


def listing(folder: Path) -> dict[str, str]:
    """The path and SHA-256 of every file of an MLflow model.

    Files that Python and MLflow add to a folder when they load it are left out.

    Raises
    ------
    ArtifactError
        The folder holds a symbolic link, whose target may change, or something that is not a file.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        # a pipe or a device would also block the reader
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ArtifactError(
                f"{folder} holds {name}, which is not a regular file; register the model again"
            )
        if path.is_file() and "__pycache__" not in name.split("/") and name != _BY_MLFLOW:
            found[name] = entry_of(path).sha256
    return found


def digest(files: Mapping[str, str]) -> str:
    """SHA-256 of a :func:`listing`.

    >>> digest({"b": "1", "a": "2"}) == digest({"a": "2", "b": "1"}) != digest({"a": "1", "b": "2"})
    True
    """
    return hashlib.sha256(dump(files).encode()).hexdigest()


def dump(files: Mapping[str, str]) -> str:
    """A :func:`listing` as text in a fixed order."""
    return json.dumps(dict(sorted(files.items())), indent=0, ensure_ascii=False)


def check_version(registry: Any, name: str, number: str, folder: Path) -> str:
    """Compare the files of a version with the digest of its registration.

    Parameters
    ----------
    registry : Any
        The ``MlflowClient``.
    name : str
        Name of the registered model.
    number : str
        Number of the version.
    folder : Path
        The files of the MLflow model, on this machine.

    Returns
    -------
    str
        A warning where the version has no digest to compare with; otherwise empty.

    Raises
    ------
    ArtifactError
        A file was changed, added or removed, or the weights are those of another model.
    """  # noqa: DOC501
    version = registry.get_model_version(name, number)
    tags, uri = dict(version.tags), f"models:/{name}/{number}"
    files = listing(folder)
    if not files:
        raise unreadable(uri, number, FileNotFoundError(f"there are no files at {version.source}"))
    # a second file of weights is also a difference
    weights = [sha256 for path, sha256 in files.items() if path.endswith(f"/{_WEIGHTS}")]
    registered = tags.get(WEIGHTS_TAG)
    # before the list of files, because this message says more
    if registered is not None and weights != [registered]:
        raise _changed_error(
            uri,
            f"its weights are not those that were registered ({WEIGHTS_TAG} {registered[:12]}…)",
        )
    expected = tags.get(FILES_TAG)
    if expected is None:
        note = (
            f"{uri} was registered without {FILES_TAG}, so its loader and code cannot be checked;"
            " register it again"
        )
        _LOG.warning("%s", note)
        return note
    if digest(files) != expected:
        raise _changed_error(
            uri, _differences(files, _registered(registry, str(version.run_id or ""), expected))
        )
    return ""


def unreadable(uri: str, number: str, error: BaseException) -> ArtifactError:
    """The error for a version whose files are not at the location in the registry.

    Parameters
    ----------
    uri : str
        The model as the user named it.
    number : str
        Number of the version.
    error : BaseException
        The error of reading its files; its text is shown without secrets.

    Returns
    -------
    ArtifactError
        The error to raise.
    """
    message = redact(" ".join(str(error).split()))
    return ArtifactError(
        f"{uri} (version {number}) is registered, but its files cannot be read: {message}. If"
        " MLflow's store or its artefact folder was moved, move it back or create a symbolic link"
        " at the old path; otherwise register the model again"
    )


def _registered(registry: Any, run_id: str, expected: str) -> dict[str, str] | None:
    """The registered list of files; None where it cannot be read or was changed too."""
    with temporary() as into:
        try:
            path = Path(registry.download_artifacts(run_id, LISTING, into))
            files = dict(json.loads(path.read_text(encoding="utf-8")))
        except Exception:  # whatever the store raises: the list only serves to name files
            return None
    return files if digest(files) == expected else None


def _differences(files: Mapping[str, str], registered: Mapping[str, str] | None) -> str:
    if registered is None:
        return "its files are not those that were registered"
    words = {
        "changed": [
            name for name in files if name in registered and files[name] != registered[name]
        ],
        "added": [name for name in files if name not in registered],
        "missing": [name for name in registered if name not in files],
    }
    parts = []
    for word, names in words.items():
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        if names:
            parts.append(f"{word}: {', '.join(names[:_NAMED])}{more}")
    return "; ".join(parts)


def _changed_error(uri: str, why: str) -> ArtifactError:
    return ArtifactError(
        f"{uri} is not what was registered ({why}). Its files were changed in the artefact store;"
        " none of its code was run. Check who can write there, and register the model again, or"
        " use another version"
    )
