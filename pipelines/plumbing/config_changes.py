"""What changed in the configuration of a run folder since the last command."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from recsys.config import Config, parse_yaml
from recsys.errors import ConfigError

# config.yaml itself, if it is unreadable
_SHAPING: Final = ("seed", "data", "model", "train", "evaluate", "config")
_ELSEWHERE: Final = ("data.dir", "train.threads", "train.num_workers")


def changes_since(path: Path, config: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted key → (before, after) of the relevant differences from an earlier ``config.yaml``."""
    try:
        before = _flat(parse_yaml(path.read_bytes(), str(path)))
    except FileNotFoundError:
        return {}
    except (OSError, ConfigError):
        return {"config.yaml": ("unreadable", "replaced")}
    after = _flat(config.model_dump(mode="json"))
    keys = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    return {key: (before.get(key), after.get(key)) for key in keys}


def shapes_results(key: str) -> bool:
    """Whether a key changes the dataset, the model or its metrics, and not only paths or speed.

    >>> [shapes_results(key) for key in ("train.lr", "seed")]
    [True, True]
    >>> [shapes_results(key) for key in ("run.budget", "train.threads", "recommend.k")]
    [False, False, False]
    """
    return key.split(".")[0] in _SHAPING and key not in _ELSEWHERE


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted keys.

    >>> _flat({"a": {"b": 1}, "c": [2]})
    {'a.b': 1, 'c': [2]}
    """
    if not isinstance(node, dict) or not node:
        return {prefix: node} if prefix else {}
    flat: dict[str, Any] = {}
    for key, child in node.items():
        flat |= _flat(child, f"{prefix}.{key}" if prefix else str(key))
    return flat
