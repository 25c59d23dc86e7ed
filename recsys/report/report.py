"""Render ``report.html``: one file without scripts that loads nothing from the network.

Why: ``metrics.json`` is for programs; a person decides whether to ship a model. The first screen is
for a product manager: whether the model is better, for whom, examples, and the cost. The rest is
for engineers. Titles, names and notes are users' data, so the template escapes everything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import jinja2

from recsys.data.dataset import Manifest
from recsys.evaluation.metrics import parse_metric
from recsys.report.charts import axis, curves, stacked
from recsys.report.first_screen import best_baseline, cost, for_whom, short_examples
from recsys.report.interest_drift import interest_drift_panel
from recsys.report.pages import environment, packaged
from recsys.report.panels import (
    ablation_panel,
    cold_panel,
    members_panel,
    ratings_panel,
    signals_panel,
    strata_panel,
    trade_off_panel,
    trust_panel,
)
from recsys.report.wording import (
    duration,
    figure,
    metric_meaning,
    metric_name,
    number,
    segment_name,
    sentence,
    signed,
)

_NAMES: Final = {
    "model": "Multigrain",
    "popularity": "Popularity",
    "item_knn": "Item-kNN",
    "ease": "EASE",
    "als": "ALS",
    "frequency": "Own frequency",
    "recent_popularity": "Popular lately",
}
_GROUPS: Final = {
    "history": "By length of history",
    "friends": "By friends",
    "users": "By whether the user was in training",
    "cold": "By whether the split cut the user's training events to a few",
    "items": "New items, and items that the user had before",
    "event_types": "By type of the target",
}
_MAX_HISTORY: Final = 12
_NUM_COLOURS: Final = 24  # number of fills in report.css


def render_report(
    path: str | Path,
    evaluation: Mapping[str, Any],
    manifest: Manifest,
    training_history: Sequence[Mapping[str, Any]],
    examples: Sequence[Mapping[str, Any]],
    config_yaml: str,
) -> None:
    """Write the report.

    Parameters
    ----------
    path : str | Path
        The HTML file.
    evaluation : Mapping[str, Any]
        The content of ``metrics.json``.
    manifest : Manifest
        The manifest of the prepared dataset.
    training_history : Sequence[Mapping[str, Any]]
        Per epoch ``phase`` (see ``Progress``; default select), ``epoch``, ``loss``, the validation
        metric (under its name, ``valid_NAME`` or ``valid``; missing if not evaluated), ``lr``,
        ``seconds``.
    examples : Sequence[Mapping[str, Any]]
        Per user ``user``, ``history`` (titles, oldest first) and ``recommendations`` with ``item``,
        ``title``, ``score``, ``shares`` (granularity → contribution to the score, may be negative)
        and ``hit``; ``movement`` with the granularity evolution (see
        ``recsys.evaluation.interest_drift``) and ``strata`` with user clusters.
    config_yaml : str
        The merged configuration.
    """
    templates = environment(
        jinja2.FunctionLoader(partial(packaged, "recsys.report")),
        metric=metric_name,
        recommender=recommender_name,
        duration=duration,
        number=number,
        signed=signed,
        figure=figure,
        sentence=sentence,
        segment=segment_name,
        meaning=metric_meaning,
    )
    html = templates.get_template("report.html.j2").render(
        title=manifest.name,
        date=datetime.now(UTC).strftime("%-d %B %Y, %H:%M UTC"),
        metric=evaluation["metric"],
        evaluation=evaluation,
        manifest=manifest,
        verdict=verdict(evaluation),
        best=best_baseline(evaluation["comparison"]),
        for_whom=for_whom(evaluation),
        cost=cost(evaluation, manifest, training_history),
        short_examples=short_examples(examples),
        cards=_cards(evaluation),
        panels=_panels(evaluation),
        tables=_tables(evaluation),
        training=_training(training_history, evaluation["metric"]),
        segments=_segments(evaluation),
        fusion=_fusion(evaluation),
        members=members_panel(evaluation, _NAMES),
        signals=signals_panel(evaluation, _NAMES),
        cold=cold_panel(evaluation, _NAMES),
        ablation=ablation_panel(evaluation),
        trust=trust_panel(evaluation),
        trade_off=trade_off_panel(evaluation),
        colours=(colours := _colours(evaluation)),
        shown_colours=_shown(colours, examples),
        examples=[_example(example) for example in examples],
        movement=interest_drift_panel(examples),
        strata=strata_panel(evaluation),
        own=list(evaluation.get("panels", {}).values()),
        ratings=ratings_panel(evaluation),
        quarantine=_quarantine(manifest),
        split=_split(manifest),
        timing=_timing(evaluation["timing"]),
        config_yaml=config_yaml,
    )
    Path(path).write_text(html, encoding="utf-8")


# ------------------------------------------------------------------------------------------ filters


def recommender_name(name: str) -> str:
    """The name of a recommender as people write it."""
    return _NAMES.get(name, name)


# ------------------------------------------------------------------------------------------ content


def verdict(evaluation: Mapping[str, Any]) -> dict[str, str]:
    """Whether the model is better than the best baseline: ``status``, ``head`` and ``text``.

    The status is better, worse, even or alone (without a baseline). The head is one sentence with
    the difference, the text its interval in words. The best baseline is that of
    :func:`best_baseline`, as everywhere in the report.
    """
    main = evaluation["metric"]
    value, shown = evaluation["model"][main], metric_name(main)
    best = best_baseline(evaluation["comparison"])
    if best is None:
        return {
            "status": "alone",
            "head": f"{shown} is {number(value)}.",
            "text": "No baseline was run, so nothing says whether this is good.",
        }
    against, theirs = evaluation["comparison"]["against"][best], evaluation["baselines"][best][main]
    status = "better" if against["low"] > 0 else "worse" if against["high"] < 0 else "even"
    is_than = {
        "better": "better than",
        "worse": "worse than",
        "even": "not clearly better or worse than",
    }[status]
    return {
        "status": status,
        "head": (
            f"The model is {is_than} {recommender_name(best)}, the best baseline: its {shown} is "
            f"{_percent(against['difference'], theirs)}."
        ),
        "text": (
            "With 95 % confidence, the true difference is between"
            f" {_between(against, theirs)}{', so it may be chance' if status == 'even' else ''}. On"
            f" {figure(evaluation['data']['queries'])} test users, the model has {number(value)}"
            f" and {recommender_name(best)} {number(theirs)}."
        ),
    }


def _percent(difference: float, base: float, direction: bool = True) -> str:
    """A difference in percent of the baseline's value, with its direction; the plain difference if
    that value is zero.
    """
    size = f"{100 * abs(difference) / base:.1f} %" if base > 0 else number(abs(difference))
    return f"{size} {'higher' if difference >= 0 else 'lower'}" if direction else size


def _between(against: Mapping[str, Any], base: float) -> str:
    """The interval of a difference, the end next to zero first: "1.2 % and 3.4 % higher"."""
    has_zero_inside = against["low"] < 0 < against["high"]
    ends = (against["low"], against["high"])
    near, far = ends if has_zero_inside else sorted(ends, key=abs)
    return f"{_percent(near, base, has_zero_inside)} and {_percent(far, base)}"


def _cards(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
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


def _panels(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Dots and whiskers for the main metric and three more, with every recommender on one axis."""
    k = parse_metric(evaluation["metric"]).k
    names = dict.fromkeys(
        [evaluation["metric"], *(f"{kind}@{k}" for kind in ("recall", "hit", "map"))]
    )
    recommenders = {"model": evaluation["model"], **evaluation["baselines"]}
    spans = {"model": evaluation["confidence"]["model"], **evaluation["confidence"]["baselines"]}
    panels = []
    for metric in names:
        scale = axis([value for span in spans.values() for value in span[metric]], count=6)
        ordered = sorted(recommenders, key=lambda name: -recommenders[name][metric])
        rows = [
            {
                "name": name,
                "value": recommenders[name][metric],
                "interval": spans[name][metric],
                "at": scale.at(recommenders[name][metric]),
                "low": scale.at(spans[name][metric][0]),
                "high": scale.at(spans[name][metric][1]),
            }
            for name in ordered
        ]
        panels.append({"metric": metric, "rows": rows, "ticks": scale.labels()})
    return panels


def _tables(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One table per cut-off, that of the main metric first; the best value of an accuracy metric is
    marked.
    """
    recommenders = {"model": evaluation["model"], **evaluation["baselines"]}
    spans = {"model": evaluation["confidence"]["model"], **evaluation["confidence"]["baselines"]}
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
            accuracy = parse_metric(metric).kind not in ("coverage", "novelty", "gini", "diversity")
            cells = [
                {
                    "value": values[metric],
                    "interval": spans[name].get(metric),
                    "best": accuracy and values[metric] == best,
                }
                for name, values in recommenders.items()
            ]
            rows.append({"metric": metric, "cells": cells, "accuracy": accuracy})
        tables.append({"k": k, "columns": list(recommenders), "rows": rows})
    return tables


def _training(history: Sequence[Mapping[str, Any]], metric: str) -> dict[str, Any] | None:
    """Curves over the epochs of *select*, with the loss of the refit as a second line; None if
    nothing is trained.
    """
    if not any("loss" in row for row in history):
        return None
    refit = [row for row in history if row.get("phase") == "refit"]
    chosen_from = [row for row in history if row.get("phase", "select") == "select"]
    keys = (metric, f"valid_{metric}", "valid")
    valid = [
        (float(row["epoch"]), _finite(next((row[k] for k in keys if k in row), None)))
        for row in chosen_from
    ]
    loss, refit_loss = (
        [(float(row["epoch"]), _finite(row.get("loss"))) for row in rows]
        for rows in (chosen_from, refit)
    )
    scored = [(value, epoch) for epoch, value in valid if math.isfinite(value)]
    best = max(scored, key=lambda pair: (pair[0], -pair[1]), default=None)
    return {
        "loss": curves([loss, refit_loss], best[1] if best else None),
        "valid": curves([valid], best[1] if best else None),
        "best": {"value": best[0], "epoch": int(best[1])} if best else None,
        "epochs": len(chosen_from),
        "refit": len(refit),
        "seconds": sum(float(row.get("seconds") or 0.0) for row in history),
        "peak_lr": max(
            (float(row["lr"]) for row in history if row.get("lr") is not None), default=None
        ),
    }


def _finite(value: Any) -> float:
    return math.nan if value is None else float(value)


def _segments(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Bars of the model and of the best baseline, with one axis for all groups."""
    metric = evaluation["metric"]
    best = best_baseline(evaluation["comparison"])
    groups, values = [], []
    for group, labels in evaluation["segments"].items():
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
        groups.append({"name": _GROUPS.get(group, group), "rows": rows})
    scale = axis(values, from_zero=True)
    return {"groups": groups, "at": scale.at, "ticks": scale.labels(), "best": best}


def _colours(evaluation: Mapping[str, Any]) -> dict[str, int]:
    """Granularity → number of its colour in all charts; granularities with a weight get the plain
    colours first.
    """
    names = sorted(
        evaluation["granularities"],
        key=lambda name: not evaluation["granularities"][name]["weight"],
    )
    return {name: index % _NUM_COLOURS for index, name in enumerate(names)}


def _shown(colours: Mapping[str, int], examples: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """The colours of the granularities that contribute to any example."""
    bars = [entry["shares"] for example in examples for entry in example["recommendations"]]
    return {name: colour for name, colour in colours.items() if any(bar.get(name) for bar in bars)}


def _fusion(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Weight of every granularity, and the loss of the main metric without it."""
    main = evaluation["metric"]
    value = evaluation["model"][main]
    entries = evaluation["granularities"]
    widest = max((abs(entry["weight"]) for entry in entries.values()), default=0.0) or 1.0
    losses = {
        name: value - e[f"{main}_without"] for name, e in entries.items() if f"{main}_without" in e
    }
    zero, bars = stacked([{name: loss} for name, loss in losses.items()])
    pieces = {bar[0].name: bar[0] for bar in bars}
    return [
        {
            "name": name,
            "weight": entry["weight"],
            "weight_width": 100 * abs(entry["weight"]) / widest,
            "without": entry.get(f"{main}_without"),
            "loss": losses.get(name),
            "piece": pieces.get(name),
            "zero": zero,
        }
        for name, entry in entries.items()
    ]


def _example(example: Mapping[str, Any]) -> dict[str, Any]:
    recommendations = list(example["recommendations"])
    zero, bars = stacked([entry["shares"] for entry in recommendations])
    history = list(example["history"])
    return {
        "user": example["user"],
        "strata": example.get("strata") or [],
        "history": history[-_MAX_HISTORY:],
        "earlier": max(0, len(history) - _MAX_HISTORY),
        "hits": sum(bool(entry["hit"]) for entry in recommendations),
        "zero": zero,
        "rows": [{**entry, "bar": bar} for entry, bar in zip(recommendations, bars, strict=True)],
    }


def _quarantine(manifest: Manifest) -> list[dict[str, Any]]:
    """The tables that were read: rows, bad rows with share and reasons, and harmless rows that were
    left out.
    """
    rows = []
    for table, read in manifest.read.items():
        reasons = manifest.quarantined.get(table, {})
        bad = sum(reasons.values())
        ordered = sorted(reasons.items(), key=lambda reason: -reason[1])
        rows.append(
            {
                "table": table,
                "read": read,
                "bad": bad,
                "share": bad / read if read else 0.0,
                "reasons": ordered,
                "dropped": sorted(
                    manifest.dropped.get(table, {}).items(), key=lambda reason: -reason[1]
                ),
            }
        )
    return rows


def _split(manifest: Manifest) -> str:
    rest = ", ".join(
        f"{key} {value}"
        for key, value in manifest.split.items()
        if key != "kind" and value not in ("", None)
    )
    kind = manifest.split.get("kind", "unknown")
    return f"{kind} ({rest})" if rest else str(kind)


def _timing(timing: Mapping[str, float]) -> dict[str, Any]:
    """The share of each stage in the time; the times of the
    baselines are part of the evaluation.
    """
    stages = {
        name.removesuffix("_s"): s for name, s in timing.items() if not name.startswith("baseline_")
    }
    inner = {
        name[len("baseline_") : -2]: s for name, s in timing.items() if name.startswith("baseline_")
    }
    total = sum(stages.values()) or 1.0
    return {
        "stages": {name: (s, 100 * s / total) for name, s in stages.items()},
        "baselines": inner,
        "total": total,
    }
