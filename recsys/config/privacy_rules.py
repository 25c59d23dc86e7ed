"""Settings that rule out training with differential privacy, each with its reason and cure.

Why they are refused and not ignored: the ε of a model must cover everything that was learned.
Counts of raw events, choices made on validation events, and rows of other users are not covered by
it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recsys.config.data import DataConfig
    from recsys.config.model import ModelConfig
    from recsys.config.train import TrainConfig

_FITTED = "counts raw events"
_OTHERS = "reads rows of other users, which clipping of a user's gradient does not bound"


def privacy_violations(data: DataConfig, model: ModelConfig, train: TrainConfig) -> Iterator[str]:
    """All settings that contradict ``train.privacy``.

    Parameters
    ----------
    data : DataConfig
        Texts and context columns.
    model : ModelConfig
        Granularities and fusion.
    train : TrainConfig
        Loss, choices on validation events and workers.

    Yields
    ------
    str
        The setting, the reason and the cure.
    """
    where = "train.privacy"
    for name, section in model.granularities.enabled().items():
        if section.is_closed_form or not section.per_user or section.signal == "user_text":
            why = _FITTED if section.is_closed_form else _OTHERS
            yield (
                f"{where}: model.granularities.{name} {why}; disable it (evolution, behaviour,"
                " media can be private)"
            )
    fusion, text = model.fusion, data.text
    rules = (
        (fusion.stack, "model.fusion.stack chooses weights on validation events", "set it false"),
        (
            fusion.check,
            "model.fusion.check chooses granularities on validation events",
            "set it false",
        ),
        (train.ratings, "train.ratings fits a head to raw values", "set it false"),
        (
            train.final,
            "train.final trains a second model on the same users",
            "set it false; refit true trains through validation",
        ),
        (
            train.num_workers > 1,
            f"train.num_workers is {train.num_workers}: users are drawn by one worker",
            "set it 1",
        ),
        (
            not train.refit and train.evaluate_every < train.epochs,
            "an epoch would be chosen on validation events",
            f"set train.evaluate_every to train.epochs ({train.epochs}), or train.refit true,"
            " which chooses none",
        ),
        (
            train.loss.kind not in ("auto", "full_softmax"),
            f"train.loss.kind {train.loss.kind} draws negatives by how often items occur",
            "set it full_softmax",
        ),
        (
            bool(data.context),
            "data.context codes columns by the values of all events",
            "leave it empty",
        ),
        (
            text.finetune.enabled,
            "data.text.finetune learns from all users' histories",
            "set it false",
        ),
        (
            bool(text.event_types),
            "data.text.event_types makes item text from texts that users wrote",
            "leave it empty",
        ),
    )
    for holds, what, cure in rules:
        if holds:
            yield f"{where}: {what}; {cure}"
