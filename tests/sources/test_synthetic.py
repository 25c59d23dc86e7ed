"""Generated data: equal for any partitions; each signal exists at strength 1 and not at
strength 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from recsys import schema
from recsys.config import SyntheticSource
from recsys.preparation.items import text_fields
from recsys.preparation.reading import tables
from recsys.sources import open_source
from recsys.sources.base import read_all
from recsys.sources.column_names import topic_words
from recsys.sources.side_signals import AGES, LABELS, friends
from recsys.sources.walks import walk
from recsys.sources.world import CIRCLE, KNOBS, SHORT, tastes, world_of

QUIET = {**dict.fromkeys(KNOBS, 0.0), "bad_rows": 0.0}


def world(**options: Any) -> SyntheticSource:
    return SyntheticSource(
        **{"num_users": 480, "num_items": 900, "cold_items": 0.0, **QUIET, **options}
    )


def table(source: SyntheticSource, name: str) -> pa.Table:
    return read_all(open_source(source).pieces()[name])


def events(source: SyntheticSource) -> tuple[np.ndarray, np.ndarray]:
    """User and item number of each event, in the order of each user."""
    log = table(source, "events")
    assert log.column(schema.REASON).null_count == log.num_rows
    numbers = [
        [int(name[1:]) for name in log.column(column).to_pylist()]
        for column in ("user_id", "item_id")
    ]
    return np.array(numbers[0]), np.array(numbers[1])


def share_of_same_user(users: np.ndarray, group: np.ndarray) -> float:
    """Share of successive events of a user in one group; by chance 1 / number of groups (equal
    sizes).
    """
    same_user = users[1:] == users[:-1]
    return float((group[1:] == group[:-1])[same_user].mean())


# --------------------------------------------------------------------------------------- the tables


@pytest.mark.parametrize("name", ["events", "items", "users", "social", "knowledge"])
def test_same_seed_gives_the_same_rows_for_any_partitions(name: str) -> None:
    source = SyntheticSource(num_users=700, num_items=600, events_per_user=6, bad_rows=0.02)
    whole = table(source.model_copy(update={"num_partitions": 1}), name)
    in_parts = open_source(source.model_copy(update={"num_partitions": 3})).pieces()[name]
    assert len(in_parts) == 3

    def rows(found: pa.Table) -> list[Any]:
        return found.sort_by(schema.ORDER).to_pylist()

    # Random streams do not depend on partitions, and any order of tasks gives the same rows.
    assert rows(read_all(in_parts[::-1])) == rows(whole)
    assert rows(table(source.model_copy(update={"seed": 1}), name)) != rows(whole)


def test_default_world_has_the_expected_size_and_values() -> None:
    source = SyntheticSource()
    log = table(source, "events")
    good = log.filter(pc.is_null(log.column(schema.REASON)))
    assert good.num_rows == pytest.approx(24_000, rel=0.05)
    assert pc.count_distinct(good.column(schema.USER_ID)).as_py() == 1000
    assert set(pc.unique(good.column(schema.EVENT_TYPE)).to_pylist()) == {
        "view",
        "click",
        "purchase",
    }
    assert set(pc.unique(good.column(schema.VALUE)).to_pylist()) == {1.0, 2.0, 5.0}
    assert {time.year for time in pc.min_max(good.column(schema.TIMESTAMP)).as_py().values()} == {
        2024
    }
    counts = pc.value_counts(good.column(schema.USER_ID)).field("counts").to_numpy()
    assert (counts <= SHORT + 1).mean() >= 0.18
    pairs = good.group_by([schema.USER_ID, schema.ITEM_ID]).aggregate([])
    # hardly any repeats, apart from planted duplicates
    assert pairs.num_rows / good.num_rows > 0.99
    items = table(source, "items")
    assert items.column("title").null_count == items.column("image").null_count == 0
    # only columns of texts
    assert text_fields(items, None) == ["title", "tags", "category"]
    users = table(source, "users")
    assert all(
        0.02 < users.column(name).null_count / 1000 < 0.09 for name in ("age", "gender", "country")
    )


def test_times_of_a_user_increase_and_cold_items_come_late() -> None:
    source = world(cold_items=0.2, text=1.0)
    planted = world_of(source)
    for bundle in range(planted.num_bundles):
        found = walk(planted, bundle)
        same_user = found.users_E[1:] == found.users_E[:-1]
        assert (np.diff(found.times_E)[same_user] >= 0).all()
        is_cold = planted.release_N[found.items_E] > 0
        assert is_cold.any()
        assert (found.times_E >= planted.release_N[found.items_E]).all()
        assert found.times_E[is_cold].min() >= 0.9
    assert (planted.release_N > 0).sum() == 180


def test_bad_rows_are_planted_with_all_reasons() -> None:
    source = SyntheticSource(bad_rows=0.05)
    expected = {
        "events": {
            "missing user_id",
            "missing item_id",
            "value is not a finite number",
            "bad timestamp",
        },
        "items": {"missing item_id"},
        "users": {"missing user_id"},
        "social": {"missing dst_user_id", "self-loop", "bad weight"},
        "knowledge": {"missing head", "missing relation", "missing tail"},
    }
    for name, reasons in expected.items():
        found = table(source, name)
        assert set(pc.drop_null(pc.unique(found.column(schema.REASON))).to_pylist()) == reasons
        broken = found.filter(pc.is_valid(found.column(schema.REASON)))
        assert broken.column(schema.RAW).null_count == 0
        key = list(schema.TABLES[name].key)
        good = found.filter(pc.is_null(found.column(schema.REASON)))
        # duplicates, which prepare finds
        assert good.group_by(key).aggregate([]).num_rows < good.num_rows
    log = table(source, "events")
    share = 1 - log.column(schema.REASON).null_count / log.num_rows
    assert share == pytest.approx(0.05 * 4 / 5, rel=0.3)
    ghosts = pc.match_substring(table(source, "social").column("dst_user_id"), "ghost-")
    assert pc.any(ghosts).as_py()


def test_world_is_read_through_ray(ray_local: None) -> None:
    source = SyntheticSource(num_users=500, events_per_user=5)
    adapter = open_source(source)
    assert tables(adapter)["events"].count() == table(source, "events").num_rows
    assert adapter.fingerprint() != open_source(source.model_copy(update={"seed": 1})).fingerprint()


# -------------------------------------------------------------------------------------- the signals


def words_of_own_topic(source: SyntheticSource) -> float:
    """Share of item words that are in the vocabulary of the item's topic."""
    topic_N = world_of(source).topic_N
    vocabulary = topic_words(source.num_topics)[1]
    tags = table(source, "items").column("tags").to_pylist()
    hits = [
        word in vocabulary[topic_N[i]] for i, text in enumerate(tags) for word in text.split(", ")
    ]
    return float(np.mean(hits))


def test_text_predicts_the_topic() -> None:
    shares = [words_of_own_topic(world(text=knob)) for knob in (0.0, 0.5, 1.0)]
    assert shares[0] == pytest.approx(1 / 12, abs=0.04)
    assert 0.4 < shares[1] < 0.7
    assert shares[2] == 1.0
    for knob, low, high in ((1.0, 0.4, 1.0), (0.0, 0.0, 0.12)):
        source = world(text=knob)
        users, items = events(source)
        assert low <= share_of_same_user(users, world_of(source).topic_N[items]) <= high


@pytest.mark.parametrize(("knob", "low", "high"), [(1.0, 0.8, 1.0), (0.0, 0.0, 0.08)])
def test_order_predicts_the_next_item(knob: float, low: float, high: float) -> None:
    source = world(evolution=knob)
    users, items = events(source)
    planted = world_of(source)
    cluster = planted.cluster_N[items]
    same_user = users[1:] == users[:-1]
    follows = (planted.next_cluster_G[cluster[:-1]] == cluster[1:])[same_user]
    assert low <= follows.mean() <= high  # chance: 1 of 75 clusters


@pytest.mark.parametrize(("knob", "low", "high"), [(1.0, 0.6, 1.0), (0.0, 0.0, 0.14)])
def test_communities_share_items(knob: float, low: float, high: float) -> None:
    source = world(collaborative=knob)
    users, items = events(source)
    # chance: 1 of 12
    assert low <= share_of_same_user(users, world_of(source).community_N[items]) <= high


@pytest.mark.parametrize("knob", [0.0, 1.0])
def test_friends_share_taste(knob: float) -> None:
    source = world(social=knob, num_items=600)
    users, items = events(source)
    liked = np.zeros((source.num_users, source.num_items))
    liked[users, items] = 1
    planted = world_of(source)
    pairs = [friends(planted, bundle) for bundle in range(planted.num_bundles)]
    one, other = (np.concatenate([pair[side] for pair in pairs]) for side in (0, 1))
    random_users = np.random.default_rng(0).permutation(other)
    among_friends, among_strangers = (
        (liked[one] * liked[them]).sum(1).mean() for them in (other, random_users)
    )
    if knob:
        assert among_friends > 4 * among_strangers
        assert (one // CIRCLE == other // CIRCLE).all()
    else:
        assert among_friends == pytest.approx(among_strangers, rel=0.15)


def test_circles_share_topics_and_communities_by_the_strength() -> None:
    for knob in (0.0, 1.0):
        taste = tastes(world_of(world(social=knob)), 0)
        same = (taste.topic_U2[0, 0] == taste.topic_U2[:CIRCLE, 0]).mean()
        assert same == 1.0 if knob else same < 0.5


def steps(source: SyntheticSource) -> tuple[np.ndarray, np.ndarray]:
    """User and item number of each event, directly from the walk."""
    planted = world_of(source)
    found = [walk(planted, bundle) for bundle in range(planted.num_bundles)]
    return np.concatenate([w.users_E for w in found]), np.concatenate([w.items_E for w in found])


def of_all_users(source: SyntheticSource, name: str) -> np.ndarray:
    """One column of the tastes of all users."""
    planted = world_of(source)
    return np.concatenate(
        [getattr(tastes(planted, bundle), name) for bundle in range(planted.num_bundles)]
    )


@pytest.mark.parametrize(
    ("knob", "low", "high"), [(1.0, 0.99, 1.0), (0.5, 0.2, 0.4), (0.0, 0.0, 0.14)]
)
def test_triples_give_the_owner_that_a_user_likes(knob: float, low: float, high: float) -> None:
    source = world(knowledge=knob)
    facts = table(source, "knowledge")
    assert set(facts.column("relation").to_pylist()) == {
        "made by",
        "features",
        "owned by",
        "based in",
    }
    tails = {(fact["relation"], fact["head"]): fact["tail"] for fact in facts.to_pylist()}
    entities = table(source, "items").column("entity_id").to_pylist()
    owners = [tails["owned by", tails["made by", entity]] for entity in entities]  # two hops
    users, items = steps(source)
    planted = world_of(source)
    owner_N = planted.owner_S[planted.studio_N]
    is_true = np.array([int(name.rsplit("-")[-1]) for name in owners]) == owner_N
    assert low <= is_true.mean() <= high  # chance: 1 of 12; knob 0.5: 0.25 and what chance adds
    if knob != 0.5:
        follows = owner_N[items] == of_all_users(source, "owner_U")[users]
        assert (follows.mean() > 0.6) if knob else (follows.mean() < 0.14)
        assert share_of_same_user(users, planted.studio_N[items]) < 0.2  # any studio of the owner


@pytest.mark.parametrize("knob", [0.0, 1.0])
def test_mix_of_topics_determines_user_cluster(knob: float) -> None:
    """Also with text at 0: the words of a user's items determine the mix, which determines the
    shelf.
    """
    source = world(stratum=knob)
    planted, (users, items) = world_of(source), steps(source)
    names, _ = topic_words(source.num_topics)
    topic_N = np.array(
        [names.index(name) for name in table(source, "items").column("category").to_pylist()]
    )
    counts_UT = np.zeros((source.num_users, source.num_topics))
    np.add.at(counts_UT, (users, topic_N[items]), 1)
    nearest = counts_UT[:, planted.mix_SM].sum(axis=2).argmax(axis=1)
    user_cluster_U = of_all_users(source, "user_cluster_U")
    found = (nearest == user_cluster_U).mean()
    assert (found > 0.8) if knob else (found < 0.2)
    on_shelf = (planted.shelf_N[items] == user_cluster_U[users]).mean()
    assert (0.35 < on_shelf < 0.65) if knob else (on_shelf < 0.16)
    shared = [len({*one} & {*other}) for one in planted.mix_SM for other in planted.mix_SM]
    assert sorted(shared)[-9] <= 1 and planted.mix_SM.shape == (8, 3)
    table_of = np.histogram2d(planted.shelf_N, planted.topic_N, bins=(8, 12))[0]
    assert table_of.min() > 0  # a shelf spreads over all topics


@pytest.mark.parametrize("knob", [0.0, 1.0])
def test_only_crosses_of_attributes_determine_the_segment(knob: float) -> None:
    source = world(profile=knob, num_users=1200)
    planted, (users, items) = world_of(source), steps(source)
    rows = table(source, "users").to_pylist()
    codes = {"female": 0, "male": 1, "DE": 0, "FR": 1, "IN": 2, "JP": 3}
    band = np.array(
        [
            -1 if row["age"] is None else np.searchsorted(AGES, row["age"], "right") - 1
            for row in rows
        ]
    )
    gender, country = (
        np.array([codes.get(row[name], -1) for row in rows]) for name in ("gender", "country")
    )
    known = (band >= 0) & (gender >= 0) & (country >= 0)
    assert 0.7 < known.mean() < 0.85
    segment = planted.segment_N[items]
    kept = known[users]
    hits = segment[kept] == (2 * ((band + country) % 4) + (band + gender) % 2)[users[kept]]
    assert (hits.mean() > 0.6) if knob else (hits.mean() < 0.16)  # chance: 1 of 8
    for alone in (band, gender, country):
        for value in range(alone.max() + 1):
            shares = (
                np.bincount(segment[alone[users] == value], minlength=8)
                / (alone[users] == value).sum()
            )
            assert shares.max() < 0.2
    goods = table(source, "items").to_pylist()
    pair = np.searchsorted([7, 21, 62], [row["price"] for row in goods])
    half = np.array([min(row["labels"]) for row in goods]) // LABELS
    share = (2 * pair + half == planted.segment_N).mean()
    assert (share > 0.9) if knob else (share < 0.16)


@pytest.mark.parametrize("knob", [0.0, 1.0])
def test_images_predict_the_style(knob: float) -> None:
    source = world(media=knob)
    planted, (users, items) = world_of(source), steps(source)
    image = np.array(table(source, "items").column("image").to_pylist())
    assert image.shape == (900, 32)
    similarity = image @ image.T
    np.fill_diagonal(similarity, -np.inf)
    same = planted.style_N[similarity.argmax(axis=1)] == planted.style_N
    liked = planted.style_N[items] == of_all_users(source, "style_U")[users]
    if knob:
        assert same.mean() > 0.9 and liked.mean() > 0.6
    else:
        assert same.mean() < 0.14 and liked.mean() < 0.14  # chance: 1 of 12


@pytest.mark.parametrize("knob", KNOBS)
def test_one_signal_does_not_change_the_other_groups(knob: str) -> None:
    """With one strength at 1, the groups of the other mechanisms are at chance level."""
    source = world(**{knob: 1.0})
    users, items = steps(source)
    planted = world_of(source)
    groups = {
        "text": planted.topic_N,
        "collaborative": planted.community_N,
        "knowledge": planted.owner_S[planted.studio_N],
        "stratum": planted.shelf_N,
        "profile": planted.segment_N,
        "media": planted.style_N,
    }
    for name, group_N in groups.items():
        if knob not in (name, "social") and (name, knob) != (
            "text",
            "stratum",
        ):  # circles have few items, of any kind
            assert share_of_same_user(users, group_N[items]) < 1.7 / (group_N.max() + 1), name
    if knob != "evolution":
        cluster = planted.cluster_N[items]
        assert (planted.next_cluster_G[cluster[:-1]] == cluster[1:])[
            users[1:] == users[:-1]
        ].mean() < 0.08


def test_interest_drifts_with_evolution() -> None:
    """Later events of a user are more often of the topic after the first one."""
    source = world(text=1.0, evolution=1.0)
    planted = world_of(source)
    taste, found = tastes(planted, 0), walk(planted, 0)
    first = found.users_E - found.users_E[0]
    is_next = planted.topic_N[found.items_E] == planted.next_topic_G[taste.topic_U2[first, 0]]
    start = np.r_[True, np.diff(found.users_E) > 0]
    position = np.arange(len(first)) - np.maximum.accumulate(
        np.where(start, np.arange(len(first)), 0)
    )
    age = position / np.maximum(np.bincount(first)[first] - 1, 1)
    assert is_next[age > 0.7].mean() > 2 * is_next[age < 0.3].mean()


def test_topics_beyond_the_list_are_distinct() -> None:
    names, words = topic_words(60)
    assert len(set(names)) == len(words) == 60
    assert all(len(each) >= 14 for each in words)
    assert len({word for each in words[:24] for word in each}) > 300
