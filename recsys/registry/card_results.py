"""The sections of the model card with measured results: metrics, baselines, segments, signals,
members and granularities.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recsys.evaluation.member_scores import single_line
from recsys.registry.markdown import plain_line, table
from recsys.report.wording import segment_name, sentence


def interval_of(metrics: Mapping[str, Any]) -> str:
    """The 95 % interval of the main metric."""
    ends = (metrics.get("confidence") or {}).get("model", {}).get(metrics.get("metric", ""))
    return f"{ends[0]:.4f} to {ends[1]:.4f}" if ends else ""


def measured_lines(metrics: Mapping[str, Any]) -> list[str]:
    """Every metric on the test split with its interval."""
    intervals = (metrics.get("confidence") or {}).get("model", {})
    data = metrics.get("data") or {}
    head = [
        (
            f"All items were ranked for {data.get('queries', 0):,} test users. The model was fitted"
            f" on the splits up to and including {data.get('fitted_through', 'valid')}. Items that"
            " a user had before were"
            f" {'left out' if data.get('exclude_seen', True) else 'ranked too'}."
        ),
        "",
    ]
    rows = []
    for name, value in metrics["model"].items():
        low_high = (
            f"{intervals[name][0]:.4f} … {intervals[name][1]:.4f}" if name in intervals else ""
        )
        rows.append(
            [f"**{name}**" if name == metrics.get("metric") else name, f"{value:.4f}", low_high]
        )
    return head + table(["metric", "value", "95 % interval"], rows)


def final_lines(metrics: Mapping[str, Any]) -> list[str]:
    """Which model the metrics belong to, where the served model was trained on all events."""
    final = (metrics.get("data") or {}).get("final")
    if not final:
        return []
    epochs = final["epochs"]
    how = (
        f"trained for {epochs} epochs{'' if final['start'] == 'anew' else ' more'}"
        if epochs
        else "fitted"
    )
    return [
        "The metrics belong to a model that has not seen the test split. The served model was then"
        f" {how} on all {final['events']:,} events, including test, with the same hyperparameters;"
        " no choice was made on it. The bundle also holds the measured model, and the champion"
        " gate compares that one."
    ]


def baseline_lines(metrics: Mapping[str, Any]) -> list[str]:
    """The difference to every baseline on the main metric."""
    metric = metrics.get("metric", "")
    against = (metrics.get("comparison") or {}).get("against") or {}
    rows = [
        [
            name,
            f"{metrics['baselines'][name][metric]:.4f}",
            f"{entry['difference']:+.4f}",
            f"{entry['low']:+.4f} … {entry['high']:+.4f}",
        ]
        for name, entry in against.items()
    ]
    return (
        table(["baseline", metric, "the model's difference", "95 % interval"], rows) if rows else []
    )


def segment_lines(metrics: Mapping[str, Any]) -> list[str]:
    """The main metric by segment of users."""
    metric = metrics.get("metric", "")
    rows = [
        [
            f"{group}: {segment_name(label)}",
            f"{entry['queries']:,}",
            f"{entry['model'][metric]:.4f}",
            (
                f"{entry['interval'][0]:.4f} … {entry['interval'][1]:.4f}"
                if "interval" in entry
                else ""
            ),
        ]
        for group, labels in (metrics.get("segments") or {}).items()
        for label, entry in labels.items()
    ]
    return table(["segment", "users", metric, "95 % interval"], rows) if rows else []


def signal_lines(metrics: Mapping[str, Any]) -> list[str]:
    """The signal certificate: quality by combination of signals in a query."""
    rows = [
        [
            entry["label"],
            f"{entry['queries']:,}",
            f"{entry['value']:.4f}",
            f"{entry['interval'][0]:.4f} … {entry['interval'][1]:.4f}",
            f"{entry['best_baseline']} {entry['baseline']:.4f}" if entry["best_baseline"] else "",
            f"{entry['low']:+.4f} … {entry['high']:+.4f}" if entry["best_baseline"] else "",
        ]
        for entry in metrics.get("signals") or []
    ]
    head = [
        "signals",
        "queries",
        metrics.get("metric", ""),
        "95 % interval",
        "best baseline for them",
        "difference",
    ]
    return table(head, rows) if rows else []


def member_lines(metrics: Mapping[str, Any]) -> list[str]:
    """Every member alone, the model without it, both on test, and the outcome for the member."""
    members = metrics.get("members") or {}
    rows = [
        [name, *(_figure(entry[what]["test"]) for what in ("alone", "without")), entry["why"]]
        for name, entry in (members.get("each") or {}).items()
    ]
    if not rows:
        return []
    metric = members["metric"]
    summary = single_line(members)
    return [*([plain_line(sentence(summary)), ""] if summary else [])] + table(
        ["member", f"{metric} alone", f"{metric} without it", "outcome"], rows
    )


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def granularity_lines(metrics: Mapping[str, Any]) -> list[str]:
    """Mean weight of every granularity, and the metric without it."""
    without = f"{metrics.get('metric', '')}_without"
    rows = [
        [name, f"{entry['weight']:.4f}", f"{entry[without]:.4f}" if without in entry else ""]
        for name, entry in (metrics.get("granularities") or {}).items()
    ]
    return (
        table(["granularity", "mean weight λ", f"{metrics.get('metric', '')} without it"], rows)
        if rows
        else []
    )
