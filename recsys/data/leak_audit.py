"""The leak audit: recompute every artefact of a prepared dataset from the histories and compare.

Why: a metric is valid only if no held-out event has reached training, and a leak looks like a good
model. So the code here does not reuse the code of the writer. Artefacts that cannot be recomputed
from the histories (item text from events, friendships with times) carry their provenance: the rows
that they were made from. The audit reads one shard at a time, in separate tasks where there are
any, so no process holds all events. Legend: U users, N items, X cells of a sparse table of counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa

from recsys.data.audit_shard import Checks, ShardAuditor, ShardFindings, user_text_entries
from recsys.data.context_columns import UNKNOWN
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array, Split
from recsys.data.split import parse_time

_SPLITS: Final = (Split.TRAIN, Split.VALID, Split.TEST)
_NO_TIME: Final = np.iinfo(np.int64).min


@dataclass
class Audit:
    """The checks that passed, and the artefacts that cannot be checked as they lack provenance."""

    checks: list[str] = field(default_factory=list)
    unaudited: list[str] = field(default_factory=list)
    events: int = 0

    def to_json(self) -> dict[str, Any]:
        """The content of ``metrics.json``'s ``audit``."""
        return {
            "passed": len(self.checks),
            "checks": self.checks,
            "unaudited": self.unaudited,
            "events": self.events,
        }


def audit(dataset: PreparedDataset, findings: Sequence[ShardFindings] | None = None) -> Audit:
    """Check a prepared dataset against its split.

    Parameters
    ----------
    dataset : PreparedDataset
        The dataset, with its shards.
    findings : Sequence[ShardFindings] | None
        Results of :func:`audit_shard`, one per shard, in order; None: audit the shards in this
        process.

    Raises
    ------
    DataError
        A check failed; the message names the check, the artefact and the number of wrong rows.
    """
    auditor = _Auditor(dataset)
    if findings is None:
        of_shards = ShardAuditor(dataset)
        findings = [of_shards.run(name) for name in dataset.manifest.shards]
    return auditor.run(findings)


def audit_newer(dataset: PreparedDataset, findings: Iterable[ShardFindings]) -> Audit:
    """Check what an append has written: its history files, vocabularies and graphs.

    Why not everything: the other files come from the earlier dataset and were checked when they
    were written. :func:`audit` checks everything before each evaluation.

    Parameters
    ----------
    dataset : PreparedDataset
        The dataset with the appended events.
    findings : Iterable[ShardFindings]
        Results of :func:`audit_shard`, one per new file; read after the vocabularies are checked.

    Raises
    ------
    DataError
        See :func:`audit`.
    """
    return _Auditor(dataset).run_newer(findings)


class _Auditor(Checks):
    """Checks over all shards, and of the artefacts that are derived from them."""

    def __init__(self, dataset: PreparedDataset) -> None:
        super().__init__(dataset)
        self.home_U = np.full(dataset.num_users, -1, dtype=np.int32)  # index of each user's shard
        self.counts_3N = np.zeros((len(_SPLITS), dataset.num_items), dtype=np.int64)
        self.num_alone = 0
        self.found = Audit()
        self.codes: list[set[int]] = [set() for _ in dataset.context]

    def run(self, findings: Sequence[ShardFindings]) -> Audit:
        """Check a whole dataset."""
        checks = ["vocabulary", "ids", "order_of_splits", "queries"]
        self._vocabulary()
        for number, (name, shard) in enumerate(
            zip(self.dataset.manifest.shards, findings, strict=True)
        ):
            self._users(f"histories/{name}", number, shard.users_U)
            self.counts_3N.reshape(-1)[shard.cells_X] += shard.counts_X
            self.num_alone += shard.num_alone
            self.found.events += shard.num_events
            for codes, more in zip(self.codes, shard.codes, strict=True):
                codes.update(more)
        self._counts()
        checks += ["popularity", "cold_users"] if self.cold_start else ["popularity"]
        checks += self._context() + self._user_texts()
        self.found.checks = checks + self._text() + self._social() + self._triples()
        return self.found

    def run_newer(self, findings: Iterable[ShardFindings]) -> Audit:
        """Check the files that an append has written."""
        self._vocabulary()
        for number, shard in enumerate(findings):
            self._users("the newer history files", number, shard.users_U)
            self.found.events += shard.num_events
        table = self.dataset.table("items/counts.parquet")
        for name in (split.name.lower() for split in _SPLITS):
            number = self.dataset.manifest.counts.get(name, 0)
            counts_N = table.column(name).to_numpy()
            if counts_N.sum() != number or (counts_N < 0).any():
                text = (
                    f"items/counts.parquet counts {counts_N.sum():,} {name} events, the manifest"
                    f" {number:,}"
                )
                self.refuse("popularity", text)
        self.found.checks = ["vocabulary", "ids", "order_of_splits", "queries", "popularity"]
        self.found.checks += self._social() + self._triples()
        return self.found

    def _users(self, name: str, number: int, users_U: Array) -> None:
        again = len(users_U) - len(np.unique(users_U)) + int((self.home_U[users_U] >= 0).sum())
        if again:
            self.refuse(
                "ids",
                f"{again:,} users of {name} have a second row, so one row may contain test events"
                " of the other",
            )
        self.home_U[users_U] = number

    # ------------------------------------------------------------------------------------ histories

    def _vocabulary(self) -> None:
        """Each id occurs once, and the attribute tables are in the order of the ids."""
        for what, ids, table in (
            ("user", self.dataset.user_ids, self.dataset.user_features),
            ("item", self.dataset.item_ids, self.dataset.features),
        ):
            # a tenth of the time of Arrow's count_distinct
            repeated = len(ids) - pl.Series(pl.from_arrow(ids)).n_unique()
            if repeated:
                self.refuse(
                    "vocabulary", f"{repeated:,} {what} ids are repeated in vocab/{what}s.parquet"
                )
            aligned = table.column(f"{what}_id").combine_chunks()
            if not aligned.equals(ids):
                self.refuse(
                    "vocabulary",
                    f"the rows of {what}s/features.parquet do not match the {what} ids",
                )

    def _counts(self) -> None:
        """Item counts, which baselines and negatives use, agree with the histories."""
        counts = self.dataset.manifest.counts
        before_N = np.zeros(self.dataset.num_items, dtype=np.int64)
        for split in _SPLITS:
            stored_N = self.dataset.item_counts_N(split) - before_N
            before_N += stored_N
            wrong = np.flatnonzero(stored_N != self.counts_3N[split])
            name = split.name.lower()
            if len(wrong):
                first = self.dataset.item_ids[int(wrong[0])].as_py()
                text = (
                    f"{len(wrong):,} items in items/counts.parquet have other {name} counts than"
                    " the histories"
                )
                i = int(wrong[0])
                example = f"{first}: {stored_N[i]} instead of {self.counts_3N[split, i]}"
                self.refuse("popularity", f"{text}, such as {example}")
            if counts.get(name, 0) != (found := int(self.counts_3N[split].sum())):
                text = (
                    f"the manifest counts {counts.get(name, 0):,} {name} events, the histories"
                    f" {found:,}"
                )
                self.refuse("popularity", text)
        if counts.get("cold_valid", 0) != self.num_alone:
            text = f"the manifest counts {counts.get('cold_valid', 0):,} cold_valid events"
            self.refuse("popularity", f"{text}, the histories {self.num_alone:,}")

    def _context(self) -> list[str]:
        """Each known value of a category occurs in training. The mean of a number cannot be
        checked: one number does not show which events it was computed from.
        """
        unused = self.dataset.manifest.forgotten.get("context", {})
        for column, codes in zip(self.dataset.context, self.codes, strict=True):
            known = set(range(UNKNOWN + 1, column.num_codes)) - set(unused.get(column.name, ()))
            # values of the earlier dataset may occur no more
            if self.dataset.manifest.inherited_context:
                known = set()
            if column.values is not None and known - codes:
                text = (
                    f"{len(known - codes):,} values of {column.name} in vocab/context.json are in"
                    " no training event"
                )
                self.refuse("context_values", text)
        return ["context_values"] if self.codes else []

    def _user_texts(self) -> list[str]:
        if not self.dataset.manifest.text.get("users"):
            return []
        if user_text_entries(self.dataset) is not None:
            return ["user_texts"]
        self.found.unaudited.append("user_texts")
        return []

    # --------------------------------------------------------------------------------- text, graphs

    def _text(self) -> list[str]:
        """Check the rows that item text was made from: none is about a held-out (user, item) pair,
        later than the cut-off, or by a cold user about an item outside the kept events. Each item's
        terms come from its rows.
        """
        described = self.dataset.manifest.text
        if not described.get("event_column"):
            if self.dataset.manifest.counts.get("text_rows"):
                self.found.unaudited.append("item_text")
            return []
        tables = []
        for name in described["provenance"]:
            table = self.dataset.table(f"provenance/{name}")
            self._text_rows(name, table)
            tables.append(table.group_by(["item", "term"]).aggregate([([], "count_all")]))
        if tables:
            self._terms(tables, described["event_column"], described["max_event_terms"])
        return ["item_text_rows", "item_text_terms"]

    def _text_rows(self, name: str, table: pa.Table) -> None:
        users, items, times = (
            np.asarray(table.column(key)).astype(np.int64) for key in ("user", "item", "time")
        )
        home = self.home_U[users]
        held, training = np.zeros(len(users), dtype=bool), np.zeros(len(users), dtype=bool)
        pairs = users * self.dataset.num_items + items
        for number in np.unique(home[home >= 0]):
            shard = self.dataset.shard(self.dataset.manifest.shards[number])
            pairs_E = (
                np.repeat(shard.users_U, shard.lengths_U).astype(np.int64) * self.dataset.num_items
                + shard.items_E
            )
            held |= np.isin(pairs, pairs_E[shard.splits_E != Split.TRAIN])
            training |= np.isin(pairs, pairs_E[shard.splits_E == Split.TRAIN])
        if held.any():
            self.refuse(
                "item_text_rows",
                f"{int(held.sum()):,} rows of {name} are about held-out (user, item) pairs",
            )
        if self.split.get("kind") == "temporal":
            valid_from = parse_time(str(self.split["valid_from"]), "split.valid_from")
            late = int(((times >= valid_from) | (times == _NO_TIME)).sum())
            if late:
                self.refuse(
                    "item_text_rows",
                    f"{late:,} rows of {name} are not earlier than the validation cut-off",
                )
        if self.cold_start:
            cold = (home >= 0) & self.cold_start.among(self.dataset.user_ids)[users] & ~training
            if cold.any():
                text = (
                    f"{int(cold.sum()):,} rows of {name} are by cold users and about items outside"
                    " their kept events"
                )
                self.refuse("item_text_rows", text)

    def _terms(self, tables: list[pa.Table], label: str, limit: int) -> None:
        """Recompute the terms in the text of the items and compare."""
        names = ["item", "term", "count_all"]
        table = pa.concat_tables([table.select(names) for table in tables])
        table = table.group_by(names[:2]).aggregate([("count_all", "sum")])
        table = table.sort_by(
            [("item", "ascending"), ("count_all_sum", "descending"), ("term", "ascending")]
        )
        expected: dict[int, list[str]] = {}
        for item, term in zip(
            table.column("item").to_pylist(), table.column("term").to_pylist(), strict=True
        ):
            found = expected.setdefault(item, [])
            if len(found) < limit:
                found.append(term)
        texts = self.dataset.features.column("text").to_pylist()
        wrong = [
            item
            for item, text in enumerate(texts)
            if not self._is_made_of(item, text, expected.get(item), label)
        ]
        if wrong:
            first = self.dataset.item_ids[wrong[0]].as_py()
            text = (
                f"the text of {len(wrong):,} items, such as {first}, has other terms than its"
                " source rows"
            )
            self.refuse("item_text_terms", text)

    def _is_made_of(self, item: int, text: str | None, terms: list[str] | None, label: str) -> bool:
        """Whether a text contains exactly these terms. Without terms: whether ``label`` occurs only
        in the text of the item's own fields.
        """
        if terms:
            return f". {label}: {', '.join(terms)}. " in f". {text or ''}. "
        if text is None or not (text.startswith(f"{label}: ") or f". {label}: " in text):
            return True
        fields, features = self.dataset.manifest.text.get("fields", []), self.dataset.features
        if "text" in fields or any(name not in features.column_names for name in fields):
            return True  # the words of this field cannot be told from terms
        return any(f"{label}: " in str(features.column(name)[item].as_py()) for name in fields)

    def _social(self) -> list[str]:
        """Friends are known users, and no friendship is later than the validation cut-off."""
        if not self.dataset.manifest.counts.get("social_edges"):
            return []
        temporal, number, late = self.split.get("kind") == "temporal", self.dataset.num_users, 0
        outside = {"src": 0, "dst": 0}
        for table in self.dataset.row_groups("graphs/social.parquet"):
            for end in outside:
                outside[end] += _outside(table, end, number)
            if temporal and "time" not in table.column_names:
                self.found.unaudited.append("friendships_in_time")
                temporal = False
            if temporal:
                times = np.asarray(table.column("time"))
                late += int(
                    (times >= parse_time(str(self.split["valid_from"]), "split.valid_from")).sum()
                )
        for end, wrong in outside.items():
            self._refuse_outside("friendships", wrong, end, "social")
        if late:
            self.refuse(
                "friendships", f"{late:,} edges of graphs/social.parquet are later than the cut-off"
            )
        return ["friendships"]

    def _triples(self) -> list[str]:
        """Triples and items refer to entities of the vocabulary. Triples have no time."""
        if not self.dataset.manifest.counts.get("triples"):
            return []
        number = self.dataset.table("vocab/entities.parquet").num_rows
        table = self.dataset.table("graphs/knowledge.parquet")
        for end in ("head", "tail"):
            self._refuse_outside("triples", _outside(table, end, number), end, "knowledge")
        entities = self.dataset.item_entities()
        linked = pa.table({"entity": entities[entities >= 0]})
        self._refuse_outside("triples", _outside(linked, "entity", number), "entity", "knowledge")
        return ["triples"]

    def _refuse_outside(self, check: str, wrong: int, column: str, graph: str) -> None:
        if wrong:
            self.refuse(
                check,
                f"{wrong:,} values of {column} in graphs/{graph}.parquet are outside the"
                " vocabulary",
            )


def _outside(table: pa.Table, column: str, size: int) -> int:
    values: Array = np.asarray(table.column(column))
    return int(((values < 0) | (values >= size)).sum())
