"""Item neighbours with decay: items that co-occur with the history, with most weight on the newest
events.

    s_ji = c_ji / (√(c_j c_i) + β)  for the K largest i ≠ j of each j,
    r_ui = Σ_{j ∈ H_u} w_j s_ji / √(Σ_j w_j),    w_j = (n_j + 1)^(−p) 2^(−days_j / h)

where c counts common users, n_j the events after j, and days_j the time from j to the request
(Sarwar et al. 2001; shrinkage β as in Bell and Koren 2007; decay as in Ding and Li 2005). Why the
root: without it, scores of long histories would dominate.

With ``itself``, s_jj counts too: an item of the history raises its own score.

A sparse closed-form member of N K links. Validation chooses β, K, p, h and ``itself``; p is 0 if
the data has no order, h is none if it has no times. Very long histories are sampled, see
``item_links.together``.

Legend: N items, K neighbours, B queries, E events that they see.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import scipy.sparse as sp
import torch
from torch import Tensor

from recsys.data.batches import Batch
from recsys.granularities.base import Granularity, Graphs, ItemView, ModelSizes, State
from recsys.granularities.event_matrix import training_matrix
from recsys.granularities.history import event_weights, seen_events, target_types
from recsys.granularities.item_knn.section import ItemKnnConfig
from recsys.granularities.item_links import linked_scores, links, most_similar, together
from recsys.granularities.sparse import SparseScores


class ItemKnn(Granularity):
    """A closed-form sparse member; absent where no item of the history has a neighbour."""

    closed_form = True
    sparse = True

    def __init__(self, config: ItemKnnConfig, sizes: ModelSizes) -> None:
        super().__init__()
        self.config = config
        self.reads_histories = "targets" in config.types and sizes.num_types > 1
        self.recency = config.recency[0] if sizes.ordered else 0.0
        half_life = config.half_life[0] if sizes.timed else "none"
        self.half_life = None if half_life == "none" else float(half_life)

    def state(self, items: ItemView, graphs: Graphs) -> State:
        """Links between co-occurring items."""
        counts_T = self._types(graphs)
        return self._linked(
            together(training_matrix(graphs, "none", len(counts_T) > 0)), counts_T, items
        )

    def _types(self, graphs: Graphs) -> Tensor:
        return target_types(graphs)[: None if self.config.types[0] == "targets" else 0]

    def _linked(self, pairs_NN: sp.csr_matrix, counts_T: Tensor, items: ItemView) -> State:
        neighbours = self.config.num_neighbours(pairs_NN.shape[0])
        shrinkage = self.config.shrinkage[0]
        made = links(*most_similar(pairs_NN, neighbours, shrinkage), by_target=False)
        counts_N = torch.as_tensor(pairs_NN.diagonal()).float()
        made["itself_N"] = torch.where(
            counts_N > 0, counts_N / (counts_N + shrinkage).clamp(min=1e-12), 0.0
        )
        made["counts_T"] = counts_T
        return {name: value.to(items.vectors_SD.device) for name, value in made.items()}

    @classmethod
    def fits(
        cls, sections: Sequence[ItemKnnConfig], sizes: ModelSizes, items: ItemView, graphs: Graphs
    ) -> Iterator[tuple[Granularity, State]]:
        """Share the links between sections that differ only at inference.

        Parameters
        ----------
        sections : Sequence of ItemKnnConfig
            Settings that differ in one key.
        sizes : ModelSizes
            Sizes of the model.
        items : ItemView
            Only its device is read.
        graphs : Graphs
            Training events.

        Yields
        ------
        Granularity, dict of str to Tensor
            Module and state, in the order of ``sections``.
        """
        pairs: dict[int, sp.csr_matrix] = {}
        made: dict[tuple[int, float, int], State] = {}
        for section in sections:
            module = cls(section, sizes).eval()
            counts_T = module._types(graphs)
            key = len(counts_T), section.shrinkage[0], section.num_neighbours(sizes.num_items)
            if len(counts_T) not in pairs:
                pairs[len(counts_T)] = together(training_matrix(graphs, "none", len(counts_T) > 0))
            if key not in made:
                made[key] = module._linked(pairs[len(counts_T)], counts_T, items)
            yield module, made[key]

    def own_items(self, state: State) -> Tensor:
        """Empty vectors, because the member is sparse."""
        return state["weights_L"].new_zeros(len(state["starts_N1"]) - 1, 0)

    def boost(self, batch: Batch, items: ItemView, state: State) -> SparseScores:
        """Scores of items that are linked with the history.

        Parameters
        ----------
        batch : Batch
            Queries; each distinct item of a history counts once, with the age of its newest event.
        items : ItemView
            Not read.
        state : dict of str to Tensor
            The links, ``itself_N`` [N] and ``counts_T``, the mask of the event types that count.

        Returns
        -------
        SparseScores
            r_ui of the items with a link; with ``itself`` also of the history's own items.
        """
        seen = seen_events(batch).of_types(state.get("counts_T")).distinct()
        weights_E = event_weights(seen, batch.asked_at_B, self.recency, self.half_life)
        weights_E = weights_E / seen.per_query(weights_E).clamp(min=1e-12).sqrt()[seen.rows_E]
        found = linked_scores(seen, weights_E, state)
        if not self.config.itself[0]:
            return found
        own = SparseScores.of(
            seen.rows_E, seen.items_E, weights_E * state["itself_N"][seen.items_E]
        )
        return SparseScores.total([found, own])
