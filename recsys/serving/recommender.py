"""The recommender answers requests from a bundle: for the server, MLflow's pyfunc and batch
recommendation.

For a known user the model reads the stored events, then those of the request as the newest ones,
and the stored attributes unless the request gives others. An unknown user with a history, friends
or attributes goes through the same forward pass. A request without any of them gets the most
popular items.

Legend: B requests, K granularities, R list length, D width, N items, E events, F friends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from recsys.bundle.files import Bundle
from recsys.contributions import Contributions
from recsys.data.histories import Array, Queries, Split
from recsys.data.pseudonyms import pseudonym_lookup
from recsys.data.request_attributes import RequestEncoder
from recsys.granularities.profile.encoding import encoding_of
from recsys.retrieval.selection import Catalogue, Plan
from recsys.serving.explanation import Explainer
from recsys.serving.exploration import Explorer
from recsys.serving.history_text import HistoryTextEncoder
from recsys.serving.likeness import ItemSimilarity
from recsys.serving.page import Pager, is_reordered
from recsys.serving.requests import Answer, AnyAnswer, AnyRequest, Request, SimilarRequest
from recsys.serving.similar import Similar
from recsys.serving.standings import BOOST, RankedCatalogue, RequestScores
from recsys.serving.visible import (
    Asked,
    RequestView,
    RequestViewer,
    as_queries,
    brought,
    friends_of,
    queries_of,
)

MAX_CHUNK: Final = 512
_MAX_SCORES: Final = 2**25  # scores in memory at a time: 128 MB of float32
_MAX_GATHERED: Final = 2**23  # numbers gathered at a time for shares or friends: 64 MB of float64
_DEEPER: Final = 4  # factor by which a ranking is extended where it is too short for a page


@dataclass(frozen=True)
class Lists:
    """Recommendations as arrays, one row per user, best first."""

    items_BR: Array  # int32, −1 after the end of a list
    scores_BR: Array  # float64
    shares_BKR: (
        Array  # float64, K as in ``Recommender.speaking``; meaningless where of_model_B is False
    )
    of_model_B: Array  # bool; False: the all-time most popular items, without the model's scores
    personal_B: Array  # bool; False: nothing was known about the user, so popular items answer


class Recommender:
    """Answers requests from a bundle.

    Parameters
    ----------
    bundle : Bundle
        The model and all that it needs.
    through : Split
        The last split whose events the recommender knows. ``Split.VALID`` answers as in the
        evaluation on the test split; the default knows all events.
    """

    def __init__(self, bundle: Bundle, through: Split = Split.TEST) -> None:
        self.bundle, self.model = bundle, bundle.model
        self.names, self.speaking = self.model.names, self.model.active_names
        self._speaking_K = [self.names.index(name) for name in self.speaking]
        self._personal_K = self.model.personal_K
        self._histories = (
            bundle.histories if through == Split.TEST else bundle.histories.through(through)
        )
        profile = encoding_of(self.model.sizes)
        self._attributes = RequestEncoder(profile.users if profile else ())
        self._sight = RequestViewer(bundle, self._histories, self.user_row, self._item_rows)
        self.catalogue = Catalogue(self._item_rows, bundle.attributes)
        self.likeness = ItemSimilarity(self.model)
        self.pager = Pager(self.catalogue, self.likeness)
        described = bundle.info.user_text
        self._reader = (
            HistoryTextEncoder(described, bundle.titles, bundle.info.event_types)
            if described
            else None
        )
        self._longest_item = (
            float(self.model.item_vectors_ND.norm(dim=1).max()) if bundle.num_items else 0.0
        )

    @cached_property
    def newest(self) -> int:
        """The time of the newest known event in seconds since the epoch; 0 where times are unknown.

        Why: batch recommendation uses it as the time of the request, so that the lists of a model
        do not change with the clock.
        """
        times_E = self._histories.times_E
        known_E = times_E[times_E != 0]
        return int(known_E.max()) if len(known_E) else 0

    @cached_property
    def _user_rows(self) -> dict[str, int]:
        return {user: row for row, user in enumerate(self.bundle.user_ids)}

    @cached_property
    def _known_as(self) -> Callable[[str], str]:
        """Maps the user id of a request to that in the bundle, which may be a pseudonym."""
        return pseudonym_lookup(self.bundle.info.dataset.get("pseudonyms", {}))

    @cached_property
    def _shelf(self) -> RankedCatalogue:
        return RankedCatalogue(self.bundle)

    @cached_property
    def similar(self) -> Similar:
        """Answers requests for similar items."""
        return Similar(self.bundle, self._item_rows, self.catalogue, self.likeness, self.pager)

    @cached_property
    def _explainer(self) -> Explainer:
        return Explainer(self)

    @cached_property
    def item_names(self) -> pa.Array:
        """The items' ids as a column."""
        return pa.array(self.bundle.item_ids, pa.string())

    @cached_property
    def _item_rows(self) -> dict[str, int]:
        return {item: row for row, item in enumerate(self.bundle.item_ids)}

    def user_row(self, user_id: str) -> int:
        """The dense id of a user, -1 for one the bundle does not know."""
        row = self._user_rows.get(user_id, -1)
        return row if row >= 0 else self._user_rows.get(self._known_as(user_id), -1)

    def item_row(self, item_id: str) -> int:
        """The dense id of an item, -1 for one the bundle does not know."""
        return self._item_rows.get(item_id, -1)

    def queries(self, requests: Sequence[Request]) -> Queries:
        """The queries of requests: stored events, then those of the request, at its time (by
        default now).

        Raises
        ------
        RequestError
            As in :meth:`recommend`.
        """
        visible = [self._sight.see(index, request) for index, request in enumerate(requests)]
        return queries_of(visible, self._histories.targets_T)

    def asked(self, requests: Sequence[Request]) -> Asked:
        """Requests with everything that the model reads of them, as input of :meth:`parts`.

        Raises
        ------
        RequestError
            As in :meth:`recommend`.
        """
        visible = [self._sight.see(number, request) for number, request in enumerate(requests)]
        return Asked(
            requests, visible, self._attributes.encode([request.attributes for request in requests])
        )

    def recommend(self, requests: Sequence[Request]) -> list[Answer]:
        """One answer per request, in order, with one forward pass for every chunk of requests.

        Lists are the exact top k of the whole catalogue. With an index they are the exact top k of
        the candidates from the index. Ties are ordered as in evaluation. All numbers in answers
        are finite.

        Raises
        ------
        RequestError
            An event type, attribute or context that the model does not know or of a wrong type, a
            horizon that the model does not support, or a rule that does not fit the items'
            attributes.
        """
        return self._recommend(requests, range(len(requests)))

    def _recommend(
        self, requests: Sequence[Request], numbers: Sequence[int], explorer: Explorer | None = None
    ) -> list[Answer]:
        """:meth:`recommend` for requests that have these numbers in the call, for messages."""
        visible = [
            self._sight.see(number, request)
            for number, request in zip(numbers, requests, strict=True)
        ]
        plans = [
            self.catalogue.plan(request, f"request {number}")
            for number, request in zip(numbers, requests, strict=True)
        ]
        attributes = self._attributes.encode([request.attributes for request in requests], numbers)
        longest = max((max(r.depth, len(r.friends or ())) for r in requests), default=1)
        longest = max(longest, explorer.pool) if explorer is not None else longest
        size = self._chunk_size(longest)
        answers: list[Answer] = []
        for start in range(0, len(requests), size):
            chunk = slice(start, start + size)
            asked = Asked(requests[chunk], visible[chunk], attributes.take(chunk))
            answers += self._answer(asked, plans[chunk], explorer)
        return answers

    def answer(
        self,
        requests: Sequence[AnyRequest],
        numbers: Sequence[int] | None = None,
        explorer: Explorer | None = None,
    ) -> list[AnyAnswer]:
        """:meth:`recommend`, where some of the requests may ask for similar items.

        Parameters
        ----------
        requests : Sequence[AnyRequest]
            The requests of a call, or some of them.
        numbers : Sequence[int] | None
            The numbers of the requests in their call, for messages; by default from 0.
        explorer : Explorer | None
            Draws the order of lists; by default lists are not explored.

        Raises
        ------
        RequestError
            As in :meth:`recommend` or
            :meth:`Similar.answer <recsys.serving.similar.Similar.answer>`.
        """
        numbers = range(len(requests)) if numbers is None else numbers
        asked = [
            (row, number)
            for row, number in zip(requests, numbers, strict=True)
            if isinstance(row, Request)
        ]
        recommended = iter(
            self._recommend([row for row, _ in asked], [number for _, number in asked], explorer)
        )
        return [
            (
                self.similar.answer([row], number)[0]
                if isinstance(row, SimilarRequest)
                else next(recommended)
            )
            for row, number in zip(requests, numbers, strict=True)
        ]

    def recommend_users(
        self,
        user_ids: Sequence[str],
        k: int,
        exclude_seen: bool | None = None,
        at: int | None = None,
    ) -> Lists:
        """The lists of :meth:`recommend` for requests with only a user id, as arrays without an
        object per user.

        Parameters
        ----------
        user_ids : Sequence[str]
            Known or unknown users.
        k : int
            Items per list.
        exclude_seen : bool | None
            Whether to leave out items that the user already had; None: as the model was evaluated.
        at : int | None
            Time of the requests in seconds since the epoch; None: the time of the newest event.
        """
        users_B = np.array([self.user_row(user_id) for user_id in user_ids], dtype=np.int32)
        known = self._histories.take(users_B[users_B >= 0])
        lengths_B = np.zeros(len(users_B), dtype=np.int64)
        lengths_B[users_B >= 0] = known.lengths_U
        offsets_B1 = np.concatenate([[0], np.cumsum(lengths_B)]).astype(np.int64)
        asked_at_B = np.full(len(users_B), self.newest if at is None else at, dtype=np.int64)
        queries = as_queries(replace(known, users_U=users_B, offsets_U1=offsets_B1), asked_at_B)
        nothing = self._attributes.encode([None])
        names, size = len(self.speaking), self._chunk_size(k)
        found = Lists(
            np.full((len(users_B), k), -1, dtype=np.int32),
            np.zeros((len(users_B), k)),
            np.zeros((len(users_B), names, k)),
            np.zeros(len(users_B), dtype=bool),
            np.zeros(len(users_B), dtype=bool),
        )
        excludes = self._excludes(exclude_seen)
        order_B = np.argsort(lengths_B, kind="stable")  # similar lengths in one chunk: less padding
        for start in range(0, len(users_B), size):
            rows_b = order_B[start : start + size]
            piece = queries.take(rows_b)
            attributes = nothing.take(torch.zeros(len(rows_b), dtype=torch.int64))
            with torch.inference_mode():
                parts = self.model.contributions(piece, {"profile": attributes})
                hidden = self._hidden(piece, np.full(len(rows_b), excludes))
                found_b = self._standings(parts, hidden)
                top_bR, usable_b = found_b.top(k), found_b.usable_B
                shares_bKR = found_b.shares(top_bR)[:, self._speaking_K]
            scores_bR = np.where(
                usable_b[:, None], shares_bKR.sum(1), self.bundle.popularity_N[top_bR]
            )
            best_bR = np.where(top_bR < 0, -np.inf, np.where(usable_b[:, None], scores_bR, 0.0))
            order_bR = np.argsort(-best_bR, axis=1, kind="stable")  # as in :meth:`_page`
            found.items_BR[rows_b] = np.take_along_axis(top_bR, order_bR, 1)
            found.scores_BR[rows_b] = np.take_along_axis(scores_bR, order_bR, 1)
            found.shares_BKR[rows_b] = np.take_along_axis(shares_bKR, order_bR[:, None], 2)
            found.of_model_B[rows_b] = usable_b
            found.personal_B[rows_b] = found_b.personal_B
        return found

    def _excludes(self, asked: bool | None) -> bool:
        """Whether seen items are left out: as requested, or by default as the model was
        evaluated.
        """
        return self.bundle.exclude_seen if asked is None else asked

    def num_scored(self, longest: int) -> int:
        """Number of items that are scored exactly for a list of ``longest`` items."""
        return (
            self.bundle.index.wanted(longest)
            if self.bundle.index is not None
            else self.bundle.num_items
        )

    def _chunk_size(self, longest: int) -> int:
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

    @torch.inference_mode()
    def _answer(
        self, asked: Asked, plans: Sequence[Plan], explorer: Explorer | None = None
    ) -> list[Answer]:
        requests = asked.requests
        queries, parts = self.parts(asked)
        exclude_B = np.array(
            [self._excludes(request.exclude_seen) for request in requests], dtype=bool
        )
        hidden = self._hidden(queries, exclude_B, plans)
        standings = self._standings(parts, hidden, plans)
        pages, drawn = self._pages(standings, requests, explorer)
        shares_BKR = standings.shares(pages)[:, self._speaking_K]
        answers = [
            self._page(standings, asked, row, pages[row], shares_BKR[row], plan, drawn.get(row))
            for row, plan in enumerate(plans)
        ]
        for row in (row for row, request in enumerate(requests) if request.explain):
            said = self._explainer.explain(
                asked.row(row), answers[row], bool(standings.usable_B[row])
            )
            answers[row] = replace(answers[row], explanations=said)
        return answers

    def parts(self, asked: Asked) -> tuple[Queries, Contributions]:
        """The queries of requests, and the contributions of the granularities to their scores."""
        queries = queries_of(asked.visible, self._histories.targets_T)
        texts = self.past_texts(asked.visible) if asked.user_text is None else asked.user_text
        given = {
            "friends": friends_of(asked.visible),
            "profile": asked.attributes,
            "user_text": texts if texts is not None and texts.shape[1] else None,
        }
        return queries, self._parts(asked.requests, queries, brought(given))

    def _hidden(
        self, queries: Queries, exclude_B: Array, plans: Sequence[Plan] = ()
    ) -> tuple[Array, Array]:
        """The items to leave out, as row and item numbers in order of rows."""
        histories = queries.histories
        is_hidden_E = np.repeat(exclude_B, histories.lengths_U) & histories.are_targets_E
        rows_E = np.repeat(np.arange(len(queries)), histories.lengths_U)[is_hidden_E]
        hidden_E = histories.items_E[is_hidden_E].astype(np.int64)
        if not any(len(plan.excluded) for plan in plans):
            return rows_E, hidden_E
        rows_E = np.concatenate(
            [rows_E, *(np.full(len(plan.excluded), row) for row, plan in enumerate(plans))]
        )
        hidden_E = np.concatenate([hidden_E, *(plan.excluded for plan in plans)])
        order_E = np.argsort(rows_E, kind="stable")
        return rows_E[order_E], hidden_E[order_E]

    def _standings(
        self, parts: Contributions, hidden: tuple[Array, Array], plans: Sequence[Plan] = ()
    ) -> RequestScores:
        # By the Cauchy–Schwarz inequality this bounds every share and score, so all are finite
        # where it is.
        added, num_rows = parts.added, len(parts.weights_BK)
        bound_B = parts.vectors_BKD.norm(dim=2).sum(1) * self._longest_item + added.sizes(num_rows)
        usable_B = torch.isfinite(bound_B) & (bound_B > 0)
        personal_B = usable_B & (parts.weights_BK[:, self._personal_K] != 0).any(1)
        known = usable_B.numpy(), personal_B.numpy()
        return RequestScores(self._shelf, parts.where(usable_B), *known, hidden, tuple(plans))

    def _pages(
        self, standings: RequestScores, requests: Sequence[Request], explorer: Explorer | None
    ) -> tuple[Array, dict[int, list[float]]]:
        """The items of every page: [B, longest k], −1 after the end; and row → propensities of
        explored pages.
        """
        depth = max(request.depth for request in requests)
        depth = max(depth, explorer.pool) if explorer is not None else depth
        drawn: dict[int, list[float]] = {}
        top_BR = standings.top(depth)
        pages = np.full((len(requests), max(request.k for request in requests)), -1, dtype=np.int32)
        for row, request in enumerate(requests):
            mine, reached = top_BR[row], depth
            if explorer is not None and explorer.explores(request):
                shown, chances = explorer.page(
                    request, mine[mine >= 0], partial(standings.scores, row)
                )
                pages[row, : len(shown)], drawn[row] = shown, chances.tolist()
                continue
            while True:
                items = mine[mine >= 0]
                is_whole = len(items) < reached or reached >= self.bundle.num_items
                page = self.pager.cut(request, items, is_whole, partial(standings.scores, row))
                if page is not None:
                    break
                reached = min(_DEEPER * reached, self.bundle.num_items)
                mine = standings.of_row(row).top(reached)[0]
            pages[row, : len(page)] = page
        return pages, drawn

    def _page(
        self,
        standings: RequestScores,
        asked: Asked,
        row: int,
        page_R: Array,
        shares_KR: Array,
        plan: Plan,
        propensities: list[float] | None = None,
    ) -> Answer:
        request, seen = asked.requests[row], asked.visible[row]
        shares_KR, page_R = shares_KR[:, page_R >= 0], page_R[page_R >= 0]
        raised_R = standings.raised(row, page_R)
        is_of_model = bool(standings.usable_B[row])
        scores_R = (
            shares_KR.sum(0) if is_of_model else self.bundle.popularity_N[page_R].astype(np.float64)
        )
        scores_R = scores_R if raised_R is None else scores_R + raised_R
        if not is_reordered(request) and is_of_model and propensities is None:
            # The ranking used float32 scores; float64 scores may differ in the last digits.
            order_R = np.argsort(-scores_R, kind="stable")
            page_R, scores_R, shares_KR = page_R[order_R], scores_R[order_R], shares_KR[:, order_R]
            raised_R = None if raised_R is None else raised_R[order_R]
        shares = (
            {name: shares_KR[k].tolist() for k, name in enumerate(self.speaking)}
            if is_of_model
            else {}
        )
        boosts = None
        if raised_R is not None and plan.selection is not None and plan.selection.log_N is not None:
            boosts = [
                float(f"{factor:.6g}")
                for factor in np.exp(plan.selection.log_N[page_R].astype(np.float64))
            ]
            shares |= {BOOST: raised_R.tolist()} if is_of_model else {}
        return Answer(
            user_id=request.user_id,
            item_ids=[self.bundle.item_ids[item] for item in page_R],
            titles=[self.bundle.titles[item] for item in page_R],
            scores=scores_R.tolist(),
            shares=shares,
            source="model" if standings.personal_B[row] else "popularity",
            unknown_items=seen.unknown,
            unknown_friends=seen.unknown_friends,
            boosts=boosts,
            unknown_in_rules=dict(plan.unknown) or None,
            propensities=propensities,
        )

    def _parts(
        self, requests: Sequence[Request], queries: Queries, brought: Mapping[str, Any]
    ) -> Contributions:
        """The contributions for every request, at the horizon that it asks for."""
        horizons_B = np.array([request.horizon for request in requests])
        if (horizons_B == 1).all():
            return self.model.contributions(queries, brought)
        pieces: list[tuple[Tensor, Contributions]] = []
        for horizon in np.unique(horizons_B).tolist():
            rows_b = torch.from_numpy(np.flatnonzero(horizons_B == horizon))
            own = {
                signal: rows_BX[rows_b] if isinstance(rows_BX, Tensor) else rows_BX.take(rows_b)
                for signal, rows_BX in brought.items()
            }
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
        if self._reader is None:
            return None
        stored_U = self._histories.lengths_U
        is_new = [seen.user < 0 or len(seen.items_E) > stored_U[seen.user] for seen in visible]
        pasts = [
            (s.items_E, s.types_E) if new else None for s, new in zip(visible, is_new, strict=True)
        ]
        return self._reader.vectors(pasts)
