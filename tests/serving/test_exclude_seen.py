"""By default every way of serving treats seen items as the evaluation did."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest

from recsys.config.verbs import RecommendConfig
from recsys.registry.pyfunc_model import BUNDLE, RecommenderModel, _rows, request_schema, signature
from recsys.serving.admission import Limits
from recsys.serving.answer_rows import user_table
from recsys.serving.bundles import read_bundle, write_bundle
from recsys.serving.recommender import Recommender
from recsys.serving.request_parsing import parse_requests
from recsys.serving.requests import Request
from recsys.serving.service import Answered, Service
from tests.handmade import small_model, small_world

K = 12  # every item
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=[True, False], ids=["left out", "ranked"])
def folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A bundle of a model evaluated with this setting; u0 has had five of twelve items."""
    world = tmp_path_factory.mktemp("seen")
    dataset = small_world(world / "data")
    write_bundle(
        world / "bundle",
        small_model(dataset),
        dataset,
        {"comparison": {"exclude_seen": request.param}},
    )
    return world / "bundle"


def test_every_way_of_serving_excludes_seen_items_as_evaluated(folder: Path) -> None:
    bundle = read_bundle(folder)
    expected = 7 if bundle.exclude_seen else 12
    recommender = Recommender(bundle)
    (answer,) = recommender.recommend([Request(user_id="u0", k=K)])
    assert len(answer.item_ids) == expected
    assert len(user_table(recommender, pa.array(["u0"]), K, None)) == expected
    loaded = RecommenderModel()
    loaded.load_context(SimpleNamespace(artifacts={BUNDLE: str(folder)}, model_config=None))
    assert len(loaded.predict(None, [{"user_id": "u0", "k": K}])["item_ids"][0]) == expected
    service = Service(Limits(10_000))
    service.adopt(bundle, {"version": "1"})
    (outcome,) = service.answer([parse_requests([{"user_id": "u0", "k": K, "exclude_seen": None}])])
    assert isinstance(outcome, Answered) and len(outcome.answers[0].item_ids) == expected


def test_request_overrides_the_default(folder: Path) -> None:
    recommender = Recommender(read_bundle(folder))
    message = [Request(user_id="u0", k=K, exclude_seen=exclude) for exclude in (True, False)]
    assert [len(answer.item_ids) for answer in recommender.recommend(message)] == [7, 12]
    assert [
        len(user_table(recommender, pa.array(["u0"]), K, exclude)) for exclude in (True, False)
    ] == [7, 12]


def test_schema_and_parameters_show_the_default(folder: Path) -> None:
    default = read_bundle(folder).exclude_seen
    assert request_schema(default)["properties"]["exclude_seen"]["default"] is default
    shown = {param.name: param.default for param in signature(default).params.params}
    assert shown == {"k": 20, "exclude_seen": default}
    assert "exclude_seen" not in _rows([{"user_id": "u"}], {})[0], (
        "the model's own, where MLflow gives no parameters"
    )


def test_bundle_without_setting_excludes_seen_items(tmp_path: Path) -> None:
    """As in earlier releases, whose self-test used this default."""
    dataset = small_world(tmp_path / "data")
    write_bundle(tmp_path / "bundle", small_model(dataset), dataset, {})
    assert read_bundle(tmp_path / "bundle").exclude_seen is True
    assert RecommendConfig().exclude_seen is None
