"""Charts of a run and of a comparison, as positions for the pages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from recsys.evaluation.bootstrap import shown_p
from recsys.report.chart_geometry import axis
from recsys.report.wording import figure, metric_name, number, recommender_name, signed


@dataclass(frozen=True)
class Whisker:
    """A value with its interval, as numbers and as positions in percent of the axis."""

    name: str
    value: float
    low: float
    high: float
    at: float
    low_at: float
    high_at: float
    is_main: bool = False
    first: float = 0.0  # of a comparison: both means and p
    second: float = 0.0
    p: str = ""


@dataclass(frozen=True)
class Chart:
    """Whiskers on one axis; ``zero`` is the position of 0 in percent, None if it is not on the
    axis.
    """

    rows: list[Whisker]
    zero: float | None


def standings(metrics: Mapping[str, Any]) -> Chart | None:
    """The main metric of the model and of every baseline, the best first; None if nothing was
    measured.
    """
    metric, intervals = metrics.get("metric", ""), metrics.get("confidence") or {}
    found = {"model": (metrics.get("model") or {}, intervals.get("model") or {})}
    for name, values in (metrics.get("baselines") or {}).items():
        found[name] = values, (intervals.get("baselines") or {}).get(name) or {}
    measured = {
        name: (values[metric], interval[metric])
        for name, (values, interval) in found.items()
        if metric in values and metric in interval
    }
    if not measured:
        return None
    scale = axis([end for _, interval in measured.values() for end in interval])
    rows = [
        Whisker(
            recommender_name(name),
            value,
            low,
            high,
            scale.at(value),
            scale.at(low),
            scale.at(high),
            name == "model",
        )
        for name, (value, (low, high)) in sorted(measured.items(), key=lambda entry: -entry[1][0])
    ]
    return Chart(rows, None)


def differences(record: Mapping[str, Any]) -> Chart:
    """Differences (first minus second) of all metrics of a comparison, the main metric first."""
    entries = sorted(record["metrics"].items(), key=lambda entry: entry[0] != record["metric"])
    scale = axis([0.0, *(entry[end] for _, entry in entries for end in ("low", "high"))])
    rows = [
        Whisker(
            name=name,
            value=entry["difference"],
            low=entry["low"],
            high=entry["high"],
            at=scale.at(entry["difference"]),
            low_at=scale.at(entry["low"]),
            high_at=scale.at(entry["high"]),
            is_main=name == record["metric"],
            first=entry["first"],
            second=entry["second"],
            p=shown_p(entry["p"], record.get("resamples", 0)),
        )
        for name, entry in entries
    ]
    return Chart(rows, scale.at(0.0))


def winner(record: Mapping[str, Any], first: str, second: str) -> tuple[str, str, str]:
    """Status, head and text of a comparison on the main metric of the first run.

    Parameters
    ----------
    record : Mapping[str, Any]
        The content of ``compare.json``.
    first : str
        Shown name of the first run.
    second : str
        Shown name of the second run.

    Returns
    -------
    tuple[str, str, str]
        Status ``better`` or ``unclear``, heading, and a sentence with the numbers. Unclear: the
        95 % interval of the difference contains 0.
    """
    entry = record["metrics"].get(record["metric"]) or next(iter(record["metrics"].values()))
    name = (
        record["metric"] if record["metric"] in record["metrics"] else next(iter(record["metrics"]))
    )
    better = first if entry["low"] > 0 else second if entry["high"] < 0 else ""
    head = f"{better} is significantly better" if better else "No significant difference"
    text = (
        f"{metric_name(name)} is {number(entry['first'])} with {first} and"
        f" {number(entry['second'])} with {second}: a difference of {signed(entry['difference'])},"
        f" 95 % interval {signed(entry['low'])} to {signed(entry['high'])}, p"
        f" {shown_p(entry['p'], record.get('resamples', 0))} (paired bootstrap over"
        f" {figure(record['queries'])} test users)."
    )
    return "better" if better else "unclear", head, text
