"""What a served model knows about requests: attributes, context columns and event types.

Why: the description of the server for programs (:mod:`recsys.serving.openapi`) names them, so that
a caller need not find out by refused calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from recsys.granularities.profile.attribute_encoding import encoding_of
from recsys.retrieval.item_attributes import Column, Numbers

if TYPE_CHECKING:  # imports torch
    from recsys.bundle.layout import Bundle

Kind = Literal["number", "time", "category", "list", "mixed"]
_NUM_EXAMPLES: Final = 3


@dataclass(frozen=True)
class Attribute:
    """An attribute or context column.

    ``examples`` are the least and the largest value of numbers and times, and some categories of
    the others. ``kind`` is "mixed" where the two models of an A/B test differ.
    """

    kind: Kind
    examples: tuple[Any, ...] = ()


@dataclass(frozen=True)
class ModelTraits:
    """What one model knows, or what the two models of an A/B test know together."""

    item_ids: tuple[str, ...]  # of the most popular items, for examples
    titles: tuple[str, ...]
    item_attributes: Mapping[str, Attribute] = field(default_factory=dict)
    user_attributes: Mapping[str, Attribute] = field(default_factory=dict)  # without values
    context: Mapping[str, Attribute] = field(default_factory=dict)
    event_types: tuple[str, ...] = ()
    exclude_seen: bool = True

    def merged(self, other: ModelTraits) -> ModelTraits:
        """What either of two models knows; everything else is that of this model."""
        return ModelTraits(
            self.item_ids,
            self.titles,
            _union(self.item_attributes, other.item_attributes),
            _union(self.user_attributes, other.user_attributes),
            _union(self.context, other.context),
            tuple(dict.fromkeys((*self.event_types, *other.event_types))),
            self.exclude_seen,
        )


def traits_of(bundle: Bundle) -> ModelTraits:
    """What the model of a bundle knows."""
    popular = np.argsort(-bundle.popularity_N, kind="stable")[:_NUM_EXAMPLES].tolist()
    columns = {} if bundle.attributes is None else bundle.attributes.columns
    profile = encoding_of(bundle.model.sizes)
    return ModelTraits(
        tuple(bundle.item_ids[row] for row in popular),
        tuple(bundle.titles[row] for row in popular),
        {name: attribute_of(column) for name, column in columns.items()},
        {one.name: Attribute(one.kind) for one in (profile.users if profile else ())},
        {
            one.name: Attribute("number")
            if one.values is None
            else Attribute("category", one.values[:_NUM_EXAMPLES])
            for one in bundle.context
        },
        tuple(bundle.info.event_types),
        bundle.exclude_seen,
    )


def attribute_of(column: Column) -> Attribute:
    """What a column of items holds."""
    if not isinstance(column, Numbers):
        kind: Kind = "category" if column.starts_N1 is None else "list"
        names = [name for name in column.names[: 2 * _NUM_EXAMPLES] if name]
        return Attribute(kind, tuple(names[:_NUM_EXAMPLES]))
    known = column.values_N[np.isfinite(column.values_N)]
    ends = [float(known.min()), float(known.max())] if len(known) else []
    if not column.is_time:
        return Attribute("number", tuple(ends))
    return Attribute("time", tuple(_iso(end) for end in ends))


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _union(one: Mapping[str, Attribute], other: Mapping[str, Attribute]) -> dict[str, Attribute]:
    """The attributes of both; "mixed" where they differ in kind.

    >>> _union({"a": Attribute("number")}, {"a": Attribute("list"), "b": Attribute("time")})
    {'a': Attribute(kind='mixed', examples=()), 'b': Attribute(kind='time', examples=())}
    """
    found = {**other, **one}
    for name in one.keys() & other.keys():
        if one[name].kind != other[name].kind:
            found[name] = Attribute("mixed")
    return found
