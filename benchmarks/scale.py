"""Measure how time and memory grow with events: generated data of each size through prepare, one
epoch, evaluation.

    python -m benchmarks.scale --events 100000 1000000 10000000 --plots docs

Users have 25 events each on average; the catalogue grows with the events up to ``--items``. Every
stage is a fresh process, whose time includes its imports and the start of Ray; ``work_s`` is the
stage's own clock without them. Memory is the proportional set size of the process and all processes
of Ray together. ``generate`` makes the events alone, in one process, so that the cost of the
generator inside ``prepare`` is known. Texts are off: they have their own benchmark. Evaluation
ranks 20,000 users at most, with popularity and item-kNN as baselines: EASE and ALS have their own
limits, and take longer than everything else.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.in_turns import in_turns, say
from benchmarks.peak_memory import Watch
from recsys.config import Config, dump_config, load_config

EVENTS_A_USER = 25
STAGES = ("generate", "prepare", "train", "evaluate")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--items", type=int, default=100_000, help="largest catalogue")
    parser.add_argument(
        "--fixed-items", action="store_true", help="a catalogue of --items at every size"
    )
    parser.add_argument("--granularities", nargs="+", default=["evolution", "collaborative"])
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="further settings, dotted"
    )
    parser.add_argument(
        "--folder", help="folder that keeps the runs; default: a temporary one, removed"
    )
    parser.add_argument("--plots", help="folder for scale-time.svg and scale-memory.svg")
    parser.add_argument(
        "--redraw", help="a file with the line of an earlier run: draw its plots only"
    )
    parser.add_argument("--stage", nargs=2, metavar=("STAGE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        print(json.dumps(run_stage(options.stage[0], Path(options.stage[1]))))
        return
    if options.redraw:
        sizes = json.loads(Path(options.redraw).read_text())["sizes"]
    else:
        sizes = {str(events): measure(events, options) for events in options.events}
        say(
            "time and memory over events",
            sizes=sizes,
            growth=growth(sizes),
            granularities=options.granularities,
        )
    if options.plots:
        draw(Path(options.plots), sizes)


def measure(events: int, options: argparse.Namespace) -> dict[str, Any]:
    """Measure every stage at one size."""
    folder = Path(options.folder or tempfile.mkdtemp(prefix="multigrain-scale-")) / str(events)
    folder.mkdir(parents=True, exist_ok=True)
    items = options.items if options.fixed_items else max(1000, min(options.items, events // 100))
    (folder / "config.yaml").write_text(dump_config(settings(folder, events, items, options)))
    found: dict[str, Any] = {"items": items}
    try:
        for stage in STAGES:
            command = [
                sys.executable,
                "-W",
                "ignore",
                "-m",
                "benchmarks.scale",
                "--stage",
                stage,
                str(folder),
            ]
            found[stage] = in_turns({f"{stage} of {events:,} events": command}, 1, 1).popitem()[1][
                0
            ]
            print(json.dumps({stage: found[stage]}), file=sys.stderr, flush=True)
        found["disk_mib"] = round(
            sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20
        )
    finally:
        if not options.folder:
            shutil.rmtree(folder.parent, ignore_errors=True)
    return found


def settings(folder: Path, events: int, items: int, options: argparse.Namespace) -> Config:
    """The configuration of a size."""
    users = max(10, events // EVENTS_A_USER)
    keys = {
        "run.dir": str(folder / "run"),
        "data.source.kind": "synthetic",
        "tracking.uri": f"sqlite:///{folder / 'mlflow.db'}",
        "data.source.num_users": users,
        "data.source.num_items": items,
        "data.source.events_per_user": EVENTS_A_USER,
        "data.source.num_partitions": max(4, events // 500_000),
        "data.text.enabled": "false",
        **{f"model.granularities.{name}.enabled": "true" for name in options.granularities},
        "train.epochs": 1,
        "train.refit": "false",
        "train.loss.kind": "sampled_softmax",
        "train.threads": 1,
        "evaluate.max_users": 20_000,
        "evaluate.baselines": "[popularity, item_knn]",
        **dict(pair.split("=", 1) for pair in options.set),
    }
    return load_config(None, [(key, str(value)) for key, value in keys.items()])


def run_stage(stage: str, folder: Path) -> dict[str, Any]:
    """Run one stage in this process."""
    started = time.perf_counter()
    with Watch() as watch, contextlib.redirect_stdout(sys.stderr):
        extra = (generate if stage == "generate" else partial(through_cli, stage))(
            folder / "config.yaml"
        )
        extra |= about(stage, folder / "run")
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "peak_mib": round(watch.peak_mib),
        **extra,
    }


def generate(config: Path) -> dict[str, Any]:
    """Generate the events and discard them."""
    from recsys.sources import open_source

    started = time.perf_counter()
    pieces = open_source(load_config(config).data.source).pieces()["events"]
    events = sum(block.num_rows for piece in pieces for block in piece.read())
    return {"events": events, "work_s": round(time.perf_counter() - started, 1)}


def through_cli(stage: str, config: Path) -> dict[str, Any]:
    from pipelines.cli import main as recsys

    code = recsys([stage, "--config", str(config)])
    if code:
        raise SystemExit(code)
    return {}


def about(stage: str, run: Path) -> dict[str, Any]:
    """Seconds by the stage's own clock, and the size of its input."""
    if stage == "prepare":
        manifest = json.loads((run / "dataset/manifest.json").read_text())
        counts, timing = manifest["counts"], manifest["timing"]
        seconds = timing.get("total", sum(timing.values()))
        kept = {name: counts[name] for name in ("users", "items", "train", "valid", "test")}
        return {"work_s": round(seconds, 1), "shards": len(manifest["shards"]), **kept}
    if stage == "train":
        trained = json.loads((run / "model/trained.json").read_text())
        return {"work_s": round(trained["seconds"], 1)}
    if stage == "evaluate":
        metrics = json.loads((run / "metrics.json").read_text())
        main = {
            name: round(value, 4) for name, value in metrics["model"].items() if name == "ndcg@20"
        }
        popularity = metrics["baselines"].get("popularity", {}).get("ndcg@20")
        return {
            "work_s": round(metrics["timing"]["evaluate_s"], 1),
            "queries": metrics["data"]["queries"],
        } | {
            **main,
            "popularity": popularity and round(popularity, 4),
        }
    return {}


def growth(sizes: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """By stage: the exponent with which time and peak memory grow with the events, from each size
    to the next.

    >>> one, ten = ({"train": {"work_s": s, "peak_mib": m}} for s, m in ((2.0, 500), (20.0, 500)))
    >>> growth({"1000": one, "10000": ten})["train"]
    {'time 1000-10000': 1.0, 'memory 1000-10000': 0.0}
    """
    import math

    found: dict[str, dict[str, float]] = {}
    known = sorted(sizes, key=int)
    for less, more in zip(known, known[1:], strict=False):
        for stage in (name for name in STAGES if name in sizes[less] and name in sizes[more]):
            for label, key in (("time", "work_s"), ("memory", "peak_mib")):
                before, after = (max(float(sizes[size][stage][key]), 0.1) for size in (less, more))
                power = math.log(after / before) / math.log(int(more) / int(less))
                found.setdefault(stage, {})[f"{label} {less}-{more}"] = round(power, 2)
    return found


# ----------------------------------------------------------------------------------------- pictures

_COLOURS = {"generate": "#8c8c8c", "prepare": "#2f6fde", "train": "#d9822b", "evaluate": "#3a9d5d"}
_WIDTH, _HEIGHT, _LEFT, _TOP = 560, 320, 64, 28


def draw(folder: Path, sizes: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw two pictures with both axes in powers of ten; a dashed line grows linearly with the
    events."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, key, unit, title in (
        ("time", "work_s", "s", "Seconds of a stage over events"),
        ("memory", "peak_mib", "MiB", "Peak memory of a stage over events, all processes together"),
    ):
        lines = {
            stage: [(int(size), float(of[stage][key])) for size, of in sizes.items() if stage in of]
            for stage in STAGES
        }
        (folder / f"scale-{name}.svg").write_text(picture(title, unit, lines), encoding="utf-8")


def picture(title: str, unit: str, lines: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """An SVG of lines over powers of ten, for light and dark pages."""
    import math

    points = [point for line in lines.values() for point in line]
    low_x, high_x = (pick(math.log10(x) for x, _ in points) for pick in (min, max))
    low_y = math.floor(min(math.log10(max(y, 0.1)) for _, y in points))
    high_y = math.ceil(max(math.log10(max(y, 0.1)) for _, y in points) + 1e-9)
    low_x, high_x = math.floor(low_x), max(math.ceil(high_x), math.floor(low_x) + 1)

    def at(x: float, y: float) -> str:
        across = _LEFT + (math.log10(x) - low_x) / (high_x - low_x) * (_WIDTH - _LEFT - 110)
        up = (math.log10(max(y, 0.1)) - low_y) / (high_y - low_y) * (_HEIGHT - _TOP - 44)
        return f"{across:.1f} {_HEIGHT - 44 - up:.1f}"

    parts = [
        f'<text x="{_LEFT}" y="16" font-size="13" font-weight="600" class="ink">{title}</text>'
    ]
    for power in range(low_x, high_x + 1):
        x, y = at(10**power, 10**low_y).split()
        parts.append(f'<path d="M{x} {y} L{at(10**power, 10**high_y)}" class="grid"/>')
        parts.append(
            f'<text x="{x}" y="{_HEIGHT - 26}" text-anchor="middle"'
            f' class="ink">{10**power:,}</text>'
        )
    for power in range(low_y, high_y + 1):
        x, y = at(10**low_x, 10.0**power).split()
        parts.append(f'<path d="M{x} {y} L{at(10**high_x, 10.0**power)}" class="grid"/>')
        parts.append(
            f'<text x="{_LEFT - 6}" y="{float(y) + 4:.1f}" text-anchor="end"'
            f' class="ink">{10.0**power:g}</text>'
        )
    span = min(high_x - low_x, high_y - low_y)
    parts.append(
        f'<path d="M{at(10**low_x, 10.0**low_y)}'
        f' L{at(10 ** (low_x + span), 10.0 ** (low_y + span))}" class="one"/>'
    )
    labels: list[tuple[float, float, str]] = []
    for stage, line in lines.items():
        if not line:
            continue
        places = [at(x, y) for x, y in sorted(line)]
        colour = _COLOURS[stage]
        parts.append(
            f'<path d="M{" L".join(places)}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
        parts += [
            f'<circle cx="{p.split()[0]}" cy="{p.split()[1]}" r="3" fill="{colour}"/>'
            for p in places
        ]
        labels.append((float(places[-1].split()[1]), float(places[-1].split()[0]), stage))
    used = -math.inf
    for y, x, stage in sorted(labels):
        used = max(y + 4, used + 14)
        parts.append(
            f'<text x="{x + 8:.1f}" y="{used:.1f}" fill="{_COLOURS[stage]}">{stage}</text>'
        )
    parts.append(
        f'<text x="{_LEFT}" y="{_HEIGHT - 8}" class="ink">events; up: {unit}; dashed: as the'
        " events</text>"
    )
    style = (
        "text{font:12px system-ui,sans-serif}.ink{fill:#444}.grid{stroke:#8884;fill:none}"
        ".one{stroke:#8889;stroke-dasharray:4 4;fill:none}"
        "@media(prefers-color-scheme:dark){.ink{fill:#ccc}}"
    )
    box = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {box}>',
            f"<style>{style}</style>",
            *parts,
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    main()
