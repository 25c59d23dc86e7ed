"""The latent world behind the synthetic source: who likes what, and why. Pure numpy, a function of the seed.

Legend: N items, U users of a bundle, T steps, G groups of one kind.

Items belong to one *topic*, one *cluster* and one *community*, drawn independently, so that no signal tells another.
Popularity is p_i ∝ rank^-0.6 over a random order; a share of *cold* items is released in the last tenth of time and is
then 4 × as attractive.

Users come in *circles* of 20; a circle has a few favourite items of its own. A user takes topics and community from
the circle with probability ``social``, else at random. At each step a mechanism is drawn,

    P(m) = knob_m / (0.15 + Σ knobs),    P(noise) = 0.15 / (0.15 + Σ knobs)

    text           i ~ p | topic k,  k = the first topic of the user (0.7) or the second (0.3); with probability
                   ``evolution`` · t/T the interest has moved on to the topic after the first
    evolution      i ~ p | cluster next(c), c the cluster of the item before, next() one cycle over all clusters
    collaborative  i ~ p | community of the user
    social         i uniform among the favourites of the circle
    noise          i ~ p

and an item that the user already has, or that is not released yet, is drawn again. What ``text`` and ``social`` are to
reveal is seen outside the events as well, and just as far as the knob says: each word of an item is from its topic
with probability ``text`` and from a random topic otherwise; each friend is from the circle with probability ``social``
and anyone otherwise. With a knob at 0 the mechanism never acts and its outside trace is independent of everything.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from recsys.config import SyntheticSource

Array = npt.NDArray[Any]

NOISE: Final = 0.15  # weight of the popularity floor beside the knobs
CIRCLE: Final = 20  # users of a circle
BUNDLE: Final = 1000  # users generated together: the unit that makes the world independent of num_partitions
RELEASE: Final = 0.9  # cold items appear in the time after this
COLD_BOOST: Final = 4.0
FIRST_TOPIC: Final = 0.7
SHORT: Final = 3  # events of a short-history user: training, validation, test
MECHANISMS: Final = ("text", "evolution", "collaborative", "social", "noise")
_TRIES: Final = 12
_WORLD, _EVENTS, _FRIENDS, _ITEMS, _CIRCLES = range(5)  # independent random streams of one seed


@dataclass(frozen=True)
class Groups:
    """Items by group, to draw from a group by weight: inverse of the cumulative weights of all items in group order."""

    of_N: Array  # group of every item
    order_N: Array
    cumulative_N1: Array
    start_G1: Array

    @staticmethod
    def of(group_N: Array, weight_N: Array, num_groups: int) -> Groups:
        order = np.argsort(group_N, kind="stable")
        cumulative = np.concatenate([[0.0], np.cumsum(weight_N[order])])
        starts = np.searchsorted(group_N[order], np.arange(num_groups + 1))
        return Groups(group_N, order, cumulative, starts)

    def draw(self, group_U: Array, rng: np.random.Generator) -> Array:
        """One item of each wanted group."""
        low, high = self.cumulative_N1[self.start_G1[group_U]], self.cumulative_N1[self.start_G1[group_U + 1]]
        point = low + rng.random(len(group_U)) * (high - low)
        place = np.searchsorted(self.cumulative_N1, point, side="right") - 1
        return self.order_N[np.clip(place, self.start_G1[group_U], self.start_G1[group_U + 1] - 1)]


@dataclass(frozen=True)
class World:
    """Everything that all users share."""

    config: SyntheticSource
    topics: Groups
    clusters: Groups
    communities: Groups
    everything: Groups
    next_cluster_G: Array
    next_topic_G: Array
    release_N: Array  # in [0, 1): the time from which an item can be chosen

    @property
    def num_bundles(self) -> int:
        return -(-self.config.num_users // BUNDLE)

    def bundle_users(self, bundle: int) -> Array:
        return np.arange(bundle * BUNDLE, min((bundle + 1) * BUNDLE, self.config.num_users))

    def favourites(self, circle: int) -> Array:
        """The favourite items of a circle."""
        rng = self.stream(_CIRCLES, circle)
        size = min(max(8, self.config.num_items // 40), 24)
        return rng.choice(self.config.num_items, size=min(size, self.config.num_items), replace=False)

    def stream(self, kind: int, part: int) -> np.random.Generator:
        return np.random.default_rng([self.config.seed, kind, part])


@dataclass(frozen=True)
class Taste:
    """What the users of a bundle like."""

    users_U: Array
    topic_U2: Array  # first and second topic
    community_U: Array
    favourites_UF: Array

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
    num_clusters = min(max(2, count // 12), 512)
    num_communities = max(2, min(source.num_topics, count // 20))
    num_topics = min(source.num_topics, count)

    def groups(num_groups: int) -> Groups:
        return Groups.of(rng.permutation(np.arange(count) % num_groups), weight, num_groups)

    topics, clusters, communities = groups(num_topics), groups(num_clusters), groups(num_communities)
    everything = Groups.of(np.zeros(count, dtype=np.int64), weight, 1)
    cycles = (_cycle(num_clusters, rng), _cycle(num_topics, rng))
    return World(source, topics, clusters, communities, everything, *cycles, release)


def world_of(config: SyntheticSource) -> World:
    """The world of a configuration; cheap to rebuild in every task, and kept there."""
    return _world(config.model_dump_json())


def tastes(world: World, bundle: int) -> Taste:
    """The tastes of a bundle, from circles and chance."""
    config, users = world.config, world.bundle_users(bundle)
    rng = world.stream(_EVENTS, 2 * bundle)
    num_topics, num_communities = len(world.topics.start_G1) - 1, len(world.communities.start_G1) - 1
    circles, member = np.unique(users // CIRCLE, return_inverse=True)
    from_circle = rng.random(len(users)) < config.social

    def pick(count: int) -> Array:
        return np.where(from_circle, rng.integers(count, size=len(circles))[member], rng.integers(count, size=len(users)))

    topics = np.stack([pick(num_topics), pick(num_topics)], axis=1)
    favourites = np.stack([world.favourites(int(circle)) for circle in circles])
    return Taste(users, topics, pick(num_communities), favourites[member])


def walk(world: World, bundle: int) -> Walk:
    """The events of a bundle: all its users take their step t together."""
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


def friends(world: World, bundle: int) -> tuple[Array, Array]:
    """Friend pairs of a bundle's users, each pair once: source and destination user."""
    config, users = world.config, world.bundle_users(bundle)
    rng = world.stream(_FRIENDS, bundle)
    source = np.repeat(users, rng.integers(3, 9, size=len(users)))
    first = source // CIRCLE * CIRCLE
    size = np.minimum(CIRCLE, config.num_users - first)
    near = first + rng.integers(0, size)
    anyone = rng.integers(config.num_users, size=len(source))
    target = np.where(rng.random(len(source)) < config.social, near, anyone)
    pairs = np.unique(np.stack([source, target], axis=1)[source != target], axis=0)
    return pairs[:, 0], pairs[:, 1]


def told_topics(world: World, first: int, stop: int, num_words: int) -> Array:
    """The topic that each word of some items speaks of: the item's own with probability ``text``, else any: [N, W]."""
    rng = world.stream(_ITEMS, first)
    shape = (stop - first, num_words)
    own = np.broadcast_to(world.topics.of_N[first:stop, None], shape)
    is_told = rng.random(shape) < world.config.text
    return np.where(is_told, own, rng.integers(len(world.topics.start_G1) - 1, size=shape))


def _step(
    world: World,
    taste: Taste,
    rows: Array,
    items_UT: Array,
    clock: tuple[int, Array, Array],
    rng: np.random.Generator,
) -> tuple[Array, Array]:
    """The next item of some users and the mechanism that chose it."""
    step, lengths, times_UT = clock
    mechanism = _mechanisms(world.config, len(rows), rng)
    if step == 0:  # nothing to follow yet
        mechanism = np.where(mechanism == MECHANISMS.index("evolution"), MECHANISMS.index("noise"), mechanism)
    previous = items_UT[rows, step - 1] if step else np.zeros(len(rows), dtype=np.int64)
    moved = rng.random(len(rows)) < world.config.evolution * step / np.maximum(lengths[rows] - 1, 1)
    second = (rng.random(len(rows)) > FIRST_TOPIC).astype(np.int64)
    topic = taste.topic_U2[rows, second]
    topic = np.where(moved, world.next_topic_G[taste.topic_U2[rows, 0]], topic)
    chosen = np.full(len(rows), -1, dtype=np.int64)
    open_rows = np.arange(len(rows))
    for attempt in range(_TRIES):
        kind = mechanism[open_rows] if attempt < _TRIES - 2 else np.full(len(open_rows), len(MECHANISMS) - 1)
        drawn = _draw(world, taste, rows[open_rows], kind, (topic[open_rows], previous[open_rows]), rng)
        chosen[open_rows] = drawn
        mechanism[open_rows] = kind
        seen = (items_UT[rows[open_rows], :step] == drawn[:, None]).any(axis=1)
        early = world.release_N[drawn] > times_UT[rows[open_rows], step]
        open_rows = open_rows[seen | early]
        if len(open_rows) == 0:
            break
    early = world.release_N[chosen] > times_UT[rows, step]
    if early.any():
        chosen[early] = np.flatnonzero(world.release_N == 0)[rng.integers((world.release_N == 0).sum(), size=early.sum())]
    return chosen, mechanism


def _draw(
    world: World,
    taste: Taste,
    rows: Array,
    kind: Array,
    state: tuple[Array, Array],
    rng: np.random.Generator,
) -> Array:
    """One candidate a user by the given mechanism."""
    topic, previous = state
    drawn = np.empty(len(rows), dtype=np.int64)
    sources = (
        (world.topics, topic),
        (world.clusters, world.next_cluster_G[world.clusters.of_N[previous]]),
        (world.communities, taste.community_U[rows]),
        (None, None),
        (world.everything, np.zeros(len(rows), dtype=np.int64)),
    )
    for number, (groups, group) in enumerate(sources):
        chosen = np.flatnonzero(kind == number)
        if groups is None or group is None:
            places = rng.integers(taste.favourites_UF.shape[1], size=len(chosen))
            drawn[chosen] = taste.favourites_UF[rows[chosen], places]
        else:
            drawn[chosen] = groups.draw(group[chosen], rng)
    return drawn


def _mechanisms(config: SyntheticSource, count: int, rng: np.random.Generator) -> Array:
    weights = np.array([config.text, config.evolution, config.collaborative, config.social, NOISE])
    return np.searchsorted(np.cumsum(weights / weights.sum()), rng.random(count), side="right").clip(0, len(weights) - 1)


def _lengths(config: SyntheticSource, count: int, rng: np.random.Generator) -> Array:
    """Events of every user: SHORT, or SHORT + 1 and more, so that the mean is ``events_per_user`` where it can be."""
    is_short = rng.random(count) < config.short_history
    mean = (config.events_per_user - SHORT * config.short_history) / max(1 - config.short_history, 1e-9)
    extra = rng.gamma(2.0, max(mean - SHORT - 1, 0.0) / 2.0, size=count)
    longest = min(config.num_items // 2, 20 * int(config.events_per_user) + SHORT)
    return np.where(is_short, SHORT, np.clip(SHORT + 1 + np.round(extra), SHORT + 1, longest)).astype(np.int64)


def _times(lengths_U: Array, steps: int, rng: np.random.Generator) -> Array:
    """Increasing times of every user between a random arrival and the end; unused steps hold 1."""
    arrival = rng.random((len(lengths_U), 1)) * 0.7
    times = arrival + (1 - arrival) * rng.random((len(lengths_U), steps))
    times[np.arange(steps) >= lengths_U[:, None]] = 1.0
    times.sort(axis=1)
    return times


def _cycle(count: int, rng: np.random.Generator) -> Array:
    """A permutation that is one cycle: following it visits every group."""
    order = rng.permutation(count)
    following = np.empty(count, dtype=np.int64)
    following[order] = np.roll(order, -1)
    return following
