"""Which events are hidden from the input of training.

Why a module of its own: `prepare` and its workers apply this rule too. It needs no torch, which
takes more than a second to import in each of these processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from recsys.data.hashing import GOLDEN, spread
from recsys.data.histories import Array

SHORT_SHARE: Final = 0.9  # of the events of a user whose history an epoch makes short


@dataclass(frozen=True)
class Hidden:
    """Which events an epoch hides from the input, by a hash of (seed, user, item), so that
    histories, graphs and all workers hide the same events.
    """

    share: float
    seed: int
    start: float = 0.0  # start of the hidden range of hashes in [0, 1)
    short: float = 0.0  # share of users of whom the share below is hidden instead

    @staticmethod
    def fold(fold: int, folds: int) -> Hidden:
        """One of several folds that are the same in every run, because each text of a user leaves
        out one of them.
        """
        return Hidden(1 / folds, 0, fold / folds)

    @property
    def hides(self) -> bool:
        """Whether any event may be hidden."""
        return self.share > 0 or self.short > 0

    def of(self, users_E: Array, items_E: Array) -> Array:
        """Which events are hidden: [E] bool."""
        unit_E = hash_unit(users_E, items_E, self.seed)
        share: float | Array = self.share
        if self.short:
            is_short_E = hash_unit(users_E, np.full_like(items_E, -1), self.seed) < self.short
            share = np.where(is_short_E, max(self.share, SHORT_SHARE), self.share)
        return np.asarray((unit_E >= self.start) & (unit_E < self.start + share))


def hash_unit(users_E: Array, items_E: Array, seed: int) -> Array:
    """A number in [0, 1) for every (user, item, seed): splitmix64's finaliser.

    Parameters
    ----------
    users_E : Array
        Dense user ids, or -1: [E] int32.
    items_E : Array
        Dense item ids: [E] int32.
    seed : int
        Not negative.

    Returns
    -------
    Array
        [E] float64.
    """
    x: Array
    with np.errstate(over="ignore"):
        x = users_E.astype(np.uint64) * GOLDEN + items_E.astype(np.uint64)
        x += np.uint64(seed % 2**63) * np.uint64(0xD1B54A32D192ED03)
    return np.asarray((spread(x) >> np.uint64(11)).astype(np.float64) / 2.0**53)
