"""The tables of a source as lazy datasets of Ray Data."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from typing import Final

import pyarrow as pa
import ray.data

from recsys.sources.base import Piece, SourceAdapter

_MAX_TASKS: Final = 4096


def tables(source: SourceAdapter) -> dict[str, ray.data.Dataset]:
    """Every table as a lazy dataset of Arrow blocks with known, additional and provenance columns
    (see ``schema``).
    """
    return {table: dataset(pieces) for table, pieces in source.pieces().items()}


def dataset(pieces: Sequence[Piece]) -> ray.data.Dataset:
    """Read the pieces in parallel; blocks follow the order of the pieces where Ray keeps order."""
    assert pieces, "a table without pieces"
    rows = [{"piece": pickle.dumps(piece)} for piece in pieces]
    tasks = ray.data.from_items(rows, override_num_blocks=min(len(rows), _MAX_TASKS))
    return tasks.map_batches(_read, batch_size=1, batch_format="pyarrow", zero_copy_batch=True)


def _read(batch: pa.Table) -> Iterator[pa.Table]:
    for pickled in batch.column("piece").to_pylist():
        yield from pickle.loads(pickled).read()
