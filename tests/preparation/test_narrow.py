"""Narrow columns of kept rows: every value comes back, and files are mapped, not unpacked."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.ipc
import pytest

from recsys.preparation.dataset_writer import Folder
from recsys.preparation.event_store import StoredEvents, part_name, write_rows
from recsys.preparation.narrow import narrowed, widened

TIME = pa.timestamp("us", "UTC")
DAY = 86_400_000_000
NO_TIME = np.iinfo(np.int64).min


@pytest.mark.parametrize(
    ("column", "narrow"),
    [
        (pa.array([5, 9, None]), pa.uint8()),
        (pa.array([-3, 2**16 - 4]), pa.uint16()),
        (pa.array([0, 2**32 - 1]), pa.uint32()),
        (pa.array([0, 2**32]), pa.int64()),  # does not fit and is not whole seconds
        (pa.array([NO_TIME, 2**62]), pa.int64()),
        (pa.array([7, 7]), pa.null()),
        (pa.array([7, None]), pa.uint8()),
        (pa.array([0, 40 * DAY, None], TIME), pa.uint32()),
        (pa.array([-DAY, 40 * DAY + 1], TIME), TIME),
        (pa.array([1.5, 1.5]), pa.null()),
        (pa.array([1.5, math.nan]), pa.float64()),
        (pa.nulls(2, pa.float64()), pa.null()),
        (pa.array(["b", "a", "b"]).dictionary_encode(), pa.dictionary(pa.int8(), pa.string())),
        (pa.array([[1], [2]]), pa.list_(pa.int64())),
    ],
)
def test_narrow_column_returns_every_value_in_its_type(
    column: pa.Array, narrow: pa.DataType
) -> None:
    table = narrowed(pa.table({"column": column}))
    assert table.schema.field("column").type == narrow
    # narrow rows are narrowed again when some users are deleted
    again = narrowed(table.filter(pa.array([True] * len(column))))
    for kept in (table, again):
        flat = kept.column("column").combine_chunks()
        found = widened(flat, kept.schema.field("column"))
        assert found.type == column.type and str(found) == str(column)


def test_kept_rows_have_the_types_and_values_that_were_written(tmp_path: Path) -> None:
    folder = Folder(pyarrow.fs.LocalFileSystem(), str(tmp_path))
    users = pa.array(["ann", "bob", "ann"]).dictionary_encode()
    rows = pa.table({"user_id": users, "timestamp": pa.array([0, DAY, 9 * DAY], TIME)})
    write_rows(folder, part_name(3, 0), rows)
    stored = StoredEvents(folder, 3, (0,))
    every, of_ann = stored.rows(), stored.rows(pa.array(["ann"]))
    assert every is not None and of_ann is not None
    assert every.drop_columns("_reason").to_pylist() == rows.to_pylist()
    assert every.schema.field("user_id").type == rows.schema.field("user_id").type
    assert of_ann.column("timestamp").cast(pa.int64()).to_pylist() == [0, 9 * DAY]
    with pyarrow.ipc.open_file(str(tmp_path / part_name(3, 0))) as file:
        assert file.schema.field("timestamp").type == pa.uint32()
