"""Who may ask: the token of a call, looked at before anything of its body is read."""

from __future__ import annotations

import hashlib
import hmac
import os
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from recsys.config import ServeConfig
from recsys.errors import ConfigError
from recsys.serving.calls import CallError

_CHALLENGE: Final = (("WWW-Authenticate", 'Bearer realm="multigrain"'),)
_LEAST_TOKEN: Final = 16  # characters; shorter ones are guessed
_SCHEME: Final = "bearer"
_VISIBLE: Final = {*string.ascii_letters, *string.digits, *string.punctuation}


@dataclass(frozen=True)
class Tokens:
    """What is kept of the tokens: that of callers (empty: none is asked for), and that of the stock (empty: closed)."""

    callers_sha256: str = ""
    stock_sha256: str = ""


def tokens_of(settings: ServeConfig) -> Tokens:
    """The hashes of the tokens in the environment variables that the configuration names.

    Raises
    ------
    ConfigError
        a variable holds no token, or one that is too short.
    """
    named = {"serve.token_env": settings.token_env, "serve.stock_token_env": settings.stock_token_env}
    return Tokens(*(token_sha256(token) if (token := read_token(name, key)) else "" for key, name in named.items()))


def read_token(variable: str, key: str) -> str:
    """The token in an environment variable, which a key of the configuration names; empty where it names none.

    Raises
    ------
    ConfigError
        there is none, or it is too short.
    """
    if not variable:
        return ""
    token = os.environ.get(variable, "")
    if len(token) < _LEAST_TOKEN:
        raise ConfigError(
            f"{key}: the environment variable {variable} has {len(token)} characters, expected a token of "
            f"{_LEAST_TOKEN} or more"
        )
    return token


def token_sha256(token: str) -> str:
    """What is kept of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def check_token(given: Sequence[bytes], kept_sha256: str) -> None:
    """Compare the values of a call's Authorization headers with the token that is kept, in constant time.

    The scheme's name is of any case (RFC 9110). Bytes of the token are compared as they are, so that a token beyond
    ASCII is one as well, sent as UTF-8.

    Raises
    ------
    CallError
        401, or 400 where there are several headers; says how to send it, never what was got.
    """
    if not kept_sha256:
        return
    if len(given) > 1:
        raise CallError(400, "got several headers Authorization, expected one", _CHALLENGE)
    scheme, _, token = (given[0] if given else b"").strip(b" \t").partition(b" ")
    sent = hashlib.sha256(token.strip(b" \t")).hexdigest()
    is_same = hmac.compare_digest(sent, kept_sha256)
    if not given or scheme.lower() != _SCHEME.encode() or not is_same:
        raise CallError(401, _why(scheme if given else None), _CHALLENGE)


def _why(scheme: bytes | None) -> str:
    cure = "send the header Authorization: Bearer TOKEN"
    if scheme is None:
        return f"a token is needed: {cure}"
    if scheme.lower() == _SCHEME.encode():
        return f"this is not the token; {cure}"
    name = "".join(letter for letter in scheme[:20].decode("latin-1") if letter in _VISIBLE)
    return f"the scheme {name!r} is not taken; {cure}"
