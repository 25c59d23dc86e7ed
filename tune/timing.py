"""What fits into the time that is left after a search: epochs, a continued trial, separate models.

Measured seconds per epoch predict the trainings: the one that chooses the epoch, with validation
events (refit), with all events (final).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final, NamedTuple

from pipelines.plumbing.budget import LEAST_RESERVE, RESERVE
from recsys.auto.portfolio import Setting, with_separate_model
from recsys.config import Config, TrainConfig
from recsys.training.time_limit import seconds_an_epoch
from tune.ledger import Trial
from tune.portfolio_plan import MOST_APART, Portfolio, is_ended

STARTS_S: Final = 8.0  # seconds that the workers of one training need to start
_TOO_FEW: Final = 0.1  # share of the planned epochs; with fewer, nothing is trained
_FASTER: Final = 4  # the settings after the first one may need a quarter of its time, not less
# times the epochs that fit from scratch: then an unfinished schedule is better
_MUCH_LONGER: Final = 2
_HOPED: Final = 2.0  # times the remaining time that separate models may need at the pace of trials
_NEAR: Final = 0.8  # a separately trained model needs this share of the best setting's value
_EVALUATION: Final = 0.25  # share of the remaining time for the rankings of the evaluation
# rankings of the evaluated users: members alone and left out, baselines with all their constants
_RANKINGS: Final = 40
_SCORE_S: Final = 5e-9  # seconds for one score of a ranking on two cores
_LEAST_USERS: Final = 2_000  # evaluated users, even if they take longer


class Costs(NamedTuple):
    """Epochs or seconds: of the training that is evaluated, with its refit, and on all events."""

    evaluated: float
    final: float


def users_in_time(items: int, seconds: float) -> int:
    """Number of users that can be evaluated if this much time is left for the whole run.

    Parameters
    ----------
    items : int
        Number of items; every ranking scores all of them.
    seconds : float
        Remaining time.

    Examples
    --------
    >>> users_in_time(40_000, 1200.0), users_in_time(1_000_000, 1200.0)
    (37500, 2000)
    """
    found = _EVALUATION * seconds / (_RANKINGS * _SCORE_S * max(items, 1))
    return max(int(found), _LEAST_USERS)


def cost_of(best: Trial, train: TrainConfig, done: int = 0) -> Costs:
    """Expected seconds of the trainings of a configuration, from the measured time of an epoch.

    Parameters
    ----------
    best : Trial
        The trial whose epochs were measured.
    train : TrainConfig
        Section ``train`` of the configuration to train.
    done : int
        Number of epochs of the first training that exist already.

    Returns
    -------
    Costs
        Seconds.
    """
    return Costs(*(pace_of(best) * epochs for epochs in epochs_of(best, train, done)))


def epochs_of(trial: Trial, train: TrainConfig, done: int = 0) -> Costs:
    """Expected epochs of the trainings of a configuration; ``done`` epochs of the first one exist.

    If the trial finished: its epochs, and its best epoch for each further training. If it was
    stopped: the planned epochs.

    Parameters
    ----------
    trial : Trial
        The trial whose epochs were measured.
    train : TrainConfig
        Section ``train`` of the configuration to train.
    done : int
        Number of epochs of the first training that exist already.

    Returns
    -------
    Costs
        Numbers of epochs.
    """
    first = chosen = train.epochs
    if is_ended(trial):
        first = min(first, max(trial.history, default=first))
        chosen = min(chosen, max(trial.epochs, key=lambda epoch: trial.epochs[epoch]["value"]))
    return Costs(max(first - done, 0) + chosen * train.refit, chosen * train.final)


def _trainings(train: TrainConfig) -> int:
    """Number of trainings: to choose the epoch, with validation events (refit), with all events
    (final).
    """
    return 1 + train.refit + train.final


def pace_of(trial: Trial) -> float:
    """Mean seconds per epoch of a trial; 0 without an epoch."""
    return seconds_an_epoch(list(trial.history.values()))


def _affordable(trial: Trial, deadline: float) -> float:
    """Epochs that fit into the remaining time."""
    left = deadline - time.monotonic()
    return (left - max(LEAST_RESERVE, RESERVE * left)) / pace_of(trial)


def in_time(config: Config, best: Trial, deadline: float) -> Config | None:
    """The configuration with as many epochs as fit into the remaining time; None if these are too
    few.

    The measured time of an epoch decides.

    Parameters
    ----------
    config : Config
        The configuration to train from scratch.
    best : Trial
        The trial with the measured seconds per epoch; without any, ``config`` is unchanged.
    deadline : float
        End of the time, on the monotonic clock, in seconds.

    Returns
    -------
    Config | None
        The configuration with ``train.epochs`` and ``train.evaluate_every`` set.
    """
    if not pace_of(best):
        return config
    affordable = _affordable(best, deadline)
    wanted = config.train.epochs
    least, epochs = _least_epochs(wanted), wanted
    if sum(epochs_of(best, config.train)) > affordable:
        # the final one may continue instead
        counts = (_trainings(config.train), _trainings(config.train) - config.train.final)
        epochs = next(
            (fit for count in counts if (fit := int(min(wanted, affordable / count))) >= least), 0
        )
    if epochs < least:
        return None
    every = max(1, min(config.train.evaluate_every, epochs // 4))
    changes = {"epochs": epochs, "evaluate_every": every}
    return config.model_copy(update={"train": config.train.model_copy(update=changes)})


def _least_epochs(wanted: int) -> float:
    """The smallest number of epochs of a training that is worth its time."""
    return min(wanted, max(1, _TOO_FEW * wanted))


def is_hopeless(first: Trial, train: TrainConfig, deadline: float) -> bool:
    """Whether no setting can be trained in time, after the pace of the first one.

    Parameters
    ----------
    first : Trial
        The trial of the first setting, which was stopped.
    train : TrainConfig
        Section ``train`` of this setting.
    deadline : float
        End of the whole run, on the monotonic clock, in seconds.
    """
    if not pace_of(first):
        return False
    least = _least_epochs(train.epochs) * (1 + train.refit)
    return _FASTER * _affordable(first, deadline) < least


def continued(
    config: Config, plan: Portfolio, best: Trial, done: int, deadline: float
) -> tuple[Config | None, int]:
    """The configuration of the chosen training, and the epoch of its trial after which it
    continues; 0 from scratch.

    The training continues unless a shorter schedule from scratch fits the time much better: then,
    the trial was stopped at a high learning rate that would never decay. If only a few of its
    epochs fit either way, the trial's weights are used as they are.

    Parameters
    ----------
    done : int
        The epoch of the trial's checkpoint; 0 without one.
    """
    fresh = in_time(config, best, deadline)
    if not done or not pace_of(best):
        return fresh, 0
    wanted = config.train.epochs
    if not is_ended(best):
        reached = (done + _affordable(best, deadline)) / (1 + config.train.refit)
        if fresh is not None and reached < min(wanted, _MUCH_LONGER * fresh.train.epochs):
            return fresh, 0
        if reached < _least_epochs(wanted):
            # its weights cost nothing more, and the members get the time
            short = config.train.model_copy(update={"epochs": done, "refit": False})
            return config.model_copy(update={"train": short}), done
    tried = plan.configs[best.number].train
    changes = {"evaluate_every": tried.evaluate_every, "patience": tried.patience}
    return config.model_copy(update={"train": config.train.model_copy(update=changes)}), done


def with_apart(
    config: Config,
    plan: Portfolio,
    portfolio: list[Setting],
    best: Trial,
    left: float,
    done: Mapping[int, int],
) -> tuple[Config, dict[str, Costs], list[Trial]]:
    """Add separately trained models to the configuration, as many as may fit into the remaining
    time.

    These are the next best settings, in turn with the best setting from another seed. The pace of a
    trial is that of a machine that may have been busy; a model that does not fit at the pace of the
    training before it is left out then (see :meth:`pipelines.plumbing.budget.Budget.holds`).

    Parameters
    ----------
    left : float
        Seconds after the training of the chosen setting, with the reserve.
    done : Mapping[int, int]
        Epochs of the trials, by number, that a separate training with the same seed continues.

    Returns
    -------
    tuple
        The configuration, the expected seconds of each model by its description, and the trials
        that are continued.
    """
    trials = [trial for trial in plan.usable() if trial.number != best.number]
    good = [trial for trial in trials if (trial.best or 0.0) >= _NEAR * (best.best or 0.0)]
    good.sort(key=lambda trial: (-(trial.best or 0.0), trial.number))
    others = [(trial, 0) for trial in good]
    ways = [*others[:1], (best, 1), *others[1:], (best, 2)][:MOST_APART]
    left -= max(LEAST_RESERVE, RESERVE * (left + sum(cost_of(best, config.train))))
    spent, used = dict[str, Costs](), list[Trial]()
    for trial, seed in ways:
        cost = cost_of(trial, config.train, 0 if seed else done.get(trial.number, 0))
        cost = Costs(
            cost.evaluated + STARTS_S * (1 + config.train.refit),
            cost.final + STARTS_S * config.train.final,
        )
        if not pace_of(trial) or sum(map(sum, [*spent.values(), cost])) > _HOPED * left:
            continue
        config = with_separate_model(config, portfolio[trial.number], seed)
        spent[portfolio[trial.number].name + (f", seed + {seed}" if seed else "")] = cost
        used += [trial] if not seed else []
    return config, spent, used
