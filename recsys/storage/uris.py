"""Paths and URIs as text; nothing is opened, and no large library is imported.

A URI may have options of its filesystem, ``s3://bucket/key?region=eu-west-1``, but never
credentials.
"""

from __future__ import annotations

import os
import re
from typing import Final
from urllib.parse import unquote, urlsplit

CREDENTIALS: Final = (
    "the {}:// URI has credentials, which would be written into configurations and logs; give them"
    " in the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE,"
    " GOOGLE_APPLICATION_CREDENTIALS) or by the machine's role, and a server in AWS_ENDPOINT_URL"
)
_SECRET: Final = re.compile(r"key|secret|token|sig|password|credential", re.IGNORECASE)


def is_remote(uri: str) -> bool:
    """Whether ``uri`` is a URI and not a local path."""
    return "://" in uri


def expanded(uri: str) -> str:
    """Replace ``~`` or ``~NAME`` at the start of a path by the home folder; other paths and URIs
    stay.

    >>> expanded("~/logs") == os.path.expanduser("~") + "/logs"
    True
    >>> expanded("s3://bucket/~x"), expanded("logs/~x")
    ('s3://bucket/~x', 'logs/~x')
    """
    return os.path.expanduser(uri) if uri.startswith("~") else uri


def one_spelling(uri: str) -> str:
    """The real absolute path of an existing local path, in any spelling; other paths and URIs stay.

    >>> one_spelling("file:///"), one_spelling("/./")
    ('/', '/')
    >>> one_spelling("s3://bucket/a/"), one_spelling("no such name")
    ('s3://bucket/a', 'no such name')
    """
    local = unquote(urlsplit(uri).path) if uri.startswith("file://") else expanded(uri)
    if is_remote(local):
        return without_query(uri) if "?" not in uri else uri
    return os.path.realpath(local) if local and os.path.exists(local) else uri


def without_query(uri: str) -> str:
    """A URI without its options, and any path without a slash at its end.

    >>> without_query("s3://bucket/runs/?region=eu-west-1")
    's3://bucket/runs'
    """
    return (uri.partition("?")[0] if is_remote(uri) else uri).rstrip("/")


def within(uri: str, name: str) -> str:
    """The path or URI of ``name`` in the folder ``uri``; options stay at the end.

    >>> within("s3://bucket/run/?region=eu-west-1", "model")
    's3://bucket/run/model?region=eu-west-1'
    """
    return beside(uri, f"/{name}")


def beside(uri: str, ending: str) -> str:
    """A path or URI with ``ending`` added to its name; options stay at the end.

    >>> beside("s3://bucket/set?region=eu-west-1", ".lock")
    's3://bucket/set.lock?region=eu-west-1'
    """
    _, mark, query = uri.partition("?") if is_remote(uri) else (uri, "", "")
    return f"{without_query(uri)}{ending}{mark}{query}"


def has_credentials(uri: str) -> bool:
    """Whether the URI of an object store has credentials.

    >>> has_credentials("s3://AKIA:secret@bucket/key"), has_credentials("s3://bucket/me@home:1")
    (True, False)
    >>> has_credentials("gs://bucket/key?token=abc"), has_credentials("postgresql://me:word@host/db")
    (True, False)
    """
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme not in ("s3", "gs", "gcs"):
        return False
    body, _, query = rest.partition("?")
    owner, at, _ = body.partition("/")[0].rpartition("@")
    if at and (scheme == "s3" or owner != "anonymous"):
        return True
    names = [pair.partition("=")[0] for pair in query.split("&")]
    # a secret may have a slash, which hides the @ after it
    return ":" in body.partition("/")[0] or any(_SECRET.search(name) for name in names)
