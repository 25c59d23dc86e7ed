"""Item-based collaborative filtering: a closed-form item–item model as a member of the fusion (S3).

The ridge regression of every item on all others with a zero diagonal (EASE, Steck 2019), on events
stacked with item text (Collective EASE, Jeunen et al. 2020):

    M = [X; √α Tᵀ],   B = I − P diag(P)⁻¹,   P = (MᵀM + λI)⁻¹,   r_ui = x_u · B_i

The N × N matrix is never built. There are two forms (``form``):

``factors``: with the leading singular triples M ≈ A Σ Qᵀ and g = σ² / (σ² + λ), an item that is not
in the history scores r_ui = Σ_{j ∈ H_u} x_uj (g ⊙ q_j) · q_i w_i, w_i = 1 / (1 − Σ_r g_r q_ir²):
exact at full rank, and a user is one vector. Items of the history have an additional term for
themselves, which does not matter for rankings of unseen items; without ``itself`` it is subtracted
from the scores of these items. The triples come from the smaller Gram matrix if one side is below
2500, else from randomised subspace iteration.

``neighbours``: each item is predicted from the few items that are most similar to it, by a ridge
regression on these alone (see ``item_links``): a sparse member of N K weights, whose fit grows with
N instead of N³. With 200 neighbours it is about as good as the exact B, with 50 it is not
(docs/members.md).

A query's newer events may have more weight than older ones (``recency``); the fit weights all
events alike.

It is computed in closed form and not trained; its weight is chosen on validation afterwards. Why:
the factors were fitted on the training events, so a training on the same events would give them too
much weight.

Legend: V users, N items, E training events, T text width, R rank, M rows of the stacked matrix, B
queries, L length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from recsys.data.batches import Batch
from recsys.data.histories import Array
from recsys.granularities.base import Granularity, Graphs, ItemView, ModelSizes, State
from recsys.granularities.event_matrix import EventMatrix, training_matrix
from recsys.granularities.history import SeenEvents, seen_events, target_types
from recsys.granularities.item_cf.section import ItemCFConfig
from recsys.granularities.item_links import (
    linked_scores,
    links,
    most_similar,
    regressions,
    together,
)
from recsys.granularities.sparse import SparseScores
from recsys.granularities.spectrum import spectrum

_SHRINKAGE: Final = 20.0  # shrinkage of the similarities that select neighbours


class ItemCF(Granularity):
    """A closed-form member, with its own item vectors or sparse. Repeated items of a history count
    once.
    """

    closed_form = True

    def __init__(self, config: ItemCFConfig, sizes: ModelSizes) -> None:
        super().__init__()
        self.config = config
        self.recency = config.recency[0] if sizes.ordered else 0.0
        self.sparse = config.by_neighbours(sizes.num_users, sizes.num_items, sizes.text_width)
        self.corrects = not (self.sparse or config.itself[0])
        self.reads_histories = "targets" in config.types and sizes.num_types > 1

    def state(self, items: ItemView, graphs: Graphs) -> State:
        """Fit the factors or the links."""
        return next(self._states([self.config], items, graphs))

    @classmethod
    def fits(
        cls, sections: Sequence[ItemCFConfig], sizes: ModelSizes, items: ItemView, graphs: Graphs
    ) -> Iterator[tuple[Granularity, State]]:
        """Fit once for sections that differ in λ; sections that differ only at inference share a
        fit.

        Parameters
        ----------
        sections : Sequence of ItemCFConfig
            Settings that differ in one key.
        sizes : ModelSizes
            Sizes of the model.
        items : ItemView
            Text vectors of all items; item vectors are not read.
        graphs : Graphs
            Training events.

        Yields
        ------
        Granularity, dict of str to Tensor
            Module and state, in the order of ``sections``.
        """
        modules = [cls(section, sizes).eval() for section in sections]
        # other event types are another training matrix, so nothing can be shared
        if len({section.types[0] for section in sections}) > 1:
            yield from ((module, module.state(items, graphs)) for module in modules)
        elif len({section.regularisation[0] for section in sections}) == 1:
            state = modules[0].state(items, graphs)
            yield from ((module, state) for module in modules)
        else:
            yield from zip(modules, modules[0]._states(sections, items, graphs), strict=True)

    def _states(
        self, sections: Sequence[ItemCFConfig], items: ItemView, graphs: Graphs
    ) -> Iterator[State]:
        """States for sections that differ in λ, from one spectrum or one Gram matrix."""
        first, device = sections[0], items.vectors_SD.device
        counts_T = target_types(graphs)[: None if first.types[0] == "targets" else 0]
        events = training_matrix(graphs, first.event_weights, len(counts_T) > 0)
        chosen_N = events.counts_N > 0
        text_NT = items.text_ST.cpu().numpy()
        text_NT = (
            np.float32(np.sqrt(first.text_weight)) * text_NT * chosen_N[:, None]
            if first.text_weight
            else text_NT[:, :0]
        )
        lambdas = [section.regularisation[0] for section in sections]
        made = self._linked if self.sparse else self._factored
        for state in made(events, text_NT, chosen_N, lambdas):
            yield {
                name: value.to(device) for name, value in {**state, "counts_T": counts_T}.items()
            }

    def _factored(
        self, events_VN: EventMatrix, text_NT: Array, chosen_N: Array, lambdas: list[float]
    ) -> Iterator[State]:
        num_users, num_items = events_VN.shape
        rank = self.config.num_factors(num_users, num_items, text_NT.shape[1])
        # the spectrum does not depend on λ, so one decomposition serves the whole grid
        basis_NR, sigma_R = spectrum(events_VN, text_NT, rank)
        for regularisation in lambdas:
            share_R = sigma_R**2 / (sigma_R**2 + regularisation)
            # 1 − Σ g q² is near 0 for an item that the factors reproduce exactly; the floor bounds
            # its score
            scale_N = np.where(chosen_N, 1 / np.maximum(1 - basis_NR**2 @ share_R, 1e-3), 0.0)
            made = {
                "fold_NR": basis_NR * share_R,
                # the product of both vectors has g once; ``fold_NR`` has it, so the item side
                # takes it out
                "unfold_R": 1 / np.maximum(share_R, 1e-12),
                "scale_N": scale_N,
            }
            yield {name: torch.as_tensor(value).float() for name, value in made.items()}

    def _linked(
        self, events_VN: EventMatrix, text_NT: Array, chosen_N: Array, lambdas: list[float]
    ) -> Iterator[State]:
        pairs_NN = together(events_VN)
        neighbours = self.config.num_neighbours(events_VN.shape[1])
        items_NK, _ = most_similar(pairs_NN, neighbours, _SHRINKAGE)
        for weights_NK in regressions(pairs_NN, items_NK, text_NT, lambdas):
            yield links(items_NK, weights_NK, by_target=True)

    def own_items(self, state: State) -> Tensor:
        """Item factors; width 0 in the form neighbours."""
        if self.sparse:
            return state["weights_L"].new_zeros(len(state["starts_N1"]) - 1, 0)
        return state["fold_NR"] * state["unfold_R"] * state["scale_N"][:, None]

    def forward(self, batch: Batch, items: ItemView, state: State) -> tuple[Tensor, Tensor]:
        """Sums over the history in the factor space.

        Parameters
        ----------
        batch : Batch
            Queries; each distinct item of a history counts once.
        items : ItemView
            Not read.
        state : dict of str to Tensor
            ``fold_NR`` [N, R] and ``counts_T``, the mask of the event types that count.

        Returns
        -------
        z_BR : Tensor, [B, R] float32
            User vector of each query, to be multiplied with :meth:`own_items`.
        present_B : Tensor, [B] bool
            Whether this vector is not zero.
        """
        seen = self._seen(batch, state)
        starts_B = seen.per_query(torch.ones_like(seen.rows_E)).cumsum(0).roll(1)
        # roll put the total in front; the first bag starts at 0
        starts_B[:1] = 0
        z_BR = embedding_bag(
            seen.items_E,
            state["fold_NR"],
            starts_B,
            mode="sum",
            per_sample_weights=self._weights(seen),
        )
        return z_BR, (z_BR != 0).any(1)

    def boost(self, batch: Batch, items: ItemView, state: State) -> SparseScores:
        """Form neighbours: scores of linked items; factors: corrections of the history's own
        items.

        Parameters
        ----------
        batch : Batch
            Queries; each distinct item of a history counts once.
        items : ItemView
            Not read.
        state : dict of str to Tensor
            The factors or the links, whichever the form has.

        Returns
        -------
        SparseScores
            Neighbours: r_ui of the linked items. Factors: minus what the items of a history add to
            their own scores.
        """
        seen = self._seen(batch, state)
        if self.sparse:
            return linked_scores(seen, self._weights(seen), state)
        share_E = (state["fold_NR"][seen.items_E] * self.own_items(state)[seen.items_E]).sum(1)
        return SparseScores.of(seen.rows_E, seen.items_E, -share_E * self._weights(seen))

    def _seen(self, batch: Batch, state: State) -> SeenEvents:
        return seen_events(batch).of_types(state.get("counts_T")).distinct()

    def _weights(self, seen: SeenEvents) -> Tensor:
        """X of every event: [E]."""
        decay_E = (seen.lags_E + 1).float() ** -self.recency
        if self.config.event_weights == "none" or not len(seen.rows_E):
            return decay_E
        counts_B = seen.per_query(torch.ones_like(seen.rows_E))
        position_E = (
            torch.arange(len(seen.rows_E), device=counts_B.device)
            - (counts_B.cumsum(0) - counts_B)[seen.rows_E]
        )
        values_BL = seen.values_E.new_zeros(seen.num_queries, int(counts_B.max()))
        values_BL[seen.rows_E, position_E] = seen.values_E
        real_BL = torch.arange(values_BL.shape[1], device=counts_B.device) < counts_B[:, None]
        return decay_E * rank_weights(values_BL, real_BL)[seen.rows_E, position_E]


def rank_weights(values_BL: Tensor, real_BL: Tensor) -> Tensor:
    """½ + the share of a row's events with smaller values, ties half: mean 1; 1 where a value is
    unknown (NaN).

    Why ranks: play counts differ by orders of magnitude between users; their order within a user
    does not.

    >>> rank_weights(torch.tensor([[5.0, 1.0, 9.0, 1.0]]), torch.ones(1, 4, dtype=torch.bool))
    tensor([[1.1250, 0.7500, 1.3750, 0.7500]])
    """
    known_BL = real_BL & ~values_BL.isnan()
    sorted_BL = torch.where(known_BL, values_BL, torch.inf).sort(dim=1).values
    smaller_BL, not_larger_BL = (
        torch.searchsorted(sorted_BL, values_BL.contiguous(), right=r) for r in (False, True)
    )
    rank_BL = 0.5 + (smaller_BL + not_larger_BL) / 2 / known_BL.sum(1, keepdim=True).clamp(min=1)
    return torch.where(known_BL, rank_BL, 1.0)
