"""Open the trained model of a run folder."""

from __future__ import annotations

import hashlib
from typing import Final

from pipelines.plumbing.run_folder import RunFolder
from recsys.config import ModelConfig
from recsys.data.dataset import PreparedDataset
from recsys.errors import ArtifactError
from recsys.registry.logged_values import flatten
from recsys.training.checkpoint import TrainResult, load_trained
from recsys.training.constants import narrowed

# in RUN/model: which dataset and training the model comes from
ORIGIN: Final = "origin.json"


def open_trained(model: ModelConfig, folder: RunFolder, dataset: PreparedDataset) -> TrainResult:
    """The model of the run folder; it must match the section ``model`` and this dataset.

    Parameters
    ----------
    model : ModelConfig
        The section ``model`` that it must have been trained with.
    folder : RunFolder
        The run folder.
    dataset : PreparedDataset
        The dataset that it must have been trained on.

    Raises
    ------
    ArtifactError
        There is no model, it is damaged, or it was trained with another ``model`` section or on
        other data.
    """
    result = load_trained(folder.model)
    trained_on = folder.read_json(folder.model / ORIGIN, "run `recsys train` again").get("hash")
    if trained_on != dataset.manifest.content_hash:
        raise ArtifactError(
            f"the model in {folder.model} was trained on dataset {str(trained_on)[:12]}, but"
            f" {dataset.root} is now {dataset.manifest.content_hash[:12]}; run `recsys train`"
            " again, or set data.dir to the other dataset"
        )
    different = first_difference(result.frozen.config, model)
    if different:
        raise ArtifactError(
            f"the model in {folder.model} was trained with another model section: {different}; run"
            " `recsys train` again, or give the configuration that it was trained with"
        )
    return result


def model_sha256(folder: RunFolder) -> str:
    """SHA-256 of the run folder's model; its metrics and its bundle store it."""
    with (folder.model / "model.safetensors").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def first_difference(trained: ModelConfig, wanted: ModelConfig) -> str:
    """The first key in which two ``model`` sections differ, with both values; empty if there is
    none.

    Keys that the training chose among candidates do not count.
    """
    wanted = narrowed(wanted, trained)
    before, after = (
        flatten(section.model_dump(mode="json"), "model.") for section in (trained, wanted)
    )
    for key, value in before.items():
        if after.get(key) != value:
            return f"{key} was {value!r}, is now {after.get(key)!r}"
    return ""
