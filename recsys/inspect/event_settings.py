"""The settings of ``data.source`` that the events need: times, values, lists, lookups, files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from recsys.inspect.event_columns import EventColumns
from recsys.inspect.event_pairs import Pair
from recsys.inspect.input_files import ArgumentContent, shown_path
from recsys.inspect.sampled_tables import Table
from recsys.inspect.siblings import EventFiles
from recsys.inspect.table_plans import Planned
from recsys.inspect.time_columns import HOURS_FORM
from recsys.inspect.understood import Setting
from recsys.sources.validate import CellRules


class EventSettings:
    """Write what was found out about the events as settings, each with a reason.

    Parameters
    ----------
    looked : ArgumentContent
        The arguments, with their files.
    tables : sequence of Table
        All tables, with their roles.
    pair : Pair
        The table of events, with its user and item.
    columns : EventColumns
        The columns of the events.
    files : EventFiles
        Splits and event types of the files of events.
    no_grade : tuple
        The numbers that mean no grade with what they count as, and why.
    """

    def __init__(
        self,
        looked: ArgumentContent,
        tables: Sequence[Table],
        pair: Pair,
        columns: EventColumns,
        files: EventFiles,
        no_grade: tuple[dict[str, float], str],
    ) -> None:
        self.looked, self.tables, self.pair = looked, tables, pair
        self.columns, self.files, self.no_grade = columns, files, no_grade

    def settings(self, rules: CellRules) -> list[Setting]:
        """The settings of cells, times, lists, lookups and files."""
        found = _decimal_settings(self.tables)
        if rules.time_format and self.columns.time is not None:
            time = self.columns.time
            why = f"format of {time.name}, e.g. {time.example}"
            if time.time is not None and time.time.is_number:
                why = f"a number of {time.name} is read as a day from 1900 on; its date is unknown"
            found.append(Setting("time_format", self.form_of_files(rules.time_format), why))
        value = self.columns.value
        if value is not None and value.scale is not None:
            why = f"the number of each text of {value.name}; change them if the order is another"
            found.append(Setting("values", {**value.scale.grades, **self.no_grade[0]}, why))
        elif self.no_grade[0]:
            found.append(Setting("values", *self.no_grade))
        if self.files.splits:
            found.append(
                Setting("split_files", self.files.splits, "split of each file, from its name")
            )
        found += self._time_settings()
        if lookups := self.pair.table.lookups:
            given = {name for table in lookups.values() for name in table.sample.rows.column_names}
            added = ", ".join(name for name in self.columns.names if name in given)
            files = {
                column: [shown_path(path) for path in self.looked.patterns(table.sample)]
                for column, table in lookups.items()
            }
            why = f"the events refer to its rows, which have {added}"
            if self.pair.table.sample.files in [table.sample.files for table in lookups.values()]:
                why = "only the first line of an order has all cells, which fill the further lines"
            found.append(Setting("lookup", files, why))
        if drop := self.pair.table.drop:
            why = "these rows show no interest, were not carried out, or are parts of other rows"
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
        if self.files.types:
            found.append(
                Setting("type_files", self.files.types, "event type of each file, from its name")
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
            if isinstance(table.clock, dict):
                why = f"orders the events of a user on one day; {days} {have} only the day"
            if self.files.names:
                why = "the time of day, in files that have only the day besides"
            found.append(Setting("clock", table.clock, why))
        return found

    def form_of_files(self, form: str) -> str:
        """The time format of the files; columns of hours are not part of it."""
        is_numbers = isinstance(self.pair.table.clock, (list, dict))
        return form.removesuffix(HOURS_FORM) if is_numbers else form

    def time_name(self) -> str:
        """The columns with the times, in words."""
        assert self.columns.time is not None
        return ", ".join(self.pair.table.date_columns) or self.columns.time.name


def decimal_marks(tables: Sequence[Table]) -> dict[str, str]:
    """Role of tables → the decimal mark of their numbers in text; empty if none has one."""
    found: dict[str, str] = {}
    for table in tables:
        if table.role and found.get(table.role) != ",":
            found[table.role] = table.decimal or found.get(table.role, "")
    return found


def _decimal_settings(tables: Sequence[Table]) -> list[Setting]:
    """The decimal marks of text files, if some have a comma: one for all tables that have any, or
    one for each table.
    """
    marks = decimal_marks(tables)
    commas = {role: mark for role, mark in marks.items() if mark == ","}
    if not commas:
        return []
    points = [role for role, mark in marks.items() if mark == "."]
    if not points:
        return [Setting("decimal", ",", "numbers are written like 2,5")]
    why = f"numbers are written like 2,5; those of {' and '.join(points)} are written like 2.5"
    return [Setting("decimal", commas, why)]


def derived_settings(planned: Planned) -> list[Setting]:
    """The columns of the events that become attributes of items and users."""
    found = []
    for noun, columns, attributes in (
        ("item", planned.of_items, planned.items),
        ("user", planned.of_users, planned.users),
    ):
        if columns and attributes is not None:
            names = [attributes.rename.get(column.name, column.name) for column in columns]
            why = f"nearly constant for each {noun}, so read as attributes of {noun}s"
            found.append(Setting(f"{noun}_columns", names, why))
    return found
