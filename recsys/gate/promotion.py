"""The promotion gate: a challenger must be better than the champion, not much worse in any segment,
and above baselines.

Why intervals and not means: on two thousand users the third digit is chance, and a gate without
intervals would replace the champion by chance. Both models are measured on the same users, so the
comparison is paired by user.

Legend: B queries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from recsys.config import Config, EvaluateConfig, PromoteConfig, TrainConfig
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array, Histories, Queries, Split
from recsys.evaluation.baselines import fit_baselines
from recsys.evaluation.bootstrap import LEVEL, compare, shown_p
from recsys.evaluation.metrics import QUERY_METRICS, parse_metric
from recsys.evaluation.ranking import Ranking, Scorer, rank
from recsys.evaluation.segments import Groups, user_segments
from recsys.evaluation.signal_certificate import signal_groups
from recsys.evaluation.trust import column_of, user_groups
from recsys.gate.drift import beyond


@dataclass(frozen=True)
class Check:
    """One rule of the gate, with its outcome as a sentence."""

    name: str
    passed: bool
    why: str

    def to_json(self) -> dict[str, Any]:
        """The content as plain values for JSON."""
        return asdict(self)


@dataclass
class Findings:
    """The result of the gate: the checked rules, the figures behind
    them, and notes for the user.
    """

    checks: list[Check] = field(default_factory=list)
    comparison: dict[str, Any] = field(default_factory=dict)
    baselines: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def reasons(self) -> list[str]:
        """The reasons for a refusal; empty if the challenger passes."""
        return [check.why for check in self.checks if not check.passed]


def ranked(
    scorer: Scorer, queries: Queries, train: TrainConfig, evaluate: EvaluateConfig
) -> tuple[Ranking, Array]:
    """The ranking of the evaluation, and the main metric of every query in it.

    Parameters
    ----------
    scorer : Scorer
        The recommender to rank with.
    queries : Queries
        Queries to rank.
    train : TrainConfig
        Main metric with its cut-off.
    evaluate : EvaluateConfig
        Whether seen items are left out, and the chunk size.

    Returns
    -------
    ranking : Ranking
        The ranking of the queries that count.
    values_B : array, [B] float64
        The main metric of each of them.

    Raises
    ------
    ConfigError
        The main metric is no accuracy metric.
    """
    kind, k = parse_metric(train.metric, tuple(QUERY_METRICS))
    ranking = rank(scorer, queries, k, evaluate.exclude_seen, evaluate.chunk_users)
    return ranking, QUERY_METRICS[kind](ranking.hits_BK, ranking.num_targets_B, k)


def segments_of(
    queries: Queries, dataset: PreparedDataset, evaluate: EvaluateConfig, through: Split
) -> Groups:
    """The segments that the gate checks.

    These are the segments of the evaluation (activity, friends, new and cold-start users),
    ``evaluate.user_groups``, and every combination of present and missing signals, as in the signal
    certificate.

    Parameters
    ----------
    queries : Queries
        Queries of the ranking, with the targets that count.
    dataset : PreparedDataset
        Their dataset.
    evaluate : EvaluateConfig
        Columns of ``user_groups``.
    through : Split
        Last split on which the model was fitted.

    Returns
    -------
    dict of str to (dict of str to array, [B] bool)
        Group to label to the queries of the segment.

    Raises
    ------
    ConfigError
        A column of ``evaluate.user_groups`` does not exist.
    """
    friends_U = np.unique(dataset.social_edges()[0])
    groups = user_segments(queries, friends_U, through, dataset.cold_U)
    users_B = queries.histories.users_U
    for column in evaluate.user_groups:
        values = column_of(dataset.user_features, column, "evaluate.user_groups", "users")
        masks = {
            label: (users_B >= 0) & mask_U[users_B] for label, mask_U in user_groups(values).items()
        }
        groups[column] = {label: mask_B for label, mask_B in masks.items() if mask_B.any()}
    groups["signals"] = signal_groups(queries, dataset, through)
    return groups


def against_champion(
    ours_B: Array, theirs_B: Array, groups: Groups, config: Config, findings: Findings
) -> None:
    """Add the paired comparison, as a whole and by segment, and its two rules to the findings.

    Parameters
    ----------
    ours_B : array, [B] float
        The main metric of the challenger per query.
    theirs_B : array, [B] float
        That of the champion for the same queries.
    groups : Groups
        Segments, from :func:`segments_of`.
    config : Config
        Main metric, bootstrap and the rules of ``promote``.
    findings : Findings
        Changed in place: ``comparison`` is set, two checks are added.
    """
    settings, resamples, seed = config.promote, config.evaluate.bootstrap, config.seed
    means = {"challenger": float(ours_B.mean()), "champion": float(theirs_B.mean())}
    found = compare(ours_B, theirs_B, resamples, seed).to_json()
    segments = {
        group: {
            label: _segment(ours_B[m_B], theirs_B[m_B], settings, resamples, seed)
            for label, m_B in masks.items()
        }
        for group, masks in groups.items()
    }
    findings.comparison = {
        "metric": config.train.metric,
        "queries": len(ours_B),
        "level": LEVEL,
        "resamples": resamples,
        **means,
        **found,
        "segments": segments,
    }
    findings.checks += [_overall(findings.comparison, settings), _segments(segments, settings)]


def _overall(found: Mapping[str, Any], settings: PromoteConfig) -> Check:
    bound = 0.0 if settings.rule == "better" else -settings.margin * found["champion"]
    # the end of the interval and not the mean, so that chance does not promote
    passed = found["low"] > bound
    requirement = (
        "above zero"
        if settings.rule == "better"
        else f"above {bound:+.4f}, a loss of {settings.margin:.1%}"
    )
    return Check(
        settings.rule,
        passed,
        f"{found['metric']} {found['challenger']:.4f} against the champion's"
        f" {found['champion']:.4f} on {found['queries']:,} test users: difference"
        f" {found['difference']:+.4f}, 95 % interval {found['low']:+.4f} to {found['high']:+.4f}, p"
        f" {shown_p(found['p'], found['resamples'])}; promote.rule {settings.rule} requires the"
        f" whole interval {requirement}",
    )


def _segment(
    ours_b: Array, theirs_b: Array, settings: PromoteConfig, resamples: int, seed: int
) -> dict[str, Any]:
    """The figures of a segment; ``worse``: the loss is larger than allowed, and beyond chance.

    Both conditions are needed: the mean of a few dozen users is often a twentieth lower by chance
    alone, and a small but certain loss is what the bound allows.
    """
    ours, theirs = float(ours_b.mean()), float(theirs_b.mean())
    found = compare(ours_b, theirs_b, resamples, seed).to_json()
    loss = (theirs - ours) / theirs if theirs > 0 else 0.0
    # among many small segments, one is always worse by chance
    judged = len(ours_b) >= settings.min_segment_users
    return {
        "queries": len(ours_b),
        "challenger": ours,
        "champion": theirs,
        **found,
        "loss": loss,
        "judged": judged,
        "worse": judged and loss > settings.max_segment_loss and found["high"] < 0,
    }


def _segments(
    segments: Mapping[str, Mapping[str, Mapping[str, Any]]], settings: PromoteConfig
) -> Check:
    worse = [
        f"{label} ({entry['queries']:,} users: {entry['challenger']:.4f} against"
        f" {entry['champion']:.4f}, -{entry['loss']:.1%}, 95 % interval {entry['low']:+.4f}"
        f" to {entry['high']:+.4f})"
        for group in segments.values()
        for label, entry in group.items()
        if entry["worse"]
    ]
    bound = f"by more than promote.max_segment_loss {settings.max_segment_loss:.1%}"
    if worse:
        return Check("segments", False, f"significantly worse {bound} for: {'; '.join(worse)}")
    num_judged = sum(entry["judged"] for group in segments.values() for entry in group.values())
    return Check("segments", True, f"none of {num_judged} segments is significantly worse {bound}")


def against_drift(
    drift: Mapping[str, Any] | None, settings: PromoteConfig, findings: Findings
) -> None:
    """Add the rule on drift of the newer events of an update to the findings; a full training has
    no such rule.

    Parameters
    ----------
    drift : Mapping of str to any JSON value, or None
        Drift figures of an update; None or empty adds no check.
    settings : PromoteConfig
        Bounds ``promote.max_…``.
    findings : Findings
        Changed in place: one check is added.
    """
    if not drift:
        return
    found = beyond(drift, settings)
    why = (
        "; ".join(found)
        or f"{drift['events']:,} newer events are within the bounds of promote.max_…"
    )
    findings.checks.append(
        Check("drift", not found, f"newer events have drifted: {why}" if found else why)
    )


# ---------------------------------------------------------------------------------------- baselines


def measure_baselines(
    ranking: Ranking,
    ours_B: Array,
    histories: Histories,
    num_items: int,
    train: TrainConfig,
    evaluate: EvaluateConfig,
    seed: int,
    refit: bool,
) -> dict[str, Any]:
    """The paired comparison with every configured baseline, fitted on the same events as the
    challenger.

    Parameters
    ----------
    ranking : Ranking
        Ranking of the challenger on test.
    ours_B : array, [B] float
        Its main metric per query.
    histories : Histories
        Histories with all splits.
    num_items : int
        Number of items N.
    train : TrainConfig
        Main metric.
    evaluate : EvaluateConfig
        Names and settings of the baselines, and the bootstrap.
    seed : int
        Seed of the bootstrap.
    refit : bool
        Whether baselines are fitted on training and validation events.

    Returns
    -------
    dict
        Plain JSON: ``metric``, and ``against`` with a comparison per baseline.
    """
    names, metric = evaluate.baselines, train.metric
    fitted = fit_baselines(names, histories, num_items, evaluate, metric, refit)
    queries = histories.queries(Split.TEST)
    against = {}
    for name, baseline in fitted.items():
        theirs, theirs_B = ranked(baseline, queries, train, evaluate)
        assert len(theirs) == len(ranking), "the same queries count for all"
        against[name] = compare(ours_B, theirs_B, evaluate.bootstrap, seed).to_json()
    return {"metric": metric, "against": against}


def against_baselines(
    comparison: Mapping[str, Any], settings: PromoteConfig, findings: Findings
) -> None:
    """Add the rule on baselines to the findings, from a comparison as in ``metrics.json``.

    Parameters
    ----------
    comparison : Mapping of str to any JSON value
        ``metric``, and ``against`` with a comparison per baseline.
    settings : PromoteConfig
        ``beat_baselines``; if false, only a note is added.
    findings : Findings
        Changed in place: ``baselines`` is set, and a check or a note is added.
    """
    findings.baselines = dict(comparison)
    if not settings.beat_baselines:
        findings.notes.append("promote.beat_baselines is false: baselines were not compared")
        return
    against = comparison.get("against", {})
    shown = {
        name: (
            f"{name} (difference {entry['difference']:+.4f}, 95 % interval {entry['low']:+.4f} to"
            f" {entry['high']:+.4f})"
        )
        for name, entry in against.items()
    }
    # written this way, NaN counts as lost
    lost = [shown[name] for name, entry in against.items() if not entry["low"] > 0]
    if not against:
        why = "there is no baseline to compare with (evaluate.baselines is empty)"
        findings.checks.append(
            Check("baselines", False, f"{why}; name some, or set promote.beat_baselines false")
        )
    elif lost:
        findings.checks.append(
            Check(
                "baselines",
                False,
                f"{comparison['metric']} is not significantly above {', '.join(lost)}",
            )
        )
    else:
        findings.checks.append(
            Check(
                "baselines",
                True,
                f"{comparison['metric']} is above every baseline: {', '.join(shown.values())}",
            )
        )
