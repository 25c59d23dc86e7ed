"""What an adapter is, and how its pieces of work become Ray datasets.

Why: a source of any size is read by many tasks. The driver only finds *pieces* (a byte range, a row group, a partition
of a generated world); each task reads its piece into finished blocks, so nothing grows with the number of events in
one process.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Final, Protocol

import numpy as np
import pyarrow as pa

from recsys import schema
from recsys.config import Section
from recsys.config.sources import source_settings
from recsys.errors import SourceError
from recsys.sources.files import InputFile, folder_values
from recsys.sources.validate import Layout, check_rows, finish, raw_text

FILE_STRIDE: Final = 2**40  # ``_order`` = index of the file × stride + row


class Piece(Protocol):
    """A picklable unit of reading that needs nothing but itself."""

    def read(self) -> Iterator[pa.Table]:
        """Finished blocks in the order of the data, all of one layout."""
        ...


class SourceAdapter(ABC):
    """One data set in some format, given as the canonical tables."""

    appends: ClassVar[bool] = False  # whether files of newer events can be read alone: see :meth:`leave_out`

    def __init__(self, config: Section) -> None:
        self.config = config
        self.notes: list[str] = []  # what :meth:`check` and :meth:`pieces` decided and a user should know
        self.columns: dict[str, set[str]] = {}  # of the tables of which :meth:`check` saw all columns
        self._fingerprinted: list[InputFile] = []
        self._hashes: dict[InputFile, str] = {}  # a file is read once for its hash
        self.events_read: list[dict[str, Any]] = []  # :meth:`event_files` as the last fingerprint saw them

    @property
    @abstractmethod
    def name(self) -> str:
        """Short name of the data set, for manifest and report."""

    @abstractmethod
    def files(self) -> list[InputFile]:
        """Every input file.

        Raises
        ------
        SourceError
            a file, folder or glob is missing.
        """

    @abstractmethod
    def pieces(self) -> dict[str, list[Piece]]:
        """The pieces of every table that the source has; ``events`` is always there.

        Raises
        ------
        SourceError
            a table is empty, lacks a column, or is not the format it claims to be.
        """

    def check(self) -> None:
        """Find the mistakes that need no rows: missing files, headers without the required columns, wrong renames.

        Why: a dry run calls it. It reads the heads of files only and starts no Ray.

        Raises
        ------
        SourceError
            what :meth:`files` and the headers tell.
        """
        self.files()

    def fingerprint(self) -> str:
        """Hash over the configuration and every input file: equal hash, equal tables.

        A file is known by what it is for, its name, the columns in the names of its folders and its content, not by
        where it is or how its path is spelled.
        """
        digest = hashlib.sha256(json.dumps(source_settings(self.config), sort_keys=True).encode())
        self._fingerprinted = self.files()
        roles = self.roles()
        for file in self._fingerprinted:
            known = (roles.get(file.path, ""), file.name, folder_values(file.path), file.size, self.hash_of(file))
            digest.update(f"\n{json.dumps(known)}".encode())
        self.events_read = self.event_files()
        return digest.hexdigest()

    def hash_of(self, file: InputFile) -> str:
        """The fingerprint of one file."""
        if file not in self._hashes:
            self._hashes[file] = file.fingerprint()
        return self._hashes[file]

    def event_files(self) -> list[dict[str, Any]]:
        """What tells a file of events from any other, wherever it is: for the manifest, and for :meth:`leave_out`."""
        return []

    def leave_out(self, known: Sequence[dict[str, Any]]) -> int:
        """Read no file of events that is among ``known``, of :meth:`event_files` before; how many are left."""
        raise NotImplementedError(f"{type(self).__name__} reads all of its events")

    def roles(self) -> dict[str, str]:
        """Path of every file whose name does not tell what it is for → what that is."""
        return {}

    def unchanged_pieces(self) -> dict[str, list[Piece]]:
        """The pieces, of the files that the last fingerprint is of.

        Raises
        ------
        SourceError
            as :meth:`pieces`; also where a file was changed, or came or went, since the fingerprint.
        """
        for file in self._fingerprinted:
            file.check_unchanged()
        pieces = self.pieces()
        now = {file.path: file for file in self.files()}
        for path in sorted({file.path for file in self._fingerprinted} ^ set(now)):
            came = "came" if path in now else "went"
            raise SourceError(
                f"{path} {came} while the source was read; wait until its writer has ended, and run the command again"
            )
        for file in self._fingerprinted:
            file.check_unchanged()
        return pieces

    def size(self) -> int:
        """About how many bytes of input there are; equal for equal input."""
        return sum(file.size for file in self.files())


def block(raw: pa.Table, table: schema.TableSchema, file: str, first_row: int = 1, first_order: int = 0) -> pa.Table:
    """Rows under their canonical names as a finished block: cast, each row that breaks a rule with its reason.

    ``first_row`` and ``first_order`` number the rows in their file and in the whole source; pieces of one file go on
    where the piece before ended.
    """
    layout = Layout(table)
    checked = check_rows(raw, layout)
    numbers = np.arange(raw.num_rows, dtype=np.int64)
    provenance = {
        schema.FILE: pa.repeat(pa.scalar(file, pa.string()), raw.num_rows),
        schema.ROW: pa.array(numbers + first_row),
        schema.ORDER: pa.array(numbers + first_order),
        schema.RAW: raw_text(raw, checked.column(schema.REASON), ","),
    }
    return finish(checked, layout, provenance)


def read_all(pieces: Sequence[Piece]) -> pa.Table:
    """All rows in this process: for small side tables only (tags, links, held-out pairs)."""
    return pa.concat_tables([block for piece in pieces for block in piece.read()])
