"""Columns in the smallest integer type that holds their values.

Why: an append needs a few rows of large files. Files that are not compressed can be mapped into
memory, so that only the pages of these rows are read; narrow columns keep such files small. A
column that is narrower than the original has the key :data:`KEY` in the metadata of its field.
"""

from __future__ import annotations

import json
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

KEY: Final = b"narrowed_from"  # JSON: type, unit and offset of the original column
_TYPES: Final = {str(kind): kind for kind in (pa.int64(), pa.timestamp("us", "UTC"), pa.float64())}
_SECOND: Final = 1_000_000  # microseconds
_LARGEST: Final = 2**32


def narrowed(table: pa.Table) -> pa.Table:
    """The table with narrow columns: numbers and times as differences from the least one, if
    necessary in whole seconds; codes of texts; columns of one value without memory.

    Columns with other types, and those that cannot be narrower, stay as they are.

    >>> rows = pa.table({"row": [1000, 1200], "value": [1.0, 1.0]})
    >>> [str(kind) for kind in narrowed(rows).schema.types]
    ['uint8', 'null']
    >>> narrow = narrowed(rows)
    >>> widened(narrow.column("row"), narrow.field("row")).to_pylist()
    [1000, 1200]
    """
    fields, columns = [], []
    for field, column in zip(table.schema, table.columns, strict=True):
        flat = column.combine_chunks()
        if pa.types.is_dictionary(field.type):
            # signed, as dictionaries are elsewhere
            flat, how = _with_indices(flat, _least_type(-max(len(flat.dictionary), 1))), None
        elif str(field.type) in _TYPES and KEY not in (field.metadata or {}):
            flat, how = _narrow(flat)
        else:
            how = None
        metadata = {KEY: json.dumps(how)} if how else field.metadata
        fields.append(pa.field(field.name, flat.type, metadata=metadata))
        columns.append(flat)
    return pa.table(columns, schema=pa.schema(fields))


def widened(column: pa.Array | pa.ChunkedArray, field: pa.Field) -> Any:
    """A column of :func:`narrowed` in its original type; other columns stay the same.

    Parameters
    ----------
    column : pa.Array | pa.ChunkedArray
        Rows of the column.
    field : pa.Field
        Its field, with the metadata.

    Returns
    -------
    pa.Array | pa.ChunkedArray
        The rows in the original type; codes of texts are int32.
    """
    if isinstance(column, pa.DictionaryArray):
        return _with_indices(column, pa.int32())
    if KEY not in (field.metadata or {}):
        return column
    how = json.loads(field.metadata[KEY])
    kind = _TYPES[how["type"]]
    if pa.types.is_null(column.type):
        return pa.repeat(pa.scalar(how["value"], kind), len(column))
    numbers = pc.add(pc.multiply(column.cast(pa.int64()), how["unit"]), how["offset"])
    return numbers.cast(kind)


def _narrow(column: pa.Array) -> tuple[pa.Array, dict[str, Any] | None]:
    """A narrow column and how it was made; the column itself and None if it cannot be narrower."""
    how: dict[str, Any] = {"type": str(column.type)}
    is_number = pa.types.is_floating(column.type)
    numbers = column if is_number else column.cast(pa.int64())
    if not numbers.null_count and pc.all(pc.equal(numbers, numbers[0])).as_py():
        return pa.nulls(len(column)), how | {"value": numbers[0].as_py()}
    if numbers.null_count == len(column):
        return pa.nulls(len(column)), how | {"value": None}
    if is_number:
        return column, None
    low, most = (bound.as_py() for bound in pc.min_max(numbers).values())
    unit = 1 if most - low < _LARGEST else _SECOND
    span = (most - low) // unit
    if span >= _LARGEST or (np.asarray(numbers.fill_null(low)) % unit != low % unit).any():
        return column, None
    differences = pc.divide(pc.subtract(numbers, low), unit)
    return differences.cast(_least_type(span)), how | {"unit": unit, "offset": low}


def _least_type(number: int) -> pa.DataType:
    """The smallest integer type that holds a number, and all between it and 0; signed if it is
    negative.
    """
    return pa.from_numpy_dtype(np.min_scalar_type(number))


def _with_indices(column: pa.DictionaryArray, kind: pa.DataType) -> pa.DictionaryArray:
    """The coded column with indices of another type."""
    return pa.DictionaryArray.from_arrays(column.indices.cast(kind), column.dictionary)
