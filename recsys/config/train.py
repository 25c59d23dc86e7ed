"""``train``: loss, schedule and workers."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from recsys.config.outside import LOSSES, is_path, offers, one_of
from recsys.config.privacy import PrivateConfig
from recsys.config.section import Section, as_word
from recsys.config.values import MetricName

_LOSS_KINDS: Final = ("auto", "full_softmax", "sampled_softmax")


def _known_loss(kind: str) -> str:
    """A kind of loss: ours, a path, or of an installed package; imported only when a training begins."""
    if kind in _LOSS_KINDS or is_path(kind) or kind in offers(LOSSES):
        return kind
    raise ValueError(f"expected {one_of([*_LOSS_KINDS, *offers(LOSSES)])}, or module:Class")


class LossConfig(Section):
    kind: Annotated[str, AfterValidator(_known_loss)] = Field(
        "auto",
        description="auto (full up to max_full_items items, sampled beyond), full_softmax, sampled_softmax, "
        "module:Class, or what an installed package offers",
    )
    options: dict[str, Any] = Field({}, description="settings of a loss from outside, see docs/extending.md")
    max_full_items: int = Field(50_000, ge=1)
    max_dense_items: int = Field(
        200_000, ge=0, description="beyond, sampled_softmax updates only the id rows of the items that a step views"
    )
    num_negatives: int = Field(1024, ge=1, description="shared by a step (sampled_softmax)")
    popularity_power: float = Field(
        0.5, ge=0, le=1, description="negatives are drawn by popularity to this power, 0: evenly; log-Q corrected"
    )
    temperature: float = Field(1.0, gt=0, description="scores are divided by it in training; serving ranks the same")
    learn_temperature: bool = Field(False, description="let training move the temperature from there")
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    new_items: bool = Field(
        True, description="items without training events are negatives too; false lets their text speak for them"
    )
    event_power: float = Field(
        1.0, ge=0, le=1, description="a user with n targets weighs n^p: 1 every event alike, 0 every user alike"
    )


class TrainConfig(Section):
    num_workers: int = Field(1, ge=1)
    use_gpu: Annotated[Literal["auto", "yes", "no"], BeforeValidator(as_word)] = "auto"
    threads: int = Field(
        0,
        ge=0,
        description="CPU threads a process; 0: OMP_NUM_THREADS, or the fastest number, measured in a second",
    )
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    epochs: int = Field(20, ge=1)
    batch_size: int = Field(256, ge=1, description="users a step on average, over all workers")
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0, description="of matrices and embeddings, decoupled (AdamW)")
    beta2: float = Field(0.999, gt=0, lt=1)
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    warmup: float = Field(0.05, ge=0, lt=1, description="share of all steps")
    clip_norm: float = Field(1.0, ge=0, description="0: off")
    loss: LossConfig = Field(default_factory=LossConfig)
    hide_history: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of events hidden from input and graph in an epoch, still targets (unordered data)",
    )
    patience: int = Field(5, ge=1, description="evaluations without gain before stopping")
    evaluate_every: int = Field(1, ge=1, description="epochs between validations")
    metric: MetricName = Field("ndcg@20", description="validation metric that chooses the epoch")
    refit: bool = Field(True, description="train again on training + validation for the chosen number of epochs")
    final: bool = Field(
        False,
        description="after the evaluation, train the model that is registered on all events, test included, with the "
        "chosen constants and epochs; every figure stays that of the model that has not seen test",
    )
    ratings: bool = Field(
        False, description="predict the values of events too, where they vary: RMSE and MAE beside the ranking"
    )
    privacy: PrivateConfig = Field(default_factory=PrivateConfig)
    max_failures: int = Field(2, ge=0)
    checkpoint_steps: int = Field(
        1000, ge=0, description="steps between checkpoints inside an epoch, beside the one at each validation; 0: none"
    )
    window_events: int = Field(4_000_000, ge=1, description="events of shards held in a worker's memory at a time")
