"""A model's answers for the pages: lists with the share of every granularity, and similar items.

Legend: R listed items.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from recsys.errors import RequestError
from recsys.report.chart_geometry import Piece, stacked
from recsys.serving.request_parsing import one_request, parse_requests, parse_similar
from recsys.serving.requests import Answer, SimilarAnswer
from recsys.ui.loaded_models import LoadedModel

NUM_COLOURS: Final = 8
_SHOWN: Final = 12  # number of newest history items on a page


@dataclass(frozen=True)
class Question:
    """The request for a list: a user, a basket, or both."""

    user: str = ""
    items: tuple[str, ...] = ()
    k: int = 10
    with_seen: bool = False  # whether to recommend items again that the user had
    explain: bool = False

    def __bool__(self) -> bool:
        return bool(self.user or self.items)


@dataclass(frozen=True)
class Contribution:
    """One granularity's share of an item."""

    name: str
    colour: int
    value: float  # contribution to the score
    percent: float  # of all positive contributions; 0 if its contribution is negative
    left: float  # left end of the bar, in percent of the track
    width: float


@dataclass(frozen=True)
class Listed:
    """One item of a list."""

    rank: int
    item_id: str
    title: str
    score: float
    contributions: Sequence[Contribution] = ()
    why: str = ""

    @property
    def spoken(self) -> str:
        """The bar as text, for screen readers."""
        shares = [f"{one.name} {one.percent:.0f} %" for one in self.ordered if one.percent >= 1]
        against = [one.name for one in self.ordered if one.value < 0]
        return ", ".join(shares) + (f"; against it: {', '.join(against)}" if against else "")

    def share(self, name: str) -> float:
        """The contribution of a granularity to the score."""
        return next((one.value for one in self.contributions if one.name == name), 0.0)

    @property
    def ordered(self) -> list[Contribution]:
        """The parts of the bar, the largest first."""
        return sorted(self.contributions, key=lambda one: -one.value)


@dataclass(frozen=True)
class List:
    """A list of recommendations as a page shows it."""

    rows: Sequence[Listed]
    legend: Sequence[tuple[str, int, float]]  # granularity, colour, mean percent
    zero: float  # position of zero in all bars, in percent of the track
    history: Sequence[tuple[str, str]]  # item and title, the newest first
    earlier: int
    notes: Sequence[str] = field(default_factory=list)
    is_of_model: bool = True
    asked_at: str = ""


def list_for(opened: LoadedModel, question: Question) -> List:
    """The list that the model recommends.

    Raises
    ------
    RequestError
        The request is invalid; the message says why.
    """
    recommender = opened.recommender
    is_known = bool(question.user) and recommender.user_row(question.user) >= 0
    # at the end of the data, so that the list does not change with the clock
    of_the_past = is_known and not question.items and recommender.newest > 0
    row: dict[str, Any] = {"k": question.k, "explain": question.explain}
    row |= {"user_id": question.user} if question.user else {}
    row |= {"history": list(question.items)} if question.items else {}
    row |= {"exclude_seen": False} if question.with_seen else {}
    row |= (
        {"at": datetime.fromtimestamp(recommender.newest, UTC).isoformat()} if of_the_past else {}
    )
    with one_request():
        requests = parse_requests([row])
        with opened.lock:
            [answer] = recommender.recommend(requests)
            seen_E = recommender.queries(requests).histories.items_E
    newest = [opened.bundle.item_ids[item] for item in seen_E[::-1][:_SHOWN].tolist()]
    zero, rows = _rows(answer, recommender.names)
    return List(
        rows=rows,
        legend=_legend(rows, recommender.names),
        zero=zero,
        history=[(item, opened.title(item)) for item in newest],
        earlier=max(0, len(seen_E) - _SHOWN),
        notes=_notes(question, answer, is_known),
        is_of_model=answer.source == "model",
        asked_at=(
            f"{datetime.fromtimestamp(recommender.newest, UTC):%-d %B %Y}" if of_the_past else ""
        ),
    )


def similar_to(opened: LoadedModel, item: str, by: str, k: int) -> SimilarAnswer:
    """Items similar to an item.

    Parameters
    ----------
    opened : LoadedModel
        The opened model.
    item : str
        External id of the item.
    by : str
        How items are compared: ``vectors``, ``use`` or ``text``; ``auto``: the best possible
        way for the item.
    k : int
        Number of items.

    Returns
    -------
    SimilarAnswer
        The items, most similar first.

    Raises
    ------
    RequestError
        There are none; the message says why.
    """
    if opened.recommender.item_row(item) < 0:
        raise RequestError(
            f"The model does not know the item “{item}”. Search for an item by title or id."
        )
    with one_request(), opened.lock:
        [answer] = opened.recommender.similar.answer(
            parse_similar([{"item_id": item, "k": k, "by": by}])
        )
    return answer


def some_user(opened: LoadedModel) -> str:
    """A random known user; empty if the model knows none."""
    return random.choice(opened.bundle.user_ids) if opened.bundle.user_ids else ""  # noqa: S311 - not a secret


def _rows(answer: Answer, names: Sequence[str]) -> tuple[float, list[Listed]]:
    """The position of zero in all bars, and the items with their bars."""
    shares = [
        {name: found[rank] for name, found in answer.shares.items()}
        for rank in range(len(answer.item_ids))
    ]
    zero, bars = stacked(shares)
    colours = {name: number % NUM_COLOURS for number, name in enumerate([*names, "boost"])}
    explanations = answer.explanations or [{}] * len(answer.item_ids)
    rows = [
        Listed(
            rank=rank + 1,
            item_id=item,
            title=answer.titles[rank],
            score=answer.scores[rank],
            contributions=_contributions(bars[rank], colours) if answer.source == "model" else (),
            why=str(explanations[rank].get("sentence", "")),
        )
        for rank, item in enumerate(answer.item_ids)
    ]
    return zero, rows


def _contributions(bar: Sequence[Piece], colours: Mapping[str, int]) -> list[Contribution]:
    speaks_for = sum(piece.value for piece in bar if piece.value > 0) or 1.0
    return [
        Contribution(
            piece.name,
            colours[piece.name],
            piece.value,
            100 * max(piece.value, 0.0) / speaks_for,
            piece.left,
            piece.width,
        )
        for piece in bar
    ]


def _legend(rows: Sequence[Listed], names: Sequence[str]) -> list[tuple[str, int, float]]:
    """Every granularity of the bars with its mean percent, the largest first."""
    found: dict[str, tuple[int, float]] = {}
    for row in rows:
        for one in row.contributions:
            colour, total = found.get(one.name, (one.colour, 0.0))
            found[one.name] = colour, total + one.percent / len(rows)
    return sorted(
        ((name, colour, mean) for name, (colour, mean) in found.items()),
        key=lambda entry: -entry[2],
    )


def _notes(question: Question, answer: Answer, is_known: bool) -> list[str]:
    """Notes that explain the list."""
    notes = []
    if question.user and not is_known:
        what = (
            "only the basket counts"
            if question.items
            else "this is the list for a new user without history"
        )
        notes.append(f"The model does not know the user “{question.user}”: {what}.")
    if answer.unknown_items:
        notes.append(
            "The model does not know these items and ignores them:"
            f" {', '.join(answer.unknown_items)}."
        )
    if answer.source == "popularity":
        notes.append(
            "These are the most popular items, because no granularity has any information."
        )
    return notes
