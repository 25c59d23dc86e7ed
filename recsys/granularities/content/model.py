"""Content: the cosine between the texts of items and those of the history, for items with few or no
events.

    a_i = t_i / ‖t_i‖,    z_u = Σ_j w_j a_j / Σ_j w_j,    r_ui = z_u · a_i,

the weighted mean cosine, where t are the text vectors of the item tower (centred and whitened on
the catalogue, ``model.item.text_whiten``: what all texts have in common carries no information) and
w as in ``item_knn``. An item without text has no vector. Only the constants of the weights are
fitted; validation chooses them.

Legend: N items, T text width, B queries, E events that they see.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from recsys.config import Config
from recsys.data.batches import Batch
from recsys.data.dataset import PreparedDataset
from recsys.granularities.base import Granularity, Graphs, ItemView, ModelSizes, State
from recsys.granularities.content.section import ContentConfig
from recsys.granularities.history import event_weights, seen_events


class Content(Granularity):
    """A closed-form member whose item vectors are the texts; absent where no item of the history
    has a text.
    """

    closed_form = True
    reads_events = False

    @classmethod
    def idle(cls, section: ContentConfig, dataset: PreparedDataset, config: Config) -> str:
        """Item texts must differ.

        Parameters
        ----------
        section : ContentConfig
            Not read.
        dataset : PreparedDataset
            The dataset with the text vectors.
        config : Config
            Not read.

        Returns
        -------
        str
            Why texts do not distinguish items; "" if they do.
        """
        texts_MT = dataset.text_vectors_NT()[dataset.has_text_N]
        if not texts_MT.size:
            return "no item texts"
        return "" if (texts_MT != texts_MT[0]).any() else "all items have the same text"

    def __init__(self, config: ContentConfig, sizes: ModelSizes) -> None:
        super().__init__()
        config.check(sizes)
        self.recency = config.recency[0] if sizes.ordered else 0.0
        half_life = config.half_life[0] if sizes.timed else "none"
        self.half_life = None if half_life == "none" else float(half_life)

    def state(self, items: ItemView, graphs: Graphs) -> State:
        """Unit text vectors of the items."""
        return {"texts_NT": normalize(items.text_ST.float(), dim=1)}

    def own_items(self, state: State) -> Tensor:
        """Unit text vectors."""
        return state["texts_NT"]

    def forward(self, batch: Batch, items: ItemView, state: State) -> tuple[Tensor, Tensor]:
        """Weighted mean of the history's text vectors, and where one has a text.

        Parameters
        ----------
        batch : Batch
            Queries; each distinct item of a history counts once, with the age of its newest event.
        items : ItemView
            Not read.
        state : dict of str to Tensor
            ``texts_NT`` [N, T].

        Returns
        -------
        z_BT : Tensor, [B, T] float32
            The mean; zero where no item of the history has a text.
        present_B : Tensor, [B] bool
            Whether an item of the history has a text.
        """
        seen = seen_events(batch).distinct()
        seen = seen.where((state["texts_NT"][seen.items_E] != 0).any(1))
        weights_E = event_weights(seen, batch.asked_at_B, self.recency, self.half_life)
        weights_E = weights_E / seen.per_query(weights_E).clamp(min=1e-12)[seen.rows_E]
        z_BT = state["texts_NT"].new_zeros(len(batch), state["texts_NT"].shape[1])
        z_BT.index_add_(0, seen.rows_E, state["texts_NT"][seen.items_E] * weights_E[:, None])
        return z_BT, seen.per_query(torch.ones_like(seen.rows_E)) > 0
