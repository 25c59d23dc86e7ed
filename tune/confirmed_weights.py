"""Whether searched fusion weights are better: the verdict, and the evaluation that confirms it.

Legend: Q queries, K granularities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from recsys.config import Config, EvaluateConfig, TrainConfig, TuneConfig
from recsys.data.bounded import evaluated_queries
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array, Split
from recsys.errors import DataError
from recsys.evaluation.bootstrap import compare
from recsys.evaluation.metrics import (
    list_metrics,
    outside_kinds,
    parse_metric,
    query_metrics,
)
from recsys.evaluation.ranking import rank
from recsys.model import Encoders, FrozenModel
from recsys.training.checkpoint import TrainResult
from tune.fusion_search import CrossFit, Setting, Trials
from tune.pareto import BEST
from tune.weights import WeightSpace, refitted, today_of


@dataclass(frozen=True)
class Found:
    """The result of a search."""

    picked: Setting
    crossed: CrossFit
    seconds: float  # duration of the search on all users
    cross_seconds: float


def verdict(train: TrainConfig, tune: TuneConfig, trials: Trials, found: Found) -> tuple[bool, str]:
    """Whether the model changes, and why.

    Parameters
    ----------
    train : TrainConfig
        Section with the main metric.
    tune : TuneConfig
        Section with ``fusion.pick`` and ``fusion.within``.
    trials : Trials
        The measured settings, the current one first.
    found : Found
        The picked setting and its cross-fitted gain.

    Returns
    -------
    tuple of (bool, str)
        Whether the model changes, and the reason.
    """
    settings, name = tune.fusion, train.metric
    gain = found.crossed.metric.difference
    if found.picked.shares_K is None:
        return False, "no other setting is better than the current weights"
    if settings.pick == BEST:
        reason = f"cross-fitted {name} {gain:+.5f}"
        return (
            (True, f"{reason} is above zero")
            if gain > 0
            else (False, f"{reason} is not above zero: it may be chance")
        )
    more, bound = found.crossed.lists[settings.pick], -settings.within * trials.today.metric
    reason = (
        f"cross-fitted {settings.pick} {more:+.4f} and {name} {gain:+.5f}, allowed {bound:+.5f}"
    )
    return (
        (True, f"{reason}: more of it at that price")
        if more > 0 and gain >= bound
        else (False, reason)
    )


def confirmed(
    config: Config,
    dataset: PreparedDataset,
    trained: TrainResult,
    frozen: FrozenModel,
    trials: Trials,
    found: Found,
) -> tuple[dict[str, Any], Tensor]:
    """The content of ``fusion.json``, and the chosen values.

    The decision is made before the evaluation on test.

    Parameters
    ----------
    config : Config
        The configuration.
    dataset : PreparedDataset
        The dataset of the model.
    trained : TrainResult
        The model of the run folder; it is evaluated on test.
    frozen : FrozenModel
        The model without validation events; it is evaluated on validation.
    trials : Trials
        The measured settings.
    found : Found
        The picked setting and its cross-fitted gain.

    Returns
    -------
    tuple of (dict[str, Any], Tensor)
        The content, and the values of the picked setting (the current ones if none is better),
        float [K].

    Raises
    ------
    DataError
        The validation or the test split has no query with a target that counts.
    """
    changed, why = verdict(config.train, config.tune, trials, found)
    space, picked, ours = trials.space, found.picked, trained.frozen.encoders
    values_K = space.today_K if picked.shares_K is None else space.values(picked.shares_K)
    measures = (config.train, config.evaluate, config.seed)
    valid, whole = evaluated(
        *measures, dataset, frozen, space.for_model(frozen.encoders, values_K), Split.TRAIN
    )
    through = Split.VALID if trained.refit else Split.TRAIN
    test, _ = evaluated(
        *measures, dataset, trained.frozen, space.for_model(ours, values_K), through, Split.TEST
    )
    users = trials.cache.queries.histories.users_U.tolist()
    # the evaluation may rank a sample of users (evaluate.max_users), without some cached ones
    differences = [
        abs(whole[user] - value)
        for user, value in zip(users, picked.values_Q.tolist(), strict=True)
        if user in whole
    ]
    naive = compare(picked.values_Q, trials.today.values_Q, config.evaluate.bootstrap, config.seed)
    crossed = {**found.crossed.metric.to_json(), "lists": found.crossed.lists}
    report = {
        "metric": config.train.metric,
        "kind": config.model.fusion.kind,
        "pick": config.tune.fusion.pick,
        "within": config.tune.fusion.within,
        "changed": changed,
        "why": why,
        "today": described(space, trials.today, space.today_K, ours),
        "picked": described(space, picked, values_K, ours),
        "gain": {"naive": naive.to_json(), "cross_fitted": crossed, "test": test["gain"]},
        "validation": {
            **valid,
            "cached_users": len(users),
            "largest_difference_from_cache": max(differences, default=None),
        },
        "test": test,
        "search": {
            "settings": len(trials.tried),
            "seconds": found.seconds,
            "a_minute": 60 * len(trials.tried) / found.seconds,
            "cross_fit_seconds": found.cross_seconds,
            "ranked_whole": trials.whole / (len(trials.tried) * len(trials.cache)),
        },
        "front": [described(space, each) for each in trials.front()],
        "settings": [described(space, each) for each in trials.tried],
    }
    return report, values_K


def evaluated(
    train: TrainConfig,
    evaluate: EvaluateConfig,
    seed: int,
    dataset: PreparedDataset,
    frozen: FrozenModel,
    changed: dict[str, Tensor],
    through: Split,
    split: Split = Split.VALID,
) -> tuple[dict[str, Any], dict[int, float]]:
    """Evaluate a model with current and with changed weights.

    Parameters
    ----------
    train : TrainConfig
        Main metric.
    evaluate : EvaluateConfig
        Cut-offs, metrics and rules of the evaluation.
    seed : int
        Seed of the sample of users.
    dataset : PreparedDataset
        The dataset of the model.
    frozen : FrozenModel
        The model.
    changed : dict[str, Tensor]
        Changed parameters by name.
    through : Split
        Split through which item counts are taken, for the list metrics.
    split : Split
        The split to evaluate on.

    Returns
    -------
    tuple
        All metrics of both with the gain, and the main metric of every user with the changed
        weights.

    Raises
    ------
    DataError
        The split has no query with a target that counts.
    """
    main = parse_metric(train.metric)
    ks = sorted({*evaluate.ks, main.k})
    more = outside_kinds(train.metric, evaluate.metrics)
    counts_N = dataset.item_counts_N(through)
    vectors_ND = frozen.item_vectors_ND.cpu().float().numpy()
    queries = evaluated_queries(dataset, split, evaluate, seed)
    found: dict[str, Any] = {}
    values: list[Array] = []
    for name, parameters in {"today": {}, "picked": changed}.items():
        with refitted(frozen.encoders, parameters):
            ranking = rank(frozen, queries, max(ks), evaluate.exclude_seen, evaluate.chunk_users)
        if not len(ranking):
            raise DataError(
                f"the {split.name.lower()} split of {dataset.root} has no query with a target that"
                " counts"
            )
        accuracy = query_metrics(ranking.hits_BK, ranking.num_targets_B, ks, more)
        values.append(accuracy[train.metric])
        every = {**accuracy, **list_metrics(ranking.items_BK, counts_N, vectors_ND, ks)}
        found[name] = {key: float(np.mean(value)) for key, value in every.items()}
    gain = compare(values[1], values[0], evaluate.bootstrap, seed)
    return {**found, "gain": gain.to_json(), "users": len(values[0])}, dict(
        zip(ranking.queries.histories.users_U.tolist(), values[1].tolist(), strict=True)
    )


def described(
    space: WeightSpace,
    setting: Setting,
    values_K: Tensor | None = None,
    encoders: Encoders | None = None,
) -> dict[str, Any]:
    """A setting as plain numbers; with ``encoders``, also the resulting weights of the model to
    register.

    Parameters
    ----------
    space : WeightSpace
        Turns shares into parameters.
    setting : Setting
        The setting.
    values_K : Tensor | None
        Float [K]: its values; needs ``encoders``.
    encoders : Encoders | None
        The encoders of the model to register.

    Returns
    -------
    dict[str, Any]
        Shares by granularity, the main metric, list properties and, with ``values_K``, weights.
    """
    shares_K = space.shares_K if setting.shares_K is None else setting.shares_K
    described: dict[str, Any] = {
        "shares": dict(zip(space.names, np.round(shares_K, 6).tolist(), strict=True)),
        "metric": setting.metric,
        **setting.lists,
    }
    if values_K is not None:
        assert encoders is not None
        described["weights"] = _weights(encoders, space.for_model(encoders, values_K), space.names)
    return described


def _weights(encoders: Encoders, changed: dict[str, Tensor], names: list[str]) -> dict[str, float]:
    """λ by granularity (for gated fusion, the prior), from the parameters."""
    with refitted(encoders, changed):
        values = today_of(encoders).tolist()
    return {name: round(value, 6) for name, value in zip(names, values, strict=True)}
