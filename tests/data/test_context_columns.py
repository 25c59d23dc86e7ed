"""Context columns: encoded from training events only, passed to the model, and useful to it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from test_evolution import ndcg, settings, trained

from recsys.config import Config, build_config
from recsys.data.batches import every_position, last_position
from recsys.data.context_columns import (
    MAX_VALUES,
    ColumnStatistics,
    ContextColumn,
    number_codes,
    tally,
)
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Histories, Queries, Split
from recsys.errors import ConfigError, DataError, RequestError
from recsys.evaluation.bootstrap import compare
from recsys.preparation.prepare import prepare
from recsys.serving.bundles import read_bundle, write_bundle
from recsys.serving.recommender import Recommender
from recsys.serving.request_parsing import parse_requests
from tests.handmade import leave_last, write_dataset

pytestmark = pytest.mark.usefixtures("one_thread")

WEATHER = ContextColumn("weather", ("rain", "snow", "sun"))
WARMTH = ContextColumn("warmth", None, 10.0, 5.0)


def test_codes_equal_those_by_hand() -> None:
    cells = pa.chunked_array([pa.array(["sun", None, "hail", "rain"])])
    assert WEATHER.encode(cells).tolist() == [4, 0, 1, 2] and WEATHER.num_codes == 5
    numbers = pa.chunked_array([pa.array([10.0, None, 15.0, 5.0, 1e9])])
    assert WARMTH.encode(numbers).tolist() == [1, 0, 4001, -4000, 32001]
    assert ContextColumn.from_json(WEATHER.to_json()) == WEATHER


def test_sum_of_tallies_equals_the_tally_of_all() -> None:
    values = np.array([1.0, 2.0, 4.0, 9.0, 9.5])
    total = ColumnStatistics(None)
    for part in (values[:2], values[2:2], values[2:]):
        total.add(tally(pa.chunked_array([pa.array(part)]), "x", is_number=True))
    column = total.column("x")
    assert (column.mean, column.std) == pytest.approx((values.mean(), values.std()))
    many = pa.chunked_array([pa.array([str(i) for i in range(MAX_VALUES + 1)])])
    with pytest.raises(DataError, match="'x' has more than 30,000 different values"):
        tally(many, "x", is_number=False)


# ------------------------------------------------------------------------------------------ prepare

CSV = """user_id,item_id,timestamp,weather,warmth
anna,a,10, sun ,10
anna,b,20,rain,
anna,c,30,sun,20
anna,d,40,snow,1000
anna,e,50,hail,1000
bert,a,5,,hot
bert,e,6,rain,30
"""


def config(folder: Path, **data: Any) -> Config:
    (folder / "events.csv").write_text(CSV)
    source = {"kind": "canonical", "events": [str(folder / "events.csv")]}
    context = {"context": ["weather", "warmth"], "context_numbers": ["warmth"]}
    tree = {
        "dir": str(folder / "dataset"),
        "source": source,
        "num_shards": 2,
        "text": {"enabled": False},
    }
    model = {"granularities": {"evolution": {"enabled": True}}}
    return build_config({"data": {**tree, **context, **data}, "model": model})


@pytest.mark.usefixtures("ray_local")
def test_prepare_fits_context_codes_on_training_events_only(tmp_path: Path) -> None:
    """Snow (validation) and hail (test) are unknown; mean and spread are of 10, 20 and 30; "hot" is
    not a number.
    """
    dataset = prepare(config(tmp_path), lambda _: None)
    weather, warmth = dataset.context
    assert weather == ContextColumn("weather", ("rain", "sun"))
    assert (warmth.mean, warmth.std) == pytest.approx((20.0, (200 / 3) ** 0.5))
    histories = dataset.histories()
    anna = histories.take(np.flatnonzero(histories.users_U == 0))
    assert anna.context_EC.dtype == np.int16
    assert anna.context_EC[:, 0].tolist() == [3, 2, 3, 1, 1]
    assert (
        anna.context_EC[:, 1].tolist()
        == number_codes(np.array([10, np.nan, 20, 1e3, 1e3]), 20, warmth.std).tolist()
    )
    bert = histories.take(np.flatnonzero(histories.users_U == 1))
    assert bert.context_EC[:, 0].tolist() == [0, 2] and bert.context_EC[0, 1] == 0
    assert anna.queries(Split.TEST).context_BC[:, 0].tolist() == [1]


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"context": ["wether"], "context_numbers": []},
            "data.context: 'wether' is not a column of the events",
        ),
        ({"context": ["value"], "context_numbers": []}, "'value' is a standard column of events"),
        (
            {"context_numbers": ["heat"]},
            "'heat' is not in data.context; data.context has: warmth, weather",
        ),
    ],
)
def test_invalid_context_settings_are_refused(
    tmp_path: Path, data: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare(config(tmp_path, **data), lambda _: None)


# ------------------------------------------------------------------------------------------ batches


def test_batches_carry_context_of_events_and_of_the_target() -> None:
    codes = np.arange(1, 13, dtype=np.int16).reshape(6, 2)
    histories = replace(Histories.of_items([[1, 2, 3, 4], [5, 6]]), context_EC=codes)
    batch = every_position(histories, 10, np.array([0, 1]))
    assert batch.context_ULC[0, :3].tolist() == [[1, 2], [3, 4], [5, 6]]
    assert batch.context_ULC[1].tolist() == [[9, 10], [0, 0], [0, 0]]
    assert batch.asked_BC.tolist() == [[3, 4], [5, 6], [7, 8], [11, 12]]
    asked = np.array([[7, 7], [8, 8]], dtype=np.int16)
    queries = Queries(histories, np.zeros(3, np.int64), np.zeros(0, np.int32), asked).take(
        np.array([1])
    )
    assert last_position(queries, 1).asked_BC.tolist() == [[8, 8]]
    assert last_position(queries, 1).context_ULC.tolist() == [[[11, 12]]]


def test_histories_with_and_without_context_are_concatenated() -> None:
    plain = Histories.of_items([[1, 2]])
    assert plain.context_EC.shape == (2, 0) and plain.context_EC.nbytes == 0
    coded = replace(plain, context_EC=np.ones((2, 1), dtype=np.int16))
    assert Histories.concat([coded, plain]).context_EC.tolist() == [[1], [1], [0], [0]]


# ----------------------------------------------------------------------------------- planted worlds

GROUPS, SIZE, LENGTH = 4, 8, 10
COLUMNS = (ContextColumn("weather", ("a", "b", "c", "d")), ContextColumn("warmth", None))


def planted(folder: Path, signal: bool, lag: int) -> PreparedDataset:
    """With ``signal``, both columns of an event give the item group of the event ``lag`` later."""
    random = np.random.default_rng(0)
    groups = random.integers(GROUPS, size=(160, LENGTH + lag))
    shown_groups = groups if signal else random.integers(GROUPS, size=groups.shape)
    chosen = groups[:, :LENGTH] * SIZE + random.integers(SIZE, size=(160, LENGTH))
    weather = shown_groups[:, lag:] + 2
    warmth = number_codes((shown_groups[:, lag:] - 1.5) / 1.1, 0.0, 1.0)
    return write_dataset(
        folder,
        [leave_last(*row.tolist()) for row in chosen],
        GROUPS * SIZE,
        context=COLUMNS,
        codes=np.stack([weather, warmth], axis=2).tolist(),
    )


def without_context(dataset: PreparedDataset, folder: Path) -> PreparedDataset:
    """The same events without context columns."""
    histories = dataset.histories()
    rows = np.argsort(histories.users_U)
    items = [
        histories.items_E[slice(*histories.offsets_U1[row : row + 2])].tolist() for row in rows
    ]
    return write_dataset(folder, [leave_last(*row) for row in items], dataset.num_items)


@pytest.mark.parametrize(
    ("lag", "asks"), [(1, []), (0, ["weather", "warmth"])], ids=["of events", "of asking"]
)
def test_planted_context_improves_recall_and_may_be_missing(
    tmp_path: Path, lag: int, asks: list[str]
) -> None:
    """Measured recall on 160 users: .52 against .18 and .50 against .14. Without context in the
    request, recall is not below that of the model without context columns.
    """
    dataset = planted(tmp_path / "with", True, lag)
    queries = dataset.histories().queries(Split.TEST)
    model = trained(
        settings({"cell": "gru", "query_context": asks, "context_dropout": 0.3}), dataset
    )
    plain = trained(settings({"cell": "gru"}), without_context(dataset, tmp_path / "without"))
    values, base = ndcg(model, queries), ndcg(plain, queries)
    assert values.mean() > 1.3 * base.mean(), (values.mean(), base.mean())
    hidden = replace(queries.histories, context_EC=np.zeros_like(queries.histories.context_EC))
    blind = ndcg(
        model, replace(queries, histories=hidden, context_BC=np.zeros_like(queries.context_BC))
    )
    assert compare(blind, base, 500, 0).high > 0, (blind.mean(), base.mean())


def test_random_context_does_not_lower_recall(tmp_path: Path) -> None:
    """Paired bootstrap over 160 users: the interval of the difference has a positive upper end."""
    dataset = planted(tmp_path / "with", False, 1)
    queries = dataset.histories().queries(Split.TEST)
    model = trained(settings({"cell": "gru", "query_context": ["weather"]}), dataset)
    plain = trained(settings({"cell": "gru"}), without_context(dataset, tmp_path / "without"))
    assert compare(ndcg(model, queries), ndcg(plain, queries), 500, 0).high > 0


# ------------------------------------------------------------------------------------------ serving


@pytest.fixture(scope="module")
def recommender(tmp_path_factory: pytest.TempPathFactory) -> Recommender:
    folder = tmp_path_factory.mktemp("served")
    dataset = planted(folder / "dataset", True, 0)
    model = trained(
        settings({"cell": "gru", "query_context": ["weather", "warmth"]}, epochs=8), dataset
    )
    write_bundle(folder / "bundle", model, dataset, {})
    return Recommender(read_bundle(folder / "bundle"))


def groups_of(recommender: Recommender, **request: Any) -> list[int]:
    """Groups of the first four recommendations."""
    answer = recommender.recommend(parse_requests([{"k": 4, **request}]))[0]
    return [int(item[1:]) // SIZE for item in answer.item_ids]


def test_recommendations_follow_the_context_of_the_request(recommender: Recommender) -> None:
    for group, weather in enumerate("abcd"):
        asked = {"weather": weather, "warmth": (group - 1.5) / 1.1}
        found = groups_of(recommender, user_id="u3", context=asked)
        assert found.count(group) >= 3, (weather, found)
        event = {"item_id": "i1", "context": {"weather": weather, "warmth": 0}}
        assert groups_of(recommender, history=[event], context=asked).count(group) >= 3


def test_unknown_context_counts_as_missing(recommender: Recommender) -> None:
    plain = recommender.recommend(parse_requests([{"user_id": "u3"}]))[0]
    for nothing in ({}, {"weather": None}, {"weather": "", "warmth": None}):
        assert (
            recommender.recommend(parse_requests([{"user_id": "u3", "context": nothing}]))[0]
            == plain
        )
    hail = recommender.recommend(
        parse_requests([{"user_id": "u3", "context": {"weather": "hail"}}])
    )[0]
    assert hail.source == "model" and len(hail.item_ids) == 20


def test_stored_context_of_a_known_user_is_used(recommender: Recommender) -> None:
    """The histories in the bundle have context codes."""
    assert recommender.bundle.histories.context_EC.shape == (160 * LENGTH, 2)
    assert (recommender.bundle.histories.context_EC[:, 0] >= 2).all()
    assert recommender.bundle.context == COLUMNS


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"context": {"wind": "n"}},
            r"request 0: context: 'wind' is not a context column; context columns: warmth, weather",
        ),
        (
            {"context": {"weather": 3}},
            r"request 0: context\.weather: got 3 \(int\), expected a string or null",
        ),
        (
            {"context": {"warmth": "hot"}},
            r"request 0: context\.warmth: got 'hot', expected a finite number or null",
        ),
        ({"context": {"warmth": True}}, r"context\.warmth: got True, expected a finite number"),
        (
            {"context": "sun"},
            r"request 0: context: got 'sun' \(str\), expected an object of context column → value",
        ),
        (
            {"history": [{"item_id": "i1", "context": {"weather": 1}}]},
            r"request 0: history\[0\]\.context\.weather: got 1 \(int\)",
        ),
        ({"horizon": 0}, r"request 0: horizon: got 0"),
    ],
)
def test_wrong_context_is_refused(
    recommender: Recommender, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        recommender.recommend(parse_requests([{"user_id": "u3", **row}]))


def test_horizon_uses_the_rolled_state(recommender: Recommender) -> None:
    """Requests with several horizons in one call get the same answers as alone, and the shares add
    up.
    """
    rows = [{"user_id": "u3", "horizon": 2}, {"user_id": "u3"}, {"user_id": "u4", "horizon": 3}]
    together = recommender.recommend(parse_requests(rows))
    alone = [recommender.recommend(parse_requests([row]))[0] for row in rows]
    assert [answer.item_ids for answer in together] == [answer.item_ids for answer in alone]
    assert together[0].scores != together[1].scores
    assert together[0].scores == pytest.approx(together[0].shares["evolution"])
