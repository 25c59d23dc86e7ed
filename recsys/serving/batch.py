"""Batch recommendation for every user of a bundle with Ray Data, to one Parquet file.

Why the bundle goes through the object store: the driver reads and checks it once, and the actors
need no shared folder, whatever machine they run on. User ids stream in, lists of recommendations
stream out in the same order, and the driver writes them as they arrive, so memory does not grow
with the number of users.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data

from recsys.bundle.description import USERS
from recsys.bundle.layout import Bundle
from recsys.errors import RequestError
from recsys.pace import Pace
from recsys.preparation.blocks import quiet, user_errors
from recsys.serving.answer_rows import (
    BatchRecommender,
    Defaults,
    filled_up,
    named_users,
    output_schema,
)
from recsys.serving.bundles import read_bundle
from recsys.serving.recommender import Recommender
from recsys.serving.request_parsing import parse_rules, rules_of
from recsys.serving.requests import MAX_K
from recsys.storage.beside import atomic_write

# answered in this process: that takes less time than actors take to start
_BATCHES_HERE: Final = 16
_BATCHES_AN_ACTOR: Final = 4  # for fewer batches per actor, starting one more does not pay
_ROWS_A_GROUP: Final = 262_144

Requests = Sequence[Mapping[str, Any]] | Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class BatchSummary:
    """What was written."""

    path: Path
    num_users: int
    num_rows: int
    num_fallback: int  # users without known history or other signal, who get popular items
    seconds: float


def recommend_all(
    bundle_folder: str | Path,
    output_parquet: str | Path,
    k: int = 20,
    exclude_seen: bool | None = None,
    batch_size: int = 1024,
    users: Sequence[str] | None = None,
    requests: Requests | None = None,
    at: int | None = None,
    rules: Mapping[str, Any] | None = None,
    out_of_stock: Iterable[str] = (),
    session: AbstractContextManager[Any] | None = None,
) -> BatchSummary:
    """Recommend for every user of the bundle, or for ``users``, or for ``requests``.

    This runs on the Ray cluster that ``session`` connects or that is connected, or in this process
    where there is none.

    The file has one row per user and rank: ``user_id``, ``rank`` (from 1), ``item_id``, ``score``,
    ``share_GRANULARITY`` (one column per granularity that contributes to scores; null where the
    model's scores were not used) and ``source``. Users are in the order of the bundle and unknown
    users last, in the given order; requests keep their order. With a boost there are the columns
    ``share_boost`` and ``boost`` (the factor); with explanations the column ``explanation`` (JSON).
    The file is written to a temporary name and then renamed.

    Parameters
    ----------
    bundle_folder : str | Path
        Folder of the bundle.
    output_parquet : str | Path
        The file to write.
    k : int
        Items per list, 1 to ``MAX_K``.
    exclude_seen : bool | None
        Whether to leave out items that the user already had; None: as the model was evaluated.
    batch_size : int
        Users per batch.
    users : Sequence[str] | None
        Ids of the users; None: every user of the bundle.
    requests : Requests | None
        Requests as :class:`~recsys.serving.requests.Request` reads them, each with its own user
        id, such as known users with newer events, or new users with a history or friends. The key
        of a mapping names its request in messages, for example by file and line.
        ``k``, ``exclude_seen``, ``at`` and ``rules`` apply where a request does not set them.
    at : int | None
        Time of the requests in seconds since the epoch. The default is the time of the newest
        event that the bundle knows, not now, so the same bundle gives the same lists at any time.
    rules : Mapping[str, Any] | None
        Rules of the lists: candidates, exclude, filters, boost, diversify, offset,
        per_user_limit, explain.
    out_of_stock : Iterable[str]
        Ids of items that no list may contain.
    session : AbstractContextManager[Any] | None
        Connects Ray for the answers. It is entered after all checks, because a start of Ray takes
        up to a minute.

    Raises
    ------
    ArtifactError
        The bundle is missing or damaged.
    RequestError
        ``k`` is out of range, a user id is repeated or not a string, or a request is malformed or
        does not fit the model.
    """
    started = time.perf_counter()
    if not 1 <= k <= MAX_K:
        raise RequestError(f"recommend.k: got {k}, expected 1 … {MAX_K}")
    defaults = Defaults(
        k, exclude_seen, at, parse_rules(rules or {}, "recommend.rules"), tuple(out_of_stock)
    )
    answering = BatchRecommender(Recommender(read_bundle(bundle_folder)), defaults)
    bundle = answering.recommender.bundle
    answering.recommender.catalogue.plan(
        rules_of({"k": k, **defaults.rules}, "recommend.rules"), "recommend.rules"
    )
    named = None if requests is None else _named(requests)
    chosen = _selected(answering, bundle_folder, batch_size, users, named)
    schema = output_schema(
        bundle.model.active_names,
        *_boosts_and_explains([defaults.rules, *(named or {}).values()]),
    )
    output = Path(output_parquet).absolute()
    total = len(next((given for given in (named, users) if given is not None), bundle.user_ids))
    with session or nullcontext():
        tables = _answer_tables(answering, batch_size, chosen)
        counts = _write(output, schema, tables, total)
    return BatchSummary(output, *counts, time.perf_counter() - started)


def _write(
    output: Path, schema: pa.Schema, tables: Iterable[pa.Table], total: int
) -> tuple[int, int, int]:
    """Write the answers to a temporary file and rename it.

    Returns
    -------
    tuple of (int, int, int)
        The numbers of users, of rows, and of users who got the most popular items.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    num_users = num_rows = num_fallback = 0
    with (
        atomic_write(output) as aside,
        pq.ParquetWriter(aside, schema, compression="zstd") as writer,
        Pace("recommending to users", total) as pace,
    ):
        for table in tables:
            writer.write_table(filled_up(table, schema), row_group_size=_ROWS_A_GROUP)
            # the table has one row per item; the first rank stands for the user
            firsts = table.filter(pa.array(np.asarray(table.column("rank")) == 1))
            num_users, num_rows = num_users + len(firsts), num_rows + len(table)
            pace.add(len(firsts))
            num_fallback += firsts.column("source").to_pylist().count("popularity")
    return num_users, num_rows, num_fallback


def is_small(bundle_folder: str | Path, batch_size: int, requests: Requests | None = None) -> bool:
    """Whether this process can answer all before Ray and its actors would have started.

    Parameters
    ----------
    bundle_folder : str | Path
        Folder of the bundle.
    batch_size : int
        Users per batch.
    requests : Requests | None
        The requests to answer; None: every user of the bundle.

    Returns
    -------
    bool
        Whether a few batches hold all of them.

    Raises
    ------
    ArtifactError
        The bundle is missing or damaged.
    ArrowException
        The file of users cannot be read although the bundle can.
    OSError
        The file of users cannot be opened although the bundle can be read.
    """
    if requests is not None:
        return len(requests) <= _BATCHES_HERE * batch_size
    try:
        return bool(
            pq.read_metadata(Path(bundle_folder) / USERS).num_rows <= _BATCHES_HERE * batch_size
        )
    except (OSError, pa.ArrowException):
        # the two checks fail for the same reason, and this one knows the cure
        read_bundle(bundle_folder)  # raises the error that names what is wrong
        raise


def _named(requests: Requests) -> Mapping[str, Mapping[str, Any]]:
    """Requests by the name that a message gives them."""
    if isinstance(requests, Mapping):
        return requests
    return {f"request {index}": row for index, row in enumerate(requests)}


def _boosts_and_explains(rows: Iterable[Mapping[str, Any]]) -> tuple[bool, bool]:
    """Whether any row has a boost, and whether any row asks for explanations."""
    rows = list(rows)
    return any(row.get("boost") for row in rows), any(row.get("explain") for row in rows)


class _Actor:
    """An actor of the pool."""

    def __init__(self, bundle: list[Any], defaults: Defaults) -> None:
        # in a list, because Ray Data resolves a bare reference itself
        held: Bundle = ray.get(bundle[0])
        self._answering = BatchRecommender(Recommender(held), defaults)

    def __call__(self, batch: pa.Table) -> pa.Table:
        return self._answering(batch)


def _answer_tables(
    answering: BatchRecommender, batch_size: int, chosen: Iterator[pa.Table]
) -> Iterator[pa.Table]:
    """Tables of recommendations in the order of the users."""
    if not ray.is_initialized():
        yield from (answering(block) for table in chosen for block in _slices(table, batch_size))
        return
    blocks: list[Any] = [ray.put(block) for table in chosen for block in _slices(table, batch_size)]
    if not blocks:
        return
    with quiet(), _in_order(), user_errors():
        dataset = ray.data.from_arrow_refs(blocks)
        reference = ray.put(answering.recommender.bundle)
        found = dataset.map_batches(
            _Actor,
            fn_constructor_args=([reference], answering.defaults),
            batch_format="pyarrow",
            batch_size=None,  # one block is one batch
            compute=ray.data.ActorPoolStrategy(size=_num_actors(len(blocks))),
            num_cpus=1,
        )
        yield from (
            table
            for table in found.iter_batches(batch_format="pyarrow", batch_size=None)
            if len(table)
        )


def _selected(
    answering: BatchRecommender,
    folder: str | Path,
    batch_size: int,
    users: Sequence[str] | None,
    requests: Mapping[str, Mapping[str, Any]] | None,
) -> Iterator[pa.Table]:
    """Tables of ``user_id`` and, where requests are given, ``request`` (JSON)."""
    if requests is not None:
        return iter([answering.checked(requests)])
    if users is not None:
        return iter([named_users(answering.recommender.bundle, users)])
    return _user_tables(folder, batch_size)


def _user_tables(folder: str | Path, batch_size: int) -> Iterator[pa.Table]:
    with pq.ParquetFile(Path(folder) / USERS) as file:
        for batch in file.iter_batches(batch_size, columns=["user_id"]):
            yield pa.Table.from_batches([batch])


def _slices(table: pa.Table, size: int) -> Iterator[pa.Table]:
    for start in range(0, len(table), size):
        yield table.slice(start, size)


def _num_actors(num_batches: int) -> int:
    cpus = int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
    return max(1, min(cpus - 1, num_batches // _BATCHES_AN_ACTOR))


@contextmanager
def _in_order() -> Iterator[None]:
    """Keep the order of the blocks, which finish in any order."""
    options = ray.data.DataContext.get_current().execution_options
    before, options.preserve_order = options.preserve_order, True
    try:
        yield
    finally:
        options.preserve_order = before
