"""The dataset of an update: that of the parent model, with the events of files that it has not read.

Why: a day's file is a hundredth of the data. An update that names only this file must not prepare all events again, and
must not lose the old ones.
"""

from __future__ import annotations

from pipelines.plumbing.folder import RunFolder
from pipelines.prepare import prepare
from recsys.config import CanonicalSource, Config
from recsys.data.dataset import PreparedDataset
from recsys.errors import ArtifactError, ConfigError
from recsys.registry.lineage import Parent


def prepare_newer(config: Config, folder: RunFolder, parent: Parent, needs_new: bool = True) -> PreparedDataset:
    """Append to the parent's dataset what ``update.events``, or ``data.source``, has that it has not read.

    If the parent's dataset keeps no events, or if there is nothing new and ``needs_new`` is false, everything that
    ``data.source`` names is prepared; it must have at least as many events as the parent was made of.

    Raises
    ------
    ConfigError
        only newer events are given, and there is no dataset to append them to.
    DataError
        fewer events than the parent was made of, and ``update.replace`` is false.
    """
    from recsys.preparation.append import Least, NothingNew

    settings, info = config.update, parent.bundle.info
    newer = with_newer_events(config)
    least = Least(int(info.dataset.get("counts", {}).get("events", 0)), settings.replace)
    if settings.replace:
        return prepare(newer, folder, base=parent.vocabulary(), least=least)
    earlier, why = dataset_of(parent, config)
    if earlier is not None:
        events = earlier.manifest.counts["events"]
        folder.progress(f"going on with the {events:,} events of {earlier.root}")
        try:
            return prepare(newer, folder, earlier=earlier, least=least)
        except NothingNew as nothing:
            if needs_new or settings.events:
                raise
            why = str(nothing)
    elif settings.events:
        raise ConfigError(
            f"update.events: there is no dataset of {parent.uri} to append newer events to: {why}; set update.dataset "
            "to the place of that dataset, or list old and new files in data.source and leave --events out"
        )
    folder.progress(f"reading all of data.source: {why}")
    return prepare(config, folder, base=parent.vocabulary(), least=least)


def with_newer_events(config: Config) -> Config:
    """The configuration whose source has the files of ``update.events`` as its events.

    Raises
    ------
    ConfigError
        the source is of a kind that is read as a whole.
    """
    files, source = config.update.events, config.data.source
    if not files:
        return config
    if not isinstance(source, CanonicalSource):
        raise ConfigError(
            f"update.events: a source of the kind {source.kind} is read as a whole; name old and new data in "
            "data.source and leave --events out"
        )
    source = source.model_copy(update={"events": files, "split_files": {}, "type_files": {}})
    return config.model_copy(update={"data": config.data.model_copy(update={"source": source})})


def dataset_of(parent: Parent, config: Config) -> tuple[PreparedDataset | None, str]:
    """The dataset that a model was made of, or one that continues it, if it keeps its events; else why there is none.

    The place of the new dataset is tried first: an interrupted update may have made the dataset already, and a place
    that all updates share also has the events of updates whose models were not promoted.
    """
    dataset = parent.bundle.info.dataset
    asked, made_of = config.update.dataset, str(dataset.get("content_hash", ""))
    places = [asked] if asked else [config.dataset_dir, str(dataset.get("root", ""))]
    why = f"the place of its dataset {made_of[:12]} is unknown"
    for place in filter(None, places):
        try:
            found = PreparedDataset(place)
        except ArtifactError as error:
            why = str(error) if place != config.dataset_dir else why
            continue
        if made_of not in (found.manifest.content_hash, *found.manifest.ancestors):
            if place != config.dataset_dir:
                why = f"{place} holds another dataset, {found.manifest.content_hash[:12]} and not {made_of[:12]}"
        elif not found.manifest.store:
            why = (
                f"{place} keeps no events (an earlier release made it, its source is read as a whole, or "
                "data.keep_events was false)"
            )
        else:
            return found, ""
    return None, why
