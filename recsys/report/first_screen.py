"""The first screen of the report, for a product manager: whether the model is better, for whom,
examples, and what it cost.

Why a separate screen: a product manager decides from it; everything below it is for engineers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from recsys.data.manifest import Manifest
from recsys.evaluation.bootstrap import THAN, outcome
from recsys.report.wording import (
    figure,
    metric_name,
    number,
    recommender_name,
    segment_name,
    signed,
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
_PHASES: Final = {
    "checked": "before granularities were pruned",
    "refit": "of the refit",
    "join": "of the pruned granularities",
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

    The status is better, worse, unclear or alone (without a baseline). The head is one sentence
    with the difference, the text its interval in words. The best baseline is that of
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
    status = outcome(against)
    return {
        "status": status,
        "head": (
            f"The model is {THAN[status]} {recommender_name(best)}, the best baseline: its {shown}"
            f" is {_percent(against['difference'], theirs)}."
        ),
        "text": (
            f"With 95 % confidence, the model is {_interval(against, theirs)}"
            f"{', so it may be chance' if status == 'unclear' else ''}. On"
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
    """Segments of users by their paired difference to the best baseline: better, unclear and worse.

    Each entry has ``name``, ``queries`` and ``change`` in words. None without a baseline, or for an
    evaluation of an earlier release, which has no such differences.
    """
    best, metric = best_baseline(evaluation["comparison"]), evaluation["metric"]
    found: dict[str, list[dict[str, Any]]] = {"better": [], "unclear": [], "worse": []}
    for group in _USER_GROUPS:
        labels = evaluation["segments"].get(group, {})
        for label, entry in (
            labels.items() if len(labels) > 1 else ()
        ):  # a single segment is all users
            against = entry.get("against", {}).get(best)
            if against is None:
                continue
            theirs = entry["baselines"][best][metric]
            found[outcome(against)].append(
                {
                    "name": _phrase(group, label),
                    "queries": entry["queries"],
                    "change": _change(against["difference"], theirs),
                }
            )
    return {"best": best, **found} if any(found.values()) else None


def _change(difference: float, base: float) -> str:
    """A difference in percent of the baseline's value; of a baseline at zero there is no percent.

    >>> _change(0.01, 0.2), _change(0.01, 0.0), _change(0.0, 0.0)
    ('+5 %', '+0.0100, baseline 0', 'both 0')
    """
    if base > 0:
        return f"{signed(100 * difference / base, 0)} %"
    return f"{signed(difference)}, baseline 0" if difference else "both 0"


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


def epochs_in_words(history: Sequence[Mapping[str, Any]]) -> str:
    """The epochs of a training by phase, in the same words everywhere in the report; empty if
    nothing was trained.

    >>> epochs_in_words([{"phase": "select", "loss": 1.0}] * 3 + [{"phase": "refit", "loss": 1.0}])
    '3 epochs + 1 of the refit'
    """
    trained = [row.get("phase", "select") for row in history if "loss" in row]
    number = trained.count("select")
    shown = [f"{number} epoch{'s' if number != 1 else ''}"] if trained else []
    shown += [
        f"{trained.count(phase)} {what}" for phase, what in _PHASES.items() if phase in trained
    ]
    return " + ".join(shown)


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
        epochs), ``epochs`` (in words), ``counts`` and ``lacks_final``: whether a training on all
        events follows, or was done by another command.
    """
    timed = stages(evaluation["timing"])
    epochs, trained_s = epochs_in_words(history), evaluation["timing"].get("train_s", 0.0)
    if sum(float(row.get("seconds") or 0.0) for row in history) > trained_s:
        epochs += ", some of them before this stage"  # in the search, or before an interruption
    return {
        "seconds": sum(timed.values()),
        "stages": timed,
        "train": _STAGES["train"],
        "epochs": epochs,
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
