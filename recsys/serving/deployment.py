"""The recommender on Ray Serve: replicas that answer, and a desk from which they take the model.

Why a desk (an actor) and not Serve's own update of a deployment: a replica then loads the next model beside the one
that answers and changes over between two batches, so no call waits or fails; and one that cannot load it goes on with
the one it has, and says so. The model goes through the object store: it is read and checked once, whatever machines the
replicas are on.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

import ray
from ray import serve
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from recsys.config import ServeConfig
from recsys.registry.bundle import Bundle
from recsys.serving.calls import CallError, Reply, refusal
from recsys.serving.service import Incoming, Job, Limits, Outcome, Service, too_large

APP: Final = "recsys"
_LOOK_S: Final = 0.5  # between looks of a replica at the desk
_SILENT_S: Final = 120.0  # without a look, as while it loads a model, after which a replica counts as gone
_LOG = logging.getLogger(__name__)


@dataclass
class _Replica:
    """What the desk knows of a replica."""

    seen: float
    serial: int  # of the model that it answers by
    failed: dict[int, str]  # serial → why it could not be loaded
    counts: dict[str, Any]


class Desk:
    """Where the model lies: what is offered, who has taken it, and what every replica has counted."""

    def __init__(self) -> None:
        self._serial, self._about, self._model = 0, {}, []  # type: ignore[var-annotated]
        self._replicas: dict[str, _Replica] = {}

    def offer(self, about: dict[str, Any], model: list[Any]) -> int:
        """Another model; ``model`` holds the reference to its bundle, so that the desk does not fetch it."""
        self._serial, self._about, self._model = self._serial + 1, about, model
        return self._serial

    def take(self) -> tuple[int, dict[str, Any], list[Any]]:
        """The model that is offered."""
        return self._serial, self._about, self._model

    def look(self, name: str, serial: int, failed: dict[int, str], counts: dict[str, Any]) -> int:
        """A replica says what it does and is told the serial of the model that is offered."""
        self._replicas[name] = _Replica(time.monotonic(), serial, failed, counts)
        return self._serial

    def totals(self) -> tuple[list[dict[str, Any]], int]:
        """The counts of all replicas there have been, and how many there are."""
        return [replica.counts for replica in self._replicas.values()], len(self._living())

    def state(self, serial: int) -> tuple[int, int, list[str]]:
        """How many replicas there are, how many answer by the model ``serial``, and why others could not."""
        living = self._living()
        errors = {replica.failed[serial] for replica in living if serial in replica.failed}
        return len(living), sum(replica.serial == serial for replica in living), sorted(errors)

    def _living(self) -> list[_Replica]:
        now = time.monotonic()
        return [replica for replica in self._replicas.values() if now - replica.seen < _SILENT_S]


class Replica:
    """One process that answers."""

    def __init__(self, desk: Any, limits: Limits, batch_size: int, batch_wait_s: float) -> None:
        self._desk, self._name = desk, uuid4().hex
        self._service = Service(limits)
        self._serial, self._failed = 0, {}  # type: ignore[var-annotated]
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="answering")
        self._batched.set_max_batch_size(batch_size)  # type: ignore[attr-defined]
        self._batched.set_batch_wait_timeout_s(batch_wait_s)  # type: ignore[attr-defined]
        self._change()
        threading.Thread(target=self._follow, daemon=True, name="following").start()

    async def __call__(self, request: HttpRequest) -> Response:
        """Any path."""
        try:
            body = await self._body(request)
        except CallError as error:
            return _response(refusal(request.url.path, error))
        incoming = Incoming(request.method, request.url.path, dict(request.headers), body)
        reply = await self._service.handle(incoming, self._batched)
        if reply.status == 200 and incoming.path == "/metrics":
            reply = await self._metrics()
        return _response(reply)

    @serve.batch(max_batch_size=1, batch_wait_timeout_s=0.0)  # as __init__ sets them
    async def _batched(self, jobs: list[Job]) -> list[Outcome]:
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._service.answer, jobs)

    async def _body(self, request: HttpRequest) -> bytes:
        """The body, no more of it than may be."""
        limit, found = self._service.limits.max_bytes, bytearray()
        async for chunk in request.stream():
            found += chunk
            if len(found) > limit:
                raise too_large(limit)
        return bytes(found)

    async def _metrics(self) -> Reply:
        """The counts of all replicas, this one's as of now."""
        await self._desk.look.remote(self._name, self._serial, self._failed, self._service.counts.snapshot())
        snapshots, living = await self._desk.totals.remote()
        return self._service.metrics(snapshots, living)

    def _follow(self) -> None:
        """Look at the desk again and again; while it does not answer, go on with what there is."""
        while True:
            time.sleep(_LOOK_S)
            try:
                counts = self._service.counts.snapshot()
                offered = ray.get(self._desk.look.remote(self._name, self._serial, self._failed, counts))
            except ray.exceptions.RayError:
                continue
            if offered != self._serial and offered not in self._failed:
                self._try_change(offered)

    def _try_change(self, offered: int) -> None:
        try:
            self._change()
            self._service.counts.add("swaps_total")
        except Exception as error:  # whatever it is, the model before it goes on
            _LOG.exception("model %d cannot be loaded; %d goes on", offered, self._serial)
            self._failed = {**self._failed, offered: f"{type(error).__name__}: {error}"}
            self._service.counts.add("failed_swaps_total")

    def _change(self) -> None:
        serial, about, model = ray.get(self._desk.take.remote())
        bundle: Bundle = ray.get(model[0])
        self._service.adopt(bundle, about)
        self._serial = serial


class Server:
    """The application on the connected Ray cluster, from the first model to :meth:`stop`."""

    def __init__(self, settings: ServeConfig, port: int, token_sha256: str) -> None:
        self._settings, self._port = settings, port
        self._limits = Limits(settings.max_bytes, settings.max_requests, token_sha256)
        self._desk: Any = None
        self._started = False

    def start(self, bundle: Bundle, about: dict[str, Any]) -> None:
        """Start the replicas and the HTTP server, and wait until they answer.

        Raises:
            RuntimeError: Serve could not start them.
        """
        settings = self._settings
        self._desk = ray.remote(num_cpus=0)(Desk).remote()
        self.offer(bundle, about)
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": settings.host, "port": self._port, "request_timeout_s": settings.timeout_s},
            logging_config={"log_level": "WARNING", "enable_access_log": False},
        )
        self._started = True
        deployment: Any = serve.deployment(
            Replica,
            name="recommender",
            num_replicas=settings.replicas,
            ray_actor_options={"num_cpus": settings.cpus},
            max_ongoing_requests=2 * settings.batch_size,
            graceful_shutdown_timeout_s=settings.timeout_s,
            graceful_shutdown_wait_loop_s=0.1,
        )
        wait_s = settings.batch_wait_ms / 1000
        serve.run(deployment.bind(self._desk, self._limits, settings.batch_size, wait_s), name=APP, route_prefix="/")

    def offer(self, bundle: Bundle, about: dict[str, Any]) -> int:
        """Let the replicas take another model; they do so within a second or the time it takes to load."""
        return int(ray.get(self._desk.offer.remote(about, [ray.put(bundle)])))

    def state(self, serial: int) -> tuple[int, int, list[str]]:
        """As :meth:`Desk.state`."""
        found: tuple[int, int, list[str]] = ray.get(self._desk.state.remote(serial))
        return found

    def stop(self) -> None:
        """End the application when its calls are answered; Serve's own actors end with a local Ray."""
        if self._started:
            serve.delete(APP)
        if self._desk is not None:
            ray.kill(self._desk)


def _response(reply: Reply) -> Response:
    return Response(reply.body, reply.status, dict(reply.headers), reply.content_type)
