"""Rules of a request: allowed items, boosts, diversity, and the page.

Why one class: recommendations and similar items accept the same rules in every way of serving, so
they are parsed and checked here once. :mod:`recsys.retrieval.selection` applies them to a
catalogue.
"""

from __future__ import annotations

import json
from functools import cached_property
from typing import Annotated, Any, Final

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    field_validator,
    model_validator,
)

from recsys.retrieval.conditions import Condition, key_of, parse_filters

MAX_K: Final = 1000
MAX_OFFSET: Final = 9000
MAX_NAMED: Final = 100_000  # item ids in one list of a rule
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
    """A factor for listed items or for items that match a filter; above 1 raises, below 1 lowers
    them.

    An item with the factor f gets the score s + ln(f) · σ, where σ is the standard deviation of the
    user's scores over the catalogue. So a factor above 1 raises an item whatever the sign of its
    score, and two factors of one item multiply.
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
            raise ValueError("expected factor together with either items or filters")
        return self

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """The parsed conditions of ``filters``."""
        return parse_filters(self.filters or {})


class Diversify(BaseModel):
    """The diversity of a list: by item vectors, by an attribute, or both.

    ``strength`` s orders the best ``pool`` items by maximal marginal relevance (Carbonell and
    Goldstein 1998): (1 − s) · score − s · the largest cosine to an item already in the list. With
    ``attribute`` and ``most``, a page of k items has at most ``most`` items of one category; other
    items move to the next page.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    strength: Annotated[float, Field(ge=0, le=1, strict=True, allow_inf_nan=False)] | None = None
    pool: Annotated[StrictInt, Field(ge=1, le=MAX_POOL)] = DEFAULT_POOL
    attribute: Id | None = None
    most: Annotated[StrictInt, Field(ge=1, le=MAX_K)] | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Diversify:
        if (self.attribute is None) != (self.most is None):
            raise ValueError(
                "attribute and most belong together: a page has at most `most` items with the same"
                " value of `attribute`"
            )
        if self.strength is None and self.attribute is None:
            raise ValueError("needs strength (0 … 1), or attribute and most, or all three")
        return self


class Rules(BaseModel):
    """The rules of a list.

    A list is shorter than ``k`` only where fewer items are allowed. Pages with the offsets 0, k,
    2k, … do not overlap and leave no item out.

    Attributes
    ----------
    k : int
        Items per list, 1 to 1000.
    offset : int
        Rank of the first item, from 0.
    candidates : list of str
        Only these items may be listed.
    exclude : list of str
        These items may not be listed.
    filters : dict
        Conditions on attributes, see :mod:`recsys.retrieval.conditions`.
    boost : Boost or list of Boost
        Factors that raise or lower items.
    diversify : Diversify
        Diversity of the list.
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
                f"offset {self.offset} is not a multiple of k {self.k}; diversify.most counts items"
                " per page, so offset must be 0, k, 2k, …"
            )
        return self

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """The parsed conditions of ``filters``."""
        return parse_filters(self.filters or {})

    @cached_property
    def selection_key(self) -> str:
        """A key of the allowed and boosted items; empty where filters and boosts change nothing."""
        if not (self.filters or self.boost):
            return ""
        boosts = [(one.factor, one.items, one.filters) for one in self.boost or ()]
        return key_of(self.filters) + json.dumps(boosts, sort_keys=True, ensure_ascii=False)

    @property
    def depth(self) -> int:
        """Length of the ranking that the page needs, without the limit per category."""
        pool = (
            self.diversify.pool
            if self.diversify is not None and self.diversify.strength is not None
            else 0
        )
        return max(self.offset + self.k, pool)


class Explained(Rules):
    """The rules of recommendations.

    Attributes
    ----------
    explain : bool
        Whether to explain every item.
    per_user_limit : int
        Largest number of items that a user receives over all pages; null: no limit.
    """

    explain: StrictBool = False
    per_user_limit: Annotated[StrictInt, Field(ge=1, le=MAX_OFFSET + MAX_K)] | None = None

    @property
    def num_allowed(self) -> int:
        """Number of items that the page may have: at most ``k``.

        >>> [Explained(k=10, offset=n, per_user_limit=25).num_allowed for n in (0, 10, 20, 30)]
        [10, 10, 5, 0]
        """
        if self.per_user_limit is None:
            return self.k
        return max(0, min(self.k, self.per_user_limit - self.offset))
