"""``referee``: a protocol that any library can follow, and lists that are scored with it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from recsys.config.section import PathOrUri, Section


class RefereeConfig(Section):
    """Published protocols: ``prepare`` writes one, ``score`` scores lists with it, ``lists`` writes
    our own lists.
    """

    protocol: PathOrUri = Field(
        "", description="the folder that `recsys referee prepare` wrote (--protocol)"
    )
    out: PathOrUri = Field("", description="output file or folder (--out)")
    lists: list[str] = Field(
        [],
        description=(
            "NAME=FILE of a method, or NAME/SETTING=FILE of each of its settings; .valid "
            "after the name for lists "
            "of the validation split; a glob for several seeds; or a folder of such files (--lists)"
        ),
    )
    runs: list[str] = Field(
        [], description="NAME=FOLDER of finished runs whose lists are written (--runs)"
    )
    mask: Literal["seen", "none"] | None = Field(
        None,
        description=(
            "seen: items of a user's history are in no list and are no target; none: lists may hold"
            " all items, as with RecBole's sequential models; null: seen or none, as"
            " evaluate.exclude_seen says"
        ),
    )
    sample: int = Field(
        0,
        ge=0,
        description="items that are ranked in addition to the targets; 0: the whole catalogue",
    )
    sampler: Literal["uniform", "recbole"] = Field(
        "uniform",
        description=(
            "how these items are drawn; uniform: distinct items that the user does not have;"
            " recbole: as its uni evaluation draws them after numpy.random.seed(seed)"
        ),
    )
    windows: int = Field(
        1, ge=1, description="number of consecutive test periods of a temporal split"
    )
    format: Literal["parquet", "csv"] = Field(
        "parquet", description="file format of the protocol's tables and of our lists"
    )
    bootstrap: int = Field(
        10_000,
        ge=1000,
        description="bootstrap resamples of users; more pairs of methods need more resamples",
    )
