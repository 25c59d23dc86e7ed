"""Baselines: compared with naive formulas, one contract for all, and constants chosen without test
events.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.config import EvaluateConfig
from recsys.data.histories import Histories, Queries, Split
from recsys.errors import ConfigError
from recsys.evaluation import baselines
from recsys.evaluation.baselines import (
    Ease,
    ItemKnn,
    TargetEventsOnly,
    build_baseline,
    fit_baselines,
    matrix,
)
from recsys.evaluation.metrics import query_metrics
from recsys.evaluation.ranking import rank

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ["popularity", "item_knn", "ease", "als"]
NUM_ITEMS = 40


def world(num_users: int = 120, seed: int = 0) -> Histories:
    """Two communities: even users have items of the first half, odd users of the second; nobody has
    item 39.
    """
    generator = np.random.default_rng(seed)
    rows, splits = [], []
    for user in range(num_users):
        pool = np.arange(20) if user % 2 == 0 else np.arange(20, 39)
        rows.append(generator.choice(pool, 9, replace=False).tolist())
        splits += [0] * 7 + [1, 2]
    return with_splits(Histories.of_items(rows, list(range(num_users))), splits)


def with_splits(histories: Histories, splits: list[int] | np.ndarray) -> Histories:
    columns = {**vars(histories), "splits_E": np.asarray(splits, dtype=np.uint8)}
    return Histories(**columns)


def ask(*histories: list[int]) -> Queries:
    zeros = np.zeros(len(histories) + 1, dtype=np.int64)
    return Queries(Histories.of_items(list(histories)), zeros, np.zeros(0, dtype=np.int32))


@pytest.fixture(scope="module")
def train() -> Histories:
    return world().through(Split.TRAIN)


@pytest.mark.parametrize("name", [*NAMES, "frequency", "recent_popularity"])
def test_baseline_keeps_the_contract(name: str, train: Histories) -> None:
    """Shape, no NaN, independent of other users in the batch, users outside the fit, empty
    histories, no warnings.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        baseline = build_baseline(name, EvaluateConfig())
        baseline.fit(train, NUM_ITEMS)
        scores = baseline.scores(ask([1, 2, 3], [], [25, 30], [39]))
    assert (
        scores.shape == (4, NUM_ITEMS)
        and scores.dtype == torch.float32
        and not torch.isnan(scores).any()
    )
    alone = baseline.scores(ask([25, 30]))
    torch.testing.assert_close(alone[0], scores[2], rtol=1e-4, atol=1e-5)
    assert len(baseline.scores(ask())) == 0
    if name != "frequency":  # which counts
        again = baseline.scores(ask([3, 2, 1, 1]))[0]
        # order, repeats: no matter
        torch.testing.assert_close(again, scores[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES[1:])
def test_baselines_find_planted_communities(name: str, train: Histories) -> None:
    baseline = build_baseline(name, EvaluateConfig())
    baseline.fit(train, NUM_ITEMS)
    scores = baseline.scores(ask([0, 4, 7], [22, 28, 31]))
    first = np.arange(NUM_ITEMS) < 20
    for row, own in zip(scores.numpy(), (first, ~first), strict=True):
        assert own[np.argsort(-row)[:15]].mean() >= 14 / 15


def test_popularity_counts_users(train: Histories) -> None:
    baseline = build_baseline("popularity", EvaluateConfig())
    baseline.fit(Histories.of_items([[0, 0, 1], [0, 2]]), 4)
    assert baseline.scores(ask([1], [])).tolist() == [[2, 1, 1, 0], [2, 1, 1, 0]]


@pytest.mark.parametrize("name", NAMES)
def test_baseline_falls_back_on_popularity_without_input(name: str, train: Histories) -> None:
    """Nobody has item 39 in the fit; events of type 1 are not predicted."""
    baseline = build_baseline(name, EvaluateConfig())
    baseline.fit(train, NUM_ITEMS)
    counts = matrix(train, NUM_ITEMS).sum(axis=0).A1.tolist()
    assert baseline.scores(ask([], [39])).tolist() == [counts, counts]
    narrow = TargetEventsOnly(build_baseline(name, EvaluateConfig()))
    narrow.fit(train, NUM_ITEMS)
    asked = ask([1, 2])
    views = replace(
        asked.histories, types_E=np.ones(2, dtype=np.uint8), targets_T=np.array([True, False])
    )
    assert narrow.scores(replace(asked, histories=views)).tolist() == [counts]


def test_item_knn_tries_only_neighbours_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ItemKnn, "max_entries", 100 * NUM_ITEMS)
    baseline = ItemKnn(EvaluateConfig())
    tried = [
        constants["neighbours"]
        for constants in baseline.fits(world().through(Split.TRAIN), NUM_ITEMS)
    ]
    assert tried == [100, 20]
    monkeypatch.setattr(ItemKnn, "max_entries", 1)
    baseline = ItemKnn(EvaluateConfig())
    baseline.fit(world().through(Split.TRAIN), NUM_ITEMS)
    assert baseline.constants == {"neighbours": 20}


def test_item_knn_equals_the_naive_cosine(train: Histories) -> None:
    baseline = build_baseline("item_knn", EvaluateConfig())
    dense = matrix(train, NUM_ITEMS).toarray().astype(np.float64)
    norms = np.maximum(np.linalg.norm(dense, axis=0), 1e-12)
    cosine = (dense.T @ dense) / np.outer(norms, norms)
    histories = ask([0, 4, 7], [22], [])
    for constants in baseline.fits(train, NUM_ITEMS):
        keep = np.zeros_like(cosine)
        for row in range(NUM_ITEMS):
            best = np.argsort(-cosine[row])[: constants["neighbours"]]
            keep[row, best] = cosine[row, best]
        expected = matrix(histories.histories, NUM_ITEMS) @ keep
        expected[2] = dense.sum(axis=0)  # nothing to go by: popularity
        np.testing.assert_allclose(baseline.scores(histories).numpy(), expected, atol=1e-5)


def naive_ease(interactions: np.ndarray, l2: float) -> np.ndarray:
    inverse = np.linalg.inv(interactions.T @ interactions + l2 * np.eye(interactions.shape[1]))
    weights = -inverse / np.diagonal(inverse)
    np.fill_diagonal(weights, 0)
    return weights


@pytest.mark.parametrize("num_users", [25, 300])  # fewer users than items, and more
@pytest.mark.parametrize("max_rank", [0, 3000])  # Cholesky, eigenvectors
def test_ease_equals_the_naive_inverse(num_users: int, max_rank: int, monkeypatch) -> None:
    monkeypatch.setattr(Ease, "max_rank", max_rank)
    histories = world(num_users)
    dense = matrix(histories, NUM_ITEMS).toarray().astype(np.float64)
    kept = np.flatnonzero(dense.sum(axis=0) >= 2)
    baseline = Ease(EvaluateConfig())
    asked = ask([0, 4, 7], [22, 38], [])
    for constants in baseline.fits(histories, NUM_ITEMS):
        expected = matrix(asked.histories, NUM_ITEMS).toarray()[:, kept] @ naive_ease(
            dense[:, kept], constants["l2"]
        )
        scores = baseline.scores(asked).numpy()
        np.testing.assert_allclose(scores[:2, kept], expected[:2], atol=2e-4)
        assert np.isneginf(np.delete(scores[:2], kept, axis=1)).all()
        np.testing.assert_array_equal(scores[2], dense.sum(axis=0))  # nothing to go by: popularity
    once = Ease(EvaluateConfig())
    once.constants = dict(constants)
    once.fit(histories, NUM_ITEMS)
    np.testing.assert_array_equal(once.scores(asked).numpy(), scores)


def test_ease_keeps_the_most_popular_items_with_two_users() -> None:
    train = Histories.of_items([[0, 1, 2], [0, 1, 2], [0, 1], [0, 3]])
    baseline = Ease(EvaluateConfig(ease_max_items=2))
    baseline.fit(train, 5)
    assert torch.isfinite(baseline.scores(ask([0]))[0]).tolist() == [
        True,
        True,
        False,
        False,
        False,
    ]
    wide = Ease(EvaluateConfig())
    wide.fit(train, 5)
    assert torch.isfinite(wide.scores(ask([0]))[0]).tolist() == [True, True, True, False, False]
    none = Ease(EvaluateConfig())
    none.fit(Histories.of_items([[0], [1]]), 3)
    assert none.num_kept == 0 and none.scores(ask([0])).tolist() == [[1, 1, 0]]


def test_constants_are_chosen_on_validation_without_test() -> None:
    histories = world()
    changed = np.where(
        histories.splits_E == Split.TEST, (histories.items_E + 11) % NUM_ITEMS, histories.items_E
    )
    elsewhere = Histories(**{**vars(histories), "items_E": changed.astype(np.int32)})
    queries = histories.queries(Split.TEST)
    for refit in (False, True):
        one, other = (
            fit_baselines(NAMES, h, NUM_ITEMS, EvaluateConfig(), "ndcg@10", refit)
            for h in (histories, elsewhere)
        )
        for name in NAMES:
            assert (
                one[name].constants == other[name].constants
                and one[name].validation == other[name].validation
            )
            torch.testing.assert_close(one[name].scores(queries), other[name].scores(queries))


@pytest.mark.parametrize("name", NAMES)
def test_best_constants_of_the_grid_are_chosen_and_fitted(name: str) -> None:
    histories = world()
    train, asked = histories.through(Split.TRAIN), histories.queries(Split.VALID)
    by_hand = []
    for constants in build_baseline(name, EvaluateConfig()).grid:
        baseline = build_baseline(name, EvaluateConfig())
        baseline.constants = dict(constants)
        baseline.fit(train, NUM_ITEMS)
        result = rank(baseline, asked, 5)
        by_hand.append(query_metrics(result.hits_BK, result.num_targets_B, [5])["ndcg@5"].mean())
    chosen = fit_baselines([name], histories, NUM_ITEMS, EvaluateConfig(), "ndcg@5", refit=False)[
        name
    ]
    assert chosen.validation == pytest.approx(max(by_hand), abs=1e-6)
    again = build_baseline(name, EvaluateConfig())
    again.constants = dict(chosen.constants)
    again.fit(train, NUM_ITEMS)
    torch.testing.assert_close(chosen.scores(asked), again.scores(asked), rtol=1e-4, atol=1e-5)


def test_constants_are_chosen_on_an_even_sample_of_many_queries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(baselines, "MOST_QUERIES", 7)
    histories = world()
    asked = histories.queries(Split.VALID)
    sample = asked.take(np.linspace(0, len(asked) - 1, 7).astype(np.int64))
    [found] = fit_baselines(
        ["popularity"], histories, NUM_ITEMS, EvaluateConfig(), "ndcg@5", refit=False
    ).values()
    result = rank(found, sample, 5)
    values_B = query_metrics(result.hits_BK, result.num_targets_B, [5])["ndcg@5"]
    assert found.validation == pytest.approx(values_B.mean())
    assert len(asked) > 7


def test_refit_learns_from_validation_events() -> None:
    rows = [[0, 1], [0, 1], [0, 2], [3, 2]]
    histories = with_splits(Histories.of_items(rows), [0, 1] * 4)
    fits = {
        r: fit_baselines(["popularity"], histories, 4, EvaluateConfig(), "ndcg@2", r)["popularity"]
        for r in (False, True)
    }
    assert fits[False].scores(ask([]))[0].tolist() == [3, 0, 0, 1]
    assert fits[True].scores(ask([]))[0].tolist() == [3, 2, 2, 1]


def test_defaults_stay_without_validation() -> None:
    fitted = fit_baselines(
        NAMES, world().through(Split.TRAIN), NUM_ITEMS, EvaluateConfig(), "ndcg@5", refit=False
    )
    for name, baseline in fitted.items():
        assert baseline.validation is None and baseline.constants == dict(baseline.grid[0]), name
        assert baseline.scores(ask([1])).shape == (1, NUM_ITEMS)


def test_unknown_names_are_user_errors() -> None:
    with pytest.raises(
        ConfigError, match="als, ease, frequency, item_knn, popularity, recent_popularity"
    ):
        build_baseline("slim", EvaluateConfig())
    with pytest.raises(ConfigError, match="coverage@20"):
        fit_baselines([], world(), NUM_ITEMS, EvaluateConfig(), "coverage@20", refit=True)


def last_fm(folder: Path) -> tuple[Histories, int]:
    """HetRec Last.fm with the published held-out listens as test and a random tenth of the others
    as validation.
    """
    listens = np.loadtxt(folder / "user_artists.dat", skiprows=1, dtype=np.int64, delimiter="\t")[
        :, :2
    ]
    held_out = np.loadtxt(folder / "splits" / "random80.test.tsv", skiprows=1, dtype=np.int64)
    users, user_E = np.unique(listens[:, 0], return_inverse=True)
    items, item_E = np.unique(listens[:, 1], return_inverse=True)
    is_test = np.isin(listens @ [2**32, 1], held_out @ [2**32, 1])
    split_E = np.where(is_test, 2, np.random.default_rng(0).random(len(listens)) < 0.1)
    order = np.argsort(user_E, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(user_E))])
    zeros = np.zeros(len(listens))
    return Histories(
        np.arange(len(users), dtype=np.int32),
        offsets,
        item_E[order].astype(np.int32),
        zeros.astype(np.uint8),
        zeros.astype(np.int64),
        np.ones(len(listens), dtype=np.float32),
        split_E[order].astype(np.uint8),
    ), len(items)


@pytest.mark.slow
def test_figures_on_last_fm() -> None:
    """Figures are close to published ones on this split: NDCG@20 .095, .253, .274, .263."""
    folder = Path(os.environ.get("RECSYS_DATA", "data")) / "lastfm"
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing; set RECSYS_DATA to the folder that holds lastfm/")
    histories, num_items = last_fm(folder)
    fitted = fit_baselines(NAMES, histories, num_items, EvaluateConfig(), "ndcg@20", refit=True)
    queries = histories.queries(Split.TEST)
    assert len(queries) == 1881
    for name, expected in {
        "popularity": 0.095,
        "item_knn": 0.253,
        "ease": 0.274,
        "als": 0.263,
    }.items():
        result = rank(fitted[name], queries, 20)
        ndcg = query_metrics(result.hits_BK, result.num_targets_B, [20])["ndcg@20"].mean()
        assert ndcg == pytest.approx(expected, abs=0.008), name
