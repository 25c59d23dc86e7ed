"""Implicit alternating least squares as a member: item factors from all events; one exact solve per
user.

    min Σ_ui c_ui (x_ui − z_u · y_i)² + λ (Σ ‖z_u‖² + Σ ‖y_i‖²),
    z_u = (YᵀY + λI + (α − 1) Y_HᵀY_H)⁻¹ α Y_Hᵀ1

with c = α for an event, 1 for what is missing (Hu, Koren and Volinsky 2008). The solver of the
library ``implicit`` fits the factors, a block of users or of items at a time; serving solves in
torch without it. A user vector is a function of the history, so new users are served in the same
way. Validation chooses α and λ.

Legend: N items, R factors, B queries, E events that they see, L events of a query.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor

from recsys.data.batches import Batch
from recsys.data.histories import Array
from recsys.granularities.als.section import AlsConfig
from recsys.granularities.base import Granularity, Graphs, ItemView, ModelSizes, State
from recsys.granularities.event_matrix import EventMatrix, training_matrix
from recsys.granularities.history import seen_events, target_types

# numbers in memory per chunk, for item factors and for matrices: 64 MB each
_NUMBERS: Final = 2**24
# large blocks, as each one computes the Gram matrix of the other side again
_BLOCK_EVENTS: Final = 2**24


class Als(Granularity):
    """A closed-form member with its own item vectors; absent where a history is empty."""

    closed_form = True

    def __init__(self, config: AlsConfig, sizes: ModelSizes) -> None:
        super().__init__()
        self.config, self.alpha = config, config.alpha[0]
        self.reads_histories = "targets" in config.types and sizes.num_types > 1

    def state(self, items: ItemView, graphs: Graphs) -> State:
        """Fit the item factors; keep them and their Gram matrix."""
        counts_T = target_types(graphs)[: None if self.config.types[0] == "targets" else 0]
        events = training_matrix(graphs, "none", len(counts_T) > 0)
        known_N1 = torch.as_tensor(events.counts_N > 0)[:, None]
        items_NR = torch.as_tensor(self._item_factors(events)) * known_N1
        gram_RR = items_NR.T @ items_NR + self.config.regularisation[0] * torch.eye(
            items_NR.shape[1]
        )
        device = items.vectors_SD.device
        return {
            "items_NR": items_NR.to(device),
            "gram_RR": gram_RR.to(device),
            "counts_T": counts_T.to(device),
        }

    def _item_factors(self, events_VN: EventMatrix) -> Array:
        """The item factors [N, R] that ``implicit`` fits, with the events in blocks."""
        import threadpoolctl
        from implicit.cpu.als import AlternatingLeastSquares
        from implicit.utils import check_random_state

        config, random = self.config, check_random_state(0)
        solver = AlternatingLeastSquares(factors=config.factors).solver
        sides = [events_VN, events_VN.transposed()]
        users_VR: Array
        items_NR: Array
        users_VR, items_NR = (
            random.random((side.shape[0], config.factors), dtype=np.float32) * np.float32(0.01)
            for side in sides
        )
        turns = list(zip(sides, (users_VR, items_NR), (items_NR, users_VR), strict=True))
        with threadpoolctl.threadpool_limits(1, "blas"):  # nested thread pools make it slow
            for _ in range(config.iterations):
                for side, own, other in turns:
                    for rows, part in side.blocks(_BLOCK_EVENTS):
                        solver(
                            self.alpha * part,
                            own[rows],
                            other,
                            config.regularisation[0],
                            num_threads=torch.get_num_threads(),
                        )
        assert np.isfinite(items_NR).all(), "ALS diverged"
        return items_NR

    def own_items(self, state: State) -> Tensor:
        """Item factors."""
        return state["items_NR"]

    def forward(self, batch: Batch, items: ItemView, state: State) -> tuple[Tensor, Tensor]:
        """Factors of every user by one exact solve, and where there are any.

        Parameters
        ----------
        batch : Batch
            Queries; each distinct item of a history counts once.
        items : ItemView
            Not read.
        state : dict of str to Tensor
            ``items_NR`` [N, R], ``gram_RR`` [R, R] and ``counts_T``, the mask of the event types
            that count.

        Returns
        -------
        z_BR : Tensor, [B, R] float32
            Factors of each user.
        present_B : Tensor, [B] bool
            Whether these factors are not all zero; an item without training events adds nothing to
            them.
        """
        seen = seen_events(batch).of_types(state.get("counts_T")).distinct()
        counts_B = seen.per_query(torch.ones_like(seen.rows_E))
        position_E = (
            torch.arange(len(seen.rows_E), device=counts_B.device)
            - (counts_B.cumsum(0) - counts_B)[seen.rows_E]
        )
        none, rank = state["items_NR"].shape
        longest = max(int(counts_B.max()) if len(batch) else 0, 1)
        # index of the row of zeros after the factors
        items_BL = torch.full((len(batch), longest), none, device=counts_B.device)
        items_BL[seen.rows_E, position_E] = seen.items_E
        padded_IR = torch.cat([state["items_NR"], state["items_NR"].new_zeros(1, rank)])
        # the chunk holds item factors [b, L, R] and matrices [b, R, R]; the larger one sets the
        # limit
        size = max(1, _NUMBERS // (rank * max(rank, longest)))
        found = [
            self._solved(padded_IR[items_bL], state["gram_RR"])
            for items_bL in torch.split(items_BL, size)
        ]
        z_BR = torch.cat(found) if found else state["items_NR"].new_zeros(0, rank)
        return z_BR, (z_BR != 0).any(1)

    def _solved(self, own_bLR: Tensor, gram_RR: Tensor) -> Tensor:
        left_bRR = gram_RR + (self.alpha - 1) * own_bLR.mT @ own_bLR
        solved_bR: Tensor = torch.linalg.solve(left_bRR, self.alpha * own_bLR.sum(1))
        return solved_bR
