"""Examples of calls and replies for the description of the server.

Users are invented. Items and attributes are those of the loaded model where it is known, so that
every example can be sent as it is; answers are written by the classes of real answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from recsys.serving.requests import Answer, SimilarAnswer

if TYPE_CHECKING:  # imports torch
    from recsys.serving.model_traits import ModelTraits

_ITEMS: Final = {"lamp-3": "Desk lamp", "chair-12": "Oak chair", "desk-7": "Standing desk"}
_FILTERS: Final = {"category": ["lamps", "chairs"], "price": {"lt": 20}}
Named = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Examples:
    """Items, their titles, and a filter that all examples use."""

    item_ids: list[str]
    titles: list[str]
    filters: dict[str, Any]

    @classmethod
    def of(cls, traits: ModelTraits | None) -> Examples:
        """Examples for a loaded model; None: of an invented shop."""
        if traits is None:
            return cls(list(_ITEMS), list(_ITEMS.values()), _FILTERS)
        invented = len(_ITEMS) - len(traits.item_ids)
        return cls(
            [*traits.item_ids, *list(_ITEMS)[:invented]],
            [*traits.titles, *list(_ITEMS.values())[:invented]],
            _filters(traits),
        )

    @property
    def recommend(self) -> Named:
        """Bodies of POST /recommend."""
        first, second, third = self.item_ids[:3]
        history = [first, {"item_id": second, "timestamp": "2026-11-27 18:00"}]
        rules: dict[str, Any] = {
            "user_id": "ada",
            "k": 10,
            **({"filters": self.filters} if self.filters else {}),
            "exclude": [third],
            "boost": [{"factor": 1.5, "items": [first]}],
            "diversify": {"strength": 0.3},
            "explain": True,
        }
        several = [{"user_id": "ada", "k": 3}, {"user_id": "ben", "history": [first], "k": 3}]
        return {
            "user": _shown("A user", {"user_id": "ada", "k": 5}),
            "history": _shown(
                "A new user with a history", {"user_id": "ben", "history": history, "k": 5}
            ),
            "rules": _shown("Rules of the list", rules),
            "several": _shown("Several requests", several),
        }

    @property
    def answers(self) -> Named:
        """A reply of POST /recommend."""
        return {"user": _shown("The answer to one request", self._answer().to_dict())}

    @property
    def similar(self) -> Named:
        """Bodies of POST /similar."""
        asked = {"item_id": self.item_ids[0], "k": 5}
        filtered = {**asked, "filters": self.filters}
        return {"item": _shown("An item", asked)} | (
            {"filtered": _shown("With a filter", filtered)} if self.filters else {}
        )

    @property
    def alike(self) -> Named:
        """A reply of POST /similar."""
        found = SimilarAnswer(
            item_id=self.item_ids[0],
            by="vectors",
            why="27 users have had the item",
            item_ids=self.item_ids[1:3],
            titles=self.titles[1:3],
            scores=[0.75, 0.5],
        )
        return {"item": _shown("The answer to one request", found.to_dict())}

    @property
    def invocations(self) -> Named:
        """Bodies of POST /invocations."""
        rows = [{"user_id": "ada"}, {"user_id": "ben", "history": [self.item_ids[0]]}]
        split = {"columns": ["user_id", "k"], "data": [["ada", 5], ["ben", 3]]}
        return {
            "records": _shown("Rows", {"dataframe_records": rows, "params": {"k": 3}}),
            "split": _shown("Columns and rows", {"dataframe_split": split}),
            "inputs": _shown("Columns", {"inputs": {"user_id": ["ada", "ben"], "k": [5, 3]}}),
        }

    @property
    def predictions(self) -> Named:
        """A reply of POST /invocations."""
        return {"rows": _shown("One row", {"predictions": [self._answer().to_dict()]})}

    @property
    def stock(self) -> Named:
        """Bodies of POST /stock."""
        return {
            "changes": _shown("Changes", {"add": [self.item_ids[2]], "remove": [self.item_ids[1]]}),
            "whole": _shown("The whole list", {"out": [self.item_ids[2]]}),
        }

    @property
    def stock_reply(self) -> Named:
        """A reply of POST /stock."""
        said = {"out": 1, "revision": 1, "changed": "2026-11-27T18:00:00+00:00"}
        return {"changed": _shown("One item", {**said, "unknown": 0, "everywhere": True})}

    @property
    def health(self) -> Named:
        """A reply of GET /health."""
        said = {"live": True, "ready": True, "model": "models:/shop/3", "version": "3"}
        return {"ready": _shown("A server that is ready", said)}

    def _answer(self) -> Answer:
        return Answer(
            user_id="ada",
            item_ids=self.item_ids[:2],
            titles=self.titles[:2],
            scores=[1.5, 0.75],
            shares={"collaborative": [1.0, 0.5], "item_cf": [0.5, 0.25]},
            source="model",
            unknown_items=[],
            unknown_friends=[],
        )


def _filters(traits: ModelTraits) -> dict[str, Any]:
    """A filter on a category and a number that the model knows."""
    found: dict[str, Any] = {}
    for kinds in (("category", "list"), ("number",)):
        for name, one in traits.item_attributes.items():
            if one.kind in kinds and one.examples:
                value = one.examples[0]
                found[name] = {"ge": value} if kinds == ("number",) else [value]
                break
    return found


def _shown(summary: str, value: Any) -> dict[str, Any]:
    return {"summary": summary, "value": value}
