"""Measure answer times: scoring every item against the index, and the two servers on the loopback.
Prints one JSON line.

    python -m benchmarks.serving items --num 10000 100000 1000000 --width 64
    python -m benchmarks.serving http --model DIR --requests 1000 \\
        --url http://127.0.0.1:8000/invocations

``items`` needs no server and no model: vectors with little structure (clusters in a few dimensions
plus the same amount of isotropic noise), of different lengths, searched by inner product; users are
means of some items, with noise. It uses one thread. ``http`` sends requests for known users of a
bundle, one request per call, one call after the other.
"""

from __future__ import annotations

import argparse
import json
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.in_turns import say
from recsys.registry.resolve import resolve
from recsys.retrieval.exact import exact_top
from recsys.retrieval.index import LIST, ItemIndex, calibrate
from recsys.serving.bundles import read_bundle

_NOTHING = np.zeros(0, dtype=np.int64)


def synthetic(
    num_items: int, width: int, num_users: int = 200
) -> tuple[torch.Tensor, torch.Tensor]:
    """Items and users."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(max(50, num_items // 1000), 16)).astype(np.float32)
    spread = rng.normal(size=(16, width)).astype(np.float32) / 4
    items = centres[rng.integers(len(centres), size=num_items)]
    items = (items + 0.6 * rng.normal(size=items.shape).astype(np.float32)) @ spread
    items += 0.35 * rng.normal(size=items.shape).astype(np.float32)
    items *= rng.lognormal(0, 0.25, size=(num_items, 1)).astype(np.float32)
    users = items[rng.integers(num_items, size=(num_users, 5))].mean(1)
    users += 0.2 * rng.normal(size=users.shape).astype(np.float32)
    return torch.from_numpy(items), torch.from_numpy(users.astype(np.float32))


def quantiles(seconds: list[float]) -> dict[str, float]:
    """p50 and p99 in milliseconds."""
    return {f"p{q}_ms": round(float(np.percentile(seconds, q)) * 1e3, 3) for q in (50, 99)}


def timed(
    find: Any, users_BD: torch.Tensor, items_ND: torch.Tensor, batch: int, calls: int
) -> dict[str, float]:
    """Time per user for lists of :data:`LIST` items, ``batch`` users at a time."""
    seconds = []
    for call in range(calls + 2):
        rows = torch.arange(call * batch, (call + 1) * batch) % len(users_BD)
        started = time.perf_counter()
        find(users_BD[rows], items_ND, LIST, _NOTHING, _NOTHING)
        seconds.append((time.perf_counter() - started) / batch)
    return quantiles(seconds[2:])


def items(arguments: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(1)
    import faiss

    faiss.omp_set_num_threads(1)
    found = {}
    for number in arguments.num:
        vectors_ND, users_BD = synthetic(number, arguments.width)
        started = time.perf_counter()
        index = ItemIndex.build(vectors_ND)
        build_s = time.perf_counter() - started
        reached = calibrate(index, users_BD[:100], vectors_ND)
        calls = max(20, min(200, 20_000_000 // number))
        found[str(number)] = {
            "exact": timed(exact_top, users_BD, vectors_ND, 1, calls),
            "exact_batch_32": timed(exact_top, users_BD, vectors_ND, 32, max(5, calls // 20)),
            "index": timed(index.top, users_BD, vectors_ND, 1, calls),
            "index_batch_32": timed(index.top, users_BD, vectors_ND, 32, max(5, calls // 20)),
            "recall@100": round(reached, 4),
            "reorder": index.reorder,
            "build_s": round(build_s, 1),
            "index_mb": round(len(faiss.serialize_index(index._index)) / 1e6, 1),
            "vectors_mb": round(vectors_ND.nbytes / 1e6, 1),
        }
    return {"width": arguments.width, "items": found}


def http(arguments: argparse.Namespace) -> dict[str, Any]:
    users = read_bundle(resolve(str(arguments.model), "")).user_ids
    wraps = arguments.url.endswith("/invocations")
    seconds: list[float] = []
    for number in range(arguments.requests):
        row: dict[str, Any] = {"user_id": users[number % len(users)], "k": arguments.k}
        body = json.dumps({"inputs": [row]} if wraps else row).encode()
        request = urllib.request.Request(arguments.url, body, {"Content-Type": "application/json"})
        started = time.perf_counter()
        with urllib.request.urlopen(request, timeout=60) as reply:
            reply.read()
        seconds.append(time.perf_counter() - started)
    return {
        "url": arguments.url,
        "requests": len(seconds),
        "first_ms": round(seconds[0] * 1e3, 1),
        **quantiles(seconds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(required=True)
    one = kinds.add_parser("items")
    one.add_argument("--num", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    one.add_argument("--width", type=int, default=64)
    one.set_defaults(run=items)
    two = kinds.add_parser("http")
    two.add_argument("--url", required=True)
    two.add_argument(
        "--model", type=Path, required=True, help="a bundle or a pulled model, for its users"
    )
    two.add_argument("--requests", type=int, default=1000)
    two.add_argument("--k", type=int, default=20)
    two.set_defaults(run=http)
    arguments = parser.parse_args()
    say("milliseconds per answer", **arguments.run(arguments))


if __name__ == "__main__":
    main()
