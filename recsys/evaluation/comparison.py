"""How certain the figures of an evaluation are, and how the model compares with the baselines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from recsys.config import EvaluateConfig, TrainConfig
from recsys.data.histories import Array
from recsys.evaluation.baseline import Baseline
from recsys.evaluation.bootstrap import LEVEL, compare, intervals
from recsys.evaluation.metrics import QUERY_METRICS, parse_metric


def certainty(
    values: Mapping[str, Mapping[str, Array | float]],
    baselines: Mapping[str, Baseline],
    model: str,
    train: TrainConfig,
    evaluate: EvaluateConfig,
    seed: int,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Intervals of every recommender, and the paired comparison of the model with every baseline.

    ``model`` is the name of the model among the recommenders of ``values``.

    Parameters
    ----------
    values : Mapping of str to (Mapping of str to array or float)
        Recommender → metric → one value per query [B], or one value for all.
    baselines : Mapping of str to Baseline
        Fitted baselines by name; all are in ``values``.
    model : str
        Name of the model in ``values``.
    train : TrainConfig
        Main metric.
    evaluate : EvaluateConfig
        Number of resamples.
    seed : int
        Seed of the resamples.

    Returns
    -------
    confidence : dict
        ``level``, ``resamples``, and intervals of the model and the baselines.
    comparison : dict
        Paired differences on the main metric, and the best baseline on test and on validation; the
        latter is None without validation queries.
    """
    main, resamples = train.metric, evaluate.bootstrap
    confidence = {
        "level": LEVEL,
        "resamples": resamples,
        "model": intervals(by_query(values[model]), resamples, seed),
        "baselines": {
            name: intervals(by_query(values[name]), resamples, seed) for name in baselines
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
    of_main = main_values(values, train)
    validation = {name: baseline.validation for name, baseline in baselines.items()}
    best = max(baselines, key=lambda name: float(of_main[name].mean()))
    measured = {name: value for name, value in validation.items() if value is not None}
    comparison = {
        "metric": main,
        "resamples": resamples,
        "best_baseline": best,
        "chosen_by": f"test {main}",
        "best_on_test": best,
        "best_on_validation": max(measured, key=lambda name: measured[name], default=None),
        "against": {
            name: {
                **compare(of_main[model], of_main[name], resamples, seed).to_json(),
                "validation": validation[name],
                "constants": baselines[name].constants,
            }
            for name in baselines
        },
    }
    return confidence, comparison


def by_query(values: Mapping[str, Array | float]) -> dict[str, Array]:
    """The metrics that have a value for every query."""
    return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}


def accuracy_values(values: Mapping[str, Array | float]) -> dict[str, Array]:
    """The accuracy metrics, one value per query."""
    return {
        name: value
        for name, value in by_query(values).items()
        if parse_metric(name).kind in QUERY_METRICS
    }


def main_values(
    values: Mapping[str, Mapping[str, Array | float]], train: TrainConfig
) -> dict[str, Array]:
    """The main metric of every recommender, one value per query."""
    return {name: accuracy_values(of)[train.metric] for name, of in values.items()}
