"""The past of users as text, "purchase: A, B; view: C" with the newest first, for the language model to read (S1, S2).

Why several texts a user: in ordered training every position of a history is a query, and a text for each would be as
many as events. So a user's past becomes text after its first ``first`` events, at every doubling, and as a whole; a
query reads the newest text that was finished when it asked, which is at least half as long as its past. What happened
since then it reads through the pooled vectors of ``behaviour.input: both``.

**No leak**: a text belongs to a part (``through`` training, ``through`` validation) and is made of the first events
of that part alone; a query that has seen n events is never given a text of more than n. Where the data has no order,
a query sees all but the hidden events: there is a text for each of ``folds`` folds, without that fold's events, and an
epoch hides just that fold; a text of everything serves validation and test, whose queries see everything before.

Not covered: texts do not tell when things happened, and a text is cut to the model's tokens, so the oldest events of a
long past go unread.

Legend: U users, R distinct texts, X entries (user, place), T width of the language model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from recsys.config import TextConfig
from recsys.data.batches import Hidden
from recsys.data.dataset import histories_from_table
from recsys.data.hashing import string_hashes
from recsys.data.histories import Histories, Split
from recsys.data.text_rows import ENTRIES, VECTORS, WHOLE, TextRules, compose
from recsys.encoders.adapter import Adapter
from recsys.encoders.text import language_model_fingerprint
from recsys.preparation.blocks import fetch, task
from recsys.preparation.dataset_writer import Folder
from recsys.preparation.vector_cache import encode_texts

_PARTS: Final = (Split.TRAIN, Split.VALID)


def texts_of(histories: Histories, titles: Sequence[str], rules: TextRules) -> Iterator[tuple[int, int, int, str]]:
    """Every text of some users: user, part, place, text.

    The place is the number of events that the text is made of, the fold that it leaves out, or :data:`WHOLE`.
    """
    for part in _PARTS:
        seen = histories.through(part)
        users_E = np.repeat(seen.users_U, seen.lengths_U)
        folds = [~Hidden.fold(fold, rules.folds).of(users_E, seen.items_E) for fold in range(rules.folds)]
        for row, user in enumerate(seen.users_U.tolist()):
            span = slice(seen.offsets_U1[row], seen.offsets_U1[row + 1])
            items, types = seen.items_E[span], seen.types_E[span]
            if len(items) == 0:
                continue
            if rules.ordered:
                for place in _places(len(items), rules.first):
                    text = compose(items[:place].tolist(), types[:place].tolist(), titles, rules)
                    yield user, int(part), place, text
            elif rules.folds > 1:
                for fold, kept_E in enumerate(folds):
                    kept = kept_E[span]
                    yield user, int(part), fold, compose(items[kept].tolist(), types[kept].tolist(), titles, rules)
            yield user, int(part), WHOLE, compose(items.tolist(), types.tolist(), titles, rules)


def _places(length: int, first: int) -> list[int]:
    """Event counts at which a past becomes text: ``first`` and every doubling below the length."""
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
    """Compose in tasks, encode, and write ``users/texts.parquet`` and ``users/text_vectors.parquet``.

    Returns
    -------
    dict[str, Any]
        What the manifest says of them.
    """
    composer, names = task(_compose_shard), ray.put(list(titles))
    entries = pa.concat_tables(fetch([composer.remote(folder, shard, names, rules) for shard in shards]))
    entries = entries.sort_by([("user", "ascending"), ("through", "ascending"), ("place", "ascending")])
    encoded = entries.column("text").combine_chunks().dictionary_encode()
    texts = encoded.dictionary.to_pylist()
    rows = np.asarray(encoded.indices).astype(np.int32)
    empty = np.array([not text for text in texts], dtype=bool)
    vectors_RT, numbers = encode_texts([text or None for text in texts], config, adapter)
    columns = {"text": pa.array(np.where(empty[rows], -1, rows).astype(np.int32))}
    columns["hash"] = pa.array(string_hashes(encoded.dictionary)[rows])  # for the audit, which composes them again
    folder.write_table(
        ENTRIES, pa.table({name: entries.column(name) for name in ("user", "through", "place")} | columns)
    )
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors_RT.reshape(-1)), vectors_RT.shape[1])
    folder.write_table(VECTORS, pa.table({"vector": column}))
    return numbers | {
        "dimension": vectors_RT.shape[1],
        "texts": len(texts),
        "entries": len(rows),
        "folds": rules.folds,
        "model": config.model,
        "fingerprint": language_model_fingerprint(config.model, config.allow_download)
        + (f"-{adapter.digest}" if adapter else ""),
        "max_tokens": config.max_tokens,
        "max_items": rules.max_items,
    }


def _compose_shard(folder: Folder, name: str, titles: Sequence[str], rules: TextRules) -> pa.Table:
    histories = histories_from_table(pq.read_table(f"{folder.path}/histories/{name}", filesystem=folder.filesystem))
    found: list[Any] = list(zip(*texts_of(histories, titles, rules), strict=True)) or [[], [], [], []]
    kinds = {"user": pa.int32(), "through": pa.uint8(), "place": pa.int32(), "text": pa.string()}
    return pa.table({key: pa.array(values, kind) for (key, kind), values in zip(kinds.items(), found, strict=True)})
