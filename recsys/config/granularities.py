"""``model.granularities``: one section a granularity, in the order of the design's table."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from recsys.config.section import Section


def _as_list(value: Any) -> Any:
    """One number where several may stand."""
    return [value] if isinstance(value, int) else value


class GranularityConfig(Section):
    enabled: bool = False
    weight: float = Field(0.5, ge=0, le=1, description="λ: fixed (weighted) or its start (learned, gated)")

    always_fitted: ClassVar[bool] = False  # in closed form, whatever its keys say

    @property
    def by_counts(self) -> bool:
        """Whether it is fitted by counting instead of trained."""
        return getattr(self, "fit", "training") == "counts"

    @property
    def is_fitted(self) -> bool:
        """Whether it is fitted in closed form and has no part in training."""
        return self.always_fitted or self.by_counts


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
    feed_forward: int = Field(4, ge=1, description="inner width of attention's blocks, in widths of the model")
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
    max_edges: int = Field(
        4_000_000, ge=0, description="larger graphs are not held: a step samples neighbours (not with user_embedding)"
    )
    fanout: int = Field(8, ge=1, description="neighbours of a node that a step samples")


class SocialConfig(GranularityConfig):
    conv: Literal["light", "sage", "gat"] = Field("sage", description="light and gat use the friends' weights")
    layers: int = Field(1, ge=1)
    heads: int = Field(2, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)


class KnowledgeConfig(GranularityConfig):
    conv: Literal["light", "rgcn"] = Field("light", description="a relation as a diagonal, or as mixed matrices")
    layers: int = Field(2, ge=1, description="hops; 2 reach the items that share an entity")
    bases: int = Field(4, ge=1, description="matrices that the relations of rgcn mix")
    refine: bool = Field(True, description="item vectors get what their facts say, too")
    min_degree: int = Field(2, ge=1, description="an entity, not an item, with fewer neighbours is left out")
    fit: Literal["training", "counts"] = Field(
        "training", description="counts: the facts of the history against those of all events; conv to init_std idle"
    )
    smoothing: float = Field(20.0, gt=0, description="events that a user is taken to have as everybody has (counts)")
    max_entities: int = Field(1024, ge=1, description="of most events, that are counted (counts)")
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
    fit: Literal["training", "counts"] = Field(
        "training", description="counts: what users of the same attributes chose; fields of items, and below, idle"
    )
    crosses: list[Annotated[list[str], Field(min_length=1)]] = Field(
        [], description="fields of users that are crossed, e.g. [[age, gender]]; empty: each alone (counts)"
    )
    smoothing: float = Field(1000.0, gt=0, description="events that a cell is taken to have as everybody has (counts)")
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

    @model_validator(mode="after")
    def _crosses_are_counted(self) -> ProfileConfig:
        if self.crosses and not self.by_counts:
            raise ValueError(
                "crosses are of fit counts; a training learns them, see layers: set fit, or leave them out"
            )
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
    always_fitted: ClassVar[bool] = True
    rank: int = Field(256, ge=1, description="of the item–item model; exact when not below the users plus text width")
    regularisation: float = Field(100.0, gt=0)
    text_weight: float = Field(0.0, ge=0, description="of the items' text beside the events; 0: events alone")
    event_weights: Literal["none", "rank"] = Field("none", description="rank: by the rank of value within the user")


class UserCFConfig(GranularityConfig):
    always_fitted: ClassVar[bool] = True
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

    @property
    def are_trained(self) -> bool:
        """Whether any granularity that is switched on is trained; where none is, nothing is but the members' fits."""
        return any(not section.is_fitted for section in self.enabled().values())
