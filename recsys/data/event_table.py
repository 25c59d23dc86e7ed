"""The user–item events as a table in files, one row for each pair of user and item, sorted by user.

Why files: a table of all events does not fit into the memory of every worker. A fit reads it a
block at a time, and the page cache keeps the parts in use. The files have no name, so they
disappear with the process.

Legend: E pairs of a user and an item, V users.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array, Split
from recsys.errors import StorageError
from recsys.storage.filesystems import storage_errors

# users, items and values of some pairs; all pairs of a user are in one part, next to each other
Part = tuple[Array, Array, Array]
_COLUMNS: Final = (np.int32, np.int32, np.float32)
_AT_A_TIME: Final = 1 << 20  # rows that are copied at a time


@dataclass(frozen=True)
class EventTable:
    """The columns of the table, mapped from files."""

    users_E: Array  # int32, ascending
    items_E: Array  # int32
    values_E: Array  # float32, the value of the last event of the pair

    @staticmethod
    def of_dataset(
        dataset: PreparedDataset, through: Split, folder: str | None = None
    ) -> EventTable:
        """The events of a dataset through a split; reads one shard at a time.

        Parameters
        ----------
        dataset : PreparedDataset
            The dataset.
        through : Split
            The last split that is read.
        folder : str or None
            Folder in which the files have names, so that other processes can map them; None: the
            files have no name.

        Returns
        -------
        EventTable
            The table.

        Raises
        ------
        StorageError
            The disk is full.
        """

        def parts() -> Iterator[Part]:
            for shard in dataset.shards():
                seen = shard.through(through)
                users_E = np.repeat(seen.users_U, seen.lengths_U).astype(np.int64)
                keys_E = users_E * dataset.num_items + seen.items_E
                pairs, pair_of = np.unique(keys_E, return_inverse=True)
                value_of = np.zeros(len(pairs), dtype=np.float32)
                value_of[pair_of] = seen.values_E
                yield pairs // dataset.num_items, pairs % dataset.num_items, value_of

        return EventTable.of(parts(), dataset.num_users, folder)

    @staticmethod
    def of(parts: Iterable[Part], num_users: int, folder: str | None = None) -> EventTable:
        """The table of events that arrive in parts.

        Parameters
        ----------
        parts : Iterable of tuple of Array
            Users, which ascend, items and values.
        num_users : int
            Number of users.
        folder : str or None
            As for :meth:`of_dataset`.

        Raises
        ------
        StorageError
            The disk is full.
        """
        count_V, first_V = (np.zeros(num_users, dtype=np.int64) for _ in range(2))
        written, last, ascends = 0, -1, True
        doing = "write the training events to"
        with storage_errors(folder or tempfile.gettempdir(), doing), ExitStack() as opened:
            files = [opened.enter_context(_temporary(folder)) for _ in _COLUMNS]
            for part in parts:
                users_E = part[0]
                for file, column_E, kind in zip(files, part, _COLUMNS, strict=True):
                    file.write(np.ascontiguousarray(column_E, dtype=kind))
                if len(users_E):
                    ascends, last = ascends and users_E[0] >= last, int(users_E[-1])
                    starts = np.flatnonzero(np.diff(users_E, prepend=-1))
                    first_V[users_E[starts]] = written + starts
                    count_V[users_E[starts]] = np.diff(starts, append=len(users_E))
                written += len(users_E)
            arrived = []
            for file, kind in zip(files, _COLUMNS, strict=True):
                file.flush()
                arrived.append(_mapped(file, kind, written))
            if not ascends:
                arrived = _sorted(arrived, np.cumsum(count_V) - count_V - first_V, folder)
        return EventTable(*arrived)

    @property
    def paths(self) -> list[str]:
        """The files of the columns, of a table that was made in a folder; "" for an empty table."""
        columns = (self.users_E, self.items_E, self.values_E)
        return [str(getattr(column_E, "filename", "")) for column_E in columns]

    @staticmethod
    def at(paths: Sequence[str]) -> EventTable:
        """The table of another process on this machine, from its :attr:`paths`.

        Raises
        ------
        StorageError
            The processes do not share the folder.
        """
        if not any(paths):
            return EventTable(*(np.zeros(0, dtype=kind) for kind in _COLUMNS))
        try:
            return EventTable(
                *(np.memmap(path, kind, "r+") for path, kind in zip(paths, _COLUMNS, strict=True))
            )
        except OSError as error:
            raise StorageError(
                f"cannot read the events in {paths[0]} ({error.strerror}): the workers of a machine"
                " must share the folder for temporary files; set TMPDIR to one"
            ) from None

    def where(self, keeps: Callable[[Array, Array], Array], num_users: int) -> EventTable:
        """The table of the rows for which ``keeps(users, items)`` is true."""

        def parts() -> Iterator[Part]:
            for rows in _slices(len(self.users_E)):
                users_E, items_E = self.users_E[rows], self.items_E[rows]
                kept_E = keeps(users_E, items_E)
                yield users_E[kept_E], items_E[kept_E], self.values_E[rows][kept_E]

        # a slice may begin in the middle of a user, whose rows are in order nevertheless
        return EventTable.of(parts(), num_users)


def in_file(length: int, kind: Any = np.int32, folder: str | None = None) -> Array:
    """An array in a file.

    Parameters
    ----------
    length : int
        Number of elements.
    kind : numpy type
        Type of an element.
    folder : str or None
        Folder in which the file has a name; None: the file has no name.

    Returns
    -------
    array, [length]
        The array, mapped from the file.
    """
    with _temporary(folder) as file:  # the memory map keeps the file open
        size = length * np.dtype(kind).itemsize
        if size and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error, not a crash
        else:
            file.truncate(size)
        return _mapped(file, kind, length)


def _temporary(folder: str | None) -> Any:
    if folder is None:
        return tempfile.TemporaryFile(prefix="multigrain-")
    return tempfile.NamedTemporaryFile(dir=folder, delete=False)


def _mapped(file: Any, kind: Any, length: int) -> Array:
    if not length:
        return np.zeros(0, dtype=kind)
    return np.memmap(file, dtype=kind, mode="r+", shape=(length,))


def _sorted(arrived: list[Array], shift_V: Array, folder: str | None) -> list[Array]:
    """The columns with every row moved by the shift of its user."""
    found = [in_file(len(column_E), column_E.dtype, folder) for column_E in arrived]
    for rows in _slices(len(arrived[0])):
        to_E = np.arange(rows.start, rows.stop) + shift_V[arrived[0][rows]]
        for column_E, moved_E in zip(arrived, found, strict=True):
            moved_E[to_E] = column_E[rows]
    return found


def _slices(length: int) -> Iterator[slice]:
    for start in range(0, length, _AT_A_TIME):
        yield slice(start, min(start + _AT_A_TIME, length))
