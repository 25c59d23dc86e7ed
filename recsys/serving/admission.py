"""Admission of calls: the limits of a call, and the checks of its head before its body is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from recsys.errors import valid_instead
from recsys.serving.access import check_token
from recsys.serving.calls import METHODS, STOCK, CallError
from recsys.serving.openapi import OPEN_TO_ALL, ServerTraits
from recsys.serving.size import Bounds


@dataclass(frozen=True)
class Limits:
    """The limits of a call, and the hashes of the tokens."""

    max_bytes: int
    max_requests: int = 1000
    token_sha256: str = ""  # of the token that callers must send; empty: none is required
    max_answers: int = 100_000
    max_scores: int = 500_000_000
    # SHA-256 of the token of POST /stock; empty: the path is closed; None: already checked
    stock_sha256: str | None = ""

    @property
    def bounds(self) -> Bounds:
        """The limits on the size of a call."""
        return Bounds(self.max_requests, self.max_answers, self.max_scores)

    @property
    def server(self) -> ServerTraits:
        """The limits and tokens as the description of the server names them."""
        return ServerTraits(
            self.max_requests, self.max_bytes, bool(self.token_sha256), bool(self.stock_sha256)
        )


def admit(
    method: str, path: str, headers: Mapping[str, str], tokens: Sequence[bytes], limits: Limits
) -> None:
    """Check the head of a call before any byte of its body is read.

    Parameters
    ----------
    method : str
        HTTP method.
    path : str
        Path without query.
    headers : Mapping[str, str]
        Headers, names in lower case.
    tokens : Sequence[bytes]
        Values of the Authorization headers.
    limits : Limits
        Limits of a call.

    Raises
    ------
    CallError
        400, 401, 403, 404, 405, 413 or 415.
    """  # noqa: DOC501
    takes = METHODS.get(path)
    if takes is None:
        paths = valid_instead(path[:100], METHODS, listed=", ".join(METHODS))
        raise CallError(404, f"{path[:100]}: no such path; {paths}")
    if method != takes:
        raise CallError(405, f"{path}: got {method[:20]}, expected {takes}", (("Allow", takes),))
    if path == STOCK:
        _admit_stock(tokens, limits.stock_sha256)
    elif path not in OPEN_TO_ALL:
        check_token(tokens, limits.token_sha256)
    if takes == "POST":
        kind = headers.get("content-type", "application/json").split(";")[0].strip().lower()
        if kind != "application/json":
            raise CallError(415, f"Content-Type: got {kind[:80]}, expected application/json")
    announced = headers.get("content-length", "0")
    # ``isdigit`` is also true for ², which ``int`` refuses; ``int`` also refuses more than 4300
    # digits, and 20 digits are too many anyway
    if announced.isascii() and announced.isdigit() and int(announced[:20]) > limits.max_bytes:
        raise too_large(limits.max_bytes)


def _admit_stock(tokens: Sequence[bytes], stock_sha256: str | None) -> None:
    """Check the token of POST /stock, which is not the token of other calls.

    Raises
    ------
    CallError
        401 for a missing or wrong token, 403 where no token is configured.
    """
    if stock_sha256 == "":
        raise CallError(
            403,
            "this server does not accept stock changes; to enable them, start it with"
            " serve.stock_token_env",
        )
    # a replica has no hash: the front has already checked the token
    if stock_sha256 is not None:
        check_token(tokens, stock_sha256)


def too_large(max_bytes: int) -> CallError:
    """The refusal of a body that is too large."""
    return CallError(
        413,
        f"the body has more than {max_bytes} bytes (serve.max_bytes); send fewer requests in a"
        " call",
    )
