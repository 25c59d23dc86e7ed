"""The inputs of a preparation."""

from __future__ import annotations

from dataclasses import dataclass

from recsys.config import DataConfig
from recsys.data.dataset import PreparedDataset
from recsys.data.vocabulary import Vocabulary
from recsys.preparation.dataset_writer import DatasetWriter, Folder
from recsys.preparation.event_roles import EventRules
from recsys.preparation.guarded_pieces import Guard
from recsys.preparation.record import Progress
from recsys.sources.base import SourceAdapter


@dataclass(frozen=True)
class Inputs:
    """The inputs of a preparation.

    Attributes
    ----------
    data : DataConfig
        The section ``data``.
    seed : int
        Seed of the split and of the text encoder's fine-tuning.
    source : SourceAdapter
        The source of the tables.
    rules : EventRules
        Which events are interactions, which are text, and which are used.
    dataset_writer : DatasetWriter
        Writer of the dataset; ``folder`` is the folder to write to until it is complete.
    progress : Progress
        Gets one line per step.
    guard : Guard
        Pseudonymises user ids and removes forgotten users.
    base : Vocabulary | None
        Ids that keep their dense numbers.
    earlier : PreparedDataset | None
        The dataset to append to.
    keeps_lost : bool
        Whether the data may lack ids of ``base``; they keep their numbers.
    """

    data: DataConfig
    seed: int
    source: SourceAdapter
    rules: EventRules
    dataset_writer: DatasetWriter
    folder: Folder
    progress: Progress
    guard: Guard
    base: Vocabulary | None = None
    earlier: PreparedDataset | None = None
    keeps_lost: bool = False
