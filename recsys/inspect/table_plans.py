"""How each table is read: the names of its columns, which of them are used, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow.compute as pc

from recsys import schema
from recsys.inspect.column_uses import Attributes, attributes_of, reserved
from recsys.inspect.columns import Column
from recsys.inspect.common_values import IdSet
from recsys.inspect.event_attributes import attributes_of_events
from recsys.inspect.event_columns import EventColumns
from recsys.inspect.event_pairs import Pair
from recsys.inspect.sampled_tables import Table
from recsys.inspect.samples import Sample, together
from recsys.inspect.source_keys import ENTITIES, TablePlan, plan_of_attributes, relation_of


@dataclass(frozen=True)
class Planned:
    """The plans, the events first, and the attributes of items and users that they give."""

    plans: list[TablePlan]
    items: Attributes | None
    users: Attributes | None
    of_items: list[Column]  # columns of the events that describe items
    of_users: list[Column]

    @property
    def derived_names(self) -> set[str]:
        """The columns of the events that describe items or users."""
        return {column.name for column in (*self.of_items, *self.of_users)}


class TablePlans:
    """Plan the tables of the source ``canonical``.

    Parameters
    ----------
    tables : sequence of Table
        All tables, with their roles.
    pair : Pair
        The table of events, with its user and item.
    columns : EventColumns
        The columns of the events.
    sample : Sample
        Rows of the events.
    names_of_others : mapping of str to str
        Names of columns in further files of events.
    """

    def __init__(
        self,
        tables: Sequence[Table],
        pair: Pair,
        columns: EventColumns,
        sample: Sample,
        names_of_others: Mapping[str, str],
    ) -> None:
        self.tables, self.pair, self.columns = tables, pair, columns
        self.sample, self.names_of_others = sample, names_of_others

    def planned(self) -> Planned:
        """Plan every table that is used; a table of which nothing can be used loses its role."""
        events, names = self.pair.table, self.columns.names
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
            rest = [c for c in table.columns if c.name not in table.names]
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
        for role in ("social", "knowledge", "links"):
            plans += self._pairs_of(role)
        return Planned(plans, items or None, users or None, of_items, of_users)

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
        kind = schema.FILE_TABLES[role]
        names = {**first.names, **reserved(first, kind, first.names)}
        fact = {schema.RELATION: "the kind of fact", schema.TAIL: "the value of the fact"}
        own = {**fact, schema.ENTITY_ID: ENTITIES}
        reasons = {name: own.get(to, first.shares) for name, to in first.names.items()}
        plan = TablePlan(role, sample, names, reasons)
        if role == "knowledge" and schema.RELATION not in first.names.values():
            tail = next(name for name, to in first.names.items() if to == schema.TAIL)
            plan.constants = {schema.RELATION: relation_of(first.sample, tail)}
        return [plan]

    def _num_distinct(self, column: Column) -> int:
        """Distinct values of a column of the main file in all files of events."""
        return int(pc.count_distinct(self.sample.rows.column(column.name)).as_py())

    def _event_reasons(self) -> dict[str, str]:
        """Explain the role of each event column."""
        found: dict[str, str] = {}
        columns = self.columns
        shared = [table.sample.name for table in self.tables if table.role in ("users", "social")]
        found[columns.user.name] = f"{self._num_distinct(columns.user):,} distinct ids" + (
            f", also in {', '.join(shared)}" if shared else ""
        )
        shared = [
            table.sample.name for table in self.tables if table.role in ("items", "knowledge")
        ]
        found[columns.item.name] = f"{self._num_distinct(columns.item):,} distinct ids" + (
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
