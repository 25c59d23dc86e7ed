"""Checkpoints of a running training, and the folder of a trained model; tensors only, no pickle.

A checkpoint folder holds ``model.safetensors``, ``best.safetensors``, ``optimizer.safetensors``,
``progress.json`` and ``checksums.json``; with sharded rows also a file of each worker, see
:mod:`recsys.training.sharded_checkpoint`. The folder of a trained model holds ``model.safetensors``
(frozen), ``weights.safetensors`` (trainable, for a warm start), ``trained.json`` and, after a
refit, ``selected.safetensors``: the weights that were selected before the refit. They have not seen
the validation events, so they may be evaluated on them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from recsys.config import ModelConfig
from recsys.config.outside import reading_artifact
from recsys.errors import ArtifactError
from recsys.model import FrozenModel, dump_sizes, load_sizes
from recsys.storage.beside import atomic_write
from recsys.storage.filesystems import storage_errors
from recsys.training.context import Report
from recsys.training.sharded_checkpoint import OwnRows, with_rows

SELECTED: Final = "selected.safetensors"
_CHECKSUMS: Final = "checksums.json"


@dataclass
class Progress:
    """How far a training is.

    ``best_epoch`` is 1-based. It is 0 before the first validation, and if the unchanged warm start
    is the best.
    """

    phase: str = "select"  # select | refit | join | final | final_join
    epoch: int = 0  # finished epochs of the phase
    step: int = 0  # finished steps of the current epoch
    loss_sum: float = 0.0  # of those steps, over all workers
    loss_weight: float = 0.0
    # of the worker that wrote it: another number rounds differently; 0 in earlier checkpoints
    threads: int = 0
    best_epoch: int = 0
    best_value: float = float("-inf")
    history: list[Report] = field(default_factory=list)
    # made on validation, with the figures behind them
    choices: Report = field(default_factory=dict)


@dataclass(frozen=True)
class TrainResult:
    """A trained model and how it was trained."""

    frozen: FrozenModel
    weights: dict[str, Tensor]  # the trainable model's state, for a warm start
    history: list[Report]
    best_epoch: int
    refit: bool
    seconds: float
    choices: Report = field(default_factory=dict)  # as in Progress
    selected: dict[str, Tensor] | None = (
        None  # the state before the refit: it has not seen validation events
    )


def save_checkpoint(
    folder: Path,
    model: dict[str, Tensor],
    best: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    own: OwnRows | None = None,
) -> None:
    """Write everything that a resumed run needs.

    With sharded rows, every worker calls it and writes its own ones.

    Parameters
    ----------
    folder : Path
        Folder of the checkpoint; created if it does not exist.
    model : dict[str, Tensor]
        Newest weights by name.
    best : dict[str, Tensor]
        Best weights so far by name.
    optimizer : torch.optim.Optimizer
        The optimiser, whose moments are written.
    progress : Progress
        Phase, epoch, step and best value.
    own : OwnRows or None
        The sharded rows of this worker; None: nothing is sharded.

    Raises
    ------
    StorageError
        The disk is full.
    """
    moments = {
        f"{index}.{name}": value
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }
    files = {"model": model, "best": best, "optimizer": moments}
    values = {**asdict(progress), "threads": torch.get_num_threads()}
    if progress.best_value == float("-inf"):
        values.pop("best_value")  # JSON has no -inf
    with storage_errors(str(folder), "write to"):
        folder.mkdir(parents=True, exist_ok=True)
        digests = dict[str, str]()
        if own is not None:
            files = own.save(folder, files)
            digests = own.from_all({path.name: _sha256(path) for path in folder.iterdir()})
            if not own.is_first:
                return
        for name, tensors in files.items():
            save_file(_plain(tensors), folder / f"{name}.safetensors")
        (folder / "progress.json").write_text(json.dumps(values))
        # last: it covers all other files, so a killed writer leaves a checkpoint that is refused
        (folder / _CHECKSUMS).write_text(
            json.dumps(digests | {path.name: _sha256(path) for path in sorted(folder.iterdir())})
        )


def check_checkpoint(folder: Path) -> None:
    """Refuse a checkpoint whose files are not as they were written.

    Raises
    ------
    ArtifactError
        A file is missing or does not match its checksum.
    """
    try:
        expected = json.loads((folder / _CHECKSUMS).read_text())
        wrong = next(
            (name for name, digest in expected.items() if _sha256(folder / name) != digest), None
        )
    except (OSError, ValueError, AttributeError) as error:
        raise ArtifactError(f"checkpoint {folder} is damaged ({error})") from None
    if wrong is not None:
        raise ArtifactError(f"checkpoint {folder} is damaged ({wrong} is not what was written)")


def load_progress(folder: Path) -> Progress:
    """Load the progress of a checkpoint, without its tensors.

    Raises
    ------
    ArtifactError
        It is missing or damaged.
    """
    with _damaged(folder):
        return Progress(**json.loads((folder / "progress.json").read_text()))


@contextmanager
def _damaged(folder: Path) -> Iterator[None]:
    """Raise :class:`~recsys.errors.ArtifactError` for a checkpoint that cannot be read."""
    try:
        yield
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise ArtifactError(
            f"checkpoint {folder} is damaged ({error}); delete it to start from an earlier one"
        ) from None


def load_checkpoint(
    folder: Path, optimizer: torch.optim.Optimizer | None, own: OwnRows | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor], Progress]:
    """Load the model state, the best state and the progress; set the moments of the optimizer in
    place.

    Parameters
    ----------
    folder : Path
        Folder of the checkpoint.
    optimizer : Optimizer | None
        Gets its moments; None: they are not read.
    own : OwnRows | None
        The sharded rows to load; None: all.

    Raises
    ------
    ArtifactError
        A file is missing or damaged.
    """
    progress = load_progress(folder)
    with _damaged(folder):
        names = ["model", "best"] + ["optimizer"] * (optimizer is not None)
        files = {name: load_file(folder / f"{name}.safetensors") for name in names}
        files = with_rows(folder, files, own)
        if optimizer is not None:
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in files["optimizer"].items():
                index, name = key.split(".", 1)
                state.setdefault(int(index), {})[name] = value
            optimizer.load_state_dict(
                # learning rates come from the schedule and the configuration, not from the
                # checkpoint
                {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
            )
    return files["model"], files["best"], progress


def save_trained(folder: Path, result: TrainResult) -> None:
    """Write a trained model; the folder appears whole or not at all (``trained.json`` comes last).

    Raises
    ------
    StorageError
        The disk is full.
    """
    with storage_errors(str(folder), "write to"):
        folder.mkdir(parents=True, exist_ok=True)
        # first: it marks a complete folder, and the old one must not vouch for new tensors
        (folder / "trained.json").unlink(missing_ok=True)
        save_file(_plain(result.frozen.tensors(copied=False)), folder / "model.safetensors")
        save_file(_plain(result.weights), folder / "weights.safetensors")
        # an earlier training may have had a refit, and this one has none
        (folder / SELECTED).unlink(missing_ok=True)
        if result.selected is not None:
            save_file(_plain(result.selected), folder / SELECTED)
        with atomic_write(folder / "trained.json") as aside:
            aside.write_text(json.dumps(_described(folder, result), indent=1), encoding="utf-8")


def _described(folder: Path, result: TrainResult) -> dict[str, Any]:
    """The content of ``trained.json``: the result, and the checksums of the other files."""
    return {
        "model": result.frozen.config.model_dump(mode="json"),
        "sizes": dump_sizes(result.frozen.sizes),
        "history": result.history,
        "best_epoch": result.best_epoch,
        "refit": result.refit,
        "seconds": result.seconds,
        "choices": result.choices,
        "sha256": {path.name: _sha256(path) for path in sorted(folder.glob("*.safetensors"))},
    }


def load_trained(folder: Path) -> TrainResult:
    """Read what :func:`save_trained` wrote.

    Raises
    ------
    ArtifactError
        There is no trained model, or it is damaged.
    """  # noqa: DOC501
    if not (folder / "trained.json").is_file():
        raise ArtifactError(
            f"{folder} holds no trained model; run `recsys train` with the same configuration first"
        )
    try:
        description = json.loads((folder / "trained.json").read_text())
        for name, digest in description.get("sha256", {}).items():
            if _sha256(folder / name) != digest:
                raise ValueError(f"{name} is not what was written")
        with reading_artifact():
            config, sizes = ModelConfig(**description["model"]), load_sizes(description["sizes"])
        frozen = FrozenModel.from_tensors(config, sizes, load_file(folder / "model.safetensors"))
        weights = load_file(folder / "weights.safetensors")
        selected = load_file(folder / SELECTED) if (folder / SELECTED).is_file() else None
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ArtifactError(
            f"the model in {folder} is damaged ({error}); run `recsys train` again"
        ) from None
    values = {name: description[name] for name in ("history", "best_epoch", "refit", "seconds")}
    return TrainResult(
        frozen, weights, **values, choices=description.get("choices", {}), selected=selected
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that safetensors can write: copies of those that share memory with others, which it
    refuses. The others are not copied, as they may be as large as the memory.
    """
    found, known = dict[str, Tensor](), set[int]()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        memory = tensor.untyped_storage()
        is_own = memory.nbytes() == tensor.nbytes and memory.data_ptr() not in known
        known.add(memory.data_ptr())
        found[name] = tensor if is_own else tensor.clone()
    return found
