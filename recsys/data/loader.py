"""Shuffled training batches from the shards: bounded memory, the same for any number of workers.

Why not a generic loader: every worker must get its slice of the *same* global batch, so that two
workers give the same loss as one. No row may be dropped to balance the workers. No worker may hold
more than one window of the events.

Shards are grouped into windows once. An epoch visits the windows in random order, shuffles the rows
inside a window, and cuts them into global batches. A worker takes every ``world_size``-th row of a
global batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from recsys.data.batches import TEXT_ROWS, Batch, every_position, whole_history
from recsys.data.dataset import PreparedDataset
from recsys.data.first_touch import asks_before_first_touch, with_first_touches
from recsys.data.hidden import Hidden
from recsys.data.histories import Array, Histories, Split
from recsys.data.look_ahead import with_look_ahead
from recsys.data.text_rows import WHOLE
from recsys.data.ties import with_shuffled_ties
from recsys.errors import ConfigError, DataError

LENGTH_JITTER = 0.1  # share of a length; drawn each epoch, so rows share a batch with other rows


@dataclass(frozen=True)
class LoaderConfig:
    """The settings that determine the batches of all workers together."""

    batch_size: int  # users per step on average, over all workers
    max_history: int
    history_mask_rate: float  # unordered data
    event_power: float  # unordered data
    window_events: int
    seed: int
    user_texts: bool = False  # queries have the text of their history
    shuffle_ties: bool = False  # data ordered by time
    look_ahead: int = 0  # events, see recsys.data.look_ahead
    short_history_rate: float = 0.0  # unordered data


@dataclass(frozen=True)
class Step:
    """One worker's slice of a global step."""

    batch: Batch
    weight: float  # of all targets of the step, over all workers
    number: int  # position in the epoch


def can_train(dataset: PreparedDataset, through: Split, num_workers: int) -> bool:
    """Whether there is at least one user with a target for every worker; in ordered data a target
    needs an earlier event, before its first touch if queries are there.

    Parameters
    ----------
    dataset : PreparedDataset
        The dataset.
    through : Split
        The last split whose events are used.
    num_workers : int
        Number of training workers.
    """
    is_early, found = asks_before_first_touch(dataset), 0
    for shard in dataset.shards():
        seen = shard.through(through)
        seen = with_first_touches(seen) if is_early else seen
        rows_E = np.repeat(np.arange(len(seen)), seen.lengths_U)
        counts_E = seen.have_queries_E if dataset.manifest.ordered else seen.are_targets_E
        found += len(np.unique(rows_E[counts_E]))
        if found >= num_workers:
            return True
    return False


class TrainingLoader:
    """Batches of a prepared dataset's events through a split.

    Parameters
    ----------
    dataset : PreparedDataset
        The dataset.
    through : Split
        The last split to train on.
    config : LoaderConfig
        Settings of the batches.
    rank : int
        Number of this worker, from 0.
    world_size : int
        Number of workers.

    Raises
    ------
    DataError
        There are fewer trainable users than workers.
    ConfigError
        A setting has no effect on this data.
    """

    def __init__(
        self,
        dataset: PreparedDataset,
        through: Split,
        config: LoaderConfig,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.dataset, self.through, self.config = dataset, through, config
        self.rank, self.world_size = rank, world_size
        self.ordered = dataset.manifest.ordered
        for_sets = (config.history_mask_rate, config.short_history_rate, config.event_power)
        if self.ordered and for_sets != (0, 0, 1):
            raise ConfigError(
                f"train.history_mask_rate {for_sets[0]}, train.short_history_rate {for_sets[1]} and"
                f" train.loss.event_power {for_sets[2]} act on unordered data only, but this"
                " dataset has an order: set them to 0, 0 and 1"
            )
        self._texts = dataset.user_texts(through) if config.user_texts else None
        if (
            self._texts is not None
            and not self.ordered
            and not self._texts.fits(config.history_mask_rate)
        ):
            raise ConfigError(
                "train.history_mask_rate must be 1 / data.text.users.folds: got"
                f" {config.history_mask_rate}, expected {self._texts.hidden_share:g}; set it, or"
                " change data.text.users.folds and run `recsys prepare` again"
            )
        if config.look_ahead and not self.ordered:
            raise ConfigError(
                f"train.look_ahead {config.look_ahead} acts on data with an order only, and this"
                " dataset has none: remove it"
            )
        # a text of a user is about the first events in the order of the files
        self._new_ties = (
            config.shuffle_ties and dataset.manifest.has_free_ties and self._texts is None
        )
        if self._texts is not None and config.short_history_rate:
            raise ConfigError(
                f"train.short_history_rate {config.short_history_rate} cannot be used together with"
                " texts of users (data.text.users): set it to 0"
            )
        self._early = asks_before_first_touch(dataset)
        self._windows: list[list[str]] = [[]]
        self._rows: list[int] = [0]
        self._everything: tuple[Histories, Array] | None = None
        self._measure()
        if sum(self._rows) < world_size:
            need = "two events" if self.ordered else "one event"
            workers = f"{world_size} worker{'s' * (world_size > 1)}"
            need = (
                "an event before their first touch of a target (data.targets)"
                if self._early
                else need
            )
            raise DataError(
                f"{sum(self._rows)} users have at least {need} to train on, fewer than {workers}"
                " (train.num_workers): give more events per user, change data.split, or enable"
                " closed-form granularities, such as item_cf"
            )
        self._only = self._load(0) if len(self._windows) == 1 else None

    @property
    def num_steps(self) -> int:
        """Number of steps in an epoch."""
        return sum(self._num_batches(rows) for rows in self._rows if rows)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Step]:
        """Yield this worker's steps of an epoch from step ``first`` on; seed and epoch fix them."""
        # not of the rank: all workers must draw the same global batches
        random = np.random.default_rng((self.config.seed, epoch))
        number = 0
        for window in random.permutation(len(self._windows)):
            if number + self._num_batches(self._rows[window]) <= first:
                # a resumed epoch skips windows without reading them, but draws as many random
                # numbers
                number += self._pass_over(window, random)
                continue
            histories, starts_U = self._only or self._load(int(window))
            num_targets_U = self._num_targets_U(histories)
            for rows in self._global_batches(histories, num_targets_U, random):
                if number < first:
                    number += 1
                    continue
                mine = rows[self.rank :: self.world_size]
                batch = self._with_texts(
                    self._batch(histories, mine, epoch),
                    histories,
                    starts_U,
                    mine,
                    epoch,
                )
                yield Step(batch, self._weight(num_targets_U[rows]), number)
                number += 1

    def all_rows(self) -> tuple[Histories, Array]:
        """The rows of all windows, and where each starts in its user's events. Private training
        draws users from them.

        One user may have several rows.
        """
        if self._everything is None:
            loaded = [self._load(window) for window in range(len(self._windows))]
            self._everything = (
                Histories.concat([rows for rows, _ in loaded]),
                np.concatenate([s for _, s in loaded]),
            )
        return self._everything

    def batch_of(self, rows: Array, epoch: int) -> tuple[Batch, float]:
        """A batch of rows of :meth:`all_rows`, and the weight of its targets."""
        histories, starts_U = self.all_rows()
        batch = self._with_texts(
            self._batch(histories, rows, epoch), histories, starts_U, rows, epoch
        )
        return batch, self._weight(self._num_targets_U(histories.take(rows)))

    def _pass_over(self, window: int, random: np.random.Generator) -> int:
        """Draw the random numbers of :meth:`_global_batches` for a window that is skipped; returns
        its number of batches.
        """
        rows, batches = self._rows[window], self._num_batches(self._rows[window])
        random.permutation(rows)
        if self.ordered:
            random.random(rows)
            random.permutation(batches)
        return batches

    def hidden(self, epoch: int) -> Hidden:
        """The events that an epoch hides from the input; none in ordered data. With texts of users,
        epochs hide the folds in turn.
        """
        if self._texts is not None and self._texts.folds > 1:
            return Hidden.fold(epoch % self._texts.folds, self._texts.folds)
        return Hidden(
            self.config.history_mask_rate,
            self._seed_of(epoch),
            short=self.config.short_history_rate,
        )

    def _seed_of(self, epoch: int) -> int:
        return self.config.seed * 1_000_003 + epoch

    def _batch(self, histories: Histories, rows: Array, epoch: int) -> Batch:
        limit = self.config.max_history
        if not self.ordered:
            return whole_history(histories, limit, rows, self.hidden(epoch))
        taken, seed = histories.take(rows), self._seed_of(epoch)
        if self._new_ties:
            taken = with_shuffled_ties(taken, seed)
        if self.config.look_ahead:
            taken = with_look_ahead(taken, self.config.look_ahead, seed)
        return every_position(taken, limit)

    def _with_texts(
        self, batch: Batch, histories: Histories, starts_U: Array, rows: Array, epoch: int
    ) -> Batch:
        """Add the text of every query's visible history."""
        if self._texts is None:
            return batch
        users_B = histories.users_U[rows][batch.rows_B.numpy()]
        if not self.ordered:
            folds = self._texts.folds
            places_B = np.full(len(users_B), epoch % folds if folds > 1 else WHOLE)
        else:
            cut_U = starts_U[rows] + np.maximum(
                histories.lengths_U[rows] - self.config.max_history - 1, 0
            )
            places_B = cut_U[batch.rows_B.numpy()] + batch.seen_B.numpy()
        rows_B = torch.as_tensor(self._texts.at(users_B, places_B))
        return replace(batch, inputs={**batch.inputs, TEXT_ROWS: rows_B})

    def _weight(self, num_targets_U: Array) -> float:
        """The total weight of the targets of a step, over all workers; the loss is divided by
        it.
        """
        if self.ordered:
            return float(num_targets_U.sum())
        return float((num_targets_U**self.config.event_power).sum())

    def _num_targets_U(self, histories: Histories) -> Array:
        """Number of targets of every row: [U] int64. Ordered targets need an earlier event."""
        if not len(histories.targets_T):
            return np.asarray(histories.lengths_U - 1 if self.ordered else histories.lengths_U)
        counts_E = histories.have_queries_E if self.ordered else histories.are_targets_E
        return np.diff(np.concatenate([[0], np.cumsum(counts_E)])[histories.offsets_U1])

    def _global_batches(
        self, histories: Histories, num_targets_U: Array, random: np.random.Generator
    ) -> list[Array]:
        """Rows of every global batch. In ordered data a batch has rows of similar length, so that
        it has little padding, and all batches have similar numbers of targets, so that targets of
        short and long histories have the same weight.
        """
        order = random.permutation(len(histories))
        if not self.ordered:
            return np.array_split(order, self._num_batches(len(order)))
        lengths = histories.lengths_U[order] * (1 + LENGTH_JITTER * random.random(len(order)))
        # nearly sorted by length: little padding, but not the same neighbours in each epoch
        order = order[np.argsort(lengths, kind="stable")]
        batches = np.split(order, self._borders(num_targets_U[order]))
        # in random order, else an epoch would go from short histories to long ones
        return [batches[i] for i in random.permutation(len(batches))]

    def _borders(self, targets: Array) -> Array:
        """Where to cut rows into batches of about equal numbers of targets, with at least one row
        for every worker.
        """
        number = self._num_batches(len(targets))
        shares = np.arange(1, number) * (targets.sum() / number)
        least = np.arange(1, number) * self.world_size
        borders = np.searchsorted(np.cumsum(targets), shares)
        # a border moves right where rows before it are too few for the workers, and never crosses
        # another
        apart = np.maximum.accumulate(np.maximum(borders - least, 0)) + least
        # the last batches need their rows, too
        return np.asarray(np.minimum(apart, len(targets) - least[::-1]))

    def _num_batches(self, num_rows: int) -> int:
        return max(1, min(-(-num_rows // self.config.batch_size), num_rows // self.world_size))

    def _load(self, window: int) -> tuple[Histories, Array]:
        """The rows of a window of shards, and the number of the user's events before each row."""
        shards = [self._trainable(self.dataset.shard(name)) for name in self._windows[window]]
        return Histories.concat([rows for rows, _ in shards]), np.concatenate(
            [starts for _, starts in shards]
        )

    def _trainable(self, shard: Histories) -> tuple[Histories, Array]:
        seen = shard.through(self.through)
        usable = seen.take(np.flatnonzero(seen.lengths_U >= (2 if self.ordered else 1)))
        usable = with_first_touches(usable) if self._early else usable
        rows, starts = usable, np.zeros(len(usable), dtype=np.int64)
        if self.ordered:
            # one more than the input: the last event of a window is only a target
            rows = usable.windows(self.config.max_history + 1)
            starts = usable.window_spans(self.config.max_history + 1)[1]
        if not len(rows.targets_T):
            return rows, starts
        has_targets = np.flatnonzero(self._num_targets_U(rows))
        return rows.take(has_targets), starts[has_targets]

    def _measure(self) -> None:
        """Group the shards into windows and count their trainable rows."""
        events = 0
        for name in self.dataset.manifest.shards:
            shard, _ = self._trainable(self.dataset.shard(name))
            if not len(shard):
                continue
            # a shard is never divided, so a window may be larger than the limit only if one shard
            # is
            if events and events + len(shard.items_E) > self.config.window_events:
                self._windows.append([])
                self._rows.append(0)
                events = 0
            self._windows[-1].append(name)
            self._rows[-1] += len(shard)
            events += len(shard.items_E)
