"""Collaborative: which users chose the same items, by light graph convolution over the user–item
graph (S1, S3).

LightGCN (He et al. 2020): e^(l+1) = D^-1/2 A D^-1/2 e^(l); items are the mean over the layers.
Users start from zero, so a user is a sum over their history,

    z_u = |H_u|^-1/2 Σ_{i ∈ H_u} f_i,      f_i = d_i^-1/2 (L + 1)^-1 Σ_{l < L} e_i^(l),

the same for training users and new users. ``user_embedding`` adds a row for each training user,
which is also an input of the propagation. The convolution is torch-geometric's with a cached
transpose, once per step; on graphs with more than ``max_edges`` edges, a step samples neighbours
(see :mod:`recsys.granularities.collaborative.sampling`).

Legend: N items, V users, E training events, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recsys.data.batches import Batch
from recsys.data.dataset import PreparedDataset
from recsys.granularities.base import Granularity, Graphs, ItemView, ModelSizes, State, StepKey
from recsys.granularities.collaborative.sampling import Hop, convolve, sample_hops
from recsys.granularities.collaborative.section import CollaborativeConfig
from recsys.granularities.user_item_graph import spread


class Collaborative(Granularity):
    """Light graph convolution; refines the item vectors and computes users from their histories."""

    def __init__(self, config: CollaborativeConfig, sizes: ModelSizes) -> None:
        super().__init__()
        config.check(sizes)
        self.layers, self.fanout, self.max_edges = config.layers, config.fanout, config.max_edges
        self._hops: list[Hop] | None = None
        self.users_VD = (
            nn.Embedding(sizes.num_users, sizes.width) if config.user_embedding else None
        )
        if self.users_VD is not None:
            nn.init.normal_(self.users_VD.weight, std=0.05)
        self._ids_S: Tensor | None = None
        self._fold_ND: Tensor | None = None
        self._propagated_VD: Tensor | None = None

    @classmethod
    def for_serving(cls, config: CollaborativeConfig, sizes: ModelSizes) -> Collaborative:
        """Leave out the users' embedding rows: the state has the propagated ones."""
        return cls(config.model_copy(update={"user_embedding": False}), sizes)

    def adapt(self, dataset: PreparedDataset) -> None:
        """Sample neighbours if the graph has more than ``max_edges`` edges."""
        counts = dataset.manifest.counts
        # the final phase trains on both; both phases must use the same method
        num_edges = counts.get("train", 0) + counts.get("valid", 0)
        if self.users_VD is None:
            self.is_sampled = num_edges > self.max_edges
            self.reads_events = not self.is_sampled

    @property
    def needs_all_items(self) -> bool:
        """True unless a step samples the graph."""
        return not self.is_sampled

    def widen(self, ids_S: Tensor | None, graphs: Graphs, key: StepKey) -> Tensor | None:
        """Add the items of the sampled neighbourhood.

        Parameters
        ----------
        ids_S : Tensor, [S] int64, or None
            Distinct items to score; None for the whole catalogue.
        graphs : Graphs
            Has the neighbour lists if a step samples the graph.
        key : tuple of three int
            Seed, epoch and step, which fix the sample.

        Returns
        -------
        Tensor, [S or more] int64, or None
            ``ids_S`` itself if no step samples the graph.
        """
        if not self.is_sampled:
            return ids_S
        assert graphs.neighbours is not None, (
            "build_graphs builds the neighbour lists of a model that samples"
        )
        device = graphs.users_E.device
        self._ids_S = ids_S
        wide_S, self._hops = sample_hops(
            graphs.neighbours, ids_S, self.layers // 2, self.fanout, key, device
        )
        return wide_S

    def refine_items(self, base_ND: Tensor, graphs: Graphs) -> Tensor:
        """Mean of the item vectors over the layers of the convolution."""
        if self.is_sampled:
            return self._refine_by_parts(base_ND, graphs)
        layer_VD = self.users_VD.weight if self.users_VD is not None else None
        layer_ND: Tensor | None = base_ND
        total_ND = fold_ND = base_ND
        total_VD = layer_VD
        # None: without user rows every second layer of a side is zero
        for depth in range(self.layers):
            # the last layer of the users is unused if users have no trained rows
            unused = self.users_VD is None and depth + 1 == self.layers
            next_VD = (
                spread(graphs.users_from_items, layer_ND)
                if layer_ND is not None and not unused
                else None
            )
            next_ND = spread(graphs.items_from_users, layer_VD) if layer_VD is not None else None
            layer_VD, layer_ND = next_VD, next_ND
            if next_ND is not None:
                total_ND = total_ND + next_ND
                # a user sums items one layer back (l < L), so the last layer is left out
                fold_ND = fold_ND + next_ND if depth + 1 < self.layers else fold_ND
            if self.users_VD is not None and next_VD is not None and total_VD is not None:
                total_VD = total_VD + next_VD
        scale = 1 / (self.layers + 1)
        # at least 1: an item without events would divide by zero
        self._fold_ND = fold_ND * (scale * graphs.degree_N.clamp(min=1).rsqrt())[:, None]
        self._propagated_VD = total_VD * scale if total_VD is not None else None
        return total_ND * scale

    def _refine_by_parts(self, base_SD: Tensor, graphs: Graphs) -> Tensor:
        """Refine with the step's sample, or, without a sample, exactly for the whole catalogue.

        Only every second layer of the items differs from zero.
        """
        assert graphs.neighbours is not None, (
            "build_graphs builds the neighbour lists of a model that samples"
        )
        hops, degree_S = self._hops, graphs.degree_N
        if hops is not None and self._ids_S is not None:
            degree_S = degree_S[self._ids_S]
        layer_SD = base_SD
        total_SD = fold_SD = base_SD[: len(degree_S)]
        for depth in range(1, self.layers // 2 + 1):
            if hops is None:
                layer_SD = convolve(graphs.neighbours, layer_SD)
            else:
                # each depth starts from the outermost sampled items and walks inwards, hop by hop
                layer_SD = base_SD[: hops[depth - 1].reach]
                for hop in reversed(hops[:depth]):
                    layer_SD = hop(layer_SD)
            total_SD = total_SD + layer_SD
            fold_SD = fold_SD + layer_SD if 2 * depth < self.layers else fold_SD
        scale = 1 / (self.layers + 1)
        # at least 1: an item without events would divide by zero
        self._fold_ND = fold_SD * (scale * degree_S.clamp(min=1).rsqrt())[:, None]
        # a later view without a sample must not read the sample of this step
        self._hops = None
        self._ids_S = None
        return total_SD * scale

    def state(self, items: ItemView, graphs: Graphs) -> State:
        """Item vectors for the fold-in, and propagated user rows if they are trained."""
        assert self._fold_ND is not None, "refine_items must run first"
        found = {"fold_ND": self._fold_ND}
        if self._propagated_VD is not None:
            found["users_VD"] = self._propagated_VD
            found["trained_V"] = torch.bincount(graphs.users_E, minlength=graphs.num_users) > 0
        # a state belongs to one view: keeping it would hold the graph of gradients in memory
        self._fold_ND = self._propagated_VD = None
        return found

    def forward(self, batch: Batch, items: ItemView, state: State) -> tuple[Tensor, Tensor]:
        """Users as sums over their histories, or their trained rows.

        Parameters
        ----------
        batch : Batch
            Histories, and the queries on them.
        items : ItemView
            Only the type of its numbers is read.
        state : dict of str to Tensor
            ``fold_ND`` [N, D] and, with ``user_embedding``, ``users_VD`` [V, D] and ``trained_V``
            [V] bool.

        Returns
        -------
        z_BD : Tensor, [B, D] float
            The trained row of a user who has one, else the sum over the history.
        present_B : Tensor, [B] bool
            Whether the query sees an event, or the user has a trained row.
        """
        fold_ULD = state["fold_ND"][batch.history_UL] * batch.mask_UL[:, :, None].to(
            items.vectors_SD.dtype
        )
        present_B = batch.seen_B > 0
        scale_B = batch.seen_B.clamp(min=1).to(fold_ULD.dtype).rsqrt() * present_B
        if batch.sees_whole_rows:
            summed_BD = fold_ULD.sum(1)[batch.rows_B]
        else:
            summed_BD = fold_ULD.cumsum(1)[batch.rows_B, (batch.seen_B - 1).clamp(min=0)]
        z_BD = summed_BD * scale_B[:, None]
        if "users_VD" in state:
            users_B = batch.users_U[batch.rows_B].clamp(min=0)
            # a known user without training events has an embedding that was never trained
            known_B = (batch.users_U[batch.rows_B] >= 0) & state["trained_V"][users_B]
            z_BD = torch.where(known_B[:, None], state["users_VD"][users_B], z_BD)
            present_B = present_B | known_B
        return z_BD, present_B
