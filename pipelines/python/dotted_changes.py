"""Changes of a configuration by dotted path, from Python values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recsys.config import Config, build_config, set_path

Settings = Mapping[str, Any] | None


def gives(settings: Settings, dotted: str) -> bool:
    """Whether settings have a value for a key, alone or in its section.

    >>> gives({"run.dir": "a"}, "run.dir"), gives({"run": {"dir": "a"}}, "run.dir")
    (True, True)
    >>> gives({"run.budget": "5m"}, "run.dir"), gives(None, "run.dir")
    (False, False)
    """
    section, _, key = dotted.partition(".")
    whole = (settings or {}).get(section)
    return dotted in (settings or {}) or (isinstance(whole, Mapping) and key in whole)


def with_settings(config: Config, settings: Settings) -> Config:
    """The configuration with ``settings`` (dotted path → value), validated as a whole.

    Keys that were not set stay unset, so that they can still be chosen automatically.

    Raises
    ------
    ConfigError
        A key is unknown or a value is out of its range.
    """
    if not settings:
        return config
    tree = config.model_dump(mode="json", exclude_unset=True)
    if "source" in tree.get("data", {}):
        tree["data"]["source"]["kind"] = config.data.source.kind
    for dotted, value in settings.items():
        set_path(tree, dotted, value)
    return build_config(tree, "settings", expand=False)
