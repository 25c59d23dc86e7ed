"""Open the prepared dataset of a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from recsys.config import DataConfig
from recsys.errors import ArtifactError, DataError
from recsys.storage.uris import is_remote

if TYPE_CHECKING:
    from recsys.data.dataset import PreparedDataset


def open_dataset(data: DataConfig, dataset_dir: str, seed: int) -> PreparedDataset:
    """The prepared dataset of the configuration.

    Why by an absolute path: workers have other working directories.

    Parameters
    ----------
    data : DataConfig
        The section ``data``; the dataset must have been prepared with it.
    dataset_dir : str
        Folder of the dataset, also on ``s3://``.
    seed : int
        Seed of the configuration, which decides the splits.

    Raises
    ------
    ArtifactError
        It does not exist, another release made it, or it was prepared with other settings.
    DataError
        It has no users, items or training events.
    """
    from recsys.data.dataset import PreparedDataset
    from recsys.preparation.content_hash import differences, settings_hash, settings_of

    dataset = PreparedDataset(
        dataset_dir if is_remote(dataset_dir) else str(Path(dataset_dir).absolute())
    )
    if dataset.manifest.settings_hash not in ("", settings_hash(data, seed)):
        found = (
            differences(dataset.manifest.settings, settings_of(data, seed))
            if dataset.manifest.settings
            else []
        )
        named = f": {'; '.join(found[:5])}{' …' if len(found) > 5 else ''}" if found else ""
        raise ArtifactError(
            f"{dataset.root} was prepared with other data settings (sections data and seed) than"
            f" this configuration{named}; run `recsys prepare` again, or use the settings that it"
            " was prepared with"
        )
    for what in ("users", "items", "train"):
        if not dataset.manifest.counts.get(what, 0):
            raise DataError(
                f"{dataset.root} has no {what}, so there is nothing to train on; check data.source"
                " and data.split"
            )
    return dataset
