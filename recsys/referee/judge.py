"""Score the lists: every metric of every method with its interval, and a test of every pair of
methods.

Why not only means: a table of means ranks methods partly by chance. Here users are resampled for
all methods together, so that pairs are compared on the same users. The p-values of all pairs of a
metric are corrected (Holm 1979). The seeds of a method are averaged per user, and their spread is
reported. A method with several settings gets the result of the setting that validation chooses; the
report also says what a choice on test would have claimed.

Legend: B queries, U users, M metrics, R resamples, C columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from recsys.data.histories import Array, Queries, Split
from recsys.evaluation.bootstrap import LEVEL, bootstrap_means, comparison, interval
from recsys.evaluation.metrics import coverage_of, exposure, query_metrics
from recsys.evaluation.ranking import mark_hits
from recsys.referee.entries import Methods, Setting
from recsys.referee.lists import Lists, read_lists
from recsys.referee.protocol import Protocol


@dataclass
class Verdict:
    """The content of ``referee.json``."""

    methods: dict[str, dict[str, Any]]
    pairs: dict[str, list[dict[str, Any]]]  # metric → every pair
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Measured:
    """A setting: its metrics per query (mean over seeds), and one value per seed."""

    setting: str
    values: dict[str, Array]  # metric → [B], all windows concatenated
    seeds: dict[str, list[float]]  # metric → one value per seed; also coverage
    valid: float | None
    commands: list[str]
    has_hash: bool


def judge(protocol: Protocol, methods: Methods, resamples: int, seed: int) -> Verdict:
    """Read, check and measure the lists of all methods.

    Parameters
    ----------
    protocol : Protocol
        The queries to answer, for each window.
    methods : Methods
        Method → its settings, with the files of their lists.
    resamples : int
        Number of bootstrap resamples; users are drawn.
    seed : int
        Seed of the resamples.

    Returns
    -------
    Verdict
        The measured methods, their differences, and notes.

    Raises
    ------
    UserError
        A file is refused; see :func:`recsys.referee.lists.read_lists`.
    """
    questions = [protocol.queries(window) for window in protocol.windows]
    validation = [protocol.queries(window, Split.VALID) for window in protocol.windows]
    notes: list[str] = []
    measured = {
        name: [_measured(one, protocol, questions, validation, notes) for one in settings]
        for name, settings in methods.items()
    }
    chosen = {name: _chosen(settings) for name, settings in measured.items()}
    sample = _Sample(questions, resamples, seed)
    names = list(chosen)
    metrics = list(chosen[names[0]].values)
    stacked = {
        metric: np.stack([chosen[name].values[metric] for name in names], 1) for metric in metrics
    }
    # the same draws for all methods
    drawn_RC = sample.means(np.concatenate([*stacked.values()], 1))
    drawn = dict(zip(stacked, np.split(drawn_RC, len(stacked), 1), strict=True))
    found = {}
    for index, name in enumerate(names):
        found[name] = _described(chosen[name], measured[name], protocol, questions, sample)
        found[name]["metrics"] = {
            metric: {
                **(
                    interval(
                        float(stacked[metric][:, index].mean()), drawn[metric][:, index]
                    ).to_json()
                    if metric in stacked
                    else {
                        "value": float(np.mean(figures))
                    }  # coverage: resampling repeats users, which biases it
                ),
                **_spread(figures),
            }
            for metric, figures in chosen[name].seeds.items()
        }
    pairs = {metric: _pairs(names, stacked[metric], drawn[metric]) for metric in stacked}
    # the smallest p-value is 2 / (resamples + 1), and Holm multiplies it by the number of pairs
    if resamples + 1 < 2 * len(names) * (len(names) - 1) / 2 / (1 - LEVEL):
        notes.append(
            f"{resamples:,} resamples are too few for {len(names)} methods: no difference can be"
            " significant; raise --referee.bootstrap"
        )
    without = [name for name in names if not chosen[name].has_hash]
    if without:
        notes.append(
            f"the lists of {', '.join(without)} have no protocol hash, so it is not checked that"
            " they were made for this protocol"
        )
    return Verdict(found, pairs, notes)


class _Sample:
    """Resamples of users; the queries of a user in several windows are drawn together."""

    def __init__(self, questions: Sequence[Queries], resamples: int, seed: int) -> None:
        users_B = np.concatenate([queries.histories.users_U for queries in questions])
        # the queries of one user are not independent, so users are drawn and not queries
        _, self._user_B = np.unique(users_B, return_inverse=True)
        self._num_U = np.bincount(self._user_B).astype(np.float64)
        self._resamples, self._seed = resamples, seed

    def means(self, values_BM: Array) -> Array:
        """Resampled means [R, M] over queries."""
        sums_UM = np.stack([np.bincount(self._user_B, column) for column in values_BM.T], 1)
        drawn_RM = bootstrap_means(
            np.concatenate([sums_UM, self._num_U[:, None]], 1), self._resamples, self._seed
        )
        return np.asarray(drawn_RM[:, :-1] / drawn_RM[:, -1:])


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: each p times the number of p-values not smaller, made monotone.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    raised = np.asarray(p_values)[order] * np.arange(len(p_values), 0, -1)
    found = np.empty(len(p_values))
    found[order] = np.minimum(np.maximum.accumulate(raised), 1.0)
    return [float(value) for value in found]


def _pairs(names: Sequence[str], values_BM: Array, drawn_RM: Array) -> list[dict[str, Any]]:
    found = []
    for first, second in combinations(range(len(names)), 2):
        difference = float((values_BM[:, first] - values_BM[:, second]).mean())
        tested = comparison(difference, drawn_RM[:, first] - drawn_RM[:, second])
        found.append({"first": names[first], "second": names[second], **tested.to_json()})
    for entry, corrected in zip(found, holm([entry["p"] for entry in found]), strict=True):
        entry["p_holm"] = corrected
    return found


def _measured(
    one: Setting,
    protocol: Protocol,
    questions: Sequence[Queries],
    validation: Sequence[Queries],
    notes: list[str],
) -> _Measured:
    runs, commands, has_hash = list[dict[str, Array]](), list[str](), True
    seeds: dict[str, list[float]] = {}
    for path in one.test:
        lists = read_lists(path, protocol, questions)
        notes += lists.notes
        commands += [lists.command] if lists.command and lists.command not in commands else []
        has_hash &= lists.has_hash
        runs.append(_values(lists, protocol))
        figures = {
            metric: float(values_B.mean()) for metric, values_B in runs[-1].items()
        } | _coverage(lists, protocol)
        for metric, figure in figures.items():
            seeds.setdefault(metric, []).append(figure)
    values = {metric: np.mean([run[metric] for run in runs], axis=0) for metric in runs[0]}
    valid = []
    for path in one.valid:
        lists = read_lists(path, protocol, validation, Split.VALID)
        notes += lists.notes
        valid.append(float(_values(lists, protocol)[protocol.metric].mean()))
    return _Measured(
        one.name, values, seeds, float(np.mean(valid)) if valid else None, commands, has_hash
    )


def _values(lists: Lists, protocol: Protocol) -> dict[str, Array]:
    found = [
        query_metrics(mark_hits(one.items_BK, one.queries), one.queries.num_targets_B, protocol.ks)
        for one in lists.windows
    ]
    return {metric: np.concatenate([of[metric] for of in found]) for metric in found[0]}


def _coverage(lists: Lists, protocol: Protocol) -> dict[str, float]:
    """Share of the catalogue that is in at least one list, mean over windows."""
    return {
        f"coverage@{k}": float(
            np.mean(
                [
                    coverage_of(exposure(one.items_BK, len(protocol.items), k))
                    for one in lists.windows
                ]
            )
        )
        for k in protocol.ks
    }


def _chosen(settings: Sequence[_Measured]) -> _Measured:
    # a single setting needs no validation; any value is above −1
    return max(settings, key=lambda one: -1.0 if one.valid is None else one.valid)


def _described(
    chosen: _Measured,
    settings: Sequence[_Measured],
    protocol: Protocol,
    questions: Sequence[Queries],
    sample: _Sample,
) -> dict[str, Any]:
    """Setting, seeds, windows and, with several settings, what a choice on test would have
    claimed.
    """
    metric = protocol.metric
    found: dict[str, Any] = {
        "setting": chosen.setting,
        "seeds": len(chosen.seeds[metric]),
        "validation": chosen.valid,
        "commands": chosen.commands,
    }
    if len(settings) > 1:
        best = max(settings, key=lambda one: float(one.values[metric].mean()))
        means_BM = np.stack([best.values[metric], chosen.values[metric]], 1)
        drawn_RM = sample.means(means_BM)
        gap = comparison(
            float((means_BM[:, 0] - means_BM[:, 1]).mean()), drawn_RM[:, 0] - drawn_RM[:, 1]
        )
        found["selection"] = {
            "settings": {
                one.setting: {"validation": one.valid, "test": _mean(one, metric)}
                for one in settings
            },
            "chosen": chosen.setting,
            "best_on_test": best.setting,
            "inflation": gap.to_json(),
        }
    if len(questions) > 1:
        ends = np.cumsum([len(queries) for queries in questions])
        pieces = np.split(chosen.values[metric], ends[:-1])
        found["windows"] = {
            window.name: {"queries": len(piece), metric: float(piece.mean())}
            for window, piece in zip(protocol.windows, pieces, strict=True)
        }
    return found


def _mean(one: _Measured, metric: str) -> float:
    return float(one.values[metric].mean())


def _spread(figures: Sequence[float]) -> Mapping[str, Any]:
    """Standard deviation over seeds, if there are several."""
    return (
        {"sd": float(np.std(figures, ddof=1)), "of_seeds": list(figures)}
        if len(figures) > 1
        else {}
    )
