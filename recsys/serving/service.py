"""A recommender as a service: one model that answers, another that takes its place, and every path of the server.

Why no Ray here: the class that Ray Serve runs is a thin shell around this one, so what a call means, what is refused,
and that no request is lost when the model changes can be tested in one process.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final
from uuid import uuid4

from recsys.bundle.files import Bundle
from recsys.config import ServeConfig
from recsys.errors import RequestError, UserError
from recsys.serving.access import check_token, token_sha256
from recsys.serving.answer_log import AnswerLog, lines_of
from recsys.serving.calls import (
    INVOCATIONS,
    METHODS,
    RECOMMEND,
    SIMILAR,
    STOCK,
    CallError,
    Form,
    Reply,
    answers_json,
    joined,
    parse_rows,
    read_body,
    read_rows,
    refusal,
    reply_json,
)
from recsys.serving.counts import Counts, exposition
from recsys.serving.experiment_split import Side, Split
from recsys.serving.exploration import Explorer
from recsys.serving.lane import Lane
from recsys.serving.recommender import Recommender
from recsys.serving.requests import Answer, AnyAnswer, AnyRequest, Request
from recsys.serving.size import Bounds, slices
from recsys.serving.stock import Stock, StockChange, parse_change

__all__ = ["Answered", "Incoming", "Job", "Limits", "Outcome", "Service", "token_sha256"]

Job = list[AnyRequest]


@dataclass(frozen=True)
class Answered:
    """The answers to a job, all of one version of the model, or of one version of each side where two answer."""

    answers: list[AnyAnswer]
    version: str  # where two answer, of both
    models: Mapping[Side, tuple[str, str]]  # side → model and version


Outcome = Answered | RequestError
Ask = Callable[[Job], Awaitable[Outcome]]
Held = tuple[Recommender, dict[str, Any]]
Restock = Callable[[StockChange], Awaitable[tuple[Stock, bool]]]
VERSION_HEADER: Final = "X-Model-Version"
OPEN_TO_ALL: Final = ("/health", "/ping")  # who looks whether it lives needs no token
_TRIES: Final = 4  # at a call of several slices, when the model changes in the middle of it
_NUMBER: Final = re.compile(r"^request (\d+)")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What a caller must keep to."""

    max_bytes: int
    max_requests: int = 1000
    token_sha256: str = ""  # of the token that callers send; empty: none
    max_answers: int = 100_000
    max_scores: int = 500_000_000
    stock_sha256: str | None = ""  # of the token of POST /stock; empty: it is closed; None: looked at already

    @property
    def bounds(self) -> Bounds:
        """What a call may ask."""
        return Bounds(self.max_requests, self.max_answers, self.max_scores)


@dataclass(frozen=True)
class Slices:
    """A call that another process has read and cut: its rows as JSON lists."""

    form: Form
    parts: tuple[bytes, ...]
    num_requests: int
    longest: int  # list
    path: str = RECOMMEND

    def requests(self) -> Iterator[Job]:
        """One part after the other, read when it is asked for.

        Raises
        ------
        RequestError
            a malformed request.
        """
        first = 0
        for part in self.parts:
            rows = json.loads(part)
            yield parse_rows(self.path, rows, first)
            first += len(rows)


@dataclass
class _Said:
    """The answers to a call as JSON, the versions that gave them, and the lines of the log."""

    parts: list[bytes] = field(default_factory=list)
    versions: set[str] = field(default_factory=set)
    lines: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Incoming:
    """A call as it comes in; ``slices`` instead of a body that was read already."""

    method: str
    path: str
    headers: Mapping[str, str]  # names in small letters
    body: bytes = b""
    slices: Slices | None = None


def admit(method: str, path: str, headers: Mapping[str, str], tokens: Sequence[bytes], limits: Limits) -> None:
    """Whether a call may be answered at all: all that its head says, before a byte of its body is read.

    Raises
    ------
    CallError
        400, 401, 404, 405, 413 or 415.
    """
    takes = METHODS.get(path)
    if takes is None:
        raise CallError(404, f"{path[:100]}: no such path; there are: {', '.join(METHODS)}")
    if method != takes:
        raise CallError(405, f"{path} takes {takes}, got {method[:20]}", (("Allow", takes),))
    if path == STOCK:
        _admit_stock(tokens, limits.stock_sha256)
    elif path not in OPEN_TO_ALL:
        check_token(tokens, limits.token_sha256)
    if takes == "POST":
        kind = headers.get("content-type", "application/json").split(";")[0].strip().lower()
        if kind != "application/json":
            raise CallError(415, f"Content-Type: got {kind[:80]}, expected application/json")
    announced = headers.get("content-length", "0")
    if announced.isascii() and announced.isdigit() and int(announced[:20]) > limits.max_bytes:
        raise too_large(limits.max_bytes)


def _admit_stock(tokens: Sequence[bytes], kept_sha256: str | None) -> None:
    """Who may change the stock: who has its token, which is another one than that of callers.

    Raises
    ------
    CallError
        401, or 403 where no token is set.
    """
    if kept_sha256 == "":
        raise CallError(
            403,
            "the stock cannot be changed here: start the server with serve.stock_token_env",
        )
    if kept_sha256 is not None:
        check_token(tokens, kept_sha256)


@dataclass
class Service:
    """Answers calls by the model that it holds, or by two, each for its side of the users.

    ``about`` says what the model is: what GET /model shows.
    """

    limits: Limits
    counts: Counts = field(default_factory=Counts)
    split: Split | None = None  # None: one model answers all
    explorer: Explorer | None = None
    log: AnswerLog | None = None
    _held: Mapping[Side, Held] = field(default_factory=dict)
    stock: Stock = field(default_factory=Stock)
    _lane: Lane = field(default_factory=Lane)

    def adopt(self, bundle: Bundle, about: dict[str, Any], side: Side = "a") -> None:
        """Make a recommender of a bundle and, when it has answered once, let it take over a side.

        Calls that are being answered are answered by the one before. What goes wrong here leaves that one in place.
        """
        recommender = Recommender(bundle)
        recommender.catalogue.set_stock(self.stock.out)
        asked = Request(user_id=bundle.user_ids[0] if bundle.user_ids else "nobody")
        recommender.recommend([asked])  # builds what is built at the first question
        self._held = {**self._held, side: (recommender, about)}

    @property
    def about(self) -> dict[str, Any]:
        assert "a" in self._held, "a model is adopted before the first call"
        about = self._held["a"][1]
        if self.split is None or "b" not in self._held:
            return about
        return {**about, "ab": {"share": self.split.share, "model": self._held["b"][1]}}

    def restock(self, stock: Stock) -> None:
        """These items are out of stock from the next answer on, by this model and the next ones.

        An older revision than the one that is there is left out: it came late.
        """
        if stock.revision < self.stock.revision:
            return
        self.stock = stock
        for recommender, _ in self._held.values():
            recommender.catalogue.set_stock(stock.out)

    def answer(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Answers to several calls by one forward pass; a request that the model refuses fails its own call alone."""
        assert "a" in self._held, "a model is adopted before the first call"
        held = self._held
        self.counts.add("batches_total")
        self.counts.add("batched_calls_total", len(jobs))
        models = {side: (str(about.get("uri") or ""), _version(about)) for side, (_, about) in held.items()}
        version = ", ".join(version for _, version in models.values())
        try:
            answers = iter(self._of_sides(held, [request for job in jobs for request in job]))
            return [Answered([next(answers) for _ in job], version, models) for job in jobs]
        except RequestError as error:
            if len(jobs) == 1:
                return [error]
        outcomes: list[Outcome] = []
        for job in jobs:
            try:
                outcomes.append(Answered([*self._of_sides(held, job)], version, models))
            except RequestError as error:
                outcomes.append(error)
        return outcomes

    def _of_sides(self, held: Mapping[Side, Held], requests: Job) -> Sequence[AnyAnswer]:
        """Answers in order, those to users of a side by its model.

        Raises
        ------
        RequestError
            a request that its model refuses.
        """
        if self.split is None or "b" not in held:
            return self._named(held["a"][0].answer(requests, explorer=self.explorer))
        sides = [self.split.side(request) for request in requests]
        found: dict[int, AnyAnswer] = {}
        for side, (recommender, about) in held.items():
            mine = [number for number, of in enumerate(sides) if of == side]
            answers = recommender.answer([requests[number] for number in mine], mine, self.explorer)
            found |= zip(mine, self._named(answers, _version(about), side), strict=True)
        return [found[number] for number in range(len(requests))]

    def _named(
        self, answers: Sequence[AnyAnswer], version: str | None = None, side: Side | None = None
    ) -> list[AnyAnswer]:
        """Recommendations with their version and side, and with an id where they are logged."""

        def named(answer: AnyAnswer) -> AnyAnswer:
            if not isinstance(answer, Answer):
                return answer
            return replace(answer, version=version, side=side, answer_id=uuid4().hex if self.log else None)

        return [named(answer) for answer in answers] if side or self.log else [*answers]

    async def handle(
        self, incoming: Incoming, ask: Ask, ask_alone: Ask | None = None, restock: Restock | None = None
    ) -> Reply:
        """The reply to a call; never raises.

        ``ask`` brings a job to :meth:`answer`, together with others; ``ask_alone`` the slices of a large call.
        ``restock`` makes a change of the stock where all replicas learn of it, and says whether all have it; by
        default only this one does.
        """
        started = time.perf_counter()
        try:
            self._check(incoming)
            reply = await self._reply(incoming, ask, ask_alone or ask, restock or self._restocked)
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
        given = incoming.headers.get("authorization")
        tokens = [] if given is None else [given.encode("latin-1", "replace")]
        admit(incoming.method, incoming.path, incoming.headers, tokens, self.limits)
        if len(incoming.body) > self.limits.max_bytes:
            raise too_large(self.limits.max_bytes)

    async def _reply(self, incoming: Incoming, ask: Ask, ask_alone: Ask, restock: Restock) -> Reply:
        if incoming.path in (RECOMMEND, SIMILAR, INVOCATIONS):
            return await self._recommended(incoming, ask, ask_alone)
        if incoming.path == STOCK:
            stock, everywhere = await restock(parse_change(read_body(incoming.body)))
            self.restock(stock)
            return reply_json(200, {**stock.said(), "unknown": self._unknown(stock), "everywhere": everywhere})
        if incoming.path == "/model":
            return reply_json(200, {**self.about, **({"stock": self.stock.said()} if self.stock.revision else {})})
        if incoming.path == "/metrics":
            return self.metrics([self.counts.snapshot()], 1)
        return health(self.about)

    async def _restocked(self, change: StockChange) -> tuple[Stock, bool]:
        return self.stock.after(change), True

    def _unknown(self, stock: Stock) -> int:
        """How many items that are out of stock the model does not know."""
        assert "a" in self._held, "a model is adopted before the first call"
        recommender = self._held["a"][0]
        return sum(recommender.item_row(item) < 0 for item in stock.out)

    async def _recommended(self, incoming: Incoming, ask: Ask, ask_alone: Ask) -> Reply:
        """The answers to a call, slice by slice, all by one version of the model."""
        found, bounds = incoming.slices, self.limits.bounds
        if found is None:
            rows = read_rows(incoming.path, incoming.body)
            bounds.check_number(len(rows.rows))
            requests = parse_rows(incoming.path, rows.rows)
            longest = max((request.depth for request in requests), default=1)
            bounds.check(requests, self.num_scored(longest))
            cuts = slices(requests, self.num_scored(longest))
            form = rows.form
        else:
            bounds.check_scores(found.num_requests, self.num_scored(found.longest))
            form = found.form
        for _ in range(_TRIES):
            jobs = (requests[cut] for cut in cuts) if found is None else found.requests()
            number = len(cuts) if found is None else len(found.parts)
            answered = await self._answered(jobs, number > 1, ask_alone if number > 1 else ask)
            if answered is not None:
                self._log(answered)
                version = ", ".join(sorted(answered.versions)) or _version(self.about)
                return replace(joined(form, answered.parts), headers=((VERSION_HEADER, version),))
        raise CallError(503, "the model changed again and again while the call was answered", (("Retry-After", "1"),))

    def num_scored(self, longest: int) -> int:
        """Items that the model scores for a list of ``longest``."""
        return max((recommender.num_scored(longest) for recommender, _ in self._held.values()), default=0)

    def metrics(self, snapshots: Sequence[dict[str, Any]], replicas: int) -> Reply:
        """Counts, of this service alone or of several, as Prometheus reads them."""
        model = {name: str(self.about.get(name) or "") for name in ("uri", "version", "created")}
        text = exposition(snapshots, model, replicas)
        return Reply(200, text.encode(), "text/plain; version=0.0.4; charset=utf-8")

    async def _answered(self, jobs: Iterator[Job], is_large: bool, ask: Ask) -> _Said | None:
        """What a call is told; None where another version took over in between."""
        said, version, first = _Said(), "", 0
        for job in jobs:
            async with self._lane.turn(is_large):
                outcome = await ask(job)
                if isinstance(outcome, RequestError):
                    raise _renumbered(outcome, first)
                if said.parts and outcome.version != version:
                    return None
                version, first = outcome.version, first + len(job)
                said.parts.append(answers_json(outcome.answers))
            said.versions |= {getattr(answer, "version", None) or outcome.models["a"][1] for answer in outcome.answers}
            if self.log is not None:
                said.lines += lines_of(job, outcome.answers, outcome.models)
            for answer in outcome.answers:
                self.counts.add("answers_total", source=answer.source)
        return said

    def _log(self, said: _Said) -> None:
        """Write what a call was told."""
        if self.log is not None and said.lines and not self.log.write(said.lines):
            self.counts.add("unlogged_answers_total", len(said.lines))


def service_of(settings: ServeConfig, limits: Limits) -> Service:
    """A service as the configuration says, before it holds a model."""
    explore = settings.explore
    return Service(
        limits,
        split=Split(settings.ab.share, settings.ab.salt) if settings.ab.model else None,
        explorer=Explorer(explore.share, explore.pool, explore.salt) if explore.share else None,
        log=AnswerLog(settings.log) if settings.log else None,
    )


def health(about: Mapping[str, Any]) -> Reply:
    """What GET /health says of a server that answers."""
    return reply_json(200, {"live": True, "ready": True, "model": about.get("uri"), "version": about.get("version")})


def read_ahead(path: str, body: bytes, limits: Limits, num_scored: int) -> Slices | CallError:
    """Read and check a large body away from the process that answers, and cut it; an error is returned, not raised."""
    try:
        rows = read_rows(path, body)
        limits.bounds.check_number(len(rows.rows))
        requests = parse_rows(path, rows.rows)
        limits.bounds.check(requests, num_scored)
    except CallError as error:
        return error
    except UserError as error:
        return CallError(400, str(error))
    parts = tuple(json.dumps(rows.rows[cut]).encode() for cut in slices(requests, num_scored))
    return Slices(rows.form, parts, len(requests), max((request.depth for request in requests), default=1), path)


def _renumbered(error: RequestError, first: int) -> RequestError:
    """The same error, its request counted from the beginning of the call."""
    return RequestError(_NUMBER.sub(lambda found: f"request {int(found[1]) + first}", str(error)))


def too_large(max_bytes: int) -> CallError:
    """The refusal of a body that is too large."""
    return CallError(413, f"the body has more than {max_bytes} bytes; send fewer requests in a call")


def _version(about: Mapping[str, Any]) -> str:
    """The registered version, or when a bundle outside of a registry was made."""
    return str(about.get("version") or about.get("created", ""))
