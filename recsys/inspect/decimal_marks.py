"""What commas and points in cells are: decimal marks, or what separates codes."""

from __future__ import annotations

from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from recsys.inspect.common_names import VALUE, lists_codes, similarity

SOME: Final = 0.3  # share of numbers like 2,5 from which the comma is a decimal mark
LEAST_LISTS: Final = 0.02  # share of lists, where the other cells have their members
COMMA_NUMBER: Final = r"^[+-]?\d+,\d+$"
_ALONE: Final = 0.9  # share of these members
_THOUSANDS: Final = r"^[+-]?[1-9]\d{0,2}(?:\.\d{3})+$"
_COMMA_THOUSANDS: Final = r"^[+-]?[1-9]\d{0,2}(?:,\d{3})+$"
_LONG_NUMBER: Final = r"^[+-]?\d{4,}$"


def share_of(texts: pa.Array, pattern: str) -> float:
    """Share of the texts that match a pattern."""
    return float(pc.mean(pc.match_substring_regex(texts, pattern).cast(pa.int8())).as_py() or 0.0)


def has_decimal_comma(name: str, texts: pa.Array, least: float) -> bool:
    """Whether cells are numbers such as 2,5, and no lists of codes such as 3,20.

    Parameters
    ----------
    name : str
        Name of the column.
    texts : pa.Array
        Its cells that are not missing.
    least : float
        Share of the cells that must be exceeded by those with a comma.

    Examples
    --------
    >>> prices, codes = pa.array(["5,37", "4,05", "12"]), pa.array(["12", "65", "7", "12,65"] * 9)
    >>> has_decimal_comma("price", prices, 0.1), has_decimal_comma("themes", codes, 0.1)
    (True, False)
    >>> has_decimal_comma("price", pa.array(["380", "1,282", "981", "12,804"]), 0.1)
    False
    """
    if _have_thousands(texts):
        return False
    # a share, because whole numbers in the column have no comma
    if share_of(texts, COMMA_NUMBER) <= least:
        return False
    if similarity(name, VALUE) >= 0.8 or share_of(texts, r",0\d"):
        return True
    # one digit after each comma is a fraction: codes have two digits, too
    are_codes = are_few_lists(texts, ",") and share_of(texts, r",\d\d")
    return not (lists_codes(name) or are_codes)


def _have_thousands(texts: pa.Array) -> bool:
    """Whether every comma is before three digits, and no large number is without one."""
    share = share_of(texts, r",\d")
    are_grouped = share < 1 and share_of(texts, _COMMA_THOUSANDS) == share
    return are_grouped and not share_of(texts, _LONG_NUMBER)


def has_points(texts: pa.Array) -> bool:
    """Whether cells have a decimal point, and not the point of 1.234, which may be a thousand."""
    return share_of(texts, r"\.\d") > share_of(texts, _THOUSANDS)


def are_few_lists(texts: pa.Array, mark: str) -> bool:
    """Whether cells with the mark list texts that are cells of their own, such as ``12,65``.

    >>> are_few_lists(pa.array(["12", "65", "7", "12,65"] * 9), ",")
    True
    """
    has_mark = pc.match_substring(texts, mark)
    if not (pc.mean(has_mark.cast(pa.int8())).as_py() or 0.0) > LEAST_LISTS:
        return False
    members = pc.list_flatten(pc.split_pattern(texts.filter(has_mark), mark))
    alone = pc.unique(texts.filter(pc.invert(has_mark)))
    known = pc.is_in(pc.utf8_trim_whitespace(members), value_set=alone)
    return float(pc.mean(known.cast(pa.int8())).as_py() or 0.0) > _ALONE
