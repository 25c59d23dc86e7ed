"""The recommender: a bundle that answers requests. The same code serves MLflow's pyfunc and batch recommendation.

A known user is their stored events plus the request's as the newest ones, and their stored attributes where the
request gives no others; an unknown user with a history, friends or attributes goes through the same forward pass; who
gives nothing to go by gets the most popular items.

Legend: B requests, K granularities, R list length, D width, N items, E events, F friends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from recsys.data.attributes import AttributeRows, RequestEncoder
from recsys.data.context import encode_request
from recsys.data.histories import NO_TIMES, Array, Histories, Queries, Split
from recsys.data.pseudonyms import known_as
from recsys.errors import RequestError, choices
from recsys.evaluation.ranking import top_items
from recsys.granularities.profile.encoding import encoding_of
from recsys.parts import Parts
from recsys.registry.bundle import Bundle, read_bundle
from recsys.serving.requests import Answer, Request
from recsys.serving.retrieval import exact_top
from recsys.serving.user_text import PastReader

MAX_CHUNK: Final = 512
_MAX_SCORES: Final = 2**25  # scores held at a time: 128 MB of float32
_MAX_GATHERED: Final = 2**23  # numbers gathered at a time for the shares or of friends: 64 MB of float64


@dataclass(frozen=True)
class _Visible:
    """What the model sees of one request: events, oldest first."""

    user: int  # dense id, -1 where unknown
    items_E: Array
    types_E: Array
    times_E: Array
    values_E: Array  # NaN where the request does not say
    context_EC: Array
    asked_C: Array  # context at the moment of asking
    asked_at: int  # that moment, in seconds since the epoch
    unknown: list[str]
    friends_F: list[int]  # dense ids, each once
    unknown_friends: list[str]


@dataclass(frozen=True)
class Lists:
    """Recommendations as arrays, a row a user, best first."""

    items_BR: Array  # int32, −1 behind the end
    scores_BR: Array  # float64
    shares_BKR: Array  # float64, of no meaning where not of the model
    of_model_B: Array  # bool; False: the most popular items


class Recommender:
    """Answers requests from a bundle.

    ``through`` cuts what is known of users to a part of the data and those before it: ``Split.VALID`` answers as
    evaluation on the test part does; the default knows all.
    """

    def __init__(self, bundle: Bundle, through: Split = Split.TEST) -> None:
        self.bundle, self.model = bundle, bundle.model
        self.names = self.model.names
        self._histories = bundle.histories if through == Split.TEST else bundle.histories.through(through)
        self._types = {name: number for number, name in enumerate(bundle.info.event_types)}
        profile = encoding_of(self.model.sizes)
        self._attributes = RequestEncoder(profile.users if profile else ())
        self._default_type = self._types.get(bundle.info.default_event_type, 0)
        described = bundle.info.user_text
        self._reader = PastReader(described, bundle.titles, bundle.info.event_types) if described else None
        self._longest_item = float(self.model.item_vectors_ND.norm(dim=1).max()) if bundle.num_items else 0.0

    @classmethod
    def load(cls, folder: str | Path) -> Recommender:
        """A recommender from a bundle's folder.

        Raises:
            ArtifactError: no bundle there, or a damaged one.
        """
        return cls(read_bundle(folder))

    @cached_property
    def newest(self) -> int:
        """The time of the newest event that is known of users, in seconds since the epoch; 0 where times are unknown.

        Why: who is asked for without a question of their own is asked for as of the data, so that the lists of a model
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
        """From the id of a request to that of the bundle, which may have pseudonyms."""
        return known_as(self.bundle.info.dataset.get("pseudonyms", {}))

    @cached_property
    def _by_popularity(self) -> Array:
        """All items, the most popular first."""
        popularity_1N = torch.from_numpy(self.bundle.popularity_N.astype(np.float64))[None]
        ranked_1N, _ = top_items(popularity_1N, self.bundle.num_items)
        return np.asarray(ranked_1N[0])

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
        """What the model sees of every request: stored events, then the request's own; asked now unless it says when.

        Raises:
            RequestError: as :meth:`recommend`.
        """
        return _queries([self._see(i, request) for i, request in enumerate(requests)], self._histories.targets_T)

    def recommend(self, requests: Sequence[Request]) -> list[Answer]:
        """One answer a request, in order; one forward pass for all requests of a chunk.

        Exact top-k over the whole catalogue, unless the bundle holds an index of it, whose items are scored exactly;
        ties are ordered as in evaluation. Nothing that is not finite leaves.

        Raises:
            RequestError: an event type, attribute or context that the model does not know, one of a wrong type, or a
                horizon that the model cannot see.
        """
        visible = [self._see(index, request) for index, request in enumerate(requests)]
        attributes = self._attributes.encode([request.attributes for request in requests])
        longest = max((max(r.k, len(r.friends or ())) for r in requests), default=1)
        size = self._chunk_size(longest)
        answers: list[Answer] = []
        for start in range(0, len(requests), size):
            chunk = slice(start, start + size)
            answers += self._answer(requests[chunk], visible[chunk], attributes.take(chunk))
        return answers

    def recommend_users(
        self, user_ids: Sequence[str], k: int, exclude_seen: bool | None = None, at: int | None = None
    ) -> Lists:
        """What :meth:`recommend` answers to users of whom nothing but their id is said, without an object a user.

        ``at`` is the time of asking in seconds since the epoch, by default that of the newest event.
        """
        users_B = np.array([self.user_row(user_id) for user_id in user_ids], dtype=np.int32)
        known = self._histories.take(users_B[users_B >= 0])
        lengths_B = np.zeros(len(users_B), dtype=np.int64)
        lengths_B[users_B >= 0] = known.lengths_U
        offsets_B1 = np.concatenate([[0], np.cumsum(lengths_B)]).astype(np.int64)
        asked_at_B = np.full(len(users_B), self.newest if at is None else at, dtype=np.int64)
        queries = as_queries(replace(known, users_U=users_B, offsets_U1=offsets_B1), asked_at_B)
        nothing = self._attributes.encode([None])
        names, size = len(self.names), self._chunk_size(k)
        found = Lists(
            np.full((len(users_B), k), -1, dtype=np.int32),
            np.zeros((len(users_B), k)),
            np.zeros((len(users_B), names, k)),
            np.zeros(len(users_B), dtype=bool),
        )
        excludes = self._excludes(exclude_seen)
        order_B = np.argsort(lengths_B, kind="stable")  # like lengths together: less padding
        for start in range(0, len(users_B), size):
            rows_b = order_B[start : start + size]
            piece = queries.take(rows_b)
            attributes = nothing.take(torch.zeros(len(rows_b), dtype=torch.int64))
            with torch.inference_mode():
                parts = self.model.parts(piece, {"profile": attributes})
                top_bR, shares_bKR, usable_b = self._top(piece, parts, np.full(len(rows_b), excludes), k)
            scores_bR = np.where(usable_b[:, None], shares_bKR.sum(1), self.bundle.popularity_N[top_bR])
            best_bR = np.where(top_bR < 0, -np.inf, np.where(usable_b[:, None], scores_bR, 0.0))
            order_bR = np.argsort(-best_bR, axis=1, kind="stable")  # as in :meth:`_list`
            found.items_BR[rows_b] = np.take_along_axis(top_bR, order_bR, 1)
            found.scores_BR[rows_b] = np.take_along_axis(scores_bR, order_bR, 1)
            found.shares_BKR[rows_b] = np.take_along_axis(shares_bKR, order_bR[:, None], 2)
            found.of_model_B[rows_b] = usable_b
        return found

    def _excludes(self, asked: bool | None) -> bool:
        """Whether what a user had is left out: as asked for, or as the model was evaluated."""
        return self.bundle.exclude_seen if asked is None else asked

    def num_scored(self, longest: int) -> int:
        """Items that are scored exactly for a list of ``longest``."""
        return self.bundle.index.wanted(longest) if self.bundle.index is not None else self.bundle.num_items

    def _chunk_size(self, longest: int) -> int:
        """Requests at a time, so that neither scores nor what is gathered of items or friends takes much memory."""
        width, scored = self.model.item_vectors_ND.shape[1], self.num_scored(longest)
        return max(1, min(MAX_CHUNK, _MAX_SCORES // max(scored, 1), _MAX_GATHERED // (longest * max(width, 1))))

    def _see(self, index: int, request: Request) -> _Visible:
        """The stored events of the user, then those of the request."""
        user = self.user_row(request.user_id) if request.user_id is not None else -1
        stored = self._histories
        span = slice(*stored.offsets_U1[user : user + 2]) if user >= 0 else slice(0, 0)
        seen = set(stored.items_E[span].tolist()) if request.history and not self.model.sizes.ordered else set()
        friends = {name: self.user_row(name) for name in request.friends or [] if name != request.user_id}
        items, types, times, contexts, unknown = [], [], [], [], []
        for place, event in enumerate(request.history or []):
            number = self._item_rows.get(event.item_id, -1)
            kind = self._type(index, place, event.event_type)
            context_C = encode_request(self.bundle.context, event.context, f"request {index}: history[{place}].context")
            if number < 0:
                unknown.append(event.item_id)
            elif number not in seen:
                items.append(number)
                types.append(kind)
                times.append(event.seconds)
                contexts.append(context_C)
                if not self.model.sizes.ordered:  # a history without order is a set
                    seen.add(number)
        return _Visible(
            user,
            np.append(stored.items_E[span], np.array(items, dtype=np.int32)),
            np.append(stored.types_E[span], np.array(types, dtype=np.uint8)),
            np.append(stored.times_E[span], np.array(times, dtype=np.int64)),
            np.append(stored.values_E[span], np.full(len(items), np.nan, dtype=np.float32)),
            np.concatenate([stored.context_EC[span], *(context_C[None] for context_C in contexts)]),
            encode_request(self.bundle.context, request.context, f"request {index}: context"),
            request.seconds if request.at is not None else int(time.time()),
            unknown,
            [row for row in friends.values() if row >= 0],
            [name for name, row in friends.items() if row < 0],
        )

    def _type(self, index: int, place: int, name: str | None) -> int:
        if name is None:
            return self._default_type
        if name not in self._types:
            raise RequestError(
                f"request {index}: history[{place}].event_type: got {name!r}, expected one of: {choices(self._types)}"
            )
        return self._types[name]

    @torch.inference_mode()
    def _answer(self, requests: Sequence[Request], visible: list[_Visible], attributes: AttributeRows) -> list[Answer]:
        queries = _queries(visible, self._histories.targets_T)
        given = {"friends": _friends(visible), "profile": attributes, "user_text": self._past_texts(visible)}
        brought = {signal: found for signal, found in given.items() if found is not None}
        parts = self._parts(requests, queries, brought)
        exclude_B = np.array([self._excludes(request.exclude_seen) for request in requests], dtype=bool)
        longest = max(request.k for request in requests)
        top_BR, shares_BKR, usable_B = self._top(queries, parts, exclude_B, longest)
        return [
            self._list(request, seen, top_BR[row], shares_BKR[row] if usable_B[row] else None)
            for row, (request, seen) in enumerate(zip(requests, visible, strict=True))
        ]

    def _top(self, queries: Queries, parts: Parts, exclude_B: Array, k: int) -> tuple[Array, Array, Array]:
        """The k best items of every query [B, R], their shares [B, K, R], and where they are of the model [B]; the
        most popular items elsewhere."""
        # By Cauchy and Schwarz no share or score of a request is above this, so a finite bound keeps all finite.
        added = parts.added
        bound_B = parts.vectors_BKD.norm(dim=2).sum(1) * self._longest_item + added.sizes(len(queries))
        usable_B = torch.isfinite(bound_B) & (bound_B > 0)
        parts, added = parts.where(usable_B), added.where(usable_B)
        histories = queries.histories
        is_hidden_E = np.repeat(exclude_B, histories.lengths_U) & histories.are_targets_E
        rows_E = np.repeat(np.arange(len(queries)), histories.lengths_U)[is_hidden_E]
        hidden_E = histories.items_E[is_hidden_E].astype(np.int64)
        find = self.bundle.index.top if self.bundle.index is not None else exact_top
        top_BR = find(parts.users_BD, self.model.item_vectors_ND, k, rows_E, hidden_E, added)
        for row in np.flatnonzero(~usable_B.numpy()):
            top_BR[row] = self._popular(k, hidden_E[rows_E == row])
        shares_BKR = parts.shares(self.model.item_vectors_ND, torch.from_numpy(top_BR).long())
        return top_BR, shares_BKR.numpy(), usable_B.numpy()

    def _popular(self, k: int, hidden_E: Array) -> Array:
        """The k items that most users chose, −1 behind the end."""
        ranked_R = self._by_popularity[: k + len(hidden_E)]
        ranked_R = ranked_R[~np.isin(ranked_R, hidden_E)][:k]
        return np.pad(ranked_R, (0, k - len(ranked_R)), constant_values=-1)

    def _parts(self, requests: Sequence[Request], queries: Queries, brought: Mapping[str, Any]) -> Parts:
        """The parts of every request, rolled forward to the horizon that it asks for."""
        horizons_B = np.array([request.horizon for request in requests])
        if (horizons_B == 1).all():
            return self.model.parts(queries, brought)
        pieces: list[tuple[Tensor, Parts]] = []
        for horizon in np.unique(horizons_B).tolist():
            rows_b = torch.from_numpy(np.flatnonzero(horizons_B == horizon))
            own = {
                signal: rows_BX[rows_b] if isinstance(rows_BX, Tensor) else rows_BX.take(rows_b)
                for signal, rows_BX in brought.items()
            }
            pieces.append((rows_b, self.model.parts_ahead(queries.take(rows_b.numpy()), horizon - 1, own)))
        return Parts.gathered(pieces)

    def _past_texts(self, visible: list[_Visible]) -> Tensor | None:
        """Vectors of the pasts that the model has no text of: of new users, and of users with newer events."""
        if self._reader is None:
            return None
        stored_U = self._histories.lengths_U
        is_new = [seen.user < 0 or len(seen.items_E) > stored_U[seen.user] for seen in visible]
        pasts = [(s.items_E, s.types_E) if new else None for s, new in zip(visible, is_new, strict=True)]
        return self._reader.vectors(pasts)

    def _list(self, request: Request, seen: _Visible, top_R: Array, shares_KR: Array | None) -> Answer:
        top_R = top_R[: request.k]
        top_R = top_R[top_R >= 0]
        shares: dict[str, list[float]] = {}
        if shares_KR is None:
            scores_R = self.bundle.popularity_N[top_R].astype(np.float64)
        else:
            shares_KR = shares_KR[:, : len(top_R)]
            order_R = np.argsort(-shares_KR.sum(0), kind="stable")  # ranked in float32: mend the last digits
            top_R, shares_KR = top_R[order_R], shares_KR[:, order_R]
            scores_R = shares_KR.sum(0)
            shares = {name: shares_KR[k].tolist() for k, name in enumerate(self.names)}
        return Answer(
            user_id=request.user_id,
            item_ids=[self.bundle.item_ids[item] for item in top_R],
            titles=[self.bundle.titles[item] for item in top_R],
            scores=scores_R.tolist(),
            shares=shares,
            source="model" if shares_KR is not None else "popularity",
            unknown_items=seen.unknown,
            unknown_friends=seen.unknown_friends,
        )


def _queries(visible: list[_Visible], targets_T: Array) -> Queries:
    """What is seen of the requests, asking without targets."""
    lengths = np.array([len(seen.items_E) for seen in visible], dtype=np.int64)
    histories = Histories(
        np.array([seen.user for seen in visible], dtype=np.int32),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.concatenate([seen.items_E for seen in visible]),
        np.concatenate([seen.types_E for seen in visible]),
        np.concatenate([seen.times_E for seen in visible]),
        np.concatenate([seen.values_E for seen in visible]),
        np.zeros(int(lengths.sum()), dtype=np.uint8),
        np.concatenate([seen.context_EC for seen in visible]),
        targets_T,
    )
    asked_at_B = np.array([seen.asked_at for seen in visible], dtype=np.int64)
    return replace(as_queries(histories, asked_at_B), context_BC=np.stack([seen.asked_C for seen in visible]))


def _friends(visible: list[_Visible]) -> Tensor | None:
    """The friends that requests name: [B, F], -1 behind the end; None when nobody names any."""
    width = max((len(seen.friends_F) for seen in visible), default=0)
    if width == 0:
        return None
    return torch.tensor([seen.friends_F + [-1] * (width - len(seen.friends_F)) for seen in visible])


def as_queries(histories: Histories, asked_at_B: Array = NO_TIMES) -> Queries:
    """Histories that ask without targets, at these times, by default unknown ones."""
    nothing = np.zeros(len(histories) + 1, dtype=np.int64), np.zeros(0, dtype=np.int32)
    return Queries(histories, *nothing, asked_at_B=asked_at_B)
