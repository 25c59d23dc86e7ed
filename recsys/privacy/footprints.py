"""Traces of a user in files: the user's id in every form in which files store it, and sequences of
the history.

A long id is searched byte by byte, as such bytes do not occur by chance. A short id (``2``) is a
number like any other; it is searched only where users are named: columns and keys whose name has
user, friend, src or dst in it, and columns with raw, member, customer or visitor in theirs. Cells
of other columns may hold JSON with such keys.

A history is searched as short sequences (stretches) of items, in the order of time and of dense
ids, and of times, as 32 and 64 bit integers; items also as ids and titles in a row. A stretch that
another user has as well identifies nobody and is left out. So is one of items that follow each
other in the catalogue, in either direction.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.data.histories import Array, Histories
from recsys.privacy.stretches import Stretches, stretches_of
from recsys.privacy.unpacked import Part

_DISTINCT_BYTES: Final = 5
_DISTINCT_DIGITS: Final = 9
_USER_WORDS: Final = "user|friend|src|dst|member|customer|visitor"
_NAMES_USERS: Final = re.compile(rf"{_USER_WORDS}|raw", re.IGNORECASE)
_WORD: Final = re.compile(rb"[0-9A-Za-z_]")
_MORE: Final = re.compile(rb"[0-9A-Za-z_.@+:/-]")
_MOST_BETWEEN: Final = 12  # most characters between two ids of a list, as in '", "'


@dataclass(frozen=True)
class Id:
    """The id of a user in the forms that a search needs."""

    text: str
    others: frozenset[bytes] = frozenset()  # longer ids of others that contain it as a word
    distinct: bool = True  # whether it is searched byte by byte

    @staticmethod
    def of(text: str, users: pa.Array, items: pa.Array) -> Id:
        """Make it from an id and the ids of all users and items, which may contain the id or equal
        it.

        Parameters
        ----------
        text : str
            The id of the user.
        users : pa.Array of str
            Ids of all users.
        items : pa.Array of str
            Ids of all items.

        Returns
        -------
        Id
            It is searched byte by byte unless it is short (under 5 bytes, a number under 9 digits)
            or equals the id of an item.
        """
        holding = [
            pc.filter(ids, pc.match_substring(ids, text)).to_pylist() for ids in (users, items)
        ]
        # ``a.b`` is a word in ``a.b.c``; a find inside the longer id is not a trace of this user
        others = frozenset(one.encode() for ids in holding for one in ids if one != text)
        enough = len(text.encode()) >= (_DISTINCT_DIGITS if text.isdecimal() else _DISTINCT_BYTES)
        return Id(text, others, enough and text not in holding[1])

    @property
    def forms(self) -> list[bytes]:
        """The id in the forms in which files store it."""
        escaped = json.dumps(self.text)[1:-1]
        texts = {
            self.text,
            escaped,
            html.escape(self.text),
            quote(self.text, safe=""),
            quote(self.text),
        }
        # NumPy stores texts as UTF-32, and some programs write UTF-16
        wide = [self.text.encode("utf-16-le"), self.text.encode("utf-32-le")]
        return [*sorted(text.encode() for text in texts), *wide]

    def in_bytes(self, data: Any) -> bool:
        """Whether bytes contain the id as a separate word."""
        if not self.distinct:
            return self._named_in(data) or self._is_value_in(data)
        for form in self.forms:
            start = data.find(form)
            while start >= 0:
                if self._is_word(data, start, start + len(form)):
                    return True
                # not after the match: matches may overlap
                start = data.find(form, start + 1)
        return False

    def in_cells(self, cells: Sequence[str], joined: bytes, where: str) -> bool:
        """Whether texts contain the id; a short id only as a whole cell of a column that names
        users, or as the value of a key in JSON that names users.

        Parameters
        ----------
        cells : Sequence of str
            The texts, one for each cell of the column.
        joined : bytes
            The same texts with line ends between them, in UTF-8.
        where : str
            Place of the column in its file, such as ``member/column``.
        """
        if self.distinct:
            return self.in_bytes(joined)
        if self._is_value_in(joined):
            return True
        return bool(_NAMES_USERS.search(where)) and (self.text in cells or self._named_in(joined))

    def _is_word(self, data: Any, start: int, end: int) -> bool:
        """Whether the match is a separate word, and not part of a longer id of someone else."""
        # "7" inside "17" is another number
        if _WORD.match(data[start - 1 : start] if start else b"") or _WORD.match(
            data[end : end + 1]
        ):
            return False
        while start and _MORE.match(data[start - 1 : start]):
            start -= 1
        while _MORE.match(data[end : end + 1]):
            end += 1
        # a full stop or colon next to an id usually belongs to the sentence
        whole = bytes(data[start:end]).strip(b".:/-@+")
        return whole not in self.others

    def _is_value_in(self, data: Any) -> bool:
        """Whether JSON has the id as a value, or in a list, of a key that names users."""
        escaped = {json.dumps(self.text, ensure_ascii=ascii)[1:-1] for ascii in (True, False)}
        names = "|".join(re.escape(form) for form in sorted(escaped))
        pattern = (
            rf"\"\w*(?i:{_USER_WORDS})\w*\"\s*:\s*(?:\[[^\[\]{{}}]*?)?"
            rf"\"(?:{names})\"\s*[,\]}}]"
        )
        return re.search(pattern.encode("utf-8", "surrogatepass"), data) is not None

    def _named_in(self, data: Any) -> bool:
        name = re.escape(self.text.encode())
        words = _USER_WORDS.encode()
        pattern = (
            rb"(?i:" + words + rb")\w*[\"']?\s*[:=]?\s*[\[\"']*" + name + rb"(?![0-9A-Za-z_.])"
        )
        return re.search(pattern, data) is not None


@dataclass
class SearchTargets:
    """Everything that a search looks for."""

    ids: list[Id] = field(default_factory=list)
    stretches: set[bytes] = field(default_factory=set)  # see recsys.privacy.stretches
    # stretch → its items as they are in lists and pages
    texts: dict[bytes, list[Row]] = field(default_factory=dict)
    num_events: int = 0
    # stretches that other users or the catalogue have as well
    common: set[bytes] = field(default_factory=set)

    @property
    def num_common(self) -> int:
        """Number of stretches that are left out, as other users or the catalogue have them."""
        return len(self.common)

    def add_history(
        self,
        histories: Histories,
        users: Sequence[int],
        item_ids: Sequence[str],
        titles: Sequence[str] = (),
    ) -> None:
        """Add the stretches of these users (dense ids) in one dataset or bundle, with ids and
        titles of its items.

        Stretches that were added before but that other users or the catalogue have here are
        removed: a later dataset has more events of others.

        Parameters
        ----------
        histories : Histories
            All histories of the dataset or bundle, one row per user.
        users : Sequence of int
            Dense ids of the users to search for.
        item_ids : Sequence of str
            Id of every item, in dense order.
        titles : Sequence of str
            Title of every item, in dense order; empty if there are none.
        """
        is_gone_U = np.isin(histories.users_U, np.asarray(users))
        others, gone = (histories.take(np.flatnonzero(mask)) for mask in (~is_gone_U, is_gone_U))
        self.num_events += len(gone.items_E)
        spans = [
            slice(a, b)
            for a, b in zip(
                gone.offsets_U1[:-1].tolist(), gone.offsets_U1[1:].tolist(), strict=True
            )
        ]
        kinds = (
            ([gone.items_E[span] for span in spans], others.items_E),
            ([gone.times_E[span] for span in spans], others.times_E),
            ([np.unique(gone.items_E[span]) for span in spans], _sorted_items(others)),
        )
        catalogue_N = np.arange(max(len(item_ids), int(histories.items_E.max(initial=-1)) + 1))
        for number, (own, of_others) in enumerate(kinds):
            keys = (
                {key for values in own for key in stretches_of(values)}
                - self.stretches
                - self.common
            )
            # also those of earlier datasets: a later one may show that others have them
            every = Stretches(keys | self.stretches)
            common = every.among(of_others) | every.among(catalogue_N)
            common |= every.among(catalogue_N[::-1])
            self.common |= common
            self.stretches = (self.stretches | keys) - common
            self.texts = {key: rows for key, rows in self.texts.items() if key not in common}
            if number == 0:
                for key in sorted(keys - common):
                    self.texts[key] = _texts(
                        np.frombuffer(key, dtype=np.int64).tolist(), item_ids, titles
                    )
        # the cached table has the old stretches
        self.__dict__.pop("_numbers", None)

    @cached_property
    def _numbers(self) -> Stretches:
        return Stretches(self.stretches)

    def found_in(self, part: Part) -> Iterator[str]:
        """Yield ``id`` or ``history`` if a part contains them."""
        if part.kind == "numbers":
            numbers = [int(one.text) for one in self.ids if one.distinct and one.text.isdecimal()]
            if (
                numbers
                and np.isin(
                    np.array([n for n in numbers if n < 2**63], dtype=np.int64), part.data
                ).any()
            ):
                yield "id"
            if self._numbers.among(part.data):
                yield "history"
        elif part.kind == "cells":
            # joined, so that one search covers a whole column; a line end separates words
            joined = "\n".join(part.data).encode("utf-8", "surrogatepass")
            if any(one.in_cells(part.data, joined, part.where) for one in self.ids):
                yield "id"
            if self._in_text(joined):
                yield "history"
        elif part.kind == "bytes":
            if any(one.in_bytes(part.data) for one in self.ids):
                yield "id"
            if self._numbers.inside(part.data) or (
                # binary data has no lists of ids as text
                b"\0" not in part.data[:4096] and self._in_text(part.data)
            ):
                yield "history"

    def _in_text(self, data: Any) -> bool:
        rows = [row for of_stretch in self.texts.values() for row in of_stretch]
        there = {
            form for form in {form for row in rows for form in row.forms} if data.find(form) >= 0
        }
        # first a search for plain bytes, because regular expressions are much slower
        return any(row.may_be_among(there) and row.pattern.search(data) for row in rows)


@dataclass(frozen=True)
class Row:
    """Names of consecutive items, with few characters, tags or JSON keys between them."""

    names: tuple[tuple[bytes, ...], ...]  # the forms of each name: in text, JSON and HTML

    @staticmethod
    def of(names: Sequence[str]) -> Row:
        """Make it from the names of consecutive items."""
        forms = [{name, json.dumps(name)[1:-1], html.escape(name)} for name in names]
        return Row(tuple(tuple(sorted(form.encode() for form in of_name)) for of_name in forms))

    @property
    def forms(self) -> Iterator[bytes]:
        """Yield the forms of the row, by names."""
        for of_name in self.names:
            yield from of_name

    def may_be_among(self, there: Collection[bytes]) -> bool:
        """Whether every name is in ``there``."""
        return all(any(form in there for form in of_name) for of_name in self.names)

    @cached_property
    def pattern(self) -> re.Pattern[bytes]:
        """A regular expression for the names with few characters between them."""
        between = rb"(?:<[^<>]{0,99}>|\"[A-Za-z_]{1,30}\"\s?:|[^0-9A-Za-z<]){1,%d}" % _MOST_BETWEEN
        names = [
            rb"(?:" + rb"|".join(re.escape(form) for form in of_name) + rb")"
            for of_name in self.names
        ]
        return re.compile(rb"(?<![0-9A-Za-z])" + between.join(names) + rb"(?![0-9A-Za-z])")


def _texts(items: list[int], item_ids: Sequence[str], titles: Sequence[str]) -> list[Row]:
    """Items by ids and by titles, from the oldest to the newest and in reverse."""
    shown = [[str(names[item]) for item in items] for names in (item_ids, titles) if len(names)]
    return [Row.of(names) for row in shown for names in (row, row[::-1])]


def _sorted_items(histories: Histories) -> Array:
    """The different items of every user in the order of their dense ids, user by user: int64."""
    rows_E = np.repeat(np.arange(len(histories)), histories.lengths_U).astype(np.int64)
    size = int(histories.items_E.max(initial=0)) + 1
    # one number per pair, so that a single sort orders items within users
    return np.asarray(np.unique(rows_E * size + histories.items_E) % size)
