"""Trainings of generated data through the product's own loop, without Ray."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch

from recsys.config import Config, build_config
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array, Queries, Split
from recsys.evaluation.ranking import Scorer
from recsys.training.checkpoint import Progress
from recsys.training.context import TrainContext
from recsys.training.loop import Pass

ATTENTION: Final = {"enabled": True, "layers": 2, "heads": 2}


def settings(
    dataset: PreparedDataset,
    granularities: Mapping[str, Any],
    *,
    model: Mapping[str, Any] | None = None,
    train: Mapping[str, Any] | None = None,
) -> Config:
    """A configuration of these granularities, in float32 and without a refit.

    Parameters
    ----------
    dataset : PreparedDataset
        The dataset to train on.
    granularities : Mapping
        Their sections.
    model, train : Mapping or None
        Further keys of these sections.
    """
    tree = {
        "data": {"dir": dataset.root},
        "model": {"width": 64, "max_history": 50, **(model or {}), "granularities": granularities},
        "train": {"epochs": 1, "precision": "float32", "refit": False, **(train or {})},
    }
    return build_config(tree)


def no_metric(scorer: Scorer, queries: Queries) -> Array:
    """A validation that reads nothing: these trainings are never selected."""
    return np.zeros(len(queries))


def a_pass(
    config: Config, dataset: PreparedDataset, device: torch.device, rank: int = 0, workers: int = 1
) -> Pass:
    """The training of a fresh model, on a device."""
    context = TrainContext(rank, workers, device)
    return Pass(config, dataset, Split.TRAIN, no_metric, context, Progress())
