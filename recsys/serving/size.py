"""Limits on the size of a call, and slices of large calls, so that small calls need not wait for
them.

Why: a server answers one batch after the other. A call with a thousand requests in one piece blocks
every other call until it is done; in slices of a few milliseconds, others are answered in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from recsys.serving.calls import CallError
from recsys.serving.requests import AnyRequest

# Largest size of a slice, so that it takes a few milliseconds. A single request is never cut.
_REQUESTS: Final = 32
_ANSWERS: Final = 500
_EVENTS: Final = 1000
_SCORES: Final = 2**21


@dataclass(frozen=True)
class Bounds:
    """The limits on the size of a call, with the names of the configuration (``serve.…``)."""

    max_requests: int = 1000
    max_answers: int = 100_000
    max_scores: int = 500_000_000

    def check_number(self, num_requests: int) -> None:
        """Check the number of requests, before they are parsed.

        Raises
        ------
        CallError
            Too many requests (413).
        """  # noqa: DOC501
        if num_requests > self.max_requests:
            raise _too_large(f"{num_requests:,} requests", "max_requests", self.max_requests)

    def check(self, requests: Sequence[AnyRequest], num_scored: int) -> None:
        """Check a call against all limits; ``num_scored`` items are scored for each of its
        requests.

        Raises
        ------
        CallError
            The call is too large (413).
        """  # noqa: DOC501
        self.check_number(len(requests))
        answers = sum(request.depth for request in requests)
        if answers > self.max_answers:
            size = (
                f"lists with {answers:,} items in total (k + offset, or the pool of diversify, per"
                " request)"
            )
            raise _too_large(size, "max_answers", self.max_answers)
        self.check_scores(len(requests), num_scored)

    def check_scores(self, num_requests: int, num_scored: int) -> None:
        """Check the number of scores that a call needs.

        Raises
        ------
        CallError
            Too many scores (413).
        """  # noqa: DOC501
        if num_requests * num_scored > self.max_scores:
            size = (
                f"{num_requests * num_scored:,} scores ({num_requests:,} requests × {num_scored:,}"
                " items)"
            )
            raise _too_large(size, "max_scores", self.max_scores)


def _too_large(size: str, key: str, limit: int) -> CallError:
    return CallError(
        413,
        f"got {size}, expected at most {limit:,} in a call; split it into several calls, or raise"
        f" serve.{key}",
    )


def slices(requests: Sequence[AnyRequest], num_scored: int) -> list[slice]:
    """The slices of a call.

    >>> from recsys.serving.requests import Request
    >>> slices([Request(user_id="u", k=200)] * 5, num_scored=100)
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    most = max(1, min(_REQUESTS, _SCORES // max(num_scored, 1)))
    found, start, answers, events = [], 0, 0, 0
    for index, request in enumerate(requests):
        brings = request.num_read
        is_full = (
            index - start >= most or answers + request.depth > _ANSWERS or events + brings > _EVENTS
        )
        if index > start and is_full:
            found.append(slice(start, index))
            start, answers, events = index, 0, 0
        answers, events = answers + request.depth, events + brings
    if start < len(requests):
        found.append(slice(start, len(requests)))
    return found
