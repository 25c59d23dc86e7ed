"""The base class of adapters, and their units of reading.

Why: many tasks read one source of any size. The driver only finds *pieces* (a byte range, a row
group, a partition of generated data). Each task reads its piece into finished blocks, so that the
memory of a process does not grow with the number of events.
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
    """A picklable unit of reading that is independent of other pieces."""

    def read(self) -> Iterator[pa.Table]:
        """Read finished blocks in the order of the data, all with one layout."""
        ...


class SourceAdapter(ABC):
    """A data set in one format, read as the canonical tables."""

    appends: ClassVar[bool] = (
        False  # whether files of newer events can be read alone: see :meth:`leave_out`
    )

    def __init__(self, config: Section) -> None:
        self.config = config
        self.notes: list[
            str
        ] = []  # decisions of :meth:`check` and :meth:`pieces` that the user should know
        self.columns: dict[
            str, set[str]
        ] = {}  # all columns of the tables that :meth:`check` knows completely
        self._fingerprinted: list[InputFile] = []
        self._hashes: dict[InputFile, str] = {}  # so that each file is read only once for its hash
        self.events_read: list[
            dict[str, Any]
        ] = []  # :meth:`event_files` at the time of the last fingerprint

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
            A file or folder is missing, or a glob matches nothing.
        """

    @abstractmethod
    def pieces(self) -> dict[str, list[Piece]]:
        """The pieces of every table of the source; ``events`` is always one of them.

        Raises
        ------
        SourceError
            A table is empty, lacks a column, or has another format than expected.
        """

    @property
    def made_of_events(self) -> frozenset[str]:
        """The tables whose rows are made from those of the events, one for each id of a piece."""
        return frozenset()

    def check(self) -> None:
        """Find mistakes without reading rows: missing files, headers without required columns,
        wrong renames.

        Why: a dry run calls it. It reads only the heads of files and does not start Ray.

        Raises
        ------
        SourceError
            A mistake in the files or their headers.
        """
        self.files()

    def fingerprint(self) -> str:
        """Hash of the configuration and all input files; equal hashes mean equal tables.

        A file is identified by its role, its name, the columns in the names of its folders and its
        content, not by its path.
        """
        digest = hashlib.sha256(json.dumps(source_settings(self.config), sort_keys=True).encode())
        self._fingerprinted = self.files()
        roles = self.roles()
        for file in self._fingerprinted:
            known = (
                roles.get(file.path, ""),
                file.name,
                folder_values(file.path),
                file.size,
                self.hash_of(file),
            )
            digest.update(f"\n{json.dumps(known)}".encode())
        self.events_read = self.event_files()
        return digest.hexdigest()

    def hash_of(self, file: InputFile) -> str:
        """The fingerprint of one file, computed once."""
        if file not in self._hashes:
            self._hashes[file] = file.fingerprint()
        return self._hashes[file]

    def event_files(self) -> list[dict[str, Any]]:
        """A description of each file of events that does not depend on its path: for manifest and
        :meth:`leave_out`.
        """
        return []

    def leave_out(self, known: Sequence[dict[str, Any]]) -> int:
        """Skip the files of events in ``known``, an earlier result of :meth:`event_files`; return
        the number left.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot skip files of events")

    def roles(self) -> dict[str, str]:
        """Path → role, for files whose name does not show their role."""
        return {}

    def unchanged_pieces(self) -> dict[str, list[Piece]]:
        """The pieces of exactly the files of the last fingerprint.

        Raises
        ------
        SourceError
            As :meth:`pieces`; also if a file was changed, added or removed since the fingerprint.
        """
        for file in self._fingerprinted:
            file.check_unchanged()
        pieces = self.pieces()
        now = {file.path: file for file in self.files()}
        for path in sorted({file.path for file in self._fingerprinted} ^ set(now)):
            change = "was added" if path in now else "was removed"
            raise SourceError(
                f"{path} {change} while the source was read; wait until its writer has finished, "
                "and run the command again"
            )
        for file in self._fingerprinted:
            file.check_unchanged()
        return pieces

    def size(self) -> int:
        """The approximate size of the input in bytes; equal for equal input."""
        return sum(file.size for file in self.files())


def block(
    raw: pa.Table, table: schema.TableSchema, file: str, first_row: int = 1, first_order: int = 0
) -> pa.Table:
    """Turn rows with canonical column names into a finished block: typed, with a reason for each
    bad row.

    Parameters
    ----------
    raw : pa.Table
        Rows with canonical column names.
    table : schema.TableSchema
        The canonical table.
    file : str
        Name of the file, for the quarantine.
    first_row, first_order : int
        Numbers of the first row in its file and in the whole source. A piece continues the numbers
        of the piece before.
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
    """Read all rows in this process; only for small side tables (tags, links, held-out pairs)."""
    return pa.concat_tables([block for piece in pieces for block in piece.read()])
