"""Copies of a model's users outside its run folder: logs of answers, exports, saved and pulled models.

Why: `recsys forget` must find them later, when nobody remembers where they went. Whoever makes a copy notes it at the
model: as a tag of the registered model where it was asked for as ``models:/…``, else as a file of the run folder. A
note is a file or a tag of its own, so that commands at work together need not wait for each other.
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
from recsys.registry.tracking import client
from recsys.storage.places import filesystem_of
from recsys.storage.uris import is_remote, within, without_query

Kind = Literal["answers", "export", "model"]
FOLDER: Final = "copies"  # in the run folder
ORIGIN: Final = "copied.json"  # in a saved model: whose copy it is
PULLED: Final = "pulled.json"  # in a pulled one: what was pulled, from where, when
_TAG: Final = "multigrain.copy."
_RUN_FILE: Final = "config.yaml"
_DEEPEST: Final = 3  # folders from a pulled model down to its bundle


@dataclass(frozen=True)
class Copy:
    """A folder on a machine that holds users of a model."""

    kind: Kind
    place: str  # absolute path
    host: str  # where it is

    @classmethod
    def here(cls, kind: Kind, place: str | Path, host: str = "") -> Copy:
        return cls(kind, os.path.abspath(os.path.expanduser(place)), host or socket.gethostname())

    @property
    def key(self) -> str:
        """The same for the same copy, so that it is noted once."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def is_elsewhere(self) -> bool:
        """Whether it is on another machine, and no folder of this one either."""
        return not Path(self.place).exists() and self.host != socket.gethostname()


@dataclass(frozen=True)
class Owner:
    """Whose copy something is: of a run folder, or of a registered model of a store."""

    run: str = ""
    name: str = ""
    tracking: str = ""

    def note(self, copy: Copy) -> None:
        """Write the note."""
        text = json.dumps(asdict(copy), ensure_ascii=False)
        if self.name:
            client(self.tracking, writes=True).set_registered_model_tag(self.name, _TAG + copy.key, text)
            return
        filesystem, inner = filesystem_of(within(self.run, f"{FOLDER}/{copy.key}.json"))
        if isinstance(filesystem, pyarrow.fs.LocalFileSystem):
            filesystem.create_dir(os.path.dirname(inner), recursive=True)
        with filesystem.open_output_stream(inner) as stream:
            stream.write(text.encode())


def remember(copies: Iterable[Copy], asked: str | Path, tracking_uri: str) -> bool:
    """Note copies at the model that was asked for; False where it cannot be done, and `recsys forget` must be told.

    Parameters
    ----------
    copies : Iterable[Copy]
        what was made.
    asked : str | Path
        the model, as it was named: a folder, a URI of one, or ``models:/…``.
    tracking_uri : str
        of MLflow, for registered models.
    """
    try:
        owner = owner_of(str(asked), tracking_uri)
        for copy in copies:
            if owner is None:
                return False
            owner.note(copy)
    except Exception:  # a store that is read-only, a bucket that is gone: the copy itself is made, and stays
        return False
    return True


def owner_of(asked: str, tracking_uri: str) -> Owner | None:
    """Whose a model is, as far as its place tells."""
    if asked.startswith("models:"):
        return Owner(
            name=asked.removeprefix("models:").lstrip("/").partition("@")[0].partition("/")[0], tracking=tracking_uri
        )
    if is_remote(asked):
        places = [asked, _parent(asked)]
        return next((Owner(run=place) for place in places if _has(within(place, _RUN_FILE))), None)
    folder = Path(asked).absolute()
    for place in (folder, folder.parent):
        if (place / _RUN_FILE).is_file() and (place / "bundle" / DESCRIPTION).is_file():
            return Owner(run=str(place))
    for place in (folder, *folder.parents[:_DEEPEST]):
        for name in (ORIGIN, PULLED):
            if (place / name).is_file():
                return _noted(place / name)
    return None


def _noted(path: Path) -> Owner | None:
    content = json.loads(path.read_text(encoding="utf-8"))
    owner = Owner(*(str(content.get(key, "")) for key in ("run", "name", "tracking")))
    return owner if MARK not in owner.tracking and (owner.run or owner.tracking) else None


def _parent(place: str) -> str:
    return without_query(place).rpartition("/")[0]


def _has(place: str) -> bool:
    filesystem, inner = filesystem_of(place)
    return bool(filesystem.get_file_info(inner).type == pyarrow.fs.FileType.File)


def write_origin(folder: Path, owner: Owner) -> None:
    """Say in a saved model whose it is, so that copies of the copy are noted there as well."""
    (folder / ORIGIN).write_text(json.dumps(asdict(owner), ensure_ascii=False) + "\n", encoding="utf-8")


def of_run(folder: Path) -> list[Copy]:
    """The copies that a run folder has notes of."""
    return [copy for path in sorted(folder.glob(f"{FOLDER}/*.json")) if (copy := _parse(path.read_bytes())) is not None]


def of_models(uri: str, names: Iterable[str]) -> Iterator[tuple[str, Copy]]:
    """The name, and each copy that is noted, of registered models; of a name that is not registered there is none."""
    registry: Any = client(uri)
    wanted = set(names)
    for model in registry.search_registered_models(max_results=1000):
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
    return copy if copy.kind in get_args(Kind) and Path(copy.place).is_absolute() else None
