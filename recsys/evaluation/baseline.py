"""The base class of baselines: recommenders with a few constants that are chosen on validation.

Legend: U users, N items, b queries.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp
import torch

from recsys.config import EvaluateConfig
from recsys.data.histories import Array, Histories, Queries

Constants = dict[str, Any]


class Baseline(ABC):
    """A recommender with a grid of constants, and a fit that is fast for all of them."""

    name: ClassVar[str]
    # the first is the default if there is no validation query
    grid: ClassVar[tuple[Constants, ...]] = ({},)

    def __init__(self, config: EvaluateConfig) -> None:
        self.config = config
        self.constants: Constants = dict(self.grid[0])
        # metric of the chosen constants on validation, fitted on training only
        self.validation: float | None = None
        self.seconds = 0.0  # choice and fits together

    @classmethod
    def lacks(cls, histories: Histories, config: EvaluateConfig) -> str:
        """What the data or the settings lack for this baseline; empty if it can be evaluated."""
        return ""

    @abstractmethod
    def fit(self, train: Histories, num_items: int) -> None:
        """Fit on all events given, with the current constants."""

    @abstractmethod
    def scores(self, queries: Queries) -> torch.Tensor:
        """Scores [b, N] float32 from the visible history."""

    def fits(self, train: Histories, num_items: int) -> Iterator[Constants]:
        """Fit with each entry of the grid in turn, and yield it; overridden if the entries share
        work.

        Yields
        ------
        Constants
            The entry that the baseline is fitted with until the next one is asked for.
        """
        for constants in self.grid:
            self.constants = dict(constants)
            self.fit(train, num_items)
            yield self.constants


def matrix(histories: Histories, num_items: int) -> sp.csr_matrix:
    """Binary user–item matrix X [U, N] float32 of the events."""
    rows = np.repeat(np.arange(len(histories)), histories.lengths_U)
    ones = np.ones(len(rows), dtype=np.float32)
    interactions = sp.csr_matrix(
        (ones, (rows, histories.items_E)), shape=(len(histories), num_items)
    )
    interactions.sum_duplicates()
    interactions.data[:] = 1.0
    return interactions


def users_of_items(interactions_UN: sp.csr_matrix) -> Array:
    """Users of every item: [N] float32."""
    return np.asarray(interactions_UN.sum(axis=0), dtype=np.float32).ravel()
