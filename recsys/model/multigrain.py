"""The model that is trained: item tower, granularities and fusion.

Each step computes a view of the items and the states of the granularities, with graph convolutions
once per step.

Legend: B queries, D width, N items, S items in view, T text width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from recsys.config import ModelConfig
from recsys.data.batches import Batch
from recsys.data.whitening import Whitening
from recsys.granularities.base import Graphs, ItemView, ModelSizes, StepKey
from recsys.item_tower import ItemTower
from recsys.model.frozen import FrozenModel
from recsys.model.user_encoders import Encoders, States
from recsys.pace import with_progress
from recsys.sharded_rows import Shard


class MultigrainModel(nn.Module):
    """The trainable model.

    Parameters
    ----------
    config : ModelConfig
        Section ``model``.
    sizes : ModelSizes
        What the dataset fixes of the model's shape.
    text_NT : Tensor
        Frozen text vectors of ``text_groups`` groups of fields, concatenated; width 0 without
        texts.
    trained_N : Tensor
        Marks the items with training events.
    text_groups : int
        Number of groups of text fields.
    whitening : Sequence[Whitening] | None
        Whitening of the model that a warm start continues.
    shard : Shard | None
        The id rows that this worker holds; None: all.
    """

    def __init__(
        self,
        config: ModelConfig,
        sizes: ModelSizes,
        text_NT: Tensor,
        trained_N: Tensor,
        text_groups: int = 1,
        whitening: Sequence[Whitening] | None = None,
        shard: Shard | None = None,
    ) -> None:
        super().__init__()
        self.config, self.sizes = config, sizes
        # closed-form members have their own item vectors
        width = config.width if config.granularities.are_trained else 0
        self.tower = ItemTower(
            config.item, width, text_NT, trained_N, text_groups, whitening, shard
        )
        self.encoders = Encoders(config, sizes)
        self.pruned: frozenset[str] = frozenset()  # they do not change the item vectors
        self._fitted_on: tuple[Graphs, States] | None = None

    @property
    def needs_all_items(self) -> bool:
        """Whether any granularity reads the whole catalogue in each step."""
        return any(module.needs_all_items for _, module in self.encoders.each())

    @property
    def reads_events(self) -> bool:
        """Whether any granularity needs the table of events."""
        modules = [
            module for closed_form in (False, True) for _, module in self.encoders.each(closed_form)
        ]
        return any(module.reads_events for module in modules)

    @property
    def reads_histories(self) -> bool:
        """Whether any granularity needs the events in order, with times and repeats."""
        modules = [
            module for closed_form in (False, True) for _, module in self.encoders.each(closed_form)
        ]
        return any(module.reads_histories for module in modules)

    @property
    def is_sampled(self) -> bool:
        """Whether a step samples the graph of users and items."""
        return any(module.is_sampled for _, module in self.encoders.each())

    def widen(self, ids_S: Tensor | None, graphs: Graphs, key: StepKey) -> Tensor | None:
        """The items that a step must view to score the given ones, which come first; None: all
        items.

        Parameters
        ----------
        ids_S : Tensor, [S] int64, or None
            Items to score; None: the whole catalogue.
        graphs : Graphs
            Training events and inputs by signal.
        key : StepKey
            Seed, epoch and step.

        Returns
        -------
        Tensor, int64, or None
            The given items, then those that granularities need in addition.
        """
        for _, module in self.encoders.each():
            ids_S = module.widen(ids_S, graphs, key)
        return ids_S

    def view(self, graphs: Graphs, ids_S: Tensor | None = None) -> tuple[ItemView, States]:
        """Return the items in view and the states of the granularities.

        The view has all items, or the first of ``ids_S``: those that :meth:`widen` was called with.
        """
        vectors_SD = self.tower(ids_S)
        for name, module in self.encoders.each():
            # called for its side effect too: some compute their state here
            refined_SD = module.refine_items(vectors_SD, graphs)
            vectors_SD = vectors_SD[: len(refined_SD)] if name in self.pruned else refined_SD
        if self.config.unit_vectors:
            vectors_SD = normalize(vectors_SD, dim=-1)
        items = ItemView(
            vectors_SD, self.tower.text(None if ids_S is None else ids_S[: len(vectors_SD)])
        )
        return items, {name: module.state(items, graphs) for name, module in self.encoders.each()}

    def forward(self, batch: Batch, items: ItemView, states: States) -> Tensor:
        """User vectors [B, D].

        Parameters
        ----------
        batch : Batch
            The queries.
        items : ItemView
            Item and text vectors of the items in view.
        states : States
            State of each granularity of this step, by name.

        Returns
        -------
        Tensor, [B, D] float
            The fused vector of each query.
        """
        users_BD: Tensor = self.encoders.fusion(*self.encoders.encode(batch, items, states))[0]
        return users_BD

    @torch.no_grad()
    def freeze(self, graphs: Graphs) -> FrozenModel:
        """Return the model for inference: the view of all items and the states, computed once."""
        was_training = self.training
        self.eval()
        items, states = self.view(graphs)
        states |= self._closed_form(items, graphs)
        self.train(was_training)
        return FrozenModel(self.config, self.sizes, self.encoders, items, states, graphs.degree_N)

    def _closed_form(self, items: ItemView, graphs: Graphs) -> States:
        """States of the closed-form granularities, which training does not change: computed once
        for the same graphs.
        """
        # every validation freezes the model, but the closed-form fits depend on the graphs alone
        if self._fitted_on is None or self._fitted_on[0] is not graphs:
            pruned = self.encoders.pruned_members
            active = [
                (name, module)
                for name, module in self.encoders.each(closed_form=True)
                if name not in pruned
            ]
            made = {
                name: module.state(items, graphs)
                for name, module in with_progress("fitting members", active)
            }
            self._fitted_on = (graphs, made)
        return self._fitted_on[1]
