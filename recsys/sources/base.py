"""What an adapter is, and how its pieces of work become Ray datasets.

Why: a source of any size is read by many tasks. The driver only finds *pieces* (a byte range, a row group, a partition
of a generated world); each task reads its piece into finished blocks, so nothing grows with the number of events in
one process.
"""

from __future__ import annotations

import hashlib
import pickle
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Final, Protocol

import pyarrow as pa
import ray.data

from recsys import schema
from recsys.config import Section
from recsys.errors import SourceError
from recsys.sources.files import InputFile

FILE_STRIDE: Final = 2**40  # ``_order`` = index of the file × stride + row
_MAX_TASKS: Final = 4096


class Piece(Protocol):
    """A picklable unit of reading that needs nothing but itself."""

    def read(self) -> Iterator[pa.Table]:
        """Finished blocks in the order of the data, all of one layout."""
        ...


class SourceAdapter(ABC):
    """One data set in some format, given as the canonical tables."""

    def __init__(self, config: Section) -> None:
        self.config = config

    @property
    @abstractmethod
    def name(self) -> str:
        """Short name of the data set, for manifest and report."""

    @abstractmethod
    def files(self) -> list[InputFile]:
        """Every input file.

        Raises:
            SourceError: a file, folder or glob is missing.
        """

    @abstractmethod
    def pieces(self) -> dict[str, list[Piece]]:
        """The pieces of every table that the source has; ``events`` is always there.

        Raises:
            SourceError: a table is empty, lacks a column, or is not the format it claims to be.
        """

    def check(self) -> None:
        """Find what is wrong with the input without reading rows and without Ray.

        Raises:
            SourceError: a file, folder or glob is missing.
        """
        self.files()

    def fingerprint(self) -> str:
        """Hash over the configuration and every input file: equal hash, equal tables."""
        digest = hashlib.sha256(self.config.model_dump_json().encode())
        for file in self.files():
            digest.update(f"\n{file.path} {file.size} {file.fingerprint()}".encode())
        return digest.hexdigest()

    def size(self) -> int:
        """About how many bytes of input there are; equal for equal input."""
        return sum(file.size for file in self.files())

    def tables(self) -> dict[str, ray.data.Dataset]:
        """Every table as a lazy dataset of Arrow blocks: known, extra and provenance columns (see ``schema``)."""
        return {table: dataset(pieces) for table, pieces in self.pieces().items()}


def dataset(pieces: Sequence[Piece]) -> ray.data.Dataset:
    """Read the pieces in parallel; blocks follow the order of the pieces where Ray keeps order."""
    assert pieces, "a table without pieces"
    rows = [{"piece": pickle.dumps(piece)} for piece in pieces]
    tasks = ray.data.from_items(rows, override_num_blocks=min(len(rows), _MAX_TASKS))
    return tasks.map_batches(_read, batch_size=1, batch_format="pyarrow", zero_copy_batch=True)


def _read(batch: pa.Table) -> Iterator[pa.Table]:
    for pickled in batch.column("piece").to_pylist():
        yield from pickle.loads(pickled).read()


def require_columns(table: schema.TableSchema, found: Sequence[str], where: str, cure: str) -> None:
    """Check that all required columns of the table are there, each once.

    Raises:
        SourceError: naming what was found, what was expected and the cure.
    """
    absent = [name for name in table.required if name not in found]
    if absent:
        raise SourceError(
            f"{where}: the {table.name} table lacks {_listed(absent)}; found {_listed(found)}, "
            f"expected at least {_listed(table.required)}; {cure}"
        )
    twice = sorted({name for name in found if list(found).count(name) > 1})
    if twice:
        raise SourceError(f"{where}: column {_listed(twice)} occurs twice (after rename); drop or rename one of them")
    reserved = {schema.FILE, schema.ROW, schema.ORDER, schema.REASON, schema.RAW} & set(found)
    if reserved:
        raise SourceError(f"{where}: column {_listed(sorted(reserved))} is reserved for provenance; rename it")


def read_all(pieces: Sequence[Piece]) -> pa.Table:
    """All rows in this process: for small side tables only (tags, links, held-out pairs)."""
    return pa.concat_tables([block for piece in pieces for block in piece.read()])


def _listed(names: Any) -> str:
    return ", ".join(repr(name) for name in names)
