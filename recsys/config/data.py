"""``data``: what is read and how it is prepared."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, SerializeAsAny, WrapValidator, model_validator

from recsys.config.privacy import PseudonymConfig
from recsys.config.section import Place, Section
from recsys.config.sources import Source, SyntheticSource, open_kind


class SplitConfig(Section):
    """How events are divided. Validation is always apart from test.

    ``given``: the source's split column; when it names no validation, that is each user's latest training events, or
    random ones when the data has no order.
    ``auto``: ``leave-last``, or ``ratio`` where no event has a time and the order of the file is not said to be one.
    ``leave-last``: each user's last event is test, the one before it validation.
    ``temporal``: one global cut-off in time for test and an earlier one for validation.
    ``ratio``: a share of each user's events, the latest ones, or random ones when the data has no order.

    With any kind, ``cold_users`` makes a share of the users newcomers: see :mod:`recsys.data.cold_start`.
    """

    kind: Literal["auto", "given", "leave-last", "temporal", "ratio"] = "auto"
    valid: float = Field(0.1, gt=0, lt=1, description="share of events (temporal, ratio), of training events (given)")
    test: float = Field(0.1, gt=0, lt=1, description="share of events (temporal, ratio)")
    valid_from: str = Field("", description="a time such as 2024-03-01, instead of the share (temporal)")
    test_from: str = Field("", description="a time such as 2024-03-01, instead of the share (temporal)")
    cold_users: float = Field(
        0.0, ge=0, lt=1, description="share of users, by hash of id and seed, whose training events are cut"
    )
    cold_keep: int = Field(
        3, ge=0, description="training events that cold users keep: the latest, or random ones without order"
    )


class UserTextConfig(Section):
    """The past of every user as texts, the newest item first, for ``behaviour.input`` user_text or both."""

    enabled: bool = False
    max_items: int = Field(64, ge=1, description="named in a text; what exceeds max_tokens is cut")
    first: int = Field(4, ge=1, description="events of a user's earliest text; the next is at twice as many (order)")
    folds: int = Field(1, ge=1, description="texts that each leave out a fold of the events, train.hide_history = 1/n")

    @property
    def how(self) -> tuple[int, int, int]:
        """What the texts are made by."""
        return self.max_items, self.first, self.folds


class FinetuneConfig(Section):
    """Contrastive fine-tuning of the language model by low-rank adapters, kept only where validation gains."""

    enabled: bool = False
    steps: int = Field(300, ge=1)
    batch_size: int = Field(64, ge=2, description="pairs of a step; the others are each pair's negatives")
    rank: int = Field(8, ge=1, description="of the adapters on the attention projections")
    lr: float = Field(5e-4, gt=0)
    temperature: float = Field(0.05, gt=0)
    max_pairs: int = Field(200_000, ge=1, description="of items next to each other in training events")


class TextConfig(Section):
    """Item text, the language model that reads it, and the texts of users that are made of it."""

    enabled: bool = True
    fields: list[str] | None = Field(None, description="columns of items, in order; null: every text column")
    groups: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")], Annotated[list[str], Field(min_length=1)]] = Field(
        {}, description="group → its columns: a vector and a projection each; empty: one group of all fields"
    )
    html: list[str] = Field(
        [], description="columns of items with HTML: tags are taken out, &amp; and its like become characters"
    )
    users: UserTextConfig = Field(default_factory=UserTextConfig)
    finetune: FinetuneConfig = Field(default_factory=FinetuneConfig)
    event_column: str = Field("", description="context column of auxiliary events, joined per item (e.g. tag)")
    event_types: list[str] = Field([], description="event types whose event_column is text; never targets")
    max_event_terms: int = Field(24, ge=1)
    model: Place = Field("all-MiniLM-L6-v2", description="packaged model, local folder or hub id")
    allow_download: bool = False
    max_tokens: int = Field(128, ge=8)
    batch_size: int = Field(64, ge=1)
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    num_actors: int = Field(1, ge=1, description="language models that work side by side")
    cache_dir: Place = Field("", description="default: $XDG_CACHE_HOME/multigrain/text")

    @model_validator(mode="after")
    def _groups_or_fields(self) -> TextConfig:
        if self.groups and self.fields is not None:
            raise ValueError("fields and groups both say which columns are text; set one of them")
        return self


class ImagesConfig(Section):
    """Image files that a vision model turns into vectors of one medium; unit length."""

    column: str = Field("", description="column of items with an image's path or URI; empty: no images are read")
    name: str = Field("image", pattern=r"^[A-Za-z0-9_]+$", description="the medium's name")
    root: Place = Field("", description="where relative paths start; empty: the folder of the items' file")
    model: Place = Field("", description="local folder or hub id of a transformers vision model")
    allow_download: bool = False
    pooling: Literal["auto", "pooled", "mean"] = Field(
        "auto", description="the model's pooled output, the mean of its patches, or whichever it was trained with"
    )
    batch_size: int = Field(32, ge=1)
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    num_actors: int = Field(1, ge=1, description="vision models that work side by side")
    cache_dir: Place = Field("", description="default: $XDG_CACHE_HOME/multigrain/images")


class ItemMediaConfig(Section):
    """What items look or sound like: vectors given as columns of items, and image files to encode."""

    columns: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")], str] = Field(
        {}, description="medium → column of items with its vectors (lists of numbers of one length)"
    )
    images: ImagesConfig = Field(default_factory=ImagesConfig)

    @model_validator(mode="after")
    def _names_differ(self) -> ItemMediaConfig:
        if self.images.column and self.images.name in self.columns:
            raise ValueError(f"two media are called {self.images.name!r}; set images.name to another name")
        if self.images.column and not self.images.model:
            raise ValueError("images.column needs images.model: the folder or hub id of a transformers vision model")
        return self


class ItemFactsConfig(Section):
    """Attributes of items as facts, ITEM —column→ value, beside those of a knowledge table or instead of one."""

    relations: list[str] | None = Field(
        None, description="those of a knowledge table that are read; null: all, []: none of the table"
    )
    item_columns: list[str] = Field([], description="columns of items: categories, numbers, or lists of them")
    separators: dict[str, Annotated[str, Field(min_length=1)]] = Field(
        {}, description="text column of several values → what stands between them"
    )


Share = Annotated[float, Field(ge=0, le=1)]
_MAX_BAD: Final = 0.01


class QuarantineConfig(Section):
    """Rows that cannot be used are set aside with file, row and reason."""

    max_share: Share | dict[Literal["events", "items", "users", "social", "knowledge"], Share] = Field(
        _MAX_BAD, description="a table with a larger share of bad rows stops the run; {TABLE: share} for single tables"
    )

    def limit(self, table: str) -> float:
        """The share of bad rows that is accepted in a table."""
        if isinstance(self.max_share, dict):
            return next((share for name, share in self.max_share.items() if name == table), _MAX_BAD)
        return self.max_share


class DataConfig(Section):
    dir: Place = Field("", description="prepared dataset; default: RUN_DIR/dataset")
    source: SerializeAsAny[Annotated[Source, WrapValidator(open_kind)]] = Field(default_factory=SyntheticSource)
    order: Literal["auto", "time", "file", "none"] = Field(
        "auto", description="auto: by time where most events have one (the others come first), else none"
    )
    interactions: list[str] = Field([], description="event types that are history and target; empty: all but text")
    targets: list[str] = Field(
        [],
        description="event types that are predicted, e.g. purchase; the others are history alone; empty: all. "
        "With split.kind temporal training asks before the user's first touch of the item in the same visit",
    )
    context: list[str] = Field(
        [], description="further columns of the events that models may read, e.g. weather, device; categories"
    )
    context_numbers: list[str] = Field([], description="those of data.context that are numbers instead")
    social_directed: bool = False
    duplicates: Literal["drop", "keep", "refuse"] = Field(
        "drop", description="events that repeat user, item, type and time; rows of other tables with the same key"
    )
    unknown_ids: Literal["drop", "refuse"] = Field(
        "drop", description="friendships of users, and facts of items, that have no events"
    )
    min_overlap: float = Field(
        0.1, ge=0, le=1, description="warn when fewer of the ids of a side table than this share occur in the events"
    )
    unknown_items: Literal["quarantine", "keep", "drop"] = Field(
        "quarantine", description="events about items that are not in the table of items, where there is one"
    )
    from_: str = Field("", alias="from", description="ISO time from which on events are used; empty: from the first")
    until: str = Field("", description="ISO time before which events are used; empty: to the last")
    min_value: float | None = Field(
        None, allow_inf_nan=False, description="events of a smaller value are left out, e.g. ratings below 4"
    )
    min_user_events: int = Field(0, ge=0, description="users with fewer events are left out (k-core); 0: none")
    min_item_events: int = Field(0, ge=0, description="items with fewer events are left out (k-core); 0: none")
    split: SplitConfig = Field(default_factory=SplitConfig)
    text: TextConfig = Field(default_factory=TextConfig)
    media: ItemMediaConfig = Field(default_factory=ItemMediaConfig)
    knowledge: ItemFactsConfig = Field(default_factory=ItemFactsConfig)
    quarantine: QuarantineConfig = Field(default_factory=QuarantineConfig)
    pseudonymise: PseudonymConfig = Field(default_factory=PseudonymConfig)
    forgotten: Place = Field(
        "", description="list of users to leave out, as `recsys forget` writes it; default: DIR.forgotten.json"
    )
    keep_events: bool = Field(
        True, description="keep the validated events in the dataset, so that `recsys update --events` can append"
    )
    num_shards: int = Field(0, ge=0, description="of users; 0: one for every 64 MiB of input, at least 4")
