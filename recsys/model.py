"""The model: item tower, granularities and fusion; score(u, i) = u · a_i.

There are two forms. :class:`MultigrainModel` is trained: each step computes a view of the items and
the states of the granularities, with graph convolutions once per step. :class:`FrozenModel` keeps
view and states as plain tensors and needs neither graphs nor a dataset; evaluation, registry and
serving use it.

Legend: B queries, K granularities, D width, N items, S items in view.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pad

from recsys.config import ModelConfig
from recsys.data.batches import Batch, last_position
from recsys.data.histories import Array, Queries
from recsys.data.whitening import Whitening
from recsys.errors import RequestError
from recsys.fusion import FUSIONS, Fusion, NoFusion
from recsys.granularities import granularity_class
from recsys.granularities.base import Granularity, Graphs, ItemView, ModelSizes, State, StepKey
from recsys.granularities.evolution.model import Evolution, Interest
from recsys.granularities.evolution.rolling import expected_event, lengthen
from recsys.granularities.sparse import SparseScores
from recsys.items import ItemTower
from recsys.pace import with_progress
from recsys.parts import Parts
from recsys.ratings import RatingHead, standardised
from recsys.stack import FLOOR, TRAINED, Stack, covariance, inverse, sparse_spread, spread

States = dict[str, State]


class Encoders(nn.Module):
    """The enabled granularities and their fusion: a batch → user vectors.

    ``serving`` leaves out what only training needs (graph convolutions, user embeddings).
    Closed-form granularities take no part in training; their λ are ``fitted_weights``.
    """

    fitted_weights: Tensor

    def __init__(self, config: ModelConfig, sizes: ModelSizes, serving: bool = False) -> None:
        super().__init__()
        enabled = config.granularities.enabled()
        self.unit_vectors = config.unit_vectors
        made: dict[str, Granularity] = {}
        for name, section in enabled.items():
            cls = granularity_class(name, section)
            section.check(sizes)
            made[name] = cls.for_serving(section, sizes) if serving else cls(section, sizes)
        self.granularities = nn.ModuleDict(made)
        weights = {
            fitted: [enabled[name].weight for name, _ in self.each(fitted)]
            for fitted in (False, True)
        }
        self.fusion: Fusion = (
            FUSIONS[config.fusion.kind](config.fusion, weights[False], config.width)
            if weights[False]
            else NoFusion(config.fusion)
        )
        self.register_buffer("fitted_weights", torch.tensor(weights[True]))
        self.members = [TRAINED] * bool(weights[False]) + [
            name for name, _ in self.each(fitted=True)
        ]
        self.stack = Stack(len(self.members)) if config.fusion.stack else None
        self.names = [name for fitted in (False, True) for name, _ in self.each(fitted)]

    def each(self, fitted: bool = False) -> list[tuple[str, Granularity]]:
        """The trained granularities, or (``fitted``) the closed-form ones, which come after
        them.
        """
        found = [
            (name, module)
            for name, module in self.granularities.items()
            if isinstance(module, Granularity)
        ]
        return [(name, module) for name, module in found if module.fitted == fitted]

    @property
    def pruned_members(self) -> set[str]:
        """The pruned closed-form granularities, which have stacking weight zero; they are neither
        fitted nor saved.
        """
        stack, members = self.stack, self.members
        return {
            name
            for place, name in enumerate(members)
            if stack is not None and stack.is_pruned(place)
        } - {TRAINED}

    @property
    def speaking(self) -> list[str]:
        """The granularities with a weight for at least one query, in the order of :attr:`names`."""
        stack, fixed_K = self.stack, getattr(self.fusion, "weights_K", None)
        trained, fitted = (
            [name for name, _ in self.each(is_fitted)] for is_fitted in (False, True)
        )
        if stack is not None:
            active = {name for place, name in enumerate(self.members) if not stack.is_pruned(place)}
        else:
            active = {TRAINED} | {
                name
                for name, weight in zip(fitted, self.fitted_weights.tolist(), strict=True)
                if weight
            }
        if fixed_K is not None:
            trained = [
                name for name, weight in zip(trained, fixed_K.tolist(), strict=True) if weight
            ]
        return [
            *(trained if TRAINED in active else []),
            *(name for name in fitted if name in active),
        ]

    def encode(self, batch: Batch, items: ItemView, states: States) -> tuple[Tensor, Tensor]:
        """Vectors of every trained granularity ``z_BKD`` and ``present_BK``; unit vectors if the
        model uses them.
        """
        if not self.each():
            nothing_BK = torch.zeros(len(batch), 0, device=items.vectors_SD.device)
            return (
                nothing_BK[:, :, None].expand(-1, -1, items.vectors_SD.shape[1]),
                nothing_BK.bool(),
            )
        found = [module(batch, items, states[name]) for name, module in self.each()]
        z_BKD = torch.stack([z for z, _ in found], dim=1)
        present_BK = torch.stack([present for _, present in found], dim=1)
        return (normalize(z_BKD, dim=-1) if self.unit_vectors else z_BKD), present_BK

    def refitted(self, values_K: Tensor) -> dict[str, Tensor]:
        """Return the parameters that set λ to new values (gated: a new prior), by name in the state
        dict.

        The values of the closed-form granularities come last.
        """
        if self.fusion.is_constant:  # λ must stay in [0, 1]; a common factor changes no ranking
            values_K = values_K / values_K.max().clamp(min=1)
        trained_K, fitted_K = values_K.tensor_split([self.fusion.names_K])
        found = {
            f"fusion.{name}": tensor for name, tensor in self.fusion.refitted(trained_K).items()
        }
        return found | (
            {"fitted_weights": fitted_K.to(self.fitted_weights.dtype)} if len(fitted_K) else {}
        )


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
    """

    def __init__(
        self,
        config: ModelConfig,
        sizes: ModelSizes,
        text_NT: Tensor,
        trained_N: Tensor,
        text_groups: int = 1,
        whitening: Sequence[Whitening] | None = None,
    ) -> None:
        super().__init__()
        self.config, self.sizes = config, sizes
        # closed-form members have their own item vectors
        width = config.width if config.granularities.are_trained else 0
        self.tower = ItemTower(config.item, width, text_NT, trained_N, text_groups, whitening)
        self.encoders = Encoders(config, sizes)
        self.silent: frozenset[str] = frozenset()  # pruned: they do not change the item vectors
        self._fitted_on: tuple[Graphs, States] | None = None

    @property
    def needs_all_items(self) -> bool:
        """Whether any granularity reads the whole catalogue in each step."""
        return any(module.needs_all_items for _, module in self.encoders.each())

    @property
    def reads_events(self) -> bool:
        """Whether any granularity needs the table of events."""
        modules = [module for fitted in (False, True) for _, module in self.encoders.each(fitted)]
        return any(module.reads_events for module in modules)

    @property
    def reads_histories(self) -> bool:
        """Whether any granularity needs the events in order, with times and repeats."""
        modules = [module for fitted in (False, True) for _, module in self.encoders.each(fitted)]
        return any(module.reads_histories for module in modules)

    @property
    def is_sampled(self) -> bool:
        """Whether a step samples the graph of users and items."""
        return any(module.is_sampled for _, module in self.encoders.each())

    def widen(self, ids_S: Tensor | None, graphs: Graphs, key: StepKey) -> Tensor | None:
        """The items that a step must view to score the given ones, which come first; None: all
        items.
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
            vectors_SD = vectors_SD[: len(refined_SD)] if name in self.silent else refined_SD
        if self.config.unit_vectors:
            vectors_SD = normalize(vectors_SD, dim=-1)
        items = ItemView(
            vectors_SD, self.tower.text(None if ids_S is None else ids_S[: len(vectors_SD)])
        )
        return items, {name: module.state(items, graphs) for name, module in self.encoders.each()}

    def forward(self, batch: Batch, items: ItemView, states: States) -> Tensor:
        """User vectors [B, D]."""
        users_BD: Tensor = self.encoders.fusion(*self.encoders.encode(batch, items, states))[0]
        return users_BD

    @torch.no_grad()
    def freeze(self, graphs: Graphs) -> FrozenModel:
        """Return the model for inference: the view of all items and the states, computed once."""
        was_training = self.training
        self.eval()
        items, states = self.view(graphs)
        states |= self._fitted(items, graphs)
        self.train(was_training)
        return FrozenModel(self.config, self.sizes, self.encoders, items, states, graphs.degree_N)

    def _fitted(self, items: ItemView, graphs: Graphs) -> States:
        """States of the closed-form granularities, which training does not change: computed once
        for the same graphs.
        """
        if self._fitted_on is None or self._fitted_on[0] is not graphs:
            silent = self.encoders.pruned_members
            active = [
                (name, module)
                for name, module in self.encoders.each(fitted=True)
                if name not in silent
            ]
            made = {
                name: module.state(items, graphs)
                for name, module in with_progress("fitting members", active)
            }
            self._fitted_on = (graphs, made)
        return self._fitted_on[1]


class FrozenModel:
    """A model that needs no graphs and no dataset; the scorer of evaluation and serving.

    It shares the encoders with the model that it was frozen from: use it before training continues,
    or copy it.
    """

    def __init__(
        self,
        config: ModelConfig,
        sizes: ModelSizes,
        encoders: Encoders,
        items: ItemView,
        states: States,
        popularity_N: Tensor,
        rating_head: RatingHead | None = None,
    ) -> None:
        self.config = config
        self.sizes = sizes
        self.encoders = encoders
        self.items = items
        self.states = states
        self.popularity_N = popularity_N  # number of users of each item in the training events
        self.rating_head = rating_head  # None unless train.ratings is on and values vary
        self._covariances: dict[str, Tensor] = {}  # covariances of item vectors, by member
        silent = encoders.pruned_members
        self.states = {name: state for name, state in states.items() if name not in silent}
        own = [
            module.own_items(states[name])
            for name, module in encoders.each(fitted=True)
            if name not in silent
        ]
        self.item_vectors_ND = (
            torch.cat([items.vectors_SD, *own], dim=1) if own else items.vectors_SD
        )
        # widths of the members, in the order of item_vectors_ND
        self.widths = [part_NR.shape[1] for part_NR in (items.vectors_SD, *own)]

    @property
    def names(self) -> list[str]:
        """The granularities, in the order of K."""
        return self.encoders.names

    @property
    def speaking(self) -> list[str]:
        """The granularities with a weight for at least one query, in the order of K; the others
        always add zero.
        """
        return self.encoders.speaking

    @property
    def personal_K(self) -> Tensor:
        """Which granularities depend on the user, not on the time of the request alone: bool
        [K].
        """
        modules = [*self.encoders.each(), *self.encoders.each(fitted=True)]
        return torch.tensor([module.personal for _, module in modules], dtype=torch.bool)

    @property
    def trained_names(self) -> list[str]:
        """The granularities whose λ come from the fusion."""
        return [name for name, _ in self.encoders.each()]

    @property
    def reads_text(self) -> bool:
        """Whether inference needs the text vectors."""
        return any(module.reads_text for _, module in self.encoders.each())

    @torch.inference_mode()
    def encode(
        self,
        queries: Queries,
        brought: Mapping[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """z_k of every query [B, K, D] and where it is present [B, K], for the trained
        granularities.

        ``brought`` holds the inputs of the queries besides events, by signal; see ``Batch.inputs``.
        """
        return self.encoders.encode(self._batch(queries, brought), self.items, self.states)

    def _batch(
        self,
        queries: Queries,
        brought: Mapping[str, Any] | None = None,
    ) -> Batch:
        self.encoders.eval()
        batch = last_position(queries, self.config.max_history)
        batch = replace(batch, inputs=dict(brought or {}))
        return batch.to(self.item_vectors_ND.device)

    @torch.inference_mode()
    def parts(
        self,
        queries: Queries,
        brought: Mapping[str, Any] | None = None,
    ) -> Parts:
        """Weighted contributions of the granularities to every query: see
        :class:`~recsys.parts.Parts`.

        Parameters
        ----------
        queries : Queries
            Histories to score.
        brought : Mapping[str, Any] | None
            As in :meth:`encode`.
        """
        batch = self._batch(queries, brought)
        z_BKD, present_BK = self.encoders.encode(batch, self.items, self.states)
        _, weights_BK = self.encoders.fusion(z_BKD, present_BK)
        return self._weighed(batch, z_BKD, weights_BK, self.encoders.fitted_weights)

    def _weighed(
        self,
        batch: Batch,
        z_BKD: Tensor,
        weights_BK: Tensor,
        fitted_weights: Tensor,
        stacks: bool = True,
    ) -> Parts:
        """Combine the trained granularities with the closed-form ones, which come after them.

        Each closed-form member is sparse or has its own directions in :attr:`item_vectors_ND`. With
        ``stacks`` the stacking weights apply, if the model has them.
        """
        vectors_BKD, sparse = z_BKD * weights_BK[:, :, None], {}
        weights = self._stack_weights(batch) if stacks else {}
        if TRAINED in weights:
            factor_B = weights[TRAINED] * self._scale_free(TRAINED, vectors_BKD.sum(1))
            vectors_BKD = vectors_BKD * factor_B[:, None, None]
            weights_BK = weights_BK * weights[TRAINED][:, None]
        fitted_batch = self._fitted_batch(batch)
        for (name, module), weight in zip(
            self.encoders.each(fitted=True), fitted_weights, strict=True
        ):
            weight_B = weights.get(name, weight.expand(len(batch)))
            if name not in self.states:  # pruned by stacking
                present_B = torch.zeros_like(weight_B)
                vectors_BKD = pad(vectors_BKD, (0, 0, 0, 1))
            elif module.sparse:
                scores = module.boost(fitted_batch, self.items, self.states[name])
                present_B = scores.present(len(batch))
                factor_B = (
                    weight_B * self._sparse_scale(name, scores, len(batch))
                    if name in weights
                    else weight_B
                )
                sparse[vectors_BKD.shape[1]] = scores.weighed(factor_B)
                vectors_BKD = pad(vectors_BKD, (0, 0, 0, 1))
            else:
                z_BR, present_B = module(fitted_batch, self.items, self.states[name])
                factor_B = weight_B * self._scale_free(name, z_BR) if name in weights else weight_B
                vectors_BKD = pad(vectors_BKD, (0, z_BR.shape[1], 0, 1))
                vectors_BKD[:, -1, -z_BR.shape[1] :] = factor_B[:, None] * z_BR
                if module.corrects:
                    correction = module.boost(fitted_batch, self.items, self.states[name])
                    sparse[vectors_BKD.shape[1] - 1] = correction.weighed(factor_B)
            weights_BK = torch.cat([weights_BK, (weight_B * present_B)[:, None]], dim=1)
        return Parts(vectors_BKD, weights_BK, sparse)

    def _fitted_batch(self, batch: Batch) -> Batch:
        """Inputs of closed-form granularities, which may read longer histories than the trained
        ones.
        """
        if not self.config.fitted_history or batch.whole is None:
            return batch
        longer = last_position(batch.whole, self.config.fitted_history).to(batch.seen_B.device)
        return replace(longer, inputs=batch.inputs)

    def _stack_weights(self, batch: Batch) -> dict[str, Tensor]:
        """Stacking weight [B] of every member; empty if the model has no stacking."""
        if self.encoders.stack is None:
            return {}
        lengths_B = (
            batch.seen_B
            if batch.whole is None
            else torch.as_tensor(batch.whole.histories.lengths_U)
        )
        weights_BM = self.encoders.stack.weights(lengths_B.to(batch.seen_B.device))
        return dict(zip(self.encoders.members, weights_BM.unbind(1), strict=True))

    def _scale_free(self, member: str, users_BD: Tensor) -> Tensor:
        """Factors [B] that give a member's scores the standard deviation 1 over the catalogue."""
        return inverse(spread(users_BD, self.covariance(member)), self._floor(member))

    def covariance(self, member: str) -> Tensor:
        """Covariance of a member's item vectors, computed once."""
        if member not in self._covariances:
            self._covariances[member] = covariance(self._own_items(member))
        return self._covariances[member]

    def _own_items(self, member: str) -> Tensor:
        if member == TRAINED:
            return self.items.vectors_SD
        return dict(self.encoders.each(fitted=True))[member].own_items(self.states[member])

    @property
    def members(self) -> list[str]:
        """The members that stacking weights: the trained granularities together, and every
        closed-form one.
        """
        return self.encoders.members

    @torch.inference_mode()
    def member_scores(self, queries: Queries) -> list[Tensor]:
        """Scores of every member that is not pruned, alone, with standard deviation 1 over the
        catalogue: M × [B, N].
        """
        batch = self._batch(queries)
        found = []
        if TRAINED in self.members:
            z_BKD, present_BK = self.encoders.encode(batch, self.items, self.states)
            users_BD, _ = self.encoders.fusion(z_BKD, present_BK)
            found.append(
                (users_BD * self._scale_free(TRAINED, users_BD)[:, None]) @ self.items.vectors_SD.T
            )
        fitted_batch = self._fitted_batch(batch)
        for name, module in self.encoders.each(fitted=True):
            if name not in self.states:  # pruned before the weights are chosen
                continue
            if module.sparse:
                scores = module.boost(fitted_batch, self.items, self.states[name])
                scores_BN = scores.add_to(torch.zeros(len(batch), len(self.items.vectors_SD)))
                found.append(scores_BN * self._sparse_scale(name, scores, len(batch))[:, None])
            else:
                z_BR, _ = module(fitted_batch, self.items, self.states[name])
                scores_BN = z_BR @ self._own_items(name).T
                if module.corrects:
                    module.boost(fitted_batch, self.items, self.states[name]).add_to(scores_BN)
                found.append(scores_BN * self._scale_free(name, z_BR)[:, None])
        return found

    def _sparse_scale(self, member: str, scores: SparseScores, num_rows: int) -> Tensor:
        """Factors [B] for the values of a sparse member.

        Probabilities have one factor for all queries, because their size has a meaning.
        """
        stack, module = self.encoders.stack, dict(self.encoders.each(fitted=True))[member]
        assert stack is not None, "only a model with stacking has scales"
        if module.calibrated:
            return stack.scales_M[self.members.index(member)].expand(num_rows)
        return inverse(
            sparse_spread(scores, num_rows, len(self.items.vectors_SD)), self._floor(member)
        )

    def _floor(self, member: str) -> Tensor:
        """The number that is added to the standard deviation of every query."""
        stack = self.encoders.stack
        assert stack is not None, "only a model with stacking has floors"
        return stack.floors_M[self.members.index(member)]

    @torch.inference_mode()
    def choose_scales(self, queries: Queries) -> None:
        """Set the constants that depend on the mean standard deviation of a member's scores.

        These are the floor of a query's standard deviation, and the factor of members whose values
        are probabilities.
        """
        stack = self.encoders.stack
        assert stack is not None, "only a model with stacking has scales"
        batch = self._batch(queries)
        spreads = {}
        if TRAINED in self.members:
            users_BD, _ = self.encoders.fusion(
                *self.encoders.encode(batch, self.items, self.states)
            )
            spreads[TRAINED] = spread(users_BD, self.covariance(TRAINED))
        batch = self._fitted_batch(batch)
        for name, module in self.encoders.each(fitted=True):
            if name in self.states and module.sparse:
                scores = module.boost(batch, self.items, self.states[name])
                spreads[name] = sparse_spread(scores, len(batch), len(self.items.vectors_SD))
            elif name in self.states:
                spreads[name] = spread(
                    module(batch, self.items, self.states[name])[0], self.covariance(name)
                )
        for name, spread_B in spreads.items():
            mean = (
                spread_B[spread_B > 0].mean() if bool((spread_B > 0).any()) else torch.tensor(0.0)
            )
            stack.floors_M[self.members.index(name)] = FLOOR * mean
            stack.scales_M[self.members.index(name)] = inverse(mean, torch.zeros(()))

    @torch.inference_mode()
    def unit_contributions(self, queries: Queries) -> Parts:
        """The contributions to every query with every λ set to 1: z_k, and 1 where it is
        present.
        """
        batch = self._batch(queries)
        z_BKD, present_BK = self.encoders.encode(batch, self.items, self.states)
        ones = torch.ones_like(self.encoders.fitted_weights)
        return self._weighed(batch, z_BKD, present_BK.to(z_BKD.dtype), ones, stacks=False)

    @torch.inference_mode()
    def parts_ahead(
        self,
        queries: Queries,
        steps: int,
        brought: Mapping[str, Any] | None = None,
    ) -> Parts:
        """:meth:`parts` after ``steps`` further expected events: what to recommend after events
        that have not happened.

        Only the granularity evolution is rolled forward; the others stay unchanged.

        Raises
        ------
        RequestError
            The model has no evolution, or ``model.max_history`` is too short to roll that far.
        """
        place, evolution = self._evolution(f"a horizon of {steps + 1}")
        room = self.config.max_history - steps
        if room < 1:
            raise RequestError(
                f"a horizon of {steps + 1} exceeds model.max_history {self.config.max_history}"
            )
        whole = self._batch(queries, brought)
        z_BKD, present_BK = self.encoders.encode(whole, self.items, self.states)
        batch, items = last_position(queries, room).to(self.item_vectors_ND.device), self.items
        for _ in range(steps):
            users_BD, _ = self.encoders.fusion(z_BKD, present_BK)
            event_BD = expected_event(users_BD @ self.items.vectors_SD.T, self.items.vectors_SD)
            batch, items = lengthen(batch, items, event_BD)
            z_BD, _ = evolution(batch, items, {})
            z_BKD[:, place] = normalize(z_BD, dim=-1) if self.config.unit_vectors else z_BD
        _, weights_BK = self.encoders.fusion(z_BKD, present_BK)
        return self._weighed(whole, z_BKD, weights_BK, self.encoders.fitted_weights)

    @torch.inference_mode()
    def scores_ahead(self, queries: Queries, steps: int) -> Tensor:
        """:meth:`scores` for the event that is ``steps`` after the next one."""
        return self._scored(self.parts_ahead(queries, steps))

    @torch.inference_mode()
    def interest_path(self, query: Queries) -> Interest:
        """Long-term and immediate interest of one user after every event of the history, the oldest
        first.

        Raises
        ------
        RequestError
            The model has no evolution.
        """
        _, evolution = self._evolution("the path of a user's interest")
        self.encoders.eval()
        batch = last_position(query, self.config.max_history).to(self.item_vectors_ND.device)
        events_L = torch.arange(1, int(batch.lengths_U[0]) + 1, device=batch.lengths_U.device)
        no_context = batch.asked_BC.new_zeros(len(events_L), batch.asked_BC.shape[1])
        every = replace(
            batch, rows_B=torch.zeros_like(events_L), seen_B=events_L, asked_BC=no_context
        )
        return evolution.interest(every, self.items)

    @property
    def rolls_forward(self) -> bool:
        """Whether the model can predict beyond the next event and show how an interest drifts."""
        return any(isinstance(module, Evolution) for _, module in self.encoders.each())

    def _evolution(self, what: str) -> tuple[int, Evolution]:
        """The granularity evolution and its index among the granularities."""
        for place, (_, module) in enumerate(self.encoders.each()):
            if isinstance(module, Evolution):
                return place, module
        raise RequestError(
            f"{what} needs the granularity evolution; this model has {', '.join(self.names)}"
        )

    @torch.inference_mode()
    def user_vectors(self, queries: Queries) -> tuple[Tensor, Tensor, SparseScores]:
        """User vector of every query [B, D], whether any granularity is present [B], and the sparse
        additions.
        """
        parts = self.parts(queries)
        return parts.users_BD, parts.weights_BK.any(1), parts.added

    @torch.inference_mode()
    def scores(self, queries: Queries) -> Tensor:
        """Score of every query and item: [B, N]; popularity for a query without any present
        granularity.
        """
        return self._scored(self.parts(queries))

    @torch.inference_mode()
    def scores_without(self, queries: Queries, name: str) -> Tensor:
        """Scores [B, N] with the weight of one granularity set to zero."""
        return self.scores_of(queries, [other for other in self.names if other != name])

    @torch.inference_mode()
    def scores_of(self, queries: Queries, kept: Collection[str]) -> Tensor:
        """Scores [B, N] with the weights of all other granularities set to zero."""
        return self._scored(
            self.parts(queries).of([k for k, name in enumerate(self.names) if name in kept])
        )

    @torch.inference_mode()
    def scores_at(self, queries: Queries, weights: Mapping[str, float]) -> Tensor:
        """Scores [B, N] with constant weights by name instead of those of the fusion; missing
        granularities stay masked.
        """
        batch = self._batch(queries)
        z_BKD, present_BK = self.encoders.encode(batch, self.items, self.states)
        weights_K = torch.tensor(
            [weights[name] for name in self.names], dtype=z_BKD.dtype, device=z_BKD.device
        )
        trained_K, fitted_K = weights_K.tensor_split([present_BK.shape[1]])
        return self._scored(
            self._weighed(batch, z_BKD, trained_K * present_BK, fitted_K, stacks=False)
        )

    @torch.inference_mode()
    def ratings(self, queries: Queries, items_BM: Array) -> Tensor:
        """The value that the user of each query would give to items (dense ids): [B, M]; see
        :mod:`recsys.ratings`.

        NaN in the values of a history means unknown. Rankings never use these values.

        Raises
        ------
        RequestError
            The model has no rating head.
        """
        if self.rating_head is None:
            raise RequestError(
                "this model predicts no ratings; set train.ratings true and train on events whose"
                " values vary"
            )
        items = torch.as_tensor(items_BM).long().to(self.item_vectors_ND.device)
        return self.rating_head.predict(
            queries.histories, items, standardised(self.scores(queries), items)
        )

    def _scored(self, parts: Parts) -> Tensor:
        scores_BN = parts.scores(self.item_vectors_ND)
        scores_BN[~parts.weights_BK.any(1)] = self.popularity_N.to(scores_BN.dtype)
        return scores_BN

    def tensors(self) -> dict[str, Tensor]:
        """Everything that inference needs besides the configuration, by name: see
        :meth:`from_tensors`.
        """
        # only names are needed: no memory, and the random state of a running training stays
        with torch.device("meta"):
            served = Encoders(self.config, self.sizes, serving=True).state_dict().keys()
        weights = self.encoders.state_dict()
        named = {f"encoders.{name}": weights[name] for name in served}
        named |= {"items.vectors": self.items.vectors_SD, "items.popularity": self.popularity_N}
        named["items.text"] = (
            self.items.text_ST if self.reads_text else self.items.text_ST[:, :0]
        ).to(torch.float16)
        for name, state in self.states.items():
            named |= {f"state.{name}.{key}": tensor for key, tensor in state.items()}
        if self.rating_head is not None:
            named |= {
                f"ratings.{name}": tensor for name, tensor in self.rating_head.tensors().items()
            }
        return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in named.items()}

    @staticmethod
    def from_tensors(
        config: ModelConfig, sizes: ModelSizes, tensors: Mapping[str, Tensor]
    ) -> FrozenModel:
        """The inverse of :meth:`tensors`; ``sizes`` as :func:`dump_sizes` wrote them."""
        encoders = Encoders(config, sizes, serving=True)
        encoders.load_state_dict(
            {
                k.removeprefix("encoders."): v
                for k, v in tensors.items()
                if k.startswith("encoders.")
            }
        )
        states: States = {name: {} for name in encoders.names}
        for key, tensor in tensors.items():
            if key.startswith("state."):
                _, name, part = key.split(".", 2)
                states[name][part] = tensor
        items = ItemView(tensors["items.vectors"], tensors["items.text"].to(torch.float32))
        rated = {
            key.removeprefix("ratings."): value
            for key, value in tensors.items()
            if key.startswith("ratings.")
        }
        head = RatingHead.from_tensors(rated) if rated else None
        encoders.eval()
        return FrozenModel(
            config, sizes, encoders, items, states, tensors["items.popularity"], head
        )


# keys of sizes that bundles of earlier versions have instead of ``inputs`` → their signals
_EARLIER: Final = {
    "profile": "profile",
    "num_entities": "",
    "num_relations": "",
    "num_strata": "stratum",
    "user_text_width": "user_text",
    "media": "media",
}


def dump_sizes(sizes: ModelSizes) -> dict[str, Any]:
    """Return the sizes as plain values for JSON."""
    return asdict(sizes)


def load_sizes(content: Mapping[str, Any]) -> ModelSizes:
    """Invert :func:`dump_sizes`.

    Raises
    ------
    TypeError, KeyError
        The content does not come from :func:`dump_sizes`.
    """
    plain = {key: value for key, value in content.items() if key not in _EARLIER}
    earlier = {
        signal: content[key] for key, signal in _EARLIER.items() if signal and content.get(key)
    }
    if content.get("num_relations"):
        earlier["knowledge"] = {
            "entities": content["num_entities"],
            "relations": content["num_relations"],
        }
    return ModelSizes(**{**plain, "inputs": {**earlier, **content.get("inputs", {})}})
