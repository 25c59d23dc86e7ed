"""Describe the user clusters (strata) of a model: their sizes, typical items and words, and
distances.

Why: a person decides whether clusters make sense, and sees it from their items sooner than from any
number. Legend: B queries, K strata, N items, W words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch

from recsys.data.batches import last_position
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array, Queries, Split
from recsys.data.titles import item_titles
from recsys.granularities.stratum.model import Stratum
from recsys.model import FrozenModel

_NUM_ITEMS: Final = 8
_NUM_TERMS: Final = 8
_NUM_OF_USER: Final = 3
_MOST_ITEMS: Final = 20_000  # words are counted for so many of the most chosen items
_WORD: Final = re.compile(r"[^\W\d_]{3,}")


def memberships(model: FrozenModel, queries: Queries) -> Array | None:
    """p(k|u) of every query [B, K], zero rows for users without a signal; None for a model without
    user clusters.
    """
    module = next(
        (module for _, module in model.encoders.each() if isinstance(module, Stratum)), None
    )
    if module is None:
        return None
    batch = last_position(queries, model.config.max_history).to(model.item_vectors_ND.device)
    with torch.inference_mode():
        found: Array = module.memberships(batch, model.items)[0].cpu().numpy()
    return found


def user_clusters_of(model: FrozenModel, queries: Queries) -> list[list[dict[str, float]]]:
    """The clusters of every query with the largest weights, ``{stratum, weight}``, numbered from 1;
    may be empty.
    """
    p_BK = memberships(model, queries)
    if p_BK is None:
        return [[] for _ in range(len(queries))]
    top_BR = np.argsort(-p_BK, axis=1, kind="stable")[:, :_NUM_OF_USER]
    return [
        [{"stratum": int(k) + 1, "weight": float(p_K[k])} for k in top_R if p_K[k] >= 0.05]
        for p_K, top_R in zip(p_BK, top_BR, strict=True)
    ]


def describe_user_clusters(
    model: FrozenModel, dataset: PreparedDataset, through: Split, choices: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The user clusters for ``metrics.json`` and the report; None for a model without them.

    Counts are over the events through ``through``. ``share``: share of users, by weight. ``items``
    and ``terms``: those that contribute most to Σ p(i|k) log p(i|k) / p(i), so they are chosen
    often, and more often than by other users. ``radius``: root mean squared distance of the
    members. ``nearest``: distance to the nearest other cluster, in the same unit. ``explained``:
    share of the users' variance that is between clusters. ``choices``: how their number was chosen.

    Parameters
    ----------
    model : FrozenModel
        The model; its ``stratum`` granularity is described.
    dataset : PreparedDataset
        Its dataset.
    through : Split
        Last split whose events count.
    choices : Mapping of str to any JSON value
        How the number of strata was chosen.
    """
    module = next(
        (module for _, module in model.encoders.each() if isinstance(module, Stratum)), None
    )
    if module is None:
        return None
    counts_KN, weight_K, sharpness = _counts(model, dataset, through)
    titles, texts = item_titles(dataset.features), _texts(dataset.features)
    clusters = module.clusters()
    apart_KK = (
        clusters.bias_K[:, None] + clusters.bias_K - 2 * clusters.axes_KT @ clusters.centroids_KT.T
    )
    np.fill_diagonal(apart_KK, np.inf)
    within = float((clusters.within_K * clusters.size_K).sum() / max(clusters.size_K.sum(), 1))
    lift_KN = _contributions(counts_KN)
    terms_K = _terms(texts, counts_KN)
    return {
        "method": module.config.method,
        "by": "text" if module.reads_text else "item vectors",
        "explained": 1 - within / clusters.total if clusters.total > 0 else 0.0,
        "sharpness": sharpness,
        "choice": dict(choices),
        "strata": [
            {
                "stratum": k + 1,
                "share": float(weight_K[k] / max(weight_K.sum(), 1e-12)),
                "members": int(clusters.size_K[k]),
                "radius": float(np.sqrt(clusters.within_K[k])),
                "nearest": (
                    float(np.sqrt(max(apart_KK[k].min(), 0.0))) if len(apart_KK) > 1 else None
                ),
                "items": [
                    titles[i]
                    for i in np.argsort(-lift_KN[k], kind="stable")[:_NUM_ITEMS]
                    if lift_KN[k, i] > 0
                ],
                "terms": terms_K[k],
            }
            for k in range(module.num_strata)
        ],
    }


def _counts(
    model: FrozenModel, dataset: PreparedDataset, through: Split
) -> tuple[Array, Array, float]:
    """Choices of every item by cluster [K, N], users by cluster [K], and the mean of the largest
    weight.
    """
    counts_NK, weight_K, heaviest, users = None, np.zeros(0), 0.0, 0
    for shard in dataset.shards():
        queries = Queries.without_targets(shard.through(through))
        for piece in queries.chunks(1024):
            p_BK = memberships(model, piece)
            assert p_BK is not None
            if counts_NK is None:
                counts_NK = np.zeros((dataset.num_items, p_BK.shape[1]))
                weight_K = np.zeros(p_BK.shape[1])
            np.add.at(
                counts_NK,
                piece.histories.items_E,
                np.repeat(p_BK, piece.histories.lengths_U, axis=0),
            )
            weight_K = weight_K + p_BK.sum(axis=0)
            heaviest += float(p_BK.max(axis=1).sum())
            users += int(p_BK.any(axis=1).sum())
    assert counts_NK is not None, "a model was trained on events"
    return counts_NK.T, weight_K, heaviest / max(users, 1)


def _contributions(counts_KX: Array) -> Array:
    """p(x|k) log p(x|k) / p(x): [K, X]."""
    share_KX = counts_KX / np.maximum(counts_KX.sum(axis=1, keepdims=True), 1e-12)
    overall_X = counts_KX.sum(axis=0) / max(counts_KX.sum(), 1e-12)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = share_KX * np.log(share_KX / overall_X)
    return np.where(share_KX > 0, found, 0.0)


def _texts(features: pa.Table) -> list[str]:
    if "text" not in features.column_names:
        return [""] * features.num_rows
    return [text or "" for text in features.column("text").to_pylist()]


def _terms(texts: list[str], counts_KN: Array) -> list[list[str]]:
    """The words of the items' texts that distinguish each cluster from the others."""
    chosen = np.argsort(-counts_KN.sum(axis=0), kind="stable")[:_MOST_ITEMS]
    words = [sorted({word.lower() for word in _WORD.findall(texts[item])}) for item in chosen]
    items_of = Counter(word for row in words for word in row)
    numbers = {
        word: number for number, word in enumerate(w for w, items in items_of.items() if items > 1)
    }
    counts_WK = np.zeros((len(numbers), len(counts_KN)))
    for item, row in zip(chosen, words, strict=True):
        counts_WK[[numbers[word] for word in row if word in numbers]] += counts_KN[:, item]
    lift_KW, names = _contributions(counts_WK.T), list(numbers)
    return [
        [names[w] for w in np.argsort(-row_W, kind="stable")[:_NUM_TERMS] if row_W[w] > 0]
        for row_W in lift_KW
    ]
