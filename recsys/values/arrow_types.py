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


def common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The type that holds the values of both types; None where there is none.

    Numbers become the wider number, a flag among numbers a number, a day among times a time, and
    any cell among texts a text. Lists follow their members.

    >>> common_type(pa.int64(), pa.float64()), common_type(pa.string(), pa.int64())
    (DataType(double), DataType(string))
    >>> common_type(pa.list_(pa.string()), pa.string()) is None
    True
    """
    try:
        schemas = [pa.schema([("x", kind)]) for kind in (one, other)]
        return pa.unify_schemas(schemas, promote_options="permissive").field("x").type
    except pa.ArrowException:  # what Arrow does not promote
        pass
    for kind, wider in ((one, other), (other, one)):
        if is_string(wider) and is_cell(kind):
            return wider
        if pa.types.is_boolean(kind) and is_plain_number(wider):
            return wider
        if pa.types.is_date(kind) and pa.types.is_timestamp(wider) and wider.tz is None:
            return wider
    if is_list(one) and is_list(other):
        members = common_type(one.value_type, other.value_type)
        return None if members is None else pa.list_(members)
    return None
