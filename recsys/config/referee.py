"""``referee``: a protocol that any library can follow, and the lists that are judged by it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from recsys.config.section import Place, Section


class RefereeConfig(Section):
    """Published protocols: ``prepare`` writes one, ``score`` judges lists by it, ``lists`` makes lists of ours."""

    protocol: Place = Field("", description="the folder that `recsys referee prepare` wrote (--protocol)")
    out: Place = Field("", description="where to write (--out)")
    lists: list[str] = Field(
        [],
        description="NAME=FILE of a method, NAME/SETTING=FILE of several, .valid behind for those of the validation "
        "part; a glob names seeds; or a folder of such files (--lists)",
    )
    runs: list[str] = Field([], description="NAME=FOLDER of a finished run whose lists are wanted (--runs)")
    mask: Literal["seen", "none"] = Field(
        "seen",
        description="seen: what a user had is in no list and no target, as in our evaluation; none: all items may be "
        "listed, as RecBole's sequential models do",
    )
    sample: int = Field(0, ge=0, description="items beside the targets that are ranked; 0: the whole catalogue")
    sampler: Literal["uniform", "recbole"] = Field(
        "uniform",
        description="how they are drawn: distinct unknown items of the user; recbole: as its uni evaluation draws them "
        "with numpy.random.seed(seed) before",
    )
    windows: int = Field(1, ge=1, description="of a temporal split: as many test spans, one before the other")
    format: Literal["parquet", "csv"] = Field("parquet", description="of the protocol's tables and of our lists")
    bootstrap: int = Field(
        10_000, ge=1000, description="resamples of users; p-values of many pairs need more than one pair"
    )
