"""Data sets with their own formats: RecBole's atomic files and the HetRec 2011 Last.fm folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from recsys import schema
from recsys.config import HetRecLastFmSource, RecBoleSource
from recsys.errors import SourceError
from recsys.inspect.column_uses import attributes_of
from recsys.inspect.columns import Column, column_of
from recsys.inspect.common_names import ITEM, SESSION, USER, VALUE, similarity
from recsys.inspect.common_values import IdSet, share_unknown
from recsys.inspect.event_attributes import history_message
from recsys.inspect.event_statistics import statistics_of
from recsys.inspect.input_files import ArgumentContent, data_name, shown_path
from recsys.inspect.row_order import SEEM_ORDERED, are_in_order
from recsys.inspect.sampled_tables import Table
from recsys.inspect.samples import Sample
from recsys.inspect.understood import Setting, TableSummary, Understood
from recsys.sources import open_source
from recsys.sources.base import Piece, read_all
from recsys.sources.files import InputFile, input_file
from recsys.sources.validate import CellRules

_MOST_PIECES: Final = 2  # pieces of 32 MiB that are read of a large file of events
_FEW_WORDS: Final = 0.05  # share of distinct words, up to which a text is a list
_TABLES: Final = {"items": schema.ITEM_ID, "users": schema.USER_ID}
_SAYS: Final = 0.8  # least similarity of a name
_ALONE: Final = 0.9  # share of the events, from which users have one event each
_LABEL: Final = ("label", "click", "clicked")
_HISTORY: Final = "item_id_list"  # the events before that of the row, in sequential benchmark files
_NOT_READ: Final = "this kind of source reads its own files only"


def understand_recbole(looked: ArgumentContent) -> Understood:
    """Interpret atomic files: the headers have columns and types."""
    assert looked.recbole is not None
    folder, name = looked.recbole
    rename = _renamed(open_source(RecBoleSource(folder=folder, name=name)).files()[0])
    source = RecBoleSource(folder=folder, name=name, rename={**rename})
    adapter = open_source(source)
    pieces = adapter.pieces()
    files = [file.name for file in adapter.files() if file.suffix == ".inter"]
    events, bad = _good(pieces["events"], are_parts=len(files) > 1)
    statistics = statistics_of(events, bad)
    if _HISTORY in events.column_names and statistics.num_users > _ALONE * statistics.num_events:
        fields = [*_fields(adapter.files()[0])]
        names = (_field_of(schema.USER_ID, rename), _HISTORY, _field_of(schema.ITEM_ID, rename))
        one, two, three = (fields.index(field) + 1 for field in names)
        raise SourceError(history_message(files[0], (one, two, three), "\t"))
    found = Understood(name, [], statistics)
    found.source = [
        Setting("kind", "recbole", "RecBole's atomic files, with types in their headers"),
        Setting("folder", shown_path(folder), "folder of the files"),
        Setting("name", name, f"reads {', '.join(files)}, {statistics.num_rows:,} rows"),
        *(Setting(f"rename.{field}", to, "by its name") for field, to in rename.items()),
    ]
    if (
        schema.VALUE in rename.values()
        and statistics.num_values == 2
        and statistics.low == 0
        and statistics.high == 1
    ):
        label = _field_of(schema.VALUE, rename)
        found.min_value, found.min_value_why = 1.0, f"events with {label} 0 were only shown"
        found.statistics = statistics = statistics_of(events, bad, (), 1.0)
    if len(files) > 1:
        count = ", ".join(f"{split} {number:,}" for split, number in statistics.splits.items())
        found.split = {"kind": "given"}, f"split by file names: {count}"
    found.order = "time" if statistics.has_times else "none"
    found.order_why = (
        "every event has a timestamp" if statistics.has_times else "the events have no timestamp"
    )
    if not statistics.has_times and _histories_grow(events):
        found.order, found.order_why = "file", f"{_HISTORY} grows from row to row of each user"
    elif not statistics.has_times and are_in_order(
        events.column(schema.USER_ID).combine_chunks(),
        events.column(schema.ITEM_ID).combine_chunks(),
        [events.column(schema.VALUE).combine_chunks()],
    ):
        found.order, found.order_why = "file", SEEM_ORDERED
    found.value_name, found.is_rating = (
        _field_of(schema.VALUE, rename) if schema.VALUE in rename.values() else "rating",
        statistics.num_values > 2 and statistics.high <= 10,
    )
    found.tables.append(
        TableSummary("events", f"{folder}/{', '.join(files)}", f"{statistics.num_rows:,} rows")
    )
    ids = {"items": _ids(events, schema.ITEM_ID), "users": _ids(events, schema.USER_ID)}
    for role in _TABLES:
        if role in pieces:
            table = _table(pieces[role], adapter.files()[0].path)
            _add_attributes(found, table, role, ids)
            path = f"{folder}/{name}.{role.rstrip('s')}"
            share = IdSet(table.column(_TABLES[role])).share_in(ids[role])
            words = f"{table.sample.num_rows:,} rows, {share:.0%} of its ids are in the events"
            found.tables.append(TableSummary(role, path, words))
            if role == "items":
                found.has_items = True
                known = IdSet(table.column(_TABLES[role])).ids
                found.unknown_items = share_unknown(
                    events.column(schema.ITEM_ID), known, table.sample.is_whole
                )
    if "social" in pieces:
        found.friends = "links of the .net file"
        found.tables.append(TableSummary("social", f"{folder}/{name}.net", "links"))
    if "knowledge" in pieces:
        found.triples = "triples of the .kg file"
        found.tables.append(
            TableSummary(
                "knowledge",
                f"{folder}/{name}.kg",
                "triples, linked to items by the .link file if there is one",
            )
        )
    found.bad["events"], found.bad_why["events"] = statistics.bad_share, "; ".join(statistics.bad)
    found.ignored = {
        **looked.ignored,
        **{sample.files[0].path: _NOT_READ for sample in looked.tables},
    }
    return found


def _fields(file: InputFile) -> dict[str, str]:
    """The fields of an atomic file and their types."""
    with file.stream() as stream:
        first = bytes(stream.read(1 << 16)).split(b"\n")[0].decode(errors="replace")
    return {
        cell.strip().partition(":")[0]: cell.strip().partition(":")[2] for cell in first.split("\t")
    }


def _field_of(column: str, rename: Mapping[str, str]) -> str:
    return next((field for field, to in rename.items() if to == column), column)


def _renamed(file: InputFile) -> dict[str, str]:
    """The fields of an events file that are its users, items and values under other names."""
    typed = _fields(file)
    ids = [name for name, kind in typed.items() if kind == "token"]
    numbers = [name for name, kind in typed.items() if kind == "float"]
    found: dict[str, str] = {}
    for to, fields, kinds in (
        (schema.USER_ID, ids, (USER, SESSION)),
        (schema.ITEM_ID, ids, (ITEM,)),
        (schema.VALUE, numbers, (VALUE, _LABEL)),
    ):
        if to in typed or to == schema.VALUE and "rating" in typed:
            continue
        free = [name for name in fields if name not in (*found, schema.USER_ID, schema.ITEM_ID)]
        for words in kinds:
            best = max(free, key=lambda name: similarity(name, words), default="")  # noqa: B023
            if best and similarity(best, words) >= _SAYS:
                found[best] = to
                break
    return found


def _add_attributes(found: Understood, table: Table, role: str, ids: dict[str, IdSet]) -> None:
    """Find the attributes of a table of items or users; texts that are lists of words are triples,
    too.
    """
    key = _TABLES[role]
    columns = [c for c in table.columns if c.name not in (key, schema.ENTITY_ID)]
    attributes = attributes_of(table, columns, [key], ids["items"] if role == "items" else None)
    attributes.rename.clear()
    names = (*attributes.text, *attributes.triples)
    words = [name for name in names if _is_list_of_words(table.column(name))]
    attributes.triples = list(dict.fromkeys([*attributes.triples, *words]))
    attributes.separators |= dict.fromkeys(words, " ")
    if role == "items":
        found.items = attributes
    else:
        found.users = attributes


def understand_hetrec(looked: ArgumentContent) -> Understood:
    """Interpret listens without times and tags with times; a file of held-out pairs in the folder
    is the split.
    """
    folder = looked.hetrec
    pairs = next((sample for sample in looked.tables if _is_pairs(sample)), None)
    source = HetRecLastFmSource(folder=folder, test_pairs=pairs.files[0].path if pairs else "")
    pieces = open_source(source).pieces()
    events, bad = _good(pieces["events"])
    listens = events.filter(pc.equal(events.column(schema.EVENT_TYPE), "listen"))
    statistics = statistics_of(listens, bad)
    found = Understood(
        data_name(input_file(f"{folder}/user_artists.dat")), [], statistics, order="none"
    )
    found.order_why = "listens have no time; only tags have one"
    found.source = [
        Setting("kind", "hetrec-lastfm", "the five .dat files of HetRec 2011"),
        Setting(
            "folder",
            shown_path(folder),
            f"{statistics.num_rows:,} listens of {statistics.num_users:,} users, with tags and"
            " friends",
        ),
    ]
    if pairs is not None:
        found.source.append(
            Setting(
                "test_pairs",
                shown_path(pairs.files[0].path),
                f"{pairs.num_rows:,} pairs of user and artist: the test split",
            )
        )
        share = statistics.splits.get("test", 0) / max(sum(statistics.splits.values()), 1)
        found.split = (
            {"kind": "given", "valid": round(min(max(share, 0.05), 0.3), 2)},
            "the test split is in test_pairs",
        )
    found.event_text = ("tag", "tag")
    found.value_name = "weight"
    found.friends = "links of user_friends.dat"
    found.triples = "triples of knowledge/kg.txt" if "knowledge" in pieces else ""
    found.tables = [
        TableSummary("events", f"{folder}/user_artists.dat", f"{statistics.num_rows:,} listens")
    ]
    found.tables.append(
        TableSummary(
            "text",
            f"{folder}/user_taggedartists.dat",
            f"{events.num_rows - listens.num_rows:,} tags that users assign to artists",
        )
    )
    found.tables.append(TableSummary("social", f"{folder}/user_friends.dat", "friends"))
    if found.triples:
        found.tables.append(
            TableSummary("knowledge", f"{folder}/knowledge/kg.txt", "triples about artists")
        )
    left = {sample.files[0].path: _NOT_READ for sample in looked.tables if sample is not pairs}
    found.ignored = {**looked.ignored, **left}
    return found


def _is_list_of_words(column: Column) -> bool:
    """Whether a text of an atomic file is a list: few distinct words, often repeated, separated by
    blanks.
    """
    words = [
        word
        for text in column.values.drop_null().slice(0, 5000).to_pylist()
        for word in text.split()
    ]
    few = max(_FEW_WORDS * len(words), 10)
    return len(words) > 1.2 * column.num_values and len(set(words)) <= few


def _is_pairs(sample: Sample) -> bool:
    return tuple(sample.rows.column_names) == ("userID", "artistID")


def _histories_grow(events: pa.Table) -> bool:
    """Whether each row of a user has a longer history than the row before, in a column of them."""
    if _HISTORY not in events.column_names:
        return False
    user, words = pl.col(schema.USER_ID), pl.col(_HISTORY).str.count_matches(" ")
    steps = pl.from_arrow(events.select([schema.USER_ID, _HISTORY])).select(  # type: ignore[union-attr]
        words.cast(pl.Int64).diff().over(user)
    )
    return bool((steps.to_series().drop_nulls() > 0).all()) and steps.to_series().count() > 0


def _good(pieces: list[Piece], are_parts: bool = False) -> tuple[pa.Table, dict[str, float]]:
    """Return the valid events of the first pieces, and the share of the others by reason.

    The events of several files are sampled at their end too, because each file has its split.
    """
    if len(pieces) > 2 * _MOST_PIECES:
        pieces = [*pieces[:_MOST_PIECES], *pieces[-1:] * are_parts]
    rows = read_all(pieces)
    reasons = rows.column(schema.REASON)
    lost = reasons.drop_null().to_pylist()
    return rows.filter(pc.is_null(reasons)), {
        reason: lost.count(reason) / rows.num_rows for reason in set(lost)
    }


def _ids(events: pa.Table, name: str) -> IdSet:
    return IdSet(column_of(name, 0, events.column(name).combine_chunks(), CellRules()))


def _table(pieces: list[Piece], path: str) -> Table:
    """Return the table of items or users as the adapter reads it."""
    rows = read_all(pieces)
    rows = rows.filter(pc.is_null(rows.column(schema.REASON)))
    names = [
        name
        for name in rows.column_names
        if name not in (schema.FILE, schema.ROW, schema.ORDER, schema.REASON, schema.RAW)
    ]
    sample = Sample(
        (input_file(path),), "recbole", rows.select(names).combine_chunks(), True, rows.num_rows
    )
    return Table.of(sample)
