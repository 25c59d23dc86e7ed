"""Exploration: for a share of users and days the best items are shown in random order, with exact propensities.

Why: the lists of a model are deterministic, and what was never shown says nothing of another model. With the share ε
and a pool of the n best items, the item of rank r stands at place p with the probability

    P(p) = (1 − ε) · 1[r = p] + ε / n        for places of the pool,   1 behind it,

which an answer says of every item (``propensities``) and which :mod:`recsys.evaluation.off_policy` divides by. Why so
plain: a softmax over scores (Plackett and Luce) has no closed form of the probability of an item at a place.

The draw is a hash of salt, user and day (UTC) of asking: a user keeps one order for a day, so that pages fit together,
whatever replica answers.

Legend: R ranked items, P pool.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from recsys.data.histories import Array
from recsys.serving.experiment_split import digest
from recsys.serving.requests import Request

_DAY_S: Final = 86_400


@dataclass(frozen=True)
class Explorer:
    """Draws orders."""

    share: float  # ε
    pool: int  # n
    salt: str

    def explores(self, request: Request) -> bool:
        """Whether a request's list is drawn: a user asks, and the list is not made diverse, which has an order of its
        own without a closed form.
        """
        return request.user_id is not None and request.diversify is None

    def page(self, request: Request, items_R: Array, scores: Callable[[Array], Array]) -> tuple[Array, Array]:
        """The items of the page and the propensity of each at its place.

        Parameters
        ----------
        request : Request
            that :meth:`explores` is true of.
        items_R : Array
            the best items, the pool and up to the page's end at least; fewer where no more are allowed.
        scores : Callable[[Array], Array]
            of some items: float64. The pool is sorted by them, as a page is that nobody explores.
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
        shown_R = np.concatenate([pool_P[ranks_P], items_R[size:]])
        return shown_R[page], np.concatenate([propensities_P, np.ones(len(items_R) - size)])[page]

    def _seed(self, request: Request) -> bytes:
        asked_at = request.seconds or int(time.time())
        return digest("explore", self.salt, request.user_id or "", str(asked_at // _DAY_S))
