"""The steps of ``prepare``, one method each; see the diagram in :mod:`recsys.preparation.prepare`.

No data that grows with the number of events passes through this process.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from recsys import schema
from recsys.config import Config
from recsys.data.cold_start import ColdUsers
from recsys.data.dataset import Manifest, PreparedDataset
from recsys.data.histories import Array
from recsys.data.split import NEVER, SplitPlan, check_split, resolved
from recsys.data.text_rows import TextRules
from recsys.data.titles import item_titles
from recsys.data.vocabulary import Vocabulary, dense, no_ids, union
from recsys.errors import ConfigError, DataError, choices
from recsys.pace import with_progress
from recsys.preparation.blocks import block_refs, fetch, read_table, task
from recsys.preparation.carried import carry_events, with_earlier
from recsys.preparation.content_hash import settings_hash, settings_of
from recsys.preparation.core import cut_to_core, only
from recsys.preparation.cut_offs import Counted, cut_offs
from recsys.preparation.dataset_writer import DatasetWriter, Folder, folder_of
from recsys.preparation.event_store import (
    STORE,
    TIMES,
    described,
    files_read,
    is_carried,
    seen_in,
    times_name,
    write_rows,
)
from recsys.preparation.events import (
    PARTS,
    BucketSummary,
    Coding,
    EventRules,
    Reading,
    encode_bucket,
    exchange,
)
from recsys.preparation.finetune import finetune
from recsys.preparation.friends import EDGE_SCHEMA, Friendships, SocialRules
from recsys.preparation.graphs import TripleRules, write_triples
from recsys.preparation.guarded import Guard
from recsys.preparation.html_text import without_html
from recsys.preparation.item_text import ItemText, compose_groups, write_vectors
from recsys.preparation.items import align, count_table, feature_table, text_groups
from recsys.preparation.media import aligned, folders_of, media_columns, media_table, read_media
from recsys.preparation.quarantine import DUPLICATE, Quarantine, bad_rows, listed, mark
from recsys.preparation.shards import (
    ShardReport,
    ShardRules,
    merge_terms,
    start_shards,
    with_context,
)
from recsys.preparation.user_text import write_user_texts
from recsys.sources.base import Piece, SourceAdapter
from recsys.values.overlap import SideIds, compare

_MAX_EVENT_TYPES: Final = 255
_TERM_ROWS_A_TASK: Final = 2_000_000
_SHARD_BYTES: Final = 64 << 20
_MIN_SHARDS: Final = 4
_FEW_UNTIMED: Final = 0.5  # largest share of events without a timestamp for an order by time
# share of events at the time of the previous event, above which a note says so
_MANY_TIES: Final = 0.5
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Arguments:
    """The inputs of a preparation.

    Attributes
    ----------
    config : Config
        The sections ``data`` and ``run`` and the seed are used.
    source : SourceAdapter
        The source of the tables.
    rules : EventRules
        Which events are interactions, which are text, and which are used.
    destination : DatasetWriter
        The place of the dataset; ``folder`` is the folder to write to until it is complete.
    progress : Progress
        Gets one line per step.
    guard : Guard
        Pseudonymises user ids and removes forgotten users.
    base : Vocabulary | None
        Ids that keep their dense numbers.
    earlier : PreparedDataset | None
        The dataset to append to.
    keeps_lost : bool
        Whether the data may lack ids of ``base``; they keep their numbers.
    """

    config: Config
    source: SourceAdapter
    rules: EventRules
    destination: DatasetWriter
    folder: Folder
    progress: Progress
    guard: Guard
    base: Vocabulary | None = None
    earlier: PreparedDataset | None = None
    keeps_lost: bool = False


class Preparation:
    """One run of ``prepare`` and its state. Every step is a method, in the order of :meth:`run`."""

    whole = True  # whether all events pass through the steps, also those that were read before

    def __init__(self, arguments: Arguments) -> None:
        self.base = arguments.base
        self.earlier = arguments.earlier
        self.keeps_lost = arguments.keeps_lost
        self.config, self.source, self.rules = arguments.config, arguments.source, arguments.rules
        self.folder = arguments.folder
        self.progress = arguments.progress
        self.guard = arguments.guard
        self.keeps_events = self.source.appends and self.config.data.keep_events
        self.quarantine = Quarantine(arguments.destination, self.config.data)
        self.counts: Counter[str] = Counter()
        self.timing: dict[str, float] = {}
        self.notes: list[str] = []
        self.provenance: list[str] = []  # files with the rows that item text is made from
        self.order = ""  # of :class:`Coding`
        # events that the cut-offs only count, without their times
        self._counted: Counted | None = None
        self.timed = False  # every interaction has a timestamp
        self.new_shards: list[str] = []  # history files that this run wrote
        self.renewed: dict[str, list[str]] = {}  # see Manifest

    def run(self, digest: str) -> Manifest:
        """Write all files except the manifest, which is returned; ``digest`` is its content
        hash.
        """
        started = time.perf_counter()
        pieces = self.guard.around(self.source.unchanged_pieces())
        for note in self.source.notes:
            self._note(note)
        events = pieces.pop("events")
        tables = {name: _dataset(of_table) for name, of_table in pieces.items()}
        with self._step("read_items"):
            items = self._known_before(
                "items", self._read_ids("items", tables.get("items"), schema.ITEM_ID)
            )
        with self._step("read_users"):
            users = self._known_before(
                "users", self._read_ids("users", tables.get("users"), schema.USER_ID)
            )
        with self._step("read_events"):
            buckets, summaries = self._read_events(events, items, users)
        with self._step("encode"):
            coding = self._coding(summaries)
            self.order = coding.order
            if self.config.data.min_user_events or self.config.data.min_item_events:
                buckets, summaries, items, users = self._core(
                    buckets, summaries, coding, items, users
                )
            self.timed = self._is_timed(summaries)
            user_ids = union(
                [*(s.users for s in summaries), *([users.column(schema.USER_ID)] if users else [])]
            )
            item_ids = union(
                [*(s.items for s in summaries), *([items.column(schema.ITEM_ID)] if items else [])]
            )
            if self.base is not None:
                if not self.keeps_lost:
                    self.base.check_kept(user_ids, item_ids)
                user_ids, item_ids = self.base.grown(user_ids, item_ids)
                new = len(user_ids) - len(self.base.users), len(item_ids) - len(self.base.items)
                self.progress(
                    f"{new[0]:,} new users and {new[1]:,} new items; the others keep their ids"
                )
            self._write_vocabularies(user_ids, item_ids)
            self._note(self.guard.warning(user_ids, users))
            self.folder.write_table(
                "users/features.parquet", align(users, user_ids, schema.USER_ID)
            )
            encoded = self._encode(buckets, coding, summaries, user_ids, item_ids)
        with self._step("split"):
            plan = self._plan(encoded, coding, summaries)
        with self._step("histories"):
            shards, terms = self._write_shards(encoded, plan, user_ids, item_ids)
        features = without_html(align(items, item_ids, schema.ITEM_ID), self.config.data.text.html)
        with self._step("graphs"):
            self._write_graphs(tables, user_ids, features, plan)
        with self._step("text"):
            text = self._encode_text(self._write_items(items, features, terms), shards, coding)
        with self._step("media"):
            media = self._write_media(items, item_ids)
        self.quarantine.close()
        self.timing["total"] = round(time.perf_counter() - started, 3)
        return Manifest(
            content_hash=digest,
            name=self.earlier.manifest.name if self.earlier else self.source.name,
            counts=dict(self.counts),
            event_types=list(coding.event_types),
            ordered=coding.order != "none",
            timed=self.timed,
            split=plan.describe(),
            quarantined={table: dict(reasons) for table, reasons in self.quarantine.counts.items()},
            dropped={
                table: dict(reasons)
                for table, reasons in self.quarantine.dropped.items()
                if reasons
            },
            read=self.quarantine.read,
            shards=shards,
            text=text,
            timing=self.timing,
            notes=self.notes,
            media=media,
            context=list(self.rules.context),
            settings_hash=settings_hash(self.config.data, self.config.seed),
            settings=settings_of(self.config.data, self.config.seed),
            store=self._store(summaries) if self.keeps_events else {},
            renewed=self.renewed,
            inherited_context=self.base is not None and bool(self.base.context),
            ancestors=(
                [*self.earlier.manifest.ancestors, self.earlier.manifest.content_hash]
                if self.earlier
                else []
            ),
            targets=[coding.event_types[code] for code in coding.target_types],
        )

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.timing[name] = round(time.perf_counter() - started, 3)

    # -------------------------------------------------------------------------------------- reading

    def _read_ids(self, name: str, blocks: Any, key: str) -> pa.Table | None:
        """The good rows of the items or users table, each id once; None without such a table."""
        if blocks is None:
            return None
        table = read_table(blocks)
        if table is None:
            return None
        table = table.sort_by(
            [(schema.FILE, "ascending"), (schema.ROW, "ascending")]
        ).combine_chunks()
        good_rows = np.flatnonzero(np.asarray(pc.is_null(table.column(schema.REASON))))
        codes = np.asarray(
            table.column(key).combine_chunks().dictionary_encode().indices.fill_null(-1)
        )[good_rows]
        first_rows = good_rows[np.unique(codes, return_index=True)[1]]
        is_first = np.zeros(table.num_rows, dtype=bool)
        is_first[first_rows] = True
        marked = mark(table, ~is_first, DUPLICATE)
        self._quarantined(name, table.num_rows, [bad_rows(marked, [key])])
        return table.filter(pa.array(is_first))

    def _quarantined(self, name: str, read: int, bad: Iterable[pa.Table]) -> None:
        self.quarantine.start(name, read)
        for part in bad:
            self.quarantine.add(name, part)
        self.quarantine.check(name)
        self.progress(self.quarantine.describe(name))

    def _note(self, note: str) -> None:
        """Report a note, and keep it for the manifest."""
        if note:
            self.notes.append(note)
            self.progress(f"note: {note}")

    def _read_events(
        self, pieces: list[Piece], items: pa.Table | None, users: pa.Table | None
    ) -> tuple[list[list[Any]], list[BucketSummary]]:
        known = items.column(schema.ITEM_ID).combine_chunks() if items is not None else None
        is_bound = self.config.data.unknown_items != "keep"
        self.reading = self._reading()
        self._link_store()
        buckets = exchange(
            pieces, self.num_shards, self.rules, known if is_bound else None, self.reading
        )
        summaries: list[BucketSummary] = [
            fetch(bucket[2]) for bucket in with_progress("gathering users' events", buckets)
        ]
        self.quarantine.start("events", sum(summary.read for summary in summaries))
        for bucket, summary in zip(buckets, summaries, strict=True):
            self.quarantine.add("events", fetch(bucket[1]))
            self.quarantine.drop("events", summary.dropped)
        before = (
            (self.base.users, self.base.items) if self.base is not None else (no_ids(), no_ids())
        )
        unknown = [summary.unknown_items for summary in summaries]
        for name, key, table, found in (
            ("items", schema.ITEM_ID, items, [*(s.items for s in summaries), *unknown, before[1]]),
            ("users", schema.USER_ID, users, [*(s.users for s in summaries), before[0]]),
        ):
            if table is not None:
                side = SideIds(name, key, table.column(key).combine_chunks())
                in_events = SideIds("events", key, pa.concat_arrays(found).unique())
                self._note(compare(side, in_events, self.config.data.min_overlap))
        self.quarantine.check("events")
        self._check_some_are_left(summaries)
        if self.earlier is not None:
            carry_events(self.quarantine, self.earlier, again=self.whole)
        return buckets, summaries

    def _reading(self) -> Reading:
        """How the new rows join the rows that were read before."""
        folder = self.folder if self.keeps_events else None
        if self.earlier is None:
            return Reading(folder=folder, goes_on=self.base is not None)
        readings, earlier = self.earlier.manifest.store["readings"], folder_of(self.earlier)
        num_files = len(files_read(self.earlier.manifest.store))
        return Reading(len(readings), num_files, folder, earlier, self.whole, goes_on=True)

    def _link_store(self) -> None:
        """Link the event files of the earlier dataset into this one."""
        if self.earlier is not None and self.keeps_events:
            earlier = folder_of(self.earlier)
            names = Folder(earlier.filesystem, f"{earlier.path}/{STORE}").entries()
            self.folder.link(
                earlier, STORE, [name for name in names if is_carried(name, self.whole)]
            )

    def _known_before(self, name: str, table: pa.Table | None) -> pa.Table | None:
        """The table of items or users, with the rows of the earlier dataset for ids that it
        lacks.
        """
        if self.earlier is None:
            return table
        features = self.earlier.features if name == "items" else self.earlier.user_features
        return with_earlier(table, features, schema.ITEM_ID if name == "items" else schema.USER_ID)

    def _is_timed(self, summaries: list[BucketSummary]) -> bool:
        return not any(summary.untimed for summary in summaries)

    def _store(self, summaries: list[BucketSummary]) -> dict[str, Any]:
        """The manifest's description of the kept events."""
        earlier = self.earlier.manifest.store if self.earlier is not None else {}
        found = described(self.num_shards, earlier, self.source.events_read, seen_in(summaries))
        return found | {"order": self.order}

    def _check_some_are_left(self, summaries: list[BucketSummary]) -> None:
        """Refuse filters that leave no events."""
        dropped = self.quarantine.dropped["events"]
        if dropped and not any(summary.interactions for summary in summaries):
            raise DataError(
                f"the filters leave none of {self.quarantine.read['events']:,} events:"
                f" {listed(dropped)}; change data.from, data.until, data.min_value,"
                " data.min_user_events or data.min_item_events"
            )

    def _core(
        self,
        buckets: list[list[Any]],
        summaries: list[BucketSummary],
        coding: Coding,
        items: pa.Table | None,
        users: pa.Table | None,
    ) -> tuple[list[list[Any]], list[BucketSummary], pa.Table | None, pa.Table | None]:
        """Reduce events, items and users to the k-core."""
        least = self.config.data.min_user_events, self.config.data.min_item_events
        core, cut, summaries = cut_to_core(buckets, summaries, coding, least, self.base)
        for summary in summaries:
            self.quarantine.drop("events", summary.dropped)
        self._check_some_are_left(summaries)
        self._note(core.note(least))
        base_users, base_items = ([self.base.users], [self.base.items]) if self.base else ([], [])
        items = only(items, schema.ITEM_ID, [core.items, *base_items]) if least[1] else items
        users = only(users, schema.USER_ID, [*core.users, *base_users]) if least[0] else users
        return cut, summaries, items, users

    @cached_property
    def num_shards(self) -> int:
        """Number of shards. It never changes for a dataset, so later files must not influence
        it.
        """
        if self.earlier is not None:
            return int(self.earlier.manifest.store["buckets"])
        return self.config.data.num_shards or max(
            -(-self.source.size() // _SHARD_BYTES), _MIN_SHARDS
        )

    # ------------------------------------------------------------------------------------- encoding

    def _coding(self, summaries: list[BucketSummary]) -> Coding:
        """Event types and order, checked against the events."""
        types = sum((Counter(summary.types) for summary in summaries), Counter[str]())
        before = {*(self.base.event_types if self.base else ()), *self._types_before()}
        missing = sorted({*self.rules.interactions, *self.rules.text_types} - set(types) - before)
        if missing:
            key = (
                "data.interactions"
                if set(missing) & set(self.rules.interactions)
                else "data.text.event_types"
            )
            raise ConfigError(
                f"{key}: no event has the type {', '.join(missing)}; types:"
                f" {choices(types) or 'none'}"
            )
        base = self.base.event_types if self.base else ()
        kept = [
            *base,
            *sorted(
                set(self.rules.interactions or set(types) - set(self.rules.text_types)) - set(base)
            ),
        ]
        if strays := sorted(set(self.config.data.targets) - set(kept)):
            raise ConfigError(
                f"data.targets: no event has the type {', '.join(strays)}; types:"
                f" {choices(kept) or 'none'}"
            )
        if not kept:
            raise DataError(
                f"no event is an interaction; event types: {choices(types) or 'none'}; see"
                " data.interactions"
            )
        if len(kept) > _MAX_EVENT_TYPES:
            raise DataError(
                f"{len(kept)} event types, at most {_MAX_EVENT_TYPES} are supported; see"
                " data.interactions"
            )
        left_out = {
            name: count
            for name, count in types.items()
            if name not in {*kept, *self.rules.text_types}
        }
        for name, count in sorted(left_out.items()):
            self.notes.append(
                f"{count:,} events of the type {name} are not interactions (data.interactions)"
            )
        untimed = sum(summary.untimed for summary in summaries)
        interactions = sum(summary.interactions for summary in summaries)
        target_types = tuple(sorted(kept.index(name) for name in set(self.config.data.targets)))
        target_types = () if len(target_types) == len(kept) else target_types
        return Coding(self.rules, tuple(kept), self._order(untimed, interactions), target_types)

    def _types_before(self) -> set[str]:
        """All event types in the rows of the earlier dataset."""
        return (
            set(self.earlier.manifest.store["seen"]["types"]) if self.earlier is not None else set()
        )

    def _order(self, untimed: int, interactions: int) -> str:
        order = self.config.data.order
        if order == "time" and untimed:
            raise DataError(
                f"data.order time: {untimed:,} interactions have no timestamp; set data.order to"
                " file (the rows are in the order of events) or none"
            )
        if order != "auto":
            return order
        if not untimed:
            return "time"
        if untimed <= _FEW_UNTIMED * interactions:
            self._note(
                f"{untimed:,} of {interactions:,} events have no timestamp; they count as each"
                " user's first (data.order none: events without an order)"
            )
            return "time"
        return "file" if self.config.data.source.kind == "sequences" else "none"

    def _write_vocabularies(self, user_ids: pa.Array, item_ids: pa.Array) -> None:
        self.folder.write_table("vocab/users.parquet", pa.table({schema.USER_ID: user_ids}))
        self.folder.write_table("vocab/items.parquet", pa.table({schema.ITEM_ID: item_ids}))
        self.counts.update(users=len(user_ids), items=len(item_ids))

    def _encode(
        self,
        buckets: list[list[Any]],
        coding: Coding,
        summaries: list[BucketSummary],
        user_ids: pa.Array,
        item_ids: pa.Array,
    ) -> list[list[Any]]:
        """References to the encoded events and text of every bucket; releases the good rows."""
        encoder = task(encode_bucket, 4)
        items = ray.put(item_ids)
        numbers = dense([summary.users for summary in summaries], user_ids)
        encoded = [
            encoder.remote(bucket[0], coding, summary.users, number, items)
            for bucket, summary, number in zip(buckets, summaries, numbers, strict=True)
        ]
        buckets.clear()
        self._quarantine_duplicates("numbering users and items", encoded)
        ignored = sum(fetch([refs[3] for refs in encoded]))
        if ignored:
            self.notes.append(
                f"{ignored:,} rows of item text are empty or about items without interactions"
            )
        return encoded

    def _quarantine_duplicates(self, doing: str, encoded: list[list[Any]]) -> None:
        """Add the duplicates that the encoders report (their third result) to the quarantine."""
        for refs in with_progress(doing, encoded):
            self.quarantine.add("events", fetch(refs[2]))
        self.quarantine.check("events")
        self.progress(self.quarantine.describe("events"))

    # ------------------------------------------------------------------------------------ histories

    def _plan(
        self, encoded: list[list[Any]], coding: Coding, summaries: list[BucketSummary]
    ) -> SplitPlan:
        order, target_types = coding.order, coding.target_types
        has_times = self.config.data.order != "none" and any(
            s.interactions > s.untimed for s in summaries
        )
        split = resolved(self.config.data.split, order, has_times)
        if split.kind != self.config.data.split.kind and split.kind == "ratio":
            self._note(
                f"no event has a time: {split.valid:.0%} of each user's events, drawn at random,"
                f" are validation and {split.test:.0%} test (data.split.kind ratio); set data.order"
                " file if the rows are in time order"
            )
        given = sum((Counter(summary.given) for summary in summaries), Counter[str]())
        unnamed = given.pop("", 0)
        check_split(split, order, self.timed, given)
        if split.kind == "given" and unnamed:
            self.notes.append(f"{unnamed:,} events without a given split count as training")
        valid_from, test_from = NEVER, NEVER
        if split.kind == "temporal":
            valid_from, test_from = cut_offs(split, encoded, summaries, target_types, self._counted)
        newcomers = (
            ColdUsers(split.cold_users, split.cold_keep, self.config.seed)
            if split.cold_users
            else None
        )
        named = given.get("valid", 0) > 0
        shares = (split.kind, split.valid, split.test, valid_from, test_from)
        return SplitPlan(*shares, order != "none", named, newcomers, target_types)

    def _write_shards(
        self, encoded: list[list[Any]], plan: SplitPlan, user_ids: pa.Array, item_ids: pa.Array
    ) -> tuple[list[str], pa.Table | None]:
        """Write histories and item counts; returns the shards' names and the items' terms."""
        num_term_parts = 1
        if self.rules.text_types:
            num_term_parts += int(self.quarantine.read["events"]) // _TERM_ROWS_A_TASK
        rules = ShardRules(plan, self._split_seed(), num_term_parts)
        rules = with_context(encoded, self.folder, self.rules, rules, user_ids, item_ids, self.base)
        written = start_shards(encoded, self.folder, rules, user_ids, item_ids)
        if self.keeps_events and plan.kind == "temporal":
            keeper, number = task(write_rows), self.reading.number
            fetch(
                [
                    keeper.remote(self.folder, times_name(bucket, number), refs[0], TIMES)
                    for bucket, refs in enumerate(encoded)
                ]
            )
        encoded.clear()
        counts_N3 = np.zeros((len(item_ids), len(PARTS)), dtype=np.int64)
        names = self.new_shards
        for refs in with_progress("writing histories", written):
            report: ShardReport = fetch(refs[0])
            self.counts.update(report.counts)
            counts_N3[report.items] += report.item_counts
            names += [report.name] if report.name else []
            self.provenance += [report.provenance] if report.provenance else []
        self.counts["events"] = sum(self.counts[part] for part in PARTS)
        self._note_ties(self.counts.pop("ties", 0))
        self._check_parts(plan.kind)
        self.notes += [plan.newcomers.note(self.counts)] if plan.newcomers else []
        self._write_item_counts(counts_N3)
        return names, self._merge_terms([refs[1:] for refs in written])

    def _write_item_counts(self, counts_N3: Array) -> None:
        self.folder.write_table("items/counts.parquet", count_table(counts_N3))
        sizes = ", ".join(f"{self.counts[part]:,} {part}" for part in PARTS)
        self.progress(
            f"histories: {self.counts['users']:,} users, {self.counts['items']:,} items, {sizes}"
            " events"
        )

    def _split_seed(self) -> int:
        """The seed of the split; 0 where the content hash ignores the seed."""
        split = self.config.data.split
        return 0 if split.kind == "auto" and not split.cold_users else self.config.seed

    def _note_ties(self, ties: int) -> None:
        if ties > _MANY_TIES * self.counts["events"]:
            self._note(
                f"{ties:,} of {self.counts['events']:,} events have the same time as the user's"
                " previous event; they keep the order of the files"
            )

    def _check_parts(self, kind: str) -> None:
        empty = [part for part in PARTS if not self.counts[part]]
        empty += [
            f"target among the {part}"
            for part in PARTS[1:]
            if self.counts.get(f"{part}_targets", 1) == 0
        ]
        if empty:
            sizes = ", ".join(f"{part}: {self.counts[part]:,}" for part in PARTS)
            rule = (
                ": it holds out events of users with three or more events"
                if kind == "leave-last"
                else ""
            )
            raise DataError(
                f"data.split.kind {kind} leaves no {' and no '.join(empty)} events ({sizes}){rule};"
                " change data.split (kind, shares, cut-offs) or give more events per user"
            )

    def _merge_terms(self, parts: list[list[Any]]) -> pa.Table | None:
        if not self.rules.text_types:
            for name in (
                "text_rows",
                "text_rows_held_out",
                "text_rows_held_out_test",
                "text_rows_late",
            ):
                self.counts.pop(name, None)
            return None
        if held_out := self.counts["text_rows_held_out"]:
            self.notes.append(
                f"{held_out:,} of {self.counts['text_rows']:,} rows of item text are about held-out"
                " (user, item) pairs and were left out of the item text"
            )
        if late := self.counts["text_rows_late"]:
            self.notes.append(
                f"{late:,} rows of item text from the validation cut-off on were left out"
            )
        merger = task(merge_terms)
        limit = self.config.data.text.max_event_terms
        return pa.concat_tables(
            fetch([merger.remote(limit, *refs) for refs in zip(*parts, strict=True)])
        )

    # ------------------------------------------------------------------------------ graphs and text

    def _write_graphs(
        self, tables: dict[str, Any], user_ids: pa.Array, features: pa.Table, plan: SplitPlan
    ) -> None:
        self.counts["social_edges"] = 0
        if "social" in tables:
            rules = SocialRules(self.config.data.social_directed, plan.valid_from)
            friendships = Friendships(user_ids, rules, list(block_refs(tables["social"])))
            report = friendships.report
            ends = pa.array(sorted(report.known | report.unknown), pa.string())
            side = SideIds("social", f"{schema.SRC_USER_ID}, {schema.DST_USER_ID}", ends)
            self._note(
                compare(
                    side, SideIds("events", schema.USER_ID, user_ids), self.config.data.min_overlap
                )
            )
            self._quarantined("social", report.read, friendships.bad())
            self.folder.write_parts("graphs/social.parquet", EDGE_SCHEMA, friendships.edges())
            temporal = plan.kind == "temporal"
            self.counts.update(
                social_edges=report.edges, **({"social_rows_late": report.late} if temporal else {})
            )
            if note := report.note(temporal, self.timed):
                self.notes.append(note)
        self._write_facts(tables.get("knowledge"), features)

    def _write_facts(self, knowledge: Any, features: pa.Table) -> None:
        rules = TripleRules.of(self.config.data.knowledge, features, self.rules.cells)
        if knowledge is None and not rules.columns:
            return
        wanted = (schema.ITEM_ID, schema.ENTITY_ID, *rules.columns)
        columns = features.select([name for name in wanted if name in features.column_names])
        blocks = list(block_refs(knowledge)) if knowledge is not None else []
        sizes, bad, read = fetch(
            task(write_triples).remote(self.folder, columns, rules, self.base, *blocks)
        )
        if knowledge is not None:
            self._quarantined("knowledge", read, [bad])
        self.counts.update(sizes)
        self.progress(
            f"knowledge graph: {sizes['facts']:,} triples about {sizes['entities']:,} entities"
        )

    def _write_items(
        self, items: pa.Table | None, features: pa.Table, terms: pa.Table | None
    ) -> ItemText:
        """Write the features of the items; returns their text."""
        groups = text_groups(items, self.config.data.text, media_columns(self.config.data.media))
        text = compose_groups(features, groups, terms, self.config.data.text.event_column)
        self.folder.write_table("items/features.parquet", feature_table(features, text.whole))
        self.counts["items_with_text"] = text.num_items
        return text

    def _encode_text(self, text: ItemText, shards: list[str], coding: Coding) -> dict[str, Any]:
        """Write the vectors of item and user texts; returns their description for the manifest."""
        config = self.config.data.text
        fields = [
            name for names in text.groups.values() for name in names if name != config.event_column
        ]
        described: dict[str, Any] = {
            "model": "",
            "dimension": 0,
            "fields": fields,
            "encoded": 0,
            "cached": 0,
        }
        if any(config.event_column in names for names in text.groups.values()):
            described |= {
                "event_column": config.event_column,
                "max_event_terms": config.max_event_terms,
            }
            described["provenance"] = self.provenance
        if not config.enabled or not text.num_items:
            self.progress(f"item text: {'off' if not config.enabled else 'no item has a text'}")
            return described
        self.progress(f"item text: {text.num_items:,} items, {text.describe()}")
        adapter = None
        if config.finetune.enabled:
            args = (
                self.folder,
                shards,
                text.whole.to_pylist(),
                coding.order != "none",
                config,
                self.config.seed,
            )
            adapter, described["finetune"] = finetune(*args, self.progress)
        described |= write_vectors(self.folder, text, config, adapter)
        if config.users.enabled:
            rules = TextRules(coding.event_types, coding.order != "none", *config.users.how)
            titles = item_titles(self.folder.read_table("items/features.parquet"))
            described["users"] = write_user_texts(
                self.folder, shards, titles, rules, config, adapter
            )
            self.progress(f"user text: {described['users']['texts']:,} texts of users' histories")
        self.progress(
            f"text vectors: {described['encoded']:,} texts encoded, {described['cached']:,} from"
            " the cache"
        )
        return described

    def _write_media(self, items: pa.Table | None, item_ids: pa.Array) -> dict[str, dict[str, Any]]:
        """Write the vectors of the media; returns their descriptions for the manifest."""
        found = read_media(items, self.config.data.media, folders_of(self.source))
        if not found or items is None:
            return {}
        self._quarantined(
            "media",
            sum(medium.read for medium in found.values()),
            (medium.bad for medium in found.values()),
        )
        vectors = {name: aligned(medium, items, item_ids) for name, medium in found.items()}
        self.folder.write_table("items/media.parquet", media_table(vectors))
        for name, medium in found.items():
            if missing := medium.described.get("missing_files"):
                self.notes.append(
                    f"{missing:,} files of the medium {name} do not exist; their items have no"
                    f" {name} vector"
                )
            self.progress(
                f"{name}: {medium.described['items']:,} items, {medium.described['dimension']}"
                " numbers each"
            )
        return {name: medium.described for name, medium in found.items()}


def _dataset(pieces: list[Piece]) -> Any:
    """A lazy dataset of Ray Data. The import takes a second, which workers and sources with only
    events do not need.
    """
    from recsys.preparation.reading import dataset

    return dataset(pieces)
