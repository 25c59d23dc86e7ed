"""``data.source`` of files with canonical column names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import BeforeValidator, Field, model_validator

from recsys.config.section import as_list, as_word
from recsys.config.text_files import (
    TABLES,
    CellSource,
    Comment,
    Encoding,
    Rename,
    Separator,
    check_tables,
    without_nulls,
)

_FLAGS: Final = {True: ("true", "yes"), False: ("false", "no")}


def _graded(value: Any) -> Any:
    """Texts with numbers. YAML reads both ``yes`` and ``true`` as a flag, and 1 as a number.

    Raises
    ------
    ValueError
        A number is not finite, or two texts differ only in case.
    """
    if not isinstance(value, Mapping):
        return value
    given = [
        (word, number)
        for text, number in value.items()
        for word in (_FLAGS[text] if isinstance(text, bool) else (str(text).strip(),))
    ]
    found: dict[str, Any] = {}
    for word, number in given:
        if isinstance(number, bool) or not isinstance(number, (int, float, str)):
            raise ValueError(f"{word!r}: expected a number, such as 4 (got {number!r})")
        if isinstance(number, float) and not math.isfinite(number):
            raise ValueError(f"{word!r}: expected a finite number (got {number})")
        if any(word.lower() == other.lower() for other in found):
            raise ValueError(f"{word!r} is given twice; upper and lower case are equal")
        found[word] = number
    return found


def _date_columns(value: Any) -> Any:
    """The names of the columns of a date.

    Raises
    ------
    ValueError
        There are not two or three different names.
    """
    expected = "[year, month, day] or [year, month], the names of two or three columns"
    if not isinstance(value, list) or not _are_names(value) or len(value) not in (0, 2, 3):
        raise ValueError(
            f"expected {expected}; if one column has the whole date, rename it to timestamp"
        )
    return value


def _clock(value: Any) -> Any:
    """The name of a column with the time of day, of columns with its parts, or of a column of
    numbers with their unit.

    Raises
    ------
    ValueError
        The value is neither a name, a list of one to three different names, nor a name with a unit.
    """
    is_list = isinstance(value, list) and _are_names(value) and len(value) <= 3
    is_number = isinstance(value, dict) and len(value) == 1
    if not isinstance(value, str) and not is_list and not is_number:
        raise ValueError(
            "expected the name of a column with texts such as 10:30, or [hour, minute, second] (or"
            " fewer), the names of columns with whole numbers, or {column: s}, ms or us, a column"
            " with the number of seconds, ms or µs since the start of the day"
        )
    return value


def _are_names(value: list[Any]) -> bool:
    """Whether all members are different names."""
    is_text = all(isinstance(name, str) and name.strip() for name in value)
    return is_text and len({*value}) == len(value)


FileFormat = Literal["auto", "parquet", "csv", "tsv", "jsonl", "sequences"]


class CanonicalSource(CellSource):
    """Parquet, CSV/TSV or JSONL files that already have the canonical column names (``rename`` maps
    others).
    """

    places: ClassVar[tuple[str, ...]] = (*TABLES, "split_files", "type_files", "lookup")

    kind: Literal["canonical"] = Field("canonical", description="files with canonical column names")
    events: list[str] = Field(min_length=1, description="files, folders or globs of events")
    items: list[str] = Field(
        [], description="files, folders or globs of items and their attributes"
    )
    users: list[str] = Field(
        [], description="files, folders or globs of users and their attributes"
    )
    social: list[str] = Field([], description="files, folders or globs of friendships")
    knowledge: list[str] = Field(
        [], description="files, folders or globs of triples: head, relation, tail"
    )
    links: list[str] = Field(
        [],
        description=(
            "files, folders or globs with the entity of each item in the triples: item_id,"
            " entity_id; not needed if the items have a column entity_id"
        ),
    )
    rename: Rename = Field(
        {},
        description=(
            "column in the files → canonical column; {TABLE: {column: canonical column}} for single"
            " tables"
        ),
    )
    format: FileFormat | dict[str, FileFormat] = Field(
        "auto",
        description=(
            "format of the files; auto: by the ending of each file's name; {TABLE: format} for"
            " single tables; {events: sequences}: lines of USER ITEM ITEM …, one line per user"
        ),
    )
    separator: Separator | dict[str, Separator] = Field(
        "",
        description=(
            "separator of cells in text files, e.g. ';', '|', '::', tab; ' ' is any number of"
            " blanks; empty: that of the format, or the one found in the file; {TABLE: separator}"
            " for single tables"
        ),
    )
    columns: Annotated[list[str] | dict[str, list[str]], BeforeValidator(without_nulls)] = Field(
        [],
        description=(
            "column names of text files without a header: a list for the events, or {TABLE:"
            " [names]}; _ skips a column"
        ),
    )
    header: Annotated[Literal["auto", "yes", "no"], BeforeValidator(as_word)] = Field(
        "auto",
        description=(
            "whether text files start with column names; auto: yes, unless columns are given"
        ),
    )
    comment: Comment | dict[str, Comment] = Field(
        "",
        description=(
            "lines of text files that start with this text are skipped, e.g. '#'; {TABLE: "
            "'#'} for single tables"
        ),
    )
    constants: dict[str, dict[str, str]] = Field(
        {},
        description=(
            "{TABLE: {column: value}}: columns that the files do not have, with one value for all"
            " rows"
        ),
    )
    encoding: Encoding | dict[str, Encoding] = Field(
        "utf-8",
        description=(
            "encoding of CSV and TSV files, e.g. latin-1; {TABLE: encoding} for single tables"
        ),
    )
    numbers: dict[str, list[str]] = Field(
        {},
        description=(
            "{TABLE: [columns]}: columns that are read as numbers, also if a file has them as text"
            " or with a currency ($12.99); a cell without a number is a missing value"
        ),
    )
    values: Annotated[dict[str, float], BeforeValidator(_graded)] = Field(
        {},
        description=(
            "{text: number}: numbers for texts in the column value of the events, such as {Poor: 2,"
            " Good: 4}; upper and lower case are equal; cells with other texts are read as numbers,"
            " and missing values are 1 unless the empty text has a number"
        ),
    )
    date_columns: Annotated[list[str], BeforeValidator(_date_columns)] = Field(
        [],
        description=(
            "columns of the events with year, month and day, if no column has the whole date;"
            " months are numbers or names; without a day it is the first of the month"
        ),
    )
    clock: Annotated[
        str | list[str] | dict[str, Literal["s", "ms", "us"]], BeforeValidator(_clock)
    ] = Field(
        "",
        description=(
            "column of the events with the time of day, if the timestamp has only the day;"
            " time_format then describes date, blank, time of day. [hour, minute, second], or"
            " fewer: columns with whole numbers; time_format then describes the day alone. {column:"
            " unit}, with the unit s, ms or us: a column with whole numbers since the start of the"
            " day, or that order the events of a day"
        ),
    )
    lookup: dict[str, list[str]] = Field(
        {},
        description=(
            "{column: files}: files that the events refer to by a column, such as the orders with"
            " customer and time for events that are lines of orders; COLUMN = KEY if the files call"
            " it KEY. rename of the events applies to their columns. If the files are those of the"
            " events, as with orders whose first line alone has customer and time, missing users,"
            " times and values of drop are those of the first row with the same value in COLUMN"
        ),
    )
    lists: dict[str, str | dict[str, str]] = Field(
        {},
        description=(
            "{column: separator}: columns of the events with several values in a row, such as the"
            " articles of an order; each value is an event. The separator is for text; '' for lists"
            " of JSON and Parquet. Several columns have lists of equal length. {table: {column:"
            " separator}} for other tables, such as the friends of a user"
        ),
    )
    chosen: dict[str, str] = Field(
        {},
        description=(
            "{column: ending}: only values of the lists with this ending are events; the ending is"
            " removed. Example: '-1' for N55689-1 N35729-0, two shown articles of which the user"
            " clicked the first"
        ),
    )
    drop: dict[str, Annotated[list[str], BeforeValidator(as_list)]] = Field(
        {},
        description=(
            "{column: [values]}: events with one of the values in the column are not read, such as"
            " canceled orders; upper and lower case are equal; '*' is any value, '' a missing one"
        ),
    )
    item_columns: list[str] = Field(
        [],
        description=(
            "columns of the events that describe the item, if there is no table of items; an item"
            " gets its most frequent text and the median of its numbers in the first piece of the"
            " files that has it"
        ),
    )
    user_columns: list[str] = Field(
        [],
        description="columns of the events that describe the user, if there is no table of users",
    )
    split_files: dict[Literal["train", "valid", "test"], list[str]] = Field(
        {}, description="split → event files, instead of a split column"
    )

    type_files: dict[str, list[str]] = Field(
        {}, description="event type → event files, instead of a column"
    )

    @model_validator(mode="after")
    def _tables_are_known(self) -> CanonicalSource:
        columns = self.columns if isinstance(self.columns, dict) else {"events": self.columns}
        check_tables("columns", set(columns))
        check_tables("constants", set(self.constants))
        check_tables("numbers", set(self.numbers))
        if twice := sorted({*self.date_columns} & {*as_list(self.clock)}):
            raise ValueError(
                f"{twice[0]!r} is in date_columns and in clock; name it in one of them"
            )
        if (
            self.date_columns
            and self.time_format
            and not (self.clock and isinstance(self.clock, str))
        ):
            raise ValueError(
                "time_format is for texts, and date_columns are numbers and names of months; remove"
                " time_format"
            )
        for table, columns_of, given_files in (
            ("items", self.item_columns, self.items),
            ("users", self.user_columns, self.users),
        ):
            if columns_of and given_files:
                raise ValueError(
                    f"{table.rstrip('s')}_columns makes the table of {table} from the events, and"
                    f" {table} names files of this table; give one of them"
                )
        for key in ("separator", "comment", "encoding", "format"):
            given = getattr(self, key)
            check_tables(key, set(given) if isinstance(given, dict) else set())
        self._check_sequences()
        for table, names in columns.items():
            given = [name.strip() for name in names if name.strip() not in ("", "_")]
            if twice := sorted({name for name in given if given.count(name) > 1}):
                raise ValueError(
                    f"columns: {twice[0]!r} is given twice for {table}; give each column its own"
                    " name, or _ to skip it"
                )
        return self

    def _check_sequences(self) -> None:
        """Refuse sequences of other tables, and settings of columns that sequences do not have.

        Raises
        ------
        ValueError
            There is such a setting.
        """
        formats = self.format if isinstance(self.format, dict) else {"format": self.format}
        lines = [table for table, form in formats.items() if form == "sequences"]
        if not lines:
            return
        if lines != ["events"]:
            raise ValueError(
                "only the events may be sequences, lines of USER ITEM ITEM …; write format:"
                " {events: sequences}"
            )
        columns = self.columns if isinstance(self.columns, list) else self.columns.get("events")
        given = {
            "columns": columns,
            "lists": [key for key, value in self.lists.items() if isinstance(value, str)],
            **{key: getattr(self, key) for key in ("lookup", "date_columns", "clock")},
        }
        if key := next((key for key, value in given.items() if value), ""):
            raise ValueError(
                f"{key} is for events with columns, and sequences have only users and items; remove"
                f" {key} of the events"
            )
