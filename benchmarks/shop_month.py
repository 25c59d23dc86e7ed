"""Write the month of a generated shop as a data team would export it: a catalogue, and one file of
events per day.

    python -m benchmarks.shop_month shop --until 2026-03-14
    python -m benchmarks.shop_month shop --until 2026-03-15 --damage bots

Writes ``FOLDER/items.csv`` and ``FOLDER/days/DATE.csv`` for every day of March 2026 up to
``--until``; the same day always has the same bytes. ``--damage`` damages the last day: ``ids``
gives every second row an item id of another system, ``bots`` adds visitors who view the least
popular items all day. docs/first-month.md uses it; users choose as in :mod:`benchmarks.shop_world`.
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from benchmarks.in_turns import say
from benchmarks.shop_files import BRANDS, CATEGORIES, COMMON, THEMES
from benchmarks.shop_world import DAY, Plan, World, world_of

START: Final = datetime(2026, 3, 1, tzinfo=UTC)
_DAYS: Final = 31
_BOTS: Final = 40
_HEAD: Final = ("user_id", "item_id", "timestamp")
Row = tuple[str, str, int]


def plan() -> Plan:
    """A thousand customers with a taste, favourite brands, and a habit of what to choose next."""
    strength = {"taste": 0.9, "sequence": 0.9, "brands": 0.6, "price": 0.6}
    start = int(START.timestamp())
    return Plan(
        7,
        1000,
        150,
        30.0,
        start,
        _DAYS,
        strength,
        frozenset(),
        styles=6,
        aimless=0.1,
        long_tail=0.8,
    )


def days_of(world: World) -> list[list[Row]]:
    """The events of every day, in the order of time.

    >>> from numpy import array
    >>> days = days_of(World(plan(), array([3]), array([5]), array([1772323200]), array([0])))
    >>> days[0], len(days)
    ([('customer-003', 'p-005', 1772323200)], 31)
    """
    days: list[list[Row]] = [[] for _ in range(_DAYS)]
    for user, item, time in zip(
        world.users.tolist(), world.items.tolist(), world.times.tolist(), strict=True
    ):
        day = (time - world.plan.start) // DAY
        if day < _DAYS:
            days[day].append((f"customer-{user:03d}", f"p-{item:03d}", time))
    return days


def damaged(days: list[list[Row]], last: int, how: str) -> list[Row]:
    """The last day, damaged."""
    rows = days[last]
    if how == "ids":
        return [
            (u, f"SKU{9000 + place}" if place % 2 else item, t)
            for place, (u, item, t) in enumerate(rows)
        ]
    counted = Counter(item for day in days[:last] for _, item, _ in day)
    least = [
        item for item, _ in sorted(counted.items(), key=lambda pair: (pair[1], pair[0]))[:_BOTS]
    ]
    noon = rows[len(rows) // 2][2]
    visits = [
        (f"customer-{bot:03d}", least[(bot + step) % _BOTS], noon + 60 * step)
        for bot in range(_BOTS)
        for step in range(2 * len(rows) // _BOTS)
    ]
    return sorted([*rows, *visits], key=lambda row: row[2])


def write_items(world: World, folder: Path) -> None:
    """The catalogue."""
    words = [theme.split() for theme in THEMES]
    columns = (world.item_styles, world.categories, world.brands, world.prices)
    rows = []
    for item, (style, category, brand, price) in enumerate(
        zip(*(each.tolist() for each in columns), strict=True)
    ):
        title = (
            f"{COMMON[item % len(COMMON)]} {words[style][item % len(words[style])]}".capitalize()
        )
        rows.append(
            (f"p-{item:03d}", title, CATEGORIES[category], BRANDS[brand % len(BRANDS)], price)
        )
    _write(folder / "items.csv", ("item_id", "title", "category", "brand", "price"), rows)


def write_export(days: list[list[Row]], folder: Path) -> list[Path]:
    """Write a file per day and return their paths."""
    paths = [folder / f"2026-03-{day + 1:02d}.csv" for day in range(len(days))]
    for path, rows in zip(paths, days, strict=True):
        _write(path, _HEAD, rows)
    return paths


def _write(path: Path, head: tuple[str, ...], rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([head, *rows])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--until", default="2026-03-31", metavar="DATE", help="the last day that is written"
    )
    parser.add_argument("--damage", choices=("ids", "bots"), help="of the last day")
    options = parser.parse_args()
    last = (datetime.fromisoformat(options.until).replace(tzinfo=UTC) - START).days
    if not 0 <= last < _DAYS:
        parser.error(f"--until: got {options.until}, expected a day of March 2026")
    world = world_of(plan())
    write_items(world, options.folder)
    days = days_of(world)
    if options.damage:
        days[last] = damaged(days, last, options.damage)
    write_export(days[: last + 1], options.folder / "days")
    numbers = {"events": sum(map(len, days[: last + 1])), "events_of_the_last_day": len(days[last])}
    say("a shop's month", days=last + 1, items=world.plan.num_items, **numbers)


if __name__ == "__main__":
    main()
