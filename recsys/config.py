"""The one typed configuration: the same dotted path in YAML, on the command line and in a sweep's search space.

Why: a typo must be an error that lists the valid keys, never a silently ignored setting, and a run must be repeatable
from the single ``config.yaml`` it leaves behind.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from recsys.errors import ConfigError, choices


class Section(BaseModel):
    """Base of every section: unknown keys are errors, values are checked on assignment as well."""

    model_config = ConfigDict(
        extra="forbid", validate_assignment=True, protected_namespaces=(), coerce_numbers_to_str=True
    )


# ---------------------------------------------------------------------------------------------------------- sources


class CanonicalSource(Section):
    """Parquet, CSV/TSV or JSONL files that already have the canonical column names (``rename`` maps others)."""

    kind: Literal["canonical"] = "canonical"
    events: list[str] = Field(min_length=1, description="files, folders or globs")
    items: list[str] = []
    users: list[str] = []
    social: list[str] = []
    knowledge: list[str] = []
    rename: dict[str, str] = Field({}, description="column in the files → canonical column")
    format: Literal["auto", "parquet", "csv", "tsv", "jsonl"] = "auto"
    encoding: str = Field("utf-8", min_length=1, description="of CSV and TSV files, e.g. latin-1")
    split_files: dict[Literal["train", "valid", "test"], list[str]] = Field(
        {}, description="event files by split, instead of a split column"
    )


class RecBoleSource(Section):
    """RecBole atomic files: FOLDER/NAME.inter, .user, .item, .kg, .link, .net."""

    kind: Literal["recbole"] = "recbole"
    folder: str
    name: str = ""
    rename: dict[str, str] = Field({}, description="atomic field → canonical column, e.g. rating → value")


class HetRecLastFmSource(Section):
    """The HetRec 2011 Last.fm-2k folder as published; listens are events, tag assignments are ``tag`` events."""

    kind: Literal["hetrec-lastfm"] = "hetrec-lastfm"
    folder: str
    test_pairs: str = Field("", description="file of held-out (userID, artistID) pairs, read as the given split")


class SequencesSource(Section):
    """Plain text, one line a user: ``user item item …`` in order; optionally a table of items."""

    kind: Literal["sequences"] = "sequences"
    events: str
    items: list[str] = []
    rename: dict[str, str] = {}


class SyntheticSource(Section):
    """A generated world with planted signals; each knob in [0, 1] is how much that signal decides what comes next."""

    kind: Literal["synthetic"] = "synthetic"
    num_users: int = Field(1000, ge=10)
    num_items: int = Field(600, ge=20)
    events_per_user: float = Field(24.0, gt=3)
    num_topics: int = Field(12, ge=2, description="latent topics that text, friends and drift speak about")
    num_partitions: int = Field(4, ge=1)
    seed: int = 0
    text: float = Field(0.7, ge=0, le=1, description="item text tells the topic")
    evolution: float = Field(0.7, ge=0, le=1, description="the order of events tells the next item")
    collaborative: float = Field(0.7, ge=0, le=1, description="hidden communities share items that no text tells")
    social: float = Field(0.7, ge=0, le=1, description="friends share taste")
    knowledge: float = Field(0.7, ge=0, le=1, description="facts tell the owner of an item's maker, whom a user likes")
    stratum: float = Field(0.7, ge=0, le=1, description="the mix of topics tells the stratum, which has its favourites")
    profile: float = Field(0.7, ge=0, le=1, description="crosses of user attributes tell the kind of items")
    media: float = Field(0.7, ge=0, le=1, description="images tell the style of an item, of which a user likes one")
    short_history: float = Field(0.2, ge=0, le=1, description="share of users with very few events")
    cold_items: float = Field(0.05, ge=0, le=0.5, description="share of items that appear only at the end of time")
    bad_rows: float = Field(0.002, ge=0, le=0.2, description="share of broken rows planted for the quarantine")


Source = Annotated[
    CanonicalSource | RecBoleSource | HetRecLastFmSource | SequencesSource | SyntheticSource,
    Field(discriminator="kind"),
]

# --------------------------------------------------------------------------------------------------------- sections


class SplitConfig(Section):
    """How events are divided. Validation is always apart from test.

    ``given``: the source's split column; when it names no validation, that is each user's latest training events, or
    random ones when the data has no order.
    ``leave-last``: each user's last event is test, the one before it validation.
    ``temporal``: one global cut-off in time for test and an earlier one for validation.
    ``ratio``: a share of each user's events, the latest ones, or random ones when the data has no order.

    With any kind, ``cold_users`` makes a share of the users newcomers: see :mod:`recsys.data.newcomers`.
    """

    kind: Literal["given", "leave-last", "temporal", "ratio"] = "leave-last"
    valid: float = Field(0.1, gt=0, lt=1, description="share of events (temporal, ratio), of training events (given)")
    test: float = Field(0.1, gt=0, lt=1, description="share of events (temporal, ratio)")
    valid_from: str = Field("", description="ISO time, instead of the share (temporal)")
    test_from: str = Field("", description="ISO time, instead of the share (temporal)")
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
    users: UserTextConfig = Field(default_factory=UserTextConfig)
    finetune: FinetuneConfig = Field(default_factory=FinetuneConfig)
    event_column: str = Field("", description="context column of auxiliary events, joined per item (e.g. tag)")
    event_types: list[str] = Field([], description="event types whose event_column is text; never targets")
    max_event_terms: int = Field(24, ge=1)
    model: str = Field("all-MiniLM-L6-v2", description="packaged model, local folder or hub id")
    allow_download: bool = False
    max_tokens: int = Field(128, ge=8)
    batch_size: int = Field(64, ge=1)
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    num_actors: int = Field(1, ge=1, description="language models that work side by side")
    cache_dir: str = Field("", description="default: $XDG_CACHE_HOME/multigrain/text")

    @model_validator(mode="after")
    def _groups_or_fields(self) -> TextConfig:
        if self.groups and self.fields is not None:
            raise ValueError("fields and groups both say which columns are text; set one of them")
        return self


class ImagesConfig(Section):
    """Image files that a vision model turns into vectors of one medium; unit length."""

    column: str = Field("", description="column of items with an image's path or URI; empty: no images are read")
    name: str = Field("image", pattern=r"^[A-Za-z0-9_]+$", description="the medium's name")
    root: str = Field("", description="where relative paths start; empty: the folder of the items' file")
    model: str = Field("", description="local folder or hub id of a transformers vision model")
    allow_download: bool = False
    pooling: Literal["auto", "pooled", "mean"] = Field(
        "auto", description="the model's pooled output, the mean of its patches, or whichever it was trained with"
    )
    batch_size: int = Field(32, ge=1)
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    num_actors: int = Field(1, ge=1, description="vision models that work side by side")
    cache_dir: str = Field("", description="default: $XDG_CACHE_HOME/multigrain/images")


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

    item_columns: list[str] = Field([], description="columns of items: categories, numbers, or lists of them")
    separators: dict[str, Annotated[str, Field(min_length=1)]] = Field(
        {}, description="text column of several values → what stands between them"
    )


class QuarantineConfig(Section):
    max_share: float = Field(0.01, ge=0, le=1, description="a table with a larger share of bad rows stops the run")


class DataConfig(Section):
    dir: str = Field("", description="prepared dataset; default: RUN_DIR/dataset")
    source: Source = Field(default_factory=SyntheticSource)
    order: Literal["auto", "time", "file", "none"] = "auto"
    interactions: list[str] = Field([], description="event types that are history and target; empty: all but text")
    context: list[str] = Field(
        [], description="further columns of the events that models may read, e.g. weather, device; categories"
    )
    context_numbers: list[str] = Field([], description="those of data.context that are numbers instead")
    social_directed: bool = False
    split: SplitConfig = Field(default_factory=SplitConfig)
    text: TextConfig = Field(default_factory=TextConfig)
    media: ItemMediaConfig = Field(default_factory=ItemMediaConfig)
    knowledge: ItemFactsConfig = Field(default_factory=ItemFactsConfig)
    quarantine: QuarantineConfig = Field(default_factory=QuarantineConfig)
    num_shards: int = Field(0, ge=0, description="of users; 0: one for every 64 MiB of input, at least 4")


class ItemTowerConfig(Section):
    """a_i = id embedding + projected text. Items without training events have no id part."""

    id: bool = True
    text: bool = True
    text_hidden: int = Field(0, ge=0, description="width of a hidden layer of the text projection; 0: linear")
    text_whiten: int = Field(
        256, ge=0, description="leading directions kept and whitened on the item set; 0: centre only"
    )
    id_dropout: float = Field(0.0, ge=0, lt=1, description="share of items whose id part is hidden in a step")
    init_std: float = Field(0.05, gt=0)


def _as_list(value: Any) -> Any:
    """One number where several may stand."""
    return [value] if isinstance(value, int) else value


class GranularityConfig(Section):
    enabled: bool = False
    weight: float = Field(0.5, ge=0, le=1, description="λ: fixed (weighted) or its start (learned, gated)")


class BehaviourConfig(GranularityConfig):
    input: Literal["text", "item", "user_text", "both"] = Field(
        "text", description="pooled text vectors or item vectors, the text of the past, or pooled text and that text"
    )
    heads: int = Field(4, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)

    @property
    def reads_user_text(self) -> bool:
        return self.enabled and self.input in ("user_text", "both")


class EvolutionConfig(GranularityConfig):
    cell: Literal["lstm", "gru", "attention"] = "attention"
    positions: Literal["absolute", "relative", "both"] = Field("both", description="how attention knows the order")
    layers: int = Field(1, ge=1)
    heads: int = Field(2, ge=1)
    dropout: float = Field(0.3, ge=0, lt=1)
    input_dropout: float = Field(0.3, ge=0, lt=1, description="of the event vectors that the cell reads")
    states: Literal["cell", "parallel", "formula"] = Field(
        "cell",
        description="cell: the cell's state alone; else long-term and immediate state, in sweeps or step by step",
    )
    sweeps: int = Field(2, ge=1, description="parallel passes over the recurrence of the states")
    time_gaps: bool = Field(False, description="the time since the event before as an input of the cell")
    query_context: list[str] = Field(
        [], description="context columns known at the moment of asking (a column that tells of the answer is a leak)"
    )
    context_dropout: float = Field(0.1, ge=0, lt=1, description="share of rows and queries without context in training")


class CollaborativeConfig(GranularityConfig):
    layers: int = Field(3, ge=1)
    user_embedding: bool = Field(False, description="a row per training user instead of the fold-in (unordered data)")


class SocialConfig(GranularityConfig):
    conv: Literal["light", "sage", "gat"] = Field("sage", description="light and gat heed the friends' weights")
    layers: int = Field(1, ge=1)
    heads: int = Field(2, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)


class KnowledgeConfig(GranularityConfig):
    conv: Literal["light", "rgcn"] = Field("light", description="a relation as a diagonal, or as mixed matrices")
    layers: int = Field(2, ge=1, description="hops; 2 reach the items that share an entity")
    bases: int = Field(4, ge=1, description="matrices that the relations of rgcn mix")
    refine: bool = Field(True, description="item vectors get what their facts say, too")
    min_degree: int = Field(2, ge=1, description="an entity, not an item, with fewer neighbours is left out")
    heads: int = Field(1, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    input_dropout: float = Field(0.1, ge=0, lt=1, description="of the entity vectors that the graph reads")
    init_std: float = Field(0.02, gt=0)


class StratumConfig(GranularityConfig):
    method: Literal["kmeans", "hierarchical"] = "kmeans"
    num_strata: Annotated[list[Annotated[int, Field(ge=1)]], BeforeValidator(_as_list)] = Field(
        [4, 8, 16, 32], min_length=1, description="one number, or several of which validation chooses before training"
    )
    input: Literal["text", "item"] = Field("text", description="what users are compared by: text or item vectors")
    temperature: float = Field(0.2, gt=0, description="how soft the membership is; 1: as the strata lie apart")
    refit_every: int = Field(
        1, ge=0, description="epochs between fits, 0: at the start only (item vectors; texts do not move in training)"
    )


class ProfileConfig(GranularityConfig):
    """Attributes of users and items with learned crosses. Vocabularies and statistics are of training rows alone."""

    weight: float = Field(0.1, ge=0, le=1, description="λ, as above; more makes few users learnt by heart")
    user_fields: list[str] | None = Field(None, description="columns of users; null: every usable one")
    item_fields: list[str] | None = Field(None, description="columns of items; null: every usable one")
    numeric: list[str] = Field([], description="fields of text that are numbers, e.g. age")
    categorical: list[str] = Field([], description="fields of numbers that are categories")
    min_frequency: int = Field(2, ge=1, description="rows that must share a category; rarer ones are unknown")
    max_categories: int = Field(10_000, ge=1, description="of a field, the most frequent ones")
    max_members: int = Field(16, ge=1, description="of a list that are read")
    bins: int = Field(8, ge=0, description="quantile bins of a number, whose crosses can be learned; 0: none")
    field_width: int = Field(16, ge=1, description="width of a field's vector")
    layers: int = Field(2, ge=0, description="cross layers; 0: no crosses")
    rank: int = Field(0, ge=0, description="of the cross matrices; 0: full")
    dropout: float = Field(0.1, ge=0, lt=1, description="share of fields hidden in a step, as if they were missing")
    init_std: float = Field(0.3, gt=0)

    @model_validator(mode="after")
    def _one_reading(self) -> ProfileConfig:
        both = sorted({*self.numeric} & {*self.categorical})
        if both:
            raise ValueError(f"{', '.join(both)}: named in numeric and in categorical; choose one")
        return self


class MediaConfig(GranularityConfig):
    weight: float = Field(0.2, ge=0, le=1, description="λ, as above; more costs where media tell nothing")
    refine: bool = Field(True, description="item vectors get what their media say, too")
    whiten: int = Field(
        256, ge=0, description="leading directions of a medium that are kept and whitened; 0: centre only"
    )
    heads: int = Field(1, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)


class ItemCFConfig(GranularityConfig):
    rank: int = Field(256, ge=1, description="of the item–item model; exact when not below the users plus text width")
    regularisation: float = Field(100.0, gt=0)
    text_weight: float = Field(0.0, ge=0, description="of the items' text beside the events; 0: events alone")
    event_weights: Literal["none", "rank"] = Field("none", description="rank: by the rank of value within the user")


class UserCFConfig(GranularityConfig):
    neighbours: int = Field(100, ge=1, description="nearest training users that a user is made of")
    power: float = Field(2.0, ge=0, description="a neighbour weighs cosine^power; 0: all alike")
    rank: int = Field(256, ge=1, description="of the space that tastes are compared in; exact when not below the users")
    popularity_power: float = Field(0.25, ge=0, le=1, description="β: an item counts users^-β in a taste")
    popularity_damping: float = Field(0.15, ge=0, description="γ: an item's score is divided by users^γ")
    max_users: int = Field(20_000, ge=1, description="training users kept as neighbours, an even sample beyond")


class GranularitiesConfig(Section):
    behaviour: BehaviourConfig = Field(default_factory=BehaviourConfig)
    evolution: EvolutionConfig = Field(default_factory=EvolutionConfig)
    collaborative: CollaborativeConfig = Field(default_factory=CollaborativeConfig)
    social: SocialConfig = Field(default_factory=SocialConfig)
    knowledge: KnowledgeConfig = Field(default_factory=KnowledgeConfig)
    stratum: StratumConfig = Field(default_factory=StratumConfig)
    profile: ProfileConfig = Field(default_factory=ProfileConfig)
    media: MediaConfig = Field(default_factory=MediaConfig)
    item_cf: ItemCFConfig = Field(default_factory=ItemCFConfig)
    user_cf: UserCFConfig = Field(default_factory=UserCFConfig)

    def enabled(self) -> dict[str, GranularityConfig]:
        """The granularities that are switched on, by name, in the order of the design's table."""
        return {name: getattr(self, name) for name in type(self).model_fields if getattr(self, name).enabled}


class FusionConfig(Section):
    kind: Literal["weighted", "learned", "gated"] = "learned"
    signal_dropout: float = Field(0.1, ge=0, lt=1, description="chance that a granularity of a user is masked")
    check: bool = Field(
        False, description="silence a granularity without which validation is better beyond noise, and train anew"
    )


class ModelConfig(Section):
    width: int = Field(64, ge=4)
    max_history: int = Field(50, ge=1)
    unit_vectors: bool = Field(
        False, description="items and granularities as unit vectors: cosine scores, λ comparable"
    )
    item: ItemTowerConfig = Field(default_factory=ItemTowerConfig)
    granularities: GranularitiesConfig = Field(default_factory=GranularitiesConfig)
    fusion: FusionConfig = Field(default_factory=FusionConfig)

    @model_validator(mode="after")
    def _something_to_learn(self) -> ModelConfig:
        fitted = {"item_cf", "user_cf"}
        if not set(self.granularities.enabled()) - fitted:
            names = choices(name for name in type(self.granularities).model_fields if name not in fitted)
            raise ValueError(
                f"no granularity that is trained is enabled; set granularities.NAME.enabled true for one of: {names}"
            )
        if not (self.item.id or self.item.text):
            raise ValueError("an item needs item.id or item.text, both are false")
        return self


class LossConfig(Section):
    kind: Literal["auto", "full_softmax", "sampled_softmax"] = Field(
        "auto", description="auto: full up to max_full_items items, sampled beyond"
    )
    max_full_items: int = Field(50_000, ge=1)
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
    use_gpu: Literal["auto", "yes", "no"] = "auto"
    threads: int = Field(0, ge=0, description="CPU threads a worker; 0: the cores shared evenly")
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
    metric: str = Field("ndcg@20", description="validation metric that chooses the epoch")
    refit: bool = Field(True, description="train again on training + validation for the chosen number of epochs")
    ratings: bool = Field(
        False, description="foretell the values of events too, where they vary: RMSE and MAE beside the ranking"
    )
    max_failures: int = Field(2, ge=0)
    window_events: int = Field(4_000_000, ge=1, description="events of shards held in a worker's memory at a time")


class EvaluateConfig(Section):
    ks: list[Annotated[int, Field(ge=1)]] = Field([10, 20], min_length=1)
    exclude_seen: bool = True
    chunk_users: int = Field(512, ge=1)
    baselines: list[Literal["popularity", "item_knn", "ease", "als"]] = ["popularity", "item_knn", "ease", "als"]
    ease_max_items: int = Field(8_000, ge=1, description="EASE keeps the most popular items up to this number")
    bootstrap: int = Field(1000, ge=100)
    ablate: bool = Field(True, description="metric without each granularity (weight set to zero, no retraining)")
    ablation: Literal["none", "full", "retrain"] = Field(
        "none", description="each granularity off and alone, fusions compared (--ablate: full); retrain: also anew"
    )
    item_group: str = Field("", description="column of items, such as a category, by which exposure is compared")
    user_groups: list[str] = Field([], description="columns of users by which quality and exposure are compared")
    num_examples: int = Field(4, ge=0, description="users shown in the report")


class TrackingConfig(Section):
    uri: str = Field("", description="MLflow tracking URI; default: sqlite in RUN_DIR/..")
    experiment: str = "multigrain"
    enabled: bool = True


class RegistryConfig(Section):
    name: str = Field("multigrain", min_length=1, pattern=r"^[^/:]+$")
    alias: str = "challenger"


class RayConfig(Section):
    address: str = Field("local", description="local, auto, or ray://…")
    num_cpus: int = Field(0, ge=0, description="local only; 0: as many as there are")


class RecommendConfig(Section):
    k: int = Field(20, ge=1)
    exclude_seen: bool = True
    model: str = Field("", description="models:/NAME@ALIAS; default: the model that this run registered")
    batch_size: int = Field(1024, ge=1)
    requests: str = Field(
        "", description="JSON lines of user_id, history, friends, k, exclude_seen; default: every user of the model"
    )


class UpdateConfig(Section):
    """How a registered model goes on: with new events (all, or the strata alone), or with feedback (fusion)."""

    only: Literal["all", "fusion", "strata"] = "all"
    model: str = Field(
        "", description="models:/NAME@ALIAS, a run folder or a bundle; default: models:/REGISTRY.NAME@champion"
    )
    epochs: int = Field(5, ge=1, description="at most; the model as it is counts as epoch 0 (all)")
    lr_share: float = Field(0.3, gt=0, le=1, description="of train.lr (all)")
    feedback: list[str] = Field([], description="files, folders or globs of events on shown items (fusion)")
    rewards: dict[str, float] = Field(
        {"click": 1.0, "purchase": 3.0, "skip": -1.0},
        description="event type → reward: above 0 liked, below 0 not; its size is how much it counts (fusion)",
    )
    prior_rows: float = Field(100.0, ge=0, description="rows of feedback that today's λ weigh as much as (fusion)")


class RunConfig(Section):
    dir: str = Field("runs/latest", min_length=1)
    name: str = ""


class Config(Section):
    """The whole configuration of a pipeline run."""

    seed: int = Field(42, ge=0)
    run: RunConfig = Field(default_factory=RunConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    model: ModelConfig
    train: TrainConfig = Field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    recommend: RecommendConfig = Field(default_factory=RecommendConfig)
    update: UpdateConfig = Field(default_factory=UpdateConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)
    registry: RegistryConfig = Field(default_factory=RegistryConfig)
    ray: RayConfig = Field(default_factory=RayConfig)

    @property
    def dataset_dir(self) -> str:
        return self.data.dir or f"{self.run.dir.rstrip('/')}/dataset"


# ---------------------------------------------------------------------------------------------------------- loading

_VARIABLE = re.compile(r"\$\{?([A-Z_][A-Z0-9_]*)\}?")
_EXPONENT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")


def load_config(path: str | Path | None, overrides: Sequence[tuple[str, str]] = ()) -> Config:
    """Read a YAML file, apply ``(dotted.path, text)`` overrides, expand ``$VARIABLES`` and check everything.

    Override texts are parsed as YAML scalars or lists. ``RECSYS_DATA`` defaults to ``data``.

    Raises:
        ConfigError: the file is missing or not YAML, a key is unknown, or a value is out of its range.
    """
    tree: dict[str, Any] = {}
    where = "command line"
    if path is not None:
        where = str(path)
        tree = _read_yaml(Path(path))
    for dotted, text in overrides:
        set_path(tree, dotted, parse_value(dotted, text))
    return build_config(tree, where)


def build_config(tree: Mapping[str, Any], where: str = "configuration") -> Config:
    """Check a nested mapping into a :class:`Config`; errors name the dotted path, the value and the valid keys."""
    try:
        return Config.model_validate(_expand(tree, ""))
    except pydantic.ValidationError as error:
        raise ConfigError(_explain(error, where)) from None


def dump_config(config: Config) -> str:
    """The configuration as YAML that :func:`load_config` reads back to an equal object."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def redact(text: str) -> str:
    """Without the user and password of URIs: what is written down is read by others.

    >>> redact("at postgresql://me:p@ss/word@host/db")
    'at postgresql://***@host/db'
    """
    return re.sub(r"(\w+://)(?!/)\S+@", r"\1***@", text)


def redacted(config: Config) -> Config:
    """A copy whose ``tracking.uri`` has no credentials; who runs it again gives the URI anew."""
    tracking = config.tracking.model_copy(update={"uri": redact(config.tracking.uri)})
    return config.model_copy(update={"tracking": tracking})


def set_path(tree: dict[str, Any], dotted: str, value: Any) -> None:
    """Set ``tree["a"]["b"] = value`` for the path ``a.b``, making sections on the way."""
    *sections, last = dotted.split(".")
    node = tree
    for section in sections:
        child = node.setdefault(section, {})
        if child is None:
            child = node[section] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"--{dotted}: {section!r} is a value, not a section")
        node = child
    node[last] = value


def parse_value(dotted: str, text: str) -> Any:
    """Parse the text of a command-line value: YAML, plus the ``3e-4`` form that YAML reads as a string.

    >>> parse_value("train.lr", "3e-4")
    0.0003
    >>> parse_value("evaluate.ks", "[5, 10]")
    [5, 10]
    """
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--{dotted}: {text!r} is not a YAML value ({error})") from None
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"configuration file {path} does not exist; the shipped ones are in pipelines/configs/")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected sections such as data, model, train at the top, got {type(tree).__name__}")
    return tree


def _expand(node: Any, where: str) -> Any:
    if isinstance(node, Mapping):
        return {key: _expand(child, f"{where}.{key}".lstrip(".")) for key, child in node.items()}
    if isinstance(node, list):
        return [_expand(child, where) for child in node]
    if isinstance(node, str) and "$" in node:
        return _VARIABLE.sub(lambda match: _variable(match.group(1), where), node)
    return node


def _variable(name: str, where: str) -> str:
    value = os.environ.get(name, "data" if name == "RECSYS_DATA" else None)
    if value is None:
        raise ConfigError(f"{where}: the environment variable {name} is not set")
    return value


def _explain(error: pydantic.ValidationError, where: str) -> str:
    lines = []
    for problem in error.errors(include_url=False):
        path = [str(part) for part in problem["loc"]]
        dotted = ".".join(_without_tags(path))
        if problem["type"] == "extra_forbidden":
            valid = choices(_keys_at(path[:-1]))
            lines.append(f"{dotted}: unknown key; valid keys here: {valid}")
        elif problem["type"] == "missing":
            lines.append(f"{dotted}: missing, and it has no default")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            got = problem["input"]
            shown = f" (got {got!r})" if not isinstance(got, (dict, BaseModel)) else ""
            lines.append(f"{dotted or 'configuration'}: {message}{shown}")
    return f"wrong configuration in {where}:\n  " + "\n  ".join(lines)


_SOURCE_KINDS = ("canonical", "recbole", "hetrec-lastfm", "sequences", "synthetic")


def _without_tags(path: Sequence[str]) -> list[str]:
    """Drop the union tag that pydantic puts behind ``data.source``."""
    return [p for i, p in enumerate(path) if not (p in _SOURCE_KINDS and i > 0 and path[i - 1] == "source")]


def _keys_at(path: Sequence[str]) -> list[str]:
    model: Any = Config
    for i, part in enumerate(path):
        if part in _SOURCE_KINDS and i > 0 and path[i - 1] == "source":
            return sorted(source_class(part).model_fields)
        annotation = model.model_fields[part].annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
    return sorted(model.model_fields)


def source_class(kind: str) -> type[Section]:
    """The configuration class of a source kind."""
    classes: tuple[type[Section], ...] = (
        CanonicalSource,
        RecBoleSource,
        HetRecLastFmSource,
        SequencesSource,
        SyntheticSource,
    )
    return {cls.model_fields["kind"].default: cls for cls in classes}[kind]
