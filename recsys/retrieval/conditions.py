"""Filters of a request: conditions on attributes of items, as they are written; what they mean is the catalogue's.

A filter is an object of attribute → condition, all of which must hold:

    {"category": "books", "price": {"lt": 20}, "tags": ["new", "sale"], "path": {"under": "Home > Kitchen"}}

A value is short for ``eq``, a list of values for ``in``. An item whose attribute is missing fulfils no condition but
``ne``, ``not_in`` and ``{"known": false}``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from recsys.errors import choices

OPERATORS: Final = {
    "eq": "equal; of a list: it holds the value",
    "ne": "not equal; of a list: it does not hold the value",
    "in": "one of these values; of a list: it holds one of them",
    "not_in": "none of these values",
    "all": "of a list: it holds all of these values",
    "under": "a path of categories begins so: a text such as 'Home > Kitchen', or a list of its parts",
    "lt": "less than (numbers, times)",
    "le": "at most",
    "gt": "greater than",
    "ge": "at least",
    "known": "true: the attribute is there; false: it is missing",
}
BOUNDS: Final = ("lt", "le", "gt", "ge")
MAX_CONDITIONS: Final = 50
MAX_VALUES: Final = 10_000
_OF_LISTS: Final = ("in", "not_in", "all")
_ALIASES: Final = {"eq": "in", "ne": "not_in"}

Value = str | int | float | bool


@dataclass(frozen=True)
class Condition:
    """One condition; ``operator`` is one of :data:`OPERATORS` but eq and ne, which are in and not_in of one value."""

    attribute: str
    operator: str
    values: tuple[Value, ...]
    where: str  # in the filter: ``price.lt``


def parse_filters(filters: Any) -> tuple[Condition, ...]:
    """The conditions of a filter.

    Raises
    ------
    ValueError
        names the attribute, what was got and what was expected.

    >>> [(c.attribute, c.operator, c.values) for c in parse_filters({"price": {"ge": 5, "lt": 20}, "kind": "a"})]
    [('price', 'ge', (5,)), ('price', 'lt', (20,)), ('kind', 'in', ('a',))]
    """
    if not isinstance(filters, Mapping):
        raise ValueError("expected an object of attribute → condition")
    found = [condition for name, asked in filters.items() for condition in _conditions(str(name), asked)]
    if len(found) > MAX_CONDITIONS:
        raise ValueError(f"has {len(found)} conditions, expected at most {MAX_CONDITIONS}")
    return tuple(found)


def key_of(filters: Any) -> str:
    """A text that is the same for filters that are the same."""
    return json.dumps(filters, sort_keys=True, ensure_ascii=False, default=str)


def _conditions(name: str, asked: Any) -> Iterator[Condition]:
    if not isinstance(asked, Mapping):
        yield Condition(name, "in", _values(asked if isinstance(asked, (list, tuple)) else [asked], name), name)
        return
    if not asked:
        raise ValueError(f"{name}: expected a value, a list of values, or an object of {choices(OPERATORS)}")
    for operator, operand in asked.items():
        where = f"{name}.{operator}"
        if operator not in OPERATORS:
            raise ValueError(f"{where}: unknown operator; there are: {choices(OPERATORS)}")
        if operator == "known":
            if not isinstance(operand, bool):
                raise ValueError(f"{where}: expected true or false, got {_short(operand)}")
            values: tuple[Value, ...] = (operand,)
        elif operator in _OF_LISTS or (operator == "under" and isinstance(operand, (list, tuple))):
            if not isinstance(operand, (list, tuple)):
                raise ValueError(f"{where}: expected a list of values, got {_short(operand)}")
            values = _values(operand, where)
        else:
            values = _values([operand], where)
        if operator == "under" and not all(isinstance(value, str) for value in values):
            raise ValueError(f"{where}: expected a text or a list of texts, got {_short(operand)}")
        yield Condition(name, _ALIASES.get(str(operator), str(operator)), values, where)


def _values(operands: Any, where: str) -> tuple[Value, ...]:
    if not operands or len(operands) > MAX_VALUES:
        raise ValueError(f"{where}: has {len(operands)} values, expected 1 to {MAX_VALUES:,}")
    for value in operands:
        is_finite = not isinstance(value, float) or math.isfinite(value)
        if value is None or not isinstance(value, (str, int, float)) or not is_finite:
            hint = ' (for a missing attribute: {"known": false})' if value is None else ""
            raise ValueError(f"{where}: expected a text, a number or true/false, got {_short(value)}{hint}")
    return tuple(operands)


def _short(value: Any) -> str:
    text = f"{value!r:.60} ({type(value).__name__})" if not isinstance(value, int) else f"a number, {str(value)[:40]}"
    return "null" if value is None else text
