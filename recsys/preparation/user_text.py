"""Histories as text for the language model, newest first: "purchase: A, B; view: C" (S1, S2).

Why several texts per user: in ordered training every position of a history is a query, and one text
for each would mean as many texts as events. So there is a text after the first ``first`` events, at
every doubling, and of the whole history. A query uses the newest text of events that it has seen,
which covers at least half of its history. The later events come through the pooled vectors of
``behaviour.input: both``.

**No leak**: a text belongs to a split (``through`` training or ``through`` validation) and contains
only the first events through that split. A query that has seen n events never gets a text of more
than n events. In data without order a query sees all events except the hidden ones: there is one
text for each of ``folds`` folds, without the events of that fold, and an epoch hides exactly that
fold. Validation and test queries see all earlier events and use the text of the whole history.

Not covered: texts have no times, and a text is cut to the model's maximum of tokens, so the oldest
events of a long history are lost.

Legend: U users, R distinct texts, X entries (user, place), T width of the language model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.config import TextConfig
from recsys.data.hashing import string_hashes
from recsys.data.hidden import Hidden
from recsys.data.histories import Histories, Split
from recsys.data.history_table import histories_from_table
from recsys.data.text_rows import ENTRIES, VECTORS, WHOLE, TextRules, compose
from recsys.encoders.adapter import Adapter
from recsys.encoders.text import language_model_fingerprint
from recsys.preparation.blocks import fetch, put, task
from recsys.preparation.dataset_writer import Folder
from recsys.preparation.vector_cache import encode_texts

_SPLITS: Final = (Split.TRAIN, Split.VALID)


def texts_of(
    histories: Histories, titles: Sequence[str], rules: TextRules
) -> Iterator[tuple[int, int, int, str]]:
    """Yield all texts of some users: user, split, place, text.

    The place is the number of events in the text, the fold that it leaves out, or :data:`WHOLE`.

    Parameters
    ----------
    histories : Histories
        Histories of the users, with all splits.
    titles : Sequence[str]
        Titles of the items in dense order.
    rules : TextRules
        How texts are composed.

    Yields
    ------
    tuple[int, int, int, str]
        Dense user id, split (0 training, 1 validation), place, text.
    """
    for split in _SPLITS:
        seen = histories.through(split)
        users_E = np.repeat(seen.users_U, seen.lengths_U)
        folds = [
            ~Hidden.fold(fold, rules.folds).of(users_E, seen.items_E) for fold in range(rules.folds)
        ]
        for row, user in enumerate(seen.users_U.tolist()):
            events = slice(seen.offsets_U1[row], seen.offsets_U1[row + 1])
            items, types = seen.items_E[events], seen.types_E[events]
            if len(items) == 0:
                continue
            if rules.ordered:
                for num in _lengths_with_text(len(items), rules.first):
                    text = compose(items[:num].tolist(), types[:num].tolist(), titles, rules)
                    yield user, int(split), num, text
            elif rules.folds > 1:
                for fold, is_visible_E in enumerate(folds):
                    visible = is_visible_E[events]
                    text = compose(items[visible].tolist(), types[visible].tolist(), titles, rules)
                    yield user, int(split), fold, text
            yield user, int(split), WHOLE, compose(items.tolist(), types.tolist(), titles, rules)


def texts_ever(histories: Histories, titles: Sequence[str], rules: TextRules) -> set[str]:
    """All texts of some users that this or an earlier dataset can have, which had fewer of their
    events: the cache of vectors still has those.

    Not covered: an earlier dataset with other titles, or without a late event between the others.

    Parameters
    ----------
    histories : Histories
        Histories of the users, with all splits.
    titles : Sequence[str]
        Titles of the items in dense order.
    rules : TextRules
        How texts are composed.
    """
    found: set[str] = set()
    # a dataset with a single event type does not name it
    forms = {rules, replace(rules, event_types=rules.event_types[:1])}
    for split in Split:
        seen = histories.through(split)
        users_E = np.repeat(seen.users_U, seen.lengths_U)
        visible = [np.ones(len(seen.items_E), dtype=bool)]
        if not rules.ordered and rules.folds > 1:
            for fold in range(rules.folds):
                visible.append(~Hidden.fold(fold, rules.folds).of(users_E, seen.items_E))
        for is_visible_E in visible:
            rest = seen.where(is_visible_E)
            for start, end in zip(rest.offsets_U1[:-1], rest.offsets_U1[1:], strict=True):
                items, types = rest.items_E[start:end].tolist(), rest.types_E[start:end].tolist()
                for num in range(1, len(items) + 1):
                    # a text names no more items, and the rest of a long history takes time
                    first = max(num - rules.max_items, 0)
                    newest = items[first:num], types[first:num]
                    found |= {compose(*newest, titles, form) for form in forms}
    return found - {""}


def _lengths_with_text(length: int, first: int) -> list[int]:
    """Numbers of events with a text: ``first`` and every doubling below the length."""
    if length <= first:
        return []
    return [first << power for power in range(math.ceil(math.log2(length / first)))]


def write_user_texts(
    folder: Folder,
    shards: Sequence[str],
    titles: Sequence[str],
    rules: TextRules,
    config: TextConfig,
    adapter: Adapter | None = None,
) -> dict[str, Any]:
    """Compose texts in tasks, encode them, and write ``users/texts.parquet`` and
    ``users/text_vectors.parquet``.

    Parameters
    ----------
    folder : Folder
        Folder of the dataset; its histories are written already.
    shards : Sequence[str]
        Names of the shards.
    titles : Sequence[str]
        Titles of the items in dense order.
    rules : TextRules
        How texts are composed.
    config : TextConfig
        The language model and the cache.
    adapter : Adapter | None
        Adapter of a fine-tuned language model.

    Returns
    -------
    dict[str, Any]
        Description of the texts for the manifest.
    """
    composer, names = task(_compose_shard), put(list(titles))
    entries = pa.concat_tables(
        fetch([composer.remote(folder, shard, names, rules) for shard in shards])
    )
    entries = entries.sort_by(
        [("user", "ascending"), ("through", "ascending"), ("place", "ascending")]
    )
    distinct = entries.column("text").combine_chunks().dictionary_encode()
    texts = distinct.dictionary.to_pylist()
    vectors_RT, numbers = encode_texts([text or None for text in texts], config, adapter)
    folder.write_table(ENTRIES, _with_text_rows(entries, distinct))
    column = pa.FixedSizeListArray.from_arrays(
        pa.array(vectors_RT.reshape(-1)), vectors_RT.shape[1]
    )
    folder.write_table(VECTORS, pa.table({"vector": column}))
    return numbers | {
        "dimension": vectors_RT.shape[1],
        "texts": len(texts),
        "entries": entries.num_rows,
        "folds": rules.folds,
        "model": config.model,
        "fingerprint": (
            language_model_fingerprint(config.model, config.allow_download)
            + (f"-{adapter.digest}" if adapter else "")
        ),
        "max_tokens": config.max_tokens,
        "encoder": config.encoder,
        "max_items": rules.max_items,
    }


def _with_text_rows(entries: pa.Table, distinct: pa.DictionaryArray) -> pa.Table:
    """``users/texts.parquet``: the entries with the row of their text's vector, -1 for an empty
    text, and with a hash of the text, which the audit compares.
    """
    rows = np.asarray(distinct.indices).astype(np.int32)
    is_empty = np.array([not text for text in distinct.dictionary.to_pylist()], dtype=bool)
    columns = {
        "text": pa.array(np.where(is_empty[rows], -1, rows).astype(np.int32)),
        "hash": pa.array(string_hashes(distinct.dictionary)[rows]),
    }
    return pa.table({name: entries.column(name) for name in ("user", "through", "place")} | columns)


def _compose_shard(folder: Folder, name: str, titles: Sequence[str], rules: TextRules) -> pa.Table:
    histories = histories_from_table(
        pq.read_table(f"{folder.path}/histories/{name}", filesystem=folder.filesystem)
    )
    found: list[Any] = list(zip(*texts_of(histories, titles, rules), strict=True)) or [
        [],
        [],
        [],
        [],
    ]
    kinds = {"user": pa.int32(), "through": pa.uint8(), "place": pa.int32(), "text": pa.string()}
    return pa.table(
        {
            key: pa.array(values, kind)
            for (key, kind), values in zip(kinds.items(), found, strict=True)
        }
    )
