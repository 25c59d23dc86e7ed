"""Measure how a running server handles difficult callers. Each command prints one JSON line.

    python -m benchmarks.serving_load half --url http://127.0.0.1:8000 --bodies 130 --seconds 35
    python -m benchmarks.serving_load beside --url http://127.0.0.1:8000 --calls 300 \\
        --requests 1000 --k 100
    python -m benchmarks.serving_load stop --url http://127.0.0.1:8000 --pid PID --clients 8

``half`` sends bodies that announce a length and stop, and polls ``/health`` meanwhile: the longest
time without an answer. ``beside`` sends small calls, first alone, then during a sequence of large
calls. ``stop`` sends calls from several clients, sends SIGTERM to the process PID, and counts the
outcome of every call until the server has ended.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from typing import Any

from benchmarks.in_turns import say
from benchmarks.serving import quantiles


def post(url: str, content: Any, timeout: float = 120) -> int:
    """Send a call, read the whole answer and return the status."""
    request = urllib.request.Request(
        url, json.dumps(content).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout) as reply:
            reply.read()
            return int(reply.status)
    except urllib.error.HTTPError as error:
        error.read()
        return error.code


def half(arguments: argparse.Namespace) -> dict[str, Any]:
    """Longest time without an answer of ``/health`` while bodies are half sent."""
    place = urllib.parse.urlsplit(arguments.url)
    address = (place.hostname or "127.0.0.1", place.port or 80)
    head = f"POST /recommend HTTP/1.1\r\nHost: {address[0]}\r\nContent-Type: application/json\r\n"
    open_sockets = []
    for _ in range(arguments.bodies):
        connection = socket.create_connection(address, timeout=30)
        connection.sendall(f'{head}Content-Length: 1000\r\n\r\n{{"user_id": '.encode())
        open_sockets.append(connection)
    started = last = time.perf_counter()
    longest, statuses = 0.0, Counter[str]()
    calls: Counter[str] = Counter()
    while time.perf_counter() - started < arguments.seconds:
        try:
            with urllib.request.urlopen(
                f"{arguments.url}/health", timeout=arguments.seconds
            ) as reply:
                statuses[str(reply.status)] += 1
            longest, last = max(longest, time.perf_counter() - last), time.perf_counter()
        except Exception as error:
            statuses[str(getattr(error, "code", type(error).__name__))] += 1
        try:
            calls[
                str(
                    post(f"{arguments.url}/recommend", {"user_id": "u0"}, timeout=arguments.seconds)
                )
            ] += 1
        except Exception as error:
            calls[type(error).__name__] += 1
        time.sleep(0.05)
    longest = max(longest, time.perf_counter() - last)
    for connection in open_sockets:
        connection.close()
    return {
        "bodies": arguments.bodies,
        "longest_without_health_s": round(longest, 2),
        "health": dict(statuses),
        "calls": dict(calls),
    }


def beside(arguments: argparse.Namespace) -> dict[str, Any]:
    """Times of small calls, alone and during large ones."""
    url = f"{arguments.url}/recommend"

    def small(number: int) -> list[float]:
        seconds = []
        for turn in range(number):
            started = time.perf_counter()
            assert post(url, {"user_id": f"u{turn % 100}", "k": 10}) == 200
            seconds.append(time.perf_counter() - started)
        return seconds

    small(20)
    quiet = small(arguments.calls)
    done, large = threading.Event(), []
    rows = [{"user_id": f"u{row % 500}", "k": arguments.k} for row in range(arguments.requests)]

    def ask_large() -> None:
        while not done.is_set():
            started = time.perf_counter()
            status = post(url, rows, timeout=600)
            large.append((status, time.perf_counter() - started))

    thread = threading.Thread(target=ask_large)
    thread.start()
    time.sleep(0.2)
    try:
        busy = small(arguments.calls)
    finally:
        done.set()
        thread.join()
    return {
        "quiet": quantiles(quiet),
        "beside": quantiles(busy),
        "p99_ratio": round(quantiles(busy)["p99_ms"] / quantiles(quiet)["p99_ms"], 1),
        "large_calls": dict(Counter(str(status) for status, _ in large)),
        "large_s": round(sum(seconds for _, seconds in large) / max(len(large), 1), 2),
    }


def stop(arguments: argparse.Namespace) -> dict[str, Any]:
    """Outcome of every call around a SIGTERM; a refused connection means that the server has
    ended."""
    found: Counter[str] = Counter()
    done, lock = threading.Event(), threading.Lock()
    url = urllib.parse.urlsplit(arguments.url)

    def ask() -> None:
        while not done.is_set():
            connection = http.client.HTTPConnection(
                url.hostname or "127.0.0.1", url.port, timeout=60
            )
            try:
                connection.request(
                    "POST", "/recommend", b'{"user_id": "u1"}', {"Content-Type": "application/json"}
                )
                reply = connection.getresponse()
                reply.read()
                outcome = str(reply.status)
            except ConnectionRefusedError:
                return  # the server has ended
            except Exception as error:
                outcome = type(error).__name__
            finally:
                connection.close()
            with lock:
                found[outcome] += 1

    threads = [threading.Thread(target=ask) for _ in range(arguments.clients)]
    for thread in threads:
        thread.start()
    time.sleep(3)
    os.kill(arguments.pid, signal.SIGTERM)
    for thread in threads:
        thread.join(120)
    done.set()
    lost = sum(number for outcome, number in found.items() if outcome not in ("200", "503"))
    return {"outcomes": dict(found), "lost": lost}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(required=True)
    for run in (half, beside, stop):
        kind = kinds.add_parser(run.__name__)
        kind.add_argument("--url", required=True, help="of the server, without a path")
        kind.set_defaults(run=run)
    kinds.choices["half"].add_argument("--bodies", type=int, default=130)
    kinds.choices["half"].add_argument("--seconds", type=float, default=35)
    kinds.choices["beside"].add_argument("--calls", type=int, default=300)
    kinds.choices["beside"].add_argument("--requests", type=int, default=1000)
    kinds.choices["beside"].add_argument("--k", type=int, default=100)
    kinds.choices["stop"].add_argument("--pid", type=int, required=True)
    kinds.choices["stop"].add_argument("--clients", type=int, default=8)
    arguments = parser.parse_args()
    say("a server under load", kind=arguments.run.__name__, **arguments.run(arguments))


if __name__ == "__main__":
    main()
