"""How many users a second are ranked in full? Ours against RecTools' ``recommend`` of a trained SASRec, one thread.

    python -m benchmarks.ranking_speed --data beauty

Both rank all items for every user, seen ones left out, from histories to lists of ten; models as in training_speed,
after one epoch. Ours is the evaluator that `recsys evaluate` uses; RecTools needs an environment of its own.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.paired import ROOT, in_turns, medians, peer_python, ratios, say
from benchmarks.training_speed import prepare_ours, write_events


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=["ml-100k", "beauty"], default="beauty")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    python = peer_python("rectools")
    with tempfile.TemporaryDirectory() as folder:
        path = write_events(options.data, Path(folder))
        prepare_ours(folder)
        sides = {
            "ours": [sys.executable, "-m", "benchmarks.training_speed", "--ours", folder, "--epochs", "1"],
            **({"rectools": [python, str(ROOT / "benchmarks/peers/rectools_sasrec.py"), path, "1"]} if python else {}),
        }
        results = in_turns(sides, options.rounds)
    for rounds in results.values():
        for result in rounds:
            result["rate"] = result["users"] / result["rank_s"]
    rates = medians(results, "rate")
    say(
        "users a second in full ranking",
        data=options.data,
        users_a_second={name: round(rate) for name, rate in rates.items()},
        times=ratios(rates),
        rounds=options.rounds,
    )


if __name__ == "__main__":
    main()
