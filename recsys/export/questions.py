"""The test queries of an export, and the conversion of requests to the input tensors of the graph.

Legend: B queries, L length of the longest history, C context columns, F friends, S slots and M
numbers of attributes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import torch

from recsys.bundle.layout import Bundle
from recsys.contributions import Contributions
from recsys.data.histories import Array, Queries
from recsys.granularities.profile.attribute_encoding import encoding_of
from recsys.serving.recommender import Recommender
from recsys.serving.request_parsing import parse_requests
from recsys.serving.request_views import friends_of
from recsys.serving.requests import Request

NUM_QUESTIONS: Final = 128
_LENGTHS: Final = (1, 2, 3, 5, 8, 20, 60, 200)  # histories of cold-start users
_DELAYS: Final = (1, 3_600, 30 * 86_400)  # seconds from the newest event of the model to a query
_UNTIMED: Final = 1_900_000_000  # time of the queries for a model without times

Tensors = dict[str, Array]


class Examiner:
    """Answers requests with a bundle, as its recommender does, and gives the same requests as
    tensors.
    """

    def __init__(self, bundle: Bundle) -> None:
        plain = bundle.info.model_copy(update={"user_text": {}})  # texts come as vectors here
        # without the index: a graph is compared with exact scores
        self.bundle = replace(bundle, info=plain, index=None)
        self.recommender = Recommender(self.bundle)
        self.num_context = len(bundle.context)

    def ask(self, requests: Sequence[Request]) -> tuple[Tensors, Contributions]:
        """Requests as the graph's inputs by name, and the model's answers."""
        encoded = self.recommender.scorer.encode(requests)
        texts = self._texts(requests)
        if texts is not None:
            encoded = replace(encoded, user_text=torch.from_numpy(texts))
        queries, parts = self.recommender.scorer.parts(encoded)
        friends = friends_of(encoded.visible)
        found = padded(queries)
        found["friends"] = np.full((len(queries), 1), -1) if friends is None else friends.numpy()
        found["attribute_codes"] = encoded.attributes.codes_XS.numpy().astype(np.int64)
        found["attribute_values"] = encoded.attributes.values_XM.numpy()
        found["user_text"] = (
            np.zeros((len(queries), 0), dtype=np.float32) if texts is None else texts
        )
        return found, parts

    def _texts(self, requests: Sequence[Request]) -> Array | None:
        """Text vectors of histories, zero for those without; None if the model uses no text of
        users.
        """
        width = self.bundle.model.sizes.inputs.get("user_text") or 0
        if not width:
            return None
        texts = np.random.default_rng(1).normal(size=(len(requests), width)).astype(np.float32)
        # half of the users without text, as such users take another way through the model
        texts[::2] = 0.0
        return texts

    def questions(self) -> list[Request]:
        """Varied queries: known users with short and long histories, cold-start users, later
        events, friends, attributes, contexts, and users without any information.
        """
        random = np.random.default_rng(0)
        rows = [self._row(number, random) for number in range(NUM_QUESTIONS)]
        at = [self._after(delay) for delay in _DELAYS]
        return parse_requests(
            [{"at": at[number % len(at)], **row} for number, row in enumerate(rows)]
        )

    @property
    def asked_at(self) -> str:
        """A time after the last event of the model."""
        return self._after(1)

    def _after(self, seconds: int) -> str:
        return datetime.fromtimestamp(
            (self.recommender.newest or _UNTIMED) + seconds, UTC
        ).isoformat()

    def _row(self, number: int, random: np.random.Generator) -> dict[str, Any]:
        users = self.bundle.user_ids
        by_length = np.argsort(self.bundle.histories.lengths_U, kind="stable")
        kind = number % 8 if users else number % 4
        row: dict[str, Any] = {}
        if kind in (0, 1, 2):
            row["history"] = self._history(_LENGTHS[number // 8 % len(_LENGTHS)], random)
        elif kind == 3:
            row["user_id" if number % 16 == 3 else "history"] = (
                # an id that no user has, or nothing at all
                "nobody?" if number % 16 == 3 else []
            )
        else:
            row["user_id"] = users[by_length[random.integers(len(by_length))]]
        if kind == 5:
            row["history"] = self._history(3, random)
        if kind in (2, 6) and users:
            row["friends"] = [users[friend] for friend in random.integers(len(users), size=5)]
        fields = encoding_of(self.bundle.model.sizes)
        if kind in (1, 7) and fields is not None and fields.users:
            row["attributes"] = {field.name: field.example for field in fields.users}
        if self.bundle.context and random.random() < 0.5:
            row["context"] = self._context(random)
        return row

    def _history(self, length: int, random: np.random.Generator) -> list[dict[str, Any]]:
        items, types = self.bundle.item_ids, self.bundle.info.event_types
        start = (self.recommender.newest or _UNTIMED) - length * 5_000
        events: list[dict[str, Any]] = []
        for number, item in enumerate(random.integers(len(items), size=length if items else 0)):
            event: dict[str, Any] = {"item_id": items[item]}
            if types:
                event["event_type"] = types[random.integers(len(types))]
            if random.random() < 0.8:
                event["timestamp"] = datetime.fromtimestamp(start + 5_000 * number, UTC).isoformat()
            if self.bundle.context and random.random() < 0.5:
                event["context"] = self._context(random)
            events.append(event)
        return events

    def _context(self, random: np.random.Generator) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for column in self.bundle.context:
            if column.values is None:
                found[column.name] = column.mean + column.std * float(random.normal())
            elif column.values:
                found[column.name] = column.values[random.integers(len(column.values))]
        return found


def padded(queries: Queries) -> Tensors:
    """Histories as input tensors: the oldest event first, zeros after the end, at least one
    column.
    """
    histories = queries.histories
    lengths_B = histories.lengths_U
    width = max(int(lengths_B.max(initial=0)), 1)
    real_BL = np.arange(width) < lengths_B[:, None]

    def spread(values_E: Array, kind: type) -> Array:
        values_BL = np.zeros((len(queries), width, *values_E.shape[1:]), dtype=kind)
        values_BL[real_BL] = values_E
        return values_BL

    return {
        "history": spread(histories.items_E, np.int64),
        "length": lengths_B.astype(np.int64),
        "event_types": spread(histories.types_E, np.int64),
        "times": spread(histories.times_E, np.int64),
        "values": spread(histories.values_E, np.float32),
        "context": spread(histories.context_EC, np.int64),
        "asked_at": queries.asked_at_B.astype(np.int64),
        "asked_context": queries.context_BC.astype(np.int64),
        "user": histories.users_U.astype(np.int64),
    }
