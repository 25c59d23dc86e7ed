"""The metrics of all recommenders as cards, charts and tables of the report, and by segment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from recsys.evaluation.metrics import parse_metric
from recsys.report.chart_geometry import axis
from recsys.report.first_screen import best_baseline

_SEGMENT_GROUPS: Final = {
    "history": "By length of history",
    "friends": "By friends",
    "users": "By whether the user was in training",
    "cold": "By whether the split cut the user's training events to a few",
    "items": "New items, and items that the user had before",
    "event_types": "By type of the target",
}


def score_cards(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The main metric and five more, with their intervals and the value of the best baseline."""
    k = parse_metric(evaluation["metric"]).k
    names = [
        evaluation["metric"],
        *(f"{kind}@{k}" for kind in ("recall", "hit", "mrr", "coverage", "diversity")),
    ]
    best = best_baseline(evaluation["comparison"])
    return [
        {
            "name": name,
            "value": evaluation["model"][name],
            "interval": evaluation["confidence"]["model"].get(name),
            "baseline": (best, evaluation["baselines"][best][name]) if best else None,
        }
        for name in dict.fromkeys(names)
    ]


def score_panels(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Dots and whiskers for the main metric and three more, with every recommender on one axis."""
    k = parse_metric(evaluation["metric"]).k
    names = dict.fromkeys(
        [evaluation["metric"], *(f"{kind}@{k}" for kind in ("recall", "hit", "map"))]
    )
    recommenders = {"model": evaluation["model"], **evaluation["baselines"]}
    intervals = {
        "model": evaluation["confidence"]["model"],
        **evaluation["confidence"]["baselines"],
    }
    panels = []
    for metric in names:
        scale = axis([value for of in intervals.values() for value in of[metric]], count=6)
        ordered = sorted(recommenders, key=lambda name: -recommenders[name][metric])
        rows = [
            {
                "name": name,
                "value": recommenders[name][metric],
                "interval": intervals[name][metric],
                "at": scale.at(recommenders[name][metric]),
                "low": scale.at(intervals[name][metric][0]),
                "high": scale.at(intervals[name][metric][1]),
            }
            for name in ordered
        ]
        panels.append({"metric": metric, "rows": rows, "ticks": scale.labels()})
    return panels


def score_tables(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One table per cut-off, that of the main metric first; the best value of an accuracy metric is
    marked.
    """
    recommenders = {"model": evaluation["model"], **evaluation["baselines"]}
    intervals = {
        "model": evaluation["confidence"]["model"],
        **evaluation["confidence"]["baselines"],
    }
    main_k = parse_metric(evaluation["metric"]).k
    ks = sorted(
        {parse_metric(name).k for name in evaluation["model"]}, key=lambda k: (k != main_k, k)
    )
    tables = []
    for k in ks:
        rows = []
        named = [name for name in evaluation["model"] if parse_metric(name).k == k]
        for metric in sorted(named, key=lambda name: name != evaluation["metric"]):
            best = max(values[metric] for values in recommenders.values())
            # a larger value of these is not always better, so none is marked as best
            accuracy = parse_metric(metric).kind not in ("coverage", "novelty", "gini", "diversity")
            cells = [
                {
                    "value": values[metric],
                    "interval": intervals[name].get(metric),
                    "best": accuracy and values[metric] == best,
                }
                for name, values in recommenders.items()
            ]
            rows.append({"metric": metric, "cells": cells, "accuracy": accuracy})
        tables.append({"k": k, "columns": list(recommenders), "rows": rows})
    return tables


def segment_bars(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Bars of the model and of the best baseline, with one axis for all groups.

    ``single`` names the groups that have all users in one segment, which says nothing more.
    """
    metric = evaluation["metric"]
    best = best_baseline(evaluation["comparison"])
    groups, values, single = [], [], {}
    for group, labels in evaluation["segments"].items():
        shown, first = _SEGMENT_GROUPS.get(group, group), next(iter(labels), "")
        if len(labels) == 1 and labels[first]["queries"] == evaluation["data"]["queries"]:
            single[shown] = first
            continue
        rows = []
        for label, entry in labels.items():
            model = entry["model"][metric]
            baseline = entry["baselines"][best][metric] if best else None
            interval = entry.get("interval")
            values += [model, baseline or 0.0, *(interval or [])]
            rows.append(
                {
                    "label": label,
                    "entry": entry,
                    "model": model,
                    "baseline": baseline,
                    "interval": interval,
                }
            )
        groups.append({"name": shown, "rows": rows})
    scale = axis(values, from_zero=True)
    return {
        "groups": groups,
        "single": single,
        "at": scale.at,
        "ticks": scale.labels(),
        "best": best,
    }
