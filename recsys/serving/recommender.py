"""The recommender answers requests from a bundle: for the server, MLflow's pyfunc and batch
recommendation.

For a known user the model reads the stored events, then those of the request as the newest ones,
and the stored attributes unless the request gives others. An unknown user with a history, friends
or attributes goes through the same forward pass. A request without any of them gets the most
popular items.

Legend: B requests, K granularities, R list length, N items, E events.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Final

import numpy as np
import pyarrow as pa
import torch

from recsys.bundle.layout import Bundle
from recsys.data.histories import Array, Queries, Split
from recsys.data.pseudonyms import pseudonym_lookup
from recsys.retrieval.selection import Catalogue, Plan
from recsys.serving.experiment_split import takes_part
from recsys.serving.explanation import Explainer
from recsys.serving.exploration import Explorer
from recsys.serving.item_similarity import ItemSimilarity
from recsys.serving.page import Pager, is_reordered
from recsys.serving.request_scores import BOOST, RequestScores
from recsys.serving.request_views import EncodedRequests
from recsys.serving.requests import Answer, AnyAnswer, AnyRequest, Request, SimilarRequest
from recsys.serving.scorer import RequestScorer
from recsys.serving.similar import Similar

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
        self._histories = (
            bundle.histories if through == Split.TEST else bundle.histories.through(through)
        )
        self.scorer = RequestScorer(bundle, self._histories, self.user_row, self._item_rows)
        self.catalogue = Catalogue(self._item_rows, bundle.attributes)
        self.similarity = ItemSimilarity(self.model)
        self.pager = Pager(self.catalogue, self.similarity)

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
    def similar(self) -> Similar:
        """Answers requests for similar items."""
        return Similar(self.bundle, self._item_rows, self.catalogue, self.similarity, self.pager)

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
        # the id itself first: a caller may already send the pseudonym
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
        return self.scorer.queries(self.scorer.views(requests, range(len(requests))))

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

    def check(self, request: Request) -> None:
        """Refuse a request that does not fit the model, without answering it.

        Raises
        ------
        RequestError
            As in :meth:`recommend`, for a call with this request alone.
        """
        # ids need no look, which saves most of the time for a file of many requests
        events = request.history or ()
        if (
            request.horizon != 1
            or request.attributes
            or request.context
            or any(event.event_type is not None or event.context for event in events)
        ):
            self.scorer.encode([request])
        if request.filters or request.boost or request.diversify:
            self.catalogue.plan(request, "request 0")

    def _recommend(
        self, requests: Sequence[Request], numbers: Sequence[int], explorer: Explorer | None = None
    ) -> list[Answer]:
        """:meth:`recommend` for requests that have these numbers in the call, for messages."""
        visible = self.scorer.views(requests, numbers)
        plans = [
            self.catalogue.plan(request, f"request {number}")
            for number, request in zip(numbers, requests, strict=True)
        ]
        attributes = self.scorer.attributes.encode(
            [request.attributes for request in requests], numbers
        )
        # friends are gathered like listed items, so they take as much memory
        longest = max((max(r.depth, len(r.friends or ())) for r in requests), default=1)
        longest = max(longest, explorer.pool) if explorer is not None else longest
        size = self.scorer.chunk_size(longest)
        answers: list[Answer] = []
        for start in range(0, len(requests), size):
            chunk = slice(start, start + size)
            encoded = EncodedRequests(requests[chunk], visible[chunk], attributes.take(chunk))
            answers += self._answer(encoded, plans[chunk], explorer)
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
        numbered = [
            (row, number)
            for row, number in zip(requests, numbers, strict=True)
            if isinstance(row, Request)
        ]
        recommended = iter(
            self._recommend(
                [row for row, _ in numbered], [number for _, number in numbered], explorer
            )
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
        queries = self._queries_of_users(user_ids, self.newest if at is None else at)
        num_users, num_names = len(user_ids), len(self.speaking)
        found = Lists(
            np.full((num_users, k), -1, dtype=np.int32),
            np.zeros((num_users, k)),
            np.zeros((num_users, num_names, k)),
            np.zeros(num_users, dtype=bool),
            np.zeros(num_users, dtype=bool),
        )
        excludes, size = self._excludes(exclude_seen), self.scorer.chunk_size(k)
        # similar lengths in one chunk: less padding
        order_B = np.argsort(queries.histories.lengths_U, kind="stable")
        for start in range(0, num_users, size):
            rows_b = order_B[start : start + size]
            self._fill(found, rows_b, queries.take(rows_b), excludes)
        return found

    def _queries_of_users(self, user_ids: Sequence[str], at: int) -> Queries:
        """The stored events of users as queries at one time; unknown users have none."""
        users_B = np.array([self.user_row(user_id) for user_id in user_ids], dtype=np.int32)
        known = self._histories.take(users_B[users_B >= 0])
        lengths_B = np.zeros(len(users_B), dtype=np.int64)
        lengths_B[users_B >= 0] = known.lengths_U
        offsets_B1 = np.concatenate([[0], np.cumsum(lengths_B)]).astype(np.int64)
        at_B = np.full(len(users_B), at, dtype=np.int64)
        return Queries.without_targets(
            replace(known, users_U=users_B, offsets_U1=offsets_B1), asked_at_B=at_B
        )

    def _fill(self, found: Lists, rows_b: Array, queries: Queries, excludes: bool) -> None:
        """Write the lists of some queries to these rows of ``found``."""
        nothing = self.scorer.attributes.encode([None])
        attributes = nothing.take(torch.zeros(len(rows_b), dtype=torch.int64))
        with torch.inference_mode():
            parts = self.model.contributions(queries, {"profile": attributes})
            scores = self.scorer.scores(queries, parts, np.full(len(rows_b), excludes))
            top_bR, usable_b = scores.top(found.items_BR.shape[1]), scores.usable_B
            shares_bKR = scores.shares(top_bR)[:, self._speaking_K]
        scores_bR = np.where(usable_b[:, None], shares_bKR.sum(1), self.bundle.popularity_N[top_bR])
        best_bR = np.where(top_bR < 0, -np.inf, np.where(usable_b[:, None], scores_bR, 0.0))
        order_bR = np.argsort(-best_bR, axis=1, kind="stable")  # as in :meth:`_page`
        found.items_BR[rows_b] = np.take_along_axis(top_bR, order_bR, 1)
        found.scores_BR[rows_b] = np.take_along_axis(scores_bR, order_bR, 1)
        found.shares_BKR[rows_b] = np.take_along_axis(shares_bKR, order_bR[:, None], 2)
        found.of_model_B[rows_b] = usable_b
        found.personal_B[rows_b] = scores.personal_B

    def _excludes(self, wanted: bool | None) -> bool:
        """Whether seen items are left out: as requested, or by default as the model was
        evaluated.
        """
        return self.bundle.exclude_seen if wanted is None else wanted

    def num_scored(self, longest: int) -> int:
        """Number of items that are scored exactly for a list of ``longest`` items."""
        return self.scorer.num_scored(longest)

    @torch.inference_mode()
    def _answer(
        self, encoded: EncodedRequests, plans: Sequence[Plan], explorer: Explorer | None = None
    ) -> list[Answer]:
        requests = encoded.requests
        queries, parts = self.scorer.parts(encoded)
        exclude_B = np.array(
            [self._excludes(request.exclude_seen) for request in requests], dtype=bool
        )
        standings = self.scorer.scores(queries, parts, exclude_B, plans)
        pages, drawn = self._pages(standings, requests, explorer)
        shares_BKR = standings.shares(pages)[:, self._speaking_K]
        answers = [
            self._page(standings, encoded, row, pages[row], shares_BKR[row], plan, drawn.get(row))
            for row, plan in enumerate(plans)
        ]
        for row in (row for row, request in enumerate(requests) if request.explain):
            explanations = self._explainer.explain(
                encoded.row(row), answers[row], bool(standings.usable_B[row])
            )
            answers[row] = replace(answers[row], explanations=explanations)
        return answers

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
            if explorer is not None and takes_part(request):
                shown, chances = explorer.page(
                    request, mine[mine >= 0], partial(standings.scores, row)
                )
                shown, chances = shown[: request.num_allowed], chances[: request.num_allowed]
                pages[row, : len(shown)], drawn[row] = shown, chances.tolist()
                continue
            while True:
                items = mine[mine >= 0]
                is_whole = len(items) < reached or reached >= self.bundle.num_items
                page = self.pager.cut(request, items, is_whole, partial(standings.scores, row))
                if page is not None:
                    break
                # in large steps, so that few rankings are repeated
                reached = min(_DEEPER * reached, self.bundle.num_items)
                # only this row: other requests of the chunk need no deeper ranking
                mine = standings.of_row(row).top(reached)[0]
            page = page[: request.num_allowed]
            pages[row, : len(page)] = page
        return pages, drawn

    def _page(
        self,
        standings: RequestScores,
        encoded: EncodedRequests,
        row: int,
        page_R: Array,
        shares_KR: Array,
        plan: Plan,
        propensities: list[float] | None = None,
    ) -> Answer:
        request, seen = encoded.requests[row], encoded.visible[row]
        shares_KR, page_R = shares_KR[:, page_R >= 0], page_R[page_R >= 0]
        raised_R = standings.raised(row, page_R)
        is_of_model = bool(standings.usable_B[row])
        scores_R = (
            shares_KR.sum(0) if is_of_model else self.bundle.popularity_N[page_R].astype(np.float64)
        )
        scores_R = scores_R if raised_R is None else scores_R + raised_R
        # a diverse or explored page has its own order, which must stay
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
                # float32 logarithms: the request's own factor comes back without rounding noise
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
