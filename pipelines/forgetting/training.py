"""Train again without the users, from the newest ancestor that never saw them, or from scratch.

Part of the verb ``forget``.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.plumbing.opened_model import ORIGIN
from pipelines.plumbing.run_folder import RunFolder
from pipelines.train import train
from pipelines.update import check_settings, shortened
from pipelines.updating.start_weights import descent_of, held_weights
from recsys.config import Config, ModelConfig, TrackingConfig
from recsys.data.dataset import PreparedDataset
from recsys.errors import UserError
from recsys.registry.mlflow_client import tracking_uri
from recsys.registry.parent import Parent, open_parent


def train_again(
    config: Config, folder: RunFolder, dataset: PreparedDataset, users: pa.Array
) -> str:
    """Train on the dataset without the users; return the start of the training, for the proof.

    Parameters
    ----------
    config : Config
        Configuration of the run.
    folder : RunFolder
        Folder of the run; its checkpoints are removed.
    dataset : PreparedDataset
        The dataset without the users.
    users : pa.Array
        External ids of the users.

    Returns
    -------
    str
        ``anew``, or ``from`` and the URI of the ancestor.
    """
    parent = clean_ancestor(config.model, config.tracking, config.run.dir, folder, users)
    # they were trained on the users, so a training must not continue from them
    folder.forget(folder.checkpoints)
    if parent is None:
        folder.progress("training from scratch: no earlier model without these users exists")
        train(config, folder)
        return "anew"
    folder.progress(f"training from {parent.uri}, which never saw these users")
    short = shortened(config)
    train(short, folder, descent_of(short, folder, parent, held_weights(parent)))
    return f"from {parent.uri}"


def clean_ancestor(
    model: ModelConfig, tracking: TrackingConfig, run_dir: str, folder: RunFolder, users: pa.Array
) -> Parent | None:
    """The newest ancestor that never saw the users and can be updated, or None.

    Parameters
    ----------
    model : ModelConfig
        The section ``model`` that an ancestor must have.
    tracking : TrackingConfig
        The tracking URI.
    run_dir : str
        The run folder (``run.dir``).
    folder : RunFolder
        Folder of the run; its model names its parent.
    users : pa.Array
        External ids of the users.

    Returns
    -------
    Parent | None
        The ancestor; None if there is none, or if one on the way to it cannot be read or has
        another ``model`` section.

    Raises
    ------
    ArtifactError
        The run folder has no trained model.
    """
    parent_info: dict[str, Any] = (
        folder.read_json(folder.model / ORIGIN, "run `recsys train` again").get("parent") or {}
    )
    while parent_info:
        try:
            parent = open_parent(str(parent_info["uri"]), tracking_uri(tracking, run_dir))
            check_settings(parent, model)
        except UserError as error:
            folder.progress(f"no training from {parent_info['uri']}: {error}")
            return None
        known = pc.any(
            pc.is_in(pa.array(parent.bundle.user_ids, pa.string()), value_set=users)
        ).as_py()
        if not known:
            return parent
        parent_info = dict(parent.bundle.info.extra.get("parent") or {})
    return None
