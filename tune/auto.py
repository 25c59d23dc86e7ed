"""``model: auto`` with a budget: try a portfolio of settings on Ray Tune, stop most early, use the
best.

The budget covers the whole ``recsys run``. A share of the time left after ``prepare`` goes to the
search; the rest must be enough for the trainings of the chosen setting (select, refit, final), the
closed-form members and the evaluation. The number of epochs of the chosen setting is limited by the
measured time per epoch, so that the run ends in time. If the training of the chosen setting is the
same as its trial, it continues from the trial's last checkpoint instead of starting again.

The first trial leaves time for a second one: if it has not ended by then, it is stopped, and the
two are compared after the same number of epochs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, NamedTuple

from pipelines.plumbing.budget import LEAST_RESERVE, RESERVE, Budget, span
from pipelines.plumbing.folder import HeadStart, RunFolder
from pipelines.plumbing.progress import Progress
from pipelines.plumbing.session import ray_session
from pipelines.plumbing.tracking import tracked
from pipelines.trained import trains_here
from recsys.auto.portfolio import UNTRAINED, Setting, configured, settings, with_separate_model
from recsys.auto.traits import Traits
from recsys.config import Config
from recsys.data.dataset import PreparedDataset
from recsys.training.apart import sections
from recsys.training.checkpoint import load_checkpoint
from recsys.training.loop import seconds_an_epoch
from recsys.training.members import trained_only
from recsys.training.resume import training_digest
from tune.here import run_here
from tune.ledger import Ledger, Trial
from tune.plan import Plan
from tune.ray_tune import run_trials
from tune.search import Place, training_seconds
from tune.slots import slots_of_cluster
from tune.space import Space
from tune.trial import forget_checkpoints, last_checkpoint
from tune.watching import Children, Lines

_SEARCH: Final = 0.35  # share of the remaining time for the search
_FIRST: Final = 0.6  # share of the search for its first trial
_TOO_FEW: Final = 0.1  # share of the planned epochs; with fewer, nothing is trained
_MOST_APART: Final = 3
_MUCH_LONGER: Final = (
    2  # times the epochs that fit from scratch; then an unfinished schedule is better
)
_NEAR: Final = 0.8  # a separately trained model needs this share of the best setting's value
_STARTS_S: Final = 8.0  # seconds that the workers of one training need to start
_RUNGS: Final = 8  # the first rung is after 1/8 of the epochs …
_SHORT_S: Final = 150.0  # … or after 1/16 if the search is shorter than this
_REDUCTION: Final = 3
_SPEAKS_S: Final = 15.0  # seconds between two lines about running trials


class Spoken(Lines):
    """The progress lines of a search, with regular lines about running trials and the best so
    far.
    """

    def __init__(
        self, progress: Progress, children: Children, metric: str, names: list[str]
    ) -> None:
        super().__init__(progress, children, metric, len(names))
        self.names, self.leading, self.last = names, ("", 0.0), 0.0

    def started(self, trial: Trial, config: Config) -> None:
        """Note the start of a trial."""
        self.progress(f"trial {trial.name} of {len(self.names)}: {self.names[trial.number]}")
        self.children.started(trial, config)

    def epoch(self, trial: Trial, history: list[dict[str, Any]]) -> None:
        """Note an epoch; print a line if the last one was some time ago."""
        super().epoch(trial, history)
        value = trial.best or 0.0
        if value > self.leading[1]:
            self.leading = trial.name, value
        if _is_cut(trial):
            self.progress(
                f"trial {trial.name} has used its share of the time; it ends at epoch"
                f" {max(trial.epochs)}"
            )
        if time.monotonic() - self.last > _SPEAKS_S:
            self.last = time.monotonic()
            self.progress(
                f"trial {trial.name} after epoch {max(trial.epochs)}: {self.metric} {value:.4f};"
                f" best so far {self.leading[1]:.4f}, trial {self.leading[0]}"
            )


class Portfolio(Plan):
    """The settings of the portfolio, one trial each, in order, until the time is used up."""

    def __init__(
        self, configs: list[Config], names: list[str], ledger: Ledger, deadline: float
    ) -> None:
        super().__init__(configs[0], Space(()), ledger)
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

    def best_trial(self) -> Trial | None:
        """The trial with the best validated epoch, finished or stopped; None if none was validated.

        If no trial finished, trials are compared pairwise after the same number of epochs.
        """
        found = [
            trial for trial in self.ledger.searched() if trial.best is not None and trial.epochs
        ]
        if any(trial.state == "finished" and not _is_cut(trial) for trial in found):
            return max(found, key=lambda trial: (trial.best or 0.0, -trial.number))
        best: Trial | None = None
        for trial in found:
            if best is None or _is_ahead(trial, best):
                best = trial
        return best

    def without_checkpoints(self, ended: Trial) -> list[Trial]:
        """The ended trials except for the best one, which the training may continue."""
        best = self.best_trial()
        return [
            trial
            for trial in self.ledger.trials.values()
            if trial.state != "running" and trial is not best
        ]

    def _proposal(self) -> Trial | None:
        number = len(self.ledger.searched())
        if number >= len(self.configs) or (number and self.clock() > self.deadline):
            return None
        return Trial(number, 0, self.config.seed, {"setting": self.names[number]})

    def _repetition(self) -> Trial | None:
        return None


def search(
    config: Config, dataset: PreparedDataset, folder: RunFolder, traits: Traits, deadline: float
) -> tuple[Config, list[str]]:
    """Choose a setting on validation.

    Parameters
    ----------
    config : Config
        Without a section ``model``.
    deadline : float
        Time at which the whole run should end (``time.monotonic``).

    Returns
    -------
    tuple[Config, list[str]]
        The whole configuration, and lines that describe the search.
    """
    portfolio = settings(traits)
    if not portfolio:
        folder.progress(UNTRAINED)
        return configured(config, traits, None), [UNTRAINED]
    left = deadline - time.monotonic()
    if left <= LEAST_RESERVE:
        spent = "is used up" if left <= 0 else f"has {left:.0f} s left"
        why = (
            f"the budget of {config.run.budget} {spent} after prepare, too little for a training:"
            " only closed-form members are used; a larger run.budget also tries trained models"
        )
        folder.progress(why)
        return configured(config, traits, None), [why]
    is_here = trains_here(config, folder.budget)
    until = time.monotonic() + _SEARCH * left
    folder.progress(
        f"budget: {span(left)} left: up to {span(_SEARCH * left)} to try {len(portfolio)} settings,"
        " the rest to train, evaluate and register"
    )
    begun = time.monotonic()
    plan = _try_all(config, dataset, folder, traits, portfolio, until)
    start_s = 0.0 if is_here else _start_seconds(plan, time.monotonic() - begun)
    best = plan.best_trial()
    if best is None:
        return configured(config, traits, portfolio[0]), [
            "no setting was validated in time: the first one is used"
        ]
    chosen = portfolio[best.number]
    said = [
        f"setting {plan.names[trial.number]}: {config.train.metric} {trial.best:.4f} on validation,"
        f" {trial.state}"
        for trial in plan.ledger.searched()
        if trial.best is not None
    ]
    trains = 1 + (
        config.train.final or "final" not in config.train.model_fields_set
    )  # number of times that workers start
    whole, done = _continued(
        configured(config, traits, chosen), plan, best, folder, deadline - trains * start_s
    )
    if whole is None:
        said.append(
            "the remaining time is too short for a training: only closed-form members are used"
        )
        folder.progress("\n".join(said))
        return configured(config, traits, None), said
    cost = _cost(best, whole, done)
    whole, apart, more = _with_apart(
        whole, plan, portfolio, best, deadline - time.monotonic() - sum(cost)
    )
    expected = {"trained": cost} | dict(zip(sections(whole), more, strict=True))
    if folder.budget is not None:
        _expect(folder.budget, expected, start_s, whole.train.final)
    _settle_head_start(done > 0, whole, dataset, folder, best)
    total = sum(map(sum, expected.values()))
    said.append(f"estimate: {span(total)} to train, {span(deadline - time.monotonic())} left")
    said.append(
        f"chosen: {chosen.name}, {whole.train.epochs} epochs"
        + f", continued after epoch {done}" * bool(done)
    )
    if apart:
        said.append(f"trained separately as further members: {'; '.join(apart)}")
    folder.progress("\n".join(said))
    return whole, said


def _start_seconds(plan: Portfolio, seconds: float) -> float:
    """Seconds that workers need to start, measured as the time of the search's processes without
    training.
    """
    trials = plan.ledger.searched()
    trained = sum(training_seconds(trial) for trial in trials)
    return (
        max(_STARTS_S, (seconds - trained) / max(len(trials), 1))
        if seconds > trained
        else _STARTS_S
    )


def _expect(budget: Budget, costs: dict[str, Costs], start_s: float, trains_final: bool) -> None:
    """Store the expected seconds of the trainings in the budget, by name.

    These are the chosen trainings and, if the time allows, the trainings on all events.
    """
    left = budget.left
    has_room = trains_final and sum(map(sum, costs.values())) <= left - max(
        LEAST_RESERVE, RESERVE * left
    )
    final = {name: has_room * cost.final for name, cost in costs.items()}
    budget.expected = {name: sum(cost) - final[name] for name, cost in costs.items()}
    budget.expected |= {f"{name}, final": cost for name, cost in final.items()} | {
        "final": sum(final.values())
    }
    budget.start_s = start_s


def _try_all(
    config: Config,
    dataset: PreparedDataset,
    folder: RunFolder,
    traits: Traits,
    portfolio: list[Setting],
    until: float,
) -> Portfolio:
    """Run the portfolio; an earlier search in the folder is not reused, because its time was
    another.
    """
    place = folder.root / "trials" / "ledger.jsonl"
    place.unlink(missing_ok=True)
    epochs = max(setting.train.get("epochs", 1) for setting in portfolio)
    is_short = until - time.monotonic() < _SHORT_S
    rung = max(1, epochs // (2 * _RUNGS if is_short else _RUNGS))
    tuning = config.tune.model_copy(
        update={"min_epochs": rung, "reduction": _REDUCTION, "trials": len(portfolio)}
    )
    config = config.model_copy(update={"tune": tuning})
    configs = [trained_only(configured(config, traits, setting)) for setting in portfolio]
    if is_short:
        configs = [_validated_every(config, rung) for config in configs]
    names = [setting.name for setting in portfolio]
    plan = Portfolio(configs, names, Ledger(place), until)
    plan.ledger.begin({"dataset": dataset.manifest.content_hash, "portfolio": names})
    with (
        tracked(config, folder, fresh=True) as tracker,
        ray_session(config),
        Children(tracker, folder.progress) as kids,
    ):
        slots = slots_of_cluster(plan.config, dataset.num_items, folder.progress)
        lines, place = (
            Spoken(folder.progress, kids, config.train.metric, names),
            (folder.root / "trials").absolute(),
        )
        if trains_here(config, folder.budget):
            run_here(plan, Place(dataset.root, place), replace(slots, concurrent=1), lines)
        else:
            run_trials(plan, Place(dataset.root, place), slots, lines)
    return plan


def _in_time(config: Config, best: Trial, deadline: float) -> Config | None:
    """The configuration with as many epochs as fit into the remaining time; None if these are too
    few.

    The measured time of an epoch decides.
    """
    if not _seconds_an_epoch(best):
        return config
    affordable = _affordable(best, deadline)
    wanted = config.train.epochs
    least, epochs = min(wanted, max(1, _TOO_FEW * wanted)), wanted
    if sum(_epochs(best, config)) > affordable:
        counts = (
            _trainings(config),
            _trainings(config) - config.train.final,
        )  # the final one may continue instead
        epochs = next(
            (fit for count in counts if (fit := int(min(wanted, affordable / count))) >= least), 0
        )
    if epochs < least:
        return None
    every = max(1, min(config.train.evaluate_every, epochs // 4))
    changes = {"epochs": epochs, "evaluate_every": every}
    return config.model_copy(update={"train": config.train.model_copy(update=changes)})


def _continued(
    config: Config, plan: Portfolio, best: Trial, folder: RunFolder, deadline: float
) -> tuple[Config | None, int]:
    """The configuration of the chosen training, and the epoch of its trial after which it
    continues.

    The training continues unless a shorter schedule from scratch fits the time much better: then,
    the trial was stopped at a high learning rate that would never decay. Without a checkpoint or
    with fewer epochs the epoch is 0.
    """
    anew, checkpoint = (
        _in_time(config, best, deadline),
        last_checkpoint(folder.root / "trials" / best.name),
    )
    if checkpoint is None or not _seconds_an_epoch(best):
        return anew, 0
    done, wanted = load_checkpoint(checkpoint, None)[2].epoch, config.train.epochs
    if not _is_ended(best):
        reached = (done + _affordable(best, deadline)) / (1 + config.train.refit)
        if anew is not None and reached < min(wanted, _MUCH_LONGER * anew.train.epochs):
            return anew, 0
    tried = plan.configs[best.number].train
    changes = {"evaluate_every": tried.evaluate_every, "patience": tried.patience}
    return config.model_copy(update={"train": config.train.model_copy(update=changes)}), done


def _settle_head_start(
    continues: bool, config: Config, dataset: PreparedDataset, folder: RunFolder, best: Trial
) -> None:
    """Tell the training where the checkpoint of its trial is, or remove it."""
    place = folder.root / "trials" / best.name
    checkpoint = last_checkpoint(place)
    if continues and checkpoint is not None:
        folder.head_start = HeadStart(training_digest(config, dataset, None), checkpoint)
    else:
        forget_checkpoints(place)


def _affordable(trial: Trial, deadline: float) -> float:
    """Epochs that fit into the remaining time."""
    left = deadline - time.monotonic()
    return (left - max(LEAST_RESERVE, RESERVE * left)) / _seconds_an_epoch(trial)


def _with_apart(
    config: Config, plan: Portfolio, portfolio: list[Setting], best: Trial, left: float
) -> tuple[Config, list[str], list[Costs]]:
    """Add separately trained models to the configuration, as many as fit into the remaining time.

    These are the next best settings, in turn with the best setting from another seed.

    Parameters
    ----------
    left : float
        Seconds after the training of the chosen setting, with the reserve.

    Returns
    -------
    tuple
        The configuration, descriptions of the models, and the expected seconds of each.
    """
    trials = [
        trial
        for trial in plan.ledger.searched()
        if trial.best is not None and trial.number != best.number
    ]
    good = [trial for trial in trials if (trial.best or 0.0) >= _NEAR * (best.best or 0.0)]
    good.sort(key=lambda trial: (-(trial.best or 0.0), trial.number))
    others = [(trial, 0) for trial in good]
    ways = [*others[:1], (best, 1), *others[1:], (best, 2)][:_MOST_APART]
    left -= max(LEAST_RESERVE, RESERVE * (left + sum(_cost(best, config))))
    said, spent = list[str](), list[Costs]()
    for trial, seed in ways:
        cost = _cost(trial, config)
        cost = Costs(
            cost.evaluated + _STARTS_S * (1 + config.train.refit),
            cost.final + _STARTS_S * config.train.final,
        )
        if not _seconds_an_epoch(trial) or sum(map(sum, [*spent, cost])) > left:
            continue
        config, spent = with_separate_model(config, portfolio[trial.number], seed), [*spent, cost]
        said.append(portfolio[trial.number].name + (f", seed + {seed}" if seed else ""))
    return config, said, spent


class Costs(NamedTuple):
    """Epochs or seconds: of the training that is evaluated, with its refit, and on all events."""

    evaluated: float
    final: float


def _cost(best: Trial, config: Config, done: int = 0) -> Costs:
    """Expected seconds of the trainings of a configuration, from the measured time of an epoch."""
    return Costs(*(_seconds_an_epoch(best) * epochs for epochs in _epochs(best, config, done)))


def _epochs(trial: Trial, config: Config, done: int = 0) -> Costs:
    """Expected epochs of the trainings of a configuration; ``done`` epochs of the first one exist.

    If the trial finished: its epochs, and its best epoch for each further training. If it was
    stopped: the planned epochs.
    """
    first = chosen = config.train.epochs
    if _is_ended(trial):
        first = min(first, max(trial.history, default=first))
        chosen = min(chosen, max(trial.epochs, key=lambda epoch: trial.epochs[epoch]["value"]))
    return Costs(max(first - done, 0) + chosen * config.train.refit, chosen * config.train.final)


def _trainings(config: Config) -> int:
    """Number of trainings: to choose the epoch, with validation events (refit), with all events
    (final).
    """
    return 1 + config.train.refit + config.train.final


def _validated_every(config: Config, epochs: int) -> Config:
    """The configuration with validation every few epochs, so that fewer epochs still allow early
    stopping.
    """
    train = config.train
    every = min(train.evaluate_every, epochs)
    patience = -(-train.patience * train.evaluate_every // every)
    return config.model_copy(
        update={"train": train.model_copy(update={"evaluate_every": every, "patience": patience})}
    )


def _seconds_an_epoch(trial: Trial) -> float:
    return seconds_an_epoch(list(trial.history.values()))


def _is_ended(trial: Trial) -> bool:
    """Whether a trial came to its own end: all epochs, or no improvement for long enough."""
    return trial.state == "finished" and bool(trial.epochs) and not _is_cut(trial)


def _is_cut(trial: Trial) -> bool:
    """Whether a trial ended because its time was used up."""
    return bool(trial.history) and "share" in trial.history[max(trial.history)]


def _is_ahead(trial: Trial, other: Trial) -> bool:
    """Whether a trial is better than another after the same number of epochs."""
    most = min(max(trial.epochs), max(other.epochs))
    values = [
        max((epoch["value"] for number, epoch in one.epochs.items() if number <= most), default=0.0)
        for one in (trial, other)
    ]
    return values[0] > values[1]
