"""Texts of items and users without the words of forgotten users."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs

from recsys.config import TextConfig
from recsys.data.text_rows import ENTRIES, VECTORS, TextRules
from recsys.data.titles import item_titles
from recsys.encoders.adapter import Adapter
from recsys.errors import ArtifactError
from recsys.preparation.item_text import compose_groups, write_vectors
from recsys.preparation.items import TEXT, feature_table, items_table
from recsys.preparation.rewrite import Rewrite
from recsys.preparation.terms import merge_terms
from recsys.preparation.user_text import write_user_texts
from recsys.storage.temporary import temporary


def rewrite_item_texts(rewrite: Rewrite, config: TextConfig) -> None:
    """Write the source rows of item text and, if some are deleted, the texts and vectors."""
    described = rewrite.manifest.text
    tables, changed = [], 0
    for file in described.get("provenance", []):
        name = f"provenance/{file}"
        table = rewrite.source.table(name)
        rest = rewrite.renumbered(rewrite.without_gone(table, "user"), "user")
        rewrite.rows[name] = table.num_rows - rest.num_rows
        changed += table.num_rows - rest.num_rows
        rewrite.write(name, rest)
        tables.append(rest.group_by(["item", "term"]).aggregate([([], "count_all")]))
    if changed:
        _compose_items(
            rewrite, config, [table.rename_columns(["item", "term", "count"]) for table in tables]
        )


def _compose_items(rewrite: Rewrite, config: TextConfig, counted: list[pa.Table]) -> None:
    described, label = rewrite.manifest.text, str(rewrite.manifest.text.get("event_column", ""))
    features = items_table(rewrite.source)
    if TEXT in described.get("fields", []) and TEXT not in features.column_names:
        raise ArtifactError(
            f"{rewrite.source.root}: the text of items mixes their column {TEXT!r} with the text"
            " of users and cannot be separated any more; remove the users from the source and"
            " run `recsys prepare`"
        )
    groups = described.get("groups") or {TEXT: [*described.get("fields", []), label]}
    terms = merge_terms(int(described["max_event_terms"]), *counted)
    text = compose_groups(features, groups, terms, label)
    rewrite.write("items/features.parquet", feature_table(features, text.whole))
    rewrite.manifest.counts["items_with_text"] = text.num_items
    if described.get("dimension"):
        described |= write_vectors(rewrite.folder, text, config, _adapter(rewrite))
        rewrite.done.add("items/text_vectors.parquet")


def _adapter(rewrite: Rewrite) -> Adapter | None:
    """The adapter of the dataset's fine-tuned language model; None where there is none."""
    names = [name for name in rewrite.names() if name.startswith("text/adapter/")]
    if not names:
        return None
    rewrite.left.append("the language model, which was fine-tuned on histories with their events")
    base = rewrite.source._base.rstrip("/")
    with temporary() as folder:
        for name in names:
            with rewrite.source.filesystem.open_input_stream(f"{base}/{name}") as stream:
                (Path(folder) / name.rsplit("/", 1)[1]).write_bytes(stream.read())
        return Adapter.read(Path(folder))


def rewrite_user_texts(rewrite: Rewrite, config: TextConfig) -> None:
    """Write the texts of the remaining users' histories and their vectors."""
    described = rewrite.manifest.text.get("users")
    if not described:
        return
    if int(described.get("folds", 1)) > 1:  # the events of a fold depend on the dense id
        rules = TextRules(
            tuple(rewrite.manifest.event_types),
            rewrite.manifest.ordered,
            *config.users.how,
        )
        titles = item_titles(rewrite.source.features)
        rewrite.manifest.text["users"] = write_user_texts(
            rewrite.folder,
            rewrite.manifest.shards,
            titles,
            rules,
            config,
            _adapter(rewrite),
        )
        rewrite.done |= {ENTRIES, VECTORS}
        return
    entries, vectors = rewrite.source.table(ENTRIES), rewrite.source.table(VECTORS)
    rest = rewrite.renumbered(rewrite.without_gone(entries, "user"), "user")
    rewrite.rows[ENTRIES] = entries.num_rows - rest.num_rows
    texts = np.asarray(rest.column("text"))
    used = np.unique(texts[texts >= 0])
    # the last one is for empty texts
    number = np.full(vectors.num_rows + 1, -1, dtype=np.int32)
    number[used] = np.arange(len(used))
    position, field = rest.schema.get_field_index("text"), rest.schema.field("text")
    rest = rest.set_column(position, field, pa.array(number[texts], pa.int32()))
    rewrite.write(
        ENTRIES,
        rest.sort_by([("user", "ascending"), ("through", "ascending"), ("place", "ascending")]),
    )
    rewrite.write(VECTORS, vectors.take(pa.array(used)))
    described |= {"texts": len(used), "entries": rest.num_rows}
