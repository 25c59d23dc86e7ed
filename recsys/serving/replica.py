"""A replica: one process that answers calls, and takes models and stock from the model holder.

Why it polls a model holder (:class:`~recsys.serving.model_holder.ModelHolder`) and Serve does not
update it: it loads the next model while the current one answers and switches between two batches,
so no call waits or fails. A replica that cannot load the next model keeps the current one and
reports the error.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final
from uuid import uuid4

import ray
from ray import serve
from ray.serve.exceptions import RayServeException

from recsys.config import ServeConfig
from recsys.serving.admission import Limits
from recsys.serving.calls import CallError, Reply
from recsys.serving.error_lines import ErrorLines
from recsys.serving.experiment_split import Side
from recsys.serving.front import SOON
from recsys.serving.model_holder import Offer
from recsys.serving.requests import Job
from recsys.serving.service import Incoming, Outcome, service_of
from recsys.serving.stock import Stock, StockChange

# name of the model holder where Serve starts it with the deployment
MODEL_HOLDER: Final = "model_holder"
LOOK_S: Final = 0.5  # interval at which a replica polls the model holder
_STOCK_S: Final = 3.0  # longest wait until every replica has a stock change
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
        # an application that Serve runs alone has no command that prints them
        self._errors = None if self._is_own_holder else ErrorLines()
        # without hashes: the front has checked the tokens
        self._service = service_of(settings, replace(limits, token_sha256="", stock_sha256=None))
        self._service.restock(ray.get(self._holder.stock.remote()))
        self._serials: dict[Side, int] = {}
        self._failed: dict[int, str] = {}
        # one thread, so that a slice of a large call runs between two batches
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="answering")
        self._batched.set_max_batch_size(settings.batch_size)  # type: ignore[attr-defined]
        self._batched.set_batch_wait_timeout_s(settings.batch_wait_ms / 1000)  # type: ignore[attr-defined]
        while not (offers := ray.get(self._holder.take.remote())):  # the holder starts again
            time.sleep(LOOK_S)
        for side, offer in offers.items():
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

        Raises
        ------
        CallError
            The model holder is being replaced, or cannot write its file (503).
        """
        try:
            changed: Stock = await self._holder.restock.remote(change, self._service.stock)
        except ray.exceptions.RayActorError:
            raise CallError(
                503, "the stock cannot be changed right now; send the call again in a second", SOON
            ) from None
        except OSError as error:  # Ray raises an actor's error as a class that derives from it too
            why = getattr(error, "cause", error)
            raise CallError(
                503, f"the stock is unchanged: serve.stock_file cannot be written ({why})", SOON
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
        errors = self._errors.take() if self._errors is not None else []
        return self._holder.report.remote(
            self._name, self._serials, self._failed, counts, revision, errors
        )

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
            time.sleep(LOOK_S)
            try:
                offered, revision = ray.get(self._report_state())
                if revision > self._service.stock.revision:
                    self._service.restock(ray.get(self._holder.stock.remote()))
                    # report at once: the caller of POST /stock waits for it
                    offered, _ = ray.get(self._report_state())
                elif revision < self._service.stock.revision:  # the holder was started again
                    ray.get(self._holder.restore.remote(self._service.stock))
            except ray.exceptions.RayError:
                self._find_holder()
                continue
            for side, serial in offered.items():
                if serial != self._serials.get(side) and serial not in self._failed:
                    self._try_load(side, serial)

    def _find_holder(self) -> None:
        """Find the model holder that Serve started after the last one was lost."""
        if self._is_own_holder:
            with suppress(
                ValueError, RayServeException, ray.exceptions.RayError
            ):  # not started yet
                self._holder = serve.get_deployment_actor(MODEL_HOLDER)

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
            # a new dictionary: the event loop may be sending the current one to the holder
            self._failed = {**self._failed, offered: f"{type(error).__name__}: {error}"}
            self._service.counts.add("failed_swaps_total")

    def _load(self, side: Side, offer: Offer) -> None:
        serial, about, model = offer
        [bundle] = ray.get(model)
        self._service.adopt(bundle, about, side)
        self._serials = {**self._serials, side: serial}
