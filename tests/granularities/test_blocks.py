"""Fits that read the events in blocks equal fits on all events at once."""

from __future__ import annotations

import errno
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from recsys.config import build_config
from recsys.data.dataset import PreparedDataset
from recsys.data.event_table import EventTable
from recsys.data.hidden import Hidden
from recsys.data.histories import Split
from recsys.errors import StorageError
from recsys.granularities import event_matrix, item_links, spectrum, user_item_graph
from recsys.granularities.als import model as als
from recsys.granularities.base import Graphs, ItemView, State
from recsys.granularities.event_matrix import EventMatrix, training_matrix
from recsys.granularities.profile import counts as profile_counts
from recsys.granularities.stratum import clustering
from recsys.model import MultigrainModel
from recsys.training.context import TrainContext
from recsys.training.fresh_model import build_graphs, build_model
from recsys.training.user_clusters import choose_user_clusters
from tests.handmade import DAY, Event, write_dataset
from tests.two_processes import together

USERS, ITEMS, WIDTH = 41, 23, 8
Patch = pytest.MonkeyPatch
CLOSED: list[tuple[str, dict[str, Any]]] = [
    ("item_cf", {"form": "factors", "rank": 6}),
    ("item_cf", {"form": "factors", "rank": 6, "event_weights": "rank"}),
    ("item_cf", {"form": "factors", "rank": 6, "types": "targets"}),
    ("item_cf", {"form": "neighbours", "neighbours": 5}),
    ("item_knn", {}),
    ("item_knn", {"types": "targets"}),
    ("als", {"factors": 4, "iterations": 3}),
    ("als", {"factors": 4, "iterations": 3, "types": "targets"}),
    ("user_cf", {"rank": 5, "max_users": 20}),
    ("social_cf", {"rank": 5}),
    ("profile", {"fit": "counts"}),
]


@pytest.fixture
def dataset(tmp_path: Path) -> PreparedDataset:
    return dataset_in(tmp_path / "data")


def dataset_in(folder: Path, ordered: bool = True) -> PreparedDataset:
    random = np.random.default_rng(5)
    histories: list[list[Event]] = []
    for _ in range(USERS):
        # no user has the last item
        items = random.permutation(ITEMS - 1)[: random.integers(4, 14)].tolist()
        items += items[:1]  # a repeated item is one row
        parts = [Split.TRAIN] * (len(items) - 2) + [Split.VALID, Split.TEST]
        histories.append(
            [
                (item, int(random.integers(2)), at * DAY, part)
                for at, (item, part) in enumerate(zip(items, parts, strict=True))
            ]
        )
    return write_dataset(
        folder,
        [*histories, []],
        ITEMS,
        event_types=("view", "buy"),
        targets=("buy",),
        friends=[(user, (user * 7 + 3) % USERS) for user in range(USERS)],
        num_shards=3,
        ordered=ordered,
        user_columns={"group": pa.array([str(user % 4) for user in range(USERS + 1)])},
    )


def made(
    dataset: PreparedDataset, name: str, section: dict[str, Any]
) -> tuple[MultigrainModel, Graphs]:
    torch.manual_seed(3)
    tree = {"width": WIDTH, "granularities": {name: {"enabled": True, **section}}}
    config = build_config({"model": tree})
    model = build_model(config.model, config.train, dataset, Split.TRAIN)
    graphs = build_graphs(dataset, Split.TRAIN, model)
    random = torch.Generator().manual_seed(4)
    # ties as well
    return model, replace(
        graphs, values_E=torch.randint(5, (len(graphs.users_E),), generator=random).float()
    )


def in_blocks(monkeypatch: Patch) -> None:
    """Blocks of about 9 events."""
    monkeypatch.setattr(event_matrix, "_BLOCK_EVENTS", 9)
    monkeypatch.setattr(als, "_BLOCK_EVENTS", 11)
    monkeypatch.setattr(profile_counts, "_MEMBERSHIPS", 30)


def state_of(dataset: PreparedDataset, name: str, section: dict[str, Any]) -> State:
    model, graphs = made(dataset, name, section)
    [(_, module)] = model.encoders.each(closed_form=True)
    return module.state(ItemView(torch.zeros(ITEMS, 1), torch.zeros(ITEMS, 0)), graphs)


@pytest.mark.parametrize(("name", "section"), CLOSED)
def test_closed_form_fit_in_blocks_equals_the_fit_at_once(
    dataset: PreparedDataset, monkeypatch: Patch, name: str, section: dict[str, Any]
) -> None:
    whole = state_of(dataset, name, section)
    in_blocks(monkeypatch)
    _, graphs = made(dataset, name, section)
    assert len(list(EventMatrix.of(graphs).blocks())) > 10
    blocked = state_of(dataset, name, section)
    assert whole.keys() == blocked.keys()
    for key, expected in whole.items():
        torch.testing.assert_close(blocked[key], expected, rtol=1e-4, atol=1e-4, msg=key)


@pytest.mark.parametrize("size", [9, 1000])
def test_subspace_iteration_in_blocks_finds_the_singular_vectors(
    dataset: PreparedDataset, monkeypatch: Patch, size: int
) -> None:
    _, graphs = made(dataset, "item_knn", {})
    text_NT = np.random.default_rng(1).normal(size=(ITEMS, 2)).astype(np.float32)
    for name in ("_EXACT_SIDE", "_WIDE_SIDE"):
        monkeypatch.setattr(spectrum, name, 0)
    monkeypatch.setattr(event_matrix, "_BLOCK_EVENTS", size)
    monkeypatch.setattr(spectrum, "_NUMBERS", 3 * ITEMS)
    events = training_matrix(graphs, "rank")
    basis_NR, sigma_R = spectrum.spectrum(events, text_NT, 5)
    stacked = np.concatenate([events.whole().toarray(), text_NT.T])
    _, expected, vectors = np.linalg.svd(stacked, full_matrices=False)
    np.testing.assert_allclose(sigma_R, expected[:5], rtol=1e-4)
    np.testing.assert_allclose(np.abs((basis_NR * vectors[:5].T).sum(0)), 1, atol=1e-4)


def test_long_histories_are_cut_alike_in_blocks(
    dataset: PreparedDataset, monkeypatch: Patch
) -> None:
    _, graphs = made(dataset, "item_knn", {})
    events = training_matrix(graphs, "none")
    whole = item_links.together(events).toarray()
    monkeypatch.setattr(item_links, "_MAX_PAIRS", USERS * 9)
    cut = item_links.together(events).toarray()
    in_blocks(monkeypatch)
    np.testing.assert_array_equal(item_links.together(events).toarray(), cut)
    assert 0 < cut.sum() < whole.sum()


@pytest.mark.parametrize("name", ["item_cf", "als"])
def test_rows_of_some_users_and_transposed_rows_equal_the_matrix(
    dataset: PreparedDataset, monkeypatch: Patch, name: str
) -> None:
    in_blocks(monkeypatch)
    _, graphs = made(dataset, "item_cf", {"form": "factors", "types": "targets"})
    events = training_matrix(graphs, "none" if name == "als" else "rank", targets_alone=True)
    whole = events.whole().toarray()
    assert 0 < (whole != 0).sum() < len(graphs.users_E)
    some = np.array([30, 2, USERS, 7])
    np.testing.assert_array_equal(events.take(some).toarray(), whole[some])
    np.testing.assert_array_equal(events.transposed().whole().toarray(), whole.T != 0)
    np.testing.assert_array_equal(events.counts_N, (whole != 0).sum(0))
    np.testing.assert_array_equal(events.lengths_V, (whole != 0).sum(1))


@pytest.mark.parametrize("method", ["kmeans", "hierarchical"])
def test_strata_in_blocks_equal_those_at_once(
    dataset: PreparedDataset, monkeypatch: Patch, method: str
) -> None:
    def centroids() -> torch.Tensor:
        model, graphs = made(dataset, "stratum", {"num_strata": [3], "method": method})
        [(_, module)] = model.encoders.each()
        random = torch.Generator().manual_seed(1)
        vectors_ND = torch.randn(ITEMS, WIDTH, generator=random)
        module.refit(graphs, ItemView(vectors_ND, torch.zeros(ITEMS, 0)), 0)
        assert isinstance(module.centroids_KT, torch.Tensor)
        return module.centroids_KT

    whole = centroids()
    monkeypatch.setattr(clustering, "BLOCK", 7)
    in_blocks(monkeypatch)
    torch.testing.assert_close(centroids(), whole)


def test_number_of_strata_in_blocks_equals_that_at_once(
    dataset: PreparedDataset, monkeypatch: Patch
) -> None:
    tree = {"stratum": {"enabled": True, "num_strata": [2, 4]}}
    model = build_config({"model": {"width": WIDTH, "granularities": tree}}).model
    whole = choose_user_clusters(model, 0, dataset, TrainContext())
    in_blocks(monkeypatch)
    blocked = choose_user_clusters(model, 0, dataset, TrainContext())
    assert blocked["chosen"] == whole["chosen"]
    assert blocked["candidates"] == pytest.approx(whole["candidates"], rel=1e-5)


@pytest.mark.parametrize(
    ("name", "section"),
    [("social", {"fit": "training", "conv": "sage"}), ("collaborative", {"user_embedding": True})],
)
def test_convolution_in_blocks_has_the_values_and_gradients_of_the_index(
    tmp_path: Path, monkeypatch: Patch, name: str, section: dict[str, Any]
) -> None:
    # rows of users are for unordered data
    dataset = dataset_in(tmp_path / "data", ordered=False)

    def found() -> list[torch.Tensor]:
        model, graphs = made(dataset, name, section)
        [(_, module)] = model.encoders.each()
        random = torch.Generator().manual_seed(1)
        base_ND = torch.randn(ITEMS, WIDTH, generator=random).requires_grad_()
        refined_ND = module.refine_items(base_ND, graphs)
        state = module.state(ItemView(refined_ND, torch.zeros(ITEMS, 0)), graphs)
        sum(part.square().sum() for part in [refined_ND, *state.values()]).backward()  # type: ignore[union-attr]
        grads = [one.grad for one in [base_ND, *module.parameters()] if one.grad is not None]
        return [refined_ND, *state.values(), *grads]

    whole = found()
    monkeypatch.setattr(user_item_graph, "_MOST_INDEXED", 0)
    in_blocks(monkeypatch)
    blocked = found()
    assert len(whole) == len(blocked) > 3
    torch.testing.assert_close(blocked, whole)


def test_table_of_shards_in_any_order_is_sorted_by_user(dataset: PreparedDataset) -> None:
    expected = set()
    for shard in dataset.shards():
        seen = shard.through(Split.TRAIN)
        users_E = np.repeat(seen.users_U, seen.lengths_U)
        expected |= set(zip(users_E.tolist(), seen.items_E.tolist(), strict=True))
    table = EventTable.of_dataset(dataset, Split.TRAIN)
    assert list(zip(table.users_E.tolist(), table.items_E.tolist(), strict=True)) == sorted(
        expected
    )


def test_full_disk_is_named(dataset: PreparedDataset, monkeypatch: Patch) -> None:
    def fails(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fails)  # the shards are in no order
    with pytest.raises(StorageError, match=f"{tempfile.gettempdir()}.*disk is full"):
        EventTable.of_dataset(dataset, Split.TRAIN)


def test_hidden_events_leave_the_table(dataset: PreparedDataset) -> None:
    graphs, hidden = build_graphs(dataset, Split.TRAIN), Hidden(0.5, 3)
    is_hidden_E = hidden.of(graphs.users_E.numpy().astype(np.int64), graphs.items_E.numpy())
    rest = graphs.without(hidden)
    assert 0 < len(rest.users_E) < len(graphs.users_E)
    for before, after in ((graphs.users_E, rest.users_E), (graphs.items_E, rest.items_E)):
        assert after.tolist() == before[torch.as_tensor(~is_hidden_E)].tolist()


def test_workers_of_a_machine_map_one_table(dataset: PreparedDataset, tmp_path: Path) -> None:
    together(_sharing_worker, tmp_path, dataset.root, str(tmp_path))
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    alone = build_graphs(dataset, Split.TRAIN)
    assert one["users"].tolist() == other["users"].tolist() == alone.users_E.tolist()
    assert one["items"].tolist() == other["items"].tolist() == alone.items_E.tolist()
    assert other["value"] == 123, "what one worker writes, the other reads"
    assert not one["left"] and not other["left"], "no file keeps its name"


def _sharing_worker(rank: int, world: int, root: str, out: str) -> None:
    os.environ["TMPDIR"] = out
    tempfile.tempdir = None
    context = TrainContext(rank, world)
    graphs = build_graphs(PreparedDataset(root), Split.TRAIN, context=context)
    assert graphs.values_E is not None
    if rank == 0:
        graphs.values_E[0] = 123
    context.sum(torch.zeros(1))
    found = {"users": graphs.users_E, "items": graphs.items_E, "value": float(graphs.values_E[0])}
    torch.save(
        {**found, "left": [str(path) for path in Path(out).glob("multigrain-*/*")]},
        f"{out}/{rank}.pt",
    )
