"""The values of the next trial, from all trials so far: Optuna's TPE, or random.

Why a function of the ledger and not a searcher with memory: a killed sweep that continues then
proposes the same values as without the kill. The Optuna study is built again for every proposal,
which takes milliseconds; the sampler's seed is the sweep's seed and the trial's number.

TPE: Bergstra et al. 2011, multivariate as in Falkner et al. 2018. A stopped trial counts with its
epochs so far. A failed trial counts as worse than all others, so that TPE avoids similar values.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from recsys.errors import ConfigError
from tune.ledger import Trial
from tune.space import Dimension, Space

if TYPE_CHECKING:
    from optuna import Study

# tries with TPE, and as many random ones, before a small space counts as exhausted
_TRIES: Final = 10
_STARTUP: Final = (4, 10)  # random trials before TPE learns: a third of the sweep, between these


def propose(
    space: Space, trials: Sequence[Trial], number: int, *, sampler: str, seed: int, planned: int
) -> dict[str, Any] | None:
    """New values for trial ``number`` of ``planned``; None if all values were tried.

    ``trials`` are the earlier trials whose values are in the space; values of running trials are
    avoided too.

    Parameters
    ----------
    space : Space
        The dimensions to search.
    trials : Sequence[Trial]
        Earlier trials.
    number : int
        Number of the new trial; decides the random draw.
    sampler : str
        ``tpe`` or ``random``.
    seed : int
        Seed of the sweep.
    planned : int
        Number of trials of the sweep.

    Returns
    -------
    dict[str, Any] | None
        Dotted path → value.
    """
    study = build_study(space, trials)
    tried = {_key(trial.params) for trial in trials}
    distributions = {dimension.path: distribution(dimension) for dimension in space.dimensions}
    for attempt in range(2 * _TRIES):
        kind = sampler if attempt < _TRIES else "random"
        # another seed for each attempt, or the same values would be proposed again
        study.sampler = _sampler(kind, seed * 1_000_003 + number * 101 + attempt, planned)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # experimental options
            proposed = study.ask(fixed_distributions=distributions)
        params = {d.path: _value(d, proposed.params[d.path]) for d in space.dimensions}
        if _key(params) not in tried:
            return params
        # ends the proposal, else it would count as running and push others away
        study.tell(proposed, state=_states().FAIL)
    return None


def build_study(space: Space, trials: Sequence[Trial]) -> Study:
    """An Optuna study in memory with the given trials; larger values are better."""
    optuna = _optuna()
    states = _states()
    study: Study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0)
    )
    distributions = {dimension.path: distribution(dimension) for dimension in space.dimensions}
    known = {
        "finished": states.COMPLETE,
        "stopped": states.PRUNED,
        "failed": states.PRUNED,
        "running": states.RUNNING,
    }
    for trial in trials:
        study.add_trial(
            optuna.trial.create_trial(
                state=known[trial.state],
                params={d.path: _code(d, trial.params[d.path]) for d in space.dimensions},
                distributions=distributions,
                value=trial.value if trial.state == "finished" else None,
                intermediate_values=(
                    {epoch: entry["best"] for epoch, entry in trial.epochs.items()}
                    if trial.state != "failed"
                    else {}
                ),
            )
        )
    return study


def distribution(dimension: Dimension) -> Any:
    """The dimension as a distribution of Optuna; a choice becomes an index, because Optuna has no
    lists.
    """
    of = _optuna().distributions
    if dimension.kind == "choice":
        return of.CategoricalDistribution(tuple(range(len(dimension.options))))
    if dimension.kind in ("int", "logint"):
        ends = int(dimension.low), int(dimension.high)
        return of.IntDistribution(
            *ends, log=dimension.kind == "logint", step=int(dimension.step or 1)
        )
    log = dimension.kind == "loguniform"
    return of.FloatDistribution(dimension.low, dimension.high, log=log, step=dimension.step)


def importance(space: Space, trials: Sequence[Trial]) -> dict[str, float]:
    """Share of each path in the variance of the value over finished trials, the largest first.

    Empty with fewer than 4 finished trials. fANOVA: Hutter et al. 2014. With few trials it is only
    a hint.
    """
    finished = [trial for trial in trials if trial.state == "finished"]
    if len(finished) < 4 or len({trial.value for trial in finished}) < 2:
        return {}
    optuna = _optuna()
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = optuna.importance.get_param_importances(
            build_study(space, finished), evaluator=evaluator
        )
    return {
        path: float(share) for path, share in sorted(found.items(), key=lambda entry: -entry[1])
    }


def _sampler(kind: str, seed: int, planned: int) -> Any:
    samplers, low_high = _optuna().samplers, _STARTUP
    if kind == "random":
        return samplers.RandomSampler(seed=seed % 2**32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return samplers.TPESampler(
            seed=seed % 2**32,
            multivariate=True,
            # running trials count as bad, so that parallel proposals differ
            constant_liar=True,
            n_startup_trials=min(low_high[1], max(low_high[0], planned // 3)),
        )


def _value(dimension: Dimension, code: Any) -> Any:
    """A value for the configuration."""
    if dimension.kind == "choice":
        return dimension.options[code]
    return int(code) if dimension.kind in ("int", "logint") else round(float(code), 12)


def _code(dimension: Dimension, value: Any) -> Any:
    if dimension.kind == "choice":
        return next(
            number for number, option in enumerate(dimension.options) if _key(option) == _key(value)
        )
    return int(value) if dimension.kind in ("int", "logint") else float(value)


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _states() -> Any:
    return _optuna().trial.TrialState


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise ConfigError(
            "recsys tune needs optuna, which is not installed; run: pip install 'multigrain[tune]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
