"""Strata: clusters of the rows of A_ij = cos(u_i, v_j), users by items, without building A (S2).

Why this works: with unit rows U [V, T] and W [N, T], A = U Wᵀ, so two rows of A differ by

    |A_i − A_j|² / N = (u_i − u_j)ᵀ G (u_i − u_j),    G = WᵀW / N,

and K-means over rows of A is K-means over u G^½: T numbers per user instead of N. Distances do not
change if all rows are shifted, so nothing is centred. A centroid of rows of A is μ Wᵀ with μ the
plain mean of its members' u; it is shorter than one and must not be normalised. All distances here
are those of A, divided by N.

Legend: V users (U active ones, R of a block), N items, T width of the vectors, K strata, M
micro-clusters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from scipy.optimize import linear_sum_assignment

from recsys.data.histories import Array
from recsys.errors import ConfigError
from recsys.granularities.event_matrix import EventMatrix

BLOCK: Final = 8192  # users per block
WHOLE: Final = 20_000  # number of users up to which K-means runs in memory; beyond, mini-batches
PASSES: Final = 3  # passes of the mini-batches over the users
MICRO: Final = 1000  # largest number of micro-clusters of the hierarchy
_STARTS: Final = 4  # random starts of K-means; the best one counts

Method = Literal["kmeans", "hierarchical"]


class UserVectors:
    """u_i of users with at least one item vector: the normalised mean of the unit vectors of their
    items.

    ``unit_NT`` has unit rows, zero where an item has no vector. Only one block of users is in
    memory at a time.
    """

    def __init__(self, events_VN: EventMatrix, unit_NT: Array) -> None:
        self.unit_NT = unit_NT.astype(np.float32)
        self.has_vector_N = np.abs(self.unit_NT).sum(axis=1) > 0
        self.events_VN = events_VN
        has_vector_N = self.has_vector_N.astype(np.float32)
        found = [
            rows.start + np.flatnonzero(part @ has_vector_N) for rows, part in events_VN.blocks()
        ]
        self.active_U = np.concatenate([np.zeros(0, dtype=np.int64), *found])

    def __len__(self) -> int:
        return len(self.active_U)

    @property
    def gram_TT(self) -> Array:
        """G = WᵀW / N over the items with a vector, float64."""
        rows = self.unit_NT[self.has_vector_N].astype(np.float64)
        return np.asarray(rows.T @ rows / max(len(rows), 1))

    def of(self, users_R: Array) -> Array:
        """Unit vectors [R, T] of users."""
        mean_RT = self.events_VN.take(users_R) @ self.unit_NT
        return np.asarray(
            mean_RT / np.maximum(np.linalg.norm(mean_RT, axis=1, keepdims=True), 1e-12)
        )

    def blocks(self, shuffle: np.random.Generator | None = None) -> Iterator[tuple[Array, Array]]:
        """Active users and their vectors, in blocks of similar size; in random order if
        requested.

        Yields
        ------
        tuple of Array
            Rows of the users [R], and their vectors [R, D].
        """
        order = self.active_U if shuffle is None else shuffle.permutation(self.active_U)
        for users_R in np.array_split(order, max(1, -(-len(order) // BLOCK))):
            yield users_R, self.of(users_R)


@dataclass(frozen=True)
class UserClusters:
    """Fitted strata. ``axes_KT`` = μ_k G and ``bias_K`` = μ_kᵀ G μ_k, so that d²(u, k) = uᵀGu − 2
    u·axes_k + bias_k.
    """

    centroids_KT: Array  # μ_k
    axes_KT: Array
    bias_K: Array
    size_K: Array  # number of members; each user is in the nearest stratum
    within_K: Array  # mean d² of the members
    total: float  # mean d² of all users from their mean: the value with one stratum
    # mean over users of (mean over strata of d²) − (smallest d²): scale of the soft membership
    gap: float

    @staticmethod
    def of_centroids(centroids_KT: Array, users: UserVectors) -> UserClusters:
        """Assign the users to given centroids and compute the statistics."""
        gram_TT = users.gram_TT
        axes_KT = centroids_KT @ gram_TT
        bias_K = np.einsum("kt,kt->k", axes_KT, centroids_KT)
        size_K, sum_K = np.zeros(len(bias_K), dtype=np.int64), np.zeros(len(bias_K))
        square, gap, mean_T = 0.0, 0.0, np.zeros(len(gram_TT))
        for _, u_RT in users.blocks():
            own_R = np.einsum("rt,rt->r", u_RT @ gram_TT, u_RT)
            d_RK = np.maximum(own_R[:, None] - 2 * (u_RT @ axes_KT.T) + bias_K, 0.0)
            nearest_R, least_R = d_RK.argmin(axis=1), d_RK.min(axis=1)
            size_K += np.bincount(nearest_R, minlength=len(bias_K))
            sum_K += np.bincount(nearest_R, weights=least_R, minlength=len(bias_K))
            square, gap = square + own_R.sum(), gap + (d_RK.mean(axis=1) - least_R).sum()
            mean_T += u_RT.sum(axis=0)
        num = max(len(users), 1)
        mean_T = mean_T / num
        total = max(float(square / num - mean_T @ gram_TT @ mean_T), 0.0)
        return UserClusters(
            centroids_KT, axes_KT, bias_K, size_K, sum_K / np.maximum(size_K, 1), total, gap / num
        )

    def nearest(self, u_RT: Array) -> Array:
        """The stratum of each user: [R]."""
        return np.asarray((2 * (u_RT @ self.axes_KT.T) - self.bias_K).argmax(axis=1))

    def memberships(self, u_RT: Array, temperature: float) -> Array:
        """p(k|u) = softmax(−d² / (temperature · gap)): [R, K]."""
        logits_RK = (2 * (u_RT @ self.axes_KT.T) - self.bias_K) / max(temperature * self.gap, 1e-12)
        p_RK = np.exp(logits_RK - logits_RK.max(axis=1, keepdims=True))
        return np.asarray(p_RK / p_RK.sum(axis=1, keepdims=True))

    def reordered(self, order_K: Array) -> UserClusters:
        """Renumber: stratum k becomes the one that was ``order_K[k]``."""
        names = ("centroids_KT", "axes_KT", "bias_K", "size_K", "within_K")
        return replace(self, **{name: getattr(self, name)[order_K] for name in names})


def fit_user_clusters(
    users: UserVectors, num_strata: int, method: Method, seed: int
) -> UserClusters:
    """Cluster the users.

    ``hierarchical`` is Ward's agglomeration: of the users themselves if they are few, else of
    K-means micro-clusters (the two stages of BIRCH, Zhang et al. 1996).

    Parameters
    ----------
    users : UserVectors
        The users and their unit vectors.
    num_strata : int
        Number of clusters.
    method : Method
        ``kmeans`` or ``hierarchical``.
    seed : int
        Seed of K-means.

    Returns
    -------
    UserClusters
        The clusters; the centroid of an empty one is the mean of all users.

    Raises
    ------
    ConfigError
        There are fewer users than strata.
    """
    if len(users) < num_strata:
        raise ConfigError(
            f"model.granularities.stratum.num_strata {num_strata}: only {len(users)} users have a"
            f" training event with a vector; set it to {max(len(users), 1)} or less, or disable"
            " stratum"
        )
    root_TT = _root(users.gram_TT)
    if method == "kmeans":
        micro_MT, cluster_M = _kmeans(users, root_TT, num_strata, seed), np.arange(num_strata)
    else:
        micro_MT, cluster_M = _ward(users, root_TT, num_strata, seed)
    half_M = np.einsum("mt,mt->m", micro_MT, micro_MT) / 2
    sum_KT, size_K = np.zeros((num_strata, len(root_TT))), np.zeros(num_strata)
    for _, u_RT in users.blocks():
        cluster_R = cluster_M[(u_RT @ root_TT @ micro_MT.T - half_M).argmax(axis=1)]
        np.add.at(sum_KT, cluster_R, u_RT)
        size_K += np.bincount(cluster_R, minlength=num_strata)
    everyone_T = sum_KT.sum(axis=0) / max(len(users), 1)  # centroid of an empty stratum
    centroids_KT = np.where(
        size_K[:, None] > 0, sum_KT / np.maximum(size_K, 1)[:, None], everyone_T
    )
    return UserClusters.of_centroids(centroids_KT, users)


def match(before: UserClusters, after: UserClusters, users: UserVectors) -> UserClusters:
    """Reorder ``after`` to match the numbering of ``before``, so that most users keep their stratum
    number.

    Hungarian assignment over the users that each pair of strata shares, both with the current
    vectors.

    Parameters
    ----------
    before : UserClusters
        Strata whose numbering is kept.
    after : UserClusters
        The new strata, as many as ``before``.
    users : UserVectors
        The users to count, with the current vectors.

    Returns
    -------
    UserClusters
        The strata of ``after``, renumbered.
    """
    num = len(before.bias_K)
    shared_KK = np.zeros((num, num))
    for _, u_RT in users.blocks():
        np.add.at(shared_KK, (before.nearest(u_RT), after.nearest(u_RT)), 1)
    return after.reordered(linear_sum_assignment(shared_KK, maximize=True)[1])


def choices_counts(
    clusters: UserClusters, users: UserVectors, temperature: float | None = None
) -> Array:
    """How often each stratum's users chose each item: [K, N] float64; by members, or by soft
    memberships.

    Parameters
    ----------
    clusters : UserClusters
        The fitted clusters.
    users : UserVectors
        The users and their events.
    temperature : float or None
        Softness of the memberships, in units of ``clusters.gap``; None: each user counts in the
        nearest stratum alone.
    """
    counts_KN = np.zeros((len(clusters.bias_K), users.events_VN.shape[1]))
    for users_R, u_RT in users.blocks():
        if temperature is None:
            p_RK = np.eye(len(counts_KN))[clusters.nearest(u_RT)]
        else:
            p_RK = clusters.memberships(u_RT, temperature)
        counts_KN += (users.events_VN.take(users_R).T @ p_RK).T
    return counts_KN


def _root(gram_TT: Array) -> Array:
    """The symmetric square root of a Gram matrix."""
    variance_T, directions_TT = np.linalg.eigh(gram_TT)
    return np.asarray((directions_TT * np.sqrt(np.maximum(variance_T, 0.0))) @ directions_TT.T)


def _kmeans(users: UserVectors, root_TT: Array, num_clusters: int, seed: int) -> Array:
    """Centres in the mapped space: [num_clusters, T]."""
    from sklearn.cluster import KMeans, MiniBatchKMeans

    seed %= 2**32  # scikit-learn accepts 32 bits only
    if len(users) <= WHOLE:
        found = KMeans(num_clusters, n_init=_STARTS, random_state=seed).fit(
            users.of(users.active_U) @ root_TT
        )
        return np.asarray(found.cluster_centers_)
    mini, shuffle = MiniBatchKMeans(num_clusters, random_state=seed), np.random.default_rng(seed)
    for _ in range(PASSES):
        for _, u_RT in users.blocks(shuffle):
            mini.partial_fit(u_RT @ root_TT)
    return np.asarray(mini.cluster_centers_)


def _ward(users: UserVectors, root_TT: Array, num_strata: int, seed: int) -> tuple[Array, Array]:
    """Micro-clusters in the mapped space [M, T], and the stratum of each by Ward's criterion
    [M].
    """
    from sklearn.cluster import AgglomerativeClustering

    if len(users) <= MICRO:
        micro_MT = users.of(users.active_U) @ root_TT
    else:
        micro_MT = _kmeans(users, root_TT, max(MICRO, num_strata), seed)
    if num_strata == 1:
        return micro_MT, np.zeros(len(micro_MT), dtype=np.int64)
    return micro_MT, AgglomerativeClustering(num_strata, linkage="ward").fit_predict(micro_MT)
