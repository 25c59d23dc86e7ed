"""The frozen model: view and states as plain tensors, without graphs and without a dataset.

Legend: B queries, K granularities, D width, N items, M listed items.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from recsys.config import ModelConfig
from recsys.contributions import Contributions
from recsys.data.batches import Batch, last_position
from recsys.data.histories import Array, Queries
from recsys.errors import RequestError
from recsys.granularities.base import ItemView, ModelSizes
from recsys.granularities.evolution.model import Evolution, Interest
from recsys.granularities.evolution.rolling import expected_event, lengthen
from recsys.granularities.sparse import SparseScores
from recsys.model.frozen_members import FrozenMembers, StackUse
from recsys.model.user_encoders import Encoders, States
from recsys.processor import choose_matrix_library, keep_freed_memory
from recsys.rating_prediction import RatingHead, standardised


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
        self.popularity_N = popularity_N  # number of users of each item in the training events
        self.rating_head = rating_head  # None unless train.ratings is on and values vary
        self._members = FrozenMembers(encoders, items, states, config.fitted_history)
        self.states = self._members.states  # of the members that are not pruned
        self.item_vectors_ND = self._members.item_vectors_ND
        self.widths = self._members.widths  # of the members, in the order of item_vectors_ND

    @property
    def names(self) -> list[str]:
        """The granularities, in the order of K."""
        return self.encoders.names

    @property
    def active_names(self) -> list[str]:
        """The granularities with a weight for at least one query, in the order of K; the others
        always add zero.
        """
        return self.encoders.active_names

    @property
    def personal_K(self) -> Tensor:
        """Which granularities depend on the user, not on the time of the request alone: bool
        [K].
        """
        modules = [*self.encoders.each(), *self.encoders.each(closed_form=True)]
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
        inputs: Mapping[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """z_k of every query [B, K, D] and where it is present [B, K], for the trained
        granularities.

        ``inputs`` holds the inputs of the queries besides events, by signal; see ``Batch.inputs``.
        """
        return self.encoders.encode(self._batch(queries, inputs), self.items, self.states)

    def _batch(
        self,
        queries: Queries,
        inputs: Mapping[str, Any] | None = None,
    ) -> Batch:
        if self.encoders.training:  # as .eval() visits every module
            self.encoders.eval()
        batch = last_position(queries, self.config.max_history)
        batch = replace(batch, inputs=dict(inputs or {}))
        return batch.to(self.item_vectors_ND.device)

    @torch.inference_mode()
    def contributions(
        self,
        queries: Queries,
        inputs: Mapping[str, Any] | None = None,
    ) -> Contributions:
        """Weighted contributions of the granularities to every query: see
        :class:`~recsys.contributions.Contributions`.

        Parameters
        ----------
        queries : Queries
            Histories to score.
        inputs : Mapping[str, Any] | None
            As in :meth:`encode`.
        """
        return self._contributions(self._batch(queries, inputs), "chosen")

    @property
    def is_uneven(self) -> bool:
        """Whether a member has no stacking weight for some lengths of history, but for others."""
        return self.encoders.stack is not None and self.encoders.stack.is_uneven

    @torch.inference_mode()
    def even_contributions(self, queries: Queries) -> Contributions:
        """:meth:`contributions` with stacking weight 1 for every member that is not pruned, also in
        groups of history length in which its chosen weight is zero.
        """
        return self._contributions(self._batch(queries), "even")

    def _contributions(self, batch: Batch, stack: StackUse) -> Contributions:
        z_BKD, present_BK = self.encoders.encode(batch, self.items, self.states)
        _, weights_BK = self.encoders.fusion(z_BKD, present_BK)
        return self._members.contributions(
            batch, z_BKD, weights_BK, self.encoders.fitted_weights, stack
        )

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
        return self._members.scores(self._batch(queries))

    @torch.inference_mode()
    def choose_scales(self, queries: Queries) -> None:
        """Set the constants that depend on the mean standard deviation of a member's scores; see
        :meth:`FrozenMembers.choose_scales`.
        """
        self._members.choose_scales(self._batch(queries))

    def covariance(self, member: str) -> Tensor:
        """Covariance of a member's item vectors, computed once."""
        return self._members.covariance(member)

    @torch.inference_mode()
    def unit_contributions(self, queries: Queries) -> Contributions:
        """The contributions to every query with every λ set to 1: z_k, and 1 where it is
        present.
        """
        batch = self._batch(queries)
        z_BKD, present_BK = self.encoders.encode(batch, self.items, self.states)
        ones = torch.ones_like(self.encoders.fitted_weights)
        return self._members.contributions(
            batch, z_BKD, present_BK.to(z_BKD.dtype), ones, stack="off"
        )

    @torch.inference_mode()
    def contributions_ahead(
        self,
        queries: Queries,
        steps: int,
        inputs: Mapping[str, Any] | None = None,
    ) -> Contributions:
        """:meth:`contributions` after ``steps`` further expected events: what to recommend after
        events that have not happened.

        Only the granularity evolution is rolled forward; the others stay unchanged.

        Parameters
        ----------
        queries : Queries
            Histories to score.
        steps : int
            Number of expected events to add to each history.
        inputs : Mapping[str, Any] | None
            As in :meth:`encode`.

        Returns
        -------
        Contributions
            Weighted contributions of the granularities to every query.

        Raises
        ------
        RequestError
            The model has no evolution, or ``model.max_history`` is too short to roll that far.
        """
        k, evolution, room = self.rolling(steps)
        whole = self._batch(queries, inputs)
        z_BKD, present_BK = self.encoders.encode(whole, self.items, self.states)
        batch, items = last_position(queries, room).to(self.item_vectors_ND.device), self.items
        for _ in range(steps):
            users_BD, _ = self.encoders.fusion(z_BKD, present_BK)
            event_BD = expected_event(users_BD @ self.items.vectors_SD.T, self.items.vectors_SD)
            batch, items = lengthen(batch, items, event_BD)
            z_BD, _ = evolution(batch, items, {})
            z_BKD[:, k] = normalize(z_BD, dim=-1) if self.config.unit_vectors else z_BD
        _, weights_BK = self.encoders.fusion(z_BKD, present_BK)
        return self._members.contributions(whole, z_BKD, weights_BK, self.encoders.fitted_weights)

    @torch.inference_mode()
    def scores_ahead(self, queries: Queries, steps: int) -> Tensor:
        """:meth:`scores` for the event that is ``steps`` after the next one."""
        return self._scored(self.contributions_ahead(queries, steps))

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
        # the context of the request belongs to now, not to the earlier positions
        no_context = batch.asked_BC.new_zeros(len(events_L), batch.asked_BC.shape[1])
        every = replace(
            batch, rows_B=torch.zeros_like(events_L), seen_B=events_L, asked_BC=no_context
        )
        return evolution.interest(every, self.items)

    def rolling(self, steps: int) -> tuple[int, Evolution, int]:
        """The index of the granularity that adds ``steps`` expected events, the granularity, and
        the number of past events that it then reads.

        Raises
        ------
        RequestError
            As in :meth:`contributions_ahead`.
        """
        k, evolution = self._evolution(f"a horizon of {steps + 1}")
        room = self.config.max_history - steps
        if room < 1:
            raise RequestError(
                f"a horizon of {steps + 1} exceeds model.max_history {self.config.max_history}"
            )
        return k, evolution, room

    @property
    def rolls_forward(self) -> bool:
        """Whether the model can predict beyond the next event and show how an interest drifts."""
        return any(isinstance(module, Evolution) for _, module in self.encoders.each())

    def _evolution(self, what: str) -> tuple[int, Evolution]:
        """The granularity evolution and its index among the granularities."""
        for k, (_, module) in enumerate(self.encoders.each()):
            if isinstance(module, Evolution):
                return k, module
        raise RequestError(
            f"{what} needs the granularity evolution; this model has {', '.join(self.names)}"
        )

    @torch.inference_mode()
    def user_vectors(self, queries: Queries) -> tuple[Tensor, Tensor, SparseScores]:
        """User vector of every query [B, D], whether any granularity is present [B], and the sparse
        additions.
        """
        contributions = self.contributions(queries)
        return contributions.users_BD, contributions.weights_BK.any(1), contributions.added

    @torch.inference_mode()
    def scores(self, queries: Queries) -> Tensor:
        """Score of every query and item: [B, N]; popularity for a query without any present
        granularity.
        """
        return self._scored(self.contributions(queries))

    @torch.inference_mode()
    def scores_without(self, queries: Queries, name: str) -> Tensor:
        """Scores [B, N] with the weight of one granularity set to zero."""
        return self.scores_of(queries, [other for other in self.names if other != name])

    @torch.inference_mode()
    def scores_of(self, queries: Queries, names: Collection[str]) -> Tensor:
        """Scores [B, N] with the weights of all other granularities set to zero."""
        return self._scored(
            self.contributions(queries).of(
                [k for k, name in enumerate(self.names) if name in names]
            )
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
            self._members.contributions(batch, z_BKD, trained_K * present_BK, fitted_K, stack="off")
        )

    @torch.inference_mode()
    def ratings(self, queries: Queries, items_BM: Array) -> Tensor:
        """The value that the user of each query would give to items (dense ids): [B, M]; see
        :mod:`recsys.rating_prediction`.

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

    def _scored(self, contributions: Contributions) -> Tensor:
        scores_BN = contributions.scores(self.item_vectors_ND)
        # without a present granularity all scores are zero, which would order items by the tie
        # rule alone
        scores_BN[~contributions.weights_BK.any(1)] = self.popularity_N.to(scores_BN.dtype)
        return scores_BN

    def tensors(self, copied: bool = True) -> dict[str, Tensor]:
        """Everything that inference needs besides the configuration, by name: see
        :meth:`from_tensors`. Without ``copied``, they may share memory with the model and with one
        another.
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
        if not copied:
            return named
        # clone: safetensors refuses tensors that share memory, and views would write the whole
        # storage
        return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in named.items()}

    @staticmethod
    def from_tensors(
        config: ModelConfig, sizes: ModelSizes, tensors: Mapping[str, Tensor]
    ) -> FrozenModel:
        """The inverse of :meth:`tensors`; ``sizes`` as :func:`dump_sizes` wrote them.

        Parameters
        ----------
        config : ModelConfig
            Section ``model``.
        sizes : ModelSizes
            What the dataset fixes of the model's shape.
        tensors : Mapping[str, Tensor]
            Result of :meth:`tensors`.

        Returns
        -------
        FrozenModel
            The model for evaluation and serving.
        """
        # here, because all that score with a saved model come by
        choose_matrix_library()
        keep_freed_memory()
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
                _, name, state_key = key.split(".", 2)
                states[name][state_key] = tensor
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
