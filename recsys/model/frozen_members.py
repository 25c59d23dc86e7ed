"""The members of a frozen model: their item vectors, scales, scores and weighted contributions.

A member is what stacking weights: the trained granularities together, or one closed-form
granularity. See :mod:`recsys.stack` for the formulas.

Legend: B queries, K granularities, M members, D width, R width of one member, N items.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from recsys.contributions import Contributions
from recsys.data.batches import Batch, last_position
from recsys.granularities.base import ItemView
from recsys.granularities.sparse import SparseScores
from recsys.model.user_encoders import Encoders, States
from recsys.stack import FLOOR, TRAINED, Stack, covariance, inverse, sparse_spread, spread

StackUse = Literal["chosen", "even", "off"]


class _Contribution(NamedTuple):
    """The weighted contribution of one closed-form member: vectors, sparse scores, or both."""

    vectors_BR: Tensor  # R = 0 for a sparse member
    sparse: SparseScores | None
    present_B: Tensor


class FrozenMembers:
    """The members of a frozen model that are not pruned, with their states."""

    def __init__(
        self, encoders: Encoders, items: ItemView, states: States, closed_form_history: int
    ) -> None:
        pruned = encoders.pruned_members
        self.encoders, self.items = encoders, items
        self.states = {name: state for name, state in states.items() if name not in pruned}
        self._history = closed_form_history  # events that closed-form members read; 0: as trained
        self._covariances: dict[str, Tensor] = {}  # covariances of item vectors, by member
        self._closed_form = dict(encoders.each(closed_form=True))
        own = [
            module.own_items(states[name])
            for name, module in self._closed_form.items()
            if name not in pruned
        ]
        self.item_vectors_ND = (
            torch.cat([items.vectors_SD, *own], dim=1) if own else items.vectors_SD
        )
        # widths of the members, in the order of item_vectors_ND
        self.widths = [own_NR.shape[1] for own_NR in (items.vectors_SD, *own)]

    def contributions(
        self,
        batch: Batch,
        z_BKD: Tensor,
        weights_BK: Tensor,
        closed_form_weights: Tensor,
        stack: StackUse = "chosen",
    ) -> Contributions:
        """Combine the trained granularities with the closed-form ones, which come after them.

        Each closed-form member is sparse or has its own directions in :attr:`item_vectors_ND`.

        Parameters
        ----------
        batch : Batch
            The queries.
        z_BKD : Tensor, [B, K, D] float
            Vectors of the trained granularities.
        weights_BK : Tensor, [B, K] float
            Their weights λ after the fusion, zero where one has no input.
        closed_form_weights : Tensor, one per closed-form granularity
            Their fitted weights λ, which count where no stacking weight does.
        stack : {"chosen", "even", "off"}
            The stacking weights, if the model has them: the chosen ones, 1 for every member that is
            not pruned, or none.

        Returns
        -------
        Contributions
            The weighted contributions. K and D grow by every closed-form granularity.
        """
        vectors_BKD, sparse = z_BKD * weights_BK[:, :, None], {}
        stack_weights = self._stack_weights(batch, stack)
        # scale the sum of the trained granularities as one member: their proportions were trained
        if TRAINED in stack_weights:
            factor_B = stack_weights[TRAINED] * self._scale_free(TRAINED, vectors_BKD.sum(1))
            vectors_BKD = vectors_BKD * factor_B[:, None, None]
            weights_BK = weights_BK * stack_weights[TRAINED][:, None]
        longer = self._closed_form_batch(batch)
        for name, weight in zip(self._closed_form, closed_form_weights, strict=True):
            weight_B = stack_weights.get(name, weight.expand(len(batch)))
            own = self._contribution(name, longer, weight_B, is_scaled=name in stack_weights)
            k, width = vectors_BKD.shape[1:]
            # every member has columns of its own, so that one product with all item vectors adds
            # the scores
            vectors_BKD = pad(vectors_BKD, (0, own.vectors_BR.shape[1], 0, 1))
            vectors_BKD[:, k, width:] = own.vectors_BR
            if own.sparse is not None:
                sparse[k] = own.sparse
            weights_BK = torch.cat([weights_BK, (weight_B * own.present_B)[:, None]], dim=1)
        return Contributions(vectors_BKD, weights_BK, sparse)

    def _contribution(
        self, name: str, batch: Batch, weight_B: Tensor, is_scaled: bool
    ) -> _Contribution:
        """The contribution of one closed-form member; nothing if stacking pruned it."""
        nothing_B0 = self.items.vectors_SD.new_zeros(len(batch), 0)
        if name not in self.states:
            return _Contribution(nothing_B0, None, torch.zeros_like(weight_B))
        module, state = self._closed_form[name], self.states[name]
        if module.sparse:
            scores = module.boost(batch, self.items, state)
            scale_B = self._sparse_scale(name, scores, len(batch)) if is_scaled else 1.0
            return _Contribution(
                nothing_B0, scores.weighed(weight_B * scale_B), scores.present(len(batch))
            )
        z_BR, present_B = module(batch, self.items, state)
        factor_B = weight_B * self._scale_free(name, z_BR) if is_scaled else weight_B
        correction = (
            module.boost(batch, self.items, state).weighed(factor_B) if module.corrects else None
        )
        return _Contribution(factor_B[:, None] * z_BR, correction, present_B)

    def _closed_form_batch(self, batch: Batch) -> Batch:
        """Inputs of closed-form granularities, which may read longer histories than the trained
        ones.
        """
        if not self._history or batch.whole is None:
            return batch
        longer = last_position(batch.whole, self._history).to(batch.seen_B.device)
        return replace(longer, inputs=batch.inputs)

    def _stack_weights(self, batch: Batch, use: StackUse) -> dict[str, Tensor]:
        """Stacking weight [B] of every member; empty without stacking."""
        if self.encoders.stack is None or use == "off":
            return {}
        lengths_B = (
            batch.seen_B
            if batch.whole is None
            else torch.as_tensor(batch.whole.histories.lengths_U)
        )
        weights_BM = self.encoders.stack.weights(lengths_B.to(batch.seen_B.device))
        if use == "even":
            is_used_M = self.encoders.stack.weights_GM.any(dim=0)
            weights_BM = is_used_M.to(weights_BM.dtype).expand_as(weights_BM)
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
        return self._closed_form[member].own_items(self.states[member])

    def scores(self, batch: Batch) -> list[Tensor]:
        """Scores of every member that is not pruned, alone, with standard deviation 1 over the
        catalogue: M × [B, N].
        """
        found = []
        if TRAINED in self.encoders.members:
            users_BD = self._trained_users(batch)
            found.append(
                (users_BD * self._scale_free(TRAINED, users_BD)[:, None]) @ self.items.vectors_SD.T
            )
        longer = self._closed_form_batch(batch)
        # a member may be pruned before the weights are chosen
        found += [
            self._own_scores(name, longer) for name in self._closed_form if name in self.states
        ]
        return found

    def _own_scores(self, name: str, batch: Batch) -> Tensor:
        """Scores [B, N] of a closed-form member alone, with standard deviation 1."""
        module, state = self._closed_form[name], self.states[name]
        if module.sparse:
            scores = module.boost(batch, self.items, state)
            vectors_ND = self.items.vectors_SD
            zeros_BN = torch.zeros(len(batch), len(vectors_ND), device=vectors_ND.device)
            scores_BN = scores.add_to(zeros_BN)
            return scores_BN * self._sparse_scale(name, scores, len(batch))[:, None]
        z_BR: Tensor = module(batch, self.items, state)[0]
        scores_BN = z_BR @ self._own_items(name).T
        if module.corrects:
            module.boost(batch, self.items, state).add_to(scores_BN)
        return scores_BN * self._scale_free(name, z_BR)[:, None]

    def _trained_users(self, batch: Batch) -> Tensor:
        """User vectors [B, D] of the trained granularities together."""
        z_BKD, present_BK = self.encoders.encode(batch, self.items, self.states)
        users_BD: Tensor = self.encoders.fusion(z_BKD, present_BK)[0]
        return users_BD

    def _sparse_scale(self, member: str, scores: SparseScores, num_rows: int) -> Tensor:
        """Factors [B] for the values of a sparse member.

        Probabilities have one factor for all queries, because their size has a meaning.
        """
        if self._closed_form[member].calibrated:
            return self._stack.scales_M[self.encoders.members.index(member)].expand(num_rows)
        return inverse(
            sparse_spread(scores, num_rows, len(self.items.vectors_SD)), self._floor(member)
        )

    def _floor(self, member: str) -> Tensor:
        """The number that is added to the standard deviation of every query."""
        return self._stack.floors_M[self.encoders.members.index(member)]

    @property
    def _stack(self) -> Stack:
        assert self.encoders.stack is not None, "only a model with stacking has scales and floors"
        return self.encoders.stack

    def choose_scales(self, batch: Batch) -> None:
        """Set the constants that depend on the mean standard deviation of a member's scores.

        These are the floor of a query's standard deviation, and the factor of members whose values
        are probabilities.
        """
        for name, spread_B in self._spreads(batch).items():
            member = self.encoders.members.index(name)
            mean = (
                # queries without this member have no spread, and would pull the mean down
                spread_B[spread_B > 0].mean() if bool((spread_B > 0).any()) else torch.tensor(0.0)
            )
            self._stack.floors_M[member] = FLOOR * mean
            self._stack.scales_M[member] = inverse(mean, torch.zeros(()))

    def _spreads(self, batch: Batch) -> dict[str, Tensor]:
        """Standard deviation [B] of the scores of every member that is not pruned."""
        found = {}
        if TRAINED in self.encoders.members:
            found[TRAINED] = spread(self._trained_users(batch), self.covariance(TRAINED))
        longer = self._closed_form_batch(batch)
        for name, module in self._closed_form.items():
            if name not in self.states:
                continue
            if module.sparse:
                scores = module.boost(longer, self.items, self.states[name])
                found[name] = sparse_spread(scores, len(batch), len(self.items.vectors_SD))
            else:
                z_BR, _ = module(longer, self.items, self.states[name])
                found[name] = spread(z_BR, self.covariance(name))
        return found
