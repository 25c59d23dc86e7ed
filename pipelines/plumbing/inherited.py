"""The configuration of a model, read from the model itself; options of the command line override
it.

Why: a daily command then needs no configuration file that could differ from the model's. Paths of
the run and the promoted model are not inherited, because they belong to one run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import yaml

from recsys.config import (
    Config,
    build_config,
    dump_config,
    load_config,
    parse_value,
    redacted,
    set_path,
)
from recsys.config.path_keys import with_absolute_paths
from recsys.errors import ConfigError

CONFIG: Final = "config"  # key in the bundle's extra
VERBS: Final = ("update", "promote", "recommend")
_SECTIONS: Final = (
    "seed",
    "data",
    "model",
    "train",
    "evaluate",
    "registry",
    "serve",
    "promote",
    "update",
    "ray",
)
_OF_ONE_RUN: Final = {
    "promote": ("model", "force", "rollback"),
    "serve": ("model",),
    "update": (
        *("only", "events", "dataset", "replace", "model", "feedback"),
        *("follow", "idle", "promote"),
    ),
    "data": ("dir",),
}


def handed_on(config: Config) -> dict[str, Any]:
    """The configuration to store in a model: plain values, no secrets, absolute paths."""
    tree = with_absolute_paths(yaml.safe_load(dump_config(redacted(config))))
    kept: dict[str, Any] = {name: tree[name] for name in _SECTIONS if name in tree}
    for section, keys in _OF_ONE_RUN.items():
        kept[section] = {
            key: value for key, value in kept.get(section, {}).items() if key not in keys
        }
    kept["tracking"] = {"experiment": config.tracking.experiment}
    return kept


def inherited_config(verb: str, overrides: Sequence[tuple[str, str]]) -> Config:
    """The configuration of the model that a verb works on, with the options of the command line.

    Raises
    ------
    ArtifactError
        There is no such model.
    ConfigError
        The model stores no configuration, or the command line names no model.
    """
    from recsys.bundle.description import read_info
    from recsys.registry.mlflow_client import tracking_uri
    from recsys.registry.resolve import resolve

    alone = load_config(None, overrides)
    uri = _model(verb, alone)
    info = read_info(resolve(uri, tracking_uri(alone.tracking, alone.run.dir)))
    tree = info.extra.get(CONFIG)
    if not tree:
        raise ConfigError(
            f"{uri} stores no configuration, because an earlier release made it; give the"
            " configuration that it was trained with: --config FILE"
        )
    tree = {
        **tree,
        "tracking": {**tree["tracking"], "uri": tracking_uri(alone.tracking, alone.run.dir)},
    }
    tree[verb] = {**tree.get(verb, {}), "model": uri}
    if verb == "promote":
        tree["data"] = {**tree["data"], "dir": info.dataset.get("root", "")}
    for dotted, text in overrides:
        set_path(tree, dotted, parse_value(dotted, text))
    return build_config(
        tree, f"the configuration of {uri}", options=[name for name, _ in overrides]
    )


def _model(verb: str, config: Config) -> str:
    """The model that the command line names, or the verb's default."""
    name = config.registry.name
    named = {
        "update": config.update.model,
        "promote": config.promote.model,
        "recommend": config.recommend.model,
    }[verb]
    if config.promote.rollback and verb == "promote":
        return named or f"models:/{name}@champion"
    return named or f"models:/{name}@{config.registry.alias if verb == 'promote' else 'champion'}"
