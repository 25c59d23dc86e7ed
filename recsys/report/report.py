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

from recsys.data.manifest import Manifest
from recsys.evaluation.bootstrap import shown_p
from recsys.report.chart_geometry import curves, stacked
from recsys.report.first_screen import (
    best_baseline,
    cost,
    epochs_in_words,
    for_whom,
    short_examples,
    stages,
    verdict,
)
from recsys.report.interest_drift import interest_drift_panel
from recsys.report.pages import environment, packaged
from recsys.report.panels import (
    ablation_panel,
    cold_panel,
    members_panel,
    ratings_panel,
    signals_panel,
    trade_off_panel,
    trust_panel,
    user_clusters_panel,
)
from recsys.report.scores import score_cards, score_panels, score_tables, segment_bars
from recsys.report.wording import (
    BASELINE_NOTES,
    RECOMMENDER_NAMES,
    breakable,
    duration,
    figure,
    metric_meaning,
    metric_name,
    number,
    recommender_name,
    segment_name,
    sentence,
    signed,
)
from recsys.storage.beside import atomic_write
from recsys.storage.filesystems import storage_errors

_MAX_HISTORY: Final = 12
_NUM_COLOURS: Final = 24  # number of fills in report.css


def render_report(
    path: str | Path,
    evaluation: Mapping[str, Any],
    manifest: Manifest,
    training_history: Sequence[Mapping[str, Any]],
    examples: Sequence[Mapping[str, Any]],
    config_yaml: str,
    name: str = "",
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
        and ``hit``; ``interest_drift`` with the granularity evolution (see
        ``recsys.evaluation.interest_drift``) and ``strata`` with user clusters.
    config_yaml : str
        The merged configuration.
    name : str
        Name of the run, the title; empty: the name of the dataset.
    """
    templates = environment(
        jinja2.FunctionLoader(partial(packaged, "recsys.report")),
        metric=metric_name,
        recommender=recommender_name,
        duration=duration,
        number=number,
        breakable=breakable,
        signed=signed,
        figure=figure,
        sentence=sentence,
        segment=segment_name,
        meaning=metric_meaning,
        p_value=partial(shown_p, resamples=evaluation["confidence"]["resamples"]),
    )
    content = {
        **_first_screen(evaluation, manifest, training_history, examples),
        **_details(evaluation, examples),
        "title": name or manifest.name,
        "date": datetime.now(UTC).strftime("%-d %B %Y, %H:%M UTC"),
        "manifest": manifest,
        "training": _training(training_history, evaluation["metric"]),
        "quarantine": _quarantine(manifest),
        "split": _split(manifest),
        "config_yaml": config_yaml,
    }
    html = templates.get_template("report.html.j2").render(content)
    with atomic_write(Path(path)) as aside, storage_errors(str(path), "write to"):
        aside.write_text(html, encoding="utf-8")


def _first_screen(
    evaluation: Mapping[str, Any],
    manifest: Manifest,
    training_history: Sequence[Mapping[str, Any]],
    examples: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """What the template shows to a product manager."""
    return {
        "metric": evaluation["metric"],
        "verdict": verdict(evaluation),
        "best": best_baseline(evaluation["comparison"]),
        "for_whom": for_whom(evaluation),
        "cost": cost(evaluation, manifest, training_history),
        "short_examples": short_examples(examples),
        "cards": score_cards(evaluation),
    }


def _details(
    evaluation: Mapping[str, Any], examples: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What the template shows to engineers about the evaluation."""
    colours = _colours(evaluation)
    return {
        "evaluation": evaluation,
        "panels": score_panels(evaluation),
        "tables": score_tables(evaluation),
        "baseline_notes": BASELINE_NOTES,
        "one_target": evaluation["data"]["targets"] == evaluation["data"]["queries"],
        "segments": segment_bars(evaluation),
        "fusion": _fusion(evaluation),
        "members": members_panel(evaluation, RECOMMENDER_NAMES),
        "signals": signals_panel(evaluation, RECOMMENDER_NAMES),
        "cold": cold_panel(evaluation, RECOMMENDER_NAMES),
        "ablation": ablation_panel(evaluation),
        "trust": trust_panel(evaluation),
        "trade_off": trade_off_panel(evaluation),
        "colours": colours,
        "shown_colours": _shown(colours, examples),
        "examples": [_example(example) for example in examples],
        "interest_drift": interest_drift_panel(examples),
        "strata": user_clusters_panel(evaluation),
        "own": list(evaluation.get("panels", {}).values()),
        "ratings": ratings_panel(evaluation),
        "timing": _timing(evaluation["timing"]),
    }


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
        "epochs": epochs_in_words(history),
        "refit": len(refit),
        "peak_lr": max(
            (float(row["lr"]) for row in history if row.get("lr") is not None), default=None
        ),
    }


def _finite(value: Any) -> float:
    return math.nan if value is None else float(value)


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
    """Seconds and share of each stage; those of the baselines are part of the evaluation."""
    timed = stages(timing)
    inner = {
        name[len("baseline_") : -2]: s for name, s in timing.items() if name.startswith("baseline_")
    }
    total = sum(timed.values()) or 1.0
    return {
        "stages": {name: (s, 100 * s / total) for name, s in timed.items()},
        "baselines": inner,
        "total": total,
    }
