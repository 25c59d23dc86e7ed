"""Dense ids: the sorted distinct external ids; the position is the dense id.

Why sorted (by bytes): the numbers then depend only on the set of ids, so equal inputs give equal
datasets. A dataset that continues another one (:class:`Vocabulary`) keeps its numbers and appends
the new ids, sorted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.data.context_columns import ContextColumn
from recsys.data.forgotten import Forgotten
from recsys.data.histories import Array
from recsys.errors import DataError


def union(parts: Iterable[pa.Array]) -> pa.Array:
    """The sorted distinct ids of all parts.

    >>> union([pa.array(["b", "a"]), pa.array(["b"])]).to_pylist()
    ['a', 'b']
    """
    merged = pa.array([], pa.string())
    for part in parts:
        fresh = (
            part if len(merged) == 0 else part.filter(pc.invert(pc.is_in(part, value_set=merged)))
        )
        merged = pa.concat_arrays([merged, fresh.unique()]) if len(fresh) else merged
    return merged.take(pc.sort_indices(merged))


def no_ids() -> pa.Array:
    """An empty array of ids."""
    return pa.array([], pa.string())


@dataclass(frozen=True)
class Vocabulary:
    """The external ids of a dataset in dense order, for another one to continue."""

    users: pa.Array
    items: pa.Array
    event_types: tuple[str, ...]
    entities: pa.Array = field(default_factory=no_ids)
    relations: pa.Array = field(default_factory=no_ids)
    context: tuple[ContextColumn, ...] = ()  # encodings of context columns; new values stay unknown
    forgotten: Forgotten = Forgotten()  # users that must stay removed

    def grown(self, users: pa.Array, items: pa.Array) -> tuple[pa.Array, pa.Array]:
        """The users and items of new data: the ids of this vocabulary keep their numbers, also
        those that the data no longer has, and new ids follow.
        """
        return extend(self.users, users), extend(self.items, items)

    def check_kept(self, users: pa.Array, items: pa.Array) -> None:
        """Refuse data without some users or items of this vocabulary.

        Raises
        ------
        DataError
            The data lacks users or items of this vocabulary.
        """
        for what, base, found in (("users", self.users, users), ("items", self.items, items)):
            lost = base.filter(pc.invert(pc.is_in(base, value_set=found)))
            if len(lost):
                names = ", ".join(repr(name) for name in lost.slice(0, 3).to_pylist())
                raise DataError(
                    f"{len(lost):,} of the {len(base):,} {what} that the model knows are not in the"
                    f" data any more, e.g. {names}; an update needs old and new events: give only"
                    " the new files with --events if the model's dataset keeps its events, list"
                    " the old files in data.source as well as the new ones, or confirm with"
                    " --replace; lost ids keep their numbers"
                )

    def digest(self) -> str:
        """A hash of all ids in order and of the encodings of context columns."""
        found = hashlib.sha256()
        for ids in (
            self.users,
            self.items,
            pa.array(self.event_types, pa.string()),
            self.entities,
            self.relations,
        ):
            for name in ids.to_pylist():
                found.update(f"{len(name)}:{name}".encode())
            found.update(b"\n")
        for column in self.context:
            found.update(json.dumps(column.to_json(), sort_keys=True).encode())
        return found.hexdigest()


def extend(base: pa.Array | None, found: pa.Array) -> pa.Array:
    """The ids of ``base`` in their order, then the other ids of ``found``, sorted.

    >>> extend(pa.array(["m", "b"]), pa.array(["z", "b", "a"])).to_pylist()
    ['m', 'b', 'a', 'z']
    """
    if base is None or len(base) == 0:
        return union([found])
    # the larger array is looked up in the smaller one: building a table of it would take longer
    known = base.filter(pc.is_in(base, value_set=found))
    fresh = union([found.filter(pc.invert(pc.is_in(found, value_set=known)))])
    return pa.concat_arrays([base.cast(pa.string()), fresh])


def dense(parts: list[pa.Array], vocabulary: pa.Array) -> list[Array]:
    """The dense ids of every part: int32. All ids must be in the vocabulary."""
    joined = pa.concat_arrays(parts) if parts else pa.array([], pa.string())
    positions = _positions(joined, vocabulary)
    return np.split(positions, np.cumsum([len(part) for part in parts])[:-1]) if parts else []


def _positions(ids: pa.Array, vocabulary: pa.Array) -> Array:
    """The position of every id in the vocabulary: int32."""
    if len(ids) * 4 > len(vocabulary):
        return np.asarray(pc.index_in(ids, value_set=vocabulary)).astype(np.int32)
    # as in ``extend``
    distinct = ids.unique()
    places_N = np.asarray(pc.index_in(vocabulary, value_set=distinct).fill_null(-1))
    found_N = np.flatnonzero(places_N >= 0)
    positions = np.empty(len(distinct), dtype=np.int32)
    positions[places_N[found_N]] = found_N
    return np.asarray(positions[np.asarray(pc.index_in(ids, value_set=distinct))])
