"""From plain tables to the configuration of the sources ``canonical`` and ``sequences``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from recsys import schema
from recsys.errors import SourceError
from recsys.inspect.canceled import without_canceled
from recsys.inspect.column_uses import (
    Attributes,
    attributes_of,
    attributes_of_events,
    reserved,
    why_unused,
)
from recsys.inspect.columns import Column, bare_tokens
from recsys.inspect.common_names import SESSION, similarity
from recsys.inspect.common_values import IdSet
from recsys.inspect.event_columns import (
    EventColumns,
    columns_of_events,
    unordered_ratings,
)
from recsys.inspect.event_pairs import (
    Pair,
    find_chosen,
    find_events,
    find_events_in_lists,
    with_orders,
)
from recsys.inspect.event_statistics import (
    Types,
    events_of,
    notes_on_ids,
    roles_of_types,
    statistics_of,
    with_enough_tests,
    with_rated,
    without_hints,
)
from recsys.inspect.input_files import ArgumentContent, data_name, shown_path
from recsys.inspect.order_numbers import with_order_numbers
from recsys.inspect.ratings import code_of_no_grade, smallest_value
from recsys.inspect.roles import as_stated_friends, assign_roles
from recsys.inspect.sampled_tables import Table
from recsys.inspect.samples import Sample, together
from recsys.inspect.sequences import understand_sequences
from recsys.inspect.siblings import event_files
from recsys.inspect.source_keys import (
    TablePlan,
    form_words,
    plan_of_attributes,
    relation_of,
    source_settings,
)
from recsys.inspect.time_columns import HOURS_FORM, with_time_columns
from recsys.inspect.understood import Setting, TableSummary, Understood, percent
from recsys.sources.validate import CellRules, Layout, check_rows

_CLEARLY: Final = 1.0  # difference of scores from which the members of lists are the events
_MOST_CONTEXT: Final = 200  # most distinct values of a context column


def understand(looked: ArgumentContent, stated: Mapping[str, str] | None = None) -> Understood:
    """Find the roles of the tables; ``stated`` has those that the user stated, by argument.

    Raises
    ------
    SourceError
        No table has events.
    """
    tables = [Table.of(sample) for sample in looked.tables]
    stated = stated or {}
    may_be = [table for table in tables if stated.get(table.sample.given, "events") == "events"]
    # orders first: the time is often a column of the order
    try:
        pair = with_time_columns(with_orders(_events(tables, may_be or tables), tables))
    except SourceError as error:
        if "events" not in stated.values():
            raise
        raise SourceError(f"the argument events: {error}") from None
    pair = with_order_numbers(without_canceled(pair))
    ours = {*pair.table.sample.files}
    tables = [pair.table, *(table for table in tables if not {*table.sample.files} <= ours)]
    for table in tables:
        if table is not pair.table and stated.get(table.sample.given) == "social":
            as_stated_friends(table, pair)
    assign_roles(tables, pair)
    pair.table.role = "events"
    if pair.table.sample.format == "sequences":
        return understand_sequences(looked, tables, pair)
    return _Canonical(looked, tables, pair).understood()


def _events(tables: Sequence[Table], may_be: Sequence[Table]) -> Pair:
    """Find the events: a row each, or, if no table has these, as members of lists."""
    if (chosen := find_chosen(tables, may_be)) is not None:
        return chosen
    try:
        found = find_events(tables, may_be)
    except SourceError:
        in_lists = find_events_in_lists(tables, may_be)
        if in_lists is None:
            raise
        return in_lists
    if found.item.kind == "list" and not found.item.is_wordy:  # codes, not titles with commas
        return find_events_in_lists(tables, [found.table]) or found
    in_lists = find_events_in_lists(tables, may_be)
    is_better = in_lists is not None and in_lists.score > found.score + _CLEARLY
    return in_lists if in_lists is not None and is_better else found


class _Canonical:
    """Interpret the tables; every step is a method, in the order of :meth:`understood`."""

    def __init__(self, looked: ArgumentContent, tables: Sequence[Table], pair: Pair) -> None:
        self.looked, self.tables, self.pair = looked, tables, pair
        self.columns: EventColumns = columns_of_events(pair)
        self.no_grade = code_of_no_grade(self.columns.value, pair.table.sample.has_names)
        self.ignored = dict(looked.ignored)
        self.notes: list[str] = []
        files = event_files(looked, tables, pair, self.columns)
        self.rows, self.sample = files.rows, files.sample
        self.splits_of_files, self.types_of_files = files.splits, files.types
        self.names_of_others = files.names

    def understood(self) -> Understood:
        """Everything."""
        rules = self._rules()
        names = self.columns.names
        events, bad = events_of(self.rows, self._typed_names(), rules)
        # the parser has left out broken rows, so shares of the parsed rows are too small
        bad = self._with_broken(bad, self.sample)
        meaning = (
            roles_of_types(sorted(set(events.column(schema.EVENT_TYPE).to_pylist())))
            if self._has_types
            else Types()
        )
        if self.types_of_files and not meaning.targets:
            meaning = with_rated(meaning, self.rows, self.columns.value)
        meaning = without_hints(meaning, events)
        # once with all types and values, because these decide which of them count
        time = self.columns.time.time if self.columns.time else None
        has_clock = time is None or not time.counts_by_user
        first = statistics_of(events, bad, meaning.targets, has_clock=has_clock)
        if not self._is_split and with_enough_tests(meaning, first) is not meaning:
            meaning = with_enough_tests(meaning, first)
            first = statistics_of(events, bad, has_clock=has_clock)
        min_value, min_why, is_rating = smallest_value(
            events, first, self.columns.value, self.pair.table.sample.has_names
        )
        if meaning.history:
            is_used = pc.is_in(
                events.column(schema.EVENT_TYPE), value_set=pa.array(meaning.history)
            )
            events = events.filter(is_used)
        statistics = replace(
            statistics_of(events, bad, meaning.targets, min_value, has_clock),
            all_types=tuple(first.types),
        )
        plans, items, users, derived = self._plans(names)
        found = Understood(name=self._name(), source=[], statistics=statistics, meaning=meaning)
        self._order(found)
        found.items, found.users, found.items_by_events = items, users, bool(derived[0])
        found.has_items = any(plan.role == "items" for plan in plans)
        found.context = self._context(derived)
        found.idle = self._idle(derived, items, users)
        found.value_name = self.columns.value.name if self.columns.value else ""
        found.is_rating, found.min_value, found.min_value_why = is_rating, min_value, min_why
        found.has_clock = has_clock
        found.has_dates = not (time and time.is_number)
        found.is_sampled = not self.sample.is_whole
        found.day_only = bool(time and time.by_day)
        found.other_time_format = self._form_of_files(time.other) if time else ""
        if words := unordered_ratings(self.pair.table, self.columns):
            found.unordered = words.name, bare_tokens(words)
        found.source = (
            source_settings(self.looked, plans)
            + self._cell_settings(rules)
            + self._derived_settings(derived, items, users)
        )
        found.unknown_items = self._unknown_items(events)
        self._side_tables(found, plans, rules)
        found.bad["events"] = statistics.bad_share
        found.bad_why["events"] = "; ".join(
            f"{percent(share)} {reason}"
            for reason, share in sorted(statistics.bad.items(), key=lambda x: -x[1])[:3]
        )
        found.tables = [self._summary(plan, items, users) for plan in plans]
        found.ignored = {**self.ignored, **self._left_out()}
        notes, found.has_email_ids = notes_on_ids(events)
        found.notes = self.notes + notes
        return found

    # --------------------------------------------------------------------------------------- events

    @property
    def _has_types(self) -> bool:
        return self.columns.type is not None or bool(self.types_of_files)

    @property
    def _is_split(self) -> bool:
        return bool(self.splits_of_files) or self.columns.split is not None

    def _typed_names(self) -> dict[str, str]:
        names = dict(self.columns.names)
        for column, files in (
            (schema.SPLIT, self.splits_of_files),
            (schema.EVENT_TYPE, self.types_of_files),
        ):
            if files:
                names[column] = column
        return names

    def _rules(self) -> CellRules:
        commas = [
            table.sample.name
            for table in self.tables
            if table.role
            for c in table.columns
            if c.decimal_comma
        ]
        time = self.columns.time.time if self.columns.time else None
        scale = self.columns.value.scale if self.columns.value else None
        grades = scale.grades if scale is not None else self.no_grade[0]
        return CellRules(
            time_format=time.format if time else "",
            decimal="," if commas else ".",
            values=tuple((text.lower(), grade) for text, grade in grades.items()),
        )

    def _with_broken(self, bad: dict[str, float], sample: Sample) -> dict[str, float]:
        if not sample.num_broken:
            return bad
        every = sample.num_broken + self.rows.num_rows
        scaled = {reason: share * self.rows.num_rows / every for reason, share in bad.items()}
        return {**scaled, "rows with a different number of cells": sample.num_broken / every}

    def _order(self, found: Understood) -> None:
        statistics, time = found.statistics, self.columns.time
        if statistics.has_times and time is not None:
            found.order, found.order_why = "time", f"every event has a time, in {self._time_name()}"
            if time.time is not None and time.time.counts_by_user:
                found.order_why = f"{self._time_name()} orders the events of each user"
        elif statistics.timed > 0.5 and time is not None:
            found.order = "auto"
            found.order_why = (
                f"{statistics.timed:.0%} of the events have a time in {self._time_name()}"
            )
        else:
            found.order = "none"
            found.order_why = "no column has times, and the order of rows is unknown"
        if self._is_split:
            count = ", ".join(f"{split} {number:,}" for split, number in statistics.splits.items())
            column = self.columns.split
            where = (
                f"split by the column {column.name}"
                if column is not None
                else "split by file names"
            )
            found.split = {"kind": "given"}, f"{where}: {count}"

    def _unknown_items(self, events: pa.Table) -> float:
        table = next((table for table in self.tables if table.role == "items"), None)
        if table is None or not events.num_rows:
            return 0.0
        key = next(table.column(name) for name, to in table.names.items() if to == schema.ITEM_ID)
        known = pc.is_in(events.column(schema.ITEM_ID), value_set=IdSet(key).ids)
        return 1.0 - float(pc.mean(known.cast(pa.int8())).as_py() or 0.0)

    def _idle(
        self,
        derived: tuple[list[Column], list[Column]],
        items: Attributes | None,
        users: Attributes | None,
    ) -> dict[str, str]:
        """The columns of the events that no member reads, and why."""
        used = {column.name for columns in derived for column in columns}
        used |= {*(items.idle if items else ()), *(users.idle if users else ())}
        idle = {
            column.name: why_unused(column, self.columns.item, self.columns.user)
            for column in self.columns.left
            if column.name not in used
        }
        marks = self.pair.table.drop
        return idle | {
            name: f"rows with {' or '.join(of_name)} are left out"
            for name, of_name in marks.items()
        }

    def _context(self, derived: tuple[list[Column], list[Column]]) -> list[Column]:
        derived_names = {column.name for columns in derived for column in columns}
        return [
            column
            for column in self.columns.left
            if column.name not in {*derived_names, *self.pair.table.drop}
            and column.kind in ("token", "flag")
            # context is known at a request only if it is one of few values
            and 2 <= column.num_distinct <= _MOST_CONTEXT
            and similarity(column.name, SESSION) < 0.8
            # a column that describes the item tells what is to be predicted
            and not self.pair.is_described_by(column)
        ]

    # --------------------------------------------------------------------------------------- tables

    def _plans(
        self, names: dict[str, str]
    ) -> tuple[
        list[TablePlan], Attributes | None, Attributes | None, tuple[list[Column], list[Column]]
    ]:
        events = self.pair.table
        moved_events = reserved(events, schema.EVENTS, names)
        reasons = self._event_reasons() | {
            name: f"renamed, because {name!r} has a reserved meaning" for name in moved_events
        }
        reasons |= dict.fromkeys(self.names_of_others, "as in the main file of events")
        every = {**names, **self.names_of_others, **moved_events}
        plan = TablePlan("events", self.sample, every, reasons)
        plans = [plan]
        of_items, of_users = self._by_events()
        items = users = None
        item_ids = IdSet(self.columns.item)
        for role, kind, key in (
            ("items", schema.ITEMS, schema.ITEM_ID),
            ("users", schema.USERS, schema.USER_ID),
        ):
            table = next((table for table in self.tables if table.role == role), None)
            if table is None:
                continue
            column = next(table.column(name) for name, to in table.names.items() if to == key)
            rest = [c for c in table.columns if c is not column]
            moved = reserved(table, kind, table.names)
            ids = (
                {"items": item_ids}
                if role == "items"
                else {"items": None, "people": IdSet(self.columns.user)}
            )
            found = attributes_of(table, rest, [key], moved=moved, **ids)
            if role == "users" and not found.used:
                why = "; ".join(f"{name}: {reason}" for name, reason in found.idle.items())
                table.role = ""
                table.why = f"it looks like users, but no column can be used ({why})"
                continue
            plans.append(
                plan_of_attributes(role, table.sample, table.names, found, moved, table.shares)
            )
            items, users = (found, users) if role == "items" else (items, found)
        if of_items:
            items = attributes_of(
                events, of_items, [*names.values()], item_ids, moved_events, of=self.columns.item
            )
            of_items = self._take(plan, of_items, items)
        if of_users:
            users = attributes_of(
                events, of_users, [*names.values()], None, moved_events, of=self.columns.user
            )
            of_users = self._take(plan, of_users, users)
        for role in ("social", "knowledge"):
            plans += self._pairs_of(role)
        return plans, items or None, users or None, (of_items, of_users)

    def _by_events(self) -> tuple[list[Column], list[Column]]:
        """Find event columns that describe items and users, if there are no tables of them."""
        of_items, of_users = attributes_of_events(
            self.pair.table, self.pair.user, self.pair.item, self.columns.left
        )
        roles = {table.role for table in self.tables}
        return ([] if "items" in roles else of_items), ([] if "users" in roles else of_users)

    def _take(self, plan: TablePlan, columns: Sequence[Column], found: Attributes) -> list[Column]:
        """Name the event columns that make a table; leave out unused ones."""
        used = []
        for column in columns:
            name = found.rename.get(column.name, column.name)
            if name not in found.used:
                continue
            used.append(column)
            if name != column.name:
                plan.names[column.name] = name
            if name in found.numbers:
                plan.numbers.append(name)
        return used

    def _pairs_of(self, role: str) -> list[TablePlan]:
        """Plan how to read friends or triples; several files of one form are read as one table."""
        tables = [table for table in self.tables if table.role == role]
        if not tables:
            return []
        # one table of a role is read, so the largest decides the form
        first = max(tables, key=lambda table: table.sample.num_rows)
        for table in tables:
            same = table.sample.form == first.sample.form and table.names == first.names
            if not same:
                table.role = ""
                table.why = f"a second table of {role} next to {first.sample.name}, in another form"
        used = [table for table in tables if table.role == role]
        sample = together([table.sample for table in used]) if len(used) > 1 else first.sample
        kind = schema.TABLES[role]
        names = {**first.names, **reserved(first, kind, first.names)}
        own = (schema.RELATION, schema.TAIL)
        reasons = {
            name: "the fact" if to in own else first.shares for name, to in first.names.items()
        }
        plan = TablePlan(role, sample, names, reasons)
        if role == "knowledge" and schema.RELATION not in first.names.values():
            tail = next(name for name, to in first.names.items() if to == schema.TAIL)
            plan.constants = {schema.RELATION: relation_of(first.sample, tail)}
        return [plan]

    def _event_reasons(self) -> dict[str, str]:
        """Explain the role of each event column."""
        found: dict[str, str] = {}
        columns = self.columns
        shared = [table.sample.name for table in self.tables if table.role in ("users", "social")]
        found[columns.user.name] = f"{columns.user.num_distinct:,} distinct ids" + (
            f", also in {', '.join(shared)}" if shared else ""
        )
        shared = [
            table.sample.name for table in self.tables if table.role in ("items", "knowledge")
        ]
        found[columns.item.name] = f"{columns.item.num_distinct:,} distinct ids" + (
            f", also in {', '.join(shared)}" if shared else ""
        )
        if columns.time is not None and columns.time.time is not None:
            found[columns.time.name] = columns.time.time.words
        if columns.type is not None:
            found[columns.type.name] = f"{columns.type.num_distinct} event types"
        if columns.value is not None:
            value = columns.value
            found[value.name] = (
                value.scale.words
                if value.scale is not None
                else f"numbers from {value.low:g} to {value.high:g}"
            )
        if columns.split is not None:
            found[columns.split.name] = "split of the event"
        return found

    # ------------------------------------------------------------------------------------- settings

    def _cell_settings(self, rules: CellRules) -> list[Setting]:
        found = []
        if rules.decimal == ",":
            found.append(Setting("decimal", ",", "numbers are written like 2,5"))
        if rules.time_format and self.columns.time is not None:
            time = self.columns.time
            why = f"format of {time.name}, e.g. {time.example}"
            if time.time is not None and time.time.is_number:
                why = f"a number of {time.name} is read as a day from 1900 on; its date is unknown"
            found.append(Setting("time_format", self._form_of_files(rules.time_format), why))
        value = self.columns.value
        if value is not None and value.scale is not None:
            why = f"the number of each text of {value.name}; change them if the order is another"
            found.append(Setting("values", dict(value.scale.grades), why))
        if self.no_grade[0]:
            found.append(Setting("values", *self.no_grade))
        if self.splits_of_files:
            found.append(
                Setting("split_files", self.splits_of_files, "split of each file, from its name")
            )
        found += self._time_settings()
        if lookups := self.pair.table.lookups:
            given = {name for table in lookups.values() for name in table.sample.rows.column_names}
            added = ", ".join(name for name in self.columns.names if name in given)
            files = {
                column: [shown_path(path) for path in self.looked.patterns(table.sample)]
                for column, table in lookups.items()
            }
            found.append(
                Setting("lookup", files, f"the events refer to its rows, which have {added}")
            )
        if drop := self.pair.table.drop:
            why = "these rows were not carried out, or only shown"
            why += f": {self.pair.table.dropped:.1%} of all rows{', together' * (len(drop) > 1)}"
            found.append(Setting("drop", drop, why))
        if self.pair.table.lists:
            why = "the rows have lists; each member is an event"
            found.append(Setting("lists", self._named(self.pair.table.lists), why))
        if self.pair.table.chosen:
            why = "the lists hold what was shown; this ending marks what the user chose"
            found.append(Setting("chosen", self._named(self.pair.table.chosen), why))
        for table in self.tables:
            if table.role == "social" and table.lists:
                why = "each user has a list of friends; each member is a link"
                found.append(Setting("lists.social", table.lists, why))
        if self.types_of_files:
            found.append(
                Setting("type_files", self.types_of_files, "event type of each file, from its name")
            )
        return found

    def _named(self, columns: Mapping[str, str]) -> dict[str, str]:
        """The settings of columns by the names that the readers know."""
        names = {} if self.pair.table.sample.has_names else self.columns.names
        return {names.get(name, name): value for name, value in columns.items()}

    def _time_settings(self) -> list[Setting]:
        """The columns that have the times together."""
        found, table, time = [], self.pair.table, self.columns.time
        if time is None:
            return []
        if table.date_columns:
            why = "together the date of the event; no column has the whole date"
            if len(table.date_columns) == 2:
                why += ", nor the day: it is the first day of the month"
            found.append(Setting("date_columns", table.date_columns, why))
        if table.clock:
            days = ", ".join(table.date_columns) or time.name
            have = "have" if table.date_columns else "has"
            why = f"the time of day; {days} {have} only the day"
            if self.names_of_others:
                why = "the time of day, in files that have only the day besides"
            found.append(Setting("clock", table.clock, why))
        return found

    def _form_of_files(self, form: str) -> str:
        """The time format of the files; columns of hours are not part of it."""
        is_numbers = isinstance(self.pair.table.clock, list)
        return form.removesuffix(HOURS_FORM) if is_numbers else form

    def _time_name(self) -> str:
        """The columns with the times, in words."""
        assert self.columns.time is not None
        return ", ".join(self.pair.table.date_columns) or self.columns.time.name

    def _derived_settings(
        self,
        derived: tuple[list[Column], list[Column]],
        items: Attributes | None,
        users: Attributes | None,
    ) -> list[Setting]:
        found = []
        for key, columns, attributes in (
            ("item_columns", derived[0], items),
            ("user_columns", derived[1], users),
        ):
            if columns and attributes is not None:
                names = [attributes.rename.get(column.name, column.name) for column in columns]
                noun = key.split("_")[0]
                found.append(
                    Setting(
                        key,
                        names,
                        f"nearly constant for each {noun}, so read as attributes of {noun}s",
                    )
                )
        return found

    def _side_tables(self, found: Understood, plans: Sequence[TablePlan], rules: CellRules) -> None:
        """Describe friends and triples, and compute the share of unusable rows of each table."""
        for plan in plans[1:]:
            table = schema.TABLES[plan.role]
            given = {
                to: plan.sample.rows.column(name)
                for name, to in plan.names.items()
                if to in table.columns
            }
            checked = check_rows(pa.table(given), Layout(table, rules=rules))
            reasons = checked.column(schema.REASON).drop_null()
            lost = len(reasons) - sum(
                1 for reason in reasons.to_pylist() if "relation" in str(reason) and plan.constants
            )
            every = plan.sample.rows.num_rows + plan.sample.num_broken
            found.bad[plan.role] = (max(lost, 0) + plan.sample.num_broken) / max(every, 1)
            found.bad_why[plan.role] = ", ".join(
                sorted({str(reason) for reason in reasons.to_pylist()})[:3]
            )
            shares = next((t.shares for t in self.tables if t.role == plan.role), "")
            if plan.role == "social":
                found.friends = f"{plan.sample.num_rows:,} links; {shares}"
            if plan.role == "knowledge":
                found.triples = f"{plan.sample.num_rows:,} triples; {shares}"

    def _left_out(self) -> dict[str, str]:
        return {
            ", ".join(file.path for file in table.sample.files[:3]): table.why or "not used"
            for table in self.tables
            if not table.role
        }

    def _summary(
        self, plan: TablePlan, items: Attributes | None, users: Attributes | None
    ) -> TableSummary:
        files = ", ".join(self.looked.patterns(plan.sample)[:3])
        if plan.role == schema.EVENTS.name:
            for column, table in self.pair.table.lookups.items():
                files += f" with {table.sample.files[0].path} by {column}"
        summary = TableSummary(
            plan.role, files, f"{form_words(plan.sample)}, {plan.sample.num_rows:,} rows"
        )
        for name, to in plan.names.items():
            if to in schema.TABLES[plan.role].columns:
                reason = plan.reasons.get(name, "")
                if to == schema.TIMESTAMP and plan.role == schema.EVENTS.name:
                    name = self._time_name()
                words = f"{name}: {reason}" if plan.sample.has_names else reason or name
                summary.columns.setdefault(to, words)  # the main file comes first
        return summary

    def _name(self) -> str:
        return data_name(self.pair.table.sample.files[0])
