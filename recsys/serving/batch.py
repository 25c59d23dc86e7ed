"""Batch recommendation: every user of a bundle, over Ray Data, to one Parquet file.

Why the bundle goes through the object store: it is read and checked once, on the driver, and the actors, on whatever
machine they are, need no folder in common. User ids stream in, lists of recommendations stream out in the same order,
and the driver writes them as they come, so memory does not grow with the number of users.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data

from recsys.bundle.description import USERS
from recsys.bundle.files import Bundle
from recsys.errors import RequestError
from recsys.pace import Pace
from recsys.retrieval.rules import Rules
from recsys.retrieval.selection import Catalogue
from recsys.serving.answer_rows import Answering, Defaults, filled_up, named_users, output_schema, request_table
from recsys.serving.bundles import read_bundle
from recsys.serving.recommender import Recommender
from recsys.serving.requests import MAX_K, parse_rules, rules_of

_BATCHES_HERE: Final = 16  # answered without Ray: seconds, which is less than actors take to start
_BATCHES_AN_ACTOR: Final = 4  # fewer are not worth starting another actor for
_ROWS_A_GROUP: Final = 262_144


@dataclass(frozen=True)
class BatchSummary:
    """What was written."""

    path: Path
    num_users: int
    num_rows: int
    num_fallback: int  # users of whom nothing was known to go by: what is popular answers
    seconds: float


def recommend_all(
    bundle_folder: str | Path,
    output_parquet: str | Path,
    k: int = 20,
    exclude_seen: bool | None = None,
    batch_size: int = 1024,
    users: Sequence[str] | None = None,
    requests: Sequence[Mapping[str, Any]] | None = None,
    at: int | None = None,
    rules: Mapping[str, Any] | None = None,
    out_of_stock: Iterable[str] = (),
) -> BatchSummary:
    """Recommend for every user of the bundle, or for ``users``, or for ``requests``.

    It runs on the connected Ray cluster, or in this process where none is connected.

    ``requests`` are what :class:`~recsys.serving.requests.Request` reads, each with a user id of its own: newest events
    of known users, newcomers with a history or friends. ``k``, ``exclude_seen`` and ``at`` hold where a request does
    not say. ``at`` is the time of asking in seconds since the epoch, by default that of the newest event that the
    bundle knows, not now: the same bundle gives the same lists at any time.

    ``rules`` (candidates, exclude, filters, boost, diversify, offset, explain as in a request) hold where a request
    says none of that name; items that are ``out_of_stock`` are in no list.

    The file has one row a user and rank: ``user_id, rank`` (from 1), ``item_id, score, share_GRANULARITY …`` (of those
    that have a say; null where no member answers), ``source``; users in the order of the bundle, those it does not know
    last, as given; requests as given. Where anything is boosted there are ``share_boost`` and ``boost``, the factor;
    where anything is explained, ``explanation``, in JSON. It is written aside and renamed.

    Raises
    ------
    ArtifactError
        the bundle is missing or damaged.
    RequestError
        ``k`` out of range, a user named twice or not by a string, or a malformed request.
    """
    started = time.perf_counter()
    if not 1 <= k <= MAX_K:
        raise RequestError(f"recommend.k: got {k}, expected 1 … {MAX_K}")
    asked = Defaults(k, exclude_seen, at, parse_rules(rules or {}, "recommend.rules"), tuple(out_of_stock))
    bundle = read_bundle(bundle_folder)
    schema = output_schema(bundle.model.speaking, *_says([asked.rules, *(requests or ())]))
    chosen = _chosen(bundle, bundle_folder, batch_size, users, requests)
    _check_rules(bundle, [{"k": k, **asked.rules, **dict(row)} for row in requests or [{}]])
    output = Path(output_parquet).absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    aside = output.with_name(f".{output.name}.writing-{os.getpid()}")
    num_users = num_fallback = num_rows = 0
    try:
        with pq.ParquetWriter(aside, schema, compression="zstd") as writer:
            pace = Pace("recommending to users", _num_asked(bundle, users, requests))
            for table in _answer_tables(bundle, asked, batch_size, chosen):
                writer.write_table(filled_up(table, schema), row_group_size=_ROWS_A_GROUP)
                firsts = table.filter(pa.array(np.asarray(table.column("rank")) == 1))
                num_users, num_rows = num_users + len(firsts), num_rows + len(table)
                pace.add(len(firsts))
                num_fallback += firsts.column("source").to_pylist().count("popularity")
        aside.replace(output)
    finally:
        aside.unlink(missing_ok=True)
    return BatchSummary(output, num_users, num_rows, num_fallback, time.perf_counter() - started)


def is_small(bundle_folder: str | Path, batch_size: int, requests: Sequence[Any] | None = None) -> bool:
    """Whether one process answers sooner than Ray and its actors start.

    Raises
    ------
    ArtifactError
        the bundle is missing or damaged.
    """
    if requests is not None:
        return len(requests) <= _BATCHES_HERE * batch_size
    try:
        return bool(pq.read_metadata(Path(bundle_folder) / USERS).num_rows <= _BATCHES_HERE * batch_size)
    except (OSError, pa.ArrowException):
        read_bundle(bundle_folder)  # says what is wrong with it
        raise


def _num_asked(bundle: Bundle, users: Sequence[str] | None, requests: Sequence[Mapping[str, Any]] | None) -> int:
    return len(next((asked for asked in (requests, users) if asked is not None), bundle.user_ids))


def _check_rules(bundle: Bundle, rows: Sequence[Mapping[str, Any]]) -> None:
    """Whether the attributes of the items answer the rules of requests, said before anything starts.

    Raises
    ------
    RequestError
        they do not.
    """
    catalogue = Catalogue({item: row for row, item in enumerate(bundle.item_ids)}, bundle.attributes)
    for index, row in enumerate(rows):
        if not Rules.model_fields.keys().isdisjoint(row):
            where = f"request {index}"
            catalogue.plan(rules_of({name: row[name] for name in row if name in Rules.model_fields}, where), where)


def _says(rows: Iterable[Mapping[str, Any]]) -> tuple[bool, bool]:
    """Whether any row boosts, and whether any asks for explanations."""
    rows = list(rows)
    return any(row.get("boost") for row in rows), any(row.get("explain") for row in rows)


class _Actor:
    """An actor of the pool."""

    def __init__(self, bundle: list[Any], asked: Defaults) -> None:
        held: Bundle = ray.get(bundle[0])  # in a list, as Ray Data would not pass a bare reference on unread
        self._answering = Answering(Recommender(held), asked)

    def __call__(self, batch: pa.Table) -> pa.Table:
        return self._answering(batch)


def _answer_tables(bundle: Bundle, asked: Defaults, batch_size: int, chosen: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Tables of recommendations, user by user in order."""
    if not ray.is_initialized():
        answering = Answering(Recommender(bundle), asked)
        yield from (answering(block) for table in chosen for block in _slices(table, batch_size))
        return
    blocks: list[Any] = [ray.put(block) for table in chosen for block in _slices(table, batch_size)]
    if not blocks:
        return
    with _quiet_and_in_order():
        dataset = ray.data.from_arrow_refs(blocks)
        reference = ray.put(bundle)
        found = dataset.map_batches(
            _Actor,
            fn_constructor_args=([reference], asked),
            batch_format="pyarrow",
            batch_size=None,  # a block is a batch
            compute=ray.data.ActorPoolStrategy(size=_num_actors(len(blocks))),
            num_cpus=1,
        )
        yield from (table for table in found.iter_batches(batch_format="pyarrow", batch_size=None) if len(table))


def _chosen(
    bundle: Bundle,
    folder: str | Path,
    batch_size: int,
    users: Sequence[str] | None,
    requests: Sequence[Mapping[str, Any]] | None,
) -> Iterator[pa.Table]:
    """Tables of user_id, and of the request as JSON where requests are given."""
    if requests is not None:
        return iter([request_table(requests)])
    return _user_tables(folder, batch_size) if users is None else iter([named_users(bundle, users)])


def _user_tables(folder: str | Path, batch_size: int) -> Iterator[pa.Table]:
    with pq.ParquetFile(Path(folder) / USERS) as file:
        for batch in file.iter_batches(batch_size, columns=["user_id"]):
            yield pa.Table.from_batches([batch])


def _slices(table: pa.Table, size: int) -> Iterator[pa.Table]:
    for start in range(0, len(table), size):
        yield table.slice(start, size)
