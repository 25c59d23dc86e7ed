"""The friends of every user as lists, for the closed-form members that read friends at serving.

Legend: V users, F friendships, B queries, G pairs of a query and a friend, X rows sorted by owner,
P pairs of a friend and a row.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from recsys.data.batches import Batch
from recsys.data.histories import Array
from recsys.granularities.base import State
from recsys.granularities.social.friend_graph import Friends


def friend_lists(friends: Friends, num_users: int, most: int) -> dict[str, Array]:
    """The friends of every user, those with the largest weights first.

    Parameters
    ----------
    friends : Friends
        The friendships.
    num_users : int
        V.
    most : int
        Friends that are kept of each user.

    Returns
    -------
    dict of str to array
        ``friend_starts_V1`` [V + 1] int64, ``friends_F`` [F] int32 and ``weights_F`` [F] float32.
    """
    src_F, dst_F, weight_F = (
        part.cpu().numpy() for part in (friends.src_F, friends.dst_F, friends.weight_F)
    )
    order_F = np.lexsort((-weight_F, dst_F))
    starts_V1, kept_F = first_of_each(dst_F[order_F], num_users, most)
    order_F = order_F[kept_F]
    return {
        "friend_starts_V1": starts_V1,
        "friends_F": src_F[order_F].astype(np.int32),
        "weights_F": weight_F[order_F].astype(np.float32),
    }


def friends_of(batch: Batch, state: State) -> tuple[Tensor, Tensor, Tensor]:
    """The friends of every query; those that a request names replace the stored ones, with weight
    one each.

    Parameters
    ----------
    batch : Batch
        The queries.
    state : dict of str to Tensor
        The lists of :func:`friend_lists`.

    Returns
    -------
    rows_G, friends_G : Tensor, [G] int64
        Query and friend of every pair.
    weights_G : Tensor, [G] float32
        Its weight.
    """
    users_B = batch.users_U[batch.rows_B]
    named_UF = batch.inputs.get("friends")
    names_B = torch.zeros(len(batch), dtype=torch.bool, device=users_B.device)
    rows, friends, weights = [], [], []
    if named_UF is not None:
        named_BF = named_UF[batch.rows_B]
        names_B = (named_BF >= 0).any(1)
        rows_G, position_G = (named_BF >= 0).nonzero(as_tuple=True)
        rows, friends = [rows_G], [named_BF[rows_G, position_G]]
        weights = [torch.ones(len(rows_G), device=users_B.device)]
    is_known_B = (users_B >= 0) & (users_B < len(state["friend_starts_V1"]) - 1) & ~names_B
    known_K = is_known_B.nonzero()[:, 0]
    of_G, positions_G = spread_out(state["friend_starts_V1"], users_B[known_K])
    rows.append(known_K[of_G])
    friends.append(state["friends_F"][positions_G].long())
    weights.append(state["weights_F"][positions_G])
    return torch.cat(rows), torch.cat(friends), torch.cat(weights)


def over_root(weights_G: Tensor, rows_G: Tensor, num_queries: int) -> Tensor:
    """The weights, divided by the root of their sum over the friends of a query: more friends who
    agree are more evidence.

    Parameters
    ----------
    weights_G : Tensor, [G] float32
        Weight of every pair.
    rows_G : Tensor, [G] int64
        Query of every pair.
    num_queries : int
        B.

    Returns
    -------
    Tensor, [G] float32
        w / √(Σ w).
    """
    total_B = weights_G.new_zeros(num_queries).index_add_(0, rows_G, weights_G).clamp(min=1e-12)
    return weights_G / total_B.sqrt()[rows_G]


def first_of_each(owners_X: Array, num_owners: int, most: int) -> tuple[Array, Array]:
    """Keep at most so many rows of each owner.

    Parameters
    ----------
    owners_X : array, [X] int
        Owner of every row, ascending.
    num_owners : int
        V.
    most : int
        Rows that are kept of each owner, the first ones.

    Returns
    -------
    tuple of (array, array)
        Offsets of each owner, [V + 1] int64, and the kept rows.
    """
    counts_V = np.bincount(owners_X, minlength=num_owners)
    position_X = np.arange(len(owners_X)) - (np.cumsum(counts_V) - counts_V)[owners_X]
    starts_V1 = np.concatenate([[0], np.cumsum(np.minimum(counts_V, most))])
    return starts_V1.astype(np.int64), np.flatnonzero(position_X < most)


def spread_out(starts_V1: Tensor, owners_G: Tensor) -> tuple[Tensor, Tensor]:
    """All rows of the given owners: index of the owner, and the row.

    >>> spread_out(torch.tensor([0, 2, 2, 3]), torch.tensor([2, 0, 1]))
    (tensor([0, 1, 1]), tensor([2, 0, 1]))
    """
    begin_G, counts_G = starts_V1[owners_G], starts_V1[owners_G + 1] - starts_V1[owners_G]
    of_P = torch.repeat_interleave(torch.arange(len(owners_G), device=owners_G.device), counts_G)
    before_G = counts_G.cumsum(0) - counts_G
    return of_P, torch.arange(len(of_P), device=owners_G.device) - before_G[of_P] + begin_G[of_P]
