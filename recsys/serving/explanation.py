"""Explanations: the past items and friends that support a listed item, and one sentence.

The answer already holds the exact share of every granularity. The effect of a past item on a listed
item is the drop of its score when the model answers as if the user had never had the past item;
this works for every granularity, whatever it does with a history. The share of a friend is what the
granularities that read friends give the item when the request names this friend alone.

Legend: R listed items, V variants of a request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor

from recsys.contributions import Contributions
from recsys.data.histories import Array
from recsys.serving.request_scores import BOOST
from recsys.serving.request_views import EncodedRequests, RequestView
from recsys.serving.requests import Answer

if TYPE_CHECKING:
    from recsys.serving.recommender import Recommender

MAX_EFFECTS: Final = 50  # newest past items, and friends, whose effect is measured
MAX_NAMED: Final = 3  # past items, and friends, in one explanation
_FRIENDS: Final = "friends"  # the signal of granularities that read friends
_LEAST: Final = 1e-6  # of the largest score: smaller effects are rounding errors
_REASONS: Final = {
    "behaviour": "it matches the texts of your past items",
    "evolution": "it matches how your interests are changing",
    "collaborative": "users with similar taste choose it together with your past items",
    "social": "your friends like it",
    "knowledge": "it has properties in common with your past items",
    "stratum": "users in your user group choose it",
    "profile": "users with a profile like yours choose it",
    "media": "it looks or sounds like your past items",
    "item_cf": "users who chose your past items also chose it",
    "item_knn": "users who chose your past items also chose it",
    "social_cf": "people with such friends chose it",
    "user_cf": "users with similar taste chose it",
    "als": "users with similar taste chose it",
    "popularity": "many users choose it",
    "frequency": "you choose it often",
    "repeat": "you chose it before",
    "place": "it fits the places you visited and the prices you pay",
    "content": "its text is similar to your past items",
    "moment": "users choose it at times like this",
    BOOST: "a rule of the service raises it",
}


class Explainer:
    """Explains the answers of a recommender."""

    def __init__(self, recommender: Recommender) -> None:
        self._recommender, self._bundle = recommender, recommender.bundle
        sections = recommender.model.config.granularities.enabled()
        self._of_friends = [
            rank for rank, name in enumerate(recommender.names) if sections[name].signal == _FRIENDS
        ]

    def explain(
        self, encoded: EncodedRequests, answer: Answer, is_of_model: bool
    ) -> list[dict[str, Any]]:
        """One explanation per listed item.

        Parameters
        ----------
        encoded : EncodedRequests
            The request, alone.
        answer : Answer
            Its answer.
        is_of_model : bool
            Whether the model's scores ranked the list; False: the most popular items answered.

        Returns
        -------
        list[dict[str, Any]]
            For each item ``items`` (past items with their effect), ``friends`` (with their share)
            and ``sentence``.
        """
        rows_R = np.array(
            [self._recommender.item_row(item) for item in answer.item_ids], dtype=np.int64
        )
        if not is_of_model or not len(rows_R):
            return [
                {"items": [], "friends": [], "sentence": _popularity_sentence(answer, rank)}
                for rank in range(len(rows_R))
            ]
        items, effects_VR = self._item_effects(encoded, rows_R)
        friends, speaks_VR = self._friend_shares(encoded, rows_R)
        # in relation to the scores, as their scale differs from model to model
        least = _LEAST * max(abs(score) for score in answer.scores)
        found = []
        for rank in range(len(rows_R)):
            own = [
                {
                    "item_id": self._bundle.item_ids[items[v]],
                    "title": self._bundle.titles[items[v]],
                    "effect": effect,
                }
                for v, effect in _largest(effects_VR[:, rank], least)
            ]
            known = [
                {"user_id": self._bundle.user_ids[friends[v]], "share": share}
                for v, share in _largest(speaks_VR[:, rank], least)
            ]
            found.append(
                {"items": own, "friends": known, "sentence": _sentence(answer, rank, own, known)}
            )
        return found

    def _item_effects(self, encoded: EncodedRequests, rows_R: Array) -> tuple[list[int], Array]:
        """The newest items of the history, and how much each score drops without each of them: [V,
        R].
        """
        [seen] = encoded.visible
        # newest first; the limit bounds the number of forward passes of one request
        items = list(dict.fromkeys(seen.items_E[::-1].tolist()))[:MAX_EFFECTS]
        variants = [seen, *(seen.without(item) for item in items)]
        scores_VR = self._scores(self._contributions(encoded, variants), rows_R)
        return items, (scores_VR[:1] - scores_VR[1:]).numpy()

    def _friend_shares(self, encoded: EncodedRequests, rows_R: Array) -> tuple[list[int], Array]:
        """Friends, and the share that each friend alone gives each item: [V, R]."""
        [seen] = encoded.visible
        friends = list(seen.friends_F or self._bundle.friends_of(seen.user))[:MAX_EFFECTS]
        if not friends or not self._of_friends:
            return [], np.zeros((0, len(rows_R)))
        parts = self._contributions(
            encoded, [replace(seen, friends_F=[friend]) for friend in friends]
        ).of(self._of_friends)
        return friends, self._scores(parts, rows_R).numpy()

    def _contributions(
        self, encoded: EncodedRequests, variants: Sequence[RequestView]
    ) -> Contributions:
        """The contributions for variants of one request; the text of its past is not changed."""
        rows = torch.zeros(len(variants), dtype=torch.int64)
        text = self._recommender.scorer.past_texts(encoded.visible)
        # the text needs the text encoder, which is too slow to run for every variant
        again = EncodedRequests(
            list(encoded.requests) * len(variants),
            variants,
            encoded.attributes.take(rows),
            torch.zeros(len(variants), 0) if text is None else text[rows],
        )
        return self._recommender.scorer.parts(again)[1]

    def _scores(self, parts: Contributions, rows_R: Array) -> Tensor:
        """Scores of the listed items: float64 [V, R]."""
        items = torch.from_numpy(rows_R)
        num_variants = len(parts.weights_BK)
        return parts.shares(
            self._recommender.model.item_vectors_ND, items.expand(num_variants, -1)
        ).sum(1)


def _largest(values_V: Array, least: float) -> list[tuple[int, float]]:
    order = np.argsort(-values_V, kind="stable")[:MAX_NAMED]
    return [(int(rank), float(values_V[rank])) for rank in order if values_V[rank] > least]


def _sentence(
    answer: Answer, rank: int, items: list[dict[str, Any]], friends: list[dict[str, Any]]
) -> str:
    """The explanation of a listed item for its user.

    >>> shares = {"item_cf": [3.0], "social": [1.0]}
    >>> answer = Answer("u", ["b"], ["B"], [4.0], shares, "model", [], [])
    >>> own = [{"item_id": "a", "title": "A"}]
    >>> sentence = _sentence(answer, 0, own, [{"user_id": "eve"}])
    >>> print(sentence)  # doctest: +NORMALIZE_WHITESPACE
    “B”: mainly because users who chose your past items also chose it (75 % of its positive score),
    based on “A” and on your friend eve.
    """
    shares = {
        name: shares_R[rank] for name, shares_R in answer.shares.items() if shares_R[rank] > 0
    }
    text = f"“{answer.titles[rank]}”: "
    if shares:
        name = max(shares, key=lambda name: shares[name])
        reason = _REASONS.get(name, f"{name} favours it")
        percent = round(100 * shares[name] / sum(shares.values()))
        text += f"mainly because {reason} ({percent} % of its positive score)"
    else:
        text += "no signal is in its favour, but less is against it than against other items"
    bases = []
    if items:
        named = [
            "it, which you chose before"
            if entry["item_id"] == answer.item_ids[rank]
            else f"“{entry['title']}”"
            for entry in items
        ]
        bases.append("on " + _english_list(named))
    if friends:
        word = "friend" if len(friends) == 1 else "friends"
        bases.append(f"on your {word} {_english_list([entry['user_id'] for entry in friends])}")
    if bases:
        text += f", based {_english_list(bases)}"
    return text + _boost_clause(answer, rank) + "."


def _popularity_sentence(answer: Answer, rank: int) -> str:
    return (
        f"“{answer.titles[rank]}”: many users chose it; nothing is known about you"
        f" yet{_boost_clause(answer, rank)}."
    )


def _boost_clause(answer: Answer, rank: int) -> str:
    factor = 1.0 if answer.boosts is None else answer.boosts[rank]
    return (
        ""
        if factor == 1
        else f"; {'raised' if factor > 1 else 'lowered'} by a factor of {factor:g}"
    )


def _english_list(words: Sequence[str]) -> str:
    """Words as an English list.

    >>> _english_list(["a"]), _english_list(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
