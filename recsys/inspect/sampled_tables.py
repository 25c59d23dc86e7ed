"""Tables as samples with their columns: what each column could be."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import polars as pl
import pyarrow as pa

from recsys import schema
from recsys.inspect.columns import Column, column_of
from recsys.inspect.common_names import (
    EVENT_TYPE,
    FRIEND,
    HEAD,
    ITEM,
    LATITUDE,
    LONGITUDE,
    SESSION,
    SPLIT,
    TAIL,
    TIME,
    USER,
    USER_FILES,
    VALUE,
    named_like,
    shared_prefix,
    similarity,
)
from recsys.inspect.samples import Sample
from recsys.sources.validate import CellRules

FEW: Final = 20  # most distinct values of an attribute (not an id) in a large table
_CANDIDATES: Final = 7
_NAMES: Final = ("text", "url", "path", "list")  # kinds of columns that may be ids
_LOOKED_AT: Final = 200  # ids whose form is inspected
_FORMS: Final = (
    (re.compile(r"B0[0-9A-Z]{8}|\d{9}[\dXx]|97[89]\d{10}"), 1),  # ASIN, ISBN
    (
        re.compile(
            r"(?i)(?:item|i|prod|product|p|sku|art|article|movie|film|track|song|book|poi|venue)[-_:#]?\d+"
        ),
        1,
    ),
    (re.compile(r"[^@\s]+@[^@\s]+\.\w+|A[0-9A-Z]{11,14}"), -1),  # e-mail, Amazon's reviewers
    (
        re.compile(
            r"(?i)(?:user|u|usr|customer|cust|c|member|m|visitor|client|person|uid)[-_:#]?\d+"
        ),
        -1,
    ),
)
_ATTRIBUTES: Final = (
    "age", "gender", "sex", "year", "zip", "zipcode", "zip_code", "postcode", "city", "country",
    "state", "region", "price", "amount", "cost", "total", "brand", "category", "color", "colour",
    "size", "occupation", "language", "genre", "currency", "ip", "browser", "os", "platform",
    "channel", "price_usd", "discount", "vat",
)  # fmt: skip


@dataclass
class Table:
    """A sample with its columns and its role."""

    sample: Sample
    columns: list[Column]
    role: str = ""  # events, items, users, social, knowledge; "" means ignored
    names: dict[str, str] = field(default_factory=dict)  # column → canonical column
    why: str = ""
    shares: str = ""  # the ids in common with the events, in words
    # columns whose lists were made rows, with the separator of those that are text
    lists: dict[str, str] = field(default_factory=dict)
    # the ids of the rows that had the lists
    owners: list[str] = field(default_factory=list)
    # those of them whose members say whether they were chosen, with the ending that says so
    chosen: dict[str, str] = field(default_factory=dict)
    # columns of year, month and day, which were made one column of times
    date_columns: list[str] = field(default_factory=list)
    # column with the time of day, columns of hours, minutes and seconds, or a column of numbers
    # with its unit, which were added to the days
    clock: str | list[str] | dict[str, str] = ""
    # column → values, in lower case, of the rows that were left out
    drop: dict[str, list[str]] = field(default_factory=dict)
    dropped: float = 0.0  # share of the rows that were left out
    # columns that refer to rows of other tables, whose columns were added, with these tables
    lookups: dict[str, Table] = field(default_factory=dict)

    @classmethod
    def of(cls, sample: Sample) -> Table:
        """Classify the columns of a sample."""
        columns = _columns_of(sample.rows)
        commas = sum(column.decimal_comma for column in columns)
        if commas:
            # the readers know one decimal mark for a table: the one of most columns
            points = sum(column.decimal_point for column in columns)
            columns = _columns_of(sample.rows, "," if commas > points else ".")
        return cls(sample, columns)

    @property
    def decimal(self) -> str:
        """The decimal mark of its numbers in text; empty if none has one."""
        if any(column.decimal_comma for column in self.columns):
            return ","
        return "." if any(column.decimal_point for column in self.columns) else ""

    def column(self, name: str) -> Column:
        """Column by name."""
        return next(column for column in self.columns if column.name == name)

    @cached_property
    def id_columns(self) -> list[Column]:
        """Columns that may be ids, the most likely first."""
        found = [column for column in self.columns if column.may_be_id]
        found += [column for column in self.columns if is_name(column)]
        return sorted(found, key=lambda column: (-self._id_prior(column), column.position))[
            :_CANDIDATES
        ]

    @cached_property
    def keys(self) -> list[Column]:
        """Columns with distinct values in all rows, by which other tables may refer to the rows;
        also texts.
        """
        found = [column for column in self.id_columns if column.is_key]
        return found + [column for column in self.columns if _may_be_name(column) and column.is_key]

    def _id_prior(self, column: Column) -> float:
        words = max(self.like(column, group) for group in (USER, ITEM, FRIEND, SESSION, HEAD, TAIL))
        return words + self.penalty(column)

    def like(self, column: Column, words: tuple[str, ...]) -> float:
        """How much the column's name is one of the words; 0 for names that we generated."""
        return (
            similarity(column.name, words)
            if self.sample.has_names or column.name in self.sample.folders
            else 0.0
        )

    def plain_name(self, column: Column) -> str:
        """The column's name without the name of the table that Hive writes before each."""
        return column.name.removeprefix(self._prefix)

    @cached_property
    def _prefix(self) -> str:
        made = (schema.TIMESTAMP, *self.sample.folders)  # columns that are not in the files
        return shared_prefix([column.name for column in self.columns if column.name not in made])

    def penalty(self, column: Column) -> float:
        """Evidence against the column as an id."""
        against = 0.0
        for words in (VALUE, TIME, SPLIT, EVENT_TYPE, LATITUDE, LONGITUDE, _ATTRIBUTES):
            if (
                self.like(column, words) >= 0.8
                and max(self.like(column, USER), self.like(column, ITEM)) < 0.8
            ):
                against = -2.0
        if column.kind == "flag" or column.share_negative > 0 and abs(column.low) < 1e9:
            against -= 1.5
        # few values in many rows are categories; small tables have few values anyway
        if column.num_distinct <= FEW and column.num_values > 10 * FEW:
            against -= 1.5
        return against

    def num_pairs(self, one: Column, other: Column) -> int:
        """Number of distinct pairs of values of two columns."""
        return pairs(one, other)

    @cached_property
    def is_item_like(self) -> bool:
        """Whether the table describes things: titles, texts, prices, places."""
        kinds = {column.kind for column in self.columns}
        if kinds & {"text", "html", "price", "path", "lists", "image", "url"} and not named_like(
            self.sample.name, USER_FILES
        ):
            return True
        return any(column.looks_like_coordinate(180.0) for column in self.columns)


def _columns_of(rows: pa.Table, decimal: str = "") -> list[Column]:
    rules = CellRules()
    return [
        column_of(name, position, rows.column(name).combine_chunks(), rules, decimal)
        for position, name in enumerate(rows.column_names)
    ]


def form_sign(column: Column) -> int:
    """The form of ids: 1 for things (ISBN, ASIN, ``item7``), -1 for people (e-mail, ``user7``), 0
    for neither.
    """
    values = column.values.drop_null().slice(0, _LOOKED_AT).to_pylist()
    for pattern, says in _FORMS:
        if values and sum(bool(pattern.fullmatch(value)) for value in values) >= 0.95 * len(values):
            return says
    return 0


def is_name(column: Column) -> bool:
    """Whether texts are repeated, so that they may be ids, such as film titles."""
    return _may_be_name(column) and column.num_distinct < 0.6 * column.num_values


def _may_be_name(column: Column) -> bool:
    return column.kind in _NAMES and not column.is_list


def pairs(*columns: Column) -> int:
    """Number of distinct pairs (or triples) of values of columns, without rows that lack one."""
    frame = pl.DataFrame({str(k): pl.from_arrow(c.values) for k, c in enumerate(columns)})
    return frame.drop_nulls().n_unique()


def determines(key: Column, column: Column) -> float:
    """How far a key determines another column, from 0 (no better than by chance) to 1 (one value
    per key).

    Share of rows with the most common value of their key, over keys with several rows, compared
    with the same share after shuffling the values.
    """
    frame = pl.DataFrame(
        {"key": pl.from_arrow(key.values), "column": pl.from_arrow(column.values)}
    ).drop_nulls()
    if not len(frame):
        return 0.0
    # a column with one dominant value looks determined by any key
    chance = _usual_share(frame.with_columns(pl.col("column").shuffle(seed=0)))
    found = _usual_share(frame)
    return max(0.0, (found - chance) / (1 - chance)) if chance < 1 else 0.0


def _usual_share(frame: pl.DataFrame) -> float:
    counts = (
        frame.group_by(["key", "column"])
        .len()
        .group_by("key")
        .agg(pl.col("len").sum().alias("all"), pl.col("len").max())
    )
    # a key with a single row determines everything
    several = counts.filter(pl.col("all") > 1)
    total = int(several["all"].sum())
    return int(several["len"].sum()) / total if total else 1.0


# ------------------------------------------------------------------------------------------- events
