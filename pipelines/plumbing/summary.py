"""The console output of an evaluation: members, signals, and the verdict."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from pipelines.plumbing.progress import table
from recsys.evaluation.bootstrap import THAN, outcome
from recsys.evaluation.member_scores import (
    better_without,
    own_weights_line,
    same_names,
    single_line,
)
from recsys.evaluation.signal_certificate import OTHERS
from recsys.report.first_screen import best_baseline
from recsys.stack import TRAINED

_MOST_SIGNALS: Final = 8  # combinations on the console; the report lists all


def member_table(metrics: Mapping[str, Any]) -> str:
    """Every member and baseline alone, and the model without it, on test; the resulting model; then
    the dropped members in one line.
    """
    members = metrics["members"]
    rows = [["member, on test", f"{members['metric']} alone", "without it", "weight", ""]]
    dropped = []
    for name, entry in members["each"].items():
        alone, without = entry["alone"]["test"], entry["without"]["test"]
        if entry["kept"] or alone is not None:
            state = "" if entry["kept"] else "dropped"
            rows.append([name, _number(alone), _number(without), _span(entry["weight"]), state])
        elif entry["kind"] != "trained" or TRAINED not in members["each"]:
            dropped.append(name)  # without TRAINED, which stands for all trained ones
    for name, entry in members["baselines"].items():
        rows += [[name, _number(entry["alone"]["test"]), "", "", "baseline"]]
    rows.append(["together", _number(members["together"]["test"]), "", "", ""])
    gone = f"dropped, so not measured on test: {', '.join(dropped)}" if dropped else ""
    notes = [
        gone,
        same_names(members),
        single_line(members),
        own_weights_line(members),
        better_without(members),
    ]
    return "\n".join([table(rows), *filter(None, notes)])


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _span(weight: list[float] | None) -> str:
    """One weight, or the range of the weights.

    >>> _span([0.5, 0.5]), _span([0.25, 1.0]), _span([0.0, 0.0]), _span(None)
    ('0.50', '0.25 to 1.00', '0', '–')
    """
    if weight is None:
        return "–"
    low, high = weight
    if not low and not high:
        return "0"
    return f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f}"


def signal_table(metrics: Mapping[str, Any]) -> str:
    """The most frequent combinations of signals; empty if all queries have the same signals."""
    found = metrics["signals"]
    if len(found) < 2:
        return ""
    named = [entry for entry in found if entry["present"] or entry["missing"]]
    common = set.intersection(*(set(entry["present"]) for entry in named)) if named else set()
    rows = [["signals, on test", "queries", metrics["metric"], "best baseline on them", ""]]
    for entry in found[:_MOST_SIGNALS]:
        rows.append(
            [
                _differing(entry, common),
                f"{entry['queries']:,}",
                f"{entry['value']:.4f}",
                *_against(entry),
            ]
        )
    lines = [table(rows)]
    if common:
        who = "every query" + (f" outside {OTHERS}" if len(named) < len(found) else "")
        lines.append(
            f"{who} has: {', '.join(name for name in named[0]['present'] if name in common)}"
        )
    if len(found) > _MOST_SIGNALS:
        lines.append(f"{len(found) - _MOST_SIGNALS} further combinations are in the report")
    return "\n".join(lines)


def _differing(entry: Mapping[str, Any], common: Collection[str]) -> str:
    """The signals of a combination that are not common to all, and the missing ones.

    >>> _differing({"label": "a, b", "present": ["a", "b"], "missing": ["c"]}, {"a"})
    'b; without c'
    """
    present = ", ".join(name for name in entry["present"] if name not in common)
    missing = ", ".join(entry["missing"])
    return (
        "; ".join(part for part in (present, f"without {missing}" if missing else "") if part)
        or entry["label"]
    )


def _against(entry: Mapping[str, Any]) -> list[str]:
    if entry["best_baseline"] is None:
        return ["", ""]
    return [f"{entry['best_baseline']} {entry['baseline']:.4f}", outcome(entry)]


def verdict(metrics: Mapping[str, Any]) -> str:
    """Compare the model with the best baseline: the one with the highest metric on test, as in the
    report.
    """
    best = best_baseline(metrics["comparison"])
    if best is None:
        return "no baseline was run"
    against = metrics["comparison"]["against"][best]
    return (
        f"{THAN[outcome(against)]} {best}, the best baseline: {metrics['metric']}"
        f" {against['difference']:+.4f}, 95 % interval {against['low']:+.4f} to"
        f" {against['high']:+.4f}"
    )
