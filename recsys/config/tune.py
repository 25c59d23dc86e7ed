"""``tune``: what is searched, how, and with how many trials."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from recsys.config.section import PathOrName, Section, as_list


class FusionSearchConfig(Section):
    """A search of the weights of a trained model's granularities on cached scores."""

    settings: int = Field(
        400,
        ge=1,
        description=(
            "settings tried on all validation users; as many again are tried on each half of them"
        ),
    )
    sampler: Literal["tpe", "random"] = Field(
        "tpe", description="how the next setting for the main metric is chosen"
    )
    front: float = Field(
        0.3, ge=0, lt=1, description="share of the settings that extend the Pareto front (NSGA-II)"
    )
    queries: int = Field(4096, ge=2, description="validation users, at most; an even sample of all")
    candidates: int = Field(
        500,
        ge=1,
        description="best items of each granularity that are kept for a user; lists stay exact",
    )
    pick: Literal["best", "coverage", "novelty", "diversity"] = Field(
        "best",
        description=(
            "setting that is chosen: the best train.metric, or the most of another aim close to it"
        ),
    )
    within: float = Field(
        0.01,
        ge=0,
        lt=1,
        description="share of the best train.metric that a pick other than best may lose",
    )


class TuneConfig(Section):
    """A search for better settings: whole trainings (trials), or the fusion weights of a trained
    model (fusion).
    """

    search: Literal["trials", "fusion"] = Field(
        "trials",
        description="trials: train with many settings; fusion: search λ of one trained model",
    )
    space: Annotated[list[PathOrName], BeforeValidator(as_list)] = Field(
        [],
        description=(
            "files of the search space (dotted path → values), or names of files in tune/spaces/"
            " (trials)"
        ),
    )
    trials: int = Field(
        20,
        ge=1,
        description="number of trials; the first is the configuration without changes (trials)",
    )
    sampler: Literal["tpe", "random"] = Field(
        "tpe", description="how the next trial is chosen (trials)"
    )
    scheduler: Literal["asha", "none"] = Field(
        "asha",
        description=(
            "asha: after min_epochs · reduction^n epochs only the best 1/reduction continue"
            " (trials)"
        ),
    )
    min_epochs: int = Field(5, ge=1, description="epochs that every trial gets (asha)")
    reduction: int = Field(
        3,
        ge=2,
        description="reduction factor n: at each rung, the best 1/n of the trials continue (asha)",
    )
    concurrent: int = Field(
        0,
        ge=0,
        description="trials that run at the same time; 0: as many as fit in the cluster (trials)",
    )
    cpus: int = Field(
        0,
        ge=0,
        description="CPUs of a one-process trial; 0: train.threads, or the fastest number (trials)",
    )
    silent_s: float = Field(
        600.0,
        gt=0,
        description=(
            "seconds without a report and without CPU use after which a trial is stopped as failed;"
            " longer if the trials' usual pauses are longer (trials)"
        ),
    )
    best: int = Field(
        3, ge=1, description="trials that are trained again with other seeds (trials)"
    )
    seeds: int = Field(
        3,
        ge=1,
        description=(
            "seeds of each of these trials, its own included; the best mean is chosen (trials)"
        ),
    )
    final: bool = Field(
        True,
        description=(
            "train the best configuration, evaluate it on test and register it at the end (trials)"
        ),
    )
    fusion: FusionSearchConfig = Field(
        default_factory=FusionSearchConfig, description="settings of tune.search fusion"
    )
