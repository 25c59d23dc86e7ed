"""Whether newer events can be appended to a dataset, and what an update may not lose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from recsys.config import DataConfig
from recsys.data.dataset import PreparedDataset
from recsys.data.manifest import Manifest
from recsys.errors import ArtifactError, ConfigError, DataError
from recsys.preparation.content_hash import differences, settings_hash, settings_of
from recsys.preparation.event_store import (
    files_read,
)
from recsys.preparation.record import Progress
from recsys.sources.base import SourceAdapter
from recsys.storage.uris import is_remote, one_spelling

_PARSED: Final = ("data.context", "data.context_numbers", "data.text_events")


class NothingNew(DataError):
    """All named files of events were read before."""


@dataclass(frozen=True)
class Least:
    """The least number of events for an update: that of the parent model, so that no event is lost
    by mistake.
    """

    events: int
    replace: bool = False

    def check(self, manifest: Manifest, dataset_dir: str) -> None:
        """Refuse a dataset with fewer events than the parent model had.

        Raises
        ------
        DataError
            There are fewer events, even with those that a rule of ``data`` leaves out.
        """
        found = manifest.counts["events"]
        by_rule = sum(manifest.dropped.get("events", {}).values())
        if self.replace or found + by_rule >= self.events:
            return
        raise DataError(
            f"the data has {found:,} events, but the parent model has {self.events:,}: an update"
            " does not lose events unless you confirm it. Give only the new files with --events"
            " FILE…, which keeps the old events, or list old and new files in data.source;"
            f" --replace makes {dataset_dir} from these events only"
        )


def check_earlier(earlier: PreparedDataset, data: DataConfig, dataset_dir: str, seed: int) -> None:
    """Refuse a dataset to which no events can be appended.

    Parameters
    ----------
    earlier : PreparedDataset
        The dataset to append to.
    data : DataConfig
        The section ``data``.
    dataset_dir : str
        Path of the new dataset.
    seed : int
        The configuration's seed, which the split depends on.

    Raises
    ------
    ConfigError
        The dataset keeps no events, its settings differ (the message names them), or it is on an
        object store and would be replaced.
    """
    if not earlier.manifest.store:
        raise ConfigError(
            f"{earlier.root} keeps no events, so newer events cannot be appended (an earlier"
            " release made it, its source is read as a whole, or data.keep_events was false); list"
            " old and new files in data.source and run the update without --events"
        )
    different = differences(earlier.manifest.settings, settings_of(data, seed))
    if wrong := [found for found in different if found.startswith(_PARSED)]:
        raise ConfigError(
            f"{earlier.root} keeps its events without the columns that the settings name now:"
            f" {'; '.join(wrong)}; use the settings that it was prepared with, or list old and new"
            " files in data.source and prepare them again"
        )
    if is_remote(earlier.root) and one_spelling(earlier.root) == one_spelling(dataset_dir):
        raise ConfigError(
            f"data.dir: {dataset_dir} is the dataset to append to, and an object store"
            " cannot rename; choose another data.dir (or run.dir) for the new dataset"
        )


def nothing_new(
    earlier: PreparedDataset, data: DataConfig, dataset_dir: str, seed: int, progress: Progress
) -> PreparedDataset:
    """Return the earlier dataset unchanged, if the configuration asks for the same dataset.

    Parameters
    ----------
    earlier : PreparedDataset
        The dataset that has read all files.
    data : DataConfig
        The section ``data``.
    dataset_dir : str
        Path of the dataset that is asked for.
    seed : int
        The configuration's seed.
    progress : Progress
        Gets a line if the dataset is up to date.

    Returns
    -------
    PreparedDataset
        The earlier dataset.

    Raises
    ------
    NothingNew
        All files were read before, and the configuration asks for another dataset.
    """
    same = settings_hash(data, seed) == earlier.manifest.settings_hash
    if same and one_spelling(earlier.root) == one_spelling(dataset_dir):
        progress(f"dataset {dataset_dir} is up to date: all files of events were read before")
        return earlier
    raise NothingNew(
        f"no new events: {earlier.root} has read all named files of events before; give newer"
        " events with --events or in data.source"
    )


def refuse_forgetting(dataset_dir: str, source: SourceAdapter) -> None:
    """Refuse to overwrite a dataset with appended files that the source does not name.

    Raises
    ------
    DataError
        The source does not name some of the appended files.
    """
    try:
        store = PreparedDataset(dataset_dir).manifest.store
    except ArtifactError:
        return
    if len(store.get("readings", [])) < 2:
        return
    named = {(file["size"], file["fingerprint"]) for file in source.events_read}
    missing = [
        file["name"]
        for file in files_read(store)
        if (file["size"], file["fingerprint"]) not in named
    ]
    if missing:
        raise DataError(
            f"{dataset_dir} has {len(missing)} appended files of events that data.source"
            f" does not name, such as {missing[0]}: this prepare would lose them; name them in"
            " data.source, choose another data.dir, or confirm with --replace"
        )


def can_touch(data: DataConfig, seed: int, earlier: PreparedDataset | None) -> bool:
    """Whether an append can skip users without new events.

    Parameters
    ----------
    data : DataConfig
        Section ``data``.
    seed : int
        Seed of the run.
    earlier : PreparedDataset | None
        The dataset to continue, or None.

    Returns
    -------
    bool
        False if the settings differ from those of ``earlier``, or if one of them can change the
        rows of users without new events.
    """
    if earlier is None or earlier.manifest.settings_hash != settings_hash(data, seed):
        return False
    needs_all = (
        data.min_user_events
        or data.min_item_events
        or data.text.event_types
        or data.text.users.enabled
    )
    return not (
        needs_all or data.text.finetune.enabled or earlier.manifest.text.get("event_column")
    )
