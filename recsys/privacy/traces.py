"""What a user leaves in files: their id, in every form that files write it in, and stretches of their history.

An id is looked for byte by byte where it is long enough that such bytes do not occur by chance. A short one (``2``) is
a number like any other; it is looked for where users are named: columns and keys called user, friend, src or dst.

A history is looked for as stretches of items, in the order of time and of their numbers, and of times, as 32 and 64 bit
integers and, of items, as ids and titles in a row; a stretch that another user has as well tells of nobody and is left
out.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.data.histories import Array, Histories
from recsys.privacy.opened import Part

_DISTINCT_BYTES: Final = 5
_DISTINCT_DIGITS: Final = 9
STRETCH: Final = 6  # events of a stretch, and …
_LEAST: Final = 3  # … of the shortest that tells anything
_NAMES_USERS: Final = re.compile(r"user|friend|src|dst|raw|member|customer|visitor", re.IGNORECASE)
_WORD: Final = re.compile(rb"[0-9A-Za-z_]")
_MORE: Final = re.compile(rb"[0-9A-Za-z_.@+:/-]")
_MOST_BETWEEN: Final = 12  # characters between two ids of a list, as in '", "'


@dataclass(frozen=True)
class Id:
    """The id of a user, as a search looks for it."""

    text: str
    others: frozenset[bytes] = frozenset()  # longer ids of others that hold it as a word
    distinct: bool = True  # whether it is looked for byte by byte

    @staticmethod
    def of(text: str, users: pa.Array, items: pa.Array) -> Id:
        """An id among those of users and items, which may be longer ones or the same."""
        holding = [pc.filter(ids, pc.match_substring(ids, text)).to_pylist() for ids in (users, items)]
        others = frozenset(one.encode() for ids in holding for one in ids if one != text)
        enough = len(text.encode()) >= (_DISTINCT_DIGITS if text.isdigit() else _DISTINCT_BYTES)
        return Id(text, others, enough and text not in holding[1])

    @property
    def forms(self) -> list[bytes]:
        """The id as files write it."""
        escaped = json.dumps(self.text)[1:-1]
        texts = {self.text, escaped, html.escape(self.text), quote(self.text, safe=""), quote(self.text)}
        wide = [self.text.encode("utf-16-le"), self.text.encode("utf-32-le")]
        return [*sorted(text.encode() for text in texts), *wide]

    def in_bytes(self, data: Any) -> bool:
        """Whether bytes hold the id as a word of its own."""
        if not self.distinct:
            return self._named_in(data)
        for form in self.forms:
            start = data.find(form)
            while start >= 0:
                if self._is_word(data, start, start + len(form)):
                    return True
                start = data.find(form, start + 1)
        return False

    def in_cells(self, cells: Sequence[str], where: str) -> bool:
        """Whether texts hold it; of a short id only in a column that names users, as a whole cell."""
        if not self.distinct:
            return bool(_NAMES_USERS.search(where)) and (
                self.text in cells or self._named_in("\n".join(cells).encode())
            )
        array = pa.array(cells, pa.large_string())
        held = array.filter(pc.match_substring(array, self.text)).to_pylist()
        return any(self.in_bytes(text.encode()) for text in held)

    def _is_word(self, data: Any, start: int, end: int) -> bool:
        """Whether it stands alone there, and not in a longer id of somebody else."""
        if _WORD.match(data[start - 1 : start] if start else b"") or _WORD.match(data[end : end + 1]):
            return False
        while start and _MORE.match(data[start - 1 : start]):
            start -= 1
        while _MORE.match(data[end : end + 1]):
            end += 1
        whole = bytes(data[start:end]).strip(b".:/-@+")
        return whole not in self.others

    def _named_in(self, data: Any) -> bool:
        name = re.escape(self.text.encode())
        pattern = rb"(?i:user|friend|src|dst)\w*[\"']?\s*[:=]?\s*[\[\"']*" + name + rb"(?![0-9A-Za-z_.])"
        return re.search(pattern, data) is not None


@dataclass
class Traces:
    """All that a search looks for."""

    ids: list[Id] = field(default_factory=list)
    stretches: set[bytes] = field(default_factory=set)  # of int64, little endian
    texts: list[re.Pattern[bytes]] = field(default_factory=list)  # of item ids in a row
    num_events: int = 0
    num_common: int = 0  # stretches that others have as well

    def add_history(
        self, histories: Histories, users: Sequence[int], item_ids: Sequence[str], titles: Sequence[str] = ()
    ) -> None:
        """The stretches of these users (dense ids) in the numbers of one dataset or bundle, with the ids and titles of
        its items."""
        is_gone_U = np.isin(histories.users_U, np.asarray(users))
        rows = np.flatnonzero(is_gone_U)
        others = histories.take(np.flatnonzero(~is_gone_U))
        plain = (others.items_E, others.times_E, _sorted_items(others))
        haystacks = [values.astype(np.int64).tobytes() for values in plain]
        for row in rows.tolist():
            span = slice(int(histories.offsets_U1[row]), int(histories.offsets_U1[row + 1]))
            items, times = histories.items_E[span].astype(np.int64), histories.times_E[span].astype(np.int64)
            self.num_events += len(items)
            for values, haystack in zip((items, times, np.unique(items)), haystacks, strict=True):
                for stretch in _stretches(values):
                    if self._add(stretch, haystack) and values is items:
                        self._add_texts(stretch, item_ids, titles)

    def _add(self, stretch: Array, haystack: bytes) -> bool:
        key = stretch.tobytes()
        if key in self.stretches:
            return False
        if _holds(haystack, key, 8):
            self.num_common += 1
            return False
        self.stretches.add(key)
        return True

    def _add_texts(self, stretch: Array, item_ids: Sequence[str], titles: Sequence[str]) -> None:
        """The stretch as lists and pages write it, by ids and by titles, from the oldest on and from the newest."""
        for names in (item_ids, titles):
            if len(names):
                shown = [_alternatives(str(names[item])) for item in stretch.tolist()]
                self.texts += [_in_a_row(shown), _in_a_row(shown[::-1])]

    def found_in(self, part: Part) -> Iterator[str]:
        """``id`` or ``history`` where a part holds them."""
        if part.kind == "numbers":
            content = part.data.tobytes()
            numbers = [int(one.text) for one in self.ids if one.distinct and one.text.isdigit()]
            if numbers and np.isin(np.array([n for n in numbers if n < 2**63], dtype=np.int64), part.data).any():
                yield "id"
            if any(_holds(content, key, 8) for key in self.stretches):
                yield "history"
        elif part.kind == "cells":
            if any(one.in_cells(part.data, part.where) for one in self.ids):
                yield "id"
            joined = "\n".join(part.data).encode()
            if any(pattern.search(joined) for pattern in self.texts):
                yield "history"
        elif part.kind == "bytes":
            if any(one.in_bytes(part.data) for one in self.ids):
                yield "id"
            if any(self._in_raw(part.data, key) for key in self.stretches) or self._in_text(part.data):
                yield "history"

    def _in_raw(self, data: Any, key: bytes) -> bool:
        values = np.frombuffer(key, dtype=np.int64)
        if data.find(key) >= 0:
            return True
        return bool(np.abs(values).max() < 2**31) and data.find(values.astype(np.int32).tobytes()) >= 0

    def _in_text(self, data: Any) -> bool:
        if b"\0" in data[:4096]:
            return False
        return any(pattern.search(data) for pattern in self.texts)


def _alternatives(name: str) -> bytes:
    """A name as text, JSON and HTML write it."""
    forms = {name, json.dumps(name)[1:-1], html.escape(name)}
    return rb"(?:" + rb"|".join(re.escape(form.encode()) for form in sorted(forms)) + rb")"


def _in_a_row(names: Sequence[bytes]) -> re.Pattern[bytes]:
    between = rb"(?:<[^<>]{0,99}>|[^0-9A-Za-z<]){1,%d}" % _MOST_BETWEEN
    return re.compile(rb"(?<![0-9A-Za-z])" + between.join(names) + rb"(?![0-9A-Za-z])")


def _stretches(values: Array) -> list[Array]:
    """The first, the middle and the last stretch; none of values that are all the same or too few."""
    if len(values) < _LEAST or len(np.unique(values)) < _LEAST:
        return []
    size = min(STRETCH, len(values))
    starts = sorted({0, (len(values) - size) // 2, len(values) - size})
    return [values[start : start + size] for start in starts if len(np.unique(values[start : start + size])) >= _LEAST]


def _sorted_items(histories: Histories) -> Array:
    """Every user's items once, in the order of their numbers, user by user: int64."""
    rows_E = np.repeat(np.arange(len(histories)), histories.lengths_U).astype(np.int64)
    size = int(histories.items_E.max(initial=0)) + 1
    return np.asarray(np.unique(rows_E * size + histories.items_E) % size)


def _holds(content: bytes, key: bytes, width: int) -> bool:
    """Whether whole numbers of a row of them are the key's."""
    start = content.find(key)
    while start >= 0:
        if start % width == 0:
            return True
        start = content.find(key, start + 1)
    return False
