"""From a file of lines ``user item item …`` to the configuration of the source ``sequences``."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from recsys import schema
from recsys.inspect.column_uses import attributes_of, reserved
from recsys.inspect.common_values import IdSet
from recsys.inspect.event_pairs import Pair
from recsys.inspect.event_statistics import events_of, statistics_of
from recsys.inspect.forms import SequenceForm
from recsys.inspect.input_files import ArgumentContent, data_name, shown_path
from recsys.inspect.sampled_tables import Table
from recsys.inspect.samples import Sample
from recsys.inspect.source_keys import form_words
from recsys.inspect.understood import Setting, TableSummary, Understood
from recsys.sources.validate import CellRules


def understand_sequences(
    looked: ArgumentContent, tables: Sequence[Table], pair: Pair
) -> Understood:
    """Interpret a file of lines ``user item item …``, and a table of items if the adapter can read
    it.

    Parameters
    ----------
    looked : ArgumentContent
        What the arguments contain.
    tables : Sequence[Table]
        All tables; at most one of items is used, the others get a reason for being ignored.
    pair : Pair
        The table of lines, with its user and item columns.

    Returns
    -------
    Understood
        The settings of the source and the statistics of the events.
    """
    sample = pair.table.sample
    assert isinstance(sample.form, SequenceForm)
    events, bad = events_of(
        sample.rows, {pair.user.name: schema.USER_ID, pair.item.name: schema.ITEM_ID}, CellRules()
    )
    statistics = statistics_of(events, bad)
    found = Understood(data_name(sample.files[0]), [], statistics, order="file")
    found.is_sampled = not sample.is_whole
    found.order_why = "the items of each line are in order; times are unknown"
    found.source = [
        Setting("kind", "sequences", "lines of USER ITEM ITEM …"),
        Setting(
            "events",
            shown_path(sample.files[0].path),
            f"{statistics.num_users:,} lines with {sample.num_rows:,} items",
        ),
    ]
    found.tables = [
        TableSummary(
            "events", sample.files[0].path, f"one line per user, {sample.num_rows:,} events"
        )
    ]
    table = next(
        (t for t in tables if t.role == "items" and t.sample.has_names and _is_plain(t.sample)),
        None,
    )
    if table is not None:
        _add_items(found, looked, table, pair, events)
    if sample.form.comment:
        found.source.append(
            Setting("comment", sample.form.comment, "lines that start with this are comments")
        )
    if sample.form.separator:
        found.source.insert(
            2, Setting("separator", sample.form.separator, "separates the ids of a line")
        )
    others = [t for t in tables if t is not pair.table and t is not table]
    found.ignored = {
        **looked.ignored,
        **{
            t.sample.files[0].path: (
                t.why or "a source of sequences reads no other table than that of items"
            )
            for t in others
        },
    }
    return found


def _add_items(
    found: Understood, looked: ArgumentContent, table: Table, pair: Pair, events: pa.Table
) -> None:
    """Describe a table of items, its attributes and the settings that it needs."""
    key = next(table.column(name) for name, to in table.names.items() if to == schema.ITEM_ID)
    rest = [column for column in table.columns if column is not key]
    moved = reserved(table, schema.ITEMS, table.names)
    found.items = attributes_of(table, rest, [schema.ITEM_ID], IdSet(pair.item), moved)
    found.has_items = True
    files = [shown_path(path) for path in looked.patterns(table.sample)]
    num_rows = f"{table.sample.num_rows:,} rows"
    found.source.append(Setting("items", files, f"{num_rows}; {table.shares}"))
    rename = {**found.items.rename, **table.names}
    found.source += [
        Setting(
            f"rename.{name}",
            to,
            "item ids of the sequences" if to == schema.ITEM_ID else "from its values",
        )
        for name, to in rename.items()
        if name != to
    ]
    if found.items.numbers:
        found.source.append(
            Setting("numbers", found.items.numbers, "the file stores these numbers as text")
        )
    summary = TableSummary("items", ", ".join(files), f"{form_words(table.sample)}, {num_rows}")
    summary.columns[schema.ITEM_ID] = f"{key.name}: {table.shares}"
    found.tables.append(summary)
    known = pc.is_in(events.column(schema.ITEM_ID), value_set=IdSet(key).ids)
    found.unknown_items = 1.0 - float(pc.mean(known.cast(pa.int8())).as_py() or 0.0)


def _is_plain(sample: Sample) -> bool:
    """Whether a table can be read without settings for its form."""
    form = sample.form
    return form is None or (
        not isinstance(form, SequenceForm)
        and form.is_usual
        and form.encoding == "utf-8"
        and not form.comment
    )
