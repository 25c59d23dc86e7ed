"""The front of the server, an ASGI application that limits incoming calls before a model answers
them.

Why not the proxy of Ray Serve: it passes a call to a replica as soon as the head has arrived, so
bodies that never arrive take up the replica's capacity. It answers 404 for every path while the
application starts and stops. It reads without a limit.

Here the head is checked first (path, method, token, size). Then the body must arrive in time. A
replica gets complete calls only.
``/health`` and the page ``/docs`` do not wait for other calls.

This module needs no Ray: the front knows the replicas only as a :class:`Backend`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from recsys.config import ServeConfig
from recsys.errors import UserError
from recsys.serving.access import Tokens
from recsys.serving.admission import Limits, admit, too_large
from recsys.serving.api_page import docs
from recsys.serving.calls import DOCS, METHODS, CallError, Reply, refusal
from recsys.serving.openapi import OPEN_TO_ALL
from recsys.serving.prometheus import Counts
from recsys.serving.service import INTERNAL, Incoming, health

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
SOON: Final = (("Retry-After", "1"),)
NOT_READY: Final = (
    "the server is not ready: no replica answers yet; send the call again in a second"
)
# For this time the rest of a refused body is read and dropped, so that its sender gets the reply.
_LINGER_S: Final = 2.0
_HELD_BODIES: Final = 64  # largest number of bodies of the largest size in memory
_LEAST_AGE_S: Final = 1.0  # of a body that is dropped to make room for another one
_LOG = logging.getLogger(__name__)


class Backend(Protocol):
    """The interface through which the front calls the replicas."""

    async def answer(self, incoming: Incoming) -> Reply:
        """The reply to a call."""
        ...

    async def metrics(self, own: dict[str, Any]) -> Reply:
        """The counts of the replicas and of the front (``own``)."""
        ...

    def about(self) -> dict[str, Any] | None:
        """A description of the model; None while no replica answers."""
        ...


class CallerDisconnected(Exception):
    """The caller has closed the connection."""


@dataclass(frozen=True)
class TimeLimits:
    """Time limits of a call in seconds, and how many bodies and calls may wait."""

    body_timeout_s: float = 10.0
    timeout_s: float = 30.0
    max_bodies: int = 1000
    max_waiting: int = 1000


def limits_of(settings: ServeConfig, tokens: Tokens) -> tuple[Limits, TimeLimits]:
    """The limits from the configuration, with the hashes of the tokens."""
    limits = Limits(
        settings.max_bytes,
        settings.max_requests,
        tokens.callers_sha256,
        settings.max_answers,
        settings.max_scores,
        tokens.stock_sha256,
    )
    waits = TimeLimits(
        settings.body_timeout_s, settings.timeout_s, settings.max_bodies, settings.max_waiting
    )
    return limits, waits


@dataclass
class Front:
    """The ASGI application."""

    limits: Limits
    patience: TimeLimits
    backend: Backend
    counts: Counts = field(default_factory=Counts)
    stopping: bool = False
    _reading: dict[int, tuple[float, asyncio.Timeout]] = field(default_factory=dict)
    _held: int = 0  # bytes of bodies
    _waiting: int = 0  # calls that are admitted and not yet answered
    _serial: int = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one call."""
        if (
            scope["type"] != "http"
        ):  # our listener refuses WebSockets, but another ASGI server may not
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1003})
            return
        started, path = time.perf_counter(), str(scope["path"])
        head = _Head.of(scope)
        is_own, is_read = True, False
        try:
            self._check_head(head)
            if path == DOCS:
                reply = await self._docs()
            elif path in OPEN_TO_ALL:
                reply = self._health()
            elif path == "/metrics":
                reply = await self.backend.metrics(self.counts.snapshot())
            else:
                body = await self._body(receive, head) if METHODS[path] == "POST" else b""
                is_read, is_own = True, False
                reply = await self._answered(
                    Incoming(head.method, path, head.headers, body), receive
                )
        except CallerDisconnected:
            return
        except CallError as error:
            reply, is_own = refusal(path, error), True
        except UserError as error:
            reply, is_own = refusal(path, CallError(400, str(error))), True
        except Exception:
            _LOG.exception("%s failed", path)
            # without the error's text, which may name files or ids
            reply, is_own = refusal(path, CallError(500, INTERNAL)), True
        if is_own:  # a replica counts the calls that it answers itself
            known = path if path in METHODS else "other"
            self.counts.add("calls_total", path=known, status=str(reply.status))
            self.counts.took(known, time.perf_counter() - started)
        await self._send(reply, head, send, receive, unread=head.has_body and not is_read)

    def num_open(self) -> int:
        """Number of admitted calls without an answer, and of bodies that are arriving."""
        return self._waiting + len(self._reading)

    def stop(self, patience_s: float) -> None:
        """Refuse new calls from now on; bodies that are arriving get ``patience_s``
        more seconds.
        """
        self.stopping = True
        latest = asyncio.get_running_loop().time() + patience_s
        for _, timeout in self._reading.values():
            timeout.reschedule(min(timeout.when() or latest, latest))

    def _check_head(self, head: _Head) -> None:
        """Check the head of a call.

        Raises
        ------
        CallError
            The call is refused.
        """
        if head.wants_websocket:
            raise CallError(400, "WebSocket is not supported; send POST /recommend")
        if self.stopping:
            raise CallError(
                503, "the server is stopping; send the call again later or to another server", SOON
            )
        admit(head.method, head.path, head.headers, head.tokens, self.limits)

    def _health(self) -> Reply:
        about = self.backend.about()
        if about is None:
            raise CallError(503, NOT_READY, SOON)
        return health(about)

    async def _docs(self) -> Reply:
        """The page of the description; it names nothing of the model, as it needs no token."""
        if self.backend.about() is None:
            raise CallError(503, NOT_READY, SOON)
        return await asyncio.to_thread(docs, self.limits.server)

    async def _body(self, receive: Receive, head: _Head) -> bytes:
        """Read the body within the limits of size and time.

        Raises
        ------
        CallError
            It is too large (413) or too slow (408), or too many bodies are arriving (503).
        CallerDisconnected
            The caller closed the connection.
        """  # noqa: DOC501
        self._make_room()
        self._serial += 1
        number, found = self._serial, bytearray()
        try:
            async with asyncio.timeout(self.patience.body_timeout_s) as timeout:
                self._reading[number] = (asyncio.get_running_loop().time(), timeout)
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise CallerDisconnected
                    chunk, more = message.get("body", b""), message.get("more_body", False)
                    found += chunk
                    self._held += len(chunk)
                    if len(found) > self.limits.max_bytes:
                        raise too_large(self.limits.max_bytes)
                    # at least 1 MiB each: a small serve.max_bytes must not refuse many small bodies
                    if self._held > _HELD_BODIES * max(self.limits.max_bytes, 1 << 20):
                        raise CallError(
                            503,
                            "too many large calls at the same time; send it again in a second",
                            SOON,
                        )
            return bytes(found)
        except TimeoutError:
            raise CallError(
                408,
                f"the body did not arrive within {self.patience.body_timeout_s:g} s"
                " (serve.body_timeout_s); send the call again",
            ) from None
        finally:
            # also after an error, else refused bodies would use up the limit
            self._held -= len(found)
            self._reading.pop(number, None)

    def _make_room(self) -> None:
        """Make room for one more body: drop the one that has been arriving longest.

        Raises
        ------
        CallError
            All bodies have only just begun (503).
        """
        if len(self._reading) < self.patience.max_bodies:
            return
        now = asyncio.get_running_loop().time()
        # a dictionary keeps the order of insertion, so the first body is the oldest
        number, (since, timeout) = next(iter(self._reading.items()))
        if now - since < _LEAST_AGE_S:
            raise CallError(
                503,
                "too many calls arrive at the same time (serve.max_bodies); send it again in a"
                " second",
                SOON,
            )
        del self._reading[number]
        # ends the wait of that call in its own task, which then answers 408
        timeout.reschedule(now)

    async def _answered(self, incoming: Incoming, receive: Receive) -> Reply:
        """The reply of a replica; a call is cancelled when its caller closes the connection.

        Raises
        ------
        CallError
            Too many calls wait (503), or the answer took too long (408).
        CallerDisconnected
            The caller closed the connection.
        """
        if self._waiting >= self.patience.max_waiting:
            raise CallError(
                503,
                "too many calls wait for an answer (serve.max_waiting); send it again in a second",
                SOON,
            )
        if self.backend.about() is None:
            raise CallError(503, NOT_READY, SOON)
        self._waiting += 1
        answer = asyncio.ensure_future(self.backend.answer(incoming))
        gone = asyncio.ensure_future(_disconnected(receive)) if incoming.method == "POST" else None
        try:
            waited = {answer} if gone is None else {answer, gone}
            await asyncio.wait(
                waited, timeout=self.patience.timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            # the answer first: it may be ready at the moment when the caller leaves
            if answer.done():
                return answer.result()
            if gone is not None and gone.done():
                raise CallerDisconnected
            raise CallError(
                408,
                f"no answer within {self.patience.timeout_s:g} s (serve.timeout_s); send fewer"
                " requests in a call, or try again later",
            )
        finally:
            self._waiting -= 1
            for task in (answer, gone):
                if task is not None and not task.done():
                    task.cancel()

    async def _send(
        self, reply: Reply, head: _Head, send: Send, receive: Receive, unread: bool
    ) -> None:
        """Send the reply. Where the body was refused, read and drop the rest of it for a short
        time.

        Why: closing a connection with unread bytes resets it, and the caller would not get the
        reply.
        """
        named = [
            ("Content-Type", reply.content_type),
            ("Content-Length", str(len(reply.body))),
            *reply.headers,
        ]
        # the connection cannot be used again: bytes of this body would be read as the next call
        if unread or self.stopping:
            named.append(("Connection", "close"))
        headers = [
            (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in named
        ]
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        # an open reply keeps uvicorn from closing the connection before the rest is read
        await send({"type": "http.response.body", "body": reply.body, "more_body": unread})
        if unread:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LINGER_S):
                    while (message := await receive())["type"] == "http.request" and message.get(
                        "more_body", False
                    ):
                        pass
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@dataclass(frozen=True)
class _Head:
    """The head of a call: all that is known before its body."""

    method: str
    path: str
    headers: dict[str, str]
    tokens: list[bytes]
    has_body: bool
    wants_websocket: bool

    @classmethod
    def of(cls, scope: MutableMapping[str, Any]) -> _Head:
        given: list[tuple[bytes, bytes]] = list(scope["headers"])
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in given}
        # a list, because the dictionary keeps only the last of several headers
        tokens = [value for name, value in given if name.lower() == b"authorization"]
        headers.pop("authorization", None)  # checked here; the replicas do not need it
        has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        websocket = (
            "websocket" in headers.get("upgrade", "").lower() or "sec-websocket-key" in headers
        )
        return cls(str(scope["method"]), str(scope["path"]), headers, tokens, has_body, websocket)
