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
