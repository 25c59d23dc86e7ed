"""Stacking: one weight for the trained granularities together and one for every closed-form member,
by the length of a query's history. :mod:`recsys.evaluation.stacking` chooses them on validation.

A member's scores are divided by their standard deviation over the catalogue, for each query. Why:
scores that are a sum over the history grow with its length, scores that are a mean do not, and one
weight must fit both. With C the covariance of the member's item vectors,

    std_i(z · a_i) = sqrt(z C zᵀ),    u = Σ_m w_m(g) / (std_m + f_m) · z_m,

where g is the group of the history's length, and f_m is a share of the member's mean deviation.
Why: without it, a member that hardly distinguishes items for a query would be blown up. The factor
depends on the query alone, so a user is still one vector and every share is exact. Scores of sparse
members are divided by their root mean square; if they are probabilities, by one constant for all
queries.

Legend: B queries, D width of a member, N items, M members, G groups of history length.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

from recsys.granularities.sparse import SparseScores

TRAINED: Final = "trained"  # the trained granularities as one member
BOUNDS: Final = (1, 3, 6, 11, 21, 51)  # history lengths at which a new group begins
NUM_GROUPS: Final = len(BOUNDS) + 1
FLOOR: Final = 0.3  # share of a member's mean spread
_LEAST: Final = 1e-12  # a smaller spread means that the member does not contribute


class Stack(nn.Module):
    """The stacking weights as buffers of the model; all 1 until they are chosen."""

    weights_GM: Tensor
    scales_M: Tensor
    floors_M: Tensor
    bounds_G: Tensor

    def __init__(self, num_members: int) -> None:
        super().__init__()
        self.register_buffer("weights_GM", torch.ones(NUM_GROUPS, num_members))
        # for members whose values are probabilities
        self.register_buffer("scales_M", torch.ones(num_members))
        self.register_buffer("floors_M", torch.zeros(num_members))  # added to the spread of a query
        self.register_buffer("bounds_G", torch.tensor(BOUNDS), persistent=False)

    def groups(self, lengths_B: Tensor) -> Tensor:
        """Group of every history length: int64.

        >>> Stack(1).groups(torch.tensor([0, 1, 2, 3, 50, 51])).tolist()
        [0, 1, 1, 2, 5, 6]
        """
        return (lengths_B[:, None] >= self.bounds_G).sum(1)

    def weights(self, lengths_B: Tensor) -> Tensor:
        """The weight of every member for every query: [B, M]."""
        return self.weights_GM[self.groups(lengths_B)]

    @property
    def is_uneven(self) -> bool:
        """Whether a member has no weight for some lengths of history, but for others."""
        has_weight_GM = self.weights_GM != 0
        return bool((has_weight_GM.any(dim=0) & ~has_weight_GM.all(dim=0)).any())

    def is_pruned(self, member: int) -> bool:
        """Whether a member was pruned: its weight is zero for every query."""
        return not bool(self.weights_GM[:, member].any())


def covariance(vectors_ND: Tensor) -> Tensor:
    """Covariance of item vectors over the catalogue: [D, D]."""
    centred_ND = vectors_ND.float() - vectors_ND.float().mean(dim=0)
    return centred_ND.T @ centred_ND / max(len(vectors_ND), 1)


def spread(users_BD: Tensor, covariance_DD: Tensor) -> Tensor:
    """Standard deviation of every query's scores over the catalogue: [B].

    >>> vectors = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 1.0]])
    >>> users = torch.tensor([[1.0, -1.0]])
    >>> over_catalogue = (users @ vectors.T).std(dim=1, correction=0)
    >>> torch.allclose(spread(users, covariance(vectors)), over_catalogue)
    True
    """
    found_B = torch.einsum("bd,bd->b", users_BD.float() @ covariance_DD, users_BD.float())
    return found_B.clamp(min=0).sqrt()


def sparse_spread(scores: SparseScores, num_rows: int, num_items: int) -> Tensor:
    """Root mean square of a sparse member's scores over the catalogue: [B].

    Parameters
    ----------
    scores : SparseScores
        Scores of the member; items that are not listed count as 0.
    num_rows : int
        Number of queries B.
    num_items : int
        Number of items in the catalogue.

    Returns
    -------
    Tensor, [B] float
        One value per query; 0 without scores.
    """
    squares_P = scores.values_P.float() ** 2
    sums_B = torch.zeros(num_rows, device=squares_P.device).index_add_(0, scores.rows_P, squares_P)
    return (sums_B / max(num_items, 1)).sqrt()


def inverse(spread_B: Tensor, floor: Tensor) -> Tensor:
    """1 / (spread + floor); zero where a member does not contribute, so that rounding errors are
    not amplified.
    """
    return torch.where(spread_B > _LEAST, 1 / (spread_B + floor).clamp(min=_LEAST), 0.0)
