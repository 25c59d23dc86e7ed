"""Read the lists of any library, sort them, check them against a protocol, and refuse invalid ones.

Legend: E rows of a file, B queries, K list length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.data.histories import Array, Queries, Split
from recsys.errors import DataError
from recsys.evaluation.ranking import mark_hits, mark_seen
from recsys.evaluation.top_items import tie_order
from recsys.referee.protocol import Protocol, Window, rows_of
from recsys.referee.tables import read_any

_FIRST: Final = 0.95  # lists are suspicious if the first item is a target for this share of users
_MANY: Final = 200  # with this many users, "always" and "never" are not chance
_NEED: Final = "expected user_id, item_id, and rank or score"


@dataclass(frozen=True)
class Judged:
    """The lists of one file for one window."""

    queries: Queries
    items_BK: Array  # int32, −1 after the end


@dataclass
class Lists:
    """The lists of one file for every window, with notes for the user."""

    windows: list[Judged]
    notes: list[str] = field(default_factory=list)
    command: str = ""
    has_hash: bool = False


@dataclass(frozen=True)
class _Rows:
    """The rows of a file with the protocol's numbers, best first within a user."""

    users_E: Array
    items_E: Array
    order_E: Array  # smaller is better


def read_lists(
    path: Path, protocol: Protocol, questions: Sequence[Queries], split: Split = Split.TEST
) -> Lists:
    """Read and check one file.

    Parameters
    ----------
    path : Path
        Columns user_id, item_id, and rank (1 is best) or score (largest is best); ``window`` if the
        protocol has several; ``protocol`` and ``command`` as columns or as metadata of a Parquet
        file.
    protocol : Protocol
        The protocol of the lists.
    questions : Sequence[Queries]
        :meth:`Protocol.queries` of every window for ``split``.

    Raises
    ------
    SourceError
        The file cannot be read.
    DataError
        An id is unknown, an item is listed twice or must be left out, the file belongs to another
        protocol, or only a sample of the catalogue was ranked although the protocol ranks all of
        it; or the protocol has no query of the split.
    """
    if not any(len(queries) for queries in questions):
        raise DataError(
            f"{path}: the protocol has no {'validation' if split == Split.VALID else 'test'} query,"
            " so there is nothing to list; leave this file out"
        )
    table = read_any(path)
    missing = [name for name in ("user_id", "item_id") if name not in table.column_names]
    order = next((name for name in ("rank", "score") if name in table.column_names), None)
    if missing or order is None:
        need = ", ".join([*missing, *([] if order else ["rank or score"])])
        raise DataError(f"{path}: no column {need}; {_NEED}; got {', '.join(table.column_names)}")
    stated = {name: _stated(table, name, path) for name in ("protocol", "command")}
    if stated["protocol"] and stated["protocol"] != protocol.hash:
        raise DataError(
            f"{path}: these lists were made for protocol {stated['protocol'][:12]}, but this one"
            f" is {protocol.hash[:12]}; make them again from the files of this protocol"
        )
    found = Lists([], command=stated["command"], has_hash=bool(stated["protocol"]))
    for window, queries in zip(protocol.windows, questions, strict=True):
        rows = _rows(_of_window(table, window, path), order, protocol, path)
        found.windows.append(_judged(rows, queries, window, protocol, path, split, found.notes))
    return found


def _judged(
    rows: _Rows,
    queries: Queries,
    window: Window,
    protocol: Protocol,
    path: Path,
    split: Split,
    notes: list[str],
) -> Judged:
    where = f"{path} ({window.name})" if window.name else str(path)
    if not len(queries):  # another window has some
        return Judged(queries, np.full((0, max(protocol.ks)), -1, dtype=np.int32))
    row_of_user = np.full(len(protocol.users) + 1, -1, dtype=np.int64)
    row_of_user[queries.histories.users_U] = np.arange(len(queries))
    queries_E = row_of_user[rows.users_E]
    evaluated = np.flatnonzero(queries_E >= 0)
    if not len(evaluated):
        raise DataError(
            f"{where}: no list belongs to an evaluated user; the protocol's table ask lists these"
            " users"
        )
    items_E = rows.items_E[evaluated]
    order = np.lexsort(
        # the last key is the most important one; ties are broken as in our own evaluation
        (tie_order(len(protocol.items))[items_E], rows.order_E[evaluated], queries_E[evaluated])
    )
    queries_E, items_E = queries_E[evaluated][order], items_E[order]
    sampled = window.negatives is not None and split == Split.TEST
    if sampled:
        queries_E, items_E = _of_sample(queries_E, items_E, queries, window, protocol, where)
    elif protocol.masks_seen and len(items_E) == len(queries) * len(
        protocol.items
    ):  # scores of the whole catalogue
        had = queries.histories.of_targets()
        had_E = np.repeat(np.arange(len(queries)), had.lengths_U) * 2**32 + had.items_E
        unseen_E = ~np.isin(queries_E * 2**32 + items_E, had_E)
        # scores of the whole catalogue include seen items, which the protocol leaves out
        queries_E, items_E = queries_E[unseen_E], items_E[unseen_E]
    ranks_E = np.arange(len(queries_E)) - np.searchsorted(queries_E, queries_E)
    width, k = int(ranks_E.max()) + 1, max(protocol.ks)
    items_BK = np.full((len(queries), max(k, width if width <= 4096 else k)), -1, dtype=np.int32)
    within = ranks_E < items_BK.shape[1]
    items_BK[queries_E[within], ranks_E[within]] = items_E[within]
    if not sampled:
        _check_unseen(items_BK[:, :k], queries, protocol, where)
        _check_ranked_all(items_BK, queries, protocol, where)
    _note(items_BK[:, :k], queries, protocol, where, notes)
    return Judged(queries, items_BK[:, :k])


# ----------------------------------------------------------------------------------------- the file


def _stated(table: pa.Table, name: str, path: Path) -> str:
    """The value of a constant column, or of the metadata of the file."""
    if name in table.column_names:
        values = pc.unique(_texts(table, name, path)).to_pylist()
        if len(values) > 1:
            raise DataError(
                f"{path}: column {name} has {len(values)} values, expected one for the whole file"
            )
        return str(values[0] or "") if values else ""
    return ((table.schema.metadata or {}).get(name.encode()) or b"").decode(errors="replace")


def _of_window(table: pa.Table, window: Window, path: Path) -> pa.Table:
    if not window.name:
        return table
    if "window" not in table.column_names:
        raise DataError(
            f"{path}: the protocol has several windows; add a column window with the window of each"
            " list"
        )
    return table.filter(pc.equal(_texts(table, "window", path), window.name))


def _texts(table: pa.Table, name: str, path: Path) -> pa.ChunkedArray:
    try:
        return table.column(name).cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"{path}: column {name} holds {table.column(name).type}, expected text or whole numbers"
            f" ({error})"
        ) from None


def _rows(table: pa.Table, order: str, protocol: Protocol, path: Path) -> _Rows:
    ids = {name: _texts(table, name, path) for name in ("user_id", "item_id")}
    found = {
        "user_id": rows_of(ids["user_id"], protocol.users),
        "item_id": rows_of(ids["item_id"], protocol.items),
    }
    for name, rows_E in found.items():
        if (rows_E < 0).any():
            example = ids[name][int(np.argmax(rows_E < 0))].as_py()
            of = f"the protocol's {'table items' if name == 'item_id' else 'events'}"
            raise DataError(
                f"{path}: {int((rows_E < 0).sum()):,} rows have a {name} that is not in {of}, e.g."
                f" {example!r}; write the ids of the protocol's files, not a library's internal"
                " numbers"
            )
    try:
        values = np.asarray(
            table.column(order).cast(pa.float64()).fill_null(np.nan), dtype=np.float64
        )
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise DataError(
            f"{path}: column {order} holds {table.column(order).type}, expected numbers"
        ) from None
    if np.isnan(values).any():
        raise DataError(
            f"{path}: {order} is missing in {int(np.isnan(values).sum()):,} rows; expected a number"
        )
    keys = found["user_id"] * 2**32 + found["item_id"]
    _check_once(keys, path, "item", ids)
    if order == "rank":
        # a complex number holds both exactly, and ``np.unique`` compares it as a pair
        _check_once(
            found["user_id"] + 1j * values, path, "rank", {**ids, "rank": table.column("rank")}
        )
    return _Rows(found["user_id"], found["item_id"], values if order == "rank" else -values)


def _check_once(keys: Array, path: Path, what: str, columns: dict[str, pa.ChunkedArray]) -> None:
    _, first, counts = np.unique(keys, return_index=True, return_counts=True)
    if (counts > 1).any():
        row = int(first[int(np.argmax(counts > 1))])
        user = columns["user_id"][row].as_py()
        value = columns["item_id" if what == "item" else "rank"][row].as_py()
        raise DataError(
            f"{path}: in {int((counts > 1).sum()):,} cases a user has the same {what} more than"
            f" once, e.g. user {user!r} {what} {value!r}; write every {what} once per user, and one"
            " file per seed"
        )


# --------------------------------------------------------------------------------------- the checks


def _of_sample(
    rows_E: Array, items_E: Array, queries: Queries, window: Window, protocol: Protocol, where: str
) -> tuple[Array, Array]:
    """The rows of the targets and the sampled negatives, in the order of their scores."""
    assert window.negatives is not None
    row_of = np.full(len(protocol.users), -1, dtype=np.int64)
    row_of[queries.histories.users_U] = np.arange(len(queries))
    beside = row_of[rows_of(window.negatives.column("user_id"), protocol.users)]
    sampled = rows_of(window.negatives.column("item_id"), protocol.items)
    wanted = np.unique(
        np.concatenate(
            [beside * 2**32 + sampled, queries.target_rows() * 2**32 + queries.target_items]
        )
    )
    is_wanted_E = np.isin(rows_E * 2**32 + items_E, wanted)
    if int(is_wanted_E.sum()) != len(wanted):
        raise DataError(
            f"{where}: the protocol ranks the targets and {protocol.rules['sample']} sampled items,"
            f" but {len(wanted) - int(is_wanted_E.sum()):,} of these {len(wanted):,} rows have no"
            " score; write a score for every row of the tables negatives and test"
        )
    return rows_E[is_wanted_E], items_E[is_wanted_E]


def _check_unseen(items_BK: Array, queries: Queries, protocol: Protocol, where: str) -> None:
    if not protocol.masks_seen:
        return
    is_seen = mark_seen(items_BK, queries)
    if is_seen.any():
        row, rank = np.argwhere(is_seen)[0]
        user = protocol.users[int(queries.histories.users_U[row])].as_py()
        raise DataError(
            f"{where}: the lists of {int(is_seen.any(axis=1).sum()):,} users contain items that"
            f" they had before, e.g. user {user!r} item"
            f" {protocol.items[int(items_BK[row, rank])].as_py()!r}, which the protocol excludes"
            " (mask seen): leave out these items, or prepare a protocol with --referee.mask none"
            " for all methods"
        )


def _check_ranked_all(items_BK: Array, queries: Queries, protocol: Protocol, where: str) -> None:
    """Check that the whole catalogue was ranked: short lists that never miss a target are of
    samples.

    Raises
    ------
    DataError
        Only sampled items were ranked.
    """
    depth = int((items_BK >= 0).sum(axis=1).max(initial=0))
    if len(queries) < _MANY or not max(protocol.ks) < depth < len(protocol.items) / 4:
        return
    hits_BK = mark_hits(items_BK, queries)
    if (hits_BK.sum(axis=1) == queries.num_targets_B).all() and hits_BK[:, 0].mean() <= _FIRST:
        raise DataError(
            f"{where}: all {len(queries):,} users have all their targets among at most {depth} of"
            f" {len(protocol.items):,} items, so only sampled items were ranked, but the protocol"
            " ranks all; list the best of the whole catalogue, or prepare a protocol with"
            f" --referee.sample {depth - 1}"
        )


def _note(
    items_BK: Array, queries: Queries, protocol: Protocol, where: str, notes: list[str]
) -> None:
    """Add notes on suspicious lists that are still accepted."""
    k = items_BK.shape[1]
    lengths_B = (items_BK >= 0).sum(axis=1)
    if (lengths_B == 0).any():
        notes.append(
            f"{where}: {int((lengths_B == 0).sum()):,} of {len(queries):,} users have no list, so"
            " they count as missed"
        )
    if (short := (lengths_B > 0) & (lengths_B < k)).any():
        notes.append(
            f"{where}: {int(short.sum()):,} lists are shorter than {k}, the shortest"
            f" {lengths_B[short].min()}"
        )
    hits_BK = mark_hits(items_BK, queries)
    first_B = hits_BK[:, 0]
    if first_B.mean() > _FIRST:
        notes.append(
            f"{where}: the first item is a target for {first_B.mean():.1%} of the users, which is"
            " suspicious; were test events used, or were only targets scored?"
        )
    if len(queries) >= _MANY and hits_BK.any(axis=1).all() and k < len(protocol.items) / 4:
        notes.append(
            f"{where}: every list of {k} has a target, which is suspicious; was the whole catalogue"
            " ranked?"
        )
    if len(queries) >= _MANY and not hits_BK.any():
        notes.append(
            f"{where}: no list has a target; were test events in the histories, and so left out as"
            " seen?"
        )
