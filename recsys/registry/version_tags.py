"""The tags of a registered version: metrics, weights, data, members and origin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from recsys.bundle.description import WEIGHTS
from recsys.registry.digest import WEIGHTS_TAG
from recsys.registry.logged_values import mlflow_name, numbers
from recsys.registry.minimum import EVENTS_TAG, num_events
from recsys.registry.tracking import Tracker

if TYPE_CHECKING:
    from recsys.bundle.layout import Bundle

_LONGEST_TAG: Final = 4_000  # characters; MLflow's limit is 5,000


def version_tags(tracker: Tracker, bundle: Bundle, metrics: Mapping[str, Any]) -> dict[str, str]:
    """All tags of a version of the model registry.

    Parameters
    ----------
    tracker : Tracker
        The tracker of the run that made the version.
    bundle : Bundle
        The bundle of the version.
    metrics : Mapping[str, Any]
        The content of ``metrics.json``, or only the metrics of the model.

    Returns
    -------
    dict[str, str]
        Tag → value.
    """
    own = metrics.get("model", metrics)
    return {
        **{mlflow_name(f"metric.{key}"): f"{value:.6g}" for key, value in numbers(own).items()},
        **({"main_metric": str(metrics["metric"])} if "metric" in metrics else {}),
        WEIGHTS_TAG: bundle.info.files[WEIGHTS].sha256,
        "dataset.content_hash": str(bundle.info.dataset.get("content_hash", "")),
        "dataset.name": str(bundle.info.dataset.get("name", "")),
        EVENTS_TAG: str(num_events(bundle.info.dataset)),
        "granularities": ", ".join(bundle.info.granularities),
        **_finding_tags(metrics),
        "multigrain.version": bundle.info.package_version,
        "run_id": tracker.run_id,
        **_lineage_tags(bundle.info.extra.get("lineage") or {}),
        **final_tags(bundle),
        **({"parent": str(parent["uri"])} if (parent := bundle.info.extra.get("parent")) else {}),
    }


def final_tags(bundle: Bundle) -> dict[str, str]:
    """Tags of a model that was trained on all events after the evaluation: its events
    and epochs.
    """
    return {
        f"final.{key}": str(value) for key, value in (bundle.info.extra.get("final") or {}).items()
    }


def _finding_tags(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Tags with the members of the model and the signals of a query for which it is below the best
    baseline.
    """
    found = {}
    report = metrics.get("members") or {}
    if each := report.get("each"):
        # then the trained granularities are one member, "trained"
        is_stacked = report.get("single") is not None
        members = [
            name
            for name, entry in each.items()
            if entry["kept"] and not (is_stacked and entry["kind"] == "trained")
        ]
        found["members"] = ", ".join(members)
    if signals := metrics.get("signals"):
        below = [
            entry["label"] for entry in signals if entry["best_baseline"] and entry["high"] < 0
        ]
        found["signals.below_baseline"] = " | ".join(below)[:_LONGEST_TAG] or "none"
        found["signals.combinations"] = str(len(signals))
    return found


def _lineage_tags(lineage: Mapping[str, Any]) -> dict[str, str]:
    named = {"git.commit": "git_commit", "git.changed": "git_changed", "config.digest": "config"}
    return {tag: str(lineage[key]).lower() for tag, key in named.items() if key in lineage}
