"""The recommender on Ray Serve: a gate that takes calls, replicas that answer, a desk from which they take the model.

Why a desk (an actor) and not Serve's own update of a deployment: a replica then loads the next model beside the one
that answers and changes over between two batches, so no call waits or fails; and one that cannot load it goes on with
the one it has, and says so. The model goes through the object store: it is read and checked once, whatever machines the
replicas are on.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final
from uuid import uuid4

import ray
from ray import serve
from ray.serve.exceptions import RayServeException
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from recsys.bundle.files import Bundle
from recsys.config import ServeConfig
from recsys.errors import ConfigError
from recsys.serving.access import Tokens
from recsys.serving.calls import STOCK, CallError, Reply
from recsys.serving.desk import Desk
from recsys.serving.experiment_split import Side
from recsys.serving.front import Front, limits_of
from recsys.serving.listener import Listener
from recsys.serving.service import Incoming, Job, Limits, Outcome, Slices, read_ahead, service_of
from recsys.serving.stock import Stock, StockChange

APP: Final = "recsys"
DESK: Final = "desk"  # its name where it belongs to the deployment
_LOOK_S: Final = 0.5  # between looks of a replica at the desk
_STOCK_S: Final = 3.0  # that a change of the stock waits until every replica has it
_UNHEARD_S: Final = 15.0  # after which the front says that no replica answers
_LARGE_BODY: Final = 64 << 10  # bytes; a smaller body is read by the replica in a few milliseconds
_NICE: Final = 10  # of the process that reads large bodies: small calls go first
_LAST_BODY_S: Final = 2.0  # for a body that is on its way when the server ends
MORE_ONGOING: Final = 100  # beside the calls that wait: those that ask how a replica is
_SOON: Final = (("Retry-After", "1"),)
_LOG = logging.getLogger(__name__)


class Replica:
    """One process that answers; the front has looked at what it gets.

    ``desk`` is an actor; None where it is the deployment's own, which Serve replaces when it is lost.
    """

    def __init__(self, desk: Any, limits: Limits, settings: ServeConfig) -> None:
        self._is_own_desk = desk is None
        self._desk, self._name = desk or serve.get_deployment_actor(DESK), uuid4().hex
        self._has_ended = False
        self._service = service_of(settings, replace(limits, token_sha256="", stock_sha256=None))
        self._service.restock(ray.get(self._desk.stock.remote()))
        self._serials: dict[Side, int] = {}
        self._failed: dict[int, str] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="answering")
        self._batched.set_max_batch_size(settings.batch_size)  # type: ignore[attr-defined]
        self._batched.set_batch_wait_timeout_s(settings.batch_wait_ms / 1000)  # type: ignore[attr-defined]
        for side, offer in ray.get(self._desk.take.remote()).items():
            self._change(side, offer)
        threading.Thread(target=self._follow, daemon=True, name="following").start()

    async def answer(self, incoming: Incoming) -> Reply:
        """The reply to a call of any path."""
        return await self._service.handle(incoming, self._batched, self._one, self._restock)

    async def _restock(self, change: StockChange) -> tuple[Stock, bool]:
        """Through the desk, where every replica looks twice a second; wait until all have it, within bounds."""
        try:
            changed: Stock = await self._desk.restock.remote(change)
        except ray.exceptions.RayActorError:
            raise CallError(503, "the stock cannot be changed for a moment; ask again", _SOON) from None
        self._service.restock(changed)
        await self._say()
        until = time.monotonic() + _STOCK_S
        while not (everywhere := bool(await self._desk.has_everywhere.remote(changed.revision))):
            if time.monotonic() >= until:
                break
            await asyncio.sleep(0.05)
        return changed, everywhere

    def _say(self) -> Any:
        """Tell the desk what this replica does; a reference to the desk's answer."""
        counts, revision = self._service.counts.snapshot(), self._service.stock.revision
        return self._desk.look.remote(self._name, self._serials, self._failed, counts, revision)

    async def about(self) -> tuple[dict[str, Any], int]:
        """What the model is, and how many items it scores for a list."""
        return self._service.about, self._service.num_scored(1)

    @serve.batch(max_batch_size=1, batch_wait_timeout_s=0.0)  # as __init__ sets them
    async def _batched(self, jobs: list[Job]) -> list[Outcome]:
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._service.answer, jobs)

    async def _one(self, job: Job) -> Outcome:
        """A slice of a large call, between two batches: small calls do not wait for it in their own batch."""
        [outcome] = await asyncio.get_running_loop().run_in_executor(self._pool, self._service.answer, [job])
        return outcome

    async def metrics(self, front: str, counts: dict[str, Any]) -> Reply:
        """The counts of all fronts and replicas, those of the front that asks and of this replica as of now."""
        await self._say()
        snapshots, living = await self._desk.totals.remote(front, counts)
        return self._service.metrics(snapshots, living)

    def _follow(self) -> None:
        """Look at the desk again and again; while it does not answer, go on with what there is."""
        while not self._has_ended:
            time.sleep(_LOOK_S)
            try:
                offered, revision = ray.get(self._say())
                if revision > self._service.stock.revision:
                    self._service.restock(ray.get(self._desk.stock.remote()))
                    offered, _ = ray.get(self._say())  # at once: who changed the stock waits for it
            except ray.exceptions.RayError:
                self._find_desk()
                continue
            for side, serial in offered.items():
                if serial != self._serials.get(side) and serial not in self._failed:
                    self._try_change(side, serial)

    def _find_desk(self) -> None:
        """The desk that Serve has put in place of the one before; it learns of this replica what is out of stock."""
        if self._is_own_desk:
            with suppress(ValueError, RayServeException, ray.exceptions.RayError):  # there is none yet
                self._desk = serve.get_deployment_actor(DESK)
                ray.get(self._desk.recall.remote(self._service.stock))

    def __del__(self) -> None:  # Serve calls it when a replica is stopped, as where fewer are needed
        self._has_ended = True
        with suppress(Exception):
            self._desk.leave.remote(self._name)

    def _try_change(self, side: Side, offered: int) -> None:
        try:
            self._change(side, ray.get(self._desk.take.remote())[side])
            self._service.counts.add("swaps_total")
        except Exception as error:  # whatever it is, the model before it goes on
            _LOG.exception("model %d cannot be loaded; %d goes on", offered, self._serials[side])
            self._failed = {**self._failed, offered: f"{type(error).__name__}: {error}"}
            self._service.counts.add("failed_swaps_total")

    def _change(self, side: Side, offer: tuple[int, dict[str, Any], list[Any]]) -> None:
        serial, about, model = offer
        bundle: Bundle = ray.get(model[0])
        self._service.adopt(bundle, about, side)
        self._serials = {**self._serials, side: serial}


class Reader:
    """Reads large bodies and cuts them, so that neither the front nor a replica stands still over one."""

    def __init__(self) -> None:
        os.nice(_NICE)

    def read(self, path: str, body: bytes, limits: Limits, num_scored: int) -> Slices | CallError:
        """As :func:`~recsys.serving.service.read_ahead`."""
        return read_ahead(path, body, limits, num_scored)


class Replicas:
    """The replicas as the front asks them."""

    def __init__(self, handle: Any, limits: Limits) -> None:
        self._handle, self._limits, self._name = handle, limits, uuid4().hex
        self._reader: Any = ray.remote(num_cpus=0, max_restarts=-1)(Reader).remote()
        self._about: dict[str, Any] = {}
        self._num_scored = 0
        self._seen = -math.inf
        self._looking = asyncio.ensure_future(self._look())

    def about(self) -> dict[str, Any] | None:
        """What a replica has said of its model lately; None when none has said anything."""
        return self._about if time.monotonic() - self._seen < _UNHEARD_S else None

    async def answer(self, incoming: Incoming) -> Reply:
        """Ask a replica; a large body is read elsewhere before.

        Raises
        ------
        CallError
            the body is refused, or the replica ended (503).
        """
        try:
            if len(incoming.body) > _LARGE_BODY and incoming.path != STOCK:
                found = await self._reader.read.remote(incoming.path, incoming.body, self._limits, self._num_scored)
                if isinstance(found, CallError):
                    raise found
                incoming = replace(incoming, body=b"", slices=found)
            reply: Reply = await self._handle.answer.remote(incoming)
            return reply
        except (ray.exceptions.RayActorError, RayServeException):
            raise CallError(503, "the process that answered has ended; ask again", _SOON) from None

    async def metrics(self, own: dict[str, Any]) -> Reply:
        """The counts of the front and the replicas."""
        reply: Reply = await asyncio.wait_for(self._handle.metrics.remote(self._name, own), _UNHEARD_S)
        return reply

    async def _look(self) -> None:
        """Ask a replica again and again what it answers by."""
        while True:
            with suppress(Exception):
                about, self._num_scored = await asyncio.wait_for(self._handle.about.remote(), _UNHEARD_S)
                self._about, self._seen = about, time.monotonic()
            await asyncio.sleep(_LOOK_S)


class _Nobody:
    """The replicas before there are any."""

    def about(self) -> None:
        return None

    async def answer(self, incoming: Incoming) -> Reply:
        raise CallError(503, "no replica answers yet", _SOON)

    async def metrics(self, own: dict[str, Any]) -> Reply:
        raise CallError(503, "no replica answers yet", _SOON)


class Gate:
    """The process that callers reach: the front on its socket."""

    def __init__(self, settings: ServeConfig, port: int, tokens: Tokens) -> None:
        limits, patience = limits_of(settings, tokens)
        self._drain_s = settings.drain_s
        self._front = Front(limits, patience, _Nobody())
        self._host, self._port = settings.host, port
        self._listener: Listener | None = None

    async def listen(self) -> int:
        """Take calls, which are refused until :meth:`open`; the port."""
        self._listener = Listener(self._front, self._host, self._port)
        return self._listener.port

    async def open(self, handle: Any) -> None:
        """Let the replicas behind the handle answer, and wait until one does."""
        replicas = Replicas(handle, self._front.limits)
        self._front.backend = replicas
        while replicas.about() is None:
            await asyncio.sleep(0.05)

    async def lives(self) -> bool:
        """Nothing more than that."""
        return True

    async def close(self) -> int:
        """Refuse new calls, answer those that were admitted, and close the socket; the number of calls given up."""
        if self._listener is None:
            return 0
        patience = self._front.patience
        self._front.stop(min(patience.body_timeout_s, _LAST_BODY_S))
        started = time.monotonic()
        while time.monotonic() - started < self._drain_s or (
            self._front.num_open() and time.monotonic() - started < patience.timeout_s + _LAST_BODY_S
        ):
            await asyncio.sleep(0.02)
        left = self._front.num_open()
        await self._listener.close()
        return left


def recommender(settings: ServeConfig) -> Any:
    """The deployment whose replicas answer."""
    return serve.deployment(
        Replica,
        name="recommender",
        num_replicas=settings.replicas,
        ray_actor_options={"num_cpus": settings.cpus},
        max_ongoing_requests=settings.max_waiting + MORE_ONGOING,
        graceful_shutdown_timeout_s=settings.timeout_s,
        graceful_shutdown_wait_loop_s=0.1,
    )


class Server:
    """The application on the connected Ray cluster, from the first model to :meth:`stop`."""

    def __init__(self, settings: ServeConfig, port: int, tokens: Tokens, stock: Stock | None = None) -> None:
        self._settings, self._port, self._tokens, self._stock = settings, port, tokens, stock
        self._limits = limits_of(settings, tokens)[0]
        self._desk: Any = None
        self._gate: Any = None
        self._handle: Any = None
        self._started = False

    def start(self, models: Mapping[Side, tuple[Bundle, dict[str, Any]]]) -> None:
        """Start the front and the replicas, and wait until they answer.

        Raises
        ------
        ConfigError
            the port was taken meanwhile.
        RuntimeError
            Serve could not start them.
        """
        settings = self._settings
        made: Any = ray.remote(Desk)
        self._desk = made.options(num_cpus=0, scheduling_strategy=_here()).remote(self._stock, settings.stock_file)
        for side, (bundle, about) in models.items():
            self.offer(bundle, about, side)
        self._gate = self._listening()
        serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING", "enable_access_log": False})
        self._started = True
        application = recommender(settings).bind(self._desk, self._limits, settings)
        self._handle = serve.run(application, name=APP, route_prefix=None)
        ray.get(self._gate.open.remote(self._handle))

    def offer(self, bundle: Bundle, about: dict[str, Any], side: Side = "a") -> int:
        """Let the replicas take another model; they do so within a second or the time it takes to load."""
        return int(ray.get(self._desk.offer.remote(about, [ray.put(bundle)], side)))

    def state(self, serial: int) -> tuple[int, int, list[str]]:
        """As :meth:`Desk.state`."""
        found: tuple[int, int, list[str]] = ray.get(self._desk.state.remote(serial))
        return found

    def keep(self) -> bool:
        """Start another front where the one before has ended; whether that was needed."""
        try:
            ray.get(self._gate.lives.remote(), timeout=_UNHEARD_S)
            return False
        except ray.exceptions.GetTimeoutError:  # it is there, and busy
            return False
        except ray.exceptions.RayActorError:
            self._gate = self._listening()
            ray.get(self._gate.open.remote(self._handle))
            return True

    def stop(self) -> int:
        """Answer what was admitted, refuse the rest, and end; the number of calls that were given up."""
        left = 0
        if self._gate is not None:
            with suppress(ray.exceptions.RayError):
                left = int(ray.get(self._gate.close.remote()))
            ray.kill(self._gate)
        if self._started:
            serve.delete(APP)
        if self._desk is not None:
            ray.kill(self._desk)
        return left

    def _listening(self) -> Any:
        """A front on this machine, whose port was looked at."""
        made: Any = ray.remote(Gate)
        gate = made.options(num_cpus=0, scheduling_strategy=_here(), max_concurrency=1000).remote(
            self._settings, self._port, self._tokens
        )
        try:
            ray.get(gate.listen.remote())
        except OSError as error:  # as Ray raises the error of an actor: of its class, and one of its own
            raise ConfigError(
                f"serve.host {self._settings.host}, serve.port {self._port}: cannot be used "
                f"({getattr(error, 'cause', error)}); choose another port, or 0 for a free one"
            ) from None
        return gate


def _here() -> NodeAffinitySchedulingStrategy:
    """On this machine: where the port was looked at, and the stock's file is."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
