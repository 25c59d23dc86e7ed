"""Stratum: the user clusters (strata) that a history belongs to, and what users in these clusters
like (S2).

A user is u = the unit mean of the unit vectors of the history's items, from text or, without text,
from the current item vectors. Strata are clusters of the rows of A_ij = cos(u_i, v_j) over the
training users (see :mod:`recsys.granularities.stratum.clustering`); with d² the squared distance of
such rows,

    p(k|u) = softmax_k(−d²(u, k) / (τ g)),    z_u = Σ_k p(k|u) P_k,

with a learned prototype P_k per stratum, and g the mean gap between all strata and the nearest one,
so that τ has no unit. p is computed from the batch, so a new user is in a stratum as soon as there
is a history, and every position in training sees its past only. Centroids are fitted, not trained:
they are buffers, set by :meth:`refit`.

Legend: B queries, U rows, L length, S items in view, N items, T width of the vectors, K strata, D
model width.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from recsys.data.batches import Batch
from recsys.granularities.base import Granularity, Graphs, ItemView, ModelSizes, State
from recsys.granularities.event_matrix import EventMatrix
from recsys.granularities.stratum.clustering import (
    UserClusters,
    UserVectors,
    choices_counts,
    fit_user_clusters,
    match,
)
from recsys.granularities.stratum.section import StratumConfig

_INIT_STD = 0.05  # standard deviation of prototypes before the first fit
# fitted buffers and their shapes
_FITTED = {
    "centroids_KT": "KT",
    "axes_KT": "KT",
    "bias_K": "K",
    "size_K": "K",
    "within_K": "K",
    "total": "",
    "gap": "",
}


class Stratum(Granularity):
    """Soft memberships times prototypes; a history without any vector is absent."""

    centroids_KT: Tensor
    axes_KT: Tensor
    bias_K: Tensor
    size_K: Tensor
    within_K: Tensor
    total: Tensor
    gap: Tensor
    keeps_size = True  # the number of strata, which validation chose

    def __init__(self, config: StratumConfig, sizes: ModelSizes) -> None:
        super().__init__()
        self.config = config
        self.reads_text = config.input == "text" and sizes.text_width > 0
        self.num_strata = sizes.inputs.get("stratum") or max(config.num_strata)
        width = sizes.text_width if self.reads_text else sizes.width
        for name, shape in _FITTED.items():
            dimensions = [{"K": self.num_strata, "T": width}[letter] for letter in shape]
            self.register_buffer(name, torch.zeros(dimensions))
        self.prototypes_KD = nn.Parameter(_INIT_STD * torch.randn(self.num_strata, sizes.width))

    @property
    def is_fitted(self) -> bool:
        """Whether the strata are fitted."""
        return bool(self.size_K.sum() > 0)

    def refit_due(self, epoch: int) -> bool:
        """At the start; then every ``refit_every`` epochs if the vectors change (texts do not)."""
        every = self.config.refit_every
        return epoch == 0 or (not self.reads_text and every > 0 and epoch % every == 0)

    @torch.no_grad()
    def refit(self, graphs: Graphs, items: ItemView, seed: int) -> None:
        """Fit the strata on the users of the graphs; keep the numbering, so that prototypes keep
        their meaning.

        The first fit sets each prototype to the mean of the items that the members chose, with the
        length that a layer norm gives. Why: item vectors are short at the start, and short
        prototypes learn slowly.

        Parameters
        ----------
        graphs : Graphs
            Graphs of the events that are seen.
        items : ItemView
            The current item vectors.
        seed : int
            Seed of the clustering.

        Raises
        ------
        ConfigError
            There are fewer users with a vector than strata.
        """
        users = self.user_vectors(graphs, items)
        clusters = fit_user_clusters(users, self.num_strata, self.config.method, seed)
        if self.is_fitted:
            clusters = match(self.clusters(), clusters, users)
        else:
            counts_KN = choices_counts(clusters, users)
            share_KN = torch.as_tensor(
                counts_KN / np.maximum(counts_KN.sum(1, keepdims=True), 1)
            ).float()
            # the maximum with 1 above leaves an empty stratum at the zero vector
            means_KD = share_KN.to(items.vectors_SD.device) @ items.vectors_SD.float()
            self.prototypes_KD.copy_(normalize(means_KD, dim=1) * math.sqrt(means_KD.shape[1]))
        self.set_clusters(clusters)

    def user_vectors(self, graphs: Graphs, items: ItemView) -> UserVectors:
        """The training users of the graphs, with the current vectors; ``items`` is the whole
        catalogue.
        """
        unit_ST = normalize(self._source(items), dim=1)
        return UserVectors(EventMatrix.of(graphs), unit_ST.cpu().numpy())

    def clusters(self) -> UserClusters:
        """The fitted strata."""
        arrays = {
            name: getattr(self, name).cpu().double().numpy()
            for name, shape in _FITTED.items()
            if shape
        }
        return UserClusters(**arrays, total=float(self.total), gap=float(self.gap))

    def set_clusters(self, clusters: UserClusters) -> None:
        """Set fitted strata."""
        for name in _FITTED:
            getattr(self, name).copy_(torch.as_tensor(getattr(clusters, name)))

    def forward(self, batch: Batch, items: ItemView, state: State) -> tuple[Tensor, Tensor]:
        """Memberships times prototypes, and where a history has a vector.

        Parameters
        ----------
        batch : Batch
            Histories, and the queries on them.
        items : ItemView
            Text vectors of the items in view, or item vectors if the strata are fitted to these.
        state : dict of str to Tensor
            Not read; centroids and prototypes belong to the module.

        Returns
        -------
        z_BD : Tensor, [B, D] float
            User vector of each query.
        present_B : Tensor, [B] bool
            Whether the query sees an event on an item with a vector.
        """
        p_BK, present_B = self.memberships(batch, items)
        return p_BK @ self.prototypes_KD, present_B

    @torch.no_grad()
    def memberships(self, batch: Batch, items: ItemView) -> tuple[Tensor, Tensor]:
        """p(k|u) of every query [B, K], zero where ``present_B`` is False."""
        # a sum of many unit vectors and squared distances lose too much in bfloat16
        with torch.autocast(items.vectors_SD.device.type, enabled=False):
            unit_ULT = normalize(self._source(items)[batch.history_UL], dim=2)
            # padding is item 0, which must not count
            history_ULT = unit_ULT * batch.mask_UL[:, :, None].to(unit_ULT.dtype)
            if batch.sees_whole_rows:
                summed_BT = history_ULT.sum(1)[batch.rows_B]
            else:
                summed_BT = history_ULT.cumsum(1)[batch.rows_B, (batch.seen_B - 1).clamp(min=0)]
            # opposite vectors can cancel; the direction of what is left is rounding error
            present_B = (batch.seen_B > 0) & (summed_BT.square().sum(1) > 1e-12)
            u_BT = normalize(summed_BT, dim=1)
            # the gap is 0 before the first fit
            scale = (self.config.temperature * self.gap).clamp(min=1e-12)
            logits_BK = (2 * (u_BT @ self.axes_KT.T) - self.bias_K) / scale
            return torch.softmax(logits_BK, dim=1) * present_B[:, None], present_B

    def _source(self, items: ItemView) -> Tensor:
        """Vectors of the items [S, T], zero where there is none; they get no gradient from here."""
        source_SX = items.text_ST if self.reads_text else items.vectors_SD.detach()
        return source_SX.float()
