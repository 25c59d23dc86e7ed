"""The minimum that a version must reach to become the challenger, and the candidates of the gate.

Why: scripts and the champion gate use the version with the alias. Without a minimum, a trial of one
epoch, or a model of half the events, would take the alias from a good model only because it is
newer. A version below the minimum is registered too and can be used by its number. The self-test
comes earlier: a bundle that fails it cannot be read at all.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from recsys.config import RegistryConfig
from recsys.evaluation.bootstrap import THAN, outcome
from recsys.registry.logged_values import mlflow_name
from recsys.registry.mlflow_client import name_is
from recsys.report.first_screen import best_baseline

EVENTS_TAG: Final = "dataset.events"
MINIMUM_TAG: Final = "minimum"  # "passed" or "below"
WHY_TAG: Final = "minimum.why"
PASSED: Final = "passed"
BELOW: Final = "below"
_PARTS: Final = ("train", "valid", "test")
_MOST: Final = 20  # listed candidates
_SHELL: Final = set('"$`!\\')  # special characters of a shell between double quotes
_UNASKED: Final = "registered by an earlier release, which had no minimum"


@dataclass(frozen=True)
class Minimum:
    """Whether a version may become the challenger, and why."""

    passed: bool
    why: str

    def tags(self) -> dict[str, str]:
        """The tags of the version."""
        return {MINIMUM_TAG: PASSED if self.passed else BELOW, WHY_TAG: self.why}


def num_events(dataset: Mapping[str, Any]) -> int:
    """Number of events of a bundle's dataset in all splits."""
    return sum(int(dataset.get("counts", {}).get(part, 0)) for part in _PARTS)


def check_minimum(
    comparison: Mapping[str, Any],
    events: int,
    before: Mapping[str, int],
    settings: RegistryConfig,
    replaces: bool,
) -> Minimum:
    """Whether a version is good enough for the alias.

    The first version must not be significantly below the best baseline. A version that would take
    the alias from another version, or replaces its parent, must not be below the baseline at all.

    Parameters
    ----------
    comparison : Mapping[str, Any]
        Comparison with the baselines, from ``metrics.json``; for a model with a refitted fusion or
        refitted user clusters that of its parent. Without a baseline, none is required.
    events : int
        Number of events of its dataset.
    before : Mapping[str, int]
        Number of events of the version with the alias and of the parent, by their names; 0 where
        it is unknown.
    settings : RegistryConfig
        ``min_data``: the least share of the events of an earlier version.
    replaces : bool
        Whether the version may have any number of events (``update.replace``).
    """
    best = best_baseline(comparison)
    against = comparison.get("against", {}).get(best)
    why = "no baseline was measured"
    if against:
        # a first version replaces nothing, so only a clear loss is a reason to refuse it
        is_below = against["high"] < 0 or (bool(before) and against["difference"] < 0)
        where = "below" if is_below else THAN[outcome(against)]
        significantly = "significantly " if against["high"] < 0 else ""
        why = (
            f"{comparison['metric']} is {significantly}{where} the baseline {best}"
            f" ({against['difference']:+.4f}, 95 % interval {against['low']:+.4f} to"
            f" {against['high']:+.4f})"
        )
        if is_below:
            return Minimum(False, why)
    for who, theirs in before.items():
        if not replaces and events < settings.min_data * theirs:
            return Minimum(
                False,
                f"its dataset has {events:,} events, that of {who} has {theirs:,}"
                f" (registry.min_data {settings.min_data:g} requires"
                f" {settings.min_data * theirs:,.0f}; 0 allows any number)",
            )
    return Minimum(True, why)


def alias_command(tracking_uri: str, name: str, alias: str, version: int) -> str:
    """The shell command that gives an alias to a version by hand.

    Parameters
    ----------
    tracking_uri : str
        URI of the MLflow store.
    name : str
        Name of the registered model.
    alias : str
        The alias.
    version : int
        Number of the version.

    Returns
    -------
    str
        A call of ``python -c``, quoted for a shell.
    """
    call = f"set_registered_model_alias({name!r}, {alias!r}, '{version}')"
    code = f"import mlflow; mlflow.MlflowClient({tracking_uri!r}).{call}"
    return f"python -c {shlex.quote(code)}" if set(code) & _SHELL else f'python -c "{code}"'


def candidates(client: Any, name: str, metric: str) -> list[dict[str, Any]]:
    """The versions of a registered model, newest first, with the reason why each is or is not a
    candidate.

    Parameters
    ----------
    client : Any
        The ``MlflowClient``.
    name : str
        Name of the registered model.
    metric : str
        The main metric. The value of each version was measured on the test split of its own
        dataset.
    """
    aliases: dict[str, list[str]] = {}
    for alias, number in client.get_registered_model(name).aliases.items():
        aliases.setdefault(str(number), []).append(alias)
    found = newest_versions(client, name, _MOST)
    return [_candidate(one, sorted(aliases.get(str(one.version), [])), metric) for one in found]


def newest_versions(client: Any, name: str, most: int) -> list[Any]:
    """The newest versions of a registered model, newest first.

    Parameters
    ----------
    client : Any
        A client of MLflow.
    name : str
        Name of the registered model.
    most : int
        Largest number of versions.

    Returns
    -------
    list[Any]
        MLflow's descriptions of the versions.
    """
    return list(
        client.search_model_versions(
            name_is(name), max_results=most, order_by=["version_number DESC"]
        )
    )


def _candidate(version: Any, aliases: list[str], metric: str) -> dict[str, Any]:
    tags = version.tags
    value = tags.get(mlflow_name(f"metric.{metric}"))
    outcome = tags.get(MINIMUM_TAG, "")
    return {
        "version": str(version.version),
        "run_id": str(version.run_id or ""),
        "aliases": aliases,
        "created_ms": int(version.creation_timestamp),
        "metric": None if value is None else float(value),
        "dataset": tags.get("dataset.content_hash", "")[:12],
        "events": int(tags.get(EVENTS_TAG, "0")) or None,
        "is_candidate": outcome != BELOW,
        "why": tags.get(WHY_TAG, "") if outcome else _UNASKED,
        "decision": tags.get("promotion.decision", ""),
    }


def newer_below(found: Sequence[Mapping[str, Any]], version: str) -> Mapping[str, Any] | None:
    """The newest version, where it is newer than ``version`` and is not a candidate; otherwise
    None.
    """
    newest = found[0] if found else None
    if newest is None or newest["is_candidate"] or int(newest["version"]) <= int(version):
        return None
    return newest
