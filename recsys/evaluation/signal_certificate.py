"""The signal certificate: the metric for every combination of signals that queries have or lack.

Why: one mean hides that a model may be good only because most users have long histories. A team
that serves new users with friends but without a history needs the figure for these users. A signal
is present if the data has it for the query, whatever weight the model gives it, so two models are
compared on the same queries.

Signals of the user: history (none, short, long), friends, attributes, text of past events. Signals
of the targets: text, attributes and triples of the items, and whether they were in training; such a
signal is present if *every* target has it.

Legend: B queries, S signals, N items, V users, P targets.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys import schema
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array, Queries, Split
from recsys.data.titles import title_column
from recsys.evaluation.bootstrap import compare, intervals
from recsys.values.arrow_types import is_string, is_variable_list

SHORT: Final = 4  # a history with at most so many events is short
MIN_QUERIES: Final = 20  # a combination with fewer queries is pooled with others
OTHERS: Final = "other combinations"
_NO_ATTRIBUTES: Final = {schema.USER_ID, schema.ITEM_ID, schema.ENTITY_ID, "text"}


@dataclass(frozen=True)
class Signal:
    """One signal: its name, and the names of its states."""

    name: str
    states: tuple[str, ...]  # of codes 1, 2, …
    codes_B: Array  # int64, 0 where it is missing

    @staticmethod
    def of(name: str, is_present_B: Array) -> Signal:
        """A signal that is present or missing."""
        return Signal(name, (name,), is_present_B.astype(np.int64))


@dataclass(frozen=True)
class Combination:
    """The queries with the same signals present and missing; both are empty for the pooled small
    combinations.
    """

    present: tuple[str, ...]
    missing: tuple[str, ...]
    mask_B: Array  # bool

    @property
    def label(self) -> str:
        """The combination in words.

        >>> Combination(("long history", "friends"), ("item text",), np.ones(1, dtype=bool)).label
        'long history, friends; without item text'
        """
        if not self.present and not self.missing:
            return OTHERS
        there, absent = ", ".join(self.present) or "nothing", ", ".join(self.missing)
        return f"{there}; without {absent}" if absent else there


def query_signals(queries: Queries, dataset: PreparedDataset, through: Split) -> list[Signal]:
    """The signals of every query, without signals that the whole dataset lacks.

    Parameters
    ----------
    queries : Queries
        Queries with the targets that count.
    dataset : PreparedDataset
        Their dataset.
    through : Split
        The last split on which the model was fitted; an item was in training if it has an event up
        to there.
    """
    users_B = queries.histories.users_U
    lengths_B = queries.histories.lengths_U
    signals = [
        Signal(
            "history",
            (f"short history (1–{SHORT})", f"long history ({SHORT + 1}+)"),
            (lengths_B > 0).astype(np.int64) + (lengths_B > SHORT),
        )
    ]
    signals += [
        Signal.of(name, (users_B >= 0) & has_V[users_B])
        for name, has_V in _of_users(dataset).items()
    ]
    for name, has_N in _of_items(dataset, through).items():
        lacking_B = np.bincount(
            queries.target_rows()[~has_N[queries.target_items]], minlength=len(queries)
        )
        signals.append(Signal.of(name, lacking_B == 0))
    return signals


def _of_users(dataset: PreparedDataset) -> dict[str, Array]:
    """Signals that at least one user has, as masks [V]."""
    friends_V = np.zeros(dataset.num_users, dtype=bool)
    friends_V[dataset.social_edges()[0]] = True
    texts = dataset.user_texts(Split.VALID)
    found = {
        "friends": friends_V,
        "user attributes": described(dataset.user_features, dataset.num_users),
    }
    if texts is not None:
        found["user text"] = texts.whole(np.arange(dataset.num_users)) >= 0
    return {name: has_V for name, has_V in found.items() if has_V.any()}


def _of_items(dataset: PreparedDataset, through: Split) -> dict[str, Array]:
    """Signals that at least one item has, as masks [N]."""
    no_attributes = {
        *(dataset.manifest.text.get("fields") or ()),
        title_column(dataset.features) or "",
    }
    found = {
        "item text": dataset.has_text_N,
        "item attributes": described(dataset.features, dataset.num_items, no_attributes),
        "item triples": dataset.item_entities() >= 0,
    }
    there = {name: has_N for name, has_N in found.items() if has_N.any()}
    return {**there, "items seen in training": dataset.item_counts_N(through) > 0}


def described(features: pa.Table, number: int, text_fields: Collection[str] = ()) -> Array:
    """Which rows of a table of users or items have any attribute: bool. Ids and text columns do not
    count.

    Parameters
    ----------
    features : pyarrow Table
        Users or items with their attributes.
    number : int
        Number of rows of the table.
    text_fields : Collection of str
        Columns that are text and do not count.

    Returns
    -------
    array, [number] bool
        Whether the row has an attribute.

    Examples
    --------
    >>> columns = {"age": [None, 3.0, None], "tags": [["x"], [], None]}
    >>> described(pa.table({"user_id": ["a", "b", "c"], **columns}), 3).tolist()
    [True, True, False]
    """
    found = np.zeros(number, dtype=bool)
    for name in features.column_names:
        if name in _NO_ATTRIBUTES or name in text_fields:
            continue
        column = features.column(name)
        there = pc.is_valid(column)
        if is_variable_list(column.type):
            there = pc.fill_null(pc.greater(pc.list_value_length(column), 0), False)
        elif is_string(column.type):
            there = pc.fill_null(pc.not_equal(column, ""), False)
        found |= there.to_numpy()
    return found


def combinations(signals: Sequence[Signal], num_queries: int) -> list[Combination]:
    """Every combination that occurs, the most frequent first; those with few queries are pooled at
    the end.
    """
    codes_BS = np.stack([signal.codes_B for signal in signals], axis=1)
    states_CS, which_B, counts_C = np.unique(
        codes_BS, axis=0, return_inverse=True, return_counts=True
    )
    which_B = which_B.reshape(num_queries)
    found, pooled_B = [], np.zeros(num_queries, dtype=bool)
    for combination in np.argsort(-counts_C, kind="stable").tolist():
        mask_B = which_B == combination
        if counts_C[combination] < MIN_QUERIES:
            pooled_B |= mask_B
            continue
        states = list(zip(signals, states_CS[combination].tolist(), strict=True))
        present = tuple(signal.states[code - 1] for signal, code in states if code)
        found.append(
            Combination(present, tuple(signal.name for signal, code in states if not code), mask_B)
        )
    return [*found, Combination((), (), pooled_B)] if pooled_B.any() else found


def certificate(
    found: Sequence[Combination], values: Mapping[str, Array], model: str, resamples: int, seed: int
) -> list[dict[str, Any]]:
    """The content of ``metrics.json``'s ``signals``: the model on every combination, and against
    the best baseline.

    The best baseline is the one with the highest mean *on these queries*, the strictest choice.
    ``difference`` is model − baseline, paired, with its interval ``low`` to ``high``.

    Parameters
    ----------
    found : Sequence[Combination]
        The combinations of the queries.
    values : Mapping[str, Array]
        Recommender → the main metric, [B].
    model : str
        The name of the model in ``values``.
    resamples : int
        Number of bootstrap resamples.
    seed : int
        Seed of the bootstrap.
    """
    return [_entry(each, values, model, resamples, seed) for each in found]


def _entry(
    found: Combination, values: Mapping[str, Array], model: str, resamples: int, seed: int
) -> dict[str, Any]:
    ours_b = values[model][found.mask_B]
    entry: dict[str, Any] = {
        "label": found.label,
        "present": list(found.present),
        "missing": list(found.missing),
        "queries": len(ours_b),
        "value": float(ours_b.mean()),
        "interval": intervals({"value": ours_b}, resamples, seed)["value"],
        "best_baseline": None,
    }
    theirs = {name: value_B[found.mask_B] for name, value_B in values.items() if name != model}
    if theirs:
        best = max(theirs, key=lambda name: float(theirs[name].mean()))
        entry["best_baseline"], entry["baseline"] = best, float(theirs[best].mean())
        entry |= compare(ours_b, theirs[best], resamples, seed).to_json()
    return entry


def signal_groups(queries: Queries, dataset: PreparedDataset, through: Split) -> dict[str, Array]:
    """Label → mask over the queries [B] for every combination, as the gate checks them.

    Parameters
    ----------
    queries : Queries
        Queries with the targets that count.
    dataset : PreparedDataset
        Their dataset.
    through : Split
        Last split on which the model was fitted.

    Returns
    -------
    dict of str to array, [B] bool
        Label of each combination to its queries.
    """
    found = combinations(query_signals(queries, dataset, through), len(queries))
    return {each.label: each.mask_B for each in found}
