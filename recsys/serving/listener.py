"""The socket of the server. No connection is lost when the server stops.

Why not ``uvicorn.Server``: it closes the listening socket while connections are in its queue, which
resets them; and it waits for the head of a call without a time limit. The protocol itself is
uvicorn's.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import time
from contextlib import suppress
from email.utils import formatdate
from typing import Any, Final

from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

_HEAD_S: Final = 10.0  # in which the head of a call must arrive
_HEAD_BYTES: Final = 64 << 10
_AT_ONCE: Final = 64  # connections accepted in one turn of the event loop
# wait for calls on the last accepted connections, and again for their replies to leave
_CLOSING_S: Final = 2.0
_BACKLOG: Final = 2048


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol with limits for the time and the size of a call's head."""

    _head_timer: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time limit for the first head."""
        super().connection_made(transport)
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the time limit."""
        self._stop_head_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Check the size of a head that is arriving; restart the time limit for the next call of a
        connection.
        """
        is_idle = self.cycle is None or self.cycle.response_complete
        if is_idle and self._head_timer is None:
            self._start_head_timer()
        if self._head_timer is not None:
            self._head_bytes += len(data)
        # first the parser: where this piece completes the head, it stops the timer
        super().data_received(data)
        if (
            self._head_timer is not None
            and self._head_bytes > _HEAD_BYTES
            and not self.transport.is_closing()
        ):
            self.transport.write(
                b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n\r\n"
            )
            self.transport.close()

    def on_headers_complete(self) -> None:
        """Stop the time limit: the head has arrived."""
        self._stop_head_timer()
        super().on_headers_complete()

    def _start_head_timer(self) -> None:
        self._head_bytes = 0
        self._head_timer = self.loop.call_later(_HEAD_S, self.timeout_keep_alive_handler)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class Listener:
    """An ASGI application on a host and a port, in the running event loop."""

    def __init__(self, app: Any, host: str, port: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._config = Config(
            app,
            http=BoundedProtocol,
            ws="none",
            lifespan="off",
            # uvicorn must not replace the logging of this process
            log_config=None,
            log_level=None,
            access_log=False,
        )
        # errors of a caller go to the caller, not the log
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        self._config.load()
        self._state = ServerState()
        self._tasks: set[asyncio.Task[Any]] = set()
        # accepted connections without a protocol yet
        self._connecting: set[asyncio.Task[Any]] = set()
        _allow_many_connections()
        self._socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        # a restart must not wait until connections of the previous server leave TIME_WAIT
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.setblocking(False)
        self._socket.bind((host, port))
        self._socket.listen(_BACKLOG)
        self._loop.add_reader(self._socket.fileno(), self._accept, _AT_ONCE)
        self._start_task(self._update_date_header())

    @property
    def port(self) -> int:
        """The port of the socket."""
        return int(self._socket.getsockname()[1])

    async def close(self) -> None:
        """Accept waiting connections, close the socket, and close connections when their calls are
        answered.
        """
        if self._socket.fileno() < 0:
            return
        self._loop.remove_reader(self._socket.fileno())
        # as many as the queue can hold, because closing the socket resets those that stay in it
        self._accept(_BACKLOG)
        self._socket.close()
        deadline = self._loop.time() + _CLOSING_S
        while self._loop.time() < deadline and (
            self._connecting or any(map(_has_open_call, self._state.connections))
        ):
            await asyncio.sleep(0.02)
        for connection in list(self._state.connections):
            # closes an idle connection at once, and another one after its reply
            connection.shutdown()
        while self._loop.time() < deadline + _CLOSING_S and (
            self._state.connections or self._state.tasks
        ):
            await asyncio.sleep(0.02)
        for task in self._tasks:
            # the update of the date never ends by itself
            task.cancel()

    def _accept(self, most: int) -> None:
        for _ in range(most):
            try:
                connection, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionError:  # the caller has closed the connection already
                continue
            except OSError:  # too many open files: try again when some are closed
                self._loop.remove_reader(self._socket.fileno())
                self._loop.call_later(_HEAD_S / 10, self._accept_again)
                return
            connection.setblocking(False)
            with suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            task = self._start_task(self._loop.connect_accepted_socket(self._protocol, connection))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    def _accept_again(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.add_reader(self._socket.fileno(), self._accept, _AT_ONCE)

    def _protocol(self) -> asyncio.Protocol:
        return BoundedProtocol(self._config, self._state, {}, self._loop)

    def _start_task(self, awaitable: Any) -> asyncio.Task[Any]:
        task = self._loop.create_task(awaitable)
        # the event loop has only weak references to its tasks
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _update_date_header(self) -> None:
        while True:
            # ``uvicorn.Server``, which otherwise does this, does not run here
            self._state.default_headers = [(b"date", formatdate(time.time(), usegmt=True).encode())]
            await asyncio.sleep(1)


def _has_open_call(connection: Any) -> bool:
    """Whether a connection is new or its call has no complete reply yet; others are idle
    (keep-alive).
    """
    return connection.cycle is None or not connection.cycle.response_complete


def _allow_many_connections() -> None:
    """Raise the limit of open files to the largest that the machine allows this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
