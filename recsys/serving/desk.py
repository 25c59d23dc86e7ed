"""The desk of a server: where the models lie, who has taken them, and what is out of stock; an actor of Ray."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, Final

import ray

from recsys.bundle.files import Bundle
from recsys.serving.experiment_split import Side
from recsys.serving.stock import Stock, StockChange, write_stock

_SILENT_S: Final = 120.0  # without a look, as while it loads a model, after which a replica counts as gone


@dataclass
class _Replica:
    """What the desk knows of a replica."""

    seen: float
    serials: dict[Side, int]  # of the models that it answers by
    failed: dict[int, str]  # serial → why it could not be loaded
    counts: dict[str, Any]
    stock_revision: int


class Desk:
    """Where the model lies: what is offered, who has taken it, what every replica has counted; and what is out of
    stock, which is kept in ``stock_file`` where there is one.
    """

    def __init__(self, stock: Stock | None = None, stock_file: str = "") -> None:
        self._stock, self._stock_file = stock or Stock(), stock_file
        self._serial = time.time_ns()  # a desk in place of one that was lost must not repeat its numbers
        self._fronts: dict[str, dict[str, Any]] = {}
        self._offers: dict[Side, tuple[int, dict[str, Any], list[Any]]] = {}
        self._replicas: dict[str, _Replica] = {}

    def offer(self, about: dict[str, Any], model: list[Any], side: Side = "a") -> int:
        """Another model; ``model`` holds the reference to its bundle, so that the desk does not fetch it."""
        self._serial += 1
        self._offers[side] = (self._serial, about, model)
        return self._serial

    def take(self) -> dict[Side, tuple[int, dict[str, Any], list[Any]]]:
        """The models that are offered."""
        return self._offers

    def look(
        self, name: str, serials: dict[Side, int], failed: dict[int, str], counts: dict[str, Any], stock_revision: int
    ) -> tuple[dict[Side, int], int]:
        """A replica says what it does and is told the serials of the models that are offered, and of the stock."""
        self._replicas[name] = _Replica(time.monotonic(), dict(serials), failed, counts, stock_revision)
        return {side: serial for side, (serial, _, _) in self._offers.items()}, self._stock.revision

    def leave(self, name: str) -> None:
        """A replica has ended; its counts stay."""
        if name in self._replicas:
            self._replicas[name].seen = -math.inf

    def stock(self) -> Stock:
        """What is out of stock."""
        return self._stock

    def recall(self, stock: Stock) -> None:
        """The stock as a replica knows it, where this desk is younger than the replica."""
        if stock.revision > self._stock.revision:
            self._stock = stock

    def restock(self, change: StockChange) -> Stock:
        """Change the stock; it is written before anybody is told of it."""
        changed = self._stock.after(change)
        if self._stock_file:
            write_stock(self._stock_file, changed)
        self._stock = changed
        return changed

    def has_everywhere(self, stock_revision: int) -> bool:
        """Whether every replica answers by this revision of the stock or a newer one."""
        return all(replica.stock_revision >= stock_revision for replica in self._living())

    def totals(self, front: str, counts: dict[str, Any]) -> tuple[list[dict[str, Any]], int]:
        """The counts of all replicas and fronts there have been, of the front that asks as of now; how many replicas
        there are.
        """
        self._fronts[front] = counts
        return [*self._fronts.values(), *(replica.counts for replica in self._replicas.values())], len(self._living())

    def state(self, serial: int) -> tuple[int, int, list[str]]:
        """How many replicas there are, how many answer by the model ``serial``, and why others could not."""
        living = self._living()
        errors = {replica.failed[serial] for replica in living if serial in replica.failed}
        return len(living), sum(serial in replica.serials.values() for replica in living), sorted(errors)

    def _living(self) -> list[_Replica]:
        now = time.monotonic()
        return [replica for replica in list(self._replicas.values()) if now - replica.seen < _SILENT_S]


class Offering:
    """What a command asks of the desk, for the desk that follows the models itself."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def offer(self, bundle: Bundle, about: dict[str, Any], side: Side = "a") -> int:
        """As :meth:`Server.offer`."""
        return self._desk.offer(about, [ray.put(bundle)], side)

    def state(self, serial: int) -> tuple[int, int, list[str]]:
        """As :meth:`Desk.state`."""
        return self._desk.state(serial)
