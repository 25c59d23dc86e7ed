"""Encoding and scoring of requests: what the model reads of them, the contributions of its
granularities, and the items to leave out.

Legend: B requests, K granularities, D width, N items, E events.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from recsys.bundle.layout import Bundle
from recsys.contributions import Contributions
from recsys.data.histories import Array, Histories, Queries
from recsys.data.request_attributes import RequestEncoder
from recsys.errors import RequestError
from recsys.granularities.profile.attribute_encoding import encoding_of
from recsys.retrieval.selection import Plan
from recsys.serving.history_text import HistoryTextEncoder
from recsys.serving.request_scores import RankedCatalogue, RequestScores
from recsys.serving.request_views import (
    EncodedRequests,
    RequestView,
    RequestViewer,
    friends_of,
    present_signals,
    queries_of,
)
from recsys.serving.requests import Request

MAX_CHUNK: Final = 512
_MAX_SCORES: Final = 2**25  # scores in memory at a time: 128 MB of float32
_MAX_GATHERED: Final = 2**23  # numbers gathered at a time for shares or friends: 64 MB of float64


class RequestScorer:
    """Scores requests with the model of a bundle.

    Parameters
    ----------
    bundle : Bundle
        The model and all that it needs.
    histories : Histories
        The events of the users that the model may read.
    user_row : Callable[[str], int]
        The dense id of a user, -1 for an unknown one.
    item_rows : Mapping[str, int]
        The dense id of every item.
    """

    def __init__(
        self,
        bundle: Bundle,
        histories: Histories,
        user_row: Callable[[str], int],
        item_rows: Mapping[str, int],
    ) -> None:
        self.bundle, self.model, self._histories = bundle, bundle.model, histories
        self._personal_K = self.model.personal_K
        profile = encoding_of(self.model.sizes)
        self.attributes = RequestEncoder(profile.users if profile else ())
        self._viewer = RequestViewer(bundle, histories, user_row, item_rows)
        described = bundle.info.user_text
        self._texts = (
            HistoryTextEncoder(described, bundle.titles, bundle.info.event_types)
            if described
            else None
        )
        self._longest_item = (
            float(self.model.item_vectors_ND.norm(dim=1).max()) if bundle.num_items else 0.0
        )

    @cached_property
    def _catalogue(self) -> RankedCatalogue:
        return RankedCatalogue(self.bundle)

    def views(self, requests: Sequence[Request], numbers: Sequence[int]) -> list[RequestView]:
        """The model's view of every request; ``numbers`` are those in the call, for messages.

        Raises
        ------
        RequestError
            An event type or context that the model does not know, or a horizon that it does not
            support.
        """
        for number, request in zip(numbers, requests, strict=True):
            self._check_horizon(request.horizon, f"request {number}")
        return [
            self._viewer.view(number, request)
            for number, request in zip(numbers, requests, strict=True)
        ]

    def _check_horizon(self, horizon: int, where: str) -> None:
        if horizon == 1:
            return
        try:
            self.model.rolling(horizon - 1)
        except RequestError as error:
            raise RequestError(f"{where}: horizon: {error}") from None

    def encode(self, requests: Sequence[Request]) -> EncodedRequests:
        """Requests with everything that the model reads of them, as input of :meth:`parts`.

        Raises
        ------
        RequestError
            As in :meth:`Recommender.recommend <recsys.serving.recommender.Recommender.recommend>`.
        """
        visible = self.views(requests, range(len(requests)))
        return EncodedRequests(
            requests, visible, self.attributes.encode([request.attributes for request in requests])
        )

    def queries(self, visible: Sequence[RequestView]) -> Queries:
        """Views of requests as queries without targets."""
        return queries_of(visible, self._histories.targets_T)

    def num_scored(self, longest: int) -> int:
        """Number of items that are scored exactly for a list of ``longest`` items."""
        return (
            self.bundle.index.wanted(longest)
            if self.bundle.index is not None
            else self.bundle.num_items
        )

    def chunk_size(self, longest: int) -> int:
        """Number of requests per chunk, so that neither scores nor gathered items and friends take
        much memory.
        """
        width, scored = self.model.item_vectors_ND.shape[1], self.num_scored(longest)
        return max(
            1,
            min(
                MAX_CHUNK, _MAX_SCORES // max(scored, 1), _MAX_GATHERED // (longest * max(width, 1))
            ),
        )

    def parts(self, encoded: EncodedRequests) -> tuple[Queries, Contributions]:
        """The queries of requests, and the contributions of the granularities to their scores."""
        queries = self.queries(encoded.visible)
        texts = self.past_texts(encoded.visible) if encoded.user_text is None else encoded.user_text
        given = {
            "friends": friends_of(encoded.visible),
            "profile": encoded.attributes,
            "user_text": texts if texts is not None and texts.shape[1] else None,
        }
        return queries, self._parts(encoded.requests, queries, present_signals(given))

    def _parts(
        self, requests: Sequence[Request], queries: Queries, signals: Mapping[str, Any]
    ) -> Contributions:
        """The contributions for every request, at the horizon that it asks for."""
        horizons_B = np.array([request.horizon for request in requests])
        if (horizons_B == 1).all():
            return self.model.contributions(queries, signals)
        pieces: list[tuple[Tensor, Contributions]] = []
        for horizon in np.unique(horizons_B).tolist():
            rows_b = torch.from_numpy(np.flatnonzero(horizons_B == horizon))
            own = {
                signal: rows_BX[rows_b] if isinstance(rows_BX, Tensor) else rows_BX.take(rows_b)
                for signal, rows_BX in signals.items()
            }
            # each horizon needs its own forward pass
            pieces.append(
                (
                    rows_b,
                    self.model.contributions_ahead(queries.take(rows_b.numpy()), horizon - 1, own),
                )
            )
        return Contributions.gathered(pieces)

    def past_texts(self, visible: Sequence[RequestView]) -> Tensor | None:
        """Text vectors of histories for which the model has none: of new users, and of users with
        newer events.
        """
        if self._texts is None:
            return None
        stored_U = self._histories.lengths_U
        # a longer history than the stored one means that the request brings newer events
        is_new = [seen.user < 0 or len(seen.items_E) > stored_U[seen.user] for seen in visible]
        pasts = [
            (s.items_E, s.types_E) if new else None for s, new in zip(visible, is_new, strict=True)
        ]
        return self._texts.vectors(pasts)

    def scores(
        self,
        queries: Queries,
        parts: Contributions,
        exclude_B: Array,
        plans: Sequence[Plan] = (),
    ) -> RequestScores:
        """The scores of queries over the catalogue.

        Parameters
        ----------
        queries : Queries
            The queries.
        parts : Contributions
            The contributions of the granularities to them.
        exclude_B : Array
            bool: whether to leave out items that the user already had.
        plans : Sequence[Plan]
            The rules of every request; empty: none.
        """
        # By the Cauchy–Schwarz inequality this bounds every share and score, so all are finite
        # where it is.
        added, num_rows = parts.added, len(parts.weights_BK)
        bound_B = parts.vectors_BKD.norm(dim=2).sum(1) * self._longest_item + added.sizes(num_rows)
        usable_B = torch.isfinite(bound_B) & (bound_B > 0)
        personal_B = usable_B & (parts.weights_BK[:, self._personal_K] != 0).any(1)
        known = usable_B.numpy(), personal_B.numpy()
        return RequestScores(
            self._catalogue,
            parts.where(usable_B),
            *known,
            _hidden(queries, exclude_B, plans),
            tuple(plans),
        )


def _hidden(queries: Queries, exclude_B: Array, plans: Sequence[Plan] = ()) -> tuple[Array, Array]:
    """The items to leave out, as row and item numbers in order of rows."""
    histories = queries.histories
    is_hidden_E = np.repeat(exclude_B, histories.lengths_U) & histories.are_targets_E
    rows_E = np.repeat(np.arange(len(queries)), histories.lengths_U)[is_hidden_E]
    hidden_E = histories.items_E[is_hidden_E].astype(np.int64)
    # without exclusions the rows already ascend
    if not any(len(plan.excluded) for plan in plans):
        return rows_E, hidden_E
    rows_E = np.concatenate(
        [rows_E, *(np.full(len(plan.excluded), row) for row, plan in enumerate(plans))]
    )
    hidden_E = np.concatenate([hidden_E, *(plan.excluded for plan in plans)])
    # the search expects rows in ascending order
    order_E = np.argsort(rows_E, kind="stable")
    return rows_E[order_E], hidden_E[order_E]
