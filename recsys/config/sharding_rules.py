"""Settings that rule out sharded id vectors of items (``train.shard_rows``), each with its cure: a
step would read all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from recsys.config.model import ModelConfig
    from recsys.config.train import TrainConfig

ANY_DATA: Final = 2**62  # a number of events that any data stays below


def sharding_violations(
    model: ModelConfig, train: TrainConfig, num_events: int = ANY_DATA
) -> Iterator[str]:
    """All settings that contradict ``train.shard_rows`` yes.

    Parameters
    ----------
    model : ModelConfig
        The granularities.
    train : TrainConfig
        Loss and privacy.
    num_events : int
        Events of training and validation; above ``max_edges`` a step samples a graph.

    Yields
    ------
    str
        The setting, the reason and the cure.
    """
    where = "train.shard_rows"
    if train.loss.kind == "full_softmax":
        yield (
            f"{where}: train.loss.kind full_softmax scores all items in every step; set it"
            " sampled_softmax"
        )
    if train.privacy.epsilon:
        yield f"{where}: train.privacy trains with one worker; set {where} auto"
    for name, section in model.granularities.enabled().items():
        if section.reads_all_items(num_events):
            yield (
                f"{where}: model.granularities.{name} reads the vectors of all items in every step;"
                f" disable it, or set {where} auto"
            )
