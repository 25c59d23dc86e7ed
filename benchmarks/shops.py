"""Compare the model with every single baseline on data that it was not tuned for: ten generated
shops.

    python -m benchmarks.shops                               # seeds 0 to 9, settings by rules
    python -m benchmarks.shops --seeds 3 4 --budget 5m --out runs/shops

Every shop (:mod:`benchmarks.shop_world`) is written as files of some form
(:mod:`benchmarks.shop_files`), and is processed like a user's own data: ``recsys init FILES --out
mine.yaml``, ``recsys run --config mine.yaml``. The gain compares the model with the baseline of the
same run that is best on test; its interval is that of the paired difference. ``ceiling`` is the
metric with knowledge of the shop's rules, ``misread`` lists the mistakes of ``init``. ``--out``
keeps everything; a shop with results there is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.in_turns import ROOT, say
from benchmarks.shop_ceiling import ceiling
from benchmarks.shop_files import Shop, write_shop
from benchmarks.shop_truth import misread
from benchmarks.shop_world import plan_of, world_of
from recsys.report.first_screen import best_baseline

Json = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument(
        "--budget",
        default="",
        metavar="TIME",
        help="of each run, e.g. 5m; default: settings by rules",
    )
    parser.add_argument("--out", default="", metavar="FOLDER", help="default: a temporary one")
    parser.add_argument(
        "--users", type=float, default=1.0, help="scales the number of users of every shop"
    )
    parser.add_argument(
        "--items", type=float, default=1.0, help="scales the number of items of every shop"
    )
    options = parser.parse_args()
    with ExitStack() as stack:
        out = Path(options.out or stack.enter_context(tempfile.TemporaryDirectory())).absolute()
        shops = [measure(seed, options, out / str(seed)) for seed in options.seeds]
    gains = [shop["gain"] for shop in shops if "gain" in shop]
    say(
        "ten generated shops, the model against the best baseline on test",
        shops=shops,
        mean_gain=round(mean(gains), 4) if gains else None,
        worst_gain=min(gains, default=None),
        failed=[shop["seed"] for shop in shops if "gain" not in shop],
        budget=options.budget or None,
    )


def measure(seed: int, options: argparse.Namespace, folder: Path) -> Json:
    """Generate a shop, run ``init`` and ``run`` on it, and read the result."""
    plan = plan_of(seed, options.users, options.items)
    (folder / "files").mkdir(parents=True, exist_ok=True)
    shop = write_shop(world_of(plan), folder / "files")
    found: Json = {
        "seed": seed,
        "users": plan.num_users,
        "items": plan.num_items,
        "events": len(shop.times),
        "days": plan.days,
        "signals": {name: round(value, 2) for name, value in plan.strength.items()},
        "misleading": sorted(plan.misleading),
    }
    show(f"shop {seed}: {json.dumps(found)}")
    configuration, run = folder / "mine.yaml", folder / "run"
    try:
        recsys(folder, "init", *map(str, shop.files), "--out", str(configuration), "--force")
        found["misread"] = misread(configuration, shop)
        found["ceiling"] = ceiling(configuration, shop)
        took = folder / "seconds"
        if not took.is_file():
            started = time.perf_counter()
            budget = ["--budget", options.budget] if options.budget else []
            own = ["--run.dir", str(run), "--tracking.enabled", "false"]
            recsys(folder, "run", "--config", str(configuration), *budget, *own)
            took.write_text(f"{time.perf_counter() - started:.0f}", encoding="utf-8")
        found |= outcome(json.loads((run / "metrics.json").read_text(encoding="utf-8")))
        found["seconds"] = int(took.read_text(encoding="utf-8"))
    except RuntimeError as error:
        found["error"] = str(error)
    show(f"shop {seed}: {summary_line(found, shop)}")
    return found


def outcome(metrics: Json) -> Json:
    """Compare the model with the best baseline on test, from ``metrics.json``.

    >>> against = {"als": {"difference": 0.02, "low": 0.01, "high": 0.03}}
    >>> metrics = {"metric": "ndcg@10", "model": {"ndcg@10": 0.22}, "data": {"queries": 50}}
    >>> metrics |= {"baselines": {"als": {"ndcg@10": 0.2}}}
    >>> metrics |= {"comparison": {"best_baseline": "als", "against": against}}
    >>> outcome(metrics)["gain"]
    0.1
    """
    metric, comparison = metrics["metric"], metrics["comparison"]
    best = best_baseline(comparison)
    value, baseline = metrics["model"][metric], metrics["baselines"][best][metric]
    against = comparison["against"][best]
    each = metrics.get("members", {}).get("each", {})
    return {
        "metric": metric,
        "queries": metrics["data"]["queries"],
        "model": round(value, 4),
        "baseline": best,
        "baseline_value": round(baseline, 4),
        "gain": round(value / baseline - 1, 4) if baseline else None,
        "difference": [round(against[key], 4) for key in ("difference", "low", "high")],
        "baseline_by_validation": comparison.get("best_on_validation", comparison["best_baseline"]),
        "members": {
            name: round(max(entry["weight"] or [0.0]), 2)
            for name, entry in each.items()
            if entry["kept"] and entry["kind"] != "trained"
        },
    }


def recsys(folder: Path, *words: str) -> None:
    """Run one command of the product and keep its console output in the folder of the shop.

    Raises
    ------
    RuntimeError
        The command failed; the message has the end of its output.
    """
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true"}
    log = folder / f"{words[0]}.log"
    with log.open("w", encoding="utf-8") as console:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "pipelines.cli", *words],
            cwd=ROOT,
            env=environment,
            stdout=console,
            stderr=subprocess.STDOUT,
        )
    if done.returncode:
        said = log.read_text(encoding="utf-8", errors="replace")[-1500:]
        raise RuntimeError(f"recsys {' '.join(words)} failed ({done.returncode}): {said}")


def summary_line(found: Json, shop: Shop) -> str:
    """Print one readable line."""
    wrong = "; ".join(found.get("misread", [])) or "read as it is meant"
    if "error" in found:
        return f"FAILED: {found['error']}; {wrong}"
    low, high = found["difference"][1:]
    return (
        f"{found['metric']} {found['model']:.4f}, {found['baseline']}"
        f" {found['baseline_value']:.4f}, gain {found['gain']:+.1%} (difference {low:+.4f} to"
        f" {high:+.4f}), ceiling {found['ceiling']}, {found['seconds']} s;"
        f" {', '.join(shop.roles.values())}: {wrong}"
    )


def show(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
