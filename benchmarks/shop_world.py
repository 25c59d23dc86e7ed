"""Generate shops: users choose items for randomly drawn reasons, one choice after the other in
time.

Why a separate generator: data from the model's own formulas would only show that the formulas fit
themselves. Here a choice is not a product of two vectors: it follows a habit (to buy again, to
continue from the last item), or one of the user's styles, restricted by the reasons of this shop:
brand, price, distance, friends, hour, region. A share of the choices follows popularity alone. The
seed decides which reasons a shop has, and how strong they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np

Array = np.ndarray[Any, Any]

SIGNALS: Final = {  # name → how probable it is in a shop
    "taste": 0.75, "drift": 0.45, "repeats": 0.5, "sequence": 0.4, "brands": 0.4, "price": 0.35,
    "text": 0.4, "friends": 0.3, "place": 0.25, "hours": 0.3, "attributes": 0.35, "types": 0.4,
}  # fmt: skip
MISLEADING: Final = {"text": 0.35, "friends": 0.35, "attributes": 0.45, "brands": 0.4, "price": 0.4}
"""If a shop lacks the signal: the probability that its files have the columns, filled at random."""
TYPES: Final = ("view", "cart", "purchase")
DAY: Final = 86_400
FURTHER: Final = (0.15, 0.5)
"""Share of views that lead to a cart or purchase: without a reason, and with one."""
_LEAST_SIGNALS: Final = 2
_PARTS_OF_DAY: Final = 4
_STRENGTH: Final = (0.5, 1.0)


@dataclass(frozen=True)
class Plan:
    """Parameters of a shop, drawn before the first choice."""

    seed: int
    num_users: int
    num_items: int
    events_a_user: float
    start: int  # seconds since 1970
    days: int
    strength: Mapping[str, float]  # signal → from 0 to 1; absent: the shop does not have it
    misleading: frozenset[str]  # uninformative columns or files
    styles: int
    aimless: float  # share of choices that follow popularity alone
    long_tail: float  # exponent of popularity by rank

    def has(self, signal: str) -> bool:
        return signal in self.strength

    def shows(self, signal: str) -> bool:
        """Whether the files have columns of this signal, true or misleading."""
        return signal in self.strength or signal in self.misleading


@dataclass
class World:
    """A shop with its users and their choices; events are in the order of time."""

    plan: Plan
    users: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    items: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    times: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    # of TYPES; all 0 without types
    kinds: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    item_styles: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    categories: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    brands: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    prices: Array = field(default_factory=lambda: np.zeros(0))
    # kilometres from the middle
    item_places: Array = field(default_factory=lambda: np.zeros((0, 2)))
    # day of the period, below 0: before it
    launched: Array = field(default_factory=lambda: np.zeros(0))
    ages: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    regions: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    friends: Array = field(default_factory=lambda: np.zeros((0, 2), np.int64))


def plan_of(seed: int, users: float = 1.0, items: float = 1.0) -> Plan:
    """Draw size, period and signals; ``users`` and ``items`` scale the numbers of them.

    >>> plan = plan_of(3)
    >>> len(plan.strength) >= 2, 300 <= plan.num_users <= 3000, plan == plan_of(3)
    (True, True, True)
    """
    random = np.random.default_rng([seed, 0])

    def between(low: float, high: float) -> float:
        return float(np.exp(random.uniform(np.log(low), np.log(high))))

    strength: dict[str, float] = {}
    while len(set(strength) - {"types", "drift", "text"}) < _LEAST_SIGNALS:
        drawn = {name: float(random.uniform(*_STRENGTH)) for name in SIGNALS}
        strength = {name: value for name, value in drawn.items() if random.random() < SIGNALS[name]}
        if "taste" not in strength:
            strength.pop("text", None)  # a text can only describe a taste that exists
    misleading = {
        name
        for name, share in MISLEADING.items()
        if name not in strength and random.random() < share
    }
    return Plan(
        seed,
        max(30, round(between(300, 3000) * users)),
        max(20, round(between(60, 3000) * items)),
        between(8, 40),
        int(datetime(2022, 1, 1, tzinfo=UTC).timestamp()) + int(random.integers(0, 700)) * DAY,
        int(between(60, 730)),
        strength,
        frozenset(misleading),
        int(random.integers(4, 13)),
        float(random.uniform(0.08, 0.25)),
        float(random.uniform(0.4, 1.1)),
    )


def world_of(plan: Plan) -> World:
    """Generate users and items, and every choice of the period."""
    choices = Choices.of(plan)
    choices.make()
    return choices.world


def _make_items(world: World, random: np.random.Generator) -> None:
    plan, num = world.plan, world.plan.num_items
    world.item_styles = random.integers(0, plan.styles, num)
    num_categories = int(random.integers(4, 16))
    of_style = random.integers(0, num_categories, plan.styles)
    world.categories = np.where(
        random.random(num) < 0.5,
        of_style[world.item_styles],
        random.integers(0, num_categories, num),
    )
    world.brands = np.minimum(random.zipf(1.4, num) - 1, max(5, num // 12))
    level = random.normal(3.0, 0.6, num_categories)
    world.prices = np.round(np.exp(level[world.categories] + random.normal(0, 0.7, num)), 2).clip(
        0.5
    )
    middle = random.normal(0, 30, (int(random.integers(2, 7)), 2))
    world.item_places = middle[random.integers(0, len(middle), num)] + random.normal(0, 4, (num, 2))
    is_new = random.random(num) < (0.6 if plan.has("drift") else 0.0)
    world.launched = np.where(
        is_new, random.uniform(0, 0.97 * plan.days, num), -random.exponential(200, num)
    )


@dataclass
class People:
    """User state that the files do not contain, or only in part."""

    styles: Array  # [users, styles], shares
    brands: Array  # [users, 2]
    budgets: Array  # logarithms of prices
    homes: Array  # [users, 2], kilometres
    parts: Array  # preferred part of the day


def _make_people(world: World, random: np.random.Generator) -> People:
    plan, num = world.plan, world.plan.num_users
    styles = random.dirichlet(np.full(plan.styles, 0.25), num)  # mostly one to three styles
    world.ages = random.integers(16, 80, num)
    world.regions = np.minimum(random.geometric(0.3, num) - 1, 7)
    homes = world.item_places[random.integers(0, plan.num_items, num)] + random.normal(
        0, 3, (num, 2)
    )
    if plan.shows("friends"):
        world.friends = _friends(styles.argmax(1), plan.has("friends"), random)
    return People(
        styles,
        world.brands[random.integers(0, plan.num_items, (num, 2))],
        np.log(world.prices)[random.integers(0, plan.num_items, num)],
        homes,
        random.integers(0, _PARTS_OF_DAY, num),
    )


def _friends(groups: Array, is_true: bool, random: np.random.Generator) -> Array:
    """Pairs of friends; true friends mostly share the main style."""
    num, found = len(groups), set()
    alike = [np.flatnonzero(groups == group) for group in range(int(groups.max()) + 1)]
    for user in range(num):
        for _ in range(int(random.poisson(3))):
            same = is_true and random.random() < 0.8
            other = int(random.choice(alike[groups[user]]) if same else random.integers(0, num))
            if other != user:
                found.add((user, other))
    return np.array(sorted(found), np.int64).reshape(-1, 2)


class Choices:
    """Generate every visit of every user, in the order of time."""

    def __init__(self, world: World, people: People, random: np.random.Generator) -> None:
        plan = world.plan
        self.world, self.plan, self.people, self.random = world, plan, people, random
        ranks = random.permutation(plan.num_items) + 1.0
        self.popularity = ranks**-plan.long_tail
        # days in fashion
        self.life = random.lognormal(np.log(max(20.0, plan.days / 4)), 0.6, plan.num_items)
        fits = random.dirichlet(np.full(plan.styles, 0.3), plan.num_items)
        fits[np.arange(plan.num_items), world.item_styles] += 1.5
        self.fits = (fits / fits.sum(1, keepdims=True)) ** (1 + 2 * plan.strength.get("taste", 0.0))
        self.is_staple = random.random(plan.num_items) < 0.5
        self.cycles = random.lognormal(np.log(max(4.0, plan.days / 14)), 0.6, plan.num_items)
        self.followers = random.integers(0, plan.num_items, (plan.num_items, 2))
        near = [np.flatnonzero(world.categories == category) for category in world.categories]
        self.followers[:, 0] = [int(random.choice(same)) for same in near]
        self.hours = random.dirichlet(np.full(_PARTS_OF_DAY, 0.5), plan.num_items) * _PARTS_OF_DAY
        groups = int(world.regions.max()) + 1
        self.affinity = np.exp(random.normal(0, 1.2, (groups, 4, int(world.categories.max()) + 1)))
        self.friends: list[list[int]] = [[] for _ in range(plan.num_users)]
        for one, two in world.friends.tolist():
            self.friends[one].append(two)
            self.friends[two].append(one)
        # item → time of the last purchase
        self.had: list[dict[int, int]] = [{} for _ in range(plan.num_users)]
        self.last = np.full(plan.num_users, -1)
        self.lasting: dict[int, Array] = {}
        self._day, self._offer = -1, self.popularity

    @staticmethod
    def of(plan: Plan) -> Choices:
        """Before the first one."""
        world, random = World(plan), np.random.default_rng([plan.seed, 1])
        _make_items(world, random)
        return Choices(world, _make_people(world, random), random)

    def make(self, until: int | None = None) -> None:
        """Store the events in the world, all or only those of choices before a time."""
        rows: list[tuple[int, int, int, int]] = []
        for time, user in self._visits():
            if until is not None and time >= until:
                break
            item, is_meant = self.choose(user, time)
            self.had[user][item], self.last[user] = time, item
            rows.append((time, user, item, 0))
            if self.plan.has("types"):
                rows += self._further(time, user, item, is_meant)
        rows.sort()
        world = self.world
        world.times, world.users, world.items, world.kinds = np.array(rows, np.int64).T

    def _further(
        self, time: int, user: int, item: int, is_meant: bool
    ) -> list[tuple[int, int, int, int]]:
        """Outcome of a view: nothing, a cart, a purchase."""
        if self.random.random() > FURTHER[is_meant]:
            return []
        later = time + int(self.random.integers(20, 240))
        bought = (
            [(later + int(self.random.integers(30, 900)), user, item, 2)]
            if self.random.random() < 0.6
            else []
        )
        return [(later, user, item, 1), *bought]

    def _visits(self) -> list[tuple[int, int]]:
        """Times of choices: a user visits, stays for some time, and chooses several items in one
        session."""
        plan, random, found = self.plan, self.random, []
        for user in range(plan.num_users):
            first = 0.0 if random.random() < 0.55 else float(random.uniform(0, 0.85))
            stays = 1.0 if random.random() < 0.7 else float(random.uniform(first, 1.0))
            left = max(3, round(float(random.gamma(1.5, plan.events_a_user / 1.5))))
            while left > 0:
                day = int(random.uniform(first, max(stays, first + 0.01)) * plan.days)
                time = plan.start + min(day, plan.days - 1) * DAY + self._clock(user)
                for _ in range(min(left, int(random.geometric(0.5)))):
                    found.append((time, user))
                    time, left = time + int(random.integers(40, 1500)), left - 1
        return sorted(found)

    def _clock(self, user: int) -> int:
        """Time of the day: the user's own if hours are a signal, else mostly afternoons and
        evenings."""
        if self.plan.has("hours") and self.random.random() < 0.75:
            return int(
                self.people.parts[user] * DAY / _PARTS_OF_DAY
                + self.random.uniform(0, DAY / _PARTS_OF_DAY)
            )
        return int(self.random.normal(17, 3.5) * 3600) % DAY

    def choose(self, user: int, time: int) -> tuple[int, bool]:
        """Choose an item, and say whether it was for a reason."""
        plan, random, strength = self.plan, self.random, self.plan.strength
        offer = self.offered((time - plan.start) // DAY)
        if plan.has("repeats") and random.random() < 0.75 * strength["repeats"]:
            due = self._due(user, time, offer)
            if due >= 0:
                return due, True
        last = int(self.last[user])
        if plan.has("sequence") and last >= 0 and random.random() < 0.6 * strength["sequence"]:
            return int(self.followers[last, int(random.random() < 0.3)]), True
        weights, is_meant = offer, random.random() >= plan.aimless
        if is_meant:
            weights = offer * self.wanted(user)
            if plan.has("taste"):
                weights = (
                    weights * self.fits[:, random.choice(plan.styles, p=self.people.styles[user])]
                )
            if plan.has("hours"):
                part = (time % DAY) * _PARTS_OF_DAY // DAY
                weights = weights * self.hours[:, part] ** (2 * strength["hours"])
            if plan.has("friends") and self.friends[user]:
                weights = self._with_friends(user, time, weights)
        if not plan.has("repeats"):
            weights = weights.copy()
            weights[list(self.had[user])] *= 0.01
        sums = np.cumsum(weights)
        return (
            int(min(np.searchsorted(sums, random.random() * sums[-1]), plan.num_items - 1)),
            is_meant,
        )

    def offered(self, day: int) -> Array:
        """Popularity on a day: items appear, are in fashion, and fade."""
        if day != self._day:
            self._day, self._offer = day, self.popularity
            if self.plan.has("drift"):
                age = day - self.world.launched
                fashion = (
                    np.exp(-np.maximum(age, 0) / self.life) * 4 * self.plan.strength["drift"] + 0.15
                )
                self._offer = self.popularity * fashion * (age >= 0)
        return self._offer

    def _due(self, user: int, time: int, offer: Array) -> int:
        """The repeat item that is most overdue by its own cycle; -1 if there is none."""
        best, found = 0.7, -1
        for item, when in self.had[user].items():
            if self.is_staple[item] and offer[item] > 0:
                overdue = (
                    (time - when) / DAY / self.cycles[item] * float(self.random.uniform(0.7, 1.3))
                )
                if best < overdue < 4:
                    best, found = overdue, item
        return found

    def _with_friends(self, user: int, time: int, weights: Array) -> Array:
        """Raise items that friends had in the last two months."""
        weights = weights.copy()
        for friend in self.friends[user]:
            for item, when in self.had[friend].items():
                if time - when < 60 * DAY:
                    weights[item] *= 1 + 6 * self.plan.strength["friends"]
        return weights

    def wanted(self, user: int) -> Array:
        """Factors that do not change with time: brands, prices, distance, and preferences of the
        region and age."""
        if user not in self.lasting:
            world, people, strength = self.world, self.people, self.plan.strength
            weights = np.ones(self.plan.num_items)
            if "brands" in strength:
                weights *= np.where(
                    np.isin(world.brands, people.brands[user]), 1 + 14 * strength["brands"], 1.0
                )
            if "price" in strength:
                off = (np.log(world.prices) - people.budgets[user]) / (
                    1.2 - 0.8 * strength["price"]
                )
                weights *= np.exp(-(off**2) / 2) + 0.01
            if "place" in strength:
                away = np.linalg.norm(world.item_places - people.homes[user], axis=1)
                weights *= np.exp(-away / (12 - 8 * strength["place"])) + 0.005
            if "attributes" in strength:
                group = self.affinity[world.regions[user], min((world.ages[user] - 16) // 16, 3)]
                weights *= group[world.categories] ** strength["attributes"]
            self.lasting[user] = weights
        return self.lasting[user]
