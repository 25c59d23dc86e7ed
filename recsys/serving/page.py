"""The page of a ranking that a request asks for: ``k`` items from ``offset`` on, diversified where
requested.

Legend: R ranked items.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from recsys.data.histories import Array
from recsys.retrieval.rules import Rules
from recsys.retrieval.selection import Catalogue
from recsys.serving.diversity import by_relevance, page_by_category
from recsys.serving.item_similarity import ItemSimilarity


class Pager:
    """Cuts pages from rankings."""

    def __init__(self, catalogue: Catalogue, similarity: ItemSimilarity) -> None:
        self._catalogue, self._similarity = catalogue, similarity

    def cut(
        self, rules: Rules, items_R: Array, is_whole: bool, scores: Callable[[Array], Array]
    ) -> Array | None:
        """The items of the page in their order; None where a longer ranking is needed.

        Parameters
        ----------
        rules : Rules
            Rules of the request.
        items_R : Array
            The best items, best first, each once.
        is_whole : bool
            Whether these are all allowed items.
        scores : Callable[[Array], Array]
            Gives the scores of items: float64.
        """
        diversify = rules.diversify
        if diversify is None:
            return items_R[rules.offset : rules.offset + rules.k]
        if diversify.strength is not None:
            pool = items_R[: diversify.pool]
            order = by_relevance(scores(pool), self._similarity.among(pool), diversify.strength)
            items_R = np.concatenate([pool[order], items_R[len(pool) :]])
        if diversify.attribute is None or diversify.most is None:
            return items_R[rules.offset : rules.offset + rules.k]
        members = (
            self._catalogue.attributes("diversify")
            .categories(diversify.attribute, "diversify.attribute")
            .members
        )
        page = rules.offset // rules.k
        positions = page_by_category(
            items_R.tolist(), members, diversify.most, rules.k, page, is_whole
        )
        return None if positions is None else items_R[positions]


def is_reordered(rules: Rules) -> bool:
    """Whether a list is ordered by something other than its scores."""
    return rules.diversify is not None and rules.diversify.strength is not None
