"""Knowledge: the triples about the items of a user's history, by a relational graph network
(g_uk of S5).

Triples (head, relation, tail) are edges in both directions, so R relations make 2R kinds of edge.
Items enter at their entity with their vector; every other entity has its own vector,

    h_x^(0) = e_x + mean_{i at x} P a_i
    m_x^(l) = |R_x|^-1 Σ_{r ∈ R_x} W_r · mean_{y: y —r→ x} h_y^(l),     h^(l+1) = h^(l) + m^(l)
    g_i     = Σ_l m_x^(l)  at the entity x of item i

where R_x are the kinds of edge that end in x. W_r is a diagonal (``light``: a relation weights each
dimension) or a sum of ``bases`` shared matrices (``rgcn``, Schlichtkrull et al. 2018, after a
ReLU). The user vector is an attention over the g_i of the history, with queries as in
``behaviour``; ``refine`` also adds g_i to the item vector (as KGCN, Wang et al. 2019, and KGAT do),
so that an item without events is found through its triples. Items have no free vector in the graph,
because for items without events it would be noise.

Triples are not events: they have no time, are valid for the whole catalogue, and no split cuts
them. If a source adds triples later (awards, sequels), the user must filter them.

Legend: N items, X entities in use, F triples, E edges, R kinds of edge,
P pairs (kind of edge, end), D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recsys.data.batches import Batch
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Split
from recsys.granularities.base import Granularity, Graphs, ItemView, ModelSizes, State
from recsys.granularities.behaviour.model import Behaviour
from recsys.granularities.dropout import Dropout
from recsys.granularities.knowledge.section import KnowledgeConfig
from recsys.granularities.knowledge.triples import Triples, graph_size
from recsys.granularities.user_item_graph import Adjacency, adjacency, spread


class Knowledge(Granularity):
    """Attention over the triples of the history's items; items without triples are left out."""

    reads_events = False

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
    def vocabularies(cls, size: Mapping[str, int]) -> tuple[int, ...]:
        # an edge kind for each direction
        """Lengths of the tables of entities and relations."""
        return size["entities"], size["relations"], 2 * size["relations"]

    def __init__(self, config: KnowledgeConfig, sizes: ModelSizes) -> None:
        super().__init__()
        self.pool = Behaviour.over("knowledge", config.heads, config.dropout, sizes)
        config.check(sizes)
        self.config, self.scale = config, math.sqrt(sizes.width)
        self.graph = TripleGraph(config, sizes) if config.layers else None
        self._enriched_ND: Tensor | None = None

    @classmethod
    def for_serving(cls, config: KnowledgeConfig, sizes: ModelSizes) -> Knowledge:
        """Leave out the graph: the state has its result, and serving needs no torch-geometric."""
        return cls(config.model_copy(update={"layers": 0}), sizes)

    @property
    def needs_all_items(self) -> bool:
        """True: the graph has all items."""
        return True

    def refine_items(self, base_ND: Tensor, graphs: Graphs) -> Tensor:
        """Add the vectors of the triples to the items, if ``refine`` is set."""
        assert self.graph is not None, "a module for serving reads the result from its state"
        self._enriched_ND = self.graph(base_ND, graphs["knowledge"])
        return base_ND + self._enriched_ND if self.config.refine else base_ND

    def state(self, items: ItemView, graphs: Graphs) -> State:
        """Vectors of the items' triples."""
        assert self._enriched_ND is not None, "refine_items must run first"
        found = {"enriched_ND": self._enriched_ND * self.scale}
        self._enriched_ND = None
        return found

    def forward(self, batch: Batch, items: ItemView, state: State) -> tuple[Tensor, Tensor]:
        """Attention over the triples of the history, and where it has triples.

        Parameters
        ----------
        batch : Batch
            Histories, and the queries on them.
        items : ItemView
            Passed on; only the vectors in ``state`` are pooled.
        state : dict of str to Tensor
            ``enriched_ND`` [N, D]; zero rows for items without triples.

        Returns
        -------
        z_BD : Tensor, [B, D] float
            User vector of each query.
        present_B : Tensor, [B] bool
            Whether the query sees an event on an item with triples.
        """
        z_BD, present_B = self.pool(batch, ItemView(items.vectors_SD, state["enriched_ND"]), {})
        return z_BD, present_B


class TripleGraph(nn.Module):
    """Item vectors → vectors of their triples, zero for items without: [N, D] → [N, D]."""

    def __init__(self, config: KnowledgeConfig, sizes: ModelSizes) -> None:
        super().__init__()
        self.min_degree = config.min_degree
        width = sizes.width
        kinds = 2 * sizes.inputs["knowledge"]["relations"]
        self.entities = nn.Embedding(sizes.inputs["knowledge"]["entities"], width)
        nn.init.normal_(self.entities.weight, std=config.init_std)
        self.enter = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.enter.weight)
        self.relations = nn.ModuleList(
            (
                DiagonalRelations(kinds, width)
                if config.conv == "light"
                else BasisRelations(kinds, width, config.bases)
            )
            for _ in range(config.layers)
        )
        self.activate = nn.Identity() if config.conv == "light" else nn.ReLU()
        self.dropout = Dropout(config.input_dropout)
        self._walk: tuple[Triples, Walk] | None = None

    def forward(self, items_ND: Tensor, triples: Triples) -> Tensor:
        """Vectors of the items' triples."""
        walk = self.walk(triples)
        hidden_XD = self.entities(walk.entities_X) * walk.own_X[:, None] + spread(
            walk.enter, self.enter(items_ND)
        )
        hidden_XD = self.dropout(hidden_XD)
        total_XD = torch.zeros_like(hidden_XD)
        for depth, relations in enumerate(self.relations):
            hops = walk.into_items if depth + 1 == len(self.relations) else walk.into_all
            sent_PD = relations(spread(hops.gather, hidden_XD), hops.kind_P)
            passed_XD = self.activate(spread(hops.scatter, sent_PD))
            total_XD, hidden_XD = total_XD + passed_XD, hidden_XD + passed_XD
        return spread(walk.leave, total_XD)

    def walk(self, triples: Triples) -> Walk:
        """The triples as sparse matrices, built once."""
        if self._walk is None or self._walk[0] is not triples:
            self._walk = (triples, Walk(triples, self.min_degree))
        return self._walk[1]


class DiagonalRelations(nn.Module):
    """One weight per kind of edge and dimension of the vectors."""

    def __init__(self, kinds: int, width: int) -> None:
        super().__init__()
        self.weight_RD = nn.Parameter(torch.ones(kinds, width))

    def forward(self, means_PD: Tensor, kind_P: Tensor) -> Tensor:
        """Multiply each mean with the weights of its kind."""
        return means_PD * self.weight_RD[kind_P]


class BasisRelations(nn.Module):
    """One matrix per kind of edge, W_r = Σ_b c_rb V_b: kinds with few edges learn from the
    others.
    """

    def __init__(self, kinds: int, width: int, bases: int) -> None:
        super().__init__()
        self.shared = nn.Linear(width, bases * width, bias=False)
        self.share_RB = nn.Parameter(torch.randn(kinds, bases) / math.sqrt(bases))

    def forward(self, means_PD: Tensor, kind_P: Tensor) -> Tensor:
        """Multiply each mean with the matrix of its kind."""
        based_PBD = self.shared(means_PD).unflatten(1, (self.share_RB.shape[1], -1))
        return torch.einsum("pbd,pb->pd", based_PBD, self.share_RB[kind_P])


@dataclass(frozen=True)
class Hops:
    """One hop as two sparse products: means by kind of edge, then the mean over the kinds.

    Why: a relation is applied to a mean once per pair and not once per edge, so that no E × D
    tensor exists.
    """

    gather: Adjacency  # [P, X]
    kind_P: Tensor  # int64
    scatter: Adjacency  # [X, P]

    @staticmethod
    def of(
        source_E: Tensor, kind_E: Tensor, end_E: Tensor, num_kinds: int, num_entities: int
    ) -> Hops:
        """Build a hop from edges.

        Parameters
        ----------
        source_E : Tensor, [E] int64
            Entity where each edge starts, counted among the entities in use.
        kind_E : Tensor, [E] int64
            Kind of each edge, from 0.
        end_E : Tensor, [E] int64
            Entity where each edge ends.
        num_kinds : int
            Number of kinds of edge R.
        num_entities : int
            Number of entities in use X.
        """
        pair_P, pair_E, count_P = torch.unique(
            end_E * num_kinds + kind_E, return_inverse=True, return_counts=True
        )
        end_P, kind_P = pair_P // num_kinds, pair_P % num_kinds
        kinds_X = torch.bincount(end_P, minlength=num_entities).to(torch.float32)
        shape = (len(pair_P), num_entities)
        gather = adjacency(pair_E, source_E, count_P.to(torch.float32).reciprocal()[pair_E], shape)
        positions_P = torch.arange(len(pair_P), device=pair_P.device)
        return Hops(
            gather, kind_P, adjacency(end_P, positions_P, kinds_X[end_P].reciprocal(), shape[::-1])
        )


class Walk:
    """Triples as sparse matrices between the entities in use.

    An entity that is not an item is in use if it has at least ``min_degree`` neighbours: an entity
    with one item carries no information between items.
    """

    def __init__(self, triples: Triples, min_degree: int) -> None:
        num_kinds = 2 * triples.num_relations
        is_item = (
            torch.bincount(
                triples.entity_N.clamp(min=0), triples.entity_N >= 0, triples.num_entities
            )
            > 0
        )
        head_F, relation_F, tail_F = triples.head_F, triples.relation_F, triples.tail_F
        is_used = is_item | (_degree(triples) >= min_degree)
        is_used_F = is_used[head_F] & is_used[tail_F]
        head_F, relation_F, tail_F = head_F[is_used_F], relation_F[is_used_F], tail_F[is_used_F]
        self.entities_X, ends_2F = torch.unique(torch.stack([head_F, tail_F]), return_inverse=True)
        source_E, end_E = torch.cat([ends_2F[0], ends_2F[1]]), torch.cat([ends_2F[1], ends_2F[0]])
        # new relations come last (warm start)
        kind_E = torch.cat([2 * relation_F, 2 * relation_F + 1])
        num = len(self.entities_X)
        self.own_X = (~is_item[self.entities_X]).to(torch.float32)
        into_E = is_item[self.entities_X][end_E]
        self.into_all = Hops.of(source_E, kind_E, end_E, num_kinds, num)
        self.into_items = Hops.of(source_E[into_E], kind_E[into_E], end_E[into_E], num_kinds, num)

        index_N = torch.full((triples.num_entities + 1,), -1, device=head_F.device)
        index_N[self.entities_X] = torch.arange(num, device=head_F.device)
        index_N = index_N[triples.entity_N]  # an item without an entity (-1) reads the last element
        item_I = torch.nonzero(index_N >= 0).squeeze(1)
        at_I = index_N[item_I]
        num_X = torch.bincount(at_I, minlength=num).to(torch.float32)
        self.enter = adjacency(at_I, item_I, num_X[at_I].reciprocal(), (num, len(index_N)))
        self.leave = adjacency(item_I, at_I, torch.ones_like(num_X[at_I]), (len(index_N), num))


def _degree(triples: Triples) -> Tensor:
    """Number of distinct neighbours of each entity."""
    low_F = torch.minimum(triples.head_F, triples.tail_F)
    high_F = torch.maximum(triples.head_F, triples.tail_F)
    pair = torch.unique((low_F * triples.num_entities + high_F)[low_F != high_F])
    ends = torch.cat([pair // triples.num_entities, pair % triples.num_entities])
    return torch.bincount(ends, minlength=triples.num_entities)
