"""Plain tables → what a configuration of the sources ``canonical`` and ``sequences`` says of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from recsys import schema
from recsys.data.validate import SPLIT_WORDS, CellRules, Layout, check_rows
from recsys.inspect.arguments import Looked, shown_path
from recsys.inspect.attributes import Attributes, attributes_of, reserved, told_by_events
from recsys.inspect.columns import Column
from recsys.inspect.events import EventColumns, columns_of_events
from recsys.inspect.forms import SequenceForm, TextForm
from recsys.inspect.habits import Habits, Types, events_of, habits_of, meaning_of
from recsys.inspect.overlap import IdSet
from recsys.inspect.samples import Sample, together
from recsys.inspect.settings import TablePlan, form_words, plan_of_attributes, relation_of, source_settings
from recsys.inspect.tables import Pair, Table, find_events, place_others
from recsys.inspect.understood import Setting, Told, Understood
from recsys.inspect.vocabulary import SESSION, STRONG, WEAK, likeness, parts
from recsys.sources.files import InputFile

_COPIES: Final = 0.9  # share of a file's events that the main one has, from which it is an extract of that
_RATINGS: Final = ("rating", "star", "stars", "score", "overall", "rate", "grade", "preference", "feedback")
_ABSENT_RATING: Final = 0.2  # share of zeros on a scale from which zero means that nothing was said
_MOST_CONTEXT: Final = 200  # different values


def understand(looked: Looked) -> Understood:
    """Find out what the tables are.

    Raises:
        SourceError: none has events.
    """
    tables = [Table.of(sample) for sample in looked.tables]
    pair = find_events(tables)
    place_others(tables, pair)
    pair.table.role = "events"
    if pair.table.sample.format == "sequences":
        return _sequences(looked, tables, pair)
    return _Canonical(looked, tables, pair).understood()


class _Canonical:
    """One look at tables; every step is a method, in the order of :meth:`understood`."""

    def __init__(self, looked: Looked, tables: Sequence[Table], pair: Pair) -> None:
        self.looked, self.tables, self.pair = looked, tables, pair
        self.columns: EventColumns = columns_of_events(pair)
        self.ignored = dict(looked.ignored)
        self.notes: list[str] = []
        self.settings: list[Setting] = []
        self.rows = pair.table.sample.rows
        self.sample = pair.table.sample
        self.parts_of_files: dict[str, list[str]] = {}
        self.types_of_files: dict[str, list[str]] = {}

    def understood(self) -> Understood:
        """Everything."""
        self._more_events()
        rules = self._rules()
        names = self.columns.names
        events, bad = events_of(self.rows, self._typed_names(), rules)
        bad = self._with_broken(bad, self.sample)
        meaning = meaning_of(sorted(set(events.column(schema.EVENT_TYPE).to_pylist()))) if self._has_types else Types()
        first = habits_of(events, bad, meaning.targets)
        min_value, min_why, is_rating = self._smallest(events, first)
        if meaning.history:
            kept = pc.is_in(events.column(schema.EVENT_TYPE), value_set=pa.array(meaning.history))
            events = events.filter(kept)
        habits = replace(habits_of(events, bad, meaning.targets, min_value), all_types=tuple(first.types))
        plans, items, users, derived = self._plans(names)
        found = Understood(name=self._name(), source=[], habits=habits, meaning=meaning)
        self._order(found)
        found.items, found.users, found.items_by_events = items, users, bool(derived[0])
        found.has_items = any(plan.role == "items" for plan in plans)
        found.context = self._context(derived)
        told = {column.name for columns in derived for column in columns}
        found.idle = [column.name for column in self.columns.left if column.name not in told]
        found.value_name = self.columns.value.name if self.columns.value else ""
        found.is_rating, found.min_value, found.min_value_why = is_rating, min_value, min_why
        time = self.columns.time.time if self.columns.time else None
        found.day_only = bool(time and time.by_day)
        found.other_time_format = time.other if time else ""
        found.source = (
            source_settings(self.looked, plans)
            + self._cell_settings(rules)
            + self._derived_settings(derived, items, users)
        )
        found.unknown_items = self._unknown_items(events)
        self._side_tables(found, plans, rules)
        found.bad["events"] = habits.bad_share
        found.bad_why["events"] = "; ".join(
            f"{share:.1%} {reason}" for reason, share in sorted(habits.bad.items(), key=lambda x: -x[1])[:3]
        )
        found.tables = [self._told(plan, items, users) for plan in plans]
        found.ignored = {**self.ignored, **self._left_out()}
        found.notes = self.notes
        return found

    # ------------------------------------------------------------------------------------------------------- events

    @property
    def _has_types(self) -> bool:
        return self.columns.type is not None or bool(self.types_of_files)

    def _typed_names(self) -> dict[str, str]:
        names = dict(self.columns.names)
        for column, files in ((schema.SPLIT, self.parts_of_files), (schema.EVENT_TYPE, self.types_of_files)):
            if files:
                names[column] = column
        return names

    def _more_events(self) -> None:
        """Other files with users and items: parts of a split, one event type each, extracts of the main file."""
        others = [table for table in self.tables if table.role == "more events"]
        alike = [table for table in others if self._is_alike(table)]
        for table in others:
            if table not in alike:
                table.role = ""
                table.why = "events of other columns than those of the main file; write both as one file to use them"
        alike = [table for table in alike if not self._is_extract(table)]
        main = self.pair.table
        words = {id(table): _part_word(table.sample) for table in (main, *alike)}
        if alike and all(words.values()) and {"train", "test"} <= {*words.values()} and self.columns.split is None:
            self._join(alike, schema.SPLIT, words, self.parts_of_files)
            return
        kinds = {id(table): _type_word(table.sample, main.sample, alike) for table in (main, *alike)}
        if alike and all(kinds.values()) and len({*kinds.values()}) == len(kinds) and self.columns.type is None:
            self._join(alike, schema.EVENT_TYPE, kinds, self.types_of_files)
            return
        for table in alike:
            table.role, table.why = (
                "",
                f"a second file of events beside {main.sample.name}, and its name says nothing of them",
            )

    def _is_alike(self, table: Table) -> bool:
        one, other = self.pair.table.sample, table.sample
        forms = [
            replace(sample.form, suffix="", doubt="") if isinstance(sample.form, TextForm) else sample.form
            for sample in (one, other)
        ]
        return forms[0] == forms[1] and one.rows.column_names == other.rows.column_names

    def _is_extract(self, table: Table) -> bool:
        names = [
            name for name, to in self.columns.names.items() if to in (schema.USER_ID, schema.ITEM_ID, schema.TIMESTAMP)
        ]
        keys = [_joined(sample.rows, names) for sample in (self.pair.table.sample, table.sample)]
        share = pc.mean(pc.is_in(keys[1], value_set=pc.unique(keys[0])).cast(pa.int8())).as_py() or 0.0
        if share < _COPIES or _part_word(self.pair.table.sample):
            return False
        table.role, table.why = (
            "",
            f"{share:.0%} of its events are in {self.pair.table.sample.name} as well: a part of it",
        )
        return True

    def _join(self, tables: Sequence[Table], column: str, words: dict[int, str], files: dict[str, list[str]]) -> None:
        """Make the files one table of events, with a column that their names say."""
        every = [self.pair.table, *tables]
        parts_ = []
        for table in every:
            word = words[id(table)]
            files.setdefault(word, []).extend(shown_path(path) for path in self.looked.patterns(table.sample))
            value = pa.repeat(pa.scalar(word, pa.string()), table.sample.rows.num_rows)
            rows = table.sample.rows
            rows = rows.drop_columns([column]) if column in rows.column_names else rows
            parts_.append(rows.append_column(column, value))
            table.role = "events"
        self.rows = pa.concat_tables(parts_, promote_options="permissive").combine_chunks()
        self.sample = replace(together([table.sample for table in every]), given="")

    def _rules(self) -> CellRules:
        commas = [table.sample.name for table in self.tables if table.role for c in table.columns if c.decimal_comma]
        time = self.columns.time.time if self.columns.time else None
        return CellRules(time_format=time.format if time else "", decimal="," if commas else ".")

    def _with_broken(self, bad: dict[str, float], sample: Sample) -> dict[str, float]:
        if not sample.num_broken:
            return bad
        every = sample.num_broken + self.rows.num_rows
        scaled = {reason: share * self.rows.num_rows / every for reason, share in bad.items()}
        return {**scaled, "rows with another number of cells": sample.num_broken / every}

    def _smallest(self, events: pa.Table, habits: Habits) -> tuple[float | None, str, bool]:
        """The least value that counts, why, and whether values are ratings."""
        column = self.columns.value
        if column is None or habits.num_values < 2:
            return None, "", False
        name = column.name
        named = self.pair.table.sample.has_names
        stepped = bool((pc.multiply(events.column(schema.VALUE), 2).to_numpy() % 1 == 0).all())
        is_rating = likeness(name, _RATINGS) >= 0.8 if named else habits.num_values <= 21 and stepped
        if habits.negative > 0:
            whole = column.is_whole
            why = f"{habits.negative:.1%} of the events have a negative {name}: returned, cancelled or disliked"
            return (1.0 if whole else 1e-9), why, is_rating
        values = events.column(schema.VALUE).to_numpy()
        rated = values[values != 0] if (values == 0).mean() > _ABSENT_RATING else values
        if is_rating and len(rated) and habits.num_values <= 101:
            low, high = float(rated.min()), float(rated.max())
            middle = (low + high) / 2
            if (rated < middle).mean() > 0.5:
                return (
                    middle,
                    f"{(rated < middle).mean():.0%} of the ratings are below the middle of the scale: dislikes",
                    True,
                )
        return None, "", is_rating

    def _order(self, found: Understood) -> None:
        habits, time = found.habits, self.columns.time
        if habits.has_times and time is not None:
            found.order, found.order_why = "time", f"every event has its time in {time.name}"
        elif habits.timed > 0.5 and time is not None:
            found.order, found.order_why = "auto", f"{habits.timed:.0%} of the events have a time in {time.name}"
        else:
            found.order = "none"
            found.order_why = "no column holds times, and whether the rows are in order is not known"
        if self.parts_of_files or self.columns.split is not None:
            count = ", ".join(f"{part} {number:,}" for part, number in habits.parts.items())
            column = self.columns.split
            where = f"the column {column.name} says it" if column is not None else "the names of the files say it"
            found.split = {"kind": "given"}, f"{where}: {count}"

    def _unknown_items(self, events: pa.Table) -> float:
        table = next((table for table in self.tables if table.role == "items"), None)
        if table is None or not events.num_rows:
            return 0.0
        key = next(table.column(name) for name, to in table.names.items() if to == schema.ITEM_ID)
        known = pc.is_in(events.column(schema.ITEM_ID), value_set=IdSet(key).ids)
        return 1.0 - float(pc.mean(known.cast(pa.int8())).as_py() or 0.0)

    def _context(self, derived: tuple[list[Column], list[Column]]) -> list[Column]:
        told = {column.name for columns in derived for column in columns}
        return [
            column
            for column in self.columns.left
            if column.name not in told
            and column.kind in ("token", "flag")
            and 2 <= column.num_distinct <= _MOST_CONTEXT
            and likeness(column.name, SESSION) < 0.8
        ]

    # ------------------------------------------------------------------------------------------------------- tables

    def _plans(
        self, names: dict[str, str]
    ) -> tuple[list[TablePlan], Attributes | None, Attributes | None, tuple[list[Column], list[Column]]]:
        events = self.pair.table
        moved_events = reserved(events, schema.EVENTS, names)
        reasons = self._event_reasons() | {
            name: f"{name!r} is none of the product's own columns of that name" for name in moved_events
        }
        plan = TablePlan("events", self.sample, {**names, **moved_events}, reasons)
        plans = [plan]
        of_items, of_users = self._by_events()
        items = users = None
        item_ids = IdSet(self.columns.item)
        for role, kind, key in (("items", schema.ITEMS, schema.ITEM_ID), ("users", schema.USERS, schema.USER_ID)):
            table = next((table for table in self.tables if table.role == role), None)
            if table is None:
                continue
            column = next(table.column(name) for name, to in table.names.items() if to == key)
            rest = [c for c in table.columns if c is not column]
            moved = reserved(table, kind, table.names)
            ids = {"items": item_ids} if role == "items" else {"items": None, "people": IdSet(self.columns.user)}
            found = attributes_of(table, rest, [key], moved=moved, **ids)
            plans.append(plan_of_attributes(role, table.sample, table.names, found, moved, table.shares))
            items, users = (found, users) if role == "items" else (items, found)
        if of_items:
            items = attributes_of(events, of_items, [*names.values()], item_ids, moved_events)
            of_items = self._take(plan, of_items, items)
        if of_users:
            users = attributes_of(events, of_users, [*names.values()], None, moved_events)
            of_users = self._take(plan, of_users, users)
        for role in ("social", "knowledge"):
            plans += self._pairs_of(role)
        return plans, items or None, users or None, (of_items, of_users)

    def _by_events(self) -> tuple[list[Column], list[Column]]:
        """Columns of the events that tell of items and of users, where there are no tables of them."""
        of_items, of_users = told_by_events(self.pair.table, self.pair.user, self.pair.item, self.columns.left)
        roles = {table.role for table in self.tables}
        return ([] if "items" in roles else of_items), ([] if "users" in roles else of_users)

    def _take(self, plan: TablePlan, columns: Sequence[Column], found: Attributes) -> list[Column]:
        """Name the columns of events that make a table; those of which nothing is made are left out."""
        kept = []
        for column in columns:
            name = found.rename.get(column.name, column.name)
            if name not in found.used:
                continue
            kept.append(column)
            if name != column.name:
                plan.names[column.name] = name
            if name in found.numbers:
                plan.numbers.append(name)
        return kept

    def _pairs_of(self, role: str) -> list[TablePlan]:
        """The plan of friends or facts; several files of one form are read as one."""
        tables = [table for table in self.tables if table.role == role]
        if not tables:
            return []
        first = max(tables, key=lambda table: table.sample.num_rows)
        for table in tables:
            same = table.sample.form == first.sample.form and table.names == first.names
            if not same:
                table.role, table.why = "", f"a second table of {role} in another form beside {first.sample.name}"
        used = [table for table in tables if table.role == role]
        sample = together([table.sample for table in used]) if len(used) > 1 else first.sample
        kind = schema.TABLES[role]
        names = {**first.names, **reserved(first, kind, first.names)}
        own = (schema.RELATION, schema.TAIL)
        reasons = {name: "what is said of it" if to in own else first.shares for name, to in first.names.items()}
        plan = TablePlan(role, sample, names, reasons)
        if role == "knowledge" and schema.RELATION not in first.names.values():
            tail = next(name for name, to in first.names.items() if to == schema.TAIL)
            plan.constants = {schema.RELATION: relation_of(first.sample, tail)}
        return [plan]

    def _event_reasons(self) -> dict[str, str]:
        """Why each column of the events is what it is."""
        found: dict[str, str] = {}
        columns = self.columns
        shared = [table.sample.name for table in self.tables if table.role in ("users", "social")]
        found[columns.user.name] = f"{columns.user.num_distinct:,} different" + (
            f", ids as in {', '.join(shared)}" if shared else ""
        )
        shared = [table.sample.name for table in self.tables if table.role in ("items", "knowledge")]
        found[columns.item.name] = f"{columns.item.num_distinct:,} different" + (
            f", ids as in {', '.join(shared)}" if shared else ""
        )
        if columns.time is not None and columns.time.time is not None:
            found[columns.time.name] = columns.time.time.words
        if columns.type is not None:
            found[columns.type.name] = f"{columns.type.num_distinct} kinds of events"
        if columns.value is not None:
            found[columns.value.name] = f"numbers from {columns.value.low:g} to {columns.value.high:g}"
        if columns.split is not None:
            found[columns.split.name] = "train and test"
        return found

    # ------------------------------------------------------------------------------------------------------ settings

    def _cell_settings(self, rules: CellRules) -> list[Setting]:
        found = []
        if rules.decimal == ",":
            found.append(Setting("decimal", ",", "numbers such as 2,5"))
        if rules.time_format and self.columns.time is not None:
            example = self.columns.time.example
            found.append(Setting("time_format", rules.time_format, f"of {self.columns.time.name}, e.g. {example}"))
        if self.parts_of_files:
            found.append(Setting("split_files", self.parts_of_files, "the files are called so"))
        if self.types_of_files:
            found.append(Setting("type_files", self.types_of_files, "a file an event type, by their names"))
        return found

    def _derived_settings(
        self, derived: tuple[list[Column], list[Column]], items: Attributes | None, users: Attributes | None
    ) -> list[Setting]:
        found = []
        for key, columns, attributes in (("item_columns", derived[0], items), ("user_columns", derived[1], users)):
            if columns and attributes is not None:
                names = [attributes.rename.get(column.name, column.name) for column in columns]
                noun = key.split("_")[0]
                found.append(Setting(key, names, f"nearly the same in every row of one {noun}: they tell of it"))
        return found

    def _side_tables(self, found: Understood, plans: Sequence[TablePlan], rules: CellRules) -> None:
        """Friends and facts for people, and the share of rows of each table that cannot be used."""
        for plan in plans[1:]:
            table = schema.TABLES[plan.role]
            given = {to: plan.sample.rows.column(name) for name, to in plan.names.items() if to in table.columns}
            checked = check_rows(pa.table(given), Layout(table, rules=rules))
            reasons = checked.column(schema.REASON).drop_null()
            lost = len(reasons) - sum(
                1 for reason in reasons.to_pylist() if "relation" in str(reason) and plan.constants
            )
            every = plan.sample.rows.num_rows + plan.sample.num_broken
            found.bad[plan.role] = (max(lost, 0) + plan.sample.num_broken) / max(every, 1)
            found.bad_why[plan.role] = ", ".join(sorted({str(reason) for reason in reasons.to_pylist()})[:3])
            shares = next((t.shares for t in self.tables if t.role == plan.role), "")
            if plan.role == "social":
                found.friends = f"{plan.sample.num_rows:,} links; {shares}"
            if plan.role == "knowledge":
                found.facts = f"{plan.sample.num_rows:,} facts; {shares}"

    def _left_out(self) -> dict[str, str]:
        return {
            ", ".join(file.path for file in table.sample.files[:3]): table.why or "not used"
            for table in self.tables
            if not table.role
        }

    def _told(self, plan: TablePlan, items: Attributes | None, users: Attributes | None) -> Told:
        files = ", ".join(self.looked.patterns(plan.sample)[:3])
        told = Told(plan.role, files, f"{form_words(plan.sample)}, {plan.sample.num_rows:,} rows")
        for name, to in plan.names.items():
            if to in schema.TABLES[plan.role].columns:
                reason = plan.reasons.get(name, "")
                told.columns[to] = f"{name}: {reason}" if plan.sample.has_names else reason or name
        return told

    def _name(self) -> str:
        return data_name(self.pair.table.sample.files[0])


def data_name(file: InputFile) -> str:
    """A short name for the data: of the folder, or of the file where it stands alone.

    >>> data_name(InputFile("shop/events.csv", 1)), data_name(InputFile("events.csv", 1))
    ('shop', 'events')
    """
    folders = [part for part in file.path.split("://")[-1].split("?")[0].split("/")[:-1] if "=" not in part]
    word = folders[-1] if folders and folders[-1] not in ("", ".", "..", "~", "data") else file.name.split(".")[0]
    plain = "-".join(parts(word)) or "data"
    return plain[:40]


def _joined(rows: pa.Table, names: Sequence[str]) -> pa.Array:
    cells = [rows.column(name).cast(pa.string()).combine_chunks() for name in names]
    return pc.binary_join_element_wise(*cells, "\t", null_handling="replace")


def _part_word(sample: Sample) -> str:
    """The part of a split that a file's name says; empty: none."""
    words = {SPLIT_WORDS.get(word, "") for word in parts(sample.name) if len(word) > 2} - {""}
    return words.pop() if len(words) == 1 else ""


def _type_word(sample: Sample, main: Sample, others: Sequence[Table]) -> str:
    """The event type that a file's name says: a word that the names of the other files lack."""
    stems = [[w for w in parts(s.name.split(".")[0]) if not w.isdigit()] for s in (main, *(t.sample for t in others))]
    mine = [word for word in parts(sample.name.split(".")[0]) if not word.isdigit()]
    common = set.intersection(*map(set, stems)) if stems else set()
    own = [word.removesuffix("s") if len(word) > 3 else word for word in mine if word not in common]
    known = [word for word in own if word in (*STRONG, *WEAK) or any(word.startswith(k) for k in (*STRONG, *WEAK))]
    return known[0] if known else "-".join(own)


# ---------------------------------------------------------------------------------------------------------- sequences


def _sequences(looked: Looked, tables: Sequence[Table], pair: Pair) -> Understood:
    """A file of lines ``user item item …``, and a table of items where the adapter can read it."""
    sample = pair.table.sample
    assert isinstance(sample.form, SequenceForm)
    events, bad = events_of(sample.rows, {pair.user.name: schema.USER_ID, pair.item.name: schema.ITEM_ID}, CellRules())
    habits = habits_of(events, bad)
    found = Understood(data_name(sample.files[0]), [], habits, order="file")
    found.order_why = "the items of a line are in order, and no time is known"
    found.source = [
        Setting("kind", "sequences", "lines of USER ITEM ITEM …, of different lengths"),
        Setting(
            "events", shown_path(sample.files[0].path), f"{habits.num_users:,} lines, {sample.num_rows:,} items in them"
        ),
    ]
    found.tables = [Told("events", sample.files[0].path, f"a line a user, {sample.num_rows:,} events")]
    table = next((t for t in tables if t.role == "items" and t.sample.has_names and _is_plain(t.sample)), None)
    if table is not None:
        key = next(table.column(name) for name, to in table.names.items() if to == schema.ITEM_ID)
        rest = [column for column in table.columns if column is not key]
        moved = reserved(table, schema.ITEMS, table.names)
        found.items = attributes_of(table, rest, [schema.ITEM_ID], IdSet(pair.item), moved)
        found.has_items = True
        files = [shown_path(path) for path in looked.patterns(table.sample)]
        found.source.append(Setting("items", files, f"{table.sample.num_rows:,} rows; {table.shares}"))
        rename = {**found.items.rename, **table.names}
        rename = {name: to for name, to in rename.items() if name != to}
        found.source += [
            Setting(f"rename.{name}", to, "the ids of the sequences" if to == schema.ITEM_ID else "by its values")
            for name, to in rename.items()
        ]
        if found.items.numbers:
            found.source.append(
                Setting("numbers", found.items.numbers, "their values are numbers, which the file writes as text")
            )
        told = Told("items", ", ".join(files), f"{form_words(table.sample)}, {table.sample.num_rows:,} rows")
        told.columns[schema.ITEM_ID] = f"{key.name}: {table.shares}"
        found.tables.append(told)
        known = pc.is_in(events.column(schema.ITEM_ID), value_set=IdSet(key).ids)
        found.unknown_items = 1.0 - float(pc.mean(known.cast(pa.int8())).as_py() or 0.0)
    if sample.form.comment:
        found.source.append(Setting("comment", sample.form.comment, "lines that begin so are no sequences"))
    if sample.form.separator:
        found.source.insert(2, Setting("separator", sample.form.separator, "between the ids of a line"))
    others = [t for t in tables if t is not pair.table and t is not table]
    found.ignored = {
        **looked.ignored,
        **{
            t.sample.files[0].path: t.why or "a source of sequences reads a table of items beside them, and no other"
            for t in others
        },
    }
    return found


def _is_plain(sample: Sample) -> bool:
    """Whether a table needs no settings of its form."""
    form = sample.form
    return form is None or (
        not isinstance(form, SequenceForm) and form.is_usual and form.encoding == "utf-8" and not form.comment
    )
