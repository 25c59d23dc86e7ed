"""The comparison of a challenger with the champion and the baselines on the same test users.

Every rule of the gate adds its check to the findings; :mod:`pipelines.promote` decides by them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipelines.plumbing.opened_dataset import open_dataset
from pipelines.plumbing.run_folder import RunFolder
from recsys.bundle.evaluated_model import has_measured, measured
from recsys.bundle.layout import Bundle
from recsys.config import Config
from recsys.data.bounded import evaluated_queries, fitted_histories
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Queries, Split
from recsys.errors import ArtifactError, DataError
from recsys.gate.cross_dataset import CrossDatasetScorer, fitted_through, leak_of
from recsys.gate.promotion import (
    Check,
    Findings,
    against_baselines,
    against_champion,
    against_drift,
    measure_baselines,
    ranked,
    segments_of,
)
from recsys.registry.resolve import resolve
from recsys.serving.bundles import read_bundle
from recsys.training.threads import settle_threads


@dataclass(frozen=True)
class Side:
    """One of the two models: a version, and its bundle if it can be read."""

    version: str
    # with its evaluated model: the one that answers may be trained on test events
    bundle: Bundle | None
    broken: str  # why it cannot be read; otherwise empty

    def describe(self, name: str) -> dict[str, Any]:
        """The version and its bundle, for the record."""
        found: dict[str, Any] = {"version": self.version, "uri": f"models:/{name}/{self.version}"}
        if self.bundle is not None:
            info = self.bundle.info
            found |= {
                "created": info.created,
                "granularities": info.granularities,
                "dataset": info.dataset.get("content_hash", ""),
                "users": len(self.bundle.user_ids),
                "items": self.bundle.num_items,
            }
        return found


def side_of(name: str, version: str, store: str) -> Side:
    """The side of a version in the MLflow store at the URI ``store``.

    Parameters
    ----------
    name : str
        Name of the registered model.
    version : str
        Number of the version.
    store : str
        URI of the MLflow store.

    Returns
    -------
    Side
        The version with its bundle. If the files are missing or damaged, it has the reason instead
        of a bundle.
    """
    try:
        folder = resolve(f"models:/{name}/{version}", store)
        return Side(version, measured(folder, read_bundle(folder)), "")
    except ArtifactError as error:
        return Side(version, None, str(error))


def compare(
    config: Config, folder: RunFolder, challenger: Bundle, champion: Side | None, findings: Findings
) -> None:
    """Rank the test split with both models, and apply every rule.

    Parameters
    ----------
    config : Config
        Configuration of the gate; it names the dataset, the metric and the rules.
    folder : RunFolder
        Gets the progress lines.
    challenger : Bundle
        The model to check, with its evaluated model.
    champion : Side | None
        The current champion, or None. Without a champion, only the baselines decide.
    findings : Findings
        Gets a check per rule, the figures behind them, and notes.

    Raises
    ------
    ArtifactError
        There is no prepared dataset for this configuration.
    DataError
        The dataset has no test user with a target that counts.
    """
    dataset = open_dataset(config.data, config.dataset_dir, config.seed)
    same = challenger.info.dataset.get("content_hash") == dataset.manifest.content_hash
    settle_threads(config.model, config.train, dataset.num_items, folder.progress)
    queries = evaluated_queries(dataset, Split.TEST, config.evaluate, config.seed)
    findings.notes.append(_what_is_compared(challenger, dataset, same))
    findings.notes += [note] if (note := _feedback_note(challenger)) else []
    findings.notes += [note] if (note := _final_note(challenger, champion)) else []
    against_drift(challenger.info.extra.get("drift"), config.promote, findings)
    scorer = CrossDatasetScorer(challenger, dataset)
    _check_leak("challenger", leak_of(challenger, dataset), findings)
    folder.progress(
        f"ranking all {dataset.num_items:,} items for {len(queries):,} test users: the challenger"
    )
    ranking, ours_B = ranked(scorer, queries, config.train, config.evaluate)
    if not len(ranking):
        raise DataError(
            f"{dataset.root} has no test user with a target that counts, so models cannot be"
            " compared"
        )
    if champion is None:
        findings.notes.append("there is no champion yet: only the baselines decide")
    elif champion.bundle is None:
        findings.checks.append(
            Check("champion", False, f"the champion cannot be loaded: {champion.broken}")
        )
    else:
        folder.progress(f"ranking with the champion, version {champion.version}")
        theirs = CrossDatasetScorer(champion.bundle, dataset)
        findings.notes += _vocabulary_notes(champion.bundle, theirs, dataset)
        _check_leak("champion", leak_of(champion.bundle, dataset), findings)
        _, theirs_B = ranked(theirs, queries, config.train, config.evaluate)
        groups = segments_of(ranking.queries, dataset, config.evaluate, fitted_through(challenger))
        groups |= _by_champion(theirs, ranking.queries)
        against_champion(ours_B, theirs_B, groups, config, findings)
    stored = challenger.info.extra.get("comparison") or {}
    as_now = (
        stored.get("metric") == config.train.metric
        and stored.get("exclude_seen") == config.evaluate.exclude_seen
    )
    if not (same and as_now and stored.get("against")) and config.promote.beat_baselines:
        names = ", ".join(config.evaluate.baselines)
        folder.progress(
            "measuring the baselines, as the challenger has no results on this data:"
            f" {names or 'none'}"
        )
        refit = fitted_through(challenger) == Split.VALID
        stored = measure_baselines(
            ranking,
            ours_B,
            fitted_histories(dataset, config.evaluate, config.seed),
            dataset.num_items,
            config.train,
            config.evaluate,
            config.seed,
            refit,
        )
    against_baselines(stored, config.promote, findings)


def _check_leak(who: str, leak: str, findings: Findings) -> None:
    if leak:
        why = f"the {who} was trained on test events, so its metrics cannot be trusted: {leak}"
        findings.checks.append(
            Check("leak", False, f"{why}; give newer test events, or promote.force with a reason")
        )
    else:
        findings.checks.append(
            Check("leak", True, f"no test event was among the {who}'s training events")
        )


def _what_is_compared(challenger: Bundle, dataset: PreparedDataset, same: bool) -> str:
    here = f"dataset {dataset.manifest.name} {dataset.manifest.content_hash[:12]}"
    if same:
        return (
            f"compared on the test split of {here}; the challenger was trained on its training"
            " split"
        )
    theirs = str(challenger.info.dataset.get("content_hash", ""))[:12]
    return (
        f"compared on the test split of {here}; the challenger was trained on another dataset,"
        f" {theirs}"
    )


def _feedback_note(challenger: Bundle) -> str:
    """A note if some parameters were fitted on events that the bundle does not hold."""
    later = [name for name in ("fusion", "strata") if name in challenger.info.extra]
    if not later:
        return ""
    return (
        f"`recsys update` fitted the challenger's {' and '.join(later)} again on events that its"
        " bundle does not hold, so it cannot be checked whether test events were among them"
    )


def _final_note(challenger: Bundle, champion: Side | None) -> str:
    """A note on models that answer with weights trained on test events, and are compared by
    others.
    """
    sides = {
        "challenger": challenger,
        "champion": champion.bundle if champion is not None else None,
    }
    named = [
        who for who, bundle in sides.items() if bundle is not None and has_measured(bundle.info)
    ]
    if not named:
        return ""
    return (
        f"the {' and the '.join(named)} answer{'s' if len(named) == 1 else ''} with weights trained"
        " on all events (train.final); the comparison uses the evaluated weights, which were not"
        " trained on test events"
    )


def _vocabulary_notes(
    champion: Bundle, scorer: CrossDatasetScorer, dataset: PreparedDataset
) -> list[str]:
    users, items = scorer.num_unknown
    if champion.info.dataset.get("content_hash") == dataset.manifest.content_hash:
        return ["the champion was trained on the same dataset"]
    theirs = str(champion.info.dataset.get("content_hash", ""))[:12]
    return [
        f"the champion was trained on another dataset ({theirs}) and answers as it does in"
        f" production: {users:,} of {dataset.num_users:,} users are cold-start users for it; it"
        f" does not know {items:,} of {dataset.num_items:,} items and never recommends them"
    ]


def _by_champion(scorer: CrossDatasetScorer, queries: Queries) -> dict[str, Any]:
    """Segments of users known and unknown to the champion, if both exist."""
    known_B = scorer.user_of_V[queries.histories.users_U] >= 0
    masks = {"known to the champion": known_B, "new to the champion": ~known_B}
    return {"champion": masks} if known_B.any() and not known_B.all() else {}
