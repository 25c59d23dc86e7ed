"""Columns of two values that tell what a user wanted: whether an item was clicked, liked or
recommended.

Why: rows of the other value are no interest, and a model that learns from them recommends what
people did not want. As context they would tell the model what it is to predict.
"""

from __future__ import annotations

from typing import Final

from recsys.inspect.columns import Column, bare_tokens, has_known
from recsys.inspect.common_names import (
    ANSWERS,
    CANCELED,
    CLICKED,
    NEGATIVE,
    SPLIT,
    STRONG,
    WEAK,
    similarity,
    singular,
    words_of,
)

YES: Final = ("1", "1.0", "true", "t", "yes", "y")
NO: Final = ("0", "0.0", "-1", "-1.0", "false", "f", "no", "n")
_LIKES: Final = ("like", "liked")
_REACTIONS: Final = ("reorder", "follow", "comment", "forward", "share")


def texts_of(column: Column) -> list[str]:
    """The values of a column of few values, in lower case."""
    return sorted({str(value).strip().lower() for value in bare_tokens(column)})


def is_yes_no(column: Column) -> bool:
    """Whether a column has two values, yes and no; Parquet and JSON have them as numbers, too."""
    if column.kind == "flag":
        return True
    if column.kind != "number" or column.num_distinct != 2:
        return False
    first, second = texts_of(column)
    return first in NO and second in YES or first in YES and second in NO


def tells_clicks(column: Column) -> bool:
    """Whether a column tells the items that the user chose from those that were only shown."""
    words = words_of(column.name)
    is_named = any(word in CLICKED for word in words[-1:]) or words[-2:] == ["not", "skipped"]
    return is_named and is_yes_no(column)


def tells_interest(column: Column) -> bool:
    """Whether a column tells the events that show interest from the others: a click, the label of
    a training file, a recommendation. A like is not meant: few people say so of all that they like.
    """
    return tells_clicks(column) or _last_word(column) in ANSWERS and is_yes_no(column)


def tells_likes(column: Column) -> bool:
    """Whether a column tells what users liked."""
    return _last_word(column) in _LIKES and is_yes_no(column)


def is_outcome(name: str) -> bool:
    """Whether a column's name is that of a result of the event, or of its split: it is unknown when
    lists are requested.

    >>> [is_outcome(name) for name in ("is_booking", "reordered", "eval_set", "order_dow")]
    [True, True, True, False]
    """
    last = (words_of(name) or [""])[-1]
    if singular(last) in (*ANSWERS, *_LIKES, *CLICKED, *CANCELED):
        return True
    return (
        has_known(last, (*STRONG, *WEAK, *NEGATIVE, *_REACTIONS)) or similarity(name, SPLIT) >= 0.8
    )


def _last_word(column: Column) -> str:
    return (words_of(column.name) or [""])[-1]
