"""Check a configuration for mistakes before a verb starts, and in its dry run.

Why: a mistake that only a later stage finds costs the time of the stages before it.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.plumbing.newer_source import with_newer_events
from recsys.config import Config, DataConfig
from recsys.config.contradictions import check_settings
from recsys.errors import ConfigError, valid_instead


def check(config: Config, stages: tuple[str, ...]) -> None:
    """Check the settings without reading data.

    Raises
    ------
    ConfigError
        Settings contradict each other, or a time cannot be parsed.
    """
    check_settings(config, stages)
    if "train" in stages and not config.has_model and "source" not in config.data.model_fields_set:
        raise ConfigError(
            "data.source: the configuration gives neither data nor a model; write a configuration"
            " for your files with `recsys init FILE… --out mine.yaml`, or see the examples in"
            " pipelines/configs/"
        )
    if "prepare" in stages:
        _check_times(config.data)
    if "recommend" in stages and config.recommend.at:
        from recsys.data.split import parse_time

        parse_time(config.recommend.at, "recommend.at")


def check_input(config: Config, stages: tuple[str, ...]) -> list[str]:
    """Check that the input files of the stages exist and have the required columns.

    Returns
    -------
    list of str
        Notes for the user.

    Raises
    ------
    UserError
        A file is missing, or lacks a required column.
    """
    notes: list[str] = []
    if "prepare" in stages:
        from recsys.sources import open_source

        if "parent" in stages:
            config = with_newer_events(config)
        source = open_source(config.data.source)
        source.check()
        notes = source.notes
        _check_columns(config.data, source.columns)
    if "recommend" in stages and config.recommend.requests:
        from recsys.serving.request_files import read_requests

        read_requests(config.recommend.requests)
    return notes


def _check_columns(data: DataConfig, columns: Mapping[str, set[str]]) -> None:
    """Check every column that a setting names, in the tables whose columns are known.

    Raises
    ------
    ConfigError
        No file of the table has the column.
    """
    named = (
        ("events", "data.context", data.context),
        ("events", "data.context_numbers", data.context_numbers),
        ("items", "data.knowledge.item_columns", data.knowledge.item_columns),
        ("items", "data.media.columns", [*data.media.columns.values()]),
        ("items", "data.media.images.column", [data.media.images.column]),
        ("items", "data.text.html", data.text.html if data.text.enabled else []),
        ("items", "data.text.fields", (data.text.fields or []) if data.text.enabled else []),
    )
    for table, key, names in named:
        for name in names:
            if name and name not in columns.get(table, {name}):
                have = valid_instead(name, columns[table], "columns")
                raise ConfigError(f"{key}: {name!r} is not a column of the {table}; {have}")


def _check_times(data: DataConfig) -> None:
    """Check every time of the section ``data``, and their order."""
    split = data.split
    if not any((data.from_, data.until, split.valid_from, split.test_from)):
        return
    from recsys.data.split import parse_time
    from recsys.preparation.filters import EventFilters

    EventFilters.of(data)
    texts = {
        f"data.split.{key}": text
        for key in ("valid_from", "test_from")
        if (text := getattr(split, key))
    }
    times = [parse_time(text, key) for key, text in texts.items()]
    if len(times) == 2 and times[0] >= times[1]:
        (first, early), (second, late) = texts.items()
        raise ConfigError(
            f"{first} {early} is not before {second} {late}, so no events are between them; choose"
            f" an earlier {first}"
        )
