"""What is seen of the synthetic world outside its events: words, friends, facts, attributes, images.

Each trace is as true as its knob says and tells nothing at 0, so that a granularity that reads it can be proved:

    text, stratum  each word of an item is of its topic with probability max(``text``, ``stratum``), else of any
    social         each friend is of the circle with probability ``social``, else anyone
    knowledge      each *made by* (item → studio) and *owned by* (studio → owner) is true with probability
                   ``knowledge``, else random; two relations more are noise
    profile        each attribute that tells the age band, gender or country of a user, or the segment of an item (price
                   its pair of segments, a label the half), is true with probability ``profile``, else random
    media          image = ``media`` · prototype of the style (±1 entries) + standard normal noise

Legend: N items of a range, U users of a bundle, W words, S studios of a range, X entries of an image.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from recsys.sources.world import (
    BANDS,
    CIRCLE,
    COUNTRIES,
    FACTS,
    FRIENDS,
    GENDERS,
    GOODS,
    IMAGES,
    PEOPLE,
    WORDS,
    Array,
    World,
    tastes,
)

IMAGE: Final = 32  # entries of an image vector
LABELS: Final = (
    8  # labels that tell one half of the segments, as many that tell the other, twice as many that tell none
)
AGES: Final = np.array([18, 30, 45, 60, 80])  # a band goes from one to the next
MISSING: Final = 0.05  # of each attribute of a user; as many genders and countries tell nothing
_PRICES: Final = np.array([4.0, 12.0, 36.0, 108.0])  # of the pairs of segments, log-normal around them
_PRICE_SPREAD: Final = 0.25


def friends(world: World, bundle: int) -> tuple[Array, Array]:
    """Friend pairs of a bundle's users, each pair once: source and destination user."""
    config, users = world.config, world.bundle_users(bundle)
    rng = world.stream(FRIENDS, bundle)
    source = np.repeat(users, rng.integers(3, 9, size=len(users)))
    first = source // CIRCLE * CIRCLE
    size = np.minimum(CIRCLE, config.num_users - first)
    near = first + rng.integers(0, size)
    anyone = rng.integers(config.num_users, size=len(source))
    target = np.where(rng.random(len(source)) < config.social, near, anyone)
    pairs = np.unique(np.stack([source, target], axis=1)[source != target], axis=0)
    return pairs[:, 0], pairs[:, 1]


def told_topics(world: World, first: int, stop: int, num_words: int) -> Array:
    """The topic that each word of some items speaks of: [N, W]."""
    own = np.broadcast_to(world.topic_N[first:stop, None], (stop - first, num_words))
    knob = max(world.config.text, world.config.stratum)
    return _told(own, world.num_topics, knob, world.stream(WORDS, first))


def told_studios(world: World, first: int, stop: int) -> Array:
    """The studio that the facts name as the maker of some items: [N]."""
    rng = world.stream(FACTS, 2 * first)
    return _told(world.studio_N[first:stop], len(world.owner_S), world.config.knowledge, rng)


def told_owners(world: World, first: int, stop: int) -> Array:
    """The owner that the facts name for some studios: [S]."""
    rng = world.stream(FACTS, 2 * first + 1)
    return _told(world.owner_S[first:stop], world.num_communities, world.config.knowledge, rng)


def told_people(world: World, bundle: int) -> tuple[Array, Array, Array]:
    """Age in years, gender and country of a bundle's users, each [U].

    NaN and -1 are missing. A gender of ``GENDERS`` and a country of ``COUNTRIES`` or more tell nothing.
    """
    rng, taste, knob = world.stream(PEOPLE, bundle), tastes(world, bundle), world.config.profile
    count = len(taste)
    band = _told(taste.band_U, BANDS, knob, rng)
    age = np.where(rng.random(count) < MISSING, np.nan, rng.integers(AGES[band], AGES[band + 1]))
    gender = _told(taste.gender_U, GENDERS, knob, rng)
    country = _told(taste.country_U, COUNTRIES, knob, rng)
    return age, _blurred(gender, GENDERS, 1, rng), _blurred(country, COUNTRIES, 2 * COUNTRIES, rng)


def told_goods(world: World, first: int, stop: int) -> tuple[Array, Array]:
    """Price [N] and three labels [N, 3] of some items: the first label tells, the others are noise."""
    rng, knob = world.stream(GOODS, first), world.config.profile
    segment = world.segment_N[first:stop]
    pair, half = _told(segment // 2, COUNTRIES, knob, rng), _told(segment % 2, 2, knob, rng)
    price = np.round(_PRICES[pair] * np.exp(_PRICE_SPREAD * rng.standard_normal(stop - first)), 2)
    telling = half * LABELS + rng.integers(LABELS, size=stop - first)
    noise = 2 * LABELS + rng.integers(2 * LABELS, size=(stop - first, 2))
    return price, np.concatenate([telling[:, None], noise], axis=1)


def images(world: World, first: int, stop: int) -> Array:
    """The image vector of some items: float32 [N, X]."""
    prototypes = 2 * world.stream(IMAGES, 0).integers(2, size=(world.num_communities, IMAGE)) - 1
    noise = world.stream(IMAGES, 1 + first).standard_normal((stop - first, IMAGE))
    seen = world.config.media * prototypes[world.style_N[first:stop]] + noise
    return np.asarray(seen, dtype=np.float32)


def _told(own: Array, groups: int, knob: float, rng: np.random.Generator) -> Array:
    """The own group with probability ``knob``, else any."""
    return np.where(rng.random(own.shape) < knob, own, rng.integers(groups, size=own.shape))


def _blurred(values_U: Array, telling: int, others: int, rng: np.random.Generator) -> Array:
    """Some values missing (-1), and some replaced by one of the ``others`` that tell nothing."""
    chance = rng.random(len(values_U))
    other = telling + rng.integers(others, size=len(values_U))
    return np.where(chance < MISSING, -1, np.where(chance < 2 * MISSING, other, values_U))
