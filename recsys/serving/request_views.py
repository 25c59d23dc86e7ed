"""The model's view of requests: stored events and those of the request, as queries.

Legend: E events, F friends, C context columns, B requests.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys.bundle.layout import Bundle
from recsys.data.attributes import AttributeRows
from recsys.data.context_columns import encode_request
from recsys.data.histories import Array, Histories, Queries
from recsys.errors import RequestError, valid_instead
from recsys.serving.requests import Request


@dataclass(frozen=True)
class RequestView:
    """The model's view of one request: events, oldest first."""

    user: int  # dense id, −1 for an unknown user
    items_E: Array
    types_E: Array
    times_E: Array
    values_E: Array  # NaN for events of the request
    context_EC: Array
    asked_C: Array  # context at the time of the request
    asked_at: int  # time of the request in seconds since the epoch
    unknown: list[str]  # items of the request's history that the model does not know
    friends_F: list[int]  # dense ids, each once
    unknown_friends: list[str]

    def without(self, item: int) -> RequestView:
        """The same request as if the user had never had an item."""
        kept_E = self.items_E != item
        names = ("items_E", "types_E", "times_E", "values_E", "context_EC")
        return replace(self, **{name: getattr(self, name)[kept_E] for name in names})


@dataclass(frozen=True)
class EncodedRequests:
    """Requests with everything that the model reads of them."""

    requests: Sequence[Request]
    visible: Sequence[RequestView]
    attributes: AttributeRows
    user_text: Tensor | None = (
        None  # text vectors of the histories; None: the language model encodes them
    )

    def row(self, row: int) -> EncodedRequests:
        """One request alone."""
        return EncodedRequests(
            self.requests[row : row + 1],
            self.visible[row : row + 1],
            self.attributes.take(slice(row, row + 1)),
        )


class RequestViewer:
    """Turns requests to a bundle into :class:`RequestView`."""

    def __init__(
        self,
        bundle: Bundle,
        histories: Histories,
        user_row: Callable[[str], int],
        item_rows: Mapping[str, int],
    ) -> None:
        self._bundle, self._histories = bundle, histories
        self._user_row, self._item_rows = user_row, item_rows
        self._types = {name: number for number, name in enumerate(bundle.info.event_types)}
        self._default_type = self._types.get(bundle.info.default_event_type, 0)
        self._ordered = bundle.model.sizes.ordered

    def view(self, index: int, request: Request) -> RequestView:
        """The stored events of the user, then those of the request; ``index`` is its number, for
        messages.

        Raises
        ------
        RequestError
            An event type or context that the model does not know.
        """
        user = self._user_row(request.user_id) if request.user_id is not None else -1
        stored, context_columns = self._histories, self._bundle.context
        span = slice(*stored.offsets_U1[user : user + 2]) if user >= 0 else slice(0, 0)
        seen = (
            set(stored.items_E[span].tolist()) if request.history and not self._ordered else set()
        )
        friends = {
            name: self._user_row(name) for name in request.friends or [] if name != request.user_id
        }
        items, types, times, contexts, unknown = [], [], [], [], []
        for position, event in enumerate(request.history or []):
            number = self._item_rows.get(event.item_id, -1)
            kind = self._type(index, position, event.event_type)
            context_C = encode_request(
                context_columns, event.context, f"request {index}: history[{position}].context"
            )
            if number < 0:
                unknown.append(event.item_id)
            elif number not in seen:
                items.append(number)
                types.append(kind)
                times.append(event.seconds)
                contexts.append(context_C)
                if not self._ordered:  # without order a history is a set: every item counts once
                    seen.add(number)
        return RequestView(
            user,
            np.append(stored.items_E[span], np.array(items, dtype=np.int32)),
            np.append(stored.types_E[span], np.array(types, dtype=np.uint8)),
            np.append(stored.times_E[span], np.array(times, dtype=np.int64)),
            np.append(stored.values_E[span], np.full(len(items), np.nan, dtype=np.float32)),
            np.concatenate([stored.context_EC[span], *(context_C[None] for context_C in contexts)]),
            encode_request(context_columns, request.context, f"request {index}: context"),
            request.seconds if request.at is not None else int(time.time()),
            unknown,
            [row for row in friends.values() if row >= 0],
            [name for name, row in friends.items() if row < 0],
        )

    def _type(self, index: int, position: int, name: str | None) -> int:
        if name is None:
            return self._default_type
        if name not in self._types:
            raise RequestError(
                f"request {index}: history[{position}].event_type: got {name!r};"
                f" {valid_instead(name, self._types)}"
            )
        return self._types[name]


def queries_of(visible: Sequence[RequestView], targets_T: Array) -> Queries:
    """Views of requests as queries without targets."""
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
    context_BC = np.stack([seen.asked_C for seen in visible])
    return Queries.without_targets(histories, context_BC=context_BC, asked_at_B=asked_at_B)


def friends_of(visible: Sequence[RequestView]) -> Tensor | None:
    """The friends that requests name: [B, F], −1 after the end; None where no request names any."""
    width = max((len(seen.friends_F) for seen in visible), default=0)
    if width == 0:
        return None
    return torch.tensor([seen.friends_F + [-1] * (width - len(seen.friends_F)) for seen in visible])


def present_signals(found: Mapping[str, Any]) -> dict[str, Any]:
    """The signals of queries in addition to events, without those that are None."""
    return {signal: value for signal, value in found.items() if value is not None}
