"""Columns as integers: texts as dictionary codes, and the sort order of rows by several keys.

Why: a user id is in dozens of rows and a file name in millions. Hashing, comparing and copying a
text for each row took most of the time of ``prepare``. Here each distinct text is processed once,
and a row has a code of four bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.data.histories import Array

CODED: Final = pa.dictionary(pa.int32(), pa.string())


def coded(column: pa.ChunkedArray) -> pa.Array:
    """A string column as codes (:data:`CODED`); the null type, which needs no memory, where all
    cells are null.
    """
    if column.null_count == len(column):
        return pa.nulls(len(column))
    texts = column.cast(pa.string()).combine_chunks()
    first, last = texts[0], texts[-1]
    if texts.null_count == 0 and first.equals(last) and pc.all(pc.equal(texts, first)).as_py():
        # one file, one type: comparing is faster than hashing
        codes = pa.array(np.zeros(len(texts), dtype=np.int32))
        return pa.DictionaryArray.from_arrays(codes, texts[:1])
    return texts.dictionary_encode()


def parts_of(column: pa.ChunkedArray) -> tuple[pa.Array, Array]:
    """The dictionary of a coded column, and the code of every row: int32, -1 for null."""
    flat = column.combine_chunks()
    if pa.types.is_null(flat.type):
        return pa.array([], pa.string()), np.full(len(flat), -1, dtype=np.int32)
    indices = flat.indices
    return flat.dictionary, np.asarray(indices.fill_null(-1) if indices.null_count else indices)


def compact(column: pa.ChunkedArray) -> pa.Array:
    """A coded column without unused texts; a slice keeps the dictionary of the whole column."""
    texts, codes_E = parts_of(column)
    if len(texts) * 4 <= len(codes_E) or len(texts) == 0:
        return column.combine_chunks()
    used = np.zeros(len(texts) + 1, dtype=bool)  # -1 (null) is the last one
    used[codes_E] = True
    fresh = np.cumsum(used, dtype=np.int32) - 1
    indices = pa.array(fresh[codes_E], mask=codes_E < 0 if used[-1] else None)
    return pa.DictionaryArray.from_arrays(indices, texts.filter(pa.array(used[:-1])))


def used_texts(column: pa.ChunkedArray) -> pa.Array:
    """The distinct texts of the rows of a coded column, sorted."""
    texts, codes_E = parts_of(column)
    used = np.zeros(len(texts) + 1, dtype=bool)
    used[codes_E] = True
    return sorted_texts(texts.filter(pa.array(used[:-1])))


def sorted_texts(texts: pa.Array) -> pa.Array:
    """The distinct texts without null, in the order of their bytes."""
    texts = texts.drop_null().unique()
    return texts.take(pc.sort_indices(texts))


def text_counts(column: pa.ChunkedArray, null: str = "") -> dict[str, int]:
    """Number of rows of a coded column by text; ``null`` is the key of rows without a text."""
    texts, codes_E = parts_of(column)
    nulls = column.null_count
    if len(texts) == 1:  # np.bincount of one repeated number is slow
        numbers = [nulls, len(codes_E) - nulls]
    else:
        numbers = np.bincount(codes_E + 1, minlength=len(texts) + 1).tolist()
    return {
        text: number
        for text, number in zip([null, *texts.to_pylist()], numbers, strict=True)
        if number
    }


def codes_in(column: pa.ChunkedArray, values: pa.Array) -> Array:
    """Position in ``values`` of every row's text in a coded column: [rows] int64, -1 for null and
    for other texts.
    """
    texts, codes_E = parts_of(column)
    positions = np.asarray(pc.index_in(texts, value_set=values).fill_null(-1)).astype(np.int64)
    return np.asarray(np.append(positions, -1)[codes_E])


def own_codes(column: pa.ChunkedArray, trimmed: bool = False) -> Array:
    """Ranks of a coded column's rows by their texts: [rows] int64, from 1, 0 for null."""
    texts, codes_E = parts_of(column)
    texts = pc.utf8_trim_whitespace(texts) if trimmed else texts
    positions = np.asarray(pc.index_in(texts, value_set=sorted_texts(texts)).fill_null(-1)).astype(
        np.int64
    )
    return np.asarray(np.append(positions + 1, 0)[codes_E])


def lex_order(keys: list[Array]) -> Array:
    """The stable sort order of rows by the first integer key, then by the second, and so on.

    The result equals ``np.lexsort(keys[::-1])``, which sorts once per key. Here one sort over the
    leading 64 bits of the keys is mostly enough; only rows that agree in them are compared by all
    keys.

    >>> lex_order([np.array([2, 1, 1]), np.array([0, 9, -9])]).tolist()
    [2, 1, 0]
    """
    bits_E = _leading_bits(keys)
    position = np.argsort(bits_E)
    same = np.diff(bits_E[position]) == 0
    if same.any():
        tied = np.append(False, same) | np.append(same, False)
        run = np.cumsum(np.append(True, ~same))[tied]
        rows = position[tied]
        position[tied] = rows[np.lexsort([rows, *(key[rows] for key in keys[::-1]), run])]
    return position


def _leading_bits(keys: list[Array]) -> Array:
    """The leading 64 bits of the concatenated keys; each key has as many bits as its range
    needs.
    """
    found, free = np.zeros(len(keys[0]), dtype=np.uint64), 64
    for key in keys:
        if free == 0 or len(key) == 0:
            break
        low, high = key.min(), key.max()
        length = (int(high) - int(low)).bit_length()
        if length == 0:
            continue
        taken = min(length, free)
        kind = np.uint64 if key.dtype == np.uint64 else np.int64
        offset = key.astype(kind, copy=False).view(np.uint64) - np.array(low, dtype=kind).view(
            np.uint64
        )
        found = (found << np.uint64(taken) if free < 64 else found) | (
            offset >> np.uint64(length - taken)
        )
        free -= taken
    return found


def joined(tables: Sequence[pa.Table | None]) -> pa.Table:
    """The rows of all tables that are not None, with common dictionaries."""
    found = [table for table in tables if table is not None]
    return pa.concat_tables(found, promote_options="default").unify_dictionaries().combine_chunks()


def where(table: pa.Table, kept_E: Array) -> pa.Table:
    """The kept rows; no copy if all rows are kept."""
    return table if kept_E.all() else table.filter(pa.array(kept_E))
