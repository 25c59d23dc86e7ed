"""The content hash of a prepared dataset: with an equal hash, ``prepare`` does nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from recsys.config import DataConfig
from recsys.config.sources import source_settings
from recsys.data.manifest import SCHEMA_VERSION
from recsys.encoders.images import image_model_identity
from recsys.encoders.text import text_model_identity
from recsys.storage.uris import one_spelling

_METHOD: Final = 3  # increase it when prepare gives another dataset for the same input
# keys that do not change what is written
_NO_EFFECT: Final = ("cache_dir", "num_actors", "batch_size", "allow_download")


def content_hash(data: DataConfig, seed: int, fingerprint: str, base: str = "") -> str:
    """Hash of the source's fingerprint (files and their configuration), the ``data`` section and
    the schema version.

    The hash leaves out the path of the dataset and settings that change only the speed. It includes
    the seed where the split uses it, the files of the language model, and ``base``, the digest of a
    continued vocabulary.

    Parameters
    ----------
    data : DataConfig
        The section ``data`` of the configuration.
    seed : int
        The seed of everything that is random.
    fingerprint : str
        Fingerprint of the source.
    base : str
        Digest of the vocabulary or content hash of the dataset that is continued; empty: none.

    Raises
    ------
    ConfigError
        The language model (if text is on) or the vision model (if there are images) is not
        available.
    """
    parts = {
        "schema_version": SCHEMA_VERSION,
        "method": _METHOD,
        "source": fingerprint,
        "data": _data(data),
        "seed": _seed(data, seed),
        "model": text_model_identity(data.text) if data.text.enabled else None,
        **({"base": base} if base else {}),
    }
    if data.media.images.column:
        parts["image_model"] = image_model_identity(data.media.images)
    return _hash(parts)


def settings_hash(data: DataConfig, seed: int) -> str:
    """Hash of :func:`settings_of`."""
    return _hash(settings_of(data, seed))


def settings_of(data: DataConfig, seed: int) -> dict[str, Any]:
    """The settings of a dataset that can be compared without the source and the language model.

    The limit on bad rows is left out: it decides whether there is a dataset, not its content. The
    paths of the source are left out as well.
    """
    kept = {key: value for key, value in _data(data).items() if key != "quarantine"}
    return {"data": kept | {"source": source_settings(data.source)}, "seed": _seed(data, seed)}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The keys in which two results of :func:`settings_of` differ, each with both values.

    >>> differences({"data": {"order": "time"}, "seed": 1}, {"data": {"order": "none"}, "seed": 1})
    ["data.order was 'time', is now 'none'"]
    """
    one, other = _flat(before), _flat(now)
    names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    return [f"{name} was {_shown(one, name)}, is now {_shown(other, name)}" for name in names]


def _shown(settings: Mapping[str, Any], name: str) -> str:
    return repr(settings[name]) if name in settings else "not set"


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted keys; tuples as lists, as JSON returns them."""
    if not isinstance(node, Mapping) or not node:
        return {prefix: list(node) if isinstance(node, tuple) else node}
    flat: dict[str, Any] = {}
    for key, child in node.items():
        flat |= _flat(child, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _data(section: DataConfig) -> dict[str, Any]:
    """The part of the ``data`` section that has an effect on the files, without the source."""
    out = {"dir", "source", "min_overlap", "keep_events", "forgotten", "pseudonymise"}
    data = section.model_dump(mode="json", exclude=out)
    if not data["split"]["cold_users"]:  # older datasets have no such keys
        data["split"] = {
            key: value for key, value in data["split"].items() if not key.startswith("cold_")
        }
    if not data["targets"]:
        del data["targets"]  # older datasets have no such key
    text = data["text"]
    text["model"] = one_spelling(text["model"])
    # absent where they are off: older datasets keep their hash
    for key in ("groups", "users", "finetune"):
        if not text[key] or not text[key].get("enabled", True):
            del text[key]
    if not text["html"]:
        del text["html"]
    if text["encoder"] == "transformer":
        del text["encoder"]
    data["text"] = (
        {key: value for key, value in text.items() if key not in _NO_EFFECT}
        if text["enabled"]
        else None
    )
    media = data.pop("media")  # absent when there is none: older datasets keep their hash
    images = {key: value for key, value in media["images"].items() if key not in _NO_EFFECT}
    if media["columns"] or images["column"]:
        places = {key: one_spelling(images[key]) for key in ("root", "model")}
        data["media"] = {
            "columns": media["columns"],
            "images": images | places if images["column"] else None,
        }
    data["text_events"] = [text["event_column"], text["event_types"]]
    return data


def _seed(data: DataConfig, seed: int) -> int | None:
    split = data.split
    drawn = split.kind in ("given", "ratio") or split.cold_users or data.text.finetune.enabled
    return seed if drawn else None


def _hash(parts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
