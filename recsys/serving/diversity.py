"""Diverse lists: maximal marginal relevance, and a maximum number of items per category on a page.

Legend: R ranked items, P pool.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence

import numpy as np

from recsys.data.histories import Array


def by_relevance(
    scores_P: Array, cosines_PP: Array, strength: float, most: int | None = None
) -> Array:
    """Positions in the order of maximal marginal relevance (Carbonell and Goldstein 1998).

        argmax_i (1 − s) · relevance_i − s · max_{j listed} cos(i, j)

    The relevance is the score scaled to [0, 1] over the pool. Ties keep the order of the ranking.
    The first positions do not depend on ``most``.

    Parameters
    ----------
    scores_P : Array
        Scores of the pool: float [P].
    cosines_PP : Array
        Cosines between the items of the pool: float [P, P].
    strength : float
        Strength s, 0 (by score) to 1 (by difference alone).
    most : int | None
        Number of positions; None: all.

    Returns
    -------
    Array
        Positions in the pool: int64.

    Examples
    --------
    >>> alike = np.array([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]])
    >>> by_relevance(np.array([3.0, 2.9, 2.0]), alike, 0.5).tolist()
    [0, 2, 1]
    """
    low, high = scores_P.min(initial=np.inf), scores_P.max(initial=-np.inf)
    # scaled, because cosines are within [−1, 1] and scores have any scale
    relevance_P = (scores_P - low) / (high - low) if high > low else np.ones(len(scores_P))
    nearest_P, left_P = np.zeros(len(scores_P)), np.ones(len(scores_P), dtype=bool)
    order = np.zeros(len(scores_P) if most is None else min(most, len(scores_P)), dtype=np.int64)
    for position in range(len(order)):
        worth_P = np.where(left_P, (1 - strength) * relevance_P - strength * nearest_P, -np.inf)
        chosen = int(worth_P.argmax())
        order[position], left_P[chosen] = chosen, False
        nearest_P = (
            cosines_PP[chosen] if position == 0 else np.maximum(nearest_P, cosines_PP[chosen])
        )
    return order


def page_by_category(
    ranked_R: Sequence[int],
    members: Callable[[int], Sequence[int]],
    most: int,
    k: int,
    page: int,
    is_whole: bool,
) -> list[int] | None:
    """The positions in a ranking of the items on a page; None where a longer ranking is needed.

    A page takes the best remaining items, at most ``most`` of a category. Items that do not fit on
    a page come first on the next one.

    Parameters
    ----------
    ranked_R : Sequence[int]
        Items, best first.
    members : Callable[[int], Sequence[int]]
        Gives the categories of an item.
    most : int
        Largest number of items of one category on a page.
    k : int
        Items per page.
    page : int
        Number of the page, from 0.
    is_whole : bool
        Whether the ranking holds every allowed item.

    Examples
    --------
    >>> page_by_category([10, 11, 12, 13], lambda item: [0] if item < 12 else [1], 1, 2, 0, True)
    [0, 2]
    >>> page_by_category([10, 11, 12, 13], lambda item: [0] if item < 12 else [1], 1, 2, 1, True)
    [1, 3]
    """
    waiting: deque[int] = deque()
    fresh = iter(range(len(ranked_R)))
    chosen: list[int] = []
    # page by page from the first one, so that no item is on two pages
    for _ in range(page + 1):
        counts: Counter[int] = Counter()
        chosen = []
        passed: deque[int] = deque()

        def fits(position: int, counts: Counter[int] = counts) -> bool:
            return all(counts[member] < most for member in members(ranked_R[position]))

        def take(position: int, counts: Counter[int] = counts, chosen: list[int] = chosen) -> None:
            chosen.append(position)
            counts.update(members(ranked_R[position]))

        while waiting and len(chosen) < k:
            position = waiting.popleft()
            take(position) if fits(position) else passed.append(position)
        passed.extend(waiting)
        while len(chosen) < k and (found := next(fresh, None)) is not None:
            take(found) if fits(found) else passed.append(found)
        # a deeper ranking may still fill the page
        if len(chosen) < k and not is_whole:
            return None
        waiting = passed
    return chosen
