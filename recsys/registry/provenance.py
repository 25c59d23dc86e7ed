"""Where a model comes from: the commit of the working directory, the digest of its configuration, its MLflow run."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any, Final

from recsys import __version__
from recsys.config import Config, redact
from recsys.registry.tracking import Tracker

UNKNOWN: Final = "unknown"
_TRAINING: Final = ("seed", "data", "model", "train", "evaluate")  # sections that decide what a model is


def lineage(config: Config, dataset: str, tracker: Tracker) -> dict[str, Any]:
    """What a model says of its making: plain values for the bundle, the tags of the version and the card.

    ``dataset`` is the content hash of what it was fitted on.
    """
    commit, changed = working_commit(Path.cwd())
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
    """SHA-256 of the sections that decide what a model is: not of where it ran or was registered."""
    sections = config.model_dump(mode="json", include=set(_TRAINING))
    return hashlib.sha256(json.dumps(sections, sort_keys=True).encode()).hexdigest()


def working_commit(folder: Path) -> tuple[str, bool]:
    """Commit of the git repository that a folder is in, and whether files differ from it; unknown where there is none.

    Why of the working directory: it is the user's project, whose configurations and sources made the model; the
    commit of this package, where it runs from its own tree, is a tag of the MLflow run.
    """

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=30)
        if done.returncode:
            raise OSError(done.stderr)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain"))
    except (OSError, subprocess.SubprocessError):
        return UNKNOWN, False
