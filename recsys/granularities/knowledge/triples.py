"""The triples of a dataset as tensors: the input of ``knowledge`` besides the events."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recsys.data.dataset import PreparedDataset


@dataclass(frozen=True)
class Triples:
    """The knowledge graph: ``head`` has ``relation`` to ``tail``; an item may be an entity."""

    num_entities: int
    num_relations: int
    head_F: Tensor  # int64
    relation_F: Tensor  # int64
    tail_F: Tensor  # int64
    entity_N: Tensor  # int64, entity of every item, -1 without

    def to(self, device: torch.device) -> Triples:
        """Move all tensors to a device."""
        tensors = (self.head_F, self.relation_F, self.tail_F, self.entity_N)
        return Triples(
            self.num_entities, self.num_relations, *(tensor.to(device) for tensor in tensors)
        )

    @staticmethod
    def of(dataset: PreparedDataset) -> Triples | None:
        """Read the knowledge graph, which no split cuts, because triples are not events.

        None without triples.
        """
        head, relation, tail = (
            torch.as_tensor(tensor.astype(np.int64)) for tensor in dataset.triples()
        )
        if not len(head):
            return None
        counts = dataset.manifest.counts
        entities = torch.as_tensor(dataset.item_entities())
        return Triples(counts["entities"], counts["relations"], head, relation, tail, entities)


def graph_size(dataset: PreparedDataset) -> dict[str, int]:
    """Number of entities and relations of a dataset."""
    return {name: dataset.manifest.counts.get(name, 0) for name in ("entities", "relations")}
