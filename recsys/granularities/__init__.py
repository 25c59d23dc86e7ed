"""One file a granularity: batch → user vectors and a mask of where they are present."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

from recsys.errors import ConfigError, choices

if TYPE_CHECKING:
    from recsys.config import GranularityConfig
    from recsys.granularities.base import Granularity

GRANULARITIES: Final = {
    "behaviour": "recsys.granularities.behaviour:Behaviour",
    "evolution": "recsys.granularities.evolution:Evolution",
    "collaborative": "recsys.granularities.collaborative:Collaborative",
    "social": "recsys.granularities.social:Social",
    "knowledge": "recsys.granularities.knowledge:Knowledge",
    "stratum": "recsys.granularities.stratum:Stratum",
    "profile": "recsys.granularities.profile:Profile",
    "media": "recsys.granularities.media:Media",
    "item_cf": "recsys.granularities.item_cf:ItemCF",
    "user_cf": "recsys.granularities.user_cf:UserCF",
    "popularity": "recsys.granularities.popularity:Popularity",
}
COUNTS: Final = {  # what a section's ``fit: counts`` asks for
    "knowledge": "recsys.granularities.knowledge_counts:KnowledgeCounts",
    "profile": "recsys.granularities.profile_counts:ProfileCounts",
}


def granularity_class(name: str, section: GranularityConfig | None = None) -> type[Granularity]:
    """The class of a granularity, imported when asked for; the section says which of several.

    Raises:
        ConfigError: no such granularity.
    """
    if name not in GRANULARITIES:
        raise ConfigError(f"unknown granularity {name!r}; there are: {choices(GRANULARITIES)}")
    counts = section is not None and section.by_counts
    module, cls = (COUNTS if counts else GRANULARITIES)[name].split(":")
    found: type[Granularity] = getattr(importlib.import_module(module), cls)
    return found
