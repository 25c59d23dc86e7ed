"""Evaluate a model on the test split against every baseline: one full ranking each, on the same
queries.

Why in one place: the comparison is valid only if split, masking, metrics and training events are
the same for all. Legend: B queries, b queries of a chunk, K granularities, N items, D width.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from recsys.config import Config, EvaluateConfig, TrainConfig
from recsys.data.bounded import bounds, evaluated_queries, evaluated_users_V, fitted_histories
from recsys.data.dataset import PreparedDataset
from recsys.data.foresight import foresight
from recsys.data.histories import Array, Queries, Split
from recsys.data.leak_audit import Audit, audit
from recsys.errors import DataError
from recsys.evaluation.ablation import ablation_report
from recsys.evaluation.baseline import Baseline
from recsys.evaluation.baselines import fit_baselines, left_out
from recsys.evaluation.comparison import accuracy_values, certainty, main_values
from recsys.evaluation.fit_audit import check_fits
from recsys.evaluation.member_scores import (
    Shares,
    SummedModel,
    member_report,
    shares,
    weights_alone,
)
from recsys.evaluation.metrics import (
    QUERY_METRICS,
    list_metrics,
    main_first,
    outside_kinds,
    parse_metric,
    query_metrics,
)
from recsys.evaluation.ranking import Ranking, Scorer, rank
from recsys.evaluation.segments import (
    COLD,
    new_item_report,
    paired_report,
    segment_report,
    user_segments,
)
from recsys.evaluation.signal_certificate import certificate, combinations, query_signals
from recsys.evaluation.targets import target_report, type_report
from recsys.evaluation.trust import trust_report

MODEL = "model"


class ScoredModel(SummedModel, Protocol):
    """What evaluation needs of a trained model."""

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
    parse_metric(config.train.metric, tuple(QUERY_METRICS))
    checked = audit(dataset)
    through = Split.VALID if refit else Split.TRAIN
    baselines, ruled_out = _baselines(
        model, dataset, config.train, config.evaluate, config.seed, through, checked
    )
    test = _ranked(model, baselines, dataset, config, through)
    members = _member_shares(test)
    without = {name: members.without[name] for name in model.names if name in members.without}
    confidence, comparison = certainty(
        test.values, baselines, MODEL, config.train, config.evaluate, config.seed
    )
    granularities = _granularities(members.weights, without, config.train.metric)
    extras = _extras(test, _members(test, members, granularities, stack or {}), checked)
    return Evaluation(
        metric=config.train.metric,
        model=_means(test.values[MODEL], config.train.metric),
        baselines={name: _means(test.values[name], config.train.metric) for name in baselines},
        segments=_segments(test, without),
        confidence=confidence,
        comparison=comparison,
        granularities=granularities,
        data=_data(test) | ({"baselines_left_out": ruled_out} if ruled_out else {}),
        timing={
            "evaluate_s": time.perf_counter() - started,
            **{f"baseline_{name}_s": baseline.seconds for name, baseline in baselines.items()},
        },
        ranking=test.ranking,
        extras=extras,
    )


@dataclass(frozen=True)
class _Test:
    """The test queries, ranked by the model and every baseline."""

    model: ScoredModel
    baselines: Mapping[str, Baseline]
    dataset: PreparedDataset
    config: Config
    through: Split  # the last split on which the recommenders were fitted
    queries: Queries
    rankings: Mapping[str, Ranking]
    values: Mapping[str, Mapping[str, Array | float]]  # by recommender and metric

    @property
    def scorers(self) -> dict[str, Scorer]:
        """The recommenders by name."""
        return {MODEL: self.model, **self.baselines}

    @property
    def ranking(self) -> Ranking:
        """The model's."""
        return self.rankings[MODEL]


def _ranked(
    model: ScoredModel,
    baselines: Mapping[str, Baseline],
    dataset: PreparedDataset,
    config: Config,
    through: Split,
) -> _Test:
    """Rank the test queries with every recommender, and compute all metrics."""
    main = parse_metric(config.train.metric, tuple(QUERY_METRICS))
    ks = sorted({*config.evaluate.ks, main.k})
    queries = evaluated_queries(dataset, Split.TEST, config.evaluate, config.seed)
    rankings = _rankings({MODEL: model, **baselines}, queries, config.evaluate, max(ks))
    counts_N = dataset.item_counts_N(through)
    vectors_ND = model.item_vectors_ND.detach().cpu().float().numpy()
    more = outside_kinds(config.train.metric, config.evaluate.metrics)
    values = {
        name: _values(ranking, counts_N, vectors_ND, ks, more) for name, ranking in rankings.items()
    }
    return _Test(model, baselines, dataset, config, through, queries, rankings, values)


def _extras(test: _Test, members: dict[str, Any], checked: Audit) -> dict[str, Any]:
    """The reports besides the metrics, in the order of ``metrics.json``."""
    extras = {
        "members": members,
        "signals": _signals(test),
        "audit": checked.to_json(),
        "trust": trust_report(
            test.rankings,
            test.values,
            test.dataset,
            test.config.train,
            test.config.evaluate,
            test.config.seed,
            test.through,
        ),
    }
    if test.config.evaluate.ablation != "none":
        extras["ablation"] = ablation_report(test.model, test.ranking, test.config)
    return extras


def _means(values: Mapping[str, Array | float], main: str) -> dict[str, float]:
    return main_first({name: float(np.mean(value)) for name, value in values.items()}, main)


def _baselines(
    model: ScoredModel,
    dataset: PreparedDataset,
    train: TrainConfig,
    evaluate: EvaluateConfig,
    seed: int,
    through: Split,
    checked: Audit,
) -> tuple[dict[str, Baseline], dict[str, str]]:
    """The audited baselines, and those that the data rule out, with the reason; their events are
    released again.
    """
    histories = fitted_histories(dataset, evaluate, seed)
    evaluated_V = evaluated_users_V(dataset, evaluate, seed)
    names, refit = evaluate.baselines, through == Split.VALID
    fitted = fit_baselines(
        names,
        histories,
        dataset.num_items,
        evaluate,
        train.metric,
        refit,
        evaluated_V,
    )
    private = train.privacy.epsilon > 0  # its counts have noise, so they cannot be checked
    found = check_fits(None if private else model, fitted, histories, dataset, through)
    checked.checks += found.checks
    checked.unaudited += ["model_fit"] if private else []
    return fitted, left_out(names, histories, evaluate)


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
    ranking: Ranking, counts_N: Array, vectors_ND: Array, ks: list[int], more: list[str]
) -> dict[str, Array | float]:
    """Every metric of one recommender, one value per query if there is one, in the order of
    ``metrics.json``.
    """
    accuracy = query_metrics(ranking.hits_BK, ranking.num_targets_B, ks, more)
    return {**accuracy, **list_metrics(ranking.items_BK, counts_N, vectors_ND, ks)}


def _segments(test: _Test, without: Mapping[str, Array]) -> dict[str, Any]:
    """Metrics by group of users, by group of items and by type of the target."""
    config, dataset = test.config, test.dataset
    main, resamples, seed = config.train.metric, config.evaluate.bootstrap, config.seed
    friends_U = np.unique(dataset.social_edges()[0])
    groups = user_segments(test.ranking.queries, friends_U, test.through, dataset.cold_U)
    accuracy = {name: accuracy_values(of) for name, of in test.values.items()}
    report = segment_report(groups, accuracy, MODEL, main, resamples, seed)
    if COLD in groups.get("cold", {}):
        of_main = main_values(test.values, config.train)
        report["cold"][COLD] |= paired_report(
            groups["cold"][COLD], of_main, without, MODEL, resamples, seed
        )
    new_items = new_item_report(test.rankings, dataset.item_counts_N(test.through), MODEL, main)
    targets = target_report(
        test.scorers, test.rankings, test.queries, config.train, config.evaluate, MODEL
    )
    types = type_report(
        test.rankings, test.queries, dataset.manifest.event_types, config.train, MODEL
    )
    items = {**(new_items or {}), **(targets or {})}
    return {
        **report,
        **({"items": items} if items else {}),
        **({"event_types": types} if types else {}),
    }


def _member_shares(test: _Test) -> Shares:
    """The main metric with every member alone and without it, if it should be measured."""
    queries, evaluate = test.ranking.queries, test.config.evaluate
    if not evaluate.ablate:
        return weights_alone(test.model, queries, evaluate.chunk_users)
    return shares(test.model, queries, test.config.train, evaluate)


def _members(
    test: _Test,
    members: Shares,
    granularities: Mapping[str, Mapping[str, float]],
    stack: Mapping[str, Any],
) -> dict[str, Any]:
    of_main = main_values(test.values, test.config.train)
    weights = {name: entry["weight"] for name, entry in granularities.items()}
    beside = {
        name: (baseline.validation, of_main[name]) for name, baseline in test.baselines.items()
    }
    return member_report(of_main[MODEL], members, test.model, weights, stack, beside, test.config)


def _signals(test: _Test) -> list[dict[str, Any]]:
    found = combinations(
        query_signals(test.ranking.queries, test.dataset, test.through), len(test.ranking)
    )
    of_main = main_values(test.values, test.config.train)
    return certificate(found, of_main, MODEL, test.config.evaluate.bootstrap, test.config.seed)


def _granularities(
    weights: Mapping[str, float], without: Mapping[str, Array], metric: str
) -> dict[str, dict[str, float]]:
    """Weight of every granularity and, if it was measured, the main metric without it."""
    result = {name: {"weight": weight} for name, weight in weights.items()}
    for name, values_B in without.items():
        result[name][f"{metric}_without"] = float(values_B.mean())
    return result


def _data(test: _Test) -> dict[str, Any]:
    dataset, ranking, evaluate = test.dataset, test.ranking, test.config.evaluate
    sampled = bounds(dataset, evaluate, test.config.seed)
    return {
        "name": dataset.manifest.name,
        "content_hash": dataset.manifest.content_hash,
        "users": dataset.num_users,
        "items": dataset.num_items,
        "split": dataset.manifest.split,
        "fitted_through": test.through.name.lower(),
        "exclude_seen": evaluate.exclude_seen,
        "asked_queries": len(test.queries),
        "queries_with_targets": int(np.count_nonzero(test.queries.num_targets_B)),
        "queries": len(ranking),
        "queries_without_history": int((ranking.queries.histories.lengths_U == 0).sum()),
        "targets": int(ranking.num_targets_B.sum()),
        "dropped_targets": ranking.dropped_targets,
        "dropped_queries": ranking.dropped_queries,
        **({"bounds": sampled} if sampled else {}),
        **({"foresight": seen.to_json()} if (seen := foresight(dataset)) else {}),
    }
