"""Records of copies of user data outside the run folder: answer logs, exports, saved and pulled
models.

Why: `recsys forget` must find these copies later. A command that makes a copy records it with the
model: as a tag of the registered model where the model was given as ``models:/…``, otherwise as a
file in the run folder. Every record is its own file or tag, so that concurrent commands need not
wait for each other.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

import pyarrow.fs

from recsys.bundle.checksums import DESCRIPTION
from recsys.config.redaction import MARK
from recsys.registry.mlflow_client import all_pages, client
from recsys.storage.filesystems import filesystem_of
from recsys.storage.uris import is_remote, within, without_query

Kind = Literal["answers", "export", "model"]
FOLDER: Final = "copies"  # in the run folder
ORIGIN: Final = "copied.json"  # in a saved model: the model that it is a copy of
PULLED: Final = "pulled.json"  # in a pulled model: what was pulled, from where, when
_TAG: Final = "multigrain.copy."
_RUN_FILE: Final = "config.yaml"
_DEEPEST: Final = 3  # folder levels from a pulled model down to its bundle


@dataclass(frozen=True)
class Copy:
    """A folder on a machine with data of a model's users."""

    kind: Kind
    place: str  # absolute path
    host: str  # machine

    @classmethod
    def here(cls, kind: Kind, path: str | Path, host: str = "") -> Copy:
        """A copy on this machine, or on ``host``.

        Parameters
        ----------
        kind : Kind
            What the copy holds: ``answers``, ``export`` or ``model``.
        path : str | Path
            Path of the copy; it is made absolute.
        host : str
            Name of the machine; empty: this one.

        Returns
        -------
        Copy
            The record of the copy.
        """
        return cls(kind, os.path.abspath(os.path.expanduser(path)), host or socket.gethostname())

    @property
    def key(self) -> str:
        """A hash of the copy, so that the same copy is recorded once."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def is_elsewhere(self) -> bool:
        """Whether it is on another machine and not reachable as a folder of this one."""
        return not Path(self.place).exists() and self.host != socket.gethostname()


@dataclass(frozen=True)
class Owner:
    """The origin of a copy: a run folder, or a registered model of an MLflow store."""

    run: str = ""
    name: str = ""
    tracking: str = ""

    def note(self, copy: Copy) -> None:
        """Record a copy."""
        text = json.dumps(asdict(copy), ensure_ascii=False)
        if self.name:
            client(self.tracking, writes=True).set_registered_model_tag(
                self.name, _TAG + copy.key, text
            )
            return
        filesystem, inner = filesystem_of(within(self.run, f"{FOLDER}/{copy.key}.json"))
        # object stores have no folders
        if isinstance(filesystem, pyarrow.fs.LocalFileSystem):
            filesystem.create_dir(os.path.dirname(inner), recursive=True)
        with filesystem.open_output_stream(inner) as stream:
            stream.write(text.encode())


def remember(copies: Iterable[Copy], model_uri: str | Path, tracking_uri: str) -> bool:
    """Record copies with the model that they were made of.

    Parameters
    ----------
    copies : Iterable[Copy]
        The new copies.
    model_uri : str | Path
        The model as the user gave it: a folder, the URI of a folder, or ``models:/…``.
    tracking_uri : str
        URI of MLflow, for registered models.

    Returns
    -------
    bool
        False where a copy could not be recorded; the user must then name it to `recsys forget`.
    """
    try:
        owner = owner_of(str(model_uri), tracking_uri)
        for copy in copies:
            if owner is None:
                return False
            owner.note(copy)
    except Exception:  # such as a read-only store: the copy itself was made and stays
        return False
    return True


def owner_of(model_uri: str, tracking_uri: str) -> Owner | None:
    """The owner of a model, found from its path or URI; None where it is unknown."""
    if model_uri.startswith("models:"):
        return Owner(
            name=model_uri.removeprefix("models:").lstrip("/").partition("@")[0].partition("/")[0],
            tracking=tracking_uri,
        )
    if is_remote(model_uri):
        uris = [model_uri, _parent(model_uri)]
        return next((Owner(run=uri) for uri in uris if _has(within(uri, _RUN_FILE))), None)
    folder = Path(model_uri).absolute()
    # a model is given as its run folder or as the bundle in it
    for parent in (folder, folder.parent):
        if (parent / _RUN_FILE).is_file() and (parent / "bundle" / DESCRIPTION).is_file():
            return Owner(run=str(parent))
    for parent in (folder, *folder.parents[:_DEEPEST]):
        for name in (ORIGIN, PULLED):
            if (parent / name).is_file():
                return _noted(parent / name)
    return None


def _noted(path: Path) -> Owner | None:
    content = json.loads(path.read_text(encoding="utf-8"))
    owner = Owner(*(str(content.get(key, "")) for key in ("run", "name", "tracking")))
    # a URI without its password cannot be used to record anything
    return owner if MARK not in owner.tracking and (owner.run or owner.tracking) else None


def _parent(uri: str) -> str:
    return without_query(uri).rpartition("/")[0]


def _has(uri: str) -> bool:
    filesystem, inner = filesystem_of(uri)
    return bool(filesystem.get_file_info(inner).type == pyarrow.fs.FileType.File)


def write_origin(folder: Path, owner: Owner) -> None:
    """Store the owner in a saved model, so that copies of this copy are recorded there too."""
    (folder / ORIGIN).write_text(
        json.dumps(asdict(owner), ensure_ascii=False) + "\n", encoding="utf-8"
    )


def of_run(folder: Path) -> list[Copy]:
    """The copies that are recorded in a run folder."""
    return [
        copy
        for path in sorted(folder.glob(f"{FOLDER}/*.json"))
        if (copy := _parse(path.read_bytes())) is not None
    ]


def of_models(uri: str, names: Iterable[str]) -> Iterator[tuple[str, Copy]]:
    """The recorded copies of registered models, each with the name of its model; unknown names are
    skipped.

    Yields
    ------
    tuple of (str, Copy)
        Name of the model, and one of its copies.
    """
    registry: Any = client(uri)
    wanted = set(names)
    for model in all_pages(registry.search_registered_models):
        if model.name in wanted:
            for key, text in sorted(model.tags.items()):
                copy = _parse(text) if key.startswith(_TAG) else None
                if copy is not None:
                    yield model.name, copy


def _parse(text: str | bytes) -> Copy | None:
    try:
        copy = Copy(**json.loads(text))
    except (ValueError, TypeError):
        return None
    # tags can be changed by anyone with access to the registry, and `recsys forget` deletes by them
    return copy if copy.kind in get_args(Kind) and Path(copy.place).is_absolute() else None
