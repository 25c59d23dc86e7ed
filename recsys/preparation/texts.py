"""The texts of items and of users' histories as vectors, and what the manifest says about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from recsys.config import TextConfig
from recsys.data.text_rows import TextRules
from recsys.data.titles import item_titles
from recsys.encoders.adapter import Adapter
from recsys.encoders.text import position_note
from recsys.preparation.dataset_writer import Folder
from recsys.preparation.event_encoding import Coding
from recsys.preparation.finetune import finetune
from recsys.preparation.item_text import ItemText, write_vectors
from recsys.preparation.record import Progress
from recsys.preparation.user_text import write_user_texts


def write_texts(
    folder: Folder,
    text: ItemText,
    shards: Sequence[str],
    coding: Coding,
    options: TextConfig,
    seed: int,
    provenance: Sequence[str],
    progress: Progress,
) -> dict[str, Any]:
    """Write the vectors of item and user texts.

    Parameters
    ----------
    folder : Folder
        Folder of the dataset, which has its histories and item features.
    text : ItemText
        Texts of the items.
    shards : Sequence[str]
        Names of the history files.
    coding : Coding
        Event types and order.
    options : TextConfig
        The section ``data.text``.
    seed : int
        Seed of the fine-tuning.
    provenance : Sequence[str]
        Files with the rows of events that item text is made from.
    progress : Progress
        Gets one line per step.

    Returns
    -------
    dict[str, Any]
        Description of the texts for the manifest.
    """
    described = _fields(text, options, provenance)
    if not options.enabled or not text.num_items:
        progress(f"item text: {'off' if not options.enabled else 'no item has a text'}")
        return described
    progress(f"item text: {text.num_items:,} items, {text.describe()}")
    if note := position_note(options):
        progress(f"note: {note}")
    is_ordered = coding.order != "none"
    adapter: Adapter | None = None
    if options.finetune.enabled:
        texts = text.whole.to_pylist()
        adapter, described["finetune"] = finetune(
            folder, shards, texts, is_ordered, options, seed, progress
        )
    described |= write_vectors(folder, text, options, adapter)
    if options.users.enabled:
        rules = TextRules(coding.event_types, is_ordered, *options.users.how)
        titles = item_titles(folder.read_table("items/features.parquet"))
        described["users"] = write_user_texts(folder, shards, titles, rules, options, adapter)
        progress(f"user text: {described['users']['texts']:,} texts of users' histories")
    progress(
        f"text vectors: {described['encoded']:,} texts encoded, {described['cached']:,} from"
        " the cache"
    )
    return described


def _fields(text: ItemText, config: TextConfig, provenance: Sequence[str]) -> dict[str, Any]:
    """The description of the texts before any is encoded."""
    columns = [name for names in text.groups.values() for name in names]
    described: dict[str, Any] = {
        "model": "",
        "dimension": 0,
        "fields": [name for name in columns if name != config.event_column],
        "encoded": 0,
        "cached": 0,
    }
    if config.event_column in columns:
        described |= {
            "event_column": config.event_column,
            "max_event_terms": config.max_event_terms,
            "provenance": list(provenance),
        }
    return described
