"""The second half of the leak audit: on which events the model and the baselines were fitted.

The graph of a model and the matrix of a baseline are gone at evaluation. Both keep one figure that
can be checked: the number of users of every item. The model recommends from it to a user without
signals, and a baseline uses it for an empty history. A single extra event in the fit changes it.
Legend: N items.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch

from recsys.data.audit_shard import refuse
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array, Histories, Queries, Split
from recsys.data.leak_audit import Audit
from recsys.evaluation.baseline import Baseline
from recsys.evaluation.baselines import TargetEventsOnly

_ANSWER_BY_POPULARITY: Final = ("popularity", "item_knn", "ease", "als")  # for an empty history


def check_fits(
    model: Any,
    baselines: Mapping[str, Baseline],
    histories: Histories,
    dataset: PreparedDataset,
    through: Split,
) -> Audit:
    """Check the popularity in the model (``popularity_N``, if it has one) and in the baselines.

    The baselines were fitted on ``histories``.

    Parameters
    ----------
    model : frozen model
        The model; without ``popularity_N`` it is not checked.
    baselines : Mapping of str to Baseline
        Fitted baselines by name; only those that fall back on popularity are checked.
    histories : Histories
        Histories on which the baselines were fitted.
    dataset : PreparedDataset
        The dataset of the run.
    through : Split
        Last split that the fit may use.

    Returns
    -------
    Audit
        The names of the checks that were made.

    Raises
    ------
    DataError
        The model or a baseline was not fitted on exactly the events through ``through``.
    """
    found = Audit()
    popularity_N = getattr(model, "popularity_N", None)
    if popularity_N is not None:
        each = (users_of_items(shard, dataset.num_items, through) for shard in dataset.shards())
        # no user is in two shards
        expected_N = sum(each, np.zeros(dataset.num_items, dtype=np.int64))
        _compare("model", popularity_N.detach().cpu().numpy(), expected_N, dataset, through)
        found.checks.append("model_fit")
    audited = [name for name in _ANSWER_BY_POPULARITY if name in baselines]
    for name in audited:
        fitted_on = (
            histories.of_targets() if isinstance(baselines[name], TargetEventsOnly) else histories
        )
        expected_N = users_of_items(fitted_on, dataset.num_items, through)
        nothing = Queries(
            Histories.of_items([[]]), np.zeros(2, dtype=np.int64), np.zeros(0, dtype=np.int32)
        )
        scores_1N: torch.Tensor = baselines[name].scores(nothing)
        _compare(name, scores_1N[0].cpu().numpy(), expected_N, dataset, through)
    found.checks += ["baseline_fits"] if audited else []
    return found


def users_of_items(histories: Histories, num_items: int, through: Split) -> Array:
    """The number of different users of every item, in the splits through ``through``: [N].

    Parameters
    ----------
    histories : Histories
        Histories with at most one row per user.
    num_items : int
        Number of items N.
    through : Split
        Last split whose events count.

    Returns
    -------
    array, [N] int64
        Users of each item; a user counts once.
    """
    users_E = np.repeat(np.arange(len(histories)), histories.lengths_U)
    kept_E = histories.splits_E <= through
    pairs = np.unique(users_E[kept_E].astype(np.int64) * num_items + histories.items_E[kept_E])
    return np.bincount(pairs % num_items, minlength=num_items)


def _compare(
    name: str, found_N: Array, expected_N: Array, dataset: PreparedDataset, through: Split
) -> None:
    wrong = np.flatnonzero(found_N != expected_N)
    if len(wrong):
        first = int(wrong[0])
        split = "training" if through == Split.TRAIN else "training and validation"
        refuse(
            dataset.root,
            "model_fit" if name == "model" else "baseline_fits",
            f"{name} counts other users for {len(wrong):,} items than the {split} events have, such"
            f" as {dataset.item_ids[first].as_py()}: {found_N[first]:g} for {expected_N[first]}",
        )
