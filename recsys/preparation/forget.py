"""Remove users from a prepared dataset and rebuild everything that is derived from them.

Why not prepare again: the source may no longer exist, or the dataset may come from many appended
files. Rewriting the shards takes seconds, preparing can take hours. The new dataset is written
under another name. It replaces the old one after it has passed the audit, which recomputes counts,
texts and graphs from the histories.

Some data remain, and :attr:`Rewritten.left` lists them: the mean of a numeric context column; the
code of a context category that no other user has, without its name; items that no other user has; a
fine-tuned language model.

Legend: U users before, V users after, E events, N items.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
import pyarrow.parquet as pq

from recsys import schema
from recsys.config import DataConfig
from recsys.data.context_columns import UNKNOWN, ContextColumn
from recsys.data.dataset import PreparedDataset, types_mask
from recsys.data.forgotten import Forgotten
from recsys.data.histories import COLD_VALID, Array, Histories, Split
from recsys.data.history_table import histories_from_table, last_rows
from recsys.data.leak_audit import audit
from recsys.data.manifest import Manifest
from recsys.data.renumber import Renumbering
from recsys.preparation.dataset_writer import DatasetWriter, Folder
from recsys.preparation.event_roles import SPLITS
from recsys.preparation.event_store import write_rows
from recsys.preparation.forget_texts import rewrite_item_texts, rewrite_user_texts
from recsys.preparation.rewrite import Rewrite, with_used_texts
from recsys.storage.mirror import download
from recsys.storage.temporary import temporary
from recsys.storage.uris import is_remote

FORGOTTEN_VALUE: Final = "(value of a forgotten user {})"
_ENDS: Final = (schema.SRC_USER_ID, schema.DST_USER_ID)
_NOTE: Final = " users were forgotten; the numbers of rows read are the earlier ones"


@dataclass
class Rewritten:
    """The result of :func:`forget_users`."""

    dataset: PreparedDataset
    numbering: Renumbering
    rows: Counter[str] = field(default_factory=Counter)  # file → number of deleted rows
    left: list[str] = field(default_factory=list)  # what remains of the users


def needs_language_model(dataset: PreparedDataset, gone: Array) -> bool:
    """Whether the language model must encode texts again: texts of items from the users' events, or
    texts of users by fold.
    """
    text = dataset.manifest.text
    if any(
        np.isin(np.asarray(dataset.table(f"provenance/{name}").column("user")), gone).any()
        for name in text.get("provenance", [])
    ):
        return True
    return bool(text.get("users")) and int(text["users"].get("folds", 1)) > 1


def forget_users(
    dataset: PreparedDataset,
    gone: Sequence[int] | Array,
    forgotten: Forgotten,
    data: DataConfig,
    mentions: Callable[[str], bool] = lambda _: False,
) -> Rewritten:
    """Replace a dataset by one without these users.

    Parameters
    ----------
    dataset : PreparedDataset
        The dataset.
    gone : Sequence[int] | Array
        Dense ids of the users.
    forgotten : Forgotten
        The list of forgotten users with these users; the content hash depends on it.
    data : DataConfig
        The section ``data``: settings of the language model, for texts that must be encoded again
        (this needs Ray).
    mentions : Callable[[str], bool]
        Whether the raw text of a bad row is about one of the users.

    Raises
    ------
    ArtifactError
        The dataset cannot be rewritten: it does not separate item text from users' text.
    DataError
        The audit refuses the result; the dataset is unchanged.
    """
    gone = np.unique(np.asarray(gone, dtype=np.int64))
    numbering = Renumbering.without(dataset.num_users, gone)
    with temporary() as name:
        source = dataset
        if is_remote(dataset.root):  # an object store is rewritten in place
            download(dataset.root, Path(name) / "dataset")
            source = PreparedDataset(str(Path(name) / "dataset"))
        writer = DatasetWriter(dataset.root)
        with writer.writing() as folder:
            rewriting = _Rewriting(source, gone, numbering, folder, data, mentions)
            manifest = rewriting.run(forgotten)
            audit(PreparedDataset.unfinished(folder.filesystem, folder.path, manifest))
            writer.commit(manifest)
    return Rewritten(PreparedDataset(dataset.root), numbering, rewriting.rows, rewriting.left)


def _read(name: str, content: bytes) -> pa.Table:
    if name.endswith(".parquet"):
        return pq.read_table(pa.BufferReader(content))
    with pa.ipc.open_file(pa.BufferReader(content)) as reader:
        return reader.read_all()


class _Rewriting(Rewrite):
    """One rewrite of a dataset; each method writes one kind of file."""

    def __init__(
        self,
        source: PreparedDataset,
        gone: Array,
        numbering: Renumbering,
        folder: Folder,
        data: DataConfig,
        mentions: Callable[[str], bool],
    ) -> None:
        super().__init__(source, gone, numbering, folder)
        self.data, self.mentions = data, mentions
        # deleted events by item and split
        self.taken = np.zeros((source.num_items, len(SPLITS)), dtype=np.int64)
        # remaining codes by context column
        self.codes: dict[int, set[int]] = {index: set() for index in range(len(source.context))}

    def run(self, forgotten: Forgotten) -> Manifest:
        """Write all files except the manifest, which is returned."""
        self._vocabulary()
        self._histories()
        self._item_counts()
        self._context()
        self._social()
        rewrite_item_texts(self, self.data.text)
        rewrite_user_texts(self, self.data.text)
        for kind in ("quarantine", "dropped"):
            self._bad_rows(kind)
        self._others()
        return self._described(forgotten)

    def _others(self) -> None:
        """Write all other files: tables with a user column without the forgotten users' rows, the
        rest unchanged.
        """
        base = self.source._base.rstrip("/")
        for name in self.names():
            if name in self.done:
                continue
            with self.source.filesystem.open_input_stream(f"{base}/{name}") as stream:
                content = stream.read()
            if name.endswith((".parquet", ".arrow")):
                table = _read(name, content)
                if (rest := self._without_users(table)) is not table:
                    self.rows[name] = table.num_rows - rest.num_rows
                    if name.endswith(".parquet"):
                        self.write(name, rest)
                    else:
                        write_rows(self.folder, name, rest, narrows=False)
                    continue
            self.folder.write_bytes(name, content)

    def _without_users(self, table: pa.Table) -> pa.Table:
        """A table without the rows of forgotten users, found by external or dense id; the same
        table object where it has no user column.
        """
        ids = pa.array(
            [self.source.user_ids[int(user)].as_py() for user in self.gone],
            pa.string(),
        )
        by_id = [name for name in (schema.USER_ID, *_ENDS) if name in table.column_names]
        by_number = [name for name in ("user", "src", "dst") if name in table.column_names]
        by_number = [
            name for name in by_number if pa.types.is_integer(table.schema.field(name).type)
        ]
        if not by_id and not by_number:
            return table
        for name in by_id:
            table = table.filter(
                pc.invert(pc.is_in(table.column(name).cast(pa.string()), value_set=ids))
            )
        for name in by_number:
            table = self.renumbered(self.without_gone(table, name), name)
        return with_used_texts(table)

    # -------------------------------------------------------------------------------------- content

    def _vocabulary(self) -> None:
        order = pa.array(self.numbering.order_V)
        for name in ("vocab/users.parquet", "users/features.parquet"):
            self.write(name, self.source.table(name).take(order))
        self.rows["vocab/users.parquet"] = len(self.gone)
        self.manifest.counts["users"] = len(order)

    def _histories(self) -> None:
        names = []
        targets_T = types_mask(self.manifest.event_types, self.manifest.targets)
        for name in self.manifest.shards:
            file, table = f"histories/{name}", self._newest_rows(name)
            users_U = np.asarray(table.column("user"))
            going_U = np.isin(users_U, self.gone)
            self._take_out(histories_from_table(table.filter(pa.array(going_U))), targets_T)
            if self.numbering.is_changed_U[users_U].any():
                table = table.filter(pa.array(~going_U))
                table = self.renumbered(table, "user").sort_by("user")
                self.rows[file] += int(going_U.sum())
            if self.source.context:
                rest = histories_from_table(table)
                train_EC = rest.context_EC[rest.splits_E == Split.TRAIN]
                for column in range(train_EC.shape[1]):
                    self.codes[column].update(np.unique(train_EC[:, column]).tolist())
            self.done.add(file)
            if table.num_rows:
                self.folder.write_table(file, table)
                names.append(name)
        self.manifest.shards = names

    def _newest_rows(self, name: str) -> pa.Table:
        """The newest row of every user of a shard; files of an append have newer rows of some
        users.
        """
        newer = self.manifest.renewed.pop(name, [])
        table = self.source.table(f"histories/{name}")
        if not newer:
            return table
        self.done |= {f"histories/{file}" for file in newer}
        table = pa.concat_tables(
            [table, *(self.source.table(f"histories/{file}") for file in newer)]
        )
        return table.take(pa.array(last_rows(np.asarray(table.column("user")))))

    def _take_out(self, gone: Histories, targets_T: Array) -> None:
        """Subtract the deleted events from the counts."""
        splits_E, items_E = gone.splits_E, gone.items_E
        for code, split in enumerate(SPLITS):
            np.add.at(self.taken[:, code], items_E[splits_E == code], 1)
            self.manifest.counts[split] -= int((splits_E == code).sum())
        counts = self.manifest.counts
        counts["events"] = sum(counts[split] for split in SPLITS)
        if "cold_valid" in counts:
            counts["cold_valid"] -= int((splits_E == COLD_VALID).sum())
        if len(targets_T):
            for key, codes in (
                ("valid_targets", (Split.VALID, COLD_VALID)),
                ("test_targets", (Split.TEST,)),
            ):
                if key in counts:
                    counts[key] -= int((targets_T[gone.types_E] & np.isin(splits_E, codes)).sum())
        pairs = (
            np.repeat(gone.users_U, gone.lengths_U).astype(np.int64) * self.source.num_items
            + items_E
        )
        if "repeats" in counts:
            counts["repeats"] -= int((np.diff(np.sort(pairs)) == 0).sum())

    def _item_counts(self) -> None:
        table = self.source.table("items/counts.parquet")
        columns = {
            split: np.asarray(table.column(split)) - self.taken[:, code]
            for code, split in enumerate(SPLITS)
        }
        self.write(
            "items/counts.parquet",
            pa.table({split: pa.array(column) for split, column in columns.items()}),
        )
        total_N = np.sum(list(columns.values()), axis=0)
        alone = int(((total_N == 0) & (self.taken.sum(axis=1) > 0)).sum())
        if alone:
            self.left.append(
                f"{alone:,} items that no other user has stay in the catalogue, with their text"
            )

    def _context(self) -> None:
        if not self.source.context:
            return
        columns = []
        for index, column in enumerate(self.source.context):
            columns.append(self._without_value(index, column))
            if column.values is None:
                self.left.append(f"the mean and spread of the context column {column.name}")
        text = json.dumps([column.to_json() for column in columns], ensure_ascii=False)
        self.done.add("vocab/context.json")
        self.folder.write_text("vocab/context.json", text)

    def _without_value(self, index: int, column: ContextColumn) -> ContextColumn:
        """Replace the names of values that no training event has any more; their codes must
        stay.
        """
        if column.values is None:
            return column
        values = list(column.values)
        own = sorted(set(range(UNKNOWN + 1, column.num_codes)) - self.codes[index])
        for code in own:
            values[code - UNKNOWN - 1] = FORGOTTEN_VALUE.format(code)
        if own:
            unused = self.manifest.forgotten.setdefault("context", {})
            unused[column.name] = own
            self.left.append(
                f"{len(own):,} codes of the context column {column.name} that no user has any more"
            )
        return replace(column, values=tuple(values))

    def _social(self) -> None:
        if not self.manifest.counts.get("social_edges"):
            return
        name = "graphs/social.parquet"
        table = self.source.table(name)
        rest = table
        for end in ("src", "dst"):
            rest = self.renumbered(self.without_gone(rest, end), end)
        self.rows[name] = table.num_rows - rest.num_rows
        self.manifest.counts["social_edges"] = rest.num_rows
        self.write(name, rest.sort_by([("src", "ascending"), ("dst", "ascending")]))

    def _bad_rows(self, kind: str) -> None:
        for name in self.names():
            if not name.startswith(f"{kind}/"):
                continue
            table = self.source.table(name)
            texts = table.column("raw").to_pylist()
            is_about = np.array([bool(text) and self.mentions(text) for text in texts], dtype=bool)
            self.rows[name] = int(is_about.sum())
            rest = table.filter(pa.array(~is_about))
            of_table = getattr(
                self.manifest, {"quarantine": "quarantined", "dropped": "dropped"}[kind]
            ).get(name.split("/")[1].removesuffix(".parquet"), {})
            for entry in pc.value_counts(
                table.filter(pa.array(is_about)).column("reason").combine_chunks()
            ).to_pylist():
                if entry["values"] in of_table:
                    of_table[entry["values"]] -= entry["counts"]
            self.write(name, rest)

    def _described(self, forgotten: Forgotten) -> Manifest:
        manifest = self.manifest
        whole = manifest.forgotten.get("of") or manifest.content_hash
        manifest.forgotten |= {"of": whole, "users": forgotten.to_json()}
        manifest.forgotten["left"] = sorted({*manifest.forgotten.get("left", []), *self.left})
        manifest.notes = [note for note in manifest.notes if not note.endswith(_NOTE)]
        manifest.notes.append(f"{len(forgotten):,}{_NOTE}")
        manifest.content_hash = forgotten.bound(whole)
        return manifest
