"""Parsing of filters: the conditions of a request on attributes of items.

:mod:`recsys.retrieval.item_attributes` evaluates them. A filter is an object of attribute →
condition; all conditions must hold:

    {"category": "books", "price": {"lt": 20}, "tags": ["new", "sale"],
     "path": {"under": "Home > Kitchen"}}

A value is short for ``eq``, a list of values for ``in``. An item without the attribute meets only
the conditions ``ne``, ``not_in`` and ``{"known": false}``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from recsys.errors import choices, valid_instead

OPERATORS: Final = {
    "eq": "equal; for a list: contains the value",
    "ne": "not equal; for a list: does not contain the value",
    "in": "one of these values; for a list: contains at least one of them",
    "not_in": "none of these values",
    "all": "for a list: contains all of these values",
    "under": (
        "a category path begins with this text such as 'Home > Kitchen', or with this list of parts"
    ),
    "lt": "less than (numbers, times)",
    "le": "at most",
    "gt": "greater than",
    "ge": "at least",
    "known": "true: the attribute has a value; false: it is missing",
}
BOUNDS: Final = ("lt", "le", "gt", "ge")
MAX_CONDITIONS: Final = 50
MAX_VALUES: Final = 10_000
OF_LISTS: Final = ("in", "not_in", "all")
_ALIASES: Final = {"eq": "in", "ne": "not_in"}

Value = str | int | float | bool


@dataclass(frozen=True)
class Condition:
    """One condition.

    ``operator`` is one of :data:`OPERATORS` except eq and ne, which become in and not_in with one
    value.
    """

    attribute: str
    operator: str
    values: tuple[Value, ...]
    where: str  # path in the filter, such as ``price.lt``


def parse_filters(filters: Any) -> tuple[Condition, ...]:
    """Parse the conditions of a filter.

    Raises
    ------
    ValueError
        Names the attribute, the wrong value and what was expected.

    Examples
    --------
    >>> conditions = parse_filters({"price": {"ge": 5, "lt": 20}, "kind": "a"})
    >>> [(c.attribute, c.operator, c.values) for c in conditions]
    [('price', 'ge', (5,)), ('price', 'lt', (20,)), ('kind', 'in', ('a',))]
    """
    if not isinstance(filters, Mapping):
        raise ValueError(
            'expected an object of attribute → condition, such as {"price": {"lt": 20}}'
        )
    found = [
        condition for name, given in filters.items() for condition in _conditions(str(name), given)
    ]
    if len(found) > MAX_CONDITIONS:
        raise ValueError(f"has {len(found)} conditions, expected at most {MAX_CONDITIONS}")
    return tuple(found)


def key_of(filters: Any) -> str:
    """A text that is the same for equal filters."""
    return json.dumps(filters, sort_keys=True, ensure_ascii=False, default=str)


def _conditions(name: str, given: Any) -> Iterator[Condition]:
    if not isinstance(given, Mapping):
        yield Condition(
            name, "in", _values(given if isinstance(given, (list, tuple)) else [given], name), name
        )
        return
    if not given:
        raise ValueError(
            f"{name}: expected a value, a list of values, or an object of {choices(OPERATORS)}"
        )
    for operator, operand in given.items():
        where = f"{name}.{operator}"
        if operator not in OPERATORS:
            raise ValueError(f"{where}: unknown operator; {valid_instead(operator, OPERATORS)}")
        if operator == "known":
            if not isinstance(operand, bool):
                raise ValueError(f"{where}: expected true or false, got {_short(operand)}")
            values: tuple[Value, ...] = (operand,)
        elif operator in OF_LISTS or (operator == "under" and isinstance(operand, (list, tuple))):
            if not isinstance(operand, (list, tuple)):
                raise ValueError(f"{where}: expected a list of values, got {_short(operand)}")
            values = _values(operand, where)
        else:
            values = _values([operand], where)
        if operator == "under" and not all(isinstance(value, str) for value in values):
            raise ValueError(
                f"{where}: expected a string or a list of strings, got {_short(operand)}"
            )
        yield Condition(name, _ALIASES.get(str(operator), str(operator)), values, where)


def _values(operands: Any, where: str) -> tuple[Value, ...]:
    if not operands or len(operands) > MAX_VALUES:
        raise ValueError(f"{where}: has {len(operands)} values, expected 1 to {MAX_VALUES:,}")
    for value in operands:
        is_finite = not isinstance(value, float) or math.isfinite(value)
        if value is None or not isinstance(value, (str, int, float)) or not is_finite:
            hint = (
                '; to find items without the attribute, use {"known": false}'
                if value is None
                else ""
            )
            raise ValueError(
                f"{where}: expected a string, a number or true/false, got {_short(value)}{hint}"
            )
    return tuple(operands)


def _short(value: Any) -> str:
    text = (
        f"{value!r:.60} ({type(value).__name__})"
        if not isinstance(value, int)
        else f"a number, {str(value)[:40]}"
    )
    return "null" if value is None else text
