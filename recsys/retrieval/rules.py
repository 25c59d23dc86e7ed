"""Rules of a request: which items may be listed, which are raised or lowered, how alike they may be, and which page.

Why one class: recommendations and similar items take the same rules in every way of serving, so they are read and
checked here once; :mod:`recsys.retrieval.selection` resolves them against a catalogue.
"""

from __future__ import annotations

import json
from functools import cached_property
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, field_validator, model_validator

from recsys.retrieval.conditions import Condition, key_of, parse_filters

MAX_K: Final = 1000
MAX_OFFSET: Final = 9000
MAX_NAMED: Final = 100_000  # items that a list of a rule names
MAX_BOOSTS: Final = 20
MAX_POOL: Final = 1000
DEFAULT_POOL: Final = 200

Id = Annotated[StrictStr, Field(min_length=1)]
Ids = Annotated[list[Id], Field(max_length=MAX_NAMED)]
Factor = Annotated[float, Field(gt=0, le=1000, strict=True, allow_inf_nan=False)]


def _checked(filters: Any) -> Any:
    if filters is not None:
        parse_filters(filters)
    return filters


class Boost(BaseModel):
    """A factor for items that are named, or that fulfil a filter; above 1 raises them, below 1 lowers them.

    The score of an item with the factor f is s + ln(f) · σ, where σ is the standard deviation of this list's scores
    over the catalogue: the order of scores is never turned round, whatever their sign, and two factors of one item
    multiply.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    factor: Factor
    items: Ids | None = None
    filters: dict[str, Any] | None = None

    @field_validator("filters", mode="before")
    @classmethod
    def _are_conditions(cls, value: Any) -> Any:
        return _checked(value)

    @model_validator(mode="after")
    def _names_items(self) -> Boost:
        if (self.items is None) == (self.filters is None):
            raise ValueError("expected either items or filters beside factor")
        return self

    @property
    def conditions(self) -> tuple[Condition, ...]:
        return parse_filters(self.filters or {})


class Diversify(BaseModel):
    """How alike the items of a list may be: by vectors, by an attribute, or both.

    ``strength`` s orders the best ``pool`` items by maximal marginal relevance (Carbonell and Goldstein 1998),
    (1 − s) · score − s · the largest cosine to an item that is listed already. ``attribute`` and ``most`` let at most
    so many items of a category into a page of k; what is left over moves to the next page.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    strength: Annotated[float, Field(ge=0, le=1, strict=True, allow_inf_nan=False)] | None = None
    pool: Annotated[StrictInt, Field(ge=1, le=MAX_POOL)] = DEFAULT_POOL
    attribute: Id | None = None
    most: Annotated[StrictInt, Field(ge=1, le=MAX_K)] | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Diversify:
        if (self.attribute is None) != (self.most is None):
            raise ValueError("attribute and most belong together: at most so many items of a category")
        if self.strength is None and self.attribute is None:
            raise ValueError("needs strength (0 … 1), or attribute and most, or all three")
        return self


class Rules(BaseModel):
    """What a request may say of its list.

    ``candidates``: only these items. ``exclude``: not these. ``filters``: see :mod:`recsys.retrieval.conditions`.
    ``boost``: one :class:`Boost` or several. ``k`` items from the place ``offset`` on, counted from 0: pages do not
    overlap and leave nothing out. A list is shorter than ``k`` only where no more items are allowed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    k: Annotated[StrictInt, Field(ge=1, le=MAX_K)] = 20
    offset: Annotated[StrictInt, Field(ge=0, le=MAX_OFFSET)] = 0
    candidates: Ids | None = None
    exclude: Ids | None = None
    filters: dict[str, Any] | None = None
    boost: Annotated[list[Boost], Field(max_length=MAX_BOOSTS)] | None = None
    diversify: Diversify | None = None

    @field_validator("filters", mode="before")
    @classmethod
    def _are_conditions(cls, value: Any) -> Any:
        return _checked(value)

    @field_validator("boost", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return [value] if isinstance(value, (dict, Boost)) else value

    @model_validator(mode="after")
    def _pages_are_whole(self) -> Rules:
        capped = self.diversify is not None and self.diversify.most is not None
        if capped and self.offset % self.k:
            raise ValueError(
                f"offset {self.offset} is no multiple of k {self.k}; with diversify.most, which holds page by page, "
                "it must be"
            )
        return self

    @property
    def conditions(self) -> tuple[Condition, ...]:
        return parse_filters(self.filters or {})

    @cached_property
    def selection_key(self) -> str:
        """The same for rules that allow and boost the same items; empty where all are allowed and none is boosted."""
        if not (self.filters or self.boost):
            return ""
        boosts = [(one.factor, one.items, one.filters) for one in self.boost or ()]
        return key_of(self.filters) + json.dumps(boosts, sort_keys=True, ensure_ascii=False)

    @property
    def depth(self) -> int:
        """Places of the ranking that the page needs, before categories are counted."""
        pool = self.diversify.pool if self.diversify is not None and self.diversify.strength is not None else 0
        return max(self.offset + self.k, pool)


class Explained(Rules):
    """Rules of recommendations, which can be explained."""

    explain: StrictBool = False
