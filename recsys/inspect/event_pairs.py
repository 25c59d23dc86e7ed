"""Which table has the events, and which of its columns are user and item: by names, structure and
common ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from recsys.data.pseudonyms import email_like
from recsys.errors import SourceError
from recsys.inspect.columns import OBJECTS, Column
from recsys.inspect.common_names import (
    EVENT_FILES,
    EVENT_TYPE,
    FRIEND,
    ITEM,
    ITEM_FILES,
    SESSION,
    SOCIAL_FILES,
    STATUS,
    USER,
    USER_FILES,
    VALUE,
    has_id,
    named_like,
    words_of,
)
from recsys.inspect.common_values import IdSet
from recsys.inspect.json_cells import cure_of_json_cells
from recsys.inspect.sampled_tables import FEW, Table, determines, form_sign, is_name, pairs
from recsys.inspect.shown_lists import CHOSEN, mark_of_choices, without_shown
from recsys.sources.list_cells import ListForm, as_lists, members_as_rows
from recsys.sources.validate import CellRules
from recsys.values.arrow_types import is_list_of_cells
from recsys.values.times import timestamps

_NAMED: Final = 0.7
_LOOKED_AT: Final = 1000  # ids that may be e-mail addresses
_MANY_FLAGS: Final = 8  # columns of 0 and 1 with a common word
_WIDE: Final = 15  # columns of small numbers from which a table is a matrix of users and items
_OF_OWNER: Final = 0.9  # how far an item or a user determines a column that describes it
_FEW_OTHERS: Final = 3
_REFERS: Final = 0.9  # share of the orders of the events that the table of orders has
_LEAST: Final = 1.0  # score of a table of events
_MANY: Final = 200  # rows from which the items of events must repeat
_TOO_FEW: Final = 2  # items of many events that are no items, such as names of parameters
_ONE_TO_ONE: Final = 1.05  # most pairs of two columns per value, where one determines the other
_CHANCE: Final = 20  # rows from which users do not have an item each by chance
_HOPELESS: Final = 20.0  # exceeds all other evidence
_HALF: Final = 0.5  # least share of rows with an id
_SHORT_TIME: Final = 0.02  # length of a visit, as a share of the period
_LONG_TIME: Final = 0.2  # time between the first and the last event of an item


@dataclass(frozen=True)
class Pair:
    """A user column and an item column of a table, and their score as events."""

    table: Table
    user: Column
    item: Column
    score: float

    def is_described_by(self, column: Column) -> bool:
        """Whether a column describes the item or the user, and not the event."""
        return max(determines(self.item, column), determines(self.user, column)) >= _OF_OWNER

    def with_rows(self, rows: pa.Table, **found: Any) -> Pair:
        """The pair on changed rows of its table, whose columns are classified again; ``found`` are
        further fields of the table.
        """
        sample = replace(found.pop("sample", self.table.sample), rows=rows)
        table = replace(self.table, sample=sample, columns=Table.of(sample).columns, **found)
        user, item = table.column(self.user.name), table.column(self.item.name)
        return Pair(table, user, item, self.score)


def find_events(tables: Sequence[Table], may_be: Sequence[Table]) -> Pair:
    """Find the table of events among those that may be it, and its ids.

    Raises
    ------
    SourceError
        No table has two columns that can be users and items.
    """
    found = [pair for table in may_be if (pair := _best_pair(table, tables)) is not None]
    best = max(found, key=lambda pair: pair.score, default=None)
    if best is None or best.score < _LEAST:
        seen = "; ".join(
            f"{table.sample.name}: {', '.join(map(_summary, table.columns[:8]))}"
            for table in tables[:5]
        )
        wide = next((table for table in tables if _is_matrix(table)), None)
        if wide is not None:
            raise SourceError(
                f"{wide.sample.name} looks like a matrix, with a row per user and a column for"
                f" each of {len(wide.columns) - 1:,} items; write a row per user and item, with the"
                " columns user_id, item_id and value (with pandas: DataFrame.melt)"
            )
        usual = "add the table with the events, or name the columns in data.source.rename"
        cure = next(filter(None, map(cure_of_json_cells, may_be)), f"{usual} (docs/files.md)")
        raise SourceError(
            "no table has events, that is, a column of user ids and a column of item ids with"
            f" repeated values; found {seen}; {cure}"
        )
    if flags := _states(best):
        raise SourceError(
            f"{best.table.sample.name} looks like a table of states, with a column of 0 and 1 for"
            f" each of {len(flags)} items ({', '.join(flags[:3])}, …); write a row for each user,"
            " item and time at which the item begins, with the columns user_id, item_id and"
            " timestamp (with pandas: DataFrame.melt, then the rows where 0 becomes 1)"
        )
    return max((pair for pair in found if _is_alike(pair, best)), key=_num_rows)


def _states(pair: Pair) -> list[str]:
    """The columns of 0 and 1 of a table in which each of them is an item, such as the products that
    a customer has in a month; empty if there are few, or if another column has items.
    """
    if pair.table.like(pair.item, ITEM) >= _NAMED or pair.item.kind != "number":
        return []
    flags = [column.name for column in pair.table.columns if column.kind in ("flag", "constant")]
    groups: dict[tuple[int, str], list[str]] = {}
    for name in flags:
        words = words_of(name) or [""]
        for place in (0, -1):
            groups.setdefault((place, words[place]), []).append(name)
    best = max(groups.values(), key=len, default=[])
    return best if len(best) >= _MANY_FLAGS else []


def _is_alike(one: Pair, other: Pair) -> bool:
    """Whether the tables of two pairs have the same named columns, as an extract and its whole."""
    samples = one.table.sample, other.table.sample
    names = {(pair.user.name, pair.item.name) for pair in (one, other)}
    are_named = samples[0].has_names and samples[0].signature == samples[1].signature
    return one is other or are_named and len(names) == 1 and one.score >= _LEAST


def _num_rows(pair: Pair) -> int:
    return pair.table.sample.num_rows


def find_events_in_lists(tables: Sequence[Table], may_be: Sequence[Table]) -> Pair | None:
    """Find a table whose rows have lists of items, such as orders; None if there is none. The
    table of the pair has a row for each member.
    """
    found = []
    for table in may_be:
        for opened in _with_members_as_rows(table):
            others = [opened if other is table else other for other in tables]
            pair = _best_pair(opened, others)
            if pair is not None and pair.item.name in opened.lists:
                found.append(pair)
    best = max(found, key=lambda pair: pair.score, default=None)
    return best if best is not None and best.score >= _LEAST else None


def find_chosen(tables: Sequence[Table], may_be: Sequence[Table]) -> Pair | None:
    """Find a table whose rows have lists of what was shown, with a mark of what was chosen, such as
    ``N55689-1 N35729-0``; None if there is none. The table of the pair has a row for each choice.
    """
    for table in may_be:
        for column in table.columns:
            if (mark := mark_of_choices(table, column)) is None:
                continue
            lists = {column.name: ListForm(mark, CHOSEN)}
            rows = members_as_rows(table.sample.rows, lists)[0]
            num_rows = round(table.sample.num_rows * len(rows) / max(len(column.values), 1))
            opened = Table.of(replace(table.sample, rows=rows, num_rows=num_rows))
            opened.lists, opened.chosen = {column.name: mark}, {column.name: CHOSEN}
            pair = _best_pair(opened, [opened if other is table else other for other in tables])
            if pair is not None and pair.item.name == column.name:
                return pair
    return None


def _with_members_as_rows(table: Table) -> list[Table]:
    """The table with a row for each member of its lists; lists of one length belong together."""
    rows = table.sample.rows
    marks = {
        column.name: column.mark
        for column in table.columns
        if column.kind == "list"
        or column.is_list
        or is_list_of_cells(rows.schema.field(column.name).type)
    }
    groups: dict[tuple[int, ...], dict[str, str]] = {}
    for name, mark in without_shown(table, marks).items():
        sizes = pc.list_value_length(as_lists(rows.column(name), ListForm(mark)))
        # lists of equal lengths in every row describe the same members, such as ids and prices
        groups.setdefault(tuple(sizes.to_pylist()), {})[name] = mark
    opened = []
    for sizes, lists in groups.items():
        # nothing is gained by rows for single texts, but a list is no id, even a list of one item;
        # a mean would count the events of a tracker that have no items
        if max(sizes, default=0) <= any(lists.values()):
            continue
        forms = {name: ListForm(mark) for name, mark in lists.items()}
        members = members_as_rows(rows, forms)[0]
        scale = sum(sizes) / max(len(sizes), 1)
        sample = replace(table.sample, rows=members, num_rows=round(table.sample.num_rows * scale))
        found = Table.of(sample)
        found.lists = lists
        found.owners = [column.name for column in table.keys if column.may_be_id]
        opened.append(found)
    return opened


def _is_matrix(table: Table) -> bool:
    """Whether a table has a column for each item: ids, and many columns of few small numbers."""
    cells = [
        column
        for column in table.columns
        if column.kind in ("number", "flag", "constant", "empty") and column.num_distinct <= FEW
    ]
    others = len(table.columns) - len(cells)
    has_key = any(column.is_key for column in table.columns)
    if len(cells) >= _WIDE and has_key and 1 <= others <= _FEW_OTHERS:
        return True
    # ratings with fractions: nearly all columns have numbers, and of one scale
    numbers = [column for column in table.columns if column.kind == "number"]
    highest = [column.high for column in numbers]
    of_scale = highest.count(max(set(highest), key=highest.count, default=0.0)) if highest else 0
    return of_scale >= max(2 * _WIDE, 0.8 * len(table.columns))


def _summary(column: Column) -> str:
    """A column's name, and a reason if it clearly cannot be ids."""
    reason = {"constant": column.constant_words, "object": OBJECTS}.get(column.kind)
    return f"{column.name} ({reason})" if reason else column.name


def _best_pair(table: Table, tables: Sequence[Table]) -> Pair | None:
    # the number of a row is unique like an id, but users and items of events repeat
    candidates = [
        column for column in table.id_columns if not (column.is_key and len(table.id_columns) > 2)
    ]
    if len(candidates) < 2:
        candidates = table.id_columns
    candidates = candidates + [
        c for c in table.columns if c.name in table.owners and c not in candidates
    ]
    if len(candidates) < 2:
        return None
    user_signs, item_signs = (
        {c.name: sign(table, c, tables) for c in candidates} for sign in (_user_sign, _item_sign)
    )
    best: Pair | None = None
    for user in candidates:
        for item in candidates:
            # the members of a list belong to the row that has the list
            if user is item or {user.name, item.name} <= table.lists.keys():
                continue
            score = _pair_score(table, user, item)
            score += 2 * (
                user_signs[user.name]
                + item_signs[item.name]
                - user_signs[item.name]
                - item_signs[user.name]
            )
            if best is None or score > best.score:
                best = Pair(table, user, item, score)
    if best is None:
        return None
    best = _with_code(best, candidates)
    score = best.score + _table_score(table, best) - 2.0 * _are_of_events(table, best, tables)
    return Pair(table, best.user, best.item, score)


def _are_of_events(table: Table, pair: Pair, tables: Sequence[Table]) -> bool:
    """Whether the items of a table without times are events of another table, such as the reviews
    that users find helpful.
    """
    if any(column.kind == "time" for column in table.columns):
        return False
    users, items = IdSet(pair.user), IdSet(pair.item)
    for other in tables:
        if other is table or not any(column.kind == "time" for column in other.columns):
            continue
        if not any(items.share_in(IdSet(key)) >= _REFERS for key in other.keys):
            continue
        ids = [c for c in other.id_columns if not c.is_key and c.num_distinct > FEW]
        if len(ids) > 1 and any(users.similarity(IdSet(column)) >= _HALF for column in ids):
            return True
    return False


def _with_code(pair: Pair, candidates: Sequence[Column]) -> Pair:
    """Prefer the code column over a name column that identifies items."""
    if not is_name(pair.item) or pair.table.like(pair.item, ITEM) >= _NAMED:
        return pair
    codes = [
        column
        for column in candidates
        if column is not pair.user
        and not is_name(column)
        and pair.item.num_distinct <= column.num_distinct < 0.6 * column.num_values
        # a few codes may have two spellings of a name
        and pairs(column, pair.item) <= 1.02 * column.num_distinct
        and pairs(column, pair.user) >= 1.05 * max(column.num_distinct, pair.user.num_distinct)
    ]
    code = min(codes, key=lambda column: (column.num_distinct, column.position), default=pair.item)
    return Pair(pair.table, pair.user, code, pair.score)


def _pair_score(table: Table, user: Column, item: Column) -> float:
    """Score of two columns as users and items, from names and structure."""
    score = 3 * max(table.like(user, USER), 0.45 * table.like(user, SESSION)) + 3 * table.like(
        item, ITEM
    )
    score -= 3 * table.like(user, ITEM) + 3 * max(table.like(item, USER), table.like(item, SESSION))
    score += 2 * (table.penalty(user) + table.penalty(item))
    # a person's id rather than the name, which several people may have
    score += 0.6 * (has_id(user.name) and table.like(user, USER) >= _NAMED)
    # in most files the user comes first
    score += 0.5 if user.position < item.position else 0.0
    score += 1.5 * (form_sign(item) - form_sign(user))
    score -= 1.5 * is_name(user) + 1.0 * is_name(item)
    rows = min(user.num_values, item.num_values)
    enough = min(10, rows / 3)
    score += 0.5 * (user.num_distinct >= enough) + 0.5 * (item.num_distinct >= enough)
    # among many events an item must repeat, or nothing can be learned of it; a small file may not
    # show it
    score -= 3.0 * (min(user.filled, item.filled) < _HALF)
    score += 2.0 * _are_visits(table, user, item)
    # a playlist that has a list of songs; the number of an order is no user
    score += 1.0 * (user.name in table.owners and table.like(user, SESSION) < _NAMED)
    score -= 2.0 * user.is_key + (_HOPELESS if rows >= _MANY else 2.0) * item.is_key
    score -= _HOPELESS * (rows >= _MANY and item.num_distinct <= _TOO_FEW)
    num_pairs, sizes = pairs(user, item), (user.num_distinct, item.num_distinct)
    score -= _HOPELESS * (rows >= _MANY and _is_no_item(table, item, num_pairs, user.num_distinct))
    if num_pairs < _ONE_TO_ONE * max(sizes):
        score -= 2.0  # one determines the other: an attribute
    # each determines the other: two names of one thing, as in the export of one person
    score -= _HOPELESS * (num_pairs < _ONE_TO_ONE * min(sizes) and rows >= _CHANCE)
    return score


def _is_no_item(table: Table, item: Column, num_pairs: int, num_users: int) -> bool:
    """Whether a column without the name of items has something else: an attribute or a second id of
    users, their visits, or the state of an order.
    """
    if table.like(item, ITEM) >= _NAMED:
        return False
    # an attribute has few values, one for each user; a visit belongs to one user
    is_attribute = num_pairs < _ONE_TO_ONE * num_users and item.num_distinct <= FEW
    is_visit = num_pairs < _ONE_TO_ONE * item.num_distinct
    # people as items have names such as liked_user_id
    ids = item.values.drop_null().slice(0, _LOOKED_AT)
    is_user = table.like(item, USER) == 1.0 or email_like(ids) >= _OF_OWNER * len(ids)
    is_state = item.num_distinct <= FEW and table.like(item, (*STATUS, *EVENT_TYPE)) >= _NAMED
    return is_attribute or is_visit or is_user or is_state


def _are_visits(table: Table, user: Column, item: Column) -> bool:
    """Whether a file without names has visits and items: the rows of a visit have nearly one time,
    those of an item have times of the whole period.
    """
    time = next((column for column in table.columns if column.kind == "time"), None)
    if table.sample.has_names or time is None or time.time is None:
        return False
    micros = timestamps(time.values, CellRules(time_format=time.time.format))[0].cast(pa.int64())
    lengths = [_usual_length(column, micros) for column in (user, item)]
    return lengths[0] < _SHORT_TIME < _LONG_TIME < lengths[1]


def _usual_length(column: Column, micros: pa.Array) -> float:
    """The median time between the first and the last row of an id, as a share of the period."""
    frame = pl.DataFrame({"id": pl.from_arrow(column.values), "at": pl.from_arrow(micros)})
    frame = frame.drop_nulls()
    every = frame.group_by("id").agg(at=pl.col("at").max() - pl.col("at").min(), num=pl.len())
    period = frame.select(pl.col("at").max() - pl.col("at").min()).item()
    median = every.filter(pl.col("num") > 1)["at"].median()
    return float(median) / period if median is not None and period else 0.0  # type: ignore[arg-type]


def _table_score(table: Table, pair: Pair) -> float:
    """Score of a table as the table of events, apart from its ids."""
    others = [column for column in table.columns if column not in (pair.user, pair.item)]
    score = 2.0 * any(column.kind == "time" for column in others)
    score += 1.0 * any(table.like(c, VALUE) >= 0.8 and c.kind in ("number", "flag") for c in others)
    score += 1.0 * any(
        table.like(c, EVENT_TYPE) >= 0.8 and 1 < c.num_distinct <= 30 for c in others
    )
    # the events are usually the largest table
    score += 0.4 * min(len(str(table.sample.num_rows)), 7)
    score += 1.0 * (table.sample.format == "sequences") * 3
    stem = table.sample.name
    if named_like(stem, SOCIAL_FILES):
        score -= 3.0
    elif named_like(stem, EVENT_FILES):
        score += 1.5
    elif named_like(stem, (*ITEM_FILES, *USER_FILES)):
        score -= 1.0
    # two columns of people are friendships
    if min(table.like(pair.user, FRIEND), table.like(pair.item, FRIEND)) >= 0.8:
        score -= 4.0
    elif (
        max(table.like(pair.item, ITEM), table.like(pair.user, USER)) < _NAMED
        and table.sample.format != "sequences"
    ):
        alike = IdSet(pair.user).similarity(IdSet(pair.item))
        ordinary = IdSet(pair.user).is_count and IdSet(pair.item).is_count
        # ids that count from 1 overlap by chance, so they say less
        score -= 3.0 * alike if not ordinary else 1.5 * alike
    return score


def _item_sign(table: Table, column: Column, tables: Sequence[Table]) -> float:
    """Whether another table describes these ids as things."""
    mine, best = IdSet(column), 0.0
    for other in tables:
        for key in other.keys if other is not table else ():
            name = other.sample.name
            # "movie-ratings" has events, not films
            is_named = named_like(name, ITEM_FILES) and not named_like(name, EVENT_FILES)
            weight = 1.0 if other.is_item_like or is_named else 0.2
            weight = 0.1 if named_like(other.sample.name, USER_FILES) else weight
            best = max(best, weight * mine.similarity(IdSet(key)))
    return best


def _user_sign(table: Table, column: Column, tables: Sequence[Table]) -> float:
    """Whether another table describes these ids as people: links between them, or a table of
    users.
    """
    mine, best = IdSet(column), 0.0
    for other in tables:
        if other is table:
            continue
        keys = other.keys
        if keys and (
            named_like(other.sample.name, USER_FILES)
            or any(other.like(key, USER) >= 0.8 for key in keys)
        ):
            best = max([best, *(mine.similarity(IdSet(key)) for key in keys)])
        if len(other.id_columns) >= 2 and len(other.columns) <= 4 and not keys:
            one, two = (IdSet(key) for key in other.id_columns[:2])
            linked = one.similarity(two)
            # a table with two columns of the same ids links people
            if linked >= 0.2:
                weight = 1.0 if named_like(other.sample.name, SOCIAL_FILES) else linked
                best = max(best, weight * min(mine.similarity(one), mine.similarity(two)))
    return best
