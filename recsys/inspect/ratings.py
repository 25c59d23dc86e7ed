"""Whether the values of events are ratings, which number means no grade, and from which value on an
event counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from recsys import schema
from recsys.inspect.columns import Column
from recsys.inspect.common_names import similarity
from recsys.inspect.event_statistics import EventStatistics
from recsys.inspect.interest_flags import tells_interest, tells_likes
from recsys.inspect.scales import MOST_GRADES, median
from recsys.sources.validate import CellRules
from recsys.values.cells import graded

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
    if statistics.num_values == 2 and (tells_interest(column) or tells_likes(column)):
        return statistics.high, f"the lower value of {column.name} is no interest", True
    if is_rating and statistics.num_values <= 101:
        grades = _counted(column)
        code = _code(column, grades)
        known = {grade: count for grade, (_, count) in grades.items() if grade != code}
        if (why := _dislikes(known)) and not _leaves_out_a_type(events, _middle(known)):
            return _middle(known), why, True
    return None, "", is_rating


def code_of_no_grade(column: Column | None, has_names: bool) -> tuple[dict[str, float], str]:
    """The number that means no grade, as in the files, with the median grade, and why; empty if
    there is none.

    -1 is such a number, and so is 0 if it is frequent, or more frequent than 1 of 5. An empty cell
    is one if most grades are dislikes, which do not count: it would be a dislike too.

    Parameters
    ----------
    column : Column | None
        The column of values; None: the file has none.
    has_names : bool
        Whether the file names its columns.
    """
    if column is None or column.num_distinct > MOST_GRADES:
        return {}, ""
    if column.scale is None and has_names and similarity(column.name, _RATINGS) < 0.8:
        return {}, ""
    grades = _counted(column)
    code = _code(column, grades)
    found, whys = dict[str, float](), list[str]()
    known = {grade: count for grade, (_, count) in grades.items() if grade != code}
    if not known:
        return {}, ""
    # a median below the middle would be left out with the dislikes
    usual = max(median(known), _middle(known)) if _dislikes(known) else median(known)
    if code is not None:
        cell, count = grades[code]
        found[cell] = usual
        whys.append(f"{code:g} in {count / column.num_values:.0%} of the rows means no grade")
    if column.filled < 1 and _dislikes(known) and min(known) >= 0:
        found[""] = usual
        whys.append(f"{1 - column.filled:.0%} of the rows have no grade")
    counts_as = "the median" if usual == median(known) else "the middle of the scale"
    return found, f"{'; '.join(whys)}; such events count as {counts_as}" if found else ""


def _counted(column: Column) -> dict[float, tuple[str, int]]:
    """Grade → one of its cells, and the number of its rows."""
    counted = pc.value_counts(column.values.drop_null())
    texts = column.scale.grades if column.scale is not None else {}
    rules = CellRules(
        decimal="," if column.decimal_comma else ".",
        values=tuple((text.lower(), grade) for text, grade in texts.items()),
    )
    grades = graded(counted.field(0), rules)[0].to_pylist()
    found: dict[float, tuple[str, int]] = {}
    for grade, cell in zip(grades, counted.to_pylist(), strict=True):
        # null: one of the few cells that are no number, such as a header inside the file
        if grade is not None:
            found[grade] = cell["values"], cell["counts"] + found.get(grade, ("", 0))[1]
    return found


def _code(column: Column, grades: Mapping[float, tuple[str, int]]) -> float | None:
    """The number that means no grade; None if there is none."""
    if column.scale is not None or column.num_distinct > _MOST_GRADES:
        return None
    code, *above = sorted(grades) or [0.0]
    if code not in (-1, 0) or len(above) < 2 or max(above) < _LEAST_HIGH:
        return None
    share = grades[code][1] / column.num_values
    is_zero_odd = max(above) <= _STARS and min(above) == 1 and grades[code][1] > grades[1][1]
    return None if code == 0 and share <= _ABSENT_RATING and not is_zero_odd else code


def _dislikes(counts: Mapping[float, int]) -> str:
    """Why ratings below the middle of the scale are dislikes, if most are; else empty.

    Parameters
    ----------
    counts : Mapping[float, int]
        Grade → number of ratings; events without a rating are not among them.
    """
    if not counts:
        return ""
    lower = sum(count for grade, count in counts.items() if grade < _middle(counts))
    share = lower / sum(counts.values())
    return (
        f"{share:.0%} of the ratings are below the middle of the scale: dislikes"
        if share > 0.5
        else ""
    )


def _middle(counts: Mapping[float, int]) -> float:
    return (min(counts) + max(counts)) / 2


def _leaves_out_a_type(events: pa.Table, least: float) -> bool:
    """Whether an event type has no value of at least ``least``, such as the 1 of each purchase next
    to the hours of play: its values are no ratings.
    """
    columns = {"type": events.column(schema.EVENT_TYPE), "value": events.column(schema.VALUE)}
    highest = pa.table(columns).group_by("type").aggregate([("value", "max")])
    return bool(pc.any(pc.less(highest.column("value_max"), least)).as_py())
