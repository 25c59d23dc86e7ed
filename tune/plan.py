"""Which trial comes next, and which one won: all from the ledger, so that a killed sweep goes on as if it had not been.

Order: trials that were interrupted; the configuration as it is (trial 0); proposals until ``tune.trials``; then, once
no trial runs, the best ones and trial 0 again with other seeds, so that a lucky seed does not choose.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, Literal

from recsys.config import Config
from tune.ledger import Ledger, Trial
from tune.proposals import propose
from tune.space import Space

WAIT: Final = "wait"


@dataclass(frozen=True)
class Standing:
    """A configuration that was searched, with all its seeds: the mean of the finished ones decides."""

    number: int
    trials: tuple[Trial, ...]

    @property
    def values(self) -> list[float]:
        return [trial.value for trial in self.trials if trial.state == "finished" and trial.value is not None]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)


class Plan:
    """What a sweep is to do, given what it has done."""

    def __init__(self, config: Config, space: Space, ledger: Ledger) -> None:
        self.config, self.space, self.ledger = config, space, ledger
        self.deadline = math.inf  # on the monotonic clock: trials are stopped at their next report after it
        self.exhausted = False  # every combination of a small space was tried

    def until(self, trial: Trial, concurrent: int) -> float:
        """When a trial is to end by itself with what it has, on the monotonic clock; of those that run ``concurrent``
        at once. A sweep lets it go on to its next report.
        """
        return math.inf

    def next(self, running: Collection[tuple[int, int]]) -> Trial | Literal["wait"] | None:
        """The next trial; ``wait`` while it depends on trials that run; None when there is nothing left to do."""
        for key, trial in self.ledger.trials.items():
            if trial.state == "running" and key not in running:
                return trial
        found = self._proposal()
        if found is not None:
            return found
        if running:
            return WAIT
        return self._repetition()

    def config_of(self, trial: Trial) -> Config:
        """The configuration that a trial trains with; not refitted, as it is chosen before that.

        Raises
        ------
        ConfigError
            values that are valid alone but not together.
        """
        config = self.config if trial.number == 0 else self.space.apply(self.config, trial.params)
        return config.model_copy(update={"seed": trial.seed, "train": config.train.model_copy(update={"refit": False})})

    def best_config(self) -> Config:
        """The winner's configuration, as `recsys run` takes it."""
        number = self.best().number
        return self.config if number == 0 else self.space.apply(self.config, self.ledger.of(number)[0].params)

    def standings(self) -> list[Standing]:
        """The configurations with a finished trial: the best first, then by their mean."""
        found = [Standing(trial.number, tuple(self.ledger.of(trial.number))) for trial in self.ledger.searched()]
        with_values = [standing for standing in found if standing.trials[0].state == "finished"]
        chosen = [one for one in with_values if one.number in self._chosen()]
        best = max(chosen, key=lambda one: (one.mean, -one.number), default=None)
        return sorted(with_values, key=lambda one: (one is not best, -one.mean, one.number))

    def best(self) -> Standing:
        """The best mean of those that were repeated; needs a finished trial."""
        return self.standings()[0]

    @property
    def total(self) -> int:
        """Trials at most, repetitions included."""
        return self.config.tune.trials + (self.config.tune.best + 1) * (self.config.tune.seeds - 1)

    def known(self) -> list[Trial]:
        """The trials that teach the sampler: those whose values a proposal could have had."""
        trials = self.ledger.searched()
        if trials and trials[0].number == 0:
            first, rest = trials[0], trials[1:]
            if not self.space.holds(self.config):
                return rest
            own = Trial(**{**vars(first), "params": self.space.values_of(self.config)})
            return [own, *rest]
        return trials

    def _proposal(self) -> Trial | None:
        number, settings = len(self.ledger.searched()), self.config.tune
        if number >= settings.trials or self.exhausted:
            return None
        if number == 0:
            return Trial(0, 0, self.config.seed, {})
        params = propose(
            self.space,
            self.known(),
            number,
            sampler=settings.sampler,
            seed=self.config.seed,
            planned=settings.trials,
        )
        self.exhausted = params is None
        return None if params is None else Trial(number, 0, self.config.seed, params)

    def _repetition(self) -> Trial | None:
        for repeat in range(1, self.config.tune.seeds):
            for number in self._chosen():
                if (number, repeat) not in self.ledger.trials:
                    return Trial(number, repeat, self.config.seed + repeat, self.ledger.of(number)[0].params)
        return None

    def _chosen(self) -> list[int]:
        """The best trials of the search, by their own value, and trial 0."""
        finished = [trial for trial in self.ledger.searched() if trial.state == "finished"]
        ordered = sorted(finished, key=lambda trial: (-(trial.value or 0.0), trial.number))
        numbers = [trial.number for trial in ordered[: self.config.tune.best]]
        return numbers + [trial.number for trial in finished if trial.number == 0 and 0 not in numbers]
