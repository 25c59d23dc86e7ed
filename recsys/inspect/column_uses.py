"""What the columns of items and users can be used for: text, HTML, numbers, triples, places,
vectors, or nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from recsys import schema
from recsys.inspect.columns import OBJECTS, Column
from recsys.inspect.common_names import (
    ADDRESS,
    is_code,
    lists_codes,
    similarity,
)
from recsys.inspect.common_values import IdSet
from recsys.inspect.sampled_tables import Table, pairs
from recsys.inspect.unknown_numbers import without_unknown, words_of_unknown
from recsys.sources.names import fold
from recsys.sources.validate import CellRules

_SHORT: Final = 4  # most words of a category, on average
_CATEGORY: Final = 0.5  # most distinct values per row for a column that groups rows
_TELLS: Final = 0.5  # threshold of :func:`determines`, for texts and categories
_MOST_TRIPLE_COLUMNS: Final = 8
_COPIES: Final = 1.02  # most pairs of values per value of two columns that group items alike
_LISTS: Final = ("path", "list", "lists")
_MANY_ROWS: Final = 500  # from this size, distinct whole numbers are ids
_FEW_CODES: Final = 0.2  # share of the items, up to which unnamed numbers are codes
_SPARSE: Final = 50  # ratio of range to number of codes
_KINDS: Final = {
    "text": "text", "html": "HTML", "price": "prices", "number": "numbers", "url": "addresses",
    "image": "images", "path": "paths of categories", "list": "lists", "lists": "lists",
    "vector": "vectors", "token": "categories", "flag": "yes/no", "time": "times",
    "rating": "ratings",
}  # fmt: skip
_IDLE: Final = {
    "empty": "empty",
    "object": OBJECTS,
    "url": "web addresses", "image": "paths of images",
    "time": "times, which are used for events only",
}  # fmt: skip


@dataclass
class Attributes:
    """The columns of one table by use, with their final names."""

    text: list[str] = field(default_factory=list)
    html: list[str] = field(default_factory=list)
    owners: int = 0  # number of items or users, estimated if the table was sampled
    words: float = 0.0  # mean number of words in the texts of one of them
    numbers: list[str] = field(default_factory=list)  # numbers that the files store as text
    triples: list[str] = field(default_factory=list)
    separators: dict[str, str] = field(default_factory=dict)
    vectors: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)  # attributes used unchanged
    idle: dict[str, str] = field(default_factory=dict)  # column of the file → why it is not used
    rename: dict[str, str] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)  # column → what it holds, for people
    place: bool = False  # True: there are latitude and longitude
    measures: list[str] = field(default_factory=list)  # item columns that the member place reads
    are_informative: bool = False  # True: the member profile can distinguish users

    @property
    def used(self) -> list[str]:
        """The used columns, each once."""
        names = [*self.text, *self.numbers, *self.triples, *self.vectors, *self.others]
        return list(dict.fromkeys(names))


def attributes_of(
    table: Table,
    columns: Iterable[Column],
    keys: Sequence[str],
    items: IdSet | None,
    moved: Mapping[str, str] | None = None,
    people: IdSet | None = None,
    of: Column | None = None,
) -> Attributes:
    """Find the use of further columns of a table.

    Parameters
    ----------
    table : Table
        Table of the columns.
    columns : Iterable[Column]
        Columns to classify, in order.
    keys : Sequence[str]
        Canonical columns of the table, whose names are taken.
    items : IdSet | None
        Ids of items, to distinguish lists of other items from lists of words; None for users.
    moved : Mapping[str, str] | None
        Columns that get other names in any case (see :func:`reserved`).
    people : IdSet | None
        Ids of users, to distinguish lists of friends from other lists.
    of : Column | None
        For a table of events: the column of the items or users that the columns describe.
    """
    found = Attributes(rename=dict(moved or {}))
    as_written = list(columns)
    given = [without_unknown(column) for column in as_written]
    taken = (
        {*keys, *(column.name for column in table.columns)} if table.sample.has_names else {*keys}
    )
    for column, wanted in _coordinates(given, table.sample.has_names).items():
        if column.name != wanted:
            found.rename[column.name] = wanted
    found.place = {schema_name for schema_name in ("latitude", "longitude")} <= {
        found.rename.get(column.name, column.name) for column in given
    }
    for column, written in zip(given, as_written, strict=True):
        name = _name(column, found, table, taken)
        taken.add(name)
        # friends as an attribute would become one category per person
        if people is not None and column.kind in ("list", "lists") and are_ids(column, people):
            found.idle[column.name] = (
                "lists of other users; write them as a file of user pairs to use them as friends"
            )
            continue
        num_owners = column.num_values if of is None else of.num_distinct
        _sort(found, column, name, items, _is_text(table, column), num_owners)
        found.kinds[name] = found.kinds.get(name, "") + words_of_unknown(written, column)
    _without_copies(found, given)
    for name in found.triples[_MOST_TRIPLE_COLUMNS:]:
        found.idle[name] = f"there are already {_MOST_TRIPLE_COLUMNS} columns of triples"
    found.triples = found.triples[:_MOST_TRIPLE_COLUMNS]
    found.separators = {
        name: mark for name, mark in found.separators.items() if name in found.triples
    }
    found.owners = table.sample.num_rows if of is None else of.num_distinct
    found.words = sum(c.words for c in given if found.rename.get(c.name, c.name) in found.text)
    # text that is not declared as numbers stays text in a run
    texts = {c.name for c in given if _is_text(table, c)} - {
        c.name for c in given if found.rename.get(c.name, c.name) in found.numbers
    }
    _by_rules_of_the_run(found, given, items is not None, of, texts)
    return found


def _without_copies(found: Attributes, given: Sequence[Column]) -> None:
    """Leave out triples of columns that group the items like another one: codes and their names."""
    columns = {found.rename.get(column.name, column.name): column for column in given}
    kept: list[str] = []
    for name in found.triples:
        mine = columns[name]
        copied = next((other for other in kept if _are_copies(columns[other], mine)), None)
        if copied is None:
            kept.append(name)
            continue
        # names tell people more than codes
        is_better = mine.is_wordy and not columns[copied].is_wordy
        better, worse = (name, copied) if is_better else (copied, name)
        kept[kept.index(copied)] = better
        if worse not in found.text:
            found.idle[columns[worse].name] = f"groups the items like {better}"
    found.triples = kept


def _are_copies(one: Column, other: Column) -> bool:
    """Whether each value of a column stands with one value of the other, with few exceptions."""
    if one.kind in _LISTS or other.kind in _LISTS:
        return False
    least = min(one.num_distinct, other.num_distinct)
    most = _COPIES * least
    return max(one.num_distinct, other.num_distinct) <= most and pairs(one, other) <= most


def _by_rules_of_the_run(
    found: Attributes,
    given: Sequence[Column],
    are_items: bool,
    of: Column | None,
    texts: Collection[str],
) -> None:
    """Apply the rules of a run to find what its members can read.

    Parameters
    ----------
    found : Attributes
        The uses of the columns; what its members can read is added.
    given : Sequence[Column]
        The columns.
    are_items : bool
        Whether they describe items.
    of : Column | None
        For a table of events: the column of the items or users that the columns describe.
    texts : Collection[str]
        Columns that a run reads as text, such as codes.
    """
    used = [c for c in given if found.rename.get(c.name, c.name) in found.used]
    rules = CellRules(decimal="," if any(column.decimal_comma for column in given) else ".")
    measured = [column for column in used if column.is_numeric and column.name not in texts]
    if are_items and measured:
        from recsys.inspect.attribute_values import measure  # imports torch

        found.measures = measure(measured, rules, of)
    elif not are_items and given:
        from recsys.inspect.attribute_values import distinguish_users

        read = [c for c in given if c.kind not in ("empty", "constant", "object")]
        found.are_informative = distinguish_users(used if of is not None else read, rules, of)


def _is_text(table: Table, column: Column) -> bool:
    """Whether the file stores the column as text, so that numbers must be declared."""
    return bool(pa.types.is_string(table.sample.rows.schema.field(column.name).type))


def _name(column: Column, found: Attributes, table: Table, taken: set[str]) -> str:
    """The final name of a column."""
    if column.name in found.rename:
        return found.rename[column.name]
    if table.sample.has_names or column.name in table.sample.folders:
        return column.name
    base = {
        "text": "title",
        "html": "description",
        "path": "categories",
        "list": "categories",
        "price": "price",
    }.get(column.kind, f"{column.kind}_{column.position + 1}")
    name = base if base not in taken else f"{base}_{column.position + 1}"
    found.rename[column.name] = name
    return name


def _coordinates(columns: Sequence[Column], has_names: bool) -> dict[Column, str]:
    """Find columns of latitude and longitude: by name, or two adjacent columns of degrees without
    names.
    """
    latitudes, longitudes = (
        [c for c in columns if getattr(c, name)] for name in ("is_latitude", "is_longitude")
    )
    if latitudes and longitudes and latitudes[0] is not longitudes[0]:
        return {latitudes[0]: "latitude", longitudes[0]: "longitude"}
    for one, two in zip(columns, columns[1:], strict=False) if not has_names else ():
        # only together: a single column of small numbers may be anything
        if one.looks_like_coordinate(90.0) and two.looks_like_coordinate(180.0):
            return {one: "latitude", two: "longitude"}
    return {}


def _sort(
    found: Attributes,
    column: Column,
    name: str,
    items: IdSet | None,
    is_text: bool,
    num_owners: int,
) -> None:
    """Classify one column of so many items or users."""
    kind = column.kind
    # a value of a single item or user groups nothing
    groups = 1 < column.num_distinct <= _CATEGORY * num_owners
    # first of all, so that no rule below can make personal data an attribute
    if similarity(column.name, ADDRESS) >= 0.8:
        found.idle[column.name] = "contact data, which is not predictive"
        return
    found.kinds[name] = _KINDS.get(kind, kind)
    if kind == "constant":
        found.idle[column.name] = column.constant_words
    elif kind in _IDLE:
        found.idle[column.name] = _IDLE[kind]
        if kind == "image":
            found.images.append(name)
    elif kind == "vector":
        found.vectors.append(name)
    elif kind == "text" and groups and column.words <= _SHORT:  # such as "New York"
        if items is not None:
            found.text.append(name)
        (found.others if items is None else found.triples).append(name)
        found.kinds[name] = "categories"
    elif kind in ("text", "html") and items is None:
        found.idle[column.name] = "texts of users are not used"
    elif kind in ("text", "html"):
        found.text.append(name)
        if kind == "html":
            found.html.append(name)
    elif kind in _LISTS:
        if kind == "lists" and items is not None and are_ids(column, items):
            found.idle[column.name] = "ids of other items"
            return
        if kind == "lists" and _are_counts(column):
            found.idle[column.name] = "lists of numbers"
            return
        if items is None:
            found.others.append(name)
            return
        if column.is_wordy:
            found.text.append(name)
        found.triples.append(name)
        if column.mark:
            found.separators[name] = column.mark.strip() or column.mark
    elif kind in ("number", "price", "rating"):
        # few numbers are codes: a quantity has many, except an age
        are_few = items is not None and column.num_distinct <= _FEW_CODES * num_owners
        is_code_like = name.startswith("number_") and (are_few or _is_sparse(column))
        _sort_number(found, column, name, is_text, items is not None, is_code_like)
    elif kind == "flag" or items is None and groups:
        found.others.append(name)
    elif column.is_wordy and items is not None:
        found.text.append(name)
        if groups:
            found.triples.append(name)
    elif groups:
        found.triples.append(name)
    else:
        found.idle[column.name] = "codes whose meaning is unknown"


def _sort_number(
    found: Attributes, column: Column, name: str, is_text: bool, is_item: bool, is_code_like: bool
) -> None:
    """Classify a number: a quantity, the code of a category, or an id of something else."""
    is_category = column.is_whole and (
        is_code(column.name) or found.kinds[name] == "numbers" and is_code_like
    )
    if is_category and name not in ("latitude", "longitude"):
        if 1 < column.num_distinct <= _CATEGORY * column.num_values:
            found.kinds[name] = "codes of categories"
            (found.triples if is_item else found.others).append(name)
        else:
            found.idle[column.name] = "ids of something else"
    # a quantity repeats among many rows, and a serial number does not
    elif column.is_whole and column.is_key and column.num_values >= _MANY_ROWS:
        found.idle[column.name] = "a different number in every row"
    elif is_text:
        found.numbers.append(name)
    else:
        found.others.append(name)


def _is_sparse(column: Column) -> bool:
    """Whether whole numbers have a large range with few values, like codes."""
    return column.high - column.low > _SPARSE * column.num_distinct


def _are_counts(column: Column) -> bool:
    """Whether the list members are numbers, and not codes, such as the counts of tags."""
    if lists_codes(column.name):
        return False
    texts = column.values.drop_null().slice(0, 2000)
    texts = texts.filter(pc.not_equal(texts, ""))
    is_number = pc.match_substring_regex(texts, r"^[\d. |+-]+$")
    return bool(len(texts)) and bool(pc.all(is_number).as_py())


def are_ids(column: Column, ids: IdSet) -> bool:
    """Whether the list members are these ids."""
    texts = column.values.drop_null().slice(0, 2000)
    members = pc.unique(
        pc.utf8_trim_whitespace(pc.list_flatten(pc.split_pattern(texts, column.mark or " | ")))
    )
    known = pc.sum(pc.is_in(members, value_set=ids.ids)).as_py() or 0
    return len(members) > 0 and known > 0.2 * len(members)


# -------------------------------------------------------------------------------------- columns of
# events


def reserved(table: Table, kind: schema.TableSchema, names: dict[str, str]) -> dict[str, str]:
    """New names for columns whose names a reader would take for its own columns.

    Parameters
    ----------
    table : Table
        The table with its columns.
    kind : schema.TableSchema
        The canonical table that a reader reads it as.
    names : dict[str, str]
        Column of the files → canonical column; these columns are not renamed.

    Returns
    -------
    dict[str, str]
        Column of the files → new name, such as ``value_column``.
    """
    moved = {}
    taken = set(names.values())
    for column in table.columns:
        wanted = fold(column.name)
        if (
            column.name not in names
            and wanted in kind.columns
            and (column.name == wanted or wanted not in taken)
        ):
            moved[column.name] = f"{wanted}_column"
    return moved
