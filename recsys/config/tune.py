"""``tune``: what is searched, how, and how much of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from recsys.config.section import Place, Section


def _as_list(value: Any) -> Any:
    """One file where several may stand."""
    return [value] if isinstance(value, str) else value


class FusionSearchConfig(Section):
    """The weights of a trained model's granularities, searched on cached scores."""

    settings: int = Field(400, ge=1, description="tried on all validation users; as many again on each half of them")
    sampler: Literal["tpe", "random"] = Field("tpe", description="how the next setting for the main metric is chosen")
    front: float = Field(0.3, ge=0, lt=1, description="share of the settings that widen the Pareto front (NSGA-II)")
    queries: int = Field(4096, ge=2, description="validation users at most, evenly from all")
    candidates: int = Field(
        500, ge=1, description="items kept of the best of each granularity, a user; lists are exact"
    )
    pick: Literal["best", "coverage", "novelty", "diversity"] = Field(
        "best", description="the setting of the best train.metric, or of the most of something else near it"
    )
    within: float = Field(0.01, ge=0, lt=1, description="share of the best train.metric that another pick may lose")


class TuneConfig(Section):
    """A search for better settings: whole trainings (trials), or the fusion weights of a trained model (fusion)."""

    search: Literal["trials", "fusion"] = "trials"
    space: Annotated[list[Place], BeforeValidator(_as_list)] = Field(
        [], description="files of dotted path → values, or names of shipped ones in tune/spaces/ (trials)"
    )
    trials: int = Field(20, ge=1, description="the first is the configuration as it is (trials)")
    sampler: Literal["tpe", "random"] = Field("tpe", description="how the next trial is chosen (trials)")
    scheduler: Literal["asha", "none"] = Field(
        "asha", description="asha: at min_epochs · reduction^n epochs only the best 1/reduction go on (trials)"
    )
    min_epochs: int = Field(5, ge=1, description="of every trial (asha)")
    reduction: int = Field(3, ge=2, description="one of so many trials goes on at each rung (asha)")
    concurrent: int = Field(0, ge=0, description="trials at once; 0: as many as the cluster holds (trials)")
    cpus: int = Field(
        0,
        ge=0,
        description="of a one-process trial; 0: train.threads, or the fastest number (trials)",
    )
    silent_s: float = Field(
        600.0,
        gt=0,
        description="seconds without a report and without computing, after which a trial is ended as failed; longer "
        "where the trials' own pauses are longer (trials)",
    )
    best: int = Field(3, ge=1, description="trials that are trained again with other seeds (trials)")
    seeds: int = Field(3, ge=1, description="of each of them, its own included; the mean chooses (trials)")
    final: bool = Field(
        True, description="train the best configuration, evaluate it on test and register it at the end (trials)"
    )
    fusion: FusionSearchConfig = Field(default_factory=FusionSearchConfig, description="of tune.search fusion")
