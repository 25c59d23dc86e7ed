"""Compare the time of a filtered list with that of an unfiltered one, for a large catalogue. Prints
one JSON line.

    python -m benchmarks.filtered --items 1000000 --width 64 --calls 600 --threads 2

One request per call, from the parsed request to the answer, as in a replica of `recsys serve`.
Unfiltered and filtered calls of the same user take turns, so that other work on the machine affects
both equally; ``processor`` is their CPU time, without the waiting. Filters leave between nearly all
items and one in ten thousand; a fifth of the calls has a new filter, the others use one of 40, like
the categories of a shop. Vectors are synthetic, see ``benchmarks.serving``; users are sums over
their histories.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.in_turns import say
from benchmarks.serving import quantiles, synthetic
from recsys.bundle.description import FORMAT_VERSION, BundleInfo
from recsys.bundle.layout import Bundle
from recsys.config import build_config
from recsys.data.histories import Histories
from recsys.granularities.base import ItemView, ModelSizes
from recsys.model import Encoders, FrozenModel, dump_sizes
from recsys.retrieval.index import ItemIndex, calibrate
from recsys.retrieval.item_attributes import Categories, ItemAttributes, Numbers
from recsys.serving.recommender import Recommender
from recsys.serving.requests import Request

_USERS = 2000
_CATEGORIES = 1000


def attributes(num_items: int) -> ItemAttributes:
    """Generate categories of very different sizes, a price, and one or two of 50 tags per item."""
    rng = np.random.default_rng(1)
    sizes = 1 / np.arange(1, _CATEGORIES + 1)
    kinds = rng.choice(_CATEGORIES, size=num_items, p=sizes / sizes.sum()).astype(np.int32)
    counts = rng.integers(1, 3, size=num_items)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    tags = rng.integers(50, size=int(starts[-1])).astype(np.int32)
    return ItemAttributes(
        {
            "kind": Categories(kinds, [f"k{number}" for number in range(_CATEGORIES)]),
            "price": Numbers(rng.lognormal(3, 1, num_items)),
            "tags": Categories(tags, [f"t{number}" for number in range(50)], starts),
        },
        num_items,
    )


def handmade(num_items: int, width: int) -> Bundle:
    """Build a bundle in memory, with an index that finds .99, as registration builds it."""
    vectors_ND, _ = synthetic(num_items, width)
    config = build_config(
        {"model": {"width": width, "granularities": {"collaborative": {"enabled": True}}}}
    ).model
    sizes = ModelSizes(width, config.max_history, _USERS, num_items, 1, 0, True, False)
    encoders = Encoders(config, sizes, serving=True)
    view = ItemView(vectors_ND, torch.zeros(num_items, 0))
    popularity_N = torch.ones(num_items)
    model = FrozenModel(
        config, sizes, encoders, view, {"collaborative": {"fold_ND": vectors_ND}}, popularity_N
    )
    rng = np.random.default_rng(2)
    histories = Histories.of_items(
        [rng.integers(num_items, size=rng.integers(3, 40)).tolist() for _ in range(_USERS)],
        list(range(_USERS)),
    )
    info = BundleInfo(
        format_version=FORMAT_VERSION,
        package_version="benchmark",
        created="",
        model=config,
        sizes=dump_sizes(sizes),
        granularities=model.names,
        event_types=["interact"],
        default_event_type="interact",
        dataset={},
        text_model="",
        metrics={},
        extra={},
        files={},
    )
    ids = [f"i{number}" for number in range(num_items)]
    users = [f"u{number}" for number in range(_USERS)]
    index = ItemIndex.build(vectors_ND)
    bundle = Bundle(
        info, model, ids, ids, popularity_N.numpy().astype(np.int64), users, histories, index
    )
    recommender = Recommender(bundle)
    queries = recommender.queries([Request(user_id=user) for user in users[:100]])
    calibrate(index, model.contributions(queries).users_BD, vectors_ND)
    return replace(bundle, attributes=attributes(num_items))


def filters(rng: np.random.Generator) -> dict[str, Any]:
    """Draw a typical filter of a shop: one category, several, a price, a tag, or combinations."""
    kind = f"k{int(rng.integers(_CATEGORIES) ** 2 / _CATEGORIES)}"
    price = round(float(rng.lognormal(3, 1)), 2)
    choices: list[dict[str, Any]] = [
        {"kind": kind},
        {"kind": [f"k{number}" for number in rng.integers(60, size=8)]},
        {"kind": {"ne": kind}},
        {"price": {"lt": price}},
        {"price": {"ge": price, "le": 3 * price}, "kind": {"not_in": [kind]}},
        {"tags": f"t{rng.integers(50)}"},
        {"kind": f"k{rng.integers(5)}", "price": {"lt": price}, "tags": {"known": True}},
    ]
    return choices[rng.integers(len(choices))]


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(arguments.threads)
    import faiss

    faiss.omp_set_num_threads(arguments.threads)
    bundle = handmade(arguments.items, arguments.width)
    recommender = Recommender(bundle)
    rng = np.random.default_rng(4)
    known = [filters(rng) for _ in range(40)]
    seconds: dict[str, list[float]] = {
        "unfiltered": [],
        "filtered": [],
        "new filter": [],
        "known filter": [],
    }
    processor: dict[str, list[float]] = {"unfiltered": [], "filtered": []}
    shares, short = [], 0
    for call in range(arguments.calls + 20):
        user, is_new = f"u{call % _USERS}", call % 5 == 0
        asked = filters(rng) if is_new else known[rng.integers(len(known))]
        plain, filtered = Request(user_id=user, k=20), Request(user_id=user, k=20, filters=asked)
        for name, request in sorted(
            {"unfiltered": plain, "filtered": filtered}.items(), reverse=bool(call % 2)
        ):
            started, computed = time.perf_counter(), time.process_time()
            [answer] = recommender.recommend([request])
            taken = time.perf_counter() - started
            if call < 20:
                continue
            seconds[name].append(taken)
            processor[name].append(time.process_time() - computed)
            if name == "filtered":
                seconds["new filter" if is_new else "known filter"].append(taken)
                selection = recommender.catalogue.plan(request, "").selection
                assert selection is not None, "it has a filter"
                shares.append(selection.allowed.num / arguments.items)
                short += len(answer.item_ids) < min(20, selection.allowed.num - 40)
    found = {name: quantiles(taken) for name, taken in seconds.items()}
    of_processor = {name: quantiles(taken) for name, taken in processor.items()}
    return {
        "items": arguments.items,
        "width": arguments.width,
        "threads": arguments.threads,
        "calls": arguments.calls,
        "reorder": bundle.index.reorder if bundle.index is not None else 0,
        "times": found,
        "ratio_p99": round(found["filtered"]["p99_ms"] / found["unfiltered"]["p99_ms"], 3),
        "ratio_p50": round(found["filtered"]["p50_ms"] / found["unfiltered"]["p50_ms"], 3),
        "processor": of_processor,
        "processor_ratio_p99": round(
            of_processor["filtered"]["p99_ms"] / of_processor["unfiltered"]["p99_ms"], 3
        ),
        "allowed_share": [round(float(np.quantile(shares, q)), 5) for q in (0, 0.25, 0.5, 0.75, 1)],
        "short_lists": short,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--calls", type=int, default=600)
    parser.add_argument("--threads", type=int, default=2)
    say("milliseconds of a filtered and of an unfiltered list", **run(parser.parse_args()))


if __name__ == "__main__":
    main()
