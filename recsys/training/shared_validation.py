"""The validation metric of an epoch over the queries of all workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from recsys.config import EvaluateConfig
from recsys.data.bounded import evaluated_by_shard
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array, Queries, Split
from recsys.data.repeats import no_targets, repeats_line
from recsys.errors import DataError
from recsys.model import FrozenModel
from recsys.training.context import TrainContext

# (scorer, queries) → the validation metric of every query [B]
Validate = Callable[[Any, Queries], Array]


class SharedValidation:
    """Each worker validates its share of the queries, and all get the same mean."""

    def __init__(
        self,
        evaluate: EvaluateConfig,
        seed: int,
        dataset: PreparedDataset,
        validate: Validate,
        context: TrainContext,
    ) -> None:
        self.validate = validate
        self._evaluate, self._seed = evaluate, seed
        self._dataset, self._context = dataset, context
        # an interrupted training has noted it already
        self._notes_repeats = context.resume_from is None

    def mean(self, frozen: FrozenModel) -> float:
        """The mean of the metric over all queries that have a value.

        Raises
        ------
        DataError
            No query has a value.
        """
        sums = np.zeros(3)
        for queries in evaluated_by_shard(self._dataset, Split.VALID, self._evaluate, self._seed):
            rank, world_size = self._context.rank, self._context.world_size
            mine = queries.take(np.arange(rank, len(queries), world_size))
            restrict = getattr(self.validate, "evaluated", None)  # a validation on some users only
            if restrict is not None:
                mine = restrict(mine)
            values = self.validate(frozen, mine) if len(mine) else np.zeros(0)
            sums += np.array([values.sum(), len(values), np.count_nonzero(mine.num_targets_B)])
        total = self._context.sum(torch.tensor(sums, dtype=torch.float64))
        if total[1] == 0:
            raise DataError(no_targets("validation"))
        repeats = repeats_line("validation", int(total[2] - total[1]), int(total[2]))
        if self._notes_repeats and repeats:
            self._context.note(repeats)
        self._notes_repeats = False
        return float(total[0] / total[1])
