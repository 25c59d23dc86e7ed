"""The dataset of an update: the dataset of the parent model plus the events of new files.

Why: the file of one day is about a hundredth of the data. An update with only this file must not
prepare all events again, and must not lose the old ones.
"""

from __future__ import annotations

from pipelines.plumbing.newer_source import with_newer_events
from pipelines.plumbing.run_folder import RunFolder
from pipelines.prepare import prepare
from recsys.config import Config, UpdateConfig
from recsys.data.dataset import PreparedDataset
from recsys.errors import ArtifactError, ConfigError
from recsys.registry.parent import Parent


def prepare_newer(
    config: Config, folder: RunFolder, parent: Parent, needs_new: bool = True
) -> PreparedDataset:
    """Append the new events of ``update.events`` or ``data.source`` to the parent's dataset.

    If the parent's dataset keeps no events, or if nothing is new and ``needs_new`` is false, all of
    ``data.source`` is prepared; it must have at least as many events as the parent's dataset.

    Parameters
    ----------
    config : Config
        The whole configuration.
    folder : RunFolder
        The run folder; its progress gets lines.
    parent : Parent
        The model to update, with its dataset and vocabulary.
    needs_new : bool
        Whether it is an error if nothing is new; it is one in any case with ``update.events``.

    Returns
    -------
    PreparedDataset
        The dataset with the new events.

    Raises
    ------
    ConfigError
        Only newer events are given, and there is no dataset to append them to.
    DataError
        There are fewer events than in the parent's dataset, and ``update.replace`` is false.
    NothingNew
        Nothing is new, and the command needs new events or ``update.events`` names them.
    """
    from recsys.preparation.appendable import Least, NothingNew

    settings, info = config.update, parent.bundle.info
    newer = with_newer_events(config)
    least = Least(int(info.dataset.get("counts", {}).get("events", 0)), settings.replace)
    if settings.replace:
        return prepare(newer, folder, base=parent.vocabulary(), least=least)
    earlier, why = dataset_of(parent, config.update, config.dataset_dir)
    if earlier is not None:
        events = earlier.manifest.counts["events"]
        folder.progress(f"adding to the {events:,} events of {earlier.root}")
        try:
            return prepare(newer, folder, earlier=earlier, least=least)
        except NothingNew as nothing:
            if needs_new or settings.events:
                raise
            why = str(nothing)
    elif settings.events:
        raise ConfigError(
            f"update.events: the dataset of {parent.uri}, to which newer events are added, was not"
            f" found: {why}; set update.dataset to its path, or list old and new files in"
            " data.source and leave out --events"
        )
    folder.progress(f"reading all of data.source: {why}")
    return prepare(config, folder, base=parent.vocabulary(), least=least)


def dataset_of(
    parent: Parent, update: UpdateConfig, dataset_dir: str
) -> tuple[PreparedDataset | None, str]:
    """Find the dataset of a model, or one that continues it; it must keep its events.

    The path of the new dataset is tried first: an interrupted update may have made the dataset
    already, and a path that all updates share also has the events of updates whose models were not
    promoted.

    Parameters
    ----------
    parent : Parent
        The model.
    update : UpdateConfig
        The section ``update``; if ``dataset`` is set, only that path is tried.
    dataset_dir : str
        Path of the new dataset.

    Returns
    -------
    tuple of (PreparedDataset | None, str)
        The dataset, or None and the reason.
    """
    dataset = parent.bundle.info.dataset
    dataset_uri, made_of = update.dataset, str(dataset.get("content_hash", ""))
    uris = [dataset_uri] if dataset_uri else [dataset_dir, str(dataset.get("root", ""))]
    why = f"the path of its dataset {made_of[:12]} is unknown"
    for uri in filter(None, uris):
        try:
            found = PreparedDataset(uri)
        except ArtifactError as error:
            why = str(error) if uri != dataset_dir else why
            continue
        if made_of not in (found.manifest.content_hash, *found.manifest.ancestors):
            if uri != dataset_dir:
                why = (
                    f"{uri} holds another dataset, {found.manifest.content_hash[:12]} instead of"
                    f" {made_of[:12]}"
                )
        elif not found.manifest.store:
            why = (
                f"{uri} keeps no events (an earlier release made it, its source is read as a"
                " whole, or data.keep_events was false)"
            )
        else:
            return found, ""
    return None, why
