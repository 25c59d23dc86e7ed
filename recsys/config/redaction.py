"""Removal of secrets from texts before they are saved or shown, because other people read saved
texts.

It finds: user and password in a URI; values with a secret name (``password=…``, ``PWD=…``,
``?sig=…``, ``"api_key": …``); ``Authorization`` headers; keys and tokens of well-known forms (AWS,
GitHub, JWT, PEM, …); and, at any position, the values of environment variables with a secret name.
Ordinary settings with similar names, such as ``max_tokens``, ``token_env`` or ``key``, stay.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final
from urllib.parse import unquote

MARK: Final = "***"
# characters of a variable's value that is searched for; shorter values occur by chance
_LEAST: Final = 6
# length of a value of letters that is searched for; a shorter one may be an ordinary word
_WORD: Final = 12
_FOLDERS: Final = ("PWD", "OLDPWD")  # working directory of a shell, not a password

# The end of a name decides. _GLUED may follow a letter, as in DBPASSWORD; _APART may not, as in
# "bypass".
_GLUED: Final = (
    r"passw(?:or)?d|passphrase|secrets?|api[-_]?key|(?:access|secret|private|account|shared|storage|auth|sas|signing"
    r"|encryption|master|subscription)(?:[-_]?access)?[-_]?key(?:[-_]?id)?|(?:access|auth|security|session|refresh|bearer)"
    r"[-_]?token|odbc[-_]?connect|(?:db|user|pg|my|ftp|smtp|proxy|admin|root)(?:pass|pwd)"
)
_APART: Final = r"pass|pwd|token|sig(?:nature)?|credentials?|authorization"
_END: Final = rf"(?:{_GLUED}|(?<![A-Za-z])(?:{_APART}))"
_QUOTED: Final = r"'(?:[^'\\\n]|\\.|''){0,4000}'|\"(?:[^\"\\\n]|\\.){0,4000}\"|\{[^}\n]{0,4000}\}"
_UNMARKED: Final = r"(?!['\"]?\*\*\*)"

_USER: Final = re.compile(r"(?P<scheme>\b[A-Za-z][\w+.-]{0,40}://)(?P<rest>[^\s\"<>]{0,2000}@)")
# CONTAINER@ACCOUNT, which is not a secret
_CONTAINERS: Final = ("abfs://", "abfss://", "wasb://", "wasbs://")
_QUERY: Final = re.compile(
    rf"(?P<name>[?&;][\w.%-]{{0,60}}?(?:{_GLUED}|{_APART}|key)=){_UNMARKED}(?P<value>[^&\s'\"<>]+)",
    re.IGNORECASE,
)
_ODBC: Final = re.compile(
    rf"(?P<name>(?:^|[;\s\"'=])(?:pwd|password)\s*+=\s*+){_UNMARKED}(?P<value>\{{[^}}\n]*\}}|[^;\n\"']*)(?=;)",
    re.I,
)
_PAIR: Final = re.compile(
    rf"(?P<name>{_END}[\"']?\s*+=\s*+){_UNMARKED}(?P<value>{_QUOTED}|[^\s;&,'\"(){{}}\[\]]+)",
    re.IGNORECASE,
)
_ENTRY: Final = re.compile(
    rf"(?P<name>(?:^|(?<=[\s{{,\"']))[\"']?[\w.-]{{0,60}}?{_END}[\"']?[ \t]*+:[ \t]*+)"
    rf"{_UNMARKED}(?!null\b|true\b|false\b)(?P<value>{_QUOTED}|[^\s,}}\]'\"]+)",
    re.IGNORECASE,
)
_HEADER: Final = re.compile(
    rf"(?P<name>authorization[\"']?\s*+[:=]\s*+[\"']?){_UNMARKED}(?P<value>[^\"'\n]+)",
    re.IGNORECASE,
)
_OPTION: Final = re.compile(
    rf"(?P<name>--[\w.-]{{0,60}}?{_END}[ \t]++){_UNMARKED}(?P<value>(?!-)\S+)", re.IGNORECASE
)
_BEARER: Final = re.compile(r"(?P<name>\b(?:Bearer|Basic)\s++)(?P<value>[A-Za-z0-9._~+/=-]{8,})")
_FORMS: Final = re.compile(
    r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b"
    r"|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{16,}|\bhf_[A-Za-z0-9]{20,}"
    r"|\bxox[abprs]-[\w-]{10,}|\bdapi[0-9a-f]{32}\b|\bAIza[\w-]{35}|\bsk-[A-Za-z0-9_-]{20,}"
    r"|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"
    r"|-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----(?:[^-]|-(?!----END))*(?:-----END [A-Z ]{0,40}PRIVATE"
    r" KEY-----)?"
)
_SECRET_NAME: Final = re.compile(rf"[\w.-]*{_END}$", re.IGNORECASE)
# A fast test: a text without a match holds nothing that the patterns above find. Most logged texts
# have none.
_HINT: Final = re.compile(
    r"://|pass|pwd|secret|token|key|sig|cred|auth|odbc|bearer|basic\s|AKIA|ASIA|gh[pousr]_|github_pat|glpat|hf_|xox|dapi"
    r"|AIza|sk-|eyJ|%3[dD]",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """Replace the secrets in a text by ``***``.

    >>> redact("at postgresql://me:p@ss/word@host/db")
    'at postgresql://***@host/db'
    >>> redact("https://host/a?X-Amz-Signature=0af3&part=1")
    'https://host/a?X-Amz-Signature=***&part=1'
    >>> redact("Driver={SQL Server};UID=me;PWD=se cret;Server=db")
    'Driver={SQL Server};UID=me;PWD=***;Server=db'
    >>> redact("max_tokens: 128, token_env=TOKEN, s3://bucket/me@home")
    'max_tokens: 128, token_env=TOKEN, s3://bucket/me@home'
    """
    text = _without_environment(text)
    if not _HINT.search(text):
        return text
    text = _FORMS.sub(MARK, text)
    text = _USER.sub(_without_user, text)
    for pattern in (_HEADER, _ODBC, _QUERY, _PAIR, _ENTRY, _OPTION, _BEARER):
        text = pattern.sub(_without_value, text)
    return _without_encoded(text)


@lru_cache(maxsize=4096)
def is_secret_name(name: str) -> bool:
    """Whether a name says that its value is secret.

    >>> [is_secret_name(name) for name in ("AWS_SECRET_ACCESS_KEY", "db.password")]
    [True, True]
    >>> [is_secret_name(name) for name in ("max_tokens", "token_env", "key")]
    [False, False, False]
    """
    return len(name) < 200 and _SECRET_NAME.match(name) is not None


def redacted_tree(node: Any, name: str = "") -> Any:
    """Nested plain values without secrets: :func:`redact` for all texts; texts with a secret key
    become ``***``.
    """
    if isinstance(node, Mapping):
        return {key: redacted_tree(child, str(key)) for key, child in node.items()}
    if isinstance(node, (list, tuple)):
        return type(node)(redacted_tree(child, name) for child in node)
    if not isinstance(node, str):
        return node
    return MARK if node and is_secret_name(name) else redact(node)


def _without_user(match: re.Match[str]) -> str:
    """The start of a URI without user and password; an @ in the path stays."""
    scheme, rest = match["scheme"], match["rest"]
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if scheme.lower() in _CONTAINERS and ":" not in authority:
        return match[0]
    return f"{scheme}{MARK}@" if ":" in authority or "@" in authority else match[0]


def _without_value(match: re.Match[str]) -> str:
    value = match["value"]
    quote = (
        value[0] if value[:1] in ("'", '"') and value[-1:] == value[0] and len(value) > 1 else ""
    )
    inner = value[1:-1] if quote else value
    return match[0] if inner in ("", MARK) else f"{match['name']}{quote}{MARK}{quote}"


def _without_encoded(text: str) -> str:
    """The text without URL-encoded connection strings that hold a secret; they are replaced as a
    whole.
    """
    if "%3d" not in text.lower():
        return text

    def part(match: re.Match[str]) -> str:
        plain = unquote(match[0])
        return (
            MARK
            if any(pattern.search(f";{plain};") for pattern in (_ODBC, _QUERY, _PAIR))
            else match[0]
        )

    return re.sub(r"[^\s&?'\"=]{0,300}%3[dD][^\s&'\"]*", part, text)


def _without_environment(text: str) -> str:
    for value in _known_secrets():
        if value in text:
            text = text.replace(value, MARK)
    return text


def _known_secrets() -> list[str]:
    """Values of environment variables with a secret name, the longest first."""
    found = {value for name, value in os.environ.items() if _is_secret_variable(name, value)}
    return sorted(found, key=len, reverse=True)


@lru_cache(maxsize=4096)
def _is_secret_variable(name: str, value: str) -> bool:
    """Whether an environment variable holds a secret that can be recognised: not a short word, not
    a path.
    """
    if len(value) < _LEAST or name in _FOLDERS or not is_secret_name(name):
        return False
    is_path = value.startswith(("/", "~")) and os.path.exists(os.path.expanduser(value))
    return not is_path and (not value.isalpha() or len(value) > _WORD)
