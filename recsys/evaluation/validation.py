"""The validation metric that chooses the epoch: the same ranking and formula as the evaluation on test."""

from __future__ import annotations

from dataclasses import dataclass

from recsys.config import Config
from recsys.data.histories import Array, Queries
from recsys.evaluation.metrics import QUERY_METRICS, parse_metric, query_metrics
from recsys.evaluation.ranking import Scorer, rank


@dataclass(frozen=True)
class Validator:
    """Values of one metric, a query each; queries whose targets were all seen before have none.

    Raises:
        ConfigError: ``train.metric`` is no accuracy metric.
    """

    metric: str
    exclude_seen: bool
    chunk_users: int

    @staticmethod
    def of(config: Config) -> Validator:
        parse_metric(config.train.metric, tuple(QUERY_METRICS))
        return Validator(config.train.metric, config.evaluate.exclude_seen, config.evaluate.chunk_users)

    def __call__(self, model: Scorer, queries: Queries) -> Array:
        k = parse_metric(self.metric, tuple(QUERY_METRICS)).k
        ranking = rank(model, queries, k, self.exclude_seen, self.chunk_users)
        return query_metrics(ranking.hits_BK, ranking.num_targets_B, [k])[self.metric]
