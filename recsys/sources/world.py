"""The latent model of the synthetic source: the tastes of users and the events that follow. Pure
numpy, seeded.

Legend: N items, U users of a bundle, R of them in a step, T steps, C candidates, G groups of one
kind, M topics of a stratum's mix.

Each item belongs to one group of each of seven kinds, drawn independently, so that no signal
predicts another: *topic*, *cluster*, *community*, *studio* (and so the *owner* of the studio),
*shelf*, *segment* and *style*. Popularity is p_i ∝ rank^-0.6 over a random order. A share of *cold*
items is released in the last tenth of the period, with 4 × the popularity.

Users form *circles* of 20, and each circle has a few favourite items. A user has the topics and
community of the circle with probability ``social``, else random ones. Owner, stratum, style, age
band, gender and country of a user are independent of the circle and of each other. At each step a
mechanism m is drawn by the strengths s of the signals,

    P(m) = s_m / (0.15 + Σ s),    P(noise) = 0.15 / (0.15 + Σ s)

    text           i ~ p | topic k,  k = the first topic of the user (0.7) or the second (0.3);
                   with probability ``evolution`` · t/T the interest has changed to the topic after
                   the first
    evolution      i ~ p | cluster next(c),  c the cluster of the previous item, next() one cycle
                   over all clusters
    collaborative  i ~ p | community of the user
    social         i uniform among the favourites of the circle
    knowledge      i ~ p | owner that the user likes: any studio of it
    stratum        i ~ p | topic k,  k uniform in the mix of the stratum (0.5);
                   i ~ p | shelf of the stratum (0.5)
    profile        i ~ p | segment 2 ((band + country) mod 4) + (band + gender) mod 2
    media          i ~ p | style that the user likes
    noise          i ~ p

An item that the user already has, or that is not released yet, is drawn again.

There are 8 strata. The mix of a stratum is 3 topics. A topic is in several mixes, and two mixes
share at most one topic (from 7 topics on), so that the mix determines the stratum but a single
topic does not. Its shelf has items of all topics. A topic of a user that is not from the circle is
from the mix with probability ``stratum``. The segment is a cross: bands, genders and countries are
uniform, so that a single attribute gives no information about it. Band and country determine one of
4 pairs of segments, band and gender one half, and all three the segment.

The side signals also depend on these groups, with the same strengths: see
:mod:`recsys.sources.side_signals`. With strength 0 the mechanism is never drawn and its side signal
is independent of everything.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from recsys.config import SyntheticSource

Array = npt.NDArray[Any]

NOISE: Final = 0.15  # weight of draws by popularity, next to the strengths
CIRCLE: Final = 20  # users of a circle
# users that are generated together (whole circles), in small and large data
BUNDLES: Final = (240, 2400)
_LARGE: Final = 20_000  # users of large data
RELEASE: Final = 0.9  # cold items appear after this time
COLD_BOOST: Final = 4.0
FIRST_TOPIC: Final = 0.7
SHORT: Final = 3  # events of a short-history user: training, validation, test
KNOBS: Final = (
    "text",
    "evolution",
    "collaborative",
    "social",
    "knowledge",
    "stratum",
    "profile",
    "media",
)
MECHANISMS: Final = (*KNOBS, "noise")
STRATA: Final = 8
# offsets of a mix's topics; all differences differ, so two mixes share at most one
MIX: Final = (0, 1, 3)
MIX_SHARE: Final = 0.5  # steps of the stratum that go to its mix instead of its shelf
BANDS: Final = 4  # of age
GENDERS: Final = 2
COUNTRIES: Final = 4  # those that are signals
STUDIO: Final = 4  # items of a studio
_TRIES: Final = 4
_CANDIDATES: Final = 4  # drawn at once in each try
# Independent random streams of one seed.
_WORLD, _EVENTS, FRIENDS, WORDS, _CIRCLES, FACTS, PEOPLE, GOODS, IMAGES = range(9)


@dataclass(frozen=True)
class Groups:
    """Items by group, for draws from a group by weight, with cumulative weights of all items in
    group order.

    P: positions of the members of all groups of all kinds, one kind after the other.
    """

    order_P: Array  # item at each position
    cumulative_P1: Array
    start_G1: Array

    @staticmethod
    def of(kinds: list[Array], weight_N: Array) -> Groups:
        """Groups of several kinds. A kind is given as the group of each item; numbers continue from
        kind to kind.
        """
        orders = [np.argsort(group_N, kind="stable") for group_N in kinds]
        sizes = np.concatenate([np.bincount(group_N) for group_N in kinds])
        order = np.concatenate(orders)
        return Groups(
            order,
            np.concatenate([[0.0], np.cumsum(weight_N[order])]),
            np.concatenate([[0], np.cumsum(sizes)]),
        )

    def draw(self, group: Array, rng: np.random.Generator) -> Array:
        """Draw one item of each given group; any shape."""
        start, end = self.start_G1[group], self.start_G1[group + 1]
        low, high = self.cumulative_P1[start], self.cumulative_P1[end]
        place = (
            np.searchsorted(
                self.cumulative_P1, low + rng.random(group.shape) * (high - low), side="right"
            )
            - 1
        )
        items: Array = self.order_P[np.minimum(np.maximum(place, start), end - 1)]
        return items


@dataclass(frozen=True)
class World:
    """Everything that all users share. Group numbers continue from kind to kind; the last group has
    all items.
    """

    config: SyntheticSource
    groups: Groups
    first: dict[str, int]  # number of the first group of a kind
    topic_N: Array
    cluster_N: Array
    community_N: Array
    studio_N: Array
    shelf_N: Array
    segment_N: Array
    style_N: Array
    owner_S: Array  # of each studio
    mix_SM: Array  # topics of each stratum
    next_cluster_G: Array
    next_topic_G: Array
    release_N: Array  # in [0, 1): the time from which an item can be chosen

    @property
    def num_topics(self) -> int:
        """Number of topics."""
        return len(self.next_topic_G)

    @property
    def num_communities(self) -> int:
        """Number of communities, which is also that of owners and of styles."""
        return self.first["owner"] - self.first["community"]

    @property
    def any_group(self) -> int:
        """Number of the group with all items."""
        return self.first["any"]

    @property
    def num_bundles(self) -> int:
        """Number of user bundles."""
        return -(-self.config.num_users // self.bundle)

    @property
    def bundle(self) -> int:
        """Users that are generated together; their rows do not depend on ``num_partitions``."""
        return BUNDLES[self.config.num_users > _LARGE]

    def bundle_users(self, bundle: int) -> Array:
        """The users of a bundle: [U]."""
        return np.arange(
            bundle * self.bundle, min((bundle + 1) * self.bundle, self.config.num_users)
        )

    def favourites(self, circle: int) -> Array:
        """The favourite items of a circle."""
        rng = self.stream(_CIRCLES, circle)
        size = _room(self.config, 6)
        return rng.choice(self.config.num_items, size=size, replace=False)

    def stream(self, kind: int, part: int) -> np.random.Generator:
        """An independent random stream of the seed."""
        return np.random.default_rng([self.config.seed, kind, part])


@dataclass(frozen=True)
class Taste:
    """The tastes and attributes of the users of a bundle."""

    users_U: Array
    topic_U2: Array  # first and second topic
    community_U: Array
    favourites_UF: Array
    owner_U: Array
    stratum_U: Array
    style_U: Array
    band_U: Array  # of age
    gender_U: Array
    country_U: Array

    @property
    def segment_U(self) -> Array:
        """The segment of each user: a cross of age band, country and gender."""
        pair = (self.band_U + self.country_U) % COUNTRIES
        segment: Array = 2 * pair + (self.band_U + self.gender_U) % 2
        return segment

    def __len__(self) -> int:
        return len(self.users_U)


@dataclass(frozen=True)
class Walk:
    """The events of a bundle, user by user in the order of time."""

    users_E: Array
    items_E: Array
    times_E: Array  # in [0, 1)
    mechanism_E: Array  # position in MECHANISMS


@lru_cache(maxsize=4)
def _world(config: str) -> World:
    source = SyntheticSource.model_validate_json(config)
    rng = np.random.default_rng([source.seed, _WORLD])
    count = source.num_items
    popularity = rng.permutation(np.arange(1, count + 1) ** -0.6)
    is_cold = np.zeros(count, dtype=bool)
    is_cold[rng.permutation(count)[: int(round(source.cold_items * count))]] = True
    release = np.where(is_cold, RELEASE + (0.99 - RELEASE) * rng.random(count), 0.0)
    weight = np.where(is_cold, COLD_BOOST * popularity, popularity)
    num_topics = min(source.num_topics, count)
    num_clusters = min(max(2, count // 12), 512)
    num_communities = max(2, min(source.num_topics, count // _room(source, 2)))
    num_studios = max(num_communities, count // STUDIO)

    def deal(num: int, groups: int) -> Array:
        """Groups of equal size, at random."""
        return rng.permutation(np.arange(num) % groups)

    studio, owner = deal(count, num_studios), deal(num_studios, num_communities)
    kinds = {
        "topic": deal(count, num_topics),
        "cluster": deal(count, num_clusters),
        "community": deal(count, num_communities),
        "owner": owner[studio],
        "shelf": deal(count, STRATA),
        "segment": deal(count, 2 * COUNTRIES),
        "style": deal(count, num_communities),
        "any": np.zeros(count, dtype=np.int64),
    }
    sizes = (
        num_topics,
        num_clusters,
        num_communities,
        num_communities,
        STRATA,
        2 * COUNTRIES,
        num_communities,
    )
    first = dict(zip(kinds, np.cumsum([0, *sizes]).tolist(), strict=True))
    mix = rng.permutation(num_topics)[
        ((np.arange(STRATA) * num_topics // STRATA)[:, None] + MIX) % num_topics
    ]
    return World(
        config=source,
        groups=Groups.of(list(kinds.values()), weight),
        first=first,
        studio_N=studio,
        owner_S=owner,
        mix_SM=mix,
        next_cluster_G=_cycle(num_clusters, rng),
        next_topic_G=_cycle(num_topics, rng),
        release_N=release,
        **{
            f"{kind}_N": kinds[kind]
            for kind in ("topic", "cluster", "community", "shelf", "segment", "style")
        },
    )


def world_of(config: SyntheticSource) -> World:
    """The world of a configuration; each task builds it once and caches it."""
    return _world(config.model_dump_json())


def tastes(world: World, bundle: int) -> Taste:
    """Draw the tastes of a bundle from circles, strata and at random."""
    config, users = world.config, world.bundle_users(bundle)
    rng = world.stream(_EVENTS, 2 * bundle)
    count = len(users)
    circles, member = np.unique(users // CIRCLE, return_inverse=True)
    from_circle = rng.random(count) < config.social
    stratum = rng.integers(STRATA, size=count)

    def pick(groups: int, own: Array) -> Array:
        return np.where(from_circle, rng.integers(groups, size=len(circles))[member], own)

    def pick_topic() -> Array:
        of_mix = world.mix_SM[stratum, rng.integers(len(MIX), size=count)]
        is_of_mix = rng.random(count) < config.stratum
        return pick(
            world.num_topics,
            np.where(is_of_mix, of_mix, rng.integers(world.num_topics, size=count)),
        )

    return Taste(
        users_U=users,
        topic_U2=np.stack([pick_topic(), pick_topic()], axis=1),
        community_U=pick(world.num_communities, rng.integers(world.num_communities, size=count)),
        favourites_UF=np.stack([world.favourites(int(circle)) for circle in circles])[member],
        owner_U=rng.integers(world.num_communities, size=count),
        stratum_U=stratum,
        style_U=rng.integers(world.num_communities, size=count),
        band_U=rng.integers(BANDS, size=count),
        gender_U=rng.integers(GENDERS, size=count),
        country_U=rng.integers(COUNTRIES, size=count),
    )


def walk(world: World, bundle: int) -> Walk:
    """Generate the events of a bundle, step by step for all its users."""
    taste = tastes(world, bundle)
    rng = world.stream(_EVENTS, 2 * bundle + 1)
    lengths = _lengths(world.config, len(taste), rng)
    steps = int(lengths.max())
    times_UT = _times(lengths, steps, rng)
    items_UT = np.full((len(taste), steps), -1, dtype=np.int64)
    mechanism_UT = np.zeros((len(taste), steps), dtype=np.int8)
    for step in range(steps):
        rows = np.flatnonzero(lengths > step)
        chosen, mechanism = _step(world, taste, rows, items_UT, (step, lengths, times_UT), rng)
        items_UT[rows, step], mechanism_UT[rows, step] = chosen, mechanism
    real = items_UT >= 0
    users = np.repeat(taste.users_U, lengths)
    return Walk(users, items_UT[real], times_UT[real], mechanism_UT[real])


def _step(
    world: World,
    taste: Taste,
    rows_R: Array,
    items_UT: Array,
    clock: tuple[int, Array, Array],
    rng: np.random.Generator,
) -> tuple[Array, Array]:
    """The next item of some users and the mechanism that chose it."""
    step, lengths, times_UT = clock
    mechanism_R = _mechanisms(world.config, len(rows_R), rng)
    if step == 0:  # there is no previous item
        mechanism_R[mechanism_R == MECHANISMS.index("evolution")] = MECHANISMS.index("noise")
    previous_R = items_UT[rows_R, step - 1] if step else np.zeros(len(rows_R), dtype=np.int64)
    age_R = step / np.maximum(lengths[rows_R] - 1, 1)
    group_R = _group(world, taste, rows_R, mechanism_R, (previous_R, age_R), rng)
    chosen_R = np.full(len(rows_R), -1, dtype=np.int64)
    left = np.arange(len(rows_R))
    for attempt in range(_TRIES):
        if attempt == _TRIES - 1:
            mechanism_R[left], group_R[left] = MECHANISMS.index("noise"), world.any_group
        drawn_RC = world.groups.draw(np.repeat(group_R[left, None], _CANDIDATES, axis=1), rng)
        social = np.flatnonzero(mechanism_R[left] == MECHANISMS.index("social"))
        places = rng.integers(taste.favourites_UF.shape[1], size=(len(social), _CANDIDATES))
        drawn_RC[social] = np.take_along_axis(
            taste.favourites_UF[rows_R[left[social]]], places, axis=1
        )
        past_RT = items_UT[rows_R[left], :step]
        is_seen_RC = (drawn_RC[:, :, None] == past_RT[:, None, :]).any(axis=2)
        is_free_RC = ~is_seen_RC & (
            world.release_N[drawn_RC] <= times_UT[rows_R[left], step][:, None]
        )
        found = np.flatnonzero(is_free_RC.any(axis=1))
        chosen_R[left[found]] = drawn_RC[found, is_free_RC[found].argmax(axis=1)]
        left = np.delete(left, found)
        if len(left) == 0:
            break
    warm = np.flatnonzero(world.release_N == 0)
    chosen_R[left] = warm[rng.integers(len(warm), size=len(left))]
    return chosen_R, mechanism_R


def _group(
    world: World,
    taste: Taste,
    rows_R: Array,
    mechanism_R: Array,
    past: tuple[Array, Array],
    rng: np.random.Generator,
) -> Array:
    """The group of items that the mechanism of each user draws from."""
    previous_R, age_R = past
    topic_R = taste.topic_U2[rows_R, (rng.random(len(rows_R)) > FIRST_TOPIC).astype(np.int64)]
    has_moved_R = rng.random(len(rows_R)) < world.config.evolution * age_R
    topic_R = np.where(has_moved_R, world.next_topic_G[taste.topic_U2[rows_R, 0]], topic_R)
    stratum_R = taste.stratum_U[rows_R]
    mixed_R = world.mix_SM[stratum_R, rng.integers(len(MIX), size=len(rows_R))]
    is_mixed_R = rng.random(len(rows_R)) < MIX_SHARE
    anything_R = np.full(len(rows_R), world.any_group)
    options = (  # in the order of MECHANISMS
        topic_R,
        world.first["cluster"] + world.next_cluster_G[world.cluster_N[previous_R]],
        world.first["community"] + taste.community_U[rows_R],
        anything_R,  # social: the favourites of the circle are drawn separately
        world.first["owner"] + taste.owner_U[rows_R],
        np.where(is_mixed_R, mixed_R, world.first["shelf"] + stratum_R),
        world.first["segment"] + taste.segment_U[rows_R],
        world.first["style"] + taste.style_U[rows_R],
        anything_R,
    )
    return np.choose(mechanism_R, options)


def _mechanisms(config: SyntheticSource, count: int, rng: np.random.Generator) -> Array:
    weights = np.array([*(getattr(config, knob) for knob in KNOBS), NOISE])
    return np.searchsorted(
        np.cumsum(weights / weights.sum()), rng.random(count), side="right"
    ).clip(0, len(weights) - 1)


def _room(config: SyntheticSource, share: int) -> int:
    """Number of items in a group: more than an average user takes, but at most one ``share``-th of
    all.
    """
    return min(max(8, round(2 * config.events_per_user)), max(2, config.num_items // share))


def _lengths(config: SyntheticSource, count: int, rng: np.random.Generator) -> Array:
    """Number of events of each user: SHORT, or at least SHORT + 1, with the mean
    ``events_per_user`` if possible.
    """
    is_short = rng.random(count) < config.short_history
    mean = (config.events_per_user - SHORT * config.short_history) / max(
        1 - config.short_history, 1e-9
    )
    extra = rng.gamma(4.0, max(mean - SHORT - 1, 0.0) / 4.0, size=count)
    longest = min(config.num_items // 2, 20 * int(config.events_per_user) + SHORT)
    return np.where(
        is_short, SHORT, np.clip(SHORT + 1 + np.round(extra), SHORT + 1, longest)
    ).astype(np.int64)


def _times(lengths_U: Array, steps: int, rng: np.random.Generator) -> Array:
    """Increasing times of each user between a random arrival and the end; unused steps are 1."""
    arrival = rng.random((len(lengths_U), 1)) * 0.7
    times = arrival + (1 - arrival) * rng.random((len(lengths_U), steps))
    times[np.arange(steps) >= lengths_U[:, None]] = 1.0
    times.sort(axis=1)
    return times


def _cycle(count: int, rng: np.random.Generator) -> Array:
    """A permutation with one cycle, which visits all groups."""
    order = rng.permutation(count)
    following = np.empty(count, dtype=np.int64)
    following[order] = np.roll(order, -1)
    return following
