"""Rules of a request give the same lists as filtering an exhaustive ranking."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys.bundle.description import DESCRIPTION, read_info
from recsys.bundle.layout import Bundle
from recsys.bundle.rule_files import ATTRIBUTES, FRIENDS
from recsys.bundle.writing import write_description
from recsys.errors import RequestError
from recsys.retrieval import selection
from recsys.retrieval.index import ItemIndex
from recsys.serving.bundles import read_bundle
from recsys.serving.recommender import Recommender
from recsys.serving.request_parsing import parse_any, parse_requests
from recsys.serving.requests import Answer
from tests.ruled import KINDS, World, random_rules, slow_list

ITEMS, USERS = 400, 30
AT = "2026-01-01"
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> World:
    return World(tmp_path_factory.mktemp("ruled"), ITEMS, USERS)


@pytest.fixture(scope="module")
def bundle(world: World) -> Bundle:
    return world.bundle()


@pytest.fixture
def recommender(bundle: Bundle) -> Recommender:
    return Recommender(bundle)


def ask(recommender: Recommender, **request: Any) -> Answer:
    return recommender.recommend(parse_requests([{"at": AT, **request}]))[0]


def everything(recommender: Recommender, user: str, **more: Any) -> list[tuple[str, float]]:
    answer = ask(recommender, user_id=user, k=1000, **more)
    return list(zip(answer.item_ids, answer.scores, strict=True))


def assert_same(found: Answer, expected: list[tuple[str, float]]) -> None:
    """Assert equal scores, and equal items except between ties."""
    assert len(found.item_ids) == len(expected)
    assert found.scores == pytest.approx([score for _, score in expected], rel=1e-4, abs=1e-4)
    differ = [place for place, (item, _) in enumerate(expected) if found.item_ids[place] != item]
    for place in differ:
        near = [item for item, score in expected if abs(score - found.scores[place]) < 2e-4]
        assert found.item_ids[place] in near or place == len(expected) - 1


def test_random_requests_equal_the_filtered_exhaustive_ranking(
    world: World, recommender: Recommender
) -> None:
    rng = np.random.default_rng(11)
    users = [f"u{number % USERS}" if number % 10 else "nobody" for number in range(1000)]
    rules = [random_rules(rng, ITEMS) for _ in users]
    requests = [
        {"user_id": user, "at": AT, **rule} for user, rule in zip(users, rules, strict=True)
    ]
    answers = recommender.recommend(parse_requests(requests))
    ranked = {user: everything(recommender, user) for user in set(users)}
    spread = {
        user: float(
            np.std([score for _, score in everything(recommender, user, exclude_seen=False)])
        )
        for user in ranked
    }
    kinds: Counter[str] = Counter()
    for user, rule, answer in zip(users, rules, answers, strict=True):
        expected = slow_list(rule, ranked[user], spread[user], world.rows)
        assert_same(answer, expected)
        kinds.update(
            [*rule, "empty" if not expected else "full" if len(expected) == rule["k"] else "short"]
        )
    assert (
        min(kinds[name] for name in ("filters", "candidates", "exclude", "boost", "offset")) > 200
    )
    assert min(kinds[name] for name in ("empty", "full", "short")) > 50, kinds


def test_shares_with_boost_sum_exactly_and_factor_is_in_answer(recommender: Recommender) -> None:
    boost = [{"factor": 4.0, "filters": {"kind": "toys"}}, {"factor": 0.5, "items": ["i1", "i2"]}]
    answer = ask(recommender, user_id="u0", k=50, boost=boost)
    assert answer.boosts is not None and {1.0, 4.0} <= set(answer.boosts) <= {1.0, 4.0, 0.5, 2.0}
    assert list(answer.shares) == [*recommender.names, "boost"]
    assert [sum(shares) for shares in zip(*answer.shares.values(), strict=True)] == answer.scores
    plain = ask(recommender, user_id="u0", k=50)
    assert (
        plain.boosts is None
        and "boosts" not in plain.to_dict()
        and plain.item_ids != answer.item_ids
    )


@pytest.mark.parametrize("user", ["u0", "nobody"])
def test_boost_raises_items_with_negative_scores_too(recommender: Recommender, user: str) -> None:
    ranked = everything(recommender, user)
    places = {item: place for place, (item, _) in enumerate(ranked)}
    assert user == "nobody" or ranked[-1][1] < 0 < ranked[0][1], "scores of both signs"
    for item in (ranked[20][0], ranked[-1][0]):
        for factor, is_better in ((1.5, True), (0.7, False)):
            answer = ask(
                recommender, user_id=user, k=1000, boost={"factor": factor, "items": [item]}
            )
            score = answer.scores[answer.item_ids.index(item)]
            assert (score > ranked[places[item]][1]) == is_better
    one, two = ({"factor": factor, "items": [ranked[5][0]]} for factor in (2.0, 0.5))
    both = ask(recommender, user_id=user, k=1000, boost=[one, two])
    assert both.scores == pytest.approx([score for _, score in ranked]), "factors multiply"


MORE: list[dict[str, Any]] = [
    {},
    {"filters": {"used": True}},
    {"boost": {"factor": 2.0, "filters": {"used": True}}},
]


@pytest.mark.parametrize("more", MORE)
@pytest.mark.parametrize(
    "diversify", [None, {"strength": 0.4, "pool": 50}, {"attribute": "kind", "most": 2}]
)
def test_pages_cover_the_list_without_overlap(
    recommender: Recommender, more: dict[str, Any], diversify: dict[str, Any] | None
) -> None:
    asked = {"user_id": "u1", "k": 7, **more, **({"diversify": diversify} if diversify else {})}
    pages: list[str] = []
    for page in range(80):
        pages += ask(recommender, offset=7 * page, **asked).item_ids
    whole = ask(recommender, user_id="u1", k=1000, **more)
    assert len(pages) == len(set(pages)) and set(pages) == set(whole.item_ids), (
        "each item once, none left out"
    )
    if not diversify:
        assert pages == whole.item_ids


@pytest.mark.parametrize("diversify", [None, {"attribute": "kind", "most": 2}])
def test_per_user_limit_ends_the_pages(
    recommender: Recommender, diversify: dict[str, Any] | None
) -> None:
    asked = {"user_id": "u1", "k": 10, "diversify": diversify}
    whole = [ask(recommender, **asked, offset=10 * page).item_ids for page in range(3)]
    pages = [
        ask(recommender, **asked, offset=10 * page, per_user_limit=25, explain=True).item_ids
        for page in range(4)
    ]
    assert pages == [whole[0], whole[1], whole[2][:5], []]


def test_page_respects_the_limit_per_category(world: World, recommender: Recommender) -> None:
    kind = {f"i{place}": row["kind"] for place, row in enumerate(world.rows)}
    plain = ask(recommender, user_id="u2", k=10)
    assert max(Counter(kind[item] for item in plain.item_ids).values()) > 2, (
        "without the rule it would be more"
    )
    answer = ask(recommender, user_id="u2", k=10, diversify={"attribute": "kind", "most": 2})
    counts = Counter(kind[item] for item in answer.item_ids if kind[item] is not None)
    assert max(counts.values()) == 2 and len(answer.item_ids) == 10, (
        "as many as there are, from however deep"
    )
    assert set(counts) == set(KINDS)
    ranked, expected = everything(recommender, "u2"), []
    for item, _ in ranked:  # takes the best allowed items one by one
        if kind[item] is None or Counter(kind[one] for one in expected)[kind[item]] < 2:
            expected.append(item)
    assert answer.item_ids == expected[:10]
    few = ask(
        recommender,
        user_id="u2",
        k=20,
        filters={"kind": ["toys", "books"]},
        diversify={"attribute": "kind", "most": 3},
    )
    assert len(few.item_ids) == 6, "no list of more fulfils the rule"


def test_diversify_equals_greedy_maximal_marginal_relevance(recommender: Recommender) -> None:
    strength, pool = 0.6, 40
    ranked = everything(recommender, "u3")[:pool]
    vectors = recommender.model.item_vectors_ND.numpy()
    rows = [int(item[1:]) for item, _ in ranked]
    unit = vectors[rows] / np.linalg.norm(vectors[rows], axis=1, keepdims=True)
    scores = np.array([score for _, score in ranked])
    relevance = (scores - scores.min()) / (scores.max() - scores.min())
    chosen: list[int] = []
    while len(chosen) < 12:
        left = [place for place in range(pool) if place not in chosen]
        worth = [
            (1 - strength) * relevance[p]
            - strength * max([float(unit[p] @ unit[c]) for c in chosen], default=0.0)
            for p in left
        ]
        chosen.append(left[int(np.argmax(worth))])
    answer = ask(recommender, user_id="u3", k=12, diversify={"strength": strength, "pool": pool})
    assert answer.item_ids == [ranked[place][0] for place in chosen]
    assert ask(recommender, user_id="u3", k=12, diversify={"strength": 0.0}).item_ids == [
        item for item, _ in everything(recommender, "u3")[:12]
    ]


def test_items_out_of_stock_are_in_no_list(recommender: Recommender) -> None:
    before = ask(recommender, user_id="u4", k=20)
    out = before.item_ids[:5]
    recommender.catalogue.set_stock([*out, "never heard of"])
    assert ask(recommender, user_id="u4", k=15).item_ids == before.item_ids[5:]
    filtered = ask(
        recommender,
        user_id="u4",
        k=1000,
        filters={"used": {"known": True}},
        candidates=before.item_ids,
    )
    assert filtered.item_ids == before.item_ids[5:]
    [popular] = recommender.recommend(parse_requests([{"user_id": "nobody", "k": 1000}]))
    assert not {*out} & {*popular.item_ids}
    [similar] = recommender.answer(parse_any([{"item_id": "i0", "k": 1000}]))
    assert not {*out} & {*similar.item_ids}
    recommender.catalogue.set_stock([])
    assert ask(recommender, user_id="u4", k=20) == before


def test_unknown_ids_in_rules_are_reported(recommender: Recommender) -> None:
    answer = ask(
        recommender,
        user_id="u0",
        candidates=["i1", "x"],
        exclude=["y"],
        boost={"factor": 2, "items": ["z"]},
    )
    assert answer.unknown_in_rules == {"exclude": ["y"], "candidates": ["x"], "boost": ["z"]}


REFUSED = [
    (
        {"filters": {"kin": "a"}},
        r"request 1: filters\.kin: unknown attribute 'kin'; did you mean kind\? The model knows",
    ),
    ({"filters": {"price": "cheap"}}, r"filters\.price: got 'cheap' \(str\), expected a number"),
    (
        {"filters": {"price": {"under": "a"}}},
        r"filters\.price\.under: price has numbers, but under works only",
    ),
    (
        {"filters": {"kind": {"lt": 3}}},
        r"filters\.kind\.lt: kind has text values.*data\.source\.numbers",
    ),
    ({"filters": {"out": {"lt": "soon"}}}, r"filters\.out\.lt: got 'soon', expected a time"),
    (
        {"filters": {"price": {"less": 3}}},
        r"price\.less: unknown operator; expected one of: all, eq, ge, gt, in, known",
    ),
    ({"filters": {"kind": None}}, r'kind: expected a string.*got null.*\{"known": false\}'),
    ({"filters": {"kind": []}}, r"kind: has 0 values, expected 1 to"),
    ({"filters": {"kind": {"in": "toys"}}}, r"kind\.in: expected a list of values"),
    ({"filters": ["kind"]}, r"filters: got \['kind'\] \(list\); expected an object of attribute"),
    ({"boost": {"factor": 0, "items": ["i1"]}}, r"boost\[0\]\.factor: got 0.*greater than 0"),
    ({"boost": {"factor": 2}}, r"boost\[0\]: got .*with either items or filters"),
    (
        {"boost": {"factor": 2, "item": ["i1"]}},
        r"boost\[0\]\.item: unknown field; did you mean items\? Expected one of: factor, filters",
    ),
    (
        {"boost": ["i1"]},
        r"boost\[0\]: got 'i1' \(str\), expected an object with factor, items, filters",
    ),
    (
        {"boost": {"factor": 2, "filters": {"kin": 1}}},
        r"request 1: boost\[0\]\.filters\.kin: unknown attribute",
    ),
    ({"diversify": {"most": 2}}, r"diversify: got .*attribute and most belong together"),
    ({"diversify": {"attribute": "price", "most": 2}}, r"diversify\.attribute: price has numbers"),
    ({"diversify": {"strength": 2}}, r"diversify\.strength: got 2.*less than or equal to 1"),
    (
        {"k": 5, "offset": 3, "diversify": {"attribute": "kind", "most": 2}},
        r"offset 3 is not a multiple of k 5",
    ),
    ({"offset": -1}, r"offset: got -1"),
    ({"candidates": "i1"}, r"candidates: got 'i1' \(str\); input should be a valid list"),
    ({"exclude": [3]}, r"exclude\[0\]: got 3 \(int\), expected a string"),
    ({"explain": "yes"}, r"explain: got 'yes'"),
]


@pytest.mark.parametrize(
    ("rules", "message"), REFUSED, ids=[str(rules)[:40] for rules, _ in REFUSED]
)
def test_wrong_rules_are_refused_with_path_and_fix(
    recommender: Recommender, rules: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message) as found:
        recommender.recommend(parse_requests([{"user_id": "u0"}, {"user_id": "u0", **rules}]))
    assert str(found.value).startswith("request 1: ") and "\n" not in str(found.value)


def test_compiled_rules_are_cached_and_evicted(
    recommender: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = recommender.catalogue
    asked = parse_requests(
        [{"user_id": "u0", "filters": {"year": {"gt": year}}} for year in range(1990, 2010)]
    )
    first = catalogue.plan(asked[0], "request 0").selection
    assert catalogue.plan(asked[0], "request 0").selection is first
    monkeypatch.setattr(selection, "_KEPT_BYTES", 3 * ITEMS)
    for request in asked:
        catalogue.plan(request, "request 0")
    assert len(catalogue._kept) <= selection._LEAST_KEPT


def test_bundle_of_earlier_release_answers_and_refuses_filters(
    world: World, tmp_path: Path
) -> None:
    for path in world.folder.iterdir():
        if path.name not in (ATTRIBUTES, FRIENDS):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    info = read_info(tmp_path)
    (tmp_path / DESCRIPTION).unlink()
    write_description(tmp_path, info)
    recommender = Recommender(read_bundle(tmp_path))
    assert ask(
        recommender,
        user_id="u0",
        exclude=["i1"],
        boost={"factor": 2, "items": ["i5"]},
        explain=True,
    ).item_ids
    with pytest.raises(
        RequestError, match="filters: this model has no item attributes.*register it again"
    ):
        ask(recommender, user_id="u0", filters={"kind": "toys"})


# ------------------------------------------------------------------------ with an index, many items


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Bundle:
    pytest.importorskip("faiss")
    many = World(tmp_path_factory.mktemp("indexed"), 20_000, 60).bundle()
    return replace(many, index=ItemIndex.build(many.model.item_vectors_ND, reorder=32))


def test_rules_with_index_give_nearly_exact_lists_of_full_length(indexed: Bundle) -> None:
    """Compares with scoring every item, for rules that allow many and few items."""
    rng = np.random.default_rng(3)
    rows = [
        {"user_id": f"u{number % 60}", "at": AT, **random_rules(rng, 20_000)}
        for number in range(150)
    ]
    rows += [
        {"user_id": f"u{number}", "at": AT, "filters": {"year": {"ge": 1993}}, "k": 150}
        for number in range(5)
    ]
    found = Recommender(indexed).recommend(parse_requests(rows))
    exact = Recommender(replace(indexed, index=None)).recommend(parse_requests(rows))
    listed = same = 0
    for one, other in zip(found, exact, strict=True):
        assert len(one.item_ids) == len(other.item_ids), "never fewer than there are"
        listed, same = listed + len(other.item_ids), same + len({*one.item_ids} & {*other.item_ids})
    assert same >= 0.98 * listed > 1000


def test_pages_with_index_do_not_overlap(indexed: Bundle) -> None:
    recommender = Recommender(indexed)
    for rules in ({}, {"filters": {"year": {"ge": 1993}}}):
        pages = [
            ask(recommender, user_id="u1", k=30, offset=30 * page, **rules).item_ids
            for page in range(20)
        ]
        flat = [item for page in pages for item in page]
        assert len(flat) == 600 == len(set(flat))
        at_once = ask(recommender, user_id="u1", k=600, **rules).item_ids
        assert set(flat) == set(at_once), "whatever the size of a page"
