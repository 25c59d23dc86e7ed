"""A protocol as a folder that any library can read: events of every split, evaluated users, and
rules.

Why files and not an interface: a comparison is valid only if both sides use the same data. The
folder is all the data, and its hash shows whether lists were made for it.

Layout::

    protocol.json            rules, counts and hash
    items.parquet            item_id: the catalogue, that is, all candidates
    train.parquet valid.parquet test.parquet
                             user_id, item_id, timestamp, event_type, value, position
    ask.parquet              user_id: the users who need a list for test
    negatives.parquet        user_id, item_id: items to rank with the targets, if the protocol
                             samples

With several windows all tables except items are in ``window-1/``, ``window-2/`` …

Legend: E events, B queries, N items.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ValidationError

from recsys.data.dataset import types_mask
from recsys.data.histories import Array, Histories, Queries, Split
from recsys.errors import ArtifactError
from recsys.evaluation.ranking import countable
from recsys.referee.tables import ending_of, read_table, write_table

VERSION: Final = 1
_CURE: Final = "run `recsys referee prepare --config FILE --out DIR`"
EVENTS: Final = pa.schema(
    [
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("timestamp", pa.timestamp("s", "UTC")),
        ("event_type", pa.string()),
        ("value", pa.float32()),
        ("position", pa.int32()),
    ]
)
PAIRS: Final = pa.schema([("user_id", pa.string()), ("item_id", pa.string())])
SPLITS: Final = {"train": Split.TRAIN, "valid": Split.VALID, "test": Split.TEST}
_OWN: Final = re.compile(
    rf"protocol\.json|(window-\d+/)?(items|{'|'.join(SPLITS)}|ask|negatives)\.(parquet|csv)"
)


class _Description(BaseModel):
    """``protocol.json``; the hash checks the rules."""

    hash: str
    rules: dict[str, Any]
    windows: list[str]
    about: dict[str, Any]


@dataclass(frozen=True)
class Window:
    """One split of the events. A protocol with a single window names it ``""``."""

    name: str
    splits: dict[str, pa.Table]  # train, valid, test
    ask: pa.Array  # user_id
    negatives: pa.Table | None = None

    def tables(self) -> Iterator[tuple[str, pa.Table]]:
        """Name and table of every split, of ``ask`` and, if sampled, of the negatives."""
        yield from self.splits.items()
        yield "ask", pa.table({"user_id": self.ask})
        if self.negatives is not None:
            yield "negatives", self.negatives


@dataclass(frozen=True)
class Protocol:
    """The rules and the events; lists are scored against :meth:`queries`."""

    rules: dict[str, Any]
    items: pa.Array  # external ids in dense order
    windows: list[Window]
    about: dict[str, Any] = field(default_factory=dict)  # origin; not part of the hash

    @property
    def masks_seen(self) -> bool:
        """Whether items that the user had before are excluded."""
        return bool(self.rules["mask"] == "seen")

    @property
    def ks(self) -> list[int]:
        """Cut-offs of the metrics."""
        return list(self.rules["ks"])

    @property
    def metric(self) -> str:
        """The main metric."""
        return str(self.rules["metric"])

    @property
    def has_validation(self) -> bool:
        """Whether a window has a query of the validation split."""
        return any(len(self.queries(window, Split.VALID)) for window in self.windows)

    @cached_property
    def users(self) -> pa.Array:
        """External ids of all users who have an event or are evaluated in some window."""
        ids = [
            table.column("user_id") for window in self.windows for name, table in window.tables()
        ]
        return pc.unique(
            pa.chunked_array([chunk for column in ids for chunk in column.chunks], pa.string())
        )

    @cached_property
    def hash(self) -> str:
        """Hash of the rules and all rows; the same for Parquet and CSV."""
        # of texts and not of files, because Parquet and CSV hold the same rows in other bytes
        digest = hashlib.sha256(json.dumps(self.rules, sort_keys=True).encode())
        digest.update("\n".join(self.items.to_pylist()).encode())
        for window in self.windows:
            for name, table in window.tables():
                # the name too, so that a row cannot move to another table
                digest.update(f"\0{window.name}/{name}\0".encode())
                columns = [_texts(column) for column in table.columns]
                digest.update(
                    "\n".join("\t".join(row) for row in zip(*columns, strict=True)).encode()
                )
        return digest.hexdigest()

    def described(self) -> dict[str, Any]:
        """Rules, hash and counts, for ``referee.json``."""
        counts = [len(self.queries(window)) for window in self.windows]
        return {
            **self.rules,
            "hash": self.hash,
            "items": len(self.items),
            "queries": sum(counts),
            "windows": {
                window.name: count for window, count in zip(self.windows, counts, strict=True)
            },
            "command": self.about.get("command", ""),
        }

    def histories(self, window: Window) -> Histories:
        """The events of a window, user by user."""
        table = pa.concat_tables([window.splits[name] for name in SPLITS])
        splits_E = np.repeat(
            [*SPLITS.values()], [window.splits[name].num_rows for name in SPLITS]
        ).astype(np.uint8)
        users_E = _dense(table.column("user_id"), self.users)
        # by position and not by time, because times may tie or be unknown
        order = np.lexsort((table.column("position").to_numpy(), users_E))
        types = list(self.rules["event_types"])
        times = table.column("timestamp").cast(pa.int64()).fill_null(0).to_numpy()
        users_U, lengths_U = np.unique(users_E, return_counts=True)
        return Histories(
            users_U.astype(np.int32),
            np.concatenate([[0], np.cumsum(lengths_U)]).astype(np.int64),
            _dense(table.column("item_id"), self.items)[order].astype(np.int32),
            _dense(table.column("event_type"), pa.array(types, pa.string()))[order].astype(
                np.uint8
            ),
            times[order],
            table.column("value").to_numpy()[order],
            splits_E[order],
            targets_T=types_mask(types, self.rules["targets"]),
        )

    def queries(self, window: Window, split: Split = Split.TEST) -> Queries:
        """The queries of the evaluated users, with the targets that count under the mask."""
        histories = self.histories(window)
        if split == Split.TEST:
            evaluated = _dense(pa.chunked_array([window.ask]), self.users)
            histories = histories.take(np.flatnonzero(np.isin(histories.users_U, evaluated)))
        return countable(histories.queries(split), self.masks_seen)[0]


def write_protocol(protocol: Protocol, folder: Path, form: str) -> None:
    """Write the folder; ``form`` is parquet or csv.

    Parameters
    ----------
    protocol : Protocol
        The protocol.
    folder : Path
        A folder that does not exist yet; its parents are created.
    form : str
        ``parquet`` or ``csv``.

    Raises
    ------
    FileExistsError
        The folder exists.
    """
    folder.mkdir(parents=True)
    write_table(pa.table({"item_id": protocol.items}), folder / f"items.{form}")
    for window in protocol.windows:
        for name, table in window.tables():
            write_table(table, folder / window.name / f"{name}.{form}")
    record = {
        "version": VERSION,
        "hash": protocol.hash,
        "rules": protocol.rules,
        "windows": [window.name for window in protocol.windows],
        "about": protocol.about,
    }
    (folder / "protocol.json").write_text(
        json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def others_in(folder: Path) -> list[str]:
    """Files in a folder that :func:`write_protocol` did not write; without a protocol, all."""
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    )
    return [name for name in names if "protocol.json" not in names or not _OWN.fullmatch(name)]


def read_protocol(folder: Path) -> Protocol:
    """Read the folder.

    Raises
    ------
    ArtifactError
        It is not a protocol, a table is missing, or its rows do not match its hash.
    """
    record = _description(folder)
    rules = record["rules"]
    items = (
        _read(folder, "items", pa.schema([("item_id", pa.string())]))
        .column("item_id")
        .combine_chunks()
    )
    windows = []
    for name in record["windows"]:
        splits = {split: _read(folder / name, split, EVENTS) for split in SPLITS}
        ask = (
            _read(folder / name, "ask", pa.schema([("user_id", pa.string())]))
            .column("user_id")
            .combine_chunks()
        )
        negatives = _read(folder / name, "negatives", PAIRS) if rules.get("sample") else None
        windows.append(Window(name, splits, ask, negatives))
    protocol = Protocol(rules, items, windows, record["about"])
    # an edited protocol would compare methods on other data without a sign
    if protocol.hash != record["hash"]:
        raise ArtifactError(
            f"{folder} was changed after it was written: its rows have hash {protocol.hash[:12]},"
            f" protocol.json says {record['hash'][:12]}; write the protocol again: {_CURE}"
        )
    return protocol


def _description(folder: Path) -> dict[str, Any]:
    path = folder / "protocol.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(
            f"{folder} is not a protocol: protocol.json is missing; {_CURE}"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged ({error}); {_CURE}") from None
    if not isinstance(record, dict):
        raise ArtifactError(f"{path} is damaged (it is not an object); {_CURE}")
    if record.get("version") != VERSION:
        raise ArtifactError(
            f"{folder} has version {record.get('version')}, but this release reads {VERSION};"
            f" {_CURE}"
        )
    try:
        _Description.model_validate(record)
    except ValidationError as error:
        wrong = ", ".join(str(one["loc"][0]) for one in error.errors())
        raise ArtifactError(f"{path} is damaged (wrong or missing: {wrong}); {_CURE}") from None
    return record


def rows_of(ids: Sequence[str] | pa.Array | pa.ChunkedArray, known: pa.Array) -> Array:
    """The dense ids, −1 for unknown ones: int64."""
    found = pc.index_in(
        ids if isinstance(ids, pa.Array | pa.ChunkedArray) else pa.array(ids), value_set=known
    )
    return np.asarray(pc.fill_null(found, -1)).astype(np.int64)


def _dense(ids: pa.ChunkedArray, known: pa.Array) -> Array:
    found = rows_of(ids, known)
    if (found < 0).any():
        unknown = ids[int(np.argmax(found < 0))].as_py()
        raise ArtifactError(
            f"the protocol has an event of {unknown!r}, which is not in its other tables"
        )
    return found


def _read(folder: Path, name: str, schema: pa.Schema) -> pa.Table:
    path = ending_of(folder / name)
    if path is None:
        raise ArtifactError(f"{folder} has no table {name}; run `recsys referee prepare` again")
    return read_table(path, schema)


def _texts(column: pa.ChunkedArray) -> list[str]:
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    return [str(value) for value in column.to_pylist()]
