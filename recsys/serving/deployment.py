"""The recommender on Ray Serve: a front process takes calls, replicas answer them, a model holder
offers the models.

Why a model holder (:class:`~recsys.serving.model_holder.ModelHolder`) and not Serve's own update of
a deployment: a replica loads the next model while the current one answers and switches between two
batches, so no call waits or fails. A replica that cannot load the next model keeps the current
one and reports the error. Models go through the object store: each is read and checked once,
whatever machines the replicas run on.
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
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import ray
from ray import serve
from ray.serve.exceptions import RayServeException
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from recsys.config import ServeConfig
from recsys.errors import ConfigError
from recsys.serving.access import Tokens
from recsys.serving.calls import STOCK, CallError, Reply
from recsys.serving.experiment_split import Side
from recsys.serving.front import NOT_READY, SOON, Front, limits_of
from recsys.serving.listener import Listener
from recsys.serving.model_holder import ModelHolder
from recsys.serving.service import Incoming, Job, Limits, Outcome, Slices, read_ahead, service_of
from recsys.serving.stock import Stock, StockChange

if TYPE_CHECKING:  # imports torch, which only replicas need
    from recsys.bundle.files import Bundle

APP: Final = "recsys"
MODEL_HOLDER: Final = (
    "model_holder"  # name of the model holder where Serve starts it with the deployment
)
_LOOK_S: Final = 0.5  # interval at which a replica polls the model holder
_STOCK_S: Final = 3.0  # longest wait until every replica has a stock change
_UNHEARD_S: Final = 15.0  # without a reply of any replica, after which the front answers 503
_LARGE_BODY: Final = 64 << 10  # bytes; a smaller body is read by the replica in a few milliseconds
_NICE: Final = 10  # niceness of the process that reads large bodies: small calls go first
_LAST_BODY_S: Final = 2.0  # for a body that is still arriving when the server stops
MORE_ONGOING: Final = 100  # status calls to a replica, in addition to calls that wait for an answer
_LOG = logging.getLogger(__name__)


class Replica:
    """One process that answers calls; the front has already checked them.

    Parameters
    ----------
    holder : Any
        Actor handle of the model holder; None where Serve started the model holder with the
        deployment and replaces it when it is lost.
    limits : Limits
        Limits of a call.
    settings : ServeConfig
        The section ``serve`` of the configuration.
    """

    def __init__(self, holder: Any, limits: Limits, settings: ServeConfig) -> None:
        self._is_own_holder = holder is None
        self._holder, self._name = holder or serve.get_deployment_actor(MODEL_HOLDER), uuid4().hex
        self._has_ended = False
        self._service = service_of(settings, replace(limits, token_sha256="", stock_sha256=None))
        self._service.restock(ray.get(self._holder.stock.remote()))
        self._serials: dict[Side, int] = {}
        self._failed: dict[int, str] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="answering")
        self._batched.set_max_batch_size(settings.batch_size)  # type: ignore[attr-defined]
        self._batched.set_batch_wait_timeout_s(settings.batch_wait_ms / 1000)  # type: ignore[attr-defined]
        for side, offer in ray.get(self._holder.take.remote()).items():
            self._load(side, offer)
        threading.Thread(target=self._poll_holder, daemon=True, name="following").start()

    async def answer(self, incoming: Incoming) -> Reply:
        """The reply to a call of any path."""
        return await self._service.handle(
            incoming, self._batched, self._answer_slice, self._restock
        )

    async def _restock(self, change: StockChange) -> tuple[Stock, bool]:
        """Change the stock at the model holder, which every replica polls, and wait for all
        replicas, within bounds.
        """
        try:
            changed: Stock = await self._holder.restock.remote(change)
        except ray.exceptions.RayActorError:
            raise CallError(
                503, "the stock cannot be changed right now; send the call again in a second", SOON
            ) from None
        self._service.restock(changed)
        await self._report_state()
        until = time.monotonic() + _STOCK_S
        while not (everywhere := bool(await self._holder.has_everywhere.remote(changed.revision))):
            if time.monotonic() >= until:
                break
            await asyncio.sleep(0.05)
        return changed, everywhere

    def _report_state(self) -> Any:
        """Report the state of this replica to the model holder; returns a reference to
        its answer.
        """
        counts, revision = self._service.counts.snapshot(), self._service.stock.revision
        return self._holder.look.remote(self._name, self._serials, self._failed, counts, revision)

    async def about(self) -> tuple[dict[str, Any], int]:
        """A description of the model, and the number of items that it scores for a list."""
        return self._service.about, self._service.num_scored(1)

    @serve.batch(max_batch_size=1, batch_wait_timeout_s=0.0)  # __init__ sets the real values
    async def _batched(self, jobs: list[Job]) -> list[Outcome]:
        return await asyncio.get_running_loop().run_in_executor(
            self._pool, self._service.answer, jobs
        )

    async def _answer_slice(self, job: Job) -> Outcome:
        """Answer a slice of a large call between two batches, so that small calls are not in the
        same batch.
        """
        [outcome] = await asyncio.get_running_loop().run_in_executor(
            self._pool, self._service.answer, [job]
        )
        return outcome

    async def metrics(self, front: str, counts: dict[str, Any]) -> Reply:
        """The counts of all fronts and replicas; those of the calling front and of this replica are
        up to date.
        """
        await self._report_state()
        snapshots, living = await self._holder.totals.remote(front, counts)
        return self._service.metrics(snapshots, living)

    def _poll_holder(self) -> None:
        """Poll the model holder; while it does not answer, keep the current models and stock."""
        while not self._has_ended:
            time.sleep(_LOOK_S)
            try:
                offered, revision = ray.get(self._report_state())
                if revision > self._service.stock.revision:
                    self._service.restock(ray.get(self._holder.stock.remote()))
                    # report at once: the caller of POST /stock waits for it
                    offered, _ = ray.get(self._report_state())
            except ray.exceptions.RayError:
                self._find_holder()
                continue
            for side, serial in offered.items():
                if serial != self._serials.get(side) and serial not in self._failed:
                    self._try_load(side, serial)

    def _find_holder(self) -> None:
        """Find the model holder that Serve started after the last one was lost, and send it the
        current stock.
        """
        if self._is_own_holder:
            with suppress(
                ValueError, RayServeException, ray.exceptions.RayError
            ):  # not started yet
                self._holder = serve.get_deployment_actor(MODEL_HOLDER)
                ray.get(self._holder.recall.remote(self._service.stock))

    def __del__(
        self,
    ) -> None:  # Serve calls this when it stops a replica, such as when it scales down
        self._has_ended = True
        with suppress(Exception):
            self._holder.leave.remote(self._name)

    def _try_load(self, side: Side, offered: int) -> None:
        try:
            self._load(side, ray.get(self._holder.take.remote())[side])
            self._service.counts.add("swaps_total")
        except Exception as error:  # whatever the error is, the current model keeps answering
            _LOG.exception(
                "model %d cannot be loaded; model %d keeps answering", offered, self._serials[side]
            )
            self._failed = {**self._failed, offered: f"{type(error).__name__}: {error}"}
            self._service.counts.add("failed_swaps_total")

    def _load(self, side: Side, offer: tuple[int, dict[str, Any], list[Any]]) -> None:
        serial, about, model = offer
        bundle: Bundle = ray.get(model[0])
        self._service.adopt(bundle, about, side)
        self._serials = {**self._serials, side: serial}


class Reader:
    """Reads large bodies and cuts them into slices, so that a large body blocks neither the front
    nor a replica.
    """

    def __init__(self) -> None:
        os.nice(_NICE)

    def read(self, path: str, body: bytes, limits: Limits, num_scored: int) -> Slices | CallError:
        """As :func:`~recsys.serving.service.read_ahead`."""
        return read_ahead(path, body, limits, num_scored)


class Replicas:
    """The replicas, as the front calls them."""

    def __init__(self, handle: Any, limits: Limits) -> None:
        self._handle, self._limits, self._name = handle, limits, uuid4().hex
        self._reader: Any = ray.remote(num_cpus=0, max_restarts=-1)(Reader).remote()
        self._about: dict[str, Any] = {}
        self._num_scored = 0
        self._seen = -math.inf
        self._looking = asyncio.ensure_future(self._poll())

    def about(self) -> dict[str, Any] | None:
        """The description of the model that a replica reported recently; None where no
        replica did.
        """
        return self._about if time.monotonic() - self._seen < _UNHEARD_S else None

    async def answer(self, incoming: Incoming) -> Reply:
        """Send a call to a replica; a large body is read in another process first.

        Raises
        ------
        CallError
            The body is refused, or the replica stopped (503).
        """
        try:
            if len(incoming.body) > _LARGE_BODY and incoming.path != STOCK:
                found = await self._reader.read.remote(
                    incoming.path, incoming.body, self._limits, self._num_scored
                )
                if isinstance(found, CallError):
                    raise found
                incoming = replace(incoming, body=b"", slices=found)
            reply: Reply = await self._handle.answer.remote(incoming)
            return reply
        except (ray.exceptions.RayActorError, RayServeException):
            raise CallError(
                503, "the process that was answering this call stopped; send the call again", SOON
            ) from None

    async def metrics(self, own: dict[str, Any]) -> Reply:
        """The counts of the front and the replicas."""
        reply: Reply = await asyncio.wait_for(
            self._handle.metrics.remote(self._name, own), _UNHEARD_S
        )
        return reply

    async def _poll(self) -> None:
        """Poll a replica for the description of its model."""
        while True:
            with suppress(Exception):
                about, self._num_scored = await asyncio.wait_for(
                    self._handle.about.remote(), _UNHEARD_S
                )
                self._about, self._seen = about, time.monotonic()
            await asyncio.sleep(_LOOK_S)


class _NoReplicas:
    """Stands for the replicas before any replica runs."""

    def about(self) -> None:
        return None

    async def answer(self, incoming: Incoming) -> Reply:
        raise CallError(503, NOT_READY, SOON)

    async def metrics(self, own: dict[str, Any]) -> Reply:
        raise CallError(503, NOT_READY, SOON)


class Gate:
    """The process that callers reach: the front with its socket."""

    def __init__(self, settings: ServeConfig, port: int, tokens: Tokens) -> None:
        limits, patience = limits_of(settings, tokens)
        self._drain_s = settings.drain_s
        self._front = Front(limits, patience, _NoReplicas())
        self._host, self._port = settings.host, port
        self._listener: Listener | None = None

    async def listen(self) -> int:
        """Listen on the socket and return its port; calls are refused until :meth:`open`."""
        self._listener = Listener(self._front, self._host, self._port)
        return self._listener.port

    async def open(self, handle: Any) -> None:
        """Let the replicas of the handle answer, and wait until one of them does."""
        replicas = Replicas(handle, self._front.limits)
        self._front.backend = replicas
        while replicas.about() is None:
            await asyncio.sleep(0.05)

    async def lives(self) -> bool:
        """True: a check that the process is alive."""
        return True

    async def close(self) -> int:
        """Refuse new calls, answer admitted ones and close the socket; returns the number of
        unanswered calls.
        """
        if self._listener is None:
            return 0
        patience = self._front.patience
        self._front.stop(min(patience.body_timeout_s, _LAST_BODY_S))
        started = time.monotonic()
        while time.monotonic() - started < self._drain_s or (
            self._front.num_open()
            and time.monotonic() - started < patience.timeout_s + _LAST_BODY_S
        ):
            await asyncio.sleep(0.02)
        left = self._front.num_open()
        await self._listener.close()
        return left


def recommender(settings: ServeConfig) -> Any:
    """The Serve deployment of the replicas."""
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
    """The application on the connected Ray cluster, from :meth:`start` to :meth:`stop`."""

    def __init__(
        self, settings: ServeConfig, port: int, tokens: Tokens, stock: Stock | None = None
    ) -> None:
        self._settings, self._port, self._tokens, self._stock = settings, port, tokens, stock
        self._limits = limits_of(settings, tokens)[0]
        self._holder: Any = None
        self._gate: Any = None
        self._handle: Any = None
        self._started = False

    def start(self, models: Mapping[Side, tuple[Bundle, dict[str, Any]]]) -> None:
        """Start the front and the replicas, and wait until they answer.

        Parameters
        ----------
        models : Mapping[Side, tuple[Bundle, dict[str, Any]]]
            The bundle and the description of the model for each side.

        Raises
        ------
        ConfigError
            Another program has taken the port in the meantime.
        RuntimeError
            Serve could not start them.
        """
        settings = self._settings
        made: Any = ray.remote(ModelHolder)
        self._holder = made.options(num_cpus=0, scheduling_strategy=_here()).remote(
            self._stock, settings.stock_file
        )
        for side, (bundle, about) in models.items():
            self.offer(bundle, about, side)
        self._gate = self._listening()
        serve.start(
            proxy_location="Disabled",
            logging_config={"log_level": "WARNING", "enable_access_log": False},
        )
        self._started = True
        application = recommender(settings).bind(self._holder, self._limits, settings)
        self._handle = serve.run(application, name=APP, route_prefix=None)
        ray.get(self._gate.open.remote(self._handle))

    def offer(self, bundle: Bundle, about: dict[str, Any], side: Side = "a") -> int:
        """Offer another model to the replicas and return its serial number; they load it within
        seconds.
        """
        return int(ray.get(self._holder.offer.remote(about, [ray.put(bundle)], side)))

    def state(self, serial: int) -> tuple[int, int, list[str]]:
        """As :meth:`ModelHolder.state`."""
        found: tuple[int, int, list[str]] = ray.get(self._holder.state.remote(serial))
        return found

    def keep(self) -> bool:
        """Start another front process where the last one died; returns whether that was needed."""
        try:
            ray.get(self._gate.lives.remote(), timeout=_UNHEARD_S)
            return False
        except ray.exceptions.GetTimeoutError:  # alive, but busy
            return False
        except ray.exceptions.RayActorError:
            self._gate = self._listening()
            ray.get(self._gate.open.remote(self._handle))
            return True

    def stop(self) -> int:
        """Answer admitted calls, refuse others, and stop; returns the number of
        unanswered calls.
        """
        left = 0
        if self._gate is not None:
            with suppress(ray.exceptions.RayError):
                left = int(ray.get(self._gate.close.remote()))
            ray.kill(self._gate)
        if self._started:
            serve.delete(APP)
        if self._holder is not None:
            ray.kill(self._holder)
        return left

    def _listening(self) -> Any:
        """A front process on this machine, where the port was checked to be free."""
        made: Any = ray.remote(Gate)
        gate = made.options(num_cpus=0, scheduling_strategy=_here(), max_concurrency=1000).remote(
            self._settings, self._port, self._tokens
        )
        try:
            ray.get(gate.listen.remote())
        except (
            OSError
        ) as error:  # Ray raises an actor's error as a class that derives from OSError too
            raise ConfigError(
                f"serve.host {self._settings.host}, serve.port {self._port}: cannot be used "
                f"({getattr(error, 'cause', error)}); choose another port, or 0 for any free port"
            ) from None
        return gate


def _here() -> NodeAffinitySchedulingStrategy:
    """Schedules an actor on this machine, where the port was checked and the stock file is."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
