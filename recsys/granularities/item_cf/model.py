"""Item-based collaborative filtering: a closed-form item–item model as a member of the fusion (S3).

The ridge regression of every item on all others with a zero diagonal (EASE, Steck 2019), on events stacked with item
text (Collective EASE, Jeunen et al. 2020):

    M = [X; √α Tᵀ],   B = I − P diag(P)⁻¹,   P = (MᵀM + λI)⁻¹,   r_ui = x_u · B_i

No N × N matrix is made. With the leading singular triples M ≈ A Σ Qᵀ and g = σ² / (σ² + λ), an item that is not in the
history scores r_ui = Σ_{j ∈ H_u} x_uj (g ⊙ q_j) · q_i w_i, w_i = 1 / (1 − Σ_r g_r q_ir²): exact at full rank, and a
user is one vector. The items in the history differ by their own share, which no ranking of unseen items meets.

It is fitted, not trained: the loop leaves it alone, and its weight is chosen on validation afterwards, as a model that
saw these factors in training would trust them on the very events they were fitted on.

Legend: V users, N items, E training events, T text width, R rank, M rows of the stacked matrix, B queries, L length.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from recsys.data.batches import Batch
from recsys.data.histories import Array
from recsys.granularities.base import Granularity, Graphs, ItemView, ModelSizes, State
from recsys.granularities.item_cf.section import ItemCFConfig

_OVERSAMPLE: Final = 32
_ITERATIONS: Final = 6


class ItemCF(Granularity):
    """A fitted member with item vectors of its own, beside those that are trained."""

    fitted = True

    def __init__(self, config: ItemCFConfig, sizes: ModelSizes) -> None:
        super().__init__()
        self.config = config

    def state(self, items: ItemView, graphs: Graphs) -> State:
        events = training_matrix(graphs, self.config.event_weights)
        basis_NR, share_R, scale_N = factors(events, items.text_ST.cpu().numpy(), self.config)
        made = {"fold_NR": basis_NR * share_R, "unfold_R": 1 / np.maximum(share_R, 1e-12), "scale_N": scale_N}
        device = items.vectors_SD.device
        return {name: torch.as_tensor(value).float().to(device) for name, value in made.items()}

    def own_items(self, state: State) -> Tensor:
        return state["fold_NR"] * state["unfold_R"] * state["scale_N"][:, None]

    def forward(self, batch: Batch, items: ItemView, state: State) -> tuple[Tensor, Tensor]:
        history_BL = batch.history_UL[batch.rows_B]
        real_BL = torch.arange(history_BL.shape[1], device=history_BL.device) < batch.seen_B[:, None]
        weights_BL = real_BL.float()
        if self.config.event_weights == "rank":
            weights_BL = weights_BL * rank_weights(batch.values_UL[batch.rows_B], real_BL)
        z_BR = embedding_bag(history_BL, state["fold_NR"], mode="sum", per_sample_weights=weights_BL)
        return z_BR, (z_BR != 0).any(1)


def rank_weights(values_BL: Tensor, real_BL: Tensor) -> Tensor:
    """½ + the share of a row's events with smaller values, ties half: mean 1; 1 where a value is unknown (NaN).

    Why ranks: counts of plays differ by orders of magnitude between users, their order within a user does not.

    >>> rank_weights(torch.tensor([[5.0, 1.0, 9.0, 1.0]]), torch.ones(1, 4, dtype=torch.bool))
    tensor([[1.1250, 0.7500, 1.3750, 0.7500]])
    """
    known_BL = real_BL & ~values_BL.isnan()
    sorted_BL = torch.where(known_BL, values_BL, torch.inf).sort(dim=1).values
    smaller_BL, not_larger_BL = (torch.searchsorted(sorted_BL, values_BL.contiguous(), right=r) for r in (False, True))
    rank_BL = 0.5 + (smaller_BL + not_larger_BL) / 2 / known_BL.sum(1, keepdim=True).clamp(min=1)
    return torch.where(known_BL, rank_BL, 1.0)


def training_matrix(graphs: Graphs, event_weights: str) -> sp.csr_array:
    """X [V, N]: the training events, weighted as :func:`rank_weights` does."""
    users_E, items_E = graphs.users_E.cpu().numpy(), graphs.items_E.cpu().numpy()
    weights_E = np.ones(len(users_E), dtype=np.float32)
    if event_weights == "rank" and graphs.values_E is not None:
        weights_E = _ranks_within(users_E, graphs.values_E.cpu().numpy())
    return sp.csr_array((weights_E, (users_E, items_E)), (graphs.num_users, graphs.num_items))


def _ranks_within(users_E: Array, values_E: Array) -> Array:
    """:func:`rank_weights` of a long list of events."""
    keys, group_E, count_G = np.unique(np.stack([users_E, values_E]), axis=1, return_inverse=True, return_counts=True)
    size_V = np.bincount(users_E)
    before_G = np.cumsum(count_G) - count_G
    first_V = np.cumsum(size_V) - size_V
    owner_G = keys[0].astype(np.int64)
    weight_G = 0.5 + (before_G - first_V[owner_G] + 0.5 * count_G) / size_V[owner_G]
    return np.asarray(weight_G[group_E.reshape(-1)], dtype=np.float32)


def factors(events_VN: sp.csr_array, text_NT: Array, config: ItemCFConfig) -> tuple[Array, Array, Array]:
    """Basis Q [N, R], shares g [R] and scales w [N] of the docstring's formula; w is zero for items never chosen."""
    chosen_N = np.asarray((events_VN != 0).sum(0)).ravel() > 0
    text_NT = np.sqrt(config.text_weight) * text_NT * chosen_N[:, None] if config.text_weight else text_NT[:, :0]
    basis_NR, sigma_R = spectrum(events_VN, text_NT, config.rank)
    share_R = sigma_R**2 / (sigma_R**2 + config.regularisation)
    scale_N = np.where(chosen_N, 1 / np.maximum(1 - basis_NR**2 @ share_R, 1e-3), 0.0)
    return basis_NR, share_R, scale_N


def spectrum(events_VN: sp.csr_array, text_NT: Array, rank: int) -> tuple[Array, Array]:
    """Leading right singular vectors [N, R] and values [R] of the events stacked on the transposed text.

    Rank R is cut to the smaller side of the stacked matrix. Randomised subspace iteration (Halko et al. 2011),
    deterministic.
    """
    num_users, num_items = events_VN.shape
    columns = sp.csr_array(events_VN.T)

    def down(basis_NR: Array) -> Array:
        return np.concatenate([events_VN @ basis_NR, text_NT.T @ basis_NR])

    def up(basis_MR: Array) -> Array:
        return np.asarray(columns @ basis_MR[:num_users] + text_NT @ basis_MR[num_users:])

    largest = min(num_users + text_NT.shape[1], num_items)
    width = min(min(rank, largest) + _OVERSAMPLE, largest)
    basis_NR = np.random.default_rng(0).normal(size=(num_items, width)).astype(np.float32)
    for _ in range(_ITERATIONS):
        basis_NR, _ = np.linalg.qr(up(np.linalg.qr(down(basis_NR))[0]))
    _, sigma_R, turn_RR = np.linalg.svd(down(basis_NR), full_matrices=False)
    return (basis_NR @ turn_RR.T)[:, :rank], sigma_R[:rank]
