"""Batch recommendation writes the answers of the recommender, in the order of the users, to one
file.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.errors import ArtifactError, RequestError
from recsys.serving import batch
from recsys.serving.answer_rows import (
    BatchRecommender,
    Defaults,
    answer_table,
    output_schema,
    user_table,
)
from recsys.serving.batch import recommend_all
from recsys.serving.bundles import read_bundle, write_bundle
from recsys.serving.recommender import Recommender
from recsys.serving.request_parsing import parse_requests
from recsys.serving.requests import Request
from tests.handmade import small_model, small_world


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    world = tmp_path_factory.mktemp("batch")
    dataset = small_world(world / "dataset")
    write_bundle(world / "bundle", small_model(dataset), dataset, {})
    return world / "bundle"


def test_all_users_equal_direct_answers(ray_local: None, folder: Path, tmp_path: Path) -> None:
    summary = recommend_all(folder, tmp_path / "run/recommendations.parquet", k=4, batch_size=2)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["recommendations.parquet"]
    found = pq.read_table(summary.path)
    recommender = Recommender(read_bundle(folder))
    users = recommender.bundle.user_ids
    expected = answer_table(
        recommender.recommend([Request(user_id=user, k=4) for user in users]), recommender.names
    )
    assert found.schema.names == output_schema(recommender.names).names
    assert found.column_names[:5] == ["user_id", "rank", "item_id", "score", "share_behaviour"]
    for name in ("user_id", "rank", "item_id", "source"):
        assert found.column(name).to_pylist() == expected.column(name).to_pylist()
    for row, other in zip(found.to_pylist(), expected.to_pylist(), strict=True):
        assert math.isclose(row["score"], other["score"], rel_tol=1e-4, abs_tol=1e-5)
        shares = [row[f"share_{name}"] for name in recommender.names]
        if row["source"] == "model":
            assert sum(shares) == row["score"]
        else:
            assert shares == [None] * len(recommender.names)
    # nothing is known about u5
    assert (summary.num_users, summary.num_rows, summary.num_fallback) == (6, 24, 1)


def test_chosen_users_are_in_the_order_of_the_bundle(
    answering_here: None, folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "recommendations.parquet"
    output.write_text("of an earlier run")
    recommend_all(folder, output, k=2, exclude_seen=False, users=["zoe", "u4", "u1", "adam"])
    rows = pq.read_table(output).to_pylist()
    assert [row["user_id"] for row in rows] == [
        "u1",
        "u1",
        "u4",
        "u4",
        "zoe",
        "zoe",
        "adam",
        "adam",
    ]
    assert [row["rank"] for row in rows] == [1, 2] * 4
    assert [row["source"] for row in rows] == ["model"] * 4 + ["popularity"] * 4


def test_user_error_of_an_actor_is_raised_without_the_wrapper_of_ray(
    ray_local: None, folder: Path
) -> None:
    answering = BatchRecommender(Recommender(read_bundle(folder)), Defaults(2, None, None))
    request = {"user_id": "u0", "history": [{"item_id": "i1", "event_type": "sold"}]}
    unchecked = pa.table({"user_id": ["u0"], "request": [json.dumps(request)]})
    with pytest.raises(RequestError, match="^request 0: .* expected one of: buy, view$") as found:
        list(batch._answer_tables(answering, 1, iter([unchecked])))
    assert type(found.value) is RequestError


def test_no_users_give_an_empty_file(ray_local: None, folder: Path, tmp_path: Path) -> None:
    summary = recommend_all(folder, tmp_path / "recommendations.parquet", users=[])
    assert (summary.num_users, pq.read_table(summary.path).num_rows) == (0, 0)


def test_invalid_calls_keep_the_old_file(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "recommendations.parquet"
    output.write_text("of an earlier run")
    with pytest.raises(RequestError, match="got 0, expected 1 … 1000"):
        recommend_all(folder, output, k=0)
    with pytest.raises(RequestError, match="'u1' appears more than once"):
        recommend_all(folder, output, users=["u1", "u2", "u1"])
    with pytest.raises(RequestError, match="got 7, expected user ids"):
        recommend_all(folder, output, users=[7])  # type: ignore[list-item]
    with pytest.raises(RequestError, match="got None, expected user ids"):
        recommend_all(folder, output, users=["u1", None])  # type: ignore[list-item]
    with pytest.raises(ArtifactError, match="has no model bundle"):
        recommend_all(tmp_path / "nowhere", output)
    assert output.read_text() == "of an earlier run"
    assert [path.name for path in tmp_path.iterdir()] == ["recommendations.parquet"]


@pytest.mark.parametrize("exclude_seen", [True, False])
@pytest.mark.parametrize("k", [1, 4, 30])
def test_columnar_lists_equal_the_answers(folder: Path, k: int, exclude_seen: bool) -> None:
    """Covers known users, a user without events, unknown users, and k above the number of items."""
    recommender = Recommender(read_bundle(folder))
    users = [*recommender.bundle.user_ids, "zoe", "adam"]
    answers = recommender.recommend(
        [Request(user_id=user, k=k, exclude_seen=exclude_seen) for user in users]
    )
    expected = answer_table(answers, recommender.names)
    found = user_table(recommender, pa.array(users), k, exclude_seen)
    assert found.schema == expected.schema and len(found) > len(users) * min(k, 3) / 2
    for name in expected.column_names:
        if name in ("user_id", "rank", "item_id", "source"):
            assert found.column(name).to_pylist() == expected.column(name).to_pylist()
        else:
            values = (table.column(name).to_numpy().astype(float) for table in (found, expected))
            np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-5)


def test_rules_of_configuration_and_requests_apply(
    answering_here: None, folder: Path, tmp_path: Path
) -> None:
    recommender = Recommender(read_bundle(folder))
    at = recommender.newest
    rules = {"boost": {"factor": 3, "items": ["i7"]}, "exclude": ["i8"], "explain": True}
    summary = recommend_all(
        folder, tmp_path / "all.parquet", k=12, rules=rules, out_of_stock=["i9", "gone"]
    )
    rows = pq.read_table(summary.path).to_pylist()
    assert not {"i8", "i9"} & {row["item_id"] for row in rows} and {
        row["user_id"] for row in rows
    } >= {"u0", "u5"}
    recommender.catalogue.set_stock(["i9"])
    for user in ("u0", "u3", "u5"):
        asked = {"user_id": user, "k": 12, "at": at, **rules}
        [answer] = recommender.recommend(parse_requests([asked]))
        mine = [row for row in rows if row["user_id"] == user]
        assert [row["item_id"] for row in mine] == answer.item_ids
        assert [row["boost"] for row in mine] == answer.boosts
        assert [json.loads(row["explanation"])["sentence"] for row in mine]
    requests = [{"user_id": "u0", "exclude": []}, {"user_id": "u4", "filters": {}}]
    recommend_all(
        folder, tmp_path / "asked.parquet", k=12, rules={"exclude": ["i8"]}, requests=requests
    )
    found = pq.read_table(tmp_path / "asked.parquet").to_pylist()
    assert {row["user_id"] for row in found if row["item_id"] == "i8"} == {"u0"}, (
        "what a request says counts"
    )
    for wrong, message in (
        ({"k": "x"}, r"recommend\.rules: k: got 'x'"),
        ({"filters": {"a": 1}}, r"recommend\.rules: filters\.a: unknown attribute"),
    ):
        with pytest.raises(RequestError, match=message):
            recommend_all(folder, tmp_path / "none.parquet", rules=wrong)
