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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from pipelines.plumbing.budget import ITEM_S, LEAST_RESERVE, RESERVE, Budget, span
from pipelines.plumbing.run_folder import RunFolder
from pipelines.plumbing.run_tracking import tracked
from pipelines.plumbing.session import ray_session
from pipelines.plumbing.trained import trains_here
from recsys.auto.portfolio import UNTRAINED, Setting, configured, settings
from recsys.auto.traits import Traits
from recsys.config import Config
from recsys.data.dataset import PreparedDataset
from recsys.training.checkpoint import load_progress
from recsys.training.members import trained_only, trained_part
from recsys.training.resume import training_digest
from recsys.training.separate_models import own_config, sections
from tune.in_process import run_in_process
from tune.ledger import Ledger, Trial
from tune.portfolio_plan import Portfolio, PortfolioLines, is_ended
from tune.ray_tune import run_trials
from tune.searcher import TrialPaths, training_seconds
from tune.slots import slots_of_cluster
from tune.timing import (
    STARTS_S,
    Costs,
    continued,
    cost_of,
    is_hopeless,
    users_in_time,
    with_apart,
)
from tune.trial import forget_checkpoints, last_checkpoint
from tune.trial_lines import Children

_SEARCH: Final = 0.35  # share of the remaining time for the search
_RUNGS: Final = 8  # the first rung is after 1/8 of the epochs …
_SHORT_S: Final = 150.0  # … or after 1/16 if the search is shorter than this
_REDUCTION: Final = 3


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
    left = deadline - time.monotonic()
    config = _evaluated_in_time(config, dataset, folder, left)
    portfolio = settings(traits)
    kept_s = ITEM_S * dataset.num_items
    deadline -= kept_s
    if folder.budget is not None:
        folder.budget.kept_s = kept_s
    if not portfolio:
        return _untrained(config, folder, traits, UNTRAINED)
    if left - kept_s <= LEAST_RESERVE:
        spent = "is used up" if left <= 0 else f"has {left:.0f} s left"
        why = (
            f"the budget of {config.run.budget} {spent} after prepare, too little for a training"
            f" and the evaluation with {dataset.num_items:,} items: only closed-form members are"
            " used; a larger run.budget also tries trained models"
        )
        return _untrained(config, folder, traits, why)
    is_here = trains_here(config.train, config.ray, folder.budget)
    folder.progress(
        f"budget: {span(left)} left: up to {span(_SEARCH * (left - kept_s))} to try"
        f" {len(portfolio)} settings, the rest to train, evaluate and register"
    )
    begun = time.monotonic()
    paths = TrialPaths(dataset.root, (folder.root / "trials").absolute())
    plan = _try_all(config, dataset, folder, traits, portfolio, deadline, paths)
    start_s = 0.0 if is_here else _start_seconds(plan, time.monotonic() - begun)
    best = plan.best_trial()
    if best is None:
        return configured(config, traits, portfolio[0]), [
            *_results(plan, config.train.metric),
            "every setting failed, or none was validated in time: the first one is used",
        ]
    lines = _results(plan, config.train.metric)
    searched = _Searched(config, dataset, folder, traits, portfolio, plan, paths)
    whole, more = _settle(searched, best, deadline, start_s)
    folder.progress("\n".join([*lines, *more]))
    return whole, [*lines, *more]


def _evaluated_in_time(
    config: Config, dataset: PreparedDataset, folder: RunFolder, left: float
) -> Config:
    """The configuration with as many evaluated users as the time allows; unchanged if the user set
    their number.
    """
    most = users_in_time(dataset.num_items, left)
    evaluate = config.evaluate
    if (
        "max_users" in evaluate.model_fields_set
        or min(dataset.num_users, evaluate.max_users) <= most
    ):
        return config
    tested = int(dataset.held_out_V.sum())
    if most < tested:
        folder.progress(
            f"evaluation: an even sample of about {most:,} of {tested:,} users with held-out"
            " events, so that it fits into the budget; evaluate.max_users sets another number"
        )
    return config.model_copy(update={"evaluate": evaluate.model_copy(update={"max_users": most})})


def _untrained(
    config: Config, folder: RunFolder, traits: Traits, why: str
) -> tuple[Config, list[str]]:
    """The configuration with closed-form members only, and the reason."""
    folder.progress(why)
    return configured(config, traits, None), [why]


def _results(plan: Portfolio, metric: str) -> list[str]:
    """A line for every setting that was validated."""
    return [
        f"setting {plan.names[trial.number]}: {metric} {trial.best:.4f} on validation,"
        f" {trial.state}"
        for trial in plan.ledger.searched()
        if trial.best is not None
    ]


@dataclass(frozen=True)
class _Searched:
    """A search that has ended."""

    config: Config
    dataset: PreparedDataset
    folder: RunFolder
    traits: Traits
    portfolio: list[Setting]
    plan: Portfolio
    paths: TrialPaths


def _settle(
    searched: _Searched, best: Trial, deadline: float, start_s: float
) -> tuple[Config, list[str]]:
    """The configuration of the best trial with the epochs and the separate models that fit into the
    time, and lines that describe it; the budget and the run folder learn its trainings.
    """
    config, folder, plan, paths = searched.config, searched.folder, searched.plan, searched.paths
    chosen = searched.portfolio[best.number]
    # each training starts its workers again
    starts = 1 + (config.train.final or "final" not in config.train.model_fields_set)
    saved = {trial.number: last_checkpoint(paths.of(trial)) for trial in plan.ledger.searched()}
    tried = {number: load_progress(one).epoch for number, one in saved.items() if one is not None}
    whole, done = continued(
        configured(config, searched.traits, chosen),
        plan,
        best,
        tried.get(best.number, 0),
        deadline - starts * start_s,
    )
    if whole is None:
        _forget_others(plan, paths, [])
        return configured(config, searched.traits, None), [
            "the remaining time is too short for a training: only closed-form members are used"
        ]
    # the weights of the trial as they are, for which no time is kept
    is_short = whole.train.epochs == done and not is_ended(best)
    cost = Costs(0.0, 0.0) if is_short else cost_of(best, whole.train, done)
    left = deadline - time.monotonic() - sum(cost)
    apart, others = dict[str, Costs](), list[Trial]()
    if not is_short:
        whole, apart, others = with_apart(
            whole, plan, searched.portfolio, best, left, tried if done else {}
        )
    expected = {"trained": cost} | dict(zip(sections(whole.model), apart.values(), strict=True))
    if folder.budget is not None:
        _expect(folder.budget, expected, start_s, whole.train.final)
    to_continue = [best, *others] if done else []
    folder.head_starts = _head_starts(
        whole, searched.dataset, [saved[trial.number] for trial in to_continue]
    )
    _forget_others(plan, paths, to_continue)
    left = deadline - time.monotonic()
    if is_short:
        lines = [
            f"chosen: {chosen.name}, with its weights after epoch {done}: too few epochs fit into"
            f" the remaining {span(left)}, which the members get"
        ]
    else:
        lines = [
            f"estimate: {span(sum(cost))} to train the chosen setting, {span(left)} left",
            f"chosen: {chosen.name}, {whole.train.epochs} epochs"
            + f", continued after epoch {done}" * bool(done),
        ]
    if apart:
        models = "; ".join(apart)
        lines.append(f"trained separately as further members, if the time allows: {models}")
    return whole, lines


def _start_seconds(plan: Portfolio, seconds: float) -> float:
    """Seconds that workers need to start, measured as the time of the search's processes without
    training.
    """
    trials = plan.ledger.searched()
    trained = sum(training_seconds(trial) for trial in trials)
    return (
        max(STARTS_S, (seconds - trained) / max(len(trials), 1)) if seconds > trained else STARTS_S
    )


def _expect(budget: Budget, costs: dict[str, Costs], start_s: float, trains_final: bool) -> None:
    """Store the expected seconds of the trainings in the budget, by name.

    These are the chosen trainings and, if the time allows, the trainings on all events.
    """
    left = budget.left - budget.kept_s
    room, total, final = left - max(LEAST_RESERVE, RESERVE * left), 0.0, 0.0
    for name, cost in costs.items():
        total += sum(cost)
        own = cost.final if trains_final and total <= room else 0.0
        budget.expected |= {name: cost.evaluated, f"{name}, final": own}
        final += own
    budget.expected["final"] = final
    budget.start_s = start_s


def _try_all(
    config: Config,
    dataset: PreparedDataset,
    folder: RunFolder,
    traits: Traits,
    portfolio: list[Setting],
    deadline: float,
    paths: TrialPaths,
) -> Portfolio:
    """Run the portfolio; an earlier search in the folder is not reused, because its time was
    another.
    """
    now = time.monotonic()
    until = now + _SEARCH * (deadline - now)
    ledger = paths.folder / "ledger.jsonl"
    ledger.unlink(missing_ok=True)
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
    plan = Portfolio(
        configs,
        names,
        Ledger(ledger),
        until,
        lambda trial: is_hopeless(trial, configs[0].train, deadline),
    )
    plan.ledger.begin({"dataset": dataset.manifest.content_hash, "portfolio": names})
    with (
        tracked(config, folder, fresh=True) as tracker,
        ray_session(config.train, config.ray),
        Children(tracker, folder.progress) as kids,
        folder.progress.own_bars(),
    ):
        folder.search_run = tracker.run_id
        first = plan.config
        slots = slots_of_cluster(
            first.model, first.train, first.tune, dataset.num_items, folder.progress
        )
        lines = PortfolioLines(folder.progress, kids, config.train.metric, names)
        if trains_here(config.train, config.ray, folder.budget):
            run_in_process(plan, paths, replace(slots, concurrent=1), lines)
        else:
            run_trials(plan, paths, slots, lines)
    return plan


def _head_starts(
    config: Config, dataset: PreparedDataset, checkpoints: list[Path | None]
) -> dict[str, Path]:
    """The checkpoints by the digest of the training that continues from each.

    Parameters
    ----------
    config : Config
        The chosen configuration.
    checkpoints : list[Path | None]
        Of the main training's trial, then of those of the separate models that have its seed, in
        the order of their names; None: that model is trained from scratch.
    """
    trainings = [
        trained_part(config),
        *(own_config(config, name) for name in sections(config.model)),
    ]
    same_seed = [training for training in trainings if training.seed == config.seed]
    return {
        training_digest(training, dataset, None): checkpoint
        for training, checkpoint in zip(same_seed, checkpoints, strict=False)
        if checkpoint is not None
    }


def _forget_others(plan: Portfolio, paths: TrialPaths, needed: list[Trial]) -> None:
    """Remove the checkpoints of all other trials."""
    for trial in plan.ledger.trials.values():
        if trial not in needed:
            forget_checkpoints(paths.of(trial))


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
