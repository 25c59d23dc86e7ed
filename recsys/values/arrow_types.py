"""Families of Arrow types: one test for each, as a file may have any of their widths."""

from __future__ import annotations

import pyarrow as pa


def is_string(kind: pa.DataType) -> bool:
    """Whether a type is a plain string; :func:`recsys.values.cells.is_text` is wider."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def is_plain_number(kind: pa.DataType) -> bool:
    """Whether a type is an integer or a float."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def is_variable_list(kind: pa.DataType) -> bool:
    """Whether a type is a list whose length may differ from row to row."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def is_list(kind: pa.DataType) -> bool:
    """Whether a type is a list of any length, fixed or not."""
    return is_variable_list(kind) or bool(pa.types.is_fixed_size_list(kind))


def is_bytes(kind: pa.DataType) -> bool:
    """Whether a type is bytes of any length: some programs write texts as bytes."""
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
        or pa.types.is_binary_view(kind)
    )


def is_cell(kind: pa.DataType) -> bool:
    """Whether values of a type can be cells of a table: texts, numbers, times and flags, and not
    bytes, lists or objects.

    >>> [is_cell(kind) for kind in (pa.string(), pa.date32(), pa.binary(), pa.list_(pa.int8()))]
    [True, True, False, False]
    """
    return bool(
        is_string(kind)
        or pa.types.is_string_view(kind)
        or is_plain_number(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_temporal(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_null(kind)
    )


def is_list_of_cells(kind: pa.DataType) -> bool:
    """Whether a type is a list whose members can be rows of their own.

    >>> is_list_of_cells(pa.list_(pa.string())), is_list_of_cells(pa.list_(pa.list_(pa.int8())))
    (True, False)
    """
    return is_list(kind) and is_cell(kind.value_type)
