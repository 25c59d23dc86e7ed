"""Distances and numbers of items: the kernel by hand, its factors, columns by name, and a world of
short steps.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from recsys.config import build_config
from recsys.data.batches import last_position
from recsys.data.histories import Histories, Queries, Split
from recsys.data.quantities import quantities
from recsys.errors import ConfigError
from recsys.evaluation.validation import Validator
from recsys.granularities.base import Graphs, ItemView, ModelSizes
from recsys.granularities.place.coordinates import Places, found_columns, read_places
from recsys.granularities.place.model import Kernel, Place, bandwidths
from recsys.granularities.place.section import PlaceConfig
from recsys.granularities.shares import LogShares
from recsys.model import FrozenModel
from recsys.training.constants import choose_values
from recsys.training.context import TrainContext
from recsys.training.phases import fit
from tests.handmade import DAY, leave_last, write_dataset

ITEMS = 6
TABLE = pa.table(
    {
        "item_id": [f"i{item}" for item in range(ITEMS)],
        "Lat": [0.0, 0.0, 1.0, 60.0, None, 0.0],
        "lng": [0.0, 1.0, 0.0, 180.0, 3.0, 0.5],
        "price": ["5", "1", "9.5", None, "7", "5"],
    }
)
COLUMNS = [["Lat", "lng"], ["price"]]
DEGREE = 6371 * np.pi / 180


def test_degrees_become_kilometres_and_numbers_become_ranks() -> None:
    assert found_columns(TABLE.column_names, [], ["price"]) == COLUMNS
    places = read_places(TABLE, COLUMNS)
    distance = np.linalg.norm(places.points_NC[:, None] - places.points_NC, axis=2)
    assert distance[0, 1] == pytest.approx(DEGREE, rel=1e-4) and distance[0, 2] == pytest.approx(
        DEGREE, rel=1e-4
    )
    assert distance[0, 5] == pytest.approx(DEGREE / 2, rel=1e-4)
    assert np.isnan(places.points_NC[4]).all(), "one coordinate alone is not a place"
    np.testing.assert_allclose(places.ranks_NK[:, 0], [0.4, 0.1, 0.9, np.nan, 0.7, 0.4])
    assert places.known_N.all()
    plane = read_places(
        TABLE.set_column(1, "Lat", pa.array([0.0, 300, 0, 0, None, 0])), [["Lat", "lng"], []]
    )
    np.testing.assert_allclose(
        plane.points_NC[1], [300, 1], err_msg="values that are not degrees are a plane"
    )


def test_columns_are_found_by_name_or_named() -> None:
    assert found_columns(["latitude", "x"], [], []) == [[], []]
    with pytest.raises(ConfigError, match=r"place names altitude.*there are: a, b"):
        found_columns(["a", "b"], [], ["altitude"])
    with pytest.raises(ConfigError, match="expected two columns"):
        found_columns(["a", "b"], ["a"], [])
    with pytest.raises(ConfigError, match=r"needs coordinates or numbers.*place\.coordinates"):
        Place(
            PlaceConfig(),
            ModelSizes(4, 10, 3, ITEMS, 1, 0, ordered=True, timed=True, inputs={"place": [[], []]}),
        )


def test_factors_equal_the_kernel_with_all_landmarks() -> None:
    kernel = Kernel(read_places(TABLE, COLUMNS), [50.0, 500.0])
    weights_F, everything = np.array([1.0, 2.0, 0.5, 0.0]), np.arange(ITEMS)
    vectors_NM = kernel.factored(weights_F, np.ones(ITEMS), 100)
    exact = np.einsum("f,fxy->xy", weights_F, kernel.between(everything, everything))
    np.testing.assert_allclose(vectors_NM @ vectors_NM.T, exact, atol=1e-4)
    assert exact[0, 1] == pytest.approx(
        np.exp(-DEGREE / 50) + 2 * np.exp(-DEGREE / 500) + 0.5 * np.exp(-0.3 / 0.05), rel=1e-3
    )
    few = kernel.factored(weights_F, np.ones(ITEMS), 2)
    assert few.shape == (ITEMS, 2)
    assert (np.diag(few @ few.T) <= np.diag(exact) + 1e-6).all(), (
        "each similarity is approximated from below"
    )


def test_user_is_the_weighted_mean_of_the_places() -> None:
    rows = [[0, 1, 5], [1, 2], [5, 0, 2, 1]]
    histories = Histories.of_items(rows, [0, 1, 2])
    users_E = torch.repeat_interleave(torch.arange(3), torch.tensor([3, 2, 4]))
    places = read_places(TABLE, [["Lat", "lng"], []])
    items_E = torch.as_tensor(histories.items_E.astype(np.int64))
    graphs = Graphs(3, ITEMS, users_E, items_E, histories=histories, inputs={"place": places})
    view = ItemView(torch.zeros(ITEMS, 4), torch.zeros(ITEMS, 0))
    sizes = ModelSizes(
        4, 10, 3, ITEMS, 1, 0, ordered=True, timed=False, inputs={"place": [["Lat", "lng"], []]}
    )
    module = Place(PlaceConfig(bandwidths=[100.0], recency=1.0), sizes)
    state = module.state(view, graphs)
    requested = Histories.of_items([[4, 1, 0], [4], []])
    batch = last_position(Queries(requested, np.zeros(4, np.int64), np.zeros(0, np.int32)), 10)
    z_BM, present_B = module(batch, view, state)
    assert present_B.tolist() == [True, False, False] and not z_BM[1:].any(), "item 4 has no place"
    similarity = np.exp(-np.linalg.norm(places.points_NC[:, None] - places.points_NC, axis=2) / 100)
    expected = float(state["weights_F"][0]) * (similarity[0] * 2 / 3 + similarity[1] / 3)
    popularity = module.own_items(state)[:, -1].numpy()
    found = (z_BM[0] @ module.own_items(state).T).numpy()
    placed = [0, 1, 2, 3, 5]
    np.testing.assert_allclose(found[placed] - popularity[placed], expected[placed], atol=1e-4)
    assert found[4] == pytest.approx(popularity[4], abs=1e-6)


def test_bandwidths_are_quantiles_of_user_distances() -> None:
    points = np.array([[0.0, 0], [1, 0], [11, 0], [np.nan, np.nan]])
    histories = Histories.of_items([[0, 1, 1], [1, 2], [3, 0]])
    assert bandwidths(histories, points)[0] == pytest.approx(1.45)
    assert bandwidths(histories, points[:, :0]) == []


@pytest.mark.parametrize("by", ["place", "price"])
def test_nearby_items_are_found(tmp_path: Path, by: str) -> None:
    """Items on a map, or with a price; a user goes to one of the eight nearest ones; ids are hardly
    predictive.
    """
    random, num_items = np.random.default_rng(0), 400
    places = (
        random.random((num_items, 2))
        if by == "place"
        else np.stack([random.random(num_items)] * 2, axis=1)
    )
    near = np.argsort(((places[:, None] - places) ** 2).sum(2), axis=1)[:, 1:9]
    rows = []
    for _ in range(250):
        row = [int(random.integers(num_items))]
        for _ in range(5):
            row.append(int(random.choice(near[row[-1]])))
        rows.append(leave_last(*row))
    columns = {"latitude": pa.array(places[:, 0]), "longitude": pa.array(places[:, 1])}
    columns = columns if by == "place" else {"price": pa.array(places[:, 0])}
    dataset = write_dataset(tmp_path / "data", rows, num_items, item_columns=columns)
    section = {"enabled": True, "recency": 2.0, "numbers": [] if by == "place" else ["price"]}
    tree = {"model": {"granularities": {"place": section}}, "train": {"metric": "ndcg@10"}}
    config = build_config({"data": {"dir": dataset.root}, **tree})
    frozen = fit(
        config, dataset, Validator.of(config.train, config.evaluate), TrainContext()
    ).frozen
    queries = dataset.histories().queries(Split.TEST)
    value = Validator.of(config.train, config.evaluate)(frozen, queries).mean()
    assert value > 0.3, value  # measured: .53; by chance .011
    read = FrozenModel.from_tensors(frozen.config, frozen.sizes, frozen.tensors())
    assert torch.equal(read.scores(queries), frozen.scores(queries))
    mixed = replace(frozen.sizes, inputs={"place": [[], []]})
    with pytest.raises(ConfigError, match="needs coordinates"):
        FrozenModel.from_tensors(frozen.config, mixed, frozen.tensors())


NUMBERS = {  # an item column, and whether it is a quantity
    "price": ([9.99, 5.0, 12.5, 3.0, 8.0, None], True),
    # whole numbers in the range of years
    "unit_price_eur": ([900, 850, 1200, 1100, 1999, 2000], True),
    "weight": ([0.5, 1.5, 2.0, 0.25, 3.0, 4.0], True),
    "mostly missing": ([9.99, None, None, None, None, 3.0], False),
    "of two values": ([1.0, 2.0, 1.0, 2.0, 1.0, 2.0], False),
    "below zero": ([-1.0, 2.0, 3.0, 4.5, 5.0, 6.0], False),
    "row": ([1, 2, 3, 4, 5, 6], False),
    "made in": ([1990, 1991, 1992, 1993, 1994, 1994], False),
    "sellerId": ([7, 7, 8, 9, 10, 11], False),
    "review_count": ([7, 7, 8, 9, 10, 11], False),
    "latitude": ([7.5, 7.5, 8, 9, 10, 11], False),
    "text": (["7.5", "7.5", "8", "9", "10", "11"], False),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_quantities_are_distinguished_from_ids_counts_and_years(name: str) -> None:
    values, is_quantity = NUMBERS[name]
    assert (
        quantities(pa.table({"item_id": ["a", "b", "c", "d", "e", "f"], name: values}), [])
        == [name] * is_quantity
    )


def test_prices_come_first_among_at_most_four_quantities() -> None:
    table = pa.table(
        {name: [1.5, 2, 3, 4, 5] for name in ("width", "height", "depth", "weight", "price")}
    )
    assert quantities(table, []) == ["price", "width", "height", "depth"]
    assert quantities(table, ["width", "price"]) == [
        "height",
        "depth",
        "weight",
    ], "coordinates are not quantities"


def test_shares_fade_with_age_and_exclude_later_events() -> None:
    histories = replace(Histories.of_items([[0, 1, 1]]), times_E=np.array([DAY, 3 * DAY, 5 * DAY]))
    shares = LogShares.of(histories, 3, 2.0)
    assert shares.moments_T.tolist() == [DAY, 3 * DAY, 5 * DAY]
    recent, whole = np.array([0.25, 1.5, 0]) / 1.75, np.array([2, 3, 1]) / 6
    np.testing.assert_allclose(shares.last_N, np.log(0.9 * recent + 0.1 * whole), rtol=1e-5)
    assert shares.before(np.array([0, 3 * DAY, 3 * DAY + 1, 9 * DAY])).tolist() == [0, 0, 1, 2]
    for still in (
        LogShares.of(histories, 3, "none"),
        LogShares.of(Histories.of_items([[0, 1, 1]]), 3, 2.0),
    ):
        np.testing.assert_allclose(still.last_N, np.log(whole), rtol=1e-5)
        assert not still.before(histories.times_E).any()


def test_new_items_are_found_in_a_changing_catalogue(tmp_path: Path) -> None:
    """Each month has its own twenty items; a user goes to one of the nearest of them."""
    random, months, a_month, rows = np.random.default_rng(0), 6, 20, []
    places = random.random((months * a_month, 2))
    for month in range(months):
        items = np.arange(a_month) + month * a_month
        near = (
            items[np.argsort(((places[items][:, None] - places[items]) ** 2).sum(2), axis=1)[:, :6]]
            % a_month
        )
        for user in range(40):
            item, row = int(random.integers(a_month)), []
            for step in range(4):
                item = int(random.choice(near[item]))
                row.append(
                    (
                        int(items[item]),
                        0,
                        int((1 + 30 * month + 7 * step + user / 40) * DAY),
                        Split.TRAIN,
                    )
                )
            last = month == months - 1
            rows.append([*row[:3], (*row[3][:3], Split.VALID)] if last else row)
    columns = {"lat": pa.array(places[:, 0]), "lon": pa.array(places[:, 1])}
    dataset = write_dataset(tmp_path / "data", rows, months * a_month, item_columns=columns)
    tree = {
        "model": {"granularities": {"place": {"enabled": True}}},
        "train": {"metric": "ndcg@10"},
    }
    config = build_config({"data": {"dir": dataset.root}, **tree})
    found = choose_values(
        config, dataset, Validator.of(config.train, config.evaluate), TrainContext()
    )["place"]
    tried = found["candidates"]["half_life"]
    assert found["chosen"]["half_life"] != "none" and max(tried.values()) > 1.3 * tried["none"], (
        tried
    )


def test_item_without_values_has_no_place() -> None:
    assert not Places(np.full((2, 2), np.nan), np.full((2, 1), np.nan)).known_N.any()
