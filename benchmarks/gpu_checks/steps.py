"""The product's training step over a catalogue of any size, without a dataset."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np
import torch

from recsys.config import ModelConfig, TrainConfig
from recsys.data.batches import Batch, every_position
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array, Histories, Split
from recsys.granularities.base import Graphs, ModelSizes
from recsys.model import MultigrainModel
from recsys.training.optimizer import RowAdamW, build_optimizer
from recsys.training.step import StepLoss

WIDTH, LENGTH = 64, 50
NEGATIVES = 8192


class Counted:
    """All that the loss reads of a dataset: how often every item occurs."""

    def __init__(self, num_items: int) -> None:
        self.num_items = num_items

    def item_counts_N(self, through: Split) -> Array:
        """Counts that fall like those of a shop: [N]."""
        return (self.num_items / np.arange(1, self.num_items + 1)).astype(np.int64)


class ProductStep(NamedTuple):
    """The loss of a step and its optimiser."""

    loss: StepLoss
    optimizer: RowAdamW


def product_step(
    num_items: int, loss: str, device: torch.device, dropout: float = 0.2
) -> ProductStep:
    """Item vectors, sequence model and softmax as the loop trains them.

    Parameters
    ----------
    num_items : int
        Size of the catalogue.
    loss : str
        ``full_softmax`` or ``sampled_softmax``.
    device : torch.device
        Where it computes.
    dropout : float
        Dropout of the sequence model.
    """
    model = sequence_model(num_items, device, dropout)
    nothing = torch.zeros(0, dtype=torch.int64)
    graphs = Graphs(1, num_items, nothing, nothing).to(device)
    train = TrainConfig.model_validate({"loss": {"kind": loss, "num_negatives": NEGATIVES}})
    dataset = cast(PreparedDataset, Counted(num_items))
    step_loss = StepLoss(model, graphs, train.loss, dataset).to(device)
    return ProductStep(step_loss, build_optimizer(step_loss, train))


def sequence_model(num_items: int, device: torch.device, dropout: float = 0.2) -> MultigrainModel:
    """A model with evolution alone: two blocks of attention, 50 events.

    Parameters
    ----------
    num_items : int
        Size of the catalogue.
    device : torch.device
        Where it computes.
    dropout : float
        Dropout of the sequence model.
    """
    tree: dict[str, Any] = {
        "width": WIDTH,
        "max_history": LENGTH,
        "item": {"text": False},
        "granularities": {
            "evolution": {
                "enabled": True,
                "layers": 2,
                "heads": 2,
                "positions": "absolute",
                "dropout": dropout,
            }
        },
    }
    sizes = ModelSizes(
        WIDTH, LENGTH, 1, num_items, num_types=1, text_width=0, ordered=True, timed=False
    )
    trained_N = torch.ones(num_items, dtype=torch.bool)
    config = ModelConfig.model_validate(tree)
    return MultigrainModel(config, sizes, torch.zeros(num_items, 0), trained_N).to(device)


def a_batch(users: int, num_items: int, length: int = LENGTH, seed: int = 0) -> Batch:
    """A batch of histories of this many events, with a target at every position."""
    random = np.random.default_rng(seed)
    rows = [random.integers(num_items, size=length + 1).tolist() for _ in range(users)]
    return every_position(Histories.of_items(rows), LENGTH, np.arange(users))
