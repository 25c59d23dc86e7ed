"""Trust: which users and items a recommender favours: exposure by item group, popularity bias,
quality by user group.

The exposure of a place is 1 / log2(rank + 1), the discount of NDCG (Singh and Joachims 2018). The
exposure share of a group is its share of the exposure of all lists. It is compared with the group's
share of training interactions: for a recommender that reflects what people chose, both are equal;
one that amplifies popularity moves exposure to the head.

Legend: B queries, K list length, N items, G groups, U users.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys import schema
from recsys.config import EvaluateConfig, TrainConfig
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array, Queries, Split
from recsys.errors import ConfigError
from recsys.evaluation.bootstrap import LEVEL, bootstrap_means, intervals
from recsys.evaluation.metrics import parse_metric
from recsys.evaluation.ranking import Ranking
from recsys.values.arrow_types import is_plain_number

HEAD, TAIL = 0.2, 0.2  # shares of the items, and of the users by taste
ITEM_LEVELS: Final = ("head", "mid", "tail")
USER_LEVELS: Final = ("niche", "diverse", "blockbuster")
_NUM_BANDS: Final = 4
_MAX_GROUPS: Final = 12


def trust_report(
    rankings: Mapping[str, Ranking],
    values: Mapping[str, Mapping[str, Any]],
    dataset: PreparedDataset,
    train: TrainConfig,
    evaluate: EvaluateConfig,
    seed: int,
    through: Split,
) -> dict[str, Any]:
    """The content of ``metrics.json``'s ``trust``; recommenders by name, all on the same queries.

    Parameters
    ----------
    rankings : Mapping[str, Ranking]
        The lists of every recommender.
    values : Mapping[str, Mapping[str, Any]]
        Recommender → metric → one value per query.
    dataset : PreparedDataset
        Popularity and attributes.
    train : TrainConfig
        Main metric.
    evaluate : EvaluateConfig
        ``item_group``, ``user_groups`` and the number of resamples.
    seed : int
        Seed of the resamples.
    through : Split
        The last split on which the recommenders were fitted.

    Raises
    ------
    ConfigError
        The data does not have a group column.
    """
    k = parse_metric(train.metric).k
    counts_N = dataset.item_counts_N(through)
    levels_N = popularity_levels(counts_N)
    queries = next(iter(rankings.values())).queries
    lists = {name: ranking.items_BK[:, :k] for name, ranking in rankings.items()}
    items = {
        "popularity": exposure_report(
            one_hot(levels_N, len(ITEM_LEVELS)), ITEM_LEVELS, counts_N, lists
        )
    }
    if evaluate.item_group:
        column = evaluate.item_group
        share_NG, labels = item_groups(
            column_of(dataset.features, column, "evaluate.item_group", "items"), counts_N
        )
        items[column] = exposure_report(share_NG, labels, counts_N, lists)
    main = {name: of[train.metric] for name, of in values.items()}
    users = {
        column: user_group_report(
            user_groups(column_of(dataset.user_features, column, "evaluate.user_groups", "users")),
            queries.histories.users_U,
            main,
            tail_shares(lists, levels_N),
            evaluate.bootstrap,
            seed,
        )
        for column in evaluate.user_groups
    }
    return {
        "k": k,
        "items": items,
        "bias": popularity_bias(queries, counts_N, levels_N, lists),
        "users": users,
    }


# -------------------------------------------------------------------------------- exposure of items


def popularity_levels(counts_N: Array) -> Array:
    """Head 0, mid 1, tail 2 of every item: the most chosen 20 %, 60 % and the least chosen 20 % of
    the items.

    After Abdollahpouri et al. 2019, with whole items by rank; equals go by their id.

    >>> popularity_levels(np.array([1, 9, 3, 0, 5])).tolist()
    [1, 0, 1, 2, 1]
    """
    rank_N = np.empty(len(counts_N), dtype=np.int64)
    rank_N[np.argsort(-counts_N, kind="stable")] = np.arange(len(counts_N))
    num_head, num_tail = round(len(counts_N) * HEAD), round(len(counts_N) * TAIL)
    return np.where(rank_N < num_head, 0, np.where(rank_N >= len(counts_N) - num_tail, 2, 1))


def one_hot(groups_N: Array, number: int) -> Array:
    """Membership [N, G] of items with one group each; −1 for no group."""
    return np.asarray(groups_N[:, None] == np.arange(number), dtype=np.float64)


def item_groups(column: pa.ChunkedArray, counts_N: Array) -> tuple[Array, list[str]]:
    """Membership [N, G] by the values of a column, and their labels: the 11 with most interactions,
    and "other".

    An item with a list of n values is 1/n in each; without a value it is "unknown".
    """
    lists = [value if isinstance(value, list) else [value] for value in column.to_pylist()]
    named = [
        sorted({"unknown" if v in (None, "") else str(v) for v in values} or {"unknown"})
        for values in lists
    ]
    weight: dict[str, float] = {}
    for names, count in zip(named, counts_N.tolist(), strict=True):
        for name in names:
            weight[name] = weight.get(name, 0.0) + count / len(names)
    labels = sorted(weight, key=lambda name: (-weight[name], name))
    if len(labels) > _MAX_GROUPS:
        labels = [*labels[: _MAX_GROUPS - 1], f"{len(labels) - _MAX_GROUPS + 1} others"]
    number = {label: index for index, label in enumerate(labels)}
    share_NG = np.zeros((len(named), len(labels)))
    for item, names in enumerate(named):
        for name in names:
            share_NG[item, number.get(name, len(labels) - 1)] += 1 / len(names)
    return share_NG, labels


def exposure_report(
    share_NG: Array,
    labels: tuple[str, ...] | list[str],
    counts_N: Array,
    lists: Mapping[str, Array],
) -> dict[str, Any]:
    """Shares of item groups in the items, the interactions and the exposure of every recommender,
    and the disparities.

    ``disparity`` is the total variation ½ Σ_g |exposure_g − interactions_g|: the share of all
    exposure that would have to move so that exposure follows what people chose; 0 if it does.

    Parameters
    ----------
    share_NG : array, [N, G] float
        Share of each item that belongs to each group.
    labels : tuple or list of str
        Names of the G groups.
    counts_N : array, [N] int
        Training events of each item.
    lists : Mapping of str to array, [B, K] int
        Recommender to its lists; −1 is an empty place.

    Returns
    -------
    dict
        Plain JSON: ``labels``, ``items``, ``interactions``, ``exposure`` and ``disparity``.
    """
    wanted_G = shares_of(counts_N.astype(np.float64), share_NG)
    exposed = {
        name: shares_of(exposure_N(items_BK, len(counts_N)), share_NG)
        for name, items_BK in lists.items()
    }
    return {
        "labels": list(labels),
        "items": shares_of(np.ones(len(counts_N)), share_NG).tolist(),
        "interactions": wanted_G.tolist(),
        "exposure": {name: found_G.tolist() for name, found_G in exposed.items()},
        "disparity": {
            name: float(np.abs(found_G - wanted_G).sum() / 2) for name, found_G in exposed.items()
        },
    }


def exposure_N(items_BK: Array, num_items: int) -> Array:
    """Exposure of every item: Σ over all lists of 1 / log2(rank + 1), [N]. Empty places (−1) do not
    count.

    >>> exposure_N(np.array([[2, 0, 1], [2, -1, -1]]), 4).round(4).tolist()  # 1/log2(3), 1/2, 1 + 1
    [0.6309, 0.5, 2.0, 0.0]
    """
    discount_BK = np.broadcast_to(
        1.0 / np.log2(np.arange(2, items_BK.shape[1] + 2)), items_BK.shape
    )
    shown = items_BK >= 0
    return np.bincount(items_BK[shown], weights=discount_BK[shown], minlength=num_items)


def shares_of(amount_N: Array, share_NG: Array) -> Array:
    """Share of each group in an amount over items: [G], zeros if the amount is zero."""
    total = amount_N.sum()
    return np.asarray(amount_N @ share_NG / total) if total > 0 else np.zeros(share_NG.shape[1])


# ---------------------------------------------------------------------------------- popularity bias


def popularity_bias(
    queries: Queries, counts_N: Array, levels_N: Array, lists: Mapping[str, Array]
) -> dict[str, Any]:
    """Average recommendation popularity, and popularity lift by the taste of the user.

    ARP (Yin et al. 2012): mean over users of the mean number of interactions of the recommended
    items. Lift (Abdollahpouri et al. 2020): (GAP_r − GAP_p) / GAP_p, where GAP is the group's mean
    over users of the mean popularity of the recommended items (r) or of the items in the visible
    profile (p). 0 is calibrated; 1 means twice as popular as what they chose. Groups: the fifth of
    the users with the smallest share of head items in their profile (niche), the fifth with the
    largest share (blockbuster), the rest (diverse). Users without a profile and lists without items
    do not count.

    Parameters
    ----------
    queries : Queries
        The queries with their visible histories.
    counts_N : array, [N] int
        Training events of each item.
    levels_N : array, [N] int
        Popularity level of each item; 0 is the head.
    lists : Mapping of str to array, [B, K] int
        Recommender to its lists; −1 is an empty place.

    Returns
    -------
    dict
        Plain JSON: ``arp`` by recommender, and ``groups`` with ``queries``, ``profile`` and
        ``lift``.
    """
    lengths_B = queries.histories.lengths_U
    rows = np.repeat(np.arange(len(queries)), lengths_B)
    items = queries.histories.items_E
    profile_B = _mean_by_row(rows, counts_N[items].astype(np.float64), len(queries))
    head_B = _mean_by_row(rows, (levels_N[items] == 0).astype(np.float64), len(queries))
    listed = {name: _mean_of_list(items_BK, counts_N) for name, items_BK in lists.items()}
    groups = {"all": np.isfinite(profile_B), **_by_taste(head_B)}
    lift = {}
    for label, mask_B in groups.items():
        if not mask_B.any():
            continue
        gap = float(profile_B[mask_B].mean())
        lift[label] = {
            "queries": int(mask_B.sum()),
            "profile": gap,
            "lift": {name: _lift(of_B[mask_B], gap) for name, of_B in listed.items()},
        }
    return {"arp": {name: _finite_mean(of_B) for name, of_B in listed.items()}, "groups": lift}


def _by_taste(head_B: Array) -> dict[str, Array]:
    known = np.flatnonzero(np.isfinite(head_B))
    ordered = known[np.argsort(head_B[known], kind="stable")]
    ends = round(len(known) * TAIL), len(known) - round(len(known) * HEAD)
    groups = zip(USER_LEVELS, np.split(ordered, ends), strict=True)
    return {label: np.isin(np.arange(len(head_B)), users) for label, users in groups}


def _lift(listed_B: Array, gap: float) -> float | None:
    mean = _finite_mean(listed_B)
    return None if mean is None or gap <= 0 else mean / gap - 1.0


def _finite_mean(values_B: Array) -> float | None:
    finite = values_B[np.isfinite(values_B)]
    return float(finite.mean()) if len(finite) else None


def _mean_by_row(rows: Array, values: Array, num_rows: int) -> Array:
    """Mean of each row's values, NaN for a row without any."""
    number = np.bincount(rows, minlength=num_rows)
    sums = np.bincount(rows, weights=values, minlength=num_rows)
    return np.where(number > 0, sums / np.maximum(number, 1), np.nan)


def _mean_of_list(items_BK: Array, counts_N: Array) -> Array:
    rows, ranks = np.nonzero(items_BK >= 0)
    return _mean_by_row(rows, counts_N[items_BK[rows, ranks]].astype(np.float64), len(items_BK))


def tail_shares(lists: Mapping[str, Array], levels_N: Array) -> dict[str, Array]:
    """Share of the places of every list without a head item: recommender → [B], NaN for an empty
    list.
    """
    found = {}
    for name, items_BK in lists.items():
        rows, ranks = np.nonzero(items_BK >= 0)
        beyond = (levels_N[items_BK[rows, ranks]] > 0).astype(np.float64)
        found[name] = _mean_by_row(rows, beyond, len(items_BK))
    return found


# -------------------------------------------------------------------------------------- user groups


def user_groups(column: pa.ChunkedArray) -> dict[str, Array]:
    """Masks over all users [U] by the values of a column: the 11 most frequent, and the rest.

    Numbers with more than 12 different values are split into quarters; a list counts as its text; a
    missing value is "unknown".
    """
    if is_plain_number(column.type) and pc.count_distinct(column.drop_null()).as_py() > _MAX_GROUPS:
        return _bands(column.cast(pa.float64(), safe=False).to_numpy())
    texts = ["unknown" if v in (None, "", []) else str(v) for v in column.to_pylist()]
    names, codes, numbers = np.unique(
        np.array(texts, dtype=object).astype(str), return_inverse=True, return_counts=True
    )
    ordered = np.argsort(-numbers, kind="stable")
    largest = ordered if len(ordered) <= _MAX_GROUPS else ordered[: _MAX_GROUPS - 1]
    groups = {str(names[code]): codes == code for code in largest}
    if len(largest) < len(ordered):
        groups[f"{len(ordered) - len(largest)} others"] = ~np.isin(codes, largest)
    return groups


def _bands(values_U: Array) -> dict[str, Array]:
    """Quarters by quantile, named by their ends; equal numbers are in the same quarter."""
    known = np.isfinite(values_U)
    cuts = np.unique(np.quantile(values_U[known], np.linspace(0, 1, _NUM_BANDS + 1)))
    band_U = np.clip(np.searchsorted(cuts, values_U, side="right") - 1, 0, len(cuts) - 2)
    labels = [f"{low:g} to {high:g}" for low, high in zip(cuts[:-1], cuts[1:], strict=True)]
    groups = {label: known & (band_U == band) for band, label in enumerate(labels)}
    return groups if known.all() else {**groups, "unknown": ~known}


def user_group_report(
    groups: Mapping[str, Array],
    users_B: Array,
    main: Mapping[str, Array],
    beyond_head: Mapping[str, Array],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """The main metric by user group with intervals, the largest gap between groups, and the
    exposure of each group.

    ``beyond_head`` is the share of a list without head items; ``exposure_gap`` is its largest
    difference between groups. The interval of a gap resamples the users of the best and the worst
    group. These two are found on the same users, so a gap between equal groups is not zero: look at
    the interval. Groups without a test user are left out.

    Parameters
    ----------
    groups : Mapping of str to array, [U] bool
        Label to the users of the group.
    users_B : array, [B] int
        User of each query; −1 for an unknown user.
    main : Mapping of str to array, [B] float
        Recommender to the main metric.
    beyond_head : Mapping of str to array, [B] float
        Recommender to the share of each list that is no head item.
    resamples : int
        Number of bootstrap draws.
    seed : int
        Seed of the draws.

    Returns
    -------
    dict
        Plain JSON: ``groups``, ``gap`` and ``exposure_gap``.
    """
    masks = {label: (users_B >= 0) & mask_U[users_B] for label, mask_U in groups.items()}
    masks = {label: mask_B for label, mask_B in masks.items() if mask_B.any()}
    rows: dict[str, dict[str, Any]] = {
        label: {
            "queries": int(mask_B.sum()),
            "value": {name: float(of_B[mask_B].mean()) for name, of_B in main.items()},
            "interval": {
                n: intervals({"v": of_B[mask_B]}, resamples, seed)["v"] for n, of_B in main.items()
            },
            "beyond_head": {name: _finite_mean(of_B[mask_B]) for name, of_B in beyond_head.items()},
        }
        for label, mask_B in masks.items()
    }
    gaps = (
        {name: _gap(of_B, masks, resamples, seed) for name, of_B in main.items()}
        if len(masks) > 1
        else {}
    )
    shown = {name: [row["beyond_head"][name] for row in rows.values()] for name in beyond_head}
    return {
        "groups": rows,
        "gap": gaps,
        "exposure_gap": {
            name: max(found) - min(found)
            for name, values in shown.items()
            if len(found := [value for value in values if value is not None]) > 1
        },
    }


def _gap(values_B: Array, masks: Mapping[str, Array], resamples: int, seed: int) -> dict[str, Any]:
    """Best minus worst group of one recommender, with an interval over the users of both groups."""
    means = {label: float(values_B[mask_B].mean()) for label, mask_B in masks.items()}
    best = max(means, key=lambda label: means[label])
    worst = min(means, key=lambda label: means[label])
    draws_R = bootstrap_means(values_B[masks[best]][:, None], resamples, seed)[:, 0]
    draws_R = draws_R - bootstrap_means(values_B[masks[worst]][:, None], resamples, seed + 1)[:, 0]
    low, high = np.quantile(draws_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {
        "best": best,
        "worst": worst,
        "difference": means[best] - means[worst],
        "low": float(low),
        "high": float(high),
    }


def column_of(table: pa.Table, name: str, key: str, what: str) -> pa.ChunkedArray:
    """A column of a table of users or items.

    Parameters
    ----------
    table : pyarrow Table
        Users or items.
    name : str
        Name of the column.
    key : str
        Configuration key that names the column, for the message.
    what : str
        What the table holds, for the message: users or items.

    Raises
    ------
    ConfigError
        The table does not have the column.
    """
    if name not in table.column_names:
        known = [
            column
            for column in table.column_names
            if column not in (schema.ITEM_ID, schema.USER_ID)
        ]
        raise ConfigError(
            f"{key}: {name!r} is not a column of {what}; columns: {', '.join(known) or 'none'}"
        )
    return table.column(name)
