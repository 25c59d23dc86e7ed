"""Why an item is in a list: past items and friends that speak for it, and one sentence.

The share of every granularity is in the answer already, exact. A past item speaks for a listed one by what the score
loses when the model is asked again as if the user had never had it: the same for every granularity, whatever it makes
of a history. A friend speaks by the share that the granularities of friends give the item when this friend is asked
alone.

Legend: R listed items, V variants of a request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor

from recsys.data.histories import Array
from recsys.parts import Parts
from recsys.serving.requests import Answer
from recsys.serving.standings import BOOST
from recsys.serving.visible import Asked, Visible

if TYPE_CHECKING:
    from recsys.serving.recommender import Recommender

MAX_ASKED: Final = 50  # newest items of a history, and friends, that are asked about
MAX_NAMED: Final = 3  # of each in an explanation
_FRIENDS: Final = "friends"  # the signal of granularities that read friends
_LEAST: Final = 1e-6  # of the largest score: what is smaller is rounding
_SPEAKS: Final = {
    "behaviour": "what the texts of your past say",
    "evolution": "how your interest moves",
    "collaborative": "what goes with your past, for users of your taste",
    "social": "what your friends like",
    "knowledge": "what your past has in common with it",
    "stratum": "what users like you choose",
    "profile": "who you are",
    "media": "how it looks",
    "item_cf": "what those who had your past items had as well",
    "item_knn": "what those who had your past items had as well",
    "user_cf": "what users of your taste chose",
    "als": "what users of your taste chose",
    "popularity": "how many choose it",
    "frequency": "what you had often",
    "repeat": "what you had before",
    "place": "where you were, and what you pay",
    "content": "how its text resembles your past",
    "moment": "what is chosen at such a time",
    BOOST: "a rule of the shop",
}


class Explainer:
    """Explains answers of a recommender."""

    def __init__(self, recommender: Recommender) -> None:
        self._recommender, self._bundle = recommender, recommender.bundle
        sections = recommender.model.config.granularities.enabled()
        self._of_friends = [place for place, name in enumerate(recommender.names) if sections[name].signal == _FRIENDS]

    def explain(self, asked: Asked, answer: Answer, is_of_model: bool) -> list[dict[str, Any]]:
        """One explanation a listed item: ``items`` and ``friends`` that speak for it, and a ``sentence``."""
        rows_R = np.array([self._recommender.item_row(item) for item in answer.item_ids], dtype=np.int64)
        if not is_of_model or not len(rows_R):
            return [{"items": [], "friends": [], "sentence": _popular(answer, place)} for place in range(len(rows_R))]
        items, effects_VR = self._items(asked, rows_R)
        friends, speaks_VR = self._friends(asked, rows_R)
        least = _LEAST * max(abs(score) for score in answer.scores)
        found = []
        for place in range(len(rows_R)):
            own = [
                {"item_id": self._bundle.item_ids[items[v]], "title": self._bundle.titles[items[v]], "effect": effect}
                for v, effect in _largest(effects_VR[:, place], least)
            ]
            known = [
                {"user_id": self._bundle.user_ids[friends[v]], "share": share}
                for v, share in _largest(speaks_VR[:, place], least)
            ]
            found.append({"items": own, "friends": known, "sentence": _sentence(answer, place, own, known)})
        return found

    def _items(self, asked: Asked, rows_R: Array) -> tuple[list[int], Array]:
        """The newest items of the history, and what each score loses without each: [V, R]."""
        [seen] = asked.visible
        items = list(dict.fromkeys(seen.items_E[::-1].tolist()))[:MAX_ASKED]
        variants = [seen, *(seen.without(item) for item in items)]
        scores_VR = self._scores(self._ask(asked, variants), rows_R)
        return items, (scores_VR[:1] - scores_VR[1:]).numpy()

    def _friends(self, asked: Asked, rows_R: Array) -> tuple[list[int], Array]:
        """Friends, and the share that each alone gives each item: [V, R]."""
        [seen] = asked.visible
        friends = list(seen.friends_F or self._bundle.friends_of(seen.user))[:MAX_ASKED]
        if not friends or not self._of_friends:
            return [], np.zeros((0, len(rows_R)))
        parts = self._ask(asked, [replace(seen, friends_F=[friend]) for friend in friends]).of(self._of_friends)
        return friends, self._scores(parts, rows_R).numpy()

    def _ask(self, asked: Asked, variants: Sequence[Visible]) -> Parts:
        """The parts of variants of one request; the text of its past stays what it was."""
        rows = torch.zeros(len(variants), dtype=torch.int64)
        text = self._recommender.past_texts(asked.visible)
        again = Asked(
            list(asked.requests) * len(variants),
            variants,
            asked.attributes.take(rows),
            torch.zeros(len(variants), 0) if text is None else text[rows],
        )
        return self._recommender.parts(again)[1]

    def _scores(self, parts: Parts, rows_R: Array) -> Tensor:
        """Scores of the listed items: float64 [V, R]."""
        items = torch.from_numpy(rows_R)
        num_variants = len(parts.weights_BK)
        return parts.shares(self._recommender.model.item_vectors_ND, items.expand(num_variants, -1)).sum(1)


def _largest(values_V: Array, least: float) -> list[tuple[int, float]]:
    order = np.argsort(-values_V, kind="stable")[:MAX_NAMED]
    return [(int(place), float(values_V[place])) for place in order if values_V[place] > least]


def _sentence(answer: Answer, place: int, items: list[dict[str, Any]], friends: list[dict[str, Any]]) -> str:
    """
    >>> answer = Answer("u", ["b"], ["B"], [4.0], {"item_cf": [3.0], "social": [1.0]}, "model", [], [])
    >>> _sentence(answer, 0, [{"title": "A"}], [{"user_id": "eve"}])
    '“B”: mostly for what those who had your past items had as well (75 % of what speaks for it), because of “A”, and \
because of your friend eve.'
    """
    shares = {name: shares_R[place] for name, shares_R in answer.shares.items() if shares_R[place] > 0}
    text = f"“{answer.titles[place]}”: "
    if shares:
        name = max(shares, key=lambda name: shares[name])
        text += (
            f"mostly for {_SPEAKS.get(name, name)} ({shares[name] / sum(shares.values()):.0%} of what speaks for it)"
        )
        text = text.replace("%", " %")
    else:
        text += "nothing speaks for it, and less against it than against others"
    if items:
        titles = ["“" + entry["title"] + "”" for entry in items]
        text += f", because of {_joined(titles)}"
    if friends:
        word = "friend" if len(friends) == 1 else "friends"
        text += f", and because of your {word} {_joined([entry['user_id'] for entry in friends])}"
    return text + _boosted(answer, place) + "."


def _popular(answer: Answer, place: int) -> str:
    return f"“{answer.titles[place]}”: many chose it; nothing is known of you yet{_boosted(answer, place)}."


def _boosted(answer: Answer, place: int) -> str:
    factor = 1.0 if answer.boosts is None else answer.boosts[place]
    return "" if factor == 1 else f"; {'raised' if factor > 1 else 'lowered'} by a factor of {factor:g}"


def _joined(words: Sequence[str]) -> str:
    """
    >>> _joined(["a"]), _joined(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
