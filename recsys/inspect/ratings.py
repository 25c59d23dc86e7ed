"""Whether the values of events are ratings, and from which value on an event counts."""

from __future__ import annotations

from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from recsys import schema
from recsys.data.histories import Array
from recsys.inspect.columns import Column
from recsys.inspect.common_names import similarity
from recsys.inspect.event_statistics import EventStatistics

_RATINGS: Final = (
    "rating",
    "star",
    "stars",
    "score",
    "overall",
    "rate",
    "grade",
    "preference",
    "feedback",
)
_ABSENT_RATING: Final = 0.2  # share of zeros from which zero means "no rating"


def smallest_value(
    events: pa.Table, statistics: EventStatistics, column: Column | None, has_names: bool
) -> tuple[float | None, str, bool]:
    """Return the smallest value that counts, why, and whether values are ratings.

    Parameters
    ----------
    events : pa.Table
        The valid events.
    statistics : EventStatistics
        Their statistics.
    column : Column | None
        The column of values; None: the file has none.
    has_names : bool
        Whether the file names its columns.
    """
    if column is None or statistics.num_values < 2:
        return None, "", False
    values = events.column(schema.VALUE)
    stepped = bool((pc.multiply(values, 2).to_numpy() % 1 == 0).all())
    is_rating = column.scale is not None or (
        similarity(column.name, _RATINGS) >= 0.8
        if has_names
        else statistics.num_values <= 21 and stepped
    )
    if statistics.negative > 0:
        why = (
            f"{statistics.negative:.1%} of the events have a negative {column.name}: returns,"
            " cancellations or dislikes"
        )
        return (1.0 if column.is_whole else 1e-9), why, is_rating
    if is_rating and statistics.num_values <= 101:
        why, middle = _dislikes(values.to_numpy())
        if why:
            return middle, why, True
    return None, "", is_rating


def _dislikes(values_E: Array) -> tuple[str, float]:
    """Why ratings below the middle of the scale are dislikes, if most are; and the middle."""
    is_absent = (values_E == 0).mean() > _ABSENT_RATING
    rated = values_E[values_E != 0] if is_absent else values_E
    if not len(rated):
        return "", 0.0
    middle = (float(rated.min()) + float(rated.max())) / 2
    share = (rated < middle).mean()
    why = f"{share:.0%} of the ratings are below the middle of the scale: dislikes"
    return (why, middle) if share > 0.5 else ("", middle)
