"""A catalogue with attributes, and a slow reference for rules: an exhaustive ranking, filtered item
by item in Python."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from recsys.bundle.layout import Bundle
from recsys.serving.bundles import read_bundle, write_bundle
from tests.handmade import leave_last, small_model, write_dataset

KINDS = ("books", "games", "toys", "music", "garden")
BRANDS = ("acme", "bolt", "crux", "dune", "echo", "flux", "gale")
TAGS = ("new", "sale", "green", "rare")
PATHS = (
    ["Home", "Kitchen", "Knives"],
    ["Home", "Kitchen"],
    ["Home", "Garden"],
    ["Kitchen", "Home"],
    ["Out"],
)


class World:
    """Items ``i0 …`` with attributes as plain Python values in ``rows``, users ``u0 …`` with random
    histories."""

    def __init__(self, folder: Path, num_items: int, num_users: int) -> None:
        rng = np.random.default_rng(5)
        self.rows = [
            {
                "kind": KINDS[rng.integers(len(KINDS))] if rng.random() < 0.95 else None,
                "brand": BRANDS[min(rng.geometric(0.4), len(BRANDS)) - 1],
                "price": round(float(rng.lognormal(3, 1)), 2) if rng.random() < 0.9 else None,
                "tags": [tag for tag in TAGS if rng.random() < 0.3] if rng.random() < 0.9 else None,
                "path": PATHS[rng.integers(len(PATHS))],
                "used": bool(rng.random() < 0.4),
                "year": int(rng.integers(1990, 2020)),
            }
            for _ in range(num_items)
        ]
        types = {"tags": pa.list_(pa.string()), "path": pa.list_(pa.string())}
        columns = {
            name: pa.array([row[name] for row in self.rows], types.get(name))
            for name in self.rows[0]
        }
        columns["out"] = pa.array(
            [f"20{10 + place % 12}-01-01" for place in range(num_items)]
        ).cast(pa.timestamp("us"))
        weights = 1 / np.arange(1, num_items + 1) ** 0.7
        had = num_items - num_items // 20  # the last items are new
        chances = weights[:had] / weights[:had].sum()
        histories = [
            leave_last(*rng.choice(had, size=rng.integers(3, 9), replace=False, p=chances).tolist())
            for _ in range(num_users)
        ]
        friends = [(user, (user * 7 + 1) % num_users) for user in range(0, num_users, 2)]
        self.dataset = write_dataset(
            folder / "data",
            histories,
            num_items,
            friends=[(a, b) for a, b in friends if a != b],
            text_width=6,
            item_columns=columns,
        )
        write_bundle(folder / "bundle", small_model(self.dataset), self.dataset, {})
        self.folder = folder / "bundle"

    def bundle(self) -> Bundle:
        return read_bundle(self.folder)


def holds(row: Mapping[str, Any], filters: Mapping[str, Any]) -> bool:
    """Whether an item matches a filter, attribute by attribute and operator by operator."""
    for name, wanted in filters.items():
        value = row[name]
        if not isinstance(wanted, dict):
            wanted = {"in": wanted if isinstance(wanted, list) else [wanted]}
        members = value if isinstance(value, list) else [value]
        for operator, operand in wanted.items():
            missing = value is None or value == []
            if operator == "known":
                fits = operand != missing
            elif operator in ("ne", "not_in"):
                unwanted = operand if operator == "not_in" else [operand]
                fits = missing or not any(one in members for one in unwanted)
            elif missing:
                fits = False
            elif operator in ("in", "eq"):
                fits = any(one in members for one in (operand if operator == "in" else [operand]))
            elif operator == "all":
                fits = all(one in members for one in operand)
            elif operator == "under":
                parts = operand if isinstance(operand, list) else operand.split(" > ")
                places = [members.index(part) if part in members else math.inf for part in parts]
                fits = places == sorted(places) and math.inf not in places
            else:
                fits = {
                    "lt": value < operand,
                    "le": value <= operand,
                    "gt": value > operand,
                    "ge": value >= operand,
                }[operator]
            if not fits:
                return False
    return True


def random_filters(rng: np.random.Generator) -> dict[str, Any]:
    """Draw one to three conditions of all kinds."""
    low = round(float(rng.lognormal(2.5, 1)), 2)
    choices: list[dict[str, Any]] = [
        {"kind": str(rng.choice(KINDS))},
        {"kind": [str(kind) for kind in rng.choice(KINDS, 2, replace=False)]},
        {"kind": {"ne": str(rng.choice(KINDS))}},
        {"kind": {"known": bool(rng.random() < 0.5)}},
        {"brand": {"not_in": [str(brand) for brand in rng.choice(BRANDS, 2, replace=False)]}},
        {"brand": str(rng.choice(BRANDS[:3]))},
        {"price": {"lt": low}},
        {"price": {"ge": low, "le": 4 * low}},
        {"year": {"gt": int(rng.integers(1990, 2019))}},
        {"year": {"in": [int(year) for year in rng.integers(1990, 2020, 5)]}},
        {"tags": str(rng.choice(TAGS))},
        {"tags": {"all": [str(tag) for tag in rng.choice(TAGS, 2, replace=False)]}},
        {"tags": {"known": False}},
        {"path": {"under": "Home > Kitchen"}},
        {"path": {"under": ["Home"]}},
        {"used": bool(rng.random() < 0.5)},
    ]
    chosen = rng.choice(len(choices), size=rng.integers(1, 4), replace=False)
    return {name: wanted for place in chosen for name, wanted in choices[place].items()}


def random_rules(rng: np.random.Generator, num_items: int) -> dict[str, Any]:
    """Draw the rules of one request."""
    found: dict[str, Any] = {"k": int(rng.integers(1, 25))}
    if rng.random() < 0.7:
        found["filters"] = random_filters(rng)
    if rng.random() < 0.3:
        found["candidates"] = [
            f"i{item}" for item in rng.integers(num_items, size=rng.integers(1, 120))
        ]
    if rng.random() < 0.4:
        found["exclude"] = [
            f"i{item}" for item in rng.integers(num_items, size=rng.integers(1, 60))
        ]
    if rng.random() < 0.4:
        boosts: list[dict[str, Any]] = [
            {"factor": round(float(rng.lognormal(0, 1)), 3), "filters": random_filters(rng)},
            {"factor": 3.0, "items": [f"i{item}" for item in rng.integers(num_items, size=8)]},
        ]
        found["boost"] = boosts[: rng.integers(1, 3)] if rng.random() < 0.8 else boosts[1]
    if rng.random() < 0.3:
        found["offset"] = int(rng.integers(0, 40))
    return found


def slow_list(
    rules: Mapping[str, Any],
    ranked: Sequence[tuple[str, float]],
    spread: float,
    rows: Sequence[Mapping[str, Any]],
) -> list[tuple[str, float]]:
    """Apply the rules to an exhaustive ranking of (item, score) and return the page."""
    boosts = rules.get("boost") or []
    boosts = [boosts] if isinstance(boosts, dict) else boosts
    found = []
    for item, score in ranked:
        row = rows[int(item[1:])]
        if "candidates" in rules and item not in rules["candidates"]:
            continue
        if item in rules.get("exclude", ()) or not holds(row, rules.get("filters", {})):
            continue
        for boost in boosts:
            if item in boost.get("items", ()) or (
                "filters" in boost and holds(row, boost["filters"])
            ):
                score += math.log(boost["factor"]) * spread
        found.append((item, score))
    found.sort(key=lambda pair: -pair[1])
    start = rules.get("offset", 0)
    return found[start : start + rules["k"]]
