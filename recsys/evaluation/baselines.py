"""The baselines of every run: popularity, item-kNN, EASE, implicit ALS, and two that use time.

Why in the same run: published numbers differ in split, masking and metric definitions, and
well-tuned simple models beat many published ones (Ferrari Dacrema et al. 2019). Constants are
chosen on validation with a fit on training events only. All baselines score from the visible
history of a query, so they also serve users outside the fit. Legend: U users, N items, M items kept
by EASE, R rank, b queries. Events count once: the matrix X is binary.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import ClassVar, Final

import numpy as np
import scipy.sparse as sp
import torch

from recsys.config import EvaluateConfig
from recsys.data.histories import Array, Histories, Queries, Split
from recsys.errors import ConfigError, valid_instead
from recsys.evaluation.baseline import Baseline, Constants, matrix, users_of_items
from recsys.evaluation.baselines_in_time import Frequency, RecentPopularity
from recsys.evaluation.metrics import QUERY_METRICS, parse_metric
from recsys.evaluation.ranking import rank
from recsys.pace import with_progress

MOST_QUERIES: Final = 10_000
_LEAST_QUERIES: Final = 500
_MOST_SCORES: Final = 2**28  # of one ranking of validation queries, unless these are too few
"""Validation queries that choose constants: enough to tell them apart, and a dozen rankings of all
users would take longer than the fits."""


class Popularity(Baseline):
    """score(i) = number of users with item i, the same for everyone."""

    name = "popularity"

    def fit(self, train: Histories, num_items: int) -> None:
        """Fit on all given events, with the current constants."""
        self._counts_N = torch.from_numpy(users_of_items(matrix(train, num_items)))

    def scores(self, queries: Queries) -> torch.Tensor:
        """Scores [b, N] float32 for every query; −inf for items that cannot be recommended."""
        return self._counts_N.repeat(len(queries), 1)


class ItemKnn(Baseline):
    """score(u, i) = Σ_{j in history} cos(j, i), kept for the k most similar items i of each j
    (Sarwar et al. 2001).

    For an empty history, or one of items without neighbours, it recommends by popularity. A k that
    needs more than ``max_entries`` entries for the catalogue is not tried.
    """

    name = "item_knn"
    grid = ({"neighbours": 100}, {"neighbours": 20}, {"neighbours": 500})
    max_entries: ClassVar[int] = 100_000_000  # 12 bytes each, and a few copies

    def fit(self, train: Histories, num_items: int) -> None:
        """Fit on all given events, with the current constants."""
        interactions_UN = matrix(train, num_items)
        self._counts_N = users_of_items(interactions_UN)
        self.constants["neighbours"] = min(
            self.constants["neighbours"], max(self._tried(num_items))
        )
        self._similarity_NN = _cosine_neighbours(interactions_UN, self.constants["neighbours"])

    def fits(self, train: Histories, num_items: int) -> Iterator[Constants]:
        """Fit with each entry of the grid in turn, and yield it."""
        interactions_UN = matrix(train, num_items)
        self._counts_N = users_of_items(interactions_UN)
        tried = self._tried(num_items)
        all_NN = _cosine_neighbours(interactions_UN, max(tried))
        for neighbours in tried:
            self.constants = {"neighbours": neighbours}
            self._similarity_NN = _first_per_row(all_NN, neighbours)
            yield self.constants

    def _tried(self, num_items: int) -> list[int]:
        """The values of k, in the order of the grid, that fit into ``max_entries``; the smallest
        always.
        """
        every = [constants["neighbours"] for constants in self.grid]
        return [number for number in every if number * num_items <= self.max_entries] or [
            min(every)
        ]

    def scores(self, queries: Queries) -> torch.Tensor:
        """Scores [b, N] float32 for every query; −inf for items that cannot be recommended."""
        history_bN = matrix(queries.histories, self._similarity_NN.shape[0])
        found_bN = history_bN @ self._similarity_NN
        scores_bN = found_bN.toarray().astype(np.float32, copy=False)
        scores_bN[np.diff(found_bN.indptr) == 0] = self._counts_N
        return torch.from_numpy(scores_bN)


class Ease(Baseline):
    """score = x B with B_ij = −P_ij / P_jj, B_jj = 0, P = (XᵀX + λI)⁻¹ (Steck 2019), on the most
    popular items.

    Items beyond ``ease_max_items`` or with fewer than two users score −inf: EASE cannot recommend
    them. For a history without any kept item it recommends by popularity, over all items. Up to
    ``max_rank`` users or items, the eigenvectors of the smaller Gram matrix give P for every λ
    without forming it; beyond that, each λ costs one Cholesky inverse of M × M.
    """

    name = "ease"
    grid = ({"l2": 100.0}, {"l2": 30.0}, {"l2": 300.0}, {"l2": 1000.0})
    max_rank: ClassVar[int] = 3000

    def fit(self, train: Histories, num_items: int) -> None:
        """Fit on all given events, with the current constants."""
        self._prepare(train, num_items)
        self._solve()

    def fits(self, train: Histories, num_items: int) -> Iterator[Constants]:
        """Fit with each entry of the grid in turn, and yield it."""
        self._prepare(train, num_items)
        for constants in self.grid:
            self.constants = dict(constants)
            self._solve()
            yield self.constants

    @property
    def num_kept(self) -> int:
        """The number of items that can be recommended."""
        return len(self._kept_M)

    def scores(self, queries: Queries) -> torch.Tensor:
        """Scores [b, N] float32 for every query; −inf for items that cannot be recommended."""
        history_bM = matrix(queries.histories, self._num_items)[:, self._kept_M]
        scores_bN = torch.full((len(queries), self._num_items), -torch.inf)
        if self.num_kept:
            scores_bN[:, torch.from_numpy(self._kept_M)] = torch.from_numpy(
                self._scores_kept(history_bM)
            )
        scores_bN[torch.from_numpy(np.diff(history_bM.indptr) == 0)] = torch.from_numpy(
            self._counts_N
        )
        return scores_bN

    def _scores_kept(self, history_bM: sp.csr_matrix) -> Array:
        if self._inverse_MM is not None:
            product_bM = history_bM @ self._inverse_MM
        else:
            product_bM = (
                history_bM - ((history_bM @ self._right_MR) * self._shrink_R) @ self._right_MR.T
            ) / self._l2
            product_bM = np.asarray(product_bM)
        # x B over j: −Σ_{i≠j} x_i P_ij / P_jj = x_j − (x P)_j / P_jj
        return np.asarray(history_bM.toarray() - product_bM / self._diagonal_M, dtype=np.float32)

    def _prepare(self, train: Histories, num_items: int) -> None:
        interactions_UN = matrix(train, num_items)
        self._counts_N = users_N = users_of_items(interactions_UN)
        by_users = np.argsort(-users_N, kind="stable")[: self.config.ease_max_items]
        self._kept_M = np.sort(by_users[users_N[by_users] >= 2])
        self._num_items = num_items
        kept_UM = interactions_UN[:, self._kept_M]
        self._kept_UM = kept_UM[np.diff(kept_UM.indptr) > 0]
        self._factor: tuple[Array, Array] | None = None
        if min(self._kept_UM.shape) <= self.max_rank:
            self._factor = _right_singular(self._kept_UM)

    def _solve(self) -> None:
        self._l2 = float(self.constants["l2"])
        self._inverse_MM: Array | None = None
        if self._factor is not None:
            self._right_MR, squares_R = self._factor
            self._shrink_R = (squares_R / (squares_R + self._l2)).astype(np.float32)
            self._diagonal_M = (1.0 - (self._right_MR**2) @ self._shrink_R) / self._l2
            return
        gram_MM = torch.from_numpy(
            (self._kept_UM.T @ self._kept_UM).toarray().astype(np.float32, copy=False)
        )
        gram_MM.diagonal().add_(self._l2)
        # symmetric, so the columns of LAPACK are also rows; scipy would copy a column-major matrix
        # at every product
        self._inverse_MM = torch.cholesky_inverse(torch.linalg.cholesky(gram_MM)).mT.numpy()
        self._diagonal_M = np.diagonal(self._inverse_MM).copy()


class Als(Baseline):
    """Implicit alternating least squares (Hu et al. 2008), 64 factors, users folded in by one exact
    solve.

    For an empty history, or one of items without users in the fit, it recommends by popularity.
    """

    name = "als"
    factors: ClassVar[int] = 64
    grid = (
        {"regularization": 1.0, "alpha": 1.0},
        {"regularization": 10.0, "alpha": 1.0},
        {"regularization": 1.0, "alpha": 10.0},
        {"regularization": 10.0, "alpha": 10.0},
    )

    def fit(self, train: Histories, num_items: int) -> None:
        """Fit on all given events, with the current constants."""
        import threadpoolctl
        from implicit.cpu.als import AlternatingLeastSquares

        interactions_UN = matrix(train, num_items)
        # implicit is slow, and warns, if BLAS uses its own threads inside the threads of ALS
        with threadpoolctl.threadpool_limits(1, "blas"):
            self._model = AlternatingLeastSquares(
                factors=self.factors,
                iterations=15,
                num_threads=torch.get_num_threads(),
                random_state=0,
                **self.constants,
            )
            self._model.fit(interactions_UN, show_progress=False)
        self._counts_N = users_of_items(interactions_UN)

    def scores(self, queries: Queries) -> torch.Tensor:
        """Scores [b, N] float32 for every query; −inf for items that cannot be recommended."""
        history_bN = matrix(queries.histories, len(self._counts_N))
        users_bR = self._model.recalculate_user(np.arange(len(queries)), history_bN)
        scores_bN = np.asarray(users_bR @ self._model.item_factors.T, dtype=np.float32)
        scores_bN[history_bN @ self._counts_N == 0] = self._counts_N
        return torch.from_numpy(scores_bN)


_ALL: tuple[type[Baseline], ...] = (Popularity, ItemKnn, Ease, Als, Frequency, RecentPopularity)
_CLASSES: dict[str, type[Baseline]] = {cls.name: cls for cls in _ALL}


def build_baseline(name: str, config: EvaluateConfig) -> Baseline:
    """A baseline by name, not fitted.

    Raises
    ------
    ConfigError
        There is no such baseline.
    """
    if name not in _CLASSES:
        raise ConfigError(f"unknown baseline {name!r}; {valid_instead(name, _CLASSES)}")
    return _CLASSES[name](config)


class TargetEventsOnly(Baseline):
    """A baseline that reads only events of the predicted types, in its fit and in every query."""

    def __init__(self, inner: Baseline) -> None:
        super().__init__(inner.config)
        self.inner, self.constants = inner, {**inner.constants, "events": "targets"}

    def fit(self, train: Histories, num_items: int) -> None:
        """Fit on all given events, with the current constants."""
        self.inner.constants = {
            key: value for key, value in self.constants.items() if key != "events"
        }
        self.inner.fit(train.of_targets(), num_items)

    def fits(self, train: Histories, num_items: int) -> Iterator[Constants]:
        """Fit with each entry of the grid in turn, and yield it."""
        for constants in self.inner.fits(train.of_targets(), num_items):
            self.constants = {**constants, "events": "targets"}
            yield self.constants

    def scores(self, queries: Queries) -> torch.Tensor:
        """Scores [b, N] float32 for every query; −inf for items that cannot be recommended."""
        return self.inner.scores(replace(queries, histories=queries.histories.of_targets()))


def left_out(names: Sequence[str], histories: Histories, config: EvaluateConfig) -> dict[str, str]:
    """The baselines that the data or the settings rule out, each with what is missing.

    Parameters
    ----------
    names : Sequence of str
        Names of baselines.
    histories : Histories
        Histories of the dataset.
    config : EvaluateConfig
        Settings of the baselines.

    Returns
    -------
    dict of str to str
        Name to reason, for the baselines that cannot be fitted.
    """
    found = {name: type(build_baseline(name, config)).lacks(histories, config) for name in names}
    return {name: why for name, why in found.items() if why}


def fit_baselines(
    names: Sequence[str],
    histories: Histories,
    num_items: int,
    config: EvaluateConfig,
    metric: str,
    refit: bool,
    evaluated_V: Array | None = None,
) -> dict[str, Baseline]:
    """Choose every baseline's constants on validation and fit it for test.

    The choice fits on training events only and maximises ``metric`` on at most
    :data:`MOST_QUERIES` validation queries, evenly spaced over the users; fewer for more than
    26,000 items, but not below 500. With ``refit``, the
    chosen constants are fitted again on training and validation events, as the model is; otherwise
    the fit on training events stays. Without validation queries the defaults stay and
    ``validation`` is None. If not all event types are predicted, each baseline is tried with all
    events and with events of the predicted types only; its constant ``events`` says which.
    ``evaluated_V`` marks the evaluated users; None for all. The result does not contain those of
    :func:`left_out`.

    Parameters
    ----------
    names : Sequence of str
        Names of the baselines to fit.
    histories : Histories
        Histories with all splits.
    num_items : int
        Number of items N.
    config : EvaluateConfig
        Settings of the baselines.
    metric : str
        Accuracy metric that the choice maximises, such as ``ndcg@20``.
    refit : bool
        Whether the final fit includes the validation events.
    evaluated_V : array, [V] bool, or None
        Users whose validation queries count; None for all.

    Returns
    -------
    dict of str to Baseline
        Fitted baselines by name, in the order of ``names``.

    Raises
    ------
    ConfigError
        ``metric`` is no accuracy metric.
    """
    parse_metric(metric, tuple(QUERY_METRICS))
    train = histories.through(Split.TRAIN)
    queries = histories.queries(Split.VALID)
    if evaluated_V is not None and not evaluated_V.all():
        queries = queries.take(np.flatnonzero(evaluated_V[queries.histories.users_U]))
    most = min(MOST_QUERIES, max(_MOST_SCORES // max(num_items, 1), _LEAST_QUERIES))
    if len(queries) > most:
        queries = queries.take(np.linspace(0, len(queries) - 1, most).astype(np.int64))
    final = histories.through(Split.VALID) if refit else train
    fitted = {}
    ruled_out = left_out(names, histories, config)
    for name in with_progress(
        "fitting baselines", [name for name in names if name not in ruled_out]
    ):
        started = time.perf_counter()
        baseline = build_baseline(name, config)
        stale = _choose(baseline, train, num_items, queries, metric) if len(queries) else True
        if len(histories.targets_T):
            narrow = TargetEventsOnly(build_baseline(name, config))
            narrow_stale = (
                _choose(narrow, train, num_items, queries, metric) if len(queries) else True
            )
            if (narrow.validation or 0.0) > (baseline.validation or 0.0):
                baseline, stale = narrow, narrow_stale
        if refit or stale:
            baseline.fit(final, num_items)
        baseline.seconds = time.perf_counter() - started
        fitted[name] = baseline
    return fitted


def _choose(
    baseline: Baseline, train: Histories, num_items: int, queries: Queries, metric: str
) -> bool:
    """Set the constants with the best validation metric; True if the
    last fit has other constants.
    """
    kind, k = parse_metric(metric)
    best: tuple[float, Constants] | None = None
    for constants in baseline.fits(train, num_items):
        ranking = rank(
            baseline, queries, k, baseline.config.exclude_seen, baseline.config.chunk_users
        )
        if len(ranking) == 0:
            break
        value = float(QUERY_METRICS[kind](ranking.hits_BK, ranking.num_targets_B, k).mean())
        if best is None or value > best[0]:
            best = value, dict(constants)
    last = dict(baseline.constants)
    if best is None:
        baseline.constants = dict(baseline.grid[0])
    else:
        baseline.validation, baseline.constants = best
    return last != baseline.constants


def _cosine_neighbours(interactions_UN: sp.csr_matrix, k: int) -> sp.csr_matrix:
    """The k most similar items of every item, itself included: [N, N], row = item."""
    from implicit.nearest_neighbours import ItemItemRecommender

    users_N = np.bincount(interactions_UN.indices, minlength=interactions_UN.shape[1])
    unit_UN = interactions_UN.astype(np.float64)
    unit_UN.data /= np.sqrt(users_N[unit_UN.indices])  # the norm of a binary column
    model = ItemItemRecommender(
        K=min(k, interactions_UN.shape[1]), num_threads=torch.get_num_threads()
    )
    model.fit(unit_UN, show_progress=False)
    return model.similarity


def _first_per_row(similarity_NN: sp.csr_matrix, k: int) -> sp.csr_matrix:
    """The matrix with only the k largest entries of every row."""
    rows = np.repeat(np.arange(similarity_NN.shape[0]), np.diff(similarity_NN.indptr))
    order = np.lexsort((-similarity_NN.data, rows))
    ranks = np.arange(len(order)) - similarity_NN.indptr[rows]
    keep = np.sort(order[ranks < k])
    entries = (similarity_NN.data[keep], (rows[keep], similarity_NN.indices[keep]))
    return sp.csr_matrix(entries, shape=similarity_NN.shape)


def _right_singular(interactions_UM: sp.csr_matrix) -> tuple[Array, Array]:
    """V [M, R] float32 and the squared singular values [R] of X = U S Vᵀ, from the smaller Gram
    matrix.
    """
    wide = interactions_UM.shape[0] <= interactions_UM.shape[1]
    gram = interactions_UM @ interactions_UM.T if wide else interactions_UM.T @ interactions_UM
    squares, vectors = np.linalg.eigh(gram.toarray().astype(np.float64))
    real = squares > 1e-6 * max(float(squares.max(initial=0.0)), 1e-12)
    squares, vectors = squares[real], vectors[:, real]
    right_MR = (interactions_UM.T @ vectors) / np.sqrt(squares) if wide else vectors
    return right_MR.astype(np.float32), squares
