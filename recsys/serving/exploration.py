"""Exploration: each day a share of users gets the best items in random order, with propensities.

Why: a model's lists are deterministic, and items that were never shown tell nothing about another
model. With the share ε and a pool of the n best items, the item of rank r is at position p with the
probability

    P(p) = (1 − ε) · 1[r = p] + ε / n        for positions in the pool,   1 after the pool.

An answer reports it for every item (``propensities``), and :mod:`recsys.evaluation.off_policy`
divides by it. Why so simple: with a softmax over scores (Plackett–Luce), the probability of an item
at a position has no closed form.

The random number comes from a hash of salt, user and day (UTC) of the request: a user keeps one
order for a day, whichever replica answers, so pages do not overlap.

Legend: R ranked items, P pool.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from recsys.data.histories import Array
from recsys.serving.experiment_split import day_of, digest
from recsys.serving.requests import Request


@dataclass(frozen=True)
class Explorer:
    """Draws the order of lists."""

    share: float  # ε
    pool: int  # n
    salt: str

    def page(
        self, request: Request, items_R: Array, scores: Callable[[Array], Array]
    ) -> tuple[Array, Array]:
        """The items of the page and the propensity of each at its rank.

        Parameters
        ----------
        request : Request
            A request that takes part in experiments.
        items_R : Array
            The best items, at least the pool and up to the end of the page; fewer where fewer are
            allowed.
        scores : Callable[[Array], Array]
            Gives the scores of items: float64. The pool is sorted by them, like a page without
            exploration.
        """
        size = min(self.pool, len(items_R))
        pool_P = items_R[:size]
        pool_P = pool_P[np.argsort(-scores(pool_P), kind="stable")]
        generator = np.random.default_rng(int.from_bytes(self._seed(request)[:16], "big"))
        ranks_P = np.arange(size)
        if generator.random() < self.share:
            ranks_P = generator.permutation(size)
        propensities_P = (1 - self.share) * (ranks_P == np.arange(size)) + self.share / max(size, 1)
        page = slice(request.offset, request.offset + request.k)
        # the whole pool is ordered before the page is cut, so that pages do not overlap
        shown_R = np.concatenate([pool_P[ranks_P], items_R[size:]])
        return shown_R[page], np.concatenate([propensities_P, np.ones(len(items_R) - size)])[page]

    def _seed(self, request: Request) -> bytes:
        return digest("explore", self.salt, request.user_id or "", day_of(request))
