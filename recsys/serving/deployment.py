"""The recommender on Ray Serve: a front process takes calls, replicas answer them, a model holder
offers the models.

Models go from the holder to the replicas (:mod:`recsys.serving.replica`) through the object store:
each is read and checked once, whatever machines the replicas run on.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Mapping
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
from recsys.serving.admission import Limits
from recsys.serving.calls import STOCK, CallError, Reply
from recsys.serving.error_lines import ErrorLines
from recsys.serving.experiment_split import Side
from recsys.serving.front import NOT_READY, SOON, Front, limits_of
from recsys.serving.large_calls import Slices, read_ahead
from recsys.serving.listener import Listener
from recsys.serving.model_holder import ModelHolder, Offer
from recsys.serving.replica import LOOK_S, Replica
from recsys.serving.service import Incoming
from recsys.serving.stock import Stock

if TYPE_CHECKING:  # imports torch, which only replicas need
    from recsys.bundle.layout import Bundle

APP: Final = "recsys"
_UNHEARD_S: Final = 15.0  # without a reply of any replica, after which the front answers 503
_LARGE_BODY: Final = 64 << 10  # bytes; a smaller body is read by the replica in a few milliseconds
_NICE: Final = 10  # niceness of the process that reads large bodies: small calls go first
_LAST_BODY_S: Final = 2.0  # for a body that is still arriving when the server stops
MORE_ONGOING: Final = 100  # status calls to a replica, in addition to calls that wait for an answer


class Reader:
    """Reads large bodies and cuts them into slices, so that a large body blocks neither the front
    nor a replica.
    """

    def __init__(self) -> None:
        os.nice(_NICE)

    def read(self, path: str, body: bytes, limits: Limits, num_scored: int) -> Slices | CallError:
        """Read the body in advance; see :func:`~recsys.serving.large_calls.read_ahead`.

        Parameters
        ----------
        path : str
            Path of the call.
        body : bytes
            Its body.
        limits : Limits
            Limits of a call.
        num_scored : int
            Number of items that the model scores for one request.

        Returns
        -------
        Slices | CallError
            The slices, or the error to answer with; it is not raised.
        """
        return read_ahead(path, body, limits, num_scored)


class Replicas:
    """The replicas, as the front calls them."""

    def __init__(self, handle: Any, limits: Limits) -> None:
        self._handle, self._limits, self._name = handle, limits, uuid4().hex
        # no CPU is reserved, so that the reader takes no place of a replica
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
            # a stock change is no list of requests, so it has no slices
            if len(incoming.body) > _LARGE_BODY and incoming.path != STOCK:
                found = await self._reader.read.remote(
                    incoming.path, incoming.body, self._limits, self._num_scored
                )
                if isinstance(found, CallError):
                    raise found
                # without the body: the slices hold all of it
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
            # whatever the error is, the next poll may succeed; until then ``about`` expires
            with suppress(Exception):
                about, self._num_scored = await asyncio.wait_for(
                    self._handle.about.remote(), _UNHEARD_S
                )
                self._about, self._seen = about, time.monotonic()
            await asyncio.sleep(LOOK_S)


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
        self._errors = ErrorLines()

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

    async def errors(self) -> list[str]:
        """The errors that this process has logged since the last call."""
        return self._errors.take()

    async def close(self) -> int:
        """Refuse new calls, answer admitted ones and close the socket; returns the number of
        unanswered calls.
        """
        if self._listener is None:
            return 0
        patience = self._front.patience
        self._front.stop(min(patience.body_timeout_s, _LAST_BODY_S))
        started = time.monotonic()
        # at least ``drain_s``: a load balancer needs time to see that this server refuses calls
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
        # the front limits the calls; Serve must not hold some of them back in its own queue
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
        # the last offer of each side, which a holder that starts again gets
        self._offers: dict[Side, Offer] = {}

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
        # Ray starts it again if it ends; then it gets the offers again, and the stock from its file
        # or the replicas: a large argument would be lost
        self._holder = made.options(
            num_cpus=0, max_restarts=-1, scheduling_strategy=_here()
        ).remote(None if settings.stock_file else self._stock, settings.stock_file)
        # Serve starts at the same time as these two processes
        offers = {side: (about, [ray.put(bundle)]) for side, (bundle, about) in models.items()}
        serials = {side: self._send_offer(*offer, side) for side, offer in offers.items()}
        self._gate, port = self._new_gate()
        serve.start(
            # the front replaces the proxy of Serve
            proxy_location="Disabled",
            logging_config={"log_level": "WARNING", "enable_access_log": False},
        )
        self._started = True
        self._check_listening(port)
        self._offers = {side: (ray.get(serials[side]), *offers[side]) for side in offers}
        application = recommender(settings).bind(self._holder, self._limits, settings)
        self._handle = serve.run(application, name=APP, route_prefix=None)
        ray.get(self._gate.open.remote(self._handle))

    def offer(self, bundle: Bundle, about: dict[str, Any], side: Side = "a") -> int:
        """Offer another model to the replicas and return its serial number; they load it within
        seconds.

        Parameters
        ----------
        bundle : Bundle
            The model; it is put into the object store once.
        about : dict[str, Any]
            Its description for GET /model.
        side : Side
            Side of an experiment; ``a`` without one.

        Returns
        -------
        int
            Serial number of the offer, for :meth:`state`.
        """
        model = [ray.put(bundle)]
        serial = int(ray.get(self._send_offer(about, model, side)))
        self._offers[side] = serial, about, model
        return serial

    def _send_offer(self, about: dict[str, Any], model: list[Any], side: Side) -> Any:
        return self._holder.offer.remote(about, model, side)

    def state(self, serial: int) -> tuple[int, int, list[str]]:
        """As :meth:`ModelHolder.state`; without replicas while the model holder starts again."""
        try:
            found: tuple[int, int, list[str]] = ray.get(self._holder.state.remote(serial))
        except ray.exceptions.RayActorError:
            return 0, 0, []
        return found

    def keep(self) -> list[str]:
        """Replace the processes that have ended; returns lines for the log: which they were, and
        the errors that all processes have logged since the last call.
        """
        lines, errors = [], list[str]()
        with suppress(ray.exceptions.RayActorError):  # it is still starting
            if ray.get(self._holder.resume.remote(self._offers)):
                lines.append("the process that holds the models had ended; a new one replaces it")
            errors += ray.get(self._holder.errors.remote())
        with suppress(ray.exceptions.GetTimeoutError):  # alive, but busy
            try:
                errors += ray.get(self._gate.errors.remote(), timeout=_UNHEARD_S)
            except ray.exceptions.RayActorError:
                self._gate, port = self._new_gate()
                self._check_listening(port)
                ray.get(self._gate.open.remote(self._handle))
                lines.append("the process that accepts requests had ended; a new one replaces it")
        return lines + [f"a process that answers requests reports: {error}" for error in errors]

    def stop(self) -> int:
        """Answer admitted calls, refuse others, and stop; returns the number of
        unanswered calls.
        """
        left = 0
        if self._gate is not None:
            # a front that has died has no calls left to answer
            with suppress(ray.exceptions.RayError):
                left = int(ray.get(self._gate.close.remote()))
            ray.kill(self._gate)
        if self._started:
            serve.delete(APP)
        if self._holder is not None:
            ray.kill(self._holder)
        return left

    def _new_gate(self) -> tuple[Any, Any]:
        """A front process on this machine, and the port on which it will listen, not waited for."""
        made: Any = ray.remote(Gate)
        gate = made.options(num_cpus=0, scheduling_strategy=_here(), max_concurrency=1000).remote(
            self._settings, self._port, self._tokens
        )
        return gate, gate.listen.remote()

    def _check_listening(self, port: Any) -> None:
        """Wait until a front process listens.

        Raises
        ------
        ConfigError
            Another program has taken the port since it was checked.
        """
        try:
            ray.get(port)
        except (
            OSError
        ) as error:  # Ray raises an actor's error as a class that derives from OSError too
            raise ConfigError(
                f"serve.host {self._settings.host}, serve.port {self._port}: cannot be used "
                f"({getattr(error, 'cause', error)}); choose another port, or 0 for any free port"
            ) from None


def _here() -> NodeAffinitySchedulingStrategy:
    """Schedules an actor on this machine, where the port was checked and the stock file is."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
