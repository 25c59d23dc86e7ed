"""Item columns that are quantities, such as prices, for ``place`` and `recsys init`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import numpy as np
import pyarrow as pa

from recsys.data.attributes import as_numbers, is_number

LATITUDES: Final = ("latitude", "lat")
LONGITUDES: Final = ("longitude", "lon", "lng", "long")
_PRICES: Final = ("price", "cost", "amount", "fare", "rent", "fee", "msrp", "rrp")
# words in names of ids, codes, times, and of counts, which may leak later events
_NO_QUANTITIES: Final = (
    *(
        "id",
        "ids",
        "code",
        "ean",
        "upc",
        "gtin",
        "isbn",
        "sku",
        "zip",
        "postcode",
        "index",
        "idx",
        "rank",
        "position",
    ),
    *(
        "count",
        "counts",
        "num",
        "number",
        "n",
        "no",
        "nr",
        "total",
        "sales",
        "sold",
        "views",
        "clicks",
        "likes",
    ),
    *(
        "orders",
        "purchases",
        "reviews",
        "ratings",
        "votes",
        "popularity",
        "stock",
        "inventory",
        "quantity",
        "qty",
    ),
    *("year", "month", "day", "date", "time", "timestamp", "ts", "created", "updated"),
)
_YEARS: Final = (1000.0, 2200.0)
_LEAST_VALUES: Final = 5  # distinct values of a quantity; fewer are categories or flags
_MOSTLY: Final = 0.5  # least share of items with a value
_MOST_NUMBERS: Final = 4  # each adds two kernels


def quantities(features: pa.Table, coordinates: Sequence[str]) -> list[str]:
    """The columns that are quantities, prices first, at most four. A quantity is a number that most
    items have, with several distinct values and none below zero; it is no coordinate, id, count or
    year.

    >>> columns = {"price": [5.0, 9.5, 7, 1, 2, None], "seller_id": [1.5, 2, 3, 4, 5, 6]}
    >>> columns["made"] = [2001, 2002] * 3
    >>> quantities(pa.table(columns), [])
    ['price']
    """
    fitting = [
        name
        for name in features.column_names
        if name not in coordinates and _is_quantity(features, name)
    ]
    fitting.sort(key=lambda name: not set(_PRICES) & set(_words(name)))
    return fitting[:_MOST_NUMBERS]


def _is_quantity(features: pa.Table, name: str) -> bool:
    column, words = features.column(name), _words(name)
    is_price = bool(set(_PRICES) & set(words))
    if not is_number(column.type) or (set(words) & set(_NO_QUANTITIES) and not is_price):
        return False
    if name.lower() in (*LATITUDES, *LONGITUDES):
        return False
    values_N = as_numbers(column)
    known = values_N[~np.isnan(values_N)]
    distinct = np.unique(known)
    if len(known) < _MOSTLY * len(values_N) or len(distinct) < _LEAST_VALUES or known.min() < 0:
        return False
    is_whole = bool((known == known.round()).all())
    are_years = is_whole and _YEARS[0] < known.min() and known.max() < _YEARS[1]
    are_ids = is_whole and len(distinct) == len(known)
    return is_price or not (are_years or are_ids)


def _words(name: str) -> list[str]:
    """The words of a column's name, in lower case.

    >>> _words("unitPrice_EUR"), _words("StockCode"), _words("EAN")
    (['unit', 'price', 'eur'], ['stock', 'code'], ['ean'])
    """
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]
