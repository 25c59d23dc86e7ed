"""The source of an update: only the files of its new events."""

from __future__ import annotations

from recsys.config import CanonicalSource, Config
from recsys.errors import ConfigError


def with_newer_events(config: Config) -> Config:
    """The configuration with the files of ``update.events`` as the events of its source.

    Raises
    ------
    ConfigError
        This kind of source can only be read as a whole.
    """
    files, source = config.update.events, config.data.source
    if not files:
        return config
    if not isinstance(source, CanonicalSource):
        raise ConfigError(
            f"update.events: a source of the kind {source.kind} can only be read as a whole; give"
            " old and new data in data.source and leave out --events"
        )
    source = source.model_copy(update={"events": files, "split_files": {}, "type_files": {}})
    return config.model_copy(update={"data": config.data.model_copy(update={"source": source})})
