"""Knowledge by counting: triples that the items of a user's history share more often than items in
general (g_uk of S5), ``knowledge.fit: counts``.

An item's triples of one kind k (a relation in one direction) name the entities E_ik; each has the
share a_ie = 1 / |E_ik|. Over the history H_u and over all training events

    c_ue = Σ_{j ∈ H_u} a_je,     n_uk = Σ_{e of k} c_ue,
    p_e  = Σ_j d_j a_je / Σ_{e' of k} Σ_j d_j a_je',
    z_ue = log((c_ue + α p_e) / ((n_uk + α) p_e)),     r_ui = Σ_e z_ue a_ie

with d_j the number of users of an item. The score says how much more likely an item's triples are
given the user's history than given all events. Items without events are scored by their triples in
the same way.

It has a closed form and is not trained. Entities with fewer than ``min_degree`` items carry no
information about other items and are left out, as are all but the ``max_entities`` entities with
most events.

Legend: B queries, L length, N items, E entities (once for each kind of edge to them), K kinds, F
triples, P pairs of an item and an entity.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from recsys.config import Config
from recsys.data.batches import Batch
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Split
from recsys.granularities.base import Granularity, Graphs, ItemView, ModelSizes, State
from recsys.granularities.knowledge.section import KnowledgeConfig
from recsys.granularities.knowledge.triples import Triples, graph_size
from recsys.granularities.log_odds import MOST_NUMBERS, log_odds

_LEAST_ENTITIES: Final = 128


class KnowledgeCounts(Granularity):
    """A closed-form member with its own item vectors; absent where no item of the history has
    triples.
    """

    closed_form = True
    reads_events = False
    is_side_information = True

    @classmethod
    def size(
        cls, section: KnowledgeConfig, dataset: PreparedDataset, through: Split
    ) -> dict[str, int]:
        """Number of entities and relations.

        Parameters
        ----------
        section : KnowledgeConfig
            Not read.
        dataset : PreparedDataset
            The dataset with the triples.
        through : Split
            Not read, because no split cuts triples.

        Returns
        -------
        dict of str to int
            ``entities`` and ``relations``; 0 without triples.
        """
        return graph_size(dataset)

    @classmethod
    def build_input(
        cls, section: KnowledgeConfig, sizes: ModelSizes, dataset: PreparedDataset, through: Split
    ) -> Triples | None:
        """The triples of the dataset.

        Parameters
        ----------
        section : KnowledgeConfig
            Not read.
        sizes : ModelSizes
            Not read.
        dataset : PreparedDataset
            The dataset with the triples.
        through : Split
            Not read, because no split cuts triples.

        Returns
        -------
        Triples or None
            None without triples.
        """
        return Triples.of(dataset)

    @classmethod
    def proposed(cls, section: KnowledgeConfig, dataset: PreparedDataset) -> dict[str, Any]:
        """Fewer entities for a large catalogue.

        Parameters
        ----------
        section : KnowledgeConfig
            Has the default of ``max_entities``.
        dataset : PreparedDataset
            The dataset with the items.

        Returns
        -------
        dict of str to int
            ``max_entities``; empty if the default is small enough.
        """
        most = max(MOST_NUMBERS // dataset.num_items, _LEAST_ENTITIES)
        return {"max_entities": most} if most < section.max_entities else {}

    @classmethod
    def idle(cls, section: KnowledgeConfig, dataset: PreparedDataset, config: Config) -> str:
        """Items with events must share triples.

        Parameters
        ----------
        section : KnowledgeConfig
            Has ``min_degree``, the least number of items that share a triple.
        dataset : PreparedDataset
            The dataset with the triples and the training events.
        config : Config
            Not read.

        Returns
        -------
        str
            Why triples do not help; "" if they may.
        """
        triples = Triples.of(dataset)
        if triples is None:
            return "no triples about items"
        item_P, _, _, _ = shares_of_items(triples, section.min_degree)
        is_had_N = torch.as_tensor(dataset.item_counts_N(Split.TRAIN) > 0)
        return (
            ""
            if is_had_N[item_P].any()
            else f"no triple is shared by {section.min_degree} items with events"
        )

    def __init__(self, config: KnowledgeConfig, sizes: ModelSizes) -> None:
        super().__init__()
        config.check(sizes)
        self.config = config

    def state(self, items: ItemView, graphs: Graphs) -> State:
        """Log-odds weights and shares of the counted entities."""
        triples: Triples = graphs["knowledge"]
        item_P, entity_P, share_P, kind_E = shares_of_items(triples, self.config.min_degree)
        mass_E = share_P.new_zeros(len(kind_E))
        mass_E.index_add_(0, entity_P, share_P * graphs.degree_N[item_P])
        kept_E = mass_E.argsort(descending=True, stable=True)[: self.config.max_entities]
        kept_E = kept_E[mass_E[kept_E] > 0].sort().values
        number_E = torch.full_like(kind_E, -1)
        number_E[kept_E] = torch.arange(len(kept_E), device=kept_E.device)
        mass_E, kind_E, number_P = mass_E[kept_E], kind_E[kept_E], number_E[entity_P]
        # only of the kept entities: all of them by all items would be too large
        shares_NE = share_P.new_zeros(len(triples.entity_N), len(kept_E))
        shares_NE[item_P[number_P >= 0], number_P[number_P >= 0]] = share_P[number_P >= 0]
        kinds, kind_E = torch.unique(kind_E, return_inverse=True)
        same_EK = torch.eye(len(kinds), device=kind_E.device)[kind_E]
        share_E = mass_E / (same_EK @ (mass_E @ same_EK)).clamp(min=1e-12)
        device = items.vectors_SD.device
        made = {"shares_NE": shares_NE, "share_E": share_E, "same_EK": same_EK}
        return {name: value.to(device) for name, value in made.items()}

    def own_items(self, state: State) -> Tensor:
        """Shares of the counted entities per item."""
        return state["shares_NE"]

    def forward(self, batch: Batch, items: ItemView, state: State) -> tuple[Tensor, Tensor]:
        """Log-odds of the entities in the history, and where it has triples.

        Parameters
        ----------
        batch : Batch
            Queries; histories are read up to ``model.max_history``.
        items : ItemView
            Not read.
        state : dict of str to Tensor
            ``shares_NE`` [N, E], ``share_E`` [E] and ``same_EK`` [E, K].

        Returns
        -------
        z_BE : Tensor, [B, E] float
            z_ue; zero for kinds of which the history has no triple.
        present_B : Tensor, [B] bool
            Whether any of these numbers is not zero.
        """
        history_BL = batch.history_UL[batch.rows_B]
        real_BL = (
            torch.arange(history_BL.shape[1], device=history_BL.device) < batch.seen_B[:, None]
        )
        counts_BE = embedding_bag(
            history_BL, state["shares_NE"], mode="sum", per_sample_weights=real_BL.float()
        )
        total_BE = counts_BE @ state["same_EK"] @ state["same_EK"].T
        z_BE = log_odds(counts_BE, total_BE, state["share_E"], self.config.smoothing) * (
            total_BE > 0
        )
        return z_BE, (z_BE != 0).any(1)


def shares_of_items(triples: Triples, min_degree: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The item, the entity and a_ie of every pair that is not zero [P], and the kind of every
    entity [E]. A triple between two items counts for both.
    """
    entity_N = triples.entity_N
    ends = torch.cat(
        [
            torch.stack([triples.head_F, triples.tail_F]),
            torch.stack([triples.tail_F, triples.head_F]),
        ],
        dim=1,
    )
    kind_F = torch.cat([2 * triples.relation_F, 2 * triples.relation_F + 1])
    item_I = torch.nonzero(entity_N >= 0).squeeze(1)
    order_I = entity_N[item_I].argsort(stable=True)
    item_I = item_I[order_I]
    keys_I = entity_N[item_I]
    first_F, behind_F = (
        torch.searchsorted(keys_I, ends[0].contiguous(), right=right) for right in (False, True)
    )
    num_F = behind_F - first_F  # number of items with the head as entity, mostly 0 or 1
    triple_P = torch.repeat_interleave(torch.arange(len(num_F), device=num_F.device), num_F)
    position_P = (
        torch.arange(len(triple_P), device=num_F.device) - (num_F.cumsum(0) - num_F)[triple_P]
    )
    item_P = item_I[first_F[triple_P] + position_P]
    column, column_P = torch.unique(
        kind_F[triple_P] * triples.num_entities + ends[1][triple_P], return_inverse=True
    )
    pair = torch.unique(torch.stack([item_P, column_P]), dim=1)
    degree_E = torch.bincount(pair[1], minlength=len(column))
    kept_E = degree_E >= min_degree
    pair = pair[:, kept_E[pair[1]]]
    number_E = kept_E.cumsum(0) - 1
    kind_E = (column // triples.num_entities)[kept_E]
    num_kinds = 2 * triples.num_relations
    group_P = pair[0] * num_kinds + kind_E[number_E[pair[1]]]
    of_group = torch.bincount(group_P, minlength=len(entity_N) * num_kinds)
    share_P = 1 / of_group[group_P].to(torch.float32)
    return pair[0], number_E[pair[1]], share_P, kind_E
