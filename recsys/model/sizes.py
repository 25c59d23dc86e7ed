"""The sizes of a model as JSON, beside its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from recsys.granularities.base import ModelSizes

# keys of sizes that bundles of earlier versions have instead of ``inputs`` → their signals
_EARLIER: Final = {
    "profile": "profile",
    "num_entities": "",
    "num_relations": "",
    "num_strata": "stratum",
    "user_text_width": "user_text",
    "media": "media",
}


def dump_sizes(sizes: ModelSizes) -> dict[str, Any]:
    """Return the sizes as plain values for JSON."""
    return asdict(sizes)


def load_sizes(content: Mapping[str, Any]) -> ModelSizes:
    """Invert :func:`dump_sizes`.

    Raises
    ------
    TypeError, KeyError
        The content does not come from :func:`dump_sizes`.
    """
    plain = {key: value for key, value in content.items() if key not in _EARLIER}
    earlier = {
        signal: content[key] for key, signal in _EARLIER.items() if signal and content.get(key)
    }
    if content.get("num_relations"):
        earlier["knowledge"] = {
            "entities": content["num_entities"],
            "relations": content["num_relations"],
        }
    return ModelSizes(**{**plain, "inputs": {**earlier, **content.get("inputs", {})}})
