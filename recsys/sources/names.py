"""Column names of files → canonical names: ``rename`` first, then names that differ only in case
and blanks.

Why: files have names such as ``User_ID`` or `` Item Id``. A name with one possible meaning is
matched; for any other the message says what to do. A rename is for all tables, or, below the name
of a table, only for that table.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Final

from recsys import schema
from recsys.errors import SourceError, choices, valid_instead
from recsys.sources.limits import check_column_count, listed

_INVISIBLE: Final = " \t\r\n\u00a0\u200b\ufeff"
_BLANKS: Final = re.compile(r"[\s\-]+")
WORDS: Final = {
    schema.USER_ID: ("user", "member", "customer", "person", "people", "visitor", "reviewer",
                     "client", "uid"),
    schema.ITEM_ID: ("item", "product", "article", "content", "movie", "film", "book", "isbn",
                     "sku", "stock", "artist", "track", "song", "asin", "place", "business", "iid"),
    schema.SRC_USER_ID: ("src", "source", "from", "follower", "truster", "user", "member"),
    schema.DST_USER_ID: ("dst", "target", "to_", "friend", "followee", "trust", "other"),
    schema.TIMESTAMP: ("time", "date", "_at", "epoch"),
    schema.RELATION: ("relation", "predicate", "property"),
}  # fmt: skip
"""Parts of usual column names; only for suggestions."""
_MEANS: Final = {
    schema.TIMESTAMP: (
        "time",
        "date",
        "datetime",
        "ts",
        "unixtime",
        "unix_time",
        "event_time",
        "created_at",
        "epoch",
    ),
    schema.VALUE: ("rating", "stars", "score"),
    schema.EVENT_TYPE: ("event", "eventtype", "type", "action", "behavior"),
    schema.WEIGHT: ("trust", "strength"),
}
_CLOSE: Final = 0.8  # similarity of difflib: one or two different letters


@dataclass(frozen=True)
class Renames:
    """``data.source.rename``: for all tables, and for single tables."""

    everywhere: Mapping[str, str] = field(default_factory=dict)
    of_tables: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @classmethod
    def of(cls, rename: Mapping[str, str | dict[str, str]]) -> Renames:
        """Divide the entries of the configuration into those for all tables and those for single
        tables.

        >>> Renames.of({"uid": "user_id", "social": {"uid": "src_user_id"}}).table("social")
        {'uid': 'src_user_id'}
        """
        everywhere = {name: to for name, to in rename.items() if isinstance(to, str)}
        return cls(everywhere, {name: to for name, to in rename.items() if not isinstance(to, str)})

    def table(self, name: str) -> dict[str, str]:
        """The renames of one table; its own entries override the common ones."""
        return {**self.everywhere, **self.of_tables.get(name, {})}

    def matched(self, columns: Mapping[str, set[str]]) -> Renames:
        """The renames with the names as the files spell them, if only case and blanks differ.

        Parameters
        ----------
        columns : Mapping[str, set[str]]
            Column names of the files, by table.

        Raises
        ------
        SourceError
            No file has the name: a spelling mistake must not be ignored.
        """
        every = set().union(*columns.values())
        everywhere = _spelled(self.everywhere, every, "data.source.rename", "no file has")
        of_tables = {}
        for table, rename in self.of_tables.items():
            key = f"data.source.rename.{table}"
            if table not in columns:
                raise SourceError(
                    f"{key} renames columns of the table {table!r}, which this source does not"
                    f" have; it has: {choices(columns)}"
                )
            of_tables[table] = _spelled(rename, columns[table], key, f"no file of {table} has")
        return Renames(everywhere, of_tables)


def _spelled(
    rename: Mapping[str, str], columns: set[str], key: str, lacking: str
) -> dict[str, str]:
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
            f"{key} names {', '.join(map(repr, unknown))}, which {lacking};"
            f" {valid_instead(unknown[0], columns, 'the files have')}"
        )
    return spelled


def fold(name: str) -> str:
    """A name in lower case without surrounding blanks and a leading ``#``; inner blanks and hyphens
    become ``_``.

    >>> fold(" User-ID "), fold("# item id")
    ('user_id', 'item_id')
    """
    return _BLANKS.sub("_", name.strip(_INVISIBLE).lstrip("#").strip(_INVISIBLE).casefold())


def canonical_names(
    columns: Sequence[str], rename: Mapping[str, str], table: schema.TableSchema
) -> tuple[str, ...]:
    """The canonical name of each column; other columns keep their names, ``""`` (no name) stays.

    >>> canonical_names(["User_ID", "film", "note", ""], {"film": "item_id"}, schema.EVENTS)
    ('user_id', 'item_id', 'note', '')

    Parameters
    ----------
    columns : Sequence[str]
        Names in the file.
    rename : Mapping of str to str
        Name in the file to canonical name.
    table : TableSchema
        The columns of the table.
    """
    names = [rename.get(name, name) for name in columns]
    folded = Counter(
        fold(name) for column, name in zip(columns, names, strict=True) if column not in rename
    )
    taken = set(names)
    for index, (column, name) in enumerate(zip(columns, names, strict=True)):
        wanted = fold(name)
        if (
            column not in rename
            and wanted in table.columns
            and wanted not in taken
            and folded[wanted] == 1
        ):
            names[index] = wanted
    return tuple(names)


def require_columns(
    table: schema.TableSchema,
    columns: Sequence[str],
    names: Sequence[str],
    where: str,
    cure: str = "",
    more: str = "",
) -> None:
    """Check that all required columns of the table are there, each once.

    Parameters
    ----------
    table : schema.TableSchema
        The canonical table.
    columns : Sequence[str]
        Names in the file.
    names : Sequence[str]
        Their canonical names.
    where : str
        Path of the file, for messages.
    cure : str
        The cure in messages; "": a rename that the columns suggest.
    more : str
        Another cure in addition to such a rename.

    Raises
    ------
    SourceError
        A required column is missing, a column occurs twice, or a name is reserved.
    """
    check_column_count(len(columns), where)
    absent = [name for name in table.required if name not in names]
    if absent:
        cure = _other_table(columns, names, absent) or cure
        cure = cure or suggestion(columns, names, absent, table.name) + more
        found = listed([column for column in columns if column]) or "no names"
        raise SourceError(
            f"{where}: the {table.name} table lacks {listed(absent)}; found {found}, "
            f"expected at least {listed([*table.required])}; {cure}"
        )
    _check_once(table, columns, names, where)
    reserved = {schema.FILE, schema.ROW, schema.ORDER, schema.REASON, schema.RAW} & set(names)
    if reserved:
        raise SourceError(
            f"{where}: column {listed(sorted(reserved))} is reserved for provenance; rename it"
        )


def _other_table(columns: Sequence[str], names: Sequence[str], absent: Sequence[str]) -> str:
    """The cure if a rename, which is meant for another table, took the missing columns; else ""."""
    moved = {
        column: name
        for column, name in zip(columns, names, strict=True)
        if column != name and fold(column) in absent
    }
    if not moved:
        return ""
    taken = ", ".join(f"{column!r} to {name!r}" for column, name in moved.items())
    meant = next(
        (t.name for t in schema.TABLES.values() if set(moved.values()) & set(t.columns)), "social"
    )
    example = ", ".join(f"{column}: {name}" for column, name in moved.items())
    return (
        f"data.source.rename renamed {taken} in this table too; to rename only"
        " in one table, put the rename below the name of that table, e.g. rename:"
        f" {{{meant}: {{{example}}}}}"
    )


def _check_once(
    table: schema.TableSchema, columns: Sequence[str], names: Sequence[str], where: str
) -> None:
    """Refuse a canonical name that two columns have."""
    counts = Counter(name for name in names if name)
    twice = sorted(name for name, count in counts.items() if count > 1)
    if not twice:
        return
    clash = [c for c, n in zip(columns, names, strict=True) if n == twice[0]]
    if len({*clash}) == 1:
        raise SourceError(
            f"{where}: column {clash[0]!r} occurs twice in the header; correct it, or name all"
            " columns with data.source.columns ('_' skips one) and set data.source.header"
            " to yes"
        )
    raise SourceError(
        f"{where}: column {listed(twice)} occurs twice (after rename), from {listed(clash)};"
        f" remove one, give one another name, or rename only in one table: {{{table.name}:"
        f" {{{clash[0]}: {twice[0]}}}}}"
    )


def suggestion(
    columns: Sequence[str], names: Sequence[str], absent: Sequence[str], table: str = "events"
) -> str:
    """The cure for missing columns, with names in the file that look like them.

    >>> found, absent = ["user_id", "to"], ["src_user_id", "dst_user_id"]
    >>> print(suggestion(found, found, absent, "social"))  # doctest: +NORMALIZE_WHITESPACE
    name the right ones with data.source.rename,
    e.g. {social: {user_id: src_user_id, to: dst_user_id}}

    Parameters
    ----------
    columns : Sequence[str]
        Names in the file.
    names : Sequence[str]
        Their canonical names; equal to the name in the file where no rename applies.
    absent : Sequence[str]
        Canonical names that are missing; at least one.
    table : str
        Name of the canonical table.

    Returns
    -------
    str
        A text for an error message, with an example.
    """
    free = [
        c
        for c, n in zip(columns, names, strict=True)
        if c == n and c and n not in schema.FILE_TABLES[table].required
    ]
    pairs: dict[str, str] = {}
    for wanted in absent:
        alike = [
            c for c in free if any(word in c.casefold() for word in WORDS.get(wanted, (wanted,)))
        ]
        alike.sort(key=lambda column: "id" not in column.casefold())
        if alike:
            pairs[alike[0]] = wanted
            free.remove(alike[0])
    left = [wanted for wanted in absent if wanted not in pairs.values()]
    if pairs and len(left) == len(free) == 1:
        pairs[free[0]] = left[0]
    example = ", ".join(
        f"{column}: {name}" for column, name in (pairs or {"OLD_NAME": left[0]}).items()
    )
    if any(fold(column) in other.columns for column in pairs for other in schema.TABLES.values()):
        example = (  # a rename for all tables would also change this column in another table
            f"{table}: {{{example}}}"
        )
    constant = (
        f" or set one value for all rows with data.source.constants, e.g. {{{table}:"
        f" {{{schema.RELATION}: has}}}}"
    )
    return f"name the right ones with data.source.rename, e.g. {{{example}}}" + constant * (
        schema.RELATION in left
    )


def unused_names(names: Sequence[str], table: schema.TableSchema) -> list[str]:
    """Notes on columns that look like a missing known column: a spelling mistake, or another name.

    >>> (note,) = unused_names(["user_id", "item_id", "timestmap"], schema.EVENTS)
    >>> print(note)  # doctest: +NORMALIZE_WHITESPACE
    column 'timestmap' is not used as timestamp; to use it,
    set data.source.rename {timestmap: timestamp}
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
                f"column {alike[0]!r} is not used as {wanted}; to use it, set data.source.rename "
                f"{{{alike[0]}: {wanted}}}"
            )
    return notes
