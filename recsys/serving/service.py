"""The recommender as a service: every path of the server, with a model that can be replaced at any
time.

Why no Ray here: the class that Ray Serve runs is a thin wrapper around this one. So the meaning of
a call, refusals, and that no request is lost when the model changes can be tested in one process.
"""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from recsys.config import ServeConfig
from recsys.errors import RequestError, UserError
from recsys.serving.admission import Limits, admit, too_large
from recsys.serving.answer_log import AnswerLog, lines_of
from recsys.serving.api_page import docs
from recsys.serving.calls import (
    DOCS,
    INVOCATIONS,
    METHODS,
    OPENAPI,
    RECOMMEND,
    SIMILAR,
    STOCK,
    CallError,
    Reply,
    answers_json,
    joined,
    parse_rows,
    read_body,
    read_rows,
    refusal,
    reply_json,
)
from recsys.serving.experiment_split import Side, Split, takes_part
from recsys.serving.exploration import Explorer
from recsys.serving.interleaving import BOTH, Interleaver
from recsys.serving.large_call_queue import LargeCallQueue
from recsys.serving.large_calls import Slices
from recsys.serving.openapi import VERSION_HEADER, ServerTraits, document
from recsys.serving.prometheus import Counts, exposition
from recsys.serving.request_parsing import one_request
from recsys.serving.requests import Answer, AnyAnswer, Job, Request
from recsys.serving.size import slices
from recsys.serving.stock import Stock, StockChange, parse_change

if TYPE_CHECKING:  # import torch, which only processes that answer need
    from recsys.bundle.layout import Bundle
    from recsys.serving.recommender import Recommender


@dataclass(frozen=True)
class Answered:
    """The answers to a job, all from one version of the model (in an A/B test one version per
    side).
    """

    answers: list[AnyAnswer]
    version: str  # in an A/B test, both versions
    models: Mapping[Side, tuple[str, str]]  # side → model and version


Outcome = Answered | Exception  # the exception fails only its own call
Ask = Callable[[Job], Awaitable[Outcome]]
Held = tuple["Recommender", dict[str, Any]]
Restock = Callable[[StockChange], Awaitable[tuple[Stock, bool]]]
INTERNAL: Final = (
    "internal error: this is a fault of the server, not of the call; the server's log has the"
    " details"
)
_TRIES: Final = 4  # for a call of several slices, where the model changes in the middle of it
_NUMBER: Final = re.compile(r"^request (\d+)")
_LOG = logging.getLogger(__name__)


@dataclass
class _CallAnswers:
    """The answers to a call as JSON, the model versions behind them, and the log lines."""

    parts: list[bytes] = field(default_factory=list)
    versions: set[str] = field(default_factory=set)
    lines: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Incoming:
    """A call as it arrives; ``slices`` replace a body that was read already."""

    method: str
    path: str
    headers: Mapping[str, str]  # names in lower case
    body: bytes = b""
    slices: Slices | None = None


@dataclass
class Service:
    """Answers calls with one model, or in an A/B test with two, each for its side of the users.

    The descriptions (``about``) of the models are what GET /model shows.
    """

    limits: Limits
    counts: Counts = field(default_factory=Counts)
    split: Split | None = None  # None: one model answers all users
    # merges the lists of both models for the users of side b
    interleaver: Interleaver | None = None
    explorer: Explorer | None = None
    log: AnswerLog | None = None
    _held: Mapping[Side, Held] = field(default_factory=dict)
    stock: Stock = field(default_factory=Stock)
    # limits and tokens of the front, which checks the tokens; None: those of ``limits``
    server: ServerTraits | None = None
    _lane: LargeCallQueue = field(default_factory=LargeCallQueue)
    _num_adopted: int = 0
    # the number of adopted models, not the models: a replaced one must not stay in memory
    _described: tuple[int, Reply] | None = None
    _changing: threading.Lock = field(default_factory=threading.Lock)

    def adopt(self, bundle: Bundle, about: dict[str, Any], side: Side = "a") -> None:
        """Load a bundle and, after one successful test request, let it answer a side.

        Running calls finish with the model before it. If this method fails, that model stays in
        place.

        Parameters
        ----------
        bundle : Bundle
            The bundle.
        about : dict[str, Any]
            Description of the model for GET /model.
        side : Side
            Side of the A/B test; "a" without one.
        """
        from recsys.serving.recommender import Recommender

        recommender = Recommender(bundle)
        request = Request(user_id=bundle.user_ids[0] if bundle.user_ids else "nobody")
        recommender.recommend(
            [request]
        )  # fills the caches that the first request would have to fill
        # the stock may change meanwhile, and a new model must not list an item that is out of stock
        with self._changing:
            recommender.catalogue.set_stock(self.stock.out)
            # a new dictionary: running calls keep the one that they began with
            self._held = {**self._held, side: (recommender, about)}
            self._num_adopted += 1

    @property
    def about(self) -> dict[str, Any]:
        """The description of the model, with that of the second model in an A/B test."""
        assert "a" in self._held, "a model is adopted before the first call"
        about = self._held["a"][1]
        if self.split is None or "b" not in self._held:
            return about
        second = {
            "share": self.split.share,
            "interleave": self.interleaver is not None,
            "model": self._held["b"][1],
        }
        return {**about, "ab": second}

    def restock(self, stock: Stock) -> None:
        """Replace the stock, from the next answer on, for this model and later ones.

        A revision older than the current one is ignored: it arrived late.
        """
        with self._changing:
            if stock.revision < self.stock.revision:
                return
            self.stock = stock
            for recommender, _ in self._held.values():
                recommender.catalogue.set_stock(stock.out)

    def answer(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Answer several calls with one forward pass; a call that fails, also by a fault of ours,
        fails alone.
        """
        assert "a" in self._held, "a model is adopted before the first call"
        # read once, so that all jobs of the batch have the same models
        held = self._held
        self.counts.add("batches_total")
        self.counts.add("batched_calls_total", len(jobs))
        models = {
            side: (str(about.get("uri") or ""), _version(about))
            for side, (_, about) in held.items()
        }
        version = ", ".join(version for _, version in models.values())
        try:
            answers = iter(self._answer_by_side(held, [request for job in jobs for request in job]))
            return [Answered([next(answers) for _ in job], version, models) for job in jobs]
        except Exception as error:
            # with several jobs, each is answered again alone, so that only the bad one fails
            if len(jobs) == 1:
                return [error]
        outcomes: list[Outcome] = []
        for job in jobs:
            try:
                outcomes.append(Answered([*self._answer_by_side(held, job)], version, models))
            except Exception as error:
                outcomes.append(error)
        return outcomes

    def _answer_by_side(self, held: Mapping[Side, Held], requests: Job) -> Sequence[AnyAnswer]:
        """Answers in order; each user is answered by the model of their side.

        Raises
        ------
        RequestError
            A model refuses a request.
        """
        if self.split is None or "b" not in held:
            return self._with_ids(held["a"][0].answer(requests, explorer=self.explorer))
        sides = [self.split.side(request) for request in requests]
        found: dict[int, AnyAnswer] = {}
        if self.interleaver is not None:
            found = self._interleaved(held, requests, sides, self.interleaver)
            # side b is the share of users whose lists are merged; others see the first model
            sides = ["a"] * len(requests)
        for side, (recommender, about) in held.items():
            mine = [n for n, of in enumerate(sides) if of == side and n not in found]
            answers = recommender.answer([requests[number] for number in mine], mine, self.explorer)
            found |= zip(mine, self._with_ids(answers, _version(about), side), strict=True)
        return [found[number] for number in range(len(requests))]

    def _interleaved(
        self,
        held: Mapping[Side, Held],
        requests: Job,
        sides: Sequence[Side],
        interleaver: Interleaver,
    ) -> dict[int, AnyAnswer]:
        """Number of a request → its list merged from both models, for the users of side b."""
        mine = {
            number: request
            for number, request in enumerate(requests)
            if sides[number] == "b" and isinstance(request, Request) and takes_part(request)
        }
        if not mine:
            return {}
        each: Job = [interleaver.of_each(request) for request in mine.values()]
        answers = {
            side: [one for one in model.answer(each, [*mine]) if isinstance(one, Answer)]
            for side, (model, _) in held.items()
        }
        merged = [
            interleaver.merged(request, {side: answers[side][row] for side in answers})
            for row, request in enumerate(mine.values())
        ]
        version = ", ".join(_version(about) for _, about in held.values())
        return dict(zip(mine, self._with_ids(merged, version, BOTH), strict=True))

    def _with_ids(
        self, answers: Sequence[AnyAnswer], version: str | None = None, side: str | None = None
    ) -> list[AnyAnswer]:
        """Add version and side to recommendations, and an id where answers are logged."""

        def named(answer: AnyAnswer) -> AnyAnswer:
            if not isinstance(answer, Answer):
                return answer
            return replace(
                answer, version=version, side=side, answer_id=uuid4().hex if self.log else None
            )

        return [named(answer) for answer in answers] if side or self.log else [*answers]

    async def handle(
        self,
        incoming: Incoming,
        ask: Ask,
        ask_alone: Ask | None = None,
        restock: Restock | None = None,
    ) -> Reply:
        """The reply to a call; never raises.

        Parameters
        ----------
        incoming : Incoming
            The call.
        ask : Ask
            Passes a job to :meth:`answer`, in a batch with other jobs.
        ask_alone : Ask | None
            Does the same for the slices of a large call, without a batch; None: ``ask``.
        restock : Restock | None
            Changes the stock for all replicas and says whether all have the change; None: changes
            it in this service only.
        """
        started = time.perf_counter()
        try:
            self._check(incoming)
            reply = await self._reply(
                incoming, ask, ask_alone or ask, restock or self._restock_here
            )
        except CallError as error:
            reply = refusal(incoming.path, error)
        except UserError as error:
            reply = refusal(incoming.path, CallError(400, str(error)))
        except Exception:
            _LOG.exception("%s failed", incoming.path)
            reply = refusal(incoming.path, CallError(500, INTERNAL))
        known = incoming.path if incoming.path in METHODS else "other"
        self.counts.add("calls_total", path=known, status=str(reply.status))
        self.counts.took(known, time.perf_counter() - started)
        return reply

    def _check(self, incoming: Incoming) -> None:
        """Check the head and the size of a call."""
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
            return reply_json(
                200, {**stock.to_json(), "unknown": self._unknown(stock), "everywhere": everywhere}
            )
        if incoming.path == "/model":
            return reply_json(
                200,
                {**self.about, **({"stock": self.stock.to_json()} if self.stock.revision else {})},
            )
        if incoming.path == "/metrics":
            return self.metrics([self.counts.snapshot()], 1)
        if incoming.path == OPENAPI:
            # reading the traits of a model may take long, and other calls must not wait
            return await asyncio.to_thread(self._document)
        if incoming.path == DOCS:
            return await asyncio.to_thread(docs, self.server or self.limits.server)
        return health(self.about)

    def _document(self) -> Reply:
        """The description of the server, with what the current models know."""
        from recsys.serving.model_traits import traits_of

        number, held, kept = self._num_adopted, self._held, self._described
        if kept is None or kept[0] != number:
            traits = traits_of(held["a"][0].bundle)
            if "b" in held:
                traits = traits.merged(traits_of(held["b"][0].bundle))
            content = document(self.server or self.limits.server, traits, self.about)
            kept = self._described = number, reply_json(200, content)
        return kept[1]

    async def _restock_here(self, change: StockChange) -> tuple[Stock, bool]:
        return self.stock.after(change), True

    def _unknown(self, stock: Stock) -> int:
        """Number of items out of stock that the model does not know."""
        assert "a" in self._held, "a model is adopted before the first call"
        recommender = self._held["a"][0]
        return sum(recommender.item_row(item) < 0 for item in stock.out)

    async def _recommended(self, incoming: Incoming, ask: Ask, ask_alone: Ask) -> Reply:
        """The answers to a call, slice by slice, all from one version of the model."""
        found, bounds = incoming.slices, self.limits.bounds
        if found is None:
            rows = read_rows(incoming.path, incoming.body)
            bounds.check_number(len(rows.rows))
            with one_request(rows.form == "one"):
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
            with one_request(form == "one"):
                answered = await self._answered(jobs, number > 1, ask_alone if number > 1 else ask)
            if answered is not None:
                # only when the call is complete: slices of a try that was given up were never shown
                self._log(answered)
                version = ", ".join(sorted(answered.versions)) or _version(self.about)
                return replace(joined(form, answered.parts), headers=((VERSION_HEADER, version),))
        raise CallError(
            503,
            "the model changed repeatedly while the call was being answered; send the call again in"
            " a second",
            (("Retry-After", "1"),),
        )

    def num_scored(self, longest: int) -> int:
        """Number of items that the model scores for a list of ``longest`` items."""
        return max(
            (recommender.num_scored(longest) for recommender, _ in self._held.values()), default=0
        )

    def metrics(self, snapshots: Sequence[dict[str, Any]], replicas: int) -> Reply:
        """The counts of one or several services in Prometheus' text format."""
        model = {name: str(self.about.get(name) or "") for name in ("uri", "version", "created")}
        text = exposition(snapshots, model, replicas)
        return Reply(200, text.encode(), "text/plain; version=0.0.4; charset=utf-8")

    async def _answered(self, jobs: Iterator[Job], is_large: bool, ask: Ask) -> _CallAnswers | None:
        """The answers to all slices of a call; None where the version of the model changed in
        between.
        """  # noqa: DOC501
        collected, version, first = _CallAnswers(), "", 0
        for job in jobs:
            # a turn for each slice, so that several large calls take turns
            async with self._lane.turn(is_large):
                outcome = await ask(job)
                if isinstance(outcome, RequestError):
                    raise _renumbered(outcome, first)
                if isinstance(outcome, Exception):
                    raise outcome
                # one list must not have items of two models
                if collected.parts and outcome.version != version:
                    return None
                version, first = outcome.version, first + len(job)
                collected.parts.append(answers_json(outcome.answers))
            for answer in outcome.answers:
                # a list merged from two models names both
                named = getattr(answer, "version", None) or outcome.models["a"][1]
                collected.versions |= {*named.split(", ")}
            if self.log is not None:
                collected.lines += lines_of(job, outcome.answers, outcome.models)
            for answer in outcome.answers:
                self.counts.add("answers_total", source=answer.source)
        return collected

    def _log(self, collected: _CallAnswers) -> None:
        """Write the answers to a call to the answer log."""
        if self.log is not None and collected.lines and not self.log.write(collected.lines):
            self.counts.add("unlogged_answers_total", len(collected.lines))


def service_of(settings: ServeConfig, limits: Limits) -> Service:
    """A service with the settings of the configuration, without a model yet."""
    explore = settings.explore
    return Service(
        limits,
        split=Split(settings.ab.share, settings.ab.salt) if settings.ab.model else None,
        interleaver=Interleaver(settings.ab.salt) if settings.ab.interleave else None,
        explorer=Explorer(explore.share, explore.pool, explore.salt) if explore.share else None,
        log=AnswerLog(settings.log) if settings.log else None,
        server=replace(
            limits.server,
            needs_token=bool(settings.token_env),
            takes_stock=bool(settings.stock_token_env),
        ),
    )


def health(about: Mapping[str, Any]) -> Reply:
    """The reply to GET /health of a server that is ready."""
    return reply_json(
        200,
        {"live": True, "ready": True, "model": about.get("uri"), "version": about.get("version")},
    )


def _renumbered(error: RequestError, first: int) -> RequestError:
    """The same error with the number of its request counted from the beginning of the call."""
    return RequestError(_NUMBER.sub(lambda found: f"request {int(found[1]) + first}", str(error)))


def _version(about: Mapping[str, Any]) -> str:
    """The registered version, or the time of creation for a bundle outside a registry."""
    return str(about.get("version") or about.get("created", ""))
