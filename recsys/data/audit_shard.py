"""The checks of the leak audit that need one shard only; see :mod:`recsys.data.leak_audit`.

Legend: U users, E events of a shard, N items, X cells of a sparse table of counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NoReturn

import numpy as np
import pyarrow as pa

from recsys.data.cold_start import ColdUsers
from recsys.data.dataset import PreparedDataset
from recsys.data.hashing import string_hashes
from recsys.data.hidden import Hidden
from recsys.data.histories import COLD_VALID, Array, Histories, Split
from recsys.data.split import parse_time
from recsys.data.text_rows import ENTRIES, WHOLE, TextRules, compose
from recsys.data.titles import item_titles
from recsys.errors import DataError

# order of the splits in time, by code: COLD_VALID (3) is validation
_PLACE: Final = np.array([0, 1, 2, 1])
_SECOND: Final = 1_000_000
_TEXTS_A_SHARD: Final = 500


@dataclass(frozen=True)
class ShardFindings:
    """What the checks over all shards need from one shard that has passed its own checks."""

    users_U: Array  # dense ids
    cells_X: Array  # int64: split × N + item
    counts_X: Array  # int64: events of each cell
    num_alone: int  # events of COLD_VALID
    num_events: int
    codes: list[set[int]]  # of each context column, in training events


def audit_shard(dataset: PreparedDataset, name: str) -> ShardFindings:
    """Run the checks of :func:`recsys.data.leak_audit.audit` that need one shard only.

    Raises
    ------
    DataError
        See :func:`recsys.data.leak_audit.audit`.
    """
    return ShardAuditor(dataset).run(name)


def refuse(dataset: str, check: str, found: str) -> NoReturn:
    """Refuse a dataset or an artefact that was made from it.

    Parameters
    ----------
    dataset : str
        Path or URI of the dataset.
    check : str
        Name of the check, with underscores.
    found : str
        What the check found.

    Raises
    ------
    DataError
        Always.
    """
    raise DataError(
        f"the audit refuses {dataset}, check {check.replace('_', ' ')}: {found}. Metrics on it"
        " would be wrong: delete the dataset and run `recsys prepare` and `recsys train` again; if"
        " the error comes back, report it"
    )


class Checks:
    """Base of both auditors: the dataset, its split and its cold users."""

    def __init__(self, dataset: PreparedDataset) -> None:
        self.dataset, self.split = dataset, dataset.manifest.split
        self.cold_start = ColdUsers.of(self.split)

    def refuse(self, check: str, found: str) -> NoReturn:
        """Refuse the dataset, see :func:`refuse`."""
        refuse(self.dataset.root, check, found)


class ShardAuditor(Checks):
    """Checks one shard at a time, independently of the others."""

    def __init__(self, dataset: PreparedDataset) -> None:
        super().__init__(dataset)
        self.user_texts = user_text_entries(dataset)
        self.titles = item_titles(dataset.features) if self.user_texts is not None else []

    def run(self, name: str) -> ShardFindings:
        """Check one shard, or one file with newer rows of some of its users."""
        is_shard = name in self.dataset.manifest.shards
        shard = self.dataset.shard(name) if is_shard else self.dataset.history_file(name)
        self._ids(name, shard)
        self._order(name, shard)
        self._queries(name, shard)
        self._cold(name, shard)
        if self.user_texts is not None:
            self._texts_of_users(name, shard, self.user_texts)
        return self._count(shard)

    def _ids(self, name: str, shard: Histories) -> None:
        wrong = int((shard.splits_E > COLD_VALID).sum())
        wrong += int(((shard.items_E < 0) | (shard.items_E >= self.dataset.num_items)).sum())
        wrong += int(((shard.users_U < 0) | (shard.users_U >= self.dataset.num_users)).sum())
        if wrong:
            self.refuse("ids", f"{wrong:,} users, items or splits in histories/{name} do not exist")

    def _order(self, name: str, shard: Histories) -> None:
        """No training event follows a held-out one, and the rule of the split's kind holds. Random
        splits have no order to check.
        """
        kind = self.split.get("kind")
        if kind == "temporal":
            self._cut_offs(name, shard)
        has_order = ("leave-last", "leave-last-basket", "ratio", "given")
        if not self.dataset.manifest.ordered or kind not in has_order:
            return
        if kind == "given" and self.split.get("given_valid", True):
            return  # the source names all splits
        rows_E = np.repeat(np.arange(len(shard)), shard.lengths_U)
        place_E = _PLACE[shard.splits_E]
        if kind == "given":  # we take validation from the latest training events of the source
            ours_E = place_E < 2
            rows_E, place_E = rows_E[ours_E], place_E[ours_E]
        back = int(((np.diff(place_E) < 0) & (np.diff(rows_E) == 0)).sum())
        if kind in ("leave-last", "leave-last-basket"):
            is_target_E = self._targets_E(shard)
            if kind == "leave-last-basket":  # one target stands for those of its time
                same = (np.diff(rows_E) == 0) & (np.diff(shard.times_E) == 0)
                is_target_E = is_target_E & ~np.append(same & is_target_E[1:], False)
            held = [
                np.bincount(rows_E[(place_E == p) & is_target_E], minlength=len(shard))
                for p in (1, 2)
            ]
            back += int(sum((number > 1).sum() for number in held))
        if back:
            text = f"{back:,} users in histories/{name} are out of order"
            self.refuse(
                "order_of_splits",
                f"{text}: training follows a held-out event, or a split has several targets",
            )

    def _cut_offs(self, name: str, shard: Histories) -> None:
        """Each event is on the right side of the cut-offs. Times are whole seconds and cut-offs are
        not, so an event is wrong only if its whole second is outside its split.
        """
        valid_from = parse_time(str(self.split["valid_from"]), "split.valid_from")
        test_from = parse_time(str(self.split["test_from"]), "split.test_from")
        starts_E = shard.times_E * _SECOND
        below_E = np.array([valid_from, test_from, np.iinfo(np.int64).max])[_PLACE[shard.splits_E]]
        from_E = np.array([np.iinfo(np.int64).min, valid_from, test_from])[_PLACE[shard.splits_E]]
        late = int((starts_E >= below_E).sum())
        if late:
            self.refuse(
                "order_of_splits",
                f"{late:,} events in histories/{name} are later than the end of their split",
            )
        early = int((starts_E + _SECOND <= from_E).sum())
        if early:
            self.refuse(
                "order_of_splits",
                f"{early:,} events in histories/{name} are earlier than the start of their split",
            )

    def _queries(self, name: str, shard: Histories) -> None:
        """A query sees exactly the earlier splits, and a fit sees no later split."""
        rows_E = np.repeat(np.arange(len(shard)), shard.lengths_U)
        for target, codes in (
            (Split.VALID, (Split.VALID, COLD_VALID)),
            (Split.TEST, (Split.TEST,)),
        ):
            is_target_E = np.isin(shard.splits_E, codes) & self._targets_E(shard)
            has_U = np.bincount(rows_E[is_target_E], minlength=len(shard)) > 0
            visible_E = (shard.splits_E < target) & has_U[rows_E]
            queries = shard.queries(target)
            same = np.array_equal(queries.histories.items_E, shard.items_E[visible_E])
            if not same or not np.array_equal(queries.target_items, shard.items_E[is_target_E]):
                extra = len(queries.histories.items_E) - int(visible_E.sum())
                text = (
                    f"{target.name.lower()} queries of histories/{name} see wrong events"
                    f" ({extra:+,})"
                )
                self.refuse("queries", text)
        for through in (Split.TRAIN, Split.VALID):
            beyond = len(shard.through(through).items_E) - int((shard.splits_E <= through).sum())
            if beyond:
                self.refuse(
                    "queries",
                    f"fits through {through.name.lower()} on histories/{name} see wrong events"
                    f" ({beyond:+,})",
                )

    def _targets_E(self, shard: Histories) -> Array:
        """Which events have a type that is predicted: [E] bool."""
        manifest = self.dataset.manifest
        codes = [code for code, name in enumerate(manifest.event_types) if name in manifest.targets]
        return np.isin(shard.types_E, codes) if codes else np.ones(len(shard.items_E), dtype=bool)

    def _cold(self, name: str, shard: Histories) -> None:
        """Cold users keep at most ``keep`` training events, and only their validation events are
        ``COLD_VALID``.
        """
        rows_E = np.repeat(np.arange(len(shard)), shard.lengths_U)
        cold_U = np.zeros(len(shard), dtype=bool)
        if self.cold_start:
            cold_U = self.cold_start.among(self.dataset.user_ids.take(pa.array(shard.users_U)))
            kept_U = np.bincount(rows_E[shard.splits_E == Split.TRAIN], minlength=len(shard))
            too_many = int((kept_U[cold_U] > self.cold_start.keep).sum())
            trained = int((shard.splits_E[cold_U[rows_E]] == Split.VALID).sum())
            if too_many or trained:
                text = (
                    f"{too_many:,} cold users of histories/{name} have more than"
                    f" {self.cold_start.keep} training events"
                )
                self.refuse(
                    "cold_users",
                    f"{text}, and {trained:,} of their validation events would be trained on",
                )
        others = int((shard.splits_E[~cold_U[rows_E]] == COLD_VALID).sum())
        if others:
            self.refuse(
                "cold_users",
                f"{others:,} validation events of other users in histories/{name} are marked as"
                " those of cold users",
            )

    def _count(self, shard: Histories) -> ShardFindings:
        counted_E = shard.splits_E != COLD_VALID
        cells_E = (
            shard.splits_E[counted_E].astype(np.int64) * self.dataset.num_items
            + shard.items_E[counted_E]
        )
        counts = np.bincount(cells_E)
        cells_X = np.flatnonzero(counts)
        train_EC = shard.context_EC[shard.splits_E == Split.TRAIN]
        codes = [
            set(np.unique(train_EC[:, index]).tolist())
            for index in range(len(self.dataset.context))
        ]
        alone = len(counted_E) - int(counted_E.sum())
        return ShardFindings(
            shard.users_U, cells_X, counts[cells_X], alone, len(shard.items_E), codes
        )

    def _texts_of_users(self, name: str, shard: Histories, entries: pa.Table) -> None:
        """Texts of users contain only the first events of their split: compose a fixed sample again
        from the histories and compare.
        """
        manifest = self.dataset.manifest
        described = manifest.text["users"]
        rules = TextRules(
            tuple(manifest.event_types),
            manifest.ordered,
            described["max_items"],
            1,
            described["folds"],
        )
        users, through, positions, hashes = (
            entries.column(key).to_numpy() for key in ("user", "through", "place", "hash")
        )
        row_of = {user: row for row, user in enumerate(shard.users_U.tolist())}
        chosen = np.flatnonzero(np.isin(users, shard.users_U))
        chosen = chosen[
            np.linspace(0, len(chosen) - 1, min(len(chosen), _TEXTS_A_SHARD), dtype=np.int64)
        ]
        texts = []
        for entry in chosen.tolist():
            row, position = row_of[int(users[entry])], int(positions[entry])
            events = slice(shard.offsets_U1[row], shard.offsets_U1[row + 1])
            kept_E = shard.splits_E[events] <= through[entry]
            items, types = shard.items_E[events][kept_E], shard.types_E[events][kept_E]
            if position != WHOLE and rules.ordered:
                items, types = items[:position], types[:position]
            elif position != WHOLE:
                hidden = Hidden.fold(position, rules.folds).of(
                    np.full(len(items), users[entry]), items
                )
                items, types = items[~hidden], types[~hidden]
            texts.append(compose(items.tolist(), types.tolist(), self.titles, rules))
        wrong = int((string_hashes(pa.array(texts, pa.string())) != hashes[chosen]).sum())
        if wrong:
            self.refuse(
                "user_texts",
                f"{wrong:,} of {len(chosen):,} texts of users of {name} contain other events",
            )


def user_text_entries(dataset: PreparedDataset) -> pa.Table | None:
    """The entries of user texts with their hashes; None without texts or hashes."""
    if not dataset.manifest.text.get("users"):
        return None
    table = dataset.table(ENTRIES)
    return table if "hash" in table.column_names else None
