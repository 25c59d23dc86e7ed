"""Whether the values of events are ratings, which number means no grade, and from which value on an
event counts.
"""

from __future__ import annotations

from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from recsys import schema
from recsys.data.histories import Array
from recsys.inspect.columns import Column
from recsys.inspect.common_names import similarity
from recsys.inspect.event_statistics import EventStatistics
from recsys.inspect.scales import median
from recsys.sources.validate import CellRules, numbers

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
_MOST_GRADES: Final = 21
_LEAST_HIGH: Final = 3  # highest grade from which -1 and 0 may be no grades
_STARS: Final = 5


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
        if why and not _leaves_out_a_type(events, middle):
            return middle, why, True
    return None, "", is_rating


def code_of_no_grade(column: Column | None, has_names: bool) -> tuple[dict[str, float], str]:
    """The number that means no grade, as in the files, with the median grade, and why; empty if
    there is none.

    -1 is such a number, and so is 0 if it is frequent, or more frequent than 1 of 5.

    Parameters
    ----------
    column : Column | None
        The column of values; None: the file has none.
    has_names : bool
        Whether the file names its columns.
    """
    if column is None or column.scale is not None or column.num_distinct > _MOST_GRADES:
        return {}, ""
    if has_names and similarity(column.name, _RATINGS) < 0.8:
        return {}, ""
    counted = pc.value_counts(column.values.drop_null())
    rules = CellRules(decimal="," if column.decimal_comma else ".")
    # null: one of the few cells that are no number, such as a header inside the file
    values = numbers(counted.field(0), rules)[0].to_pylist()
    cells = zip(values, counted.to_pylist(), strict=True)
    grades = {value: (cell["values"], cell["counts"]) for value, cell in cells if value is not None}
    code, *above = sorted(grades) or [0.0]
    if code not in (-1, 0) or len(above) < 2 or max(above) < _LEAST_HIGH:
        return {}, ""
    share = grades[code][1] / column.num_values
    is_zero_odd = max(above) <= _STARS and min(above) == 1 and grades[code][1] > grades[1][1]
    if code == 0 and share <= _ABSENT_RATING and not is_zero_odd:
        return {}, ""
    usual = median({grade: grades[grade][1] for grade in above})
    why = f"{code:g} in {share:.0%} of the rows means no grade; such events count as the median"
    return {grades[code][0]: usual}, why


def _dislikes(values_E: Array) -> tuple[str, float]:
    """Why ratings below the middle of the scale are dislikes, if most are; and the middle."""
    middle = (float(values_E.min()) + float(values_E.max())) / 2
    share = (values_E < middle).mean()
    why = f"{share:.0%} of the ratings are below the middle of the scale: dislikes"
    return (why, middle) if share > 0.5 else ("", middle)


def _leaves_out_a_type(events: pa.Table, least: float) -> bool:
    """Whether an event type has no value of at least ``least``, such as the 1 of each purchase next
    to the hours of play: its values are no ratings.
    """
    columns = {"type": events.column(schema.EVENT_TYPE), "value": events.column(schema.VALUE)}
    highest = pa.table(columns).group_by("type").aggregate([("value", "max")])
    return bool(pc.any(pc.less(highest.column("value_max"), least)).as_py())
