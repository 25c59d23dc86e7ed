"""The verb ``tune``: a search for better settings than the configuration has."""

from __future__ import annotations

import importlib

from pipelines.folder import RunFolder
from pipelines.session import quiet
from pipelines.stages import SEARCHES
from recsys.config import Config
from tune.space import load_space


def tune(config: Config, folder: RunFolder) -> None:
    """Do what ``tune.search`` says."""
    quiet()
    module, name = SEARCHES[config.tune.search].target.split(":")
    getattr(importlib.import_module(module), name)(config, folder)


def preview(config: Config) -> str:
    """What a sweep would try, for a dry run.

    Raises:
        ConfigError: the space cannot be searched.
    """
    space = load_space(config.tune.space, config)
    return f"{config.tune.trials} trials over:\n{space.describe()}"


def sweep(config: Config, folder: RunFolder) -> None:
    """Many trainings over a search space."""
    with folder.progress.stage("sweep"):
        folder.progress(preview(config))
