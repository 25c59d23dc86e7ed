"""Measure users per second with a list of ten: ours against RecTools' ``recommend`` of a SASRec,
one thread.

    python -m benchmarks.ranking_speed --data beauty
    python -m benchmarks.ranking_speed --items 10000 100000 1000000

From histories to the ten best of all items, without seen ones, for every user; 50 events, width 64,
2 blocks. Ours is measured twice: ``evaluation`` is the ranking of `recsys evaluate`, ``batch``
gives the table of `recsys recommend` with external ids, scores and shares, as ``recommend`` gives a
table; encoding the histories and ranking are also reported separately. Weights are untrained, since
speed does not depend on them. With ``--items``: ranking alone, of random vectors in catalogues of
these sizes, and its peak memory in addition to vectors and histories.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import torch

from benchmarks.in_turns import ROOT, in_turns, medians, peer_python, ratios, say
from benchmarks.training_speed import prepare_ours, settings, write_events
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array, Histories, Split
from recsys.evaluation.ranking import rank
from recsys.evaluation.top_items import top_by_vectors
from recsys.serving.answer_rows import user_table
from recsys.serving.bundles import read_bundle, write_bundle
from recsys.serving.recommender import Recommender
from recsys.training.fresh_model import build_graphs, build_model

T = TypeVar("T")

K = 10
WIDTH = 64
SEEN = 20  # items per random history
PEER = str(ROOT / "benchmarks/peers/rectools_ranking.py")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=["ml-100k", "beauty"], default="beauty")
    parser.add_argument("--items", type=int, nargs="+")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", nargs=2, metavar=("SIDE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        kind, folder = options.side
        print(json.dumps(recommend_ours(folder) if kind == "model" else rank_ours(Path(folder))))
        return
    if (python := peer_python("rectools")) is None:
        print("rectools: no environment, left out (make bench-peers)", file=sys.stderr)
    if options.items:
        sizes = {str(number): of_items(number, options.rounds, python) for number in options.items}
        say(
            "users a second in ranking, by the size of the catalogue",
            k=K,
            sizes=sizes,
            rounds=options.rounds,
        )
    else:
        of_models(options.data, options.rounds, python)


def of_models(data: str, rounds: int, python: str | None) -> None:
    """Measure the whole recommendation on a data set."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_events(data, Path(folder))
        prepare_ours(folder)
        make_bundle(folder)
        results = in_turns(
            _sides("model", folder, [python, PEER, "model", path] if python else None), rounds
        )
    users = results["ours"][0]["users"]
    keys = {
        "evaluation": "evaluation_s",
        "batch": "batch_s",
        "encoding": "encode_s",
        "ranking": "rank_s",
    }
    rates = {
        name: {s: users / v for s, v in medians(results, key).items() if v}
        for name, key in keys.items()
    }
    say(
        "users a second in full ranking",
        data=data,
        users=users,
        k=K,
        users_a_second={
            name: {side: round(rate) for side, rate in of.items()} for name, of in rates.items()
        },
        times={name: ratios(of) for name, of in rates.items()},
        rounds=rounds,
    )


def of_items(number: int, rounds: int, python: str | None) -> dict[str, Any]:
    """Measure ranking alone in a catalogue of this size."""
    with tempfile.TemporaryDirectory() as folder:
        random = np.random.default_rng(0)
        users = max(256, min(8192, 200_000_000 // number))
        np.save(Path(folder) / "users.npy", random.normal(size=(users, WIDTH)).astype(np.float32))
        np.save(Path(folder) / "items.npy", random.normal(size=(number, WIDTH)).astype(np.float32))
        np.save(Path(folder) / "seen.npy", random.integers(0, number, (users, SEEN)))
        sides = _sides("vectors", folder, [python, PEER, "vectors", folder] if python else None)
        results = in_turns(sides, rounds)
    rates = {name: users / seconds for name, seconds in medians(results, "rank_s").items()}
    return {
        "users_a_second": {name: round(rate, 1) for name, rate in rates.items()},
        "times": ratios(rates),
        "peak_mib": {name: round(peak) for name, peak in medians(results, "peak_mib").items()},
    }


def _sides(kind: str, folder: str, peer: list[str] | None) -> dict[str, list[str]]:
    ours = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "benchmarks.ranking_speed",
        "--side",
        kind,
        folder,
    ]
    return {"ours": ours, **({"rectools": peer} if peer else {})}


def make_bundle(folder: str) -> None:
    """An untrained model in the form in which it would be registered."""
    config = settings(folder, 1)
    dataset = PreparedDataset(config.dataset_dir)
    torch.manual_seed(0)
    model = build_model(config.model, config.train, dataset, Split.TRAIN).freeze(
        build_graphs(dataset, Split.TRAIN)
    )
    write_bundle(Path(folder) / "bundle", model, dataset, {})


def recommend_ours(folder: str) -> dict[str, float]:
    """Time the ranking of the evaluation and the table of the batch for all users, each after a
    warm-up on some of them."""
    torch.set_num_threads(1)
    recommender = Recommender(Recommender(read_bundle(Path(folder) / "bundle")).bundle, Split.TRAIN)
    dataset = PreparedDataset(settings(folder, 1).dataset_dir)
    queries = dataset.histories().queries(Split.VALID)
    model = recommender.model
    user_ids = dataset.user_ids.cast(pa.string()).take(queries.histories.users_U)
    few = np.arange(min(600, len(queries)))
    rank(model, queries.take(few), K)
    user_table(recommender, user_ids.take(few), K, True)
    evaluation_s, ranking = _timed(lambda: rank(model, queries, K))
    batch_s, table = _timed(lambda: user_table(recommender, user_ids, K, True))
    assert len(table) == K * len(queries) and len(ranking) == len(queries), (
        "not every user has a list"
    )
    pieces = list(queries.take(np.argsort(queries.histories.lengths_U, kind="stable")).chunks(512))
    encode_s, vectors = _timed(lambda: [model.user_vectors(piece)[0] for piece in pieces])
    of_pieces = [
        (users, *_events(piece.histories)) for users, piece in zip(vectors, pieces, strict=True)
    ]
    rank_s, _ = _timed(
        lambda: [top_by_vectors(u, model.item_vectors_ND, K, *seen) for u, *seen in of_pieces]
    )
    seconds = {
        "evaluation_s": evaluation_s,
        "batch_s": batch_s,
        "encode_s": encode_s,
        "rank_s": rank_s,
    }
    return {"users": len(queries), **seconds}


def rank_ours(folder: Path) -> dict[str, float]:
    """Ranking of vectors from files."""
    torch.set_num_threads(1)
    users, items, seen = (np.load(folder / f"{name}.npy") for name in ("users", "items", "seen"))
    vectors = [torch.from_numpy(part) for part in (users, items)]
    rows = np.repeat(np.arange(len(users)), SEEN)
    before = _peak_mib(reset=True)
    top_by_vectors(vectors[0][:64], vectors[1], K, rows[: 64 * SEEN], seen[:64].ravel())
    rank_s, _ = _timed(lambda: top_by_vectors(*vectors, K, rows, seen.ravel()))
    return {"rank_s": rank_s, "peak_mib": _peak_mib() - before}


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found


def _events(histories: Histories) -> tuple[Array, Array]:
    """Row and item of every event."""
    return np.repeat(np.arange(len(histories)), histories.lengths_U), histories.items_E.astype(
        np.int64
    )


def _peak_mib(reset: bool = False) -> float:
    """Peak memory of this process; ``reset`` restarts it first."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


if __name__ == "__main__":
    main()
