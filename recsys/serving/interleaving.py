"""Interleaving: one list from two models, and which model put each item into it.

Why: users then compare the two models within one list. So a preference is visible with a tenth to a
hundredth of the users that two separate groups need (Chapelle, Joachims, Radlinski and Yue 2012).

Team draft (Radlinski, Kurup and Joachims 2008): in every round a coin says which model picks first.
Then each model adds its best item that is not in the list yet. An item belongs to the model that
picked it (its team). Both models have the same expected number of items at every place, so clicks
favour neither by position.

The coins come from a hash of salt, user, day (UTC) of the request and round: a user keeps one list
for a day, whichever replica answers, so pages do not overlap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Final

from recsys.serving.experiment_split import SIDES, Side, day_of, uniform
from recsys.serving.requests import Answer, Request

BOTH: Final = "ab"  # side of an interleaved answer


@dataclass(frozen=True)
class Interleaver:
    """Merges the lists of the two models of an A/B test."""

    salt: str

    def of_each(self, request: Request) -> Request:
        """The request for each model: from the first item to the end of the page."""
        return request.model_copy(update={"offset": 0, "k": request.offset + request.k})

    def merged(self, request: Request, answers: Mapping[Side, Answer]) -> Answer:
        """The answer with the page of the interleaved list.

        Scores, shares and explanations of an item are those of the model that picked it.

        Parameters
        ----------
        request : Request
            The request of the user.
        answers : Mapping[Side, Answer]
            The answer of each model to :meth:`of_each`.

        Returns
        -------
        Answer
            ``teams`` has the side of every item.
        """
        end = request.offset + request.num_allowed
        drawn = self._draft(request, {side: answers[side].item_ids for side in SIDES}, end)
        drawn = drawn[request.offset :]

        def of(name: str) -> list[Any]:
            return [getattr(answers[side], name)[rank] for side, rank in drawn]

        def optional(name: str, missing: Any) -> list[Any] | None:
            if all(getattr(answers[side], name) is None for side in SIDES):
                return None
            found = {side: getattr(answers[side], name) for side in SIDES}
            return [missing if found[side] is None else found[side][rank] for side, rank in drawn]

        a, b = (answers[side] for side in SIDES)
        names = dict.fromkeys([*a.shares, *b.shares])
        return replace(
            a,
            item_ids=of("item_ids"),
            titles=of("titles"),
            scores=of("scores"),
            shares={
                # a granularity that a model lacks adds nothing to its scores
                name: [
                    answers[side].shares[name][rank] if name in answers[side].shares else 0.0
                    for side, rank in drawn
                ]
                for name in names
            },
            source="model" if "model" in (a.source, b.source) else "popularity",
            unknown_items=_both(a.unknown_items, b.unknown_items),
            unknown_friends=_both(a.unknown_friends, b.unknown_friends),
            boosts=optional("boosts", 1.0),
            explanations=optional("explanations", {}),
            unknown_in_rules=_both_rules(a.unknown_in_rules, b.unknown_in_rules),
            side=BOTH,
            teams=[side for side, _ in drawn],
        )

    def _draft(
        self, request: Request, lists: Mapping[Side, Sequence[str]], length: int
    ) -> list[tuple[Side, int]]:
        """Team and rank in its list of every item of the interleaved list, up to ``length``."""
        day = day_of(request)
        drawn: list[tuple[Side, int]] = []
        listed: set[str] = set()
        at = dict.fromkeys(SIDES, 0)
        for number in count():
            coin = uniform("interleave", self.salt, request.user_id or "", day, str(number))
            before = len(drawn)
            for side in SIDES if coin < 0.5 else SIDES[::-1]:
                mine = lists[side]
                while at[side] < len(mine) and mine[at[side]] in listed:
                    at[side] += 1
                if at[side] < len(mine) and len(drawn) < length:
                    drawn.append((side, at[side]))
                    listed.add(mine[at[side]])
            if len(drawn) == before:
                return drawn
        return drawn


def _both(first: Sequence[str], second: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([*first, *second]))


def _both_rules(
    first: Mapping[str, list[str]] | None, second: Mapping[str, list[str]] | None
) -> dict[str, list[str]] | None:
    if first is None and second is None:
        return None
    one, other = first or {}, second or {}
    return {name: _both(one.get(name, []), other.get(name, [])) for name in {**one, **other}}
