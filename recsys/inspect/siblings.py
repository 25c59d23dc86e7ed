"""Several files of events: splits, one event type each, or extracts of the main file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from recsys import schema
from recsys.inspect.columns import has_known
from recsys.inspect.common_names import NEGATIVE, STRONG, WEAK, words_of
from recsys.inspect.event_columns import EventColumns, columns_of_events
from recsys.inspect.event_pairs import Pair
from recsys.inspect.forms import TextForm
from recsys.inspect.input_files import ArgumentContent, shown_path
from recsys.inspect.order_numbers import with_order_numbers
from recsys.inspect.sampled_tables import Table
from recsys.inspect.samples import Sample, together
from recsys.inspect.time_columns import with_time_columns
from recsys.sources.dropped import has_values
from recsys.sources.validate import SPLIT_WORDS

_NEGATIVES: Final = frozenset(("negative", "negatives", "neg", "negs"))
_TYPES: Final = (
    *(*STRONG, *WEAK, *NEGATIVE),
    *("like", "listen", "play", "watch", "share", "comment", "follow", "download", "save"),
)
_COPIES: Final = 0.9  # share of a file's events in the main file, from which it is an extract
_SPLIT_NAMES: Final = {**SPLIT_WORDS, "trn": "train", "tst": "test"}


@dataclass(frozen=True)
class EventFiles:
    """The event files as one sample."""

    rows: pa.Table = field(repr=False)
    sample: Sample
    # split → files, if their names say so
    splits: dict[str, list[str]] = field(default_factory=dict)
    # event type → files, if their names say so
    types: dict[str, list[str]] = field(default_factory=dict)
    # column of a file with other columns → canonical column
    names: dict[str, str] = field(default_factory=dict)


def event_files(
    looked: ArgumentContent, tables: Sequence[Table], pair: Pair, columns: EventColumns
) -> EventFiles:
    """Combine the main file with the files that belong to it; the others get a reason for being
    left out.

    Parameters
    ----------
    looked : ArgumentContent
        What the arguments contain.
    tables : Sequence[Table]
        All tables; ``role`` and ``why`` of the event files that are left out are set.
    pair : Pair
        The main table of events, with its user and item columns.
    columns : EventColumns
        The roles of its columns.

    Returns
    -------
    EventFiles
        The rows of the combined files, and the split or event type of each file.
    """
    main = pair.table
    others = [table for table in tables if table.role == "more events"]
    alike = [table for table in others if _is_alike(main.sample, table.sample)]
    names: dict[str, str] = {}
    if not alike and columns.type is None and columns.split is None:
        alike, names = _with_other_columns(others, main, columns)
    for table in others:
        if table not in alike:
            table.role = ""
            table.why = _other_events(table, main)
    alike = [table for table in alike if not _is_extract(table, main, columns)]
    words = {id(table): part_word(table.sample) for table in (main, *alike)}
    if {*words.values()} - {""} == {"train", "valid"}:  # the only events that are kept back
        words = {key: word.replace("valid", "test") for key, word in words.items()}
    parts = [table for table in (main, *alike) if words[id(table)]]
    are_parts = {"train", "test"} <= {*words.values()} and main in parts
    if are_parts and columns.split is None:
        for table in alike:
            if table not in parts:
                table.role, table.why = "", _no_part(table, main)
        return _joined(looked, parts, schema.SPLIT, words)
    kinds = {id(table): _type_word(table.sample, main.sample, alike) for table in (main, *alike)}
    if (
        alike
        and all(kinds.values())
        and len({*kinds.values()}) == len(kinds)
        and columns.type is None
    ):
        main.clock = main.clock or next((table.clock for table in alike if table.clock), "")
        return replace(_joined(looked, [main, *alike], schema.EVENT_TYPE, kinds), names=names)
    for table in alike:
        table.role, table.why = "", _no_part(table, main)
    return EventFiles(main.sample.rows, main.sample)


def _no_part(table: Table, main: Table) -> str:
    """Why a file with the form of the events is left out."""
    if _NEGATIVES & {*words_of(table.sample.name)}:
        return "sampled negatives, which are not used: all items are ranked"
    return (
        f"a second file of events next to {main.sample.name}; its name tells neither split nor"
        " event type"
    )


def _other_events(table: Table, main: Table) -> str:
    """Why events with other columns are left out, and how to use them."""
    if not (table.sample.has_names and main.sample.has_names):
        return (
            f"events with other columns than {main.sample.name}; give both files a first line with"
            " names, such as user_id,item_id,timestamp, to use both"
        )
    seen = " and ".join(f"{to} in {name}" for name, to in table.names.items())
    return (
        f"looks like events ({seen}) with other columns than {main.sample.name}; write both into"
        " one file, with a column event_type, to use both"
    )


def _is_alike(one: Sample, other: Sample) -> bool:
    forms = [
        (
            replace(sample.form, suffix="", doubt="")
            if isinstance(sample.form, TextForm)
            else sample.form
        )
        for sample in (one, other)
    ]
    is_same = forms[0] == forms[1] and one.rows.column_names == other.rows.column_names
    # without names, cells of two kinds are two different columns, such as ratings and tags
    return is_same and (one.has_names or one.shape == other.shape)


def _with_other_columns(
    others: Sequence[Table], main: Table, columns: EventColumns
) -> tuple[list[Table], dict[str, str]]:
    """The files of further event types whose columns differ, such as views and orders, and the
    canonical columns of their own columns. Their rows get the names of the main file.

    A file is left out if it lacks a time, or if one of its names means something else in the main
    file.
    """
    found, names = list[Table](), dict[str, str]()
    ours = {to: name for name, to in columns.names.items()}
    for table in others:
        pair = with_time_columns(_pair_of(table, main, ours))
        if columns.time is not None and columns.time.time is not None:
            pair = with_order_numbers(pair) if columns.time.time.is_number else pair
        theirs = _columns_of(pair)
        # one setting reads the times of all files, and one their numbers
        if theirs is None or not _has_times_like(pair, main, columns):
            continue
        if {table.decimal, main.decimal} == {",", "."}:
            continue
        if (schema.TIMESTAMP in ours) != (schema.TIMESTAMP in theirs.values()):
            continue
        every = {**columns.names, **names}
        if not _is_readable_with(main.sample, table.sample) or any(
            every.get(name, "") not in ("", to)
            or name in main.sample.rows.column_names
            and name not in columns.names
            for name, to in theirs.items()
        ):
            continue
        if any(
            every[name] != theirs.get(name)
            for name in pair.table.sample.rows.column_names
            if name in every
        ):
            continue
        rows = pair.table.sample.rows.select(list(theirs))
        table.clock = pair.table.clock
        if set(theirs.values()) - set(ours):
            rows = rows.select([name for name, to in theirs.items() if to in ours])
        to_ours = {name: ours[to] for name, to in theirs.items() if to in ours}
        rows = rows.rename_columns([to_ours[name] for name in rows.column_names])
        names |= {name: theirs[name] for name in to_ours if name not in columns.names}
        table.sample = replace(table.sample, rows=rows)
        found.append(table)
    return found, names


def _pair_of(table: Table, main: Table, ours: Mapping[str, str]) -> Pair:
    """The user and the item of a file of events besides the main one: the columns with the names of
    the main file, or those with its ids.
    """
    known = {column.name: column for column in table.columns}
    user, item = (
        known.get(ours[to] if main.sample.has_names else "")
        or next(known[name] for name, given in table.names.items() if given == to)
        for to in (schema.USER_ID, schema.ITEM_ID)
    )
    return Pair(table, user, item, 0.0)


def _has_times_like(pair: Pair, main: Table, columns: EventColumns) -> bool:
    """Whether the settings for the times of the main file also read those of another one."""
    time, table = columns_of_events(pair).time, pair.table
    if columns.time is None or time is None or time.time is None or columns.time.time is None:
        return not table.clock and not table.date_columns
    forms = [
        (form.format, form.is_number, form.counts_by_user)
        for form in (time.time, columns.time.time)
    ]
    return (
        forms[0] == forms[1]
        and not table.date_columns
        and table.clock in ("", main.clock or table.clock)
    )


def _columns_of(pair: Pair) -> dict[str, str] | None:
    """The canonical columns of a file of events besides the main one: ids, time and value."""
    found = columns_of_events(pair)
    if found.split is not None:
        return None
    return {name: to for name, to in found.names.items() if to != schema.EVENT_TYPE}


def _is_readable_with(one: Sample, other: Sample) -> bool:
    """Whether one set of settings reads both files: those of text files are for the whole table."""
    if not (one.has_names and other.has_names):
        return False
    forms = [sample.form for sample in (one, other) if isinstance(sample.form, TextForm)]
    return len({replace(form, suffix="", doubt="") for form in forms}) <= 1


def _is_extract(table: Table, main: Table, columns: EventColumns) -> bool:
    """Whether the main file contains the events of a table too; sets the reason in the table."""
    keys = (schema.USER_ID, schema.ITEM_ID, schema.TIMESTAMP)
    names = [name for name, to in columns.names.items() if to in keys]
    rows = table.sample.rows
    if main.drop and {*main.drop} <= {*rows.column_names}:
        rows = rows.filter(pc.invert(has_values(rows, main.drop)))
    ours, theirs = _keys(main.sample.rows, names), _keys(rows, names)
    share = pc.mean(pc.is_in(theirs, value_set=pc.unique(ours)).cast(pa.int8())).as_py() or 0.0
    # without times, a user's test events may be of the items in the training events
    part = part_word(main.sample)
    is_part = (
        part and part != part_word(table.sample) and schema.TIMESTAMP not in columns.names.values()
    )
    if share < _COPIES or is_part or _are_other_types(table.sample, main.sample):
        return False
    table.role = ""
    table.why = f"{share:.0%} of its events are in {main.sample.name} too: an extract"
    return True


def _are_other_types(one: Sample, other: Sample) -> bool:
    """Whether the names of two files say different types, such as views and purchases, though not
    orders and purchases.
    """
    kinds = [
        {word for word in words_of(sample.name.split(".")[0]) if has_known(word, _TYPES)}
        for sample in (one, other)
    ]
    own = [kinds[0] - kinds[1], kinds[1] - kinds[0]]
    return all(own) and not all(has_known(word, STRONG) for words in own for word in words)


def _keys(rows: pa.Table, names: Sequence[str]) -> pa.Array:
    cells = [rows.column(name).cast(pa.string()).combine_chunks() for name in names]
    return pc.binary_join_element_wise(*cells, "\t", null_handling="replace")


def _joined(
    looked: ArgumentContent, tables: Sequence[Table], column: str, words: dict[int, str]
) -> EventFiles:
    """Combine the files into one table of events, with a column from their names."""
    found, named = [], dict[str, list[str]]()
    for table in tables:
        word, rows = words[id(table)], table.sample.rows
        named.setdefault(word, []).extend(
            shown_path(path) for path in looked.patterns(table.sample)
        )
        rows = rows.drop_columns([column]) if column in rows.column_names else rows
        found.append(
            rows.append_column(column, pa.repeat(pa.scalar(word, pa.string()), rows.num_rows))
        )
        table.role = "events"
    rows = pa.concat_tables(found, promote_options="permissive").combine_chunks()
    sample = replace(together([table.sample for table in tables]), given="")
    is_split = column == schema.SPLIT
    return EventFiles(rows, sample, named if is_split else {}, {} if is_split else named)


def part_word(sample: Sample) -> str:
    """The split that a file's name says; empty if none, or if it has sampled negatives.

    Of users who are held out, a file of input events (``test_tr.csv``) is for training, and one of
    events to predict (``test_te.csv``) is the split itself.
    """
    words = [word.removesuffix("set") for word in words_of(sample.name)]
    if _NEGATIVES & {*words}:
        return ""
    given = {_SPLIT_NAMES.get(word, "") for word in words if len(word) > 2} - {""}
    if given == {"train", "valid"}:  # cut from the training events
        return "valid"
    if len(given) == 1 and "tr" in words:
        return "train"
    return given.pop() if len(given) == 1 else ""


def _type_word(sample: Sample, main: Sample, others: Sequence[Table]) -> str:
    """The event type that a file's name says: a word that is not in the other files' names."""
    stems = [
        [w for w in words_of(s.name.split(".")[0]) if not w.isdigit()]
        for s in (main, *(t.sample for t in others))
    ]
    mine = [word for word in words_of(sample.name.split(".")[0]) if not word.isdigit()]
    common = set.intersection(*map(set, stems)) if stems else set()
    own = [word.removesuffix("s") if len(word) > 3 else word for word in mine if word not in common]
    known = [
        word
        for word in own
        if word in (*STRONG, *WEAK) or any(word.startswith(k) for k in (*STRONG, *WEAK))
    ]
    return known[0] if known else "-".join(own)
