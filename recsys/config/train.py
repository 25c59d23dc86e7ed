"""``train``: loss, schedule and workers."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from recsys.config.outside import LOSSES, is_path, offers
from recsys.config.privacy import PrivateConfig
from recsys.config.section import Section, as_word
from recsys.config.values import MetricName
from recsys.errors import valid_instead

_LOSS_KINDS: Final = ("auto", "full_softmax", "sampled_softmax")


def _known_loss(kind: str) -> str:
    """A kind of loss: ours, ``module:Class``, or one of an installed package; imported when a
    training starts.

    Raises
    ------
    ValueError
        It is none of them.
    """
    if kind in _LOSS_KINDS or is_path(kind) or kind in offers(LOSSES):
        return kind
    known = valid_instead(kind, [*_LOSS_KINDS, *offers(LOSSES)])
    raise ValueError(f"{known}, or module:Class")


class LossConfig(Section):
    """The loss that training minimises."""

    kind: Annotated[str, AfterValidator(_known_loss)] = Field(
        "auto",
        description=(
            "auto (full_softmax up to max_full_items items, sampled_softmax above), full_softmax, "
            "sampled_softmax, module:Class, or the name that an installed package offers"
        ),
    )
    options: dict[str, Any] = Field(
        {}, description="settings of a loss of another package, see docs/extending.md"
    )
    max_full_items: int = Field(
        50_000, ge=1, description="number of items up to which kind auto is full_softmax"
    )
    max_dense_items: int = Field(
        200_000,
        ge=0,
        description=(
            "number of items above which sampled_softmax updates only the id vectors of "
            "the items that a step uses"
        ),
    )
    num_negatives: int = Field(
        1024, ge=1, description="negative items that all queries of a step share (sampled_softmax)"
    )
    popularity_power: float = Field(
        0.5,
        ge=0,
        le=1,
        description=(
            "negatives are drawn by popularity to this power, with log-Q correction; 0: uniformly"
        ),
    )
    temperature: float = Field(
        1.0, gt=0, description="training divides scores by this number; rankings do not change"
    )
    learn_temperature: bool = Field(
        False, description="learn the temperature, starting from loss.temperature"
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=1,
        description=(
            "share of the target's probability that is spread over all items (full_softmax)"
        ),
    )
    new_items: bool = Field(
        True,
        description=(
            "use items without training events as negatives; false: only their text decides their"
            " scores"
        ),
    )
    seen_items: Annotated[Literal["auto", "yes", "no"], BeforeValidator(as_word)] = Field(
        "auto",
        description=(
            "whether items of the user's history are negatives in the softmax; auto: no if all of"
            " these hold: evaluate.exclude_seen is true, the data has an order, queries have seen"
            " at least 2% of all items on average, and label_smoothing is 0; else yes"
        ),
    )
    event_power: float = Field(
        1.0,
        ge=0,
        le=1,
        description=(
            "exponent p: a user with n targets weighs n^p; 1: all events weigh the same, 0: all"
            " users do"
        ),
    )


class TrainConfig(Section):
    """Training: epochs, optimiser, loss and workers."""

    dotted: ClassVar[str] = "train"

    num_workers: int = Field(
        1, ge=1, description="training processes; each one holds a part of the users"
    )
    use_gpu: Annotated[Literal["auto", "yes", "no"], BeforeValidator(as_word)] = Field(
        "auto",
        description=(
            "whether workers train on GPUs; auto: yes where the cluster has one for each worker"
        ),
    )
    shard_rows: Annotated[Literal["auto", "yes", "no"], BeforeValidator(as_word)] = Field(
        "auto",
        description=(
            "whether each of several workers holds only its part of the item id vectors and their "
            "moments (sampled_softmax); auto: yes if one worker does not have enough memory for all"
        ),
    )
    threads: int = Field(
        0,
        ge=0,
        description=(
            "CPU threads of each process; 0: OMP_NUM_THREADS, or the fastest number, which "
            "is measured in a second"
        ),
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="number format of the forward pass; auto: bfloat16 on GPUs that have it"
    )
    epochs: int = Field(20, ge=1, description="passes over the training data at most; see patience")
    batch_size: int = Field(256, ge=1, description="users in a step, on average, over all workers")
    lr: float = Field(
        1e-3, gt=0, description="highest learning rate of AdamW, reached after the warm-up"
    )
    weight_decay: float = Field(
        0.0, ge=0, description="decoupled weight decay of matrices and embeddings (AdamW)"
    )
    beta2: float = Field(
        0.999, gt=0, lt=1, description="decay of the running mean of squared gradients (AdamW)"
    )
    schedule: Literal["constant", "cosine", "linear"] = Field(
        "cosine", description="how the learning rate changes after the warm-up"
    )
    warmup: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="share of all steps in which the learning rate rises from zero",
    )
    clip_norm: float = Field(
        1.0, ge=0, description="largest norm of the gradient of a step; 0: no limit"
    )
    loss: LossConfig = Field(default_factory=LossConfig)
    history_mask_rate: float = Field(
        0.0,
        ge=0,
        lt=1,
        description=(
            "share of a user's events that an epoch hides from input and graph and keeps "
            "as targets (unordered data)"
        ),
    )
    short_history_rate: float = Field(
        0.0,
        ge=0,
        le=1,
        description=(
            "share of users for whom an epoch hides 90 % of the events, so that the model also"
            " learns from short histories (unordered data)"
        ),
    )
    shuffle_ties: bool = Field(
        True,
        description=(
            "put a user's events of the same time in a new random order in each epoch; false: the"
            " order of the files (data.order: time)"
        ),
    )
    look_ahead: int | None = Field(
        None,
        ge=0,
        description=(
            "how many events after the next one the target of a training query may be, drawn again"
            " in each epoch (data with an order); 0: the next event only; null: 20 for a temporal"
            " split if most events of a user are at least a day apart, else 0"
        ),
    )
    patience: int = Field(
        5, ge=1, description="validations without improvement before training stops"
    )
    evaluate_every: int = Field(1, ge=1, description="epochs from one validation to the next")
    metric: MetricName = Field(
        "ndcg@20", description="validation metric that chooses the number of epochs"
    )
    refit: bool = Field(
        True,
        description="train again on training and validation events for the chosen number of epochs",
    )
    final: bool = Field(
        False,
        description=(
            "after the evaluation, train the model to register on all events, test events included,"
            " with the chosen constants and epochs; all reported metrics are those of the model"
            " without test events"
        ),
    )
    ratings: bool = Field(
        False,
        description=(
            "also predict the values of events, where values differ; adds RMSE and MAE to the"
            " metrics"
        ),
    )
    privacy: PrivateConfig = Field(default_factory=PrivateConfig)
    max_failures: int = Field(
        2, ge=0, description="times that training starts again after a worker was lost"
    )
    checkpoint_steps: int = Field(
        1000,
        ge=0,
        description=(
            "steps between checkpoints inside an epoch, in addition to the one at each validation;"
            " 0: none"
        ),
    )
    window_events: int = Field(
        4_000_000, ge=1, description="events that a worker holds in memory at a time"
    )
