"""The tags of an MLflow run about its origin: user, program and git commit."""

from __future__ import annotations

import getpass
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

UNKNOWN: Final = "unknown"
COMMIT_TAG: Final = "mlflow.source.git.commit"
CHANGED_TAG: Final = "git.changed"
PROCESS_TAG: Final = "multigrain.process"  # of the command, to find out whether it was killed
PARENT_TAG: Final = "mlflow.parentRunId"
_HERE: Final = Path(__file__).parent


def origin_tags(commit: str, is_changed: bool) -> dict[str, str]:
    """Tags that MLflow's pages show; command-line options are left out, because they may hold
    secrets.
    """
    tags = {"mlflow.source.name": Path(sys.argv[0] or "python").name, "mlflow.source.type": "LOCAL"}
    with suppress(KeyError, OSError):  # in a container the user may have no name
        tags["mlflow.user"] = getpass.getuser()
    if commit != UNKNOWN:
        tags |= {COMMIT_TAG: commit, CHANGED_TAG: str(is_changed).lower()}
    if "site-packages" not in _HERE.parts and (own := working_commit(_HERE)[0]) != UNKNOWN:
        tags["multigrain.commit"] = own
    return tags


def working_commit(folder: Path) -> tuple[str, bool]:
    """The git commit of a folder, and whether files have uncommitted changes; "unknown" outside a
    repository.

    Why the working directory: it is the user's project, whose configuration and sources produced
    the model. Where this package runs from its own repository, the tag ``multigrain.commit`` of the
    run has the commit of the package.
    """

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=30
        )
        if done.returncode:
            raise OSError(done.stderr)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain"))
    except (OSError, subprocess.SubprocessError):
        return UNKNOWN, False
