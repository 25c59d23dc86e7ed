"""The validation metric that selects the epoch, with the same ranking and formula as the evaluation
on test.
"""

from __future__ import annotations

from dataclasses import dataclass

from recsys.config import EvaluateConfig, TrainConfig
from recsys.data.bounded import evaluated_by_shard
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array, Queries, Split
from recsys.data.repeats import no_targets
from recsys.errors import DataError
from recsys.evaluation.metrics import QUERY_METRICS, parse_metric
from recsys.evaluation.ranking import Scorer, countable, rank


def check_targets(dataset: PreparedDataset, evaluate: EvaluateConfig, seed: int) -> None:
    """Refuse data on which nothing can be validated or tested, before a training starts.

    Parameters
    ----------
    dataset : PreparedDataset
        The dataset of the training.
    evaluate : EvaluateConfig
        Evaluated users, and whether seen items are left out.
    seed : int
        Seed of the sample of evaluated users.

    Raises
    ------
    DataError
        Every target of a split is an item that its user had before, and ``evaluate.exclude_seen``
        leaves these out.
    """
    for split, named in ((Split.VALID, "validation"), (Split.TEST, "test")):
        chunks = evaluated_by_shard(dataset, split, evaluate, seed)
        if not any(len(countable(queries, evaluate.exclude_seen)[0]) for queries in chunks):
            raise DataError(no_targets(named))


@dataclass(frozen=True)
class Validator:
    """Computes one metric for every query; queries whose targets were all seen before have no
    value.

    Raises
    ------
    ConfigError
        ``train.metric`` is not an accuracy metric.
    """

    metric: str
    exclude_seen: bool
    chunk_users: int

    @staticmethod
    def of(train: TrainConfig, evaluate: EvaluateConfig) -> Validator:
        """The validator for ``train.metric`` and the settings of the evaluation."""
        parse_metric(train.metric, tuple(QUERY_METRICS))
        return Validator(train.metric, evaluate.exclude_seen, evaluate.chunk_users)

    def __call__(self, model: Scorer, queries: Queries) -> Array:
        """The metric of every query that counts: [B] float64."""
        kind, k = parse_metric(self.metric, tuple(QUERY_METRICS))
        ranking = rank(model, queries, k, self.exclude_seen, self.chunk_users)
        return QUERY_METRICS[kind](ranking.hits_BK, ranking.num_targets_B, k)
