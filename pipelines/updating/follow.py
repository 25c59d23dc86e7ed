"""``recsys update --update.follow 10s``: updates without end, for files that keep arriving.

A thread prepares newer files (:mod:`pipelines.updating.arrivals`) while a training goes on. Each
round is an update in a run folder of its own, ``RUN/round-0001``, on the newest dataset.
"""

from __future__ import annotations

import json
import time
from typing import Any, Final

from pipelines.plumbing.run_folder import RunFolder, open_run
from pipelines.plumbing.session import ray_session
from pipelines.promote import promote
from pipelines.update import parent_uri, update_all
from pipelines.updating.arrivals import Arrivals, Arrived
from pipelines.updating.newer_events import dataset_of
from recsys.config import Config, UpdateConfig
from recsys.config.values import seconds_of
from recsys.data.dataset import PreparedDataset
from recsys.errors import ConfigError, DataError, Refusal
from recsys.registry.mlflow_client import tracking_uri
from recsys.registry.parent import open_parent
from recsys.registry.resolve import pinned
from recsys.storage.beside import append_whole

ROUNDS: Final = "rounds.jsonl"
BEGUN: Final = "begun.json"  # the newest round: --resume continues it if it has no line yet


def follow(config: Config, folder: RunFolder) -> None:
    """Update again and again with what has arrived, until ``update.idle`` or an interruption.

    ``RUN/rounds.jsonl`` gets a line for each round: its version, events, and the seconds from the
    first file to the end of the round. ``--resume`` continues the round after its last line, on
    the same dataset and from the same model.

    Raises
    ------
    ConfigError
        The model's dataset keeps no events, or the run folder has rounds without ``--resume``.
    """
    rounds = _rounds_of(folder)
    parent = parent_uri(config.update, config.registry)
    if config.run.resume and rounds:
        parent = parent if config.update.promote else rounds[-1]["model"]
    elif rounds:
        raise ConfigError(
            f"{folder.root} has {len(rounds)} rounds of an earlier command; continue them with"
            " --resume, or choose another --run.dir"
        )
    with ray_session(config.train, config.ray):
        tracking = tracking_uri(config.tracking, config.run.dir)
        begun = _begun(folder, len(rounds) + 1) if config.run.resume else None
        earlier = begun.dataset if begun else _dataset(config.update, parent, tracking, rounds)
        folder.progress(
            f"looking for newer files of {', '.join(config.update.events)} every"
            f" {config.update.follow}, to add to the {earlier.manifest.counts['events']:,} events"
            f" of {earlier.root}"
        )
        arrivals = Arrivals(config, folder, earlier)
        untrained: Arrived | None = None
        with arrivals.watching():
            while arrived := begun or arrivals.next(seconds_of(config.update.idle)):
                resumes, begun = begun is not None, None
                arrived = arrived.with_earlier(untrained)
                try:
                    parent = _round(config, folder, arrived, parent, len(rounds) + 1, resumes)
                except DataError as error:  # such as too few newer events to validate on
                    folder.progress(f"no update yet, waiting for the next file: {error}")
                    untrained = arrived
                else:
                    rounds, untrained = _rounds_of(folder), None
    folder.progress(f"no newer file for {config.update.idle}; {len(rounds)} rounds are done")


def _dataset(
    update: UpdateConfig, parent: str, tracking: str, rounds: list[dict[str, str]]
) -> PreparedDataset:
    """The dataset of the last round, or that of the model."""
    if rounds:
        return PreparedDataset(rounds[-1]["dataset"])
    model = open_parent(parent, tracking)
    found, why = dataset_of(model, update, "")
    if found is None:
        raise ConfigError(
            f"update.follow: the dataset of {model.uri}, to which newer events are added, was not"
            f" found: {why}; set update.dataset to its path"
        )
    return found


def _round(
    config: Config, folder: RunFolder, arrived: Arrived, parent: str, number: int, resumes: bool
) -> str:
    """One update; returns the model that the next one starts from."""
    dataset, name = arrived.dataset, f"round-{number:04d}"
    if resumes:
        start = _begun_json(folder)["model"]
        folder.progress(f"round {number} was interrupted; it continues from {start}")
    else:
        start = parent
        if parent.startswith("models:"):  # an alias may move to the version of this round
            start = pinned(parent, tracking_uri(config.tracking, config.run.dir))
        begun = {
            "round": number,
            "model": start,
            "dataset": dataset.root,
            "files": arrived.num_files,
            "first_file_at": time.time() - (time.monotonic() - arrived.first_seen),
        }
        folder.write_json(folder.root / BEGUN, begun)
    settings = {"model": start, "events": [], "follow": "", "idle": "", "promote": False}
    own = config.model_copy(
        update={
            "run": config.run.model_copy(
                update={"dir": str(folder.root / name), "name": "", "resume": resumes}
            ),
            "data": config.data.model_copy(update={"dir": dataset.root}),
            "update": config.update.model_copy(update=settings),
        }
    )
    with open_run(own, "update") as inside:
        registered = update_all(own, inside, is_prepared=True)
        version = registered.get("version")
        model = f"models:/{registered['name']}/{version}" if version else str(inside.root)
        is_start = not config.update.promote or _is_promoted(own, inside, model)
    took = time.monotonic() - arrived.first_seen
    line = {
        "round": number,
        "model": model,
        "dataset": dataset.root,
        "events": dataset.manifest.counts["events"],
        "files": arrived.num_files,
        "seconds_after_first_file": round(took, 1),
    }
    append_whole(folder.root / ROUNDS, (json.dumps(line) + "\n").encode())
    folder.progress(
        f"round {number}: {model} has the events of {arrived.num_files} newer"
        f" file{'s' * (arrived.num_files != 1)}, {took:.1f} s after the first was seen"
    )
    return model if is_start else parent


def _is_promoted(config: Config, folder: RunFolder, model: str) -> bool:
    decided = config.promote.model_copy(update={"model": model})
    try:
        promote(config.model_copy(update={"promote": decided}), folder)
    except Refusal as refusal:  # recorded; the champion stays
        folder.progress(str(refusal))
        return False
    return True


def _rounds_of(folder: RunFolder) -> list[dict[str, str]]:
    path = folder.root / ROUNDS
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _begun(folder: RunFolder, number: int) -> Arrived | None:
    """What an interrupted command has begun to train on as the round of this number."""
    if not (folder.root / BEGUN).is_file():
        return None
    begun = _begun_json(folder)
    if begun["round"] != number:  # it has its line
        return None
    first_seen = time.monotonic() - (time.time() - begun["first_file_at"])
    return Arrived(PreparedDataset(begun["dataset"]), begun["files"], first_seen)


def _begun_json(folder: RunFolder) -> dict[str, Any]:
    return folder.read_json(folder.root / BEGUN, "delete it; the round then begins again")
