"""Requests to a served model, and its answers.

Why: a malformed request must be refused with the row, the field and the fix, whichever way it
arrives (Python, a data frame, JSON over HTTP), so all ways parse here.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Annotated, Any, ClassVar, Final, Literal, TypeVar

import pydantic
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    field_validator,
    model_validator,
)

from recsys.errors import RequestError, choices
from recsys.retrieval.rules import MAX_K as MAX_K
from recsys.retrieval.rules import Boost, Diversify, Explained, Id, Rules
from recsys.values.moment import moment

MAX_HISTORY: Final = 10_000
MAX_FRIENDS: Final = 10_000
# a request needs at least one of them
SUBJECTS: Final = ("user_id", "history", "friends", "attributes")
MAX_HORIZON: Final = 10
_LISTS: Final = ("history", "friends", "candidates", "exclude", "boost")
_WHOLE: Final = ("k", "horizon", "offset")
SIMILAR_TO: Final = "item_id"  # the field by which a row asks for similar items
_EXPLAINED: Final = 300  # cost of an explanation, in events that are read


R = TypeVar("R", bound=BaseModel)


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
    position), ``version`` and ``side`` in an A/B test, and ``answer_id`` where it logs answers.
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


def parse_requests(rows: Iterable[Any], first: int = 0) -> list[Request]:
    """Check plain dictionaries and turn them into requests; ``first`` is the number of the first
    row.

    Raises
    ------
    RequestError
        A row is malformed; names the first such row (counted from 0) and its wrong fields.
    """
    return [
        _parsed(Request, row, f"request {index}", one_of(SUBJECTS))
        for index, row in enumerate(rows, start=first)
    ]


def parse_similar(rows: Iterable[Any], first: int = 0) -> list[SimilarRequest]:
    """As :func:`parse_requests`, for requests for similar items."""
    return [
        _parsed(SimilarRequest, row, f"request {index}", SIMILAR_TO)
        for index, row in enumerate(rows, start=first)
    ]


def parse_any(rows: Iterable[Any], first: int = 0) -> list[AnyRequest]:
    """As :func:`parse_requests`, for both kinds; a row with the field ``item_id`` asks for similar
    items.
    """
    found: list[AnyRequest] = []
    for index, row in enumerate(rows, start=first):
        is_similar = isinstance(row, SimilarRequest) or (
            isinstance(row, Mapping) and SIMILAR_TO in row
        )
        found += parse_similar([row], index) if is_similar else parse_requests([row], index)
    return found


def rules_of(content: Mapping[str, Any], where: str) -> Explained:
    """Parse the rules of a request without its other fields.

    Raises
    ------
    RequestError
        Names the wrong fields.
    """
    return _parsed(Explained, dict(content), where, "rules")


def parse_rules(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Check the rules of a configuration, which apply to requests that do not set them.

    Raises
    ------
    RequestError
        Names the wrong fields.
    """
    rules_of(content, where)
    return dict(content)


def _parsed(kind: type[R], row: Any, where: str, expected: str) -> R:
    if isinstance(row, kind):
        return row
    if not isinstance(row, Mapping):
        raise RequestError(f"{where}: expected an object with {expected}, got {_short(row)}")
    try:
        return kind.model_validate(dict(row))
    except pydantic.ValidationError as error:
        raise RequestError(
            f"{where}: " + "; ".join(_message(e, kind) for e in error.errors())
        ) from None
    except RecursionError:
        raise RequestError(f"{where}: nested too deeply") from None


def rows_of_columns(given: Mapping[str, Any], what: str) -> list[dict[str, Any]]:
    """Requests from an object that holds columns (per field a list of cells), or that is one
    request itself.

    The object is one request where any field is not a list, or where ``history``, ``friends`` or
    another list field holds ids or objects: as a column its cells would be lists.

    Raises
    ------
    RequestError
        The columns differ in length.

    >>> rows_of_columns({"user_id": ["a", "b"], "k": [1, 2]}, "inputs")
    [{'user_id': 'a', 'k': 1}, {'user_id': 'b', 'k': 2}]
    >>> rows_of_columns({"history": ["a", "b"]}, "inputs")
    [{'history': ['a', 'b']}]
    """
    is_one = any(not isinstance(column, list) for column in given.values()) or any(
        isinstance(cell, (str, Mapping)) for name in _LISTS for cell in given.get(name, ())
    )
    if is_one or not given:
        return [dict(given)]
    if len({len(column) for column in given.values()}) != 1:
        raise RequestError(
            f"{what}: the columns differ in length; give one cell per request in every column"
        )
    return [dict(zip(given, row, strict=True)) for row in zip(*given.values(), strict=True)]


def filled(rows: Iterable[Any], defaults: Mapping[str, Any]) -> list[Any]:
    """Rows without empty cells and with default values.

    Whole numbers that a data frame turned into floats become integers again. A row that asks for
    similar items takes only the default ``k``.

    >>> filled([{"user_id": "u", "history": None, "k": 5.0}], {"k": 3, "exclude_seen": False})
    [{'k': 5, 'exclude_seen': False, 'user_id': 'u'}]
    """
    found: list[Any] = []
    for row in rows:
        if isinstance(row, Mapping):
            is_similar = row.get(SIMILAR_TO) is not None
            mine = {
                name: value for name, value in defaults.items() if name == "k" or not is_similar
            }
            row = {**mine, **{str(name): value for name, value in row.items() if value is not None}}
            row |= {name: _whole(row[name]) for name in _WHOLE if name in row}
        found.append(row)
    return found


def _whole(number: Any) -> Any:
    return int(number) if isinstance(number, float) and number.is_integer() else number


def one_of(names: Sequence[str]) -> str:
    """Names as an English list with "or".

    >>> one_of(["user_id", "history", "friends"])
    'user_id, history or friends'
    """
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _message(error: Any, asked: type[BaseModel]) -> str:
    path = ""
    for part in error["loc"]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    kind, got = error["type"], _short(error["input"])
    if kind == "extra_forbidden":
        inner = next(
            (model for start, model in _INNER.items() if path.startswith(start) and path != start),
            asked,
        )
        return f"{path}: unknown field; expected one of: {choices(inner.model_fields)}"
    if kind in ("model_type", "model_attributes_type") and path.startswith("history"):
        return (
            f"{path}: got {got}, expected an item id (string) or an object with"
            f" {', '.join(HistoryEvent.model_fields)}"
        )
    if kind in ("model_type", "model_attributes_type") and path.startswith(tuple(_INNER)):
        inner = next(model for start, model in _INNER.items() if path.startswith(start))
        return f"{path}: got {got}, expected an object with {', '.join(inner.model_fields)}"
    if kind == "string_type":
        return f"{path}: got {got}, expected a string (ids are strings: put numbers in quotes)"
    if kind == "dict_type" and path.endswith("context"):
        return f"{path}: got {got}, expected an object of context column → value"
    if kind == "missing":
        return f"{path}: missing"
    message = error["msg"].removeprefix("Value error, ")
    if not path:
        return str(message)
    return f"{path}: got {got}; {message[0].lower()}{message[1:]}"


_INNER: Final[dict[str, type[BaseModel]]] = {
    "history": HistoryEvent,
    "boost": Boost,
    "diversify": Diversify,
}


class _Shortened(reprlib.Repr):
    """Shows the beginning of a value of any size or depth."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlist, self.maxdict, self.maxlong, self.maxother = 4, 6, 6, 60, 80

    def repr_str(self, text: str, level: int) -> str:
        return repr(text[:90])


_SHORTENED: Final = _Shortened()


def _short(value: Any) -> str:
    kind = type(value).__name__
    try:
        text = f"{_SHORTENED.repr(value)} ({kind})"
    except ValueError:  # an integer with thousands of digits, which Python refuses to print
        text = f"a value ({kind}) with thousands of digits"
    return text if len(text) <= 80 else text[:77] + "…"
