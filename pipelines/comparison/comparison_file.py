"""Write the record of a comparison."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipelines.plumbing.run_folder import write_atomically
from recsys.errors import ConfigError


def write_record(path: Path, record: dict[str, Any]) -> str:
    """Write a comparison to a file and return its path.

    Raises
    ------
    ConfigError
        The file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise ConfigError(
            f"compare.out: cannot write {path} ({error.strerror}); choose another file"
        ) from None
    return str(path)
