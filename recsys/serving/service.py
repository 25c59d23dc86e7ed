"""A recommender as a service: one model that answers, another that takes its place, and every path of the server.

Why no Ray here: the class that Ray Serve runs is a thin shell around this one, so what a call means, what is refused,
and that no request is lost when the model changes can be tested in one process.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from recsys.errors import RequestError, UserError
from recsys.registry.bundle import Bundle
from recsys.serving.calls import INVOCATIONS, METHODS, RECOMMEND, Call, CallError, Reply, read_call, refusal, reply_json
from recsys.serving.counts import Counts, exposition
from recsys.serving.recommender import Recommender
from recsys.serving.requests import Answer, Request

Job = list[Request]


@dataclass(frozen=True)
class Answered:
    """The answers to a job, all of one version of the model."""

    answers: list[Answer]
    version: str


Outcome = Answered | RequestError
Ask = Callable[[Job], Awaitable[Outcome]]
VERSION_HEADER: Final = "X-Model-Version"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What a caller must keep to."""

    max_bytes: int
    max_requests: int
    token_sha256: str = ""  # of the token that callers send; empty: none


@dataclass(frozen=True)
class Incoming:
    """A call as it comes in."""

    method: str
    path: str
    headers: Mapping[str, str]  # names in small letters
    body: bytes = b""


@dataclass
class Service:
    """Answers calls by the model that it holds.

    ``about`` says what the model is: what GET /model shows.
    """

    limits: Limits
    counts: Counts = field(default_factory=Counts)
    _held: tuple[Recommender, dict[str, Any]] | None = None

    def adopt(self, bundle: Bundle, about: dict[str, Any]) -> None:
        """Make a recommender of a bundle and, when it has answered once, let it take over.

        Calls that are being answered are answered by the one before. What goes wrong here leaves that one in place.
        """
        recommender = Recommender(bundle)
        asked = Request(user_id=bundle.user_ids[0] if bundle.user_ids else "nobody")
        recommender.recommend([asked])  # builds what is built at the first question
        self._held = (recommender, about)

    @property
    def about(self) -> dict[str, Any]:
        assert self._held is not None, "a model is adopted before the first call"
        return self._held[1]

    def answer(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Answers to several calls by one forward pass; a request that the model refuses fails its own call alone."""
        assert self._held is not None, "a model is adopted before the first call"
        recommender, about = self._held
        self.counts.add("batches_total")
        self.counts.add("batched_calls_total", len(jobs))
        try:
            answers = iter(recommender.recommend([request for job in jobs for request in job]))
            return [Answered([next(answers) for _ in job], _version(about)) for job in jobs]
        except RequestError as error:
            return [error] if len(jobs) == 1 else [_alone(recommender, job, _version(about)) for job in jobs]

    async def handle(self, incoming: Incoming, ask: Ask) -> Reply:
        """The reply to a call; never raises. ``ask`` brings a job to :meth:`answer`."""
        started = time.perf_counter()
        try:
            self._check(incoming)
            reply = await self._reply(incoming, ask)
        except CallError as error:
            reply = refusal(incoming.path, error)
        except UserError as error:
            reply = refusal(incoming.path, CallError(400, str(error)))
        except Exception:
            _LOG.exception("%s failed", incoming.path)
            reply = refusal(incoming.path, CallError(500, "internal error; the server's log says more"))
        known = incoming.path if incoming.path in METHODS else "other"
        self.counts.add("calls_total", path=known, status=str(reply.status))
        self.counts.took(known, time.perf_counter() - started)
        return reply

    def _check(self, incoming: Incoming) -> None:
        """Whether the call may be answered at all."""
        method = METHODS.get(incoming.path)
        if method is None:
            raise CallError(404, f"{incoming.path}: no such path; there are: {', '.join(METHODS)}")
        if incoming.method != method:
            raise CallError(405, f"{incoming.path} takes {method}, got {incoming.method}", (("Allow", method),))
        if self.limits.token_sha256 and incoming.path not in ("/health", "/ping"):
            _, _, token = incoming.headers.get("authorization", "").partition(" ")
            if not hmac.compare_digest(token_sha256(token), self.limits.token_sha256):
                raise CallError(401, "send the header Authorization: Bearer TOKEN", (("WWW-Authenticate", "Bearer"),))
        if len(incoming.body) > self.limits.max_bytes:
            raise too_large(self.limits.max_bytes)

    async def _reply(self, incoming: Incoming, ask: Ask) -> Reply:
        if incoming.path in (RECOMMEND, INVOCATIONS):
            kind = incoming.headers.get("content-type", "application/json").split(";")[0].strip().lower()
            if kind != "application/json":
                raise CallError(415, f"Content-Type: got {kind}, expected application/json")
            call = read_call(incoming.path, incoming.body, self.limits.max_requests)
            answered = await self._answered(call, ask)
            return replace(call.reply(answered.answers), headers=((VERSION_HEADER, answered.version),))
        about = self.about
        if incoming.path == "/model":
            return reply_json(200, about)
        if incoming.path == "/metrics":
            return self.metrics([self.counts.snapshot()], 1)
        return reply_json(
            200, {"live": True, "ready": True, "model": about.get("uri"), "version": about.get("version")}
        )

    def metrics(self, snapshots: Sequence[dict[str, Any]], replicas: int) -> Reply:
        """Counts, of this service alone or of several, as Prometheus reads them."""
        model = {name: str(self.about.get(name) or "") for name in ("uri", "version", "created")}
        text = exposition(snapshots, model, replicas)
        return Reply(200, text.encode(), "text/plain; version=0.0.4; charset=utf-8")

    async def _answered(self, call: Call, ask: Ask) -> Answered:
        outcome = await ask(call.requests) if call.requests else Answered([], _version(self.about))
        if isinstance(outcome, RequestError):
            raise outcome
        for answer in outcome.answers:
            self.counts.add("answers_total", source=answer.source)
        return outcome


def token_sha256(token: str) -> str:
    """What is kept of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def too_large(max_bytes: int) -> CallError:
    """The refusal of a body that is too large."""
    return CallError(413, f"the body has more than {max_bytes} bytes; send fewer requests in a call")


def _version(about: Mapping[str, Any]) -> str:
    """The registered version, or when a bundle outside of a registry was made."""
    return str(about.get("version") or about.get("created", ""))


def _alone(recommender: Recommender, job: Job, version: str) -> Outcome:
    try:
        return Answered(recommender.recommend(job), version)
    except RequestError as error:
        return error
