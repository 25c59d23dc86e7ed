"""The console output of an evaluation: members, signals, and the verdict."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from pipelines.plumbing.progress import table
from recsys.evaluation.member_scores import same_names, single_line
from recsys.report.first_screen import best_baseline

_MOST_SIGNALS: Final = 8  # combinations on the console; the report lists all


def member_table(metrics: Mapping[str, Any]) -> str:
    """Every member and baseline alone, and the model without it, on test; then the resulting
    model.
    """
    members = metrics["members"]
    rows = [["member, on test", f"{members['metric']} alone", "without it", "weight", ""]]
    for name, entry in members["each"].items():
        if entry["kind"] == "trained" and not entry["kept"]:
            continue  # shown together in the line of the trained ones
        alone, without = entry["alone"]["test"], entry["without"]["test"]
        rows.append(
            [
                name,
                _number(alone),
                _number(without),
                _span(entry["weight"]),
                "" if entry["kept"] else "dropped",
            ]
        )
    for name, entry in members["baselines"].items():
        rows += [[name, _number(entry["alone"]["test"]), "", "", "baseline"]]
    rows.append(["together", _number(members["together"]["test"]), "", "", ""])
    return "\n".join([table(rows), *filter(None, [same_names(members), single_line(members)])])


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
        lines.append(
            f"all have: {', '.join(name for name in named[0]['present'] if name in common)}"
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
    return [f"{entry['best_baseline']} {entry['baseline']:.4f}", standing(entry)]


def standing(found: Mapping[str, Any]) -> str:
    """Whether the model is above or below a baseline, from the interval of the paired difference.

    >>> [standing({"low": low, "high": high}) for low, high in ((0.1, 0.2), (-0.1, 0.2), (-2, -1))]
    ['above', 'not distinguishable', 'below']
    """
    return "above" if found["low"] > 0 else "below" if found["high"] < 0 else "not distinguishable"


def verdict(metrics: Mapping[str, Any]) -> str:
    """Compare the model with the best baseline: the one with the highest metric on test, as in the
    report.
    """
    best = best_baseline(metrics["comparison"])
    if best is None:
        return "no baseline was run"
    against = metrics["comparison"]["against"][best]
    where = standing(against) + (" from" if against["low"] <= 0 <= against["high"] else "")
    return (
        f"{where} {best}, the best baseline: {metrics['metric']} {against['difference']:+.4f}, "
        f"95 % interval {against['low']:+.4f} to {against['high']:+.4f}"
    )
