"""Similar items by vectors, use or text, with the method in the answer; and explanations, which
match the model.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.cli import main
from recsys.bundle.layout import Bundle
from recsys.config import build_config
from recsys.data.histories import Split
from recsys.errors import RequestError
from recsys.serving.bundles import read_bundle, write_bundle
from recsys.serving.recommender import Recommender
from recsys.serving.request_parsing import parse_any, parse_requests
from recsys.serving.requests import Answer, SimilarAnswer
from recsys.training.fresh_model import build_graphs, build_model
from tests.handmade import small_model
from tests.ruled import World, holds

ITEMS, USERS = 200, 40
AT = "2026-01-01"
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> World:
    return World(tmp_path_factory.mktemp("similar"), ITEMS, USERS)


@pytest.fixture(scope="module")
def bundle(world: World) -> Bundle:
    return world.bundle()


@pytest.fixture(scope="module")
def recommender(bundle: Bundle) -> Recommender:
    return Recommender(bundle)


def like(recommender: Recommender, item: str, **more: Any) -> SimilarAnswer:
    [answer] = recommender.answer(parse_any([{"item_id": item, **more}]))
    assert isinstance(answer, SimilarAnswer)
    return answer


def by_cosine(vectors: Any, item: int, k: int) -> list[str]:
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    scores = unit @ unit[item]
    scores[item] = -np.inf
    return [f"i{other}" for other in np.argsort(-scores)[:k]]


def test_similarity_by_vectors_is_the_cosine(bundle: Bundle, recommender: Recommender) -> None:
    answer = like(recommender, "i3", k=10)
    assert (answer.by, answer.item_id) == ("vectors", "i3") and len(answer.titles) == 10
    had = [bundle.histories.take(np.array([user])).items_E.tolist() for user in range(USERS)]
    assert answer.why == f"{sum(3 in items for items in had)} users have had the item"
    assert answer.item_ids == by_cosine(bundle.model.item_vectors_ND.numpy(), 3, 10)
    assert answer.scores == sorted(answer.scores, reverse=True) and max(answer.scores) <= 1 + 1e-6


def test_similarity_by_use_counts_users_who_had_both(
    bundle: Bundle, recommender: Recommender
) -> None:
    had = [set(bundle.histories.take(np.array([user])).items_E.tolist()) for user in range(USERS)]
    users = Counter(item for items in had for item in items)
    together = Counter(item for items in had if 0 in items for item in items - {0})
    score = {item: n / ((users[0] * users[item]) ** 0.5 + 10) for item, n in together.items()}
    answer = like(recommender, "i0", by="use", k=200)
    assert (
        answer.by == "use"
        and answer.why == "as requested"
        and len(answer.item_ids) == len(score) < ITEMS - 1
    )
    for item, found in zip(answer.item_ids, answer.scores, strict=True):
        assert found == pytest.approx(score[int(item[1:])])
    assert answer.scores == sorted(answer.scores, reverse=True)


def test_similarity_by_text_is_the_cosine_of_text_vectors(recommender: Recommender) -> None:
    texts = torch.as_tensor(
        recommender.bundle.item_text
    ).numpy()  # whitened, as the model reads them
    answer = like(recommender, "i5", by="text", k=8)
    assert answer.item_ids == by_cosine(texts, 5, 8) and answer.by == "text"
    assert f"i{ITEMS - 1}" not in like(recommender, "i5", by="text", k=1000).item_ids


def test_item_without_events_is_compared_by_text(recommender: Recommender) -> None:
    cold = next(
        item for item in range(ITEMS - 2, 0, -1) if not recommender.bundle.popularity_N[item]
    )
    answer = like(recommender, f"i{cold}", k=5)
    assert (answer.by, answer.why) == (
        "text",
        "no user has had the item yet, so texts are compared",
    )
    assert answer.item_ids == by_cosine(
        torch.as_tensor(recommender.bundle.item_text).numpy(), cold, 5
    )


def test_bundle_keeps_texts_that_the_model_does_not_read(world: World, tmp_path: Path) -> None:
    sections = {"model": {"width": 8, "granularities": {"collaborative": {"enabled": True}}}}
    config = build_config(sections)
    model = build_model(config.model, config.train, world.dataset, Split.VALID)
    frozen = model.freeze(build_graphs(world.dataset, Split.VALID, model))
    assert not frozen.reads_text
    write_bundle(tmp_path / "bundle", frozen, world.dataset, {})
    bundle = read_bundle(tmp_path / "bundle")
    texts = world.dataset.text_vectors_NT().astype(np.float32)
    assert (
        bundle.text_NT is not None
        and bundle.text_NT.dtype == np.int8
        and not bundle.text_NT[-1].any()
    )
    unit = texts[:-1] / np.linalg.norm(texts[:-1], axis=1, keepdims=True)
    assert np.abs(bundle.text_NT[:-1] / 127 - unit).max() < 0.005
    answer = like(Recommender(bundle), "i5", by="text", k=8)
    scores = unit @ unit[5]
    assert answer.scores == pytest.approx(np.sort(np.delete(scores, 5))[::-1][:8], abs=0.02)
    assert bundle.friends is None, "this model reads none"


def test_rules_apply_to_similar_items(world: World, recommender: Recommender) -> None:
    filters = {"price": {"lt": 40}, "kind": ["toys", "games"]}
    whole = like(recommender, "i3", k=1000)
    answer = like(recommender, "i3", k=6, filters=filters, exclude=whole.item_ids[:2], offset=2)
    allowed = [item for item in whole.item_ids[2:] if holds(world.rows[int(item[1:])], filters)]
    assert answer.item_ids == allowed[2:8]
    boosted = like(recommender, "i3", k=5, boost={"factor": 100, "items": [whole.item_ids[-1]]})
    assert boosted.item_ids[0] == whole.item_ids[-1] and boosted.boosts == [
        100.0,
        1.0,
        1.0,
        1.0,
        1.0,
    ]
    capped = like(recommender, "i3", k=10, diversify={"attribute": "brand", "most": 2})
    assert (
        max(Counter(world.rows[int(item[1:])]["brand"] for item in capped.item_ids).values()) == 2
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"item_id": "x"}, r"request 0: item_id: the model does not know 'x'"),
        ({"item_id": 3}, r"request 0: item_id: got 3 \(int\), expected a string"),
        ({"item_id": "i1", "by": "looks"}, r"by: got 'looks'.*'auto', 'vectors', 'use' or 'text'"),
        (
            {"item_id": "i1", "user_id": "u0"},
            r"user_id: unknown field; expected one of: boost, by, candidates",
        ),
        (
            {"item_id": f"i{ITEMS - 1}", "by": "text"},
            r"cannot be compared by text: the item has no text; possible for this item: none",
        ),
        (
            {"item_id": f"i{ITEMS - 1}", "by": "use"},
            r"cannot be compared by use: no user has had the item yet",
        ),
        ({"item_id": "i1", "explain": True}, r"explain: unknown field"),
    ],
)
def test_item_without_comparable_data_is_refused(
    recommender: Recommender, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        recommender.answer(parse_any([row]))


def test_mixed_requests_are_answered_in_order(recommender: Recommender) -> None:
    rows = [{"user_id": "u0", "at": AT}, {"item_id": "i3"}, {"user_id": "u1", "at": AT}]
    found = recommender.answer(parse_any(rows))
    assert [type(answer) for answer in found] == [Answer, SimilarAnswer, Answer]
    bad = [*rows, {"user_id": "u1", "history": [{"item_id": "i1", "event_type": "stolen"}]}]
    with pytest.raises(RequestError, match="request 3: history"):
        recommender.answer(parse_any(bad))


# ------------------------------------------------------------------------------------- explanations


def ask(recommender: Recommender, **request: Any) -> Answer:
    return recommender.recommend(parse_requests([{"at": AT, **request}]))[0]


def test_effect_of_a_past_item_is_the_score_lost_without_it(recommender: Recommender) -> None:
    history = ["i1", "i2", "i9", "i17"]
    answer = ask(recommender, history=history, k=6, explain=True)
    assert answer.explanations is not None and len(answer.explanations) == 6
    named = 0
    for item, score, why in zip(answer.item_ids, answer.scores, answer.explanations, strict=True):
        lost = {}
        for gone in history:
            rest = ask(
                recommender, history=[one for one in history if one != gone], candidates=[item], k=1
            )
            lost[gone] = score - rest.scores[0]
        expected = sorted((one for one in lost if lost[one] > 1e-4), key=lambda one: -lost[one])[:3]
        assert [entry["item_id"] for entry in why["items"]] == expected
        for entry in why["items"]:
            assert entry["effect"] == pytest.approx(lost[entry["item_id"]], rel=1e-3, abs=1e-4)
            assert entry["title"] in why["sentence"]
            named += 1
    assert named > 6


def test_share_of_a_friend_is_that_of_the_friend_alone(recommender: Recommender) -> None:
    answer = ask(recommender, history=["i1"], friends=["u1", "u2"], k=8, explain=True)
    assert answer.explanations is not None
    named = 0
    for item, why in zip(answer.item_ids, answer.explanations, strict=True):
        for entry in why["friends"]:
            alone = ask(
                recommender, history=["i1"], friends=[entry["user_id"]], candidates=[item], k=1
            )
            assert entry["share"] == pytest.approx(alone.shares["social"][0], rel=1e-3, abs=1e-5)
            assert entry["user_id"] in why["sentence"]
            named += 1
    assert named > 0
    stored = ask(recommender, user_id="u0", k=8, explain=True)
    assert stored.explanations is not None
    friends = {entry["user_id"] for why in stored.explanations for entry in why["friends"]}
    assert friends and friends <= {f"u{row}" for row in recommender.bundle.friends_of(0)}


def test_sentence_names_the_granularity_with_the_largest_share(recommender: Recommender) -> None:
    answer = ask(
        recommender,
        user_id="u2",
        k=10,
        explain=True,
        boost={"factor": 3, "filters": {"used": True}},
    )
    assert answer.explanations is not None and answer.boosts is not None
    for place, why in enumerate(answer.explanations):
        positive = {
            name: shares[place] for name, shares in answer.shares.items() if shares[place] > 0
        }
        share = max(positive.values()) / sum(positive.values())
        assert f"({share:.0%} of its positive score".replace("%", " %") in why["sentence"]
        assert ("raised by a factor of 3" in why["sentence"]) == (answer.boosts[place] == 3)
        assert re.fullmatch(r"“Title of i\d+”: .*\.", why["sentence"])
    plain = ask(recommender, user_id="u2", k=10)
    assert "explanations" not in plain.to_dict()


def test_unknown_user_gets_the_popularity_explanation(recommender: Recommender) -> None:
    answer = ask(recommender, user_id="nobody", k=2, explain=True)
    assert answer.explanations is not None and answer.source == "popularity"
    assert "nothing is known about you yet" in answer.explanations[0]["sentence"]
    assert answer.explanations[0]["items"] == [] == answer.explanations[0]["friends"]


def test_friends_and_attributes_have_checksums(world: World, tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundle", small_model(world.dataset), world.dataset, {})
    found = read_bundle(tmp_path / "bundle")
    assert found.attributes is not None and set(found.attributes.columns) == {*world.rows[0], "out"}
    src, dst, _ = world.dataset.social_edges()
    for user in range(USERS):
        assert sorted(found.friends_of(user)) == sorted(src[dst == user].tolist())
    assert {"attributes.parquet", "friends.parquet"} <= found.info.files.keys()


def test_similar_command_prints_the_answer_of_the_endpoint(
    world: World, recommender: Recommender, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text("model: {granularities: {evolution: {enabled: true}}}\n")
    words = ["similar", "--config", str(tmp_path / "c.yaml"), "--run.dir", str(tmp_path / "run")]
    words += ["--similar.model", str(world.folder), "--similar.k", "3"]
    rules = ["--similar.rules", "{filters: {kind: toys}}"]
    assert main([*words, "--item", "i3", *rules]) == 0
    answer = like(recommender, "i3", k=3, filters={"kind": "toys"})
    text = capsys.readouterr().out
    assert "similar to i3 (Title of i3), by the model's item vectors (" in text
    listed = [
        line.split()[-4]
        for line in text.splitlines()
        if "Title of i" in line and "similar to" not in line
    ]
    assert listed == answer.item_ids
    assert main([*words, "--item", "x"]) == 2
    assert "\nrecsys: item_id: the model does not know 'x'" in capsys.readouterr().err
    assert main([*words, "--item", "i3", "--similar.rules", "{filters: {kin: toys}}"]) == 2
    assert "\nrecsys: filters.kin: unknown attribute" in capsys.readouterr().err
    assert main(words) == 2 and "similar.item is empty" in capsys.readouterr().err
