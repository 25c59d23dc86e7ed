"""The steps of ``prepare``, one method each; see the diagram in :mod:`recsys.preparation.prepare`.

No data that grows with the number of events passes through this process.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys import schema
from recsys.config import SplitConfig
from recsys.data.histories import Array
from recsys.data.manifest import Manifest
from recsys.data.split import SplitPlan
from recsys.data.vocabulary import dense, union
from recsys.errors import DataError
from recsys.pace import with_progress
from recsys.preparation.blocks import fetch, piece_refs, put, read_table, task
from recsys.preparation.buckets import BucketSummary, Reading, exchange, overlap_notes
from recsys.preparation.content_hash import settings_hash, settings_of
from recsys.preparation.cut_offs import Counted, cut_offs
from recsys.preparation.dataset_writer import folder_of
from recsys.preparation.earlier_rows import carry_events, with_earlier
from recsys.preparation.event_encoding import Coding, encode_bucket
from recsys.preparation.event_roles import SPLITS
from recsys.preparation.event_store import (
    TIMES,
    described,
    files_read,
    link_rows,
    seen_in,
    times_name,
    write_rows,
)
from recsys.preparation.event_types import coding_of
from recsys.preparation.friend_edges import SocialRules, write_friendships
from recsys.preparation.graphs import TripleRules, write_knowledge
from recsys.preparation.html_text import without_html
from recsys.preparation.inputs import Inputs
from recsys.preparation.item_text import ItemText, compose_groups
from recsys.preparation.items import (
    align,
    count_table,
    items_table,
    text_groups,
    unique_rows,
    write_features,
)
from recsys.preparation.k_core import cut_to_core, only
from recsys.preparation.media import folders_of, media_columns, read_media, write_media
from recsys.preparation.quarantine import DUPLICATE, Quarantine, bad_rows, listed
from recsys.preparation.record import Record
from recsys.preparation.shards import ShardReport, ShardRules, start_shards, with_context
from recsys.preparation.split_plan import check_no_split_is_empty, plan_split, split_seed
from recsys.preparation.terms import drop_text_counts, merge_in_tasks
from recsys.preparation.texts import write_texts
from recsys.sources.base import Piece
from recsys.values.overlap import ids_in_two_forms

_ROWS_A_TERM_TASK: Final = 2_000_000
_SHARD_BYTES: Final = 64 << 20
_MIN_SHARDS: Final = 4
# share of events at the time of the previous event, above which a note says so
_MANY_TIES: Final = 0.5


class Preparation:
    """One run of ``prepare`` and its state. Every step is a method, in the order of :meth:`run`."""

    whole = True  # whether all events pass through the steps, also those that were read before

    def __init__(self, inputs: Inputs) -> None:
        self.base = inputs.base
        self.earlier = inputs.earlier
        self.keeps_lost = inputs.keeps_lost
        self.data, self.seed = inputs.data, inputs.seed
        self.source, self.rules = inputs.source, inputs.rules
        self.folder = inputs.folder
        self.guard = inputs.guard
        self.keeps_events = self.source.appends and self.data.keep_events
        self.quarantine = Quarantine(inputs.dataset_writer, self.data)
        self.record = Record(self.quarantine, inputs.progress)
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
        step = self.record.step
        pieces = self.guard.around(self.source.unchanged_pieces())
        for note in self.source.notes:
            self.record.note(note)
        events = pieces.pop("events")
        with step("read_items"):
            items = self._read_ids("items", pieces.get("items"), schema.ITEM_ID)
            items = self._without_html(items)
        with step("read_users"):
            users = self._read_ids("users", pieces.get("users"), schema.USER_ID)
        with step("read_events"):
            buckets, summaries = self._read_events(events, items, users)
        with step("encode"):
            coding = self._coding(summaries)
            self.order = coding.order
            if self.data.min_user_events or self.data.min_item_events:
                buckets, summaries, items, users = self._core(
                    buckets, summaries, coding, items, users
                )
            self.timed = self._is_timed(summaries)
            user_ids, item_ids = self._vocabularies(summaries, users, items)
            encoded = self._encode(buckets, coding, summaries, user_ids, item_ids)
            # while the tasks encode
            self._write_vocabularies(user_ids, item_ids)
            self._write_users(users, user_ids)
            self._check_encoded(encoded)
        with step("split"):
            plan = self._plan(encoded, coding, summaries)
        with step("histories"):
            shards, terms = self._write_shards(encoded, plan, user_ids, item_ids)
        features = align(items, item_ids, schema.ITEM_ID)
        self._note_numbers("items", features)
        with step("graphs"):
            self._write_graphs(pieces, user_ids, features, plan)
        with step("text"):
            texts = self._write_items(items, features, terms)
            text = write_texts(
                self.folder,
                texts,
                shards,
                coding,
                self.data.text,
                self.seed,
                self.provenance,
                self.record.progress,
            )
        with step("media"):
            found = read_media(items, self.data.media, folders_of(self.source), self.earlier)
            media = write_media(self.folder, found, items, item_ids, self.record)
        self.quarantine.close()
        self.record.timing["total"] = round(time.perf_counter() - started, 3)
        written = {"shards": shards, "text": text, "media": media}
        store = self._store(summaries) if self.keeps_events else {}
        return self._manifest(digest, coding, plan, written | {"store": store})

    def _manifest(
        self, digest: str, coding: Coding, plan: SplitPlan, written: dict[str, Any]
    ) -> Manifest:
        """The manifest; ``written`` has what it says about the files of the last steps."""
        data, seed, unused = self.data, self.seed, self.quarantine
        earlier = self.earlier.manifest if self.earlier is not None else None
        return Manifest(
            content_hash=digest,
            name=earlier.name if earlier else self.source.name,
            counts=dict(self.record.counts),
            event_types=list(coding.event_types),
            ordered=coding.order != "none",
            timed=self.timed,
            split=plan.describe(),
            quarantined={table: dict(reasons) for table, reasons in unused.counts.items()},
            dropped={table: dict(reasons) for table, reasons in unused.dropped.items() if reasons},
            read=unused.read,
            timing=self.record.timing,
            notes=self.record.notes,
            context=list(self.rules.context),
            settings_hash=settings_hash(data, seed),
            settings=settings_of(data, seed),
            renewed=self.renewed,
            inherited_context=self.base is not None and bool(self.base.context),
            ancestors=[*earlier.ancestors, earlier.content_hash] if earlier else [],
            targets=[coding.event_types[code] for code in coding.target_types],
            **written,
        )

    # -------------------------------------------------------------------------------------- reading

    def _read_ids(self, name: str, pieces: list[Piece] | None, key: str) -> pa.Table | None:
        """The good rows of the items or users table, each id once, and the rows of the earlier
        dataset for ids that it lacks; None without such rows.
        """
        table = read_table(pieces) if pieces is not None else None
        if table is not None:
            table, repeated = unique_rows(table, key)
            if name in self.source.made_of_events:
                # an id of several pieces is no row that is left out
                is_repeat = pc.equal(repeated.column(schema.REASON), DUPLICATE)
                repeated = repeated.filter(pc.invert(pc.fill_null(is_repeat, False)))
            self.record.add_bad_rows(name, repeated.num_rows, [bad_rows(repeated, [key])])
        if self.earlier is None:
            return table
        is_items = name == "items"
        before = items_table(self.earlier) if is_items else self.earlier.user_features
        table, note = with_earlier(table, before, key)
        self.record.note(note)
        return table

    def _without_html(self, items: pa.Table | None) -> pa.Table | None:
        """The items with the columns of ``data.text.html`` as plain text. Those of the earlier
        dataset are plain already, and a second pass would remove text that only looks like tags.
        """
        columns = self.data.text.html
        if items is None:
            without_html(pa.table({schema.ITEM_ID: pa.array([], pa.string())}), columns)
            return None
        of_today = pc.is_valid(items.column(schema.FILE))
        settings = self.earlier.manifest.settings.get("data", {}) if self.earlier else {}
        known = settings.get("text")  # None: text was off, and its settings are not kept
        newly = [name for name in columns if known and name not in known.get("html", ())]
        return without_html(without_html(items, columns, of_today), newly)

    def _read_events(
        self, pieces: list[Piece], items: pa.Table | None, users: pa.Table | None
    ) -> tuple[list[list[Any]], list[BucketSummary]]:
        known = items.column(schema.ITEM_ID).combine_chunks() if items is not None else None
        is_bound = self.data.unknown_items != "keep"
        self.reading = self._reading()
        if self.earlier is not None and self.keeps_events:
            link_rows(folder_of(self.earlier), self.folder, self.whole)
        buckets = exchange(
            pieces, self.num_shards, self.rules, known if is_bound else None, self.reading
        )
        self._exchanged(buckets)
        summaries: list[BucketSummary] = [
            fetch(bucket[2]) for bucket in with_progress("gathering users' events", buckets)
        ]
        self.quarantine.start("events", sum(summary.read for summary in summaries))
        for bucket, summary in zip(buckets, summaries, strict=True):
            self.quarantine.add("events", fetch(bucket[1]))
            self.quarantine.drop("events", summary.dropped)
        side_tables = {"items": items, "users": users}
        for note in overlap_notes(side_tables, summaries, self.base, self.data.min_overlap):
            self.record.note(note)
        if gone := sum(summary.forgotten for summary in summaries):
            self.record.progress(f"left out {gone:,} rows of events of forgotten users")
        self.quarantine.check("events")
        self._check_some_are_left(summaries)
        if self.earlier is not None:
            carry_events(self.quarantine, self.earlier, again=self.whole)
        return buckets, summaries

    def _exchanged(self, buckets: list[list[Any]]) -> None:
        """Start what the later steps need of the good rows of every bucket."""

    def _reading(self) -> Reading:
        """How the new rows join the rows that were read before."""
        folder = self.folder if self.keeps_events else None
        if self.earlier is None:
            return Reading(folder=folder, continues=self.base is not None)
        readings, earlier = self.earlier.manifest.store["readings"], folder_of(self.earlier)
        num_files = len(files_read(self.earlier.manifest.store))
        return Reading(len(readings), num_files, folder, earlier, self.whole, continues=True)

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
        least = self.data.min_user_events, self.data.min_item_events
        core, cut, summaries = cut_to_core(buckets, summaries, coding, least, self.base)
        for summary in summaries:
            self.quarantine.drop("events", summary.dropped)
        self._check_some_are_left(summaries)
        self.record.note(core.note(least))
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
        return self.data.num_shards or max(-(-self.source.size() // _SHARD_BYTES), _MIN_SHARDS)

    # ------------------------------------------------------------------------------------- encoding

    def _coding(self, summaries: list[BucketSummary]) -> Coding:
        """Event types and order, checked against the events."""
        base = self.base.event_types if self.base else ()
        earlier = self.earlier.manifest.store["seen"]["types"] if self.earlier is not None else ()
        return coding_of(summaries, self.rules, self.data, base, earlier, self.record)

    def _vocabularies(
        self, summaries: list[BucketSummary], users: pa.Table | None, items: pa.Table | None
    ) -> tuple[pa.Array, pa.Array]:
        """All external ids of users and of items in dense order."""
        in_users = [users.column(schema.USER_ID)] if users else []
        in_items = [items.column(schema.ITEM_ID)] if items else []
        user_ids = union([*(summary.users for summary in summaries), *in_users])
        item_ids = union([*(summary.items for summary in summaries), *in_items])
        if self.base is not None:
            if not self.keeps_lost:
                self.base.check_kept(user_ids, item_ids)
            user_ids, item_ids = self.base.grown(user_ids, item_ids)
            new = len(user_ids) - len(self.base.users), len(item_ids) - len(self.base.items)
            self.record.progress(
                f"{new[0]:,} new users and {new[1]:,} new items; the others keep their ids"
            )
        return user_ids, item_ids

    def _write_vocabularies(self, user_ids: pa.Array, item_ids: pa.Array) -> None:
        self.folder.write_table("vocab/users.parquet", pa.table({schema.USER_ID: user_ids}))
        self.folder.write_table("vocab/items.parquet", pa.table({schema.ITEM_ID: item_ids}))
        self.record.counts.update(users=len(user_ids), items=len(item_ids))
        for ids, noun in ((user_ids, "users"), (item_ids, "items")):
            self.record.note(ids_in_two_forms(ids, noun))

    def _write_users(self, users: pa.Table | None, user_ids: pa.Array) -> None:
        self.record.note(self.guard.warning(user_ids, users))
        features = align(users, user_ids, schema.USER_ID)
        self._note_numbers("users", features)
        self.folder.write_table("users/features.parquet", features)

    def _note_numbers(self, table: str, features: pa.Table) -> None:
        """Note the columns of ``data.source.numbers`` without any number."""
        given = getattr(self.data.source, "numbers", ())
        for name in given.get(table, ()) if isinstance(given, Mapping) else given:
            if name in features.column_names and not pc.count(features.column(name)).as_py():
                self.record.note(
                    f"no value of {name} in the table of {table} is a number, so all are missing;"
                    " take it out of data.source.numbers to keep them as text or times"
                )

    def _encode(
        self,
        buckets: list[list[Any]],
        coding: Coding,
        summaries: list[BucketSummary],
        user_ids: pa.Array,
        item_ids: pa.Array,
    ) -> list[list[Any]]:
        """Start to encode; returns references to the events and text of every bucket, and releases
        the good rows.
        """
        encoder = task(encode_bucket, 4)
        items = put(item_ids)
        numbers = dense([summary.users for summary in summaries], user_ids)
        encoded = [
            encoder.remote(bucket[0], coding, summary.users, number, items)
            for bucket, summary, number in zip(buckets, summaries, numbers, strict=True)
        ]
        buckets.clear()
        return encoded

    def _check_encoded(self, encoded: list[list[Any]]) -> None:
        """Wait for the encoders, and report what they leave out."""
        self._quarantine_duplicates("numbering users and items", encoded)
        ignored = sum(fetch([refs[3] for refs in encoded]))
        if ignored:
            self.record.notes.append(
                f"{ignored:,} rows of item text are empty or about items without interactions"
            )

    def _quarantine_duplicates(self, doing: str, encoded: list[list[Any]]) -> None:
        """Add the duplicates that the encoders report (their third result) to the quarantine."""
        for refs in with_progress(doing, encoded):
            self.quarantine.add("events", fetch(refs[2]))
        self.quarantine.check("events")
        self.record.progress(self.quarantine.describe("events"))

    # ------------------------------------------------------------------------------------ histories

    def _plan(
        self, encoded: list[list[Any]], coding: Coding, summaries: list[BucketSummary]
    ) -> SplitPlan:
        def find_cut_offs(split: SplitConfig) -> tuple[int, int]:
            return cut_offs(split, encoded, summaries, coding.target_types, self._counted)

        return plan_split(
            self.data,
            self.seed,
            summaries,
            coding,
            self.timed,
            find_cut_offs,
            self.record,
        )

    def _write_shards(
        self, encoded: list[list[Any]], plan: SplitPlan, user_ids: pa.Array, item_ids: pa.Array
    ) -> tuple[list[str], pa.Table | None]:
        """Write histories and item counts; returns the shards' names and the items' terms."""
        num_term_tasks = 1
        if self.rules.text_types:
            num_term_tasks += int(self.quarantine.read["events"]) // _ROWS_A_TERM_TASK
        rules = ShardRules(plan, split_seed(self.data.split, self.seed), num_term_tasks)
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
        counts_N3 = np.zeros((len(item_ids), len(SPLITS)), dtype=np.int64)
        names = self.new_shards
        for refs in with_progress("writing histories", written):
            report: ShardReport = fetch(refs[0])
            self.record.counts.update(report.counts)
            counts_N3[report.items] += report.item_counts
            names += [report.name] if report.name else []
            self.provenance += [report.provenance] if report.provenance else []
        self.record.counts["events"] = sum(self.record.counts[split] for split in SPLITS)
        self._note_ties(self.record.counts.pop("ties", 0))
        check_no_split_is_empty(plan.kind, self.record.counts)
        self.record.notes += [plan.cold_start.note(self.record.counts)] if plan.cold_start else []
        self._write_item_counts(counts_N3)
        if not self.rules.text_types:
            drop_text_counts(self.record)
            return names, None
        limit = self.data.text.max_event_terms
        return names, merge_in_tasks([refs[1:] for refs in written], limit, self.record)

    def _write_item_counts(self, counts_N3: Array) -> None:
        counts = self.record.counts
        self.folder.write_table("items/counts.parquet", count_table(counts_N3))
        sizes = ", ".join(f"{counts[split]:,} {split}" for split in SPLITS)
        self.record.progress(
            f"histories: {counts['users']:,} users, {counts['items']:,} items, {sizes} events"
        )

    def _note_ties(self, ties: int) -> None:
        num_events = self.record.counts["events"]
        if self.order == "time" and ties > _MANY_TIES * num_events:
            self.record.note(
                f"{ties:,} of {num_events:,} events have the same time as the user's previous"
                " event; they keep the order of the files, and training draws a new order in each"
                " epoch (train.shuffle_ties)"
            )

    # ------------------------------------------------------------------------------ graphs and text

    def _write_graphs(
        self,
        pieces: dict[str, list[Piece]],
        user_ids: pa.Array,
        features: pa.Table,
        plan: SplitPlan,
    ) -> None:
        data = self.data
        self.record.counts["social_edges"] = 0
        if "social" in pieces:
            social = SocialRules(data.social_directed, plan.valid_from)
            blocks = list(piece_refs(pieces["social"]))
            write_friendships(
                self.folder, user_ids, social, blocks, data.min_overlap, self.timed, self.record
            )
        rules = TripleRules.of(data.knowledge, features, self.rules.cells)
        knowledge = pieces.get("knowledge")
        of_triples = list(piece_refs(knowledge)) if knowledge is not None else None
        write_knowledge(self.folder, features, rules, self.base, of_triples, self.record)

    def _write_items(
        self, items: pa.Table | None, features: pa.Table, terms: pa.Table | None
    ) -> ItemText:
        """Write the features of the items; returns their text."""
        groups = text_groups(items, self.data.text, media_columns(self.data.media))
        text = compose_groups(features, groups, terms, self.data.text.event_column)
        write_features(self.folder, features, groups, text.whole)
        self.record.counts["items_with_text"] = text.num_items
        return text
