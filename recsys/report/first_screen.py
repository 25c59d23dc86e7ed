"""The first screen of the report, for a product manager: whether the model is better, for whom,
examples, and what it cost.

Why a separate screen: a product manager decides from it; everything below it is for engineers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from recsys.data.manifest import Manifest
from recsys.report.wording import (
    figure,
    metric_name,
    number,
    recommender_name,
    segment_name,
)

# segments of users; the other segments are groups of targets
_USER_GROUPS: Final = ("history", "friends", "users", "cold")
_PHRASES: Final = {
    ("history", "0"): "users without a history",
    ("friends", "with friends"): "users with friends",
    ("friends", "without friends"): "users without friends",
    ("users", "known users"): "users who were in training",
    ("cold", "cold users"): "users with few training events",
    ("cold", "other users"): "users with more training events",
}
_STAGES: Final = {
    "prepare": "Preparing the data",
    "search": "Search for settings",
    "workers": "Starting the workers",
    "train": "Training",
    "separate": "Further models, trained separately",
    "members": "Constants and weights of the members",
    "evaluate": "Evaluation, with the baselines",
    "final": "Training on all events",
    "register": "Registration",
}
_LEAST_SECONDS: Final = 0.5  # shorter stages are not listed
_NUM_EXAMPLES: Final = 3
_NUM_TITLES: Final = 5


def best_baseline(comparison: Mapping[str, Any]) -> str | None:
    """The baseline with the highest main metric on test: the best one of the charts; None without
    baselines.

    It is the strictest choice. Earlier evaluations name only the best one on validation.
    """
    found: str | None = comparison.get("best_on_test") or comparison.get("best_baseline")
    return found


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
            "text": "No baseline was run, so there is nothing to compare with.",
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
            f"With 95 % confidence, the model is {_interval(against, theirs)}"
            f"{', so it may be chance' if status == 'even' else ''}. On"
            f" {figure(evaluation['data']['queries'])} test users, the model has {number(value)}"
            f" and {recommender_name(best)} {number(theirs)}."
        ),
    }


def _percent(difference: float, base: float) -> str:
    """A difference in percent of the baseline's value, with its direction; the plain difference if
    that value is zero.
    """
    return f"{_size(difference, base)} {'higher' if difference >= 0 else 'lower'}"


def _size(difference: float, base: float) -> str:
    return f"{100 * abs(difference) / base:.1f} %" if base > 0 else number(abs(difference))


def _interval(against: Mapping[str, Any], base: float) -> str:
    """The interval of a difference in words, such as "1.2 % to 3.4 % better"."""
    low, high = against["low"], against["high"]
    if low < 0 < high:
        return f"between {_size(low, base)} worse and {_size(high, base)} better"
    near, far = sorted((low, high), key=abs)
    return f"{_size(near, base)} to {_size(far, base)} {'better' if far >= 0 else 'worse'}"


def for_whom(evaluation: Mapping[str, Any]) -> dict[str, Any] | None:
    """Segments of users by their paired difference to the best baseline: better, even and worse.

    Each entry has ``name``, ``queries`` and ``percent``, the difference in percent of the
    baseline's value (None where that is zero). None without a baseline, or for an evaluation of an
    earlier release, which has no such differences.
    """
    best, metric = best_baseline(evaluation["comparison"]), evaluation["metric"]
    found: dict[str, list[dict[str, Any]]] = {"better": [], "even": [], "worse": []}
    for group in _USER_GROUPS:
        labels = evaluation["segments"].get(group, {})
        for label, entry in (
            labels.items() if len(labels) > 1 else ()
        ):  # a single segment is all users
            against = entry.get("against", {}).get(best)
            if against is None:
                continue
            theirs = entry["baselines"][best][metric]
            status = "better" if against["low"] > 0 else "worse" if against["high"] < 0 else "even"
            percent = 100 * against["difference"] / theirs if theirs > 0 else None
            found[status].append(
                {"name": _phrase(group, label), "queries": entry["queries"], "percent": percent}
            )
    return {"best": best, **found} if any(found.values()) else None


def _phrase(group: str, label: str) -> str:
    named = f"users with {label} events" if group == "history" else segment_name(label)
    return _PHRASES.get((group, label), named)


def stages(timing: Mapping[str, float]) -> dict[str, float]:
    """Seconds of the stages in ``metrics.json`` by their name for people, in order; stages that
    took almost no time are left out.

    >>> stages({"evaluate_s": 4.0, "prepare_s": 2.0, "members_s": 0.1, "baseline_ease_s": 3.0})
    {'Preparing the data': 2.0, 'Evaluation, with the baselines': 4.0}
    """
    found = {shown: timing.get(f"{name}_s", 0.0) for name, shown in _STAGES.items()}
    return {shown: seconds for shown, seconds in found.items() if seconds >= _LEAST_SECONDS}


def cost(
    evaluation: Mapping[str, Any], manifest: Manifest, history: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What the model cost: seconds of the stages and of all of them, and what it was trained on.

    Parameters
    ----------
    evaluation : Mapping[str, Any]
        The content of ``metrics.json``; its ``timing`` has seconds.
    manifest : Manifest
        Manifest of the dataset.
    history : Sequence[Mapping[str, Any]]
        The reports of the training loop; those with a ``loss`` are epochs.

    Returns
    -------
    dict[str, Any]
        ``seconds`` (of all stages), ``stages`` (as :func:`stages`), ``train`` (the stage of the
        epochs), ``epochs``, ``counts`` and ``lacks_final``: whether a training on all events
        follows, or was done by another command.
    """
    timed = stages(evaluation["timing"])
    return {
        "seconds": sum(timed.values()),
        "stages": timed,
        "train": _STAGES["train"],
        "epochs": sum("loss" in row for row in history),
        "lacks_final": "final" in evaluation["data"] and "final_s" not in evaluation["timing"],
        "counts": {
            name: manifest.counts[name]
            for name in ("events", "users", "items")
            if name in manifest.counts
        },
    }


def short_examples(examples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Three users: their newest items and their first recommendations, by title."""
    return [
        {
            "user": example["user"],
            "history": list(example["history"])[: -_NUM_TITLES - 1 : -1],
            "earlier": max(0, len(example["history"]) - _NUM_TITLES),
            "rows": list(example["recommendations"])[:_NUM_TITLES],
        }
        for example in examples[:_NUM_EXAMPLES]
    ]
