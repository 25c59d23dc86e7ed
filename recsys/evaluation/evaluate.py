"""Evaluate a model on the test split against every baseline: one full ranking each, on the same
queries.

Why in one place: the comparison is valid only if split, masking, metrics and training events are
the same for all. Legend: B queries, b queries of a chunk, K granularities, N items, D width.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from recsys.config import Config, EvaluateConfig, TrainConfig
from recsys.contributions import Contributions
from recsys.data.audit import Audit, audit
from recsys.data.bounded import bounds, evaluated_queries, evaluated_users_V, fitted_histories
from recsys.data.dataset import PreparedDataset
from recsys.data.foresight import foresight
from recsys.data.histories import Array, Queries, Split
from recsys.errors import DataError
from recsys.evaluation.ablation import ablation_report
from recsys.evaluation.audit import check_fits
from recsys.evaluation.baseline import Baseline
from recsys.evaluation.baselines import fit_baselines, left_out
from recsys.evaluation.bootstrap import LEVEL, compare, intervals
from recsys.evaluation.members import Shares, member_report, shares
from recsys.evaluation.metrics import QUERY_METRICS, list_metrics, parse_metric, query_metrics
from recsys.evaluation.ranking import Ranking, Scorer, rank
from recsys.evaluation.segments import (
    COLD,
    new_item_report,
    paired_report,
    segment_report,
    user_segments,
)
from recsys.evaluation.signals import certificate, combinations, query_signals
from recsys.evaluation.targets import target_report, type_report
from recsys.evaluation.trust import trust_report

MODEL = "model"


class ScoredModel(Protocol):
    """What evaluation needs of a trained model."""

    @property
    def item_vectors_ND(self) -> torch.Tensor:
        """Item vectors; the diversity of all recommenders is measured in their space."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """The granularities, in the order of K."""
        ...

    @property
    def trained_names(self) -> Sequence[str]:
        """The granularities that are trained, not fitted in closed form."""
        ...

    def contributions(self, queries: Queries) -> Contributions:
        """The output of every granularity for every query, and λ [b, K], zero where its signal is
        missing.
        """
        ...

    def scores(self, queries: Queries) -> torch.Tensor:
        """Scores [b, N] float32."""
        ...

    def scores_of(self, queries: Queries, names: Collection[str]) -> torch.Tensor:
        """Scores [b, N] with only these granularities at their weights, the others at zero."""
        ...

    def scores_at(self, queries: Queries, weights: Mapping[str, float]) -> torch.Tensor:
        """Scores [b, N] with constant weights instead of the trained fusion."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """Everything that goes into ``metrics.json`` and the report, and the model's lists for the
    examples.
    """

    metric: str  # the main one
    model: dict[str, float]
    baselines: dict[str, dict[str, float]]
    segments: dict[str, Any]
    confidence: dict[str, Any]
    comparison: dict[str, Any]
    granularities: dict[str, dict[str, float]]
    data: dict[str, Any]
    timing: dict[str, Any]
    ranking: Ranking  # of the model on test
    extras: dict[str, Any]  # members, signals, trust, audit and, if asked for, ablation

    def to_json(self, timing: Mapping[str, float] | None = None) -> dict[str, Any]:
        """The content of ``metrics.json``; ``timing`` adds the times of earlier stages (prepare_s,
        train_s).
        """
        return {
            "metric": self.metric,
            "model": self.model,
            "baselines": self.baselines,
            "segments": self.segments,
            "confidence": self.confidence,
            "comparison": self.comparison,
            "timing": {**(timing or {}), **self.timing},
            "granularities": self.granularities,
            "data": self.data,
            **self.extras,
        }


def evaluate(
    model: ScoredModel,
    dataset: PreparedDataset,
    config: Config,
    refit: bool,
    stack: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Rank the test queries with the model, with the model without each granularity, and with every
    baseline.

    The constants of the baselines are chosen on validation. Novelty and "new to training" count the
    events on which the model was fitted. Intervals are over queries. Coverage and gini belong to
    the whole set of lists and have none, as repeated users in a resample bias both.

    Parameters
    ----------
    model : ScoredModel
        The trained model.
    dataset : PreparedDataset
        The dataset on which it was trained.
    config : Config
        Main metric, ``evaluate`` and the seed.
    refit : bool
        Whether the model was trained on training *and* validation events; the baselines then are as
        well.
    stack : Mapping[str, Any] | None
        What stacking chose (``TrainResult.choices["stack"]``), if the model is stacked.

    Raises
    ------
    ConfigError
        ``train.metric`` is not an accuracy metric.
    DataError
        The test split has no query with a target that counts.
    """
    started = time.perf_counter()
    settings = config.evaluate
    main = parse_metric(config.train.metric, tuple(QUERY_METRICS))
    ks = sorted({*settings.ks, main.k})
    checked = audit(dataset)
    through = Split.VALID if refit else Split.TRAIN
    baselines, ruled_out = _baselines(model, dataset, config, through, checked)
    queries = evaluated_queries(dataset, Split.TEST, config.evaluate, config.seed)
    rankings = _rankings(_scorers(model, baselines), queries, config.evaluate, max(ks))
    counts_N = dataset.item_counts_N(through)
    vectors_ND = model.item_vectors_ND.detach().cpu().float().numpy()
    values = {
        name: _values(ranking, counts_N, vectors_ND, ks) for name, ranking in rankings.items()
    }
    means = {
        name: {key: float(np.mean(value)) for key, value in of.items()}
        for name, of in values.items()
    }
    members = (
        shares(model, rankings[MODEL].queries, config.train, settings)
        if settings.ablate
        else Shares({}, {})
    )
    without = {name: members.without[name] for name in model.names if name in members.without}
    segments = _segments(rankings, values, without, dataset, config, through)
    targets = target_report(_scorers(model, baselines), rankings, queries, config, MODEL)
    segments = (
        {**segments, "items": {**segments.get("items", {}), **targets}} if targets else segments
    )
    types = type_report(rankings, queries, dataset.manifest.event_types, config.train, MODEL)
    segments = {**segments, "event_types": types} if types else segments
    confidence, comparison = _certainty(values, baselines, config)
    granularities = _granularities(model, rankings[MODEL].queries, without, config)
    extras = {
        "members": _members(model, values, members, granularities, baselines, stack or {}, config),
        "signals": _signals(rankings[MODEL], values, dataset, config, through),
        "audit": checked.to_json(),
        "trust": trust_report(rankings, values, dataset, config, through),
    }
    if settings.ablation != "none":
        extras["ablation"] = ablation_report(model, rankings[MODEL], config)
    return Evaluation(
        metric=config.train.metric,
        model=means.pop(MODEL),
        baselines={name: {**means[name]} for name in baselines},
        segments=segments,
        confidence=confidence,
        comparison=comparison,
        granularities=granularities,
        data=_data(rankings[MODEL], queries, dataset, config, through)
        | ({"baselines_left_out": ruled_out} if ruled_out else {}),
        timing={
            "evaluate_s": time.perf_counter() - started,
            **{f"baseline_{name}_s": baseline.seconds for name, baseline in baselines.items()},
        },
        ranking=rankings[MODEL],
        extras=extras,
    )


def _baselines(
    model: ScoredModel, dataset: PreparedDataset, config: Config, through: Split, checked: Audit
) -> tuple[dict[str, Baseline], dict[str, str]]:
    """The audited baselines, and those that the data rule out, with the reason; their events are
    released again.
    """
    histories = fitted_histories(dataset, config.evaluate, config.seed)
    evaluated_V = evaluated_users_V(dataset, config.evaluate, config.seed)
    names, refit = config.evaluate.baselines, through == Split.VALID
    fitted = fit_baselines(
        names,
        histories,
        dataset.num_items,
        config.evaluate,
        config.train.metric,
        refit,
        evaluated_V,
    )
    private = config.train.privacy.epsilon > 0  # its counts have noise, so they cannot be checked
    found = check_fits(None if private else model, fitted, histories, dataset, through)
    checked.checks += found.checks
    checked.unaudited += ["model_fit"] if private else []
    return fitted, left_out(names, histories, config.evaluate)


def _scorers(model: ScoredModel, baselines: Mapping[str, Baseline]) -> dict[str, Scorer]:
    return {MODEL: model, **baselines}


def _rankings(
    scorers: Mapping[str, Scorer], queries: Queries, evaluate: EvaluateConfig, k: int
) -> dict[str, Ranking]:
    found = {
        name: rank(scorer, queries, k, evaluate.exclude_seen, evaluate.chunk_users)
        for name, scorer in scorers.items()
    }
    if len(found[MODEL]) == 0:
        raise DataError(
            f"the test split has {len(queries)} queries, none with a target that counts "
            f"({found[MODEL].dropped_targets} targets were already seen); check data.split, or set "
            "evaluate.exclude_seen false to predict repeats"
        )
    return found


def _values(
    ranking: Ranking, counts_N: Array, vectors_ND: Array, ks: list[int]
) -> dict[str, Array | float]:
    """Every metric of one recommender, one value per query if there is one, in the order of
    ``metrics.json``.
    """
    accuracy = query_metrics(ranking.hits_BK, ranking.num_targets_B, ks)
    return {**accuracy, **list_metrics(ranking.items_BK, counts_N, vectors_ND, ks)}


def _by_query(values: Mapping[str, Array | float]) -> dict[str, Array]:
    return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}


def _accuracy(values: Mapping[str, Array | float]) -> dict[str, Array]:
    return {
        name: value
        for name, value in _by_query(values).items()
        if parse_metric(name).kind in QUERY_METRICS
    }


def _segments(
    rankings: Mapping[str, Ranking],
    values: Mapping[str, Mapping[str, Array | float]],
    without: Mapping[str, Array],
    dataset: PreparedDataset,
    config: Config,
    through: Split,
) -> dict[str, Any]:
    main, resamples, seed = config.train.metric, config.evaluate.bootstrap, config.seed
    friends_U = np.unique(dataset.social_edges()[0])
    groups = user_segments(rankings[MODEL].queries, friends_U, through, dataset.cold_U)
    accuracy = {name: _accuracy(of) for name, of in values.items()}
    report = segment_report(groups, accuracy, MODEL, main, resamples, seed)
    if COLD in groups.get("cold", {}):
        of_main = _of_main(values, config.train)
        report["cold"][COLD] |= paired_report(
            groups["cold"][COLD], of_main, without, MODEL, resamples, seed
        )
    new_items = new_item_report(rankings, dataset.item_counts_N(through), MODEL, main)
    return {**report, "items": new_items} if new_items else report


def _certainty(
    values: Mapping[str, Mapping[str, Array | float]],
    baselines: Mapping[str, Baseline],
    config: Config,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Intervals of every recommender, and the paired comparison of
    the model with every baseline.
    """
    main, resamples, seed = config.train.metric, config.evaluate.bootstrap, config.seed
    confidence = {
        "level": LEVEL,
        "resamples": resamples,
        MODEL: intervals(_by_query(values[MODEL]), resamples, seed),
        "baselines": {
            name: intervals(_by_query(values[name]), resamples, seed) for name in baselines
        },
    }
    if not baselines:
        return confidence, {
            "metric": main,
            "best_baseline": None,
            "best_on_test": None,
            "best_on_validation": None,
            "against": {},
        }
    ours = _of_main(values, config.train)
    validation = {name: baseline.validation for name, baseline in baselines.items()}
    best = max(baselines, key=lambda name: float(ours[name].mean()))
    on_validation = max(
        validation,
        key=lambda name: -1.0 if validation[name] is None else float(validation[name] or 0.0),
    )
    comparison = {
        "metric": main,
        "best_baseline": best,
        "chosen_by": f"test {main}",
        "best_on_test": best,
        "best_on_validation": on_validation,
        "against": {
            name: {
                **compare(ours[MODEL], ours[name], resamples, seed).to_json(),
                "validation": validation[name],
                "constants": baselines[name].constants,
            }
            for name in baselines
        },
    }
    return confidence, comparison


def _members(
    model: ScoredModel,
    values: Mapping[str, Mapping[str, Array | float]],
    members: Shares,
    granularities: Mapping[str, Mapping[str, float]],
    baselines: Mapping[str, Baseline],
    stack: Mapping[str, Any],
    config: Config,
) -> dict[str, Any]:
    ours = _of_main(values, config.train)
    weights = {name: entry["weight"] for name, entry in granularities.items()}
    beside = {name: (baseline.validation, ours[name]) for name, baseline in baselines.items()}
    return member_report(ours[MODEL], members, model, weights, stack, beside, config)


def _signals(
    ranking: Ranking,
    values: Mapping[str, Mapping[str, Array | float]],
    dataset: PreparedDataset,
    config: Config,
    through: Split,
) -> list[dict[str, Any]]:
    found = combinations(query_signals(ranking.queries, dataset, through), len(ranking))
    return certificate(
        found, _of_main(values, config.train), MODEL, config.evaluate.bootstrap, config.seed
    )


def _of_main(
    values: Mapping[str, Mapping[str, Array | float]], train: TrainConfig
) -> dict[str, Array]:
    """The main metric of every recommender, one value per query."""
    return {name: _accuracy(of)[train.metric] for name, of in values.items()}


def _granularities(
    model: ScoredModel, queries: Queries, without: Mapping[str, Array], config: Config
) -> dict[str, dict[str, float]]:
    """Weight of every granularity and, if asked for, the main metric without it.

    The weight is the mean of λ over the ranked queries, zero where the signal was missing.
    """
    sums_K = sum(
        model.contributions(chunk)[1].double().sum(dim=0)
        for chunk in queries.chunks(config.evaluate.chunk_users)
    )
    weights_K = torch.as_tensor(sums_K) / len(queries)
    result = {
        name: {"weight": weight}
        for name, weight in zip(model.names, weights_K.tolist(), strict=True)
    }
    for name, values_B in without.items():
        result[name][f"{config.train.metric}_without"] = float(values_B.mean())
    return result


def _data(
    ranking: Ranking, queries: Queries, dataset: PreparedDataset, config: Config, through: Split
) -> dict[str, Any]:
    sampled = bounds(dataset, config.evaluate, config.seed)
    return {
        "name": dataset.manifest.name,
        "content_hash": dataset.manifest.content_hash,
        "users": dataset.num_users,
        "items": dataset.num_items,
        "split": dataset.manifest.split,
        "fitted_through": through.name.lower(),
        "exclude_seen": config.evaluate.exclude_seen,
        "asked_queries": len(queries),
        "queries_with_targets": int(np.count_nonzero(queries.num_targets_B)),
        "queries": len(ranking),
        "targets": int(ranking.num_targets_B.sum()),
        "dropped_targets": ranking.dropped_targets,
        "dropped_queries": ranking.dropped_queries,
        **({"bounds": sampled} if sampled else {}),
        **({"foresight": seen.to_json()} if (seen := foresight(dataset)) else {}),
    }
