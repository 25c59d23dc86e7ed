"""Side signals of the synthetic world: words, friends, triples, attributes, images.

The key of a signal is its probability of being correct; at 0 the signal is random. So a test can
show that a granularity uses its signal:

    text, stratum  each word of an item is of its topic with probability max(``text``, ``stratum``),
                   else of any topic
    social         each friend is of the circle with probability ``social``, else any user
    knowledge      each *made by* (item → studio) and *owned by* (studio → owner) is correct with
                   probability ``knowledge``, else random; two other relations are noise
    profile        each attribute that shows the age band, gender or country of a user, or the
                   segment of an item (price its pair of segments, a label the half), is correct
                   with probability ``profile``, else random
    media          image = ``media`` · prototype of the style (±1 entries) + standard normal noise

Legend: N items of a range, U users of a bundle, W words, S studios of a range, X entries of an
image.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from recsys.sources.world import (
    BANDS,
    CIRCLE,
    COUNTRIES,
    FRIENDS,
    GENDERS,
    GOODS,
    IMAGES,
    PEOPLE,
    TRIPLES,
    WORDS,
    Array,
    World,
    tastes,
)

IMAGE: Final = 32  # entries of an image vector
LABELS: Final = 8  # labels for each half of the segments; twice as many are noise
AGES: Final = np.array([18, 30, 45, 60, 80])  # bounds of the age bands
# share of missing attributes of users; as many genders and countries are noise
MISSING: Final = 0.05
_PRICES: Final = np.array([4.0, 12.0, 36.0, 108.0])  # medians of the pairs of segments, log-normal
_PRICE_SPREAD: Final = 0.25


def friends(world: World, bundle: int) -> tuple[Array, Array]:
    """The friendships of a bundle's users, each pair once: source and destination users."""
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


def word_topics(world: World, first: int, stop: int, num_words: int) -> Array:
    """The topic of each word of some items: [N, W].

    Parameters
    ----------
    world : World
        What all users share.
    first : int
        Number of the first item.
    stop : int
        Number after the last item.
    num_words : int
        Number of words W of an item.

    Returns
    -------
    array, [N, W] int
        Topic numbers.
    """
    own = np.broadcast_to(world.topic_N[first:stop, None], (stop - first, num_words))
    strength = max(world.config.text, world.config.stratum)
    return _signal(own, world.num_topics, strength, world.stream(WORDS, first))


def item_studios(world: World, first: int, stop: int) -> Array:
    """The studio in the triples *made by* of some items: [N].

    Parameters
    ----------
    world : World
        What all users share.
    first : int
        Number of the first item.
    stop : int
        Number after the last item.

    Returns
    -------
    array, [N] int
        Studio numbers.
    """
    # even parts for items and odd ones for studios, so that the streams are independent
    rng = world.stream(TRIPLES, 2 * first)
    return _signal(world.studio_N[first:stop], len(world.owner_S), world.config.knowledge, rng)


def studio_owners(world: World, first: int, stop: int) -> Array:
    """The owner in the triples *owned by* of some studios: [S].

    Parameters
    ----------
    world : World
        What all users share.
    first : int
        Number of the first studio.
    stop : int
        Number after the last studio.

    Returns
    -------
    array, [S] int
        Owner numbers.
    """
    rng = world.stream(TRIPLES, 2 * first + 1)
    return _signal(world.owner_S[first:stop], world.num_communities, world.config.knowledge, rng)


def user_attributes(world: World, bundle: int) -> tuple[Array, Array, Array]:
    """Age in years, gender and country of a bundle's users, each [U].

    NaN and -1 are missing values. A gender of ``GENDERS`` and countries from ``COUNTRIES`` on are
    noise.
    """
    rng, taste, strength = world.stream(PEOPLE, bundle), tastes(world, bundle), world.config.profile
    count = len(taste)
    band = _signal(taste.band_U, BANDS, strength, rng)
    age = np.where(rng.random(count) < MISSING, np.nan, rng.integers(AGES[band], AGES[band + 1]))
    gender = _signal(taste.gender_U, GENDERS, strength, rng)
    country = _signal(taste.country_U, COUNTRIES, strength, rng)
    return age, _blurred(gender, GENDERS, 1, rng), _blurred(country, COUNTRIES, 2 * COUNTRIES, rng)


def item_attributes(world: World, first: int, stop: int) -> tuple[Array, Array]:
    """Price [N] and three labels [N, 3] of some items: the first label is a signal, the others are
    noise.

    Parameters
    ----------
    world : World
        What all users share.
    first : int
        Number of the first item.
    stop : int
        Number after the last item.

    Returns
    -------
    array, [N] float
        Prices.
    array, [N, 3] int
        Label numbers.
    """
    rng, strength = world.stream(GOODS, first), world.config.profile
    segment = world.segment_N[first:stop]
    pair = _signal(segment // 2, COUNTRIES, strength, rng)
    half = _signal(segment % 2, 2, strength, rng)
    price = np.round(_PRICES[pair] * np.exp(_PRICE_SPREAD * rng.standard_normal(stop - first)), 2)
    telling = half * LABELS + rng.integers(LABELS, size=stop - first)
    noise = 2 * LABELS + rng.integers(2 * LABELS, size=(stop - first, 2))
    return price, np.concatenate([telling[:, None], noise], axis=1)


def images(world: World, first: int, stop: int) -> Array:
    """The image vector of some items: float32 [N, X].

    Parameters
    ----------
    world : World
        What all users share.
    first : int
        Number of the first item.
    stop : int
        Number after the last item.

    Returns
    -------
    array, [N, X] float32
        Image vectors.
    """
    # part 0 of the stream is for prototypes, so that every range of items has the same
    prototypes = 2 * world.stream(IMAGES, 0).integers(2, size=(world.num_communities, IMAGE)) - 1
    noise = world.stream(IMAGES, 1 + first).standard_normal((stop - first, IMAGE))
    seen = world.config.media * prototypes[world.style_N[first:stop]] + noise
    return np.asarray(seen, dtype=np.float32)


def _signal(own: Array, groups: int, strength: float, rng: np.random.Generator) -> Array:
    """The own group with probability ``strength``, else a random one."""
    return np.where(rng.random(own.shape) < strength, own, rng.integers(groups, size=own.shape))


def _blurred(values_U: Array, telling: int, others: int, rng: np.random.Generator) -> Array:
    """Make some values missing (-1) and replace some by one of ``others`` noise values."""
    chance = rng.random(len(values_U))
    other = telling + rng.integers(others, size=len(values_U))
    return np.where(chance < MISSING, -1, np.where(chance < 2 * MISSING, other, values_U))
