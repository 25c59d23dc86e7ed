"""The negatives of a protocol that ranks sampled items: drawn by our rule, or as another library
draws.

Why as another library: published metrics "with 100 negatives" belong to one draw; only the same
draw reproduces them. Sampled items may order methods wrongly (Krichene and Rendle 2020), so full
ranking is the default.

Legend: B queries, N items, S samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from recsys.data.histories import Array, Histories, Queries
from recsys.errors import ConfigError


def drawn(
    queries: Queries, histories: Histories, num_items: int, rules: Mapping[str, Any]
) -> tuple[Array, Array]:
    """Query and item of every sampled item, ``rules['sample']`` per query.

    Parameters
    ----------
    queries : Queries
        The evaluated users.
    histories : Histories
        All events of all splits. Items of the user are never sampled, except with RecBole's rule
        without a mask.
    num_items : int
        Size of the catalogue.
    rules : Mapping[str, Any]
        ``sample``, ``sampler``, ``seed`` and ``mask`` of the protocol.

    Raises
    ------
    ConfigError
        A user has so many items that too few others can be drawn.
    """
    known = {user: row for row, user in enumerate(histories.users_U.tolist())}
    had = [
        set(histories.take(np.array([known[user]])).items_E.tolist())
        for user in queries.histories.users_U.tolist()
    ]
    number, seed = int(rules["sample"]), int(rules["seed"])
    if (most := max(map(len, had), default=0)) + number > num_items:
        raise ConfigError(
            f"referee.sample: {number} items cannot be drawn for a user who has {most} of"
            f" {num_items:,}; lower it"
        )
    if rules["sampler"] == "recbole":
        if (
            rules["mask"] == "none"
        ):  # RecBole's sampler for sequential models excludes only the target
            ends = queries.target_offsets_B1
            had = [
                set(queries.target_items[ends[row] : ends[row + 1]].tolist())
                for row in range(len(queries))
            ]
        items_BS = _recbole(had, histories, number, seed)
    else:
        items_BS = _uniform(had, num_items, number, seed)
    return np.repeat(np.arange(len(had)), number), items_BS.ravel()


def _uniform(had: list[set[int]], num_items: int, number: int, seed: int) -> Array:
    """Distinct items without an event of the user, drawn uniformly."""
    found = []
    for row, items in enumerate(had):
        order = np.random.default_rng((seed, row)).permutation(num_items)
        found.append(order[~np.isin(order, [*items])][:number])
    return np.array(found)


def _recbole(had: list[set[int]], histories: Histories, number: int, seed: int) -> Array:
    """RecBole's ``sample_by_key_ids`` (1.2), user by user: draw all at once, then redraw the known
    items.

    RecBole's items are those with events, numbered from 1 in their order in train, valid and test.
    An item may be drawn twice and counts once, in RecBole and here.

    Raises
    ------
    ConfigError
        A user has all these items.
    """
    random = np.random.RandomState(seed)
    by_part_E = histories.items_E[np.argsort(histories.splits_E, kind="stable")]
    items, firsts = np.unique(by_part_E, return_index=True)
    tokens = items[np.argsort(firsts)]
    number_of = np.full(int(items.max()) + 1, -1, dtype=np.int64)
    number_of[tokens] = np.arange(len(tokens)) + 1
    if max(map(len, had), default=0) >= len(tokens):  # it would draw forever
        raise ConfigError(
            f"referee.sampler: recbole draws items with events, but a user has all {len(tokens):,}"
            " items with events; use uniform"
        )
    found = np.empty((len(had), number), dtype=np.int64)
    for row, known in enumerate(had):
        used = number_of[[*known]]
        drawn_S = random.randint(1, len(tokens) + 1, number)
        again = np.flatnonzero(np.isin(drawn_S, used))
        while len(again):
            drawn_S[again] = value = random.randint(1, len(tokens) + 1, len(again))
            again = again[np.isin(value, used)]
        found[row] = tokens[drawn_S - 1]
    return found
