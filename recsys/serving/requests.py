"""Requests and answers: what a served model is asked, and what it says.

Why: a malformed request must be refused with the row, the field and the cure, whatever way it came in (Python, a
data frame, JSON over HTTP), so all ways parse here.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Annotated, Any, ClassVar, Final, Literal, TypeVar

import pydantic
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, field_validator, model_validator

from recsys.errors import RequestError, choices
from recsys.retrieval.rules import MAX_K as MAX_K
from recsys.retrieval.rules import Boost, Diversify, Explained, Id, Rules
from recsys.values.moment import moment

MAX_HISTORY: Final = 10_000
MAX_FRIENDS: Final = 10_000
SUBJECTS: Final = ("user_id", "history", "friends", "attributes")  # a request needs at least one of them
MAX_HORIZON: Final = 10
_LISTS: Final = ("history", "friends", "candidates", "exclude", "boost")
_WHOLE: Final = ("k", "horizon", "offset")
SIMILAR_TO: Final = "item_id"  # the field by which a row asks for similar items
_EXPLAINED: Final = 300  # events' worth of reading that an explanation costs


R = TypeVar("R", bound=BaseModel)


def seconds(time: datetime | None) -> int:
    """Whole seconds since the epoch of a time; 0 without one."""
    return 0 if time is None else math.floor(time.timestamp())


class HistoryEvent(BaseModel):
    """One event of a request's history. The time has any form that sources may have (UTC unless it says)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    item_id: Id
    event_type: Id | None = None
    timestamp: datetime | None = None
    context: dict[str, Any] | None = None  # context column → value; the recommender, which knows the columns, checks

    @field_validator("timestamp", mode="before")
    @classmethod
    def _is_a_time(cls, value: Any) -> Any:
        return moment(value)

    @property
    def seconds(self) -> int:
        """Seconds since the epoch; 0 where the time is unknown."""
        return seconds(self.timestamp)


class Request(Explained):
    """A question "what next?" for a known user, for a history (oldest first), or for a known user with newer events.

    ``friends`` are user ids: those the model knows take the place of a known user's friendships, and are all there is
    of a newcomer's. ``attributes`` win over those known of the user; null is not given. ``exclude_seen`` says whether
    what the user had is left out; null: as the model was evaluated. ``context`` is that of the moment of asking, and
    ``at`` is its time, in any form that times of events have; without it the question is asked now. ``horizon`` 1 asks
    for the next item, 2 for the one after it, … The rules of the list are in :class:`~recsys.retrieval.rules.Rules`;
    with ``explain`` the answer says why each item is in it.
    """

    user_id: Id | None = None
    history: Annotated[list[HistoryEvent], Field(max_length=MAX_HISTORY)] | None = None
    friends: Annotated[list[Id], Field(max_length=MAX_FRIENDS)] | None = None
    attributes: dict[Id, Any] | None = None  # field → value or list; the recommender knows the fields
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
        """When it is asked, in seconds since the epoch; 0 where it does not say."""
        return seconds(self.at)

    @property
    def num_read(self) -> int:
        """Events and friends that are read to answer it."""
        return len(self.history or ()) + len(self.friends or ()) + self.explain * _EXPLAINED

    @field_validator("history", mode="before")
    @classmethod
    def _ids_are_events(cls, value: Any) -> Any:
        if not isinstance(value, (list, tuple)):
            return value
        return [{"item_id": event} if isinstance(event, str) else event for event in value]

    @model_validator(mode="after")
    def _says_about_whom(self) -> Request:
        if all(getattr(self, name) is None for name in SUBJECTS):
            raise ValueError(
                "needs user_id, or history (a list of item ids, oldest first), or friends (a list of user ids), "
                "or attributes, or more"
            )
        return self


class SimilarRequest(Rules):
    """A question "what is like this item?", with the rules of the list.

    ``by``: vectors (cosines of the model's item vectors), use (who had the one had the other), text (cosines of the
    items' texts); auto: vectors, and text for an item without events, of which vectors know nothing.
    """

    item_id: Id
    by: Literal["auto", "vectors", "use", "text"] = "auto"

    num_read: ClassVar[int] = 0


AnyRequest = Request | SimilarRequest


@dataclass(frozen=True)
class Answer:
    """Recommendations, best first.

    ``shares[granularity][i]`` is λ_k z_k · a_i: what it adds to ``scores[i]``, which is their exact sum. Granularities
    without a weight, which the model has dropped, are not named.
    ``source`` is "popularity" when nothing of the user was known to go by: whoever asks at that moment gets this list.
    Where the model has a member for popularity, it is that member's, with its shares; otherwise scores are training
    interactions and ``shares`` is empty. Lists are shorter than k when fewer items can be recommended.

    :meth:`to_dict` leaves out what was not asked for: ``boosts`` holds the factor of every item, 1 where it was not
    changed, and ``shares["boost"]`` what that adds to its score; ``explanations`` says of every item why it is there;
    ``unknown_in_rules`` names ids in rules that the model does not know, skipped.

    A server adds ``propensities`` where it explores (the probability of every item at its place), ``version`` and
    ``side`` where two versions answer, and ``answer_id`` where it logs what it answers.
    """

    user_id: str | None
    item_ids: list[str]
    titles: list[str]
    scores: list[float]
    shares: dict[str, list[float]]
    source: Literal["model", "popularity"]
    unknown_items: list[str]  # items of the request's history that the model does not know, skipped
    unknown_friends: list[str]  # friends of the request that the model does not know, skipped
    boosts: list[float] | None = None
    explanations: list[dict[str, Any]] | None = None
    unknown_in_rules: dict[str, list[str]] | None = None
    propensities: list[float] | None = None
    version: str | None = None
    side: str | None = None
    answer_id: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the lists are the answer's own."""
        return _said(self)


@dataclass(frozen=True)
class SimilarAnswer:
    """Items like an item, the most alike first; ``by`` says how they were found, ``why`` why so where auto chose."""

    item_id: str
    by: Literal["vectors", "use", "text"]
    why: str
    item_ids: list[str]
    titles: list[str]
    scores: list[float]
    boosts: list[float] | None = None
    unknown_in_rules: dict[str, list[str]] | None = None

    source: ClassVar[str] = "similar"  # of counts

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the lists are the answer's own."""
        return _said(self)


AnyAnswer = Answer | SimilarAnswer


def _said(answer: Any) -> dict[str, Any]:
    """What an answer says: its fields, without those that were not asked for."""
    optional = {entry.name for entry in fields(answer) if entry.default is None}
    named = {entry.name: getattr(answer, entry.name) for entry in fields(answer)}
    return {name: value for name, value in named.items() if value is not None or name not in optional}


def parse_requests(rows: Iterable[Any], first: int = 0) -> list[Request]:
    """Check plain dictionaries into requests; ``first`` is the number of the first row.

    Raises
    ------
    RequestError
        names the first bad row (counted from 0) and its bad fields.
    """
    return [_parsed(Request, row, f"request {index}", one_of(SUBJECTS)) for index, row in enumerate(rows, start=first)]


def parse_similar(rows: Iterable[Any], first: int = 0) -> list[SimilarRequest]:
    """As :func:`parse_requests`, of questions for similar items."""
    return [_parsed(SimilarRequest, row, f"request {index}", SIMILAR_TO) for index, row in enumerate(rows, start=first)]


def parse_any(rows: Iterable[Any], first: int = 0) -> list[AnyRequest]:
    """As :func:`parse_requests`; a row with the field ``item_id`` asks for similar items."""
    found: list[AnyRequest] = []
    for index, row in enumerate(rows, start=first):
        is_similar = isinstance(row, SimilarRequest) or (isinstance(row, Mapping) and SIMILAR_TO in row)
        found += parse_similar([row], index) if is_similar else parse_requests([row], index)
    return found


def rules_of(content: Mapping[str, Any], where: str) -> Explained:
    """Rules by themselves.

    Raises
    ------
    RequestError
        names the bad fields.
    """
    return _parsed(Explained, dict(content), where, "rules")


def parse_rules(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Rules that a configuration gives, for requests that do not say; checked.

    Raises
    ------
    RequestError
        names the bad fields.
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
        raise RequestError(f"{where}: " + "; ".join(_explain(e, kind) for e in error.errors())) from None
    except RecursionError:
        raise RequestError(f"{where}: nested too deeply") from None


def rows_of_columns(given: Mapping[str, Any], what: str) -> list[dict[str, Any]]:
    """Requests of an object that holds columns (a list of cells a field), or the one request that the object is.

    It is one request where a field is no list, and where ``history``, ``friends`` or another field of lists is a list
    of ids or objects: the cells of such a column would be lists themselves.

    Raises
    ------
    RequestError
        the columns differ in length.

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
        raise RequestError(f"{what}: the columns differ in length")
    return [dict(zip(given, row, strict=True)) for row in zip(*given.values(), strict=True)]


def filled(rows: Iterable[Any], defaults: Mapping[str, Any]) -> list[Any]:
    """Rows without empty cells, the defaults where they do not say; whole numbers that a data frame made floats. A row
    that asks for similar items takes the default ``k`` alone.

    >>> filled([{"user_id": "u", "history": None, "k": 5.0}], {"k": 3, "exclude_seen": False})
    [{'k': 5, 'exclude_seen': False, 'user_id': 'u'}]
    """
    found: list[Any] = []
    for row in rows:
        if isinstance(row, Mapping):
            is_similar = row.get(SIMILAR_TO) is not None
            mine = {name: value for name, value in defaults.items() if name == "k" or not is_similar}
            row = {**mine, **{str(name): value for name, value in row.items() if value is not None}}
            row |= {name: _whole(row[name]) for name in _WHOLE if name in row}
        found.append(row)
    return found


def _whole(number: Any) -> Any:
    return int(number) if isinstance(number, float) and number.is_integer() else number


def one_of(names: Sequence[str]) -> str:
    """
    >>> one_of(["user_id", "history", "friends"])
    'user_id, history or friends'
    """
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _explain(error: Any, asked: type[BaseModel]) -> str:
    path = ""
    for part in error["loc"]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    kind, got = error["type"], _short(error["input"])
    if kind == "extra_forbidden":
        inner = next((model for start, model in _INNER.items() if path.startswith(start) and path != start), asked)
        return f"{path}: unknown field; there are: {choices(inner.model_fields)}"
    if kind in ("model_type", "model_attributes_type") and path.startswith("history"):
        return (
            f"{path}: got {got}, expected an item id (string) or an object with {', '.join(HistoryEvent.model_fields)}"
        )
    if kind in ("model_type", "model_attributes_type") and path.startswith(tuple(_INNER)):
        inner = next(model for start, model in _INNER.items() if path.startswith(start))
        return f"{path}: got {got}, expected an object with {', '.join(inner.model_fields)}"
    if kind == "string_type":
        return f"{path}: got {got}, expected a string (ids are text: put numbers in quotes)"
    if kind == "dict_type" and path.endswith("context"):
        return f"{path}: got {got}, expected an object of context column → value"
    if kind == "missing":
        return f"{path}: missing"
    message = error["msg"].removeprefix("Value error, ")
    if not path:
        return str(message)
    return f"{path}: got {got}; {message[0].lower()}{message[1:]}"


_INNER: Final[dict[str, type[BaseModel]]] = {"history": HistoryEvent, "boost": Boost, "diversify": Diversify}


class _Shortened(reprlib.Repr):
    """The beginning of a value, however large or deep it is."""

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
    except ValueError:  # a whole number of thousands of digits
        text = f"a value ({kind}) of thousands of digits"
    return text if len(text) <= 80 else text[:77] + "…"
