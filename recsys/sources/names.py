"""Column names of files → canonical names: ``rename`` first, then names that differ in case and blanks alone.

Why: people's files say ``User_ID`` or `` Item Id``; a match that can mean one thing only is made, and everything else
is said. A rename holds for every table, or, under the name of a table, for that one only.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from recsys import schema
from recsys.errors import SourceError, choices
from recsys.sources.limits import check_column_count, listed

_INVISIBLE: Final = " \t\r\n\u00a0\u200b\ufeff"
_BLANKS: Final = re.compile(r"[\s\-]+")
WORDS: Final = {
    schema.USER_ID: ("user", "member", "customer", "person", "people", "visitor", "reviewer", "client"),
    schema.ITEM_ID: ("item", "product", "article", "content", "movie", "film", "book", "isbn", "sku", "stock", "artist",
                     "track", "song", "asin", "place", "business"),
    schema.SRC_USER_ID: ("src", "source", "from", "follower", "truster"),
    schema.DST_USER_ID: ("dst", "target", "to_", "friend", "followee", "trust"),
}  # fmt: skip
"""What the columns are often called; for suggestions only."""


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

        Args:
            columns: the column names of the files, by table.

        Raises:
            SourceError: a name that no file has (a typo would otherwise pass unseen).
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

    Args:
        table: what is wanted.
        columns: the names in the file.
        names: the canonical names they have got.
        where: the file.
        cure: what to do; empty: a rename, as the columns suggest.
        more: another way beside such a rename.

    Raises:
        SourceError: naming what was found, what was expected and the cure.
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
        raise SourceError(
            f"{where}: the {table.name} table lacks {listed(absent)}; found {found}, "
            f"expected at least {listed([*table.required])}; {cure or suggestion(columns, names, absent) + more}"
        )
    twice = sorted(name for name, count in Counter(name for name in names if name).items() if count > 1)
    if twice:
        clash = [c for c, n in zip(columns, names, strict=True) if n in twice]
        raise SourceError(
            f"{where}: column {listed(twice)} occurs twice (after rename): it is made of {listed(clash)}; drop one, "
            f"rename one to another name, or rename in one table only: {{{table.name}: {{{clash[0]}: {twice[0]}}}}}"
        )
    reserved = {schema.FILE, schema.ROW, schema.ORDER, schema.REASON, schema.RAW} & set(names)
    if reserved:
        raise SourceError(f"{where}: column {listed(sorted(reserved))} is reserved for provenance; rename it")


def suggestion(columns: Sequence[str], names: Sequence[str], absent: Sequence[str]) -> str:
    """What to write for the columns that are missing, with the names that look like them."""
    free = [c for c, n in zip(columns, names, strict=True) if c == n and c]
    pairs = []
    for wanted in absent:
        alike = [c for c in free if any(word in c.casefold() for word in WORDS.get(wanted, (wanted,)))]
        alike.sort(key=lambda column: "id" not in column.casefold())
        pairs += [f"{alike[0]}: {wanted}"] if alike else []
        free = [column for column in free if column not in alike[:1]]
    return f"name the right ones with data.source.rename, e.g. {{{', '.join(pairs) or 'uid: user_id'}}}"
