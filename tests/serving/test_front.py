"""The front of the server and calls from outside: over real sockets, in one process, without a
model.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest

from recsys.errors import ConfigError
from recsys.serving import front
from recsys.serving.access import token_sha256
from recsys.serving.admission import Limits
from recsys.serving.calls import Reply, reply_json
from recsys.serving.front import Front, TimeLimits
from recsys.serving.listener import Listener
from recsys.serving.service import Incoming

TOKEN = "open sesame, please"


class Backend:
    """Answers with the number of received bytes, when the test allows it."""

    def __init__(self) -> None:
        self.asked: list[Incoming] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.cancelled = 0
        self.lives = True

    async def answer(self, incoming: Incoming) -> Reply:
        self.asked.append(incoming)
        try:
            await self.may_answer.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if incoming.body == b"fail":
            raise ZeroDivisionError("a secret")
        if incoming.body == b"mistake":
            raise ConfigError("of the user")
        return reply_json(200, {"bytes": len(incoming.body)})

    async def metrics(self, own: dict[str, Any]) -> Reply:
        return reply_json(200, {str(labels): number for labels, number in own["counters"].items()})

    def about(self) -> dict[str, Any] | None:
        return {"uri": "models:/pocket/3", "version": "3"} if self.lives else None


class Served:
    """A front on a socket."""

    def __init__(self, limits: Limits, patience: TimeLimits) -> None:
        self.backend = Backend()
        self.front = Front(limits, patience, self.backend)
        self.listener = Listener(self.front, "127.0.0.1", 0)

    async def send(self, content: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.listener.port)
        writer.write(content)
        with suppress(ConnectionError):
            await writer.drain()
        return reader, writer

    async def ask(self, content: bytes) -> tuple[int, dict[str, str], bytes]:
        reader, writer = await self.send(content)
        try:
            return await read_reply(reader)
        finally:
            writer.close()


async def read_reply(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)).decode("latin-1")
    status, *lines = head.strip().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    body = await asyncio.wait_for(reader.readexactly(int(headers.get("content-length", 0))), 30)
    return int(status.split()[1]), headers, body


def call(path: str = "/recommend", body: bytes = b"", method: str = "POST", *headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: here", *headers]
    if body and not any("encoding" in line.lower() for line in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("utf-8") + body


def run(
    test: Callable[[Served], Awaitable[None]],
    token: str = "",
    max_bytes: int = 1000,
    **patience: Any,
) -> None:
    """Run a test against a front on a socket."""

    async def main() -> None:
        limits = Limits(max_bytes, token_sha256=token_sha256(token) if token else "")
        served = Served(limits, TimeLimits(**patience))
        try:
            await asyncio.wait_for(test(served), 60)
        finally:
            await served.listener.close()

    asyncio.run(main())


def test_complete_call_is_answered_and_connection_is_kept() -> None:
    async def test(served: Served) -> None:
        # pipelined
        reader, writer = await served.send(call(body=b"12345") + call("/health", method="GET"))
        status, headers, body = await read_reply(reader)
        assert (status, json.loads(body), "connection" in headers) == (200, {"bytes": 5}, False)
        status, _, body = await read_reply(reader)
        assert status == 200 and json.loads(body)["version"] == "3"
        writer.write(call("/model", method="GET"))
        assert (await read_reply(reader))[0] == 200
        writer.close()
        chunked = b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
        status, _, body = await served.ask(
            call("/recommend", chunked, "POST", "Transfer-Encoding: chunked")
        )
        assert (status, json.loads(body)) == (200, {"bytes": 5})

    run(test)


def test_half_sent_bodies_block_neither_health_nor_other_calls() -> None:
    async def test(served: Served) -> None:
        head = b"POST /recommend HTTP/1.1\r\nHost: here\r\n"
        half = [await served.send(head + b'Content-Length: 500\r\n\r\n{"user') for _ in range(100)]
        half += [
            await served.send(head + b'Transfer-Encoding: chunked\r\n\r\n5\r\n{"use')
            for _ in range(30)
        ]
        half += [await served.send(b"POST /recommend HTTP/1.1\r\nHost: he") for _ in range(30)]
        await asyncio.sleep(0.2)
        assert served.front.num_open() == 130 and served.backend.asked == []
        assert (await served.ask(call("/health", method="GET")))[0] == 200
        assert (await served.ask(call(body=b"whole")))[0] == 200
        for reader, writer in half[:130]:
            status, headers, body = await read_reply(reader)
            assert (status, headers["connection"]) == (
                408,
                "close",
            ) and b"serve.body_timeout_s" in body
            writer.close()
        assert served.front.num_open() == 0
        [writer.close() for _, writer in half[130:]]

    run(test, body_timeout_s=5)


def test_slowest_body_is_dropped_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(served: Served) -> None:
        half = call(body=b"whole")[:-1]
        first = await served.send(half)
        await asyncio.sleep(0.1)
        second = await served.send(half)
        await asyncio.sleep(1.2)
        assert (await served.ask(call(body=b"whole")))[0] == 200, (
            "a whole body takes the place of a slow one"
        )
        assert (await read_reply(first[0]))[0] == 408
        second[1].write(b"e")
        assert (await read_reply(second[0]))[0] == 200
        monkeypatch.setattr(front, "_LEAST_AGE_S", 60)
        young = [await served.send(half) for _ in range(2)]
        await asyncio.sleep(0.1)
        status, headers, body = await served.ask(call(body=b"whole"))
        assert (status, headers["retry-after"]) == (503, "1") and b"serve.max_bodies" in body
        [writer.close() for _, writer in (first, second, *young)]

    run(test, max_bodies=2, body_timeout_s=30)


def test_token_and_size_are_checked_before_a_body_is_read() -> None:
    async def test(served: Served) -> None:
        right = f"Authorization: Bearer {TOKEN}"
        for headers, status in (
            ((), 401),
            ((right, "Content-Length: 1001"), 413),
            # too large for a length in HTTP
            ((right, "Content-Length: 99999999999999999999999999"), 400),
            ((right, "Content-Length: 500", "Content-Type: text/csv"), 415),
            ((right, "Content-Length: 1001", "Expect: 100-continue"), 413),
        ):
            lengths = (
                headers
                if any("Length" in line for line in headers)
                else (*headers, "Content-Length: 500")
            )
            found, message, _ = await served.ask(call("/recommend", b"", "POST", *lengths))
            assert found == status, headers
            assert message["connection"] == "close"
        assert (await served.ask(call("/nowhere", b"", "POST", "Content-Length: 500")))[0] == 404
        assert (await served.ask(call("/recommend", b"", "PUT", "Content-Length: 500")))[0] == 405
        assert served.backend.asked == []

    run(test, TOKEN)


def test_refused_body_is_drained_so_that_its_sender_gets_the_reply() -> None:
    async def test(served: Served) -> None:
        large = b"x" * 3_000_000
        status, _, body = await served.ask(call("/recommend", large, "POST", "Connection: close"))
        assert status == 413 and b"more than 1000 bytes" in body
        chunks = b"".join(b"10000\r\n" + b"x" * 0x10000 + b"\r\n" for _ in range(20)) + b"0\r\n\r\n"
        assert (await served.ask(call("/recommend", chunks, "POST", "Transfer-Encoding: chunked")))[
            0
        ] == 413
        assert served.backend.asked == []

    run(test)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([f"Authorization: Bearer {TOKEN}"], 200),
        ([f"authorization: bearer {TOKEN}"], 200),
        ([f"Authorization: BEARER   {TOKEN} "], 200),
        ([], 401),
        (["Authorization:"], 401),
        (["Authorization: Bearer"], 401),
        ([f"Authorization: Basic {TOKEN}"], 401),
        ([f"Authorization: {TOKEN}"], 401),
        ([f"Authorization: Bearer{TOKEN}"], 401),
        (["Authorization: Bearer wrong"], 401),
        (["Authorization: Bearer schlüssel-für-übermut"], 401),
        (["Authorization: Bäsic \x01\x7f"], 400),
        ([f"Authorization: Bearer {TOKEN}", f"Authorization: Bearer {TOKEN}"], 400),
        (['Authorization: Digest username="a", nonce="b"'], 401),
        ([f"Authorization: Bearer {'x' * 10_000}"], 401),
    ],
)
def test_every_kind_of_authorization_header_gets_its_reply(headers: list[str], status: int) -> None:
    async def test(served: Served) -> None:
        found, message, body = await served.ask(call("/recommend", b"12345", "POST", *headers))
        assert found == status
        if "error" in body.decode():
            assert message["www-authenticate"].startswith("bearer") and b"open" not in body
        assert (await served.ask(call("/health", b"", "GET", *headers[:1])))[0] in (200, 400)

    run(test, TOKEN)


def test_token_outside_ascii_is_accepted() -> None:
    async def test(served: Served) -> None:
        assert (
            await served.ask(
                call("/model", b"", "GET", "Authorization: Bearer schlüssel-für-übermut")
            )
        )[0] == 200

    run(test, "schlüssel-für-übermut")


def test_websocket_upgrades_are_refused_and_others_ignored() -> None:
    async def test(served: Served) -> None:
        key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
        for path in ("/recommend", "/health", "/ws"):
            upgrade = (
                "Connection: Upgrade",
                "Upgrade: websocket",
                "Sec-WebSocket-Version: 13",
                key,
            )
            status, _, body = await served.ask(call(path, b"", "GET", *upgrade))
            assert status == 400 and b"WebSocket" in body
        h2c = (
            "Connection: Upgrade, HTTP2-Settings",
            "Upgrade: h2c",
            "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA",
        )
        assert (await served.ask(call("/health", b"", "GET", *h2c)))[0] == 200
        assert (await served.ask(call("/recommend", b"12345", "POST", *h2c)))[0] == 200
        assert (await served.ask(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"))[
            0
        ] == 400  # TLS, which is not supported

    run(test)


def test_size_and_time_of_heads_are_limited() -> None:
    async def test(served: Served) -> None:
        reader, writer = await served.send(b"GET /health HTTP/1.1\r\n" + b"X: " + b"y" * 100_000)
        assert b"431" in await asyncio.wait_for(reader.readline(), 30)
        writer.close()

    run(test)


def test_stopping_front_answers_admitted_calls_and_refuses_new_ones() -> None:
    async def test(served: Served) -> None:
        served.backend.may_answer.clear()
        admitted = [await served.send(call(body=b"12345")) for _ in range(20)]
        kept = await served.send(call("/health", method="GET"))
        assert (await read_reply(kept[0]))[0] == 200
        half = await served.send(call(body=b"12345")[:-2])
        await asyncio.sleep(0.2)
        assert served.front.num_open() == 21
        served.front.stop(5)
        for path, method in (("/recommend", "POST"), ("/health", "GET"), ("/nowhere", "GET")):
            status, headers, _ = await served.ask(
                call(path, b"{}" if method == "POST" else b"", method)
            )
            assert (status, headers["retry-after"], headers["connection"]) == (503, "1", "close")
        kept[1].write(call(body=b"12345"))
        assert (await read_reply(kept[0]))[0] == 503, "on a connection that was open before as well"
        half[1].write(b"45")
        served.backend.may_answer.set()
        for reader, _ in (*admitted, half):
            assert (await read_reply(reader))[0] == 200
        port = served.listener.port
        # they wait in the queue of the socket
        last = [await served.send(call("/health", method="GET")) for _ in range(50)]
        await served.listener.close()
        for reader, _ in last:
            assert (await read_reply(reader))[0] == 503, "none that had connected is reset"
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        [writer.close() for _, writer in (*admitted, half, kept, *last)]

    run(test)


def test_queued_connections_are_answered_before_close_returns() -> None:
    """The process may exit right after close."""

    async def test(served: Served) -> None:
        served.front.stop(1)
        # so that all stay in the queue
        asyncio.get_running_loop().remove_reader(served.listener._socket.fileno())
        last = [await served.send(call("/health", method="GET")) for _ in range(50)]
        await served.listener.close()
        key = ("calls_total", (("path", "/health"), ("status", "503")))
        assert served.front.counts.snapshot()["counters"][key] == 50
        for reader, writer in last:
            assert (await read_reply(reader))[0] == 503
            writer.close()

    run(test)


def test_call_is_cancelled_when_its_caller_disconnects() -> None:
    async def test(served: Served) -> None:
        served.backend.may_answer.clear()
        _, writer = await served.send(call(body=b"12345"))
        _, half = await served.send(call(body=b"12345")[:-2])
        await asyncio.sleep(0.2)
        writer.close()
        half.close()
        for _ in range(100):
            await asyncio.sleep(0.02)
            if served.backend.cancelled and not served.front.num_open():
                break
        assert served.backend.cancelled == 1 and served.front.num_open() == 0

    run(test)


def test_late_answers_and_too_many_calls_are_refused() -> None:
    async def test(served: Served) -> None:
        served.backend.may_answer.clear()
        first = await served.send(call(body=b"12345"))
        await asyncio.sleep(0.2)
        status, headers, body = await served.ask(call(body=b"12345"))
        assert (status, headers["retry-after"]) == (503, "1") and b"serve.max_waiting" in body
        assert (await served.ask(call("/health", method="GET")))[0] == 200, (
            "it waits for none of them"
        )
        status, _, body = await read_reply(first[0])
        assert status == 408 and b"serve.timeout_s" in body
        first[1].close()

    run(test, max_waiting=1, timeout_s=3)


def test_missing_replicas_and_errors_reveal_no_internals() -> None:
    async def test(served: Served) -> None:
        status, _, body = await served.ask(call(body=b"fail"))
        assert status == 500 and b"secret" not in body
        status, _, body = await served.ask(call(body=b"mistake"))
        assert status == 400 and b"of the user" in body
        status, _, body = await served.ask(call("/metrics", method="GET"))
        assert status == 200 and b"500" in body
        served.backend.lives = False
        for content in (call(body=b"12345"), call("/health", method="GET")):
            status, headers, _ = await served.ask(content)
            assert (status, headers["retry-after"]) == (503, "1")

    run(test)


def test_garbled_calls_cause_no_crash_and_no_server_error() -> None:
    """Valid calls with some changed bytes: each gets a status below 500, or its connection is
    closed.
    """
    good = [
        call(body=b'{"user_id": "u0"}', method="POST"),
        call(
            "/invocations",
            b'{"inputs": []}',
            "POST",
            "Content-Type: application/json",
            "Expect: 100-continue",
        ),
        call(
            "/recommend",
            b"3\r\nabc\r\n0\r\n\r\n",
            "POST",
            "Transfer-Encoding: chunked",
            "Trailer: X",
        ),
        call(
            "/health?x=%zz#f",
            b"",
            "GET",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Key: x",
        ),
        call(
            "/%2e%2e/model%00",
            b"",
            "GET",
            "Authorization: Bearer x",
            "Cookie: a=b",
            "Content-Length: 0",
        ),
    ]
    pieces = (
        b"\r\n",
        b"\x00",
        b"\xff\xfe",
        b" ",
        b":",
        b"Content-Length: -1\r\n",
        b"HTTP/9.9",
        b"%",
        b"0" * 400,
    )
    rng = random.Random(7)

    statuses: Counter[int] = Counter()

    async def one(served: Served, content: bytes) -> None:
        reader, writer = await served.send(content)
        with suppress(ConnectionError, TimeoutError):  # an incomplete call has no answer yet
            line = await asyncio.wait_for(reader.readline(), 5)
            assert not line or int(line.split()[1]) < 500, (content, line)
            statuses[int(line.split()[1]) if line else 0] += 1
        writer.close()

    async def test(served: Served) -> None:
        contents = []
        for _ in range(300):
            content = bytearray(rng.choice(good))
            for _ in range(rng.randint(1, 4)):
                position = rng.randrange(len(content))
                content[position : position + rng.randint(0, 3)] = rng.choice(pieces)
            contents.append(bytes(content))
        await asyncio.gather(*[one(served, content) for content in contents])
        assert (await served.ask(call("/health", method="GET")))[0] == 200
        assert {200, 400, 404, 408} <= set(statuses), statuses

    run(test, body_timeout_s=1)
