"""Coordinates and numbers of items as inputs of the kernel: points in kilometres, and ranks.

Legend: N items, C coordinates of a point, K numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from recsys.data.attributes import as_numbers
from recsys.data.histories import Array
from recsys.data.quantities import LATITUDES, LONGITUDES
from recsys.errors import ConfigError, choices

_EARTH_KM: Final = 6371.0


@dataclass(frozen=True)
class Places:
    """Places and numbers of items, NaN where unknown."""

    points_NC: Array  # float64; C = 0 without coordinates
    ranks_NK: Array  # float64 in [0, 1]

    @property
    def known_N(self) -> Array:
        """Whether anything is known about an item: bool [N]."""
        is_known = [~np.isnan(self.points_NC).any(1)] if self.points_NC.shape[1] else []
        is_known += list(~np.isnan(self.ranks_NK.T))
        return np.asarray(np.any(is_known, axis=0))

    @property
    def differ(self) -> bool:
        """Whether any two items differ, in place or in a number."""
        points_MC = self.points_NC[~np.isnan(self.points_NC).any(1)]
        known = [points_MC, *(ranks_N[~np.isnan(ranks_N)] for ranks_N in self.ranks_NK.T)]
        return any((values[:1] != values).any() for values in known)


def found_columns(
    names: Sequence[str], coordinates: Sequence[str], numbers: Sequence[str]
) -> list[list[str]]:
    """Return the columns of coordinates, two or none, and those of numbers.

    Parameters
    ----------
    names : Sequence[str]
        Columns of the items.
    coordinates : Sequence[str]
        Columns of latitude and longitude; empty: found by their usual names.
    numbers : Sequence[str]
        Columns of numbers.

    Returns
    -------
    list[list[str]]
        The columns of coordinates, latitude first, and the columns of numbers.

    Raises
    ------
    ConfigError
        A named column does not exist, or there are not two coordinates.

    Examples
    --------
    >>> found_columns(["item_id", "Lng", "lat", "price"], [], ["price"])
    [['lat', 'Lng'], ['price']]
    """
    if unknown := [name for name in (*coordinates, *numbers) if name not in names]:
        raise ConfigError(
            f"model.granularities.place names {', '.join(unknown)}, which the items do not have;"
            f" there are: {choices(names) or 'none'}"
        )
    if len(coordinates) == 1:
        raise ConfigError(
            "model.granularities.place.coordinates: expected two columns, latitude and longitude"
        )
    if coordinates:
        return [list(coordinates), list(numbers)]
    lowered = {name.lower(): name for name in names}
    sides = [
        next((lowered[name] for name in known if name in lowered), None)
        for known in (LATITUDES, LONGITUDES)
    ]
    return [[side for side in sides if side] if all(sides) else [], list(numbers)]


def read_places(features: pa.Table, columns: Sequence[Sequence[str]]) -> Places:
    """Read the columns of :func:`found_columns`.

    Latitudes and longitudes in degrees become points on a sphere; other coordinates are points of a
    plane.
    """
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
    """The share of known values below each value, ties half; NaN stays NaN.

    >>> ranked(np.array([5.0, np.nan, 1.0, 5.0])).tolist()
    [0.6666666666666666, nan, 0.16666666666666666, 0.6666666666666666]
    """
    known = np.sort(values_N[~np.isnan(values_N)])
    below_N, upto_N = (np.searchsorted(known, values_N, side=side) for side in ("left", "right"))
    return np.where(np.isnan(values_N), np.nan, (below_N + upto_N) / 2 / max(len(known), 1))
