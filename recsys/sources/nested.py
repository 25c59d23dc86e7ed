"""Nested objects as plain columns: ``{"user": {"id": 7}}`` has the column ``user.id``.

Why: trackers, document stores and web APIs export one object per event with the ids inside it. A
list of objects gives a list for each of their keys: ``{"parts": [{"no": 1}, {"no": 2}]}`` has the
column ``parts.no``. An object with very many keys is data in the place of names and stays JSON
text. Values that MongoDB wraps (``{"$oid": …}``, ``{"$date": …}``) are the values themselves.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.values.arrow_types import is_list

_DEEPEST: Final = 6
_MOST_KEYS: Final = 60  # of an object; above, its keys are taken for data
_WRAPPERS: Final = {
    "$oid": str,
    "$uuid": str,
    "$date": None,
    "$numberInt": int,
    "$numberLong": int,
    "$numberDouble": float,
    "$numberDecimal": str,
}

# -------------------------------------------------------------------------------------------- JSON


def unwrapped(value: Any) -> Any:
    """The value inside a wrapper of MongoDB's extended JSON; other values unchanged.

    >>> unwrapped({"$oid": "5f"}), unwrapped({"$date": {"$numberLong": "17"}}), unwrapped({"a": 1})
    ('5f', 17, {'a': 1})
    """
    if not isinstance(value, dict) or len(value) != 1:
        return value
    ((name, inner),) = value.items()
    if name not in _WRAPPERS:
        return value
    kind, inner = _WRAPPERS[name], unwrapped(inner)
    try:
        return inner if kind is None else kind(inner)
    except (TypeError, ValueError):
        return inner


def leaves(value: Mapping[str, Any]) -> dict[str, Any]:
    """The values of an object by path; objects and lists of objects are taken apart.

    >>> leaves({"user": {"id": 7}, "parts": [{"no": 1}, {"no": 2}], "tags": ["a"]})
    {'user.id': 7, 'parts.no': [1, 2], 'tags': ['a']}
    """
    return dict(_leaves(value, "", _DEEPEST))


def _leaves(value: Mapping[str, Any], before: str, depth: int) -> Iterator[tuple[str, Any]]:
    for key, cell in value.items():
        path, cell = f"{before}{key}", unwrapped(cell)
        if isinstance(cell, dict) and cell and depth:
            yield from _leaves(cell, f"{path}.", depth - 1)
        elif depth and _are_objects(cell):
            inner = [dict(_leaves(member or {}, "", depth - 1)) for member in cell]
            for name in dict.fromkeys(name for member in inner for name in member):
                yield f"{path}.{name}", [member.get(name) for member in inner]
        else:
            yield path, cell


def _are_objects(value: Any) -> bool:
    """Whether a value is a list of objects, not of wrapped values."""
    if not isinstance(value, list) or not value:
        return False
    members = [unwrapped(member) for member in value if member is not None]
    return bool(members) and all(isinstance(member, dict) for member in members)


def wide_parents(paths: Iterable[str]) -> set[str]:
    """The objects among the parents of some paths that have too many keys to be columns."""
    children: dict[str, set[str]] = {}
    for path in paths:
        for end in _dots(path):
            children.setdefault(path[:end], set()).add(path[end + 1 :].partition(".")[0])
    return {parent for parent, keys in children.items() if len(keys) > _MOST_KEYS}


def outermost(path: str, parents: Collection[str]) -> str:
    """The first of the parents that contains a path; the path itself if none does."""
    return next((path[:end] for end in _dots(path) if path[:end] in parents), path)


def _dots(path: str) -> list[int]:
    return [place for place, character in enumerate(path) if character == "."]


def value_at(value: Mapping[str, Any], path: str) -> Any:
    """The value of a column in one object; None if it has none.

    >>> value_at({"user": {"id": 7}}, "user.id"), value_at({"a": [{"b": 1}, {}]}, "a.b")
    (7, [1, None])
    """
    if path in value:
        return _plain(value[path])
    for end in _dots(path):
        inner, rest = unwrapped(value.get(path[:end])), path[end + 1 :]
        if isinstance(inner, dict):
            found = value_at(inner, rest)
        elif _are_objects(inner):
            found = [value_at(member or {}, rest) for member in inner]
        else:
            continue
        # a key may have a dot itself, so another split of the path may have the value
        if found is not None:
            return found
    return None


def _plain(value: Any) -> Any:
    return [unwrapped(cell) for cell in value] if isinstance(value, list) else unwrapped(value)


# ----------------------------------------------------------------------------------------- Parquet


def flat_types(names: Iterable[str], kinds: Iterable[pa.DataType]) -> dict[str, pa.DataType]:
    """The columns of a Parquet file with the fields of structs as columns of their own."""
    found: dict[str, pa.DataType] = {}
    for name, kind in zip(names, kinds, strict=True):
        found |= _types(name, kind)
    return found


def _types(path: str, kind: pa.DataType) -> dict[str, pa.DataType]:
    if pa.types.is_struct(kind) and kind.num_fields:
        return {
            name: of
            for inner in kind
            for name, of in _types(f"{path}.{inner.name}", inner.type).items()
        }
    if is_list(kind) and pa.types.is_struct(kind.value_type):
        inside = _types(path, kind.value_type)
        # a list in a list has no column form
        if not any(is_list(of) for of in inside.values()):
            return {name: pa.list_(of) for name, of in inside.items()}
    return {path: kind}


def read_as(path: str, names: Iterable[str], kinds: Iterable[pa.DataType]) -> str:
    """The name under which Parquet reads a column: the path itself, or, inside a list, the list.

    Parameters
    ----------
    path : str
        Dotted path of the column.
    names : Iterable[str]
        Top-level columns of the file.
    kinds : Iterable[pa.DataType]
        Their types.

    Returns
    -------
    str
        Dotted path for Parquet's reader.
    """
    for name, kind in zip(names, kinds, strict=True):
        if path == name or path.startswith(f"{name}."):
            return _readable(path, name, kind)
    return path


def _readable(path: str, name: str, kind: pa.DataType) -> str:
    if pa.types.is_struct(kind):
        for inner in kind:
            whole = f"{name}.{inner.name}"
            if path == whole or path.startswith(f"{whole}."):
                return _readable(path, whole, inner.type)
    return name


def flat_batch(batch: pa.RecordBatch, wanted: Iterable[str] | None = None) -> pa.RecordBatch:
    """A batch with the fields of structs as columns of their own; only the wanted columns."""
    columns: dict[str, pa.Array] = {}
    for name, cells in zip(batch.schema.names, batch.columns, strict=True):
        columns |= _flat(name, cells)
    names = list(columns if wanted is None else wanted)
    return pa.RecordBatch.from_arrays([columns[name] for name in names], names=names)


def _flat(path: str, cells: pa.Array) -> dict[str, pa.Array]:
    kind = cells.type
    if len(_types(path, kind)) == 1 and path in _types(path, kind):
        return {path: cells}
    if pa.types.is_struct(kind):
        fields = zip([inner.name for inner in kind], cells.flatten(), strict=True)
        return {
            name: of
            for inner, values in fields
            for name, of in _flat(f"{path}.{inner}", values).items()
        }
    sizes = np.asarray(pc.fill_null(pc.list_value_length(cells), 0), dtype=np.int64)
    starts = pa.array(np.concatenate([[0], np.cumsum(sizes)]), pa.int32())
    mask = cells.is_null() if cells.null_count else None
    return {
        name: pa.ListArray.from_arrays(starts, values, mask=mask)
        for name, values in _flat(path, cells.flatten()).items()
    }
