"""The manifest of a prepared dataset."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Final

SCHEMA_VERSION: Final = 2


@dataclass
class Manifest:
    """What a prepared dataset is: everything a later stage must know without reading a shard."""

    content_hash: str  # of inputs and the ``data`` configuration: equal hash, equal dataset
    name: str
    # users, items, events, train, valid, test, social_edges, items_with_text, repeats …
    counts: dict[str, int]
    event_types: list[str]  # position = type id
    ordered: bool  # False: histories are sets
    timed: bool  # every interaction has a timestamp
    split: dict[str, Any]  # kind and cut-offs
    quarantined: dict[str, dict[str, int]]  # table → reason → rows
    read: dict[str, int]  # table → rows read, good and bad
    shards: list[str]
    # model, dimension (of all groups together), fields, groups, encoded, cached, users
    text: dict[str, Any]
    timing: dict[str, float]
    notes: list[str] = field(default_factory=list)  # for the user, e.g. dropped tag rows
    schema_version: int = SCHEMA_VERSION
    # name → dimension, items, and where it is from
    media: dict[str, dict[str, Any]] = field(default_factory=dict)
    # names of the context columns, in the order of context_EC
    context: list[str] = field(default_factory=list)
    # table → reason → harmless rows left out
    dropped: dict[str, dict[str, int]] = field(default_factory=dict)
    targets: list[str] = field(default_factory=list)  # event types that are predicted; empty: all
    # of the ``data`` section only; a later stage can compare it without the source
    settings_hash: str = ""
    # see recsys.preparation.forget; empty: none
    forgotten: dict[str, Any] = field(default_factory=dict)
    # where the key of user ids is, and its check value
    pseudonyms: dict[str, str] = field(default_factory=dict)
    # input of settings_hash, to name differences
    settings: dict[str, Any] = field(default_factory=dict)
    # for an append: see recsys.preparation.event_store
    store: dict[str, Any] = field(default_factory=dict)
    # shard → files with newer rows of some users
    renewed: dict[str, list[str]] = field(default_factory=dict)
    inherited_context: bool = False  # context columns are coded as in the earlier dataset
    # content hashes of the datasets that this one continues
    ancestors: list[str] = field(default_factory=list)

    @property
    def has_free_ties(self) -> bool:
        """Whether the order of a user's events with the same time has no meaning: not where
        ``data.order`` is ``file``.
        """
        return self.ordered and self.settings.get("data", {}).get("order") != "file"

    def dump(self) -> str:
        """The content of ``manifest.json``."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)

    @staticmethod
    def parse(text: str) -> Manifest:
        """Read the result of :meth:`dump`."""
        manifest = Manifest(**json.loads(text))
        if "facts" in manifest.counts:  # their name in datasets of earlier releases
            manifest.counts["triples"] = manifest.counts.pop("facts")
        return manifest
