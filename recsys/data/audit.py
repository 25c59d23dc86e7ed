"""The leak auditor: every artefact of a prepared dataset, worked out again from the histories and compared.

Why not trust the writer: a number is worth something only if nothing held out has reached training, and a leak looks
like a good model. What is derived of events is recomputed here by other code than wrote it; what cannot be recomputed
from the histories (item text from events, friendships in time) carries its provenance: the rows it was made of.
A shard at a time, in tasks of their own where there are any; nothing holds all events.
Legend: U users, E events of a shard, N items, X cells of a sparse table of counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.data.batches import Hidden
from recsys.data.context import UNKNOWN
from recsys.data.dataset import PreparedDataset
from recsys.data.hashing import string_hashes
from recsys.data.histories import VALID_ALONE, Array, Histories, Split
from recsys.data.newcomers import Newcomers
from recsys.data.split import parse_time
from recsys.data.titles import item_titles
from recsys.data.user_text_reader import ENTRIES, WHOLE, TextRules, compose
from recsys.errors import DataError

_PARTS: Final = (Split.TRAIN, Split.VALID, Split.TEST)
_PLACE: Final = np.array([0, 1, 2, 1])  # of a part in time: validation is between training and test
_NO_TIME: Final = np.iinfo(np.int64).min
_SECOND: Final = 1_000_000
_TEXTS_A_SHARD: Final = 500


@dataclass
class Audit:
    """What was checked and found in order, and what the dataset carries no provenance for."""

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


@dataclass(frozen=True)
class ShardFindings:
    """What the checks of all shards together need of one that is in order in itself."""

    users_U: Array  # dense ids
    cells_X: Array  # int64, part × N + item, …
    counts_X: Array  # … and its events
    num_alone: int
    num_events: int
    codes: list[set[int]]  # of context columns in training events


def audit(dataset: PreparedDataset, findings: Sequence[ShardFindings] | None = None) -> Audit:
    """Check a prepared dataset against its split.

    Args:
        dataset: with its shards.
        findings: of :func:`audit_shard` for every shard, in order, where they were made elsewhere.

    Raises:
        DataError: an artefact holds what it must not, with the check, the place and how much.
    """
    auditor = _Auditor(dataset)
    if findings is None:
        of_shards = _ShardAuditor(dataset)
        findings = [of_shards.run(name) for name in dataset.manifest.shards]
    return auditor.run(findings)


def audit_shard(dataset: PreparedDataset, name: str) -> ShardFindings:
    """The part of :func:`audit` that looks at one shard alone.

    Raises:
        DataError: as :func:`audit`.
    """
    return _ShardAuditor(dataset).run(name)


def refuse(dataset: str, check: str, found: str) -> NoReturn:
    """Refuse a dataset or what was made of it."""
    raise DataError(
        f"the audit of {dataset} refuses it, check {check.replace('_', ' ')}: {found}. What is evaluated on it would "
        "be wrong: delete the dataset and run `recsys prepare` and `recsys train` again; if it comes back, report it"
    )


class _Checks:
    """What both auditors know."""

    def __init__(self, dataset: PreparedDataset) -> None:
        self.dataset, self.split = dataset, dataset.manifest.split
        self.newcomers = Newcomers.of(self.split)

    def _refuse(self, check: str, found: str) -> NoReturn:
        refuse(self.dataset.root, check, found)


class _ShardAuditor(_Checks):
    """One shard at a time, each alone."""

    def __init__(self, dataset: PreparedDataset) -> None:
        super().__init__(dataset)
        self.user_texts = _user_text_entries(dataset)
        self.titles = item_titles(dataset.features) if self.user_texts is not None else []

    def run(self, name: str) -> ShardFindings:
        shard = self.dataset.shard(name)
        self._ids(name, shard)
        self._order(name, shard)
        self._queries(name, shard)
        self._cold(name, shard)
        if self.user_texts is not None:
            self._texts_of_users(name, shard, self.user_texts)
        return self._count(shard)

    def _ids(self, name: str, shard: Histories) -> None:
        wrong = int((shard.splits_E > VALID_ALONE).sum())
        wrong += int(((shard.items_E < 0) | (shard.items_E >= self.dataset.num_items)).sum())
        wrong += int(((shard.users_U < 0) | (shard.users_U >= self.dataset.num_users)).sum())
        if wrong:
            self._refuse("ids", f"{wrong:,} users, items or parts in histories/{name} do not exist")

    def _order(self, name: str, shard: Histories) -> None:
        """No training event behind a held-out one, and each kind's own rule; random splits have no order to check."""
        kind = self.split.get("kind")
        if kind == "temporal":
            self._cut_offs(name, shard)
        if not self.dataset.manifest.ordered or kind not in ("leave-last", "ratio", "given"):
            return
        if kind == "given" and self.split.get("given_valid", True):
            return  # the source says what is what
        rows_E = np.repeat(np.arange(len(shard)), shard.lengths_U)
        place_E = _PLACE[shard.splits_E]
        if kind == "given":  # validation is ours, the latest of the events that the source gives for training
            ours_E = place_E < 2
            rows_E, place_E = rows_E[ours_E], place_E[ours_E]
        back = int(((np.diff(place_E) < 0) & (np.diff(rows_E) == 0)).sum())
        if kind == "leave-last":
            held = [np.bincount(rows_E[place_E == place], minlength=len(shard)) for place in (1, 2)]
            back += int(sum((number > 1).sum() for number in held))
        if back:
            self._refuse("order_of_parts", f"{back:,} users in histories/{name} train on what follows a held-out event")

    def _cut_offs(self, name: str, shard: Histories) -> None:
        """Times are whole seconds, the cut-offs are not: an event is misplaced when no moment of its second fits."""
        valid_from = parse_time(str(self.split["valid_from"]), "split.valid_from")
        test_from = parse_time(str(self.split["test_from"]), "split.test_from")
        starts_E = shard.times_E * _SECOND
        below_E = np.array([valid_from, test_from, np.iinfo(np.int64).max])[_PLACE[shard.splits_E]]
        from_E = np.array([np.iinfo(np.int64).min, valid_from, test_from])[_PLACE[shard.splits_E]]
        late = int((starts_E >= below_E).sum())
        if late:
            self._refuse(
                "order_of_parts", f"{late:,} events in histories/{name} are later than the cut-off of their part"
            )
        early = int((starts_E + _SECOND <= from_E).sum())
        if early:
            self._refuse("order_of_parts", f"{early:,} events in histories/{name} are earlier than their part begins")

    def _queries(self, name: str, shard: Histories) -> None:
        """A query sees the parts before its own and nothing else; what is fitted on ends where it must."""
        rows_E = np.repeat(np.arange(len(shard)), shard.lengths_U)
        for target, asked in ((Split.VALID, (Split.VALID, VALID_ALONE)), (Split.TEST, (Split.TEST,))):
            is_target_E = np.isin(shard.splits_E, asked)
            has_U = np.bincount(rows_E[is_target_E], minlength=len(shard)) > 0
            visible_E = (shard.splits_E < target) & has_U[rows_E]
            queries = shard.queries(target)
            same = np.array_equal(queries.histories.items_E, shard.items_E[visible_E])
            if not same or not np.array_equal(queries.target_items, shard.items_E[is_target_E]):
                extra = len(queries.histories.items_E) - int(visible_E.sum())
                self._refuse("queries", f"{target.name.lower()} queries of histories/{name} see {extra:+,} events")
        for through in (Split.TRAIN, Split.VALID):
            beyond = len(shard.through(through).items_E) - int((shard.splits_E <= through).sum())
            if beyond:
                self._refuse(
                    "queries", f"fits through {through.name.lower()} on histories/{name} see {beyond:+,} events"
                )

    def _cold(self, name: str, shard: Histories) -> None:
        """Cold users keep their few events, and their validation stands alone; nobody else's does."""
        rows_E = np.repeat(np.arange(len(shard)), shard.lengths_U)
        cold_U = np.zeros(len(shard), dtype=bool)
        if self.newcomers:
            cold_U = self.newcomers.among(self.dataset.user_ids.take(pa.array(shard.users_U)))
            kept_U = np.bincount(rows_E[shard.splits_E == Split.TRAIN], minlength=len(shard))
            many = int((kept_U[cold_U] > self.newcomers.keep).sum())
            joined = int((shard.splits_E[cold_U[rows_E]] == Split.VALID).sum())
            if many or joined:
                text = f"{many:,} cold users of histories/{name} have more than {self.newcomers.keep} training events"
                self._refuse("cold_users", f"{text}, and {joined:,} of their validation events would be trained on")
        alone = int((shard.splits_E[~cold_U[rows_E]] == VALID_ALONE).sum())
        if alone:
            self._refuse("cold_users", f"{alone:,} validation events of other users in histories/{name} stand alone")

    def _count(self, shard: Histories) -> ShardFindings:
        counted_E = shard.splits_E != VALID_ALONE
        cells_E = shard.splits_E[counted_E].astype(np.int64) * self.dataset.num_items + shard.items_E[counted_E]
        counts = np.bincount(cells_E)
        cells_X = np.flatnonzero(counts)
        train_EC = shard.context_EC[shard.splits_E == Split.TRAIN]
        codes = [set(np.unique(train_EC[:, place]).tolist()) for place in range(len(self.dataset.context))]
        alone = len(counted_E) - int(counted_E.sum())
        return ShardFindings(shard.users_U, cells_X, counts[cells_X], alone, len(shard.items_E), codes)

    def _texts_of_users(self, name: str, shard: Histories, entries: pa.Table) -> None:
        """Texts of users tell the first events of their part and nothing else: a fixed sample of them, composed again
        from the histories."""
        manifest = self.dataset.manifest
        described = manifest.text["users"]
        rules = TextRules(tuple(manifest.event_types), manifest.ordered, described["max_items"], 1, described["folds"])
        users, through, places, hashes = (
            entries.column(key).to_numpy() for key in ("user", "through", "place", "hash")
        )
        row_of = {user: row for row, user in enumerate(shard.users_U.tolist())}
        chosen = np.flatnonzero(np.isin(users, shard.users_U))
        chosen = chosen[np.linspace(0, len(chosen) - 1, min(len(chosen), _TEXTS_A_SHARD), dtype=np.int64)]
        texts = []
        for entry in chosen.tolist():
            row, place = row_of[int(users[entry])], int(places[entry])
            span = slice(shard.offsets_U1[row], shard.offsets_U1[row + 1])
            kept_E = shard.splits_E[span] <= through[entry]
            items, types = shard.items_E[span][kept_E], shard.types_E[span][kept_E]
            if place != WHOLE and rules.ordered:
                items, types = items[:place], types[:place]
            elif place != WHOLE:
                hidden = Hidden.fold(place, rules.folds).of(np.full(len(items), users[entry]), items)
                items, types = items[~hidden], types[~hidden]
            texts.append(compose(items.tolist(), types.tolist(), self.titles, rules))
        wrong = int((string_hashes(pa.array(texts, pa.string())) != hashes[chosen]).sum())
        if wrong:
            self._refuse("user_texts", f"{wrong:,} of {len(chosen):,} texts of users of {name} tell of other events")


def _user_text_entries(dataset: PreparedDataset) -> pa.Table | None:
    """The entries of user texts with their hashes; None where there are none."""
    if not dataset.manifest.text.get("users"):
        return None
    table = dataset.table(ENTRIES)
    return table if "hash" in table.column_names else None


class _Auditor(_Checks):
    """What all shards say together, and the artefacts that are made of them."""

    def __init__(self, dataset: PreparedDataset) -> None:
        super().__init__(dataset)
        self.home_U = np.full(dataset.num_users, -1, dtype=np.int32)  # the shard of a user
        self.counts_3N = np.zeros((len(_PARTS), dataset.num_items), dtype=np.int64)
        self.num_alone = 0
        self.found = Audit()
        self.codes: list[set[int]] = [set() for _ in dataset.context]

    def run(self, findings: Sequence[ShardFindings]) -> Audit:
        checks = ["vocabulary", "ids", "order_of_parts", "queries"]
        self._vocabulary()
        for number, (name, shard) in enumerate(zip(self.dataset.manifest.shards, findings, strict=True)):
            self._users(name, number, shard.users_U)
            self.counts_3N.reshape(-1)[shard.cells_X] += shard.counts_X
            self.num_alone += shard.num_alone
            self.found.events += shard.num_events
            for codes, more in zip(self.codes, shard.codes, strict=True):
                codes.update(more)
        self._counts()
        checks += ["popularity", "cold_users"] if self.newcomers else ["popularity"]
        checks += self._context() + self._user_texts()
        self.found.checks = checks + self._text() + self._social() + self._facts()
        return self.found

    def _users(self, name: str, number: int, users_U: Array) -> None:
        again = len(users_U) - len(np.unique(users_U)) + int((self.home_U[users_U] >= 0).sum())
        if again:
            self._refuse(
                "ids", f"{again:,} users of histories/{name} have another row, so one may see the other's test"
            )
        self.home_U[users_U] = number

    # --------------------------------------------------------------------------------------------------- histories

    def _vocabulary(self) -> None:
        """Every id once, and attributes in the order of the ids."""
        for what, ids, table in (
            ("user", self.dataset.user_ids, self.dataset.user_features),
            ("item", self.dataset.item_ids, self.dataset.features),
        ):
            repeated = len(ids) - pc.count_distinct(ids).as_py()
            if repeated:
                self._refuse("vocabulary", f"{repeated:,} {what} ids stand twice in vocab/{what}s.parquet")
            aligned = table.column(f"{what}_id").combine_chunks()
            if not aligned.equals(ids):
                self._refuse("vocabulary", f"the rows of {what}s/features.parquet are not those of the {what} ids")

    def _counts(self) -> None:
        """Popularity, from which baselines, negatives and "new to training" are taken."""
        counts = self.dataset.manifest.counts
        before_N = np.zeros(self.dataset.num_items, dtype=np.int64)
        for part in _PARTS:
            said_N = self.dataset.item_counts_N(part) - before_N
            before_N += said_N
            wrong = np.flatnonzero(said_N != self.counts_3N[part])
            name = part.name.lower()
            if len(wrong):
                first = self.dataset.item_ids[int(wrong[0])].as_py()
                text = f"{len(wrong):,} items in items/counts.parquet have other {name} counts than the histories"
                i = int(wrong[0])
                self._refuse("popularity", f"{text}, such as {first}: {said_N[i]} for {self.counts_3N[part, i]}")
            if counts.get(name, 0) != self.counts_3N[part].sum():
                self._refuse(
                    "popularity", f"the manifest says {counts.get(name, 0):,} {name} events, the histories not"
                )
        if counts.get("cold_valid", 0) != self.num_alone:
            self._refuse(
                "popularity", f"the manifest's {counts.get('cold_valid', 0):,} cold_valid are {self.num_alone:,}"
            )

    def _context(self) -> list[str]:
        """The known values of a category are those of training events; a number's mean has too little to tell by."""
        for column, codes in zip(self.dataset.context, self.codes, strict=True):
            known = set(range(UNKNOWN + 1, column.num_codes))
            if column.values is not None and known - codes:
                text = f"{len(known - codes):,} values of {column.name} in vocab/context.json are of no training event"
                self._refuse("context_values", text)
        return ["context_values"] if self.codes else []

    def _user_texts(self) -> list[str]:
        if not self.dataset.manifest.text.get("users"):
            return []
        if _user_text_entries(self.dataset) is not None:
            return ["user_texts"]
        self.found.unaudited.append("user_texts")
        return []

    # --------------------------------------------------------------------------------------------------- text, graphs

    def _text(self) -> list[str]:
        """Rows that item text was made of: none about a held-out pair, none too late, none by cold users beside their
        events; and every item's terms are those of its rows."""
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
        users, items, times = (np.asarray(table.column(key)).astype(np.int64) for key in ("user", "item", "time"))
        home = self.home_U[users]
        held, training = np.zeros(len(users), dtype=bool), np.zeros(len(users), dtype=bool)
        pairs = users * self.dataset.num_items + items
        for number in np.unique(home[home >= 0]):
            shard = self.dataset.shard(self.dataset.manifest.shards[number])
            pairs_E = (
                np.repeat(shard.users_U, shard.lengths_U).astype(np.int64) * self.dataset.num_items + shard.items_E
            )
            held |= np.isin(pairs, pairs_E[shard.splits_E != Split.TRAIN])
            training |= np.isin(pairs, pairs_E[shard.splits_E == Split.TRAIN])
        if held.any():
            self._refuse("item_text_rows", f"{int(held.sum()):,} rows of {name} are about held-out (user, item) pairs")
        if self.split.get("kind") == "temporal":
            valid_from = parse_time(str(self.split["valid_from"]), "split.valid_from")
            late = int(((times >= valid_from) | (times == _NO_TIME)).sum())
            if late:
                self._refuse("item_text_rows", f"{late:,} rows of {name} are not from before the validation cut-off")
        if self.newcomers:
            cold = (home >= 0) & self.newcomers.among(self.dataset.user_ids)[users] & ~training
            if cold.any():
                text = f"{int(cold.sum()):,} rows of {name} are by cold users, about nothing that they keep"
                self._refuse("item_text_rows", text)

    def _terms(self, tables: list[pa.Table], label: str, limit: int) -> None:
        """The terms in the text of the items, worked out again."""
        names = ["item", "term", "count_all"]
        table = pa.concat_tables([table.select(names) for table in tables])
        table = table.group_by(names[:2]).aggregate([("count_all", "sum")])
        table = table.sort_by([("item", "ascending"), ("count_all_sum", "descending"), ("term", "ascending")])
        expected: dict[int, list[str]] = {}
        for item, term in zip(table.column("item").to_pylist(), table.column("term").to_pylist(), strict=True):
            found = expected.setdefault(item, [])
            if len(found) < limit:
                found.append(term)
        texts = self.dataset.features.column("text").to_pylist()
        wrong = [item for item, text in enumerate(texts) if not self._is_made_of(item, text, expected.get(item), label)]
        if wrong:
            first = self.dataset.item_ids[wrong[0]].as_py()
            text = f"the text of {len(wrong):,} items, such as {first}, has other terms than the rows it is made of"
            self._refuse("item_text_terms", text)

    def _is_made_of(self, item: int, text: str | None, terms: list[str] | None, label: str) -> bool:
        """Whether a text has these terms and no more; without any, whether it names none but its own fields'."""
        if terms:
            return f". {label}: {', '.join(terms)}. " in f". {text or ''}. "
        if text is None or not (text.startswith(f"{label}: ") or f". {label}: " in text):
            return True
        fields, features = self.dataset.manifest.text.get("fields", []), self.dataset.features
        if "text" in fields or any(name not in features.column_names for name in fields):
            return True  # the field's own words are not kept apart
        return any(f"{label}: " in str(features.column(name)[item].as_py()) for name in fields)

    def _social(self) -> list[str]:
        """Friends are users, and none was made after the validation cut-off."""
        if not self.dataset.manifest.counts.get("social_edges"):
            return []
        table = self.dataset.table("graphs/social.parquet")
        for end in ("src", "dst"):
            self._in_range("friendships", table, end, self.dataset.num_users, "social")
        if self.split.get("kind") == "temporal":
            if "time" not in table.column_names:
                self.found.unaudited.append("friendships_in_time")
                return ["friendships"]
            times = np.asarray(table.column("time"))
            late = int((times >= parse_time(str(self.split["valid_from"]), "split.valid_from")).sum())
            if late:
                self._refuse("friendships", f"{late:,} edges of graphs/social.parquet are later than the cut-off")
        return ["friendships"]

    def _facts(self) -> list[str]:
        """Facts and items name entities of the vocabulary; facts have no time."""
        if not self.dataset.manifest.counts.get("facts"):
            return []
        number = self.dataset.table("vocab/entities.parquet").num_rows
        table = self.dataset.table("graphs/knowledge.parquet")
        for end in ("head", "tail"):
            self._in_range("facts", table, end, number, "knowledge")
        entities = self.dataset.item_entities()
        self._in_range("facts", pa.table({"entity": entities[entities >= 0]}), "entity", number, "knowledge")
        return ["facts"]

    def _in_range(self, check: str, table: pa.Table, column: str, size: int, graph: str) -> None:
        values: Array = np.asarray(table.column(column))
        outside = int(((values < 0) | (values >= size)).sum())
        if outside:
            self._refuse(check, f"{outside:,} values of {column} in graphs/{graph}.parquet are outside the vocabulary")
