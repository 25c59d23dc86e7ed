"""Sampled neighbourhoods: complete if the fan-out allows, unbiased otherwise, the same for all sets
of nodes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recsys.config import LossConfig, build_config
from recsys.data.dataset import PreparedDataset
from recsys.data.hidden import Hidden
from recsys.data.histories import Split
from recsys.data.loader import LoaderConfig, TrainingLoader
from recsys.data.neighbours import Neighbours
from recsys.granularities.collaborative.model import Collaborative
from recsys.granularities.collaborative.sampling import convolve, sample_hops
from recsys.model import MultigrainModel
from recsys.training.fresh_model import build_graphs, build_model
from recsys.training.step import StepLoss
from tests.handmade import DAY, Event, write_dataset

USERS, ITEMS, WIDTH = 40, 25, 8
CPU = torch.device("cpu")


@pytest.fixture
def dataset(tmp_path: Path) -> PreparedDataset:
    random = np.random.default_rng(5)
    histories: list[list[Event]] = []
    for user in range(USERS):
        # no user has the last item
        items = random.permutation(ITEMS - 1)[: random.integers(4, 14)].tolist()
        items += items[:1] * (user % 2)  # a repeated item is one edge
        parts = [Split.TRAIN] * (len(items) - 2) + [Split.VALID, Split.TEST]
        histories.append(
            [
                (item, 0, at * DAY, part)
                for at, (item, part) in enumerate(zip(items, parts, strict=True))
            ]
        )
    return write_dataset(tmp_path / "data", [*histories, []], ITEMS, num_shards=3)


@pytest.fixture
def neighbours(dataset: PreparedDataset) -> Neighbours:
    return Neighbours.of_dataset(dataset, Split.TRAIN)


def dense(dataset: PreparedDataset) -> torch.Tensor:
    """Ã = Aᵀ A by hand."""
    chosen_VN = torch.zeros(USERS + 1, ITEMS)
    for shard in dataset.shards():
        for row, user in enumerate(shard.users_U):
            events = slice(shard.offsets_U1[row], shard.offsets_U1[row + 1])
            kept = shard.splits_E[events] == Split.TRAIN
            chosen_VN[int(user), torch.as_tensor(shard.items_E[events][kept].astype(np.int64))] = (
                1.0
            )
    share_VN = chosen_VN / (chosen_VN.sum(1, keepdim=True) * chosen_VN.sum(0)).clamp(min=1).sqrt()
    return share_VN.T @ share_VN


def model_of(dataset: PreparedDataset, max_edges: int, **more: Any) -> MultigrainModel:
    section = {"enabled": True, "max_edges": max_edges, **more}
    model = {"width": WIDTH, "granularities": {"collaborative": section}}
    torch.manual_seed(3)
    config = build_config({"model": model})
    return build_model(config.model, config.train, dataset, Split.TRAIN)


def test_streamed_convolution_equals_the_dense_one(
    dataset: PreparedDataset, neighbours: Neighbours
) -> None:
    layer_ND = torch.randn(ITEMS, WIDTH)
    torch.testing.assert_close(convolve(neighbours, layer_ND), dense(dataset) @ layer_ND)


def test_graph_of_several_parts_is_read_completely(
    dataset: PreparedDataset, neighbours: Neighbours, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recsys.data.neighbours._EDGES_AT_A_TIME", 40)
    parts = list(neighbours.parts())
    assert len(parts) > 3 and max(len(items_E) for _, _, items_E in parts) < 60
    assert np.concatenate([users for users, _, _ in parts]).tolist() == list(range(USERS + 1))
    layer_ND = torch.randn(ITEMS, WIDTH)
    torch.testing.assert_close(convolve(neighbours, layer_ND), dense(dataset) @ layer_ND)


@pytest.mark.parametrize("nodes", [None, [2, 7, 11]])
def test_fanout_above_all_degrees_equals_the_convolution(
    dataset: PreparedDataset, neighbours: Neighbours, nodes: list[int] | None
) -> None:
    ids_S = None if nodes is None else torch.tensor(nodes)
    wide_S, hops = sample_hops(neighbours, ids_S, 2, USERS, (0, 1, 2), CPU)
    layer_ND = torch.randn(ITEMS, WIDTH)
    wide = torch.arange(ITEMS) if wide_S is None else wide_S
    rows = wide if nodes is None else torch.tensor(nodes)
    assert wide[: len(rows)].tolist() == rows.tolist() and len(set(wide.tolist())) == len(wide)
    expected_ND = dense(dataset) @ dense(dataset) @ layer_ND
    torch.testing.assert_close(hops[0](hops[1](layer_ND[wide])), expected_ND[rows])


def test_mean_of_many_samples_approaches_the_convolution(
    dataset: PreparedDataset, neighbours: Neighbours
) -> None:
    layer_ND, ids_S = torch.randn(ITEMS, WIDTH), torch.tensor([0, 3, 9, 20])
    found = []
    for step in range(1500):
        wide_S, hops = sample_hops(neighbours, ids_S, 1, 3, (0, 0, step), CPU)
        assert wide_S is not None
        found.append(hops[0](layer_ND[wide_S]))
    samples = torch.stack(found)
    expected_SD = (dense(dataset) @ layer_ND)[ids_S]
    error_SD = samples.std(0) / len(samples) ** 0.5
    assert (error_SD > 0).all(), "a fan-out of 3 leaves something to chance"
    assert ((samples.mean(0) - expected_SD).abs() < 4.5 * error_SD).all()


def test_sample_of_a_node_does_not_depend_on_other_nodes(neighbours: Neighbours) -> None:
    few, many = np.array([4, 9]), np.arange(ITEMS)
    rows, ends, weights = neighbours.users_of_N.sample(many, 3, 17)
    of_few = neighbours.users_of_N.sample(few, 3, 17)
    for place, node in enumerate(few):
        assert of_few[1][of_few[0] == place].tolist() == ends[rows == node].tolist()
    assert np.bincount(rows, minlength=ITEMS).max() == 3 and weights.max() > 1
    assert neighbours.users_of_N.sample(many, 3, 18)[1].tolist() != ends.tolist()


def test_hidden_events_are_in_no_neighbour_list(neighbours: Neighbours) -> None:
    hidden = Hidden(0.5, 3)
    rest = neighbours.without(hidden)
    users = np.arange(USERS + 1)

    def pairs(one: Neighbours) -> set[tuple[int, int]]:
        rows, items = one.items_of_V.of(users)
        return set(zip(users[rows].tolist(), items.tolist(), strict=True))

    before, after = pairs(neighbours), pairs(rest)
    gone = {
        (user, item) for user, item in before if hidden.of(np.array([user]), np.array([item]))[0]
    }
    assert gone and before - gone == after
    assert rest.users_of_N.degree_X.sum() == len(after)


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_sampled_model_freezes_like_the_full_one(dataset: PreparedDataset, layers: int) -> None:
    frozen = []
    for max_edges in (10**6, 0):
        model = model_of(dataset, max_edges, layers=layers)
        graphs = build_graphs(dataset, Split.TRAIN, model=model)
        assert model.is_sampled == (max_edges == 0) and (len(graphs.users_E) > 0) == (max_edges > 0)
        frozen.append(model.freeze(graphs))
    full, sampled = frozen
    torch.testing.assert_close(sampled.item_vectors_ND, full.item_vectors_ND)
    torch.testing.assert_close(sampled.states["collaborative"], full.states["collaborative"])
    assert sampled.popularity_N.tolist() == full.popularity_N.tolist()


@pytest.mark.parametrize("kind", ["sampled_softmax", "full_softmax"])
def test_step_with_a_wide_fanout_equals_the_full_step(dataset: PreparedDataset, kind: Any) -> None:
    loader = TrainingLoader(dataset, Split.TRAIN, LoaderConfig(16, 20, 0.0, 1.0, 10**6, 0))
    batch = next(loader.epoch(0)).batch
    losses, grads = [], []
    for max_edges in (10**6, 0):
        model = model_of(dataset, max_edges, fanout=USERS)
        config = LossConfig(kind=kind, num_negatives=6)
        loss = StepLoss(model, build_graphs(dataset, Split.TRAIN, model=model), config, dataset)
        value = loss(batch, (0, 0, 0))
        value.backward()
        losses.append(value.detach())
        assert model.tower.id_ND is not None and model.tower.id_ND.weight.grad is not None
        grads.append(model.tower.id_ND.weight.grad.to_dense())
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(grads[1], grads[0])


def test_model_without_event_inputs_only_counts_events(dataset: PreparedDataset) -> None:
    section = {"evolution": {"enabled": True}}
    config = build_config({"model": {"width": WIDTH, "granularities": section}})
    model = build_model(config.model, config.train, dataset, Split.TRAIN)
    counted = build_graphs(dataset, Split.TRAIN, model=model)
    table = build_graphs(dataset, Split.TRAIN)
    assert not len(counted.users_E) and len(table.users_E)
    assert counted.degree_N.tolist() == table.degree_N.tolist()


def test_user_rows_are_kept_with_the_whole_graph(tmp_path: Path) -> None:
    histories: list[list[Event]] = [
        [(item, 0, 0, Split.TRAIN) for item in (0, 1)],
        [(1, 0, 0, Split.TRAIN)],
    ]
    dataset = write_dataset(tmp_path / "data", histories, 2, ordered=False)
    model = model_of(dataset, 0, user_embedding=True)
    assert (
        isinstance(model.encoders.granularities["collaborative"], Collaborative)
        and not model.is_sampled
    )
