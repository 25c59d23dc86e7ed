"""From plain tables to the configuration of the sources ``canonical`` and ``sequences``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from recsys import schema
from recsys.errors import SourceError
from recsys.inspect.canceled import why_marked, without_canceled
from recsys.inspect.columns import Column, are_lists, bare_tokens
from recsys.inspect.common_names import SESSION, similarity
from recsys.inspect.common_values import IdSet, share_unknown
from recsys.inspect.event_attributes import (
    has_few_users,
    is_unread_time,
    refuse_histories,
    refuse_lists_without_users,
    why_unused,
)
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
)
from recsys.inspect.event_settings import EventSettings, decimal_marks, derived_settings
from recsys.inspect.event_statistics import (
    Types,
    events_of,
    note_on_new_users,
    notes_on_ids,
    roles_of_types,
    statistics_of,
    with_enough_tests,
    with_rated,
    without_hints,
)
from recsys.inspect.input_files import ArgumentContent, data_name
from recsys.inspect.interest_flags import is_outcome
from recsys.inspect.order_numbers import with_order_numbers
from recsys.inspect.orders import with_first_lines, with_orders
from recsys.inspect.ratings import code_of_no_grade, smallest_value
from recsys.inspect.roles import as_stated_friends, assign_roles
from recsys.inspect.row_order import SEEM_ORDERED, are_in_order
from recsys.inspect.sampled_tables import Table, determines
from recsys.inspect.samples import Sample
from recsys.inspect.sequences import (
    are_alone,
    order_of_lines,
    understand_sequences,
    with_parts,
)
from recsys.inspect.siblings import event_files
from recsys.inspect.source_keys import (
    TablePlan,
    form_words,
    source_settings,
)
from recsys.inspect.table_plans import Planned, TablePlans
from recsys.inspect.time_columns import with_time_columns
from recsys.inspect.type_choice import without_strange_items
from recsys.inspect.understood import TableSummary, Understood, percent
from recsys.inspect.unused_columns import notes_on_unused
from recsys.sources.validate import CellRules, Layout, check_rows

_HOPELESS: Final = 0.9  # share of rows that are no events, from which they are refused
_CLEARLY: Final = 1.0  # difference of scores from which the members of lists are the events
_TELLS_ITEM: Final = 0.9  # how far a column determines the item that it tells
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
        pair = with_time_columns(
            with_first_lines(with_orders(_events(tables, may_be or tables), tables))
        )
    except SourceError as error:
        if "events" not in stated.values():
            raise
        raise SourceError(f"the argument events: {error}") from None
    refuse_histories(pair)
    refuse_lists_without_users(pair)
    pair = with_order_numbers(without_canceled(pair))
    tables, pair = with_parts(tables, pair)
    ours = {*pair.table.sample.files}
    tables = [pair.table, *(table for table in tables if not {*table.sample.files} <= ours)]
    for table in tables:
        if table is not pair.table and stated.get(table.sample.given) == "social":
            as_stated_friends(table, pair)
    assign_roles(tables, pair)
    pair.table.role = "events"
    if pair.table.sample.format == "sequences" and are_alone(tables, pair):
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
    # codes, not titles with commas
    if found.item.kind == "list" and (not found.item.is_wordy or are_lists(found.item)):
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
        if has_few_users(pair):
            user = pair.user
            self.notes.append(
                f"the users are the {user.num_distinct} values of {user.name}, such as"
                f" {user.example}; if they are no users, rename another column to user_id"
            )
        self.files = event_files(looked, tables, pair, self.columns)
        self.rows, self.sample = self.files.rows, self.files.sample
        self.settings = EventSettings(looked, tables, pair, self.columns, self.files, self.no_grade)

    def understood(self) -> Understood:
        """Everything."""
        rules = self._rules()
        events, bad = events_of(self.rows, self._typed_names(), rules)
        if self.sample.is_whole and (note := note_on_new_users(events)):
            self._forget_split()
            self.notes.append(note)
            events, bad = events_of(self.rows, self._typed_names(), rules)
        # the parser has left out broken rows, so shares of the parsed rows are too small
        bad = self._with_broken(bad, self.sample)
        meaning = (
            roles_of_types(sorted(set(events.column(schema.EVENT_TYPE).to_pylist())))
            if self._has_types
            else Types()
        )
        if self.files.types and not meaning.targets:
            meaning = with_rated(meaning, self.rows, self.columns.value)
        if self._items is not None and self._items.sample.is_whole:
            meaning = without_strange_items(meaning, events, self._item_ids)
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
        # a run checks the items of all events, also of those that it leaves out
        unknown_items = self._unknown_items(events)
        if meaning.history:
            is_used = pc.is_in(
                events.column(schema.EVENT_TYPE), value_set=pa.array(meaning.history)
            )
            events = events.filter(is_used)
        statistics = replace(
            statistics_of(events, bad, meaning.targets, min_value, has_clock),
            all_types=tuple(first.types),
        )
        planned = TablePlans(
            self.tables, self.pair, self.columns, self.sample, self.files.names
        ).planned()
        found = Understood(name=self._name(), source=[], statistics=statistics, meaning=meaning)
        self._order(found)
        found.items, found.users = planned.items, planned.users
        found.items_by_events = bool(planned.of_items)
        found.has_items = any(plan.role == "items" for plan in planned.plans)
        found.context = self._context(planned.derived_names)
        found.idle = self._idle(planned)
        found.value_name = self.columns.value.name if self.columns.value else ""
        found.is_rating, found.min_value, found.min_value_why = is_rating, min_value, min_why
        found.has_clock = has_clock
        found.has_dates = not (time and time.is_number)
        found.is_sampled = not self.sample.is_whole
        used = (self.sample, *(table.sample for table in self.tables if table.role))
        files = [file.path for one in used if not one.is_whole for file in one.files]
        found.sampled = tuple(dict.fromkeys(files))
        found.day_only = bool(time and time.by_day)
        found.other_time_format = self.settings.form_of_files(time.other) if time else ""
        if words := unordered_ratings(self.pair.table, self.columns):
            found.unordered = words.name, bare_tokens(words)
        found.source = (
            source_settings(self.looked, planned.plans)
            + self.settings.settings(rules)
            + derived_settings(planned)
        )
        found.unknown_items = unknown_items
        self._side_tables(found, planned.plans, rules)
        found.bad["events"] = statistics.bad_share
        found.bad_why["events"] = "; ".join(
            f"{percent(share)} {reason}"
            for reason, share in sorted(statistics.bad.items(), key=lambda x: -x[1])[:3]
        )
        if found.bad["events"] > _HOPELESS:
            raise SourceError(
                f"{percent(found.bad['events'])} of the rows of"
                f" {self.pair.table.sample.files[0].path} are no events:"
                f" {found.bad_why['events']}; correct these columns, or name others in"
                " data.source.rename (docs/files.md)"
            )
        found.tables = [self._summary(plan) for plan in planned.plans]
        found.ignored = {**self.ignored, **self._left_out()}
        notes, found.has_email_ids = notes_on_ids(events)
        found.notes = self.notes + notes + notes_on_unused(self.pair, self.columns)
        return found

    # --------------------------------------------------------------------------------------- events

    @property
    def _has_types(self) -> bool:
        return self.columns.type is not None or bool(self.files.types)

    @property
    def _is_split(self) -> bool:
        return bool(self.files.splits) or self.columns.split is not None

    def _forget_split(self) -> None:
        """Read the events as one log, without the split of the files or of a column."""
        self.files, self.columns = replace(self.files, splits={}), replace(self.columns, split=None)
        self.settings = EventSettings(
            self.looked, self.tables, self.pair, self.columns, self.files, self.no_grade
        )

    def _typed_names(self) -> dict[str, str]:
        names = dict(self.columns.names)
        for column, files in (
            (schema.SPLIT, self.files.splits),
            (schema.EVENT_TYPE, self.files.types),
        ):
            if files:
                names[column] = column
        return names

    def _rules(self) -> CellRules:
        """The rules for the events."""
        time = self.columns.time.time if self.columns.time else None
        scale = self.columns.value.scale if self.columns.value else None
        grades = {**(scale.grades if scale is not None else {}), **self.no_grade[0]}
        return CellRules(
            time_format=time.format if time else "",
            decimal=decimal_marks(self.tables).get(schema.EVENTS.name) or ".",
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
        named = self.settings.time_name() if time is not None else ""
        if statistics.has_times and time is not None:
            found.order, found.order_why = "time", f"every event has a time, in {named}"
            if time.time is not None and time.time.counts_by_user:
                found.order_why = f"{named} orders the events of each user"
        elif statistics.timed > 0.5 and time is not None:
            found.order = "auto"
            found.order_why = f"{statistics.timed:.0%} of the events have a time in {named}"
        elif self.sample.format == "sequences":
            found.order, found.order_why = order_of_lines(self.rows)
        else:
            found.order = "none"
            found.order_why = self._why_no_order()
            if self._rows_are_in_order():
                found.order, found.order_why = "file", SEEM_ORDERED
        if self._is_split:
            count = ", ".join(f"{split} {number:,}" for split, number in statistics.splits.items())
            column = self.columns.split
            where = (
                f"split by the column {column.name}"
                if column is not None
                else "split by file names"
            )
            found.split = {"kind": "given"}, f"{where}: {count}"

    def _why_no_order(self) -> str:
        unread = [c.name for c in self.columns.left if is_unread_time(c)]
        times = f"the times of {unread[0]} are not read" if unread else "no column has times"
        return f"{times}, and the order of rows is unknown"

    def _rows_are_in_order(self) -> bool:
        """Whether the rows of one file seem to be in order of time."""
        if self.files.splits or self.files.types:
            return False
        columns = self.columns
        numbers = [c.values for c in (columns.value, *columns.left) if c and c.kind == "number"]
        types = columns.type.values if columns.type is not None else None
        return are_in_order(columns.user.values, columns.item.values, numbers, types)

    @property
    def _items(self) -> Table | None:
        """The table of items."""
        return next((table for table in self.tables if table.role == "items"), None)

    @cached_property
    def _item_ids(self) -> pa.Array:
        """The ids of the table of items; none without such a table."""
        if (table := self._items) is None:
            return pa.array([], pa.string())
        key = next(table.column(name) for name, to in table.names.items() if to == schema.ITEM_ID)
        return IdSet(key).ids

    def _unknown_items(self, events: pa.Table) -> float | None:
        if self._items is None or not events.num_rows:
            return 0.0
        items = events.column(schema.ITEM_ID)
        return share_unknown(items, self._item_ids, self._items.sample.is_whole)

    def _idle(self, planned: Planned) -> dict[str, str]:
        """The columns of the events that no member reads, and why."""
        used = planned.derived_names
        for attributes in (planned.items, planned.users):
            used |= {*(attributes.idle if attributes else ())}
        idle = {
            column.name: why_unused(column, self.columns.item, self.columns.user)
            for column in self.columns.left
            if column.name not in used
        }
        marks = self.pair.table.drop
        return idle | {
            name: why_marked(self.pair.table.column(name), of_name)
            for name, of_name in marks.items()
        }

    def _context(self, derived_names: set[str]) -> list[Column]:
        return [
            column
            for column in self.columns.left
            if column.name not in {*derived_names, *self.pair.table.drop}
            and column.kind in ("token", "flag")
            # context is known at a request only if it is one of few values
            and 2 <= column.num_distinct <= _MOST_CONTEXT
            and similarity(column.name, SESSION) < 0.8
            and not is_outcome(column.name)
            # the track tells the artist that is to be predicted
            and determines(column, self.columns.item) < _TELLS_ITEM
            # a column that describes the item tells what is to be predicted
            and not self.pair.is_described_by(column)
        ]

    def _side_tables(self, found: Understood, plans: Sequence[TablePlan], rules: CellRules) -> None:
        """Describe friends and triples, and compute the share of unusable rows of each table."""
        for plan in plans[1:]:
            table = schema.FILE_TABLES[plan.role]
            given = {
                to: plan.sample.rows.column(name)
                for name, to in plan.names.items()
                if to in table.columns
            }
            own = replace(rules, decimal=decimal_marks(self.tables).get(plan.role) or ".")
            checked = check_rows(pa.table(given), Layout(table, rules=own))
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

    def _summary(self, plan: TablePlan) -> TableSummary:
        files = ", ".join(self.looked.patterns(plan.sample)[:3])
        if plan.role == schema.EVENTS.name:
            for column, table in self.pair.table.lookups.items():
                files += f" with {table.sample.files[0].path} by {column}"
        summary = TableSummary(
            plan.role, files, f"{form_words(plan.sample)}, {plan.sample.num_rows:,} rows"
        )
        for name, to in plan.names.items():
            if to in schema.FILE_TABLES[plan.role].columns:
                reason = plan.reasons.get(name, "")
                if to == schema.TIMESTAMP and plan.role == schema.EVENTS.name:
                    name = self.settings.time_name()
                words = f"{name}: {reason}" if plan.sample.has_names else reason or name
                summary.columns.setdefault(to, words)  # the main file comes first
        return summary

    def _name(self) -> str:
        return data_name(self.pair.table.sample.files[0])
