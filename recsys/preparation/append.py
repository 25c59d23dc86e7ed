"""Append newer events to a prepared dataset and process only the users that they affect.

Why: a day's events are about a hundredth of all events. No old file is read, because the dataset
keeps its validated rows (:mod:`recsys.preparation.event_store`). The rows of touched users are
taken from every shard, joined with the new rows, and pass all steps (order, duplicates, splits).
Their histories become a newer file next to the old one, and counts change by the difference.
Touched users are those with new events and, in a temporal split, those with events between an old
and a new cut-off.

Some work still grows with all events, but is cheap: the kept rows are unpacked once to find those
of touched users, a temporal split counts their times, and vocabularies and attributes are written
again. A shard is written again as a whole when more than half of its users have newer rows, or when
it has many newer files. All kept rows pass all steps again if a setting has changed, or if an event
can affect other users (k-core, item text from events, texts of users).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from recsys import schema
from recsys.config import Config, DataConfig
from recsys.data.dataset import Manifest, PreparedDataset
from recsys.data.histories import Array
from recsys.data.split import SplitPlan, plan_of
from recsys.data.vocabulary import dense
from recsys.errors import ArtifactError, ConfigError, DataError
from recsys.pace import with_progress
from recsys.preparation.blocks import fetch, task
from recsys.preparation.build import Preparation, Progress
from recsys.preparation.content_hash import differences, settings_hash, settings_of
from recsys.preparation.cut_offs import Counted, OutOfReach
from recsys.preparation.dataset_writer import Folder, folder_of
from recsys.preparation.event_store import (
    TIMES,
    Kept,
    described,
    files_read,
    of_users,
    seen_in,
    seen_together,
    times_name,
    write_rows,
)
from recsys.preparation.events import (
    EVENT_SCHEMA,
    NO_TIME,
    PARTS,
    TEXT_SCHEMA,
    BucketSummary,
    Coding,
    encode_bucket,
    joined,
)
from recsys.preparation.keys import used_texts
from recsys.preparation.shards import (
    ShardReport,
    ShardRules,
    count_shard,
    shard_name,
    with_context,
    write_shard,
)
from recsys.sources.base import SourceAdapter
from recsys.storage.uris import is_remote, one_spelling

_MOST_FILES: Final = 12  # newer files of a shard above which it is written again as a whole
_MOST_USERS: Final = 0.5  # share of a shard's users with newer rows above which it is written again
_PARSED: Final = ("data.context", "data.context_numbers", "data.text_events")


class NothingNew(DataError):
    """All named files of events were read before."""


class NeedsAll(Exception):
    """An append must process all events; the message says why."""


@dataclass(frozen=True)
class Least:
    """The least number of events for an update: that of the parent model, so that no event is lost
    by mistake.
    """

    events: int
    replace: bool = False

    def check(self, manifest: Manifest, place: str) -> None:
        """Refuse a dataset with fewer events than the parent model had.

        Raises
        ------
        DataError
            There are fewer events, even with those that a rule of ``data`` leaves out.
        """
        found = manifest.counts["events"]
        by_rule = sum(manifest.dropped.get("events", {}).values())
        if self.replace or found + by_rule >= self.events:
            return
        raise DataError(
            f"the data has {found:,} events, but the parent model has {self.events:,}: an update"
            " does not lose events unless you confirm it. Give only the new files with --events"
            " FILE…, which keeps the old events, or list old and new files in data.source;"
            f" --replace makes {place} from these events only"
        )


def check_earlier(earlier: PreparedDataset, config: Config) -> None:
    """Refuse a dataset to which no events can be appended.

    Raises
    ------
    ConfigError
        The dataset keeps no events, its settings differ (the message names them), or it is on an
        object store and would be replaced.
    """
    if not earlier.manifest.store:
        raise ConfigError(
            f"{earlier.root} keeps no events, so newer events cannot be appended (an earlier"
            " release made it, its source is read as a whole, or data.keep_events was false); list"
            " old and new files in data.source and run the update without --events"
        )
    different = differences(earlier.manifest.settings, settings_of(config.data, config.seed))
    if wrong := [found for found in different if found.startswith(_PARSED)]:
        raise ConfigError(
            f"{earlier.root} keeps its events without the columns that the settings name now:"
            f" {'; '.join(wrong)}; use the settings that it was prepared with, or list old and new"
            " files in data.source and prepare them again"
        )
    if is_remote(earlier.root) and one_spelling(earlier.root) == one_spelling(config.dataset_dir):
        raise ConfigError(
            f"data.dir: {config.dataset_dir} is the dataset to append to, and an object store"
            " cannot rename; choose another data.dir (or run.dir) for the new dataset"
        )


def nothing_new(earlier: PreparedDataset, config: Config, progress: Progress) -> PreparedDataset:
    """Return the earlier dataset unchanged, if the configuration asks for the same dataset.

    Raises
    ------
    NothingNew
        All files were read before, and the configuration asks for another dataset.
    """
    same = settings_hash(config.data, config.seed) == earlier.manifest.settings_hash
    if same and one_spelling(earlier.root) == one_spelling(config.dataset_dir):
        progress(
            f"dataset {config.dataset_dir} is up to date: all files of events were read before"
        )
        return earlier
    raise NothingNew(
        f"no new events: {earlier.root} has read all named files of events before; give newer"
        " events with --events or in data.source"
    )


def refuse_forgetting(dataset_dir: str, source: SourceAdapter) -> None:
    """Refuse to overwrite a dataset with appended files that the source does not name.

    Raises
    ------
    DataError
        The source does not name some of the appended files.
    """
    try:
        store = PreparedDataset(dataset_dir).manifest.store
    except ArtifactError:
        return
    if len(store.get("readings", [])) < 2:
        return
    named = {(file["size"], file["fingerprint"]) for file in source.events_read}
    missing = [
        file["name"]
        for file in files_read(store)
        if (file["size"], file["fingerprint"]) not in named
    ]
    if missing:
        raise DataError(
            f"{dataset_dir} has {len(missing)} appended files of events that data.source"
            f" does not name, such as {missing[0]}: this prepare would lose them; name them in"
            " data.source, choose another data.dir, or confirm with --replace"
        )


def can_touch(data: DataConfig, seed: int, earlier: PreparedDataset | None) -> bool:
    """Whether an append can skip users without new events."""
    if earlier is None or earlier.manifest.settings_hash != settings_hash(data, seed):
        return False
    needs_all = (
        data.min_user_events
        or data.min_item_events
        or data.text.event_types
        or data.text.users.enabled
    )
    return not (
        needs_all or data.text.finetune.enabled or earlier.manifest.text.get("event_column")
    )


# -------------------------------------------------------------------------------------------- tasks


def encode_touched(
    kept: Kept,
    fresh: pa.Table | None,
    coding: Coding,
    touched: tuple[pa.Array, Array] | None,
    all_users: pa.Array,
    items: pa.Array,
) -> list[Any]:
    """Encode the events of a bucket's touched users.

    Parameters
    ----------
    kept : Kept
        Rows of the earlier dataset.
    fresh : pa.Table | None
        New good rows; None: no new rows.
    coding : Coding
        Order and event types.
    touched : tuple[pa.Array, Array] | None
        Users, sorted, and their dense ids; None: all users.
    all_users : pa.Array
        All external user ids in dense order.
    items : pa.Array
        All external item ids in dense order.

    Returns
    -------
    list[Any]
        Tables of ``rules.event_schema`` with the new rows and without them, and the new duplicates
        for the quarantine.
    """
    before = kept.rows(None if touched is None else of_users(touched[0]))
    if before is not None:
        before = coding.rules.filtered(before)[0]
    rows = joined([before, fresh])
    if touched is None:
        users = used_texts(rows.column(schema.USER_ID))
        touched = users, dense([users], all_users)[0]
    counted = before.num_rows if before is not None else 0
    events, _, duplicates, _ = encode_bucket(rows, coding, *touched, items, counted)
    if fresh is None or not fresh.num_rows:
        return [events, events, duplicates]
    old = coding.rules.event_schema.empty_table()
    if before is not None and before.num_rows:
        old = encode_bucket(joined([before]), coding, *touched, items)[0]
    return [events, old, duplicates]


def fresh_times(events: pa.Table, old: pa.Table) -> pa.Table:
    """User, type and time of the events that are not in the earlier dataset."""
    names = list(TIMES)
    both = [
        table.select(names).append_column(
            "number", pa.array(np.full(table.num_rows, sign, dtype=np.int64))
        )
        for table, sign in ((events, 1), (old, -1))
    ]
    counted = pa.concat_tables(both).group_by(names).aggregate([("number", "sum")])
    rows = np.repeat(np.arange(counted.num_rows), np.asarray(counted.column("number_sum")))
    return counted.select(names).take(pa.array(rows))


def kept_times(kept: Kept, since: int, target_types: tuple[int, ...]) -> list[Any]:
    """User, type and time of the earlier dataset's events from ``since`` (microseconds) on; and the
    number of its earlier events of predicted types (empty ``target_types``: all types).
    """
    found, number = [EVENT_SCHEMA.empty_table().select(TIMES)], 0
    for table in kept.times():
        times_E = np.asarray(table.column("time"))
        is_late_E = times_E >= since
        counts_E = ~is_late_E & (times_E != NO_TIME)
        if target_types:
            counts_E &= np.isin(np.asarray(table.column("type")), target_types)
        number += int(counts_E.sum())
        found.append(table.filter(pa.array(is_late_E)))
    return [pa.concat_tables(found).combine_chunks(), number]


def moved_users(times: pa.Table, before: SplitPlan, now: SplitPlan) -> Array:
    """Users with an event that new cut-offs move to another split: int32, sorted."""
    times_E = np.asarray(times.column("time"))
    moved_E = np.zeros(len(times_E), dtype=bool)
    for old, new in ((before.valid_from, now.valid_from), (before.test_from, now.test_from)):
        moved_E |= (times_E >= old) != (times_E >= new)
    return np.unique(np.asarray(times.column("user"))[moved_E])


def write_touched(
    folder: Folder,
    place: tuple[int, str],
    rules: tuple[ShardRules, ShardRules],
    users: pa.Array,
    items: pa.Array,
    *tables: pa.Table,
) -> list[ShardReport]:
    """Write the newer histories of a bucket.

    Parameters
    ----------
    folder : Folder
        Folder of the dataset.
    place : tuple[int, str]
        Bucket, and suffix of the file's name.
    rules : tuple[ShardRules, ShardRules]
        Rules of the new dataset and of the earlier one.
    users : pa.Array
        All external user ids in dense order.
    items : pa.Array
        All external item ids in dense order.
    tables
        Tables of :func:`encode_touched`, alternately all and old events; each pair has other users.

    Returns
    -------
    list[ShardReport]
        Counts of these users' events now and before.
    """
    events, old = (_by_user(list(tables[start::2])) for start in (0, 1))
    index, ending = place
    no_text = TEXT_SCHEMA.empty_table()
    report: ShardReport = write_shard(
        events, no_text, folder, index, rules[0], users, items, ending
    )[0]
    return [report, count_shard(old, rules[1], users, items)]


def _by_user(tables: list[pa.Table]) -> pa.Table:
    """The rows of several tables with different users, sorted by user."""
    table = pa.concat_tables(tables)
    if len(tables) == 1:
        return table
    return table.take(
        pa.array(np.argsort(np.asarray(table.column("user")), kind="stable"))
    ).combine_chunks()


# -------------------------------------------------------------------------------------------- steps


class Appending(Preparation):
    """The steps of :class:`~recsys.preparation.build.Preparation` for touched users only."""

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
        self._ids = ray.put(user_ids), ray.put(item_ids)
        self._whole_buckets = self._buckets_to_renew(len(user_ids))
        encoder = task(encode_touched, 3)
        encoded: list[list[Any]] = []
        self._numbers = dense(self._touched, user_ids)
        for number, (bucket, users) in enumerate(zip(buckets, self._touched, strict=True)):
            chosen = None if number in self._whole_buckets else (users, self._numbers[number])
            is_idle = chosen is not None and not len(users)
            encoded.append(
                []
                if is_idle
                else encoder.remote(self._kept(number), bucket[0], coding, chosen, *self._ids)
            )
        buckets.clear()
        self._quarantine_duplicates(
            "encoding the events of touched users", [refs for refs in encoded if refs]
        )
        return encoded

    def _kept(self, bucket: int) -> Kept:
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
        finder, encoder = task(moved_users), task(encode_touched, 3)
        moved = {
            bucket: finder.remote(times, self._old_plan, plan)
            for bucket, (times,) in enumerate(before)
            if bucket not in self._whole_buckets
        }
        user_ids = ray.get(self._ids[0])
        for bucket, found in moved.items():
            numbers = np.setdiff1d(fetch(found), self._numbers[bucket])
            if len(numbers):
                users = user_ids.take(pa.array(numbers))
                order = pc.sort_indices(users)
                chosen = users.take(order), numbers[np.asarray(order)]
                self._newer_users[bucket] += len(users)
                encoded[bucket] += encoder.remote(
                    self._kept(bucket), None, self._code, chosen, *self._ids
                )

    def _write_shards(
        self, encoded: list[list[Any]], plan: SplitPlan, user_ids: pa.Array, item_ids: pa.Array
    ) -> tuple[list[str], pa.Table | None]:
        """Write newer history files and change the counts by the difference."""
        rules = ShardRules(plan, self._split_seed(), 1)
        rules = with_context([], self.folder, self.rules, rules, user_ids, item_ids, self.base)
        both = (rules, replace(rules, plan=self._old_plan))
        writer = task(write_touched)
        written = []
        manifest = self._before().manifest
        kept = set(manifest.shards)
        self.renewed = {name: list(files) for name, files in manifest.renewed.items()}
        for bucket, refs in enumerate(encoded):
            if not refs:
                continue
            name = shard_name(bucket)
            if bucket in self._whole_buckets:
                kept.discard(name)
                self.renewed.pop(name, None)
            ending = f".{self.reading.number:05d}" if name in kept else ""
            tables = [ref for number, ref in enumerate(refs) if number % 3 != 2]
            written.append(writer.remote(self.folder, (bucket, ending), both, *self._ids, *tables))
        self._link_histories(kept)
        self._count(written, item_ids)
        for file in self.new_shards:
            shard = f"{file.split('.')[0]}.parquet"
            if shard != file:
                self.renewed.setdefault(shard, []).append(file)
            kept.add(shard)
        return sorted(kept), None

    def _link_histories(self, shards: Collection[str]) -> None:
        """Link the history files that stay."""
        names = [*shards, *(file for name in shards for file in self.renewed.get(name, []))]
        self.folder.link(folder_of(self._before()), "histories", names)

    def _count(self, written: list[Any], item_ids: pa.Array) -> None:
        """Update the counts of the earlier dataset by the difference for touched users."""
        earlier = self._before()
        counts_N3 = np.zeros((len(item_ids), len(PARTS)), dtype=np.int64)
        table = earlier.table("items/counts.parquet")
        counts_N3[: table.num_rows] = np.stack(
            [table.column(part).to_numpy() for part in PARTS], axis=1
        )
        total = Counter(
            {key: number for key, number in earlier.manifest.counts.items() if key in _OF_EVENTS}
        )
        for ref in with_progress("writing histories", written):
            now, before = fetch(ref)
            for report, sign in ((now, 1), (before, -1)):
                for key in _OF_EVENTS & report.counts.keys():
                    total[key] += sign * report.counts[key]
                counts_N3[report.items] += sign * report.item_counts
            self.new_shards += [now.name] if now.name else []
        self.counts.update(total)
        self.counts["events"] = sum(self.counts[part] for part in PARTS)
        self._write_item_counts(counts_N3)


_OF_EVENTS: Final = frozenset(
    {*PARTS, "valid_targets", "test_targets", "repeats", "cold_users", "cold_cut", "cold_valid"}
)
