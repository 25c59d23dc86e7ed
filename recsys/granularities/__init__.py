"""One folder per granularity: ``section.py`` has its settings, without torch; ``model.py`` computes
it.

The registry is :data:`recsys.config.granularities.SECTIONS`: the section of a granularity names its
module.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import recsys.config  # first, as it loads the sections one after the other
from recsys.errors import ConfigError, valid_instead

if TYPE_CHECKING:
    from recsys.config import GranularityConfig
    from recsys.granularities.base import Granularity


def granularity_class(name: str, section: GranularityConfig | None = None) -> type[Granularity]:
    """The class of a granularity's module, imported when asked for; the section says which of
    several.

    Raises
    ------
    ConfigError
        No such granularity, or its module cannot be imported.
    """
    if section is None:
        try:
            section = recsys.config.section_class(name)()
        except KeyError:
            raise ConfigError(
                f"unknown granularity {name!r};"
                f" {valid_instead(name, recsys.config.GranularitiesConfig.model_fields)}"
            ) from None
    module, _, cls = section.target.partition(":")
    try:
        found: type[Granularity] = getattr(importlib.import_module(module), cls)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"model.granularities.{name}: its module {section.target!r} cannot be imported"
            f" ({error})"
        ) from None
    return found
