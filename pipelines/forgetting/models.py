"""Forgetting in a run folder: make models again or delete them, and remove rows from other
artefacts.

Part of the verb ``forget``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.plumbing.opened_model import ORIGIN, first_difference
from pipelines.plumbing.run_folder import RunFolder, write_atomically
from pipelines.steps.final import as_trained, final_plan
from recsys.bundle.checksums import writing_aside
from recsys.config import Config, ModelConfig
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Split
from recsys.data.renumber import Renumbering
from recsys.errors import ArtifactError
from recsys.storage.beside import atomic_write
from recsys.training.checkpoint import TrainResult, load_trained, save_trained
from recsys.training.forget import influence, without_users
from recsys.training.resume import training_digest

INFLUENCE: Final = "influence"  # key of RUN/model/origin.json, which `register` reads
# left by trainings; the verb that needs one makes it again
DERIVED: Final = ("checkpoints", "trials", "best", "fusion", "apart")
_EXPLANATION: Final = "explanation"  # column of recommendations, JSON text
_FRIEND: Final = '"user_id":'  # only friends have this key in an explanation
_LOGS: Final = ("run.log", "history.jsonl")


def check_model(
    model: ModelConfig, folder: RunFolder, dataset: str, hashes: Collection[str]
) -> None:
    """Check that RUN/model can be fitted again, before anything is removed.

    Parameters
    ----------
    model : ModelConfig
        The section ``model`` of the run.
    folder : RunFolder
        Folder of the run.
    dataset : str
        Folder of the dataset, for the message.
    hashes : Collection[str]
        Content hashes of the dataset, with and without the users.

    Raises
    ------
    ArtifactError
        The model was trained on another dataset or with another section ``model``.
    """
    origin = folder.read_json(folder.model / ORIGIN, "run `recsys train` again")
    if origin.get("hash") not in hashes:
        raise ArtifactError(
            f"{folder.model} was trained on another dataset than {dataset}, so it cannot be"
            " fitted again: use --retrain, or set --data.dir to its dataset"
        )
    if different := first_difference(load_trained(folder.model).frozen.config, model):
        raise ArtifactError(
            f"{folder.model} was trained with another model section: {different}; give the"
            " configuration that it was trained with, or --retrain"
        )


def make_models_again(
    config: Config, folder: RunFolder, dataset: PreparedDataset, numbering: Renumbering, before: str
) -> list[str]:
    """Make RUN/model and RUN/final again from the dataset without the users.

    Parameters
    ----------
    config : Config
        Configuration of the run.
    folder : RunFolder
        Folder of the run.
    dataset : PreparedDataset
        The dataset without the users.
    numbering : Renumbering
        From the earlier dense ids to the new ones.
    before : str
        Content hash of the dataset with the users.

    Returns
    -------
    list of str
        What still depends on the users.
    """
    origin = folder.read_json(folder.model / ORIGIN, "run `recsys train` again")
    trained = load_trained(folder.model)
    settings = as_trained(config, origin)
    left = influence(trained, settings.model)
    # otherwise an interrupted command has made it again already
    if origin["hash"] == before:
        through = Split.VALID if trained.refit else Split.TRAIN
        trained = without_users(settings, dataset, trained, numbering, through)
        origin |= {"hash": dataset.manifest.content_hash, INFLUENCE: left}
        _save(folder, folder.model, trained, origin)
    if (folder.final / ORIGIN).is_file():
        _make_final_again(settings, folder, dataset, numbering, trained, origin, before)
    return left


def _make_final_again(
    config: Config,
    folder: RunFolder,
    dataset: PreparedDataset,
    numbering: Renumbering,
    trained: TrainResult,
    origin: dict[str, Any],
    before: str,
) -> None:
    of_final = folder.read_json(folder.final / ORIGIN, "run `recsys register` again")
    # made again by an interrupted command, or of other data
    if of_final.get("hash") != before:
        return
    result = without_users(config, dataset, load_trained(folder.final), numbering, Split.TEST)
    final = final_plan(trained, origin, None)
    of_final |= {
        "hash": dataset.manifest.content_hash,
        "training": training_digest(config, dataset, None, final),
        "events": sum(len(shard.through(Split.TEST).items_E) for shard in dataset.shards()),
    }
    _save(folder, folder.final, result, of_final)


def _save(folder: RunFolder, target: Path, result: TrainResult, origin: dict[str, Any]) -> None:
    """Save in a temporary folder, then rename."""
    with writing_aside(target, "trained.json") as aside:
        save_trained(aside, result)
        (aside / ORIGIN).write_text(
            json.dumps(origin, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    folder.publish(target)


def remove_derived(folder: RunFolder) -> list[str]:
    """Remove what trainings left next to the model; return the names."""
    found = [name for name in DERIVED if (folder.root / name).exists()]
    for name in found:
        folder.forget(folder.root / name)
    return found


def forget_recommendations(path: Path, users: Sequence[str]) -> int:
    """Remove the rows of users from the recommendations, and explanations of other rows that name
    them as friends; return the number of removed rows.
    """
    if not path.is_file():
        return 0
    table = pq.read_table(path)
    kept = table.filter(
        pc.invert(pc.is_in(table.column("user_id"), value_set=pa.array(list(users), pa.string())))
    )
    names_them_N = _explained_with(kept, frozenset(users))
    if any(names_them_N):
        place = kept.column_names.index(_EXPLANATION)
        # the whole explanation, because its effects and its sentence are of all friends together
        rest = pc.if_else(pa.array(names_them_N), None, kept.column(place))
        kept = kept.set_column(place, kept.schema.field(place), rest)
    if kept.num_rows < table.num_rows or any(names_them_N):
        with atomic_write(path) as aside:
            pq.write_table(kept, aside, compression="zstd")
    return int(table.num_rows - kept.num_rows)


def _explained_with(rows: pa.Table, users: frozenset[str]) -> list[bool]:
    """Whether the explanation of each row names one of the users as a friend."""
    if _EXPLANATION not in rows.column_names:
        return []
    return [
        # most have no friends, and reading JSON is slow
        text is not None
        and _FRIEND in text
        and any(friend.get("user_id") in users for friend in json.loads(text)["friends"])
        for text in rows.column(_EXPLANATION).to_pylist()
    ]


def forget_lines(root: Path, mentions: Callable[[str], bool]) -> int:
    """Remove the lines that name a user from the logs of a run folder; return their number."""
    removed = 0
    for name in _LOGS:
        path = root / name
        if path.is_file():
            # only at line breaks: an id may hold other line separators of Unicode
            with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
                lines = list(file)
            kept = [line for line in lines if not mentions(line)]
            if len(kept) < len(lines):
                removed += len(lines) - len(kept)
                write_atomically(path, "".join(kept))
    return removed
