"""Search all files for forgotten users, and write the proof. Part of the verb ``forget``."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from pipelines.forgetting.copies import Copies
from pipelines.plumbing.run_folder import PROOFS, RunFolder
from recsys import __version__
from recsys.config import Config, DataConfig, redact
from recsys.config.privacy import ForgetConfig
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array, Histories, Split
from recsys.errors import Refusal
from recsys.preparation.vector_cache import default_cache_dir
from recsys.privacy.footprints import Id, SearchTargets
from recsys.privacy.membership import membership
from recsys.privacy.proof import Searched, files_in, proof_of, search_file, signed
from recsys.registry.experiments import local_path
from recsys.registry.mlflow_client import sqlite_path
from recsys.registry.versions import Store
from recsys.sources import open_source
from recsys.storage.mirror import download
from recsys.storage.uris import is_remote, within, without_query
from recsys.training.checkpoint import load_trained

_SHOWN: Final = 5
_MOST_USERS: Final = 500  # users per group in the membership test


@dataclass
class Evidence:
    """Everything known about the users to forget, and those that they are compared with; kept in
    memory only.
    """

    traces: SearchTargets = field(default_factory=SearchTargets)
    # by user, with the item ids
    histories: dict[str, tuple[Histories, list[str]]] = field(default_factory=dict)
    model: Path | None = None  # the model that was made or trained again
    # item ids of each user of ``forget.unseen``; None if it is empty
    unseen: list[list[str]] | None = None

    def add_ids(self, users: Sequence[str], known: pa.Array, items: pa.Array) -> None:
        """Add user ids; ``known`` and ``items`` are all ids that could be confused with them.

        Parameters
        ----------
        users : Sequence[str]
            External ids of the users to forget.
        known : pa.Array
            External ids of all users of a dataset or bundle.
        items : pa.Array
            External ids of all its items.
        """
        for user in users:
            found = Id.of(user, known.cast(pa.string()), items.cast(pa.string()))
            same = next((one for one in self.traces.ids if one.text == user), None)
            if same is None:
                self.traces.ids.append(found)
            # the strictest view of all datasets: an id may be ambiguous in only one of them
            elif found.others - same.others or found.distinct < same.distinct:
                others, distinct = found.others | same.others, found.distinct and same.distinct
                self.traces.ids[self.traces.ids.index(same)] = Id(user, others, distinct)

    def add_histories(
        self, histories: Histories, users: Mapping[int, str], item_ids: list[str], titles: list[str]
    ) -> None:
        """Add the histories of users (dense id → id) from one dataset or bundle.

        Parameters
        ----------
        histories : Histories
            The histories of all users of a dataset or bundle.
        users : Mapping[int, str]
            Dense id → external id of the users to forget.
        item_ids : list[str]
            External ids of its items in dense order.
        titles : list[str]
            Titles of its items in dense order.
        """
        self.traces.add_history(histories, list(users), item_ids, titles)
        for row in np.flatnonzero(np.isin(histories.users_U, list(users))).tolist():
            self.histories.setdefault(
                users[int(histories.users_U[row])], (histories.take(np.array([row])), item_ids)
            )

    def mentions(self, text: str) -> bool:
        """Whether a line of text names a user: as a word or, for a short id, as a cell of a
        table.
        """
        content = text.encode()
        for one in self.traces.ids:
            if one.in_bytes(content):
                return True
            if not one.distinct and one.text in (cell.strip(" \"'") for cell in _cells(text)):
                return True
        return False


def _cells(text: str) -> list[str]:
    for mark in ("\t", ";", "|", " ", "="):
        text = text.replace(mark, ",")
    return text.split(",")


@dataclass(frozen=True)
class Searchable:
    """The files to search, the files of other owners, and what cannot be searched from here."""

    own: list[Path]
    source: list[Path]
    not_searched: list[str]
    named: dict[Path, str]  # copies of remote folders → where they are

    def shown(self, path: Path, root: Path) -> str:
        """A file as the proof names it: relative to the run folder, or by its full path."""
        if path.is_relative_to(root):
            return path.relative_to(root).as_posix()
        for copy, name in self.named.items():
            if path.is_relative_to(copy):
                inner = path.relative_to(copy).as_posix()
                return within(name, inner) if name else inner
        return str(path.absolute())


def searchable(
    config: Config, folder: RunFolder, store: Store | None, working: Path, copies: Copies
) -> Searchable:
    """Everything to search: the run folder, the dataset, MLflow's store and artefacts, the caches,
    the copies and ``forget.also``.

    Parameters
    ----------
    config : Config
        Configuration of the run.
    folder : RunFolder
        Folder of the run.
    store : Store | None
        MLflow's store, or None.
    working : Path
        An empty folder; remote folders are downloaded to it.
    copies : Copies
        The noted copies of the run's data.

    Returns
    -------
    Searchable
        The files to search, and what cannot be searched from here.
    """
    own: list[Path] = []
    not_searched = list(copies.elsewhere)
    named: dict[Path, str] = {}

    def search(uri: str, name: str) -> None:
        """Add a folder or file; ``name`` is its name in the proof if it is remote."""
        path = local_path(uri)
        if is_remote(uri):
            path = working / str(len(named))
            if download(uri, path):
                named[path] = name
        if path is None or not path.exists():
            # listed in the proof, so that "not searched" is not read as "nothing found"
            not_searched.append(f"{without_query(uri)}: not there")
        else:
            own.append(path)

    search(config.run.dir, "") if is_remote(config.run.dir) else own.append(folder.root)
    if not (
        is_remote(config.run.dir)
        and config.dataset_dir.startswith(f"{config.run.dir.rstrip('/')}/")
    ):
        search(config.dataset_dir, config.dataset_dir)
    if store is not None:
        database = sqlite_path(store.uri)
        # its log, too
        own += (
            []
            if database is None
            else sorted(database.parent.glob(f"{glob.escape(database.name)}*"))
        )
        not_searched += (
            [f"{redact(store.uri)}: the database of a tracking server"] if database is None else []
        )
        own += store.artefact_folders()
        not_searched += [f"{redact(uri)}: remote artefacts" for uri in store.remote_artefacts()]
    cache = config.data.text.cache_dir or default_cache_dir()
    if is_remote(cache):
        not_searched.append(f"{cache}: remote cache")
    elif Path(cache).is_dir():
        own.append(Path(cache))
    own += copies.outside
    for uri in config.forget.also:
        if is_remote(uri) or not Path(uri).exists():
            search(uri, uri)
    source = _source_files(config.data)
    if remote := [path for path in source if is_remote(path)]:
        not_searched.append(
            f"{len(remote):,} remote files of the source, such as {without_query(remote[0])}"
        )
    here = [Path(path) for path in source if not is_remote(path) and Path(path).is_file()]
    # these are rewritten like our own files
    here = [path for path in here if path not in [table for _, table in copies.tables]]
    return Searchable(own, here, not_searched, named)


def _source_files(data: DataConfig) -> list[str]:
    try:
        return [file.path for file in open_source(data.source).files()]
    except Exception:  # the source may be deleted, or be of an unknown kind
        return []


def conclude(
    run_dir: str,
    folder: RunFolder,
    searchable: Searchable,
    users: list[str],
    traces: SearchTargets,
    actions: dict[str, Any],
    tested: dict[str, Any],
    key: Any,
) -> None:
    """Search, write the signed proof and print the result.

    Parameters
    ----------
    run_dir : str
        The run folder as the configuration names it.
    folder : RunFolder
        The run folder; the proof is written below ``forgotten``.
    searchable : Searchable
        The files to search, the source's files, and what cannot be searched.
    users : list[str]
        Ids of the forgotten users, as the artefacts hold them.
    traces : SearchTargets
        What to search for.
    actions : dict[str, Any]
        What was done, by kind; becomes ``done`` of the proof.
    tested : dict[str, Any]
        The result of :func:`membership_test`.
    key : Any
        Private key that signs the proof.

    Raises
    ------
    Refusal
        Users were found, or a file could not be searched.
    """
    target = folder.root / PROOFS
    target.mkdir(exist_ok=True)
    # the source belongs to the user and is reported separately
    files = files_in(searchable.own, searchable.source)
    searched = [search_file(path, searchable.shown(path, folder.root), traces) for path in files]
    source = [
        search_file(path, searchable.shown(path, folder.root), traces) for path in searchable.source
    ]
    whole = {
        "release": __version__,
        "run": (without_query(run_dir) if is_remote(run_dir) else str(folder.root.absolute())),
        "done": actions,
        "membership": tested,
        "source_files_with_them": [one.path for one in source if one.found],
        "places": sorted({searchable.shown(path, folder.root) for path in searchable.own}),
        "not_searched": searchable.not_searched,
    }
    proof = signed(proof_of(users, searched, traces, whole), key)
    name = f"proof-{datetime.now(UTC).strftime('%Y%m%dT%H%M%S%f')}.json"
    folder.write_json(target / name, proof)
    _say(folder, proof, target / name)
    if proof["result"] != "nothing found" or actions["copies"]["left"]:
        raise Refusal(_refused(searched, target / name, actions))


def _say(folder: RunFolder, proof: dict[str, Any], path: Path) -> None:
    looked = proof["looked_for"]
    folder.progress(
        f"searched {proof['files']:,} files ({proof['bytes'] / 1e6:,.1f} MB) for {looked['ids']:,}"
        f" ids and {looked['stretches_of_history']:,} stretches of history: {proof['result']}"
    )
    if looked["ids_searched_byte_by_byte"] < looked["ids"]:
        folder.progress(
            f"{looked['ids'] - looked['ids_searched_byte_by_byte']:,} ids are too short to be"
            " distinguished from other numbers: they were searched only where user ids are"
            " expected"
        )
    tested = proof["membership"]
    folder.progress(f"membership: {membership_words(tested)}")
    for line in proof["not_searched"]:
        folder.progress(f"not searched: {line}")
    if with_them := proof["source_files_with_them"]:
        folder.progress(
            f"the source still has these users, in {', '.join(with_them[:_SHOWN])}: delete them"
            " there as well; until then `recsys prepare` leaves them out"
        )
    folder.progress(f"wrote the signed proof {path}")


def membership_words(tested: dict[str, Any]) -> str:
    """The result of the membership test in one line.

    >>> membership_words({"tested": False, "why": "no users"})
    'not tested: no users'
    """
    if not tested["tested"]:
        return f"not tested: {tested['why']}"
    found, control = tested["forgotten"], tested.get("members")
    line = (
        f"the attack separates {found['users']} forgotten from {tested['unseen']} unseen users with"
        f" AUC {found['auc']:.3f}, 95 % interval {found['low']:.3f} to {found['high']:.3f}"
    )
    if control:
        line += (
            f"; members with {control['auc']:.3f} ({control['low']:.3f} to {control['high']:.3f})"
        )
    return line


def _refused(searched: list[Searched], path: Path, actions: dict[str, Any]) -> str:
    lines = [
        f"{one.path}: {', '.join(one.found or one.unreadable)}"
        for one in searched
        if one.found or one.unreadable
    ]
    lines += [f"{name}: {why}" for name, why in actions["copies"]["left"].items()]
    more = [f"and {len(lines) - _SHOWN:,} more, see {path}"] if len(lines) > _SHOWN else []
    cure = "delete or rewrite these files, then run the same command again"
    if actions.get("versions", {}).get("left") or actions["copies"]["left"]:
        cure += (
            "; for versions and copies of other run folders, run it there or use"
            " --forget.delete_versions true"
        )
    head = "some files still hold these users, or could not be searched:"
    return "\n  ".join([head, *lines[:_SHOWN], *more]) + f"\n{cure}"


def membership_test(dataset_dir: str, seed: int, evidence: Evidence) -> dict[str, Any]:
    """Membership test of the model that was made again.

    Parameters
    ----------
    dataset_dir : str
        Folder of the dataset without the forgotten users.
    seed : int
        Seed for the choice of the other users.
    evidence : Evidence
        Histories of the forgotten users and of those to compare them with, and the model.
    """
    if evidence.model is None:
        return {"tested": False, "why": "no model was made again"}
    if not evidence.histories:
        return {"tested": False, "why": "the histories of the users are no longer known"}
    dataset, trained = PreparedDataset(dataset_dir), load_trained(evidence.model)
    items = {name: number for number, name in enumerate(dataset.item_ids.to_pylist())}
    gone = Histories.concat(
        [_in_numbers(histories, ids, items) for histories, ids in evidence.histories.values()]
    )
    everybody = dataset.histories()
    trained_on = np.add.reduceat(
        np.append(everybody.splits_E < Split.TEST, False).astype(int), everybody.offsets_U1[:-1]
    ) * (everybody.lengths_U > 0)
    if evidence.unseen is None:
        unseen = everybody.take(
            _some(np.flatnonzero((trained_on == 0) & (everybody.lengths_U > 1)), seed)
        )
    else:
        unseen = Histories.of_items(
            [[items[name] for name in row if name in items] for row in evidence.unseen]
        )
    # like the forgotten ones: the model may have read events through validation only
    members = everybody.take(_some(np.flatnonzero(trained_on > 1), seed)).through(Split.VALID)
    is_temporal = dataset.manifest.split["kind"] == "temporal"
    return membership(trained.frozen, gone.through(Split.VALID), unseen, members, is_temporal)


def _some(rows: Array, seed: int) -> Array:
    return np.sort(np.random.default_rng(seed).permutation(rows)[:_MOST_USERS])


def _in_numbers(histories: Histories, ids: list[str], items: dict[str, int]) -> Histories:
    """Histories with the dataset's item numbers; unknown items are left out."""
    number = np.array([items.get(name, -1) for name in ids], dtype=np.int32)
    moved = replace(histories, items_E=number[histories.items_E])
    return moved.where(moved.items_E >= 0)


def unseen_users(forget: ForgetConfig) -> list[list[str]] | None:
    """Item ids of each user of ``forget.unseen``; None if it is empty.

    Raises
    ------
    RequestError
        The file is missing, or a line is not a request.
    """
    if not forget.unseen:
        return None
    from recsys.serving.request_files import read_requests
    from recsys.serving.request_parsing import parse_requests

    requests = parse_requests(read_requests(forget.unseen, "forget.unseen").values())
    return [
        [event if isinstance(event, str) else event.item_id for event in one.history or []]
        for one in requests
    ]
