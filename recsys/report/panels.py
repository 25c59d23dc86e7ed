"""Content of the report's panels, from members to trust: geometry for their templates
(``*.html.j2``).

Why here: the report has one panel per question, and each is independent of the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from recsys.evaluation.bootstrap import outcome
from recsys.evaluation.member_scores import (
    better_without,
    own_weights_line,
    same_names,
    single_line,
)
from recsys.evaluation.rating_errors import ERRORS
from recsys.evaluation.segments import COLD
from recsys.report.chart_geometry import Axis, Curves, Line, axis
from recsys.report.first_screen import best_baseline
from recsys.report.wording import metric_name

_TITLES: Final = {
    ("weights_changed", "off"): "Left out",
    ("weights_changed", "alone"): "Alone",
    ("weights_changed", "fusion"): "Other weights",
    ("retrained", "off"): "Left out, trained again",
    ("retrained", "alone"): "Alone, trained again",
    ("retrained", "fusion"): "Other fusions, trained again",
}
_WEIGHTS: Final = {
    "weighted": "as configured",
    "even": "all the same",
    "constant": "the gate's mean",
}


def ablation_panel(evaluation: Mapping[str, Any]) -> dict[str, Any] | None:
    """Cards of variants with the difference of the full model, its interval and p; None without an
    ablation.
    """
    ablation = evaluation.get("ablation")
    if not ablation:
        return None
    cards = []
    for (kind, group), title in _TITLES.items():
        named = _WEIGHTS if (kind, group) == ("weights_changed", "fusion") else {}
        cards += _card(title, ablation.get(kind, {}).get(group, {}), named)
    return (
        {"cards": cards, "full": ablation["full"], "fusion": ablation["fusion_kind"]}
        if cards
        else None
    )


def cold_panel(evaluation: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any] | None:
    """The model on cold-start users against every baseline and without each granularity; None if
    there are none.
    """
    cold = evaluation["segments"].get("cold", {}).get(COLD, {})
    if "comparison" not in cold:
        return None
    cards = _card("More than the baselines", cold["comparison"]["against"], names)
    cards += _card("More than without the granularity", cold["granularities"], {})
    metric = evaluation["metric"]
    return {
        "cards": cards,
        "queries": cold["queries"],
        "value": cold["model"][metric],
        "interval": cold["interval"],
    }


def _card(
    title: str, entries: Mapping[str, Mapping[str, Any]], named: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Differences on one axis; no card if there are none."""
    if not entries:
        return []
    scale = axis(
        [0.0, *(end for entry in entries.values() for end in (entry["low"], entry["high"]))]
    )
    rows = [_variant(named.get(name, name), entry, scale) for name, entry in entries.items()]
    return [{"title": title, "rows": rows, "zero": scale.at(0.0), "ticks": scale.labels()}]


def _variant(name: str, entry: Mapping[str, Any], scale: Axis) -> dict[str, Any]:
    # the difference is that of the full model, so the variant is worse where it is better
    status = {"better": "worse", "worse": "better", "unclear": "unclear"}[outcome(entry)]
    points = {
        end: scale.at(entry[key])
        for end, key in (("low", "low"), ("high", "high"), ("at", "difference"))
    }
    return {"name": name, "status": status, **points, "entry": entry}


def trade_off_panel(evaluation: Mapping[str, Any]) -> dict[str, Any] | None:
    """The main metric over the diversity of the lists, one point per strength; None if it was not
    measured.
    """
    found = evaluation.get("trade_off")
    if not found:
        return None
    points = found["points"]
    across = axis([point["diversity"] for point in points])
    up = axis([point["value"] for point in points])
    drawn = tuple(
        (across.at(point["diversity"]), round(100 - up.at(point["value"]), 3)) for point in points
    )
    line = Line("M" + " L".join(f"{x:g} {y:g}" for x, y in drawn), drawn)
    y_labels = [(100 - position, text) for position, text in up.labels()]
    return {**found, "curve": Curves((line,), across.labels(), y_labels, drawn[0])}


def trust_panel(evaluation: Mapping[str, Any]) -> dict[str, Any] | None:
    """Exposure by item group, popularity lift by taste, quality by user group; None without these
    figures.
    """
    trust = evaluation.get("trust")
    if not trust:
        return None
    best = best_baseline(evaluation["comparison"])
    shown = ["model", *([best] if best else [])]
    return {
        "k": trust["k"],
        "best": best,
        "items": [_exposure(name, entry, shown) for name, entry in trust["items"].items()],
        "bias": _bias(trust["bias"]),
        "users": [
            _user_groups(name, entry, shown)
            for name, entry in trust["users"].items()
            if len(entry["groups"]) > 1
        ],
    }


def _exposure(name: str, entry: Mapping[str, Any], shown: Sequence[str]) -> dict[str, Any]:
    """Three bars per group: the share of what people chose, of what the model shows, and of what
    the baseline shows.
    """
    scale = axis(
        [*entry["interactions"], *(v for key in shown for v in entry["exposure"][key])],
        from_zero=True,
    )
    rows = [
        {
            "label": label,
            "items": entry["items"][index],
            "chosen": entry["interactions"][index],
            "shown": [entry["exposure"][key][index] for key in shown],
        }
        for index, label in enumerate(entry["labels"])
    ]
    ticks = [
        (position, f"{100 * tick:g} %")
        for (position, _), tick in zip(scale.labels(), scale.ticks, strict=True)
    ]
    return {
        "name": name,
        "rows": rows,
        "at": scale.at,
        "ticks": ticks,
        "disparity": entry["disparity"],
    }


def _bias(bias: Mapping[str, Any]) -> dict[str, Any]:
    names = list(bias["arp"])
    rows = [{"label": label, **group} for label, group in bias["groups"].items()]
    return {"names": names, "arp": bias["arp"], "rows": rows}


def _user_groups(name: str, entry: Mapping[str, Any], shown: Sequence[str]) -> dict[str, Any]:
    spans = [
        end for group in entry["groups"].values() for key in shown for end in group["interval"][key]
    ]
    scale = axis(spans)
    rows = [
        {
            "label": label,
            "queries": group["queries"],
            "marks": [
                {
                    "at": scale.at(group["value"][key]),
                    "low": scale.at(group["interval"][key][0]),
                    "high": scale.at(group["interval"][key][1]),
                    "value": group["value"][key],
                }
                for key in shown
            ],
            "beyond": group["beyond_head"]["model"],
        }
        for label, group in entry["groups"].items()
    ]
    gap = {key: entry["gap"][key] for key in shown if key in entry["gap"]}
    return {
        "name": name,
        "rows": rows,
        "ticks": scale.labels(),
        "gap": gap,
        "exposure_gap": {
            key: entry["exposure_gap"][key] for key in shown if key in entry["exposure_gap"]
        },
    }


def members_panel(evaluation: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any] | None:
    """Every member and baseline alone on one axis, and a table with validation, test and the
    reason; None without.
    """
    members = evaluation.get("members")
    if not members or len(members["each"]) + len(members["baselines"]) < 2:
        return None
    together = {
        "name": "together",
        "kind": "model",
        "value": members["together"]["test"],
        **members["together"],
    }
    shown = [together]
    for group, entries in (("", members["each"]), ("baseline", members["baselines"])):
        for name, entry in entries.items():
            alone = entry["alone"]
            if alone["test"] is not None:
                label = names.get(name, name) if group else name
                row = {
                    "name": label,
                    "kind": group or entry["kind"],
                    "value": alone["test"],
                    **alone,
                }
                shown.append(row)
    scale = axis([end for row in shown for end in row["interval"]], count=6)
    dots = [
        {
            **row,
            "at": scale.at(row["value"]),
            "low": scale.at(row["interval"][0]),
            "high": scale.at(row["interval"][1]),
        }
        for row in sorted(shown, key=lambda row: -float(row["value"]))
    ]
    beside = [
        {"name": names.get(name, name), **entry} for name, entry in members["baselines"].items()
    ]
    return {
        "dots": dots,
        "ticks": scale.labels(),
        "together": members["together"],
        "rows": [
            {"name": name, **entry}
            for name, entry in members["each"].items()
            if entry["kept"] or entry["kind"] != "trained" or entry["alone"]["test"] is not None
        ],
        "baselines": beside,
        "single": single_line(members),
        "own_weights": own_weights_line(members),
        "same_names": same_names(members),
        "better_without": better_without({**members, "metric": metric_name(evaluation["metric"])}),
    }


def signals_panel(evaluation: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any] | None:
    """One row per combination: its signals, the metric and the difference to the baseline that is
    best on its queries.

    The columns are all signals of any combination; the column of the history has its length. None
    without signals.
    """
    entries = evaluation.get("signals")
    if not entries:
        return None
    named = [
        name
        for entry in entries
        for name in (*entry["present"], *entry["missing"])
        if "history" not in name
    ]
    columns = list(dict.fromkeys(named))
    rows = []
    for entry in entries:
        pooled = not entry["present"] and not entry["missing"]
        history = next(
            (name.replace(" history", "") for name in entry["present"] if "history" in name), "none"
        )
        marks = ["" if pooled else "✓" if name in entry["present"] else "–" for name in columns]
        best = entry["best_baseline"]
        status = "" if best is None else outcome(entry)
        rows.append(
            {
                "history": entry["label"] if pooled else history,
                "marks": marks,
                "status": status,
                "best": names.get(best, best),
                "entry": entry,
            }
        )
    return {"columns": columns, "rows": rows}


def ratings_panel(evaluation: Mapping[str, Any]) -> dict[str, Any] | None:
    """One row per recommender, one axis per kind of error; None if nothing predicts values."""
    ratings = evaluation.get("ratings")
    if not ratings or "skipped" in ratings:
        return ratings or None
    entries = {
        "Multigrain": ratings["model"],
        **{name.capitalize(): of for name, of in ratings["baselines"].items()},
    }
    cards = []
    for error in ERRORS:
        scale = axis([end for entry in entries.values() for end in entry["interval"][error]])
        rows = []
        for name, entry in entries.items():
            low, high = (scale.at(end) for end in entry["interval"][error])
            rows.append(
                {
                    "name": name,
                    "low": low,
                    "high": high,
                    "at": scale.at(entry[error]),
                    "value": entry[error],
                }
            )
        cards.append({"title": error.upper(), "rows": rows, "ticks": scale.labels()})
    return {"events": ratings["events"], "cards": cards}


def user_clusters_panel(evaluation: Mapping[str, Any]) -> dict[str, Any] | None:
    """The user clusters in ``evaluation["strata"]``, and the scores of the candidates for their
    number on one axis.
    """
    found = evaluation.get("strata")
    if found is None:
        return None
    candidates = found["choice"].get("candidates") or {}
    scale = axis(list(candidates.values()), count=6)
    curve = [
        {
            "number": int(number),
            "score": score,
            "at": scale.at(score),
            "chosen": int(number) == found["choice"]["chosen"],
        }
        for number, score in candidates.items()
    ]
    popularity = found["choice"].get("popularity")
    return {**found, "curve": curve, "ticks": scale.labels(), "popularity": popularity}
