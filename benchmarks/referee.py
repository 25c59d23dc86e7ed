"""Compare the referee's figures of RecTools' and RecBole's lists with the libraries' own metrics.

    python -m benchmarks.referee --config lastfm-leave-one-out --out runs/referee

The protocol follows each library's evaluation (RecTools and RecBole's LightGCN leave out seen
items, RecBole's SASRec does not, ``uni100`` ranks 100 items that RecBole samples) and is written as
CSV. The library trains, evaluates with its own code and writes its lists; the referee scores them.
Models are barely trained: the question is whether figures agree to four digits, not which model is
good. RecTools' NDCG is the one with ``divide_by_achievable``, which is the usual definition.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Final

from benchmarks.in_turns import ROOT, in_turns, peer_python, say
from pipelines.cli import main as recsys
from recsys.evaluation.metrics import query_metrics
from recsys.evaluation.ranking import mark_hits
from recsys.referee.lists import read_lists
from recsys.referee.protocol import Protocol, read_protocol

PROTOCOLS: Final = {
    "seen": [],
    "none": ["--referee.mask", "none"],
    "uni100": ["--referee.mask", "none", "--referee.sample", "100", "--referee.sampler", "recbole"],
}
# peer → protocol, environment, script, and the arguments after protocol and folder
PEERS: Final[dict[str, tuple[str, str, str, list[str]]]] = {
    "RecTools SASRec": ("seen", "rectools", "referee_rectools.py", ["[EPOCHS]", "[0]"]),
    "RecBole LightGCN": (
        "seen",
        "recbole",
        "referee_recbole.py",
        ["LightGCN", "EPOCHS", "full", "{}"],
    ),
    "RecBole SASRec": (
        "none",
        "recbole",
        "referee_recbole.py",
        ["SASRec", "EPOCHS", "full", "MORE"],
    ),
    "RecBole SASRec, uni100": (
        "uni100",
        "recbole",
        "referee_recbole.py",
        ["SASRec", "EPOCHS", "uni100", "MORE"],
    ),
}
DIGITS: Final = 4


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="lastfm-leave-one-out")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--more", default="{}", help="settings of RecBole's SASRec, as JSON")
    parser.add_argument(
        "--out", default="runs/referee", help="folder of protocols and lists, which are kept"
    )
    options = parser.parse_args()
    out, found = Path(options.out).absolute(), {}
    for peer, (kind, environment, script, words) in PEERS.items():
        if (python := peer_python(environment)) is None:
            print(f"{peer}: no environment, left out (make bench-peers)", file=sys.stderr)
            continue
        protocol = prepared(options.config, kind, out)
        arguments = [
            word.replace("EPOCHS", str(options.epochs)).replace("MORE", options.more)
            for word in words
        ]
        lists = out / f"lists-{kind}"
        side = [
            python,
            str(ROOT / "benchmarks/peers" / script),
            str(out / kind),
            str(lists),
            *arguments,
        ]
        theirs = in_turns({peer: side}, 1)[peer][0]
        found[peer] = both_figures(theirs, protocol, lists)
    gaps = [abs(pair["theirs"] - pair["ours"]) for of in found.values() for pair in of.values()]
    say(
        "do the referee's figures equal those of the libraries?",
        figures=found,
        largest_difference=max(gaps, default=None),
        equal=bool(gaps) and max(gaps) < 0.5 * 10**-DIGITS,
    )


def prepared(config: str, kind: str, out: Path) -> Protocol:
    words = [
        "--config",
        config,
        "--run.dir",
        str(out / "run"),
        "--referee.format",
        "csv",
        *PROTOCOLS[kind],
    ]
    if recsys(["referee", "prepare", "--out", str(out / kind), *words]):
        raise SystemExit(2)
    return read_protocol(out / kind)


def both_figures(
    theirs: dict[str, Any], protocol: Protocol, lists: Path
) -> dict[str, dict[str, float]]:
    """File and metric → both figures. RecTools reports figures of each of its files, RecBole of its
    only one."""
    questions = [protocol.queries(window) for window in protocol.windows]
    one_file = all(isinstance(value, float) for value in theirs.values())
    files = {path.name: path for path in lists.rglob("*.csv")}
    found = {}
    for name, path in files.items():
        figures = theirs if one_file and name.startswith("recbole") else theirs.get(name)
        if not isinstance(figures, dict) or ".valid" in name:
            continue
        judged = read_lists(path, protocol, questions).windows[0]
        ours = query_metrics(
            mark_hits(judged.items_BK, judged.queries), judged.queries.num_targets_B, [10]
        )
        for metric, value in figures.items():
            if metric in ours:
                found[f"{name} {metric}"] = {"theirs": value, "ours": float(ours[metric].mean())}
    return found


if __name__ == "__main__":
    main()
