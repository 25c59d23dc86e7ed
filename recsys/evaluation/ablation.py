"""Ablation: the effect of each granularity (alone and left out) and of each kind of fusion, on the
same test users.

Without retraining, λ of the trained model is changed: *off* sets one λ to zero, *alone* all but one
(the user vector is linear in z, so this is what a user without those signals gets), and *fusion*
replaces the trained λ by constants. This shows what the model uses, not what it needs: the other
granularities were trained together with the one left out. Retrained variants
(:mod:`pipelines.steps.retrained_ablation`) answer that question. Every difference is full model −
variant, paired over users.

Legend: B queries, K granularities, N items.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from recsys.config import Config, EvaluateConfig, ModelConfig, TrainConfig
from recsys.contributions import Contributions
from recsys.data.histories import Array, Queries
from recsys.evaluation.bootstrap import compare, intervals
from recsys.evaluation.metrics import QUERY_METRICS, parse_metric
from recsys.evaluation.ranking import Ranking, Scorer, rank


class AblatedModel(Protocol):
    """What an ablation needs of a trained model."""

    @property
    def names(self) -> Sequence[str]:
        """The granularities, in the order of K."""
        ...

    def contributions(self, queries: Queries) -> Contributions:
        """The output of every granularity for every query, and λ."""
        ...

    def scores_of(self, queries: Queries, names: Collection[str]) -> torch.Tensor:
        """Scores [b, N] with only these granularities at their trained
        weights, the others at zero.
        """
        ...

    def scores_at(self, queries: Queries, weights: Mapping[str, float]) -> torch.Tensor:
        """Scores [b, N] with constant weights instead of the trained fusion."""
        ...


@dataclass(frozen=True)
class Variant:
    """One recommender to compare with the full model: ``group`` is off, alone or fusion."""

    group: str
    name: str
    scorer: Scorer


@dataclass(frozen=True)
class Restricted:
    """The model with only some of its granularities, as a scorer."""

    model: AblatedModel
    names: tuple[str, ...]

    def scores(self, queries: Queries) -> torch.Tensor:
        """Scores [b, N] float32 for every query; −inf for items that cannot be recommended."""
        return self.model.scores_of(queries, self.names)


@dataclass(frozen=True)
class _Constant:
    model: AblatedModel
    weights: Mapping[str, float]

    def scores(self, queries: Queries) -> torch.Tensor:
        return self.model.scores_at(queries, self.weights)


def weight_variants(
    model: AblatedModel, section: ModelConfig, queries: Queries, chunk: int
) -> Iterator[Variant]:
    """Yield every variant that needs no training.

    Fusion: ``weighted`` takes λ from the configuration (S1's a, b, c; S5's λ), ``even`` uses one λ
    for all, and ``constant`` uses the mean of a gate over the queries, which shows what weights per
    user add.

    Parameters
    ----------
    model : AblatedModel
        The trained model.
    section : ModelConfig
        Its configuration: kind of fusion and configured weights.
    queries : Queries
        Queries over which the mean of a gate is taken.
    chunk : int
        Queries that are scored at once.

    Yields
    ------
    Variant
        One of the groups ``off`` and ``alone`` (with two or more granularities) or ``fusion``.
    """
    names = list(model.names)
    if len(names) > 1:
        for name in names:
            yield Variant(
                "off", name, Restricted(model, tuple(other for other in names if other != name))
            )
        for name in names:
            yield Variant("alone", name, Restricted(model, (name,)))
        configured = {name: entry.weight for name, entry in section.granularities.enabled().items()}
        if section.fusion.kind != "weighted":
            yield Variant("fusion", "weighted", _Constant(model, configured))
        yield Variant("fusion", "even", _Constant(model, dict.fromkeys(names, 1.0)))
        if section.fusion.kind == "gated":
            sums_K = sum(
                model.contributions(piece)[1].double().sum(dim=0) for piece in queries.chunks(chunk)
            )
            means = (torch.as_tensor(sums_K) / len(queries)).tolist()
            yield Variant(
                "fusion", "constant", _Constant(model, dict(zip(names, means, strict=True)))
            )


def compare_variants(
    ranking: Ranking,
    variants: Iterator[Variant],
    train: TrainConfig,
    evaluate: EvaluateConfig,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Group → name → ``value``, its ``interval``, and ``difference``, ``low``, ``high``, ``p`` of
    full − variant.

    Parameters
    ----------
    ranking : Ranking
        Ranking of the full model; the variants rank the same queries.
    variants : Iterator[Variant]
        Variants, scored one after the other.
    train : TrainConfig
        Main metric.
    evaluate : EvaluateConfig
        Bootstrap and chunk size.
    seed : int
        Seed of the bootstrap.
    """
    ours_B = main_values(ranking, train)
    report: dict[str, dict[str, Any]] = {}
    for variant in variants:
        values_B = ranked_values(variant.scorer, ranking.queries, train, evaluate)
        report.setdefault(variant.group, {})[variant.name] = _entry(values_B, evaluate, seed) | (
            compare(ours_B, values_B, evaluate.bootstrap, seed).to_json()
        )
    return report


def ablation_report(model: AblatedModel, ranking: Ranking, config: Config) -> dict[str, Any]:
    """The content of ``metrics.json``'s ``ablation``: the full model and every variant that needs
    no training.

    Parameters
    ----------
    model : AblatedModel
        The trained model.
    ranking : Ranking
        Its ranking of the test queries.
    config : Config
        Main metric, fusion, bootstrap and chunk size.

    Returns
    -------
    dict
        Plain JSON: ``metric``, ``fusion_kind``, ``full`` and ``weights_changed``.
    """
    variants = weight_variants(model, config.model, ranking.queries, config.evaluate.chunk_users)
    return {
        "metric": config.train.metric,
        "fusion_kind": config.model.fusion.kind,
        "full": _entry(main_values(ranking, config.train), config.evaluate, config.seed),
        "weights_changed": compare_variants(
            ranking, variants, config.train, config.evaluate, config.seed
        ),
    }


def main_values(ranking: Ranking, train: TrainConfig) -> Array:
    """The main metric of every query of a ranking: [B]."""
    kind, k = parse_metric(train.metric)
    return QUERY_METRICS[kind](ranking.hits_BK, ranking.num_targets_B, k)


def ranked_values(
    scorer: Scorer, queries: Queries, train: TrainConfig, evaluate: EvaluateConfig
) -> Array:
    """The main metric of a scorer for every query: [B]. The queries must be those of a ranking.

    Parameters
    ----------
    scorer : Scorer
        The recommender to rank with.
    queries : Queries
        Queries of a ranking, each with a target that counts.
    train : TrainConfig
        Main metric with its cut-off.
    evaluate : EvaluateConfig
        Whether seen items are left out, and the chunk size.

    Returns
    -------
    array, [B] float64
        One value per query.
    """
    k = parse_metric(train.metric).k
    return main_values(rank(scorer, queries, k, evaluate.exclude_seen, evaluate.chunk_users), train)


def _entry(values_B: Array, evaluate: EvaluateConfig, seed: int) -> dict[str, Any]:
    span = intervals({"value": values_B}, evaluate.bootstrap, seed)["value"]
    return {"value": float(values_B.mean()), "interval": span}
