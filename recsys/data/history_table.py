"""Histories as tables: the columns of a shard, and the newest row of every user."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.fs

from recsys.data.histories import NO_CONTEXT, Array, Histories

HISTORY_SCHEMA: Final = pa.schema(
    [
        ("user", pa.int32()),
        ("items", pa.large_list(pa.int32())),
        ("types", pa.large_list(pa.uint8())),
        ("times", pa.large_list(pa.int64())),
        ("values", pa.large_list(pa.float32())),
        ("splits", pa.large_list(pa.uint8())),
    ]
)


def history_schema(num_context: int) -> pa.Schema:
    """Schema of a shard: :data:`HISTORY_SCHEMA`, and the codes of context columns."""
    return (
        HISTORY_SCHEMA.append(pa.field("context", pa.large_list(pa.int16())))
        if num_context
        else HISTORY_SCHEMA
    )


def newest_rows(files: Sequence[Histories]) -> Histories:
    """The newest row of every user in files of a shard (oldest file first), by dense id."""
    if len(files) == 1:
        return files[0]
    joined = Histories.concat(list(files))
    rows = last_rows(joined.users_U)
    return joined if np.array_equal(rows, np.arange(len(joined))) else joined.take(rows)


def last_rows(users_U: Array) -> Array:
    """Position of the last row of every user, sorted by dense id: int64.

    >>> last_rows(np.array([1, 0, 1])).tolist()
    [1, 2]
    """
    rows: Array = len(users_U) - 1 - np.unique(users_U[::-1], return_index=True)[1]
    return rows


def histories_from_table(table: pa.Table) -> Histories:
    """Rows of a shard as :class:`Histories`; flat arrays are not copied where Arrow allows it."""
    table = table.combine_chunks()

    def flat(name: str) -> Array:
        chunks = table.column(name).chunks
        return (
            np.concatenate([np.asarray(chunk.flatten()) for chunk in chunks])
            if chunks
            else np.zeros(0)
        )

    lengths = table.column("items").combine_chunks().value_lengths().to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    columns = {name: flat(name) for name in ("items", "types", "times", "values", "splits")}
    context = NO_CONTEXT
    if "context" in table.column_names and len(columns["items"]):
        context = flat("context").astype(np.int16, copy=False).reshape(len(columns["items"]), -1)
    return Histories(
        table.column("user").to_numpy(),
        offsets,
        columns["items"].astype(np.int32, copy=False),
        columns["types"].astype(np.uint8, copy=False),
        columns["times"].astype(np.int64, copy=False),
        columns["values"].astype(np.float32, copy=False),
        columns["splits"].astype(np.uint8, copy=False),
        context,
    )
