"""Append newer events to a prepared dataset and process only the users that they affect.

Why: a day's events are about a hundredth of all events. No old file is read, because the dataset
keeps its validated rows (:mod:`recsys.preparation.event_store`). The rows of touched users are
taken from every shard, joined with the new rows, and pass all steps (order, duplicates, splits).
Their histories become a newer file next to the old one, and counts change by the difference.
Touched users are those with new events and, in a temporal split, those with events between an old
and a new cut-off.

Some work still grows with all events, but is cheap: the users of the kept rows are read once to
find those of touched users, a temporal split counts their times, and vocabularies and attributes
are written again. A shard is written again as a whole when more than half of its users have newer
rows, or when it has many newer files. All kept rows pass all steps again if a setting has changed,
or if an event can affect other users (k-core, item text from events, texts of users).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.data.dataset import PreparedDataset
from recsys.data.split import SplitPlan, plan_of
from recsys.data.vocabulary import dense
from recsys.pace import with_progress
from recsys.preparation.blocks import fetch, put, task
from recsys.preparation.buckets import BucketSummary
from recsys.preparation.cut_offs import Counted, OutOfReach
from recsys.preparation.dataset_writer import folder_of
from recsys.preparation.event_encoding import Coding
from recsys.preparation.event_roles import NO_TIME, SPLITS
from recsys.preparation.event_store import (
    StoredEvents,
    described,
    seen_in,
    seen_together,
    times_name,
    write_rows,
)
from recsys.preparation.shards import (
    ShardRules,
    shard_name,
    with_context,
)
from recsys.preparation.split_plan import split_seed
from recsys.preparation.steps import Preparation
from recsys.preparation.touched_users import (
    encode_touched,
    fresh_times,
    kept_times,
    moved_users,
    rows_of_fresh,
    write_touched,
)

_MOST_FILES: Final = 12  # newer files of a shard above which it is written again as a whole
_MOST_USERS: Final = 0.5  # share of a shard's users with newer rows above which it is written again


class NeedsAll(Exception):
    """An append must process all events; the message says why."""


class Appending(Preparation):
    """The steps of :class:`~recsys.preparation.steps.Preparation` for touched users only."""

    whole = False

    def _before(self) -> PreparedDataset:
        assert self.earlier is not None, "an append has an earlier dataset"
        return self.earlier

    def _is_timed(self, summaries: list[BucketSummary]) -> bool:
        return self._before().manifest.timed and super()._is_timed(summaries)

    def _check_some_are_left(self, summaries: list[BucketSummary]) -> None:
        """Check nothing: the events of the earlier dataset remain."""

    def _store(self, summaries: list[BucketSummary]) -> dict[str, Any]:
        found = described(
            self.num_shards, self._before().manifest.store, self.source.events_read, self._seen
        )
        return found | {"order": self.order, "newer_users": self._newer_users}

    def _coding(self, summaries: list[BucketSummary]) -> Coding:
        """The coding over all events, old and new.

        Raises
        ------
        NeedsAll
            The order differs from that of the earlier dataset.
        """
        manifest = self._before().manifest
        seen = self._seen = seen_together(manifest.store["seen"], seen_in(summaries))
        everything = BucketSummary(
            **{key: seen[key] for key in ("interactions", "untimed", "types", "given")}
        )
        everything.first, everything.last = seen["span"]
        self._everything = everything
        coding = super()._coding([everything])
        if (coding.order != "none") != manifest.ordered or manifest.store.get(
            "order", coding.order
        ) != coding.order:
            raise NeedsAll("the new events change the order of events")
        return coding

    def _encode(
        self,
        buckets: list[list[Any]],
        coding: Coding,
        summaries: list[BucketSummary],
        user_ids: pa.Array,
        item_ids: pa.Array,
    ) -> list[list[Any]]:
        """For each bucket with new events, references to the tables of :func:`encode_touched`; for
        other buckets an empty list.
        """
        self._code, self._touched = coding, [summary.users for summary in summaries]
        self._ids = put(user_ids), put(item_ids)
        self._whole_buckets = self._buckets_to_renew(len(user_ids))
        encoder, reader = task(encode_touched, 3), task(StoredEvents.rows)
        encoded: list[list[Any]] = []
        self._numbers = dense(self._touched, user_ids)
        for number, (bucket, users) in enumerate(zip(buckets, self._touched, strict=True)):
            is_whole = number in self._whole_buckets
            if not (is_whole or len(users)):
                encoded.append([])
                continue
            before = reader.remote(self._kept(number), None) if is_whole else self._rows[number]
            chosen = None if is_whole else (users, self._numbers[number])
            encoded.append(encoder.remote(before, bucket[0], coding, chosen, *self._ids))
        buckets.clear()
        self._rows.clear()
        return encoded

    def _check_encoded(self, encoded: list[list[Any]]) -> None:
        self._quarantine_duplicates(
            "encoding the events of touched users", [refs for refs in encoded if refs]
        )

    def _exchanged(self, buckets: list[list[Any]]) -> None:
        """Start to read the kept rows of users with new events, while the ids get numbers."""
        reader = task(rows_of_fresh)
        self._rows = [
            reader.remote(self._kept(number), bucket[0]) for number, bucket in enumerate(buckets)
        ]

    def _kept(self, bucket: int) -> StoredEvents:
        kept = self.reading.kept(bucket)
        assert kept is not None, "an append has an earlier dataset"
        return kept

    def _buckets_to_renew(self, num_users: int) -> set[int]:
        """The shards to write again as a whole; counts the users with newer rows in the others."""
        manifest, each = self._before().manifest, num_users / self.num_shards
        before = manifest.store.get("newer_users") or [0] * self.num_shards
        newer = [number + len(users) for number, users in zip(before, self._touched, strict=True)]
        files = [len(manifest.renewed.get(shard_name(bucket), [])) for bucket in range(len(newer))]
        found = {
            bucket
            for bucket, (number, count) in enumerate(zip(newer, files, strict=True))
            if len(self._touched[bucket]) and (number > _MOST_USERS * each or count >= _MOST_FILES)
        }
        self._newer_users = [
            0 if bucket in found else number for bucket, number in enumerate(newer)
        ]
        return found

    def _plan(
        self, encoded: list[list[Any]], coding: Coding, summaries: list[BucketSummary]
    ) -> SplitPlan:
        """The plan over all events. Users with events that it moves to another split are touched as
        well.

        Raises
        ------
        NeedsAll
            The kind of split differs from that of the earlier dataset.
        """
        manifest = self._before().manifest
        self._old_plan = plan_of(
            manifest.split, [manifest.event_types.index(name) for name in manifest.targets]
        )
        old, before = self._old_plan, []
        if old.kind == "temporal":
            fresh = self._fresh_times(encoded)
            try:  # cut-offs move forward, except when the new events have early times
                before = self._earlier_times(len(encoded), coding, old.valid_from)
                plan = super()._plan([*before, *fresh], coding, [self._everything])
            # rare, and costs one more pass over the times
            except OutOfReach:
                before = self._earlier_times(len(encoded), coding, NO_TIME)
                plan = super()._plan([*before, *fresh], coding, [self._everything])
        else:
            plan = super()._plan([], coding, [self._everything])
        if replace(plan, valid_from=old.valid_from, test_from=old.test_from) != old:
            raise NeedsAll("the new events change the split")
        if plan != old:
            self._add_moved(encoded, before, plan)
        return plan

    def _earlier_times(self, num_buckets: int, coding: Coding, since: int) -> list[list[Any]]:
        """References to the times of every bucket from ``since`` on; earlier ones are counted."""
        reader = task(kept_times, 2)
        refs = [
            reader.remote(self._kept(bucket), since, coding.target_types)
            for bucket in range(num_buckets)
        ]
        self._counted = Counted(sum(fetch([number for _, number in refs])), since)
        return [[times] for times, _ in refs]

    def _fresh_times(self, encoded: list[list[Any]]) -> list[list[Any]]:
        """References to the new times of buckets with new events."""
        differ, writer = task(fresh_times), task(write_rows)
        fresh = {
            bucket: differ.remote(refs[0], refs[1]) for bucket, refs in enumerate(encoded) if refs
        }
        if self.keeps_events:
            number = self.reading.number
            fetch(
                [
                    writer.remote(self.folder, times_name(bucket, number), ref)
                    for bucket, ref in fresh.items()
                ]
            )
        return [[ref] for ref in fresh.values()]

    def _add_moved(
        self, encoded: list[list[Any]], before: list[list[Any]], plan: SplitPlan
    ) -> None:
        """Add the events of users that have no new events but are affected by the new cut-offs."""
        finder, reader, encoder = (
            task(moved_users),
            task(StoredEvents.rows),
            task(encode_touched, 3),
        )
        moved = {
            bucket: finder.remote(times, self._old_plan, plan)
            for bucket, (times,) in enumerate(before)
            if bucket not in self._whole_buckets
        }
        user_ids = fetch(self._ids[0])
        for bucket, found in moved.items():
            numbers = np.setdiff1d(fetch(found), self._numbers[bucket])
            if len(numbers):
                users = user_ids.take(pa.array(numbers))
                # the encoder takes users sorted by id
                order = pc.sort_indices(users)
                chosen = users.take(order), numbers[np.asarray(order)]
                self._newer_users[bucket] += len(users)
                before = reader.remote(self._kept(bucket), chosen[0])
                encoded[bucket] += encoder.remote(before, None, self._code, chosen, *self._ids)

    def _write_shards(
        self, encoded: list[list[Any]], plan: SplitPlan, user_ids: pa.Array, item_ids: pa.Array
    ) -> tuple[list[str], pa.Table | None]:
        """Write newer history files and change the counts by the difference."""
        rules = ShardRules(plan, split_seed(self.data.split, self.seed), 1)
        rules = with_context([], self.folder, self.rules, rules, user_ids, item_ids, self.base)
        both = (rules, replace(rules, plan=self._old_plan))
        writer = task(write_touched)
        written = []
        manifest = self._before().manifest
        unchanged = set(manifest.shards)
        self.renewed = {name: list(files) for name, files in manifest.renewed.items()}
        for bucket, refs in enumerate(encoded):
            if not refs:
                continue
            name = shard_name(bucket)
            if bucket in self._whole_buckets:
                unchanged.discard(name)
                self.renewed.pop(name, None)
            ending = f".{self.reading.number:05d}" if name in unchanged else ""
            tables = [ref for number, ref in enumerate(refs) if number % 3 != 2]
            written.append(writer.remote(self.folder, (bucket, ending), both, *self._ids, *tables))
        self._link_histories(unchanged)
        self._count(written, item_ids)
        for file in self.new_shards:
            shard = f"{file.split('.')[0]}.parquet"
            if shard != file:
                self.renewed.setdefault(shard, []).append(file)
            unchanged.add(shard)
        return sorted(unchanged), None

    def _link_histories(self, shards: Collection[str]) -> None:
        """Link the history files that stay."""
        names = [*shards, *(file for name in shards for file in self.renewed.get(name, []))]
        self.folder.link(folder_of(self._before()), "histories", names)

    def _count(self, written: list[Any], item_ids: pa.Array) -> None:
        """Update the counts of the earlier dataset by the difference for touched users."""
        earlier = self._before()
        counts_N3 = np.zeros((len(item_ids), len(SPLITS)), dtype=np.int64)
        table = earlier.table("items/counts.parquet")
        counts_N3[: table.num_rows] = np.stack(
            [table.column(split).to_numpy() for split in SPLITS], axis=1
        )
        total = Counter(
            {key: number for key, number in earlier.manifest.counts.items() if key in _OF_EVENTS}
        )
        for ref in with_progress("writing histories", written):
            now, before = fetch(ref)
            # the old counts of touched users leave, their new ones enter; all others stay
            for report, sign in ((now, 1), (before, -1)):
                for key in _OF_EVENTS & report.counts.keys():
                    total[key] += sign * report.counts[key]
                counts_N3[report.items] += sign * report.item_counts
            self.new_shards += [now.name] if now.name else []
        self.record.counts.update(total)
        self.record.counts["events"] = sum(self.record.counts[split] for split in SPLITS)
        self._write_item_counts(counts_N3)


_OF_EVENTS: Final = frozenset(
    {*SPLITS, "valid_targets", "test_targets", "repeats", "cold_users", "cold_cut", "cold_valid"}
)
