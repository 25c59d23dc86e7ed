"""The model holder of a server: a Ray actor with the offered models, the state of the replicas and
the stock.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import ray

from recsys.serving.error_lines import MOST, drained
from recsys.serving.experiment_split import Side
from recsys.serving.stock import Stock, StockChange, read_stock, write_stock

if TYPE_CHECKING:
    from recsys.bundle.layout import Bundle

# serial number, description, list with the object reference of the bundle
Offer = tuple[int, dict[str, Any], list[Any]]

# A replica that has not polled for this time counts as gone. Loading a model takes less.
_SILENT_S: Final = 120.0


@dataclass
class _Replica:
    """The last report of a replica."""

    seen: float
    serials: dict[Side, int]  # of the models that it answers with
    failed: dict[int, str]  # serial → why it could not be loaded
    counts: dict[str, Any]
    stock_revision: int


class ModelHolder:
    """The offered models, the reports of every replica, and the items that are out of stock.

    Parameters
    ----------
    stock : Stock | None
        The stock to start with; None: nothing is out of stock.
    stock_file : str
        File in which the stock is stored; empty: not stored.
    """

    def __init__(self, stock: Stock | None = None, stock_file: str = "") -> None:
        # after a restart of this actor the file is newer
        kept = stock or Stock(), read_stock(stock_file, "serve.stock_file")
        self._stock, self._stock_file = max(kept, key=lambda one: one.revision), stock_file
        self._serial = time.time_ns()  # after a restart, serial numbers must not repeat
        self._fronts: dict[str, dict[str, Any]] = {}
        self._offers: dict[Side, Offer] = {}
        self._replicas: dict[str, _Replica] = {}
        self._errors: deque[str] = deque(maxlen=MOST)

    def offer(self, about: dict[str, Any], model: list[Any], side: Side = "a") -> int:
        """Offer another model and return its serial number.

        ``model`` is a list with the object reference of the bundle, so that Ray does not fetch the
        bundle into this process.

        Parameters
        ----------
        about : dict[str, Any]
            Its description for GET /model.
        model : list[Any]
            One object reference.
        side : Side
            Side of an experiment; the model replaces the offered one of this side.

        Returns
        -------
        int
            Serial number of the offer, larger than all earlier ones, also after a restart.
        """
        self._serial += 1
        self._offers[side] = (self._serial, about, model)
        return self._serial

    def resume(self, offers: dict[Side, Offer]) -> bool:
        """Take over the offers that were made before a restart; returns whether some were missing.

        Parameters
        ----------
        offers : dict
            The last offer of each side, as :meth:`take` returns it.
        """
        is_missing = bool(offers.keys() - self._offers.keys())
        self._offers = {**offers, **self._offers}
        return is_missing

    def take(self) -> dict[Side, Offer]:
        """The offered models: side → serial number, description, list with the reference to the
        bundle.
        """
        return self._offers

    def report(
        self,
        name: str,
        serials: dict[Side, int],
        failed: dict[int, str],
        counts: dict[str, Any],
        stock_revision: int,
        errors: Sequence[str] = (),
    ) -> tuple[dict[Side, int], int]:
        """Store the report of a replica; returns the serials of the offered models and the revision
        of the stock.

        Parameters
        ----------
        name : str
            Name of the replica.
        serials : dict[Side, int]
            Side → serial number of the model that the replica answers with.
        failed : dict[int, str]
            Serial number → error, for models that it could not load.
        counts : dict[str, Any]
            Its counts since its start.
        stock_revision : int
            Revision of the stock that it answers with.
        errors : Sequence[str]
            The errors that it has logged since its last report.

        Returns
        -------
        dict[Side, int]
            Side → serial number of the offered model.
        int
            Revision of the stock of this holder.
        """
        self._errors.extend(errors)
        self._replicas[name] = _Replica(
            time.monotonic(), dict(serials), failed, counts, stock_revision
        )
        return {side: serial for side, (serial, _, _) in self._offers.items()}, self._stock.revision

    def errors(self) -> list[str]:
        """The errors that replicas have reported since the last call."""
        return drained(self._errors)

    def leave(self, name: str) -> None:
        """A replica has stopped; its counts are kept."""
        if name in self._replicas:
            # no longer counted as running, but counts of calls must never fall
            self._replicas[name].seen = -math.inf

    def stock(self) -> Stock:
        """The items that are out of stock."""
        return self._stock

    def restore(self, stock: Stock) -> None:
        """Take over the stock from a replica where it is newer, which it is after a restart of the
        model holder.
        """
        if stock.revision > self._stock.revision:
            self._stock = stock

    def restock(self, change: StockChange, known: Stock | None = None) -> Stock:
        """Change the stock; the file is written before any replica gets the change.

        Parameters
        ----------
        change : StockChange
            The change.
        known : Stock | None
            The stock of the replica that asks; newer than this one after a restart.

        Returns
        -------
        Stock
            The changed stock.

        Raises
        ------
        OSError
            The file cannot be written; then the stock is unchanged.
        """
        self.restore(known or self._stock)
        changed = self._stock.after(change)
        if self._stock_file:
            # first: after a crash the file must know every change that a replica has answered with
            write_stock(self._stock_file, changed)
        self._stock = changed
        return changed

    def has_everywhere(self, stock_revision: int) -> bool:
        """Whether every replica answers with this revision of the stock or a newer one."""
        return all(replica.stock_revision >= stock_revision for replica in self._living())

    def totals(self, front: str, counts: dict[str, Any]) -> tuple[list[dict[str, Any]], int]:
        """The counts of all replicas and fronts since the start, and the number of running
        replicas.

        ``counts`` are the current ones of the front ``front``.
        """
        self._fronts[front] = counts
        return [
            *self._fronts.values(),
            *(replica.counts for replica in self._replicas.values()),
        ], len(self._living())

    def state(self, serial: int) -> tuple[int, int, list[str]]:
        """How many replicas run, how many answer with the model ``serial``, and the errors of those
        that failed.
        """
        living = self._living()
        # a set: replicas usually fail with the same error
        errors = {replica.failed[serial] for replica in living if serial in replica.failed}
        return (
            len(living),
            sum(serial in replica.serials.values() for replica in living),
            sorted(errors),
        )

    def _living(self) -> list[_Replica]:
        now = time.monotonic()
        return [
            replica for replica in list(self._replicas.values()) if now - replica.seen < _SILENT_S
        ]


class Offering:
    """The interface of :class:`~recsys.serving.deployment.Server` for a model holder that follows
    models itself.
    """

    def __init__(self, holder: ModelHolder) -> None:
        self._holder = holder

    def offer(self, bundle: Bundle, about: dict[str, Any], side: Side = "a") -> int:
        """As :meth:`Server.offer`.

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
            Serial number of the offer.
        """
        return self._holder.offer(about, [ray.put(bundle)], side)

    def state(self, serial: int) -> tuple[int, int, list[str]]:
        """As :meth:`ModelHolder.state`."""
        return self._holder.state(serial)
