"""New dense ids for the remaining users when some are forgotten.

Why not renumber all users: shards, graphs and trained tables contain dense ids. The last users get
the ids of the forgotten ones, so the work grows with the number of forgotten users, not of
remaining users.

Legend: U users before, V users after.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recsys.data.histories import Array


@dataclass(frozen=True)
class Renumbering:
    """Old and new dense ids."""

    number_U: Array  # the new id of every old one, -1 for forgotten users: int32
    order_V: Array  # the old id of every new one: int64

    @staticmethod
    def without(num_users: int, gone: Sequence[int] | Array) -> Renumbering:
        """The renumbering of ``num_users`` users when the users ``gone`` (dense ids) are removed.

        >>> found = Renumbering.without(5, [1, 4])
        >>> found.number_U.tolist(), found.order_V.tolist()
        ([0, -1, 2, 1, -1], [0, 3, 2])
        """
        is_gone_U = np.zeros(num_users, dtype=bool)
        is_gone_U[np.asarray(gone, dtype=np.int64)] = True
        left = int(num_users - is_gone_U.sum())
        order_V = np.arange(left)
        order_V[is_gone_U[:left]] = left + np.flatnonzero(~is_gone_U[left:])
        number_U = np.full(num_users, -1, dtype=np.int32)
        number_U[order_V] = np.arange(left)
        return Renumbering(number_U, order_V)

    @property
    def is_changed_U(self) -> Array:
        """Which users are removed or get another id: [U] bool."""
        return np.asarray(self.number_U != np.arange(len(self.number_U)))
