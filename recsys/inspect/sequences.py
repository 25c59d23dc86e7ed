"""From a file of lines ``user item item …`` to the configuration of the source ``sequences``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys import schema
from recsys.inspect.column_uses import attributes_of, reserved
from recsys.inspect.common_values import IdSet, share_unknown
from recsys.inspect.event_pairs import Pair
from recsys.inspect.event_statistics import events_of, statistics_of
from recsys.inspect.forms import SequenceForm, TextForm
from recsys.inspect.input_files import ArgumentContent, data_name, shown_path
from recsys.inspect.sampled_tables import Table
from recsys.inspect.siblings import part_word
from recsys.inspect.source_keys import form_words
from recsys.inspect.understood import Setting, TableSummary, Understood
from recsys.sources.separators import BLANKS
from recsys.sources.validate import CellRules

_SEVERAL: Final = 1.5  # mean test items of a user from which a split does not follow the order
_MANY: Final = 1000  # pairs of neighbours in lines from which their order can be judged
_SORTED: Final = 0.98  # share of pairs with rising ids from which lines are sorted by id


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
    found = Understood(data_name(sample.files[0]), [], statistics)
    found.order, found.order_why = order_of_lines(sample.rows)
    found.is_sampled = not sample.is_whole
    found.sampled = tuple(file.path for file in sample.files if found.is_sampled)
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
    table = next((t for t in tables if t.role == "items" and _is_readable(t)), None)
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


def with_parts(tables: Sequence[Table], pair: Pair) -> tuple[list[Table], Pair]:
    """The tables and the pair if files of lines are splits: a file of one item a user, which looks
    like a table of two columns, is a file of lines too, and the pair is that of the largest split.
    """
    form = pair.table.sample.form
    if not isinstance(form, SequenceForm):
        return [*tables], pair
    read = [_as_lines(table, form) for table in tables]
    parts = {
        part_word(table.sample): table
        for table in sorted(read, key=lambda table: table.sample.num_rows)
        if table.sample.form == form
    }
    if "train" not in parts or not {"valid", "test"} & {*parts}:
        return [*tables], pair
    parts.pop("", None)
    table = max(parts.values(), key=lambda part: part.sample.num_rows)
    user, item = table.column(pair.user.name), table.column(pair.item.name)
    return read, Pair(table, user, item, pair.score)


def _as_lines(table: Table, form: SequenceForm) -> Table:
    """A file of pairs as a file of lines, if it is a split with the separator of the lines."""
    sample = table.sample
    if (
        not isinstance(sample.form, TextForm)
        or sample.form.has_header
        or sample.rows.num_columns != 2
        or sample.form.separator not in ((form.separator,) if form.separator else (BLANKS, "\t"))
        or sample.form.comment != form.comment
        or not part_word(sample)
    ):
        return table
    rows = sample.rows.rename_columns(["user", "item"])
    return Table.of(replace(sample, format="sequences", form=form, rows=rows))


def are_alone(tables: Sequence[Table], pair: Pair) -> bool:
    """Whether there are only the lines and at most a plain table of items, which the source of
    sequences reads.
    """
    used = [table for table in tables if table.role and table is not pair.table]
    return all(table.role == "items" and _is_readable(table) for table in used)


def order_of_lines(rows: pa.Table) -> tuple[str, str]:
    """``data.order`` of events in lines, and why.

    Parameters
    ----------
    rows : pa.Table
        The events, in the order of the lines: the columns ``user`` and ``item``, and ``split`` if
        the files are splits.
    """
    sets = "the items of a user are a set"
    if schema.SPLIT in rows.column_names:
        users = rows.filter(pc.equal(rows.column(schema.SPLIT), "test")).column("user")
        if len(users) > _SEVERAL * pc.count_distinct(users).as_py():
            return "none", f"{sets}: the test file has several of them, and no times"
    same = pc.equal(rows.column("user")[1:], rows.column("user")[:-1])
    try:
        items = np.asarray(pc.cast(rows.column("item"), pa.int64()))
    except pa.ArrowInvalid:
        items = np.empty(0, dtype=np.int64)
    rises = np.diff(items)[np.asarray(same)] > 0 if len(items) else np.empty(0, dtype=bool)
    if len(rises) >= _MANY and rises.mean() >= _SORTED:
        return "none", f"{sets}: the ids of each line rise"
    return "file", "the items of each line are in order; times are unknown"


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
    if table.decimal == ",":
        found.source.append(Setting("decimal", ",", "numbers are written like 2,5"))
    summary = TableSummary("items", ", ".join(files), f"{form_words(table.sample)}, {num_rows}")
    summary.columns[schema.ITEM_ID] = f"{key.name}: {table.shares}"
    found.tables.append(summary)
    found.unknown_items = share_unknown(
        events.column(schema.ITEM_ID), IdSet(key).ids, table.sample.is_whole
    )


def _is_readable(table: Table) -> bool:
    """Whether the source of sequences reads a table of items: it has no settings for its form."""
    form = table.sample.form
    return table.sample.has_names and (
        form is None
        or not isinstance(form, SequenceForm)
        and form.is_usual
        and form.encoding == "utf-8"
        and not form.comment
    )
