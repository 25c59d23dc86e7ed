"""Fit the members of a model, and choose their weights on validation, after the training.

Reads the trained weights and returns the whole model twice: fitted on training events only, to
choose the weights, and fitted on all events that the training read, to be evaluated.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from pipelines.plumbing.budget import Budget
from pipelines.plumbing.progress import Progress, table
from recsys.config import Config, EvaluateConfig, TrainConfig
from recsys.data.bounded import evaluated_queries
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array, Split
from recsys.data.repeats import no_targets
from recsys.errors import DataError
from recsys.evaluation.candidate_scores import gather
from recsys.evaluation.short_histories import ShortHistories, with_own_weights
from recsys.evaluation.stacking import Stacked, choose_stack
from recsys.evaluation.validation import Validator
from recsys.model import FrozenModel
from recsys.pace import Deadline
from recsys.stack import NUM_GROUPS
from recsys.training.checkpoint import TrainResult
from recsys.training.constants import CONSTANTS, LEFT_OUT, choose_in_time
from recsys.training.context import TrainContext
from recsys.training.rating_head import RATINGS, choose_constants, fit_head
from recsys.training.selected import STACK, assemble

_SCALE_QUERIES: Final = 512


@dataclass(frozen=True)
class OfParent:
    """What an update takes from its parent to weight the members.

    The parent was trained on the validation events of some users, so these must not choose weights.
    """

    newer_V: Array  # bool, users whose validation events are new to the parent
    # weights by member and group [G]; empty without stacking
    weights: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def weights_of(self, names: Sequence[str]) -> Array:
        """The parent's weights of these members, zero for new ones: float64 [G, M]."""
        nothing = [0.0] * NUM_GROUPS
        return np.array([self.weights.get(name, nothing) for name in names], dtype=np.float64).T


def stacked(
    config: Config,
    dataset: PreparedDataset,
    trained: TrainResult,
    progress: Progress,
    parent: OfParent | None = None,
    budget: Budget | None = None,
) -> TrainResult:
    """The result of the training with all members of the configuration, weighted on validation.

    Parameters
    ----------
    config : Config
        With ``model.fusion.stack``.
    dataset : PreparedDataset
        The dataset of the training.
    trained : TrainResult
        The trained granularities only.
    progress : Progress
        Prints the choices.
    parent : OfParent | None
        For an update: what the choice takes from its parent.
    budget : Budget | None
        Budget of the run. A member that does not fit is left out and named.

    Raises
    ------
    DataError
        No validation query has a target that counts.
    """
    deadline = Deadline() if budget is None else budget.deadline(budget.members_s())
    context = TrainContext(note=progress, deadline=deadline)
    constants, left_out = choose_in_time(
        config, dataset, Validator.of(config.train, config.evaluate), context
    )
    if line := chosen_constants(constants):
        progress(line)
    left_out = {**trained.choices.get(LEFT_OUT, {}), **left_out}
    for name, why in left_out.items():
        progress(f"member {name} is left out: {why}")
    choices = {
        **trained.choices,
        CONSTANTS: constants,
        **({LEFT_OUT: left_out} if left_out else {}),
    }
    choices.pop(RATINGS, None)  # those of the trained part are for other scores
    weights = (
        trained.selected if trained.refit and trained.selected is not None else trained.weights
    )
    inputs = trained.frozen.sizes.inputs  # as the training or its parent stored them
    selected = assemble(config, dataset, Split.TRAIN, weights, choices, inputs)
    progress(f"choosing the weights of {len(weighed_members(selected))} members on validation")
    found = weigh(config.train, config.evaluate, config.seed, dataset, selected, parent, deadline)
    choices[STACK] = {
        **_stack_choice(found, selected),
        **({LEFT_OUT: left_out} if left_out else {}),
    }
    progress(described(found, weighed_members(selected), config.train.metric))
    through, begun = Split.VALID if trained.refit else Split.TRAIN, time.monotonic()
    frozen = assemble(config, dataset, through, trained.weights, choices, inputs)
    if budget is not None:
        budget.fit_s = time.monotonic() - begun
    if config.train.ratings:
        judged = frozen
        if through != Split.TRAIN:  # constants are chosen on events that the model has not seen
            judged = assemble(config, dataset, Split.TRAIN, weights, choices, inputs)
        choices[RATINGS] = choose_constants(judged, dataset)
        fit_head(frozen, dataset, through, choices[RATINGS])
    return replace(trained, frozen=frozen, choices=choices)


def _stack_choice(found: Stacked, selected: FrozenModel) -> dict[str, Any]:
    """The weights, scales and floors of all members, also of those left out before weighting."""
    stack = selected.encoders.stack
    assert stack is not None, "stacked() needs model.fusion.stack"
    weighed = weighed_members(selected)
    choice = found.to_json(weighed)
    for name in set(selected.members) - set(weighed):
        nothing = {"alone": None, "without": found.value, "weights": [0.0] * NUM_GROUPS}
        choice["members"][name] = nothing
        choice["dropped"].append(name)
    for index, name in enumerate(selected.members):
        choice["members"][name] |= {
            "scale": float(stack.scales_M[index]),
            "floor": float(stack.floors_M[index]),
        }
    return choice


def chosen_constants(constants: Mapping[str, Any]) -> str:
    """The settings that the members chose on validation, as one line; empty if none was chosen.

    >>> tried = {"half_life": {"7.0": 0.2, "none": 0.1}}
    >>> chosen = {"half_life": 7.0, "counts": "users"}
    >>> chosen_constants({"popularity": {"chosen": chosen, "candidates": tried}})
    'chosen on validation: popularity.half_life 7.0'
    """
    settings = ", ".join(
        f"{name}.{key} {value}"
        for name, found in constants.items()
        for key, value in found["chosen"].items()
        if key in found["candidates"]
    )
    return f"chosen on validation: {settings}" if settings else ""


def weigh(
    train: TrainConfig,
    evaluate: EvaluateConfig,
    seed: int,
    dataset: PreparedDataset,
    selected: FrozenModel,
    parent: OfParent | None = None,
    deadline: Deadline | None = None,
) -> Stacked:
    """Weights of the members of a model fitted on training events only.

    Parameters
    ----------
    train : TrainConfig
        The metric.
    evaluate : EvaluateConfig
        Evaluated users, and whether seen items are left out.
    seed : int
        Seed of the sample of users and of the folds.
    dataset : PreparedDataset
        The dataset of the training.
    selected : FrozenModel
        The model fitted on training events only; the scales of its members are set.
    parent : OfParent | None
        As in :func:`stacked`.
    deadline : Deadline | None
        Groups of history length get weights of their own only before it.

    Returns
    -------
    Stacked
        The weights and the figures behind them.

    Raises
    ------
    DataError
        No validation query has a target that counts.
    """
    queries = evaluated_queries(dataset, Split.VALID, evaluate, seed)
    if parent is not None:
        queries = queries.take(np.flatnonzero(parent.newer_V[queries.histories.users_U]))
    selected.choose_scales(queries.take(np.arange(min(len(queries), _SCALE_QUERIES))))
    candidates = gather(selected, queries, evaluate.exclude_seen, dataset.num_items)
    if not len(candidates):
        raise DataError(no_targets("validation"))
    names = weighed_members(selected)
    earlier_GM = None if parent is None else parent.weights_of(names)
    begun = time.monotonic()
    found = choose_stack(candidates, names, NUM_GROUPS, train.metric, seed, earlier_GM)
    # a group of history length takes about as long as all queries
    is_late = deadline is not None and deadline.left < time.monotonic() - begun
    if found.is_earlier or is_late:
        return found
    short = ShortHistories(
        selected, queries, evaluate.exclude_seen, dataset.num_items, dataset.manifest.ordered
    )
    return with_own_weights(found, candidates, short, names, train.metric, seed, deadline)


def weighed_members(selected: FrozenModel) -> list[str]:
    """The members of a model without those that were left out before weighting."""
    pruned = selected.encoders.pruned_members
    return [name for name in selected.members if name not in pruned]


def described(found: Stacked, members: list[str], metric: str) -> str:
    """The members as a table (each alone, and the model without it), and the resulting model.

    Parameters
    ----------
    found : Stacked
        The chosen weights.
    members : list[str]
        Names of the members, in the order of the weights.
    metric : str
        The metric that chose them.

    Returns
    -------
    str
        Several lines for the terminal.
    """
    rows = [["member, on validation", f"{metric} alone", "without it", "weight"]]
    for index, name in enumerate(members):
        without = f"{found.without[name]:.4f}" if name in found.without else "–"
        rows.append(
            [
                name,
                f"{found.alone[name]:.4f}",
                without,
                _weights(found.weights_GM[:, index].tolist()),
            ]
        )
    lines = [table(rows)]
    if found.is_earlier:
        lines.append(
            f"the weights are those of the parent, {found.cross_fitted:.4f}: new ones are not"
            " better beyond a standard error"
        )
    elif found.is_single:
        lines.append(
            f"no weighted sum is better than {found.single} alone on validation: the model is"
            f" {found.single}"
        )
    else:
        single = found.alone[found.single]
        within = " (the difference is within noise)" * (found.cross_fitted < single)
        lines.append(
            f"together {found.value:.4f}, cross-fitted {found.cross_fitted:.4f}; best single member"
            f" {found.single} {single:.4f}{within}"
        )
    lines += [
        f"histories of {group.events} events have weights of their own: {group.before:.4f} to"
        f" {group.after:.4f} cross-fitted" + " on longer ones that were cut" * group.is_made
        for group in found.own
    ]
    if found.dropped:
        lines.append(f"dropped because they add nothing: {', '.join(found.dropped)}")
    return "\n".join(lines)


def _weights(weights: list[float]) -> str:
    """One weight, or the range over the groups of users.

    >>> _weights([0.5, 0.5]), _weights([0.25, 1.0]), _weights([0.0])
    ('0.50', '0.25 to 1.00', '0')
    """
    low, high = min(weights), max(weights)
    if not high:
        return "0"
    return f"{low:.2f}" if low == high else f"{low:.2f} to {high:.2f}"
