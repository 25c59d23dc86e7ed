"""Assignment of users to the two versions of an A/B test, by a salted hash of the user id.

Why a hash and not a list: every replica assigns a user to the same version, also after a restart
and for users that no model knows. Version A answers requests without a ``user_id``.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import Final, Literal

from recsys.serving.requests import AnyRequest, Request

Side = Literal["a", "b"]
SIDES: Final[tuple[Side, Side]] = ("a", "b")  # serve.model and serve.ab.model
_DAY_S: Final = 86_400


@dataclass(frozen=True)
class Split:
    """The share of users that side b answers.

    >>> split = Split(0.5, "ab")
    >>> [split.side_of(user) for user in ("ann", "bob", "cleo", "dan")]
    ['a', 'a', 'b', 'b']
    """

    share: float
    salt: str

    def side_of(self, user_id: str | None) -> Side:
        """The side that answers a user."""
        return (
            "b" if user_id is not None and uniform("ab", self.salt, user_id) < self.share else "a"
        )

    def side(self, request: AnyRequest) -> Side:
        """The side that answers a request."""
        return self.side_of(request.user_id) if isinstance(request, Request) else "a"


def takes_part(request: Request) -> bool:
    """Whether an experiment may change a list: its request names a user and does not ask for
    diversity, whose rules hold for one order only.
    """
    return request.user_id is not None and request.diversify is None


def day_of(request: Request) -> str:
    """The day (UTC) of a request, today if it has no time: a user keeps one draw for a day."""
    return str((request.seconds or int(time.time())) // _DAY_S)


def digest(*texts: str) -> bytes:
    """SHA-256 of texts, each with its length, so that different lists give different input to the
    hash.
    """
    parts = [text.encode("utf-8", "surrogatepass") for text in texts]
    return hashlib.sha256(b"".join(b"%d:%s" % (len(part), part) for part in parts)).digest()


def uniform(*texts: str) -> float:
    """A pseudo-random number in [0, 1) from 53 bits of the hash of texts."""
    return float((int.from_bytes(digest(*texts)[:8], "big") >> 11) / 2**53)
