"""Ids as exact text, for any type of the column in the file.

Why: two users must never become one. Floats hold 53 bits. A program that reads integers with one
missing value as floats loses large ids. They cannot be restored here, so such a column is refused.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.errors import SourceError
from recsys.sources.validate import Layout
from recsys.values.arrow_types import is_bytes

_MOST_DIGITS: Final = 40  # longer numbers with an exponent stay as written
# whole numbers below this are exact in floats of so many bits
_EXACT: Final = {16: 2**11, 32: 2**24, 64: 2**53}


def is_id(layout: Layout, name: str) -> bool:
    """Whether a canonical column is an id or another known text, whose digits must all be kept."""
    if name in dict(layout.lists):
        return False  # the members become texts later
    kind = layout.table.columns.get(name)
    return kind is not None and pa.types.is_string(kind)


def id_of_number(literal: str) -> str | None:
    """A JSON number as an id; None for NaN and Infinity.

    >>> id_of_number("12.0"), id_of_number("1e5"), id_of_number("2.50")
    ('12', '100000', '2.5')
    >>> id_of_number("1234567890123456789.0")
    '1234567890123456789'
    >>> id_of_number("NaN"), id_of_number("-0"), id_of_number("1e999999")
    (None, '0', '1e999999')
    """
    try:
        number = Decimal(literal)
    except InvalidOperation:
        return literal
    if not number.is_finite():
        return None
    # "-0" and "0.0" are the same id
    if number == 0:
        return "0"
    # written out, 1e999999 would be a text of a megabyte
    if abs(number.adjusted()) > _MOST_DIGITS:
        return literal
    text = format(number, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def typed_ids(values: pa.Array, where: str, first_row: int) -> pa.Array:
    """Ids of a typed column, as text or as a type with an exact text: integers, text, times, small
    floats.

    Decimals lose the zeros at the end, as floats do. Bytes are read as UTF-8.

    Parameters
    ----------
    values : pa.Array
        The cells of the column.
    where : str
        File and column, for the error.
    first_row : int
        Number of the first row, for the error.

    Raises
    ------
    SourceError
        Floats too large to be exact, bytes that are not text, lists and structs.

    Examples
    --------
    >>> ids = pa.array([Decimal("12.00"), Decimal("2.50")])
    >>> typed_ids(ids, "FILE: column 'user_id'", 1).to_pylist()
    ['12', '2.5']
    """
    kind = values.type
    if isinstance(kind, pa.BaseExtensionType):
        if str(kind.extension_name) == "arrow.uuid":
            return pa.array(
                [None if value is None else str(value) for value in values.to_pylist()], pa.string()
            )
        return typed_ids(values.storage, where, first_row)
    if pa.types.is_floating(kind):
        _check_exact(values, where, first_row)
    elif pa.types.is_decimal(kind):
        text = values.cast(pa.string())
        text = pc.replace_substring_regex(text, r"^([^.E]*\.[^E]*?)0+$", r"\1")
        return pc.replace_substring_regex(text, r"\.$", "")
    elif is_bytes(kind):
        try:
            return values.cast(pa.binary()).cast(pa.string())
        except pa.ArrowInvalid:
            raise SourceError(
                f"{where} holds bytes that are not UTF-8 text ({kind}); write ids as text, for"
                " instance in hexadecimal"
            ) from None
    elif pa.types.is_nested(kind):
        raise SourceError(
            f"{where} is {kind}; expected ids as text or whole numbers: write a plain column"
        )
    return values


def check_whole_in_float(values: pa.Array, where: str) -> None:
    """Check that integers keep their values in a column that is float in other files.

    Raises
    ------
    SourceError
        A float would change one of them.
    """
    # as float: the absolute value of the smallest int64 overflows
    size = np.abs(np.asarray(values.drop_null()).astype(np.float64))
    if len(size) and size.max() >= _EXACT[64]:
        raise SourceError(
            f"{where} holds integers of 2^53 and more, which floats cannot hold, but the column is"
            " float in another file of the table; give the column one type, integer or text"
        )


def _check_exact(values: pa.Array, where: str, first_row: int) -> None:
    numbers = values.to_numpy(zero_copy_only=False).astype(np.float64)
    # at the bound itself, a float may stand for this number or the next
    bound = _EXACT[values.type.bit_width]
    wrong = np.flatnonzero(np.isfinite(numbers) & (np.abs(numbers) >= bound))
    if len(wrong):
        raise SourceError(
            f"{where} is {values.type} and holds {numbers[wrong[0]]:.17g} (row"
            f" {first_row + int(wrong[0]):,}): floats of this size are not exact, so several ids"
            " may have become one; write the column again, as integers (with pandas: dtype Int64,"
            " which supports missing values) or as text"
        )
