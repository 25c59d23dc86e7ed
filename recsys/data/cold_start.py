"""Cold users: a fixed share of the users keeps only a few training events, as new users have.

Why: to measure whether friends, profile or text help new users, we need users with few events and
known targets. Each cold user keeps ``keep`` training events, and the test targets stay. The other
training events are in no split, so they reach no history, graph, count, text or baseline.
Validation events stay targets of validation, but refit and test queries do not see them
(``COLD_VALID``); otherwise the user would not be cold.

In ordered data the *latest* training events are kept, because the history of a new user begins
shortly before the held-out events. The earliest ones would leave a gap that no new user has.
Without an order the hash of (user, item) chooses. Legend: U users, E events (user by user, in the
order of the data).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from recsys.data.hashing import string_hashes, uniform
from recsys.data.histories import COLD_VALID, Array, Split

CUT: Final = 255  # code of events that are in no split; it is never written
_SALT: Final = 0x636F6C64  # never change it: prepared datasets depend on it


@dataclass(frozen=True)
class ColdUsers:
    """Which users are cold, and how many training events they keep."""

    share: float
    keep: int
    seed: int

    @property
    def salted(self) -> int:
        """The seed of the draws; it differs from that of random splits to make both independent."""
        return self.seed ^ _SALT

    def among(self, user_ids: pa.Array) -> Array:
        """Which users are cold: [U] bool, a function of external id and seed only."""
        hashes_U = string_hashes(user_ids)
        return np.asarray(uniform(hashes_U, np.zeros_like(hashes_U), self.salted) < self.share)

    def cut(
        self, cold_U: Array, offsets_U1: Array, splits_E: Array, numbers_E: Array | None
    ) -> Array:
        """Mark surplus training events of cold users as :data:`CUT` and their validation events as
        ``COLD_VALID``.

        Parameters
        ----------
        cold_U : Array
            Cold users: [U] bool, see :meth:`among`.
        offsets_U1 : Array
            Where each user's events start: [U + 1] int64.
        splits_E : Array
            Splits of the events: [E] uint8, from :func:`recsys.data.split.assign`.
        numbers_E : Array | None
            Numbers in [0, 1), of which the largest are kept; None in ordered data, where the latest
            are kept.
        """
        users_E = np.repeat(np.arange(len(cold_U)), np.diff(offsets_U1))
        training = np.flatnonzero(cold_U[users_E] & (splits_E == Split.TRAIN))
        keys = (
            (users_E[training],) if numbers_E is None else (numbers_E[training], users_E[training])
        )
        # stable: a user's latest event, or largest number, is last
        training = training[np.lexsort(keys)]
        cut_E = splits_E.copy()
        cut_E[training[_from_end(users_E[training]) >= self.keep]] = CUT
        cut_E[cold_U[users_E] & (splits_E == Split.VALID)] = COLD_VALID
        return cut_E

    def note(self, counts: Mapping[str, int]) -> str:
        """The note of the manifest."""
        return (
            f"{counts['cold_users']:,} cold users keep at most {self.keep} training events each:"
            f" {counts['cold_cut']:,} events and {counts.get('text_rows_cold', 0):,} rows of their"
            f" text were left out of all splits; their {counts['cold_valid']:,} validation events"
            " are targets in validation and never trained on"
        )

    def describe(self) -> dict[str, Any]:
        """Entries of the manifest's split; :meth:`of` reads them."""
        return {f"cold_{name}": value for name, value in asdict(self).items()}

    @staticmethod
    def of(split: Mapping[str, Any]) -> ColdUsers | None:
        """The rule in a manifest's split; None where no user was made cold."""
        if not split.get("cold_share"):
            return None
        return ColdUsers(split["cold_share"], split["cold_keep"], split["cold_seed"])


def _from_end(users_E: Array) -> Array:
    """Position of every event from the end of its user's block, 0 for the last.

    >>> _from_end(np.array([4, 4, 4, 7])).tolist()
    [2, 1, 0, 0]
    """
    if not len(users_E):
        return np.zeros(0, dtype=np.int64)
    ends = np.flatnonzero(np.diff(users_E, append=-1)) + 1
    lengths = np.diff(ends, prepend=0)
    return np.asarray(np.repeat(ends, lengths) - 1 - np.arange(len(users_E)))
