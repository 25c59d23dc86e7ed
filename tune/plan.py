"""Which trial comes next, and which one is best. The ledger decides, so a killed sweep continues
unchanged.

Order: interrupted trials; the given configuration (trial 0); proposals until ``tune.trials``; then,
when no trial runs, the best ones and trial 0 again with other seeds, so that a lucky seed does not
decide.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, Literal

from recsys.config import Config
from recsys.training.members import trained_part
from tune.ledger import Ledger, Trial
from tune.proposals import propose
from tune.space import Space, check_trained

WAIT: Final = "wait"


@dataclass(frozen=True)
class Standing:
    """A configuration with the trials of all its seeds; the mean of the finished ones counts."""

    number: int
    trials: tuple[Trial, ...]

    @property
    def values(self) -> list[float]:
        """Values of the finished trials."""
        return [
            trial.value
            for trial in self.trials
            if trial.state == "finished" and trial.value is not None
        ]

    @property
    def mean(self) -> float:
        """Mean of the values."""
        return statistics.fmean(self.values)


class Plan:
    """The work of a sweep that is left, given its ledger."""

    def __init__(self, config: Config, space: Space, ledger: Ledger) -> None:
        self.config, self.space, self.ledger = config, space, ledger
        # monotonic clock; trials are stopped at their next report after it
        self.deadline = math.inf
        self.exhausted = False  # all combinations of a small space were tried

    def until(self, trial: Trial, concurrent: int) -> float:
        """Time (monotonic clock) at which a trial ends itself with its results so far.

        ``concurrent`` trials run at once. In a sweep a trial continues to its next report.
        """
        return math.inf

    def next(self, running: Collection[tuple[int, int]]) -> Trial | Literal["wait"] | None:
        """The next trial; ``wait`` if it depends on running trials; None if nothing is left."""
        for key, trial in self.ledger.trials.items():
            # running in the ledger, but not here: the last process was killed
            if trial.state == "running" and key not in running:
                return trial
        found = self._proposal()
        if found is not None:
            return found
        # the best trials are known only when all have ended
        if running:
            return WAIT
        return self._repetition()

    def config_of(self, trial: Trial) -> Config:
        """The configuration of a trial, without refit and without the members that stacking adds,
        because trials are compared before both.

        Raises
        ------
        ConfigError
            The values are valid alone but not together, or nothing is trained.
        """
        config = self.config if trial.number == 0 else self.space.apply(self.config, trial.params)
        check_trained(config.model)
        config = trained_part(config)
        return config.model_copy(
            update={"seed": trial.seed, "train": config.train.model_copy(update={"refit": False})}
        )

    def without_checkpoints(self, ended: Trial) -> list[Trial]:
        """The trials whose checkpoints nothing needs any more, now that ``ended`` has ended."""
        return [ended]

    def best_config(self) -> Config:
        """The best configuration, for ``recsys run``."""
        number = self.best().number
        return (
            self.config
            if number == 0
            else self.space.apply(self.config, self.ledger.of(number)[0].params)
        )

    def standings(self) -> list[Standing]:
        """The configurations with a finished trial: the best one first, the others by their
        mean.
        """
        found = [
            Standing(trial.number, tuple(self.ledger.of(trial.number)))
            for trial in self.ledger.searched()
        ]
        with_values = [standing for standing in found if standing.trials[0].state == "finished"]
        chosen = [one for one in with_values if one.number in self._chosen()]
        best = max(chosen, key=lambda one: (one.mean, -one.number), default=None)
        return sorted(with_values, key=lambda one: (one is not best, -one.mean, one.number))

    def best(self) -> Standing:
        """The configuration with the best mean among the repeated ones; needs a finished trial."""
        return self.standings()[0]

    @property
    def total(self) -> int:
        """Maximum number of trials, with repetitions."""
        return self.config.tune.trials + (self.config.tune.best + 1) * (self.config.tune.seeds - 1)

    def known(self) -> list[Trial]:
        """The trials that the sampler learns from: those whose values are in the search space."""
        trials = self.ledger.searched()
        if trials and trials[0].number == 0:
            first, rest = trials[0], trials[1:]
            # the sampler refuses values outside its space
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
                    return Trial(
                        number, repeat, self.config.seed + repeat, self.ledger.of(number)[0].params
                    )
        return None

    def _chosen(self) -> list[int]:
        """The best trials of the search by their own value, and trial 0."""
        finished = [trial for trial in self.ledger.searched() if trial.state == "finished"]
        ordered = sorted(finished, key=lambda trial: (-(trial.value or 0.0), trial.number))
        numbers = [trial.number for trial in ordered[: self.config.tune.best]]
        return numbers + [
            trial.number for trial in finished if trial.number == 0 and 0 not in numbers
        ]
