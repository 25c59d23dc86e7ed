"""Sources: one adapter a format, each giving the canonical tables of :mod:`recsys.schema` as Ray datasets."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

from recsys.config import Section
from recsys.errors import ConfigError, choices

if TYPE_CHECKING:
    from recsys.sources.base import SourceAdapter

ADAPTERS: Final = {
    "canonical": ("recsys.sources.canonical", "CanonicalAdapter"),
    "recbole": ("recsys.sources.recbole", "RecBoleAdapter"),
    "hetrec-lastfm": ("recsys.sources.hetrec", "HetRecLastFmAdapter"),
    "sequences": ("recsys.sources.sequences", "SequencesAdapter"),
    "synthetic": ("recsys.sources.synthetic", "SyntheticAdapter"),
}


def open_source(source: Section) -> SourceAdapter:
    """The adapter of a source's configuration.

    Raises:
        ConfigError: no adapter has this kind.
    """
    kind = getattr(source, "kind", None)
    if kind not in ADAPTERS:
        raise ConfigError(f"data.source.kind {kind!r} is unknown; choose one of: {choices(ADAPTERS)}")
    module, name = ADAPTERS[kind]
    adapter: SourceAdapter = getattr(import_module(module), name)(source)
    return adapter
