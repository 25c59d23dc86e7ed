"""``data``: what is read and how it is prepared."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, SerializeAsAny, WrapValidator, model_validator

from recsys.config.privacy import PseudonymConfig
from recsys.config.section import PathOrName, PathOrUri, Section
from recsys.config.sources import Source, SyntheticSource, open_kind


class SplitConfig(Section):
    """How events are divided into training, validation and test.

    * ``given``: the source's split column. If it has no validation events, these are each user's
      latest training events, or random ones if the data has no order.
    * ``auto``: ``leave-last``, or ``ratio`` if no event has a time and ``data.order`` is not
      ``file``.
    * ``leave-last``: each user's last event is test, the one before it is validation.
    * ``leave-last-basket``: the same with all events of one time together.
    * ``temporal``: one global cut-off in time for test and an earlier one for validation.
    * ``ratio``: a share of each user's events: the latest ones, or random ones if the data has no
      order.

    With every kind, ``cold_users`` makes a share of the users cold-start users: see
    :mod:`recsys.data.cold_start`.
    """

    kind: Literal["auto", "given", "leave-last", "leave-last-basket", "temporal", "ratio"] = Field(
        "auto", description="auto: leave-last where the events have an order, else ratio"
    )
    valid: float = Field(
        0.1,
        gt=0,
        lt=1,
        description=(
            "share of events for validation (temporal, ratio), or of the training events (given)"
        ),
    )
    test: float = Field(0.1, gt=0, lt=1, description="share of events for test (temporal, ratio)")
    valid_from: str = Field(
        "",
        description="first time of validation, such as 2024-03-01, instead of the share (temporal)",
    )
    test_from: str = Field(
        "", description="first time of test, such as 2024-03-01, instead of the share (temporal)"
    )
    cold_users: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of users, chosen by a hash of id and seed, who keep few training events",
    )
    cold_keep: int = Field(
        3,
        ge=0,
        description=(
            "training events that these users keep: the latest, or random ones without order"
        ),
    )


class UserTextConfig(Section):
    """The history of every user as texts, newest item first, for ``behaviour.input`` user_text or
    both.
    """

    enabled: bool = Field(False, description="whether texts of users are made")
    max_items: int = Field(
        64, ge=1, description="items that a text names at most; text beyond max_tokens is cut"
    )
    first: int = Field(
        4,
        ge=1,
        description=(
            "events that a user's first text covers; each later text covers twice as many as the"
            " one before (data with an order)"
        ),
    )
    folds: int = Field(
        1,
        ge=1,
        description=(
            "number n of texts, each without one fold of the events; needs"
            " train.history_mask_rate 1/n"
        ),
    )

    @property
    def how(self) -> tuple[int, int, int]:
        """The settings that decide the texts: ``max_items``, ``first``, ``folds``."""
        return self.max_items, self.first, self.folds


class FinetuneConfig(Section):
    """Contrastive fine-tuning of the language model with low-rank adapters; kept only if validation
    improves.
    """

    enabled: bool = Field(False, description="whether the language model is fine-tuned")
    steps: int = Field(300, ge=1, description="optimiser steps")
    batch_size: int = Field(
        64, ge=2, description="pairs of items in a step; the other pairs are each pair's negatives"
    )
    rank: int = Field(8, ge=1, description="rank of the adapters on the attention projections")
    lr: float = Field(5e-4, gt=0, description="learning rate")
    temperature: float = Field(
        0.05, gt=0, description="cosine similarities are divided by this number"
    )
    max_pairs: int = Field(
        200_000,
        ge=1,
        description="pairs of items next to each other in a user's training events, at most",
    )


class TextConfig(Section):
    """Item text, the language model that encodes it, and the texts of users that are made from
    it.
    """

    enabled: bool = Field(True, description="whether item text is encoded")
    fields: list[str] | None = Field(
        None, description="columns of items, in order; null: every text column"
    )
    groups: dict[
        Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")], Annotated[list[str], Field(min_length=1)]
    ] = Field(
        {},
        description=(
            "group → its columns; each group has its own vector and projection; empty: one group of"
            " all fields"
        ),
    )
    html: list[str] = Field(
        [],
        description=(
            "columns of items with HTML: tags are removed, and entities such as &amp; become"
            " characters"
        ),
    )
    users: UserTextConfig = Field(default_factory=UserTextConfig)
    finetune: FinetuneConfig = Field(default_factory=FinetuneConfig)
    event_column: str = Field(
        "",
        description=(
            "context column of auxiliary events whose texts are joined for each item, e.g. tag"
        ),
    )
    event_types: list[str] = Field(
        [], description="event types whose event_column is item text; they are never targets"
    )
    max_event_terms: int = Field(
        24, ge=1, description="most frequent terms of event_column that an item keeps"
    )
    model: PathOrName = Field(
        "all-MiniLM-L6-v2", description="name of a packaged model, local folder or hub id"
    )
    allow_download: bool = Field(
        False, description="whether the model may be downloaded from the hub"
    )
    encoder: Literal["transformer", "static"] = Field(
        "transformer",
        description=(
            "transformer: the model reads each text; static: a weighted mean of the model's token"
            " vectors, 100 times faster, for very many texts"
        ),
    )
    max_tokens: int = Field(128, ge=8, description="tokens of a text that the model reads")
    batch_size: int = Field(64, ge=1, description="texts that the model encodes at once")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="number format of the model; auto: the faster one on this device"
    )
    num_actors: int = Field(
        1, ge=1, description="copies of the language model that work in parallel"
    )
    cache_dir: PathOrUri = Field(
        "",
        description=(
            "folder of encoded texts, used by later runs; default: $XDG_CACHE_HOME/multigrain/text"
        ),
    )

    @model_validator(mode="after")
    def _groups_or_fields(self) -> TextConfig:
        if self.groups and self.fields is not None:
            raise ValueError("fields and groups both say which columns are text; set one of them")
        return self

    @model_validator(mode="after")
    def _finetunes_a_transformer(self) -> TextConfig:
        if self.finetune.enabled and self.encoder == "static":
            raise ValueError(
                "finetune adapts the layers of the model, which encoder: static does not use; set"
                " encoder transformer, or finetune.enabled false"
            )
        return self


class ImagesConfig(Section):
    """Image files that a vision model encodes as unit vectors of one medium."""

    column: str = Field(
        "", description="column of items with an image's path or URI; empty: no images are read"
    )
    name: str = Field("image", pattern=r"^[A-Za-z0-9_]+$", description="the medium's name")
    root: PathOrUri = Field(
        "",
        description="folder that relative paths start from; empty: the folder of the items' file",
    )
    model: PathOrName = Field(
        "", description="local folder or hub id of a transformers vision model"
    )
    allow_download: bool = Field(
        False, description="whether the model may be downloaded from the hub"
    )
    pooling: Literal["auto", "pooled", "mean"] = Field(
        "auto",
        description=(
            "pooled: the model's pooled output; mean: the mean of its patches; auto: as it was"
            " trained"
        ),
    )
    batch_size: int = Field(32, ge=1, description="images that the model encodes at once")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="number format of the model; auto: the faster one on this device"
    )
    num_actors: int = Field(1, ge=1, description="copies of the vision model that work in parallel")
    cache_dir: PathOrUri = Field(
        "",
        description=(
            "folder of encoded images, used by later runs; default:"
            " $XDG_CACHE_HOME/multigrain/images"
        ),
    )


class ItemMediaConfig(Section):
    """Images and sounds of items: vectors in columns of items, and image files to encode."""

    columns: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")], str] = Field(
        {}, description="medium → column of items with its vectors (lists of numbers of one length)"
    )
    images: ImagesConfig = Field(default_factory=ImagesConfig)

    @model_validator(mode="after")
    def _names_differ(self) -> ItemMediaConfig:
        if self.images.column and self.images.name in self.columns:
            raise ValueError(
                f"two media are called {self.images.name!r}; set images.name to another name"
            )
        if self.images.column and not self.images.model:
            raise ValueError(
                "images.column needs images.model: the folder or hub id of a transformers vision"
                " model"
            )
        return self


class ItemTriplesConfig(Section):
    """Attributes of items as triples, ITEM —column→ value, in addition to a knowledge table or
    instead of one.
    """

    relations: list[str] | None = Field(
        None, description="relations of the knowledge table that are read; null: all, []: none"
    )
    item_columns: list[str] = Field(
        [],
        description="columns of items that become triples: categories, numbers, or lists of them",
    )
    separators: dict[str, Annotated[str, Field(min_length=1)]] = Field(
        {}, description="text column with several values → the separator between them"
    )


Share = Annotated[float, Field(ge=0, le=1)]
_MAX_BAD: Final = 0.01


class QuarantineConfig(Section):
    """Rows that cannot be used are written to the quarantine with file, row and reason."""

    max_share: Share | dict[Literal["events", "items", "users", "social", "knowledge"], Share] = (
        Field(
            _MAX_BAD,
            description=(
                "share of bad rows in a table, above which the run stops; {TABLE: share} for single"
                " tables"
            ),
        )
    )

    def limit(self, table: str) -> float:
        """The share of bad rows that is accepted in a table."""
        if isinstance(self.max_share, dict):
            return next(
                (share for name, share in self.max_share.items() if name == table), _MAX_BAD
            )
        return self.max_share


class DataConfig(Section):
    """The source of the data, the filters of its rows, and their split."""

    dir: PathOrUri = Field(
        "", description="folder of the prepared dataset; default: RUN_DIR/dataset"
    )
    source: SerializeAsAny[Annotated[Source, WrapValidator(open_kind)]] = Field(
        default_factory=SyntheticSource
    )
    order: Literal["auto", "time", "file", "none"] = Field(
        "auto",
        description=(
            "order of a user's events; auto: time if most events have a timestamp (events without"
            " one come first), else none"
        ),
    )
    interactions: list[str] = Field(
        [],
        description=(
            "event types that are history and target; empty: all except data.text.event_types"
        ),
    )
    targets: list[str] = Field(
        [],
        description=(
            "event types that are predicted, e.g. purchase; other types are only history; empty:"
            " all. With split.kind temporal, training predicts from the time before the user's"
            " first event with the item in the same visit"
        ),
    )
    context: list[str] = Field(
        [],
        description=(
            "further columns of the events that models may read as categories, e.g. weather, device"
        ),
    )
    context_numbers: list[str] = Field(
        [], description="columns of data.context that are numbers, not categories"
    )
    social_directed: bool = Field(
        False, description="whether a friendship holds only from the first user to the second"
    )
    duplicates: Literal["drop", "keep", "refuse"] = Field(
        "drop",
        description=(
            "what to do with events of equal user, item, type and time, and with other rows of an"
            " equal key"
        ),
    )
    unknown_ids: Literal["drop", "refuse"] = Field(
        "drop",
        description=(
            "what to do with friendships of users, and triples of items, that have no events"
        ),
    )
    min_overlap: float = Field(
        0.1,
        ge=0,
        le=1,
        description=(
            "share of a side table's ids that must occur in the events; a smaller share gives a"
            " warning"
        ),
    )
    unknown_items: Literal["quarantine", "keep", "drop"] = Field(
        "quarantine",
        description=(
            "what to do with events about items that are not in the table of items, if there is one"
        ),
    )
    from_: str = Field(
        "", alias="from", description="ISO time of the first events that are used; empty: all"
    )
    until: str = Field("", description="ISO time before which events are used; empty: all")
    min_value: float | None = Field(
        None,
        allow_inf_nan=False,
        description="smallest value of the events that are used, e.g. 4 for ratings; null: all",
    )
    min_user_events: int = Field(
        0, ge=0, description="users with fewer events are removed (k-core); 0: none is removed"
    )
    min_item_events: int = Field(
        0, ge=0, description="items with fewer events are removed (k-core); 0: none is removed"
    )
    split: SplitConfig = Field(default_factory=SplitConfig)
    text: TextConfig = Field(default_factory=TextConfig)
    media: ItemMediaConfig = Field(default_factory=ItemMediaConfig)
    knowledge: ItemTriplesConfig = Field(default_factory=ItemTriplesConfig)
    quarantine: QuarantineConfig = Field(default_factory=QuarantineConfig)
    pseudonymise: PseudonymConfig = Field(default_factory=PseudonymConfig)
    forgotten: PathOrUri = Field(
        "",
        description=(
            "file of users to leave out, as `recsys forget` writes it; default: DIR.forgotten.json"
        ),
    )
    keep_events: bool = Field(
        True,
        description=(
            "keep the validated events in the dataset, so that `recsys update --events` can append"
        ),
    )
    num_shards: int = Field(
        0,
        ge=0,
        description=(
            "shards that users are divided into; 0: one for every 64 MiB of input, at least 4"
        ),
    )
