"""Security checks before every page: allowed host names and sites, the token, and security headers.

Why also on a loopback address: any web site can send a visitor's browser to ``localhost``, and with
DNS rebinding read the answer; the name in the Host header reveals this.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import socket
from collections.abc import Iterable
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
REPORT_POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; sandbox"
)
"""The policy for reports. They are self-contained: no scripts, forms or external content."""


class Guard:
    """Refuses requests that must not reach a page, and adds security headers to every answer."""

    def __init__(self, app: ASGIApp, names: Iterable[str], password_sha256: str = "") -> None:
        self._app, self._password_sha256 = app, password_sha256
        self._names = {"localhost", socket.gethostname().lower(), *(name.lower() for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request, then pass it to the application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        is_head = scope["method"] == "HEAD"

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    # a page may have its own policy, such as a report
                    headers.setdefault(name, value)
            elif is_head:
                message = {**message, "body": b""}
            await send(message)

        # with the headers on refusals too
        refusal = self._refusal(Headers(scope=scope), scope["method"])
        # the pages know only GET
        asked = {**scope, "method": "GET"} if is_head else scope
        await (refusal or self._app)(asked, receive, send_guarded)

    def _refusal(self, headers: Headers, method: str) -> PlainTextResponse | None:
        host = host_of(headers.get("host", ""))
        if not self._is_ours(host):
            return PlainTextResponse(
                f"This dashboard does not answer to the name {host!r}. Open it as localhost or, if"
                f" the name belongs to it, start it with --ui.names '[{host}]'.\n",
                421,
            )
        if method not in ("GET", "HEAD"):
            return PlainTextResponse(
                "This dashboard is read-only; use GET or HEAD.\n", 405, {"Allow": "GET, HEAD"}
            )
        # another port of localhost is the same site, but may be another program
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and not _is_a_visit(
            headers
        ):
            return PlainTextResponse("Another site requested this page; open it directly.\n", 403)
        if self._password_sha256 and not self._knows_password(headers.get("authorization", "")):
            challenge = {"WWW-Authenticate": 'Basic realm="multigrain", charset="UTF-8"'}
            return PlainTextResponse(
                "A token is required: give any user name, and the token as the password.\n",
                401,
                challenge,
            )
        return None

    def _is_ours(self, host: str) -> bool:
        """Whether this is a known name or an IP address; DNS rebinding cannot use IP addresses."""
        if host in self._names:
            return True
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return False
        return True

    def _knows_password(self, given: str) -> bool:
        scheme, _, sent = given.partition(" ")
        try:
            _, _, password = base64.b64decode(sent.strip(), validate=True).decode().partition(":")
        except ValueError:
            return False
        # equal lengths and a comparison in constant time, so that timing does not reveal the token
        found = hashlib.sha256(password.encode()).hexdigest()
        return scheme.lower() == "basic" and hmac.compare_digest(found, self._password_sha256)


def host_of(header: str) -> str:
    """The name or address of a Host header, without port and in lower case; empty if it is
    malformed.

    >>> host_of("LocalHost:8080"), host_of("[::1]:8080"), host_of("10.0.0.1"), host_of("[::1")
    ('localhost', '::1', '10.0.0.1', '')
    """
    if header.startswith("["):
        inner, bracket, _ = header[1:].partition("]")
        return inner.lower() if bracket else ""
    return header.partition(":")[0].lower()


def _is_a_visit(headers: Headers) -> bool:
    """Whether a person followed a link to a page: the answer goes to the person, not to the other
    site.
    """
    return (
        headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    )
