"""Coordinates and numbers of items as the kernel reads them: points in kilometres, and ranks.

Legend: N items, C coordinates of a point, K numbers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from recsys.data.attributes import as_numbers, is_number
from recsys.data.histories import Array
from recsys.errors import ConfigError, choices

_LATITUDES: Final = ("latitude", "lat")
_LONGITUDES: Final = ("longitude", "lon", "lng", "long")
_EARTH_KM: Final = 6371.0
_PRICES: Final = ("price", "cost", "amount", "fare", "rent", "fee", "msrp", "rrp")
_NO_QUANTITIES: Final = (  # words in names of ids, codes and times, and of counts, which may tell what came later
    *("id", "ids", "code", "ean", "upc", "gtin", "isbn", "sku", "zip", "postcode", "index", "idx", "rank", "position"),
    *("count", "counts", "num", "number", "n", "no", "nr", "total", "sales", "sold", "views", "clicks", "likes"),
    *("orders", "purchases", "reviews", "ratings", "votes", "popularity", "stock", "inventory", "quantity", "qty"),
    *("year", "month", "day", "date", "time", "timestamp", "ts", "created", "updated"),
)
_YEARS: Final = (1000.0, 2200.0)
_LEAST_VALUES: Final = 5  # that a quantity has; fewer are categories or flags
_MOSTLY: Final = 0.5  # of the items have a value
_MOST_NUMBERS: Final = 4  # each costs two kernels


@dataclass(frozen=True)
class Places:
    """Where items are, NaN where unknown."""

    points_NC: Array  # float64; C = 0 without coordinates
    ranks_NK: Array  # float64 in [0, 1]

    @property
    def known_N(self) -> Array:
        """Whether anything is known of an item."""
        is_known = [~np.isnan(self.points_NC).any(1)] if self.points_NC.shape[1] else []
        is_known += list(~np.isnan(self.ranks_NK.T))
        return np.asarray(np.any(is_known, axis=0))

    @property
    def differ(self) -> bool:
        """Whether any two items are apart, in place or in a number."""
        points_MC = self.points_NC[~np.isnan(self.points_NC).any(1)]
        known = [points_MC, *(ranks_N[~np.isnan(ranks_N)] for ranks_N in self.ranks_NK.T)]
        return any((values[:1] != values).any() for values in known)


def found_columns(names: Sequence[str], coordinates: Sequence[str], numbers: Sequence[str]) -> list[list[str]]:
    """The columns of coordinates, two or none, and of numbers.

    Raises:
        ConfigError: a named column is not there, or coordinates are not two.

    >>> found_columns(["item_id", "Lng", "lat", "price"], [], ["price"])
    [['lat', 'Lng'], ['price']]
    """
    if strays := [name for name in (*coordinates, *numbers) if name not in names]:
        raise ConfigError(
            f"model.granularities.place names {', '.join(strays)}, which the items do not have; their columns: "
            f"{choices(names) or 'none'}"
        )
    if len(coordinates) == 1:
        raise ConfigError("model.granularities.place.coordinates: expected two columns, latitude and longitude")
    if coordinates:
        return [list(coordinates), list(numbers)]
    lowered = {name.lower(): name for name in names}
    sides = [next((lowered[name] for name in known if name in lowered), None) for known in (_LATITUDES, _LONGITUDES)]
    return [[side for side in sides if side] if all(sides) else [], list(numbers)]


def quantities(features: pa.Table, coordinates: Sequence[str]) -> list[str]:
    """The columns that measure items as a price does, prices first, at most four: numbers that most items have, of
    several values, none below zero; no coordinates, ids, counts or years.

    >>> columns = {"price": [5.0, 9.5, 7, 1, 2, None], "seller_id": [1.5, 2, 3, 4, 5, 6], "made": [2001, 2002] * 3}
    >>> quantities(pa.table(columns), [])
    ['price']
    """
    fitting = [name for name in features.column_names if name not in coordinates and _is_quantity(features, name)]
    fitting.sort(key=lambda name: not set(_PRICES) & set(_words(name)))
    return fitting[:_MOST_NUMBERS]


def _is_quantity(features: pa.Table, name: str) -> bool:
    column, words = features.column(name), _words(name)
    is_price = bool(set(_PRICES) & set(words))
    if not is_number(column.type) or (set(words) & set(_NO_QUANTITIES) and not is_price):
        return False
    if name.lower() in (*_LATITUDES, *_LONGITUDES):
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
    """
    >>> _words("unitPrice_EUR"), _words("StockCode"), _words("EAN")
    (['unit', 'price', 'eur'], ['stock', 'code'], ['ean'])
    """
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]


def read_places(features: pa.Table, columns: Sequence[Sequence[str]]) -> Places:
    """The columns of :func:`found_columns`. Latitudes and longitudes in degrees become points on a sphere; where the
    values are none, they are points of a plane."""
    (coordinates, numbers), num_items = columns, len(features)
    points = [as_numbers(features.column(name)) for name in coordinates]
    points_NC = np.stack(points, axis=1) if points else np.zeros((num_items, 0))
    points_NC[np.isnan(points_NC).any(1)] = np.nan
    if points and not (np.abs(points_NC) > np.array([90.0, 180.0])).any():
        latitude_N, longitude_N = np.radians(points_NC).T
        flat_N = np.cos(latitude_N)
        points = [flat_N * np.cos(longitude_N), flat_N * np.sin(longitude_N), np.sin(latitude_N)]
        points_NC = _EARTH_KM * np.stack(points, axis=1)
    ranks = [ranked(as_numbers(features.column(name))) for name in numbers]
    return Places(points_NC, np.stack(ranks, axis=1) if ranks else np.zeros((num_items, 0)))


def ranked(values_N: Array) -> Array:
    """The share of known values below each, ties half; NaN stays.

    >>> ranked(np.array([5.0, np.nan, 1.0, 5.0])).tolist()
    [0.6666666666666666, nan, 0.16666666666666666, 0.6666666666666666]
    """
    known = np.sort(values_N[~np.isnan(values_N)])
    below_N, upto_N = (np.searchsorted(known, values_N, side=side) for side in ("left", "right"))
    return np.where(np.isnan(values_N), np.nan, (below_N + upto_N) / 2 / max(len(known), 1))
