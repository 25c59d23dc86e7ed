"""The lineage of a model: git commit of the working directory, digest of the configuration, MLflow
run.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final

from recsys import __version__
from recsys.config import Config, redact
from recsys.registry.run_tags import working_commit
from recsys.registry.tracking import Tracker

_TRAINING: Final = ("seed", "data", "model", "train", "evaluate")  # sections that determine a model


def lineage(config: Config, dataset: str, tracker: Tracker) -> dict[str, Any]:
    """The origin of a model as plain values, for the bundle, the tags of the version and the card.

    Parameters
    ----------
    config : Config
        Configuration of the run.
    dataset : str
        Content hash of the dataset that the model was fitted on.
    tracker : Tracker
        The MLflow run.
    """
    # the same as in the tags of the run
    commit, changed = tracker.commit or working_commit(Path.cwd())
    return {
        "run_id": tracker.run_id,
        "tracking": redact(tracker.uri),
        "dataset": dataset,
        "config": config_digest(config),
        "git_commit": commit,
        "git_changed": changed,
        "release": __version__,
    }


def config_digest(config: Config) -> str:
    """SHA-256 of the sections that determine a model; not of those that say where it ran or was
    registered.
    """
    sections = config.model_dump(mode="json", include=set(_TRAINING))
    return hashlib.sha256(json.dumps(sections, sort_keys=True).encode()).hexdigest()
