"""Column names of files → canonical names: ``rename`` first, then names that differ in case and blanks alone.

Why: people's files say ``User_ID`` or `` Item Id``; a match that can mean one thing only is made, and everything else
is said. A rename holds for every table, or, under the name of a table, for that one only.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Final

from recsys import schema
from recsys.errors import SourceError, choices
from recsys.sources.limits import check_column_count, listed

_INVISIBLE: Final = " \t\r\n\u00a0\u200b\ufeff"
_BLANKS: Final = re.compile(r"[\s\-]+")
WORDS: Final = {
    schema.USER_ID: ("user", "member", "customer", "person", "people", "visitor", "reviewer", "client", "uid"),
    schema.ITEM_ID: ("item", "product", "article", "content", "movie", "film", "book", "isbn", "sku", "stock", "artist",
                     "track", "song", "asin", "place", "business", "iid"),
    schema.SRC_USER_ID: ("src", "source", "from", "follower", "truster", "user", "member"),
    schema.DST_USER_ID: ("dst", "target", "to_", "friend", "followee", "trust", "other"),
    schema.TIMESTAMP: ("time", "date", "_at", "epoch"),
    schema.RELATION: ("relation", "predicate", "property"),
}  # fmt: skip
"""What the columns are often called; for suggestions only."""
_MEANS: Final = {
    schema.TIMESTAMP: ("time", "date", "datetime", "ts", "unixtime", "unix_time", "event_time", "created_at", "epoch"),
    schema.VALUE: ("rating", "stars", "score"),
    schema.EVENT_TYPE: ("event", "eventtype", "type", "action", "behavior"),
    schema.WEIGHT: ("trust", "strength"),
}
_CLOSE: Final = 0.8  # of difflib: one or two letters apart


@dataclass(frozen=True)
class Renames:
    """``data.source.rename``: for every table, and for single ones."""

    everywhere: Mapping[str, str] = field(default_factory=dict)
    of_tables: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @classmethod
    def of(cls, rename: Mapping[str, str | dict[str, str]]) -> Renames:
        """Sort the entries of the configuration.

        >>> Renames.of({"uid": "user_id", "social": {"uid": "src_user_id"}}).table("social")
        {'uid': 'src_user_id'}
        """
        everywhere = {name: to for name, to in rename.items() if isinstance(to, str)}
        return cls(everywhere, {name: to for name, to in rename.items() if not isinstance(to, str)})

    def table(self, name: str) -> dict[str, str]:
        """Those of one table; its own entries win over the common ones."""
        return {**self.everywhere, **self.of_tables.get(name, {})}

    def matched(self, columns: Mapping[str, set[str]]) -> Renames:
        """The same with names as the files spell them, where only case and blanks differ.

        Parameters
        ----------
        columns : Mapping[str, set[str]]
            the column names of the files, by table.

        Raises
        ------
        SourceError
            a name that no file has (a typo would otherwise pass unseen).
        """
        every = set().union(*columns.values())
        everywhere = _spelled(self.everywhere, every, "data.source.rename", "no file has")
        of_tables = {}
        for table, rename in self.of_tables.items():
            key = f"data.source.rename.{table}"
            if table not in columns:
                raise SourceError(
                    f"{key} renames columns of the table {table!r}, which this source does not have; "
                    f"it has: {choices(columns)}"
                )
            of_tables[table] = _spelled(rename, columns[table], key, f"no file of {table} has")
        return Renames(everywhere, of_tables)


def _spelled(rename: Mapping[str, str], columns: set[str], key: str, nobody: str) -> dict[str, str]:
    spelled, unknown = {}, []
    for name, to in rename.items():
        alike = [column for column in columns if fold(column) == fold(name)]
        if name in columns:
            spelled[name] = to
        elif len(alike) == 1 and alike[0] not in rename:
            spelled[alike[0]] = to
        else:
            unknown.append(name)
    if unknown:
        raise SourceError(
            f"{key} names {', '.join(map(repr, unknown))}, which {nobody}; the files have: {choices(columns)}"
        )
    return spelled


def fold(name: str) -> str:
    """A name without case, surrounding blanks and a leading ``#``; blanks and hyphens within are underscores.

    >>> fold(" User-ID "), fold("# item id")
    ('user_id', 'item_id')
    """
    return _BLANKS.sub("_", name.strip(_INVISIBLE).lstrip("#").strip(_INVISIBLE).casefold())


def canonical_names(columns: Sequence[str], rename: Mapping[str, str], table: schema.TableSchema) -> tuple[str, ...]:
    """The canonical name of every column; other columns keep theirs, ``""`` (no name) stays.

    >>> canonical_names(["User_ID", "film", "note", ""], {"film": "item_id"}, schema.EVENTS)
    ('user_id', 'item_id', 'note', '')
    """
    names = [rename.get(name, name) for name in columns]
    folded = Counter(fold(name) for column, name in zip(columns, names, strict=True) if column not in rename)
    taken = set(names)
    for place, (column, name) in enumerate(zip(columns, names, strict=True)):
        wanted = fold(name)
        if column not in rename and wanted in table.columns and wanted not in taken and folded[wanted] == 1:
            names[place] = wanted
    return tuple(names)


def require_columns(
    table: schema.TableSchema, columns: Sequence[str], names: Sequence[str], where: str, cure: str = "", more: str = ""
) -> None:
    """Check that all required columns of the table are there, each once.

    Parameters
    ----------
    table : schema.TableSchema
        what is wanted.
    columns : Sequence[str]
        the names in the file.
    names : Sequence[str]
        the canonical names they have got.
    where : str
        the file.
    cure : str
        what to do; empty: a rename, as the columns suggest.
    more : str
        another way beside such a rename.

    Raises
    ------
    SourceError
        naming what was found, what was expected and the cure.
    """
    check_column_count(len(columns), where)
    absent = [name for name in table.required if name not in names]
    if absent:
        taken = [
            f"{column!r} to {name!r}"
            for column, name in zip(columns, names, strict=True)
            if column != name and fold(column) in absent
        ]
        if taken:
            moved = {c: n for c, n in zip(columns, names, strict=True) if fold(c) in absent and c != n}
            meant = next((t.name for t in schema.TABLES.values() if set(moved.values()) & set(t.columns)), "social")
            example = ", ".join(f"{column}: {name}" for column, name in moved.items())
            cure = (
                f"data.source.rename renamed {', '.join(taken)} in this table too; to rename in one table only, write "
                f"the name of that table around it, e.g. rename: {{{meant}: {{{example}}}}}"
            )
        found = listed([column for column in columns if column]) or "no names"
        cure = cure or suggestion(columns, names, absent, table.name) + more
        raise SourceError(
            f"{where}: the {table.name} table lacks {listed(absent)}; found {found}, "
            f"expected at least {listed([*table.required])}; {cure}"
        )
    twice = sorted(name for name, count in Counter(name for name in names if name).items() if count > 1)
    if twice:
        clash = [c for c, n in zip(columns, names, strict=True) if n == twice[0]]
        if len({*clash}) == 1:
            raise SourceError(
                f"{where}: column {clash[0]!r} occurs twice in the header; correct it, or name all columns with "
                "data.source.columns ('_' leaves one out) and set data.source.header to yes"
            )
        raise SourceError(
            f"{where}: column {listed(twice)} occurs twice (after rename): it is made of {listed(clash)}; drop one, "
            f"rename one to another name, or rename in one table only: {{{table.name}: {{{clash[0]}: {twice[0]}}}}}"
        )
    reserved = {schema.FILE, schema.ROW, schema.ORDER, schema.REASON, schema.RAW} & set(names)
    if reserved:
        raise SourceError(f"{where}: column {listed(sorted(reserved))} is reserved for provenance; rename it")


def suggestion(columns: Sequence[str], names: Sequence[str], absent: Sequence[str], table: str = "events") -> str:
    """What to write for the columns that are missing, with the names that look like them.

    >>> suggestion(["user_id", "to"], ["user_id", "to"], ["src_user_id", "dst_user_id"], "social")
    'name the right ones with data.source.rename, e.g. {social: {user_id: src_user_id, to: dst_user_id}}'
    """
    free = [c for c, n in zip(columns, names, strict=True) if c == n and c and n not in schema.TABLES[table].required]
    pairs: dict[str, str] = {}
    for wanted in absent:
        alike = [c for c in free if any(word in c.casefold() for word in WORDS.get(wanted, (wanted,)))]
        alike.sort(key=lambda column: "id" not in column.casefold())
        if alike:
            pairs[alike[0]] = wanted
            free.remove(alike[0])
    left = [wanted for wanted in absent if wanted not in pairs.values()]
    if pairs and len(left) == len(free) == 1:
        pairs[free[0]] = left[0]
    example = ", ".join(f"{column}: {name}" for column, name in (pairs or {"OLD_NAME": left[0]}).items())
    if any(fold(column) in other.columns for column in pairs for other in schema.TABLES.values()):
        example = f"{table}: {{{example}}}"  # a rename of all tables would take the name from another one
    constant = f" or give every row one with data.source.constants, e.g. {{{table}: {{{schema.RELATION}: has}}}}"
    return f"name the right ones with data.source.rename, e.g. {{{example}}}" + constant * (schema.RELATION in left)


def unused_names(names: Sequence[str], table: schema.TableSchema) -> list[str]:
    """Notes on columns that look like a known column that the table does not have: a typing error, or another name.

    >>> unused_names(["user_id", "item_id", "timestmap"], schema.EVENTS)
    ["column 'timestmap' is no timestamp by its name; data.source.rename {timestmap: timestamp} makes it one"]
    """
    notes = []
    for wanted in table.optional:
        if wanted in names:
            continue
        free = [name for name in names if name and name not in table.columns]
        alike = [name for name in free if fold(name) in _MEANS.get(wanted, ())]
        alike = alike or get_close_matches(wanted, free, 1, _CLOSE)
        if alike:
            notes.append(
                f"column {alike[0]!r} is no {wanted} by its name; data.source.rename {{{alike[0]}: {wanted}}} makes "
                "it one"
            )
    return notes
