"""The terms that users give to items: counts per shard, and the most frequent ones as text."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.preparation.blocks import fetch, task
from recsys.preparation.record import Record

TERM_SCHEMA: Final = pa.schema([("item", pa.int32()), ("term", pa.string()), ("count", pa.int64())])


def terms_by_task(text: pa.Table, num_tasks: int) -> list[pa.Table]:
    """Counts of (item, term), distributed to tasks by item."""
    grouped = text.group_by(["item", "term"]).aggregate([([], "count_all")])
    table = (
        grouped.select(["item", "term", "count_all"])
        .rename_columns(TERM_SCHEMA.names)
        .cast(TERM_SCHEMA)
    )
    task_of = np.asarray(table.column("item")) % num_tasks
    return [table.filter(pa.array(task_of == index)) for index in range(num_tasks)]


def merge_terms(max_terms: int, *parts: pa.Table) -> pa.Table:
    """The most frequent terms of every item as one text: item (int32), terms ("rock, indie"). Ties
    are sorted by term.
    """
    table = pa.concat_tables(parts).group_by(["item", "term"]).aggregate([("count", "sum")])
    table = table.sort_by(
        [("item", "ascending"), ("count_sum", "descending"), ("term", "ascending")]
    )
    items = np.asarray(table.column("item"))
    starts = np.flatnonzero(np.diff(items, prepend=-1))
    rank = np.arange(len(items)) - np.repeat(starts, np.diff(np.append(starts, len(items))))
    table = table.filter(pa.array(rank < max_terms))
    items = np.asarray(table.column("item"))
    starts = np.flatnonzero(np.diff(items, prepend=-1))
    offsets = pa.array(np.append(starts, len(items)).astype(np.int32))
    terms = pa.ListArray.from_arrays(offsets, table.column("term").combine_chunks())
    return pa.table({"item": pa.array(items[starts]), "terms": pc.binary_join(terms, ", ")})


def merge_in_tasks(terms: list[list[Any]], max_terms: int, record: Record) -> pa.Table:
    """:func:`merge_terms` of all shards, in one task for each share of the items; notes the text
    that was left out.

    Parameters
    ----------
    terms : list[list[Any]]
        References to the tables of :func:`terms_by_task`, for each shard.
    max_terms : int
        Largest number of terms of an item.
    record : Record
        Has the counts of text rows; gets the notes.
    """
    counts = record.counts
    if held_out := counts["text_rows_held_out"]:
        record.notes.append(
            f"{held_out:,} of {counts['text_rows']:,} rows of item text are about held-out"
            " (user, item) pairs and were left out of the item text"
        )
    if late := counts["text_rows_late"]:
        record.notes.append(
            f"{late:,} rows of item text from the validation cut-off on were left out"
        )
    merger = task(merge_terms)
    return pa.concat_tables(
        fetch([merger.remote(max_terms, *refs) for refs in zip(*terms, strict=True)])
    )


def drop_text_counts(record: Record) -> None:
    """Remove the counts of text rows from the record of a dataset whose events are not text."""
    for name in ("text_rows", "text_rows_held_out", "text_rows_held_out_test", "text_rows_late"):
        record.counts.pop(name, None)
