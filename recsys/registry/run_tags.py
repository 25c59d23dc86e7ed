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
_HERE: Final = Path(__file__).parent


def origin_tags(commit: str, is_changed: bool) -> dict[str, str]:
    """Tags that MLflow's own pages show; the options of the command line are left out, which may
    hold secrets.
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
    """Commit of the git repository that a folder is in, and whether files differ from it; unknown
    where there is none.

    Why of the working directory: it is the user's project, whose configurations and sources made
    the model. The commit of this package, where it runs from its own tree, is the run's tag
    ``multigrain.commit``.
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
