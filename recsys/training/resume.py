"""Find the checkpoint from which an interrupted training resumes, when its driver is gone as well.

Why not Ray Train's own resumption by the name of a run: it returns the result of a finished run as
that of the new one. It does not know the configuration and data behind a name. It has only the
newest checkpoint, which may be the damaged one.

Here the name of a run contains the digest of everything that decides its result. Checkpoints are
tried from the newest to the oldest.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable
from pathlib import Path

from pyarrow import fs

from recsys.config import Config
from recsys.data.dataset import PreparedDataset
from recsys.errors import ArtifactError
from recsys.storage.filesystems import filesystem_of
from recsys.storage.uris import within
from recsys.training.checkpoint import check_checkpoint
from recsys.training.final import Final
from recsys.training.fresh_model import Start

# keys of train that a resumption may change
FREE = {"num_workers", "shard_rows", "use_gpu", "threads", "max_failures", "final"}


def training_digest(
    config: Config, dataset: PreparedDataset, start: Start | None, final: Final | None = None
) -> str:
    """Twelve hex digits over everything that decides the result of a training.

    This is seed, model, training, validation, data and start, and, for a training on all events,
    what the evaluated training chose.

    Parameters
    ----------
    config : Config
        The whole configuration; the keys of ``train`` in :data:`FREE` do not count.
    dataset : PreparedDataset
        The dataset; the hash of its content counts.
    start : Start or None
        Where a warm start begins.
    final : Final or None
        For a training on all events.
    """
    decisive = {
        "seed": config.seed,
        "model": config.model.model_dump(mode="json"),
        "train": config.train.model_dump(mode="json", exclude=FREE),
        "exclude_seen": config.evaluate.exclude_seen,
        "max_users": config.evaluate.max_users,
        "data": dataset.manifest.content_hash,
        **({"final": final.decisive()} if final is not None else {}),
    }
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode())
    weights = (start.weights if start else {}) | (
        final.decisive_weights() if final is not None else {}
    )
    # sorted, because the order of a dictionary is not part of the training
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def run_name(digest: str) -> str:
    """A unique name for Ray Train, which would return the result of a finished run of the same
    name.
    """
    return f"train-{digest}-{uuid.uuid4().hex[:8]}"


def find_checkpoints(storage: str, name: str) -> list[str]:
    """The checkpoints of the run ``train-DIGEST-…``, or of all runs ``train-DIGEST``; the newest
    first.
    """
    system, root = filesystem_of(storage)
    runs = [run for run in _folders(system, root) if f"{run.base_name}-".startswith(f"{name}-")]
    found = [
        one
        for run in runs
        for one in _folders(system, run.path)
        if one.base_name.startswith("checkpoint_")
    ]
    found.sort(key=lambda one: one.base_name, reverse=True)  # names begin with the time
    return [within(storage, one.path[len(root) :].lstrip("/")) for one in found]


def forget_trainings(storage: str, keep: str = "") -> None:
    """Remove what trainings have left under ``storage``, except for the run named ``keep``."""
    system, root = filesystem_of(storage)
    for run in _folders(system, root):
        if run.base_name.startswith("train-") and run.base_name != keep:
            system.delete_dir(run.path)


def first_sound(
    checkpoints: list[str], inside: str, parent: Path, note: Callable[[str], None]
) -> Path | None:
    """Copy the newest checkpoint that is not damaged to a folder in ``parent``; None if there is
    none.

    Parameters
    ----------
    checkpoints : list[str]
        Places of the checkpoints, the newest first.
    inside : str
        The folder of the checkpoint within each place.
    parent : Path
        An existing local folder.
    note : Callable[[str], None]
        Gets a line for each damaged checkpoint, and for the one that is used.
    """
    for number, uri in enumerate(checkpoints):
        system, path = filesystem_of(uri)
        if system.get_file_info(f"{path}/{inside}").type != fs.FileType.Directory:
            continue
        folder = parent / f"{number}" / inside
        folder.mkdir(parents=True)
        fs.copy_files(f"{path}/{inside}", str(folder), source_filesystem=system)
        try:
            check_checkpoint(folder)
        except ArtifactError as error:
            note(f"{uri}: {error}; trying the one before it")
            continue
        note(f"resuming from {uri}")
        return folder
    return None


def _folders(system: fs.FileSystem, root: str) -> list[fs.FileInfo]:
    inside = system.get_file_info(fs.FileSelector(root, allow_not_found=True))
    return [info for info in inside if info.type == fs.FileType.Directory]
