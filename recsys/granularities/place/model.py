"""Place: distance of items to the user's recent and usual places, and similarity in numbers such as
a price.

    k(i, j) = Σ_b θ_b exp(−d_ij / h_b) + Σ_m η_m exp(−|ρ_im − ρ_jm| / s),
    r_ui    = Σ_j w_j k(i, j) + γ log q_i.

d is the distance in kilometres, ρ the rank of a number among the items, and w the weights of the
history's events, which sum to 1 and fall with the number of later events. q is the item's share of
events; with a half-life, that of the last days: after the last event for scores, before each event
for learning. θ, η and γ ≥ 0 maximise the likelihood of events given those before, log softmax(r),
over randomly drawn items: a convex problem with a handful of parameters. Why the half-life: with q
of all times a new item would count as unpopular, no matter where it is.

So that a user is one vector, k is factored, k(i, j) ≈ a_i · a_j, by randomly pivoted Cholesky
(Chen, Epperly, Tropp and Webber 2022). The factors are exact for the sampled landmarks, most of
which are in dense areas. Then z_u = Σ_j w_j a_j. An item without coordinates and numbers has no
vector.

Memory: N × landmarks numbers, at most 2^26.

Legend: N items, C coordinates, M landmarks, F kernels, P positions to learn from, S sampled items
per position, B queries, E events.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from recsys.config import Config
from recsys.data.batches import Batch
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array, Histories, Split
from recsys.data.quantities import quantities
from recsys.granularities.base import Granularity, Graphs, ItemView, ModelSizes, State
from recsys.granularities.history import event_weights, seen_events
from recsys.granularities.place.coordinates import Places, found_columns, read_places
from recsys.granularities.place.section import PlaceConfig
from recsys.granularities.shares import LogShares

# quantiles of distances between consecutive events; they are the bandwidths
_QUANTILES: Final = (0.05, 0.2, 0.4, 0.6, 0.85)
_STEPS: Final = (0.05, 0.25)  # bandwidths in rank
# events to learn from, sampled items per event, earlier events of each
_POSITIONS, _OTHERS, _LATEST = 2000, 500, 20
_RIDGE: Final = 1e-3
_MAX_NUMBERS: Final = 2**26
_LEAST: Final = 1e-6  # smallest residual of the kernel's diagonal


class Place(Granularity):
    """A closed-form member with its own item vectors; absent where nothing is known about the
    history's items.
    """

    closed_form = True
    reads_events = False
    reads_histories = True

    @classmethod
    def size(
        cls, section: PlaceConfig, dataset: PreparedDataset, through: Split
    ) -> list[list[str]]:
        """Names of the columns of coordinates and numbers.

        Parameters
        ----------
        section : PlaceConfig
            Names the columns; coordinates without names are found by usual names such as ``lat``.
        dataset : PreparedDataset
            The dataset with the item attributes.
        through : Split
            Not read, because item attributes are not events.

        Returns
        -------
        list of list of str
            Two columns of coordinates or none, and the columns of numbers.

        Raises
        ------
        ConfigError
            Items lack a named column, or only one coordinate is named.
        """
        return found_columns(dataset.features.column_names, section.coordinates, section.numbers)

    @classmethod
    def build_input(
        cls, section: PlaceConfig, sizes: ModelSizes, dataset: PreparedDataset, through: Split
    ) -> Places:
        """Coordinates and numbers of the items.

        Parameters
        ----------
        section : PlaceConfig
            Not read.
        sizes : ModelSizes
            ``sizes.inputs`` has the names of the columns.
        dataset : PreparedDataset
            The dataset with the item attributes.
        through : Split
            Not read.

        Returns
        -------
        Places
            Points in kilometres, and ranks of the numbers, 0 to 1; NaN where unknown.
        """
        return read_places(dataset.features, sizes.inputs["place"])

    @classmethod
    def proposed(cls, section: PlaceConfig, dataset: PreparedDataset) -> dict[str, Any]:
        """Columns of quantities in the dataset."""
        coordinates, _ = cls.size(section, dataset, Split.TRAIN)
        found = quantities(dataset.features, coordinates)
        return {"numbers": found} if found else {}

    @classmethod
    def idle(cls, section: PlaceConfig, dataset: PreparedDataset, config: Config) -> str:
        """Items must differ in a place or a number.

        Parameters
        ----------
        section : PlaceConfig
            Names the columns.
        dataset : PreparedDataset
            The dataset with the item attributes.
        config : Config
            Not read.

        Returns
        -------
        str
            Why places and numbers do not distinguish items; "" if they do.

        Raises
        ------
        ConfigError
            As in :meth:`size`.
        """
        coordinates, numbers = cls.size(section, dataset, Split.TRAIN)
        if not (coordinates or numbers):
            return "items have no coordinates and no quantities such as a price"
        if not read_places(dataset.features, [coordinates, numbers]).differ:
            return f"all items are equal in {', '.join([*coordinates, *numbers])}"
        return ""

    def __init__(self, config: PlaceConfig, sizes: ModelSizes) -> None:
        super().__init__()
        config.check(sizes)
        self.config = config
        self.recency = config.recency[0] if sizes.ordered else 0.0

    def state(self, items: ItemView, graphs: Graphs) -> State:
        """Fit the kernel and factor it."""
        places: Places = graphs["place"]
        assert graphs.histories is not None, "reads_histories is set, so build_graphs has them"
        counts_N = graphs.degree_N.cpu().numpy()
        shares = LogShares.of(graphs.histories, graphs.num_items, self.config.half_life[0])
        kernel = Kernel(
            places, self.config.bandwidths or bandwidths(graphs.histories, places.points_NC)
        )
        weights_F, share = learned(kernel, graphs.histories, shares, self.recency)
        vectors_NM = kernel.factored(weights_F, counts_N + 1, self.config.landmarks)
        vectors_NM = np.concatenate([vectors_NM, share * shares.last_N[:, None]], axis=1)
        made = {
            "vectors_NM": vectors_NM.astype(np.float32),
            "known_N": places.known_N,
            "weights_F": weights_F,
        }
        return {
            name: torch.as_tensor(value).to(items.vectors_SD.device) for name, value in made.items()
        }

    def own_items(self, state: State) -> Tensor:
        """Factors of the kernel, and popularity."""
        return state["vectors_NM"]

    def forward(self, batch: Batch, items: ItemView, state: State) -> tuple[Tensor, Tensor]:
        """Weighted mean of the history's factors, and where one is known.

        Parameters
        ----------
        batch : Batch
            Queries; every event counts, also repeated ones.
        items : ItemView
            Not read.
        state : dict of str to Tensor
            ``vectors_NM`` [N, M + 1] and ``known_N`` [N] bool.

        Returns
        -------
        z_BM : Tensor, [B, M + 1] float32
            The mean; the last column, which is that of popularity, is 1 where the query is present.
        present_B : Tensor, [B] bool
            Whether something is known about an item of the history.
        """
        seen = seen_events(batch)
        seen = seen.where(state["known_N"][seen.items_E])
        weights_E = event_weights(seen, batch.asked_at_B, self.recency, None)
        weights_E = weights_E / seen.per_query(weights_E).clamp(min=1e-30)[seen.rows_E]
        vectors_NM = state["vectors_NM"]
        z_BM = vectors_NM.new_zeros(len(batch), vectors_NM.shape[1])
        z_BM.index_add_(0, seen.rows_E, vectors_NM[seen.items_E] * weights_E[:, None])
        present_B = seen.per_query(torch.ones_like(seen.rows_E)) > 0
        z_BM[:, -1] = present_B.float()  # the popularity term has weight 1
        return z_BM, present_B


class Kernel:
    """Similarities of items, each positive definite and 1 at distance 0; 0 where an item is
    unknown.
    """

    def __init__(self, places: Places, widths: list[float]) -> None:
        self.places = places
        self.widths = widths if places.points_NC.shape[1] else []

    def between(self, left_X: Array, right_Y: Array) -> Array:
        """Similarities of some items to others, by kernel: [F, X, Y]."""
        found = []
        if self.widths:
            points_XC, points_YC = self.places.points_NC[left_X], self.places.points_NC[right_Y]
            squares_XY = (
                (points_XC**2).sum(1)[:, None] + (points_YC**2).sum(1) - 2 * points_XC @ points_YC.T
            )
            distance_XY = np.sqrt(squares_XY.clip(0))
            found += [np.exp(-distance_XY / width) for width in self.widths]
        for ranks_N in self.places.ranks_NK.T:
            apart_XY = np.abs(ranks_N[left_X][:, None] - ranks_N[right_Y])
            found += [np.exp(-apart_XY / width) for width in _STEPS]
        return np.asarray(np.nan_to_num(np.stack(found), nan=0.0))

    def factored(self, weights_F: Array, importance_N: Array, landmarks: int) -> Array:
        """Factors a with a_i · a_j ≈ Σ_f weights_f k_f(i, j), exact where i or j is a landmark.

        Parameters
        ----------
        weights_F : array, [F] float
            Weight of each kernel, at least 0.
        importance_N : array, [N] float
            An item becomes a landmark with a probability proportional to this number times the part
            of k(i, i) that is not yet factored.
        landmarks : int
            Most landmarks M.

        Returns
        -------
        array, [N, M] float64
            The factors. M is smaller if there are fewer items, if memory limits it, or if nothing
            is left to factor.
        """
        num_items = len(importance_N)
        everything = np.arange(num_items)
        most = max(1, min(landmarks, num_items, _MAX_NUMBERS // max(num_items, 1)))
        vectors_NM = np.zeros((num_items, most))
        left_N = np.einsum("f,fn->n", weights_F, self._diagonal())
        least = _LEAST * max(float(left_N.max(initial=0.0)), 1e-30)
        random = np.random.default_rng(0)
        for place in range(most):
            chance_N = np.where(left_N > least, left_N, 0.0) * importance_N
            if not chance_N.any():
                return vectors_NM[:, :place]
            pivot = int(random.choice(num_items, p=chance_N / chance_N.sum()))
            column_N = np.einsum(
                "f,fn->n", weights_F, self.between(everything, np.array([pivot]))[:, :, 0]
            )
            column_N = column_N - vectors_NM[:, :place] @ vectors_NM[pivot, :place]
            vectors_NM[:, place] = column_N / np.sqrt(left_N[pivot])
            left_N = (left_N - vectors_NM[:, place] ** 2).clip(0)
            left_N[pivot] = 0
        return vectors_NM

    def _diagonal(self) -> Array:
        """k(i, i) of every kernel: [F, N]."""
        # True without coordinates; then there are no widths either
        is_placed_N = ~np.isnan(self.places.points_NC).any(1)
        found = [is_placed_N] * len(self.widths)
        for ranks_N in self.places.ranks_NK.T:
            found += [~np.isnan(ranks_N)] * len(_STEPS)
        return np.stack(found).astype(np.float64)


def bandwidths(histories: Histories, points_NC: Array) -> list[float]:
    """Bandwidths in kilometres: quantiles of the distances between users' consecutive events,
    without zeros.
    """
    if not points_NC.shape[1]:
        return []
    rows_E = np.repeat(np.arange(len(histories)), histories.lengths_U)
    same_E = rows_E[1:] == rows_E[:-1]
    before = points_NC[histories.items_E[:-1][same_E]]
    after = points_NC[histories.items_E[1:][same_E]]
    distance_E = np.sqrt(((before - after) ** 2).sum(1))
    distance_E = distance_E[distance_E > 1e-3]
    found = np.quantile(distance_E, _QUANTILES) if len(distance_E) else np.ones(1)
    return [float(width) for width in np.unique(found.round(3)) if width > 0] or [1.0]


def learned(
    kernel: Kernel, histories: Histories, shares: LogShares, recency: float
) -> tuple[Array, float]:
    """θ and η [F], and γ, by the likelihood of events given earlier ones; equal weights if there is
    nothing to learn from.

    Parameters
    ----------
    kernel : Kernel
        Similarities of the items.
    histories : Histories
        Training events in order; up to 2000 of them are drawn to learn from.
    shares : LogShares
        log q before each event.
    recency : float
        p: an event with n later events has weight (n + 1)^−p before the weights are scaled to sum
        1.

    Returns
    -------
    weights_F : array, [F] float64
        θ, then η; at least 0.
    share : float
        γ, at least 0.
    """
    known_N = kernel.places.known_N
    random = np.random.default_rng(0)
    column_E = shares.before(histories.times_E)
    rows_E = np.repeat(np.arange(len(histories)), histories.lengths_U)
    place_E = np.arange(len(rows_E)) - histories.offsets_U1[rows_E]
    usable = np.flatnonzero((place_E > 0) & known_N[histories.items_E])
    chosen_P = random.choice(usable, min(len(usable), _POSITIONS), replace=False)
    pool_S = random.choice(np.flatnonzero(known_N), min(int(known_N.sum()), _OTHERS), replace=False)
    features, own, columns = [], [], []
    for event in chosen_P:
        start = max(histories.offsets_U1[rows_E[event]], event - _LATEST)
        before = histories.items_E[start:event].astype(np.int64)
        target = int(histories.items_E[event])
        is_known = known_N[before]
        if target in before or not is_known.any():
            continue
        weights = np.arange(len(before), 0, -1.0)[is_known] ** -recency
        items_T = np.concatenate([[target], pool_S])
        similarity_FSL = kernel.between(items_T, before[is_known])
        features.append(similarity_FSL @ (weights / weights.sum()))
        own.append(target)
        columns.append(column_E[event])
    num_kernels = len(kernel.widths) + len(_STEPS) * kernel.places.ranks_NK.shape[1]
    if not features:
        return np.ones(num_kernels), 1.0
    features_PFS = np.stack(features)
    choices_PS = np.concatenate([np.array(own)[:, None], np.tile(pool_S, (len(own), 1))], axis=1)
    popularity_PS = shares.table_NT[choices_PS, np.array(columns)[:, None]]
    features_PFS = np.concatenate([features_PFS, popularity_PS[:, None]], axis=1)
    # the target among the drawn ones
    is_again_PS = np.concatenate(
        [np.zeros((len(own), 1), dtype=bool), np.array(own)[:, None] == pool_S], axis=1
    )

    def loss(theta_F: Array) -> tuple[float, Array]:
        scores_PS = np.einsum("f,pfs->ps", theta_F, features_PFS)
        scores_PS = np.where(is_again_PS, -np.inf, scores_PS)
        scores_PS -= scores_PS.max(1, keepdims=True)
        chance_PS = np.exp(scores_PS)
        total_P = chance_PS.sum(1, keepdims=True)
        chance_PS = chance_PS / total_P
        value = (np.log(total_P[:, 0]) - scores_PS[:, 0]).mean() + _RIDGE * (theta_F**2).sum()
        slope_F = np.einsum("ps,pfs->f", chance_PS, features_PFS) - features_PFS[:, :, 0].sum(0)
        return float(value), slope_F / len(own) + 2 * _RIDGE * theta_F

    start_F = np.ones(num_kernels + 1)
    found = minimize(
        loss, start_F, jac=True, method="L-BFGS-B", bounds=[(0.0, None)] * len(start_F)
    )
    return found.x[:-1], float(found.x[-1])
