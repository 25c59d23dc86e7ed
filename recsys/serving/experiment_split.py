"""Which of two versions answers a user: a share of the users by a salted hash of their id.

Why a hash and no list: every replica says the same of a user, also after a restart and of users whom no model knows.
A request without a ``user_id`` is nobody's; the first version answers it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final, Literal

from recsys.serving.requests import AnyRequest, Request

Side = Literal["a", "b"]
SIDES: Final[tuple[Side, Side]] = ("a", "b")  # serve.model and serve.ab.model


@dataclass(frozen=True)
class Split:
    """The share of users whom side b answers.

    >>> split = Split(0.5, "ab")
    >>> [split.side_of(user) for user in ("ann", "bob", "cleo", "dan")]
    ['a', 'a', 'b', 'b']
    """

    share: float
    salt: str

    def side_of(self, user_id: str | None) -> Side:
        """Who answers a user."""
        return "b" if user_id is not None and uniform("ab", self.salt, user_id) < self.share else "a"

    def side(self, request: AnyRequest) -> Side:
        """Who answers a request."""
        return self.side_of(request.user_id) if isinstance(request, Request) else "a"


def digest(*texts: str) -> bytes:
    """SHA-256 of texts, each with its length, so that two lists never read the same."""
    parts = [text.encode("utf-8", "surrogatepass") for text in texts]
    return hashlib.sha256(b"".join(b"%d:%s" % (len(part), part) for part in parts)).digest()


def uniform(*texts: str) -> float:
    """A number in [0, 1) that texts have, by 53 bits of their hash."""
    return float((int.from_bytes(digest(*texts)[:8], "big") >> 11) / 2**53)
