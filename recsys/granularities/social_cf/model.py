"""Social collaborative filtering: what people choose whose friends chose these items.

With X the training events, their leading right singular vectors Q [N, R], and t_v = x_v Q the taste
of a user, the friends of u with weights w are

    f_u = Σ_v w_uv t_v / √(Σ_v w_uv),

and a ridge regression predicts the events of u from it:

    C = (FᵀF + λ μ I)⁻¹ FᵀX,   r_ui = f_u · C_i,   μ = the mean of ‖f_u‖² over users with friends.

Why a regression and not a count of friends' events (``social`` with ``fit: counts``): an item of a
friend is evidence for similar items too, and an item that everybody's friends have is evidence for
little. It never reads the user's own events, so it helps most where these are few. The divisor is a
root, because more friends who agree are more evidence; with a mean, two friends would count as
much as twenty. The singular vectors bound memory at R numbers a user, and lose nothing beyond a
rank of about 64.

It has a closed form, like ``item_cf``; validation chooses λ. Friends named in a request replace the
stored ones. Friends without training events count nothing.

Legend: V users, N items, R rank, B queries, G pairs of a query and a friend.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from recsys.data.batches import Batch
from recsys.data.histories import Array
from recsys.granularities.base import Granularity, Graphs, ItemView, ModelSizes, State
from recsys.granularities.event_matrix import EventMatrix
from recsys.granularities.social.friend_graph import Friends
from recsys.granularities.social.friend_lists import friend_lists, friends_of, over_root
from recsys.granularities.social.reads_friends import ReadsFriends
from recsys.granularities.social_cf.section import SocialCFConfig
from recsys.granularities.spectrum import spectrum

_NUMBERS: Final = 2**24  # numbers of users in memory at a time


class SocialCF(ReadsFriends):
    """A closed-form member with its own item vectors; absent where no friend has training
    events.
    """

    closed_form = True
    is_side_information = True

    def __init__(self, config: SocialCFConfig, sizes: ModelSizes) -> None:
        super().__init__()
        self.config = config

    def state(self, items: ItemView, graphs: Graphs) -> State:
        """Fit tastes and item vectors."""
        return next(self._states([self.config.regularisation[0]], items, graphs))

    @classmethod
    def fits(
        cls, sections: Sequence[SocialCFConfig], sizes: ModelSizes, items: ItemView, graphs: Graphs
    ) -> Iterator[tuple[Granularity, State]]:
        """Fit once for sections that differ in λ.

        Parameters
        ----------
        sections : Sequence of SocialCFConfig
            Settings that differ in λ.
        sizes : ModelSizes
            Sizes of the model.
        items : ItemView
            Not read, except for the device.
        graphs : Graphs
            Training events and friendships.

        Yields
        ------
        Granularity, dict of str to Tensor
            Module and state, in the order of ``sections``.
        """
        modules = [cls(section, sizes).eval() for section in sections]
        lambdas = [section.regularisation[0] for section in sections]
        yield from zip(modules, modules[0]._states(lambdas, items, graphs), strict=True)

    def _states(self, lambdas: Sequence[float], items: ItemView, graphs: Graphs) -> Iterator[State]:
        """States that differ in λ, from one spectrum and one decomposition of FᵀF."""
        events_VN = EventMatrix.of(graphs)
        no_text_NT = np.zeros((graphs.num_items, 0), np.float32)
        basis_NR, _ = spectrum(events_VN, no_text_NT, self.config.rank)
        tastes_VR = np.zeros((graphs.num_users, basis_NR.shape[1]), np.float32)
        for rows, part in events_VN.blocks():
            tastes_VR[rows] = part @ basis_NR
        lists = self._active_friends(graphs)
        gram_RR, cross_NR, num_users = _products(events_VN, tastes_VR, lists)
        squares_R, turn_RR = np.linalg.eigh(gram_RR)
        turned_NR = cross_NR @ turn_RR
        mean = max(float(squares_R.sum()) / max(num_users, 1), 1e-12)
        for regularisation in lambdas:
            shrunk_R = 1 / (squares_R.clip(0) + regularisation * mean)
            made = lists | {
                "tastes_VR": tastes_VR,
                "items_NR": ((turned_NR * shrunk_R) @ turn_RR.T).astype(np.float32),
            }
            yield {
                name: torch.as_tensor(value).to(items.vectors_SD.device)
                for name, value in made.items()
            }

    def _active_friends(self, graphs: Graphs) -> dict[str, Array]:
        """The friends of every user who have training events, with weights of mean one."""
        friends: Friends = graphs["friends"]
        is_active_V = torch.as_tensor(np.diff(graphs.starts_V1) > 0)
        kept_F = is_active_V[friends.src_F.cpu()] & (friends.src_F != friends.dst_F).cpu()
        weight_F = friends.weight_F.cpu()[kept_F]
        # a request names friends with weight one, so stored weights have this mean
        weight_F = weight_F / weight_F.mean().clamp(min=1e-12)
        kept = Friends(friends.src_F.cpu()[kept_F], friends.dst_F.cpu()[kept_F], weight_F)
        return friend_lists(kept, graphs.num_users, self.config.max_friends)

    def own_items(self, state: State) -> Tensor:
        """Item vectors of the regression."""
        return state["items_NR"]

    def forward(self, batch: Batch, items: ItemView, state: State) -> tuple[Tensor, Tensor]:
        """Sums over the tastes of stored or named friends, and where there are any.

        Parameters
        ----------
        batch : Batch
            Users, and the friends that requests name; histories are not read.
        items : ItemView
            Not read.
        state : dict of str to Tensor
            Lists of friends, and ``tastes_VR`` [V, R].

        Returns
        -------
        z_BR : Tensor, [B, R] float32
            f_u of every query.
        present_B : Tensor, [B] bool
            Whether it is not zero.
        """
        rows_G, friends_G, weights_G = friends_of(batch, state)
        tastes_GR = state["tastes_VR"][friends_G]
        # a request may name a friend without events
        weights_G = weights_G * (tastes_GR != 0).any(1)
        weights_G = over_root(weights_G, rows_G, len(batch))
        z_BR = tastes_GR.new_zeros(len(batch), tastes_GR.shape[1])
        z_BR.index_add_(0, rows_G, tastes_GR * weights_G[:, None])
        return z_BR, (z_BR != 0).any(1)


def _products(
    events_VN: EventMatrix, tastes_VR: Array, lists: dict[str, Array]
) -> tuple[Array, Array, int]:
    """FᵀF [R, R], XᵀF [N, R] (float64) and the number of users with friends, block by block."""
    rank = tastes_VR.shape[1]
    starts_V1 = lists["friend_starts_V1"]
    friends_VV = sp.csr_array(
        (lists["weights_F"], lists["friends_F"], starts_V1), (len(tastes_VR), len(tastes_VR))
    )
    total_V = np.asarray(friends_VV.sum(1))
    gram_RR = np.zeros((rank, rank))
    cross_NR = np.zeros((events_VN.num_items, rank))
    for rows, part in events_VN.blocks(users=max(1, _NUMBERS // rank)):
        sums_UR = friends_VV[rows] @ tastes_VR
        sums_UR /= np.sqrt(np.maximum(total_V[rows], 1e-12))[:, None]
        sums_UR = sums_UR.astype(np.float64)
        gram_RR += sums_UR.T @ sums_UR
        cross_NR += part.T @ sums_UR
    return gram_RR, cross_NR, int((total_V > 0).sum())
