"""Mistakes of a configuration that need no data: looked for before a verb starts, and by its dry run.

Why: what only a later stage would find costs the time of the stages before it.
"""

from __future__ import annotations

from collections.abc import Mapping

from recsys.config import Config
from recsys.config.contradictions import check_settings
from recsys.errors import ConfigError, choices


def check(config: Config, stages: tuple[str, ...]) -> None:
    """Look at the settings alone.

    Raises
    ------
    ConfigError
        settings contradict each other, or a text is no time.
    """
    check_settings(config, stages)
    if "train" in stages and not config.has_model and "source" not in config.data.model_fields_set:
        raise ConfigError(
            "data.source: the configuration names no data and no model; `recsys init FILE… --out mine.yaml` writes one "
            "for files of yours, and pipelines/configs has examples"
        )
    if "prepare" in stages:
        _check_times(config)
    if "recommend" in stages and config.recommend.at:
        from recsys.data.split import parse_time

        parse_time(config.recommend.at, "recommend.at")


def check_input(config: Config, stages: tuple[str, ...]) -> list[str]:
    """Look for the input files of the stages, and at their column names where they can be read; what to know of them.

    Raises
    ------
    UserError
        a file is missing, or lacks a column that it must have.
    """
    notes: list[str] = []
    if "prepare" in stages:
        from recsys.sources import open_source

        if "parent" in stages:
            from pipelines.newer import with_newer_events

            config = with_newer_events(config)
        source = open_source(config.data.source)
        source.check()
        notes = source.notes
        _check_columns(config, source.columns)
    if "recommend" in stages and config.recommend.requests:
        from recsys.serving.request_files import read_requests

        read_requests(config.recommend.requests)
    return notes


def _check_columns(config: Config, columns: Mapping[str, set[str]]) -> None:
    """Every column that a setting names, in the tables whose columns are known.

    Raises
    ------
    ConfigError
        no file of the table has it.
    """
    data = config.data
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
                have = choices(columns[table])
                raise ConfigError(f"{key}: {name!r} is not a column of the {table}; columns: {have}")


def _check_times(config: Config) -> None:
    """Every time of the section ``data``, and that what begins earlier is earlier."""
    data, split = config.data, config.data.split
    if not any((data.from_, data.until, split.valid_from, split.test_from)):
        return
    from recsys.data.split import parse_time
    from recsys.preparation.filters import EventFilters

    EventFilters.of(data)
    texts = {f"data.split.{key}": text for key in ("valid_from", "test_from") if (text := getattr(split, key))}
    times = [parse_time(text, key) for key, text in texts.items()]
    if len(times) == 2 and times[0] >= times[1]:
        (first, early), (second, late) = texts.items()
        raise ConfigError(
            f"{first} {early} is not before {second} {late}, which leaves nothing between them; "
            f"choose an earlier {first}"
        )
