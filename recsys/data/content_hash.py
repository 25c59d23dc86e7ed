"""The identity of a prepared dataset: equal hash, equal dataset, so a second ``prepare`` has nothing to do."""

from __future__ import annotations

import hashlib
import json
from typing import Final

from recsys.config import Config
from recsys.data.dataset import SCHEMA_VERSION
from recsys.data.text_cache import namespace_of

_NO_EFFECT: Final = ("cache_dir", "num_actors", "batch_size", "allow_download")  # on what is written


def content_hash(config: Config, fingerprint: str) -> str:
    """Hash of the source's fingerprint (files and their configuration), the ``data`` section and the schema version.

    The place of the dataset and settings that change only how fast it is made are left out; the seed counts where
    the split draws by it, and the language model by its files.

    Raises:
        ConfigError: text is on and the language model cannot be found.
    """
    data = config.data.model_dump(mode="json", exclude={"dir", "source"})
    text = data["text"]
    data["text"] = {key: value for key, value in text.items() if key not in _NO_EFFECT} if text["enabled"] else None
    data["text_events"] = (text["event_column"], text["event_types"])
    parts = {
        "schema_version": SCHEMA_VERSION,
        "source": fingerprint,
        "data": data,
        "seed": config.seed if config.data.split.kind in ("given", "ratio") else None,
        "model": namespace_of(config.data.text) if text["enabled"] else None,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
