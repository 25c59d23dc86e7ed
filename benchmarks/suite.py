"""Run all benchmarks in turn, keep each one's line of JSON, and rewrite the table of
``docs/benchmarks.md``.

    python -m benchmarks.suite short          # about a quarter of an hour on two quiet cores
    python -m benchmarks.suite long           # the other benchmarks
    python -m benchmarks.suite short --only ranking workers
    python -m benchmarks.suite table          # measure nothing

Lines are in runs/bench; a benchmark that was not measured again keeps its old line and date. The
text around the table is hand-written and stays.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any, Final, NamedTuple

from benchmarks.in_turns import ROOT

KEPT: Final = ROOT / "runs/bench"
PAGE: Final = ROOT / "docs/benchmarks.md"
BEGIN, END = "<!-- table: python -m benchmarks.suite table -->", "<!-- end of the table -->"


class Benchmark(NamedTuple):
    """A command: a module of this folder and its arguments."""

    command: str
    is_long: bool = False


class Row(NamedTuple):
    """A line of the table. Figures are named by their path in the benchmark's JSON, such as
    ``times/rectools``."""

    benchmark: str
    question: str
    ours: str
    peer: str = ""
    peer_name: str = ""
    ratio: str = ""  # if the benchmark reports it; else ours / peer
    least: float | None = None  # goal of the ratio
    most: float | None = None


BENCHMARKS: Final = {
    "training": Benchmark("training_speed --data ml-100k --peers rectools"),
    "training-beauty": Benchmark(
        "training_speed --data beauty --epochs 2 --rounds 1 --peers rectools", True
    ),
    "training-recbole": Benchmark(
        "training_speed --data ml-100k --epochs 2 --rounds 1 --peers recbole", True
    ),
    "training-beauty-recbole": Benchmark(
        "training_speed --data beauty --epochs 2 --rounds 1 --peers recbole", True
    ),
    "step": Benchmark("step_profile", True),
    "text": Benchmark("text_encoding"),
    "prepare": Benchmark("prepare_speed --events 1000000"),
    "prepare-large": Benchmark("prepare_speed --events 5000000 20000000 --rounds 1", True),
    "ranking": Benchmark("ranking_speed --data beauty"),
    "ranking-sizes": Benchmark("ranking_speed --items 10000 100000 1000000 --rounds 1"),
    "ray": Benchmark("ray_overhead --data beauty --epochs 8 --rounds 1"),
    "workers": Benchmark("worker_scaling --data ml-100k --epochs 3 --rounds 1"),
    "workers-beauty": Benchmark("worker_scaling --data beauty --epochs 2 --rounds 1"),
    "serving": Benchmark("serving items --num 1000000"),
    "gpu": Benchmark("gpu"),
    "shops": Benchmark("shops", True),
    "million": Benchmark("million", True),
    "sharded-rows": Benchmark("sharded_rows --rows 4000000 --width 64 --workers 4", True),
    "cluster": Benchmark("cluster_model --data beauty --epochs 1 --rounds 2", True),
    "arriving": Benchmark("arriving --files 10", True),
}

RATE = "targets_a_second"
USERS = "users_a_second"
ROWS: Final = [
    *(
        Row(
            name,
            f"training targets a second, {data}",
            f"{RATE}/ours",
            f"{RATE}/{peer}",
            peer_name,
            least=goal,
        )
        for name, data, peer, peer_name, goal in (
            ("training", "ml-100k", "rectools", "RecTools SASRec", 5.0),
            ("training-beauty", "beauty", "rectools", "RecTools SASRec", 8.0),
            ("training-recbole", "ml-100k", "recbole", "RecBole SASRec", 50.0),
            ("training-beauty-recbole", "beauty", "recbole", "RecBole SASRec", 50.0),
        )
    ),
    Row(
        "text",
        "texts a second through the language model",
        "texts_a_second/ours",
        "texts_a_second/sentence-transformers",
        "sentence-transformers",
        least=1.3,
    ),
    Row("text", "the same, least cosine", "least_cosine", ratio="least_cosine", least=0.999),
    *(
        Row(
            name,
            f"events a second through prepare, {size // 10**6} million",
            f"sizes/{size}/events_a_second/ours",
            f"sizes/{size}/events_a_second/polars",
            "polars by hand",
            least=0.6,
        )
        for name, size in (
            ("prepare", 10**6),
            ("prepare-large", 5 * 10**6),
            ("prepare-large", 2 * 10**7),
        )
    ),
    *(
        Row(
            "ranking",
            f"users a second, {kind}",
            f"{USERS}/{kind}/ours",
            f"{USERS}/{kind}/rectools",
            "RecTools recommend",
            least=12.0 if kind in ("evaluation", "batch") else None,
        )
        for kind in ("evaluation", "batch", "encoding", "ranking")
    ),
    *(
        Row(
            "ranking-sizes",
            f"users a second in ranking, {size:,} items",
            f"sizes/{size}/{USERS}/ours",
            f"sizes/{size}/{USERS}/rectools",
            "RecTools TorchRanker",
        )
        for size in (10**4, 10**5, 10**6)
    ),
    *(
        Row(
            "ranking-sizes",
            f"the same, peak MiB, {size:,} items",
            f"sizes/{size}/peak_mib/ours",
            f"sizes/{size}/peak_mib/rectools",
            "RecTools TorchRanker",
        )
        for size in (10**4, 10**5, 10**6)
    ),
    Row(
        "ray",
        "Ray Train around the loop, share of the work",
        "work_s/ray",
        "work_s/bare",
        "bare loop",
        "share",
        most=0.05,
    ),
    Row("ray", "the same, start-up in seconds", "start_s/ray", "start_s/bare", "bare loop"),
    *(
        Row(
            name,
            f"one worker to two, seconds an epoch, {data}",
            "epoch_s/2 workers",
            "epoch_s/1 workers",
            "one worker",
            "times",
            least=1.8,
        )
        for name, data in (("workers", "ml-100k"), ("workers-beauty", "beauty"))
    ),
    Row("serving", "top-100 of 10⁶ items, exact, p50 ms", "items/1000000/exact/p50_ms"),
    Row("serving", "the same, p99 ms", "items/1000000/exact/p99_ms"),
    Row(
        "serving",
        "top-100 of 10⁶ items, index, p50 ms",
        "items/1000000/index/p50_ms",
        "items/1000000/exact/p50_ms",
        "exact",
    ),
    Row(
        "serving",
        "the same, p99 ms",
        "items/1000000/index/p99_ms",
        "items/1000000/exact/p99_ms",
        "exact",
    ),
    Row(
        "serving",
        "the same, recall",
        "items/1000000/recall@100",
        ratio="items/1000000/recall@100",
        least=0.99,
    ),
    Row(
        "shops",
        "gain over the best baseline, mean of ten shops",
        "mean_gain",
        ratio="mean_gain",
        least=0.1,
    ),
    Row("shops", "the same, the worst of them", "worst_gain", ratio="worst_gain", least=-0.01),
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["short", "long", "table"])
    parser.add_argument("--only", nargs="+", choices=list(BENCHMARKS), metavar="NAME")
    options = parser.parse_args()
    failed = []
    if options.what != "table":
        chosen = options.only or [
            n for n, b in BENCHMARKS.items() if b.is_long == (options.what == "long")
        ]
        failed = [name for name in chosen if not measure(name)]
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), table(lines())), encoding="utf-8")
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


def measure(name: str) -> bool:
    """Run a benchmark, keep its line, and return whether it succeeded."""
    command = ["-m", f"benchmarks.{BENCHMARKS[name].command}"]
    print(f"{name}: python {' '.join(command)}", file=sys.stderr, flush=True)
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *" ".join(command).split()],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    said = done.stdout.strip().splitlines()[-1:]
    if done.returncode or not said:
        print(f"{name}: failed ({done.returncode})", file=sys.stderr)
        return False
    print(said[0], flush=True)
    KEPT.mkdir(parents=True, exist_ok=True)
    line = {
        **json.loads(said[0]),
        "command": BENCHMARKS[name].command,
        "took_s": round(time.perf_counter() - started),
    }
    (KEPT / f"{name}.json").write_text(
        json.dumps(line, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    return True


def lines() -> dict[str, dict[str, Any]]:
    """The kept line of every benchmark that was measured."""
    found = {name: KEPT / f"{name}.json" for name in BENCHMARKS}
    return {
        name: json.loads(path.read_text(encoding="utf-8"))
        for name, path in found.items()
        if path.is_file()
    }


def table(measured: dict[str, dict[str, Any]]) -> str:
    """Rows of figures, then the commands with machine, load and date."""
    parts = ["| question | ours | peer | ratio | goal | met |", "|---|---|---|---|---|---|"]
    parts += [_row(row, measured.get(row.benchmark, {})) for row in ROWS]
    parts += [
        "",
        "| command (`python -m benchmarks.…`) | took | processor | load before its end | date |",
        "|---|---|---|---|---|",
    ]
    for name, line in measured.items():
        machine = line.get("machine", {})
        where = f"{machine.get('cpu', '')}, {machine.get('cores', '')} cores"
        cells = (
            f"`{line.get('command', name)}`",
            f"{line.get('took_s', 0)} s",
            where,
            *map(machine.get, ("load", "date")),
        )
        parts.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(parts)


def _row(row: Row, line: dict[str, Any]) -> str:
    ours, peer = figure(line, row.ours), figure(line, row.peer) if row.peer else None
    ratio = (
        figure(line, row.ratio) if row.ratio else ours / peer if ours is not None and peer else None
    )
    goal = (
        f"≥ {row.least:g}"
        if row.least is not None
        else f"≤ {row.most:g}"
        if row.most is not None
        else ""
    )
    met = ""
    if goal:
        met = "not measured"
        if ratio is not None:
            met = (
                "yes"
                if (ratio >= row.least if row.least is not None else ratio <= (row.most or 0.0))
                else "**no**"
            )
    shown = f"{_short(peer)} ({row.peer_name})" if peer is not None else ""
    return f"| {row.question} | {_short(ours)} | {shown} | {_short(ratio)} | {goal} | {met} |"


def figure(line: dict[str, Any], way: str) -> float | None:
    """The number at a path in a line; None if there is no number.

    >>> figure({"times": {"rectools": 3.5}}, "times/rectools")
    3.5
    """
    found: Any = line
    for name in way.split("/"):
        found = found.get(name) if isinstance(found, dict) else None
    return float(found) if isinstance(found, (int, float)) else None


def with_table(page: str, new: str) -> str:
    """The page with a new table between its two marks.

    >>> with_table(f"above\\n{BEGIN}\\nold\\n{END}\\nbelow", "new").splitlines()[2]
    'new'
    """
    above, found, rest = page.partition(BEGIN)
    _, ended, below = rest.partition(END)
    if not found or not ended:
        raise SystemExit(f"docs/benchmarks.md lacks the marks of its table: {BEGIN} and {END}")
    return f"{above}{BEGIN}\n{new}\n{END}{below}"


def _short(value: float | None) -> str:
    """
    >>> [_short(v) for v in (None, 22363.0, 3.868, 0.0412)]
    ['', '22,363', '3.87', '0.0412']
    """
    if value is None:
        return ""
    return (
        f"{value:,.0f}"
        if abs(value) >= 100
        else f"{value:.3g}"
        if abs(value) >= 1
        else f"{value:.4g}"
    )


if __name__ == "__main__":
    main()
