"""The champion gate: is a challenger better than the champion beyond doubt, nowhere much worse, above the baselines?

Why intervals and not means: on two thousand users the third digit is chance, and a gate that lets chance through moves
the champion for nothing. Both models are measured on the same users, so users are resampled in pairs.

Legend: B queries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from recsys.config import Config, PromoteConfig
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array, Histories, Queries, Split
from recsys.evaluation.baselines import fit_baselines
from recsys.evaluation.bootstrap import LEVEL, compare
from recsys.evaluation.metrics import QUERY_METRICS, parse_metric
from recsys.evaluation.ranking import Ranking, Scorer, rank
from recsys.evaluation.segments import Groups, user_segments
from recsys.evaluation.signals import signal_groups
from recsys.evaluation.trust import column_of, user_groups
from recsys.gate.drift import beyond


@dataclass(frozen=True)
class Check:
    """One rule of the gate, with its outcome as a sentence."""

    name: str
    passed: bool
    why: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Findings:
    """What the gate found: the rules, the numbers behind them, and what a person should know."""

    checks: list[Check] = field(default_factory=list)
    comparison: dict[str, Any] = field(default_factory=dict)
    baselines: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def reasons(self) -> list[str]:
        """Why the answer is no; empty when it is yes."""
        return [check.why for check in self.checks if not check.passed]


def ranked(scorer: Scorer, queries: Queries, config: Config) -> tuple[Ranking, Array]:
    """The ordinary ranking, and the main metric of every query in it."""
    kind, k = parse_metric(config.train.metric, tuple(QUERY_METRICS))
    ranking = rank(scorer, queries, k, config.evaluate.exclude_seen, config.evaluate.chunk_users)
    return ranking, QUERY_METRICS[kind](ranking.hits_BK, ranking.num_targets_B, k)


def segments_of(queries: Queries, dataset: PreparedDataset, config: Config, through: Split) -> Groups:
    """The segments of evaluation (activity, friends, new and cold users), ``evaluate.user_groups``, and every
    combination of present and missing signals, as in the certificate.
    """
    friends_U = np.unique(dataset.social_edges()[0])
    groups = user_segments(queries, friends_U, through, dataset.cold_U)
    users_B = queries.histories.users_U
    for column in config.evaluate.user_groups:
        values = column_of(dataset.user_features, column, "evaluate.user_groups", "users")
        masks = {label: (users_B >= 0) & mask_U[users_B] for label, mask_U in user_groups(values).items()}
        groups[column] = {label: mask_B for label, mask_B in masks.items() if mask_B.any()}
    groups["signals"] = signal_groups(queries, dataset, through)
    return groups


def against_champion(ours_B: Array, theirs_B: Array, groups: Groups, config: Config, findings: Findings) -> None:
    """The paired comparison as a whole and by segment, and the two rules on it, added to the findings."""
    settings, resamples, seed = config.promote, config.evaluate.bootstrap, config.seed
    means = {"challenger": float(ours_B.mean()), "champion": float(theirs_B.mean())}
    found = compare(ours_B, theirs_B, resamples, seed).to_json()
    segments = {
        group: {label: _segment(ours_B[m_B], theirs_B[m_B], settings, resamples, seed) for label, m_B in masks.items()}
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
    passed = found["low"] > bound
    asked = "above zero" if settings.rule == "better" else f"above {bound:+.4f}, a loss of {settings.margin:.1%}"
    return Check(
        settings.rule,
        passed,
        f"{found['metric']} {found['challenger']:.4f} against the champion's {found['champion']:.4f} on "
        f"{found['queries']:,} test users: difference {found['difference']:+.4f}, 95 % interval {found['low']:+.4f} to "
        f"{found['high']:+.4f}, p {found['p']:.3g}; promote.rule {settings.rule} wants the whole interval {asked}",
    )


def _segment(ours_b: Array, theirs_b: Array, settings: PromoteConfig, resamples: int, seed: int) -> dict[str, Any]:
    """A segment's numbers; ``worse``: more of the champion's metric is lost than allowed, and not by chance.

    Both conditions, since the mean of a few dozen users is often a twentieth lower by chance alone, and a small loss
    that is certain is what the bound allows.
    """
    ours, theirs = float(ours_b.mean()), float(theirs_b.mean())
    found = compare(ours_b, theirs_b, resamples, seed).to_json()
    loss = (theirs - ours) / theirs if theirs > 0 else 0.0
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


def _segments(segments: Mapping[str, Mapping[str, Mapping[str, Any]]], settings: PromoteConfig) -> Check:
    worse = [
        f"{label} ({entry['queries']:,} users: {entry['challenger']:.4f} against {entry['champion']:.4f}, "
        f"-{entry['loss']:.1%}, interval {entry['low']:+.4f} to {entry['high']:+.4f})"
        for group in segments.values()
        for label, entry in group.items()
        if entry["worse"]
    ]
    bound = f"by more than promote.max_segment_loss {settings.max_segment_loss:.1%} beyond chance"
    if worse:
        return Check("segments", False, f"worse {bound} for: {'; '.join(worse)}")
    num_judged = sum(entry["judged"] for group in segments.values() for entry in group.values())
    return Check("segments", True, f"none of {num_judged} segments is worse {bound}")


def against_drift(drift: Mapping[str, Any] | None, settings: PromoteConfig, findings: Findings) -> None:
    """The rule on the newer events of an update, added to the findings; a model of a whole training has none."""
    if not drift:
        return
    found = beyond(drift, settings)
    why = "; ".join(found) or f"{drift['events']:,} newer events are within the bounds of promote.max_…"
    findings.checks.append(Check("drift", not found, f"newer events have drifted: {why}" if found else why))


# ----------------------------------------------------------------------------------------------------------- baselines


def measure_baselines(
    ranking: Ranking, ours_B: Array, histories: Histories, num_items: int, config: Config, refit: bool
) -> dict[str, Any]:
    """The paired comparison with every baseline of the configuration, fitted on what the challenger was fitted on."""
    names, metric = config.evaluate.baselines, config.train.metric
    fitted = fit_baselines(names, histories, num_items, config.evaluate, metric, refit)
    asked = histories.queries(Split.TEST)
    against = {}
    for name, baseline in fitted.items():
        theirs, theirs_B = ranked(baseline, asked, config)
        assert len(theirs) == len(ranking), "the same queries count for all"
        against[name] = compare(ours_B, theirs_B, config.evaluate.bootstrap, config.seed).to_json()
    return {"metric": metric, "against": against}


def against_baselines(comparison: Mapping[str, Any], settings: PromoteConfig, findings: Findings) -> None:
    """The rule on baselines, by a comparison as in ``metrics.json``, added to the findings."""
    findings.baselines = dict(comparison)
    if not settings.beat_baselines:
        findings.notes.append("promote.beat_baselines is false: the baselines were not asked")
        return
    against = comparison.get("against", {})
    shown = {
        name: f"{name} ({entry['difference']:+.4f}, interval {entry['low']:+.4f} to {entry['high']:+.4f})"
        for name, entry in against.items()
    }
    lost = [shown[name] for name, entry in against.items() if not entry["low"] > 0]
    if not against:
        why = "there is no baseline to compare with (evaluate.baselines is empty)"
        findings.checks.append(Check("baselines", False, f"{why}; name some, or set promote.beat_baselines false"))
    elif lost:
        findings.checks.append(
            Check("baselines", False, f"{comparison['metric']} is not above {', '.join(lost)} beyond chance")
        )
    else:
        findings.checks.append(
            Check("baselines", True, f"{comparison['metric']} is above every baseline: {', '.join(shown.values())}")
        )
