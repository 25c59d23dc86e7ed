"""Sources: one adapter for each format, which reads files as the canonical tables of
:mod:`recsys.schema`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

from recsys.config import Section
from recsys.config.sources import OutsideSource
from recsys.errors import ConfigError, valid_instead

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

    Raises
    ------
    ConfigError
        No adapter has this kind, or it cannot be imported.
    """
    kind = getattr(source, "kind", None)
    if isinstance(source, OutsideSource):
        return _from_outside(source)
    if kind not in ADAPTERS:
        raise ConfigError(f"data.source.kind {kind!r} is unknown; {valid_instead(kind, ADAPTERS)}")
    module, name = ADAPTERS[kind]
    adapter: SourceAdapter = getattr(import_module(module), name)(source)
    return adapter


def _from_outside(source: OutsideSource) -> SourceAdapter:
    """The adapter that the section of another package names."""
    from recsys.sources.base import SourceAdapter

    module, _, name = source.adapter.partition(":")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"data.source.kind {source.kind}: its adapter {source.adapter!r} cannot be imported"
            f" ({error})"
        ) from None
    if not (isinstance(found, type) and issubclass(found, SourceAdapter)):
        raise ConfigError(
            f"data.source.kind {source.kind}: {source.adapter} is not a"
            " recsys.sources.base.SourceAdapter"
        )
    adapter: SourceAdapter = found(source)
    return adapter
