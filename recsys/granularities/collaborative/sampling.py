"""Convolutions over large user–item graphs: sampled in training, streamed for the frozen model.

A convolution of the items is Ã = Aᵀ A with A = D^-1/2 (user–item) D^-1/2. A step that scores the
items S samples f users of each item and f items of each of these users (Hamilton et al. 2017), each
weighted by degree over sample size,

    (Ã e)_i ≈ Σ_{u ∈ s(i)} d_i / f · (d_i d_u)^-1/2 Σ_{j ∈ s(u)} d_u / f · (d_u d_j)^-1/2 e_j,

whose expectation is Ã e; with f at least as large as the degrees it equals Ã e. Samples depend on
seed, epoch, step and node, so that all workers draw the same samples, and a resumed step does too.

Legend: N items, V users, S requested items, T items of a hop, W of the next one, U users of a hop,
D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recsys.data.histories import Array
from recsys.data.neighbours import Neighbours
from recsys.granularities.base import StepKey
from recsys.granularities.user_item_graph import Adjacency, adjacency, spread


@dataclass(frozen=True)
class Hop:
    """One sampled convolution: item set T from the next, wider set W, whose first items are T."""

    to_users: Adjacency  # [U, W]
    to_items: Adjacency  # [T, U]

    def __call__(self, layer_WD: Tensor) -> Tensor:
        """Convolve the vectors of W to those of T."""
        return spread(self.to_items, spread(self.to_users, layer_WD))

    @property
    def reach(self) -> int:
        """Number of items that the convolution reads."""
        return int(self.to_users[0].sparse_size(1))


def sample_hops(
    neighbours: Neighbours,
    ids_S: Tensor | None,
    num_hops: int,
    fanout: int,
    key: StepKey,
    device: torch.device,
) -> tuple[Tensor | None, list[Hop]]:
    """Return the items that a step needs to score ``ids_S``, and its convolutions.

    Parameters
    ----------
    neighbours : Neighbours
        The user–item graph.
    ids_S : Tensor, [S] int64, or None
        Distinct items to score.
    num_hops : int
        Number of convolutions, each from items to users and back.
    fanout : int
        Most neighbours that are sampled per node.
    key : tuple of three int
        Seed, epoch and step, which fix the samples together with the node.
    device : torch.device
        Device of the result.

    Returns
    -------
    items : Tensor, [S or more] int64, or None
        ``ids_S``, then the items of all samples; None for the whole catalogue.
    hops : list of Hop
        The convolutions. The last of the list is applied first, to the widest set of items.
    """

    def matrix(rows: Array, columns: Array, values: Array, shape: tuple[int, int]) -> Adjacency:
        rows_E, columns_E = (torch.from_numpy(part).to(device) for part in (rows, columns))
        values_E = torch.from_numpy(values.astype(np.float32)).to(device)
        return adjacency(rows_E, columns_E, values_E, shape, is_sorted=True)

    seed = ((key[0] * 1_000_003 + key[1]) * 1_000_003 + key[2]) * 64
    num_items = len(neighbours.users_of_N.degree_X)
    items_T = np.arange(num_items) if ids_S is None else ids_S.cpu().numpy()
    number_N = np.full(num_items, -1)  # index in T by item id
    number_N[items_T] = np.arange(len(items_T))
    hops = []
    for hop in range(num_hops):
        rows_E, users_E, weight_E = neighbours.users_of_N.sample(items_T, fanout, seed + 2 * hop)
        users_U, number_E = np.unique(users_E, return_inverse=True)
        rows_F, items_F, weight_F = neighbours.items_of_V.sample(
            users_U, fanout, seed + 2 * hop + 1
        )
        weight_E *= _symmetric(neighbours, users_E, items_T[rows_E])
        weight_F *= _symmetric(neighbours, users_U[rows_F], items_F)
        num_before = len(items_T)
        if ids_S is not None:
            is_more_N = np.zeros(num_items, dtype=bool)
            is_more_N[items_F] = True
            items_T = np.concatenate([items_T, np.flatnonzero(is_more_N & (number_N < 0))])
            number_N[items_T[num_before:]] = np.arange(num_before, len(items_T))
        to_users = matrix(rows_F, number_N[items_F], weight_F, (len(users_U), len(items_T)))
        hops.append(Hop(to_users, matrix(rows_E, number_E, weight_E, (num_before, len(users_U)))))
    return None if ids_S is None else torch.from_numpy(items_T).to(device), hops


def convolve(neighbours: Neighbours, layer_ND: Tensor) -> Tensor:
    """Ã e of all items, exactly, a block of users at a time; no gradient."""
    import scipy.sparse as sp  # imported here: serving does not need it

    layer = layer_ND.detach().float().cpu().numpy()
    total = np.zeros_like(layer)
    for users, rows_E, items_E in neighbours.parts():
        weight_E = _symmetric(neighbours, users[rows_E], items_E).astype(np.float32)
        part = sp.csr_array((weight_E, (rows_E, items_E)), shape=(len(users), len(layer)))
        total += part.T @ (part @ layer)
    return torch.from_numpy(total).to(layer_ND.device)


def _symmetric(neighbours: Neighbours, users_E: Array, items_E: Array) -> Array:
    product_E = neighbours.items_of_V.degree_X[users_E] * neighbours.users_of_N.degree_X[items_E]
    return np.asarray(1 / np.sqrt(product_E))
