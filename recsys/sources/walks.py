"""The events of the synthetic source, step by step for all users of a bundle.

The formulas are in :mod:`recsys.sources.world`, as is the legend: R users in a step, T steps, C
candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from recsys.config import SyntheticSource
from recsys.sources.world import (
    EVENTS,
    FIRST_TOPIC,
    KNOBS,
    MECHANISMS,
    MIX,
    MIX_SHARE,
    NOISE,
    SHORT,
    Array,
    Taste,
    World,
    tastes,
)

_TRIES: Final = 4

_CANDIDATES: Final = 4  # drawn at once in each try


@dataclass(frozen=True)
class Walk:
    """The events of a bundle, user by user in the order of time."""

    users_E: Array
    items_E: Array
    times_E: Array  # in [0, 1)
    mechanism_E: Array  # position in MECHANISMS


def walk(world: World, bundle: int) -> Walk:
    """Generate the events of a bundle, step by step for all its users."""
    taste = tastes(world, bundle)
    rng = world.stream(EVENTS, 2 * bundle + 1)
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
        # a small group may be used up; the last try takes any item, and says so
        if attempt == _TRIES - 1:
            mechanism_R[left], group_R[left] = MECHANISMS.index("noise"), world.any_group
        drawn_RC = world.groups.draw(np.repeat(group_R[left, None], _CANDIDATES, axis=1), rng)
        social = np.flatnonzero(mechanism_R[left] == MECHANISMS.index("social"))
        positions = rng.integers(taste.favourites_UF.shape[1], size=(len(social), _CANDIDATES))
        drawn_RC[social] = np.take_along_axis(
            taste.favourites_UF[rows_R[left[social]]], positions, axis=1
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
    # a repeated item is better than a user with a gap
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
    user_cluster_R = taste.user_cluster_U[rows_R]
    mixed_R = world.mix_SM[user_cluster_R, rng.integers(len(MIX), size=len(rows_R))]
    is_mixed_R = rng.random(len(rows_R)) < MIX_SHARE
    anything_R = np.full(len(rows_R), world.any_group)
    options = (  # in the order of MECHANISMS
        topic_R,
        world.first["cluster"] + world.next_cluster_G[world.cluster_N[previous_R]],
        world.first["community"] + taste.community_U[rows_R],
        anything_R,  # social: the favourites of the circle are drawn separately
        world.first["owner"] + taste.owner_U[rows_R],
        np.where(is_mixed_R, mixed_R, world.first["shelf"] + user_cluster_R),
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
    # after all real times, so that sorting keeps unused steps at the end
    times[np.arange(steps) >= lengths_U[:, None]] = 1.0
    times.sort(axis=1)
    return times
