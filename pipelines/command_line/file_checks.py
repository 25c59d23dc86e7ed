"""Check that the local files of a verb exist, before Ray, torch or a reader is imported.

Why: on a busy machine these imports take a minute, too long to wait for a message about a mistyped
name. The readers check remote files and the content of files later.
"""

from __future__ import annotations

import os
import re

from recsys.config import DataConfig, RecommendConfig, UpdateConfig
from recsys.config.sources import map_paths, path_keys_of_source
from recsys.errors import ConfigError, SourceError
from recsys.storage.uris import expanded, is_remote

_GLOB = re.compile(r"[*?\[]")


def check_present(
    data: DataConfig, recommend: RecommendConfig, update: UpdateConfig, stages: tuple[str, ...]
) -> None:
    """Check that the files that the configuration names for these stages exist.

    Parameters
    ----------
    data : DataConfig
        Names the files of the source.
    recommend : RecommendConfig
        Names the file of requests.
    update : UpdateConfig
        Names the files of newer events and of feedback.
    stages : tuple[str, ...]
        Names of the stages.

    Raises
    ------
    SourceError
        An input file of ``data.source`` is missing.
    ConfigError
        A file of another section is missing.
    """
    if "parent" in stages and update.events:
        _check("update.events", update.events)
    elif "prepare" in stages:
        source = data.source
        for key in path_keys_of_source(source):
            map_paths(getattr(source, key, None) or [], _check_source)
    if "feedback" in stages:
        _check("update.feedback", update.feedback)
    if "recommend" in stages:
        _check("recommend.requests", [recommend.requests])


def _is_missing(path: str) -> bool:
    """Whether a local path does not exist; globs and remote paths are not checked."""
    return (
        bool(path)
        and not is_remote(path)
        and not _GLOB.search(path)
        and not os.path.lexists(expanded(path))
    )


def _check(key: str, paths: list[str]) -> None:
    for path in paths:
        if _is_missing(path):
            raise ConfigError(
                f"{key}: {path} does not exist; expected a file, relative to {os.getcwd()}"
            )


def _check_source(path: str) -> str:
    if _is_missing(path):
        raise SourceError(
            f"{path} does not exist; expected a file: correct data.source, or set RECSYS_DATA to"
            " the data folder"
        )
    return path
