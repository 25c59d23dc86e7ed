"""Rules applied to a catalogue: the allowed items, and the factor of each item.

Why they are compiled and cached: callers repeat the same few filters, so the first request makes
one pass over the attributes, and later requests use the cached result. The allowed items are stored
as a mask, or, where they are a small part of the catalogue, as a list of items whose vectors are
scored directly.

Legend: N items, M allowed items, G groups of one factor.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final

import numpy as np

from recsys.data.histories import Array
from recsys.errors import RequestError
from recsys.retrieval.item_attributes import ItemAttributes
from recsys.retrieval.rules import Rules

# allowed items are stored as a list where they are fewer than 1/16 of the catalogue
FEW: Final = 16
_KEPT_BYTES: Final = 128 << 20  # size of the cache of compiled rules
_LEAST_KEPT: Final = 4
_MAX_UNKNOWN: Final = 100  # unknown ids that an answer lists


@dataclass(frozen=True, eq=False)
class Allowed:
    """The allowed items: a mask, or an ascending list where they are few, or neither where all are
    allowed.
    """

    num_items: int
    mask_N: Array | None = None  # bool
    ids_M: Array | None = None  # int64

    @staticmethod
    def of_mask(mask_N: Array) -> Allowed:
        """The allowed items of a mask: bool [N]."""
        num = int(np.count_nonzero(mask_N))
        if num == len(mask_N):
            return Allowed(num)
        if num * FEW < len(mask_N):
            return Allowed(len(mask_N), ids_M=np.flatnonzero(mask_N))
        found = Allowed(len(mask_N), mask_N)
        # the count is known: fills the cached property, so that the mask is not read again
        found.__dict__["num"] = num
        return found

    @cached_property
    def num(self) -> int:
        """Number of allowed items."""
        if self.ids_M is not None:
            return len(self.ids_M)
        return self.num_items if self.mask_N is None else int(np.count_nonzero(self.mask_N))

    @cached_property
    def listed_M(self) -> Array:
        """The allowed items in ascending order."""
        if self.ids_M is not None:
            return self.ids_M
        return np.arange(self.num_items) if self.mask_N is None else np.flatnonzero(self.mask_N)

    def among(self, items: Array) -> Array:
        """Which of some items are allowed: bool."""
        if self.ids_M is not None:
            positions = np.searchsorted(self.ids_M, items)
            return (
                # a search beyond the last id gives a position outside
                np.asarray(self.ids_M[np.minimum(positions, len(self.ids_M) - 1)] == items)
                if len(self.ids_M)
                else (np.zeros(len(items), dtype=bool))
            )
        return (
            np.ones(len(items), dtype=bool)
            if self.mask_N is None
            else np.asarray(self.mask_N[items])
        )

    @property
    def num_bytes(self) -> int:
        """Size in memory, in bytes."""
        listed = 0 if self.mask_N is None else 8 * self.num
        return listed + sum(part.nbytes for part in (self.mask_N, self.ids_M) if part is not None)


@dataclass(frozen=True, eq=False)
class Selection:
    """The allowed items and boosts of a set of rules."""

    allowed: Allowed
    log_N: Array | None = None  # float32 logarithms of the factors; None: no boost

    @cached_property
    def groups(self) -> list[tuple[float, Allowed]]:
        """The allowed items grouped by the logarithm of their factor; within a group a boost keeps
        the order.
        """
        if self.log_N is None:
            return [(0.0, self.allowed)]
        if self.allowed.ids_M is not None:
            logs_M = self.log_N[self.allowed.ids_M]
            return [
                (float(log), Allowed(len(self.log_N), ids_M=self.allowed.ids_M[logs_M == log]))
                for log in np.unique(logs_M)
            ]
        found = []
        for log in np.unique(self.log_N):
            mask_N = self.log_N == log
            allowed = Allowed.of_mask(
                mask_N if self.allowed.mask_N is None else mask_N & self.allowed.mask_N
            )
            if allowed.num:
                found.append((float(log), allowed))
        return found

    @property
    def num_bytes(self) -> int:
        """Size in memory, in bytes."""
        of_groups = 2 * len(self.log_N) if self.log_N is not None else 0
        return self.allowed.num_bytes + (0 if self.log_N is None else self.log_N.nbytes) + of_groups


@dataclass(frozen=True)
class Plan:
    """The rules of one request, applied to the catalogue."""

    selection: Selection | None  # None: all items are allowed, no boost
    excluded: Array  # int64, items to leave out in addition to those that are not allowed
    # rule → ids that the model does not know
    unknown: Mapping[str, list[str]] = field(default_factory=dict)


class Catalogue:
    """The items of a bundle, their attributes, and the items that are out of stock."""

    def __init__(self, rows: Mapping[str, int], attributes: ItemAttributes | None) -> None:
        self._rows, self._attributes = rows, attributes
        self._in_stock_N: Array | None = None
        self._kept: OrderedDict[str, Selection] = OrderedDict()
        self._lock = threading.Lock()

    def set_stock(self, out: Iterable[str]) -> None:
        """Replace the list of items that are out of stock; no answer contains them from now on."""
        rows = [self._rows[item] for item in out if item in self._rows]
        in_stock_N = None
        if rows:
            in_stock_N = np.ones(len(self._rows), dtype=bool)
            in_stock_N[rows] = False
        with self._lock:
            self._in_stock_N = in_stock_N
            # compiled selections contain the stock; replaced together under one lock
            self._kept.clear()

    def plan(self, rules: Rules, where: str) -> Plan:
        """Apply the rules of a request.

        Parameters
        ----------
        rules : Rules
            Rules of the request.
        where : str
            Name of the request, for messages.

        Raises
        ------
        RequestError
            A rule does not fit the attributes of the items.
        """
        unknown: dict[str, list[str]] = {}
        excluded = self._known(rules.exclude or (), "exclude", unknown)
        candidates = (
            None
            if rules.candidates is None
            else self._known(rules.candidates, "candidates", unknown)
        )
        for boost in rules.boost or ():
            self._known(boost.items or (), "boost", unknown)
        if rules.diversify is not None and rules.diversify.attribute is not None:
            self.attributes(f"{where}: diversify").categories(
                rules.diversify.attribute, f"{where}: diversify.attribute"
            )
        selection = self._selection(rules, where)
        if candidates is not None:
            whole = selection or Selection(Allowed(len(self._rows)))
            ids_M = np.unique(candidates)
            selection = replace(
                whole, allowed=Allowed(len(self._rows), ids_M=ids_M[whole.allowed.among(ids_M)])
            )
        return Plan(
            selection, excluded, {name: ids[:_MAX_UNKNOWN] for name, ids in unknown.items()}
        )

    def attributes(self, where: str) -> ItemAttributes:
        """The attributes of the items; ``where`` names the rule that needs them, for the message.

        Raises
        ------
        RequestError
            The bundle has no attributes.
        """
        if self._attributes is None:
            raise RequestError(
                f"{where}: this model has no item attributes, because an earlier release registered"
                " it; register it again with `recsys register`"
            )
        return self._attributes

    def _selection(self, rules: Rules, where: str) -> Selection | None:
        """The selection of filters, boosts and stock, from the cache or compiled."""
        key = rules.selection_key
        if not key and self._in_stock_N is None:
            return None
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
                return found
            in_stock_N = self._in_stock_N
        # without the lock: a pass over the attributes must not stop other requests
        found = self._compile(rules, where, in_stock_N)
        with self._lock:
            # the stock may have changed meanwhile; then the result is used once and not kept
            if self._in_stock_N is in_stock_N:
                self._kept[key] = found
            while (
                len(self._kept) > _LEAST_KEPT
                and sum(one.num_bytes for one in self._kept.values()) > _KEPT_BYTES
            ):
                self._kept.popitem(last=False)
        return found

    def _compile(self, rules: Rules, where: str, in_stock_N: Array | None) -> Selection:
        mask_N = in_stock_N
        if rules.conditions:
            mask_N = self.attributes(f"{where}: filters").mask(
                rules.conditions, f"{where}: filters"
            )
            mask_N = mask_N if in_stock_N is None else mask_N & in_stock_N
        allowed = Allowed(len(self._rows)) if mask_N is None else Allowed.of_mask(mask_N)
        log_N = None
        for number, boost in enumerate(rules.boost or ()):
            log_N = np.zeros(len(self._rows), dtype=np.float32) if log_N is None else log_N
            log = np.float32(np.log(boost.factor))
            if boost.items is not None:
                # distinct: an item that is named twice in one boost gets its factor once
                log_N[np.unique(self._known(boost.items, "boost", {}))] += log
            else:
                named = f"{where}: boost[{number}].filters"
                log_N[self.attributes(named).mask(boost.conditions, named)] += log
        return Selection(allowed, log_N)

    def _known(self, ids: Sequence[str], rule: str, unknown: dict[str, list[str]]) -> Array:
        """Dense ids of the known items; unknown ids are added to ``unknown``."""
        rows = [self._rows.get(item, -1) for item in ids]
        missing = [item for item, row in zip(ids, rows, strict=True) if row < 0]
        if missing:
            unknown[rule] = [*unknown.get(rule, []), *missing]
        return np.array([row for row in rows if row >= 0], dtype=np.int64)


def by_selection(plans: Sequence[Plan]) -> list[tuple[Selection | None, list[int]]]:
    """Group rows that share a selection."""
    found: dict[int, tuple[Selection | None, list[int]]] = {}
    for row, plan in enumerate(plans):
        # by identity: requests with the same rules share the cached object
        found.setdefault(id(plan.selection), (plan.selection, []))[1].append(row)
    return list(found.values())
