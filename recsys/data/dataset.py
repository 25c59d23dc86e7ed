"""The reader of a prepared dataset: a folder (also on ``s3://``), without Ray.

Layout::

    manifest.json                 schema version, content hash, counts, event types, order, split,
                                  quarantine, timing
    vocab/users.parquet           user_id, row number = dense id
    vocab/items.parquet           item_id, row number = dense id
    vocab/context.json            where there are context columns: known values, or mean and spread
                                  (of training events)
    users/features.parquet        dense order: user_id, and the columns of the users table
    items/features.parquet        dense order: item_id, text, and the columns of the items table
    items/own_text.parquet        dense order: the column "text" of the items table, where the text
                                  of items contains more than it
    items/text_vectors.parquet    dense order: vector (fixed-size list of float16), has_text (bool)
    users/texts.parquet           user, through (0 train, 1 valid), place, text; with
    users/text_vectors.parquet    vector, where users' histories are text: see
                                  recsys.preparation.user_text
    items/media.parquet           dense order, where there are media: NAME (fixed-size list of
                                  float16), has_NAME (bool)
    items/counts.parquet          dense order: train, valid, test (int64) interactions
    histories/part-00000.00001.parquet
                                  newer rows of some of its users, where events were appended
    histories/part-00000.parquet  one row per user: user, items, types, times, values, splits;
                                  context (all columns of an event, then the next one's) where
                                  there are context columns
    text/adapter/                 where fine-tuning helped: the language model's adapter, as peft
                                  writes it
    graphs/social.parquet         src, dst (dense int32), weight, time (microseconds, or none);
                                  sorted by src
    graphs/knowledge.parquet      head, relation, tail (dense int32), where there are triples; with
    vocab/entities.parquet        entity, row number = dense id
    vocab/relations.parquet       relation, row number = dense id
    items/entities.parquet        dense order: entity (dense id of the item's entity, or null)
    provenance/text-00000.parquet user, item, time, term: the rows of events behind item text,
                                  for the audit
    events/                       the validated events, for an append: see
                                  recsys.preparation.event_store
    quarantine/TABLE.parquet      file, row, reason, and the row as text: rows with an error
    dropped/TABLE.parquet         the same for harmless rows: repeats, friends without events

The user–item graph is not stored again: the histories are its rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from recsys.data.cold_start import ColdUsers
from recsys.data.context_columns import ContextColumn
from recsys.data.forgotten import Forgotten
from recsys.data.histories import Array, Histories, Split
from recsys.data.history_table import histories_from_table, newest_rows
from recsys.data.manifest import SCHEMA_VERSION, Manifest
from recsys.data.text_rows import ENTRIES, VECTORS, UserTexts
from recsys.data.vocabulary import Vocabulary
from recsys.errors import ArtifactError, ConfigError, choices
from recsys.storage.filesystems import filesystem_of, storage_errors


class PreparedDataset:
    """Reader of a prepared dataset.

    Raises
    ------
    ArtifactError
        There is no manifest, or it has another schema version.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self.filesystem, self._base = filesystem_of(root)
        self.manifest = self._read_manifest()

    @property
    def base(self) -> str:
        """The path inside the filesystem."""
        return self._base

    @classmethod
    def unfinished(
        cls, filesystem: pyarrow.fs.FileSystem, path: str, manifest: Manifest
    ) -> PreparedDataset:
        """A dataset whose manifest is not written yet; the audit decides whether it will be.

        Parameters
        ----------
        filesystem : pyarrow.fs.FileSystem
            Filesystem of the folder.
        path : str
            Path of the folder on it.
        manifest : Manifest
            The manifest that will be written.

        Returns
        -------
        PreparedDataset
            A reader of the files that exist already.
        """
        dataset = cls.__new__(cls)
        dataset.root = path
        dataset.filesystem = filesystem
        dataset._base = path
        dataset.manifest = manifest
        return dataset

    @property
    def num_users(self) -> int:
        """Number of users."""
        return self.manifest.counts["users"]

    @property
    def num_items(self) -> int:
        """Number of items."""
        return self.manifest.counts["items"]

    @cached_property
    def user_ids(self) -> pa.Array:
        """External user ids in dense order."""
        return self._table("vocab/users.parquet").column("user_id").combine_chunks()

    @cached_property
    def item_ids(self) -> pa.Array:
        """External item ids in dense order."""
        return self._table("vocab/items.parquet").column("item_id").combine_chunks()

    def vocabulary(self) -> Vocabulary:
        """All ids, for a dataset that continues this one."""
        known = (self.user_ids, self.item_ids, tuple(self.manifest.event_types))
        forgotten = Forgotten.of_json(self.manifest.forgotten.get("users", {}))
        if not self.manifest.counts.get("triples"):
            return Vocabulary(*known, context=self.context, forgotten=forgotten)
        named = (("entities", "entity"), ("relations", "relation"))
        entities, relations = (
            self._table(f"vocab/{file}.parquet").column(name).combine_chunks()
            for file, name in named
        )
        return Vocabulary(*known, entities, relations, self.context, forgotten)

    @cached_property
    def features(self) -> pa.Table:
        """Item features in dense order."""
        return self._table("items/features.parquet")

    @cached_property
    def user_features(self) -> pa.Table:
        """User attributes in dense order; only the ids if the source has no table of users."""
        return self._table("users/features.parquet")

    @cached_property
    def cold_U(self) -> Array | None:
        """Which users the split made cold: [users] bool; None where it made none cold."""
        cold_start = ColdUsers.of(self.manifest.split)
        return cold_start.among(self.user_ids) if cold_start else None

    @cached_property
    def context(self) -> tuple[ContextColumn, ...]:
        """The context columns and their encodings; empty where the dataset has none."""
        if not self.manifest.context:
            return ()
        return tuple(ContextColumn.from_json(column) for column in self._json("vocab/context.json"))

    @cached_property
    def has_text_N(self) -> Array:
        """Which items have a text: [N] bool."""
        if self.manifest.text.get("dimension", 0) == 0:
            return np.zeros(self.num_items, dtype=bool)
        found: Array = (
            self._table("items/text_vectors.parquet")
            .column("has_text")
            .to_numpy(zero_copy_only=False)
        )
        return found

    @property
    def text_groups(self) -> list[str]:
        """The groups of fields whose vectors (of one width) are concatenated in
        ``text_vectors_NT``.
        """
        return list(self.manifest.text.get("groups") or ["text"])

    @property
    def user_text_width(self) -> int:
        """Width of the vectors of users' texts, 0 where there are none."""
        return int((self.manifest.text.get("users") or {}).get("dimension", 0))

    def user_texts(self, through: Split) -> UserTexts | None:
        """The texts of users' events through a split; None where the dataset has none."""
        if not self.user_text_width:
            return None
        folds = int(self.manifest.text["users"]["folds"])
        return UserTexts.of(self._table(ENTRIES), self._table(VECTORS), through, folds)

    def text_vectors_NT(self) -> Array:
        """Text vectors: [N, T] float16, zero rows for items without a text; T = 0 without text."""
        dimension = self.manifest.text.get("dimension", 0)
        if dimension == 0:
            return np.zeros((self.num_items, 0), dtype=np.float16)
        column = self._table("items/text_vectors.parquet").column("vector").combine_chunks()
        return np.asarray(column.flatten()).reshape(-1, dimension)

    @property
    def media_names(self) -> list[str]:
        """The media that items have vectors of, e.g. ``["image"]``."""
        return list(self.manifest.media)

    def media_vectors(self, name: str) -> Array:
        """The vectors of a medium: [N, M] float16, zero rows where an item has none.

        Raises
        ------
        ConfigError
            The dataset has no such medium.
        """
        if name not in self.manifest.media:
            raise ConfigError(
                f"{self.root} has no medium {name!r}; media:"
                f" {choices(self.manifest.media) or 'none'}; name its column in data.media and run"
                " `recsys prepare`"
            )
        column = self._table("items/media.parquet").column(name).combine_chunks()
        return np.asarray(column.flatten()).reshape(-1, int(self.manifest.media[name]["dimension"]))

    def item_counts_N(self, through: Split) -> Array:
        """Number of interactions of each item in the splits through ``through``: [N] int64."""
        table = self._table("items/counts.parquet")
        names = [split.name.lower() for split in Split if split <= through]
        return np.asarray(np.sum([table.column(name).to_numpy() for name in names], axis=0))

    def shards(self) -> Iterator[Histories]:
        """The histories, shard by shard."""
        for name in self.manifest.shards:
            yield self.shard(name)

    def shard(self, name: str) -> Histories:
        """The histories of one shard: the newest row of every user, in the order of the dense
        ids.
        """
        newer = self.manifest.renewed.get(name, [])
        return newest_rows([self.history_file(file) for file in (name, *newer)])

    def history_file(self, name: str) -> Histories:
        """The rows of one file. After an append, newer files of the shard have newer rows of some
        of its users.
        """
        return replace(
            histories_from_table(self._table(f"histories/{name}")), targets_T=self.targets_T
        )

    @cached_property
    def targets_T(self) -> Array:
        """Which event types are predicted: [types] bool; empty: all."""
        return types_mask(self.manifest.event_types, self.manifest.targets)

    def active_users_V(self, through: Split) -> Array:
        """Which users have events in the splits up to and including ``through``: [users] bool."""
        is_active_V = np.zeros(self.num_users, dtype=bool)
        for shard in self.shards():
            is_active_V[shard.users_U[shard.through(through).lengths_U > 0]] = True
        return is_active_V

    @cached_property
    def held_out_V(self) -> Array:
        """Which users have validation or test events: [users] bool."""
        found_V = np.zeros(self.num_users, dtype=bool)
        for shard in self.shards():
            users_E = np.repeat(shard.users_U, shard.lengths_U)
            found_V[users_E[shard.splits_E != Split.TRAIN]] = True
        return found_V

    def histories(self, of_V: Array | None = None, through: Split | None = None) -> Histories:
        """All histories at once, or those of the users marked in ``of_V`` [users] bool, with all
        events or those through a split. Mark a bounded number of users where data may be large.
        """
        found = []
        for shard in self.shards():
            if of_V is not None and not of_V.all():
                shard = shard.take(np.flatnonzero(of_V[shard.users_U]))
            found.append(shard if through is None else shard.through(through))
        return Histories.concat(found)

    def social_edges(self) -> tuple[Array, Array, Array]:
        """Friend edges sorted by src: src [F] int32, dst [F] int32, weight [F] float32; empty
        without a social table.
        """
        if not self.manifest.counts.get("social_edges"):
            empty = np.zeros(0, dtype=np.int32)
            return empty, empty, np.zeros(0, dtype=np.float32)
        table = self._table("graphs/social.parquet")
        src, dst, weight = (table.column(name).to_numpy() for name in ("src", "dst", "weight"))
        return src, dst, weight

    def triples(self) -> tuple[Array, Array, Array]:
        """Triples of the knowledge graph with dense ids: head, relation, tail, each [E] int32;
        empty without a knowledge table.
        """
        if not self.manifest.counts.get("triples"):
            empty = np.zeros(0, dtype=np.int32)
            return empty, empty, empty
        table = self._table("graphs/knowledge.parquet")
        head, relation, tail = (
            table.column(name).to_numpy() for name in ("head", "relation", "tail")
        )
        return head, relation, tail

    def item_entities(self) -> Array:
        """The dense entity of each item, -1 where no triple has the item: [N] int64."""
        if not self.manifest.counts.get("triples"):
            return np.full(self.num_items, -1, dtype=np.int64)
        found = self._table("items/entities.parquet").column("entity").combine_chunks()
        return np.asarray(found.fill_null(-1)).astype(np.int64)

    def _json(self, name: str) -> Any:
        try:
            with (
                storage_errors(self.root),
                self.filesystem.open_input_stream(f"{self._base}/{name}") as stream,
            ):
                return json.loads(stream.read())
        except (OSError, json.JSONDecodeError) as error:
            raise ArtifactError(
                f"{self.root}/{name} is missing or damaged ({error}); delete the dataset and run"
                " `recsys prepare` again"
            ) from None

    def table(self, name: str) -> pa.Table:
        """One Parquet file of the dataset, as it is stored."""
        return self._table(name)

    def rows_aside(self, kind: str, table: str) -> pa.Table | None:
        """The rows of ``quarantine`` or ``dropped``; None where there are none."""
        try:
            return self._table(f"{kind}/{table}.parquet")
        except ArtifactError:
            return None

    def row_groups(self, name: str) -> Iterator[pa.Table]:
        """One Parquet file of the dataset, as it is stored, one row group at a time."""
        with (
            self._reading(name),
            pq.ParquetFile(f"{self._base}/{name}", filesystem=self.filesystem) as file,
        ):
            for number in range(file.num_row_groups):
                yield file.read_row_group(number)

    def _table(self, name: str) -> pa.Table:
        with self._reading(name):
            return pq.read_table(f"{self._base}/{name}", filesystem=self.filesystem)

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        try:
            with storage_errors(self.root):
                yield
        except (FileNotFoundError, pa.ArrowInvalid) as error:
            raise ArtifactError(
                f"{self.root}/{name} is missing or damaged ({error}); delete the dataset and run"
                " `recsys prepare` again"
            ) from None

    def _read_manifest(self) -> Manifest:
        try:
            with (
                storage_errors(self.root),
                self.filesystem.open_input_stream(f"{self._base}/manifest.json") as stream,
            ):
                content = json.loads(stream.read())
        except (FileNotFoundError, OSError):
            raise ArtifactError(
                f"{self.root} is not a prepared dataset (no manifest.json); run `recsys prepare`"
            ) from None
        except json.JSONDecodeError as error:
            raise ArtifactError(
                f"{self.root}/manifest.json is damaged ({error}); run `recsys prepare` again"
            ) from None
        if content.get("schema_version") != SCHEMA_VERSION:
            raise ArtifactError(
                f"{self.root} has schema version {content.get('schema_version')}, this release"
                f" reads {SCHEMA_VERSION}; run `recsys prepare` again"
            )
        return Manifest(**content)


def types_mask(event_types: Sequence[str], targets: Sequence[str]) -> Array:
    """Which of the event types are targets: [types] bool; empty where no targets are named, which
    means all.

    >>> types_mask(["buy", "view"], ["buy"]).tolist(), types_mask(["buy", "view"], []).tolist()
    ([True, False], [])
    """
    return np.array([name in targets for name in event_types] if targets else [], dtype=bool)
