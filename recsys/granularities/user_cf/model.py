"""User-based collaborative filtering: what the training users with the most similar taste chose
(S3).

With X the training events and d_i the number of users of an item, tastes are rows of the leading
singular space of

    X D^-β ≈ T Qᵀ (R columns),    t_u = Σ_{j ∈ H_u} d_j^-β q_j,

which finds neighbours without common items. The user is the weighted mean of the neighbours'
tastes,

    z_u = Σ_{v ∈ N_k(u)} w_uv t_v,    w_uv ∝ max(cos(t_u, t_v), 0)^p,    r_ui = z_u · q_i d_i^(β−γ),

where γ > 0 damps items that all users' neighbours chose. N_k(u) never contains u itself, by dense
user id: neither a user's own events nor, at a position of an ordered history, later events come
back through a neighbour.

It has a closed form, like ``item_cf``. Serving needs the state alone: V (R + 1) numbers, 20 MB for
20,000 users at rank 256; beyond ``max_users`` an even sample of the users is kept, drawn with a
fixed seed.

Legend: V neighbours, N items, E training events, R rank, B queries, L length, K nearest neighbours.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize

from recsys.data.batches import Batch
from recsys.granularities.base import Granularity, Graphs, ItemView, ModelSizes, State
from recsys.granularities.event_matrix import EventMatrix
from recsys.granularities.spectrum import spectrum
from recsys.granularities.user_cf.section import UserCFConfig

_LEAST_COSINE: Final = 1e-5  # smaller cosines are rounding errors
_QUERIES_AT_A_TIME: Final = 1024


class UserCF(Granularity):
    """A closed-form member with its own item vectors; absent if a history is empty or has no
    neighbour.
    """

    closed_form = True

    def __init__(self, config: UserCFConfig, sizes: ModelSizes) -> None:
        super().__init__()
        self.config = config

    def state(self, items: ItemView, graphs: Graphs) -> State:
        """Tastes of the training users, and the item factors."""
        return {
            name: value.to(items.vectors_SD.device) for name, value in self._fit(graphs).items()
        }

    def _fit(self, graphs: Graphs) -> State:
        degree_N = graphs.degree_N.cpu().double().numpy()
        scale_N = np.maximum(degree_N, 1.0) ** -self.config.popularity_power
        events_VN = EventMatrix.of(
            graphs, lambda users_E, items_E, at: scale_N[items_E].astype(np.float32)
        )
        basis_NR, _ = spectrum(
            events_VN, np.zeros((graphs.num_items, 0), np.float32), self.config.rank
        )
        ids_V = np.flatnonzero(np.diff(graphs.starts_V1))
        if len(ids_V) > self.config.max_users:
            ids_V = np.sort(
                np.random.default_rng(0).choice(ids_V, self.config.max_users, replace=False)
            )
        damped_N = np.maximum(degree_N, 1.0) ** (
            self.config.popularity_power - self.config.popularity_damping
        )
        return {
            "ids_V": torch.as_tensor(ids_V.astype(np.int64)),
            "tastes_VR": torch.as_tensor(events_VN.take(ids_V) @ basis_NR).float(),
            "fold_NR": torch.as_tensor(basis_NR * scale_N[:, None]).float(),
            "items_NR": torch.as_tensor(basis_NR * (damped_N * (degree_N > 0))[:, None]).float(),
        }

    def own_items(self, state: State) -> Tensor:
        """Damped item factors."""
        return state["items_NR"]

    def forward(self, batch: Batch, items: ItemView, state: State) -> tuple[Tensor, Tensor]:
        """Mean taste of the nearest users, and where there are any.

        Parameters
        ----------
        batch : Batch
            Queries; histories are read up to ``model.max_history``.
        items : ItemView
            Not read.
        state : dict of str to Tensor
            ``ids_V`` [V] int64, ``tastes_VR`` [V, R] and ``fold_NR`` [N, R].

        Returns
        -------
        z_BR : Tensor, [B, R] float32
            Weighted mean of the neighbours' tastes.
        present_B : Tensor, [B] bool
            Whether this mean is not zero.
        """
        unit_VR = normalize(state["tastes_VR"], dim=1)
        starts = range(0, len(batch), _QUERIES_AT_A_TIME)
        chunks = [slice(start, start + _QUERIES_AT_A_TIME) for start in starts]
        found = [self._neighbours_taste(batch, chunk, unit_VR, state) for chunk in chunks]
        z_BR = torch.cat(found) if found else unit_VR.new_zeros(0, unit_VR.shape[1])
        return z_BR, (z_BR != 0).any(1)

    def _neighbours_taste(
        self, batch: Batch, chunk: slice, unit_VR: Tensor, state: State
    ) -> Tensor:
        """Mean taste of the neighbours of some queries. A part at a time limits the memory of the
        cosines [B, V].
        """
        rows_B = batch.rows_B[chunk]
        history_BL = batch.history_UL[rows_B]
        real_BL = (
            torch.arange(history_BL.shape[1], device=history_BL.device) < batch.seen_B[chunk, None]
        )
        taste_BR = embedding_bag(
            history_BL, state["fold_NR"], mode="sum", per_sample_weights=real_BL.float()
        )
        cosine_BV = normalize(taste_BR, dim=1) @ unit_VR.T
        cosine_BV.masked_fill_(batch.users_U[rows_B, None] == state["ids_V"], 0.0)
        nearest_BK, positions_BK = cosine_BV.topk(min(self.config.neighbours, len(unit_VR)), dim=1)
        # a power of a negative cosine would be NaN or, if even, count as similar
        weights_BK = nearest_BK.clamp(min=0) ** self.config.power * (nearest_BK > _LEAST_COSINE)
        weights_BK = weights_BK / weights_BK.sum(1, keepdim=True).clamp(min=1e-30)
        return embedding_bag(
            positions_BK, state["tastes_VR"], mode="sum", per_sample_weights=weights_BK
        )
