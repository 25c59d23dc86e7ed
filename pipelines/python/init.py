"""A configuration for the user's files: ``recsys init`` from Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipelines.init import write_draft
from recsys.config import Config
from recsys.inspect.look import look


def init(files: str | Path | Sequence[str | Path], *, out: str | Path | None = None) -> Config:
    """Inspect files and propose a configuration for them.

    Parameters
    ----------
    files : path or sequence of paths
        Files, folders or globs; local or remote.
    out : path, optional
        File for the configuration as YAML, with comments that give the reasons; an existing file is
        replaced.

    Returns
    -------
    Config
        For ``recsys.Dataset.from_config`` and ``recsys run``; the training chooses the model.

    Raises
    ------
    SourceError
        No file can be read, or none holds events.
    ConfigError
        ``out`` cannot be written.
    """
    named = [files] if isinstance(files, str | Path) else files
    found = look([str(file) for file in named])
    if out is not None:
        write_draft(Path(out).expanduser(), found.draft.text())
    return found.config
