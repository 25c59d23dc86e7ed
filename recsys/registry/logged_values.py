"""Values and names in the form that MLflow stores: nested numbers and settings by dotted path."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final

from recsys.config import Config

# always logged
_ALWAYS: Final = ("run.dir", "seed", "train.metric", "train.epochs", "train.lr", "train.batch_size")


def numbers(tree: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The finite numbers of a nested mapping by dotted path.

    >>> numbers({"model": {"ndcg@20": 0.5, "note": "x"}, "bad": float("nan")})
    {'model.ndcg@20': 0.5}
    """
    found: dict[str, float] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= numbers(value, f"{prefix}{key}.")
        elif (
            isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        ):
            found[f"{prefix}{key}"] = float(value)
    return found


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping by dotted path; lists stay whole.

    >>> flatten({"train": {"lr": 0.1, "loss": {"kind": "auto"}}, "seed": 1})
    {'train.lr': 0.1, 'train.loss.kind': 'auto', 'seed': 1}
    """
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            found |= flatten(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def set_parameters(config: Config) -> dict[str, Any]:
    """The settings that differ from their defaults, and a few that every comparison of runs needs.

    Why not all: the few settings in which two runs differ would be lost among hundreds. The whole
    configuration is the artefact ``config.yaml``.
    """
    every = flatten(config.model_dump(mode="json"))
    differing = flatten(config.model_dump(mode="json", exclude_defaults=True))
    named = {key: value for key, value in differing.items() if value != {}}
    return {**{key: every[key] for key in _ALWAYS if key in every}, **named}


def mlflow_name(key: str) -> str:
    """A key as a valid name in MLflow.

    >>> mlflow_name("model.ndcg@20")
    'model.ndcg_at_20'
    """
    return re.sub(r"[^\w\-./ ]", "_", key.replace("@", "_at_"))[:250]
