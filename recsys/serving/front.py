"""The front of the server, as an ASGI application: what comes in from outside is bounded here, before a model is asked.

Why not the proxy of Ray Serve: it hands a call to a replica when its head is there, so that bodies which never arrive
hold the replica's places; it answers 404 for every path while the application starts and ends; and what it reads has
no bound. Here the head decides first (path, method, token, size), then the body must arrive in time, and a replica
sees whole calls only. ``/health`` waits for none of them.

No Ray is needed here: :class:`Backend` is all that the front knows of the replicas.
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
from recsys.serving.calls import METHODS, CallError, Reply, refusal
from recsys.serving.counts import Counts
from recsys.serving.service import OPEN_TO_ALL, Incoming, Limits, admit, health, too_large

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
_LINGER_S: Final = 2.0  # that the rest of a refused body is read and thrown away, so that its sender sees the refusal
_HELD_BODIES: Final = 64  # of the largest size, that are held in memory at most
_LEAST_AGE_S: Final = 1.0  # of a body that is given up for another one
_SOON: Final = (("Retry-After", "1"),)
_LOG = logging.getLogger(__name__)


class Backend(Protocol):
    """What answers behind the front."""

    async def answer(self, incoming: Incoming) -> Reply:
        """The reply to a call."""
        ...

    async def metrics(self, own: dict[str, Any]) -> Reply:
        """What replicas have counted, and the front itself."""
        ...

    def about(self) -> dict[str, Any] | None:
        """What the model is; None while no replica answers."""
        ...


class Gone(Exception):
    """The caller has closed the connection."""


@dataclass(frozen=True)
class Patience:
    """How long and how much the front waits for."""

    body_timeout_s: float = 10.0
    timeout_s: float = 30.0
    max_bodies: int = 1000
    max_waiting: int = 1000


def limits_of(settings: ServeConfig, tokens: Tokens) -> tuple[Limits, Patience]:
    """The limits of the configuration, and the hashes of the tokens."""
    limits = Limits(
        settings.max_bytes,
        settings.max_requests,
        tokens.callers_sha256,
        settings.max_answers,
        settings.max_scores,
        tokens.stock_sha256,
    )
    waits = Patience(settings.body_timeout_s, settings.timeout_s, settings.max_bodies, settings.max_waiting)
    return limits, waits


@dataclass
class Front:
    """The ASGI application."""

    limits: Limits
    patience: Patience
    backend: Backend
    counts: Counts = field(default_factory=Counts)
    stopping: bool = False
    _reading: dict[int, tuple[float, asyncio.Timeout]] = field(default_factory=dict)
    _held: int = 0  # bytes of bodies
    _waiting: int = 0  # calls that are admitted and not yet answered
    _serial: int = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """One call."""
        if scope["type"] != "http":  # the listener takes no WebSocket; another server might
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1003})
            return
        started, path = time.perf_counter(), str(scope["path"])
        head = _Head.of(scope)
        is_own, is_read = True, False
        try:
            self._look_at(head)
            if path in OPEN_TO_ALL:
                reply = self._health()
            elif path == "/metrics":
                reply = await self.backend.metrics(self.counts.snapshot())
            else:
                body = await self._body(receive, head) if METHODS[path] == "POST" else b""
                is_read, is_own = True, False
                reply = await self._asked(Incoming(head.method, path, head.headers, body), receive)
        except Gone:
            return
        except CallError as error:
            reply, is_own = refusal(path, error), True
        except UserError as error:
            reply, is_own = refusal(path, CallError(400, str(error))), True
        except Exception:
            _LOG.exception("%s failed", path)
            reply, is_own = refusal(path, CallError(500, "internal error; the server's log says more")), True
        if is_own:  # a replica counts what it answers
            known = path if path in METHODS else "other"
            self.counts.add("calls_total", path=known, status=str(reply.status))
            self.counts.took(known, time.perf_counter() - started)
        await self._send(reply, head, send, receive, unread=head.has_body and not is_read)

    def num_open(self) -> int:
        """Calls that are admitted and not yet answered, and bodies that arrive."""
        return self._waiting + len(self._reading)

    def stop(self, patience_s: float) -> None:
        """Refuse what comes from now on; bodies that are on their way may take ``patience_s`` more."""
        self.stopping = True
        latest = asyncio.get_running_loop().time() + patience_s
        for _, timeout in self._reading.values():
            timeout.reschedule(min(timeout.when() or latest, latest))

    def _look_at(self, head: _Head) -> None:
        """Whether the call may go on, by its head alone.

        Raises
        ------
        CallError
            it may not.
        """
        if head.wants_websocket:
            raise CallError(400, "no path here speaks WebSocket; send POST /recommend")
        if self.stopping:
            raise CallError(503, "the server is stopping; ask another one, or later", _SOON)
        admit(head.method, head.path, head.headers, head.tokens, self.limits)

    def _health(self) -> Reply:
        about = self.backend.about()
        if about is None:
            raise CallError(503, "no replica answers yet", _SOON)
        return health(about)

    async def _body(self, receive: Receive, head: _Head) -> bytes:
        """The body, no more of it than may be and no longer than it may take.

        Raises
        ------
        CallError
            it is too large (413), too slow (408), or there are too many (503).
            Gone: the caller went away.
        """
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
                        raise Gone
                    chunk, more = message.get("body", b""), message.get("more_body", False)
                    found += chunk
                    self._held += len(chunk)
                    if len(found) > self.limits.max_bytes:
                        raise too_large(self.limits.max_bytes)
                    if self._held > _HELD_BODIES * max(self.limits.max_bytes, 1 << 20):
                        raise CallError(503, "too many large calls at the same time; ask again", _SOON)
            return bytes(found)
        except TimeoutError:
            raise CallError(
                408,
                f"the body did not arrive in {self.patience.body_timeout_s:g} s (serve.body_timeout_s); send it again",
            ) from None
        finally:
            self._held -= len(found)
            self._reading.pop(number, None)

    def _make_room(self) -> None:
        """For one more body, by giving up the one that takes longest.

        Raises
        ------
        CallError
            all have only begun (503).
        """
        if len(self._reading) < self.patience.max_bodies:
            return
        now = asyncio.get_running_loop().time()
        number, (since, timeout) = next(iter(self._reading.items()))
        if now - since < _LEAST_AGE_S:
            raise CallError(503, "too many calls arrive at the same time (serve.max_bodies); ask again", _SOON)
        del self._reading[number]
        timeout.reschedule(now)

    async def _asked(self, incoming: Incoming, receive: Receive) -> Reply:
        """The reply of a replica; what nobody waits for any more is given up.

        Raises
        ------
        CallError
            too many calls wait (503), or the answer took too long (408).
            Gone: the caller went away.
        """
        if self._waiting >= self.patience.max_waiting:
            raise CallError(503, "too many calls wait for an answer (serve.max_waiting); ask again", _SOON)
        if self.backend.about() is None:
            raise CallError(503, "no replica answers yet", _SOON)
        self._waiting += 1
        answer = asyncio.ensure_future(self.backend.answer(incoming))
        gone = asyncio.ensure_future(_disconnected(receive)) if incoming.method == "POST" else None
        try:
            waited = {answer} if gone is None else {answer, gone}
            await asyncio.wait(waited, timeout=self.patience.timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            if gone is not None and gone.done():
                raise Gone
            raise CallError(408, f"no answer in {self.patience.timeout_s:g} s (serve.timeout_s); ask for less")
        finally:
            self._waiting -= 1
            for task in (answer, gone):
                if task is not None and not task.done():
                    task.cancel()

    async def _send(self, reply: Reply, head: _Head, send: Send, receive: Receive, unread: bool) -> None:
        """The reply; where a body was refused, what is left of it is thrown away for a moment, as a connection that is
        closed with unread bytes is reset, and the caller would not see the refusal.
        """
        named = [("Content-Type", reply.content_type), ("Content-Length", str(len(reply.body))), *reply.headers]
        if unread or self.stopping:
            named.append(("Connection", "close"))
        headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in named]
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": reply.body, "more_body": unread})
        if unread:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LINGER_S):
                    while (message := await receive())["type"] == "http.request" and message.get("more_body", False):
                        pass
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@dataclass(frozen=True)
class _Head:
    """What is known of a call before its body."""

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
        tokens = [value for name, value in given if name.lower() == b"authorization"]
        headers.pop("authorization", None)  # looked at here; nothing behind the front needs to see it
        has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        websocket = "websocket" in headers.get("upgrade", "").lower() or "sec-websocket-key" in headers
        return cls(str(scope["method"]), str(scope["path"]), headers, tokens, has_body, websocket)
