"""Cold users: a fixed share of the users is made to look as if they had just come.

Why: whether friends, profile or text help a newcomer shows only on users with few events whose tastes are known all
the same. Of each cold user the training events are cut to ``keep``; the test targets stay. What is cut is in no part,
so it reaches no history, graph, count, text or baseline. Validation events stay targets of validation, but no later
part sees them (``VALID_ALONE``): neither refit nor a test query, or the user would not be cold any more.

In ordered data the *latest* training events are kept: somebody who has just come has a log that begins shortly before
the held-out events. The earliest ones would leave a gap behind the history that no newcomer has. Without an order the
hash of (user, item) chooses. Legend: U users, E events (user by user, in the order of the data).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from recsys.data.hashing import string_hashes, uniform
from recsys.data.histories import VALID_ALONE, Array, Split

CUT: Final = 255  # a part that is never written
_SALT: Final = 0x636F6C64  # frozen


@dataclass(frozen=True)
class Newcomers:
    """Which users are cold, and how many training events they keep."""

    share: float
    keep: int
    seed: int

    @property
    def salted(self) -> int:
        """The seed of its draws: who is cold and what is kept must not depend on what a random split holds out."""
        return self.seed ^ _SALT

    def among(self, user_ids: pa.Array) -> Array:
        """True for cold users: a function of external id and seed alone, [U] bool."""
        hashes_U = string_hashes(user_ids)
        return np.asarray(uniform(hashes_U, np.zeros_like(hashes_U), self.salted) < self.share)

    def cut(self, cold_U: Array, offsets_U1: Array, parts_E: Array, numbers_E: Array | None) -> Array:
        """The parts with the cold users' surplus training events as :data:`CUT`, their validation as ``VALID_ALONE``.

        Parameters
        ----------
        cold_U : Array
            see :meth:`among`.
        offsets_U1 : Array
            where each user's events start.
        parts_E : Array
            of :func:`recsys.data.split.assign`.
        numbers_E : Array | None
            in [0, 1), the largest are kept; None in ordered data, where the latest are kept.
        """
        users_E = np.repeat(np.arange(len(cold_U)), np.diff(offsets_U1))
        training = np.flatnonzero(cold_U[users_E] & (parts_E == Split.TRAIN))
        keys = (users_E[training],) if numbers_E is None else (numbers_E[training], users_E[training])
        training = training[np.lexsort(keys)]  # stable: the latest, or the largest number, is a user's last
        cut_E = parts_E.copy()
        cut_E[training[_from_end(users_E[training]) >= self.keep]] = CUT
        cut_E[cold_U[users_E] & (parts_E == Split.VALID)] = VALID_ALONE
        return cut_E

    def note(self, counts: Mapping[str, int]) -> str:
        """What a person should know of what was done."""
        return (
            f"{counts['cold_users']:,} cold users keep at most {self.keep} training events each: "
            f"{counts['cold_cut']:,} events were cut and are in no part, nor are {counts.get('text_rows_cold', 0):,} "
            f"rows of their text; their {counts['cold_valid']:,} validation events are asked in validation and never "
            "trained on"
        )

    def describe(self) -> dict[str, Any]:
        """For the manifest; :meth:`of` reads it."""
        return {f"cold_{name}": value for name, value in asdict(self).items()}

    @staticmethod
    def of(split: Mapping[str, Any]) -> Newcomers | None:
        """From a manifest's split; None where no user was cut."""
        if not split.get("cold_share"):
            return None
        return Newcomers(split["cold_share"], split["cold_keep"], split["cold_seed"])


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
