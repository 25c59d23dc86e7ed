"""Access control: the token of a call is checked before any byte of its body is read."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from recsys.config import ServeConfig
from recsys.errors import ConfigError
from recsys.serving.calls import CallError

_CHALLENGE: Final = (("WWW-Authenticate", 'Bearer realm="multigrain"'),)
_LEAST_TOKEN: Final = 16  # characters; shorter tokens can be guessed
_SCHEME: Final = "bearer"
_OTHERS: Final = ("basic", "digest", "negotiate", "ntlm", "hoba", "token", "apikey", "key")


@dataclass(frozen=True)
class Tokens:
    """The SHA-256 hashes of the tokens; the tokens themselves are not kept.

    ``callers_sha256`` is empty where calls need no token. ``stock_sha256`` is empty where
    POST /stock is closed.
    """

    callers_sha256: str = ""
    stock_sha256: str = ""


def tokens_of(settings: ServeConfig) -> Tokens:
    """The hashes of the tokens in the environment variables that the configuration names.

    Raises
    ------
    ConfigError
        A variable holds no token, its token is too short, or both have the same token.
    """
    named = {
        "serve.token_env": settings.token_env,
        "serve.stock_token_env": settings.stock_token_env,
    }
    tokens = Tokens(
        *(
            token_sha256(token) if (token := read_token(name, key)) else ""
            for key, name in named.items()
        )
    )
    if tokens.stock_sha256 and tokens.stock_sha256 == tokens.callers_sha256:
        raise ConfigError(
            f"serve.token_env {settings.token_env} and serve.stock_token_env"
            f" {settings.stock_token_env} have the same token, so every caller could change the"
            " stock; set two different tokens"
        )
    return tokens


def read_token(variable: str, key: str) -> str:
    """The token in an environment variable; empty where no variable is named.

    Parameters
    ----------
    variable : str
        Name of the environment variable.
    key : str
        Configuration key that names the variable, for the error message.

    Raises
    ------
    ConfigError
        The variable holds no token, or its token is too short.
    """
    if not variable:
        return ""
    token = os.environ.get(variable, "")
    if len(token) < _LEAST_TOKEN:
        raise ConfigError(
            f"{key}: the environment variable {variable} has {len(token)} characters, expected a"
            f" token of at least {_LEAST_TOKEN}"
        )
    return token


def token_sha256(token: str) -> str:
    """The SHA-256 of a token, in hexadecimal digits."""
    return hashlib.sha256(token.encode()).hexdigest()


def check_token(given: Sequence[bytes], kept_sha256: str) -> None:
    """Compare the Authorization headers of a call with the hash of the expected token, in constant
    time.

    The name of the scheme is case-insensitive (RFC 9110). The bytes of the token are compared
    unchanged, so a token with characters outside ASCII works when it is sent as UTF-8.

    Raises
    ------
    CallError
        401 for a missing or wrong token, 400 for several headers. The message says how to send
        the token and never repeats what was sent.
    """
    if not kept_sha256:
        return
    if len(given) > 1:
        raise CallError(400, "got several Authorization headers, expected one", _CHALLENGE)
    scheme, _, token = (given[0] if given else b"").strip(b" \t").partition(b" ")
    # hashes of one length, so that the comparison does not reveal the length of the token
    sent = hashlib.sha256(token.strip(b" \t")).hexdigest()
    # before the other checks, so that every refusal takes the same time
    is_same = hmac.compare_digest(sent, kept_sha256)
    if not given or scheme.lower() != _SCHEME.encode() or not is_same:
        raise CallError(401, _refusal(scheme if given else None), _CHALLENGE)


def _refusal(scheme: bytes | None) -> str:
    cure = "send the header Authorization: Bearer TOKEN"
    if scheme is None:
        return f"this server requires a token: {cure}"
    if scheme.lower() == _SCHEME.encode():
        return f"the token is wrong; {cure}"
    # only known schemes are named: without a scheme the first word is the token itself
    name = scheme.decode("latin-1").lower()
    what = f"the authorization scheme {name}" if name in _OTHERS else "this authorization scheme"
    return f"{what} is not supported; {cure}"
