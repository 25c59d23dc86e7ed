"""The latent model of the synthetic source: the groups of items and the tastes of users. Pure
numpy, seeded. :mod:`recsys.sources.walks` draws the events.

Legend: N items, U users of a bundle, R of them in a step, T steps, C candidates, G groups of one
kind, M topics of the mix of a user cluster.

Each item belongs to one group of each of seven kinds, drawn independently, so that no signal
predicts another: *topic*, *cluster*, *community*, *studio* (and so the *owner* of the studio),
*shelf*, *segment* and *style*. Popularity is p_i ∝ rank^-0.6 over a random order. A share of *cold*
items is released in the last tenth of the period, with 4 × the popularity.

Users form *circles* of 20, and each circle has a few favourite items. A user has the topics and
community of the circle with probability ``social``, else random ones. Owner, user cluster, style,
age band, gender and country of a user are independent of the circle and of each other. At each step
a mechanism m is drawn by the strengths s of the signals,

    P(m) = s_m / (0.15 + Σ s),    P(noise) = 0.15 / (0.15 + Σ s)

    text           i ~ p | topic k,  k = the first topic of the user (0.7) or the second (0.3);
                   with probability ``evolution`` · t/T the interest has changed to the topic after
                   the first
    evolution      i ~ p | cluster next(c),  c the cluster of the previous item, next() one cycle
                   over all clusters
    collaborative  i ~ p | community of the user
    social         i uniform among the favourites of the circle
    knowledge      i ~ p | owner that the user likes: any studio of it
    stratum        i ~ p | topic k,  k uniform in the mix of the user cluster (0.5);
                   i ~ p | shelf of the user cluster (0.5)
    profile        i ~ p | segment 2 ((band + country) mod 4) + (band + gender) mod 2
    media          i ~ p | style that the user likes
    noise          i ~ p

An item that the user already has, or that is not released yet, is drawn again.

There are 8 user clusters. The mix of a user cluster is 3 topics. A topic is in several mixes, and
two mixes share at most one topic (from 7 topics on), so that the mix determines the user cluster
but a single topic does not. Its shelf has items of all topics. A topic of a user that is not from
the circle is from the mix with probability ``stratum``. The segment is a cross: bands, genders and
countries are uniform, so that a single attribute gives no information about it. Band and country
determine one of 4 pairs of segments, band and gender one half, and all three the segment.

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
USER_CLUSTERS: Final = 8
# offsets of a mix's topics; all differences differ, so two mixes share at most one
MIX: Final = (0, 1, 3)
MIX_SHARE: Final = 0.5  # steps of ``stratum`` that go to its mix instead of its shelf
BANDS: Final = 4  # of age
GENDERS: Final = 2
COUNTRIES: Final = 4  # those that are signals
STUDIO: Final = 4  # items of a studio
# Independent random streams of one seed.
_WORLD, EVENTS, FRIENDS, WORDS, _CIRCLES, TRIPLES, PEOPLE, GOODS, IMAGES = range(9)


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
        position = (
            np.searchsorted(
                self.cumulative_P1, low + rng.random(group.shape) * (high - low), side="right"
            )
            - 1
        )
        # rounding of the cumulative weights may reach into the neighbouring group
        items: Array = self.order_P[np.minimum(np.maximum(position, start), end - 1)]
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
    mix_SM: Array  # topics of each user cluster
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
        # by part, so that a bundle has the same rows whichever task makes it
        return np.random.default_rng([self.config.seed, kind, part])


@dataclass(frozen=True)
class Taste:
    """The tastes and attributes of the users of a bundle."""

    users_U: Array
    topic_U2: Array  # first and second topic
    community_U: Array
    favourites_UF: Array
    owner_U: Array
    user_cluster_U: Array
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
        "shelf": deal(count, USER_CLUSTERS),
        "segment": deal(count, 2 * COUNTRIES),
        "style": deal(count, num_communities),
        "any": np.zeros(count, dtype=np.int64),
    }
    sizes = (
        num_topics,
        num_clusters,
        num_communities,
        num_communities,
        USER_CLUSTERS,
        2 * COUNTRIES,
        num_communities,
    )
    first = dict(zip(kinds, np.cumsum([0, *sizes]).tolist(), strict=True))
    mix = rng.permutation(num_topics)[
        ((np.arange(USER_CLUSTERS) * num_topics // USER_CLUSTERS)[:, None] + MIX) % num_topics
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
    # as text, because a configuration cannot be hashed for the cache
    return _world(config.model_dump_json())


def tastes(world: World, bundle: int) -> Taste:
    """Draw the tastes of a bundle from circles, user clusters and at random."""
    config, users = world.config, world.bundle_users(bundle)
    rng = world.stream(EVENTS, 2 * bundle)
    count = len(users)
    circles, member = np.unique(users // CIRCLE, return_inverse=True)
    from_circle = rng.random(count) < config.social
    cluster = rng.integers(USER_CLUSTERS, size=count)

    def pick(groups: int, own: Array) -> Array:
        return np.where(from_circle, rng.integers(groups, size=len(circles))[member], own)

    def pick_topic() -> Array:
        of_mix = world.mix_SM[cluster, rng.integers(len(MIX), size=count)]
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
        user_cluster_U=cluster,
        style_U=rng.integers(world.num_communities, size=count),
        band_U=rng.integers(BANDS, size=count),
        gender_U=rng.integers(GENDERS, size=count),
        country_U=rng.integers(COUNTRIES, size=count),
    )


def _room(config: SyntheticSource, share: int) -> int:
    """Number of items in a group: more than an average user takes, but at most one ``share``-th of
    all.
    """
    return min(max(8, round(2 * config.events_per_user)), max(2, config.num_items // share))


def _cycle(count: int, rng: np.random.Generator) -> Array:
    """A permutation with one cycle, which visits all groups."""
    order = rng.permutation(count)
    following = np.empty(count, dtype=np.int64)
    following[order] = np.roll(order, -1)
    return following
