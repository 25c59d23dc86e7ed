"""``compare``: two finished runs on the same test users."""

from __future__ import annotations

from pydantic import Field

from recsys.config.section import Place, Section


class CompareConfig(Section):
    runs: list[Place] = Field([], description="the two run folders (recsys compare RUN RUN)")
    out: Place = Field("", description="file of the comparison; default: compare.json in the first run's folder")
