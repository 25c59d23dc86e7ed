"""Ranking metrics of top-K lists, one value per query, and metrics of a whole set of lists.

Why one value per query: the bootstrap, the segments and the paired comparison all need the values,
not their mean. Legend: B queries, K list length, N items, D width. ``hits_BK`` is True where rank r
holds a target; ``num_targets_B`` counts all targets of a query, in the list or not. Relevance is
binary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple, TypeVar

import numpy as np

from recsys.config.outside import METRICS, is_path, load_function, offers, resolve
from recsys.data.histories import Array
from recsys.errors import ConfigError, valid_instead

T = TypeVar("T")


class Metric(NamedTuple):
    """A metric's kind and cut-off: ``ndcg@20`` is ``Metric("ndcg", 20)``."""

    kind: str
    k: int

    def __str__(self) -> str:
        return f"{self.kind}@{self.k}"


def recall_at(hits_BK: Array, num_targets_B: Array, k: int) -> Array:
    """Share of the targets that are in the first k: hits / targets, also when there are more
    targets than k.

    Parameters
    ----------
    hits_BK : array, [B, K] bool
        True where a rank holds a target, best rank first.
    num_targets_B : array, [B] int
        Number of targets of each query, at least 1.
    k : int
        Cut-off.

    Returns
    -------
    array, [B] float64
        One value per query, 0 to 1.

    Examples
    --------
    >>> recall_at(np.array([[True, False, True]]), np.array([4]), 3)
    array([0.5])
    """
    return np.asarray(hits_BK[:, :k].sum(axis=1) / num_targets_B)


def precision_at(hits_BK: Array, num_targets_B: Array, k: int) -> Array:
    """Share of the k places that hold a target: hits / k.

    Parameters
    ----------
    hits_BK : array, [B, K] bool
        True where a rank holds a target, best rank first.
    num_targets_B : array, [B] int
        Number of targets of each query; not used.
    k : int
        Cut-off.

    Returns
    -------
    array, [B] float64
        One value per query, 0 to 1.

    Examples
    --------
    >>> precision_at(np.array([[True, False, True, False]]), np.array([4]), 4)
    array([0.5])
    """
    return np.asarray(hits_BK[:, :k].sum(axis=1) / k)


def hit_at(hits_BK: Array, num_targets_B: Array, k: int) -> Array:
    """1 when any target is in the first k, else 0.

    Parameters
    ----------
    hits_BK : array, [B, K] bool
        True where a rank holds a target, best rank first.
    num_targets_B : array, [B] int
        Number of targets of each query; not used.
    k : int
        Cut-off.

    Returns
    -------
    array, [B] float64
        0 or 1 per query.

    Examples
    --------
    >>> hit_at(np.array([[False, True], [False, False]]), np.array([1, 1]), 2)
    array([1., 0.])
    """
    return np.asarray(hits_BK[:, :k].any(axis=1), dtype=np.float64)


def mrr_at(hits_BK: Array, num_targets_B: Array, k: int) -> Array:
    """1 / rank of the first target, 0 when none is in the first k.

    Parameters
    ----------
    hits_BK : array, [B, K] bool
        True where a rank holds a target, best rank first.
    num_targets_B : array, [B] int
        Number of targets of each query; not used.
    k : int
        Cut-off.

    Returns
    -------
    array, [B] float64
        One value per query, 0 to 1.

    Examples
    --------
    >>> mrr_at(np.array([[False, True, True]]), np.array([2]), 3)
    array([0.5])
    """
    hits = hits_BK[:, :k]
    return np.where(hits.any(axis=1), 1.0 / (hits.argmax(axis=1) + 1.0), 0.0)


def map_at(hits_BK: Array, num_targets_B: Array, k: int) -> Array:
    """Average precision: Σ_r precision@r · hit_r / min(k, targets).

    Parameters
    ----------
    hits_BK : array, [B, K] bool
        True where a rank holds a target, best rank first.
    num_targets_B : array, [B] int
        Number of targets of each query, at least 1.
    k : int
        Cut-off.

    Returns
    -------
    array, [B] float64
        One value per query, 0 to 1.

    Examples
    --------
    >>> map_at(np.array([[True, False, True]]), np.array([2]), 3)  # (1/1 + 2/3) / 2
    array([0.83333333])
    """
    hits = hits_BK[:, :k].astype(np.float64)
    precision_BK = hits.cumsum(axis=1) / np.arange(1, hits.shape[1] + 1)
    return np.asarray((precision_BK * hits).sum(axis=1) / np.minimum(num_targets_B, k))


def ndcg_at(hits_BK: Array, num_targets_B: Array, k: int) -> Array:
    """Binary NDCG: Σ_r hit_r / log2(r + 1), over the same sum for min(k, targets) hits in front
    (Järvelin 2002).

    Parameters
    ----------
    hits_BK : array, [B, K] bool
        True where a rank holds a target, best rank first.
    num_targets_B : array, [B] int
        Number of targets of each query, at least 1.
    k : int
        Cut-off.

    Returns
    -------
    array, [B] float64
        One value per query, 0 to 1.

    Examples
    --------
    >>> ndcg_at(np.array([[False, False, True]]), np.array([1]), 3)  # 1 / log2(4)
    array([0.5])
    """
    hits = hits_BK[:, :k]
    discount_k = 1.0 / np.log2(np.arange(2, k + 2))
    ideal_k = np.cumsum(discount_k)
    return np.asarray(
        (hits @ discount_k[: hits.shape[1]]) / ideal_k[np.minimum(num_targets_B, k) - 1]
    )


QueryMetric = Callable[[Array, Array, int], Array]
"""``hits_BK``, ``num_targets_B`` and k → one value per query, [B]; larger is better."""


class QueryMetrics(Mapping[str, QueryMetric]):
    """Accuracy metrics by kind. Iterating gives ours; a lookup also finds those of other packages,
    by the name of an entry point of ``recsys.metrics`` or by ``module:function``.
    """

    def __init__(self, **ours: QueryMetric) -> None:
        self._ours = ours

    def __getitem__(self, kind: str) -> QueryMetric:
        if kind in self._ours:
            return self._ours[kind]
        if not self.is_outside(kind):
            raise KeyError(kind)
        return outside_metric(kind)

    def __iter__(self) -> Iterator[str]:
        return iter(self._ours)

    def __len__(self) -> int:
        return len(self._ours)

    def __contains__(self, kind: object) -> bool:
        """Whether this is an accuracy metric. It imports nothing: the name may come from a file."""
        return kind in self._ours or (isinstance(kind, str) and self.is_outside(kind))

    def is_outside(self, kind: str) -> bool:
        """Whether the name is one of another package's metric."""
        return kind not in self._ours and (is_path(kind) or kind in offers(METRICS))


def outside_metric(kind: str) -> QueryMetric:
    """The metric of another package, whose values are checked.

    Raises
    ------
    ConfigError
        It cannot be imported. The metric raises it if it returns anything but one finite number per
        query.
    """
    offer = resolve(METRICS, kind)
    assert offer is not None, f"{kind} was checked before"
    try:
        function = load_function(offer)
    except ValueError as error:
        raise ConfigError(f"metric {kind!r}: {error}") from None

    def at(hits_BK: Array, num_targets_B: Array, k: int) -> Array:
        values = np.asarray(function(hits_BK, num_targets_B, k))
        if values.shape != num_targets_B.shape or not np.isfinite(values).all():
            raise ConfigError(
                f"metric {kind!r} gave values of shape {values.shape}; expected one finite number"
                f" per query: {num_targets_B.shape}"
            )
        return values.astype(np.float64)

    return at


QUERY_METRICS: Final = QueryMetrics(
    recall=recall_at, ndcg=ndcg_at, precision=precision_at, mrr=mrr_at, map=map_at, hit=hit_at
)
"""Accuracy metrics; they need targets."""
LIST_METRICS: Final = ("coverage", "novelty", "gini", "diversity")
"""Metrics of the lists themselves; they need no targets."""


def parse_metric(name: str, kinds: Sequence[str] = (*QUERY_METRICS, *LIST_METRICS)) -> Metric:
    """Read ``kind@K``.

    Raises
    ------
    ConfigError
        The kind is not in ``kinds``, or K is not a whole number of at least 1.

    Examples
    --------
    >>> parse_metric("ndcg@20")
    Metric(kind='ndcg', k=20)
    """
    kind, at, k = name.partition("@")
    known = kind in kinds or QUERY_METRICS.is_outside(kind)
    if not known or not at or not k.isascii() or not k.isdigit() or int(k) < 1:
        valid = " ".join(f"{kind}@K" for kind in kinds)
        raise ConfigError(
            f"unknown metric {name!r}; {valid_instead(kind, kinds, listed=valid)}, with K a whole"
            " number such as ndcg@20"
        )
    return Metric(kind, int(k))


def query_metrics(
    hits_BK: Array, num_targets_B: Array, ks: Sequence[int], more: Sequence[str] = ()
) -> dict[str, Array]:
    """Every accuracy metric at every cut-off: name → [B] float64. Every query needs a target, and K
    ≥ max(ks). ``more`` names metrics of other packages.

    Parameters
    ----------
    hits_BK : array, [B, K] bool
        True where a rank holds a target, best rank first.
    num_targets_B : array, [B] int
        Number of targets of each query, at least 1.
    ks : Sequence of int
        Cut-offs; none is larger than K.
    more : Sequence of str
        Kinds of metrics of other packages, besides ours.

    Returns
    -------
    dict of str to array, [B] float64
        Metric, such as ``ndcg@20``, to one value per query.
    """
    assert hits_BK.shape[1] >= max(ks), f"lists of {hits_BK.shape[1]} for cut-offs up to {max(ks)}"
    assert len(num_targets_B) == 0 or num_targets_B.min() > 0, (
        "a query without target has no accuracy"
    )
    return {
        str(Metric(kind, k)): QUERY_METRICS[kind](hits_BK, num_targets_B, k)
        for k in ks
        for kind in (*QUERY_METRICS, *more)
    }


def main_first(values: Mapping[str, T], main: str) -> dict[str, T]:
    """The same values by metric, with the main metric before the others.

    >>> main_first({"ndcg@10": 0.1, "hit@10": 0.2}, "hit@10")
    {'hit@10': 0.2, 'ndcg@10': 0.1}
    """
    return dict(sorted(values.items(), key=lambda entry: entry[0] != main))


def outside_kinds(metric: str, more: Sequence[str]) -> list[str]:
    """The metrics of other packages among the main metric (``kind@K``) and ``more`` (kinds)."""
    return [
        kind
        for kind in dict.fromkeys([parse_metric(metric).kind, *more])
        if QUERY_METRICS.is_outside(kind)
    ]


def novelty_of(items_BK: Array, counts_N: Array, k: int) -> Array:
    """Mean self-information of a list in bits: mean_i −log2 p(i), p(i) = (c_i + 1) / Σ_j (c_j + 1).

    c are training counts; adding one keeps the value of items without training events finite. An
    empty list has 0. Source: Zhou et al. 2010, PNAS 107(10).

    Parameters
    ----------
    items_BK : array, [B, K] int
        Item indices of each list, best first; −1 is an empty place.
    counts_N : array, [N] int
        Training events of each item.
    k : int
        Cut-off.

    Returns
    -------
    array, [B] float64
        Bits per query.

    Examples
    --------
    >>> novelty_of(np.array([[0, 1]]), np.array([1, 5]), 2).round(2)  # p = 2/8, 6/8
    array([1.21])
    """
    bits_N = -np.log2((counts_N + 1.0) / (counts_N + 1.0).sum())
    items = items_BK[:, :k]
    listed = items >= 0
    return np.asarray(
        np.where(listed, bits_N[items], 0.0).sum(axis=1) / np.maximum(listed.sum(axis=1), 1)
    )


def diversity_of(items_BK: Array, vectors_ND: Array, k: int, chunk: int = 4096) -> Array:
    """1 − mean cosine over the pairs of different items in a list; 0 for lists of fewer than two.

    Uses Σ_{i≠j} cos = ‖Σ v‖² − Σ ‖v‖² on unit vectors, so the cost is linear in k. A zero vector
    has cosine 0.

    Parameters
    ----------
    items_BK : array, [B, K] int
        Item indices of each list, best first; −1 is an empty place.
    vectors_ND : array, [N, D] float
        Item vectors of any length; the function normalises them.
    k : int
        Cut-off.
    chunk : int
        Lists that are computed at once; it bounds the memory.

    Returns
    -------
    array, [B] float64
        One value per query, 0 to 2.

    Examples
    --------
    >>> vectors = np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    >>> diversity_of(np.array([[0, 1, 2]]), vectors, 3).round(4)  # 1 − 1/3
    array([0.6667])
    """
    import scipy.sparse as sp  # imported here: a training reads metrics without it

    # only the listed items of a large catalogue; an empty place reads a row that does not count
    used_M, places = np.unique(items_BK[:, :k], return_inverse=True)
    places_BK = places.reshape(items_BK[:, :k].shape)
    vectors_MD = vectors_ND[used_M]
    norms_M1 = np.linalg.norm(vectors_MD, axis=1, keepdims=True)
    unit_MD = vectors_MD / np.where(norms_M1 > 0, norms_M1, 1.0)
    found = []
    for start in range(0, len(items_BK), chunk):
        items = places_BK[start : start + chunk]
        listed = used_M[items] >= 0
        size_b = listed.sum(axis=1)
        ones_E, starts_b1 = unit_MD.dtype.type(1).repeat(size_b.sum()), np.r_[0, size_b.cumsum()]
        # a sparse product sums the vectors of a list without a copy of them
        lists_bM = sp.csr_array((ones_E, items[listed], starts_b1), (len(items), len(unit_MD)))
        all_b = ((lists_bM @ unit_MD) ** 2).sum(axis=1)
        same_b = lists_bM @ (norms_M1[:, 0] > 0).astype(unit_MD.dtype)
        pairs_b = size_b * (size_b - 1)
        found.append(np.where(pairs_b > 0, 1.0 - (all_b - same_b) / np.maximum(pairs_b, 1), 0.0))
    return np.concatenate(found) if found else np.zeros(0)


def exposure(items_BK: Array, num_items: int, k: int) -> Array:
    """Number of lists that have each item in the first k: [N] int64.

    Parameters
    ----------
    items_BK : array, [B, K] int
        Item indices of each list, best first; −1 is an empty place.
    num_items : int
        Number of items N.
    k : int
        Cut-off.
    """
    items = items_BK[:, :k]
    return np.bincount(items[items >= 0], minlength=num_items)


def coverage_of(exposure_N: Array) -> float:
    """Share of the catalogue that is recommended to at least one user.

    >>> coverage_of(np.array([3, 0, 1, 0]))
    0.5
    """
    return float((exposure_N > 0).mean())


def gini_of(exposure_N: Array) -> float:
    """Gini index of exposure over the whole catalogue: Σ_i (2i − N − 1) x_(i) / (N Σ x), x
    ascending.

    0: every item is shown equally often; (N − 1) / N: one item takes all.

    >>> gini_of(np.array([0, 0, 0, 8]))
    0.75
    """
    total = exposure_N.sum()
    if total == 0:
        return 0.0
    size = len(exposure_N)
    weight_N = 2.0 * np.arange(1, size + 1) - size - 1
    return float((weight_N * np.sort(exposure_N)).sum() / (size * total))


def list_metrics(
    items_BK: Array, counts_N: Array, vectors_ND: Array, ks: Sequence[int]
) -> dict[str, Array | float]:
    """Every list metric at every cut-off; novelty and diversity per query, coverage and gini one
    value for all.

    Empty places of a list are −1. ``vectors_ND`` must be the same for all recommenders that are
    compared.

    Parameters
    ----------
    items_BK : array, [B, K] int
        Item indices of each list, best first.
    counts_N : array, [N] int
        Training events of each item.
    vectors_ND : array, [N, D] float
        Item vectors for the diversity.
    ks : Sequence of int
        Cut-offs.

    Returns
    -------
    dict of str to array, [B] float64, or float
        Metric, such as ``gini@20``, to its value or its values per query.
    """
    values: dict[str, Array | float] = {}
    for k in ks:
        exposure_N = exposure(items_BK, len(counts_N), k)
        values[f"coverage@{k}"] = coverage_of(exposure_N)
        values[f"novelty@{k}"] = novelty_of(items_BK, counts_N, k)
        values[f"gini@{k}"] = gini_of(exposure_N)
        values[f"diversity@{k}"] = diversity_of(items_BK, vectors_ND, k)
    return values
