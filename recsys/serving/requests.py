"""Requests to a served model, and its answers.

Why: a malformed request must be refused with the row, the field and the fix, whichever way it
arrives (Python, a data frame, JSON over HTTP), so all ways parse here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    field_validator,
    model_validator,
)

from recsys.retrieval.rules import MAX_K as MAX_K
from recsys.retrieval.rules import Explained, Id, Rules
from recsys.values.moment import moment

MAX_HISTORY: Final = 10_000
MAX_FRIENDS: Final = 10_000
# a request needs at least one of them
SUBJECTS: Final = ("user_id", "history", "friends", "attributes")
MAX_HORIZON: Final = 10
SIMILAR_TO: Final = "item_id"  # the field by which a row asks for similar items
_EXPLAINED: Final = 300  # cost of an explanation, in events that are read


def seconds(time: datetime | None) -> int:
    """A time in whole seconds since the epoch; 0 for None."""
    return 0 if time is None else math.floor(time.timestamp())


class HistoryEvent(BaseModel):
    """One event of a request's history. The time has any format that sources may use (UTC unless it
    has a zone).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    item_id: Id
    event_type: Id | None = None
    timestamp: datetime | None = None
    context: dict[str, Any] | None = (
        None  # context column → value; checked by the recommender, which knows the columns
    )

    @field_validator("timestamp", mode="before")
    @classmethod
    def _is_a_time(cls, value: Any) -> Any:
        return moment(value)

    @property
    def seconds(self) -> int:
        """Seconds since the epoch; 0 where the time is unknown."""
        return seconds(self.timestamp)


class Request(Explained):
    """A request for recommendations: for a known user, for a history, or for a known user with
    newer events.

    The rules of the list are in :class:`~recsys.retrieval.rules.Rules`; with ``explain`` the answer
    gives a reason for every item. The other fields are all optional, but a request needs at least
    one of the first four.

    Attributes
    ----------
    user_id : str
        Id of a known or new user.
    history : list
        Events, oldest first, at most 10,000: item ids or objects. For a known user they are newer
        than the stored events.
    friends : list of str
        Ids of users, at most 10,000. Those that the model knows replace the stored friends of a
        known user.
    attributes : dict
        Attribute of users → value or list. They replace the stored values; null is the same as a
        missing attribute.
    exclude_seen : bool
        Whether to leave out items that the user already had; null: as the model was evaluated.
    context : dict
        Context column → value at the time of the request.
    horizon : int
        1 predicts the next item, 2 the item after it, and so on up to 10.
    at : datetime
        Time of the request, in any format that times of events may have; null: now.
    """

    user_id: Id | None = None
    history: Annotated[list[HistoryEvent], Field(max_length=MAX_HISTORY)] | None = None
    friends: Annotated[list[Id], Field(max_length=MAX_FRIENDS)] | None = None
    attributes: dict[Id, Any] | None = (
        None  # checked by the recommender, which knows the attributes
    )
    exclude_seen: StrictBool | None = None
    context: dict[str, Any] | None = None
    horizon: Annotated[StrictInt, Field(ge=1, le=MAX_HORIZON)] = 1
    at: datetime | None = None

    @field_validator("at", mode="before")
    @classmethod
    def _is_a_time(cls, value: Any) -> Any:
        return moment(value)

    @property
    def seconds(self) -> int:
        """Time of the request in seconds since the epoch; 0 where it has none."""
        return seconds(self.at)

    @property
    def num_read(self) -> int:
        """Cost of reading: events and friends; an explanation counts as 300 events."""
        return len(self.history or ()) + len(self.friends or ()) + self.explain * _EXPLAINED

    @field_validator("history", mode="before")
    @classmethod
    def _ids_are_events(cls, value: Any) -> Any:
        if not isinstance(value, (list, tuple)):
            return value
        return [{"item_id": event} if isinstance(event, str) else event for event in value]

    @model_validator(mode="after")
    def _names_a_subject(self) -> Request:
        if all(getattr(self, name) is None for name in SUBJECTS):
            raise ValueError(
                "needs at least one of user_id, history (a list of item ids, oldest first), friends"
                " (a list of user ids) and attributes"
            )
        return self


class SimilarRequest(Rules):
    """A request for items similar to an item, with the rules of the list.

    Attributes
    ----------
    item_id : str
        The item.
    by : str
        ``vectors``: cosines of the model's item vectors; ``use``: co-occurrence, users who had
        both items; ``text``: cosines of the items' text vectors; ``auto``: vectors, or text for an
        item without events, whose vector was not trained.
    """

    item_id: Id
    by: Literal["auto", "vectors", "use", "text"] = "auto"

    num_read: ClassVar[int] = 0


AnyRequest = Request | SimilarRequest
Job = list[AnyRequest]  # the requests of one call, or of a slice of it


@dataclass(frozen=True)
class Answer:
    """Recommendations, best first. Lists are shorter than k where fewer items can be recommended.

    ``shares[granularity][i]`` is λ_k z_k · a_i, the contribution of a granularity to ``scores[i]``;
    the score is their exact sum. Granularities that were pruned (weight 0) are not listed.

    ``source`` is "popularity" where nothing is known about the user; every such request at that
    time gets the same list. If the model has a member for popularity, the list and the shares are
    that member's. Otherwise scores are numbers of training interactions and ``shares`` is empty.

    Fields that are None are left out by :meth:`to_dict`. ``boosts`` has the factor of every item (1
    where no boost applies), and ``shares["boost"]`` what the boost adds to the score.
    ``explanations`` has a reason for every item. ``unknown_in_rules`` has the ids in rules that the
    model does not know and that were skipped.

    A server adds ``propensities`` where it explores (the probability of every item at its
    position), ``version`` and ``side`` in an A/B test, ``teams`` (the side that picked each item)
    where it merges two lists, and ``answer_id`` where it logs answers.
    """

    user_id: str | None
    item_ids: list[str]
    titles: list[str]
    scores: list[float]
    shares: dict[str, list[float]]
    source: Literal["model", "popularity"]
    # items of the request's history that the model does not know; they were skipped
    unknown_items: list[str]
    # friends of the request that the model does not know; they were skipped
    unknown_friends: list[str]
    boosts: list[float] | None = None
    explanations: list[dict[str, Any]] | None = None
    unknown_in_rules: dict[str, list[str]] | None = None
    propensities: list[float] | None = None
    version: str | None = None
    side: str | None = None
    teams: list[str] | None = None
    answer_id: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON. The lists are not copied."""
        return _present_fields(self)


@dataclass(frozen=True)
class SimilarAnswer:
    """Items similar to an item, most similar first; ``by`` is the method and ``why`` the reason for
    that method.
    """

    item_id: str
    by: Literal["vectors", "use", "text"]
    why: str
    item_ids: list[str]
    titles: list[str]
    scores: list[float]
    boosts: list[float] | None = None
    unknown_in_rules: dict[str, list[str]] | None = None

    source: ClassVar[str] = "similar"  # label of the metric answers_total

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON. The lists are not copied."""
        return _present_fields(self)


AnyAnswer = Answer | SimilarAnswer


def _present_fields(answer: Any) -> dict[str, Any]:
    """The fields of an answer without optional fields that are None."""
    optional = {entry.name for entry in fields(answer) if entry.default is None}
    named = {entry.name: getattr(answer, entry.name) for entry in fields(answer)}
    return {
        name: value for name, value in named.items() if value is not None or name not in optional
    }
