"""The plan of a search with a budget: the settings of the portfolio, one trial each, until the time
is used up.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from pipelines.plumbing.progress import Progress
from recsys.config import Config
from tune.ledger import Ledger, Trial
from tune.plan import Plan
from tune.space import Space
from tune.trial_lines import Children, TrialLines

MOST_APART: Final = 3  # separately trained models, at most
_FIRST: Final = 0.6  # share of the search for its first trial
_LEAST_SHARE: Final = 2 / 3  # of the epochs of another trial, for a comparison after as many epochs
_SPEAKS_S: Final = 15.0  # seconds between two lines about running trials


class PortfolioLines(TrialLines):
    """The progress lines of a search, with regular lines about running trials and the best so
    far.
    """

    counted = ("finished", "stopped")  # the choice compares them after equally many epochs

    def __init__(
        self, progress: Progress, children: Children, metric: str, names: list[str]
    ) -> None:
        super().__init__(progress, children, metric, len(names))
        self.names, self.last = names, 0.0
        self.values: dict[str, float] = {}  # the best one of each trial that has not failed

    def started(self, trial: Trial, config: Config) -> None:
        """Note the start of a trial."""
        self.progress(f"trial {trial.name} of {len(self.names)}: {self.names[trial.number]}")
        self.count()
        self.children.started(trial, config)

    def epoch(self, trial: Trial, history: list[dict[str, Any]]) -> None:
        """Note an epoch; print a line if the last one was some time ago."""
        super().epoch(trial, history)
        self.values[trial.name] = value = trial.best or 0.0
        leading = max(self.values, key=self.values.__getitem__)
        if is_cut(trial):
            self.progress(
                f"trial {trial.name} has used its share of the time; it ends at epoch"
                f" {max(trial.epochs)}"
            )
        now = (
            f"trial {trial.name} after epoch {max(trial.epochs)}: {self.metric} {value:.4f};"
            f" best so far {self.values[leading]:.4f}, trial {leading}"
        )
        is_due = time.monotonic() - self.last > _SPEAKS_S
        if is_due:
            self.last = time.monotonic()
        self.count(now, now if is_due else "")

    def ended(self, trial: Trial) -> None:
        """Note the end of a trial; a failed one is not the best so far."""
        if trial.state == "failed":
            self.values.pop(trial.name, None)
        super().ended(trial)


class Portfolio(Plan):
    """The settings of the portfolio, one trial each, in order, until the time is used up, or until
    the first one shows that none can be trained in time.
    """

    def __init__(
        self,
        configs: list[Config],
        names: list[str],
        ledger: Ledger,
        deadline: float,
        is_hopeless: Callable[[Trial], bool] = lambda trial: False,
    ) -> None:
        super().__init__(configs[0], Space(()), ledger)
        self._is_hopeless = is_hopeless
        self.configs, self.names, self.deadline = configs, names, deadline
        self.clock: Callable[[], float] = time.monotonic
        self.begun = self.clock()

    def config_of(self, trial: Trial) -> Config:
        """The configuration of a trial."""
        config = self.configs[trial.number]
        return config.model_copy(update={"train": config.train.model_copy(update={"refit": False})})

    def until(self, trial: Trial, concurrent: int) -> float:
        """The deadline; earlier for the first trial if others wait for it, so that a second one has
        time.
        """
        if trial.number or concurrent > 1 or len(self.configs) == 1:
            return self.deadline
        return self.begun + _FIRST * (self.deadline - self.begun)

    def usable(self) -> list[Trial]:
        """The trials with a validated epoch, without failed ones, which would fail again."""
        return [
            trial
            for trial in self.ledger.searched()
            if trial.best is not None and trial.state != "failed"
        ]

    def best_trial(self) -> Trial | None:
        """The trial with the best validated epoch; None without a usable one.

        If no trial finished, trials are compared pairwise, by their values after the same number
        of epochs and by their best ones.
        """
        found = [trial for trial in self.usable() if trial.epochs]
        if any(trial.state == "finished" and not is_cut(trial) for trial in found):
            return max(found, key=lambda trial: (trial.best or 0.0, -trial.number))
        best: Trial | None = None
        for trial in found:
            if best is None or _is_ahead(trial, best):
                best = trial
        return best

    def without_checkpoints(self, ended: Trial) -> list[Trial]:
        """The ended trials except for the best ones, which the trainings may continue."""
        best = self.best_trial()
        over = [trial for trial in self.ledger.trials.values() if trial.state != "running"]
        over.sort(key=lambda trial: (trial is not best, -(trial.best or 0.0)))
        kept = [trial for trial in over if trial.state != "failed"][: 1 + MOST_APART]
        return [trial for trial in over if trial not in kept]

    def _proposal(self) -> Trial | None:
        searched = self.ledger.searched()
        number = len(searched)
        if number >= len(self.configs) or (number and self.clock() > self.deadline):
            return None
        if number and is_cut(searched[0]) and self._is_hopeless(searched[0]):
            return None
        return Trial(number, 0, self.config.seed, {"setting": self.names[number]})

    def _repetition(self) -> Trial | None:
        return None


def is_ended(trial: Trial) -> bool:
    """Whether a trial came to its own end: all epochs, or no improvement for long enough."""
    return trial.state == "finished" and bool(trial.epochs) and not is_cut(trial)


def is_cut(trial: Trial) -> bool:
    """Whether a trial ended because its time was used up."""
    return bool(trial.history) and "share" in trial.history[max(trial.history)]


def _is_ahead(trial: Trial, other: Trial) -> bool:
    """Whether a trial is better than another: the product of its values after the same number of
    epochs and in its best epoch is larger.

    The first epochs say little, and a higher learning rate is ahead in them: a small lead there
    does not beat an epoch that is much better. With less than two thirds of the other's epochs,
    each trial counts with its best one alone.
    """
    ends = sorted((max(trial.epochs), max(other.epochs)))
    most = ends[0] if _LEAST_SHARE * ends[1] <= ends[0] else ends[1]
    values = [
        max((epoch["value"] for number, epoch in one.epochs.items() if number <= most), default=0.0)
        * (one.best or 0.0)
        for one in (trial, other)
    ]
    return values[0] > values[1]
