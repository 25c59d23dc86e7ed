"""Interest drift: which items the evolving state of a user is nearest to, event by event, as
stacked areas.

Why a distribution over groups of items: a state is a point in a space that has no meaning by
itself; the items nearest to it show its meaning. After every event the items are ranked by the
state alone. The weight of each group in that list (a category of the items or, without categories,
a neighbourhood of item vectors) is drawn over the events: long-term interest above, immediate
interest below, and the chosen items between them.

Legend: L events, N items, D width, G groups, R nearest items.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from recsys import schema
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array, Queries
from recsys.data.titles import item_titles
from recsys.model import FrozenModel
from recsys.values.arrow_types import is_string

NEAREST: Final = 20  # items that describe a state, weighted by 1 / log₂(rank + 1)
MAX_EVENTS: Final = 48  # the newest events of a user that are shown
_COMMON: Final = 0.6  # a value that a larger share of the items has is not used
_LIKELY: Final = ("categor", "genre", "topic", "class", "kind", "type", "tag", "brand")
_NEIGHBOURHOODS: Final = 7
OTHER: Final = "other"


@dataclass(frozen=True)
class Groups:
    """Groups of items: ``group_N`` is the position in ``labels``, -1
    for an item without a group.
    """

    by: str  # what defines the groups, shown in the report
    labels: list[str]
    group_N: Array


def interest_drift_of(
    model: FrozenModel, dataset: PreparedDataset, queries: Queries
) -> list[dict[str, Any]]:
    """The interest drift of the user of every query, for the report; empty without the granularity
    ``evolution``.

    Each is ``{by, labels, events: [title], chosen: [label], times: [seconds], long: [[share]],
    immediate: [[share]] or None, share: float}`` with one entry per event. Shares are in the order
    of ``labels`` and sum to at most 1.

    Parameters
    ----------
    model : FrozenModel
        The model whose evolving state is read.
    dataset : PreparedDataset
        Its dataset, for titles and attributes of items.
    queries : Queries
        Queries, one user each.

    Returns
    -------
    list of dict
        One entry per query, plain JSON.
    """
    if not model.rolls_forward:
        return []
    titles_N = item_titles(dataset.features)
    vectors_ND = model.items.vectors_SD
    groups = find_groups(dataset.features, vectors_ND.cpu().numpy(), titles_N)
    found = []
    for query in queries.chunks(1):
        items_L = query.histories.items_E[-model.config.max_history :][-MAX_EVENTS:]
        path = model.interest_path(query)
        long_LD, immediate_LD = (
            None if states is None else states[-MAX_EVENTS:]
            for states in (path.long_BD, path.immediate_BD)
        )
        assert long_LD is not None
        found.append(
            {
                "by": groups.by,
                "labels": groups.labels,
                "events": [titles_N[item] for item in items_L],
                "chosen": [groups.labels[g] if g >= 0 else OTHER for g in groups.group_N[items_L]],
                "times": query.histories.times_E[-len(items_L) :].tolist() if len(items_L) else [],
                "long": _shares(long_LD @ vectors_ND.T, groups).tolist(),
                "immediate": (
                    None
                    if immediate_LD is None
                    else _shares(immediate_LD @ vectors_ND.T, groups).tolist()
                ),
                "share": float(path.share_B1[-1]) if len(items_L) else 0.0,
            }
        )
    return found


def _shares(scores_LN: Any, groups: Groups) -> Array:
    """Weight of every group among the nearest items: [L, G]."""
    nearest_LR = (
        scores_LN.topk(min(NEAREST, max(scores_LN.shape[1] // 10, 1)), dim=1).indices.cpu().numpy()
    )
    weights_R = 1 / np.log2(np.arange(nearest_LR.shape[1]) + 2)
    group_LR = groups.group_N[nearest_LR]
    # the last column: without a group
    shares_LG = np.zeros((len(nearest_LR), len(groups.labels) + 1))
    np.add.at(
        shares_LG, (np.arange(len(nearest_LR))[:, None], group_LR), weights_R / weights_R.sum()
    )
    return shares_LG[:, :-1]


# ---------------------------------------------------------------------------------- groups of items


def find_groups(features: pa.Table, vectors_ND: Array, titles_N: Sequence[str]) -> Groups:
    """Groups by the attribute that is most like a category, or by neighbourhoods of item vectors if
    there is none.

    Parameters
    ----------
    features : pyarrow Table
        Items with their attributes, in the order of item indices.
    vectors_ND : array, [N, D] float
        Item vectors.
    titles_N : Sequence of str
        Title of each item.

    Returns
    -------
    Groups
        Name of the grouping, labels, and group of each item (−1 for none).
    """
    found = []
    for field in features.schema:
        if field.name in (schema.ITEM_ID, schema.ENTITY_ID, "text"):
            continue
        labels, group_N = _grouped(_values(features.column(field.name)))
        covered = float((group_N >= 0).mean()) if len(group_N) else 0.0
        if 2 <= len(labels) <= max(len(group_N) / 3, 2) and covered >= _COMMON:
            unlikely = not any(part in field.name.lower() for part in _LIKELY)
            found.append((unlikely, len(labels), field.name, labels, group_N))
    if found:
        _, _, name, labels, group_N = min(found, key=lambda entry: entry[:3])
        return Groups(name.replace("_", " "), labels, group_N)
    return _neighbourhoods(vectors_ND, titles_N)


def _values(column: pa.ChunkedArray) -> list[list[str]]:
    """The values of every item, with texts split at separators such as commas; empty for columns
    that are not text.
    """
    kind = column.type
    if is_string(kind):
        return [
            [v for v in re.split(r"\s*[,|;>]\s*", cell or "") if v] for cell in column.to_pylist()
        ]
    if pa.types.is_list(kind) and pa.types.is_string(kind.value_type):
        return [[v for v in cell or [] if v] for cell in column.to_pylist()]
    return [[] for _ in range(len(column))]


def _grouped(values: list[list[str]]) -> tuple[list[str], Array]:
    """Labels and groups: every item in the group of its first value that is not too common."""
    counts = Counter(value for cell in values for value in dict.fromkeys(cell))
    limit = _COMMON * len(values)
    chosen = [next((value for value in cell if counts[value] <= limit), None) for cell in values]
    labels = [
        label for label, _ in Counter(value for value in chosen if value is not None).most_common()
    ]
    indices = {label: index for index, label in enumerate(labels)}
    return labels, np.array(
        [-1 if value is None else indices[value] for value in chosen], dtype=np.int64
    )


def _neighbourhoods(vectors_ND: Array, titles_N: Sequence[str]) -> Groups:
    """Items by the nearest of a few centres (spherical k-means from distant items), named after the
    nearest item.
    """
    unit_ND = vectors_ND / np.maximum(np.linalg.norm(vectors_ND, axis=1, keepdims=True), 1e-12)
    count = min(_NEIGHBOURHOODS, len(unit_ND))
    chosen = [0]
    for _ in range(count - 1):
        chosen.append(int((unit_ND @ unit_ND[chosen].T).max(axis=1).argmin()))
    centres_GD = unit_ND[chosen]
    for _ in range(10):
        group_N = (unit_ND @ centres_GD.T).argmax(axis=1)
        sums_GD = np.stack([unit_ND[group_N == g].sum(axis=0) for g in range(count)])
        norms_G1 = np.linalg.norm(sums_GD, axis=1, keepdims=True)
        centres_GD = np.where(norms_G1 > 0, sums_GD / np.maximum(norms_G1, 1e-12), centres_GD)
    similarity_NG = unit_ND @ centres_GD.T
    labels = [f"near {titles_N[item]}" for item in similarity_NG.argmax(axis=0)]
    return Groups("neighbourhood of item vectors", labels, similarity_NG.argmax(axis=1))
