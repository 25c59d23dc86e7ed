"""Compare the model with every baseline on two generated sets of about a million events, within a
budget.

    python -m benchmarks.million --budget 10m
    python -m benchmarks.million --worlds lines --budget 15m --out runs/million

``log``: 20,000 users and 5,000 items; the next item is near the taste and the last items of the
user; a log with times and a table of items. ``lines``: 30,000 users and 40,000 items without order;
a line for each user in train.txt and test.txt. Both are products of vectors, which favours matrix
methods: they show what a short budget costs on larger data, not how good the model is. Each goes
through ``recsys init FILES`` and ``recsys run``, like a user's own files.

Legend: U users, I items, D width of the vectors, K candidates, b users at a time.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from benchmarks.in_turns import say
from benchmarks.shops import outcome, recsys, show

Array = np.ndarray[Any, Any]

_DAY: Final = 86_400
_START: Final = 1_600_000_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--worlds", nargs="+", choices=sorted(_WORLDS), default=sorted(_WORLDS))
    parser.add_argument("--budget", default="10m", metavar="TIME", help="of each run, e.g. 10m")
    parser.add_argument("--share", type=float, default=1.0, help="of the users, for a quick look")
    parser.add_argument("--out", default="", metavar="FOLDER", help="default: a temporary one")
    options = parser.parse_args()
    with ExitStack() as stack:
        out = Path(options.out or stack.enter_context(tempfile.TemporaryDirectory())).absolute()
        found = {world: measure(world, options, out / world) for world in options.worlds}
    say("a million events, the model against the best baseline on test", **found)


def measure(world: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Generate a world, run ``init`` and ``run`` on it, and read the result."""
    files = folder / "files"
    files.mkdir(parents=True, exist_ok=True)
    _WORLDS[world](files, options.share)
    mine, run = folder / "mine.yaml", folder / "run"
    recsys(folder, "init", *map(str, sorted(files.iterdir())), "--out", str(mine), "--force")
    started = time.perf_counter()
    own = ["--run.dir", str(run), "--tracking.enabled", "false"]
    recsys(folder, "run", "--config", str(mine), "--budget", options.budget, *own)
    found = outcome(json.loads((run / "metrics.json").read_text(encoding="utf-8")))
    found |= {"budget": options.budget, "seconds": round(time.perf_counter() - started)}
    show(f"{world}: {json.dumps(found)}")
    return found


def write_log(folder: Path, share: float) -> None:
    """A log in which taste and the last items decide, as log.csv and items.csv."""
    random, users, items, groups = np.random.default_rng(7), int(20_000 * share), 5_000, 40
    centers = random.normal(size=(groups, 16))
    group_I = random.integers(0, groups, items)
    items_ID = _unit(centers[group_I] + 0.6 * random.normal(size=(items, 16)))
    tastes_U2 = random.integers(0, groups, (users, 2))
    users_UD = _unit(centers[tastes_U2].mean(1) + 0.5 * random.normal(size=(users, 16)))
    popularity_I = _popularity(random, items, 20, 0.8)
    counts_U = np.clip(random.lognormal(np.log(45), 0.75, users), 5, 400).astype(int)
    times_U = _START + random.uniform(0, 0.7 * 365 * _DAY, users)
    last_UD, seen_UI = np.zeros_like(users_UD), np.zeros((users, items), dtype=bool)
    blocks = []
    for step in range(int(counts_U.max())):
        active_b = np.flatnonzero(counts_U > step)
        drawn_bK = random.choice(items, (len(active_b), 150), p=popularity_I)
        scores_bK = 5 * np.einsum(
            "bd,bkd->bk", users_UD[active_b] + last_UD[active_b], items_ID[drawn_bK]
        ) + random.gumbel(size=drawn_bK.shape)
        scores_bK[seen_UI[active_b[:, None], drawn_bK]] = -np.inf
        chosen_b = drawn_bK[np.arange(len(active_b)), scores_bK.argmax(1)]
        seen_UI[active_b, chosen_b] = True
        last_UD[active_b] = 0.5 * (last_UD[active_b] + items_ID[chosen_b])
        times_U[active_b] += random.exponential(2 * _DAY, len(active_b))
        blocks.append(np.stack([active_b, chosen_b, times_U[active_b].astype(int)], axis=1))
    rows = np.concatenate(blocks)
    rows = rows[np.argsort(rows[:, 2], kind="stable")]
    pl.DataFrame(rows, schema=["user", "item", "time"]).write_csv(folder / "log.csv")
    titles = [f"word{g} thing{g % 7} kind{g * 3 % 11} no {i}" for i, g in enumerate(group_I)]
    named = {"item": range(items), "title": titles, "group": [f"g{g // 4}" for g in group_I]}
    pl.DataFrame(named).write_csv(folder / "items.csv")


def write_lines(folder: Path, share: float) -> None:
    """Sets of items of each user, a fifth of them in test.txt, the others in train.txt."""
    random, users, items, groups = np.random.default_rng(11), int(30_000 * share), 40_000, 300
    centers, sizes = random.normal(size=(groups, 24)), random.dirichlet(np.full(groups, 0.5))
    group_I = random.choice(groups, items, p=sizes)
    items_ID = _unit(centers[group_I] + 0.7 * random.normal(size=(items, 24)))
    tastes_U3 = random.choice(groups, (users, 3), p=sizes)
    mixed_UD = np.einsum("uk,ukd->ud", random.dirichlet([1, 1, 1], users), centers[tastes_U3])
    users_UD = _unit(mixed_UD + 0.4 * random.normal(size=mixed_UD.shape))
    log_popularity_I = np.log(_popularity(random, items, 30, 0.75)).astype(np.float32)
    counts_U = np.clip(random.lognormal(np.log(24.5), 0.8, users), 10, 600).astype(int)
    with (folder / "train.txt").open("w") as train, (folder / "test.txt").open("w") as test:
        for first in range(0, users, 500):
            scores_bI = 9 * (users_UD[first : first + 500] @ items_ID.T).astype(np.float32)
            scores_bI += log_popularity_I
            scores_bI -= np.log(random.exponential(size=scores_bI.shape).astype(np.float32))
            for user, scores_I in enumerate(scores_bI, first):
                count = counts_U[user]
                chosen = np.argpartition(-scores_I, count)[:count]
                random.shuffle(chosen)
                held = max(1, count // 5)
                for file, part in ((test, chosen[:held]), (train, chosen[held:])):
                    file.write(f"{user} {' '.join(map(str, part))}\n")


_WORLDS: Final[dict[str, Callable[[Path, float], None]]] = {"lines": write_lines, "log": write_log}


def _unit(vectors: Array) -> Array:
    scaled: Array = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled


def _popularity(random: np.random.Generator, items: int, shift: int, power: float) -> Array:
    """Probabilities of the items, which fall as a power of the rank, in random order."""
    weights_I = 1 / (np.arange(items) + shift) ** power
    random.shuffle(weights_I)
    shares_I: Array = weights_I / weights_I.sum()
    return shares_I


if __name__ == "__main__":
    main()
