"""Copies of users' data outside dataset, model and registry. Part of the verb ``forget``.

These are logs of answers, exports, saved and pulled models, and the tables that the Python API
wrote. Copies in the run folder are found by search. Copies in other locations were noted when they
were made (:mod:`recsys.registry.copy_records`), or are named in the configuration or in
``forget.also``.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.plumbing.own_tables import FRAMES
from pipelines.plumbing.run_folder import RunFolder
from recsys import schema
from recsys.bundle.checksums import recover, writing_aside
from recsys.bundle.description import DESCRIPTION, USERS, read_info
from recsys.config import CanonicalSource, Config, DataConfig, RegistryConfig
from recsys.errors import ArtifactError, ConfigError, Refusal
from recsys.export.forget import Exported
from recsys.privacy.rows import RowFinder
from recsys.registry import copy_records as notes
from recsys.registry.mlflow_client import tracking_uri
from recsys.registry.pull import pull_model
from recsys.registry.versions import Store, known_users
from recsys.serving.answer_log import PREFIX, remove_rows
from recsys.sources.names import Renames
from recsys.storage.beside import atomic_write
from recsys.storage.mirror import Mirror
from recsys.storage.uris import is_remote, within

_USER_COLUMNS: Final = (schema.USER_ID, schema.SRC_USER_ID, schema.DST_USER_ID)
_CANNOT: Final = (
    "its model cannot be made again here: run `recsys forget` for its run folder, or delete it"
)


@dataclass(frozen=True)
class Location:
    """A file or folder to search; ``noted``: it was noted as a copy of this run's model."""

    path: Path
    kind: str = ""  # empty: unknown
    noted: bool = False
    mirror: Mirror | None = None  # of a remote location; ``path`` is its working copy

    def shown(self, path: Path) -> str:
        """A file of this location as people find it: a path or a URI."""
        if self.mirror is None:
            return str(path)
        inner = path.relative_to(self.mirror.root).as_posix()
        return self.mirror.uri if inner == "." else within(self.mirror.uri, inner)


@dataclass
class Copies:
    """All locations that may hold copies of a run's data."""

    locations: list[Location]
    elsewhere: list[str]  # locations that cannot be searched from here, and why
    leave: list[Path]  # not copies: the bundle, the dataset, MLflow's artefacts
    tables: list[tuple[str, Path]]  # role and file of the tables written from data frames

    @property
    def outside(self) -> list[Path]:
        """Local locations outside the run folder to search."""
        found = [
            location.path
            for location in self.locations[1:]
            if location.mirror is None and location.path.exists()
        ]
        return [*found, *dict.fromkeys(path.parent for _, path in self.tables)]

    def logs(self) -> Iterator[tuple[Location, Path]]:
        """The files of logs of answers."""
        yield from self._found(f"{PREFIX}*.jsonl", lambda path: path)

    def exports(self) -> Iterator[tuple[Location, Path]]:
        """The folders of exports."""
        yield from self._found("manifest.json", lambda path: path.parent)

    def bundles(self) -> Iterator[tuple[Location, Path]]:
        """The folders of bundles."""
        yield from self._found(DESCRIPTION, lambda path: path.parent)

    def _found(
        self, pattern: str, named: Callable[[Path], Path]
    ) -> Iterator[tuple[Location, Path]]:
        seen: set[Path] = set()
        for location in self.locations:
            direct = (
                [location.path] if location.path.is_file() and location.path.match(pattern) else []
            )
            for path in direct or sorted(location.path.rglob(pattern)):
                target = path.resolve()
                # temporary files of running commands
                hidden = any(part.startswith(".") for part in path.relative_to(location.path).parts)
                if (
                    target in seen
                    or hidden
                    or any(target.is_relative_to(one) for one in self.leave)
                ):
                    continue
                seen.add(target)
                yield location, named(path)

    def settle(self) -> None:
        """Copy the changes of working copies to their remote locations."""
        for location in self.locations:
            if location.mirror is not None:
                location.mirror.publish_changed()
                location.mirror.remove_missing()


def find_copies(config: Config, folder: RunFolder, store: Store | None, working: Path) -> Copies:
    """Find the locations of copies: in the run folder, noted, configured, and in ``forget.also``.

    Parameters
    ----------
    config : Config
        Configuration of the run.
    folder : RunFolder
        Folder of the run.
    store : Store | None
        The MLflow store.
    working : Path
        An empty folder for working copies of remote locations.
    """
    noted = notes.of_run(folder.root)
    if store is not None:
        noted += [copy for _, copy in notes.of_models(store.uri, _names(config.registry, folder))]
    for copy in noted:
        recover(Path(copy.place))  # a command that was killed may have left a part of a copy
    elsewhere = [
        f"{copy.place} ({copy.kind}) on {copy.host}: run `recsys forget` there"
        for copy in noted
        if copy.is_elsewhere
    ]
    locations = [Location(folder.root)]
    locations += [
        Location(Path(copy.place), copy.kind, True) for copy in noted if Path(copy.place).exists()
    ]
    for number, text in enumerate((config.serve.log, config.export.out, *config.forget.also)):
        if text and is_remote(text):
            mirror = Mirror(working / str(number), text)
            mirror.root.mkdir()
            mirror.fetch_all(leave=(".lock",))
            locations.append(Location(mirror.root, mirror=mirror))
        elif text and Path(text).exists():
            locations.append(Location(Path(text)))
    # other steps of ``forget`` treat these
    leave = [folder.root / "bundle", *(store.artefact_folders() if store is not None else ())]
    if not is_remote(config.dataset_dir):
        leave.append(Path(config.dataset_dir))
    return Copies(locations, elsewhere, [path.resolve() for path in leave], _tables(config.data))


def _tables(data: DataConfig) -> list[tuple[str, Path]]:
    """The files of the source that the Python API wrote; other files belong to the user."""
    source = data.source
    if not isinstance(source, CanonicalSource):
        return []
    named = [
        (role, Path(text))
        for role in ("events", "users", "social")
        for text in getattr(source, role)
    ]
    return [
        (role, path) for role, path in named if path.is_file() and (path.parent / FRAMES).is_file()
    ]


def _names(registry: RegistryConfig, folder: RunFolder) -> set[str]:
    name, _ = _registered(folder)
    return {registry.name, *([name] if name else [])}


def _registered(folder: RunFolder) -> tuple[str, str]:
    """Name and number of the version that the run folder registered; empty strings if there is
    none.
    """
    with suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads(folder.registered.read_text(encoding="utf-8"))
        return str(content["name"]), str(content["version"])
    return "", ""


@dataclass
class CopiesForgotten:
    """Removes users from all copies; ``actions`` records the actions for the proof.

    Parameters
    ----------
    config : Config
        Configuration of the run.
    folder : RunFolder
        Folder of the run; its bundle is already made again.
    copies : Copies
        The locations to search.
    users : Sequence[str]
        User ids, also the original ids of pseudonyms.
    their_rows : RowFinder
        Recognises the rows of the users in logs.
    before : Collection[str]
        Content hashes of the run's dataset before the users were removed.
    """

    config: Config
    folder: RunFolder
    copies: Copies
    users: Sequence[str]
    their_rows: RowFinder
    before: Collection[str]
    actions: dict[str, Any] = field(
        default_factory=lambda: {"rows": {}, "made_again": [], "deleted": [], "left": {}}
    )

    def forget(self) -> dict[str, Any]:
        """Rewrite, replace or delete the copies; return the actions."""
        for location, path in self.copies.logs():
            self._rows(location.shown(path), remove_rows(path, self.their_rows))
        for role, path in self.copies.tables:
            names = Renames.of(getattr(self.config.data.source, "rename", {})).table(role)
            self._rows(str(path), _without_rows(path, names, self._ids))
        for location, path in self.copies.exports():
            found = Exported.at(path)
            if found is not None:
                self._export(location, found)
        for location, path in self.copies.bundles():
            if (path / USERS).is_file() and known_users(path / USERS, self._ids):
                self._model(location, path)
        self.copies.settle()
        self._tell()
        return self.actions

    @property
    def _ids(self) -> pa.Array:
        return pa.array(self.users, pa.string())

    @property
    def _new(self) -> Path | None:
        """The bundle of the run if it does not hold the users, else None."""
        bundle = self.folder.bundle
        there = (bundle / DESCRIPTION).is_file() and not known_users(bundle / USERS, self._ids)
        return bundle if there else None

    def _rows(self, name: str, number: int) -> None:
        if number:
            self.actions["rows"][name] = number

    def _export(self, location: Location, found: Exported) -> None:
        held, is_ours = found.num_rows(self.users), found.dataset in self.before
        if not (held or is_ours or (location.noted and found.members_with_users)):
            return
        name, why, new = location.shown(found.folder), _CANNOT, self._new
        if new is not None and (is_ours or location.noted):
            # an earlier attempt has made it again
            if read_info(new).dataset.get("content_hash") == found.dataset:
                return
            try:
                found.make_again(new)
                self.actions["made_again"].append(name)
                return
            except (ArtifactError, ConfigError, Refusal) as error:
                why = f"it cannot be made again ({error})"
        if not found.members_with_users:
            if held:
                found.remove_rows(self.users)
                self._rows(name, held)
            return
        self._delete_or_leave(name, found.folder, f"the graph has a row per user; {why}")

    def _model(self, location: Location, bundle: Path) -> None:
        new, name = self._new, location.shown(bundle)
        if new is None or not (
            location.noted or read_info(bundle).dataset.get("content_hash") in self.before
        ):
            self._delete_or_leave(name, bundle, _CANNOT)
            return
        whole = next((one for one in bundle.parents[:3] if (one / "MLmodel").is_file()), None)
        if whole is None:
            replace_bundle(bundle, new)
        else:
            registered, number = _registered(self.folder)
            if not number:
                self._delete_or_leave(
                    location.shown(whole), whole, "no registered version can be pulled instead"
                )
                return
            pull_model(
                f"models:/{registered}/{number}",
                whole,
                tracking_uri(self.config.tracking, self.config.run.dir),
            )
        self.actions["made_again"].append(location.shown(whole or bundle))

    def _delete_or_leave(self, name: str, folder: Path, why: str) -> None:
        # deleting a model is only done when it was asked for
        if self.config.forget.delete_versions:
            shutil.rmtree(folder)
            self.actions["deleted"].append(name)
        else:
            self.actions["left"][name] = why

    def _tell(self) -> None:
        say = self.folder.progress
        for name, number in self.actions["rows"].items():
            say(f"{name}: removed {number:,} rows of these users")
        for name in self.actions["made_again"]:
            say(f"{name}: replaced by the model without these users")
        for name in self.actions["deleted"]:
            say(f"{name}: deleted")


def replace_bundle(bundle: Path, new: Path) -> None:
    """Replace a bundle by another one; the note of whose copy it is stays."""
    with writing_aside(bundle, DESCRIPTION) as aside:
        shutil.copytree(new, aside, dirs_exist_ok=True)
        if (bundle / notes.ORIGIN).is_file():
            shutil.copyfile(bundle / notes.ORIGIN, aside / notes.ORIGIN)


def _without_rows(path: Path, names: dict[str, str], users: pa.Array) -> int:
    """Remove the rows of users from a table; return their number."""
    table = pq.read_table(path)
    columns = [name for name in table.column_names if names.get(name, name) in _USER_COLUMNS]
    theirs = pa.array([False] * len(table))
    for name in columns:
        theirs = pc.or_(
            theirs, pc.fill_null(pc.is_in(_as_text(table.column(name)), value_set=users), False)
        )
    number = int(pc.sum(theirs).as_py() or 0)
    if number:
        with atomic_write(path) as aside:
            # the new file must not be readable for more people than the old one
            os.chmod(aside, path.stat().st_mode & 0o777)
            pq.write_table(table.filter(pc.invert(theirs)), aside)
    return number


def _as_text(column: pa.ChunkedArray) -> pa.Array:
    """Ids as text, as the reader of tables makes them: 7.0 in a column with gaps becomes 7."""
    values = column.combine_chunks()
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.equal(pc.floor(values), values), values, None).cast(
            pa.int64(), safe=False
        )
    return values.cast(pa.string())
